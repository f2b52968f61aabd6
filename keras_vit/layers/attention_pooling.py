"""Pooling by attention: the MAP head."""

import keras
from keras import ops

from keras_vit.layers.composite_layer import CompositeLayer
from keras_vit.layers.initializers import bias_initializer, kernel_initializer
from keras_vit.layers.light_attention import attention_softmax
from keras_vit.layers.mlp import MLP
from keras_vit.layers.patches import as_count, check_patches_left
from keras_vit.layers.token_reduction import size_bias


@keras.saving.register_keras_serializable(package="keras_vit")
class AttentionPooling(CompositeLayer):
    """Pools tokens into one vector with a learnt query, then a residual MLP.

    The multi-head attention pooling of
    [Zhai et al., 2021](https://arxiv.org/abs/2106.04560), as in big_vision and SigLIP:
    `x = attention(probe, tokens)`, then `x + mlp(norm(x))`.

    Args:
        num_heads: Number of heads; it divides the width of the tokens.
        mlp_dim: Width of the MLP's hidden layer.
        activation: `"gelu"` (exact), `"gelu_tanh"` or `"quick_gelu"`.
        prefix_tokens: Number of tokens before the patches; they are not looked at.
        layer_norm_epsilon: Epsilon of the norm.

    Call arguments:
        sizes: How many equal tokens each stands for, `(batch, tokens)`; None: each for itself.

    Input shape:
        `(batch, tokens, hidden_size)`.

    Output shape:
        `(batch, hidden_size)`.

    Raises:
        ValueError: If `num_heads` does not divide the width, for an unknown activation, or for
            tokens of other than three axes, or without patches after the `prefix_tokens`.

    Example:

    >>> import numpy as np
    >>> pool = AttentionPooling(num_heads=4, mlp_dim=64)
    >>> pool(np.zeros((2, 10, 32), "float32")).shape == (2, 32)
    True
    """

    def __init__(
        self,
        num_heads,
        mlp_dim,
        *,
        activation="gelu",
        prefix_tokens=0,
        layer_norm_epsilon=1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.activation = activation
        self.prefix_tokens = as_count(prefix_tokens, "prefix_tokens")
        self.layer_norm_epsilon = layer_norm_epsilon
        self.norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, **self.inner_options, name="norm"
        )
        self.mlp = MLP(mlp_dim, activation=activation, **self.inner_options, name="mlp")

    def build(self, input_shape):
        hidden_size = input_shape[-1]
        if hidden_size is None or hidden_size % self.num_heads:
            raise ValueError(
                "The width of the tokens must be a multiple of `num_heads`. "
                f"Received: width={hidden_size}, num_heads={self.num_heads}"
            )
        check_patches_left(self, input_shape)
        self.head_dim = hidden_size // self.num_heads
        self.probe = self.add_weight(
            shape=(1, 1, hidden_size), initializer=kernel_initializer(), name="probe"
        )
        self.query = self._dense("query")
        self.query.build((1, 1, hidden_size))
        self.key_value = self._dense("key_value", columns=2)
        self.key_value.build(input_shape)
        self.projection = self._dense("projection")
        pooled_shape = (input_shape[0], 1, hidden_size)
        for layer in (self.projection, self.norm, self.mlp):
            layer.build(pooled_shape)

    def _dense(self, name, columns=1):
        return keras.layers.Dense(
            columns * self.num_heads * self.head_dim,
            kernel_initializer=kernel_initializer(columns),
            bias_initializer=bias_initializer(),
            **self.inner_options,
            name=name,
        )

    def call(self, tokens, sizes=None, training=None):
        tokens = tokens[:, self.prefix_tokens :]
        heads = (self.num_heads, self.head_dim)
        # No variable: the gradient of a quantised layer would refuse it.
        query = self.query(ops.reshape(self.probe, (1, -1)))
        query = ops.reshape(query, (1, 1, *heads)) * self.head_dim**-0.5
        query = ops.transpose(query, (0, 2, 1, 3))
        key_value = ops.reshape(self.key_value(tokens), (-1, ops.shape(tokens)[1], 2, *heads))
        key, value = ops.unstack(ops.transpose(key_value, (2, 0, 3, 1, 4)), 2, axis=0)
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2))
        if sizes is not None:
            scores = scores + size_bias(sizes[:, self.prefix_tokens :], scores.dtype)
        weights = attention_softmax(scores)
        attended = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        pooled = self.projection(ops.reshape(attended, (-1, 1, self.num_heads * self.head_dim)))
        pooled = pooled + self.mlp(self.norm(pooled), training=training)
        return ops.squeeze(pooled, axis=1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "activation": self.activation,
            "prefix_tokens": self.prefix_tokens,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }
