"""cuDNN's attention on JAX: what is computed, and that a GPU's program has it."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops

from keras_vit.layers.fused_attention import attend_filled_up, fused_attention
from keras_vit.models import VisionTransformerConfig, vision_transformer, without_unread_tokens

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="cuDNN's attention is that of the JAX backend"
)
FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


@pytest.mark.parametrize("tokens", [1, 17])
def test_the_token_that_fills_up_changes_nothing(tokens):
    import jax

    random = np.random.default_rng(0)
    *arrays, upstream = random.normal(size=(4, 2, tokens, 3, 8)).astype("float32")

    def filled_up(*arrays):
        return attend_filled_up(*arrays, scale=0.3, implementation="xla")

    def plain(*arrays):
        return ops.dot_product_attention(*arrays, scale=0.3)

    def computed(attend):
        def run(*arrays):
            attended, gradient = jax.vjp(attend, *arrays)
            return attended, *gradient(upstream)

        return jax.jit(run)(*arrays)

    for ours, theirs in zip(computed(filled_up), computed(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.fixture
def hopper(monkeypatch):
    """What JAX asks of the library and the device is answered as on a GPU that has the kernel."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    for name, answer in {
        "check_cudnn_version": lambda: 91000,
        "check_compute_capability": lambda capability: True,
        "is_cuda_compute_capability_equal": lambda capability: capability == "9.0",
    }.items():
        monkeypatch.setattr(cudnn, name, answer)


def compiled_calls(function, *arguments):
    """How often a program for CUDA calls cuDNN's attention: `(forward, backward)`."""
    import jax

    program = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    calls = [
        line.split("@", 1)[1].split("(", 1)[0] for line in program.splitlines() if "@__" in line
    ]
    return calls.count(FORWARD), calls.count(BACKWARD)


def model_of(image_size, **fields):
    config = VisionTransformerConfig(
        image_size=image_size, patch_size=8, depth=3, hidden_size=64, num_heads=2, mlp_dim=64,
        num_classes=4, **fields,
    )  # fmt: skip
    return without_unread_tokens(vision_transformer(config, dtype="mixed_bfloat16"))


def training_calls(model):
    import jax

    images = np.zeros((2, *model.input_shape[1:]), "uint8")
    trainable = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]

    def loss(trainable):
        outputs, _ = model.stateless_call(trainable, fixed, images, training=True)
        return outputs.astype("float32").sum()

    return compiled_calls(jax.grad(loss), trainable)


# Three blocks, the last of which computes the class token alone; 16 patches and the class token.
@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        ({}, (2, 2)),
        ({"register_tokens": 1}, (2, 2)),
        ({"pooling": "avg", "class_token": False}, (3, 3)),
        ({"remat": True}, (4, 2)),
        ({"positions": "rope"}, (2, 2)),
        ({"attention_dropout": 0.1}, (0, 0)),
    ],
)
def test_a_training_step_for_a_gpu_calls_it_in_each_block(hopper, caplog, fields, calls):
    assert training_calls(model_of(32, **fields)) == calls
    assert "Failed" not in caplog.text


def test_a_forward_pass_for_a_gpu_calls_it_in_each_block(hopper, caplog):
    model = model_of(32)
    images = np.zeros((2, 32, 32, 3), "uint8")
    assert compiled_calls(lambda images: model(images, training=False), images) == (2, 0)
    assert "Failed" not in caplog.text


def test_gradients_of_each_sample_have_it_too(hopper):
    import jax

    queries = np.zeros((3, 2, 17, 2, 64), "bfloat16")

    def loss(query):
        attended = fused_attention(query, query, query, scale=1.0, training=True)
        return (attended.astype("float32") ** 2).sum()

    assert compiled_calls(jax.vmap(jax.grad(loss)), queries) == (1, 1)


def test_a_tpu_takes_its_own(hopper, monkeypatch):
    import jax

    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="tpu")])
    taken = []
    monkeypatch.setattr(ops, "dot_product_attention", lambda *_, **options: taken.append(options))
    tokens = np.zeros((2, 17, 2, 64), "bfloat16")
    fused_attention(tokens, tokens, tokens, scale=1.0, training=True)
    assert taken == [{"scale": 1.0}]


def test_it_can_be_turned_off(hopper):
    keras.config.disable_flash_attention()
    try:
        assert training_calls(model_of(32)) == (0, 0)
    finally:
        keras.config.enable_flash_attention()


def test_without_the_kernel_it_is_left_alone(caplog):
    """This machine's own answers: in float32, or without a GPU, there is none."""
    model = model_of(32)
    if any(device.startswith("gpu") for device in keras.distribution.list_devices()):
        pytest.skip("this machine has a GPU, which has the kernel")
    assert training_calls(model) == (0, 0)
    assert "Failed" not in caplog.text
