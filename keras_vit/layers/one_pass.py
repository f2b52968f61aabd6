"""Functions that TensorFlow computes in one pass over their numbers.

TensorFlow runs each operation of a function over all numbers, and XLA all operations over one
number after the other. JAX compiles everything anyway, and PyTorch has whole functions.
"""

import contextlib
import contextvars
import functools
import math

import keras
from keras import ops

# Numbers from which on XLA's kernel gains more than its launch costs.
_LARGE = 2**13

_BY_PRODUCTS = contextvars.ContextVar("by_products", default=False)
_IN_THIS_PROCESS = contextvars.ContextVar("in_this_process", default=False)


@functools.lru_cache(maxsize=64)
def in_one_pass(function):
    """`function` computed in float32 at least, and on TensorFlow, of many numbers, by XLA.

    One compiled function for all layers, whatever runs around it. A size that is unknown when it is
    traced counts as one.

    Args:
        function: Of tensors to a tensor, or to one for each of the first tensors.

    Returns:
        A function of the same tensors in any floats; its results have the dtypes of the first ones.

    Example:

    >>> square = in_one_pass(lambda x: x * x)
    >>> float(square(ops.convert_to_tensor(3.0)))
    9.0
    """
    plain = _widely(function, widened, ops.cast)
    if keras.backend.backend() != "tensorflow":
        return plain
    import tensorflow as tf

    for_a_cpu = _widely(_adding_by_products(function), _widened_by_bits, _shortened_by_bits)

    @functools.partial(tf.function, jit_compile=True, autograph=False)
    def compiled(*arguments):
        return (for_a_cpu if has_cpus_alone() else plain)(*arguments)

    def one_pass(*arguments):
        numbers = math.prod(size for size in arguments[0].shape if size)
        arguments = map(tf.convert_to_tensor, arguments)
        if numbers < _LARGE:
            return plain(*arguments)
        return keras.tree.map_structure(_of_known_shape, compiled(*arguments))

    return one_pass


def _of_known_shape(result):
    # TensorFlow's optimizer does not see the sizes behind what XLA compiles, and fuses by them.
    shape = result.shape
    return ops.reshape(result, shape) if shape.is_fully_defined() else result


def _widely(function, widen, shorten):
    """`function` of wide floats as one of any; its results have the dtypes of the first ones."""

    def of_any(*arguments):
        results = function(*map(widen, arguments))
        dtypes = [keras.backend.standardize_dtype(x.dtype) for x in arguments]
        if not isinstance(results, tuple):
            return shorten(results, dtypes[0])
        return tuple(map(shorten, results, dtypes))

    return of_any


def row_sum(x):
    """The sum over the last axis, which stays with size 1.

    For a CPU XLA adds up a row number by number, and a product with ones many at once.

    Args:
        x: Tensor of shape `(..., width)`, float32 at least.

    Example:

    >>> row_sum(ops.convert_to_tensor([[1.0, 2.0, 6.0]])).shape == (1, 1)
    True
    """
    if not _BY_PRODUCTS.get():
        return ops.sum(x, axis=-1, keepdims=True)
    width = ops.shape(x)[-1]
    sums = ops.matmul(ops.reshape(x, (-1, width)), ops.ones((width, 1), x.dtype))
    return ops.reshape(sums, (*ops.shape(x)[:-1], 1))


def widened(x):
    """`x` in float32 at least."""
    # Not by Keras' result_type, which on JAX makes float32 of float64.
    short = keras.backend.standardize_dtype(x.dtype) in ("float16", "bfloat16")
    return ops.cast(x, "float32") if short else x


def is_eager():
    """Whether what is computed now is computed at once: not while TensorFlow traces a graph."""
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    return tf.executing_eagerly()


@contextlib.contextmanager
def in_this_process():
    """A context in which models are traced for this process alone.

    What XLA compiles is then part of their inference on TensorFlow too. TensorFlow Serving refuses
    such graphs, so they must not be exported.
    """
    token = _IN_THIS_PROCESS.set(True)
    try:
        yield
    finally:
        _IN_THIS_PROCESS.reset(token)


def stays_in_this_process():
    """Whether a model is traced by TensorFlow within `in_this_process`."""
    return _IN_THIS_PROCESS.get() and keras.backend.backend() == "tensorflow"


def has_cpus_alone():
    """Whether TensorFlow sees no accelerator."""
    import tensorflow as tf

    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


@functools.lru_cache
def softmax_rounds_once(dtype):
    """Whether TensorFlow's softmax of short floats is rounded once, at its end.

    oneDNN's is, and takes half the time of what XLA compiles. TensorFlow's own, where oneDNN is
    turned off or the CPU has no such floats, rounds in between, and so does XLA, which compiles
    a whole model for accelerators.
    """
    if not has_cpus_alone():
        return False
    import tensorflow as tf

    with tf.init_scope():
        # The shares are no subnormal numbers of float16.
        scores = tf.cast(tf.linspace(-2.0, 0.0, 512), dtype)
        exact = tf.nn.softmax(tf.cast(scores, "float64"))
        found, rounded = (
            tf.reduce_max(abs(tf.cast(shares, "float64") / exact - 1.0))
            for shares in (tf.nn.softmax(scores), tf.cast(exact, dtype))
        )
        return float(found) < 1.1 * float(rounded)


def _adding_by_products(function):
    def adding_by_products(*arguments):
        token = _BY_PRODUCTS.set(True)
        try:
            return function(*arguments)
        finally:
            _BY_PRODUCTS.reset(token)

    return adding_by_products


# For a CPU XLA's own conversions of bfloat16 take longer than all of a norm.


def _widened_by_bits(x):
    import tensorflow as tf

    if x.dtype != tf.bfloat16:
        return widened(x)

    @tf.custom_gradient
    def widen(x):
        bits = tf.cast(tf.bitcast(x, tf.uint16), tf.uint32)
        wide = tf.bitcast(tf.bitwise.left_shift(bits, _constant(16)), tf.float32)
        return wide, lambda upstream: _shortened_by_bits(upstream, "bfloat16")

    return widen(x)


def _shortened_by_bits(x, dtype):
    import tensorflow as tf

    if dtype != "bfloat16":
        return ops.cast(x, dtype)

    @tf.custom_gradient
    def shorten(x):
        # To the nearest; halfway, to the one whose last bit is zero.
        bits = tf.bitcast(x, tf.uint32)
        last = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, _constant(16)), _constant(1))
        rounded = tf.bitwise.right_shift(bits + (last + _constant(0x7FFF)), _constant(16))
        # Rounding may make a number of what is none.
        bits = tf.where(tf.math.is_nan(x), _constant(0x7FC0), rounded)
        return tf.bitcast(tf.cast(bits, tf.uint16), tf.bfloat16), _widened_by_bits

    return shorten(x)


def _constant(number):
    import tensorflow as tf

    return tf.constant(number, tf.uint32)
