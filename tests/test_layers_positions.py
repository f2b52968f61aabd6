"""Fixed, rotary and relative positions, and LayerScale: each beside its definition."""

import cmath
import json
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parameters import slow_on_jax

from keras_vit.layers import LayerScale, RelativePositionBias
from keras_vit.layers.relative_position_bias import relative_position_index
from keras_vit.layers.rotary_positions import rotary_tables, rotate
from keras_vit.layers.sin_cos_positions import sin_cos_positions_1d, sin_cos_positions_2d

grids = st.tuples(st.integers(1, 5), st.integers(1, 5))
POLICIES = ["float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16"]


def to_numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


# Sines and cosines.


@given(st.integers(1, 6), st.integers(1, 12), st.sampled_from([100.0, 10000.0]))
def test_1d_positions_are_the_papers_formula(count, pairs, temperature):
    positions = sin_cos_positions_1d(count, 2 * pairs, temperature)
    assert positions.shape == (count, 2 * pairs) and positions.dtype == np.float64
    for position in range(count):
        for i in range(pairs):
            angle = position / temperature ** (2 * i / (2 * pairs))
            np.testing.assert_allclose(
                positions[position, 2 * i : 2 * i + 2],
                [math.sin(angle), math.cos(angle)],
                atol=1e-12,
            )


@given(grids, st.integers(2, 6), st.sampled_from([100.0, 10000.0]))
def test_2d_positions_are_big_visions_formula(grid, quarter, temperature):
    positions = sin_cos_positions_2d(grid, 4 * quarter, temperature)
    assert positions.shape == (grid[0] * grid[1], 4 * quarter)
    for row in range(grid[0]):
        for column in range(grid[1]):
            omega = [temperature ** -(i / (quarter - 1)) for i in range(quarter)]
            expected = [
                function(place * frequency)
                for place in (column, row)
                for function in (math.sin, math.cos)
                for frequency in omega
            ]
            found = positions[row * grid[1] + column]
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_widths_that_fixed_positions_cannot_have():
    with pytest.raises(ValueError, match=r"multiple of 2. Received: hidden_size=7"):
        sin_cos_positions_1d(3, 7)
    for width in (0, 4, 10):
        with pytest.raises(ValueError, match=f"at least 8. Received: hidden_size={width}"):
            sin_cos_positions_2d((2, 2), width)


# Rotary positions.


def test_rotary_tables_are_dinov3s():
    """DINOv3ViTRopePositionEmbedding of transformers 5.23: patch 4, 8 x 12 pixels, width 8."""
    cos, sin = rotary_tables((2, 3), 8)
    edge, middle = [-1.0, 0.9510565, -0.5, 0.9135455], [-1.0, 0.9510565, 1.0, 1.0]
    expected = np.tile([edge, middle, edge], (2, 2))
    np.testing.assert_allclose(cos, expected, atol=2e-6)
    first = [[0.0, -0.309017, x, y] for x, y in ((0.866025, -0.406737), (0, 0))]
    np.testing.assert_allclose(sin[:2], np.tile(first, (1, 2)), atol=2e-6)
    # The last patch lies opposite the first.
    np.testing.assert_allclose(sin[::-1], -sin, atol=1e-6)
    assert cos.dtype == sin.dtype == np.float32


@slow_on_jax
@settings(deadline=None, max_examples=20)
@given(grids, st.integers(1, 4), st.integers(0, 3), st.sampled_from([10.0, 100.0]))
def test_rotation_multiplies_pairs_as_complex_numbers(grid, quarter, prefix, base):
    count, head_dim = grid[0] * grid[1], 4 * quarter
    x = np.random.default_rng(0).normal(size=(2, 3, prefix + count, head_dim)).astype("float32")
    tables = rotary_tables(grid, head_dim, base)
    found = to_numpy(rotate(keras.ops.convert_to_tensor(x), *tables, prefix))
    np.testing.assert_array_equal(found[:, :, :prefix], x[:, :, :prefix])
    for token in range(count):
        centres = [
            (2 * place + 1) / length - 1
            for place, length in zip(divmod(token, grid[1]), grid, strict=True)
        ]
        factors = [
            cmath.exp(2j * math.pi * centre / base ** (i / quarter))
            for centre in centres
            for i in range(quarter)
        ]
        patch = x[:, :, prefix + token]
        turned = (patch[..., : 2 * quarter] + 1j * patch[..., 2 * quarter :]) * factors
        expected = np.concatenate([turned.real, turned.imag], axis=-1)
        np.testing.assert_allclose(found[:, :, prefix + token], expected, atol=1e-5)


def test_rotated_scores_depend_on_the_offset_alone():
    rng = np.random.default_rng(0)
    query, key = (np.broadcast_to(rng.normal(size=(1, 1, 1, 8)), (1, 1, 12, 8)) for _ in range(2))
    tables = rotary_tables((3, 4), 8)
    query, key = (
        to_numpy(rotate(keras.ops.convert_to_tensor(x.astype("float32")), *tables))
        for x in (query, key)
    )
    scores = (query[0, 0] @ key[0, 0].T).reshape(3, 4, 3, 4)
    np.testing.assert_allclose(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1], atol=1e-5)
    assert scores.std() > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_are_rounded_once(dtype):
    x = np.random.default_rng(0).normal(size=(1, 2, 13, 16)).astype("float32")
    short = keras.ops.cast(keras.ops.convert_to_tensor(x), dtype)
    tables = rotary_tables((3, 4), 16)
    found = rotate(short, *tables, 1)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    exact = to_numpy(rotate(keras.ops.cast(short, "float32"), *tables, 1))
    # Half a unit in the last place of the 8 or 11 bits, with room for ties.
    half_unit = 2.0 ** -(8 if dtype == "bfloat16" else 11)
    assert (np.abs(to_numpy(found) - exact) <= 1.01 * half_unit * np.abs(exact) + 1e-6).all()


@pytest.mark.parametrize("head_dim", [0, 2, 6, 63])
def test_head_widths_that_cannot_be_rotated(head_dim):
    with pytest.raises(ValueError, match=f"multiple of 4. Received: head_dim={head_dim}"):
        rotary_tables((2, 2), head_dim)


# Relative positions.


@given(grids, st.sampled_from([0, 1]))
def test_relative_position_index_is_beits(grid, prefix):
    rows, columns = grid
    index = relative_position_index(grid, prefix_tokens=prefix)
    last = (2 * rows - 1) * (2 * columns - 1)
    for query in range(rows * columns):
        for key in range(rows * columns):
            row, column = np.subtract(divmod(query, columns), divmod(key, columns))
            expected = (row + rows - 1) * (2 * columns - 1) + column + columns - 1
            assert index[query + prefix, key + prefix] == expected
    if prefix:
        assert (index[0, 1:] == last).all() and (index[1:, 0] == last + 1).all()
        assert index[0, 0] == last + 2
    # Every row of the table is used.
    assert np.unique(index).tolist() == list(range(last + 3 * prefix))


@pytest.mark.parametrize("prefix", [0, 1])
def test_relative_bias_is_added_to_the_scores(prefix):
    rng = np.random.default_rng(0)
    layer = RelativePositionBias((2, 3), 4, prefix_tokens=prefix)
    layer.build()
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [("table", (15 + 3 * prefix, 4))]
    assert not to_numpy(layer.table).any()
    table = rng.normal(size=layer.table.shape).astype("float32")
    layer.table.assign(table)
    scores = rng.normal(size=(2, 4, 6 + prefix, 6 + prefix)).astype("float32")
    bias = table[relative_position_index((2, 3), prefix_tokens=prefix)].transpose(2, 0, 1)
    np.testing.assert_array_equal(to_numpy(layer.bias()), bias)
    np.testing.assert_allclose(to_numpy(layer(scores)), scores + bias, rtol=1e-6)


def test_relative_bias_learns_from_every_pair():
    """A row's gradient is the number of pairs that share it, on every backend."""
    scores = keras.Input((2, 7, 7))
    layer = RelativePositionBias((2, 3), 2)
    model = keras.Model(scores, layer(scores))
    model.compile(keras.optimizers.SGD(1.0), loss=lambda _, y: keras.ops.sum(y, axis=(1, 2, 3)))
    zeros = np.zeros((2, 2, 7, 7), "float32")
    model.fit(zeros, zeros, batch_size=2, verbose=0)
    pairs = np.bincount(relative_position_index((2, 3)).ravel())
    np.testing.assert_allclose(to_numpy(layer.table), -np.stack([pairs, pairs], 1), rtol=1e-5)


def test_relative_bias_refuses_other_prefix_tokens():
    with pytest.raises(ValueError, match=r"must be 0 or 1; .* Received: prefix_tokens=5"):
        RelativePositionBias((2, 2), 4, prefix_tokens=5)
    with pytest.raises(ValueError, match="`num_heads` must be positive"):
        RelativePositionBias((2, 2), 0)
    with pytest.raises(ValueError, match="`grid` must be a positive int or a pair"):
        RelativePositionBias((2, 0), 4)


# LayerScale.


def test_layer_scale_multiplies_each_channel():
    layer = LayerScale()
    inputs = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    np.testing.assert_allclose(to_numpy(layer(inputs)), inputs * 1e-5, rtol=1e-6)
    assert [(w.name, tuple(w.shape)) for w in layer.weights] == [("gamma", (4,))]
    layer.gamma.assign([1.0, 2.0, -3.0, 0.0])
    np.testing.assert_allclose(to_numpy(layer(inputs)), inputs * [1, 2, -3, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="a factor for each channel"):
        LayerScale().build((None, 3, None))


# Both layers, as Keras asks of every one.

LAYERS = {
    LayerScale: ({"initial_value": 0.5}, (2, 6, 16)),
    RelativePositionBias: ({"grid": (2, 3), "num_heads": 4, "prefix_tokens": 0}, (2, 4, 6, 6)),
}
every_layer = pytest.mark.parametrize("cls", LAYERS, ids=lambda cls: cls.__name__)


@every_layer
@pytest.mark.parametrize("policy", POLICIES)
def test_dtype_policies(cls, policy):
    options, shape = LAYERS[cls]
    layer = cls(**options, dtype=policy)
    outputs = layer(np.ones(shape, "float32"))
    policy = keras.dtype_policies.get(policy)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.compute_dtype
    assert {weight.dtype for weight in layer.weights} == {policy.variable_dtype}


@every_layer
def test_config_and_file_round_trips(cls, tmp_path):
    options, shape = LAYERS[cls]
    inputs = keras.Input(shape[1:])
    model = keras.Model(inputs, cls(**options, name="layer")(inputs))
    assert model.output_shape == (None, *shape[1:])
    layer = model.get_layer("layer")
    config = json.loads(json.dumps(layer.get_config()))
    assert json.loads(json.dumps(cls.from_config(config).get_config())) == config
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    pixels = rng.normal(size=shape).astype("float32")
    np.testing.assert_array_equal(model.predict(pixels, verbose=0), twin.predict(pixels, verbose=0))
