"""Class names: those of ImageNet-1k, and the index of each name among others."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

from keras_vit.layers.nearest import nearest_names


@cache
def imagenet_class_names() -> tuple[str, ...]:
    """The 1,000 class names of ImageNet-1k, in the order of a published model's outputs.

    Each is the first name of its WordNet synset. "crane" and "maillot" occur twice, so a name does
    not stand for one index.

    Returns:
        A tuple of 1,000 strings.

    Example:

    >>> imagenet_class_names()[:2]
    ('tench', 'goldfish')
    """
    return tuple(name for _, name in _imagenet_classes())


@cache
def imagenet_wordnet_ids() -> tuple[str, ...]:
    """The WordNet ids of the 1,000 classes, by which ImageNet's own folders are called.

    Returns:
        A tuple of 1,000 strings, in the order of `imagenet_class_names`.

    Example:

    >>> imagenet_wordnet_ids()[:2]
    ('n01440764', 'n01443537')
    """
    return tuple(wordnet_id for wordnet_id, _ in _imagenet_classes())


def _imagenet_classes():
    lines = files("keras_vit.data").joinpath("imagenet_classes.tsv").read_text("utf-8")
    return [line.split("\t") for line in lines.splitlines()]


def index_of_names(
    place: str | os.PathLike[str], names: Iterable[str], class_names: Sequence[str]
) -> dict[str, int]:
    """The index of each name, all of which must be class names that occur once.

    WordNet ids stand for the classes of ImageNet too.

    Args:
        place: Where the names come from, for the message.
        names: The names to find.
        class_names: Names in the order of their index.

    Returns:
        The index of each class name.

    Raises:
        ValueError: For a name that is no class name, or that several classes have.

    Example:

    >>> index_of_names("flowers", ["rose"], ["daisy", "rose"])
    {'daisy': 0, 'rose': 1}
    """
    wordnet_ids = imagenet_wordnet_ids()
    if tuple(class_names) == imagenet_class_names() and set(names) <= set(wordnet_ids):
        return {name: number for number, name in enumerate(wordnet_ids)}
    index = {name: number for number, name in enumerate(class_names)}
    counts = Counter(class_names)
    for name in names:
        if name not in index:
            raise ValueError(
                f"{place} has the class {name!r}, which is none of {len(class_names)} classes. "
                f"{nearest_names(name, class_names)}"
            )
        if counts[name] > 1:
            raise ValueError(
                f"{place} has the class {name!r}, and several classes are called so. Expected "
                "indices as labels, in a .csv file"
            )
    return index
