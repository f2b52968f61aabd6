"""Files that a data set names and that are not read: missing, outside its folder, damaged."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from keras_vit.data.image_set import ImageSet, LeftOut, files_of

MISSING = "there is no such file"


def refused_files(root: Path, files: Iterable[Path]) -> dict[Path, str]:
    """Files that are none or lie outside of a folder, and why; none of them is opened.

    A link to a file counts as that file, and the folder may be a link itself.

    Args:
        root: The folder of the data set.
        files: Paths that begin with it, or absolute ones.
    """
    place = _real_place(root)
    refused = {}
    for file in dict.fromkeys(files):
        reason = _refusal(file, place)
        if reason:
            refused[file] = reason
    return refused


def leads_outside(root: Path, path: Path) -> str | None:
    """Why a path that a data set names is not followed; None where it stays in the folder."""
    return _outside(path, _real_place(root))


def _real_place(root):
    """Function from a path to where it leads, links followed, and the root to be compared with."""
    folders: dict[str, str] = {}

    def real(path):
        # Most files share their folders with others: each is followed once.
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        if name in ("", "..") or os.path.islink(path):
            return os.path.realpath(path)
        return os.path.join(folders[folder], name)

    return real, os.path.realpath(root)


def _outside(path, place):
    real, root = place
    target = real(path)
    if target == root or target.startswith(os.path.join(root, "")):
        return None
    return f"it leads to {target}, outside of {root}"


def _refusal(file, place):
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    outside = _outside(file, place)
    if outside:
        return outside
    if os.path.isfile(file):
        return None
    if os.path.isdir(file):
        return "it is a folder, and links to folders are not followed"
    if os.path.exists(file):
        return "it is no regular file"
    return MISSING + _other_normal_form(file)


def _other_normal_form(file):
    """A word on a file whose name looks the same and has other bytes, as macOS may write it."""
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, str(file))
        if other != str(file) and os.path.isfile(other):
            return f", but one whose name looks the same in the normal form {form} of Unicode"
    return ""


def raise_refused(
    place: str | os.PathLike[str], refused: Mapping[Path, str], splits: Mapping[str, ImageSet]
) -> NoReturn:
    """Raises the error for files that `refused_files` found.

    Args:
        place: What lists the files, for the message.
        refused: Why each file is refused.
        splits: All that are listed.

    Raises:
        FileNotFoundError: If all of them are missing.
        ValueError: Else.
    """
    first, reason = next(iter(refused.items()))
    all_missing = all(MISSING in reason for reason in refused.values())
    message = (
        f"{place} lists {len(refused)} of {sum(map(len, splits.values()))} files that "
        f"{'do not exist' if all_missing else 'are missing or that lie outside of its folder'}, "
        f"the first is {printable(str(first))}: {printable(reason)}. Expected files within it: "
        "put a .csv file into the folder that all of its files are in, with paths relative to it, "
        "or leave these out with damaged_images='skip'"
    )
    raise FileNotFoundError(message) if all_missing else ValueError(message)


def printable(text: str) -> str:
    r"""A text with what cannot be printed written as in Python.

    >>> printable("a\x1b[2J\udce9 é")
    'a\\x1b[2J\\udce9 é'
    """
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def name_in(root: Path, file: Path) -> str:
    """What a `LeftOut` calls a file of the data set in a folder."""
    return printable(Path(os.path.relpath(file, root)).as_posix())


def leave_out(
    source: object, splits: Mapping[str, ImageSet], refused: Mapping[Path, str]
) -> dict[str, ImageSet]:
    """The splits without files that are refused.

    Args:
        source: What the data set is called, for the message.
        splits: The splits by name.
        refused: Why each file is refused.

    Raises:
        ValueError: If a split, or a class among the images to train on, loses all its images.
    """
    kept = {}
    for split, image_set in splits.items():
        if image_set.in_memory or not refused:
            kept[split] = image_set
            continue
        stays = np.array([file not in refused for file in image_set.images], bool)
        kept[split] = image_set.take(np.flatnonzero(stays))
        emptied = np.setdiff1d(image_set.labels, kept[split].labels)
        if len(emptied) and (split in ("", "train") or not stays.any()):
            lost = image_set.take(np.flatnonzero(~stays & (image_set.labels == emptied[0])))
            first = lost.images[0]
            raise ValueError(
                f"{source}: no {split + ' ' if split else ''}image of the class "
                f"{image_set.class_names[emptied[0]]!r} is left: {len(lost)} would be left out, "
                f"the first is {printable(str(first))}: {printable(refused[first])}. Expected one "
                "or more that can be read; mend them, or take the class out"
            )
    return kept


def again_left_out(
    root: Path,
    splits: Mapping[str, ImageSet],
    left_out: Sequence[LeftOut],
) -> dict[Path, str]:
    """The files that an earlier call left out, whatever has become of them since.

    Args:
        root: The folder of the data set.
        splits: The splits by name.
        left_out: What the earlier call left out.

    Returns:
        The reason of then for each of them that is still named by the data set.
    """
    reasons = {item.file: item.reason for item in left_out}
    names = {file: name_in(root, file) for file in files_of(splits.values())}
    return {file: reasons[name] for file, name in names.items() if name in reasons}
