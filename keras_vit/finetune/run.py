"""One fine-tuning run, from a recipe to a result."""

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_vit.checkpoints import load_checkpoint
from keras_vit.data import DataSource, ImageSet, TrainingBatches, load_data, split_images, subset
from keras_vit.finetune.evaluation import (
    Evaluation,
    evaluate_on_device,
    with_device_resizing,
)
from keras_vit.finetune.folder import check_folder, deciding_options, describe_run
from keras_vit.finetune.log import Meter, ProgressLine, RunLog
from keras_vit.finetune.loop import TrainingDiverged, compile_for_training, training_steps
from keras_vit.finetune.precision import resolve_precision
from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.report import (
    RunResult,
    make_result,
    read_result,
    write_json,
    write_result,
)
from keras_vit.finetune.state import (
    Progress,
    identity_digest,
    replace_file,
    restore_training_state,
    save_training_state,
)
from keras_vit.models import VisionTransformerConfig, vision_transformer
from keras_vit.zoo import create


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Attributes:
        train: What is trained on.
        validation: What choices are made by; None where nothing is held out.
        test: What is looked at once, at the end.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet


def run(
    recipe: Recipe,
    *,
    source: DataSource | None = None,
    architecture: VisionTransformerConfig | None = None,
) -> RunResult:
    """Fine-tunes a model as a recipe says; goes on where an interrupted run of it stopped.

    The folder OUTPUT/NAME then holds `recipe.json`, `log.csv`, `tensorboard/`, `checkpoints/`
    (the last two), `model.keras`, `class_names.txt` and `result.json`. A run that is finished
    already is not repeated: its result is handed back.

    Args:
        recipe: All options.
        source: The images, instead of what `recipe.data` names.
        architecture: The architecture, instead of what `recipe.model` names; class count, image
            size and dropout come from the recipe.

    Returns:
        The result, which `result.json` holds too.

    Raises:
        ValueError: For options that do not fit each other, the data or the checkpoint, or a
            folder that holds another run.
        TrainingDiverged: When the loss is no longer finite. The last good checkpoint stays.
    """
    _check_backend(recipe)
    precision: Any = resolve_precision(recipe.precision)
    recipe = dataclasses.replace(recipe, precision=precision)
    keras.utils.set_random_seed(recipe.seed)
    source = source or load_data(recipe.data, data_dir=recipe.data_dir, seed=recipe.seed)
    splits = split_source(source, recipe)
    folder = Path(recipe.output) / recipe.name
    configuration = describe_run(recipe, source, architecture)
    check_folder(folder, configuration)
    result = read_result(folder / "result.json")
    if result:
        print(f"{folder} is finished; nothing to do.")
    else:
        model = build_model(recipe, len(source.class_names), architecture)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "recipe.json", configuration)
        result = _train_and_test(model, recipe, splits, folder, configuration)
    print(f"{result}\n  files in    {folder}", flush=True)
    return result


def split_source(source: DataSource, recipe: Recipe) -> Splits:
    """Divides a data set as a recipe says: the subset first, from it the validation split.

    A run with `train_images=5000` therefore sees 5,000 labelled images in all.
    """
    train, validation, test = source.train, source.validation, source.test
    if train is None or test is None:
        missing = "train" if train is None else "test"
        raise ValueError(
            f"The data set {source.name!r} has no {missing} images. Expected both train and test "
            "splits, or one set that can be divided"
        )
    if recipe.train_images is not None and recipe.train_images < len(train):
        train = subset(train, recipe.train_images, seed=recipe.seed)
    if validation is None and recipe.validation_fraction:
        train, validation = split_images(train, recipe.validation_fraction, seed=recipe.seed)
    if recipe.test_images is not None and recipe.test_images < len(test):
        test = subset(test, recipe.test_images, seed=recipe.seed)
    return Splits(train, validation, test)


def build_model(
    recipe: Recipe, num_classes: int, architecture: VisionTransformerConfig | None = None
) -> keras.Model:
    """The model of a recipe, with the weights it starts from and a head of zeros."""
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "image_size": recipe.image_size,
        "dropout": recipe.dropout,
        "attention_dropout": recipe.attention_dropout,
        "drop_path": recipe.drop_path,
    }
    if recipe.preprocessing:
        options["preprocessing"] = recipe.preprocessing
    if architecture:
        config = dataclasses.replace(architecture, **options)
        model = vision_transformer(config, dtype=recipe.precision)
        if recipe.weights:
            load_checkpoint(model, recipe.weights)
    else:
        model = create(recipe.model, weights=recipe.weights, dtype=recipe.precision, **options)
    # The checkpoint's classes are others, even where there are as many of them.
    for weight in model.get_layer("head").weights:
        weight.assign(keras.ops.zeros(weight.shape))
    # Evaluation, prediction and export prepare images as training does: no margin is cut off.
    preprocessing = model.get_layer("preprocessing")
    preprocessing.crop_fraction = 1.0
    preprocessing.crop_mode = "center"
    preprocessing.interpolation = recipe.interpolation
    return model


def _check_backend(recipe):
    if recipe.export and keras.backend.backend() != "tensorflow":
        raise ValueError(
            "`export` needs the TensorFlow backend. Received: export=True with KERAS_BACKEND="
            f"{keras.backend.backend()}; leave it out and export the run's model.keras later "
            "under KERAS_BACKEND=tensorflow"
        )


def _augmentation(recipe):
    return {
        "resize_size": recipe.resize_size,
        "interpolation": recipe.interpolation,
        "horizontal_flip": recipe.horizontal_flip,
        "seed": recipe.seed,
    }


def _train_and_test(model, recipe, splits, folder, configuration):
    device_model = with_device_resizing(model, splits.train, **_augmentation(recipe))
    compile_for_training(device_model, recipe)
    identity = identity_digest(deciding_options(configuration))
    began = time.perf_counter()
    done = restore_training_state(folder / "checkpoints", device_model, identity)
    meter = Meter(recipe.batch_size, recipe.steps)
    try:
        _train(device_model, model, recipe, splits, folder, identity, done, meter)
    except (TrainingDiverged, FloatingPointError) as error:
        raise TrainingDiverged(_advice(error, recipe, folder)) from error
    seconds = done.seconds + time.perf_counter() - began
    _save_model(model, folder, splits.test.class_names)
    validation = None
    if splits.validation is not None:
        validation = _evaluate(device_model, model, splits.validation, recipe)
    test = _evaluate(device_model, model, splits.test, recipe)
    result = make_result(
        configuration=configuration,
        test=test,
        validation=validation,
        train_images=len(splits.train),
        seconds=seconds,
        images_per_second=meter.images_per_second,
    )
    if recipe.export:
        from keras_vit.export import export_saved_model

        path = Path("saved_models") / recipe.name
        export_saved_model(model, path, class_names=splits.test.class_names)
    # Last, because a folder with a result counts as finished.
    write_result(folder / "result.json", result)
    return result


def _train(device_model, model, recipe, splits, folder, identity, done, meter):
    """Trains to the last step, with its log, evaluations and checkpoints."""
    if done.step:
        print(f"Going on after step {done.step} of {recipe.steps}.")
    began = time.perf_counter()
    batches = TrainingBatches(
        splits.train,
        batch_size=recipe.batch_size,
        image_size=recipe.image_size,
        **_augmentation(recipe),
    )
    log, line = RunLog(folder, done.step), ProgressLine(recipe.steps)
    try:
        for result in training_steps(device_model, recipe, batches, done.step):
            step = result.step
            meter.add(result)
            row = None
            if _is_due(step, recipe.evaluate_every, recipe.steps) and splits.validation:
                evaluation = _evaluate(device_model, model, splits.validation, recipe)
                row = {**meter.row(), "validation_accuracy": evaluation.accuracy}
            elif _is_due(step, recipe.log_every, recipe.steps):
                row = meter.row()
            if row:
                log.write(row)
            line.show(step, meter.text(row), seconds_left=meter.seconds_left, keep=bool(row))
            if _is_due(step, recipe.checkpoint_every, recipe.steps):
                progress = Progress(step, done.seconds + time.perf_counter() - began)
                save_training_state(folder / "checkpoints", device_model, progress, identity)
    finally:
        line.end()
        log.close()


def _is_due(step, every, last):
    return step == last or (every > 0 and step % every == 0)


def _evaluate(device_model, model, image_set, recipe) -> Evaluation:
    return evaluate_on_device(
        device_model,
        model.get_layer("preprocessing"),
        image_set,
        image_size=model.input_shape[1:3],
        batch_size=min(recipe.evaluation_batch_size, len(image_set)),
    )


def _save_model(model, folder, class_names):
    beside = folder / ".partial.model.keras"
    model.save(beside)
    os.replace(beside, folder / "model.keras")
    replace_file(folder / "class_names.txt", ("\n".join(class_names) + "\n").encode())


def _advice(error, recipe, folder):
    checkpoints = sorted((folder / "checkpoints").glob("step_*.safetensors"))
    kept = f"The last good checkpoint is {checkpoints[-1]}." if checkpoints else ""
    return (
        f"{error} {kept}\nTry, under another --name: a lower --learning-rate (now "
        f"{recipe.learning_rate}), more --warmup-steps (now {recipe.warmup_steps}), --clip-norm 1 "
        f"(now {recipe.clip_norm}; 0 is off), or --precision float32 (now {recipe.precision})"
    )
