"""Accuracy of a model on a set of images, with its interval."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_vit.data import EvaluationBatches, ImageSet, ResizeAndCrop, prefetch
from keras_vit.finetune.distribution import current_distribution
from keras_vit.layers.one_pass import in_this_process
from keras_vit.models import without_unread_tokens
from keras_vit.models.inference import divided_among_threads

# Two-sided 95 % quantile of the normal distribution.
QUANTILE_95 = 1.959963984540054


@dataclass(frozen=True)
class Evaluation:
    """How well a model did on a set of images.

    Attributes:
        count: Number of images.
        accuracy: Share of images whose first class is right, in 0..1.
        top5_accuracy: Share of images whose class is among the first five.
        interval: The 95 % Wilson interval of the accuracy.
        images_per_second: Throughput, loading included, the first batch left out.
    """

    count: int
    accuracy: float
    top5_accuracy: float
    interval: tuple[float, float]
    images_per_second: float

    def __str__(self) -> str:
        low, high = self.interval
        # With five classes it is always one.
        top5 = f", top five {self.top5_accuracy:.2%}" if self.top5_accuracy < 1 else ""
        return (
            f"{self.accuracy:.2%} of {self.count:,} images "
            f"(95 % interval {low:.2%} to {high:.2%}){top5}"
        )


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927), as two shares in 0..1.

    Example:

    >>> [round(bound, 4) for bound in wilson_interval(90, 100)]
    [0.8256, 0.9448]
    """
    if not 0 <= correct <= count or count < 1:
        raise ValueError(
            f"Expected 0 <= correct <= count and count >= 1. Received: correct={correct}, "
            f"count={count}"
        )
    share, z2 = correct / count, QUANTILE_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = (
        QUANTILE_95
        / (1 + z2 / count)
        * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(
    model: keras.Model,
    image_set: ImageSet,
    *,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Accuracy of a model on images, prepared as the model's `preprocessing` layer says.

    Args:
        model: A model from raw pixels to logits or probabilities, one a class.
        image_set: The images and their labels.
        batch_size: Images a batch.
        progress: Called with the number of images done and their total after each batch.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: If the model has another number of outputs than the set has classes.
    """
    check_outputs(model, len(image_set.class_names))
    pace = Pace()

    def batch_done(done):
        pace.add(done)
        if progress:
            progress(done, len(image_set))

    (outputs,) = predict_outputs(model, image_set, batch_size=batch_size, progress=batch_done)
    return judge_outputs(outputs, image_set.labels, images_per_second=pace.images_per_second)


class Pace:
    """Images a second; the first batch, which compiles, counts only where there is no other."""

    def __init__(self):
        self._began = time.perf_counter()
        self._done: list[tuple[float, int]] = []

    def add(self, done: int) -> None:
        """Takes in that so many images are done now."""
        self._done.append((time.perf_counter(), done))

    @property
    def images_per_second(self) -> float:
        """The pace so far; 0 before the first batch."""
        if not self._done:
            return 0.0
        began, before = self._done[0] if len(self._done) > 1 else (self._began, 0)
        now, done = self._done[-1]
        return (done - before) / max(now - began, 1e-9)


def predict_outputs(
    model: keras.Model,
    image_set: ImageSet,
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """What a model answers for images, prepared as its `preprocessing` layer says.

    Args:
        model: A model from raw pixels to one array, or a list of them.
        image_set: The images.
        batch_size: Images a batch.
        progress: Called with the number of images done after each batch.

    Returns:
        float32 arrays `(count, …)` in the set's order, one for each output of the model.
    """
    return predict_on_device(
        with_device_resizing(model, image_set, batch_size=batch_size),
        model.get_layer("preprocessing"),
        image_set,
        image_size=model.input_shape[1:3],
        batch_size=batch_size,
        progress=progress,
    )


def predict_on_device(
    device_model, preprocessing, image_set, *, image_size, batch_size, progress=None
) -> list[np.ndarray]:
    """Like `predict_outputs`, for a model that `with_device_resizing` made."""
    batches = EvaluationBatches(
        image_set, batch_size=batch_size, preprocessing=preprocessing, image_size=image_size
    )
    parts: list[list[np.ndarray]] = []
    done = 0
    for images, labels in prefetch(batches, 0, len(batches)):
        parts.append(predict_filled_up(device_model, images, batch_size))
        done += len(labels)
        if progress:
            progress(done)
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def predict_filled_up(model: keras.Model, inputs: Any, batch_size: int) -> list[np.ndarray]:
    """What a model answers for a batch that may be smaller than the others.

    It is filled up so that there is one shape to compile for, and every batch so that the devices
    divide it evenly.

    Args:
        model: The model.
        inputs: Its inputs: an array, or arrays in a structure.
        batch_size: Rows of the other batches.

    Returns:
        float32 arrays of as many rows as the inputs have, one for each output of the model.
    """
    distribution = current_distribution()
    rows = len(keras.tree.flatten(inputs)[0])
    missing = batch_size - rows + -batch_size % distribution.devices
    filled = keras.tree.map_structure(
        lambda array: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]), inputs
    )
    with in_this_process():
        outputs = keras.tree.flatten(distribution.predict_on_batch(model, filled))
    return [np.asarray(output, "float32")[:rows] for output in outputs]


def judge_outputs(
    outputs: np.ndarray, labels: np.ndarray, *, images_per_second: float
) -> Evaluation:
    """How well outputs `(count, classes)` agree with labels `(count,)`.

    Example:

    >>> outputs = np.array([[2.0, 1.0], [0.0, 1.0]])
    >>> judge_outputs(outputs, np.array([0, 0]), images_per_second=10.0).accuracy
    0.5
    """
    ranks = _ranks(outputs, labels)
    correct = int((ranks == 0).sum())
    return Evaluation(
        count=len(labels),
        accuracy=correct / len(labels),
        top5_accuracy=int((ranks < 5).sum()) / len(labels),
        interval=wilson_interval(correct, len(labels)),
        images_per_second=images_per_second,
    )


def with_device_resizing(
    model: keras.Model, image_set: ImageSet, *, batch_size: int
) -> keras.Model:
    """A model that takes the images of a set as its evaluation batches hand them out.

    Images in memory travel to the device as uint8 at their own size and are resized there; images
    on disk are prepared on the host.

    Args:
        model: A model from raw pixels; the new model shares its weights.
        image_set: The images.
        batch_size: Images a batch.

    Returns:
        A functional model.
    """
    height, width = model.input_shape[1:3]
    answer = without_unread_tokens(model)
    if current_distribution().devices == 1:
        answer = divided_among_threads(answer, [batch_size])
    if image_set.image_size is None:
        inputs = keras.Input((height, width, 3), name="images")
        return keras.Model(inputs, answer(inputs), name="on_device")
    inputs = keras.Input((*image_set.image_size, 3), dtype="uint8", name="images")
    policy = model.get_layer("preprocessing")
    resize = ResizeAndCrop(
        (height, width),
        interpolation=policy.interpolation,
        crop_fraction=policy.crop_fraction,
        crop_mode=policy.crop_mode,
        name="resize_and_crop",
    )
    return keras.Model(inputs, answer(resize(inputs)), name="on_device")


def check_outputs(model: keras.Model, num_classes: int) -> None:
    """Raises a ValueError if a model has not one output a class."""
    if model.output_shape[-1] != num_classes:
        raise ValueError(
            f"The model has {model.output_shape[-1]} outputs, the data set {num_classes} classes. "
            "Fine-tune the model on this data set first, or choose the data set it was trained on"
        )


def _ranks(outputs, labels):
    """How many classes come before the right one; of equal outputs the first index does."""
    labels = np.asarray(labels)[:, None]
    right = np.take_along_axis(outputs, labels, axis=1)
    tied_before = (outputs == right) & (np.arange(outputs.shape[1]) < labels)
    # Not `outputs > right`: an output that is not finite must count as wrong.
    return (~(outputs <= right) | tied_before).sum(axis=1)
