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
    lines = files("keras_vit.data").joinpath("imagenet_classes.tsv").read_text("utf-8")
    return tuple(line.split("\t")[1] for line in lines.splitlines())
