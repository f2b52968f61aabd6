"""Layer normalization that keeps little for its gradient."""

import functools

import keras
from keras import ops

from keras_vit.layers.light_gradients import light_gradient
from keras_vit.layers.one_pass import (
    in_one_pass,
    row_sum,
    stays_in_this_process,
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
        backend = keras.backend.backend()
        if backend == "torch" or (
            backend == "tensorflow" and not training and not stays_in_this_process()
        ):
            return super().call(inputs)  # As an export knows it.
        # Tensors, as TensorFlow takes variables for no arguments of a custom gradient.
        gamma, beta = (ops.reshape(factors, (-1,)) for factors in (self.gamma, self.beta))
        norm, gradient = _norm(self.epsilon), _gradient(self.epsilon)
        norm = light_gradient(norm, gradient) if training else in_one_pass(norm)
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        # Not rounded before. Of two equal ones Keras on JAX would make float32 of float64.
        same = dtype == self.compute_dtype
        wider = dtype if same else keras.backend.result_type(dtype, self.compute_dtype)
        return ops.cast(norm(ops.cast(inputs, wider), gamma, beta), self.compute_dtype)

    def get_config(self):
        config = super().get_config()
        return {name: config[name] for name in ("name", "trainable", "dtype", "epsilon")}


@functools.lru_cache(maxsize=16)
def _norm(epsilon):
    """All norms with this epsilon."""

    def norm(x, gamma, beta):
        # In this form XLA makes one kernel of it for a GPU, of Keras' three.
        normed, _ = _standardized(x, epsilon)
        return normed * ops.cast(gamma, x.dtype) + ops.cast(beta, x.dtype)

    return norm


def _standardized(x, epsilon):
    """`x` with mean 0 and variance 1, and the inverse of its standard deviation."""
    centered = x - _row_mean(x)
    inverse = ops.rsqrt(_row_mean(centered * centered) + epsilon)
    return centered * inverse, inverse


def _row_mean(x):
    return row_sum(x) / x.shape[-1]


@functools.lru_cache(maxsize=16)
def _gradient(epsilon):
    """The gradient of all norms with this epsilon."""

    def gradient(x, gamma, beta, upstream):
        # Flat, so that XLA finds sums over rows and over columns.
        shape = ops.shape(x)
        x, upstream = (ops.reshape(y, (-1, y.shape[-1])) for y in (x, upstream))
        normed, inverse = _standardized(x, epsilon)
        of_gamma, of_beta = ops.sum(upstream * normed, axis=0), ops.sum(upstream, axis=0)
        upstream = upstream * ops.cast(gamma, x.dtype)
        slope = _row_mean(upstream * normed)
        of_x = inverse * (upstream - _row_mean(upstream) - normed * slope)
        return ops.reshape(of_x, shape), of_gamma, of_beta

    return gradient
