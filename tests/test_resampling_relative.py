"""Relative position tables at another grid, beside timm's and transformers' own results."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_vit.checkpoints.relative_positions import RELATIVE_RULES, resample_relative_positions

grids = st.tuples(st.integers(1, 6), st.integers(1, 6))
rules = st.sampled_from(RELATIVE_RULES)

# The table of 2 x 3 patches and one head: row i is i² / 10; the last three are the class token's.
TABLE = (np.arange(18) ** 2 / 10).astype("float32")[:, None]
CLASS_TOKEN = [22.5, 25.6, 28.9]

# timm 1.0.31, resize_rel_pos_bias_table(TABLE, grid, …, old_window_size=(2, 3)).
TIMM_3_2 = [0.1, 0.4, 0.9] * 2 + [3.6, 4.9, 6.4] + [12.1, 14.4, 16.9] * 2
TIMM_4_4 = (
    [0.0, 0.0333333, 0.1, 0.4, 0.9, 1.366667, 1.6] * 3
    + [2.5, 2.866666, 3.6, 4.9, 6.4, 7.5333343, 8.1]
    + [10.0, 10.7, 12.1, 14.4, 16.9, 18.7, 19.6] * 3
)
# transformers 5.23, BeitRelativePositionBias of 8 x 12 pixels and patch 4.
HF_3_2 = [0.0, 0.1, 0.4, 0.9, 1.6, 2.5, 3.6, 4.9, 6.4, 8.1, 10.0, 12.1, 14.4, 16.9, 19.6]
HF_2_3 = [0.3, 0.42, 0.6, 0.9, 1.1, 3.6, 4.12, 4.9, 5.8, 6.4, 12.3, 13.22, 14.6, 16.1, 17.1]


def random_table(grid, extra=3, heads=2):
    rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + extra
    return np.random.default_rng(0).normal(size=(rows, heads)).astype("float32")


@pytest.mark.parametrize(
    ("rule", "grid", "expected"),
    [
        ("timm", (3, 2), TIMM_3_2),
        ("timm", (4, 4), TIMM_4_4),
        ("timm", (1, 2), [3.6, 4.9, 6.4]),
        ("hf", (3, 2), HF_3_2),
        ("hf", (2, 3), HF_2_3),
        ("hf", (1, 2), [3.6, 4.9, 6.4]),
    ],
)
def test_recorded_results(rule, grid, expected):
    found = resample_relative_positions(TABLE, (2, 3), grid, rule)
    assert found.dtype == np.float32 and found.shape == (len(expected) + 3, 1)
    np.testing.assert_allclose(found[:, 0], [*expected, *CLASS_TOKEN], rtol=2e-6)


@given(grids, rules)
def test_the_same_square_grid_is_left_as_it_is(grid, rule):
    square = (grid[0], grid[0])
    table = random_table(square)
    assert resample_relative_positions(table, square, square, rule) is table
    if rule == "timm":
        table = random_table(grid)
        assert resample_relative_positions(table, grid, grid, rule) is table


@given(grids, grids, rules, st.sampled_from([0, 3]))
def test_shapes_class_token_and_constants(source, target, rule, extra):
    table = random_table(source, extra)
    offsets = (2 * target[0] - 1) * (2 * target[1] - 1)
    found = resample_relative_positions(table, source, target, rule)
    assert found.shape == (offsets + extra, 2) and found.dtype == table.dtype
    np.testing.assert_array_equal(found[offsets:], table[len(table) - extra :])
    constant = resample_relative_positions(np.ones_like(table), source, target, rule)
    np.testing.assert_allclose(constant, 1.0, rtol=1e-6)


@given(grids, grids, rules)
def test_opposite_offsets_stay_opposite(source, target, rule):
    table = random_table(source, extra=0)
    found = resample_relative_positions(table, source, target, rule)
    mirrored = resample_relative_positions(table[::-1], source, target, rule)
    np.testing.assert_allclose(mirrored[::-1], found, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(14, 24), (24, 14), (7, 40)])
def test_timms_rule_keeps_the_centre_and_the_edges(source, target):
    table = random_table((source, source), extra=0)
    found = resample_relative_positions(table, (source, source), (target, target), "timm")
    before = table.reshape(2 * source - 1, 2 * source - 1, 2)
    after = found.reshape(2 * target - 1, 2 * target - 1, 2)
    near = [slice(source - 2, source + 1), slice(target - 2, target + 1)]
    np.testing.assert_allclose(after[near[1], near[1]], before[near[0], near[0]], atol=1e-6)
    if target > source:
        np.testing.assert_allclose(after[[0, 0, -1], [0, -1, 0]], before[[0, 0, -1], [0, -1, 0]])


@pytest.mark.parametrize(("source", "target"), [((2, 5), (3, 4)), ((7, 7), (12, 5)), ((4, 3),) * 2])
def test_hfs_rule_is_pytorchs_bilinear(source, target):
    torch = pytest.importorskip("torch")
    table = random_table(source)
    # The sides of the source are swapped in transformers.
    grid = torch.tensor(table[:-3]).reshape(1, 2 * source[1] - 1, 2 * source[0] - 1, -1)
    size = (2 * target[0] - 1, 2 * target[1] - 1)
    expected = torch.nn.functional.interpolate(
        grid.permute(0, 3, 1, 2).double(), size, mode="bilinear"
    )
    expected = expected.permute(0, 2, 3, 1).reshape(size[0] * size[1], -1).numpy()
    found = resample_relative_positions(table, source, target, "hf")
    np.testing.assert_allclose(found[:-3], expected, atol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`rule` must be one of timm, hf. Received: rule='google'"):
        resample_relative_positions(TABLE, (2, 3), (2, 3), "google")
    with pytest.raises(ValueError, match=r"2 x 2 grid has 9 rows, or 12 .* shape=\(18, 1\)"):
        resample_relative_positions(TABLE, (2, 2), (3, 3), "timm")
