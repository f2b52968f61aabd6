"""Attention inside windows of the grid of patches."""

import numpy as np
from keras import ops


def window_attention(query, key, value, *, grid, window_size, prefix_tokens, attend):
    """Attention in which a patch sees the patches of its window only.

    As in ViTDet ([Li et al., 2022](https://arxiv.org/abs/2203.16527), section 3): windows do not
    overlap and are not shifted. The tokens before the patches are seen by all and see all. A grid
    that is no multiple of the window is filled up at its bottom and its right with patches that
    nobody sees. The scores of all pairs of patches are never made.

    Args:
        query: Tensor of shape `(batch, heads, prefix_tokens + patches, head_dim)`.
        key: Likewise.
        value: Likewise.
        grid: (rows, columns) of patches.
        window_size: (rows, columns) of patches in a window, not above the grid's.
        prefix_tokens: Number of tokens before the patches.
        attend: Function `(query, key, value, mask)` of tensors `(…, tokens, head_dim)` and of a
            bool array, or None, that says which keys are seen; it returns the attended values.

    Returns:
        A tensor of the shape of `query`.
    """
    heads, head_dim = query.shape[1], query.shape[-1]
    shape = (-1, heads, prefix_tokens + grid[0] * grid[1], head_dim)
    windows = [
        partition_windows(x[:, :, prefix_tokens:], grid, window_size) for x in (query, key, value)
    ]
    if prefix_tokens:
        count = windows[0].shape[2]
        key_value = [
            ops.concatenate([_repeated(x[:, :, :prefix_tokens], count), patches], axis=3)
            for x, patches in zip((key, value), windows[1:], strict=True)
        ]
    else:
        key_value = windows[1:]
    mask = filled_windows(grid, window_size)
    if mask is not None:
        # Over heads and queries.
        mask = np.pad(mask, ((0, 0), (prefix_tokens, 0)), constant_values=True)[:, None]
    patches = join_windows(attend(windows[0], *key_value, mask), grid, window_size)
    if not prefix_tokens:
        return patches
    prefix = attend(query[:, :, :prefix_tokens], key, value, None)
    return ops.reshape(ops.concatenate([prefix, patches], axis=2), shape)


def _repeated(prefix, count):
    """The tokens before the patches, once for each window."""
    return ops.repeat(prefix[:, :, None], count, axis=2)


def partition_windows(patches, grid, window_size):
    """Cuts a grid into windows, filled up with zeros at its bottom and its right.

    Args:
        patches: Tensor of shape `(batch, heads, rows * columns, head_dim)`.
        grid: (rows, columns).
        window_size: (rows, columns) of a window.

    Returns:
        A tensor of shape `(batch, heads, windows, patches of a window, head_dim)`, windows and
        the patches inside them row by row.

    Example:

    >>> patches = ops.reshape(ops.arange(1, 9), (1, 1, 8, 1))
    >>> ops.convert_to_numpy(partition_windows(patches, (2, 4), (2, 3))).reshape(2, 6)
    array([[1, 2, 3, 5, 6, 7],
           [4, 0, 0, 8, 0, 0]]...)
    """
    # Not -1: another number of patches than the grid's would mix up the images of a batch.
    batch, heads, head_dim = ops.shape(patches)[0], patches.shape[1], patches.shape[-1]
    x = ops.reshape(patches, (batch, heads, *grid, head_dim))
    counts = window_counts(grid, window_size)
    missing = [
        count * side - length for count, side, length in zip(counts, window_size, grid, strict=True)
    ]
    if any(missing):
        x = ops.pad(x, [(0, 0), (0, 0), (0, missing[0]), (0, missing[1]), (0, 0)])
    (rows, columns), (height, width) = counts, window_size
    # All axes that keep their order as one: four are transposed faster than six.
    x = ops.reshape(x, (batch * heads * rows, height, columns, width * head_dim))
    x = ops.transpose(x, (0, 2, 1, 3))
    return ops.reshape(x, (-1, heads, rows * columns, height * width, head_dim))


def join_windows(windows, grid, window_size):
    """Undoes `partition_windows`.

    Args:
        windows: Tensor of shape `(batch, heads, windows, patches of a window, head_dim)`.
        grid: (rows, columns).
        window_size: (rows, columns) of a window.

    Returns:
        A tensor of shape `(batch, heads, rows * columns, head_dim)`.

    Example:

    >>> patches = ops.reshape(ops.arange(15), (1, 1, 15, 1))
    >>> windows = partition_windows(patches, (3, 5), (2, 2))
    >>> ops.convert_to_numpy(join_windows(windows, (3, 5), (2, 2))).ravel().tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    """
    heads, head_dim = windows.shape[1], windows.shape[-1]
    (rows, columns), (height, width) = window_counts(grid, window_size), window_size
    x = ops.reshape(windows, (-1, columns, height, width * head_dim))
    x = ops.transpose(x, (0, 2, 1, 3))
    x = ops.reshape(x, (-1, heads, rows * height, columns * width, head_dim))
    return ops.reshape(x[:, :, : grid[0], : grid[1]], (-1, heads, grid[0] * grid[1], head_dim))


def inner_window(window_size, grid):
    """The part of a window that lies in the grid; None where that is the whole grid, or no window.

    Example:

    >>> inner_window((4, 4), (2, 8)), inner_window((4, 8), (4, 6))
    ((2, 4), None)
    """
    if window_size is None:
        return None
    inside = tuple(map(min, window_size, grid))
    return None if inside == tuple(grid) else inside


def window_counts(grid, window_size):
    """Rows and columns of windows.

    Example:

    >>> window_counts((14, 16), (4, 8))
    (4, 2)
    """
    return tuple(-(-length // side) for length, side in zip(grid, window_size, strict=True))


def filled_windows(grid, window_size):
    """Which places of the windows hold a patch: a bool array `(windows, patches of a window)`.

    None where all do.

    Example:

    >>> filled_windows((1, 3), (1, 2))
    array([[ True,  True],
           [ True, False]])
    """
    if not any(length % side for length, side in zip(grid, window_size, strict=True)):
        return None
    counts = window_counts(grid, window_size)
    inside = [
        (np.arange(count * side) < length).reshape(count, side)
        for count, side, length in zip(counts, window_size, grid, strict=True)
    ]
    filled = inside[0][:, None, :, None] & inside[1][None, :, None, :]
    return filled.reshape(counts[0] * counts[1], -1)


def window_mask(grid, window_size, prefix_tokens):
    """Which token sees which: a bool array `(tokens, tokens)`, a row for each query.

    Example:

    >>> window_mask((1, 3), (1, 2), prefix_tokens=1).astype(int)
    array([[1, 1, 1, 1],
           [1, 1, 1, 0],
           [1, 1, 1, 0],
           [1, 0, 0, 1]])
    """
    row, column = (index.ravel() for index in np.indices(grid))
    window = row // window_size[0] * window_counts(grid, window_size)[1] + column // window_size[1]
    same = window[:, None] == window[None, :]
    return np.pad(same, ((prefix_tokens, 0), (prefix_tokens, 0)), constant_values=True)
