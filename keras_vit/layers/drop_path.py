"""Stochastic depth."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_vit")
class DropPath(keras.layers.Layer):
    """Drops whole samples of a residual branch in training.

    Each sample of the batch is set to zero with probability `rate`, the others are divided by
    `1 - rate`; outside training the input passes unchanged
    ([Huang et al., 2016](https://arxiv.org/abs/1603.09382), per sample as in timm).

    Args:
        rate: Probability of dropping a sample, in [0, 1).
        seed: Optional int, for a reproducible sequence.

    Input shape:
        Any; the first axis is the batch.

    Output shape:
        The same.

    Raises:
        ValueError: If `rate` is outside [0, 1).

    Example:

    >>> import numpy as np
    >>> y = np.asarray(DropPath(0.5, seed=0)(np.ones((1000, 2), "float32"), training=True))
    >>> sorted(set(y.ravel().tolist()))
    [0.0, 2.0]
    """

    def __init__(self, rate=0.0, *, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed) if rate > 0 else None
        self.supports_masking = True

    def call(self, inputs, training=False):
        if not training or self.seed_generator is None:
            return inputs
        shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        draw = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        keep = ops.cast(draw >= self.rate, inputs.dtype)
        return inputs * (keep / (1.0 - self.rate))

    def add_branch(self, residual, tokens, branch):
        """`residual + branch(tokens)` in training, the branch computed for the kept samples alone.

        Efficient stochastic depth ([Oquab et al., 2023](https://arxiv.org/abs/2304.07193), section
        5): as many samples of each batch are kept, the nearest whole number to `1 - rate` of it and
        at least one. A batch of fewer than `0.5 / rate` samples drops none.

        Args:
            residual: `(batch, …)`.
            tokens: `(batch, …)`.
            branch: A function of samples of `tokens`, to what is added to their `residual`.

        Returns:
            As `residual`.
        """
        count = ops.shape(tokens)[0]
        order = ops.argsort(
            keras.random.uniform((count,), dtype="float32", seed=self.seed_generator)
        )
        kept = order[: _kept(count, self.rate)]
        scale = ops.cast(count / ops.shape(kept)[0], residual.dtype)
        added = branch(ops.take(tokens, kept, axis=0)) * scale
        updates = ops.take(residual, kept, axis=0) + added
        return ops.scatter_update(residual, ops.expand_dims(kept, -1), updates)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def _kept(count, rate):
    if isinstance(count, int):
        return max(1, round(count * (1.0 - rate)))
    kept = ops.round(ops.cast(count, "float32") * (1.0 - rate))
    return ops.maximum(ops.cast(kept, "int32"), 1)
