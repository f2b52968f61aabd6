"""What JAX is told about its devices, beyond Keras' operations."""

import keras


def row_major(x):
    """`x`, laid out in memory with its last axis innermost where JAX compiles for a GPU.

    XLA chooses layouts by itself, and a sum over the first axis, once a step, makes it choose one
    that every other operation pays for. The layout holds for the gradient too. Elsewhere `x`.

    Args:
        x: Tensor of any shape.

    Example:

    >>> import numpy as np
    >>> row_major(np.zeros((2, 3), "float32")).shape
    (2, 3)
    """
    if keras.backend.backend() != "jax":
        return x
    import jax

    try:
        from jax.experimental.layout import Layout, with_layout_constraint
    except ImportError:  # Not in every release.
        return x
    if not isinstance(x, jax.core.Tracer) or is_tpu():
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def is_tpu():
    """Whether JAX, which must be the backend, runs on a TPU."""
    import jax

    return jax.devices()[0].platform == "tpu"
