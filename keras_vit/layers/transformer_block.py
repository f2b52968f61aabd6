"""A pre-norm Transformer encoder block."""

import keras

from keras_vit.layers.drop_path import DropPath
from keras_vit.layers.mlp import MLP
from keras_vit.layers.multi_head_self_attention import MultiHeadSelfAttention


@keras.saving.register_keras_serializable(package="keras_vit")
class TransformerBlock(keras.layers.Layer):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`.

    Equations 2 and 3 of [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929).

    Args:
        num_heads: Number of attention heads; it divides the width of the tokens.
        mlp_dim: Width of the MLP's hidden layer.
        activation: The MLP's: `"gelu"` (exact), `"gelu_tanh"` or `"quick_gelu"`.
        dropout: Share of each branch's values that are dropped in training, in [0, 1).
        attention_dropout: Share of the attention weights that are dropped, likewise.
        drop_path: Probability of leaving out a branch for a sample, likewise.
        layer_norm_epsilon: Epsilon of both norms.

    Input shape:
        `(batch, tokens, hidden_size)`.

    Output shape:
        The same.

    Raises:
        ValueError: If `num_heads` does not divide the width, or for an unknown activation.

    Example:

    >>> import numpy as np
    >>> block = TransformerBlock(num_heads=4, mlp_dim=64)
    >>> block(np.zeros((2, 10, 32), "float32")).shape == (2, 10, 32)
    True
    """

    def __init__(
        self,
        num_heads,
        mlp_dim,
        *,
        activation="gelu",
        dropout=0.0,
        attention_dropout=0.0,
        drop_path=0.0,
        layer_norm_epsilon=1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.activation = activation
        self.dropout_rate = dropout
        self.attention_dropout = attention_dropout
        self.drop_path_rate = drop_path
        self.layer_norm_epsilon = layer_norm_epsilon
        policy = {"dtype": self.dtype_policy}
        self.attention_norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, name="attention_norm", **policy
        )
        self.attention = MultiHeadSelfAttention(
            num_heads, dropout=attention_dropout, name="attention", **policy
        )
        self.mlp_norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, name="mlp_norm", **policy
        )
        self.mlp = MLP(mlp_dim, activation=activation, dropout=dropout, name="mlp", **policy)
        self.dropout = keras.layers.Dropout(dropout, name="dropout", **policy)
        self.drop_path = DropPath(drop_path, name="drop_path", **policy)

    def build(self, input_shape):
        for layer in (self.attention_norm, self.attention, self.mlp_norm, self.mlp):
            layer.build(input_shape)

    def call(self, tokens, training=None):
        branch = self.attention(self.attention_norm(tokens), training=training)
        branch = self.dropout(branch, training=training)
        tokens = tokens + self.drop_path(branch, training=training)
        branch = self.mlp(self.mlp_norm(tokens), training=training)
        return tokens + self.drop_path(branch, training=training)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "activation": self.activation,
            "dropout": self.dropout_rate,
            "attention_dropout": self.attention_dropout,
            "drop_path": self.drop_path_rate,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }
