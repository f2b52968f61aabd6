"""What the fast suite takes: a few of many parameters, and less where a backend is slow."""

import keras
import pytest


def slow_on_jax(test):
    """Marks a test slow on JAX, which compiles each operation for each shape."""
    return pytest.mark.slow(test) if keras.backend.backend() == "jax" else test


def slow_except(values, fast):
    """The values for `parametrize`, marked slow but for those that `fast` names.

    A tuple is the values of several arguments, as it is there.
    """
    values, fast = list(values), list(fast)
    assert all(value in values for value in fast), "`fast` names what is not among the values"
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=[] if value in fast else [pytest.mark.slow],
        )
        for value in values
    ]
