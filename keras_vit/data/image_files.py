"""Image folders and CSV manifests, and whether their files can be decoded."""

import csv
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from keras_vit.data.class_names import imagenet_class_names, imagenet_wordnet_ids
from keras_vit.data.image_set import ImageSet
from keras_vit.data.images import undecodable
from keras_vit.layers.nearest import nearest_names

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# A manifest of indices says no more about their range; what lies above is taken for a mistake.
MOST_CLASSES = 100_000
# By names in lower case.
SPLIT_OF = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
MOST_FILES_NAMED = 20
# More than one, so that a large set does not become as many tasks as it has images.
FILES_PER_TASK = 16


def read_folder(folder: Path, class_names: Sequence[str] | None = None) -> dict[str, ImageSet]:
    """Image files in one folder a class, or in such folders in `train`, `val` and `test`.

    `val` may be called `validation` or `valid`; upper and lower case are the same. Hidden folders
    and `__MACOSX` are not read.

    Args:
        folder: The folder.
        class_names: Names in the order of their index; None: the folders' names, sorted. With
            those of ImageNet, folders may be called by their WordNet ids.

    Returns:
        The splits by name; one called `""` where the folder is not divided.

    Raises:
        ValueError: For a folder without images or a class without them, or a class that is not
            among `class_names` or not in `train`, or for other folders beside `train`.
    """
    folders = _subfolders(folder)
    if not folders:
        raise ValueError(
            f"{folder} has no folders in it. Expected one folder of images a class, or train/ and "
            "test/ with those in them; for images in one flat folder write a .csv file with the "
            "columns file,label"
        )
    parts = _splits_of(folder, folders) or {"": folder}
    files = {split: _files_by_class(path) for split, path in sorted(parts.items())}
    # Where there is train/, it says what the classes are.
    first = files.get("train") or next(iter(files.values()))
    names = tuple(class_names or sorted(first))
    return {
        split: _from_classes(parts[split], by_class, names) for split, by_class in files.items()
    }


def _splits_of(folder, folders):
    """The folder of each split, or none where the folders are classes."""
    parts: dict[str, Path] = {}
    others = []
    for path in folders:
        split = SPLIT_OF.get(path.name.lower())
        if split is None:
            others.append(f"{path.name}/")
        elif split in parts:
            raise ValueError(
                f"{folder} has both {parts[split].name}/ and {path.name}/. Expected one of them"
            )
        else:
            parts[split] = path
    if not others:
        return parts
    # A lone test/ or valid/ among other folders may be a class.
    if "train" in parts or len(parts) > 1:
        more = f", … ({len(others)} in all)" if len(others) > 5 else ""
        raise ValueError(
            f"{folder} is divided into {', '.join(f'{path.name}/' for path in parts.values())}, "
            f"but beside them has {', '.join(others[:5])}{more}. Expected no folders but train/, "
            "val/ (or valid/, validation/) and test/: rename the others or move them away"
        )
    return {}


def _subfolders(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_ignored(path.name))


def _is_ignored(name):
    """Hidden, or what macOS adds to its .zip files."""
    return name.startswith(".") or name == "__MACOSX"


def _files_by_class(folder):
    files = {
        path.name: sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES
            and not any(map(_is_ignored, file.relative_to(path).parts))
        )
        for path in _subfolders(folder)
    }
    empty = [name for name, paths in files.items() if not paths]
    if empty or not files:
        raise ValueError(
            f"{folder / empty[0] if empty else folder} has no images in it. Expected one folder a "
            f"class with files that end in {', '.join(SUFFIXES)}"
        )
    return files


def _from_classes(folder, by_class, class_names):
    index = _index_of_names(folder, by_class, class_names)
    pairs = [(path, index[name]) for name, paths in by_class.items() for path in paths]
    paths, labels = zip(*pairs, strict=True)
    return ImageSet(paths, np.array(labels, "int32"), class_names)


def _index_of_names(place, names, class_names):
    """The index of each name, all of which must be class names that occur once.

    WordNet ids stand for the classes of ImageNet too.
    """
    if tuple(class_names) == imagenet_class_names() and set(names) <= set(imagenet_wordnet_ids()):
        return {name: number for number, name in enumerate(imagenet_wordnet_ids())}
    index = {name: number for number, name in enumerate(class_names)}
    for name in names:
        if name not in index:
            raise ValueError(
                f"{place} has the class {name!r}, which is none of {len(class_names)} classes. "
                f"{nearest_names(name, class_names)}"
            )
        if class_names.count(name) > 1:
            raise ValueError(
                f"{place} has the class {name!r}, and several classes are called so. Expected "
                "indices as labels, in a .csv file"
            )
    return index


def read_manifest(path: Path, class_names: Sequence[str] | None = None) -> dict[str, ImageSet]:
    """The images that a CSV file lists.

    Args:
        path: A file with the columns `file` (relative to its folder), `label` (an index from 0 or
            a name) and, if it is divided, `split` (train, val, valid, validation or test, in upper
            or lower case). Other columns are not read.
        class_names: Names in the order of their index; None: the labels that occur, sorted; for
            indices, all up to the largest.

    Returns:
        The splits by name; one called `""` where there is no column `split`.

    Raises:
        ValueError: For a file that is not such a manifest, or that lists an image with two labels
            or in two splits; the message names the line.
        FileNotFoundError: If files it lists are missing.
    """
    rows = _rows(path)
    _check_repetitions(path, rows)
    labels, names = _indices(path, [row["label"] for row in rows], class_names)
    files = tuple(path.parent / row["file"] for row in rows)
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} lists {len(missing)} of {len(files)} files that do not exist, the first is "
            f"{missing[0]}. Expected paths relative to {path.parent}"
        )
    image_set = ImageSet(files, labels, names)
    splits = np.array([row["split"] for row in rows])
    return {str(name): image_set.take(np.flatnonzero(splits == name)) for name in np.unique(splits)}


def _rows(path):
    """The rows of a manifest as dictionaries with `file`, `label` and `split`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            rows = [{**row, "line": reader.line_num} for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a CSV file in UTF-8: {error}") from error
    if not {"file", "label"} <= set(columns):
        raise ValueError(
            f"{path} has the columns {', '.join(columns) or '(none)'}. Expected file, label and, "
            "if you like, split"
        )
    if not rows:
        raise ValueError(f"{path} lists no images. Expected one a line under the column names")
    for row in rows:
        if not row["file"] or not row["label"]:
            raise ValueError(f"{path}, line {row['line']}: file or label is empty")
        if "split" in columns and str(row["split"]).lower() not in SPLIT_OF:
            raise ValueError(
                f"{path}, line {row['line']}: the split is {row['split']!r}. "
                f"Expected one of {', '.join(SPLIT_OF)}"
            )
        row["split"] = SPLIT_OF[row["split"].lower()] if "split" in columns else ""
    return rows


def _check_repetitions(path, rows):
    """A file has one label and is in one split; one split may list it twice, to weigh it more."""
    first_rows: dict[str, dict] = {}
    for row in rows:
        first = first_rows.setdefault(os.path.normpath(row["file"]), row)
        if first is row:
            continue
        place = f"{path}, line {row['line']}: {row['file']}"
        if row["label"] != first["label"]:
            raise ValueError(
                f"{place} has the label {row['label']!r}, and {first['label']!r} in line "
                f"{first['line']}. Expected one label for a file"
            )
        if row["split"] != first["split"]:
            raise ValueError(
                f"{place} is in {row['split']}, and in {first['split']} in line {first['line']}. "
                "Expected a file in one of them only: a test must not see what was trained on"
            )
        if not row["split"]:
            raise ValueError(
                f"{place} is in line {first['line']} already. Expected each file once, or a column "
                "split: a random division could put it into train and into test"
            )


def _indices(path, labels, class_names):
    """Labels as class indices, and the class names."""
    distinct = set(labels)
    numbers = {label for label in distinct if re.fullmatch(r"-?[0-9]+", label)}
    if not numbers or (class_names is not None and distinct <= set(class_names)):
        names = tuple(class_names or sorted(distinct))
        index = _index_of_names(path, distinct, names)
    elif numbers < distinct:
        raise ValueError(
            f"{path} has labels that are numbers, and the label {min(distinct - numbers)!r}. "
            "Expected indices from 0 only, or names only"
        )
    else:
        index = {label: int(label) for label in numbers}
        count = len(class_names) if class_names else MOST_CLASSES
        outside = [label for label in index.values() if not 0 <= label < count]
        if outside:
            raise ValueError(f"{path} has the label {outside[0]}. Expected 0 to {count - 1}")
        names = tuple(class_names or map(str, range(max(index.values()) + 1)))
    return np.array([index[label] for label in labels], "int32"), names


def check_images(*image_sets: ImageSet, progress: Callable[[int, int], None] | None = None) -> None:
    """Decodes every image on disk once, so that a damaged file is found before long work.

    Images in memory pass at once.

    Args:
        image_sets: The sets whose files are read; a file in several of them is read once.
        progress: Called as `progress(done, total)` after every few images.

    Raises:
        ValueError: If `decode_image` would refuse files; the message counts them and names the
            first 20 with the reason.

    Example:

    >>> images = np.zeros((4, 8, 8, 3), "uint8")
    >>> check_images(ImageSet(images, np.array([0, 1, 0, 1], "int32"), ("cat", "dog")))
    """
    on_disk = (image_set.images for image_set in image_sets if not image_set.in_memory)
    paths = list(dict.fromkeys(path for images in on_disk for path in images))
    tasks = [paths[i : i + FILES_PER_TASK] for i in range(0, len(paths), FILES_PER_TASK)]
    executor = ThreadPoolExecutor(min(os.cpu_count() or 1, 8), thread_name_prefix="check_images")
    refused: list[str] = []
    done = 0
    try:
        for task, reasons in zip(tasks, executor.map(_undecodable, tasks), strict=True):
            refused += [f"{path}: {why}" for path, why in zip(task, reasons, strict=True) if why]
            done += len(task)
            if progress:
                progress(done, len(paths))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    if refused:
        more = ["…"] if len(refused) > MOST_FILES_NAMED else []
        raise ValueError(
            f"{len(refused)} of {len(paths)} images cannot be decoded. Expected complete JPEG, PNG "
            "or other image files that Pillow reads; replace them or leave them out:\n"
            + "\n".join(refused[:MOST_FILES_NAMED] + more)
        )


def _undecodable(paths):
    return [undecodable(path) for path in paths]
