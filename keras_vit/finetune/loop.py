"""The training loop: one generator that yields a result each optimizer step."""

import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from keras_vit.data import prefetch
from keras_vit.finetune.distribution import current_distribution
from keras_vit.finetune.optimizer import drop_unfinished_accumulation, make_optimizer
from keras_vit.finetune.precision import find_accelerator
from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.rules import WeightPlan
from keras_vit.finetune.schedule import learning_rate
from keras_vit.finetune.steps_ahead import StepsAhead, runs_ahead

# A loss scale this small means that gradients overflow whatever the scale is.
SMALLEST_LOSS_SCALE = 2.0**-14


class TrainingDiverged(RuntimeError):
    """The loss, the gradients or the weights are no longer finite."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        step: Number of steps done, this one included.
        loss: Mean loss over the batch, before the update.
        accuracy: Share of the batch that was classified rightly, before the update.
        learning_rate: Of this step.
        seconds: Wall time of the step, waiting for its images included.
        waiting_seconds: How much of it passed before the images were there, while no step was
            computed.
        settled: Whether the weights are those after this step; otherwise the next has begun.
    """

    step: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float
    waiting_seconds: float = 0.0
    settled: bool = True


def compile_for_training(model: keras.Model, recipe: Recipe, plans: Sequence[WeightPlan]) -> None:
    """Gives a model the recipe's optimizer, loss and accuracy.

    Args:
        model: A model to logits; its targets are class indices, or shares of the classes where
            the recipe mixes images.
        recipe: The options; its `precision` must be resolved.
        plans: What is done with each weight, from `prepare_for_training`.
    """
    accuracy = keras.metrics.SparseCategoricalAccuracy
    if mixes_images(recipe):
        accuracy = keras.metrics.CategoricalAccuracy
    model.compile(
        optimizer=make_optimizer(recipe, model.trainable_variables, plans),
        loss=_loss(recipe),
        metrics=[accuracy(name="accuracy")],
        jit_compile=_jit_compile(),
        auto_scale_loss=False,
    )
    current_distribution().take_over(model)


def mixes_images(recipe: Recipe) -> bool:
    """Whether a recipe's targets are shares of the classes instead of indices."""
    return recipe.mixup > 0 or recipe.cutmix > 0


def training_steps(
    model: keras.Model,
    recipe: Recipe,
    batches,
    start: int = 0,
    *,
    steps_per_epoch: float | None = None,
    settles: Callable[[int], bool] = lambda step: True,
) -> Iterator[StepResult]:
    """Trains a compiled model, a step each time the next result is asked for.

    On JAX a step that need not settle is handed out while the next is computed.

    Args:
        model: The compiled training model.
        recipe: The options.
        batches: `batches[step]` gives the images and labels of a step.
        start: Number of steps already done.
        steps_per_epoch: For schedules that change with the epoch.
        settles: Whether the weights after a step, of which it is given the number, are needed.
            Asked just before the step after it would begin.

    Yields:
        A `StepResult` for each step from `start + 1` to `recipe.steps`.

    Raises:
        TrainingDiverged: When the loss is not finite, or gradients overflow at every loss scale.
    """
    ahead = StepsAhead(model) if runs_ahead(recipe.precision) else None
    clock, last = _Clock(), None

    def result(begun, settled):
        loss, accuracy = begun.read()
        if not math.isfinite(loss):
            raise TrainingDiverged(f"The loss became {loss} at step {begun.step}.")
        if recipe.precision == "mixed_float16":
            _settle_loss_scaling(model.optimizer, begun.step)
        return StepResult(begun.step, loss, accuracy, begun.rate, *clock.lap(), settled)

    try:
        for step, (inputs, targets) in enumerate(prefetch(batches, start, recipe.steps), start + 1):
            # A device that computes has not waited.
            clock.images_are_there(waited=last is None or last.is_ready())
            rate = learning_rate(step - 1, recipe, steps_per_epoch)
            if ahead is None:
                model.optimizer.learning_rate = rate
            else:
                ahead.set_learning_rate(rate)
            logs = _begin_step(model, ahead, inputs, targets, recipe.accumulation_steps)
            begun = _Begun(step, rate, logs)
            if last is not None:
                yield result(last, settled=False)
            last = begun
            if ahead is None or step == recipe.steps or settles(step):
                if ahead is not None:
                    ahead.settle()
                yield result(last, settled=True)
                last = None
                # What the caller did is not part of the next step.
                clock = _Clock()
            clock.asks_for_images()
    finally:
        if ahead is not None:
            ahead.settle()


class _Clock:
    """What passed since the last result, and how much of it in waiting for images."""

    def __init__(self):
        self._began = self._asked = time.perf_counter()
        self._waited = 0.0

    def asks_for_images(self):
        self._asked = time.perf_counter()

    def images_are_there(self, waited):
        self._waited += (time.perf_counter() - self._asked) * waited

    def lap(self):
        now = time.perf_counter()
        passed = now - self._began, self._waited
        self._began, self._waited = now, 0.0
        return passed


@dataclass(frozen=True)
class _Begun:
    """A step that was begun, and what it will say for each of its micro-batches."""

    step: int
    rate: float
    logs: list[dict]

    def is_ready(self):
        # Numbers are, arrays of JAX know.
        return all(getattr(value, "is_ready", lambda: True)() for value in self.logs[-1].values())

    def read(self):
        """Mean loss and accuracy."""
        return tuple(
            float(np.mean([float(log[name]) for log in self.logs])) for name in ("loss", "accuracy")
        )


def _begin_step(model, ahead, inputs, targets, accumulation_steps):
    """What each micro-batch of an optimizer step says."""
    size = len(targets) // accumulation_steps
    logs = []
    for begin in range(0, len(targets), size):
        part = slice(begin, begin + size)
        batch = keras.tree.map_structure(operator.itemgetter(part), inputs), targets[part]
        # The first compiles.
        if ahead is None or model.train_function is None:
            logs.append(model.train_on_batch(*batch, return_dict=True))
        else:
            logs.append(ahead.begin(*batch))
    return logs


def _settle_loss_scaling(optimizer, step):
    drop_unfinished_accumulation(optimizer)
    scale = float(optimizer.dynamic_scale.numpy())
    if scale < SMALLEST_LOSS_SCALE:
        raise TrainingDiverged(
            f"The gradients overflow at step {step} even with a loss scale of {scale:.1e}."
        )


def _jit_compile():
    # Keras' choice, but on a CPU with TensorFlow: there a step is no faster under XLA, in bfloat16
    # slower by far (benchmarks/results/train.md), and a run that was interrupted did not end with
    # the same bits (seen once, before operations ran one at a time).
    on_cpu = keras.backend.backend() == "tensorflow" and find_accelerator().kind == "cpu"
    return False if on_cpu else "auto"


def _loss(recipe):
    mixes, smoothing = mixes_images(recipe), recipe.label_smoothing
    if recipe.loss == "cross_entropy" and not mixes and not smoothing:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(targets, logits):
        if not mixes:
            targets = keras.ops.one_hot(keras.ops.reshape(targets, (-1,)), logits.shape[-1])
        if recipe.loss == "binary_cross_entropy":
            # As in DeiT III: each class in a mixed image is there, whatever its share.
            targets = keras.ops.cast(targets > 0, logits.dtype)
            return keras.losses.binary_crossentropy(targets, logits, from_logits=True)
        return keras.losses.categorical_crossentropy(
            targets, logits, from_logits=True, label_smoothing=smoothing
        )

    return loss
