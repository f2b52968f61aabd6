"""A learnt bias on attention for each relative position of two patches."""

import keras
import numpy as np
from keras import ops

from keras_vit.layers.patches import as_pair

# Class token to patch, patch to class token, class token to itself: the table's last rows.
CLASS_TOKEN_ENTRIES = 3


@keras.saving.register_keras_serializable(package="keras_vit")
class RelativePositionBias(keras.layers.Layer):
    """Adds to attention scores a learnt bias for each head and relative position.

    As in BEiT ([Bao et al., 2021](https://arxiv.org/abs/2106.08254)): the weight `table` has a row
    for each (row, column) offset between two patches of the grid, and with a class token three
    more, for class token to patch, patch to class token and class token to itself.

    Args:
        grid: (rows, columns) of patches.
        num_heads: Number of attention heads.
        prefix_tokens: Number of tokens before the patches: 1, the class token, or 0.

    Input shape:
        `(batch, num_heads, tokens, tokens)`, the scores before the softmax; a row of scores
        belongs to a query.

    Output shape:
        The same.

    Raises:
        ValueError: If `grid` or `num_heads` is not positive, or for other prefix tokens.

    Example:

    >>> import numpy as np
    >>> layer = RelativePositionBias(grid=(2, 2), num_heads=3)
    >>> layer(np.zeros((1, 3, 5, 5), "float32")).shape == (1, 3, 5, 5)
    True
    >>> layer.table.shape == (3 * 3 + 3, 3)
    True
    """

    def __init__(self, grid, num_heads, *, prefix_tokens=1, **kwargs):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"`num_heads` must be positive. Received: num_heads={num_heads}")
        if prefix_tokens not in (0, 1):
            raise ValueError(
                "Relative positions are defined for patches and one class token: `prefix_tokens` "
                "must be 0 or 1; leave out distillation and register tokens. "
                f"Received: prefix_tokens={prefix_tokens}"
            )
        self.grid = as_pair(grid, "grid")
        self.num_heads = num_heads
        self.prefix_tokens = prefix_tokens

    def build(self, input_shape=None):
        rows, columns = self.grid
        offsets = (2 * rows - 1) * (2 * columns - 1)
        self.table = self.add_weight(
            shape=(offsets + CLASS_TOKEN_ENTRIES * self.prefix_tokens, self.num_heads),
            initializer="zeros",
            name="table",
        )

    def bias(self):
        """The biases of all pairs of tokens: a tensor `(num_heads, tokens, tokens)`."""
        index = relative_position_index(self.grid, prefix_tokens=self.prefix_tokens)
        return ops.take(ops.transpose(self.table), index, axis=1)

    def call(self, scores):
        bias = self.bias()[:, : ops.shape(scores)[-2]]
        return scores + ops.cast(bias, scores.dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "grid": self.grid,
            "num_heads": self.num_heads,
            "prefix_tokens": self.prefix_tokens,
        }


def relative_position_index(grid, *, prefix_tokens=1):
    """The row of BEiT's table for each pair of a query and a key token.

    Args:
        grid: (rows, columns) of patches.
        prefix_tokens: 1 with a class token before the patches, else 0.

    Returns:
        An int32 array of shape `(tokens, tokens)`.

    Example:

    >>> relative_position_index((1, 2))
    array([[5, 3, 3],
           [4, 1, 0],
           [4, 2, 1]], dtype=int32)
    """
    rows, columns = grid
    row, column = (axis.ravel() for axis in np.indices(grid))
    # Offsets of -(rows - 1) .. rows - 1 and of the columns likewise, counted from 0 row by row.
    place = row * (2 * columns - 1) + column
    count = (2 * rows - 1) * (2 * columns - 1)
    index = place[:, None] - place[None, :] + count // 2
    if prefix_tokens:
        index = np.pad(index, ((1, 0), (1, 0)))
        index[0, :], index[:, 0], index[0, 0] = count, count + 1, count + 2
    return index.astype("int32")
