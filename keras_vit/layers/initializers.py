"""Random initialisation as in google-research/vision_transformer."""

import contextlib
import contextvars

import keras

_draws = contextvars.ContextVar("draws", default=True)


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


def kernel_initializer(columns=1):
    """Xavier uniform; `columns` equal matrices that share a fused kernel are drawn as if apart.

    Example:

    >>> kernel_initializer(columns=3).scale
    2.0
    """
    if not _draws.get():
        return "zeros"
    # Fan-in d, fan-out columns * d: the scale restores the limit sqrt(6 / (d + d)).
    return keras.initializers.VarianceScaling(
        scale=(1.0 + columns) / 2.0, mode="fan_avg", distribution="uniform"
    )


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
