"""One fine-tuning run, from a recipe to a result."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vit.checkpoints.replaced_file import replaced_file
from keras_vit.data import DataSource, check_class_names, check_images
from keras_vit.data.refused_files import printable
from keras_vit.finetune.batch_size import batch_parts, is_out_of_memory
from keras_vit.finetune.compiled_programs import keep_compiled_programs
from keras_vit.finetune.distribution import (
    current_distribution,
    make_distribution,
    on_this_host_alone,
)
from keras_vit.finetune.evaluation import Evaluation, judge_outputs, predict_outputs
from keras_vit.finetune.folder import (
    change_lines,
    check_folder,
    deciding_options,
    describe_run,
    disk_errors,
    read_configuration,
    run_lock,
    weights_digest,
    with_unused_name,
)
from keras_vit.finetune.hosts import agree, host_count, host_number, join_hosts
from keras_vit.finetune.html_report import write_report
from keras_vit.finetune.log import Meter, ProgressLine, RunLog
from keras_vit.finetune.loop import TrainingDiverged, mixes_images, training_steps
from keras_vit.finetune.optimizer import (
    averaged_weights,
    set_steps_done,
    use_averaged_weights,
)
from keras_vit.finetune.precision import find_accelerator, resolve_precision
from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.report import RunResult, make_result, read_result, write_result
from keras_vit.finetune.reproducibility import fix_order_of_operations
from keras_vit.finetune.rules import format_plans
from keras_vit.finetune.signals import RunInterrupted, stop_requests
from keras_vit.finetune.source import load_source, write_left_out
from keras_vit.finetune.splits import split_source
from keras_vit.finetune.starting_model import build_model, model_config
from keras_vit.finetune.state import (
    CheckpointWriter,
    hand_on_best,
    identity_digest,
    read_json,
    replace_file,
    restore_best,
    restore_training_state,
    save_training_state,
    write_json,
)
from keras_vit.finetune.training import set_up_training
from keras_vit.models import VisionTransformerConfig
from keras_vit.serving.files import WARMUP_BATCH_SIZES, check_warmup_fits

SAVED_MODELS = Path("saved_models")
MOST_CLASSES_NAMED = 5
# What `write_report` leaves in a run's folder.
REPORT_FILES = ("report.html", "predictions.csv", "figures")

# 64 images of 224 px: ViT-B/16 then trains within some 20 GiB.
PIXELS_AT_ONCE_ON_CPU = 64 * 224**2

# What a run may change when no step is left: what is read after the last one, and their number.
_READ_AFTER_TRAINING = (
    "name",
    "data name",
    "data version",
    "test_images",
    "steps",
    "warmup_steps",
)
# What changes the accuracy that the same weights have on the same images.
_READ_IN_EVALUATION = (
    "model",
    "architecture",
    "weights",
    "weights_config_sha256",
    "preprocessing",
    "image_size",
    "evaluation_crop",
    "evaluation_crop_fraction",
    "interpolation",
)


def run(
    recipe: Recipe,
    *,
    source: DataSource | None = None,
    architecture: VisionTransformerConfig | None = None,
    test: bool = True,
) -> RunResult:
    """Fine-tunes a model as a recipe says; goes on where an interrupted run of it stopped.

    On several hosts (`recipe.distribute`) each calls it; host 0 writes the folder, which all see.

    The folder OUTPUT/NAME then holds `recipe.json`, `log.csv`, `tensorboard/`, `checkpoints/`
    (the last two), `model.keras`, `class_names.txt`, `result.json`, and `report.html` with
    `figures/` and `predictions.csv`; `left_out.json` where images may be left out, and
    `exported.json` where the model is exported.
    A run that is finished already is not repeated: its result is handed back.

    SIGTERM and SIGINT make it save and stop after the step it is at.

    Args:
        recipe: All options.
        source: The images, instead of what `recipe.data` names; what is damaged among them is left
            out where `load_data` was told to.
        architecture: The architecture, instead of what `recipe.model` names; class count, image
            size and dropout come from the recipe, and the head gives logits of raw pixels.
        test: Whether the test images are looked at, at the end. A choice among runs is made
            without.

    Returns:
        The result, which `result.json` holds too.

    Raises:
        ValueError: For options that do not fit each other, the data or the checkpoint, or a
            folder that holds another run.
        TrainingDiverged: When the loss is no longer finite. The last good checkpoint stays.
        RunInterrupted: After SIGTERM or SIGINT; the same recipe then goes on where it stopped.
        OSError: If the folder is in use by another run or cannot be written to, or the disk is
            full; the last good checkpoint stays.
        MemoryError: If a step or an evaluation does not fit the memory.
    """
    if not fix_order_of_operations(deterministic=recipe.deterministic):
        print(
            f"{keras.backend.backend()} was in use before this run: a repetition may differ in the "
            "last bits."
        )
    join_hosts()
    if recipe.distribute == "none":
        keep_compiled_programs()
    if recipe.fresh:
        recipe = with_unused_name(recipe)
    folder = Path(recipe.output) / recipe.name
    with contextlib.ExitStack() as stack:
        stack.enter_context(disk_errors(folder))
        if host_number() == 0:
            stack.enter_context(run_lock(folder))
        stack.enter_context(make_distribution(recipe.distribute).scope())
        result = _run(recipe, folder, source=source, architecture=architecture, test=test)
        agree("end of the run")
    return result


def _run(recipe, folder, *, source, architecture, test):
    check_export(recipe)
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
    if splits.validation is None and (recipe.early_stopping or recipe.keep == "best"):
        raise ValueError(
            'early_stopping and keep="best" go by the validation images, and there are none. '
            f"Received: validation_fraction={recipe.validation_fraction}, own_validation="
            f"{recipe.own_validation!r}; hold some out, or the data set's own where it has some"
        )
    recipe = resolve_epochs(recipe, len(splits.train))
    configuration = describe_run(recipe, source, architecture)
    changes = check_folder(folder, configuration, accept_changes=recipe.accept_changes)
    result = read_result(folder / "result.json")
    agree(f"result in {folder}, which must be a folder that they share", result is not None)
    if result and (result.test or not test) and not changes:
        print(f"{folder} is finished; nothing more to train.")
        if recipe.report and not (folder / "report.html").exists() and host_number() == 0:
            _write_missing_report(folder, recipe, result, splits)
    else:
        model = build_model(recipe, model_config(recipe, architecture, len(source.class_names)))
        if not looked_at:
            _check_files(folder, splits)
        print(_describe_images(splits), flush=True)
        # Features that are computed, and batch sizes that are tried, are part of the time.
        began = time.perf_counter()
        training, recipe = set_up_training(model, recipe, splits)
        configuration = describe_run(recipe, source, architecture)
        configuration["changes"] = _earlier_changes(folder)
        if changes:
            _accept_changes(changes, training.compiled, folder, configuration)
        if host_number() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            # The recipe first: a folder with files and none is no run.
            write_json(folder / "recipe.json", configuration)
            write_left_out(folder, recipe, source)
            names = "\n".join(source.class_names) + "\n"
            replace_file(folder / "class_names.txt", names.encode())
        result = _train_and_test(training, recipe, splits, folder, configuration, began, test=test)
    print(f"{result}\n  files in    {folder}", flush=True)
    if recipe.export and host_number() == 0:
        export_run(folder, recipe.name, source.class_names)
    return result


def check_export(recipe: Recipe) -> None:
    """Raises a ValueError if a recipe asks for an export that could not be made."""
    if not recipe.export:
        return
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "`export` needs the TensorFlow backend. Received: export=True with KERAS_BACKEND="
            f"{keras.backend.backend()}; leave it out and export the run's model.keras later "
            "under KERAS_BACKEND=tensorflow"
        )
    check_warmup_fits(SAVED_MODELS / recipe.name, WARMUP_BATCH_SIZES)


def export_run(folder: Path, name: str, class_names: Sequence[str]) -> None:
    """Writes a finished run's model as the next version in saved_models/NAME, each model once.

    `exported.json` in the run's folder says which model was written, and where.
    """
    from keras_vit.export import export_saved_model

    record, digest = folder / "exported.json", weights_digest(folder / "model.keras")
    known = read_json(record) if record.exists() else {}
    if known.get("model_sha256") == digest and Path(str(known.get("path"))).exists():
        print(f"  exported    {known['path']} is there already")
        return
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    path = export_saved_model(model, SAVED_MODELS / name, class_names=class_names)
    write_json(record, {"model_sha256": digest, "path": str(path.resolve())})
    print(f"  exported    {path}")


def resolve_recipe(recipe: Recipe, folder: Path | None = None) -> Recipe:
    """The recipe with what its options leave to the machine: precision and micro-batch.

    On an accelerator the micro-batch stays open until the model is there to be tried, but for a
    run that goes on: then it is what its folder says.
    """
    accelerator = find_accelerator()
    distribution, mixes = current_distribution(), mixes_images(recipe)
    distribution.check_batch("batch_size", recipe.batch_size, mixes=mixes)
    divisor = distribution.batch_divisor(mixes=mixes)
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
        fitting = max(divisor, 2 if mixes else 1, PIXELS_AT_ONCE_ON_CPU // recipe.image_size**2)
        sizes = batch_parts(recipe.batch_size, multiple_of=divisor, mixes=mixes)
        micro_batch_size = max((size for size in sizes if size <= fitting), default=None)
        if micro_batch_size is None:
            below = recipe.batch_size // fitting * fitting
            raise ValueError(
                "mixup and cutmix mix the images that are trained at once: 2 or more, here at most "
                f"{fitting}, and no such number divides batch_size={recipe.batch_size}. "
                f"Choose a multiple of {fitting}, such as {below} or {below + fitting}, or "
                f"micro_batch_size={sizes[0]} where the memory suffices"
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
    if recipe.epochs is not None and recipe.batch_size > train_images:
        print(
            f"batch_size={recipe.batch_size} is more than the {train_images:,} training images, so "
            f"{recipe.epochs:g} epochs are {changes['steps']:,} steps: a smaller --batch-size "
            "takes more."
        )
    changes["warmup_steps"] = min(
        changes.get("warmup_steps", recipe.warmup_steps), changes.get("steps", recipe.steps)
    )
    return dataclasses.replace(recipe, epochs=None, warmup_epochs=None, **changes)


def _describe_images(splits):
    """What is trained for, so that a wrong folder is seen before the first step."""
    names = splits.train.class_names
    more = ", …" if len(names) > MOST_CLASSES_NAMED else ""
    counts = [f"{len(splits.train):,} images to train on"]
    if splits.validation is not None:
        counts.append(f"{len(splits.validation):,} for validation")
    counts.append(f"{len(splits.test):,} for the test")
    return (
        f"{len(names):,} classes ({', '.join(map(printable, names[:MOST_CLASSES_NAMED]))}{more}): "
        f"{', '.join(counts)}"
    )


def _check_files(folder, splits):
    """Looks at every image file once, before the first step of a run."""
    sets = [images for images in (splits.train, splits.validation, splits.test) if images]
    files = sum(len(images) for images in sets if not images.in_memory)
    if files and not (folder / "recipe.json").exists():
        line = ProgressLine(files, " files looked at")
        check_images(*sets, progress=lambda done, _: line.show(done, ""))
        line.end()


def _accept_changes(changes, compiled, folder, configuration):
    """Makes the newest checkpoint one of the run as it is now; says and notes what changed."""
    checkpoints = folder / "checkpoints"
    done = restore_training_state(checkpoints, compiled, None)
    recipe = configuration["recipe"]
    _check_steps_are_left(changes, folder, done.step, recipe["steps"])
    lines = change_lines(changes)
    print(f"Going on with other options after step {done.step}:\n  " + "\n  ".join(lines))
    if host_number() > 0:
        return
    if changes.keys() & {"batch_size", "micro_batch_size"}:
        set_steps_done(compiled.optimizer, done.step)
    done = _with_all_seconds(done, folder)
    # The result first: a folder with one counts as finished. What a kill leaves follows next time.
    _put_aside(folder, done.step, ("result.json", "model.keras", *REPORT_FILES))
    identity = identity_digest(deciding_options(configuration))
    done = dataclasses.replace(done, evaluations_since_best=0)
    if done.best_step and (
        changes.keys() & set(_READ_IN_EVALUATION)
        or (recipe["keep"] == "best" and not hand_on_best(checkpoints, compiled, done, identity))
    ):
        print("  What was the best so far is not compared with what comes.")
        done = dataclasses.replace(done, best_accuracy=-1.0, best_step=0)
    save_training_state(checkpoints, compiled, done, identity)
    configuration["changes"].append({"after_step": done.step, "options": lines})


def _with_all_seconds(done, folder):
    """A checkpoint is of before the evaluations at the end; a result is of after them."""
    result = read_result(folder / "result.json")
    return dataclasses.replace(done, seconds=60 * result.minutes) if result else done


def _check_steps_are_left(changes, folder, done, steps):
    if done > steps:
        raise ValueError(
            f"{folder} is at step {done} already. Expected no fewer steps. Received: steps={steps}"
        )
    late = [name for name in changes if name not in _READ_AFTER_TRAINING]
    if done == steps and late:
        raise ValueError(
            f"{folder} is at step {done} of {steps}: none is left that {' and '.join(late)} could "
            "change. Train longer with more --steps, or choose another --name"
        )


def _put_aside(folder, step, names):
    """Keeps files of a finished run beside those that take their place."""
    paths = [folder / name for name in names if (folder / name).exists()]
    ending, number = f"_of_step_{step:08d}", 2
    while any(path.with_stem(path.stem + ending).exists() for path in paths):
        ending, number = f"_of_step_{step:08d}-{number}", number + 1
    for path in paths:
        kept = path.rename(path.with_stem(path.stem + ending))
        print(f"  {path} is kept as {kept.name}")


def _earlier_changes(folder):
    there = (folder / "recipe.json").exists()
    return read_configuration(folder).get("changes", []) if there else []


def _train_and_test(training, recipe, splits, folder, configuration, began, *, test):
    identity = identity_digest(deciding_options(configuration))
    done = _with_all_seconds(_restore(training, folder, identity), folder)
    meter = Meter(recipe.batch_size, recipe.steps, done.since_row)
    try:
        progress = _train(training, recipe, splits, folder, identity, done, meter, began)
    except (TrainingDiverged, FloatingPointError) as error:
        _restore(training, folder, identity)
        use_averaged_weights(training.compiled.optimizer)
        if host_number() == 0:
            _save_model(training.model, folder / "last_good.keras")
        raise TrainingDiverged(_advice(error, recipe, folder)) from error
    except _EvaluationOutOfMemory:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(_memory_advice(error, recipe)) from error
        raise
    if recipe.keep == "best" and progress.best_step:
        agree("best step", progress.best_step)
        restore_best(folder / "checkpoints", training.compiled, progress, identity)
    else:
        use_averaged_weights(training.compiled.optimizer)
    if host_number() == 0:
        _save_model(training.model, folder / "model.keras")
    judged = {}
    for name in ("validation", "test"):
        image_set = getattr(splits, name)
        if image_set is not None and (test or name != "test"):
            outputs, evaluation = _judge(training, image_set, recipe)
            judged[name] = image_set, outputs, evaluation
    result = make_result(
        configuration=configuration,
        test=judged["test"][2] if "test" in judged else None,
        validation=judged["validation"][2] if "validation" in judged else None,
        train_images=len(splits.train),
        left_out=splits.left_out,
        steps=progress.step,
        best_step=progress.best_step or None,
        seconds=done.seconds + time.perf_counter() - began,
        images_per_second=meter.images_per_second,
        waiting_share=meter.waiting_share,
    )
    if host_number() > 0:
        return result
    # A report of the validation images would pass for one of the test.
    _put_aside(folder, progress.step, REPORT_FILES)
    # A folder with a result counts as finished.
    write_result(folder / "result.json", result)
    if recipe.report and host_count() > 1:
        _write_missing_report(folder, recipe, result, splits)
    elif recipe.report:
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
    """The report of a run that was killed after its result, or that was told to write none.

    On several hosts it is always made so, by host 0: the model of the run is theirs together.
    """
    split = "test" if result.test else "validation"
    image_set = getattr(splits, split)
    with on_this_host_alone():
        model = keras.saving.load_model(folder / "model.keras", compile=False)
        outputs = None
        if image_set is not None:
            batch_size = min(recipe.evaluation_batch_size, len(image_set))
            (outputs,) = predict_outputs(model, image_set, batch_size=batch_size)
        _write_report(folder, model, result, splits.train, split, image_set, outputs)


def _restore(training, folder, identity):
    """The newest checkpoint, which must be the same on all hosts."""
    checkpoints = folder / "checkpoints"
    seen = sorted(path.name for path in checkpoints.glob("step_*.safetensors"))
    what = f"checkpoints in {checkpoints}, which must be a folder that they share"
    agree(what, seen)
    done = restore_training_state(checkpoints, training.compiled, identity)
    agree(what, f"step {done.step}")
    return done


def _train(training, recipe, splits, folder, identity, progress, meter, began):
    """Trains to the end, with log, evaluations and checkpoints; hands back how far it came."""
    start, earlier = progress.step, progress.seconds
    if start:
        print(f"Going on after step {start} of {recipe.steps}.")
    compiled = training.compiled
    writes = host_number() == 0
    if not start and writes:
        # So that there is a good state from the first step on.
        save_training_state(folder / "checkpoints", compiled, progress, identity)
    if _is_stopped_early(progress, recipe):
        return progress

    def evaluates(step):
        return splits.validation and _is_due(step, recipe.evaluate_every, recipe.steps)

    def checkpoints(step):
        return _is_due(step, recipe.checkpoint_every, recipe.steps)

    with contextlib.ExitStack() as stack:
        line = ProgressLine(recipe.steps)
        stack.callback(line.end)
        if writes:
            writer = stack.enter_context(CheckpointWriter(folder / "checkpoints", identity))
            log = stack.enter_context(contextlib.closing(RunLog(folder, start)))
        stop = stack.enter_context(stop_requests())
        steps = training_steps(
            compiled,
            recipe,
            training.batches,
            start,
            steps_per_epoch=training.steps_per_epoch,
            settles=lambda step: evaluates(step) or checkpoints(step) or bool(stop.signal),
        )
        for result in stack.enter_context(contextlib.closing(steps)):
            step = result.step
            meter.add(result)
            accuracy = {}
            if evaluates(step):
                with averaged_weights(compiled.optimizer):
                    _, evaluation = _judge(training, splits.validation, recipe)
                    progress = progress.evaluated(step, evaluation.accuracy)
                    if writes and recipe.keep == "best" and progress.best_step == step:
                        writer.save_best(compiled, progress)
                accuracy = {"validation_accuracy": evaluation.accuracy}
            ends = step == recipe.steps or _is_stopped_early(progress, recipe)
            due = ends or checkpoints(step)
            row = None
            # At a checkpoint too, so that a run that goes on from there logs the same rows.
            if due or evaluates(step) or _is_due(step, recipe.log_every, recipe.steps):
                row = {**meter.row(), **accuracy}
                if writes:
                    log.write(row)
            line.show(step, meter.text(row), seconds_left=meter.seconds_left, keep=bool(row))
            progress = dataclasses.replace(
                progress,
                step=step,
                seconds=earlier + time.perf_counter() - began,
                since_row=meter.since_row,
            )
            # A step that has begun is waited for.
            stops = stop.signal and result.settled
            if writes:
                writer.check()
                if due or stops:
                    saved = writer.save(compiled, progress)
                if stops:
                    saved.result()
            if stops:
                raise RunInterrupted(
                    f"{folder} stopped after step {step} of {recipe.steps}; the same command goes "
                    "on from there",
                    stop.signal,
                )
            if ends:
                break
    if _is_stopped_early(progress, recipe):
        print(
            f"Stopped early after step {progress.step} of {recipe.steps}: the best validation "
            f"accuracy, {progress.best_accuracy:.4f}, is that of step {progress.best_step}."
        )
    return progress


def _is_stopped_early(progress, recipe):
    patience = recipe.early_stopping
    return patience is not None and progress.evaluations_since_best >= patience


class _EvaluationOutOfMemory(MemoryError):
    """Not a step."""


def _judge(training, image_set, recipe) -> tuple[np.ndarray, Evaluation]:
    """The logits for a set, and how good they are."""
    began = time.perf_counter()
    try:
        outputs = training.predict(image_set)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        images = min(recipe.evaluation_batch_size, len(image_set))
        raise _EvaluationOutOfMemory(
            f"Evaluation of {images} images at once does not fit the memory: {_first_line(error)}\n"
            f"Try --evaluation-batch-size {max(1, images // 4)} (now "
            f"{recipe.evaluation_batch_size}), which changes no result: the run goes on from its "
            "last checkpoint"
        ) from error
    pace = len(image_set) / (time.perf_counter() - began)
    return outputs, judge_outputs(outputs, image_set.labels, images_per_second=pace)


def _is_due(step, every, last):
    return step == last or (every > 0 and step % every == 0)


def _save_model(model, path):
    with replaced_file(path) as beside:
        model.save(beside)


def _memory_advice(error, recipe):
    images, mixes = recipe.micro_batch_size or recipe.batch_size, mixes_images(recipe)
    divisor = current_distribution().batch_divisor(mixes=mixes)
    sizes = batch_parts(recipe.batch_size, multiple_of=divisor, mixes=mixes)
    fewer = [size for size in sizes if size <= images // 2]
    advice = []
    if fewer:
        advice.append(
            f"--micro-batch-size {fewer[-1]} (now {images}; the gradients of a batch of "
            f"{recipe.batch_size} are accumulated then)"
        )
    if not recipe.remat and recipe.adapt != "head":
        advice.append("--remat")
    advice.append(f"a smaller --batch-size (now {recipe.batch_size})")
    return (
        f"A step does not fit the memory: {_first_line(error)}\n"
        f"Try {', or '.join(advice)}: the last checkpoint stays, and with --accept-changes the run "
        f"goes on from there. A smaller --image-size (now {recipe.image_size}) has other positions "
        "and needs a run of its own, under another --name"
    )


def _first_line(error):
    return str(error).splitlines()[0] if str(error) else repr(error)


def _advice(error, recipe, folder):
    return (
        f"{error} The last good state is kept in {folder / 'last_good.keras'}.\n"
        f"Try, under another --name: a lower --learning-rate (now {recipe.learning_rate}), more "
        f"--warmup-steps (now {recipe.warmup_steps}), --clip-norm 1 (now {recipe.clip_norm}; 0 is "
        f"off), or --precision float32 (now {recipe.precision})"
    )
