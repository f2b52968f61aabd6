"""Batches of images, each a pure function of its index, and the threads that make them ahead."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from PIL import Image

from keras_vit.data.augmentation import (
    Augmentation,
    crop_boxes,
    draw_crops,
    draw_erasing,
    draw_flips,
    draw_mixing,
    draw_operations,
)
from keras_vit.data.image_set import ImageSet
from keras_vit.data.images import decode_image, prepare_image
from keras_vit.layers import ImagePreprocessing
from keras_vit.layers.patches import as_pair

Batch = tuple[Any, np.ndarray]


class Batches(Protocol):
    """Anything that hands out batches by index."""

    def __getitem__(self, index: int) -> Batch: ...


class TrainingBatches:
    """The endless stream of training batches; each is a pure function of the seed and its index.

    Every epoch is a new random order of all images; epochs are joined without a gap, so a batch
    may hold the end of one and the beginning of the next. What augmentation draws is handed out
    with the images, for the layer `Augment` on the device. Images in memory are handed out at
    their own size; those on disk are decoded, cropped and mirrored here.

    Args:
        image_set: The images.
        batch_size: Images a batch.
        seed: Seed of order and augmentation.
        augmentation: The policy.
        micro_batch_size: Images that are mixed with each other, with one ratio; None: a batch.
        shard: Which part of each batch is handed out, from 0, and of how many: the part of one
            host of several. It is that part of each micro-batch. Nothing else is read; the draws
            and the partners in mixing are those of the whole batch.

    Raises:
        ValueError: If there are no images, `batch_size` is no multiple of `micro_batch_size`, or
            `micro_batch_size` no multiple of the number of parts.

    Example:

    >>> images = np.zeros((4, 8, 8, 3), "uint8")
    >>> image_set = ImageSet(images, np.array([0, 1, 0, 1], "int32"), ("cat", "dog"))
    >>> policy = Augmentation(16, mixup=0.2)
    >>> batches = TrainingBatches(image_set, batch_size=2, seed=0, augmentation=policy)
    >>> inputs, targets = batches[1000]
    >>> {name: array.shape for name, array in inputs.items()}
    {'images': (2, 8, 8, 3), 'boxes': (2, 4), 'partners': (2,), 'mix_ratios': (2,)}
    >>> targets.shape
    (2, 2)
    """

    def __init__(
        self,
        image_set: ImageSet,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        micro_batch_size: int | None = None,
        shard: tuple[int, int] = (0, 1),
    ):
        _check_batches(image_set, batch_size)
        self.micro_batch_size = micro_batch_size or batch_size
        if batch_size % self.micro_batch_size:
            raise ValueError(
                "`batch_size` must be a multiple of `micro_batch_size`. Received: batch_size="
                f"{batch_size}, micro_batch_size={micro_batch_size}"
            )
        part, parts = shard
        if self.micro_batch_size % parts or not 0 <= part < parts:
            raise ValueError(
                "`shard` must be one of the parts that the images of a micro-batch can be divided "
                f"into. Received: shard={shard}, with {self.micro_batch_size} images"
            )
        # Places in the batch.
        self._rows = (
            np.arange(batch_size)
            .reshape(-1, parts, self.micro_batch_size // parts)[:, part]
            .ravel()
        )
        self.image_set = image_set
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = augmentation

    @property
    def input_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape, without the batch, and dtype of each input."""
        size = self.image_set.image_size or self.augmentation.size
        drawn = self._drawn(0) | self._mixing(0)[0]
        if self.image_set.in_memory:
            drawn = {"boxes": np.zeros((self.batch_size, 4), np.float32)} | drawn
        return {"images": ((*size, 3), "uint8")} | {
            name: (array.shape[1:], str(array.dtype)) for name, array in drawn.items()
        }

    def __getitem__(self, step: int) -> Any:
        """What `Augment` takes, and the targets of a step.

        Returns:
            `(inputs, targets)`: arrays by name, the first axis of each the batch, of which
            `images` is uint8 `(batch, height, width, 3)`; and int32 class indices `(batch,)`, or
            where images are mixed float32 shares of the classes `(batch, classes)`.
        """
        if step < 0:
            raise IndexError(f"Steps count from 0. Received: {step}")
        indices = self.indices(step)
        mixing, own = self._mixing(step)
        targets = self.image_set.labels[indices]
        if mixing:
            targets = self._mixed(targets, mixing["partners"], own)
        drawn = {name: array[self._rows] for name, array in (self._drawn(step) | mixing).items()}
        return self._cropped(indices, step) | drawn, targets[self._rows]

    def indices(self, step: int) -> np.ndarray:
        """Which images make up the batch of a step."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(positions, len(self.image_set))
        repetitions = self.augmentation.repeated_augmentation
        return np.concatenate(
            [
                _epoch_order(len(self.image_set), self.seed, int(epoch))[
                    offsets[epochs == epoch] // repetitions
                ]
                for epoch in np.unique(epochs)
            ]
        )

    def _cropped(self, indices, step):
        """Images and crop boxes for the device, or cropped images from disk."""
        drawn = self.augmentation, self.seed, step, self.batch_size
        numbers, mirrored = (draw(*drawn)[self._rows] for draw in (draw_crops, draw_flips))
        images, indices = self.image_set.images, indices[self._rows]
        if isinstance(images, np.ndarray):
            boxes = crop_boxes(self.augmentation, numbers, images.shape[1:3])
            # From right to left: mirrored.
            boxes = np.where(mirrored[:, None], boxes[:, [0, 3, 2, 1]], boxes)
            return {"images": images[indices], "boxes": boxes.astype(np.float32)}
        cropped = np.empty((len(indices), *self.augmentation.size, 3), np.uint8)
        for position, index in enumerate(indices):
            image = decode_image(images[index])
            (box,) = crop_boxes(self.augmentation, numbers[position, None], image.shape[:2])
            crop = crop_image(image, box, self.augmentation)
            cropped[position] = crop[:, ::-1] if mirrored[position] else crop
        return {"images": cropped}

    def _drawn(self, step):
        drawn = self.augmentation, self.seed, step, self.batch_size
        return draw_operations(*drawn) | draw_erasing(*drawn)

    def _mixing(self, step):
        if not self.augmentation.mixes:
            return {}, None
        return draw_mixing(
            self.augmentation, self.seed, step, self.batch_size, self.micro_batch_size
        )

    def _mixed(self, labels, partners, own):
        rows = np.arange(self.batch_size)
        first = rows // self.micro_batch_size * self.micro_batch_size
        shares = np.zeros((self.batch_size, len(self.image_set.class_names)), np.float32)
        shares[rows, labels] = own
        # Of one class with its partner, an image is all of it.
        shares[rows, labels[first + partners]] += 1 - own
        return shares


def crop_image(image: np.ndarray, box: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    """A crop of an image on the host, as `Augment` makes it on the device, to rounding.

    Args:
        image: uint8 array `(height, width, 3)`.
        box: Top, left, bottom and right of the crop, in pixels of the image.
        augmentation: The policy; its size, interpolation and padding are read.

    Returns:
        A uint8 array `(*image_size, 3)`.
    """
    padding = augmentation.padding
    if padding:
        image = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width = image.shape[:2]
    # Pillow refuses a box that rounding has put a hair outside.
    top, left, bottom, right = np.clip(box + padding, 0, (height, width, height, width))
    resampling = Image.Resampling[augmentation.interpolation.upper()]
    new_height, new_width = augmentation.size
    resized = Image.fromarray(image).resize(
        (new_width, new_height), resampling, box=(left, top, right, bottom)
    )
    return np.asarray(resized)


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
        self.image_size = as_pair(image_size, "image_size")

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
