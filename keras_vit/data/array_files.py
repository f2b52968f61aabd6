"""A data set in memory as one .npz file."""

import os
import socket
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from keras_vit.data.image_set import ImageSet

SPLIT_NAMES = ("train", "validation", "test")


def write_arrays(path: Path, splits: dict[str, ImageSet], *, name: str, version: str) -> None:
    """Writes splits in memory to one file; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    class_names = next(iter(splits.values())).class_names
    arrays: dict[str, Any] = {"name": name, "version": version, "class_names": class_names}
    for split, image_set in splits.items():
        arrays[f"{split}_images"] = image_set.images
        arrays[f"{split}_labels"] = image_set.labels
    beside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_arrays(path: Path) -> tuple[dict[str, ImageSet], str, str]:
    """The splits, name and version that `write_arrays` wrote.

    Raises:
        ValueError: If the file is damaged or another kind of .npz.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            class_names = tuple(str(name) for name in arrays["class_names"])
            splits = {
                split: ImageSet(arrays[f"{split}_images"], arrays[f"{split}_labels"], class_names)
                for split in SPLIT_NAMES
                if f"{split}_images" in arrays
            }
            if not splits:
                raise KeyError("train_images")
            return splits, str(arrays["name"]), str(arrays["version"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read as a data set: {error}. Expected a .npz file that load_data "
            "cached; delete it to have it made again"
        ) from error
