"""Labelled images, in memory or on disk, and how they are divided."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# What folders and manifests call the splits, in lower case.
SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled images.

    Args:
        images: In memory: a uint8 array `(count, height, width, 3)`. On disk: a tuple of paths.
        labels: int32 array `(count,)` of indices into `class_names`.
        class_names: The name of each class.
        copy_of: From each file that is known to have the bytes of others to the first of them, and
            from that to itself: a random division keeps those of one class on one side.

    Raises:
        ValueError: If the parts do not fit each other, or a label is outside the range.

    Example:

    >>> images = np.zeros((4, 8, 8, 3), "uint8")
    >>> image_set = ImageSet(images, np.array([0, 1, 0, 1], "int32"), ("cat", "dog"))
    >>> len(image_set), image_set.in_memory, image_set.image_size
    (4, True, (8, 8))
    >>> image_set
    <ImageSet: 4 images of 2 classes, in memory>
    """

    images: np.ndarray | tuple[Path, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    copy_of: Mapping[Path, Path] = field(default_factory=dict)

    def __repr__(self):
        # Of a large set all paths would fill a notebook.
        place = "in memory" if self.in_memory else "on disk"
        return f"<ImageSet: {len(self)} images of {len(self.class_names)} classes, {place}>"

    def __post_init__(self):
        if self.labels.shape != (len(self.images),) or self.labels.dtype != np.int32:
            raise ValueError(
                f"`labels` must be int32, one for each of the {len(self.images)} images. "
                f"Received: {self.labels.dtype} of shape {self.labels.shape}"
            )
        if len(self.labels) and not (
            self.labels.min() >= 0 and self.labels.max() < len(self.class_names)
        ):
            wrong = (self.labels < 0) | (self.labels >= len(self.class_names))
            raise ValueError(
                f"Labels must be in 0..{len(self.class_names) - 1}, as there are "
                f"{len(self.class_names)} class names. Received: {self.labels[wrong][0]} for image "
                f"{np.flatnonzero(wrong)[0]}"
            )
        if self.in_memory and (
            self.images.dtype != np.uint8
            or self.images.ndim != 4
            or self.images.shape[3] != 3
            or 0 in self.images.shape[1:]
        ):
            raise ValueError(
                "`images` in memory must be uint8 of shape (count, height, width, 3). "
                f"Received: {self.images.dtype} of shape {self.images.shape}"
            )

    @property
    def in_memory(self) -> bool:
        """Whether the images are an array, all of one size."""
        return isinstance(self.images, np.ndarray)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """`(height, width)` in pixels of images in memory; None for those on disk."""
        if isinstance(self.images, np.ndarray):
            return self.images.shape[1], self.images.shape[2]
        return None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """The images at the given indices, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        images: np.ndarray | tuple[Path, ...]
        if isinstance(self.images, np.ndarray):
            images = self.images[indices]
        else:
            images = tuple(self.images[index] for index in indices)
        return ImageSet(images, self.labels[indices], self.class_names, self.copy_of)


@dataclass(frozen=True)
class LeftOut:
    """An image that a data set names and that was left out of it.

    Attributes:
        file: Its path relative to the folder of the data set, with "/"; characters that cannot be
            printed are written as in Python.
        reason: Why it was left out.
    """

    file: str
    reason: str


@dataclass(frozen=True, eq=False)
class DataSource:
    """A data set with its splits; at least one of them is there.

    Attributes:
        name: What it is called.
        version: Its version; empty for folders and manifests.
        digest: sha256 of labels and pixels, or of labels, file names and file sizes, split by
            split.
        train: Images to train on.
        validation: Images that the data set sets apart for choices.
        test: Images for the final figure.
        left_out: Images that `load_data` was told to leave out, and why.
    """

    name: str
    version: str
    digest: str
    train: ImageSet | None
    validation: ImageSet | None
    test: ImageSet | None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names, the same for all splits."""
        splits = (self.train, self.validation, self.test)
        return next(split.class_names for split in splits if split is not None)


def files_of(image_sets: Iterable[ImageSet]) -> list[Path]:
    """The files of those sets that are on disk, each once, in their order."""
    on_disk = (image_set.images for image_set in image_sets if not image_set.in_memory)
    return list(dict.fromkeys(path for images in on_disk for path in images))


def subset(image_set: ImageSet, count: int, *, seed: int) -> ImageSet:
    """A stratified random subset, the same for the same seed, in the set's own order.

    Args:
        image_set: The images.
        count: Number of images to take, from 1 to all.
        seed: Seed of the choice.

    Returns:
        An `ImageSet` of exactly `count` images; each class has its share of them, rounded up or
        down.

    Raises:
        ValueError: If there are not that many images.
    """
    if not 1 <= count <= len(image_set):
        raise ValueError(
            f"`count` must be in 1..{len(image_set)}, the number of images. Received: {count}"
        )
    return image_set.take(_stratified_indices(image_set.labels, count, seed))


def split_images(image_set: ImageSet, fraction: float, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """Divides a set at random, each class by the same fraction, and keeps an image of each.

    A file that a set has several times, to weigh it more, is one image and stays on one side, and
    so do files of one class that are copies of each other by `copy_of`.

    Args:
        image_set: The images.
        fraction: Share of the images that is held out, in (0, 1); of small classes it may be less.
        seed: Seed of the choice; the same seed gives the same division.

    Returns:
        `(kept, held_out)`, which share no image and are all images together; each keeps the
        order of the set.

    Raises:
        ValueError: If one of the two would be empty; nothing is held out where each class has one
            image.

    Example:

    >>> images = np.zeros((10, 8, 8, 3), "uint8")
    >>> image_set = ImageSet(images, np.arange(10, dtype="int32") % 2, ("cat", "dog"))
    >>> kept, held_out = split_images(image_set, 0.2, seed=0)
    >>> len(kept), sorted(held_out.labels.tolist())
    (8, [0, 1])
    """
    numbers = _image_numbers(image_set)
    labels = _labels_of_different(image_set, numbers)
    count = round(len(labels) * fraction) if 0 < fraction < 1 else 0
    if not 0 < count < len(labels):
        raise ValueError(
            "A fraction in (0, 1) that leaves images on both sides is needed to divide "
            f"{len(labels)} images. Received: fraction={fraction}"
        )
    chosen = _stratified_indices(labels, count, seed, keep_one=True)
    if not len(chosen):
        different = " different" if len(labels) < len(image_set) else ""
        raise ValueError(
            f"The {len(labels)}{different} images are one of each class, which is kept. Expected a "
            f"class with two{different} images or more to divide"
        )
    is_held_out = np.isin(numbers, chosen)
    kept, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    return image_set.take(kept), image_set.take(held_out)


def different_labels(image_set: ImageSet) -> np.ndarray:
    """The label of each different image: a file, and its copies, that a set has count once.

    Example:

    >>> files = (Path("a.png"), Path("b.png"), Path("a.png"))
    >>> different_labels(ImageSet(files, np.array([1, 0, 1], "int32"), ("cat", "dog"))).tolist()
    [1, 0]
    """
    return _labels_of_different(image_set, _image_numbers(image_set))


def _image_numbers(image_set):
    """A number for each image, counted from 0 as they come, the same for the same file.

    Copies in several classes have one for each: no class may lose its only image to another.
    """
    if image_set.in_memory:
        return np.arange(len(image_set))
    numbers: dict[object, int] = {}
    copy_of = image_set.copy_of
    files = (
        (copy_of[file], label) if file in copy_of else os.path.normpath(file)
        for file, label in zip(image_set.images, image_set.labels.tolist(), strict=True)
    )
    return np.array([numbers.setdefault(file, len(numbers)) for file in files], "int64")


def _labels_of_different(image_set, numbers):
    return image_set.labels[np.unique(numbers, return_index=True)[1]]


def join(first: ImageSet, second: ImageSet) -> ImageSet:
    """Two sets of the same classes as one, the first one's images first.

    Args:
        first: Images in memory or on disk.
        second: Others of the same kind; in memory of the same size.

    Raises:
        ValueError: If classes, kind or image size differ.

    Example:

    >>> images = np.zeros((3, 8, 8, 3), "uint8")
    >>> image_set = ImageSet(images, np.array([0, 1, 1], "int32"), ("cat", "dog"))
    >>> len(join(image_set, image_set.take([2])))
    4
    """
    if first.class_names != second.class_names:
        raise ValueError(
            "Only sets of the same classes can be joined. Received: "
            f"{', '.join(first.class_names[:5])}… ({len(first.class_names)}) and "
            f"{', '.join(second.class_names[:5])}… ({len(second.class_names)})"
        )
    if first.image_size != second.image_size:
        raise ValueError(
            "Only images on disk, or arrays of one image size, can be joined. Received: "
            f"{first.image_size or 'files'} and {second.image_size or 'files'}"
        )
    images: np.ndarray | tuple[Path, ...]
    if isinstance(first.images, np.ndarray) and isinstance(second.images, np.ndarray):
        images = np.concatenate([first.images, second.images])
    else:
        images = (*first.images, *second.images)
    labels = np.concatenate([first.labels, second.labels])
    return ImageSet(images, labels, first.class_names, {**second.copy_of, **first.copy_of})


def _stratified_indices(labels, count, seed, keep_one=False):
    """`count` sorted indices; classes get their shares by the method of largest remainders.

    With `keep_one` no class gets all its images, so that there may be fewer.
    """
    generator = np.random.default_rng(seed)
    sizes = np.bincount(labels)
    quotas, remainders = np.divmod(count * sizes, len(labels))
    # In random order, so that equal remainders do not favour the first classes.
    order = generator.permutation(len(sizes))
    order = order[np.argsort(-remainders[order], kind="stable")]
    if keep_one:
        order = order[quotas[order] + 1 < sizes[order]]
    quotas[order[: count - quotas.sum()]] += 1
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in enumerate(quotas)
    ]
    return np.sort(np.concatenate(chosen))
