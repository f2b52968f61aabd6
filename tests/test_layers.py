"""Every layer, by one set of tests; then what each one computes."""

import json
import operator
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parameters import slow_except

from keras_vit import layers
from keras_vit.layers.layer_normalization import LayerNormalization

TOKENS = (2, 6, 16)
# Class → (constructor arguments, input shape, output shape).
LAYERS = {
    layers.ImagePreprocessing: (
        {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "crop_fraction": 0.9},
        (2, 8, 8, 3),
        (2, 8, 8, 3),
    ),
    LayerNormalization: ({"epsilon": 1e-5}, TOKENS, TOKENS),
    layers.Patches: ({"patch_size": (4, 2)}, (2, 8, 8, 3), (2, 8, 24)),
    layers.PatchEncoder: ({"hidden_size": 16, "dropout": 0.1}, (2, 6, 24), (2, 7, 16)),
    layers.DropPath: ({"rate": 0.3, "seed": 5}, TOKENS, TOKENS),
    layers.MultiHeadSelfAttention: ({"num_heads": 4, "dropout": 0.1}, TOKENS, TOKENS),
    layers.MLP: ({"mlp_dim": 32, "activation": "quick_gelu", "dropout": 0.1}, TOKENS, TOKENS),
    layers.TransformerBlock: (
        {
            "num_heads": 4,
            "mlp_dim": 32,
            "activation": "gelu_tanh",
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "drop_path": 0.2,
            "layer_norm_epsilon": 1e-5,
        },
        TOKENS,
        TOKENS,
    ),
    layers.PatchDropout: ({"rate": 0.5, "prefix_tokens": 2, "seed": 5}, TOKENS, TOKENS),
    layers.TokenMergingBlock: (
        {"num_heads": 4, "mlp_dim": 32, "token_merging": 1, "prefix_tokens": 2, "dropout": 0.1},
        TOKENS,
        ((2, 5, 16), (2, 5)),
    ),
    layers.TokenPruningBlock: (
        {"num_heads": 4, "mlp_dim": 32, "token_keep_rate": 0.4, "prefix_tokens": 2},
        TOKENS,
        (2, 5, 16),
    ),
    layers.AttentionPooling: ({"num_heads": 4, "mlp_dim": 32}, TOKENS, (2, 16)),
    layers.TokenPooling: ({"pooling": "token+avg", "prefix_tokens": 2}, TOKENS, (2, 32)),
    layers.LayerScale: ({"initial_value": 0.1}, TOKENS, TOKENS),
    layers.RelativePositionBias: (
        {"grid": (2, 3), "num_heads": 4, "prefix_tokens": 0},
        (2, 4, 6, 6),
        (2, 4, 6, 6),
    ),
    layers.WeightStandardizedConv: (
        {"filters": 8, "kernel_size": (3, 1), "strides": 2, "variance_epsilon": 1e-8},
        (2, 7, 8, 4),
        (2, 4, 4, 8),
    ),
    layers.ResidualUnit: (
        {"width": 32, "strides": 2, "rule": "timm"},
        (2, 6, 7, 32),
        (2, 3, 4, 128),
    ),
    layers.ResNetStem: (
        {"blocks": (1, 1), "width": 32, "rule": "timm"},
        (2, 16, 24, 3),
        (2, 2, 3, 256),
    ),
}
# Further switches of some layers, by a name for each.
WITH_PREFIX = (2, 8, 16)  # A class token, a register and 2 x 3 patches.
SWITCHES = {
    "encoder_with_all_tokens": (
        layers.PatchEncoder,
        {
            "hidden_size": 16,
            "distillation_token": True,
            "register_tokens": 3,
            "position_slots": "all",
            "use_bias": False,
        },
        (2, 6, 24),
        (2, 11, 16),
    ),
    "encoder_with_sincos2d": (
        layers.PatchEncoder,
        {"hidden_size": 16, "positions": "sincos2d", "grid": (2, 3), "register_tokens": 1},
        (2, 6, 24),
        WITH_PREFIX,
    ),
    "encoder_with_sincos1d": (
        layers.PatchEncoder,
        {"hidden_size": 16, "positions": "sincos1d", "class_token": False},
        (2, 6, 24),
        (2, 6, 16),
    ),
    "attention_with_rope": (
        layers.MultiHeadSelfAttention,
        {
            "num_heads": 4,
            "positions": "rope",
            "grid": (2, 3),
            "prefix_tokens": 2,
            "use_bias": "query_value",
            "qk_norm": True,
        },
        WITH_PREFIX,
        WITH_PREFIX,
    ),
    "attention_in_windows": (
        layers.MultiHeadSelfAttention,
        {
            "num_heads": 4,
            "positions": "rope",
            "grid": (2, 3),
            "prefix_tokens": 2,
            "window_size": (2, 2),
            "dropout": 0.1,
        },
        WITH_PREFIX,
        WITH_PREFIX,
    ),
    "block_in_windows_with_remat": (
        layers.TransformerBlock,
        {
            "num_heads": 4,
            "mlp_dim": 32,
            "grid": (2, 3),
            "window_size": (1, 2),
            "dropout": 0.1,
            "drop_path": 0.2,
            "remat": True,
        },
        TOKENS,
        TOKENS,
    ),
    "block_with_efficient_drop_path": (
        layers.TransformerBlock,
        {"num_heads": 4, "mlp_dim": 32, "drop_path": 0.5, "efficient_drop_path": True},
        TOKENS,
        TOKENS,
    ),
    "block_with_relative_positions": (
        layers.TransformerBlock,
        {
            "num_heads": 4,
            "mlp_dim": 24,
            "activation": "silu",
            "gated_mlp": True,
            "qkv_bias": "query_value",
            "layer_scale": 0.1,
            "positions": "relative",
            "grid": (3, 3),
            "prefix_tokens": 1,
        },
        (2, 10, 16),
        (2, 10, 16),
    ),
    "block_with_rope": (
        layers.TransformerBlock,
        {
            "num_heads": 2,
            "mlp_dim": 24,
            "qkv_bias": False,
            "qk_norm": True,
            "positions": "rope",
            "grid": (2, 3),
            "prefix_tokens": 2,
            "drop_path": 0.2,
        },
        WITH_PREFIX,
        WITH_PREFIX,
    ),
}
ROWS = {cls.__name__: (cls, *row) for cls, row in LAYERS.items()} | SWITCHES
every_layer = pytest.mark.parametrize("row", ROWS)
# Where each takes longer: the switches and the stem, which is made of layers of the table.
SIMPLE = [row for row in ROWS if row not in SWITCHES and row != "ResNetStem"]
slow_switches = pytest.mark.parametrize("row", slow_except(ROWS, fast=SIMPLE))


def build(row, **kwargs):
    cls, options, input_shape, _ = ROWS[row]
    layer = cls(**{**options, **kwargs})
    inputs = np.random.default_rng(0).uniform(0, 2, input_shape).astype("float32")
    return layer, inputs


def to_numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(first(x), "float32"))


def first(outputs):
    """The tokens alone, of a layer that hands on their sizes too."""
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


def shapes(outputs):
    if isinstance(outputs, (tuple, list)):
        return tuple(tuple(output.shape) for output in outputs)
    return tuple(outputs.shape)


def model_of(layer, inputs):
    symbolic = keras.Input(inputs.shape[1:])
    return keras.Model(symbolic, first(layer(symbolic)))


def test_the_table_covers_every_layer():
    assert {cls.__name__ for cls in LAYERS} >= set(layers.__all__)
    # What a saved model may hold, public or not.
    registered = {
        cls
        for cls in keras.saving.get_custom_objects().values()
        if isinstance(cls, type)
        and issubclass(cls, keras.layers.Layer)
        and cls.__module__.startswith("keras_vit.layers.")
    }
    assert set(LAYERS) == registered


@every_layer
def test_config_round_trip(row):
    cls, options, _, _ = ROWS[row]
    layer, inputs = build(row)
    model_of(layer, inputs)
    config = json.loads(json.dumps(layer.get_config()))
    twin = cls.from_config(config)
    assert twin.get_config() == cls.from_config(twin.get_config()).get_config()
    assert json.loads(json.dumps(twin.get_config())) == config
    assert set(options) <= set(config)
    # Derived values do not belong in a config: all but the base layer's are arguments.
    base = set(keras.layers.Layer().get_config())
    classes = [one for one in cls.__mro__ if one.__module__.startswith("keras_vit")]
    arguments = {name for one in classes for name in one.__init__.__code__.co_varnames}
    assert set(config) - base <= arguments


@every_layer
def test_registered_under_the_package(row):
    assert keras.saving.get_registered_name(ROWS[row][0]) == f"keras_vit>{ROWS[row][0].__name__}"


@slow_switches
def test_output_shape_is_the_computed_one(row):
    layer, inputs = build(row)
    _, _, input_shape, output_shape = ROWS[row]
    assert tuple(layer.compute_output_shape(input_shape)) == output_shape
    assert shapes(layer(inputs)) == output_shape


@slow_switches
def test_symbolic_and_dynamic_batch(row):
    layer, inputs = build(row)
    model = model_of(layer, inputs)
    expected = ROWS[row][3]
    expected = expected[0] if isinstance(expected[0], tuple) else expected
    assert model.output_shape == (None, *expected[1:])
    # A batch of two, then one of one.
    whole = model.predict(np.concatenate([inputs, inputs[:1]]), batch_size=2, verbose=0)
    assert whole.shape[0] == 3
    np.testing.assert_allclose(whole[2:], whole[:1], rtol=1e-4, atol=1e-5)


@slow_switches
@pytest.mark.parametrize(
    "policy",
    [
        "float32",
        "float64",
        pytest.param("bfloat16", marks=pytest.mark.slow),
        pytest.param("float16", marks=pytest.mark.slow),
        "mixed_bfloat16",
        "mixed_float16",
    ],
)
def test_dtype_policies(row, policy):
    if policy == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float64 only where JAX_ENABLE_X64 is set")
    layer, inputs = build(row, dtype=policy)
    training = {"training": True} if "training" in call_args(row) else {}
    outputs = first(layer(inputs, **training))
    policy = keras.dtype_policies.get(policy)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.compute_dtype
    assert {w.dtype for w in layer.weights} <= {policy.variable_dtype}
    assert np.isfinite(to_numpy(outputs)).all()


def call_args(row):
    return ROWS[row][0].call.__code__.co_varnames


@slow_switches
def test_dropout_only_in_training(row):
    layer, inputs = build(row)
    np.testing.assert_array_equal(to_numpy(layer(inputs)), to_numpy(layer(inputs)))
    stochastic = {"dropout", "attention_dropout", "drop_path", "rate"} & set(ROWS[row][1])
    if stochastic:
        inputs = np.repeat(inputs, 32, axis=0)
        one, two = (to_numpy(layer(inputs, training=True)) for _ in range(2))
        assert np.abs(one - two).max() > 0
        still = to_numpy(layer(inputs, training=False))
        np.testing.assert_array_equal(to_numpy(layer(inputs)), still)


ATTENDING = [
    row
    for row, (cls, *_) in ROWS.items()
    if issubclass(cls, (layers.MultiHeadSelfAttention, layers.TransformerBlock))
]


@pytest.mark.parametrize("row", ATTENDING)
def test_the_first_tokens_alone_are_what_they_are_among_all(row):
    layer, tokens = build(row)
    everything = to_numpy(layer(tokens))
    for count in (1, 2):
        few = first(layer(tokens, output_tokens=count))
        assert tuple(few.shape) == (*tokens.shape[:1], count, tokens.shape[-1])
        np.testing.assert_allclose(to_numpy(few), everything[:, :count], atol=1e-5)
        symbolic = first(layer(keras.Input(tokens.shape[1:]), output_tokens=count))
        assert symbolic.shape == (None, count, tokens.shape[-1])


@slow_switches
def test_saved_file_reloads_in_safe_mode(row, tmp_path):
    layer, inputs = build(row)
    model = model_of(layer, inputs)
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(to_numpy(model(inputs)), to_numpy(twin(inputs)))


@pytest.mark.slow
def test_a_process_that_only_imported_keras_vit_reloads_all(tmp_path):
    for row in ROWS:
        layer, inputs = build(row)
        model_of(layer, inputs).save(tmp_path / f"{row}.keras")
    code = (
        "import sys, pathlib, keras_vit, keras\n"
        "for path in pathlib.Path(sys.argv[1]).glob('*.keras'):\n"
        "    keras.saving.load_model(path, safe_mode=True)\n"
        "    print(path.stem)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert set(run.stdout.split()) >= set(ROWS)


# What each layer computes.


def test_preprocessing_scales_each_channel():
    layer = layers.ImagePreprocessing(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    pixels = np.full((1, 1, 1, 3), 255, "uint8")
    np.testing.assert_allclose(to_numpy(layer(pixels)).ravel(), [1.0, 1.0, 0.0], atol=1e-6)


def test_preprocessing_rounds_to_the_short_dtype_only_at_the_end():
    fractions = np.linspace(0, 255, 1000, dtype="float32").reshape(1, 10, 100, 1)
    exact = to_numpy(layers.ImagePreprocessing(0.5, 0.5)(fractions))
    short = to_numpy(layers.ImagePreprocessing(0.5, 0.5, dtype="mixed_bfloat16")(fractions))
    # Half a unit in the last of eight bits, near 1.
    assert np.abs(exact - short).max() <= 2**-8 / 2 + 1e-7


@settings(deadline=None, max_examples=30)
@given(
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_patches_are_row_major(grid, patch):
    height, width = grid[0] * patch[0], grid[1] * patch[1]
    images = np.arange(2 * height * width * 3, dtype="float32").reshape(2, height, width, 3)
    found = to_numpy(layers.Patches(patch)(images))
    assert found.shape == (2, grid[0] * grid[1], patch[0] * patch[1] * 3)
    for row in range(grid[0]):
        for column in range(grid[1]):
            block = images[
                :,
                row * patch[0] : (row + 1) * patch[0],
                column * patch[1] : (column + 1) * patch[1],
            ]
            np.testing.assert_array_equal(found[:, row * grid[1] + column], block.reshape(2, -1))


def test_patches_keep_an_unknown_size_symbolic():
    patches = layers.Patches(4)
    assert patches.compute_output_shape((None, None, None, 3)) == (None, None, 48)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others know all sizes")
def test_patches_of_sizes_known_late_make_no_other_images():
    import tensorflow as tf

    images = tf.TensorSpec((None, None, None, 3))
    patches = tf.function(layers.Patches(16), input_signature=[images])
    assert patches(np.zeros((2, 32, 48, 3), "float32")).shape == (2, 6, 768)
    # 32 * 32 * 33 pixels would be 33 images of 32 x 32.
    with pytest.raises(tf.errors.InvalidArgumentError):
        patches(np.zeros((32, 32, 33, 3), "float32"))


@pytest.mark.parametrize("size", [(15, 16), (16, 10), (4, 16)])
def test_patches_refuse_other_sizes(size):
    with pytest.raises(ValueError, match="multiple of the patch"):
        layers.Patches(8)(np.zeros((1, *size, 3), "float32"))


@pytest.mark.parametrize("patch_size", [0, -4, (8, 0), (8, 8, 8), 2.5, "16"])
def test_bad_patch_sizes(patch_size):
    with pytest.raises(ValueError, match="`patch_size` must be a positive int"):
        layers.Patches(patch_size)


def test_class_token_comes_first_and_positions_are_added():
    encoder = layers.PatchEncoder(4)
    encoder.build((None, 3, 8))
    positions = np.random.default_rng(0).normal(size=(1, 4, 4)).astype("float32")
    encoder.position_embedding.assign(positions)
    encoder.class_token.assign(np.full((1, 1, 4), 10.0, "float32"))
    encoder.projection.bias.assign(np.zeros(4, "float32"))
    tokens = to_numpy(encoder(np.zeros((2, 3, 8), "float32")))
    np.testing.assert_allclose(tokens[0, 0], positions[0, 0] + 10.0, rtol=1e-6)
    np.testing.assert_allclose(tokens[0, 1:], positions[0, 1:], rtol=1e-6)


def test_drop_path_drops_whole_samples_at_its_rate():
    layer = layers.DropPath(0.3, seed=1)
    outputs = to_numpy(layer(np.ones((4000, 3, 2), "float32"), training=True))
    kept = outputs[:, 0, 0] > 0
    np.testing.assert_allclose(outputs[kept], 1 / 0.7, rtol=1e-5)
    assert not outputs[~kept].any()
    # Four standard deviations of a binomial.
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / 4000)
    again = to_numpy(layer(np.ones((4000, 3, 2), "float32"), training=True))
    assert (again != outputs).any()


@pytest.mark.parametrize(
    ("rate", "count", "kept"), [(0.4, 10, 6), (0.05, 10, 10), (0.06, 10, 9), (0.9, 4, 1)]
)
def test_efficient_drop_path_computes_the_kept_samples_alone(rate, count, kept):
    seen = []

    def branch(samples):
        seen.append(to_numpy(samples)[:, 0])
        return samples * 0 + 3.0

    layer = layers.DropPath(rate, seed=1)
    tokens = np.repeat(np.arange(count, dtype="float32")[:, None], 2, axis=1)
    outputs = to_numpy(layer.add_branch(keras.ops.convert_to_tensor(tokens), tokens, branch))
    (chosen,) = seen
    assert len(set(chosen)) == kept
    expected = tokens + np.isin(tokens, chosen) * 3.0 * count / kept
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)


def test_efficient_drop_path_drops_each_sample_as_often():
    layer, zeros = layers.DropPath(0.4, seed=1), keras.ops.zeros((5, 1))
    draws = [
        to_numpy(layer.add_branch(zeros, zeros, lambda samples: samples + 1.0))[:, 0]
        for _ in range(200)
    ]
    # Three of five are kept: four standard deviations of the mean of 200.
    spread = 4 * np.sqrt(0.4 * 0.6 / 200) / 0.6
    np.testing.assert_allclose(np.mean(draws, axis=0), 1.0, atol=spread)


def test_a_block_with_efficient_drop_path_leaves_dropped_samples_as_they_are():
    options = {"num_heads": 4, "mlp_dim": 32, "drop_path": 0.9}
    tokens = np.random.default_rng(0).normal(size=(10, 6, 16)).astype("float32")
    block = layers.TransformerBlock(**options, efficient_drop_path=True)
    for output_tokens in (None, 2):
        outputs = to_numpy(block(tokens, training=True, output_tokens=output_tokens))
        same = (outputs == tokens[:, :output_tokens]).all(axis=(1, 2))
        assert 8 <= same.sum() <= 9
    plain = layers.TransformerBlock(**options)
    plain.build(tokens.shape)
    plain.set_weights(block.get_weights())
    np.testing.assert_array_equal(to_numpy(block(tokens)), to_numpy(plain(tokens)))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2])
def test_drop_path_refuses_a_rate_outside_its_range(rate):
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\)"):
        layers.DropPath(rate)


def test_heads_must_divide_the_width():
    for cls in (layers.MultiHeadSelfAttention, lambda h: layers.AttentionPooling(h, 8)):
        with pytest.raises(ValueError, match="multiple of `num_heads`"):
            cls(3)(np.zeros((1, 2, 16), "float32"))


def test_attention_is_keras_multi_head_attention():
    ours = layers.MultiHeadSelfAttention(4)
    theirs = keras.layers.MultiHeadAttention(4, 4)
    x = np.random.default_rng(0).normal(size=TOKENS).astype("float32")
    ours(x), theirs(x, x)
    rng = np.random.default_rng(1)
    kernels = rng.normal(size=(3, 16, 16)).astype("float32")
    biases = rng.normal(size=(3, 16)).astype("float32")
    out, out_bias = rng.normal(size=(16, 16)).astype("float32"), biases[0] + 1
    ours.query_key_value.set_weights([np.concatenate(list(kernels), 1), biases.ravel()])
    ours.projection.set_weights([out, out_bias])
    theirs.set_weights(
        [
            part
            for kernel, bias in zip(kernels, biases, strict=True)
            for part in (kernel.reshape(16, 4, 4), bias.reshape(4, 4))
        ]
        + [out.reshape(4, 4, 16), out_bias]
    )
    np.testing.assert_allclose(to_numpy(ours(x)), to_numpy(theirs(x, x)), rtol=1e-4, atol=1e-4)


def test_attention_pooling_is_its_equation():
    layer = layers.AttentionPooling(2, 8)
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    layer(x)
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape).astype("float32"))
    w = {
        weight.path.split("/", 1)[1]: to_numpy(weight).astype("float64") for weight in layer.weights
    }

    def dense(x, name):
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    from reference_forward import attend, gelu, layer_norm

    query = dense(w["probe"], "query").reshape(1, 1, 2, 2).repeat(3, 0)
    key, value = np.split(dense(x.astype("float64"), "key_value"), 2, -1)
    y = attend(query, key.reshape(3, 5, 2, 2), value.reshape(3, 5, 2, 2)).reshape(3, 4)
    y = dense(y, "projection")
    z = gelu(dense(layer_norm(y, w["norm/gamma"], w["norm/beta"]), "mlp/expansion"))
    expected = y + dense(z, "mlp/projection")
    np.testing.assert_allclose(to_numpy(layer(x)), expected, rtol=1e-3, atol=1e-4)


def test_token_pooling():
    tokens = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    mean = tokens[:, 1:].mean(1)
    for pooling, expected in {
        "token": tokens[:, 0],
        "avg": mean,
        "token+avg": np.concatenate([tokens[:, 0], mean], -1),
    }.items():
        found = to_numpy(layers.TokenPooling(pooling)(tokens))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="needs 1 of them before the patches"):
        layers.TokenPooling("token", prefix_tokens=0)


@pytest.mark.parametrize("name", ["relu6", "gelu_exact", "GELU"])
def test_unknown_activation(name):
    with pytest.raises(ValueError, match="Unknown activation"):
        layers.MLP(8, activation=name)


def test_activations_differ_as_published():
    from reference_forward import gelu, gelu_tanh

    from keras_vit.layers.activations import get_activation

    x = np.linspace(-4, 4, 201).astype("float32")
    tensor = keras.ops.convert_to_tensor(x)
    exact, tanh = (to_numpy(get_activation(name)(tensor)) for name in ("gelu", "gelu_tanh"))
    np.testing.assert_allclose(exact, gelu(x.astype("float64")), atol=2e-6)
    np.testing.assert_allclose(tanh, gelu_tanh(x.astype("float64")), atol=2e-6)
    assert 3e-4 < np.abs(exact - tanh).max() < 6e-4
    quick = to_numpy(get_activation("quick_gelu")(tensor))
    np.testing.assert_allclose(quick, x / (1 + np.exp(-1.702 * x)), atol=2e-6)


def test_random_initialisation():
    """As the design states it: Xavier uniform, biases 1e-6, positions 0.02, class token zero."""
    block = layers.TransformerBlock(num_heads=4, mlp_dim=512)
    block.build((None, None, 128))
    limit = np.sqrt(6 / (128 + 128))
    query_key_value = to_numpy(block.attention.query_key_value.kernel)
    assert 0.98 * limit < np.abs(query_key_value).max() <= limit
    expansion = to_numpy(block.mlp.expansion.kernel)
    limit = np.sqrt(6 / (128 + 512))
    assert 0.98 * limit < np.abs(expansion).max() <= limit
    assert 5e-7 < to_numpy(block.mlp.expansion.bias).std() < 2e-6
    encoder = layers.PatchEncoder(128)
    encoder.build((None, 64, 48))
    assert 0.018 < to_numpy(encoder.position_embedding).std() < 0.022
    assert not to_numpy(encoder.class_token).any()


@pytest.mark.parametrize("frozen", [("attention",), ("mlp.expansion", "attention_norm")])
def test_a_block_of_which_a_part_is_frozen_comes_back_so(tmp_path, frozen):
    inputs = keras.Input((5, 8))
    block = layers.TransformerBlock(2, 16, name="block")
    model = keras.Model(
        inputs, keras.layers.Dense(2)(layers.TransformerBlock(2, 16)(block(inputs)))
    )
    for name in frozen:
        operator.attrgetter(name)(block).trainable = False
    model.compile("adam", "mse")
    model.fit(np.ones((4, 5, 8), "float32"), np.zeros((4, 5, 2)), verbose=0)
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Keras leaves out an optimizer's state that does not fit.
        back = keras.models.load_model(tmp_path / "model.keras")
    trained = [variable.path for variable in model.trainable_variables]
    assert len(trained) < len(model.weights)
    assert [variable.path for variable in back.trainable_variables] == trained
    for one, other in zip(model.optimizer.variables, back.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)
