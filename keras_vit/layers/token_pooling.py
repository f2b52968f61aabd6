"""Pooling without weights: the class token, the mean of the patches, or both."""

import keras
from keras import ops

from keras_vit.layers.patches import as_count, check_patches_left

POOLINGS = ("token", "distillation", "avg", "token+avg")


@keras.saving.register_keras_serializable(package="keras_vit")
class TokenPooling(keras.layers.Layer):
    """Pools tokens into one vector.

    Args:
        pooling: `"token"` (the first token), `"distillation"` (the second), `"avg"` (the mean of
            the patch tokens), or
            `"token+avg"` (both, concatenated, as DINOv2's linear head takes them).
        prefix_tokens: Number of tokens before the patches; the mean leaves them out.

    Call arguments:
        sizes: How many patches each token stands for, `(batch, tokens)`, which weights the mean;
            None: each for one.

    Input shape:
        `(batch, tokens, hidden_size)`.

    Output shape:
        `(batch, hidden_size)`, twice as wide for `"token+avg"`.

    Raises:
        ValueError: For an unknown pooling, one that needs a token where there is none, or the mean
            of patches where there are none, or for tokens of other than three axes.

    Example:

    >>> import numpy as np
    >>> tokens = np.array([[[8.0], [1.0], [3.0]]], "float32")
    >>> np.asarray(TokenPooling("token+avg", prefix_tokens=1)(tokens)).tolist()
    [[8.0, 2.0]]
    """

    def __init__(self, pooling="token", *, prefix_tokens=1, **kwargs):
        super().__init__(**kwargs)
        if pooling not in POOLINGS:
            raise ValueError(
                f"`pooling` must be one of {', '.join(POOLINGS)}. Received: pooling={pooling!r}"
            )
        prefix_tokens = as_count(prefix_tokens, "prefix_tokens")
        needed = {"token": 1, "token+avg": 1, "distillation": 2}.get(pooling, 0)
        if prefix_tokens < needed:
            raise ValueError(
                f"`pooling={pooling!r}` needs {needed} of them before the patches, the class token "
                f"first. Received: prefix_tokens={prefix_tokens}"
            )
        self.pooling = pooling
        self.prefix_tokens = prefix_tokens
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def build(self, input_shape):
        if "avg" in self.pooling:
            check_patches_left(self, input_shape)

    def call(self, tokens, sizes=None):
        if self.pooling == "distillation":
            return tokens[:, 1]
        pooled = []
        if "token" in self.pooling:
            pooled.append(tokens[:, 0])
        if "avg" in self.pooling:
            pooled.append(self._mean_of_patches(tokens, sizes))
        return pooled[0] if len(pooled) == 1 else ops.concatenate(pooled, axis=-1)

    def _mean_of_patches(self, tokens, sizes):
        patches = tokens[:, self.prefix_tokens :]
        if sizes is None:
            return ops.mean(patches, axis=1)
        sizes = ops.cast(sizes[:, self.prefix_tokens :], "float32")
        shares = sizes / ops.sum(sizes, axis=1, keepdims=True)
        return ops.squeeze(ops.matmul(ops.cast(shares, tokens.dtype)[:, None], patches), axis=1)

    def compute_output_shape(self, input_shape):
        width = 2 if self.pooling == "token+avg" else 1
        return (input_shape[0], width * input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "pooling": self.pooling,
            "prefix_tokens": self.prefix_tokens,
        }
