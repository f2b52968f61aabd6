"""What may be wrong with labelled images that can be read: classes, and equal pictures."""

from __future__ import annotations

import difflib
import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from keras_vit.data.class_names import imagenet_class_names, imagenet_wordnet_ids
from keras_vit.data.image_set import DataSource, ImageSet, files_of

MOST_NAMED = 5
# Nobody renames more folders than this; to look for them takes the product of the two counts.
MOST_RENAMED = 50
# Comparing more files than this would take longer than reading the list of them.
MOST_FILES_COMPARED = 100_000
_BLOCK_BYTES = 1024
# What equal pictures in two splits do; of both the first split's accuracy says too much.
_LEAKS = {
    ("test", "train"): "The test accuracy will be too high",
    ("test", "validation"): (
        "The test accuracy will be too high where validation images are trained on: with "
        "own_validation='train', and in a sweep's final run"
    ),
    ("validation", "train"): (
        "The validation accuracy, by which early_stopping, keep='best' and a sweep choose, will be "
        "too high"
    ),
}
_ADJECTIVES = {"train": "training", "validation": "validation", "test": "test"}
Item = TypeVar("Item")


def check_class_names(
    source: DataSource, known_names: Sequence[str], where: str | os.PathLike[str]
) -> None:
    """Raises unless a data set has the classes of a model, in the order of the model.

    A class folder that was renamed changes the sorted order, and with it what an index means.
    The WordNet ids of ImageNet's classes stand for their names.

    Args:
        source: The data set.
        known_names: The class names of the model, in the order of its outputs.
        where: Where they come from, as `runs/pets/class_names.txt`, for the message.

    Raises:
        ValueError: If the classes differ; the message names those that are new, those that are
            gone, and which of them look like the old and new name of one class.

    Example:

    >>> images = np.zeros((2, 8, 8, 3), "uint8")
    >>> flowers = ImageSet(images, np.array([0, 1], "int32"), ("rosse", "tulip"))
    >>> source = DataSource("flowers", "", "", flowers, None, None)
    >>> check_class_names(source, ("rosse", "tulip"), "class_names.txt")
    >>> check_class_names(source, ("rose", "tulip"), "class_names.txt")
    Traceback (most recent call last):
      ...
    ValueError: flowers has other classes than class_names.txt: 'rosse' is new and 'rose' is gone. \
Did you rename it? Expected the same names in the same order: name it back, or train a new model
    """
    found, known = source.class_names, tuple(known_names)
    if found == known or (found == imagenet_wordnet_ids() and known == imagenet_class_names()):
        return
    raise ValueError(
        f"{source.name} has other classes than {where}: {_differences(found, known)} Expected the "
        "same names in the same order: name it back, or train a new model"
    )


def _differences(found, known):
    new = [name for name in found if name not in set(known)]
    gone = [name for name in known if name not in set(found)]
    if not new and not gone:
        if len(found) != len(known):
            return f"{len(found)} names with repetitions, and {len(known)} there."
        index = next(i for i, pair in enumerate(zip(found, known, strict=True)) if len({*pair}) > 1)
        return f"class {index} is {found[index]!r}, and {known[index]!r} there."
    renamed = _renamed(new, gone)
    if renamed:
        pairs = [f"{name!r} is new and {old!r} is gone" for name, old in renamed.items()]
        more = f", … ({len(pairs)} in all)" if len(pairs) > MOST_NAMED else ""
        rest = len(new) + len(gone) - 2 * len(pairs)
        others = f", and {rest} others are new or gone" if rest else ""
        question = "Did you rename it?" if len(pairs) == 1 else "Did you rename them?"
        return f"{', '.join(pairs[:MOST_NAMED])}{more}{others}. {question}"
    parts = [f"{_listed(names)} {verb}" for names, verb in ((new, "new"), (gone, "gone")) if names]
    return f"{len(found)} instead of {len(known)}; " + "; ".join(parts) + "."


def _renamed(new, gone):
    """From each new name to the old one that it may have had."""
    if len(new) == len(gone) == 1:
        return {new[0]: gone[0]}
    pairs: dict[str, str] = {}
    if min(len(new), len(gone)) > MOST_RENAMED:
        return pairs
    for name in new:
        left = [old for old in gone if old not in pairs.values()]
        near = difflib.get_close_matches(name, left, n=1)
        if near:
            pairs[name] = near[0]
    return pairs


def _listed(names):
    more = f", … ({len(names)})" if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more


def warn_of_missing_classes(
    source: object,
    splits: dict[str, ImageSet],
    stacklevel: int,
    advice: str = "give names as labels, or indices without gaps",
) -> None:
    """One warning of the classes that no training or no test image has."""
    train, test = splits["train"], splits.get("test", splits["train"])
    names, classes = train.class_names, len(train.class_names)
    parts = []
    untrained = sorted(classes_without(train))
    if untrained:
        listed = _listed([names[index] for index in untrained])
        parts.append(f"{len(untrained)} of {classes} classes have no image to train on: {listed}")
        if _count_from_1(splits.values()):
            parts.append(
                "the labels seem to count from 1. Expected indices from 0: subtract 1 of each, or "
                "write names"
            )
        if len(train) < classes:
            parts.append(
                f"{len(train)} training images are fewer than the {classes} classes. Expected one "
                f"or more of each: {advice}"
            )
        tested = int(np.isin(test.labels, untrained).sum())
        if tested:
            parts.append(
                f"{tested} of {len(test)} test images are of these classes and will count as wrong"
            )
    untested = sorted(classes_without(test))
    if untested and test is not train:
        listed = _listed([names[index] for index in untested])
        parts.append(
            f"{len(untested)} of {classes} classes have no test image, so their accuracy stays "
            f"unknown: {listed}"
        )
    if parts:
        warnings.warn(f"{source}: " + "; ".join(parts), stacklevel=stacklevel)


def _count_from_1(image_sets):
    """Whether classes without names have all indices but the first."""
    names = next(iter(image_sets)).class_names
    labels = {label for image_set in image_sets for label in np.unique(image_set.labels).tolist()}
    return names == tuple(map(str, range(len(names)))) and labels == set(range(1, len(names)))


def classes_without(image_set: ImageSet) -> set[int]:
    """The indices of the classes that a set has no image of.

    >>> images = np.zeros((2, 8, 8, 3), "uint8")
    >>> classes_without(ImageSet(images, np.array([0, 2], "int32"), ("cat", "dog", "elk")))
    {1}
    """
    return set(range(len(image_set.class_names))) - set(np.unique(image_set.labels).tolist())


def warn_of_equal_pictures(source: object, splits: dict[str, ImageSet], stacklevel: int) -> None:
    """A warning of pictures that are in two splits, for each two, and one of those in two classes.

    Arrays are equal if their pixels are, files if their `copy_of` says so.
    """
    places = [
        (split, image_set.class_names[label], index)
        for split, image_set in splits.items()
        for index, label in enumerate(image_set.labels)
    ]
    groups = [[places[number] for number in group] for group in _equal_pictures(splits.values())]

    def name(place):
        split, label, index = place
        image_set = splits[split]
        what = f"{split} image {index}" if image_set.in_memory else str(image_set.images[index])
        return f"{what} ({label})"

    for (judged, seen), consequence in _LEAKS.items():
        leaks = [group for group in groups if {judged, seen} <= {split for split, _, _ in group}]
        if leaks:
            count = sum(split == judged for group in leaks for split, _, _ in group)
            first, other = (
                next(place for place in leaks[0] if place[0] == split) for split in (judged, seen)
            )
            warnings.warn(
                f"{source}: {judged} images that are {_ADJECTIVES[seen]} images too: {count} of "
                f"{len(splits[judged])}, the first is {name(first)} = {name(other)}. "
                f"{consequence}: take them out of one of the two",
                stacklevel=stacklevel,
            )
    twofold = [group for group in groups if len({label for _, label, _ in group}) > 1]
    if twofold:
        first = twofold[0][0]
        other = next(place for place in twofold[0] if place[1] != first[1])
        warnings.warn(
            f"{source}: pictures that are in two classes or more: {len(twofold)}, the first is "
            f"{name(first)} = {name(other)}. Expected one class each: take out the wrong ones",
            stacklevel=stacklevel,
        )


def _equal_pictures(image_sets: Iterable[ImageSet]) -> list[list[int]]:
    """Groups of two or more equal images, by their numbers when all sets are put in a row."""
    keys: list[Any] = []
    for image_set in image_sets:
        if isinstance(image_set.images, np.ndarray):
            # 64 bits: among a million different images two agree by chance once in 37 million sets.
            keys += [hash(image.tobytes()) for image in image_set.images]
        else:
            keys += [image_set.copy_of.get(path, path) for path in image_set.images]
    return _groups(range(len(keys)), keys.__getitem__)


def equal_files(image_sets: Iterable[ImageSet]) -> dict[Path, Path]:
    """What `copy_of` says of all sets: the first file with the same bytes, of those with others.

    Most files are told apart by their size, and nearly all others by a block of bytes. More than
    100,000 files are not compared.
    """
    paths = files_of(image_sets)
    if len(paths) > MOST_FILES_COMPARED:
        return {}
    groups = [paths]
    for key in (_size, _middle, _digest):
        groups = [part for group in groups for part in _groups(group, key)]
    return {path: group[0] for group in groups for path in group}


def _groups(items: Iterable[Item], key: Callable[[Item], Any]) -> list[list[Item]]:
    by_key = defaultdict(list)
    for item in items:
        by_key[key(item)].append(item)
    return [group for group in by_key.values() if len(group) > 1]


def _size(path):
    return path.stat().st_size


def _middle(path):
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size // 2 - _BLOCK_BYTES // 2))
        return file.read(_BLOCK_BYTES)


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
