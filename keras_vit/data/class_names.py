"""Class names that are facts: those of ImageNet-1k."""

from functools import cache
from importlib.resources import files


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
