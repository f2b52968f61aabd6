"""Batches of images, each a pure function of its index, and the threads that make them ahead."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Protocol

import numpy as np

from keras_vit.data.image_set import ImageSet
from keras_vit.data.images import covering_size, decode_image, prepare_image, resized_crop
from keras_vit.layers import ImagePreprocessing

Batch = tuple[np.ndarray, np.ndarray]


class Batches(Protocol):
    """Anything that hands out batches by index."""

    def __getitem__(self, index: int) -> Batch: ...


def size_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """`(height, width)` from itself or from one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"Image sizes must be at least 1. Received: {size}")
    return int(height), int(width)


def resize_pair(
    resize_size: int | tuple[int, int] | None, image_size: tuple[int, int]
) -> tuple[int, int]:
    """The size that random crops are taken from: 8/7 of the crop unless it is said (256 to 224).

    Example:

    >>> resize_pair(None, (224, 224))
    (256, 256)
    """
    if resize_size is None:
        return round(image_size[0] * 8 / 7), round(image_size[1] * 8 / 7)
    height, width = size_pair(resize_size)
    if height < image_size[0] or width < image_size[1]:
        raise ValueError(
            f"`resize_size` must not be below `image_size`, as crops are taken from it. Received: "
            f"resize_size={resize_size}, image_size={image_size}"
        )
    return height, width


class TrainingBatches:
    """The endless stream of training batches; each is a pure function of the seed and its index.

    Every epoch is a new random order of all images; epochs are joined without a gap, so a batch
    may hold the end of one and the beginning of the next. Images in memory are handed out at
    their own size, for augmentation on the device. Images on disk are decoded, resized to cover
    `resize_size`, cropped at random to `image_size` and mirrored at random.

    Args:
        image_set: The images.
        batch_size: Images a batch.
        seed: Seed of order and augmentation.
        image_size: Side, or `(height, width)`, of the images on disk as they are handed out.
        resize_size: Side, or `(height, width)`, that they are resized to cover before the crop;
            None: 8/7 of `image_size`.
        interpolation: `"nearest"`, `"bilinear"` or `"bicubic"`, with antialias.
        horizontal_flip: Whether every second image, at random, is mirrored.

    Example:

    >>> images = np.zeros((4, 8, 8, 3), "uint8")
    >>> image_set = ImageSet(images, np.array([0, 1, 0, 1], "int32"), ("cat", "dog"))
    >>> batches = TrainingBatches(image_set, batch_size=3, seed=0, image_size=8)
    >>> batches[1000][0].shape
    (3, 8, 8, 3)
    """

    def __init__(
        self,
        image_set: ImageSet,
        *,
        batch_size: int,
        seed: int,
        image_size: int | tuple[int, int],
        resize_size: int | tuple[int, int] | None = None,
        interpolation: str = "bilinear",
        horizontal_flip: bool = True,
    ):
        _check_batches(image_set, batch_size)
        self.image_set = image_set
        self.batch_size = batch_size
        self.seed = seed
        self.image_size = size_pair(image_size)
        self.resize_size = resize_pair(resize_size, self.image_size)
        self.interpolation = interpolation
        self.horizontal_flip = horizontal_flip

    def __getitem__(self, step: int) -> Batch:
        """uint8 images `(batch, height, width, 3)` and int32 labels `(batch,)` of a step."""
        if step < 0:
            raise IndexError(f"Steps count from 0. Received: {step}")
        indices = self._indices(step)
        labels = self.image_set.labels[indices]
        if self.image_set.in_memory:
            return self.image_set.images[indices], labels
        images = [
            # One more than the index: (seed, step, 0) would seed like (seed, step), the epochs.
            self._augmented(path_index, np.random.default_rng((self.seed, step, position + 1)))
            for position, path_index in enumerate(indices)
        ]
        return np.stack(images), labels

    def _indices(self, step):
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(positions, len(self.image_set))
        return np.concatenate(
            [
                _epoch_order(len(self.image_set), self.seed, int(epoch))[offsets[epochs == epoch]]
                for epoch in np.unique(epochs)
            ]
        )

    def _augmented(self, index, generator):
        image = decode_image(self.image_set.images[index])
        resized = covering_size(*image.shape[:2], self.resize_size)
        corner = tuple(
            int(generator.integers(larger - smaller + 1))
            for larger, smaller in zip(resized, self.image_size, strict=True)
        )
        crop = resized_crop(image, resized, corner, self.image_size, self.interpolation)
        if self.horizontal_flip and generator.integers(2):
            crop = crop[:, ::-1]
        return np.rint(crop).astype(np.uint8)


@lru_cache(maxsize=8)
def _epoch_order(count, seed, epoch):
    return np.random.default_rng((seed, epoch)).permutation(count)


class EvaluationBatches:
    """All images of a set in order, in batches; the last may be smaller.

    Images in memory are handed out as uint8 at their own size, for resizing on the device; images
    on disk as float32 at the model's size, prepared by `prepare_image`.

    Args:
        image_set: The images.
        batch_size: Images a batch.
        preprocessing: The model's `preprocessing` layer, whose evaluation policy is followed.
        image_size: Side, or `(height, width)`, of the model, in pixels.
    """

    def __init__(
        self,
        image_set: ImageSet,
        *,
        batch_size: int,
        preprocessing: ImagePreprocessing,
        image_size: int | tuple[int, int],
    ):
        _check_batches(image_set, batch_size)
        self.image_set = image_set
        self.batch_size = batch_size
        self.preprocessing = preprocessing
        self.image_size = size_pair(image_size)

    def __len__(self) -> int:
        return math.ceil(len(self.image_set) / self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        """Images `(batch, height, width, 3)` and int32 labels `(batch,)`."""
        if not 0 <= index < len(self):
            raise IndexError(f"There are batches 0..{len(self) - 1}. Received: {index}")
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        images, labels = self.image_set.images[part], self.image_set.labels[part]
        if isinstance(images, np.ndarray):
            return images, labels
        prepared = [
            prepare_image(decode_image(path), self.image_size, self.preprocessing)
            for path in images
        ]
        return np.stack(prepared), labels


def _check_batches(image_set, batch_size):
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1. Received: {batch_size}")
    if not len(image_set):
        raise ValueError("There are no images to make batches of")


def prefetch(
    batches: Batches, start: int, stop: int, *, workers: int | None = None, ahead: int = 4
) -> Iterator[Batch]:
    """Hands out batches in order while threads make the next ones.

    Args:
        batches: Batches by index.
        start: Index of the first batch.
        stop: Index after the last.
        workers: Number of threads, each of which makes whole batches; None: one a core, at most
            8.
        ahead: Batches that are made or kept ahead, but at least one a thread.

    Yields:
        `batches[start]`, …, `batches[stop - 1]`. An error in a thread is raised at the turn of its
        batch. The threads end when the generator is closed or exhausted.

    Example:

    >>> [batch for batch in prefetch("abcde", 1, 4)]
    ['b', 'c', 'd']
    """
    workers = workers or min(os.cpu_count() or 1, 8)
    executor = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    pending: deque = deque()
    try:
        for index in range(start, stop):
            pending.append(executor.submit(batches.__getitem__, index))
            if len(pending) > max(ahead, workers):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
