"""Reads .npz files: archives of NumPy arrays, stored or deflated."""

import contextlib
import dataclasses
import io
import math
import reprlib
import struct
import zipfile

import numpy as np

from keras_vit.checkpoints.tensor_file import (
    CHUNK,
    CheckpointError,
    TensorFile,
    check_shape,
    read_floats,
)

# NumPy itself refuses an array's header of more than 10,000 bytes.
_MAX_ARRAY_HEADER = 10_240
_MAX_DIRECTORY = 16 << 20
# Trained weights hardly deflate, so an archive that promises more than this is a bomb.
_MAX_RATIO, _ALWAYS_ALLOWED = 200, 64 << 20
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclasses.dataclass(frozen=True)
class _Member:
    """An array in an archive; `start` is where its data begins in the inflated member."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    start: int


class _BoundedFile(io.FileIO):
    """A file of which little is read at a time, whatever an archive's directory claims."""

    def read(self, size=-1, /):
        if size is not None and size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory claims {size} bytes")
        return super().read(size)


@contextlib.contextmanager
def open_npz(path):
    """Opens a .npz file; the headers of all its arrays are read and checked.

    Args:
        path: The file, a `pathlib.Path`.

    Yields:
        A `TensorFile`.

    Raises:
        CheckpointError: If it is no .npz file, damaged, or would need a pickle.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_BoundedFile(path))
        try:
            archive = stack.enter_context(zipfile.ZipFile(file))
        except Exception as error:  # Whatever the bytes made zipfile stumble over.
            raise CheckpointError(
                f"{path} is no .npz file, or a truncated one ({error!s:.200}); fetch it again"
            ) from error
        _check_directory(path, archive)
        members = dict(_read_member_header(path, archive, info) for info in archive.infolist())
        checked: set[str] = set()

        def read(name, index=None):
            try:
                if index is None:
                    return _read_array(path, archive, name, members[name])
                if name not in checked:
                    # A slice by itself says nothing of the member's checksum.
                    _read_to_end(archive, members[name].info)
                    checked.add(name)
                return _read_slice(path, archive, name, members[name], index)
            except (CheckpointError, KeyError, IndexError):
                raise
            except Exception as error:  # Whatever the bytes made zipfile stumble over.
                raise _damaged(path, name, error) from error

        yield TensorFile(path, {name: member.shape for name, member in members.items()}, read)


def _check_directory(path, archive):
    """Refuses what no .npz file has, before anything is inflated."""
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    names: set[str] = set()
    for info in infos:
        problem = _problem_of_member(info)
        if info.filename in names:
            problem = "is in the archive twice"
        if problem:
            raise CheckpointError(f"{path}: member {reprlib.repr(info.orig_filename)} {problem}")
        names.add(info.filename)
    if infos and infos[0].header_offset:
        raise CheckpointError(
            f"{path} is no .npz file: {infos[0].header_offset} bytes of something else come before "
            f"its first member, {infos[0].filename}"
        )
    ends = [info.header_offset for info in infos[1:]] + [archive.start_dir]
    for info, end in zip(infos, ends, strict=False):
        if info.header_offset + zipfile.sizeFileHeader + info.compress_size > end:
            raise CheckpointError(
                f"{path}: member {info.filename} is damaged: it overlaps what follows it"
            )
    total = sum(info.file_size for info in infos)
    if total > max(_ALWAYS_ALLOWED, _MAX_RATIO * path.stat().st_size):
        largest = max(infos, key=lambda info: info.file_size)
        raise CheckpointError(
            f"{path} would inflate to {total:,} bytes, {largest.filename} alone to "
            f"{largest.file_size:,}: more than {_MAX_RATIO} times its size; it is refused"
        )


def _problem_of_member(info):
    parts = info.filename.replace("\\", "/").split("/")
    if info.orig_filename != info.filename or ".." in parts or not parts[0] or ":" in parts[0]:
        return "has an absolute path or one that leads elsewhere; expected the name of a tensor"
    if not info.filename.endswith(".npy"):
        return "is no NumPy array: expected names that end in .npy"
    if info.flag_bits & 0x1:
        return "is encrypted; expected an archive of numpy.savez"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type}; expected stored or deflated"
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return f"is damaged: {info.compress_size} bytes stored, {info.file_size} claimed"
    return None


def _read_member_header(path, archive, info):
    name = info.filename.removesuffix(".npy")
    try:
        with archive.open(info) as stream:
            head = io.BytesIO(stream.read(_MAX_ARRAY_HEADER))
    except Exception as error:  # Whatever the bytes made zipfile stumble over.
        raise _damaged(path, name, error) from error
    try:
        version = np.lib.format.read_magic(head)
        if version not in _HEADER_READERS:
            raise ValueError(f"format version {version}")
        shape, fortran_order, dtype = _HEADER_READERS[version](head)
    except Exception as error:  # Whatever the bytes made NumPy stumble over.
        raise CheckpointError(
            f"{path}: {info.filename} is no NumPy array ({error!r:.200})"
        ) from error
    if dtype.hasobject:
        raise CheckpointError(
            f"{path}: tensor {name} is a pickled Python object; keras_vit reads no pickles. "
            "Expected an array of floats"
        )
    if not dtype.itemsize:
        # Of such elements no count is too many for the member's size.
        raise CheckpointError(
            f"{path}: tensor {name} holds {dtype}, elements of no bytes. Expected floats"
        )
    shape = check_shape(path, name, shape)
    data_size = info.file_size - head.tell()
    if math.prod(shape) * dtype.itemsize != data_size:
        raise CheckpointError(
            f"{path}: tensor {name} is damaged: its header says {dtype} {shape}, but it holds "
            f"{data_size} bytes"
        )
    return name, _Member(info, shape, dtype, fortran_order, head.tell())


def _damaged(path, name, error):
    reason = str(error) or type(error).__name__
    return CheckpointError(f"{path}: tensor {name} is damaged ({reason:.200}); fetch it again")


def _read_array(path, archive, name, member):
    shape = member.shape[::-1] if member.fortran_order else member.shape
    with archive.open(member.info) as stream:
        _skip(stream, member.start)
        array = read_floats(path, name, stream, shape, member.dtype)
    return array.T if member.fortran_order else array


def _read_slice(path, archive, name, member, index):
    if not 0 <= index < member.shape[0]:
        raise IndexError(f"{name} holds {member.shape[0]} slices. Received: index={index}")
    shape = member.shape[1:]
    if member.fortran_order and shape:
        # Its slices lie scattered over the whole array.
        return _read_array(path, archive, name, member)[index].copy()
    offset = member.start + index * math.prod(shape) * member.dtype.itemsize
    if member.info.compress_type == zipfile.ZIP_STORED:
        with open(path, "rb") as stream:
            stream.seek(_data_offset(stream, member.info) + offset)
            return read_floats(path, name, stream, shape, member.dtype)
    with archive.open(member.info) as stream:
        _skip(stream, offset)
        return read_floats(path, name, stream, shape, member.dtype)


def _data_offset(stream, info):
    """Where a member's data begins: after its own header, whose last two parts vary in length."""
    stream.seek(info.header_offset + 26)
    return info.header_offset + zipfile.sizeFileHeader + sum(struct.unpack("<HH", stream.read(4)))


def _skip(stream, size):
    for start in range(0, size, CHUNK):
        stream.read(min(CHUNK, size - start))


def _read_to_end(archive, info):
    with archive.open(info) as stream:
        _skip(stream, info.file_size + 1)
