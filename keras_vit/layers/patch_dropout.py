"""Patches left out in training."""

import keras
from keras import ops

from keras_vit.layers.patches import as_count, check_patches_left
from keras_vit.layers.token_reduction import take_tokens


@keras.saving.register_keras_serializable(package="keras_vit")
class PatchDropout(keras.layers.Layer):
    """Leaves out patch tokens in training, so that it costs less.

    Each sample keeps its own random patches, in their order, as many as every other:
    `max(1, int(patches * (1 - rate)))`. Outside training the tokens pass unchanged
    ([Liu et al., 2022](https://arxiv.org/abs/2208.07220);
    [Li et al., 2022](https://arxiv.org/abs/2212.00794)). Nothing is scaled: the tokens that stay
    are what they were.

    Args:
        rate: Share of the patches that are left out, in [0, 1).
        prefix_tokens: Number of tokens before the patches; they always stay.
        seed: Optional int, for a reproducible sequence.

    Input shape:
        `(batch, tokens, hidden_size)`, the number of tokens known.

    Output shape:
        The same; in training fewer tokens.

    Raises:
        ValueError: If `rate` is outside [0, 1), or for tokens of other than three axes, or without
            patches after the `prefix_tokens`.

    Example:

    >>> import numpy as np
    >>> layer = PatchDropout(0.75, prefix_tokens=1)
    >>> tokens = np.zeros((2, 17, 32), "float32")
    >>> layer(tokens, training=True).shape == (2, 5, 32)
    True
    >>> layer(tokens).shape == (2, 17, 32)
    True
    """

    def __init__(self, rate, *, prefix_tokens=1, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate}")
        self.rate = rate
        self.prefix_tokens = as_count(prefix_tokens, "prefix_tokens")
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed) if rate > 0 else None

    def build(self, input_shape):
        if self.seed_generator is not None:
            check_patches_left(self, input_shape)

    def call(self, tokens, training=False):
        if not training or self.seed_generator is None:
            return tokens
        batch, patches = ops.shape(tokens)[0], tokens.shape[1] - self.prefix_tokens
        # Less a rounding error: 10 * (1 - 0.9) is below 1.
        kept = max(1, int(round(patches * (1 - self.rate), 6)))
        draw = keras.random.uniform((batch, patches), dtype="float32", seed=self.seed_generator)
        _, stay = ops.top_k(draw, kept, sorted=False)
        stay = self.prefix_tokens + ops.sort(stay, axis=-1)
        prefix = tokens[:, : self.prefix_tokens]
        return ops.concatenate([prefix, take_tokens(tokens, stay)], axis=1)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "rate": self.rate,
            "prefix_tokens": self.prefix_tokens,
            "seed": self.seed,
        }
