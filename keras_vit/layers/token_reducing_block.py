"""A Transformer block that hands on fewer tokens than it takes."""

import keras
from keras import ops

from keras_vit.layers.token_reduction import (
    merge_tokens,
    merged_tokens,
    prune_tokens,
    pruned_tokens,
)
from keras_vit.layers.transformer_block import TransformerBlock


@keras.saving.register_keras_serializable(package="keras_vit")
class TokenReducingBlock(TransformerBlock):
    """A `TransformerBlock` that merges or prunes patch tokens between its attention and its MLP.

    Its weights are those of a `TransformerBlock`, by the same names. Beside the tokens it takes and
    hands on their sizes, how many patches each stands for; a token is attended to as so many equal
    ones would be (ToMe's proportional attention). With neither `token_merging` nor
    `token_keep_rate` it does only that.

    Args:
        num_heads: Number of attention heads; it divides the width of the tokens.
        mlp_dim: Width of the MLP's hidden layer.
        token_merging: Number of tokens to merge, at most half of the patches
            ([Bolya et al., 2022](https://arxiv.org/abs/2210.09461)).
        token_keep_rate: Share of the patches that are kept, in (0, 1]: those that the first token,
            the class token, attends to most. The others become one token
            ([Liang et al., 2022](https://arxiv.org/abs/2202.07800)).
        prefix_tokens: Number of tokens before the patches; they are left alone.
        **kwargs: As of `TransformerBlock`, but positions, which need the patches in their places.

    Call arguments:
        sizes: `(batch, tokens)`; None: each token stands for one patch.
        output_tokens: Number of tokens to compute, from the first, of those before the patches;
            None for all. Each looks at all tokens all the same.

    Input shape:
        `(batch, tokens, hidden_size)`, the number of tokens known.

    Output shape:
        A pair: the tokens, and their sizes in float32, `(batch, fewer tokens)`.

    Raises:
        ValueError: If both ways to reduce are asked for, or one together with positions.

    Example:

    >>> import numpy as np
    >>> block = TokenReducingBlock(num_heads=4, mlp_dim=64, token_merging=3, prefix_tokens=1)
    >>> tokens, sizes = block(np.random.normal(size=(2, 10, 32)).astype("float32"))
    >>> tokens.shape == (2, 7, 32), np.asarray(sizes).sum(axis=1).tolist()
    (True, [10.0, 10.0])
    """

    def __init__(self, num_heads, mlp_dim, *, token_merging=0, token_keep_rate=1.0, **kwargs):
        # Sizes stay exact in any dtype policy: they are not cast to it.
        super().__init__(num_heads, mlp_dim, autocast=False, **kwargs)
        if self.positions is not None:
            raise ValueError(
                f"Fewer tokens have no grid for `positions`. Received: positions={self.positions!r}"
            )
        if token_merging < 0 or not 0 < token_keep_rate <= 1:
            raise ValueError(
                "`token_merging` must be at least 0 and `token_keep_rate` in (0, 1]. Received: "
                f"token_merging={token_merging}, token_keep_rate={token_keep_rate}"
            )
        if token_keep_rate < 1 and (token_merging or not self.prefix_tokens):
            raise ValueError(
                "Pruning needs a class token before the patches, and no merging beside it. "
                f"Received: token_keep_rate={token_keep_rate}, token_merging={token_merging}, "
                f"prefix_tokens={self.prefix_tokens}"
            )
        self.token_merging = token_merging
        self.token_keep_rate = token_keep_rate

    def call(self, tokens, sizes=None, training=None, output_tokens=None):
        tokens = ops.cast(tokens, self.compute_dtype)
        branch, keys, weights = self.attention(
            self.attention_norm(tokens),
            sizes=sizes,
            training=training,
            output_tokens=output_tokens,
            return_attention=True,
        )
        if sizes is None:
            sizes = ops.ones_like(tokens[..., 0], dtype="float32")
        tokens = self._add_attention(tokens[:, :output_tokens], branch, training)
        sizes = sizes[:, :output_tokens]
        if self._patches(tokens.shape[1], output_tokens):
            tokens, sizes = self._reduced(tokens, sizes, keys, weights)
        return self._add_mlp(tokens, training), sizes

    def _reduced(self, tokens, sizes, keys, weights):
        if self.token_merging:
            return merge_tokens(tokens, sizes, keys, self.token_merging, self.prefix_tokens)
        if self.token_keep_rate < 1:
            of_class_token = ops.mean(weights[:, :, 0], axis=1)
            return prune_tokens(
                tokens, sizes, of_class_token, self.token_keep_rate, self.prefix_tokens
            )
        return tokens, sizes

    def _patches(self, count, output_tokens):
        """How many of the tokens to compute are patches."""
        if output_tokens is not None and output_tokens > self.prefix_tokens:
            raise ValueError(
                f"`output_tokens` must be at most `prefix_tokens`, because patches are merged. "
                f"Received: output_tokens={output_tokens}, prefix_tokens={self.prefix_tokens}"
            )
        return 0 if output_tokens else count - self.prefix_tokens

    def _output_count(self, count, output_tokens=None):
        patches = self._patches(count, output_tokens)
        fewer = merged_tokens(patches, self.token_merging)
        if self.token_keep_rate < 1:
            fewer = pruned_tokens(patches, self.token_keep_rate)
        return (output_tokens or count) - fewer

    def compute_output_shape(self, input_shape):
        batch, count, hidden_size = input_shape
        count = self._output_count(count)
        return (batch, count, hidden_size), (batch, count)

    def compute_output_spec(self, tokens, sizes=None, training=None, output_tokens=None):
        batch, count, hidden_size = tokens.shape
        count = self._output_count(count, output_tokens)
        return (
            keras.KerasTensor((batch, count, hidden_size), self.compute_dtype),
            keras.KerasTensor((batch, count), "float32"),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "token_merging": self.token_merging,
            "token_keep_rate": self.token_keep_rate,
        }
