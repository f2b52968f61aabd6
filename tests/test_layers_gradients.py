"""The gradients that keep little, against those of each backend and of NumPy in float64."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_vit.layers.activations import ACTIVATIONS, training_activation
from keras_vit.layers.layer_normalization import LayerNormalization
from keras_vit.layers.light_attention import light_attention
from keras_vit.models import VisionTransformerConfig, vision_transformer


def gradients(function, *arrays):
    """Those of a function to a number, by its arguments."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(array) for array in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            number = function(*tensors)
        found = tape.gradient(number, tensors)
    elif backend == "jax":
        import jax

        found = jax.grad(function, argnums=tuple(range(len(arrays))))(*arrays)
    else:
        import torch

        tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
        found = torch.autograd.grad(function(*tensors), tensors)
    return [ops.convert_to_numpy(gradient) for gradient in found]


def normed(layer, training):
    """The layer as a function of its input and its weights, summed up with random factors."""

    def function(x, *weights):
        factors = np.random.default_rng(1).normal(size=x.shape).astype("float32")
        outputs, _ = layer.stateless_call(list(weights), [], x, training=training)
        return ops.sum(ops.cast(outputs, "float32") * ops.convert_to_tensor(factors))

    return function


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_for_training_is_the_activation(name):
    x = np.linspace(-8, 8, 4001).astype("float32")
    light = training_activation(name)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(light(ops.convert_to_tensor(x))),
        ops.convert_to_numpy(ACTIVATIONS[name](ops.convert_to_tensor(x))),
    )
    (ours,) = gradients(lambda x: ops.sum(light(x)), x)
    (plain,) = gradients(lambda x: ops.sum(ACTIVATIONS[name](x)), x)
    np.testing.assert_allclose(ours, plain, atol=6e-6)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_the_gradient_of_gelu_is_its_limit_where_squares_overflow(name):
    x = np.array([-1e30, -1e19, -100, 100, 1e19, 1e30], "float32")
    (ours,) = gradients(lambda x: ops.sum(training_activation(name)(x)), x)
    if keras.backend.backend() != "torch":  # It has gradients of its own.
        np.testing.assert_array_equal(ours, [0, 0, 0, 1, 1, 1])


def test_the_gradient_of_gelu_is_exact():
    x = np.linspace(-8, 8, 4001).astype("float32")
    (ours,) = gradients(lambda x: ops.sum(training_activation("gelu")(x)), x)
    share = [0.5 * math.erfc(-value / math.sqrt(2)) for value in x.astype("float64")]
    density = np.exp(-(x.astype("float64") ** 2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(ours, share + x * density, atol=3e-7)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow rounds on the way")
def test_gelu_in_a_short_dtype_is_rounded_once():
    x = np.linspace(-8, 8, 4001).astype("bfloat16")
    wide = x.astype("float64")
    exact = wide * [0.5 * math.erfc(-value / math.sqrt(2)) for value in wide]
    found = ops.convert_to_numpy(ACTIVATIONS["gelu"](ops.convert_to_tensor(x))).astype("float64")
    # Half of the last of eight bits.
    np.testing.assert_allclose(found, exact, rtol=2**-8 * 1.01, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_norm_is_that_of_keras(training, dtype):
    random = np.random.default_rng(0)
    x = random.normal(3, 2, size=(2, 5, 16)).astype("float32")
    outputs = []
    for layer in (LayerNormalization(dtype=dtype), keras.layers.LayerNormalization(dtype=dtype)):
        layer.epsilon = 1e-6
        layer.build(x.shape)
        layer.set_weights([np.linspace(0.5, 2, 16), np.linspace(-1, 1, 16)])
        outputs.append(ops.convert_to_numpy(ops.cast(layer(x, training=training), "float32")))
    tolerance = 1e-5 if dtype == "float32" else 0.03
    np.testing.assert_allclose(*outputs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(6, 16), (2, 5, 16), (2, 3, 5, 16)])
def test_a_norm_in_training_is_the_norm(shape):
    random = np.random.default_rng(0)
    layer = LayerNormalization()
    layer.build(shape)
    arrays = [random.normal(3, 2, size=s).astype("float32") for s in (shape, (16,), (16,))]
    ours = gradients(normed(layer, True), *arrays)
    plain = gradients(normed(layer, False), *arrays)
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_in_mixed_precision_the_gradients_have_the_dtypes_of_their_tensors(policy):
    layer = LayerNormalization(dtype=policy)
    layer.build((2, 5, 16))
    x = ops.cast(np.random.default_rng(0).normal(size=(2, 5, 16)), layer.compute_dtype)
    weights = [ops.convert_to_numpy(weight) for weight in layer.weights]
    found = gradients(normed(layer, True), x, *weights)
    plain = gradients(normed(layer, False), x, *weights)
    for one, other in zip(found, plain, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            one.astype("float32"), other.astype("float32"), rtol=0.02, atol=0.02
        )


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch has attention of its own")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_light_attention_and_its_gradients_are_those_of_the_softmax(dtype):
    random = np.random.default_rng(0)
    # Fewer queries than keys, as where the head reads few tokens.
    arrays = [random.normal(size=(2, 3, count, 8)).astype("float32") for count in (5, 7, 7)]
    factors = random.normal(size=(2, 3, 5, 8)).astype("float32")

    def loss(attend):
        def number(*arrays):
            return ops.sum(ops.cast(attend(*arrays), "float32") * ops.convert_to_tensor(factors))

        return number

    def plain(query, key, value):
        return ops.matmul(ops.softmax(ops.matmul(query, ops.swapaxes(key, -1, -2))), value)

    def light(*arrays):
        return light_attention(*(ops.cast(array, dtype) for array in arrays))

    tensors = [ops.convert_to_tensor(array) for array in arrays]
    tolerance = 1e-5 if dtype == "float32" else 0.06
    for ours, theirs in [
        (ops.convert_to_numpy(ops.cast(light(*tensors), "float32")), plain(*tensors)),
        *zip(gradients(loss(light), *arrays), gradients(loss(plain), *arrays), strict=True),
    ]:
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_step_of_a_model_is_that_of_keras_own_layers(monkeypatch):
    def weights_after_a_step():
        keras.utils.set_random_seed(0)
        config = VisionTransformerConfig(
            patch_size=4, hidden_size=16, depth=2, mlp_dim=32, num_heads=2, image_size=8
        )
        model = vision_transformer(config)
        model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
        random = np.random.default_rng(0)
        model.train_on_batch(random.integers(0, 255, (4, 8, 8, 3)), random.normal(size=(4, 1000)))
        return [ops.convert_to_numpy(weight) for weight in model.weights]

    ours = weights_after_a_step()
    for module in ("activations", "layer_normalization"):
        monkeypatch.setattr(
            f"keras_vit.layers.{module}.light_gradient", lambda function, gradient: function
        )
    monkeypatch.setattr(
        "keras_vit.layers.multi_head_self_attention.light_attention",
        lambda query, key, value: ops.matmul(
            ops.softmax(ops.matmul(query, ops.swapaxes(key, -1, -2))), value
        ),
    )
    for one, other in zip(ours, weights_after_a_step(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_batches_of_any_size_train():
    config = VisionTransformerConfig(
        patch_size=4, hidden_size=16, depth=1, mlp_dim=32, num_heads=2, image_size=8, num_classes=3
    )
    model = vision_transformer(config)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = np.random.default_rng(0).integers(0, 255, (7, 8, 8, 3))
    history = model.fit(images, np.arange(7) % 3, batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for size in (3, 1):
        assert np.isfinite(model.train_on_batch(images[:size], np.zeros(size)))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "norm"])
def test_a_large_tensor_has_the_gradients_of_its_parts(name):
    """TensorFlow compiles those of large tensors."""
    x = np.random.default_rng(0).normal(size=(2, 64, 8192)).astype("float32")
    layer = LayerNormalization()
    layer.build(x.shape)

    def loss(x):
        y = layer(x, training=True) if name == "norm" else training_activation(name)(x)
        return ops.sum(y**2)

    (whole,) = gradients(loss, x)
    parts = [gradients(loss, part)[0] for part in np.split(x, 2)]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-5, atol=1e-5)
