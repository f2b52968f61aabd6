"""What the openers of weight files share: the open file, its errors, and how floats are read."""

import dataclasses
import math
import reprlib
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

# Bytes that are read, or looked at, at a time.
CHUNK = 1 << 18
# More than any array has, and little enough that no product of two sizes overflows an int64.
_MAX_ELEMENTS = 1 << 48
_MAX_RANK = 32


class CheckpointError(ValueError):
    """A file that is no readable checkpoint, or does not fit the model; the message says how."""


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """An open file of named tensors.

    Args:
        path: The file; of a sharded checkpoint, its index.
        shapes: Name → shape, read from the headers alone.
        read: Function from a name to its tensor, a float32 or float64 NumPy array. Where the file
            stores arrays, it takes an `index` too, and returns that slice along axis 0 without
            holding the rest.
        hub_config: Content of the config.json beside a safetensors file, or None.
        preprocessor_config: Content of the preprocessor_config.json beside it, or None.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[..., np.ndarray]
    hub_config: dict | None = None
    preprocessor_config: dict | None = None


def check_shape(path, name, shape):
    """The shape as a tuple, if it can be one of an array."""
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (None,)
    valid = len(sizes) <= _MAX_RANK and all(
        type(size) is int and 0 <= size <= _MAX_ELEMENTS for size in sizes
    )
    # Where one size is 0, NumPy multiplies the others all the same.
    if not valid or math.prod(max(1, size) for size in sizes) > _MAX_ELEMENTS:
        raise CheckpointError(
            f"{path}: tensor {name} is damaged: its header says the shape {reprlib.repr(shape)}"
        )
    return sizes


def read_floats(path, name, stream, shape, dtype):
    """Reads a tensor from a binary stream that stands at its first byte.

    It is read, converted and checked a chunk at a time, so that nothing but the result is held.

    Args:
        path: The file, for errors.
        name: The tensor, for errors.
        stream: Object with `read(size)`.
        shape: Shape of the tensor, in C order.
        dtype: Its NumPy dtype in the file.

    Returns:
        A NumPy array, float64 if it is so in the file, else float32.

    Raises:
        CheckpointError: If it holds no floats or values that are not finite, or is cut off.
    """
    dtype, result = _float_dtypes(path, name, dtype)
    flat = np.empty(math.prod(shape), result)
    step = CHUNK // dtype.itemsize
    unusable = 0
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        data = stream.read(part.size * dtype.itemsize)
        if len(data) != part.size * dtype.itemsize:
            raise CheckpointError(f"{path}: tensor {name} is cut off; fetch the file again")
        part[...] = np.frombuffer(data, dtype)
        unusable += _count_unusable(part)
    _refuse_unusable(path, name, unusable)
    return flat.reshape(shape)


def as_float(path, name, array):
    """An array as read from a file, in float32 or float64; itself where it is that already.

    Args:
        path: The file, for errors.
        name: The tensor, for errors.
        array: A NumPy array.

    Raises:
        CheckpointError: If it holds no floats, or values that are not finite.
    """
    dtype, result = _float_dtypes(path, name, array.dtype)
    array = (array if array.dtype == dtype else array.view(dtype)).astype(result, copy=False)
    parts = np.nditer(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        buffersize=CHUNK // array.itemsize,
        order="K",
    )
    _refuse_unusable(path, name, sum(_count_unusable(part) for part in parts if part.size))
    return array


def _float_dtypes(path, name, dtype):
    """The dtype of floats in a file, and that in which they are handed on."""
    if dtype == np.dtype("V2"):
        # NumPy stores bfloat16, which it does not know, as two raw bytes.
        dtype = np.dtype(ml_dtypes.bfloat16)
    native = dtype.newbyteorder("=")
    if native == np.float64:
        return dtype, np.dtype("float64")
    if native in (np.float32, np.float16, ml_dtypes.bfloat16):
        return dtype, np.dtype("float32")
    raise CheckpointError(f"{path}: tensor {name} must hold floats. Found: {dtype}")


def _count_unusable(values):
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype("float32", copy=False))
    return values.size - np.count_nonzero(finite)


def _refuse_unusable(path, name, count):
    if count:
        raise CheckpointError(
            f"{path}: tensor {name} holds {count} values that are NaN, infinite or too large for "
            "float32; the file is damaged or its training diverged"
        )
