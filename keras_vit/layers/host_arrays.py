"""Arrays of the host that become weights without a copy."""

import math
import mmap

import keras
import numpy as np

# Windows knows private memory alone.
_PRIVATE = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
)
# Rows that are turned at once: their cache lines stay at hand.
_TURNED_ROWS = 16


def zeros(shape, dtype="float32"):
    """Zeros at an address that TensorFlow and JAX take over as it is.

    They take no memory before they are written to. Not NumPy's, which asks for huge pages: where
    memory is fragmented or a virtual machine's, to find them can take longer than to write.

    Example:

    >>> zeros((2, 3)).sum().item()
    0.0
    """
    count, dtype = math.prod(shape), np.dtype(dtype)
    pages = mmap.mmap(-1, max(count * dtype.itemsize, 1), **_PRIVATE)
    return np.frombuffer(pages, dtype, count).reshape(shape)


def copied_in_rows(array):
    """A copy in C order. NumPy's of a large transposed matrix takes several times as long.

    Example:

    >>> copied_in_rows(np.arange(6.0).reshape(2, 3).T).tolist()
    [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    """
    array = np.asarray(array)
    copy = zeros(array.shape, array.dtype)
    # Too few rows lie as they should already, or nearly.
    if array.ndim == 2 and array.flags.f_contiguous and len(array) > _TURNED_ROWS:
        for start in range(0, array.shape[1], _TURNED_ROWS):
            turned = slice(start, start + _TURNED_ROWS)
            copy[:, turned] = array[:, turned]
    else:
        copy[...] = array
    return copy


def handed_over(array):
    """What TensorFlow makes a tensor of without a copy, as long as nobody else keeps the array.

    It copies arrays that it knows as NumPy's, lest somebody change them.

    Example:

    >>> tuple(keras.ops.convert_to_tensor(handed_over(zeros((2, 3)))).shape)
    (2, 3)
    """
    return _ArrayLike(array) if keras.backend.backend() == "tensorflow" else array


class _ArrayLike:
    """An array by its protocol alone."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array if dtype is None else self._array.astype(dtype, copy=False)
