"""Where labelled images come from: one function for every kind of source."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from keras_vit.data.array_files import SPLIT_NAMES, read_arrays
from keras_vit.data.cache import cache_folder
from keras_vit.data.checks import equal_files, warn_of_equal_pictures, warn_of_missing_classes
from keras_vit.data.image_files import read_folder, undecodable_files
from keras_vit.data.image_set import DataSource, ImageSet, LeftOut, files_of, split_images
from keras_vit.data.manifests import read_manifest
from keras_vit.data.refused_files import (
    again_left_out,
    leave_out,
    name_in,
    printable,
    raise_refused,
)
from keras_vit.data.tensorflow_datasets import read_tfds


def load_data(
    source: str | Path,
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    damaged_images: Literal["error", "skip"] = "error",
    left_out: Sequence[LeftOut] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DataSource:
    """Finds a data set and divides it into splits.

    `source` is one of:

    - `"digits"`: scikit-learn's 1,797 handwritten digits, 8×8 pixels; needs no network;
    - a folder with one folder of images a class, or with `train/` (or `training/`), `test/` (or
      `testing/`) and perhaps `val/` (or `valid/`, `validation/`) that hold those;
    - a `.csv` file with the columns `file,label` and perhaps `split`;
    - a `.npz` file that this function cached;
    - the name of any TFDS image classification set, as `"cifar10"` or `"cifar10:3.0.2"`;
    - `"vtab/TASK"`, one of the 19 tasks of VTAB-1k (`keras_vit.data.vtab`): 800 images to train
      on, 200 to choose by and the test set of the task.

    A TFDS set is read once: small images of one size become one .npz in the cache, others files.
    From then on neither TensorFlow nor TFDS is imported; delete the cached file to read anew.
    A set with validation but no test images hands out its validation images as `test`.

    Warnings tell of classes without training or test images, of pictures that are in two splits,
    and of pictures in two classes; of the last two only in folders, .csv and .npz files, not in
    published sets. Files of one class that are copies of each other stay on one side where a set is
    divided. Of a folder one tells how many files are passed over, as their names do
    not end as those of images, one how many images lie beside the folders of classes, and one that
    the folders of classes have folders of the same names in them, as splits have.

    Of a folder or a .csv file nothing outside of the folder, or of that of the .csv, is read: a
    path or a link that leads elsewhere is refused like a file that is missing.

    Args:
        source: Name or path.
        data_dir: Folder of prepared TFDS sets (`NAME/VERSION` in it); None: the default of TFDS.
        cache_dir: Folder of the cache; None: `$KERAS_VIT_CACHE` or `~/.cache/keras_vit`.
        test_fraction: Share of the images that become `test` where a set is not divided, the same
            of each class; 1: all of them, for evaluation.
        seed: Seed of that division.
        class_names: For a folder or a .csv file: the names in the order of their index, as those
            of the model to evaluate; None: the sorted names. With those of ImageNet, WordNet ids
            are taken for them.
        damaged_images: What becomes of files that are missing, lead outside of the folder, or
            cannot be decoded. `"error"`: the first two raise; whether files can be decoded is not
            looked at, `check_images` does. `"skip"`: every file is decoded once, and those that
            cannot be used are left out before a set is divided.
        left_out: What an earlier call with `"skip"` left out: these files are left out and no
            others, whatever has become of them since, and none is decoded now.
        progress: Called as `progress(done, total)` after every few files that `"skip"` decodes.

    Returns:
        A `DataSource`; its `left_out` says what was left out, and why.

    Raises:
        FileNotFoundError: If `source` is a path that does not exist, or files of a .csv do not.
        ValueError: If files lead outside of the folder; if a split, or a class to train on, would
            lose all its images; or if the source is unknown, cannot be read, is empty or has one
            class only; images of one class may be evaluated where `class_names` are given.
        RuntimeError: If a TFDS set cannot be downloaded.
        ImportError: If reading the source needs a package that is not installed.

    Example:

    >>> digits = load_data("digits")
    >>> len(digits.train), len(digits.test), digits.train.image_size
    (1438, 359, (8, 8))
    """
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"`test_fraction` must be in 0..1. Received: {test_fraction}")
    if damaged_images not in ("error", "skip"):
        raise ValueError(
            f"`damaged_images` must be 'error' or 'skip'. Received: {damaged_images!r}"
        )
    path = Path(source).expanduser()
    splits, refused, name, version = _read(source, path, data_dir, cache_dir, class_names)
    if class_names is None:
        _check_names(source, next(iter(splits.values())).class_names)
    root = path if path.is_dir() else path.parent if path.is_file() else cache_folder(cache_dir)
    if left_out is not None:
        reasons = again_left_out(root, splits, left_out)
        refused = {file: reason for file, reason in refused.items() if file not in reasons}
    elif damaged_images == "skip":
        files = [file for file in files_of(splits.values()) if file not in refused]
        reasons = refused | undecodable_files(files, progress=progress)
        refused = {}
    else:
        reasons = {}
    if refused:
        raise_refused(path, refused, splits)
    named = tuple(
        LeftOut(name_in(root, file), printable(reasons[file]))
        for file in files_of(splits.values())
        if file in reasons
    )
    splits = leave_out(source, splits, reasons)
    if path.exists():
        copies = equal_files(splits.values())
        splits = {name: dataclasses.replace(part, copy_of=copies) for name, part in splits.items()}
    splits = _divide(source, splits, test_fraction, seed)
    _check_splits(source, splits, class_names)
    if path.exists():
        warn_of_equal_pictures(source, splits, stacklevel=3)
    digest = _digest(splits, root)
    train, validation, test = (splits.get(split) for split in SPLIT_NAMES)
    return DataSource(name, version, digest, train, validation, test, named)


def _read(source, path, data_dir, cache_dir, class_names):
    """The splits as a data set names them, the files it refuses, its name and its version."""
    if source == "digits":
        return {"": _digits()}, {}, "digits", "1"
    if path.is_dir():
        return *read_folder(path, class_names), path.resolve().name, ""
    suffix = path.suffix.lower()
    if suffix == ".csv" and path.is_file():
        return *read_manifest(path, class_names), path.stem, ""
    if path.is_file() or suffix in (".csv", ".npz") or str(source).startswith((".", "~", os.sep)):
        splits, name, version = _read_arrays(path)
    else:
        splits, name, version = read_tfds(str(source), data_dir, cache_folder(cache_dir))
    return splits, {}, name, version


def _read_arrays(path):
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Expected a folder of images, a .csv or a .npz file"
        )
    if path.suffix.lower() == ".npz":
        return read_arrays(path)
    raise ValueError(f"{path} is no data set. Expected a folder of images, a .csv or a .npz file")


def _check_names(source, names):
    """Class names are lines of a file, and two that look the same are one class."""
    seen: dict[str, str] = {}
    for name in names:
        # Half of a pair, as file names that are not UTF-8 have it.
        if name.splitlines() != [name] or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(
                f"{source} has the class {name!r}. Expected one line of text in UTF-8; rename it"
            )
        same = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if same != name:
            raise ValueError(
                f"{source} has the classes {same!a} and {name!a}, which look the same "
                "and are written in two normal forms of Unicode. Expected one of them"
            )


def _digits():
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            f"'digits' needs scikit-learn: `pip install 'keras-vit[recipes]'` ({error})"
        ) from error
    digits = load_digits()
    # 17 grey levels, 0 to 16.
    grey = np.rint(digits.images * (255 / 16)).astype("uint8")
    images = np.repeat(grey[..., None], 3, axis=-1)
    return ImageSet(images, digits.target.astype("int32"), tuple("0123456789"))


def _divide(source, splits, test_fraction, seed):
    """Splits as a data set names them → train, validation and test, those that are there."""
    if set(splits) in ({""}, {"train"}):
        (whole,) = splits.values()
        if test_fraction in (0, 1):
            return {"test" if test_fraction else "train": whole}
        _check_classes(source, "train", whole)
        train, test = split_images(whole, test_fraction, seed=seed)
        return {"train": train, "test": test}
    if set(splits) == {"train", "validation"}:
        return {"train": splits["train"], "test": splits["validation"]}
    return splits


def _check_splits(source, splits, class_names):
    """Two classes where they are not given by a model, and a word on those without images."""
    if class_names is None or "train" in splits:
        split = next(name for name in ("train", "test", "validation") if name in splits)
        _check_classes(source, split, splits[split])
    if class_names is None and "train" in splits:
        warn_of_missing_classes(source, splits, stacklevel=4)


def _check_classes(source, split, image_set):
    labels = np.unique(image_set.labels)
    if len(labels) < 2:
        names = ", ".join(image_set.class_names[label] for label in labels)
        raise ValueError(
            f"{source} has {split} images of one class only: {names}. "
            "Expected two or more to tell apart"
        )


def _digest(splits, root):
    """sha256 of class names, labels, and pixels or names and sizes of files."""
    digest = hashlib.sha256("\n".join(next(iter(splits.values())).class_names).encode())
    for split in SPLIT_NAMES:
        if split not in splits:
            continue
        image_set = splits[split]
        digest.update(f"{split} {len(image_set)}".encode())
        digest.update(np.ascontiguousarray(image_set.labels, "<i4").data)
        if image_set.in_memory:
            digest.update(np.ascontiguousarray(image_set.images).data)
        else:
            for path in image_set.images:
                name = Path(os.path.relpath(path, root)).as_posix()
                digest.update(f"{name}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()
