"""Relative position tables at another resolution, by the rule of the code that published them."""

import numpy as np

from keras_vit.layers.relative_position_bias import CLASS_TOKEN_ENTRIES
from keras_vit.layers.resampling import resampling_matrix

RELATIVE_RULES = ("timm", "hf")


def resample_relative_positions(table, source_grid, target_grid, rule):
    """Resamples the table of a relative position bias to another grid.

    Args:
        table: Array of shape `((2 rows - 1) * (2 columns - 1), num_heads)`, or with 3 rows more,
            the class token's, which pass unchanged.
        source_grid: (rows, columns) of patches that `table` was learnt on.
        target_grid: (rows, columns) wanted.
        rule: `"timm"` (`resize_rel_pos_bias_table`: linear between geometrically spaced offsets)
            or `"hf"` (transformers' BEiT: bilinear). transformers reads a table with its two axes
            swapped, which shows where the grid is not square: it then resamples the table even
            to its own grid, and so does this.

    Returns:
        An array of the same dtype; `table` itself where the rule leaves it as it is.

    Raises:
        ValueError: For an unknown rule, or if the table does not fit `source_grid`.

    Example:

    >>> import numpy as np
    >>> table = np.array([[0.0], [1.0], [4.0]], "float32")  # offsets -1, 0, 1 of two columns
    >>> resample_relative_positions(table, (1, 2), (1, 3), "timm").ravel().tolist()
    [0.0, 0.0, 1.0, 4.0, 4.0]
    """
    if rule not in RELATIVE_RULES:
        raise ValueError(
            f"`rule` must be one of {', '.join(RELATIVE_RULES)}. Received: rule={rule!r}"
        )
    source, target = ([2 * side - 1 for side in grid] for grid in (source_grid, target_grid))
    count, extra = source[0] * source[1], len(table) - source[0] * source[1]
    if extra not in (0, CLASS_TOKEN_ENTRIES):
        raise ValueError(
            f"The table of a {source_grid[0]} x {source_grid[1]} grid has {count} rows, or "
            f"{count + CLASS_TOKEN_ENTRIES} with a class token. Received: shape={table.shape}"
        )
    if rule == "hf":
        source = source[::-1]
    if source == target:
        return table
    matrix = _timm_matrix if rule == "timm" else _hf_matrix
    vertical, horizontal = (matrix(*sizes) for sizes in zip(source, target, strict=True))
    offsets = table[:count].astype("float64").reshape(*source, -1)
    offsets = np.einsum("ir,jc,rch->ijh", vertical, horizontal, offsets, optimize=True)
    offsets = offsets.reshape(target[0] * target[1], -1).astype(table.dtype)
    return np.concatenate([offsets, table[count:]])


def _hf_matrix(source, target):
    return resampling_matrix(source, target, "bilinear", antialias=False)


def _timm_matrix(source, target):
    """One axis by timm's rule: the centre's offsets stay fine, the far ones are stretched.

    The `source` offsets are put at 0, ±1, ±(1 + q), ±(1 + q + q²) …, with the q for which the last
    comes nearest to the last of `target`; targets beyond it take the edge's value.
    """
    steps = _timm_ratio(source // 2, target // 2) ** np.arange(source // 2)
    reach = np.cumsum(steps)
    positions = np.concatenate([-reach[::-1], [0.0], reach])
    wanted = np.arange(target) - target // 2
    return np.stack([np.interp(wanted, positions, row) for row in np.eye(source)], axis=1)


def _timm_ratio(source_reach, target_reach):
    # Between 1.01 and 1.5, halved until 1e-6 is left; timm keeps the last middle.
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2.0
        if (ratio**source_reach - 1.0) / (ratio - 1.0) > target_reach:
            high = ratio
        else:
            low = ratio
    return ratio
