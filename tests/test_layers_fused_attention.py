"""cuDNN's attention on JAX: what is computed, and that a GPU's program has it."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops
from parameters import slow_except

from keras_vit.layers import MultiHeadSelfAttention
from keras_vit.layers import fused_attention as fused_attention_module
from keras_vit.layers.fused_attention import attend_to_first, fill_up, fused_attention
from keras_vit.models import (
    VisionTransformerConfig,
    even_tokens,
    vision_transformer,
    with_even_tokens,
    without_unread_tokens,
)

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
        return attend_to_first(tokens, *map(fill_up, arrays), 0.3, "xla")[:, :tokens]

    def plain(*arrays):
        return ops.dot_product_attention(*arrays, scale=0.3)

    def computed(attend):
        def run(*arrays):
            attended, gradient = jax.vjp(attend, *arrays)
            return attended, *gradient(upstream)

        return jax.jit(run)(*arrays)

    for ours, theirs in zip(computed(filled_up), computed(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_float16_is_compiled_and_has_a_gradient_on_a_cpu():
    import jax

    arrays = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 8)).astype("float16")

    def total(*arrays):
        attended = fused_attention(*arrays, scale=0.3, training=True, attended_tokens=4)
        return ops.sum(ops.cast(attended, "float32"))

    halves = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*arrays)
    singles = jax.value_and_grad(total, (0, 1, 2))(*arrays.astype("float32"))
    assert {gradient.dtype for gradient in halves[1]} == {np.dtype("float16")}
    for half, single in zip(jax.tree.leaves(halves), jax.tree.leaves(singles), strict=True):
        np.testing.assert_allclose(half, single, atol=2e-2)


@pytest.mark.parametrize("use_bias", [True, False, "query_value"])
@pytest.mark.parametrize("lora", [False, True])
def test_queries_keys_and_values_are_those_of_one_product(use_bias, lora):
    random = np.random.default_rng(0)
    layer = MultiHeadSelfAttention(num_heads=2, use_bias=use_bias)
    tokens = random.normal(size=(2, 5, 16)).astype("float32")
    layer.build(tokens.shape)
    if lora:
        layer.query_key_value.enable_lora(rank=2)
    layer.set_weights([random.normal(size=w.shape).astype("float32") for w in layer.weights])
    apart = layer(tokens)
    together, _, _ = layer(tokens, return_attention=True)
    # The largest is 100.
    np.testing.assert_allclose(apart, together, rtol=1e-5, atol=1e-4)


def test_a_quantized_kernel_is_used_as_it_is():
    layer = MultiHeadSelfAttention(num_heads=2)
    tokens = np.random.default_rng(0).normal(size=(2, 5, 16)).astype("float32")
    before = layer(tokens)
    layer.query_key_value.quantize("int8")
    np.testing.assert_allclose(layer(tokens), before, atol=0.05)


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


def compiled(function, *arguments):
    """The program for CUDA."""
    import jax

    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def compiled_calls(function, *arguments):
    """How often a program for CUDA calls cuDNN's attention: `(forward, backward)`."""
    return counted_calls(compiled(function, *arguments))


def counted_calls(program):
    calls = [
        line.split("@", 1)[1].split("(", 1)[0] for line in program.splitlines() if "@__" in line
    ]
    return calls.count(FORWARD), calls.count(BACKWARD)


def model_config(image_size=32, **fields):
    return VisionTransformerConfig(
        image_size=image_size, patch_size=8, depth=3, hidden_size=64, num_heads=2, mlp_dim=64,
        num_classes=4, **fields,
    )  # fmt: skip


def model_of(image_size, dtype="mixed_bfloat16", **fields):
    return without_unread_tokens(
        vision_transformer(model_config(image_size, **fields), dtype=dtype)
    )


def training_program(model):
    import jax

    images = np.zeros((2, *model.input_shape[1:]), "uint8")
    trainable = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]

    def loss(trainable):
        outputs, _ = model.stateless_call(trainable, fixed, images, training=True)
        return outputs.astype("float32").sum()

    return compiled(jax.grad(loss), trainable)


def training_calls(model):
    return counted_calls(training_program(model))


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
    assert not fused_attention_module.has_kernel((1, 2, 2, 64), "bfloat16")


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


@pytest.fixture
def like_hopper(monkeypatch):
    """Every shape and dtype has a kernel: XLA's own program for the same call."""
    monkeypatch.setattr(even_tokens, "has_kernel", lambda shape, dtype: True)
    monkeypatch.setattr(fused_attention_module, "has_kernel", lambda shape, dtype: True)
    attend = fused_attention_module.attend_to_first
    monkeypatch.setattr(
        fused_attention_module,
        "attend_to_first",
        lambda count, query, key, value, scale, _: attend(count, query, key, value, scale, "xla"),
    )


ARCHITECTURES = [
    {"distillation_token": True, "register_tokens": 3},
    {"pooling": "map"},
    {"pooling": "avg"},
    {"remat": True},
    {"qk_norm": True, "layer_scale": 0.1},
]


@pytest.mark.parametrize("fields", slow_except(ARCHITECTURES, ARCHITECTURES[:2]), ids=str)
def test_an_even_number_of_tokens_changes_no_number(like_hopper, fields):
    import jax

    model = model_of(32, "float32", **fields)
    filled_up = without_unread_tokens(with_even_tokens(model))
    assert filled_up is not model
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    trainable = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]

    def loss(model):
        def of_weights(trainable):
            outputs, _ = model.stateless_call(trainable, fixed, images, training=True)
            return sum((output**2).sum() for output in jax.tree.leaves(outputs))

        return jax.jit(jax.value_and_grad(of_weights))(trainable)

    ours, theirs = map(jax.tree.leaves, (loss(filled_up), loss(model)))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_tokens_are_filled_up_once_instead_of_in_each_block(hopper):
    model = model_of(32)
    filled_up = without_unread_tokens(with_even_tokens(model))
    plain, even = training_program(model), training_program(filled_up)
    assert counted_calls(even) == counted_calls(plain) == (2, 2)
    filling_up = "@_pad(%arg0: tensor<2x17x{}xbf16>"
    assert filling_up.format("2x32") in plain and filling_up.format("2x32") not in even
    assert filling_up.format("64") in even and filling_up.format("64") not in plain


@pytest.mark.parametrize(
    "fields",
    [
        {"positions": "rope"},
        {"window_size": 2, "global_blocks": 1},
        {"attention_dropout": 0.1},
        {"token_merging": 1},
        {"token_keep_rate": 0.7},
        {"patch_dropout": 0.5},
    ],
)
def test_tokens_that_must_stay_as_they_are_do(hopper, fields):
    model = model_of(32, **fields)
    assert with_even_tokens(model) is model


@pytest.mark.parametrize("pooling", ["avg", "map", "token"])
def test_every_block_of_an_even_number_has_it(hopper, pooling):
    model = vision_transformer(model_config(pooling=pooling), dtype="mixed_bfloat16")
    assert training_calls(with_even_tokens(model)) == (3, 3)


def test_the_order_of_the_two_graphs_does_not_matter(hopper):
    model = vision_transformer(model_config(), dtype="mixed_bfloat16")
    one = training_program(without_unread_tokens(with_even_tokens(model)))
    other = training_program(with_even_tokens(without_unread_tokens(model)))
    assert counted_calls(one) == counted_calls(other) == (2, 2)


def test_only_blocks_see_the_token_that_fills_up(like_hopper):
    model = vision_transformer(model_config(), dtype="float32")
    inner = keras.layers.GlobalAveragePooling1D()(model.get_layer("block_0").output)
    model = keras.Model(model.input, [inner, model.output])
    filled_up = with_even_tokens(model)
    assert filled_up is not model
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    outputs = (one.predict(images, verbose=0) for one in (filled_up, model))
    for ours, theirs in zip(*outputs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_model_that_hands_out_the_tokens_of_a_block_is_left_alone(hopper):
    model = vision_transformer(model_config(), dtype="mixed_bfloat16")
    model = keras.Model(model.input, [model.get_layer("block_0").output, model.output])
    assert with_even_tokens(model) is model


def test_an_even_number_is_left_alone(hopper):
    model = with_even_tokens(model_of(32, register_tokens=1))
    assert [operation for operation in model.operations if "pad" in operation.name.lower()] == []


def test_on_other_machines_tokens_stay_as_they_are():
    model = model_of(32, "float32")
    assert with_even_tokens(model) is model


def test_a_training_step_for_a_gpu_keeps_tokens_row_by_row():
    assert "LayoutConstraint" in training_program(model_of(32))


def test_on_several_devices_no_layout_is_asked_for():
    """XLA would gather the tokens of all of them on each."""
    with keras.distribution.DataParallel(devices=["cpu:0"]).scope():
        assert "LayoutConstraint" not in training_program(model_of(32))
