"""The layer that turns patches into the encoder's tokens."""

import math

import keras
from keras import ops

from keras_vit.layers.composite_layer import CompositeLayer
from keras_vit.layers.initializers import (
    bias_initializer,
    kernel_initializer,
    token_initializer,
)
from keras_vit.layers.jax_device import row_major
from keras_vit.layers.patches import as_count
from keras_vit.layers.rates import unless_zero
from keras_vit.layers.sin_cos_positions import sin_cos_positions_1d, sin_cos_positions_2d

POSITIONS = ("learned", "sincos1d", "sincos2d", None)
POSITION_SLOTS = ("patches", "class", "all")


@keras.saving.register_keras_serializable(package="keras_vit")
class PatchEncoder(CompositeLayer):
    """Projects patches, adds positions and puts the class token and its like before them.

    Equation 1 of [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929). The tokens follow
    each other as class, distillation, registers, patches. The first of the learned positions are
    those of the tokens before the patches that have any.

    Args:
        hidden_size: Width of a token.
        class_token: Whether a learnable token precedes the patches.
        distillation_token: Whether a second one does.
        register_tokens: Number of register tokens.
        positions: `"learned"`, `"sincos1d"`, `"sincos2d"`, or None: nothing is added here.
        position_slots: Which tokens have learned positions: `"patches"`, `"class"` (class and
            distillation tokens too) or `"all"` (registers too).
        grid: Rows and columns of patches; `"sincos2d"` needs them.
        use_bias: Whether the projection has a bias.
        dropout: Share of the sums that are dropped in training, in [0, 1).

    Input shape:
        `(batch, patches, patch height * patch width * channels)`; the number of patches is fixed
        when the layer is built.

    Output shape:
        `(batch, patches + 1, hidden_size)`, with as many more as there are tokens before them.

    Raises:
        ValueError: If the number of patches is unknown when the layer is built, another one when it
            is called, or not that of `grid`, or an argument is none of its choices.

    Example:

    >>> import numpy as np
    >>> PatchEncoder(32)(np.zeros((2, 9, 192), "float32")).shape == (2, 10, 32)
    True
    >>> encoder = PatchEncoder(32, register_tokens=4, positions="sincos2d", grid=(3, 3))
    >>> encoder(np.zeros((2, 9, 192), "float32")).shape == (2, 14, 32)
    True
    """

    def __init__(
        self,
        hidden_size,
        *,
        class_token=True,
        distillation_token=False,
        register_tokens=0,
        positions="learned",
        position_slots="class",
        grid=None,
        use_bias=True,
        dropout=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value, choices in (
            ("positions", positions, POSITIONS),
            ("position_slots", position_slots, POSITION_SLOTS),
        ):
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {choices}. Received: {name}={value!r}")
        if positions == "sincos2d" and grid is None:
            raise ValueError('`positions="sincos2d"` needs `grid`. Received: grid=None')
        self.hidden_size = hidden_size
        self.use_class_token = class_token
        self.use_distillation_token = distillation_token
        self.register_count = as_count(register_tokens, "register_tokens")
        self.positions = positions
        self.position_slots = position_slots
        self.grid = None if grid is None else tuple(grid)
        self.use_bias = use_bias
        self.dropout_rate = dropout
        self.projection = keras.layers.Dense(
            hidden_size,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer(),
            bias_initializer=bias_initializer(),
            **self.inner_options,
            name="projection",
        )
        self.dropout = unless_zero(
            keras.layers.Dropout, dropout, **self.inner_options, name="dropout"
        )

    @property
    def prefix_tokens(self):
        """Number of tokens before the patches."""
        return self.use_class_token + self.use_distillation_token + self.register_count

    def build(self, input_shape):
        if input_shape[1] is None:
            raise ValueError(
                "`PatchEncoder` needs a known number of patches, because it learns a position for "
                f"each. Received: shape={tuple(input_shape)}"
            )
        patches = input_shape[1]
        if self.positions == "sincos2d" and math.prod(self.grid) != patches:
            raise ValueError(
                "`grid` must have as many places as there are patches. Received: "
                f"grid={self.grid}, {patches} patches"
            )
        # Another number would be given the positions of other places.
        self.input_spec = keras.layers.InputSpec(ndim=3, axes={1: patches})
        self.projection.build(input_shape)
        self.class_token = self._tokens("class_token", int(self.use_class_token))
        self.distillation_token = self._tokens(
            "distillation_token", int(self.use_distillation_token)
        )
        self.register_tokens = self._tokens("register_tokens", self.register_count)
        self.position_embedding = self._fixed_positions = None
        if self.positions == "learned":
            slots = {
                "patches": 0,
                "class": self.use_class_token + self.use_distillation_token,
                "all": self.prefix_tokens,
            }[self.position_slots]
            self.position_embedding = self.add_weight(
                shape=(1, patches + slots, self.hidden_size),
                initializer=token_initializer(),
                name="position_embedding",
            )
        elif self.positions == "sincos1d":
            self._fixed_positions = sin_cos_positions_1d(patches, self.hidden_size)
        elif self.positions == "sincos2d":
            self._fixed_positions = sin_cos_positions_2d(self.grid, self.hidden_size)

    def _tokens(self, name, count):
        if not count:
            return None
        # As published: class tokens start at zero; equal registers would stay equal.
        initializer = "zeros" if count == 1 else token_initializer()
        return self.add_weight(
            shape=(1, count, self.hidden_size), initializer=initializer, name=name
        )

    def call(self, patches, training=None):
        # Flat, as all dense layers are given tokens.
        flat = self.projection(ops.reshape(patches, (-1, patches.shape[-1])))
        tokens = ops.reshape(flat, (-1, ops.shape(patches)[1], self.hidden_size))
        prefix = self._prefix()
        if self.position_embedding is not None:
            covered = self.position_embedding.shape[1] - patches.shape[1]
            tokens = tokens + self.position_embedding[:, covered:]
            if covered:
                positions = self.position_embedding[:, :covered]
                prefix = ops.concatenate(
                    [prefix[:, :covered] + positions, prefix[:, covered:]], axis=1
                )
        elif self._fixed_positions is not None:
            tokens = tokens + ops.cast(self._fixed_positions, tokens.dtype)
        if prefix is not None:
            shape = (ops.shape(tokens)[0], self.prefix_tokens, self.hidden_size)
            tokens = ops.concatenate([ops.broadcast_to(prefix, shape), tokens], axis=1)
        if training:
            # XLA else lays out all tokens by the batch, over which the positions' gradient sums.
            tokens = row_major(tokens)
        return self.dropout(tokens, training=training)

    def _prefix(self):
        parts = (self.class_token, self.distillation_token, self.register_tokens)
        parts = [ops.convert_to_tensor(part) for part in parts if part is not None]
        return ops.concatenate(parts, axis=1) if parts else None

    def compute_output_shape(self, input_shape):
        batch, patches, _ = input_shape
        tokens = None if patches is None else patches + self.prefix_tokens
        return (batch, tokens, self.hidden_size)

    def save_own_variables(self, store):
        # By name: which of the tokens there are decides the order.
        for variable in self._trainable_variables:
            store[variable.name] = variable

    def load_own_variables(self, store):
        for variable in self._trainable_variables:
            variable.assign(store[variable.name])

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_size": self.hidden_size,
            "class_token": self.use_class_token,
            "distillation_token": self.use_distillation_token,
            "register_tokens": self.register_count,
            "positions": self.positions,
            "position_slots": self.position_slots,
            "grid": self.grid,
            "use_bias": self.use_bias,
            "dropout": self.dropout_rate,
        }
