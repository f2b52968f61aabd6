"""Finds and opens weight files; nothing in them is ever executed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from keras_vit.checkpoints.h5_files import PRESET_WEIGHTS, open_h5
from keras_vit.checkpoints.h5_files import SUFFIXES as H5_SUFFIXES
from keras_vit.checkpoints.npz_files import open_npz
from keras_vit.checkpoints.safetensors_files import (
    INDEX_SUFFIX,
    open_safetensors,
    open_sharded_safetensors,
    read_json_object,
)
from keras_vit.checkpoints.tensor_file import CheckpointError, TensorFile, as_float

__all__ = [
    "FOLDER_FILES",
    "PICKLES",
    "CheckpointError",
    "TensorFile",
    "as_float",
    "checkpoint_files",
    "open_tensors",
    "resolve_path",
]

# What a folder is read by: one of the hub, one of a run, a preset of keras-hub. The first that is
# there is taken.
FOLDER_FILES = (
    *("model.safetensors", "model.safetensors.index.json", "model.keras"),
    *PRESET_WEIGHTS,
)
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")
_OPENERS = {
    ".npz": open_npz,
    ".safetensors": open_safetensors,
    INDEX_SUFFIX: open_sharded_safetensors,
} | dict.fromkeys(H5_SUFFIXES, open_h5)


def resolve_path(path):
    """The weight file meant by `path`: itself, or that of a hub's or a run's folder.

    Args:
        path: A file or folder. A folder is read by one of `FOLDER_FILES`, or by its only
            .safetensors file.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is a pickle, no regular file, or a folder that leaves a choice.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = _file_of_folder(path)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no checkpoint at {path}. Expected a file or folder; of published weights, "
            "keras_vit.zoo.weights_path(name) gives it for the names of keras_vit.list_weights()"
        )
    if path.suffix in PICKLES:
        _refuse_pickle(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is no regular file, and is not read")
    return path


def checkpoint_files(path):
    """All files that the weights of a checkpoint lie in: one, or an index and its shards.

    Args:
        path: As of `resolve_path`.
    """
    path = resolve_path(path)
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    places = read_json_object(path).get("weight_map")
    shards = places.values() if isinstance(places, dict) else ()
    return [path, *(path.with_name(name) for name in sorted(set(map(str, shards))))]


def _file_of_folder(folder):
    for name in FOLDER_FILES:
        if (folder / name).exists():
            return folder / name
    found = sorted(folder.iterdir())
    tensors = [path for path in found if path.suffix == ".safetensors"]
    if len(tensors) == 1:
        return tensors[0]
    if tensors:
        raise CheckpointError(
            f"The folder {folder} holds {len(tensors)} .safetensors files and none of "
            f"{', '.join(FOLDER_FILES)}; name the file that is meant: {tensors[0].name}, "
            f"{tensors[1].name}, …"
        )
    for path in found:
        if path.suffix in PICKLES:
            _refuse_pickle(path, path.with_name("model.safetensors"))
    missing = f"There is no {' and no '.join(FOLDER_FILES)} in the folder {folder}"
    if (folder / "recipe.json").exists():
        missing = f"{folder} is a run that is not finished: run it again to go on. {missing}"
    raise FileNotFoundError(missing)


def _refuse_pickle(path, target=None):
    target = target or path.with_suffix(".safetensors")
    raise CheckpointError(
        f"{path} is a pickle, which can run any code when it is read; keras_vit reads none. Where "
        'you trust it, convert it once: python -c "import torch, safetensors.torch as s; '
        f"d = torch.load('{path}', weights_only=True, map_location='cpu'); "
        "d = d.get('model', d.get('state_dict', d.get('teacher', d))); "
        f"s.save_file({{k: v.clone().contiguous() for k, v in d.items()}}, '{target}')\""
    )


@contextlib.contextmanager
def open_tensors(path) -> Iterator[TensorFile]:
    """Opens a .npz, .safetensors or .h5 file, or the index of a sharded one.

    Args:
        path: The file, or a hub folder that holds it.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, a pickle, or of another kind.
    """
    path = resolve_path(path)
    opener = next((_OPENERS[suffix] for suffix in _OPENERS if path.name.endswith(suffix)), None)
    if opener is None:
        raise CheckpointError(
            f"{path} is of an unknown kind. Expected {', '.join(_OPENERS)}, .keras or a folder "
            "with model.safetensors"
        )
    with opener(path) as tensors:
        yield tensors
