"""Weights as they are drawn."""

import keras
import numpy as np
import pytest

from keras_vit.layers import MLP
from keras_vit.layers.initializers import XavierUniform, drawn_together
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
