"""Random initialisation as in google-research/vision_transformer."""

import concurrent.futures
import contextlib
import contextvars
import math
import os

import keras
import numpy as np

# Numbers drawn at once: what stays in the cache.
_BLOCK = 2**17
# Numbers, 64 bytes.
_ALIGNMENT = 16
# The bits of 1.5 in float32.
_HALF_WAY_FROM_ONE = np.uint32(0x3FC00000)
_draws = contextvars.ContextVar("draws", default=True)
# The initializers that have given room and no numbers yet.
_waiting = contextvars.ContextVar("waiting", default=None)


@contextlib.contextmanager
def zeros_drawn():
    """Within it all weights start at zero: for those that are loaded right after.

    Drawing them takes time, and more memory than they do.
    """
    token = _draws.set(False)
    try:
        yield
    finally:
        _draws.reset(token)


@contextlib.contextmanager
def drawn_together():
    """Within it `XavierUniform` gives kernels room, and the function that it yields draws them.

    The numbers are those of one kernel after the other, on all cores at once: room that nobody has
    written to costs nothing, and the most of drawing is to write to it first.

    Example:

    >>> with drawn_together() as draw_kernels:
    ...     model = keras.Sequential(
    ...         [keras.Input((4,)), keras.layers.Dense(2, kernel_initializer=XavierUniform(seed=0))]
    ...     )
    ...     draw_kernels(model)
    >>> alone = XavierUniform(seed=0)((4, 2))
    >>> bool(keras.ops.all(model.layers[-1].kernel == alone))
    True
    """
    waiting = []
    # Hosts must give JAX the same values, and what is in the room differs.
    alone = keras.distribution.distribution() is None
    token = _waiting.set(waiting if alone else None)
    try:
        yield lambda model: _draw_kernels(model, waiting)
    finally:
        _waiting.reset(token)


def _draw_kernels(model, waiting):
    layers = {
        id(layer.kernel_initializer): layer
        for layer in model._flatten_layers()
        if isinstance(getattr(layer, "kernel_initializer", None), XavierUniform)
    }
    kernels = [layers[id(initializer)].kernel for initializer in waiting]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(lambda one, kernel: one.draw(kernel.shape), waiting, kernels)
        for kernel, values in zip(kernels, drawn, strict=True):
            kernel.assign(_handed_over(values))
    waiting.clear()


class _ArrayLike:
    """An array by its protocol alone."""

    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return self._values if dtype is None else self._values.astype(dtype, copy=False)


def _handed_over(values):
    """What TensorFlow makes a tensor of without a copy, as long as nobody else keeps the array.

    It copies arrays that it knows as NumPy's, lest somebody change them.
    """
    return _ArrayLike(values) if keras.backend.backend() == "tensorflow" else values


def _aligned(shape):
    """Room for float32 numbers, at an address that TensorFlow and JAX take over as it is."""
    count = math.prod(shape)
    room = np.empty(count + _ALIGNMENT, np.float32)
    return room[(-room.ctypes.data % (4 * _ALIGNMENT)) // 4 :][:count].reshape(shape)


@keras.saving.register_keras_serializable(package="keras_vit")
class XavierUniform(keras.initializers.VarianceScaling):
    """Xavier uniform ([Glorot & Bengio, 2010](https://proceedings.mlr.press/v9/glorot10a.html)).

    Matrices are drawn with NumPy: faster than by Keras' own initializer, and the same seed gives
    the same weights on every backend.

    Args:
        columns: Number of equal matrices side by side in a fused kernel; each is drawn as if it
            stood alone.
        seed: Optional int; None: from `keras.utils.set_random_seed`, or any.

    Example:

    >>> kernel = keras.ops.convert_to_numpy(XavierUniform(seed=0)((2, 4), "float32"))
    >>> bool((abs(kernel) <= 1).all()), kernel.shape
    (True, (2, 4))
    """

    def __init__(self, columns=1, seed=None):
        # Fan-in d, fan-out columns * d: the scale restores the limit sqrt(6 / (d + d)).
        super().__init__(
            scale=(1.0 + columns) / 2.0, mode="fan_avg", distribution="uniform", seed=seed
        )
        self.columns = columns

    def __call__(self, shape, dtype=None):
        if len(shape) != 2:
            return super().__call__(shape, dtype)
        waiting = _waiting.get()
        if waiting is None:
            values = self.draw(shape)
        else:
            waiting.append(self)
            values = _aligned(shape)
        return keras.ops.convert_to_tensor(_handed_over(values), dtype)

    def draw(self, shape):
        """The numbers of a matrix of shape `(fan-in, fan-out)`, float32."""
        width = np.float32(2.0 * np.sqrt(6.0 * self.scale / sum(shape)))
        random = np.random.Generator(np.random.SFC64(self.seed))  # The fastest.
        values = _aligned(shape)
        flat = values.reshape(-1)
        for start in range(0, len(flat), _BLOCK):
            part = flat[start : start + _BLOCK]
            # Whole numbers of 64 bits are the fastest to draw; each is two of 32. Their upper 23
            # bits are the fraction of a number in [1, 2).
            drawn = random.integers(0, 2**64, -(-len(part) // 2), dtype=np.uint64)
            bits = drawn.view(np.uint32)[: len(part)]
            np.right_shift(bits, 9, out=bits)
            np.bitwise_xor(bits, _HALF_WAY_FROM_ONE, out=bits)
            fractions = bits.view(np.float32)
            np.subtract(fractions, np.float32(1.5), out=fractions)
            np.multiply(fractions, width, out=part)
        return values

    def get_config(self):
        return {
            "columns": self.columns,
            "seed": keras.saving.serialize_keras_object(self._init_seed),
        }


def kernel_initializer(columns=1):
    """Xavier uniform; `columns` equal matrices that share a fused kernel are drawn as if apart.

    Example:

    >>> kernel_initializer(columns=3).scale
    2.0
    """
    if not _draws.get():
        return "zeros"
    return XavierUniform(columns)


def bias_initializer():
    """Normal with standard deviation 1e-6."""
    if not _draws.get():
        return "zeros"
    return keras.initializers.RandomNormal(stddev=1e-6)


def token_initializer():
    """Normal with standard deviation 0.02, for positions and registers."""
    if not _draws.get():
        return "zeros"
    return keras.initializers.RandomNormal(stddev=0.02)
