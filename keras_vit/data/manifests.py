"""CSV manifests: which images there are, their labels and their splits."""

import csv
import math
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_vit.data.class_names import index_of_names
from keras_vit.data.image_set import SPLIT_OF, ImageSet
from keras_vit.data.refused_files import refused_files

# A manifest of indices says no more about their range; what lies above is taken for a mistake.
MOST_CLASSES = 100_000


def read_manifest(
    path: Path, class_names: Sequence[str] | None = None, *, by_index: bool = False
) -> tuple[dict[str, ImageSet], dict[Path, str]]:
    """The images that a CSV file lists.

    Args:
        path: A file in UTF-8 with the columns `file` (relative to its folder), `label` (an index
            from 0 or a name) and, if it is divided, `split` (train, training, val, valid,
            validation, test or testing, in upper or lower case). Other columns are not read.
        class_names: Names in the order of their index; None: the labels that occur, sorted; for
            indices, all up to the largest.
        by_index: Whether the labels are indices even where all of them are names of classes too.

    Returns:
        The splits by name, one called `""` where there is no column `split`; and why each of
        their files that is missing, or lies outside the manifest's folder, is refused.

    Raises:
        ValueError: For a file that is not such a manifest, or that lists an image with two labels
            or in two splits; the message names the line.
    """
    rows = _rows(path)
    _check_repetitions(path, rows)
    labels, names = _indices(path, rows, class_names, by_index)
    files = tuple(path.parent / row["file"] for row in rows)
    lines = {file: row["line"] for file, row in reversed([*zip(files, rows, strict=True)])}
    refused = {
        file: f"line {lines[file]}: {reason}"
        for file, reason in refused_files(path.parent, files).items()
    }
    image_set = ImageSet(files, labels, names)
    splits = np.array([row["split"] for row in rows])
    by_name = {
        str(name): image_set.take(np.flatnonzero(splits == name)) for name in np.unique(splits)
    }
    return by_name, refused


def _rows(path):
    """The rows of a manifest as dictionaries with `file`, `label`, `split` and `line`."""
    # A row may begin some lines before the one that the reader is in when it fails.
    began = 1
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = next(reader, [])
            _check_columns(path, columns)
            for cells in reader:
                began = reader.line_num + 1
                if cells:
                    rows.append(_row(path, columns, cells, reader.line_num))
    except csv.Error as error:
        raise ValueError(
            f"{path} cannot be read as a CSV file in UTF-8: the row that begins in line {began}: "
            f"{error}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} cannot be read as a CSV file in UTF-8: line {_undecodable_line(path)}: "
            f"{error.reason} (byte 0x{error.object[error.start]:02x}). Save it again as UTF-8"
        ) from error
    if not rows:
        raise ValueError(f"{path} lists no images. Expected one a line under the column names")
    return rows


def _undecodable_line(path):
    """The number of the first line that is not UTF-8; a decoder only knows the place in a block."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return "(it was changed meanwhile)"


def _check_columns(path, columns):
    if any("\0" in column for column in columns):
        raise ValueError(f"{path}, line 1: there are NUL bytes. Expected text in UTF-8, not UTF-16")
    if not {"file", "label"} <= set(columns):
        # With quotes, as a blank beside a name cannot be seen.
        raise ValueError(
            f"{path} has the columns {', '.join(map(repr, columns)) or '(none)'}. Expected 'file', "
            "'label' and, if you like, 'split', written like this and without blanks beside them"
        )
    for name in ("file", "label", "split"):
        if columns.count(name) > 1:
            raise ValueError(f"{path} has the column {name} {columns.count(name)} times")


def _row(path, columns, cells, line):
    place = f"{path}, line {line}"
    if len(cells) > len(columns):
        raise ValueError(
            f"{place}: {len(cells)} cells under {len(columns)} columns. Expected one each; a name "
            'with a comma in it stands in "quotes"'
        )
    row = dict(zip(columns, cells, strict=False))
    file, label, split = row.get("file"), row.get("label"), row.get("split")
    if not file or not label:
        raise ValueError(f"{place}: file or label is empty")
    if "\0" in file or "\0" in label:
        raise ValueError(f"{place}: there is a NUL byte in {file!r} or {label!r}")
    if "split" in columns and str(split).lower() not in SPLIT_OF:
        raise ValueError(f"{place}: the split is {split!r}. Expected one of {', '.join(SPLIT_OF)}")
    return {
        "file": file,
        "label": label,
        "split": SPLIT_OF[split.lower()] if "split" in columns else "",
        "line": line,
    }


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


def _indices(path, rows, class_names, by_index):
    """Labels as class indices, and the class names."""
    labels = [row["label"] for row in rows]
    lines = {row["label"]: row["line"] for row in reversed(rows)}
    numbers = {label for label in lines if re.fullmatch(r"-?[0-9]+", label)}
    if class_names is not None and not by_index and lines.keys() <= set(class_names):
        index, names = index_of_names(path, lines, tuple(class_names)), tuple(class_names)
        _warn_of_two_readings(path, lines, index)
    elif not numbers:
        _check_names(path, lines)
        names = tuple(class_names or sorted(lines))
        index = index_of_names(path, lines, names)
    elif numbers < lines.keys():
        other = next(label for label in lines if label not in numbers)
        raise ValueError(
            f"{path} has labels that are numbers, and the label {other!r} in line {lines[other]}. "
            "Expected indices from 0 only, or names only"
        )
    else:
        count = len(class_names) if class_names else MOST_CLASSES
        # Python does not read integers of any length.
        index = {label: int(label) if len(label) < 100 else math.inf for label in numbers}
        for label, number in index.items():
            if not 0 <= number < count:
                shown = label if len(label) < 100 else f"{label[:20]}… ({len(label)} digits)"
                counted = (min(index.values()), max(index.values())) == (1, count)
                hint = "; they seem to count from 1: subtract 1 of each label" if counted else ""
                raise ValueError(
                    f"{path}, line {lines[label]}: there is the label {shown}. Expected 0 to "
                    f"{count - 1}{hint}"
                )
        names = tuple(class_names or map(str, range(max(index.values()) + 1)))
    return np.array([index[label] for label in labels], "int32"), names


def _warn_of_two_readings(path, labels, index):
    """Says that labels which are names of classes could also be the indices of others."""
    numbers = {label: int(label) for label in labels if re.fullmatch(r"[0-9]{1,9}", label)}
    if len(numbers) < len(labels) or max(numbers.values()) >= len(index):
        return
    other = min((label for label in numbers if numbers[label] != index[label]), default=None)
    if other is not None:
        warnings.warn(
            f"{path}: the labels are numbers, and are read as names of classes: {other} is the "
            f"class called {other!r}, which has the index {index[other]}. Where indices are meant, "
            "write the names instead",
            stacklevel=6,
        )


def _check_names(path, lines):
    """Raises a ValueError for labels that are hardly meant to be names."""
    for label, line in lines.items():
        if label != label.strip():
            raise ValueError(
                f"{path}, line {line}: the label {label!r} has blanks around it. Expected "
                f"{label.strip()!r}; take them out"
            )
        if _is_number(label):
            raise ValueError(
                f"{path}, line {line}: the label {label!r} is neither a name nor an index. "
                "Expected indices as 0, 1, 2, …, or names that no program takes for a number"
            )


def _is_number(label):
    """Whether it is a number in a way that is no index, as 1.0, 1e3 or nan."""
    try:
        float(label)
    except ValueError:
        return False
    return True
