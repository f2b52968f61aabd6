"""Functions that TensorFlow computes in one pass over their numbers.

TensorFlow runs each operation of a function over all numbers, and XLA all operations over one
number after the other. JAX compiles everything anyway, and PyTorch's functions are whole by themselves.
"""

import contextlib
import contextvars
import functools
import math

import keras
from keras import ops

# Numbers from which on XLA's kernel gains more than its launch costs.
_LARGE = 2**15

_FOR_A_CPU = contextvars.ContextVar("for_a_cpu", default=False)
_IN_THIS_PROCESS = contextvars.ContextVar("in_this_process", default=False)


@functools.lru_cache(maxsize=64)
def in_one_pass(function):
    """`function` compiled by XLA on TensorFlow, for tensors of many numbers.

    One compiled function for all layers, whatever runs around it.

    Args:
        function: Of tensors to a tensor of the first one's dtype, or to one for each of the first
            tensors, of its dtype. It computes in float32 at least.

    Example:

    >>> square = in_one_pass(lambda x: x * x)
    >>> float(square(ops.convert_to_tensor(3.0)))
    9.0
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    compiled = tf.function(_for_the_device(function), jit_compile=True, autograph=False)

    def one_pass(*arguments):
        numbers = math.prod(size for size in arguments[0].shape if size)
        if numbers < _LARGE:
            return function(*arguments)
        return compiled(*map(tf.convert_to_tensor, arguments))

    return one_pass


def row_sum(x):
    """The sum over the last axis, which stays with size 1.

    For a CPU XLA adds up a row number by number, and a product with ones many at once.

    Args:
        x: Tensor of shape `(..., width)`, float32 at least.

    Example:

    >>> row_sum(ops.convert_to_tensor([[1.0, 2.0, 6.0]])).shape == (1, 1)
    True
    """
    if not _FOR_A_CPU.get():
        return ops.sum(x, axis=-1, keepdims=True)
    width = x.shape[-1]
    sums = ops.matmul(ops.reshape(x, (-1, width)), ops.ones((width, 1), x.dtype))
    return ops.reshape(sums, (*ops.shape(x)[:-1], 1))


def widened(x):
    """`x` in float32 at least."""
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


@contextlib.contextmanager
def in_this_process():
    """A context in which models are traced for this process alone.

    What XLA compiles is then part of their inference too. TensorFlow Serving refuses such graphs,
    so they must not be exported.
    """
    token = _IN_THIS_PROCESS.set(True)
    try:
        yield
    finally:
        _IN_THIS_PROCESS.reset(token)


def stays_in_this_process():
    """Whether `in_this_process` is in effect."""
    return _IN_THIS_PROCESS.get()


def _for_the_device(function):
    import tensorflow as tf

    def for_a_cpu(*arguments):
        dtypes = [argument.dtype for argument in arguments]
        token = _FOR_A_CPU.set(True)
        try:
            results = function(*map(_widened_by_bits, arguments))
        finally:
            _FOR_A_CPU.reset(token)
        if not isinstance(results, tuple):
            return _shortened_by_bits(results, dtypes[0])
        return tuple(map(_shortened_by_bits, results, dtypes))

    def for_the_device(*arguments):
        if tf.config.list_logical_devices("GPU"):
            return function(*arguments)
        return for_a_cpu(*arguments)

    return for_the_device


# For a CPU XLA's own conversions of bfloat16 take longer than all of a norm.


def _widened_by_bits(x):
    import tensorflow as tf

    if x.dtype != tf.bfloat16:
        return widened(x)
    bits = tf.cast(tf.bitcast(x, tf.uint16), tf.uint32)
    return tf.bitcast(tf.bitwise.left_shift(bits, _constant(16)), tf.float32)


def _shortened_by_bits(x, dtype):
    import tensorflow as tf

    if dtype != tf.bfloat16:
        return ops.cast(x, dtype)
    # To the nearest; halfway, to the one whose last bit is zero.
    bits = tf.bitcast(x, tf.uint32)
    last = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, _constant(16)), _constant(1))
    rounded = tf.bitwise.right_shift(bits + (last + _constant(0x7FFF)), _constant(16))
    # Rounding may make any other number of one that is none.
    bits = tf.where(tf.math.is_nan(x), _constant(0x7FC0), rounded)
    return tf.bitcast(tf.cast(bits, tf.uint16), tf.bfloat16)


def _constant(number):
    import tensorflow as tf

    return tf.constant(number, tf.uint32)
