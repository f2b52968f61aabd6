"""Fixed positions: sines and cosines of geometrically spaced frequencies."""

import numpy as np


def sin_cos_positions_1d(count, hidden_size, temperature=10000.0):
    """Positions of a sequence, as the first Transformer has them.

    [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.5: channel `2i` is the
    sine and channel `2i + 1` the cosine of `position / temperature ** (2i / hidden_size)`.

    Args:
        count: Number of positions.
        hidden_size: Width of a token, even.
        temperature: What the periods grow to, in units of 2 pi.

    Returns:
        A float64 array of shape `(count, hidden_size)`.

    Raises:
        ValueError: If `hidden_size` is odd.

    Example:

    >>> sin_cos_positions_1d(2, 4).round(2)
    array([[0.  , 1.  , 0.  , 1.  ],
           [0.84, 0.54, 0.01, 1.  ]])
    """
    if hidden_size < 2 or hidden_size % 2:
        raise ValueError(
            "1-D sin-cos positions are pairs of sine and cosine: `hidden_size` must be a positive "
            f"multiple of 2. Received: hidden_size={hidden_size}"
        )
    frequencies = temperature ** (-np.arange(0, hidden_size, 2) / hidden_size)
    angles = np.arange(count)[:, None] * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(count, hidden_size)


def sin_cos_positions_2d(grid, hidden_size, temperature=10000.0):
    """Positions of a grid of patches, as big_vision has them.

    big_vision's `posemb_sincos_2d`, after MoCo v3
    ([Chen et al., 2021](https://arxiv.org/abs/2104.02057)): a quarter of the channels each for
    sin x, cos x, sin y and cos y. Patches follow row by row; x counts columns.

    Args:
        grid: (rows, columns) of patches.
        hidden_size: Width of a token, a multiple of 4 and at least 8.
        temperature: The largest period over the smallest.

    Returns:
        A float64 array of shape `(rows * columns, hidden_size)`.

    Raises:
        ValueError: If `hidden_size` is no multiple of 4 or below 8.

    Example:

    >>> sin_cos_positions_2d((1, 2), 8).round(2)
    array([[0.  , 0.  , 1.  , 1.  , 0.  , 0.  , 1.  , 1.  ],
           [0.84, 0.  , 0.54, 1.  , 0.  , 0.  , 1.  , 1.  ]])
    """
    if hidden_size % 4 or hidden_size < 8:
        # The rule spaces the frequencies by 1 / (hidden_size / 4 - 1).
        raise ValueError(
            "2-D sin-cos positions are four equal parts of at least two frequencies: "
            "`hidden_size` must be a multiple of 4 and at least 8. "
            f"Received: hidden_size={hidden_size}"
        )
    frequencies = temperature ** -np.linspace(0.0, 1.0, hidden_size // 4)
    y, x = (axis.reshape(-1, 1) * frequencies for axis in np.indices(grid))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
