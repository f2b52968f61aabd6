"""Gradients that keep a function's input instead of its intermediate results."""

import functools
import math

import keras
from keras import ops

# Numbers from which on XLA's kernel gains more than its launch costs.
_LARGE = 2**19


def light_gradient(function, gradient):
    """`function`, whose gradient is computed from its arguments alone.

    TensorFlow keeps for the gradient what each operation of a function had: four tensors of the
    size of GELU's input. Computing them again costs less than to write and read them. PyTorch's
    functions do so by themselves.

    On TensorFlow both are compiled for large tensors, whatever runs around them.

    Args:
        function: Of tensors, to a tensor.
        gradient: Of the same tensors and the gradient of the result, to that of each tensor. To
            keep nothing it has to get there by other operations than `function`: equal ones on
            equal inputs are computed once.

    Example:

    >>> cube = light_gradient(lambda x: x * x * x, lambda x, upstream: upstream * 3.0 * x**2)
    >>> float(cube(ops.convert_to_tensor(2.0)))
    8.0
    """
    if keras.backend.backend() == "torch":
        return function

    function, gradient = _in_one_pass(function), _in_one_pass(gradient)

    @ops.custom_gradient
    def light(*arguments):
        return function(*arguments), lambda upstream: gradient(*arguments, upstream)

    return light


@functools.lru_cache(maxsize=64)
def _in_one_pass(function):
    """`function` compiled by XLA on TensorFlow, which else runs each operation over all numbers.

    One compiled function for all layers. JAX compiles all of a step anyway.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    compiled = tf.function(function, jit_compile=True, autograph=False)

    def in_one_pass(*arguments):
        numbers = math.prod(size for size in arguments[0].shape if size)
        return compiled(*arguments) if numbers >= _LARGE else function(*arguments)

    return in_one_pass


def widened(x):
    """`x` in float32 at least."""
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
