"""Image folders and CSV manifests."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_vit.data.image_set import ImageSet
from keras_vit.layers.nearest import nearest_names

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# A manifest of indices says no more about their range; what lies above is taken for a mistake.
MOST_CLASSES = 100_000
SPLIT_OF = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}


def read_folder(folder: Path, class_names: Sequence[str] | None = None) -> dict[str, ImageSet]:
    """Image files in one folder a class, or those in `train`, `val` (or `validation`), `test`.

    Args:
        folder: The folder.
        class_names: Names in the order of their index; None: the folders' names, sorted.

    Returns:
        The splits by name; one called `""` where the folder is not divided.

    Raises:
        ValueError: For a folder without images or a class without them, or a class that is not
            among `class_names` or not in `train`.
    """
    folders = _subfolders(folder)
    if not folders:
        raise ValueError(
            f"{folder} has no folders in it. Expected one folder of images a class, or train/ and "
            "test/ with those in them; for images in one flat folder write a .csv file with the "
            "columns file,label"
        )
    parts = {"": folder}
    if all(path.name in SPLIT_OF for path in folders):
        if len({SPLIT_OF[path.name] for path in folders}) < len(folders):
            raise ValueError(f"{folder} has both val/ and validation/. Expected one of them")
        parts = {SPLIT_OF[path.name]: path for path in folders}
    files = {split: _files_by_class(path) for split, path in sorted(parts.items())}
    # Where there is train/, it says what the classes are.
    first = files.get("train") or next(iter(files.values()))
    names = tuple(class_names or sorted(first))
    return {
        split: _from_classes(parts[split], by_class, names) for split, by_class in files.items()
    }


def _subfolders(folder):
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _files_by_class(folder):
    files = {
        path.name: sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
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
    """The index of each name, all of which must be class names that occur once."""
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
            a name) and, if it is divided, `split` (train, val, validation or test). Other columns
            are not read.
        class_names: Names in the order of their index; None: the labels that occur, sorted; for
            indices, all up to the largest.

    Returns:
        The splits by name; one called `""` where there is no column `split`.

    Raises:
        ValueError: For a file that is not such a manifest; the message names the line.
        FileNotFoundError: If files it lists are missing.
    """
    rows = _rows(path)
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
        if "split" in columns and row["split"] not in SPLIT_OF:
            raise ValueError(
                f"{path}, line {row['line']}: the split is {row['split']!r}. "
                f"Expected one of {', '.join(SPLIT_OF)}"
            )
        row["split"] = SPLIT_OF[row["split"]] if "split" in columns else ""
    return rows


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
