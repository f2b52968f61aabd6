"""One fine-tuning run, from a recipe to a result."""

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vit.checkpoints import load_checkpoint, open_checkpoint
from keras_vit.data import (
    Augment,
    Augmentation,
    DataSource,
    ImageSet,
    TrainingBatches,
    cache_folder,
    check_class_names,
    check_images,
    join,
    load_data,
    split_images,
    subset,
)
from keras_vit.data.batches import Batches
from keras_vit.finetune.adaptation import prepare_for_training, split_at_head
from keras_vit.finetune.batch_size import largest_fitting
from keras_vit.finetune.evaluation import (
    Evaluation,
    judge_outputs,
    predict_on_device,
    predict_outputs,
    with_device_resizing,
)
from keras_vit.finetune.features import FeatureBatches, cached_features
from keras_vit.finetune.folder import (
    check_folder,
    deciding_options,
    describe_run,
    read_configuration,
)
from keras_vit.finetune.html_report import write_report
from keras_vit.finetune.log import Meter, ProgressLine, RunLog
from keras_vit.finetune.loop import TrainingDiverged, compile_for_training, training_steps
from keras_vit.finetune.optimizer import averaged_weights, use_averaged_weights
from keras_vit.finetune.precision import find_accelerator, resolve_precision
from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.report import (
    RunResult,
    make_result,
    read_result,
    write_result,
)
from keras_vit.finetune.reproducibility import fix_order_of_operations
from keras_vit.finetune.rules import WeightPlan, format_plans
from keras_vit.finetune.state import (
    Progress,
    identity_digest,
    replace_file,
    restore_training_state,
    save_training_state,
    write_json,
)
from keras_vit.models import VisionTransformerConfig, vision_transformer
from keras_vit.models.variants import get_variant
from keras_vit.zoo import checkpoint_config, weights_path

DEFAULT_MODEL = "vit_ti16"
# 64 images of 224 px: ViT-B/16 then trains within some 20 GiB.
PIXELS_AT_ONCE_ON_CPU = 64 * 224**2


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
    test: bool = True,
) -> RunResult:
    """Fine-tunes a model as a recipe says; goes on where an interrupted run of it stopped.

    The folder OUTPUT/NAME then holds `recipe.json`, `log.csv`, `tensorboard/`, `checkpoints/`
    (the last two), `model.keras`, `class_names.txt`, `result.json`, and `report.html` with
    `figures/` and `predictions.csv`. A run that is finished already is not repeated: its result
    is handed back.

    Args:
        recipe: All options.
        source: The images, instead of what `recipe.data` names.
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
    source = source or load_data(recipe.data, data_dir=recipe.data_dir, seed=recipe.seed)
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
        _check_files(folder, splits)
        training, recipe = set_up_training(model, recipe, splits)
        configuration = describe_run(recipe, source, architecture)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "recipe.json", configuration)
        names = "\n".join(source.class_names) + "\n"
        replace_file(folder / "class_names.txt", names.encode())
        result = _train_and_test(training, recipe, splits, folder, configuration, test)
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
    if validation is not None and recipe.own_validation != "hold_out":
        if recipe.own_validation == "train":
            train = join(train, validation)
        validation = None
    if validation is None and recipe.validation_fraction:
        # Of a small set at least as many images as there are classes.
        fraction = max(recipe.validation_fraction, len(train.class_names) / len(train))
        if fraction > 0.5:
            raise ValueError(
                f"{len(train)} training images of {len(train.class_names)} classes are too few to "
                "hold some out for validation: pass --validation-fraction 0"
            )
        train, validation = split_images(train, fraction, seed=recipe.seed)
    if recipe.test_images is not None and recipe.test_images < len(test):
        test = subset(test, recipe.test_images, seed=recipe.seed)
    return Splits(train, validation, test)


def model_config(
    recipe: Recipe,
    architecture: VisionTransformerConfig | None = None,
    num_classes: int = 2,
) -> VisionTransformerConfig:
    """The architecture of a recipe: as given, its `model`'s, or its checkpoint's.

    Raises:
        ValueError: For an unknown model, an image size that does not fit it, a file that is no
            checkpoint, or a checkpoint of another size than `model`.
    """
    options: dict[str, Any] = {
        "image_size": recipe.image_size,
        "dropout": recipe.dropout,
        "attention_dropout": recipe.attention_dropout,
        "drop_path": recipe.drop_path,
    }
    if recipe.preprocessing:
        options["preprocessing"] = recipe.preprocessing
    if architecture:
        return dataclasses.replace(architecture, num_classes=num_classes, **options)
    if not recipe.weights:
        row = get_variant(recipe.model or DEFAULT_MODEL)
        return VisionTransformerConfig(**row | options | {"num_classes": num_classes})
    row = get_variant(recipe.model) if recipe.model else {}
    path = weights_path(recipe.weights)
    with open_checkpoint(path) as checkpoint:
        facts = checkpoint.facts
    for field in ("patch_size", "hidden_size", "depth", "mlp_dim", "num_heads"):
        wanted = row.get(field)
        if wanted is not None and facts.get(field, wanted) not in (wanted, (wanted, wanted)):
            raise ValueError(
                f"{recipe.weights} is no {recipe.model}: its {field} is {facts[field]}, expected "
                f"{wanted}. Leave --model out to take the checkpoint's"
            )
    config = checkpoint_config(
        path,
        num_classes,
        num_heads=None if "num_heads" in facts else row.get("num_heads"),
        include_top=True,
        include_preprocessing=True,
        **options,
    )
    if config.pooling is None:
        raise ValueError(
            f"{recipe.weights} pools nothing: it answers for every token. A classifier needs one "
            "answer an image; build the model with a pooling and save it first"
        )
    return dataclasses.replace(config, classifier_activation=None, representation_size=None)


def build_model(recipe: Recipe, config: VisionTransformerConfig) -> keras.Model:
    """The model of a recipe, with the weights it starts from and a head of zeros."""
    # Evaluation, prediction and export prepare images as training does: no margin is cut off.
    preprocessing = dataclasses.replace(
        config.preprocessing,
        crop_fraction=1.0,
        crop_mode="center",
        interpolation=recipe.interpolation,
    )
    config = dataclasses.replace(config, preprocessing=preprocessing)
    name = recipe.model or "vision_transformer"
    model = vision_transformer(config, dtype=recipe.precision, name=name)
    if recipe.weights:
        accept = ("preprocessing",) if recipe.preprocessing else ()
        # The checkpoint's classes are others, even where there are as many of them.
        report = load_checkpoint(model, weights_path(recipe.weights), accept=accept, new_head=True)
        print(report, flush=True)
    return model


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

    def attempt(size):
        parts = dataclasses.replace(recipe, micro_batch_size=size)
        attempts[size] = compile_training(parts), parts
        _try_step(attempts[size][0], size)

    return attempts[largest_fitting(recipe.batch_size, attempt)]


def _try_step(training, size):
    """Runs one micro-batch and undoes it."""
    model = training.compiled
    variables = [*model.variables, *model.optimizer.variables]
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    inputs, targets = training.batches[0]
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
    )
    inputs = {
        name: keras.Input(shape, dtype=dtype, name=name)
        for name, (shape, dtype) in batches.input_spec.items()
    }
    augment = Augment(batches.augmentation, name="augment")
    compiled = keras.Model(inputs, model(augment(inputs)), name="training")
    # One graph for all sets whose images have the same size.
    graphs: dict = {}

    def predict(image_set):
        key = image_set.image_size
        graphs[key] = graphs.get(key) or with_device_resizing(model, image_set)
        (outputs,) = predict_on_device(
            graphs[key],
            model.get_layer("preprocessing"),
            image_set,
            image_size=model.input_shape[1:3],
            batch_size=min(recipe.evaluation_batch_size, len(image_set)),
        )
        return outputs

    return compiled, batches, predict


def _head_training(model, recipe, splits):
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
        return np.asarray(classifier.predict(features(image_set), verbose=0), "float32")

    return classifier, batches, predict


def _train_and_test(training, recipe, splits, folder, configuration, test):
    identity = identity_digest(deciding_options(configuration))
    began = time.perf_counter()
    done = restore_training_state(folder / "checkpoints", training.compiled, identity)
    meter = Meter(recipe.batch_size, recipe.steps)
    try:
        _train(training, recipe, splits, folder, identity, done, meter)
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
        seconds=seconds,
        images_per_second=meter.images_per_second,
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


def _train(training, recipe, splits, folder, identity, done, meter):
    """Trains to the last step, with its log, evaluations and checkpoints."""
    if done.step:
        print(f"Going on after step {done.step} of {recipe.steps}.")
    began = time.perf_counter()
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
