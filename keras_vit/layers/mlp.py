"""The MLP of a Transformer block."""

import keras
from keras import ops

from keras_vit.layers.activations import get_activation, training_activation
from keras_vit.layers.composite_layer import CompositeLayer
from keras_vit.layers.initializers import bias_initializer, kernel_initializer
from keras_vit.layers.rates import unless_zero


@keras.saving.register_keras_serializable(package="keras_vit")
class MLP(CompositeLayer):
    """Two linear layers with an activation between, applied to each token.

    [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929), section 3.1, with dropout after
    each linear layer. Gated ([Shazeer, 2020](https://arxiv.org/abs/2002.05202)), the first layer is
    twice as wide, and its first half, after the activation, multiplies the second.

    Args:
        mlp_dim: Width of the hidden layer.
        activation: `"gelu"` (exact), `"gelu_tanh"`, `"quick_gelu"` or `"silu"`.
        gated: Whether half of the first layer gates the other; with `"silu"` that is SwiGLU.
        dropout: Share of the values that are dropped in training, in [0, 1).

    Input shape:
        `(..., hidden_size)`.

    Output shape:
        The same.

    Raises:
        ValueError: For an unknown activation.

    Example:

    >>> import numpy as np
    >>> MLP(64)(np.zeros((2, 10, 32), "float32")).shape == (2, 10, 32)
    True
    """

    def __init__(self, mlp_dim, *, activation="gelu", gated=False, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.mlp_dim = mlp_dim
        self.activation = activation
        self._activations = get_activation(activation), training_activation(activation)
        self.gated = gated
        self.dropout_rate = dropout
        self.dropout = unless_zero(
            keras.layers.Dropout, dropout, **self.inner_options, name="dropout"
        )

    def build(self, input_shape):
        self.expansion = self._dense(self.mlp_dim * (1 + self.gated), "expansion")
        self.expansion.build(input_shape)
        self.projection = self._dense(input_shape[-1], "projection")
        self.projection.build((*input_shape[:-1], self.mlp_dim))

    def _dense(self, units, name):
        return keras.layers.Dense(
            units,
            kernel_initializer=kernel_initializer(),
            bias_initializer=bias_initializer(),
            **self.inner_options,
            name=name,
        )

    def call(self, tokens, training=None):
        # Flat, for plain matrix products: TensorFlow then does bias and GELU in the same pass.
        hidden = self.expansion(ops.reshape(tokens, (-1, tokens.shape[-1])))
        activate = self._activations[bool(training)]
        if self.gated:
            gate, hidden = ops.split(hidden, 2, axis=-1)
            hidden = activate(gate) * hidden
        else:
            hidden = activate(hidden)
        hidden = self.dropout(hidden, training=training)
        hidden = self.dropout(self.projection(hidden), training=training)
        return ops.reshape(hidden, ops.shape(tokens))

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "mlp_dim": self.mlp_dim,
            "activation": self.activation,
            "gated": self.gated,
            "dropout": self.dropout_rate,
        }
