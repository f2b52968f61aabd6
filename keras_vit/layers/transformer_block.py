"""A pre-norm Transformer encoder block."""

import keras
from keras import ops

from keras_vit.layers.composite_layer import CompositeLayer
from keras_vit.layers.drop_path import DropPath
from keras_vit.layers.layer_normalization import LayerNormalization
from keras_vit.layers.layer_scale import LayerScale
from keras_vit.layers.mlp import MLP
from keras_vit.layers.multi_head_self_attention import MultiHeadSelfAttention
from keras_vit.layers.rates import unless_zero
from keras_vit.layers.rematerialization import rematerialize


@keras.saving.register_keras_serializable(package="keras_vit")
class TransformerBlock(CompositeLayer):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`.

    Equations 2 and 3 of [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929).

    Args:
        num_heads: Number of attention heads; it divides the width of the tokens.
        mlp_dim: Width of the MLP's hidden layer.
        activation: The MLP's: `"gelu"` (exact), `"gelu_tanh"`, `"quick_gelu"` or `"silu"`.
        gated_mlp: Whether half of the MLP's first layer gates the other.
        qkv_bias: Whether queries, keys and values have biases; `"query_value"`: keys have none.
        qk_norm: Whether queries and keys are normed per head.
        layer_scale: Initial value of learned scales of both branches, or None for none.
        positions: `"rope"`, `"relative"` or None, as of `MultiHeadSelfAttention`.
        grid: Rows and columns of patches; positions and windows need them.
        prefix_tokens: Number of tokens before the patches; positions and windows need it.
        window_size: Rows and columns of patches in a window of attention, as of
            `MultiHeadSelfAttention`; None for attention to all tokens.
        rope_base: Longest period of the rotary positions.
        dropout: Share of each branch's values that are dropped in training, in [0, 1).
        attention_dropout: Share of the attention weights that are dropped, likewise.
        drop_path: Probability of leaving out a branch for a sample, likewise.
        efficient_drop_path: Whether the samples that leave out a branch are not computed there: as
            many of each batch, `DropPath.add_branch`.
        layer_norm_epsilon: Epsilon of all norms.
        remat: Whether the block's activations are computed again in the backward pass of training
            instead of being kept ([Chen et al., 2016](https://arxiv.org/abs/1604.06174)).

    Call arguments:
        output_tokens: Number of tokens to compute, from the first; None for all. Each looks at
            all tokens all the same.
        attended_tokens: Number of tokens, from the first, that are attended to; None for all. With
            positions or windows there must be no others.

    Input shape:
        `(batch, tokens, hidden_size)`.

    Output shape:
        The same; with `output_tokens`, so many tokens.

    Raises:
        ValueError: If `num_heads` does not divide the width, for an unknown activation, or as
            `MultiHeadSelfAttention`.

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
        gated_mlp=False,
        qkv_bias=True,
        qk_norm=False,
        layer_scale=None,
        positions=None,
        grid=None,
        prefix_tokens=0,
        window_size=None,
        rope_base=100.0,
        dropout=0.0,
        attention_dropout=0.0,
        drop_path=0.0,
        efficient_drop_path=False,
        layer_norm_epsilon=1e-6,
        remat=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.activation = activation
        self.gated_mlp = gated_mlp
        self.qkv_bias = qkv_bias
        self.qk_norm = qk_norm
        self.layer_scale = layer_scale
        self.positions = positions
        self.grid = None if grid is None else tuple(grid)
        self.prefix_tokens = prefix_tokens
        self.rope_base = rope_base
        self.dropout_rate = dropout
        self.attention_dropout = attention_dropout
        self.drop_path_rate = drop_path
        self.efficient_drop_path = efficient_drop_path
        self.layer_norm_epsilon = layer_norm_epsilon
        self.remat = remat
        options = self.inner_options
        self.attention_norm = LayerNormalization(
            epsilon=layer_norm_epsilon, name="attention_norm", **options
        )
        self.attention = MultiHeadSelfAttention(
            num_heads,
            use_bias=qkv_bias,
            qk_norm=qk_norm,
            positions=positions,
            grid=grid,
            prefix_tokens=prefix_tokens,
            window_size=window_size,
            rope_base=rope_base,
            layer_norm_epsilon=layer_norm_epsilon,
            dropout=attention_dropout,
            name="attention",
            **options,
        )
        self.mlp_norm = LayerNormalization(epsilon=layer_norm_epsilon, name="mlp_norm", **options)
        self.mlp = MLP(
            mlp_dim, activation=activation, gated=gated_mlp, dropout=dropout, name="mlp", **options
        )
        self.window_size = self.attention.window_size
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.attention_scale = self.mlp_scale = None
        if layer_scale is not None:
            self.attention_scale = LayerScale(layer_scale, name="attention_scale", **options)
            self.mlp_scale = LayerScale(layer_scale, name="mlp_scale", **options)
        self.dropout = unless_zero(keras.layers.Dropout, dropout, name="dropout", **options)
        self.drop_path = unless_zero(DropPath, drop_path, name="drop_path", **options)

    def build(self, input_shape):
        layers = (self.attention_norm, self.attention, self.attention_scale)
        for layer in (*layers, self.mlp_norm, self.mlp, self.mlp_scale):
            if layer is not None:
                layer.build(input_shape)

    def call(self, tokens, training=None, output_tokens=None, attended_tokens=None):
        counts = output_tokens, attended_tokens
        if self.remat and training:
            return rematerialize(self, lambda x: self._forward(x, True, *counts), tokens)
        return self._forward(tokens, training, *counts)

    def _forward(self, tokens, training, output_tokens, attended_tokens):
        def attention(tokens):
            normed = self.attention_norm(tokens, training=training)
            branch = self.attention(
                normed,
                training=training,
                output_tokens=output_tokens,
                attended_tokens=attended_tokens,
            )
            return self._scaled_attention(branch, training)

        residual = tokens if output_tokens is None else tokens[:, :output_tokens]
        if not (training and self.efficient_drop_path and self.drop_path_rate):
            tokens = residual + self.drop_path(attention(tokens), training=training)
            return self._add_mlp(tokens, training)
        tokens = self.drop_path.add_branch(residual, tokens, attention)
        return self.drop_path.add_branch(tokens, tokens, lambda tokens: self._mlp(tokens, training))

    def call_in_parts(self, parts, output_tokens=None):
        """Outside training, the block's outputs for tokens in parts, as attention has them.

        Args:
            parts: Tensors `(batch, tokens, hidden_size)`, together the tokens in their order.
            output_tokens: Number of tokens to compute, all in the first part; None for all.

        Returns:
            A list of tensors, one for each part, or the first part's `output_tokens` alone.

        Example:

        >>> import numpy as np
        >>> block = TransformerBlock(num_heads=4, mlp_dim=64)
        >>> tokens = np.random.default_rng(0).normal(size=(2, 10, 32)).astype("float32")
        >>> parts = block(tokens)[:, :6], block(tokens)[:, 6:]
        >>> found = block.call_in_parts([tokens[:, :6], tokens[:, 6:]])
        >>> all(np.allclose(x, y, atol=1e-6) for x, y in zip(found, parts, strict=True))
        True
        """
        parts = [ops.cast(part, self.compute_dtype) for part in parts]
        normed = [self.attention_norm(part) for part in parts]
        branches = self.attention.call_in_parts(normed, output_tokens)
        residuals = parts if output_tokens is None else [parts[0][:, :output_tokens]]
        added = map(self._add_attention, residuals, branches, [False] * len(branches))
        return [self._add_mlp(tokens, training=False) for tokens in added]

    def _add_attention(self, tokens, branch, training):
        branch = self._scaled_attention(branch, training)
        return tokens + self.drop_path(branch, training=training)

    def _scaled_attention(self, branch, training):
        branch = self.dropout(branch, training=training)
        return branch if self.attention_scale is None else self.attention_scale(branch)

    def _add_mlp(self, tokens, training):
        return tokens + self.drop_path(self._mlp(tokens, training), training=training)

    def _mlp(self, tokens, training):
        branch = self.mlp(self.mlp_norm(tokens, training=training), training=training)
        return branch if self.mlp_scale is None else self.mlp_scale(branch)

    def attention_weights(self, tokens):
        """How much each token attends to each other: `(batch, heads, tokens, tokens)`."""
        return self.attention.attention_weights(self.attention_norm(tokens))

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def compute_output_spec(self, tokens, training=None, output_tokens=None, attended_tokens=None):
        self.attention.check_call(
            tokens, output_tokens=output_tokens, attended_tokens=attended_tokens
        )
        batch, count, hidden_size = self.compute_output_shape(tokens.shape)
        return keras.KerasTensor((batch, output_tokens or count, hidden_size), self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "activation": self.activation,
            "gated_mlp": self.gated_mlp,
            "qkv_bias": self.qkv_bias,
            "qk_norm": self.qk_norm,
            "layer_scale": self.layer_scale,
            "positions": self.positions,
            "grid": self.grid,
            "prefix_tokens": self.prefix_tokens,
            "window_size": self.window_size,
            "rope_base": self.rope_base,
            "dropout": self.dropout_rate,
            "attention_dropout": self.attention_dropout,
            "drop_path": self.drop_path_rate,
            "efficient_drop_path": self.efficient_drop_path,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "remat": self.remat,
        }


def refuse_ignored_options(block):
    """Raises a ValueError for options that a block that leaves out patches would ignore."""
    for name in ("window_size", "remat", "efficient_drop_path"):
        if getattr(block, name):
            raise ValueError(
                f"`{name}` is not there for blocks that merge or prune tokens: leave it out, or "
                f"take a `TransformerBlock`. Received: {name}={getattr(block, name)!r}"
            )


def check_output_tokens(output_tokens, prefix_tokens):
    """Raises a ValueError where a block that leaves out patches is asked for some of them."""
    if output_tokens is not None and not 1 <= output_tokens <= prefix_tokens:
        raise ValueError(
            "`output_tokens` must be positive and at most `prefix_tokens`: the tokens after them "
            f"are merged or pruned. Received: output_tokens={output_tokens}, "
            f"prefix_tokens={prefix_tokens}"
        )


def check_token_count(count, prefix_tokens):
    """Raises a ValueError where a block that leaves out patches has not a known number of them."""
    if count is None or count < prefix_tokens:
        raise ValueError(
            "Blocks that merge or prune tokens need a known number of them, at least "
            "`prefix_tokens`: take images of a fixed size. Received: "
            f"{'an unknown number of' if count is None else count} tokens, "
            f"prefix_tokens={prefix_tokens}"
        )
