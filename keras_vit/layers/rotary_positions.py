"""Rotary positions over two axes (RoPE)."""

import keras
import numpy as np
from keras import ops


def rotary_tables(grid, head_dim, base=100.0):
    """Cosines and sines that turn each patch's queries and keys, as DINOv3 has them.

    [Siméoni et al., 2025](https://arxiv.org/abs/2508.10104): the patches' centres lie in
    [-1, 1] on each axis, whatever its length, and a centre's angles are
    `2 pi * centre / base ** (4 i / head_dim)`. The first quarter of the channels follows the
    rows, the second the columns, and the second half repeats the first.

    Args:
        grid: (rows, columns) of patches.
        head_dim: Width of one head, a multiple of 4.
        base: What the periods stay below, in units of the half grid.

    Returns:
        `(cos, sin)`, float32 arrays of shape `(rows * columns, head_dim)`.

    Raises:
        ValueError: If `head_dim` is no positive multiple of 4.

    Example:

    >>> cos, sin = rotary_tables((1, 2), 4)
    >>> cos.round(2)
    array([[ 1., -1.,  1., -1.],
           [ 1., -1.,  1., -1.]], dtype=float32)
    """
    if head_dim < 4 or head_dim % 4:
        raise ValueError(
            "Rotary positions turn pairs of channels on two axes: `head_dim`, the width over the "
            f"number of heads, must be a positive multiple of 4. Received: head_dim={head_dim}"
        )
    periods = float(base) ** (np.arange(head_dim // 4) * 4 / head_dim)
    centres = [
        (2 * index + 1) / length - 1 for index, length in zip(np.indices(grid), grid, strict=True)
    ]
    angles = [2 * np.pi * centre.reshape(-1, 1) / periods for centre in centres]
    angles = np.concatenate(angles * 2, axis=1)
    return np.cos(angles).astype("float32"), np.sin(angles).astype("float32")


def rotate(x, cos, sin, prefix_tokens=0):
    """Turns the patches' queries or keys; the tokens before them pass unchanged.

    Channel `i` is paired with channel `i + head_dim / 2`. Short dtypes are turned in float32, so
    that only the result is rounded, as timm does.

    Args:
        x: Tensor of shape `(batch, heads, prefix_tokens + patches, head_dim)`.
        cos: Array of shape `(patches, head_dim)`, from `rotary_tables`.
        sin: Likewise.
        prefix_tokens: Number of tokens before the patches.

    Returns:
        A tensor of the shape and dtype of `x`.

    Example:

    >>> import numpy as np
    >>> cos, sin = np.zeros((1, 4)), np.ones((1, 4))
    >>> x = ops.reshape(ops.arange(8, dtype="float32"), (1, 1, 2, 4))
    >>> np.asarray(rotate(x, cos, sin, prefix_tokens=1)).tolist()
    [[[[0.0, 1.0, 2.0, 3.0], [-6.0, -7.0, 4.0, 5.0]]]]
    """
    dtype = keras.backend.standardize_dtype(x.dtype)
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype
    patches = ops.cast(x[:, :, prefix_tokens:], wide)
    first, second = ops.split(patches, 2, axis=-1)
    turned = ops.concatenate([-second, first], axis=-1)
    cos, sin = (ops.convert_to_tensor(table, dtype=wide) for table in (cos, sin))
    patches = ops.cast(patches * cos + turned * sin, dtype)
    if not prefix_tokens:
        return patches
    return ops.concatenate([x[:, :, :prefix_tokens], patches], axis=2)
