"""Layer normalization that keeps little for its gradient."""

import functools

import keras
from keras import ops

from keras_vit.layers.light_gradients import light_gradient
from keras_vit.layers.one_pass import (
    in_one_pass,
    row_sum,
    stays_in_this_process,
    widened,
)


@keras.saving.register_keras_serializable(package="keras_vit")
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras' layer over the last axis; in training its gradient keeps the input alone.

    [Ba et al., 2016](https://arxiv.org/abs/1607.06450). Computed in float32 at least.

    Args:
        epsilon: Added to the variance.

    Input shape:
        `(..., width)`.

    Output shape:
        The same.

    Example:

    >>> import numpy as np
    >>> LayerNormalization()(np.zeros((2, 10, 32), "float32"), training=True).shape == (2, 10, 32)
    True
    """

    def __init__(self, epsilon=1e-6, *, name=None, dtype=None, trainable=True):
        # Not Keras' other options (axis, no scale, …), which the gradient does not know.
        super().__init__(epsilon=epsilon, name=name, dtype=dtype, trainable=trainable)

    def call(self, inputs, training=None):
        if keras.backend.backend() == "torch":
            return super().call(inputs)
        # Tensors, as TensorFlow takes variables for no arguments of a custom gradient.
        gamma, beta = (ops.reshape(factors, (-1,)) for factors in (self.gamma, self.beta))
        norm = _norm(self.epsilon)
        if training:
            norm = light_gradient(norm, _gradient(self.epsilon))
        elif stays_in_this_process():
            norm = in_one_pass(norm)
        return ops.cast(norm(inputs, gamma, beta), self.compute_dtype)

    def get_config(self):
        config = super().get_config()
        return {name: config[name] for name in ("name", "trainable", "dtype", "epsilon")}


@functools.lru_cache(maxsize=16)
def _norm(epsilon):
    """All norms with this epsilon."""

    def norm(x, gamma, beta):
        # In this form XLA makes one kernel of it for a GPU, of Keras' three, and TensorFlow
        # takes a pass over the numbers less.
        normed, _ = _standardized(widened(x), epsilon)
        return ops.cast(normed * widened(gamma) + widened(beta), x.dtype)

    return norm


def _row_mean(x):
    return row_sum(x) / x.shape[-1]


def _standardized(x, epsilon):
    """`x` with mean 0 and variance 1, and the inverse of its standard deviation."""
    centered = x - _row_mean(x)
    inverse = ops.rsqrt(_row_mean(centered * centered) + epsilon)
    return centered * inverse, inverse


@functools.lru_cache(maxsize=16)
def _gradient(epsilon):
    """The gradient of all norms with this epsilon."""

    def gradient(x, gamma, beta, upstream):
        # Flat, so that XLA finds sums over rows and over columns.
        shape, dtype = ops.shape(x), x.dtype
        x, upstream = (widened(ops.reshape(y, (-1, y.shape[-1]))) for y in (x, upstream))
        normed, inverse = _standardized(x, epsilon)
        of_gamma, of_beta = ops.sum(upstream * normed, axis=0), ops.sum(upstream, axis=0)
        upstream = upstream * widened(gamma)
        slope = _row_mean(upstream * normed)
        of_x = inverse * (upstream - _row_mean(upstream) - normed * slope)
        return (
            ops.reshape(ops.cast(of_x, dtype), shape),
            ops.cast(of_gamma, gamma.dtype),
            ops.cast(of_beta, beta.dtype),
        )

    return gradient
