"""A Transformer block that keeps the tokens that are attended to."""

import keras
from keras import ops

from keras_vit.layers.token_reduction import prune_tokens, pruned_tokens
from keras_vit.layers.transformer_block import (
    TransformerBlock,
    check_output_tokens,
    check_token_count,
    refuse_ignored_options,
)


@keras.saving.register_keras_serializable(package="keras_vit")
class TokenPruningBlock(TransformerBlock):
    """A `TransformerBlock` that prunes patch tokens between its attention and its MLP: EViT.

    [Liang et al., 2022](https://arxiv.org/abs/2202.07800). The patches that the class token attends
    to most are kept, the others become one token. The weights are those of a `TransformerBlock`,
    by the same names; no training is needed.

    Args:
        num_heads: Number of attention heads; it divides the width of the tokens.
        mlp_dim: Width of the MLP's hidden layer.
        token_keep_rate: Share of the patches that are kept, rounded up, in (0, 1].
        prefix_tokens: Number of tokens before the patches, the class token first; they are left
            alone.
        **kwargs: As of `TransformerBlock`, but positions and windows, which need every patch in its
            place, `remat` and `efficient_drop_path`.

    Call arguments:
        output_tokens: Number of tokens to compute, from the first, at most `prefix_tokens`; None
            for all. Each looks at all tokens all the same.

    Input shape:
        `(batch, tokens, hidden_size)`, the number of tokens known.

    Output shape:
        `(batch, tokens left, hidden_size)`.

    Raises:
        ValueError: If `token_keep_rate` is out of range, without a class token, if the number of
            tokens is unknown, or for an option that is not there.

    Example:

    >>> import numpy as np
    >>> block = TokenPruningBlock(num_heads=4, mlp_dim=64, token_keep_rate=0.5, prefix_tokens=1)
    >>> block(np.random.normal(size=(2, 11, 32)).astype("float32")).shape == (2, 1 + 5 + 1, 32)
    True
    """

    def __init__(self, num_heads, mlp_dim, *, token_keep_rate, **kwargs):
        super().__init__(num_heads, mlp_dim, **kwargs)
        if not 0 < token_keep_rate <= 1:
            raise ValueError(
                f"`token_keep_rate` must be in (0, 1]. Received: token_keep_rate={token_keep_rate}"
            )
        if not self.prefix_tokens:
            raise ValueError(
                "Pruning needs a class token before the patches. Received: prefix_tokens=0"
            )
        if self.positions is not None:
            raise ValueError(
                "Pruned tokens have no place that `positions` could tell. Received: "
                f"positions={self.positions!r}"
            )
        refuse_ignored_options(self)
        self.token_keep_rate = token_keep_rate

    def build(self, input_shape):
        check_token_count(input_shape[1], self.prefix_tokens)
        super().build(input_shape)

    def call(self, tokens, training=None, output_tokens=None):
        check_output_tokens(output_tokens, self.prefix_tokens)
        branch, _, weights = self.attention(
            self.attention_norm(tokens, training=training),
            training=training,
            output_tokens=output_tokens,
            return_attention=True,
        )
        tokens = self._add_attention(tokens[:, :output_tokens], branch, training)
        if output_tokens is None:
            of_class_token = ops.mean(weights[:, :, 0], axis=1)
            tokens = prune_tokens(tokens, of_class_token, self.token_keep_rate, self.prefix_tokens)
        return self._add_mlp(tokens, training)

    def compute_output_shape(self, input_shape):
        batch, count, hidden_size = input_shape
        count -= pruned_tokens(count - self.prefix_tokens, self.token_keep_rate)
        return (batch, count, hidden_size)

    def compute_output_spec(self, tokens, training=None, output_tokens=None):
        check_output_tokens(output_tokens, self.prefix_tokens)
        return super().compute_output_spec(tokens, output_tokens=output_tokens)

    def get_config(self):
        return {**super().get_config(), "token_keep_rate": self.token_keep_rate}
