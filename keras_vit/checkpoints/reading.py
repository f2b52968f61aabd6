"""Opens weight files and reads them tensor by tensor; nothing in them is ever executed."""

import contextlib
import dataclasses
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

# What a folder is read by: one of the hub, one of a run.
FOLDER_FILES = ("model.safetensors", "model.keras")
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")


class CheckpointError(ValueError):
    """A file that is no readable checkpoint, or does not fit the model; the message says how."""


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """An open file of named tensors.

    Args:
        path: The file.
        shapes: Name → shape, read from the file's headers.
        read: Function from a name to its tensor, a float32 or float64 NumPy array.
        hub_config: Content of the config.json beside a safetensors file, or None.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    hub_config: dict | None = None


def resolve_path(path):
    """The weight file meant by `path`: itself, or that of a hub's or a run's folder.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is a pickle or of an unknown kind.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
        if pickles and not any((path / name).exists() for name in FOLDER_FILES):
            _refuse_pickle(path / pickles[0])
        names = [name for name in FOLDER_FILES if (path / name).exists()]
        if not names:
            unfinished = " (a run that is not finished)" if (path / "recipe.json").exists() else ""
            raise FileNotFoundError(
                f"There is no {' and no '.join(FOLDER_FILES)} in the folder {path}{unfinished}"
            )
        path = path / names[0]
    if not path.exists():
        raise FileNotFoundError(
            f"There is no checkpoint at {path}. Expected a file or folder; published weights are "
            "not fetched by name yet"
        )
    if path.suffix in PICKLES:
        _refuse_pickle(path)
    return path


def _refuse_pickle(path):
    target = path.with_suffix(".safetensors").name
    raise CheckpointError(
        f"{path} is a pickle, which can run any code when it is read; keras_vit reads none. Where "
        'you trust it, convert it once: python -c "import torch, safetensors.torch as s; '
        f"s.save_file(torch.load('{path.name}', weights_only=True), '{target}')\""
    )


@contextlib.contextmanager
def open_tensors(path) -> Iterator[TensorFile]:
    """Opens a .npz or .safetensors file.

    Args:
        path: The file, or a hub folder that holds `model.safetensors`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, a pickle, or of another kind.
    """
    path = resolve_path(path)
    if path.suffix not in _OPENERS:
        raise CheckpointError(
            f"{path} is of an unknown kind. Expected {', '.join(_OPENERS)}, .keras, .weights.h5 "
            "or a folder with model.safetensors"
        )
    with _OPENERS[path.suffix](path) as tensors:
        yield tensors


@contextlib.contextmanager
def _open_npz(path):
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(
            f"{path} is no .npz file, or a truncated one ({error}); fetch it again"
        ) from error
    with archive:
        members = [_npz_member(path, archive, info) for info in archive.infolist()]

        def read(name):
            try:
                with archive.open(name + ".npy") as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
            except Exception as error:  # Whatever the bytes made NumPy or zipfile stumble over.
                raise CheckpointError(
                    f"{path}: tensor {name} is damaged ({error}); fetch the file again"
                ) from error
            return as_float(path, name, array)

        yield TensorFile(path, dict(members), read)


def _npz_member(path, archive, info):
    name = info.filename.removesuffix(".npy")
    try:
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = header(member)
            data_size = info.file_size - member.tell()
    except Exception as error:  # Whatever the bytes made NumPy or zipfile stumble over.
        raise CheckpointError(f"{path}: {info.filename} is no NumPy array ({error})") from error
    if dtype.hasobject:
        raise CheckpointError(
            f"{path}: tensor {name} is a pickled Python object; keras_vit reads no pickles. "
            "Expected an array of floats"
        )
    if math.prod(shape) * dtype.itemsize != data_size:
        raise CheckpointError(
            f"{path}: tensor {name} is damaged: its header says {dtype} {shape}, but it holds "
            f"{data_size} bytes"
        )
    return name, tuple(shape)


@contextlib.contextmanager
def _open_safetensors(path):
    try:
        file = safetensors.safe_open(path, framework="np")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no .safetensors file, or a truncated one ({error}); fetch it again"
        ) from error
    with file:
        names = file.keys()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        yield TensorFile(
            path,
            shapes,
            lambda name: as_float(path, name, file.get_tensor(name)),
            _read_hub_config(path.with_name("config.json")),
        )


_OPENERS = {".npz": _open_npz, ".safetensors": _open_safetensors}


def _read_hub_config(path):
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold a JSON object. Found: {type(config).__name__}")
    return config


def as_float(path, name, array):
    if array.dtype == np.dtype("V2"):
        # NumPy stores bfloat16, which it does not know, as two raw bytes.
        array = array.view(ml_dtypes.bfloat16)
    if array.dtype in (np.float16, ml_dtypes.bfloat16):
        array = array.astype("float32")
    if array.dtype not in (np.float32, np.float64):
        raise CheckpointError(f"{path}: tensor {name} must hold floats. Found: {array.dtype}")
    if not np.isfinite(array).all():
        bad = np.size(array) - int(np.isfinite(array).sum())
        raise CheckpointError(
            f"{path}: tensor {name} holds {bad} values that are NaN or infinite; "
            "the file is damaged or its training diverged"
        )
    return array
