"""What JAX is told about its devices, beyond Keras' operations."""

import contextlib

import keras


def full_precision():
    """A context in which JAX multiplies float32 as such.

    On a GPU or a TPU it rounds the factors to some ten bits by itself.

    Example:

    >>> with full_precision():
    ...     float(keras.ops.matmul([[2.0]], [[3.0]])[0, 0])
    6.0
    """
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.default_matmul_precision("highest")


def row_major(x):
    """`x`, laid out in memory with its last axis innermost where JAX compiles it.

    For a GPU XLA chooses layouts by itself, and a sum over the first axis, once a step, makes it
    choose one that every other operation pays for. The layout holds for the gradient too. `x` stays
    as it is on a TPU, whose layouts are others, and on several devices, where XLA would gather it.

    Args:
        x: Tensor of any shape.

    Example:

    >>> import numpy as np
    >>> row_major(np.zeros((2, 3), "float32")).shape
    (2, 3)
    """
    if keras.backend.backend() != "jax" or keras.distribution.distribution() is not None:
        return x
    import jax

    if not isinstance(x, jax.core.Tracer) or is_tpu():
        return x
    try:
        from jax.experimental.layout import Layout, with_layout_constraint

        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
    except (ImportError, TypeError):
        # Other releases of JAX, which call it something else.
        return x


def is_tpu():
    """Whether JAX, which must be the backend, runs on a TPU."""
    return _platform() == "tpu"


def is_cpu():
    """Whether JAX, which must be the backend, runs on a CPU."""
    return _platform() == "cpu"


def _platform():
    import jax

    return jax.devices()[0].platform
