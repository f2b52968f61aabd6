"""Random initialisation as in google-research/vision_transformer."""

import concurrent.futures
import contextlib
import contextvars
import math
import os

import keras
import numpy as np

from keras_vit.layers import host_arrays
from keras_vit.layers.host_arrays import handed_over
from keras_vit.layers.one_pass import is_eager

# Numbers drawn at once: what stays in the cache.
_BLOCK = 2**17
# Numbers on the smallest page of memory.
_PAGE = 2**10
# The bits of 1.5 in float32.
_HALF_WAY_FROM_ONE = np.uint32(0x3FC00000)
_draws = contextvars.ContextVar("draws", default=True)
# What draws later, instead of at once.
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

    Each such initializer must be the `kernel_initializer` of one layer of the model.

    The numbers are those of one kernel after the other, on all cores at once. The system finds
    their memory, which takes most of the time, while the model is being built.

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
    # Hosts must give JAX the same values at once, and a graph would draw in its first trace alone.
    waits = keras.distribution.distribution() is None and is_eager()
    with concurrent.futures.ThreadPoolExecutor(1) as beside:

        def wait(initializer, values):
            room = host_arrays.zeros(values.shape)
            waiting.append((initializer, room, beside.submit(_touch, room)))

        token = _waiting.set(wait if waits else None)
        try:
            yield lambda model: _draw_kernels(model, waiting)
        finally:
            _waiting.reset(token)


def _touch(room):
    """Writes to every page."""
    room.reshape(-1)[::_PAGE] = 0


def _draw_kernels(model, waiting):
    layers = {
        id(layer.kernel_initializer): layer
        for layer in model._flatten_layers()
        if isinstance(getattr(layer, "kernel_initializer", None), XavierUniform)
    }

    def draw(initializer, room, touched):
        touched.result()
        initializer.draw(room)
        return layers[id(initializer)].kernel, room

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = [pool.submit(draw, *waiting.pop(0)) for _ in range(len(waiting))]
        while drawn:
            kernel, values = drawn.pop(0).result()
            kernel.assign(handed_over(values))


@keras.saving.register_keras_serializable(package="keras_vit")
class XavierUniform(keras.initializers.VarianceScaling):
    """Xavier uniform ([Glorot & Bengio, 2010](https://proceedings.mlr.press/v9/glorot10a.html)).

    They are drawn with NumPy: faster than by Keras' own initializer, and the same seed gives the
    same weights on every backend.

    Args:
        columns: Number of equal matrices side by side in a fused kernel; each is drawn as if it
            stood alone.
        seed: Optional int of at least 0; None: from `keras.utils.set_random_seed`, or any.

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
        if len(shape) < 2:
            return super().__call__(shape, dtype)
        values = host_arrays.zeros(shape)
        # Kernels of Dense layers, which are found again by their initializer.
        waits = len(shape) == 2 and _waiting.get()
        (waits or XavierUniform.draw)(self, values)
        return keras.ops.convert_to_tensor(handed_over(values), dtype or keras.config.floatx())

    def draw(self, values):
        """Draws the numbers of a matrix `(…, fan-in, fan-out)`, float32, into it."""
        fans = max(1, sum(values.shape[-2:]) * math.prod(values.shape[:-2]))
        width = np.float32(2.0 * np.sqrt(6.0 * self.scale / fans))
        random = np.random.Generator(np.random.SFC64(self.seed))  # The fastest.
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

    def get_config(self):
        return {
            "columns": self.columns,
            "seed": keras.saving.serialize_keras_object(self._init_seed),
        }


@keras.saving.register_keras_serializable(package="keras_vit")
class Zeros(keras.initializers.Zeros):
    """Zeros that take no memory before they are written to.

    Example:

    >>> keras.ops.convert_to_numpy(Zeros()((1, 2))).tolist()
    [[0.0, 0.0]]
    """

    def __call__(self, shape, dtype=None):
        zeros = handed_over(host_arrays.zeros(shape))
        return keras.ops.convert_to_tensor(zeros, dtype or keras.config.floatx())


@keras.saving.register_keras_serializable(package="keras_vit")
class Normal(keras.initializers.RandomNormal):
    """Normal, drawn with NumPy: the same seed gives the same weights on every backend.

    JAX would compile the drawing for each shape first.

    Args:
        mean: Float.
        stddev: Float, standard deviation.
        seed: Optional int of at least 0; None: from `keras.utils.set_random_seed`, or any.

    Example:

    >>> positions = keras.ops.convert_to_numpy(Normal(stddev=0.02, seed=0)((1, 197, 192)))
    >>> f"{positions.std():.3f}"
    '0.020'
    """

    def __call__(self, shape, dtype=None):
        random = np.random.Generator(np.random.SFC64(self.seed))
        values = random.standard_normal(shape, np.float32)
        values = values * self.stddev + self.mean
        return keras.ops.convert_to_tensor(values, dtype or keras.config.floatx())


def kernel_initializer(columns=1):
    """Xavier uniform; `columns` equal matrices that share a fused kernel are drawn as if apart.

    Example:

    >>> kernel_initializer(columns=3).scale
    2.0
    """
    if not _draws.get():
        return Zeros()
    return XavierUniform(columns)


def bias_initializer():
    """Normal with standard deviation 1e-6."""
    if not _draws.get():
        return Zeros()
    return Normal(stddev=1e-6)


def token_initializer():
    """Normal with standard deviation 0.02, for positions and registers."""
    if not _draws.get():
        return Zeros()
    return Normal(stddev=0.02)
