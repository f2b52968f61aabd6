"""What a model answered for each image of a set, and the file that keeps it."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_vit.data import ImageSet
from keras_vit.finetune.state import replace_file

COLUMNS = ("image", "label", "predicted", "confidence", "label_probability")
# Rows whose probabilities are computed at once: 1,000 classes in float64 take 32 MB.
_ROWS_AT_ONCE = 4096
NO_ANSWER = -1


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model answered for each image, without the probabilities of the other classes.

    An image for which an output is NaN has no answer: it counts as wrong, `predicted` is -1 and its
    probabilities are NaN.

    Attributes:
        images: The file of each image, or its index in the set.
        labels: int array `(count,)`, the right classes.
        predicted: int array `(count,)`, the likeliest classes; of equal ones the first.
        confidence: float array `(count,)`, the probability of the likeliest class.
        label_probability: float array `(count,)`, the probability of the right class.
        log_loss: float array `(count,)`, minus the logarithm of `label_probability`.
        squared_error: float array `(count,)`, the squared distance of all probabilities to the
            label's one-hot vector, from 0 to 2.
        class_names: The name of each class.
    """

    images: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    label_probability: np.ndarray
    log_loss: np.ndarray
    squared_error: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> np.ndarray:
        """bool array `(count,)`: whether the likeliest class is the right one."""
        return self.predicted == self.labels

    @property
    def answered(self) -> np.ndarray:
        """bool array `(count,)`: whether the outputs were numbers."""
        return self.predicted != NO_ANSWER


def make_predictions(image_set: ImageSet, outputs: np.ndarray) -> Predictions:
    """Takes from a model's logits what there is to know about each image.

    The probabilities are the softmax of the logits, computed in float64.

    Args:
        image_set: The images.
        outputs: float array `(count, classes)` of logits, in the set's order.

    Raises:
        ValueError: If there is not one row an image and one column a class.

    Example:

    >>> images = np.zeros((2, 8, 8, 3), "uint8")
    >>> image_set = ImageSet(images, np.array([0, 1], "int32"), ("cat", "dog"))
    >>> predictions = make_predictions(image_set, np.log([[3, 1], [4, 1]]))
    >>> predictions.predicted.tolist(), predictions.confidence.round(2).tolist()
    ([0, 0], [0.75, 0.8])
    """
    outputs = np.asarray(outputs)
    expected = (len(image_set), len(image_set.class_names))
    if outputs.shape != expected:
        raise ValueError(
            f"`outputs` must have one row an image and one column a class: {expected}. "
            f"Received: shape {outputs.shape}"
        )
    parts = [
        _statistics(outputs[start : start + _ROWS_AT_ONCE], image_set.labels[start:])
        for start in range(0, len(outputs), _ROWS_AT_ONCE)
    ]
    predicted, confidence, label_probability, log_loss, squared_error = (
        np.concatenate(columns) for columns in zip(*parts, strict=True)
    )
    in_memory = image_set.in_memory
    names = range(len(image_set)) if in_memory else image_set.images
    return Predictions(
        tuple(map(str, names)),
        np.asarray(image_set.labels),
        predicted,
        confidence,
        label_probability,
        log_loss,
        squared_error,
        image_set.class_names,
    )


def _statistics(outputs, labels):
    outputs = outputs.astype("float64")
    labels = labels[: len(outputs), None]
    unknown = np.isnan(outputs).any(axis=1)
    outputs[unknown] = 0.0
    predicted = outputs.argmax(axis=1)
    largest = outputs.max(axis=1, keepdims=True)
    # An infinite output takes all the probability, and several of them share it.
    with np.errstate(invalid="ignore"):
        shifted = np.where(outputs == largest, 0.0, outputs - largest)
    probabilities = np.exp(shifted)
    total = probabilities.sum(axis=1, keepdims=True)
    probabilities /= total
    confidence = probabilities.max(axis=1)
    of_label = np.take_along_axis(probabilities, labels, axis=1)[:, 0]
    log_loss = (np.log(total) - np.take_along_axis(shifted, labels, axis=1))[:, 0]
    squared_error = (probabilities**2).sum(axis=1) - 2 * of_label + 1
    for statistic in (confidence, of_label, log_loss, squared_error):
        statistic[unknown] = np.nan
    return np.where(unknown, NO_ANSWER, predicted), confidence, of_label, log_loss, squared_error


def write_predictions(path: str | Path, predictions: Predictions) -> None:
    """Writes a CSV file with a line an image, its columns those of `COLUMNS`.

    Classes are written by name. Where a model had no answer, `predicted` is empty.
    """
    names = predictions.class_names
    buffer = io.StringIO()
    # csv leaves a carriage return bare, which ends a line for its reader.
    has_returns = any("\r" in name for name in (*predictions.images, *names))
    writer = csv.writer(
        buffer, lineterminator="\n", quoting=csv.QUOTE_ALL if has_returns else csv.QUOTE_MINIMAL
    )
    writer.writerow(COLUMNS)
    for image, label, predicted, confidence, of_label in zip(
        predictions.images,
        predictions.labels,
        predictions.predicted,
        predictions.confidence,
        predictions.label_probability,
        strict=True,
    ):
        answer = "" if predicted == NO_ANSWER else names[predicted]
        writer.writerow([image, names[label], answer, f"{confidence:.6g}", f"{of_label:.6g}"])
    # File names on Linux are bytes; those that are no UTF-8 stay as they are.
    replace_file(path, buffer.getvalue().encode("utf-8", "surrogateescape"))


def read_predictions(path: str | Path) -> list[dict[str, str]] | None:
    """The lines of what `write_predictions` wrote, by column; None where there is no such file.

    Raises:
        ValueError: If the file is damaged; the message names it.
    """
    path = Path(path)
    if not path.exists():
        return None
    # Not `read_text`, which takes a carriage return in a name for the end of a line.
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ValueError(f"expected the columns {', '.join(COLUMNS)}")
        lines = list(rows)
        if any(None in line or None in line.values() for line in lines):
            raise ValueError(f"a line has not {len(COLUMNS)} cells")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return lines
