"""Writes files of named tensors, one tensor at a time, each file or folder whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from keras_vit.checkpoints.replaced_file import to_disk
from keras_vit.layers.host_arrays import copied_in_rows

# What a folder holds that is written here; another file in it is never touched.
FOLDER = ("model.safetensors", "config.json", "preprocessor_config.json")
_SAFETENSORS_DTYPES = {"float32": "F32", "float64": "F64"}


def write_npz(path, shapes, read, *, overwrite=False):
    """Writes a .npz file, as np.savez does, but one array at a time.

    Args:
        path: The file, which ends in .npz.
        shapes: Name → shape of each array.
        read: Function from a name to its array.
        overwrite: Whether a file at `path` may be replaced.

    Returns:
        The path.

    Raises:
        ValueError: If `path` is no .npz file's.
        FileExistsError: If `path` exists and may not be replaced.
    """
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ValueError(f"Expected the path of a .npz file. Received: path={str(path)!r}")
    _check_free(path, overwrite)
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder. Expected the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with zipfile.ZipFile(beside / path.name, "w", zipfile.ZIP_STORED) as archive:
            for name in shapes:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, read(name), allow_pickle=False)
        to_disk(beside / path.name)
        _place_file(beside / path.name, path, overwrite)
        to_disk(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


def write_folder(path, shapes, read, dtypes, texts, *, overwrite=False):
    """Writes a folder as on the hub: model.safetensors and the JSON files beside it.

    Args:
        path: The folder.
        shapes: Name → shape of each tensor.
        read: Function from a name to its array.
        dtypes: Name → `"float32"` or `"float64"`.
        texts: Name of each JSON file → its content.
        overwrite: Whether a folder at `path` that was so written may be replaced.

    Returns:
        The path.

    Raises:
        ValueError: If `path` looks like a file's.
        FileExistsError: If `path` exists and may not be replaced.
    """
    path = Path(path).expanduser()
    if path.suffix in (".safetensors", ".npz", ".json", ".keras"):
        raise ValueError(
            "Expected the path of a folder, which will hold model.safetensors and config.json. "
            f"Received: path={str(path)!r}"
        )
    _check_free_folder(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = beside / "new", beside / "old"
    try:
        new.mkdir()
        _write_safetensors(new / "model.safetensors", shapes, read, dtypes)
        for name, content in texts.items():
            (new / name).write_bytes((json.dumps(content, indent=2) + "\n").encode())
            to_disk(new / name)
        to_disk(new)
        if overwrite:
            _check_free_folder(path, overwrite)  # Writing took its time.
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, old)
        _place_folder(new, path)
        to_disk(path.parent)
    finally:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.replace(old, path)
        shutil.rmtree(beside, ignore_errors=True)
    return path


def _place_file(new, path, overwrite):
    """Moves a finished file to its place, which another process may have taken by now."""
    if overwrite:
        os.replace(new, path)
        return
    try:
        # A rename would replace; a link does not.
        os.link(new, path)
    except OSError:
        _check_free(path, overwrite)
        os.replace(new, path)  # The file system has no links, as exFAT.


def _place_folder(new, path):
    """Moves a finished folder to its place; what is there by now, but for an empty one, stays."""
    try:
        os.rename(new, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise _exists(path) from error


def _write_safetensors(path, shapes, read, dtypes):
    """The format's eight bytes of length, its JSON header, and the tensors one after the other."""
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype="int64")) * np.dtype(dtypes[name]).itemsize
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[dtypes[name]],
            "shape": list(shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            little = np.dtype(dtypes[name]).newbyteorder("<")
            tensor = read(name)
            in_rows = tensor if tensor.flags.c_contiguous else copied_in_rows(tensor)
            file.write(np.ascontiguousarray(in_rows, dtype=little).data)
    to_disk(path)


def _check_free(path, overwrite):
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)


def _exists(path):
    return FileExistsError(f"{path} exists. Choose another path, or pass overwrite=True")


def _check_free_folder(path, overwrite):
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is no folder. Choose another path")
    held = sorted(entry.name for entry in path.iterdir())
    if held:
        _check_free(path, overwrite)
    others = [name for name in held if name not in FOLDER]
    if others:
        raise FileExistsError(
            f"{path} holds {', '.join(others[:3])}, and would be replaced as a whole. Expected a "
            f"folder with nothing but {', '.join(FOLDER)}. Choose another path"
        )
