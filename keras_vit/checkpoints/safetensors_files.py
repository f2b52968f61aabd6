"""Reads .safetensors files, sharded ones too, and the JSON files of the hub beside them.

The files are read at the offsets of their headers and not mapped into memory, since mapped pages
count as the process's own once they were touched. Source of the format:
https://github.com/huggingface/safetensors#format.
"""

import contextlib
import dataclasses
import json
import math
import reprlib
from pathlib import Path

import ml_dtypes
import numpy as np

from keras_vit.checkpoints.tensor_file import (
    CheckpointError,
    TensorFile,
    check_shape,
    read_floats,
)

INDEX_SUFFIX = ".safetensors.index.json"
_MAX_HEADER = 8 << 20
_MAX_JSON = 16 << 20
_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
    "C64": np.dtype("<c8"),
}


@dataclasses.dataclass(frozen=True)
class _Extent:
    """Where a tensor lies in a file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@contextlib.contextmanager
def open_safetensors(path):
    """Opens a .safetensors file; its header is read and checked.

    Args:
        path: The file, a `pathlib.Path`.

    Yields:
        A `TensorFile`.

    Raises:
        CheckpointError: If it, or a JSON file beside it, is damaged.
    """
    yield _tensor_file(path, _read_header(path))


@contextlib.contextmanager
def open_sharded_safetensors(path):
    """Opens a checkpoint that lies in several .safetensors files, by its index.

    Args:
        path: The index, a `pathlib.Path` that ends in .safetensors.index.json.

    Yields:
        A `TensorFile`.

    Raises:
        CheckpointError: If the index is damaged, names anything but files beside it, or disagrees
            with them.
    """
    file_of = read_json_object(path).get("weight_map")
    if not isinstance(file_of, dict):
        raise CheckpointError(f"{path} is no index of shards: it has no object `weight_map`")
    for name, file_name in file_of.items():
        _check_shard_name(path, name, file_name)
    extents: dict[str, _Extent] = {}
    for file_name in sorted(set(file_of.values())):
        shard = path.with_name(file_name)
        named = [name for name in file_of if file_of[name] == file_name]
        if not shard.is_file():
            raise CheckpointError(
                f"{path}: the shard {file_name}, which holds {named[0]}, is missing; fetch it too"
            )
        found = _read_header(shard)
        for name in found:
            if name in file_of and file_of[name] != file_name:
                raise CheckpointError(
                    f"{shard} holds the tensor {name}, which {path.name} says is in {file_of[name]}"
                )
            if name not in file_of:
                raise CheckpointError(
                    f"{shard} holds the tensor {name}, which {path.name} does not name"
                )
        missing = [name for name in named if name not in found]
        if missing:
            raise CheckpointError(
                f"{shard} lacks the tensor {missing[0]}, which {path.name} says it holds"
            )
        extents |= found
    yield _tensor_file(path, extents)


def _check_shard_name(path, name, file_name):
    valid = isinstance(file_name, str) and file_name.endswith(".safetensors")
    if not valid or any(character in file_name for character in "/\\:\0"):
        raise CheckpointError(
            f"{path}: the tensor {name} is said to be in {reprlib.repr(file_name)}; expected the "
            "name of a .safetensors file in the same folder"
        )


def _tensor_file(path, extents):
    def read(name, index=None):
        extent = extents[name]
        start, shape = extent.start, extent.shape
        if index is not None:
            if not 0 <= index < shape[0]:
                raise IndexError(f"{name} holds {shape[0]} slices. Received: index={index}")
            start += index * (extent.stop - extent.start) // shape[0]
            shape = shape[1:]
        with open(extent.path, "rb") as stream:
            stream.seek(start)
            return read_floats(extent.path, name, stream, shape, extent.dtype)

    return TensorFile(
        path,
        {name: extent.shape for name, extent in extents.items()},
        read,
        _read_optional_json(path.with_name("config.json")),
        _read_optional_json(path.with_name("preprocessor_config.json")),
    )


def _read_header(path):
    """Name → extent, for each tensor of a .safetensors file."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise CheckpointError(
                f"{path} is no .safetensors file, or a truncated one: it holds {size} bytes, a "
                f"header of {length if len(prefix) == 8 else 'unknown'} bytes was expected; fetch "
                "it again"
            )
        if length > _MAX_HEADER:
            raise CheckpointError(
                f"{path} has a header of {length} bytes. Expected at most {_MAX_HEADER}"
            )
        header = _parse_object(f"The header of {path}", stream.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path} is damaged: the `__metadata__` of its header is no text")
    data = 8 + length
    extents = {name: _extent(path, name, entry, data) for name, entry in header.items()}
    _check_extents(path, extents, data, size)
    return extents


def _extent(path, name, entry, data):
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(
            f"{path}: the header's entry of tensor {name} must have dtype, shape and data_offsets. "
            f"Found: {reprlib.repr(entry)}"
        )
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {name} is of the unknown dtype {reprlib.repr(entry['dtype'])}. "
            f"Expected {', '.join(_DTYPES)}"
        )
    shape = check_shape(path, name, entry["shape"])
    offsets = entry["data_offsets"]
    size = math.prod(shape) * dtype.itemsize
    valid = isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets)
    if not valid or offsets[0] < 0 or offsets[1] - offsets[0] != size:
        raise CheckpointError(
            f"{path}: tensor {name} is damaged: {entry['dtype']} {shape} takes {size} bytes, its "
            f"header gives it the bytes {reprlib.repr(offsets)}"
        )
    return _Extent(path, dtype, shape, data + offsets[0], data + offsets[1])


def _check_extents(path, extents, position, size):
    """The tensors must tile the file: none over another or beyond the end, and nothing between."""
    in_order = sorted(extents.items(), key=lambda item: (item[1].start, item[1].stop))
    for name, extent in in_order:
        if extent.stop > size:
            raise CheckpointError(
                f"{path}: tensor {name} reaches to byte {extent.stop} of a file of {size}; it is "
                "truncated: fetch it again"
            )
        if extent.start != position:
            fault = "overlaps the one before it" if extent.start < position else "follows a hole"
            raise CheckpointError(f"{path}: tensor {name} {fault}; the file is damaged")
        position = extent.stop
    if position != size:
        raise CheckpointError(
            f"{path} is damaged: {size - position} bytes after its last tensor"
            + (f", {in_order[-1][0]}, belong to none" if in_order else " belong to none")
        )


def read_json_object(path):
    """The content of a JSON file that holds an object.

    Args:
        path: The file, a `pathlib.Path`.

    Raises:
        CheckpointError: If it is too large, not UTF-8, no JSON or no object.
    """
    with open(path, "rb") as stream:
        data = stream.read(_MAX_JSON + 1)
    if len(data) > _MAX_JSON:
        raise CheckpointError(f"{path} holds more than {_MAX_JSON} bytes, which no config does")
    return _parse_object(str(path), data)


def _read_optional_json(path):
    return read_json_object(path) if path.is_file() else None


def _parse_object(what, data):
    try:
        content = json.loads(
            data.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is no JSON ({error!s:.200})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{what} must hold a JSON object. Found: {type(content).__name__}")
    return content


def _distinct(pairs):
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {reprlib.repr(twice)} occurs twice in one object")
    return content


def _refuse_constant(constant):
    raise ValueError(f"{constant} is no number of JSON")
