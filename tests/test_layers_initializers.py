"""Weights as they are drawn."""

import gc
import time

import keras
import numpy as np
import pytest

from keras_vit.layers import MLP, initializers
from keras_vit.layers.initializers import (
    Normal,
    XavierUniform,
    Zeros,
    bias_initializer,
    drawn_together,
    kernel_initializer,
    zeros_drawn,
)
from keras_vit.models import VisionTransformerConfig, vision_transformer

SMALL = {"patch_size": 4, "hidden_size": 32, "depth": 2, "mlp_dim": 64, "num_heads": 4}


def kernels(model):
    return {
        layer.path: (layer.kernel_initializer, keras.ops.convert_to_numpy(layer.kernel))
        for layer in model._flatten_layers()
        if isinstance(getattr(layer, "kernel_initializer", None), XavierUniform)
    }


@pytest.mark.parametrize("fields", [{}, {"pooling": "map"}, {"gated_mlp": True}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kernel_of_a_model_is_what_its_initializer_draws(fields, dtype):
    model = vision_transformer(
        VisionTransformerConfig(image_size=16, **SMALL, **fields), dtype=dtype
    )
    found = kernels(model)
    assert len(found) >= 9
    for initializer, kernel in found.values():
        alone = keras.ops.convert_to_numpy(initializer(kernel.shape, dtype))
        np.testing.assert_array_equal(kernel, alone)


def test_drawn_together_is_drawn_one_after_the_other():
    keras.utils.set_random_seed(3)
    alone = keras.Sequential([keras.Input((16,)), MLP(32), MLP(48)])
    keras.utils.set_random_seed(3)
    with drawn_together() as draw_kernels:
        together = keras.Sequential([keras.Input((16,)), MLP(32), MLP(48)])
        draw_kernels(together)
    for one, other in zip(alone.weights, together.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_drawing_waits_for_the_memory(monkeypatch):
    touch = initializers._touch

    def touch_late(room):
        time.sleep(0.05)
        touch(room)

    monkeypatch.setattr(initializers, "_touch", touch_late)
    model = vision_transformer(VisionTransformerConfig(image_size=16, **SMALL))
    for initializer, kernel in kernels(model).values():
        np.testing.assert_array_equal(kernel, initializer(kernel.shape, "float32"))


def test_kernels_of_a_builder_are_drawn_in_the_end():
    with drawn_together() as draw_kernels:
        layer = keras.layers.Dense(3, kernel_initializer=XavierUniform(seed=0))
        model = keras.Sequential([keras.Input((2,)), layer])
        assert not keras.ops.convert_to_numpy(layer.kernel).any()
        draw_kernels(model)
    assert keras.ops.convert_to_numpy(layer.kernel).all()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="for TensorFlow's graphs")
def test_a_model_that_is_built_in_a_graph_is_drawn():
    import tensorflow as tf

    built = []

    @tf.function(autograph=False)
    def function(images):
        if not built:
            built.append(vision_transformer(VisionTransformerConfig(image_size=16, **SMALL)))
        return built[0](images)

    function(tf.zeros((1, 16, 16, 3)))
    assert all(kernel.any() for _, kernel in kernels(built[0]).values())


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="keras.distribution has no PyTorch")
def test_hosts_that_train_together_get_the_same_values_at_once():
    """JAX compares what hosts give it: nothing may be drawn later."""
    alone = XavierUniform(seed=0)((16, 48))
    one = keras.distribution.DataParallel(devices=keras.distribution.list_devices()[:1])
    with one.scope(), drawn_together():
        np.testing.assert_array_equal(XavierUniform(seed=0)((16, 48)), alone)


def test_a_large_kernel_lies_within_its_limit_and_is_uniform():
    values = keras.ops.convert_to_numpy(XavierUniform(columns=3, seed=0)((512, 1536), "float32"))
    limit = np.sqrt(6 / (512 + 512))
    assert np.abs(values).max() <= limit
    assert abs(values.mean()) < limit / 200
    assert values.std() == pytest.approx(limit / np.sqrt(3), rel=0.01)


@pytest.mark.parametrize("shape", [(200, 300), (1, 1, 40_000), (3, 3, 20, 30)])
def test_the_limits_are_those_of_keras(shape):
    values = np.abs(keras.ops.convert_to_numpy(XavierUniform(seed=0)(shape, "float32"))).max()
    of_keras = keras.initializers.GlorotUniform(seed=0)(shape, "float32")
    of_keras = np.abs(keras.ops.convert_to_numpy(of_keras)).max()
    assert values == pytest.approx(of_keras, rel=2e-3)


def test_normal_values_are_normal_and_the_same_for_a_seed():
    draw = Normal(mean=0.5, stddev=0.1, seed=0)
    values = keras.ops.convert_to_numpy(draw((200, 300), "float32"))
    assert values.mean() == pytest.approx(0.5, abs=1e-3)
    assert values.std() == pytest.approx(0.1, rel=0.01)
    # 0.13 % of a normal distribution lie beyond three deviations on one side.
    assert (values > 0.8).mean() == pytest.approx(0.00135, rel=0.3)
    np.testing.assert_array_equal(draw((200, 300), "float32"), values)
    # NumPy's numbers, whatever the backend.
    np.testing.assert_allclose(values[0, :3], [0.428514, 0.574719, 0.470499], rtol=1e-5)


@pytest.mark.parametrize(
    "initializer", [Normal(mean=1.0, stddev=0.1, seed=3), Zeros(), XavierUniform(3, seed=4)]
)
def test_initializers_come_back_from_their_config(initializer):
    config = keras.initializers.serialize(initializer)
    back = keras.initializers.deserialize(config)
    assert type(back) is type(initializer)
    np.testing.assert_array_equal(back((4, 12), "float32"), initializer((4, 12), "float32"))


def test_nothing_is_drawn_for_weights_that_are_loaded():
    with zeros_drawn():
        made = [kernel_initializer(3), bias_initializer()]
    for initializer in made:
        assert not keras.ops.convert_to_numpy(initializer((4, 12), "float32")).any()
    assert keras.ops.convert_to_numpy(kernel_initializer()((4, 12))).all()


@pytest.mark.parametrize("shape", [(0, 3), (0, 2, 3), (2, 0, 0)])
def test_empty_weights_and_the_default_dtype(shape):
    floatx = keras.config.floatx()
    keras.config.set_floatx("float16")
    try:
        for initializer in (XavierUniform(), Normal(), Zeros()):
            tensor = initializer(shape)
            assert tuple(tensor.shape) == shape
            assert keras.backend.standardize_dtype(tensor.dtype) == "float16"
    finally:
        keras.config.set_floatx(floatx)


@pytest.mark.parametrize("enabled", [True, False])
def test_building_leaves_the_garbage_collector_as_it_was(enabled):
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        vision_transformer(VisionTransformerConfig(image_size=16, **SMALL))
        assert gc.isenabled() is enabled
        with pytest.raises(ValueError, match="name"):
            vision_transformer(VisionTransformerConfig(image_size=16, **SMALL), name="a/b")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()
