"""Window attention: what a layer computes, and where a model has it."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parameters import slow_on_jax
from random_checkpoints import write_timm
from reference_forward import attend, layer_norm, rotate, softmax

import keras_vit
from keras_vit.inspection import attention_maps, attention_rollout
from keras_vit.layers import MultiHeadSelfAttention, TransformerBlock
from keras_vit.models import VisionTransformerConfig, config_of, vision_transformer

WIDTH, HEADS = 16, 2
# JAX computes in float64 only where it is told to before it starts.
IS_JAX = keras.backend.backend() == "jax"
DTYPE, TOLERANCE = ("float32", 2e-5) if IS_JAX else ("float64", 1e-12)
CONFIG = {
    "patch_size": 4,
    "hidden_size": WIDTH,
    "depth": 3,
    "mlp_dim": 24,
    "num_heads": HEADS,
    "num_classes": 5,
    "image_size": (12, 20),
    "window_size": 2,
    "global_blocks": 1,
}


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def randomise(layer, scale=0.5):
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        if "seed" not in weight.name:
            weight.assign(rng.normal(scale=scale, size=weight.shape))


def seen(grid, window_size, prefix):
    """Which token sees which, pair by pair."""
    count = prefix + grid[0] * grid[1]
    mask = np.ones((count, count), bool)
    for query in range(prefix, count):
        for key in range(prefix, count):
            (y, x), (v, u) = (divmod(token - prefix, grid[1]) for token in (query, key))
            same_rows = y // window_size[0] == v // window_size[0]
            mask[query, key] = same_rows and x // window_size[1] == u // window_size[1]
    return mask


def queries_keys_values(layer, tokens, options):
    weights = {weight.path.split("/", 1)[1]: to_numpy(weight) for weight in layer.weights}
    kernel, bias = (weights[f"query_key_value/{name}"] for name in ("kernel", "bias"))
    projected = (tokens @ kernel + bias).reshape(*tokens.shape[:2], 3, HEADS, -1)
    query, key, value = np.moveaxis(projected, 2, 0)
    if options.get("qk_norm"):
        names = ("query_norm", "key_norm")
        query, key = (
            layer_norm(x, weights[f"{name}/gamma"], weights[f"{name}/beta"])
            for x, name in zip((query, key), names, strict=True)
        )
    if options.get("positions") == "rope":
        query, key = (rotate(x, options["grid"], 100.0) for x in (query, key))
    return query, key, value, weights


def attention_by_its_mask(layer, tokens, options, window_size):
    """Attention between all tokens, with minus infinity where a pair is not in a window."""
    query, key, value, weights = queries_keys_values(layer, tokens, options)
    bias = np.where(seen(options["grid"], window_size, options["prefix_tokens"]), 0.0, -np.inf)
    attended = attend(query, key, value, bias).reshape(tokens.shape)
    return attended @ weights["projection/kernel"] + weights["projection/bias"]


def random_tokens(grid, prefix, batch=2):
    shape = (batch, prefix + grid[0] * grid[1], WIDTH)
    return np.random.default_rng(0).normal(size=shape).astype(DTYPE)


# On JAX every shape is compiled.
@slow_on_jax
@settings(max_examples=4 if IS_JAX else 40)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    window_size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    prefix=st.integers(0, 3),
    positions=st.sampled_from([None, "rope"]),
    qk_norm=st.booleans(),
)
def test_it_is_attention_with_the_mask_of_the_windows(
    grid, window_size, prefix, positions, qk_norm
):
    options = {"grid": grid, "prefix_tokens": prefix, "positions": positions, "qk_norm": qk_norm}
    layer = MultiHeadSelfAttention(HEADS, window_size=window_size, dtype=DTYPE, **options)
    tokens = random_tokens(grid, prefix)
    layer.build(tokens.shape)
    randomise(layer)
    # The tables of rotary positions are float32.
    tolerance = max(TOLERANCE, 2e-6 if positions else 0)
    expected = attention_by_its_mask(layer, tokens.astype("float64"), options, window_size)
    np.testing.assert_allclose(to_numpy(layer(tokens)), expected, rtol=tolerance, atol=tolerance)
    query, key, *_ = queries_keys_values(layer, tokens.astype("float64"), options)
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(WIDTH // HEADS)
    mask = seen(grid, window_size, prefix)
    weights = to_numpy(layer.attention_weights(tokens))
    np.testing.assert_allclose(weights, softmax(np.where(mask, scores, -np.inf)), atol=tolerance)
    assert not weights[:, :, ~mask].any()


@pytest.mark.parametrize("window_size", [(3, 5), (4, 5), 5, (100, 100)])
def test_a_window_over_the_whole_grid_is_dense_attention(window_size):
    options = {"grid": (3, 5), "prefix_tokens": 1}
    windowed = MultiHeadSelfAttention(HEADS, window_size=window_size, **options)
    dense = MultiHeadSelfAttention(HEADS, **options)
    tokens = random_tokens((3, 5), 1).astype("float32")
    for layer in (windowed, dense):
        layer.build(tokens.shape)
        randomise(layer)
    np.testing.assert_allclose(to_numpy(windowed(tokens)), to_numpy(dense(tokens)), atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 2])
def test_another_patch_changes_nothing_outside_its_window(prefix):
    """The fill of the last windows stands for no patch either: its zeros are not seen."""
    grid, window_size = (3, 5), (2, 2)
    layer = TransformerBlock(
        HEADS, 24, grid=grid, prefix_tokens=prefix, window_size=window_size, dtype=DTYPE
    )
    tokens = random_tokens(grid, prefix)
    layer.build(tokens.shape)
    randomise(layer)
    mask, before = seen(grid, window_size, prefix), to_numpy(layer(tokens))
    for token in range(tokens.shape[1]):
        changed = tokens.copy()
        changed[:, token] += np.random.default_rng(token).normal(size=WIDTH)
        differs = np.abs(to_numpy(layer(changed)) - before).max(axis=(0, 2)) > 1e-7
        np.testing.assert_array_equal(differs, mask[:, token])


@slow_on_jax
def test_dropout_drops_weights_of_windows_and_of_tokens_before_them():
    """Values of one: attention sums its weights, which are one, or what is left of them."""
    layer = MultiHeadSelfAttention(
        HEADS, grid=(4, 6), prefix_tokens=1, window_size=(2, 3), dropout=0.5
    )
    tokens = random_tokens((4, 6), 1, batch=64).astype("float32")
    layer.build(tokens.shape)
    randomise(layer, 0.01)
    kernel, bias = layer.query_key_value.get_weights()
    kernel[:, 2 * WIDTH :], bias[2 * WIDTH :] = 0.0, 1.0
    layer.query_key_value.set_weights([kernel, bias])
    layer.projection.set_weights([np.eye(WIDTH), np.zeros(WIDTH)])
    np.testing.assert_allclose(to_numpy(layer(tokens)), 1.0, atol=1e-5)
    # A channel of each head.
    sums = to_numpy(layer(tokens, training=True))[:, :, :: WIDTH // HEADS]
    for token, seen_tokens in [(0, 25), (1, 7)]:
        deviation = np.sqrt(1 / seen_tokens)  # Of the sum of so many, each zero or doubled.
        assert abs(sums[:, token].std() / deviation - 1) < 0.3
        assert abs(sums[:, token].mean() - 1) < 4 * deviation / np.sqrt(128)


def test_gradients_are_those_of_the_mask():
    """A training step moves the weights as it does with the mask on all pairs."""
    grid, prefix, window_size = (3, 5), 1, (2, 2)
    tokens = random_tokens(grid, prefix).astype("float32")

    class Masked(MultiHeadSelfAttention):
        def _is_plain(self, sizes, training):
            return False

        def _weights(self, query, key, sizes=None, mask=None):
            return super()._weights(query, key, mask=seen(grid, window_size, prefix))

    found = []
    for cls, window in ((MultiHeadSelfAttention, window_size), (Masked, None)):
        layer = cls(HEADS, grid=grid, prefix_tokens=prefix, window_size=window, name="attention")
        inputs = keras.Input(tokens.shape[1:])
        model = keras.Model(inputs, layer(inputs))
        randomise(layer)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.train_on_batch(tokens, np.ones_like(tokens))
        found.append(model.get_weights())
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_layer_needs_the_grid_and_refuses_relative_positions():
    with pytest.raises(ValueError, match=r"`window_size=\(2, 2\)` needs `grid`"):
        MultiHeadSelfAttention(HEADS, window_size=2)
    with pytest.raises(ValueError, match='window_size.*Received: positions="relative"'):
        MultiHeadSelfAttention(HEADS, window_size=2, grid=(4, 4), positions="relative")
    for wrong in (0, 2.5, (2, 2, 2), True):
        with pytest.raises(ValueError, match="`window_size` must be a positive int"):
            MultiHeadSelfAttention(HEADS, window_size=wrong, grid=(4, 4))


@pytest.mark.parametrize(
    "given", [{"return_attention": True}, {"sizes": np.ones((1, 16))}, {"attended_tokens": 5}]
)
def test_what_windows_would_ignore_is_refused(given):
    layer = MultiHeadSelfAttention(HEADS, window_size=2, grid=(4, 4))
    tokens = np.zeros((1, 16, 4 * HEADS), "float32")
    with pytest.raises(ValueError, match=rf"`{next(iter(given))}`.*window_size=\(2, 2\)"):
        layer(tokens, **given)


@pytest.mark.parametrize(
    "places", [{"window_size": 2}, {"positions": "rope"}, {"positions": "relative"}], ids=str
)
def test_a_token_without_a_place_is_refused(places):
    message = r"Received: 17 tokens, prefix_tokens=0, grid=\(4, 4\); prefix_tokens=1 would fit"
    tokens = np.zeros((16, 17, 4 * HEADS), "float32")
    for cls, arguments in ((MultiHeadSelfAttention, (HEADS,)), (TransformerBlock, (HEADS, 8))):
        for inputs in (tokens, keras.Input(tokens.shape[1:])):
            with pytest.raises(ValueError, match=message):
                cls(*arguments, grid=(4, 4), **places)(inputs)
        layer = cls(*arguments, grid=(4, 4), **places)
        layer(tokens[:, 1:])
        with pytest.raises(ValueError, match=message):  # Built for others.
            layer(tokens)
        with pytest.raises(ValueError, match="`attended_tokens` is not there for attention with"):
            layer(tokens[:, 1:], attended_tokens=5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX knows all shapes.")
def test_images_are_not_mixed_up_where_the_number_of_tokens_is_known_last():
    import tensorflow as tf

    layer = MultiHeadSelfAttention(HEADS, grid=(4, 4), window_size=2)
    layer.build((None, None, 4 * HEADS))
    call = tf.function(layer, input_signature=[tf.TensorSpec((None, None, 4 * HEADS))])
    tokens = np.random.default_rng(0).normal(size=(16, 17, 4 * HEADS)).astype("float32")
    np.testing.assert_allclose(call(tokens[:, 1:]), layer(tokens[:, 1:]), rtol=1e-5, atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError):
        call(tokens)


@pytest.mark.parametrize("argument", ["output_tokens", "attended_tokens"])
def test_counts_of_tokens_are_in_range(argument):
    layer, tokens = TransformerBlock(HEADS, 8), np.zeros((2, 5, 4 * HEADS), "float32")
    assert layer(tokens, **{argument: 5}).shape == tokens.shape
    for count in (0, 6):
        for inputs in (tokens, keras.Input(tokens.shape[1:])):
            with pytest.raises(ValueError, match=rf"`{argument}`.*{argument}={count}, 5 tokens"):
                layer(inputs, **{argument: count})


# Models.


def build(**fields):
    model = vision_transformer(VisionTransformerConfig(**{**CONFIG, **fields}))
    randomise(model)
    return model


def images(size=(12, 20)):
    return np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype("float32")


@pytest.mark.parametrize(
    ("depth", "global_blocks", "expected"),
    [
        # ViTDet's of B, L and H.
        (12, 4, (2, 5, 8, 11)),
        (24, 4, (5, 11, 17, 23)),
        (32, 4, (7, 15, 23, 31)),
        (12, 1, (11,)),
        (5, 2, (2, 4)),
        (3, 2, (1, 2)),
    ],
)
def test_global_blocks_are_evenly_spaced_and_end_the_model(depth, global_blocks, expected):
    config = VisionTransformerConfig(**CONFIG | {"depth": depth, "global_blocks": global_blocks})
    found = tuple(index for index, window in enumerate(config.window_sizes) if window is None)
    assert found == expected
    assert set(config.window_sizes) == {None, (2, 2)}


def test_the_blocks_of_a_model_are_those_of_the_config():
    model = build(depth=6, global_blocks=2, window_size=(1, 3))
    windows = tuple(model.get_layer(f"block_{index}").window_size for index in range(6))
    assert windows == config_of(model).window_sizes
    assert windows == ((1, 3), (1, 3), None, (1, 3), (1, 3), None)


@pytest.mark.parametrize("fields", [{}, {"register_tokens": 2, "positions": "learned+rope"}])
def test_a_model_is_the_dense_one_where_windows_cover_the_grid(fields):
    windowed, dense = (
        build(window_size=(3, 5), **fields),
        build(window_size=None, global_blocks=4, **fields),
    )
    small = build(window_size=(2, 2), **fields)
    assert [w.path for w in windowed.weights] == [w.path for w in dense.weights]
    expected = to_numpy(dense(images()))
    np.testing.assert_allclose(to_numpy(windowed(images())), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(to_numpy(small(images())) - expected).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("window_size", [3, (2, 4)])
def test_config_round_trip_and_saved_file(window_size, tmp_path):
    config = VisionTransformerConfig(**CONFIG | {"window_size": window_size})
    assert config.window_size == ((3, 3) if window_size == 3 else (2, 4))
    model = build(window_size=window_size)
    assert config_of(model) == config
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert config_of(twin) == config
    np.testing.assert_array_equal(to_numpy(model(images())), to_numpy(twin(images())))
    assert config_of(keras_vit.from_checkpoint(tmp_path / "model.keras")) == config
    dense = keras_vit.from_checkpoint(tmp_path / "model.keras", window_size=None, global_blocks=4)
    assert config_of(dense).window_size is None


def test_another_image_size_keeps_the_windows():
    resized = keras_vit.resize(build(), image_size=(20, 16))
    assert config_of(resized) == dataclasses.replace(config_of(build()), image_size=(20, 16))
    assert resized.get_layer("block_0").attention.grid == (5, 4)
    assert np.isfinite(to_numpy(resized(images((20, 16))))).all()


def test_builders_and_published_files_take_windows(tmp_path):
    write_timm(tmp_path / "vit")
    dense = keras_vit.from_checkpoint(tmp_path / "vit")
    windowed = keras_vit.from_checkpoint(tmp_path / "vit", window_size=2, global_blocks=1)
    expected = dataclasses.replace(config_of(dense), window_size=2, global_blocks=1)
    assert config_of(windowed) == expected
    for ours, theirs in zip(windowed.weights, dense.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))
    built = config_of(keras_vit.create("vit_ti16", 3, image_size=64, window_size=(2, 3)))
    assert (built.window_size, built.global_blocks) == ((2, 3), 4)


def test_a_published_format_cannot_say_that_there_are_windows(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)window_size: the model's is \(2, 2\).*keras"):
        keras_vit.save_checkpoint(build(), tmp_path / "timm", "timm")
    assert not (tmp_path / "timm").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_size": 0}, "`window_size` must be a positive int"),
        ({"window_size": (2, 0)}, "`window_size` must be a positive int"),
        ({"window_size": 1.5}, "`window_size` must be a positive int"),
        ({"global_blocks": 0}, "`global_blocks` must be a positive int"),
        ({"global_blocks": 3}, "`global_blocks` must be less than `depth`.*global_blocks=3"),
        ({"window_size": None}, "`global_blocks` needs a `window_size`"),
        ({"positions": "relative"}, "window_size.*relative"),
    ],
)
def test_a_config_that_contradicts_itself(fields, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformerConfig(**CONFIG | fields)


def test_attention_maps_are_whole_and_zero_outside_the_windows():
    model = build()
    maps = attention_maps(model)(images())
    mask = seen((3, 5), (2, 2), 1)
    for name in ("block_0", "block_1"):
        weights = to_numpy(maps[name])
        assert weights.shape == (2, HEADS, 16, 16)
        assert not weights[:, :, ~mask].any()
        assert (weights[:, :, mask] > 0).all()
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    assert (to_numpy(maps["block_2"]) > 0).all()
    assert np.isfinite(to_numpy(attention_rollout(model)(images()))).all()
