"""The layer that turns patches into the encoder's tokens."""

import keras
from keras import ops

from keras_vit.layers.initializers import bias_initializer, kernel_initializer


@keras.saving.register_keras_serializable(package="keras_vit")
class PatchEncoder(keras.layers.Layer):
    """Projects patches, puts the class token before them and adds learnable positions.

    Equation 1 of [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929). The positions have
    a slot for the class token, the first.

    Args:
        hidden_size: Width of a token.
        class_token: Whether a learnable token precedes the patches.
        dropout: Share of the sums that are dropped in training, in [0, 1).

    Input shape:
        `(batch, patches, patch height * patch width * channels)`; the number of patches is fixed
        when the layer is built.

    Output shape:
        `(batch, patches + 1, hidden_size)`, without the 1 if there is no class token.

    Raises:
        ValueError: If the number of patches is unknown when the layer is built.

    Example:

    >>> import numpy as np
    >>> PatchEncoder(32)(np.zeros((2, 9, 192), "float32")).shape == (2, 10, 32)
    True
    """

    def __init__(self, hidden_size, *, class_token=True, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.use_class_token = class_token
        self.dropout_rate = dropout
        self.projection = keras.layers.Dense(
            hidden_size,
            kernel_initializer=kernel_initializer(),
            bias_initializer=bias_initializer(),
            dtype=self.dtype_policy,
            name="projection",
        )
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape):
        if input_shape[1] is None:
            raise ValueError(
                "`PatchEncoder` needs a known number of patches, because it learns a position for "
                f"each. Received: shape={tuple(input_shape)}"
            )
        self.projection.build(input_shape)
        self.class_token = None
        if self.use_class_token:
            self.class_token = self.add_weight(
                shape=(1, 1, self.hidden_size), initializer="zeros", name="class_token"
            )
        self.position_embedding = self.add_weight(
            shape=(1, input_shape[1] + self.use_class_token, self.hidden_size),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="position_embedding",
        )

    def call(self, patches, training=None):
        tokens = self.projection(patches)
        if self.class_token is not None:
            shape = (ops.shape(tokens)[0], 1, self.hidden_size)
            tokens = ops.concatenate([ops.broadcast_to(self.class_token, shape), tokens], axis=1)
        return self.dropout(tokens + self.position_embedding, training=training)

    def compute_output_shape(self, input_shape):
        batch, patches, _ = input_shape
        tokens = None if patches is None else patches + self.use_class_token
        return (batch, tokens, self.hidden_size)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_size": self.hidden_size,
            "class_token": self.use_class_token,
            "dropout": self.dropout_rate,
        }
