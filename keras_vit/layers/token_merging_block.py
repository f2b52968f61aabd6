"""A Transformer block that merges tokens that are alike."""

import keras
from keras import ops

from keras_vit.layers.patches import as_count
from keras_vit.layers.token_reduction import merge_tokens, merged_tokens
from keras_vit.layers.transformer_block import (
    TransformerBlock,
    check_output_tokens,
    check_token_count,
    refuse_ignored_options,
)


@keras.saving.register_keras_serializable(package="keras_vit")
class TokenMergingBlock(TransformerBlock):
    """A `TransformerBlock` that merges patch tokens between its attention and its MLP: ToMe.

    [Bolya et al., 2022](https://arxiv.org/abs/2210.09461). Beside the tokens it takes and hands on
    their sizes, how many patches each stands for; each is attended to as so many equal ones would
    be (proportional attention). The weights are those of a `TransformerBlock`, by the same names;
    no training is needed.

    Args:
        num_heads: Number of attention heads; it divides the width of the tokens.
        mlp_dim: Width of the MLP's hidden layer.
        token_merging: Number of tokens to merge; at most half of the patches are.
        prefix_tokens: Number of tokens before the patches; they are left alone.
        **kwargs: As of `TransformerBlock`, but positions and windows, which need every patch in its
            place, `remat` and `efficient_drop_path`.

    Call arguments:
        sizes: `(batch, tokens)`; None: each token stands for one patch.
        output_tokens: Number of tokens to compute, from the first, at most `prefix_tokens`; None
            for all. Each looks at all tokens all the same.

    Input shape:
        `(batch, tokens, hidden_size)`, the number of tokens known.

    Output shape:
        A pair: the tokens that are left, and their sizes `(batch, tokens left)`, float32.

    Raises:
        ValueError: If `token_merging` is no int of at least 0, the number of tokens is unknown, or
            for an option that is not there.

    Example:

    >>> import numpy as np
    >>> block = TokenMergingBlock(num_heads=4, mlp_dim=64, token_merging=3, prefix_tokens=1)
    >>> tokens, sizes = block(np.random.normal(size=(2, 10, 32)).astype("float32"))
    >>> tokens.shape == (2, 7, 32), np.asarray(sizes).sum(axis=1).tolist()
    (True, [10.0, 10.0])
    """

    def __init__(self, num_heads, mlp_dim, *, token_merging, **kwargs):
        # Sizes stay exact in any dtype policy: they are not cast to it.
        super().__init__(num_heads, mlp_dim, autocast=False, **kwargs)
        token_merging = as_count(token_merging, "token_merging")
        if self.positions is not None:
            raise ValueError(
                "Merged tokens have no place that `positions` could tell. Received: "
                f"positions={self.positions!r}"
            )
        refuse_ignored_options(self)
        self.token_merging = token_merging

    def build(self, input_shape):
        check_token_count(input_shape[1], self.prefix_tokens)
        super().build(input_shape)

    def call(self, tokens, sizes=None, training=None, output_tokens=None):
        check_output_tokens(output_tokens, self.prefix_tokens)
        tokens = ops.cast(tokens, self.compute_dtype)
        branch, keys, _ = self.attention(
            self.attention_norm(tokens, training=training),
            sizes=sizes,
            training=training,
            output_tokens=output_tokens,
            return_attention=True,
        )
        if sizes is None:
            sizes = ops.ones_like(tokens[..., 0], dtype="float32")
        tokens = self._add_attention(tokens[:, :output_tokens], branch, training)
        sizes = sizes[:, :output_tokens]
        if output_tokens is None:
            tokens, sizes = merge_tokens(
                tokens, sizes, keys, self.token_merging, self.prefix_tokens
            )
        return self._add_mlp(tokens, training), sizes

    def compute_output_shape(self, input_shape):
        batch, count, hidden_size = input_shape
        count -= merged_tokens(count - self.prefix_tokens, self.token_merging)
        return (batch, count, hidden_size), (batch, count)

    def compute_output_spec(self, tokens, sizes=None, training=None, output_tokens=None):
        check_output_tokens(output_tokens, self.prefix_tokens)
        (batch, count, hidden_size), _ = self.compute_output_shape(tokens.shape)
        count = output_tokens or count
        return (
            keras.KerasTensor((batch, count, hidden_size), self.compute_dtype),
            keras.KerasTensor((batch, count), "float32"),
        )

    def get_config(self):
        return {**super().get_config(), "token_merging": self.token_merging}
