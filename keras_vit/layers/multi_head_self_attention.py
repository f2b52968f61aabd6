"""Multi-head self-attention with one projection for queries, keys and values."""

import keras
from keras import ops

from keras_vit.layers.initializers import bias_initializer, kernel_initializer


@keras.saving.register_keras_serializable(package="keras_vit")
class MultiHeadSelfAttention(keras.layers.Layer):
    """Multi-head self-attention over tokens.

    [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.2.2; queries, keys and
    values come from one projection, `query_key_value`, in this order. The softmax is computed in
    float32 at least.

    Args:
        num_heads: Number of heads; it divides the width of the tokens.
        dropout: Share of the attention weights that are dropped in training, in [0, 1).

    Input shape:
        `(batch, tokens, hidden_size)`.

    Output shape:
        The same.

    Raises:
        ValueError: If `num_heads` does not divide the width of the tokens.

    Example:

    >>> import numpy as np
    >>> layer = MultiHeadSelfAttention(num_heads=4)
    >>> layer(np.zeros((2, 10, 32), "float32")).shape == (2, 10, 32)
    True
    """

    def __init__(self, num_heads, *, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"`num_heads` must be positive. Received: num_heads={num_heads}")
        self.num_heads = num_heads
        self.dropout_rate = dropout
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape):
        hidden_size = input_shape[-1]
        if hidden_size is None or hidden_size % self.num_heads:
            raise ValueError(
                "The width of the tokens must be a multiple of `num_heads`. "
                f"Received: width={hidden_size}, num_heads={self.num_heads}"
            )
        self.head_dim = hidden_size // self.num_heads
        self.query_key_value = keras.layers.Dense(
            3 * hidden_size,
            kernel_initializer=kernel_initializer(columns=3),
            bias_initializer=bias_initializer(),
            dtype=self.dtype_policy,
            name="query_key_value",
        )
        self.query_key_value.build(input_shape)
        self.projection = keras.layers.Dense(
            hidden_size,
            kernel_initializer=kernel_initializer(),
            bias_initializer=bias_initializer(),
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build(input_shape)

    def call(self, tokens, training=None):
        length, hidden_size = ops.shape(tokens)[1], self.num_heads * self.head_dim
        qkv = self.query_key_value(tokens)
        qkv = ops.reshape(qkv, (-1, length, 3, self.num_heads, self.head_dim))
        query, key, value = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3, axis=0)
        scores = ops.matmul(query * self.head_dim**-0.5, ops.swapaxes(key, -1, -2))
        weights = attention_softmax(scores)
        weights = self.dropout(weights, training=training)
        attended = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        return self.projection(ops.reshape(attended, (-1, length, hidden_size)))

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "dropout": self.dropout_rate,
        }


def attention_softmax(scores):
    """Softmax over the last axis, in float32 where the dtype is a shorter one."""
    dtype = keras.backend.standardize_dtype(scores.dtype)
    if dtype in ("float16", "bfloat16"):
        return ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), dtype)
    return ops.softmax(scores, axis=-1)
