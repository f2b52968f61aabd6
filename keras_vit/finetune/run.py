"""One fine-tuning run, from a recipe to a result."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vit.data import DataSource, check_class_names, check_images
from keras_vit.finetune.evaluation import Evaluation, judge_outputs, predict_outputs
from keras_vit.finetune.folder import (
    check_folder,
    deciding_options,
    describe_run,
    read_configuration,
)
from keras_vit.finetune.html_report import write_report
from keras_vit.finetune.log import Meter, ProgressLine, RunLog
from keras_vit.finetune.loop import TrainingDiverged, training_steps
from keras_vit.finetune.optimizer import averaged_weights, use_averaged_weights
from keras_vit.finetune.precision import find_accelerator, resolve_precision
from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.report import RunResult, make_result, read_result, write_result
from keras_vit.finetune.reproducibility import fix_order_of_operations
from keras_vit.finetune.rules import format_plans
from keras_vit.finetune.source import load_source, write_left_out
from keras_vit.finetune.splits import split_source
from keras_vit.finetune.starting_model import build_model, model_config
from keras_vit.finetune.state import (
    Progress,
    identity_digest,
    replace_file,
    restore_training_state,
    save_training_state,
    write_json,
)
from keras_vit.finetune.training import set_up_training
from keras_vit.models import VisionTransformerConfig

# 64 images of 224 px: ViT-B/16 then trains within some 20 GiB.
PIXELS_AT_ONCE_ON_CPU = 64 * 224**2


def run(
    recipe: Recipe,
    *,
    source: DataSource | None = None,
    architecture: VisionTransformerConfig | None = None,
    test: bool = True,
) -> RunResult:
    """Fine-tunes a model as a recipe says; goes on where an interrupted run of it stopped.

    The folder OUTPUT/NAME then holds `recipe.json`, `log.csv`, `tensorboard/`, `checkpoints/`
    (the last two), `model.keras`, `class_names.txt`, `result.json`, and `report.html` with
    `figures/` and `predictions.csv`; and `left_out.json` where images may be left out.
    A run that is finished already is not repeated: its result is handed back.

    Args:
        recipe: All options.
        source: The images, instead of what `recipe.data` names; what is damaged among them is left
            out where `load_data` was told to.
        architecture: The architecture, instead of what `recipe.model` names; class count, image
            size and dropout come from the recipe.
        test: Whether the test images are looked at, at the end. A choice among runs is made
            without.

    Returns:
        The result, which `result.json` holds too.

    Raises:
        ValueError: For options that do not fit each other, the data or the checkpoint, or a
            folder that holds another run.
        TrainingDiverged: When the loss is no longer finite. The last good checkpoint stays.
    """
    _check_backend(recipe)
    if not fix_order_of_operations():
        print("TensorFlow was in use before this run: a repetition may differ in the last bits.")
    folder = Path(recipe.output) / recipe.name
    recipe = resolve_recipe(recipe, folder)
    # Whatever can be known without the images is checked before they are read or fetched.
    model_config(recipe, architecture)
    keras.utils.set_random_seed(recipe.seed)
    looked_at = source is None and recipe.damaged_images == "skip"
    source = source or load_source(recipe, folder)
    if (folder / "class_names.txt").exists():
        known = (folder / "class_names.txt").read_text("utf-8").splitlines()
        check_class_names(source, known, folder / "class_names.txt")
    splits = split_source(source, recipe)
    recipe = resolve_epochs(recipe, len(splits.train))
    configuration = describe_run(recipe, source, architecture)
    check_folder(folder, configuration)
    result = read_result(folder / "result.json")
    if result and (result.test or not test):
        print(f"{folder} is finished; nothing more to train.")
        if recipe.report and not (folder / "report.html").exists():
            _write_missing_report(folder, recipe, result, splits)
    else:
        model = build_model(recipe, model_config(recipe, architecture, len(source.class_names)))
        if not looked_at:
            _check_files(folder, splits)
        # Features that are computed, and batch sizes that are tried, are part of the time.
        began = time.perf_counter()
        training, recipe = set_up_training(model, recipe, splits)
        configuration = describe_run(recipe, source, architecture)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "recipe.json", configuration)
        write_left_out(folder, recipe, source)
        names = "\n".join(source.class_names) + "\n"
        replace_file(folder / "class_names.txt", names.encode())
        result = _train_and_test(training, recipe, splits, folder, configuration, began, test=test)
    print(f"{result}\n  files in    {folder}", flush=True)
    if recipe.export:
        _export(recipe, folder, source.class_names)
    return result


def resolve_recipe(recipe: Recipe, folder: Path | None = None) -> Recipe:
    """The recipe with what its options leave to the machine: precision and micro-batch.

    On an accelerator the micro-batch stays open until the model is there to be tried, but for a
    run that goes on: then it is what its folder says.
    """
    accelerator = find_accelerator()
    precision: Any = resolve_precision(recipe.precision, accelerator)
    micro_batch_size = recipe.micro_batch_size
    if micro_batch_size is None and folder and (folder / "recipe.json").exists():
        there = read_configuration(folder)["recipe"]
        if there.get("batch_size") == recipe.batch_size:
            micro_batch_size = there.get("micro_batch_size")
    if micro_batch_size is None and recipe.adapt == "head":
        # Features are small.
        micro_batch_size = recipe.batch_size
    if micro_batch_size is None and accelerator.kind == "cpu":
        fitting = max(1, PIXELS_AT_ONCE_ON_CPU // recipe.image_size**2)
        micro_batch_size = max(
            size
            for size in range(1, min(fitting, recipe.batch_size) + 1)
            if recipe.batch_size % size == 0
        )
        if 4 * micro_batch_size < min(fitting, recipe.batch_size):
            print(
                f"A batch of {recipe.batch_size} is trained as {micro_batch_size} at a time, the "
                f"largest part of it under {fitting + 1}. A round batch size would be faster."
            )
    return dataclasses.replace(recipe, precision=precision, micro_batch_size=micro_batch_size)


def resolve_epochs(recipe: Recipe, train_images: int) -> Recipe:
    """The recipe in steps, where it speaks of epochs.

    >>> recipe = Recipe(epochs=10, warmup_epochs=1, batch_size=100)
    >>> resolve_epochs(recipe, 1000).steps, resolve_epochs(recipe, 1000).warmup_steps
    (100, 10)
    """
    changes: dict[str, Any] = {}
    for name in ("steps", "warmup_steps"):
        epochs = getattr(recipe, name.replace("steps", "epochs") if "_" in name else "epochs")
        if epochs is not None:
            steps = round(epochs * train_images / recipe.batch_size)
            changes[name] = max(1, steps) if name == "steps" else steps
    changes["warmup_steps"] = min(
        changes.get("warmup_steps", recipe.warmup_steps), changes.get("steps", recipe.steps)
    )
    return dataclasses.replace(recipe, epochs=None, warmup_epochs=None, **changes)


def _check_files(folder, splits):
    """Looks at every image file once, before the first step of a run."""
    sets = [images for images in (splits.train, splits.validation, splits.test) if images]
    files = sum(len(images) for images in sets if not images.in_memory)
    if files and not (folder / "recipe.json").exists():
        line = ProgressLine(files, " files looked at")
        check_images(*sets, progress=lambda done, _: line.show(done, ""))
        line.end()


def _export(recipe, folder, class_names):
    from keras_vit.export import export_saved_model

    path = Path("saved_models") / recipe.name
    if path.exists():
        print(f"  exported    {path} is there already")
        return
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    print(f"  exported    {export_saved_model(model, path, class_names=class_names)}")


def _check_backend(recipe):
    if recipe.export and keras.backend.backend() != "tensorflow":
        raise ValueError(
            "`export` needs the TensorFlow backend. Received: export=True with KERAS_BACKEND="
            f"{keras.backend.backend()}; leave it out and export the run's model.keras later "
            "under KERAS_BACKEND=tensorflow"
        )


def _train_and_test(training, recipe, splits, folder, configuration, began, *, test):
    identity = identity_digest(deciding_options(configuration))
    done = restore_training_state(folder / "checkpoints", training.compiled, identity)
    meter = Meter(recipe.batch_size, recipe.steps)
    try:
        _train(training, recipe, splits, folder, identity, done, meter, began)
    except (TrainingDiverged, FloatingPointError) as error:
        restore_training_state(folder / "checkpoints", training.compiled, identity)
        _save_model(training.model, folder / "last_good.keras")
        raise TrainingDiverged(_advice(error, recipe, folder)) from error
    seconds = done.seconds + time.perf_counter() - began
    use_averaged_weights(training.compiled.optimizer)
    _save_model(training.model, folder / "model.keras")
    judged = {}
    for name in ("validation", "test"):
        image_set = getattr(splits, name)
        if image_set is not None and (test or name != "test"):
            outputs, evaluation = _judge(training, image_set)
            judged[name] = image_set, outputs, evaluation
    result = make_result(
        configuration=configuration,
        test=judged["test"][2] if "test" in judged else None,
        validation=judged["validation"][2] if "validation" in judged else None,
        train_images=len(splits.train),
        left_out=splits.left_out,
        seconds=seconds,
        images_per_second=meter.images_per_second,
        waiting_share=meter.waiting_share,
    )
    # A folder with a result counts as finished.
    write_result(folder / "result.json", result)
    if recipe.report:
        split = "test" if test else "validation"
        image_set, outputs, _ = judged.get(split, (None, None, None))
        table = format_plans(training.plans)
        _write_report(
            folder, training.model, result, splits.train, split, image_set, outputs, table
        )
    return result


def _write_report(folder, model, result, train_set, split, image_set, outputs, table=None):
    try:
        path = write_report(
            folder,
            model=model,
            result=result,
            image_set=image_set,
            outputs=outputs,
            split=split,
            train_set=train_set,
            weights_table=table,
        )
    except ImportError as error:
        print(f"No report is written: {error}")
    else:
        print(f"  report      {path}", flush=True)


def _write_missing_report(folder, recipe, result, splits):
    """The report of a run that was killed after its result, or that was told to write none."""
    split = "test" if result.test else "validation"
    image_set = getattr(splits, split)
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    outputs = None
    if image_set is not None:
        batch_size = min(recipe.evaluation_batch_size, len(image_set))
        (outputs,) = predict_outputs(model, image_set, batch_size=batch_size)
    _write_report(folder, model, result, splits.train, split, image_set, outputs)


def _train(training, recipe, splits, folder, identity, done, meter, began):
    """Trains to the last step, with its log, evaluations and checkpoints."""
    if done.step:
        print(f"Going on after step {done.step} of {recipe.steps}.")
    compiled = training.compiled
    if not done.step:
        # So that there is a good state from the first step on.
        save_training_state(folder / "checkpoints", compiled, done, identity)
    log, line = RunLog(folder, done.step), ProgressLine(recipe.steps)
    results = training_steps(
        compiled,
        recipe,
        training.batches,
        done.step,
        steps_per_epoch=training.steps_per_epoch,
    )
    try:
        for result in results:
            step = result.step
            saves = _is_due(step, recipe.checkpoint_every, recipe.steps)
            meter.add(result)
            row = None
            if _is_due(step, recipe.evaluate_every, recipe.steps) and splits.validation:
                with averaged_weights(compiled.optimizer):
                    _, evaluation = _judge(training, splits.validation)
                row = {**meter.row(), "validation_accuracy": evaluation.accuracy}
            elif _is_due(step, recipe.log_every, recipe.steps) or saves:
                # At a checkpoint too, so that a run that goes on from there logs the same rows.
                row = meter.row()
            if row:
                log.write(row)
            line.show(step, meter.text(row), seconds_left=meter.seconds_left, keep=bool(row))
            if saves:
                progress = Progress(step, done.seconds + time.perf_counter() - began)
                save_training_state(folder / "checkpoints", compiled, progress, identity)
    finally:
        line.end()
        log.close()


def _judge(training, image_set) -> tuple[np.ndarray, Evaluation]:
    """The logits for a set, and how good they are."""
    began = time.perf_counter()
    outputs = training.predict(image_set)
    pace = len(image_set) / (time.perf_counter() - began)
    return outputs, judge_outputs(outputs, image_set.labels, images_per_second=pace)


def _is_due(step, every, last):
    return step == last or (every > 0 and step % every == 0)


def _save_model(model, path):
    beside = path.with_name(f".partial.{path.name}")
    model.save(beside)
    os.replace(beside, path)


def _advice(error, recipe, folder):
    return (
        f"{error} The last good state is kept in {folder / 'last_good.keras'}.\n"
        f"Try, under another --name: a lower --learning-rate (now {recipe.learning_rate}), more "
        f"--warmup-steps (now {recipe.warmup_steps}), --clip-norm 1 (now {recipe.clip_norm}; 0 is "
        f"off), or --precision float32 (now {recipe.precision})"
    )
