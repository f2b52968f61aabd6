"""What answers say about a model: confusion, calibration, and whether two models differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from keras_vit.finetune.predictions import NO_ANSWER, Predictions


@dataclass(frozen=True)
class ClassAccuracy:
    """How well the images of one class were told apart from the others.

    Attributes:
        label: Index of the class; names may be alike.
        name: Name of the class.
        count: Number of its images.
        correct: How many of them were recognised.
        mistaken_for: The class that most of the others were taken for; None without any.
        mistaken_count: How many.
    """

    label: int
    name: str
    count: int
    correct: int
    mistaken_for: str | None
    mistaken_count: int

    @property
    def accuracy(self) -> float | None:
        """Share of the images that were recognised; None for a class without images."""
        return self.correct / self.count if self.count else None


@dataclass(frozen=True)
class Calibration:
    """How far a model is as often right as it is sure.

    The images are put into bins of equal width by their confidence, as in "On Calibration of
    Modern Neural Networks" (Guo et al., 2017, arXiv 1706.04599): bin m of M holds the images whose
    confidence is in ((m-1)/M, m/M].

    Attributes:
        counts: Number of images of each bin.
        accuracy: Share of right answers in each bin; NaN in an empty one.
        confidence: Mean confidence in each bin; NaN in an empty one.
        expected_error: Expected calibration error: the distance of the two, weighted by the counts.
        log_loss: Negative log likelihood of the right classes: the mean over the images, in nats.
        brier_score: Mean squared distance of the probabilities to the one-hot labels, from 0 to 2
            (Brier, 1950).
    """

    counts: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray
    expected_error: float
    log_loss: float
    brier_score: float


def calibration(predictions: Predictions, bins: int = 15) -> Calibration:
    """Compares how sure a model is with how often it is right.

    Images without an answer are left out.

    Args:
        predictions: The answers.
        bins: Number of bins.

    Example:

    >>> from keras_vit.data import ImageSet
    >>> from keras_vit.finetune.predictions import make_predictions
    >>> image_set = ImageSet(np.zeros((2, 8, 8, 3), "uint8"), np.array([0, 1], "int32"), ("a", "b"))
    >>> round(calibration(make_predictions(image_set, np.log([[3, 1], [3, 1]]))).expected_error, 4)
    0.25
    """
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1. Received: bins={bins}")
    known = predictions.answered
    confidence, correct = predictions.confidence[known], predictions.correct[known]
    indices = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(indices, minlength=bins)
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(indices, correct, bins) / counts
        mean_confidence = np.bincount(indices, confidence, bins) / counts
    gaps = np.nan_to_num(np.abs(accuracy - mean_confidence))
    some = known.any()
    return Calibration(
        counts,
        accuracy,
        mean_confidence,
        float(gaps @ counts / counts.sum()) if some else math.nan,
        float(predictions.log_loss[known].mean()) if some else math.nan,
        float(predictions.squared_error[known].mean()) if some else math.nan,
    )


def confusion_matrix(predictions: Predictions, groups: int | None = None) -> np.ndarray:
    """Counts of images by right class (rows) and likeliest class (columns).

    Args:
        predictions: The answers; images without one are left out.
        groups: Neighbouring classes are put together so that there are so many rows and columns;
            None: one for each class.

    Returns:
        An int array `(classes, classes)` or `(groups, groups)`.
    """
    classes = len(predictions.class_names)
    size = classes if groups is None else groups
    known = predictions.answered
    rows = predictions.labels[known].astype(np.int64) * size // classes
    columns = predictions.predicted[known].astype(np.int64) * size // classes
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)


def most_confused(predictions: Predictions, count: int) -> list[tuple[int, int, int]]:
    """The pairs of classes that most images were mistaken in, as (right, answered, images).

    Args:
        predictions: The answers.
        count: Number of pairs at most; of equal ones those with the lower indices come first.
    """
    wrong = predictions.answered & ~predictions.correct
    pairs = np.stack([predictions.labels[wrong], predictions.predicted[wrong]], axis=1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:count]
    return [(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order]


def class_accuracies(predictions: Predictions) -> list[ClassAccuracy]:
    """Each class's accuracy, the worst first; classes without images come last."""
    names = predictions.class_names
    counts = np.bincount(predictions.labels, minlength=len(names))
    correct = np.bincount(predictions.labels[predictions.correct], minlength=len(names))
    mistakes: dict[int, tuple[int, int]] = {}
    for label, answer, number in most_confused(predictions, len(predictions)):
        mistakes.setdefault(label, (answer, number))
    rows = []
    for label, name in enumerate(names):
        answer, number = mistakes.get(label, (NO_ANSWER, 0))
        mistaken_for = None if answer == NO_ANSWER else names[answer]
        rows.append(
            ClassAccuracy(
                label, name, int(counts[label]), int(correct[label]), mistaken_for, number
            )
        )
    return sorted(rows, key=lambda row: (row.accuracy is None, row.accuracy, -row.count))


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """The probability of so uneven a split, were two models equally good: McNemar's exact test.

    Of two models that answered for the same images, only those images tell that one of them got
    right and the other wrong (McNemar, 1947; for classifiers Dietterich, 1998). Were the models
    equally good, each such image would fall to either by the toss of a coin.

    Args:
        only_first: Images that the first model alone got right.
        only_second: Images that the second alone got right.

    Returns:
        The two-sided probability, in 0..1.

    Example:

    >>> round(mcnemar_p_value(1, 9), 4)
    0.0215
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"Expected counts. Received: {only_first} and {only_second}")
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(
        math.exp(
            math.lgamma(total + 1)
            - math.lgamma(k + 1)
            - math.lgamma(total - k + 1)
            - total * math.log(2)
        )
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * tail)
