"""What the training loop works on, made of a model, a recipe and images."""

import dataclasses
import gc
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from keras_vit.data import Augment, Augmentation, ImageSet, TrainingBatches, cache_folder
from keras_vit.data.batches import Batches
from keras_vit.finetune.adaptation import prepare_for_training, split_at_head
from keras_vit.finetune.batch_size import largest_fitting
from keras_vit.finetune.distribution import current_distribution
from keras_vit.finetune.evaluation import (
    predict_filled_up,
    predict_on_device,
    with_device_resizing,
)
from keras_vit.finetune.features import FeatureBatches, cached_features
from keras_vit.finetune.hosts import host_count, host_number
from keras_vit.finetune.loop import compile_for_training, mixes_images
from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.rules import WeightPlan, format_plans
from keras_vit.finetune.splits import Splits
from keras_vit.models import with_even_tokens, without_unread_tokens


@dataclass(frozen=True)
class Training:
    """What the training loop works on.

    Attributes:
        model: The whole model, from raw pixels to logits, with the weights that are trained.
        compiled: What is trained: the model behind its augmentation, or its head on features.
        batches: The inputs and targets of each step.
        predict: Gives the logits for the images of a set.
        plans: What is done with each weight.
        steps_per_epoch: Steps that see as many images as there are.
    """

    model: keras.Model
    compiled: keras.Model
    batches: Batches
    predict: Callable[[ImageSet], np.ndarray]
    plans: list[WeightPlan]
    steps_per_epoch: float


def set_up_training(model: keras.Model, recipe: Recipe, splits: Splits) -> tuple[Training, Recipe]:
    """Makes a model ready to be trained as a recipe says.

    Args:
        model: The model with the weights that it starts from.
        recipe: The options, resolved; where the micro-batch is open, it is found by trying.
        splits: The images.

    Returns:
        The training, compiled, and the recipe with its micro-batch.
    """
    distribution, mixes = current_distribution(), mixes_images(recipe)
    if recipe.micro_batch_size is not None:
        distribution.check_batch("micro_batch_size", recipe.micro_batch_size, mixes=mixes)
    plans = prepare_for_training(model, recipe)
    print(format_plans(plans), flush=True)
    steps_per_epoch = len(splits.train) / recipe.batch_size

    def compile_training(recipe):
        make = _head_training if recipe.adapt == "head" else _image_training
        compiled, batches, predict = make(model, recipe, splits)
        compile_for_training(compiled, recipe, plans)
        return Training(model, compiled, batches, predict, plans, steps_per_epoch)

    if recipe.micro_batch_size is not None:
        return compile_training(recipe), recipe
    attempts = {}
    divisor = distribution.batch_divisor(mixes=mixes)

    def attempt(size):
        parts = dataclasses.replace(recipe, micro_batch_size=size)
        attempts[size] = compile_training(parts), parts
        try:
            _try_step(attempts[size][0], parts.accumulation_steps)
        except Exception:
            # What the attempt holds would leave less for the next.
            del attempts[size]
            gc.collect()
            raise

    return attempts[largest_fitting(recipe.batch_size, attempt, multiple_of=divisor, mixes=mixes)]


def _try_step(training, accumulation_steps):
    """Runs one micro-batch and undoes it."""
    model = training.compiled
    variables = [*model.variables, *model.optimizer.variables]
    before = [variable.numpy() for variable in variables]
    inputs, targets = training.batches[0]
    size = len(targets) // accumulation_steps
    try:
        model.train_on_batch(
            keras.tree.map_structure(lambda array: array[:size], inputs), targets[:size]
        )
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def _image_training(model, recipe, splits):
    names = [field.name for field in dataclasses.fields(Augmentation)]
    batches = TrainingBatches(
        splits.train,
        batch_size=recipe.batch_size,
        micro_batch_size=recipe.micro_batch_size,
        seed=recipe.seed,
        augmentation=Augmentation(**{name: getattr(recipe, name) for name in names}),
        shard=(host_number(), host_count()),
    )
    inputs = {
        name: keras.Input(shape, dtype=dtype, name=name)
        for name, (shape, dtype) in batches.input_spec.items()
    }
    augment = Augment(batches.augmentation, name="augment")
    outputs = without_unread_tokens(with_even_tokens(model))(augment(inputs))
    compiled = keras.Model(inputs, outputs, name="training")
    # One graph for all sets whose images, and batches of them, have the same size.
    graphs: dict = {}

    def predict(image_set):
        batch_size = min(recipe.evaluation_batch_size, len(image_set))
        key = image_set.image_size, batch_size
        if key not in graphs:
            graphs[key] = with_device_resizing(model, image_set, batch_size=batch_size)
        (outputs,) = predict_on_device(
            graphs[key],
            model.get_layer("preprocessing"),
            image_set,
            image_size=model.input_shape[1:3],
            batch_size=batch_size,
        )
        return outputs

    return compiled, batches, predict


def _head_training(model, recipe, splits):
    if host_count() > 1:
        raise ValueError(
            "The head alone is trained on features that one host computes and keeps. Received: "
            f"adapt='head' on {host_count()} hosts; run it on one"
        )
    backbone, classifier = split_at_head(model)

    def features(image_set):
        return cached_features(
            backbone,
            image_set,
            batch_size=min(recipe.evaluation_batch_size, len(image_set)),
            folder=cache_folder() / "features",
        )

    batches = FeatureBatches(
        features(splits.train), splits.train, batch_size=recipe.batch_size, seed=recipe.seed
    )

    def predict(image_set):
        arrays, size = features(image_set), min(recipe.evaluation_batch_size, len(image_set))
        parts = []
        for start in range(0, len(image_set), size):
            batch = [array[start : start + size] for array in arrays]
            parts += predict_filled_up(classifier, batch, size)
        return np.concatenate(parts)

    return classifier, batches, predict
