"""Position grids at another resolution, each by the rule of the code that published it."""

import math

import numpy as np

from keras_vit.layers.resampling import resampling_matrix

# Google zooms with corners aligned (scipy.ndimage.zoom, order 1, in vision_transformer's
# checkpoint.py); timm interpolates with antialias (resample_abs_pos_embed); transformers without
# it, by the cubic kernel of PyTorch's interpolate; torchvision by that kernel with corners aligned
# (interpolate_embeddings); SigLIP 2's NaFlex models (modeling_siglip2.py) bilinearly, with
# antialias.
RESAMPLING_RULES = {
    "google": {"interpolation": "bilinear", "align_corners": True},
    "timm": {"interpolation": "bicubic", "antialias": True},
    "hf": {"interpolation": "bicubic", "antialias": False, "cubic_a": -0.75},
    "torchvision": {"interpolation": "bicubic", "align_corners": True, "cubic_a": -0.75},
    "siglip2": {"interpolation": "bilinear", "antialias": True},
}


def check_resampling(rule, argument="resampling"):
    """Refuses an unknown rule of resampling, which the caller's `argument` names."""
    if rule not in RESAMPLING_RULES:
        raise ValueError(
            f"`{argument}` must be one of {', '.join(RESAMPLING_RULES)}. "
            f"Received: {argument}={rule!r}"
        )


def resample_positions(positions, source_grid, target_grid, rule, prefix_tokens=0):
    """Resamples learnt positions to another grid.

    Args:
        positions: Array of shape `(1, prefix_tokens + rows * columns, hidden_size)`.
        source_grid: (rows, columns) of `positions`.
        target_grid: (rows, columns) wanted.
        rule: `"google"`, `"timm"`, `"hf"`, `"torchvision"` or `"siglip2"`: whose code is followed.
        prefix_tokens: Number of leading positions that are no part of the grid; they pass
            unchanged.

    Returns:
        An array of shape `(1, prefix_tokens + rows * columns of the target, hidden_size)`, of
        the dtype of `positions`; `positions` itself if the grids are equal.

    Raises:
        ValueError: If the number of positions does not fit `source_grid`, or for an unknown rule.

    Example:

    >>> import numpy as np
    >>> grid = np.array([0.0, 1.0, 2.0, 3.0], "float32").reshape(1, 4, 1)
    >>> resample_positions(grid, (2, 2), (1, 3), "google").ravel().tolist()
    [0.0, 0.5, 1.0]
    """
    check_resampling(rule, "rule")
    rows, columns = source_grid
    if positions.shape[1] != prefix_tokens + rows * columns:
        raise ValueError(
            f"{positions.shape[1]} positions are not {prefix_tokens} + {rows} x {columns}"
        )
    if tuple(source_grid) == tuple(target_grid):
        return positions
    prefix, grid = positions[:, :prefix_tokens], positions[0, prefix_tokens:]
    grid = grid.reshape(rows, columns, -1).astype("float64")
    vertical = resampling_matrix(rows, target_grid[0], **RESAMPLING_RULES[rule])
    horizontal = resampling_matrix(columns, target_grid[1], **RESAMPLING_RULES[rule])
    grid = np.einsum("ir,jc,rcd->ijd", vertical, horizontal, grid, optimize=True)
    grid = grid.reshape(1, target_grid[0] * target_grid[1], -1).astype(positions.dtype)
    return np.concatenate([prefix, grid], axis=1)


def square_grid(positions):
    """(rows, columns) of a square grid of `positions` patches; None if it is none.

    Example:

    >>> square_grid(196)
    (14, 14)
    """
    side = math.isqrt(max(0, positions))
    return (side, side) if side and side * side == positions else None
