"""The command line `keras-vit`: each subcommand is one function that calls the package."""

import argparse
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import keras
import numpy as np
from tyro.conf import Positional, PositionalMetavarFromFieldName, arg
from tyro.extras import subcommand_cli_from_dict

from keras_vit import checkpoints, data, export, finetune, inspection, models, serving, zoo
from keras_vit.data.class_names import imagenet_wordnet_ids
from keras_vit.export.classifier import check_has_classes
from keras_vit.finetune.command_line import USER_ERRORS, escape_what_cannot_be_printed
from keras_vit.finetune.log import ProgressLine
from keras_vit.finetune.signals import RunInterrupted
from keras_vit.finetune.source import print_left_out, read_left_out
from keras_vit.finetune.splits import split_source
from keras_vit.layers.nearest import nearest_names
from keras_vit.zoo import catalog

# Longest side, in pixels, of a picture on a sheet of many.
_SHEET_PICTURE = 360


def list_models(pattern: Positional[str] = "*", weights: bool = False) -> None:
    """Lists the models that can be built by name, or the published weights.

    Args:
        pattern: Shell pattern that the names must match, such as "*16*".
        weights: Published weights instead of models.
    """
    if weights:
        return _print_weights(pattern)
    names = zoo.list_models(pattern)
    if not names:
        raise ValueError(
            f"No model is called {pattern!r}. {nearest_names(pattern, models.VARIANTS)}"
        )
    columns = ("patch_size", "hidden_size", "depth", "mlp_dim", "num_heads")
    width = 2 + max(map(len, names))
    print(f"{'name':{width}}" + "".join(f"{column:>13}" for column in columns))
    for name in names:
        row = models.VARIANTS[name]
        print(f"{name:{width}}" + "".join(f"{row[column]:13}" for column in columns))
    return None


def inspect_file(file: Positional[str]) -> None:
    """Prints what a checkpoint holds: its format, the architecture found, its tensors.

    Args:
        file: A .npz, .safetensors, .h5 or .keras file, a folder as on the hub, or a name of
            `keras-vit list --weights`.
    """
    print(checkpoints.inspect_checkpoint(zoo.weights_path(file)))


def run_recipe(*words: str) -> None:
    """Fine-tunes a model, or goes on with a run that was interrupted.

    OUTPUT/NAME then holds report.html, model.keras, class_names.txt, log.csv, tensorboard,
    checkpoints, predictions.csv, and result.json with the test accuracy.
    """
    finetune.run(
        finetune.parse_recipe(words, program="keras-vit finetune", description=run_recipe.__doc__)
    )


def sweep(*words: str) -> None:
    """Chooses the learning rate on held-out training images, trains on all of them, tests once.

    Takes the options of `keras-vit finetune`, and --learning-rates RATE RATE …; without these the
    grid is the protocol's. OUTPUT/NAME holds a folder for each run, the last one of them
    `final-lr-RATE`, and sweep.json. Interrupted, the same command goes on.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--learning-rates", "--learning_rates", type=float, nargs="+")
    given, rest = parser.parse_known_args(words)
    recipe = finetune.parse_recipe(
        rest, program="keras-vit sweep", description=inspect.cleandoc(str(sweep.__doc__))
    )
    rates = given.learning_rates or finetune.recipe_learning_rates(rest, recipe)
    finetune.sweep(recipe, rates)


def compare(folders: Positional[tuple[str, ...]], output: str | None = None) -> None:
    """Compares runs: what they reached, in what time, and the options by which they differ.

    Args:
        folders: Folders of runs, finished or not, and of sweeps, whose final runs are compared.
        output: A folder for compare.html with the learning curves.
    """
    print(finetune.compare_runs(folders, output))


def evaluate(
    model: Positional[str],
    source: Annotated[str, arg(name="data")],
    data_dir: str | None = None,
    split: Literal["train", "validation", "test"] = "test",
    batch_size: int = 64,
    image_size: int | None = None,
    preprocessing: Literal["inception", "imagenet"] | None = None,
    damaged_images: Literal["error", "skip"] = "error",
) -> None:
    """Prints a model's accuracy on labelled images.

    Args:
        model: A run's folder, a .keras file, or a published checkpoint or its hub folder.
        source: A TFDS name, "digits", a folder with one sub-folder a class, or a .csv manifest. All
            images of a set without splits are looked at; of a run's own data set, those that the
            run kept for its test. If that has changed since, it is refused.
        data_dir: Folder of prepared TFDS data sets; None: the default of TFDS.
        split: Which images.
        batch_size: Images a batch.
        image_size: Height and width of the images the network sees, in pixels; None: the model's.
        preprocessing: How pixels are scaled, where the checkpoint does not say.
        damaged_images: Whether images that are missing, lead outside of the folder or cannot be
            decoded are an error, or are left out and listed; of a run's own data set, those that
            the run left out are left out.
    """
    classifier, class_names = _load_classifier(model, image_size, preprocessing)
    images = _load_split(source, data_dir, split, class_names, model, damaged_images)
    line = ProgressLine(len(images), " images")
    result = finetune.evaluate(
        classifier, images, batch_size=batch_size, progress=lambda done, _: line.show(done, "")
    )
    line.end()
    low, high = result.interval
    print(f"top-1   {result.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%})")
    print(f"top-5   {result.top5_accuracy:.2%}")
    print(f"images  {result.count:,} ({result.images_per_second:,.1f} a second)")


def predict(
    images: Positional[tuple[str, ...]],
    model: str,
    image_size: int | None = None,
    preprocessing: Literal["inception", "imagenet"] | None = None,
) -> None:
    """Prints the five likeliest classes of each image.

    Args:
        images: Image files.
        model: A run's folder, a .keras file, or a published checkpoint or its hub folder.
        image_size: Height and width of the images the network sees, in pixels; None: the model's.
        preprocessing: How pixels are scaled, where the checkpoint does not say.
    """
    if not images:
        raise ValueError("Expected one image file or more, found none on the command line")
    classifier, class_names = _load_classifier(model, image_size, preprocessing, hub_names=True)
    policy = classifier.get_layer("preprocessing")
    errors = []
    for file in images:
        try:
            image = data.decode_image(file)
        except (ValueError, OSError) as error:
            errors.append(str(error))
            continue
        pixels = data.prepare_image(image, classifier.input_shape[1:3], policy)
        outputs = np.asarray(classifier.predict_on_batch(pixels[None]))
        print(file)
        _print_likeliest(outputs, classifier, class_names)
    if errors:
        raise ValueError("\n".join(errors))


def explain(
    images: Positional[tuple[str, ...]],
    model: str,
    output: str,
    head_fusion: Literal["mean", "max", "min"] = "mean",
    block: int | None = None,
    heads: bool = False,
    image_size: int | None = None,
    preprocessing: Literal["inception", "imagenet"] | None = None,
) -> None:
    """Draws over each image where the network looks, and prints the five likeliest classes.

    The colours are attention rollout (Abnar and Zuidema, 2020), dark for little and light for much;
    what the network does not see of an image is dimmed.

    Args:
        images: Image files.
        model: A run's folder, a .keras file, or a published checkpoint or its hub folder.
        output: Folder of the pictures, NAME.png for an image NAME.jpg; NAME-2.png where that is
            taken: no file is replaced.
        head_fusion: How the attention of a block's heads becomes one; not for --heads.
        block: Draw the class token's attention in this block instead; -1 is the last. Models
            that pool the patches: the patches' mean attention.
        heads: Draw every head of the block (of the last unless told) on a sheet, row by row.
        image_size: Height and width of the images the network sees, in pixels; None: the model's.
        preprocessing: How pixels are scaled, where the checkpoint does not say.
    """
    if not images:
        raise ValueError("Expected one image file or more, found none on the command line")
    if heads:
        _refuse_unread(explain, {"head_fusion": head_fusion}, "--heads, which draws each by itself")
    classifier, class_names = _load_classifier(model, image_size, preprocessing, hub_names=True)
    if heads or block is not None:
        looking = inspection.patch_attention(
            classifier, -1 if block is None else block, head_fusion=None if heads else head_fusion
        )
    else:
        looking = inspection.attention_rollout(classifier, head_fusion=head_fusion)
    both = keras.Model(classifier.input, [classifier.output, looking.output])
    folder = Path(output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    errors = []
    for file in images:
        try:
            image = data.decode_image(file)
        except (ValueError, OSError) as error:
            errors.append(str(error))
            continue
        policy, size = classifier.get_layer("preprocessing"), classifier.input_shape[1:3]
        pixels = data.prepare_image(image, size, policy)
        outputs, maps = (np.asarray(part) for part in both.predict_on_batch(pixels[None]))
        if heads:
            image = inspection.shrink_image(image, _SHEET_PICTURE)
        height, width, _ = image.shape
        box = inspection.seen_box(height, width, size, policy)
        pictures = [
            inspection.draw_overlay(image, patch_map, box=box)
            for patch_map in (maps[0] if heads else maps)
        ]
        path = inspection.write_picture(inspection.draw_sheet(pictures), folder, Path(file).stem)
        print(f"{file} → {path}")
        _print_likeliest(outputs, classifier, class_names)
    if errors:
        raise ValueError("\n".join(errors))


def export_model(
    model: str | None = None,
    output: str | None = None,
    format: Literal["saved_model", "onnx", "openvino", "litert"] = "saved_model",
    class_names: str | None = None,
    version: int | None = None,
    precision: str = "float32",
    image_size: int | None = None,
    preprocessing: Literal["inception", "imagenet"] | None = None,
    sparsity: float = 0.0,
    calibration: str | None = None,
    top: int = 5,
    max_bytes: int = export.DEFAULT_LIMITS.max_bytes,
    max_pixels: int = export.DEFAULT_LIMITS.max_pixels,
    on_error: Literal["row", "fail"] = "row",
    attention: bool = False,
    token_parts: int = 1,
    warmup_batch_sizes: tuple[int, ...] = (1, 8),
    check: str | None = None,
) -> int:
    """Writes a model for TensorFlow Serving or another engine, or checks one: --check FOLDER.

    Args:
        model: A run's folder, a .keras file, or a published checkpoint or its hub folder.
        output: Folder of the exported model, whose name it is served under; the version becomes a
            sub-folder of it.
        format: "saved_model" takes encoded images or pixels; the others take pixels.
        class_names: Text file of the names of the classes, one a line; None: class_names.txt beside
            the model, or the names that it tells.
        version: Number of the version; None: the next free one.
        precision: saved_model: "float32", "bfloat16", "int8-dynamic". onnx: "float32", "int8",
            "int8-dynamic". openvino: "float32", "float16", "bfloat16", "int8". litert: "float32",
            "float16", "int8-dynamic".
        image_size: Height and width of the images the network sees, in pixels; None: the model's.
        preprocessing: How pixels are scaled, where the checkpoint does not say.
        sparsity: Share of each kernel's weights, the smallest, that are set to zero first.
        calibration: Folder of images, about 100 of the training set, for precision "int8".
        top: saved_model: number of classes and scores that are handed back for an image.
        max_bytes: saved_model: largest image file that is taken.
        max_pixels: saved_model: largest image that is decoded, height times width.
        on_error: saved_model: what a bad image fails, its own row of the answer or the call.
        attention: saved_model: export the signature `attention` too.
        token_parts: saved_model: parts of an image's tokens for a server with so many cores that
            runs with --tensorflow_intra_op_parallelism=1.
        warmup_batch_sizes: saved_model: sizes of the batches that the server runs before it takes
            requests.
        check: A SavedModel of any origin, such as saved_models/pets/1, to be checked instead of
            writing one; no other option is taken then. Exit status 1 if a check fails.
    """
    given = dict(locals())
    if check is not None:
        others = {**given, "check": None}
        _refuse_unread(export_model, others, "--check FOLDER, which checks what is there")
        return _print_checks(check)
    if model is None or output is None:
        raise ValueError("say what to export and where to: --model MODEL --output FOLDER")
    serving_options: dict[str, Any] = {
        "top": top,
        "limits": export.ImageLimits(max_bytes, max_pixels),
        "on_error": on_error,
        "attention": attention,
        "token_parts": token_parts,
        "warmup_batch_sizes": warmup_batch_sizes,
    }
    if format == "saved_model" and calibration is not None:
        raise ValueError("--calibration is for --precision int8, which a SavedModel does not have")
    if format != "saved_model":
        reason = f"--format {format}, since only a SavedModel has such options"
        _refuse_unread(export.export_saved_model, serving_options, reason)
    classifier, names = _load_classifier(
        model, image_size, preprocessing, hub_names=True, names_file=class_names
    )
    if names is None:
        names = _indices(classifier)
        print(
            f"keras-vit: warning: {model} does not name its classes: the names exported are "
            f"{names[0]} to {names[-1]}. Name them with --class-names FILE, one a line",
            file=sys.stderr,
        )
    options: dict[str, Any] = {
        "class_names": names,
        "version": version,
        "precision": precision,
    }
    if format == "saved_model":
        classifier = export.prune(classifier, sparsity) if sparsity else classifier
        print(export.export_saved_model(classifier, output, **options, **serving_options))
    else:
        options |= {"sparsity": sparsity, "calibration_images": calibration}
        print(export.export_engine(classifier, output, format, **options))
    return 0


def _refuse_unread(function, options, reason):
    """Raises for options that are not at the default of `function`, which is not called."""
    parameters = inspect.signature(function).parameters
    unread = [name for name, value in options.items() if value != parameters[name].default]
    if unread:
        names = " and ".join(f"`{name}`" for name in unread)
        raise ValueError(f"nothing reads {names} with {reason}: leave out what is not read")


def _print_checks(folder):
    verdicts = serving.check_saved_model(folder)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if verdicts[0] in failed:
        raise ValueError(f"{folder} is no SavedModel: {verdicts[0].detail}")
    width = max(len(verdict.check) for verdict in verdicts)
    for verdict in verdicts:
        sign = "FAIL" if verdict in failed else "ok" if verdict.applies else "n/a"
        print(f"{sign:6}{verdict.check:{width}}  {verdict.detail}")
    applicable = [verdict for verdict in verdicts if verdict.applies]
    print(f"\n{folder}: {'not ready to be served' if failed else 'ready to be served'}, ", end="")
    print(f"{len(applicable) - len(failed)} of {len(applicable)} checks passed", end="")
    print(f", {len(verdicts) - len(applicable)} do not apply")
    return int(bool(failed))


def serve_check(
    addresses: Positional[tuple[str, ...]],
    model: str | None = None,
    images: str | None = None,
    requests: int = 200,
    clients: int = 4,
    batch_size: int = 1,
    hostile: float = 0.05,
    tolerance: float = 1e-4,
    timeout: float = 30.0,
    max_pixels: int = export.DEFAULT_LIMITS.max_pixels,
) -> int:
    """Checks a running model server by REST and gRPC: good, bad and many requests.

    Prints a verdict for each check and the latencies last. Exit status 1 if a check fails.

    Args:
        addresses: HOST:PORT of REST (TensorFlow Serving: 8501), of gRPC (8500), or both.
        model: Name of the served model.
        images: Folder of JPEG and PNG files to send, of which the first 8 are read, and as many as
            the load sends; None: pictures of its own making.
        requests: Requests of the load, for each protocol; 0: no load.
        clients: How many requests are under way at a time.
        batch_size: Pictures in a request of the load.
        hostile: Share of the load's requests that have a bad picture among theirs.
        tolerance: How far two answers for the same picture may differ.
        timeout: Seconds to wait for an answer.
        max_pixels: Largest image that the model takes, height times width, as it was exported.
    """
    report = serving.serve_check(
        addresses,
        model=model,
        images=images,
        requests=requests,
        clients=clients,
        batch_size=batch_size,
        hostile=hostile,
        tolerance=tolerance,
        timeout=timeout,
        max_pixels=max_pixels,
    )
    print(report)
    return int(not report.passed)


def convert(
    source: Positional[str],
    target: Positional[str],
    format: Literal["timm", "hf", "google"] = "timm",
    preprocessing: Literal["inception", "imagenet"] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model as a published format, for timm, transformers or Google's code to load.

    Args:
        source: A run's folder, a .keras file, or a published checkpoint or its hub folder.
        target: Folder to be written (timm, hf), or .npz file (google).
        format: Whose names and layout.
        preprocessing: How pixels are scaled, where the source does not say.
        overwrite: Replace what an earlier conversion wrote there.
    """
    model = zoo.from_checkpoint(source, preprocessing=preprocessing)
    config, path = models.config_of(model), Path(source).expanduser()
    names = (path if path.is_dir() else path.parent) / "class_names.txt"
    has_names = config.include_top and path.exists() and names.exists()
    written = checkpoints.save_checkpoint(
        model,
        target,
        format,
        preprocessing=None if config.include_preprocessing else preprocessing,
        class_names=_class_names(names, config.num_classes) if has_names else None,
        overwrite=overwrite,
    )
    print(written)


COMMANDS: dict[str, Callable[..., Any]] = {
    "list": list_models,
    "inspect": inspect_file,
    "finetune": run_recipe,
    "sweep": sweep,
    "compare": compare,
    "evaluate": evaluate,
    "predict": predict,
    "explain": explain,
    "export": export_model,
    "serve-check": serve_check,
    "convert": convert,
}


# Their options depend on the protocol, so that they read the words themselves.
RECIPE_COMMANDS = ("finetune", "sweep")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `keras-vit`.

    Args:
        arguments: The command line without the program's name; None: the process's.

    Returns:
        The exit status: 0, 1 when a check found something, 2 after an error, 130 when interrupted
        from the keyboard, or 143 when a run was told to end (SIGTERM).

    Raises:
        SystemExit: After `--help`, and for a command line that cannot be read.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    escape_what_cannot_be_printed()
    try:
        if words and words[0] in RECIPE_COMMANDS:
            COMMANDS[words[0]](*words[1:])
            return 0
        status = subcommand_cli_from_dict(
            COMMANDS,
            prog="keras-vit",
            description="Vision Transformers: published weights in, fine-tuned, SavedModel out.",
            args=words,
            config=(PositionalMetavarFromFieldName,),
        )
    except USER_ERRORS as error:
        if os.environ.get("KERAS_VIT_TRACEBACK"):
            raise
        print(f"keras-vit: {error}", file=sys.stderr)
        return 2
    except RunInterrupted as error:
        print(f"keras-vit: {error}", file=sys.stderr)
        return 128 + error.signal
    except KeyboardInterrupt:
        print("keras-vit: interrupted", file=sys.stderr)
        return 130
    return status or 0


def _print_weights(pattern):
    """A table of 120 columns at most; a file's size is unknown where the publisher tells none."""
    names = catalog.list_weights(pattern)
    if not names:
        raise ValueError(
            f"No published weights are called {pattern!r}. "
            f"{nearest_names(pattern, catalog.list_weights())}"
        )
    layout = "{:34} {:18} {:>4} {:>10} {:>9} {:>17}  {}"
    print(layout.format("name", "model", "px", "parameters", "size", "accuracy", "licence"))
    for entry in map(catalog.find, names):
        parameters, size, accuracy = entry.parameters, entry.size, "unknown"
        if entry.accuracy:
            first = entry.accuracy[0]
            accuracy = f"{'zero-shot ' * first.metric.startswith('zero')}{first.value:.1f} %"
        print(
            layout.format(
                entry.name,
                entry.variant,
                entry.image_size,
                f"{parameters / 1e6:.1f} M" if parameters else "unknown",
                f"{size / 1e6:.1f} MB" if size else "unknown",
                accuracy,
                entry.licence,
            )
        )
    print("accuracy: top-1 on ImageNet-1k, as its publisher or timm measured it")


def _load_classifier(model, image_size, preprocessing, hub_names=False, names_file=None):
    """The model to be asked, which returns logits, and the names of its classes or None.

    They are those of `names_file`, or found beside the model; with `hub_names`, to be shown, in a
    hub's config.json too.
    """
    path = Path(model).expanduser()
    classifier = zoo.from_checkpoint(
        path, image_size=image_size, preprocessing=preprocessing, head_output="average"
    )
    config = models.config_of(classifier)
    if not classifier.load_report.num_classes:
        raise ValueError(f"{path} has no classification head; fine-tune it first")
    if not config.include_preprocessing:
        raise ValueError(
            f"{path} does not say how images become its input: it has no `preprocessing` layer. "
            "Build it with include_preprocessing=True"
        )
    if len(classifier.output_shape) != 2:
        raise ValueError(f"{path} answers for every token; expected one answer an image")
    check_has_classes(classifier)
    folder = path if path.is_dir() else path.parent
    names = folder / "class_names.txt" if path.exists() else None  # Else weights fetched by name.
    count = classifier.output_shape[-1]
    if names_file is not None:
        return classifier, _read_class_names(Path(names_file).expanduser(), count)
    if hub_names and not (names and names.exists()):
        return classifier, _told_class_names(path, count)
    return classifier, _class_names(names, count)


def _told_class_names(path, count):
    """The class names that a hub's config.json tells; else ImageNet's for 1000 classes, or None."""
    names = _hub_class_names(path, count)
    if names is None and count == 1000:
        if path.exists():  # Not weights fetched by name.
            print(f"{path} does not name its 1000 classes: taken for ImageNet's", file=sys.stderr)
        names = data.imagenet_class_names()
    return names


def _hub_class_names(path, count):
    """The class names in the config.json of timm or transformers, or None."""
    with checkpoints.open_checkpoint(zoo.weights_path(path)) as checkpoint:
        config = checkpoint.file.hub_config or {}
    names, labels = config.get("label_names"), config.get("id2label")
    if names is None and isinstance(labels, dict):
        names = [labels.get(str(index)) for index in range(count)]
    if not isinstance(names, list) or len(names) != count:
        return None
    if not all(isinstance(name, str) and name for name in names):
        return None
    # What transformers calls classes that have no names.
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return None
    is_imagenet = tuple(names) == imagenet_wordnet_ids()
    return data.imagenet_class_names() if is_imagenet else tuple(names)


def _class_names(file, count):
    if file is None or not file.exists():
        return data.imagenet_class_names() if count == 1000 else None
    return _read_class_names(file, count)


def _read_class_names(file, count):
    names = tuple(file.read_text(encoding="utf-8").splitlines())
    if len(names) != count:
        raise ValueError(f"{file} must hold {count} lines, one a class. Found: {len(names)}")
    return names


def _indices(classifier):
    return tuple(map(str, range(classifier.output_shape[-1])))


def _print_likeliest(outputs, classifier, class_names):
    """The five likeliest classes of the one image in a batch."""
    activation = models.config_of(classifier).classifier_activation
    is_probable = activation in ("softmax", "sigmoid")
    probabilities = outputs[0] if is_probable else np.asarray(keras.ops.softmax(outputs))[0]
    class_names = class_names or _indices(classifier)
    for index in np.argsort(-probabilities, kind="stable")[:5]:
        print(f"  {probabilities[index]:7.2%}  {class_names[index]}")


def _load_split(source, data_dir, split, class_names, model, damaged_images):
    loaded = _as_in_the_run(source, data_dir, model)
    if loaded is None:
        loaded = data.load_data(
            source,
            data_dir=data_dir,
            class_names=class_names,
            test_fraction=1,
            damaged_images=damaged_images,
        )
        print_left_out(loaded)
        if loaded.train is None:
            _check_is_another_set(source, loaded.name, model)
    images = getattr(loaded, split)
    if images is None:
        present = [name for name in ("train", "validation", "test") if getattr(loaded, name)]
        raise ValueError(f"{source} has no {split} images. Expected --split {' or '.join(present)}")
    if class_names is not None and isinstance(loaded, data.DataSource):
        data.check_class_names(loaded, class_names, model)
    return images


def _as_in_the_run(source, data_dir, model):
    """The splits of a run's own data set, as the run took them; None for any other."""
    folder = _run_folder(model)
    if folder is None:
        return None
    configuration = finetune.read_configuration(folder)
    recipe = finetune.recipe_from_fields(configuration["recipe"], folder / "recipe.json")
    try:
        with warnings.catch_warnings():
            # What makes a poor set to train on was said when the run began.
            warnings.simplefilter("ignore")
            loaded = data.load_data(
                source,
                data_dir=data_dir,
                damaged_images=recipe.damaged_images,
                left_out=read_left_out(folder),
            )
    except (ValueError, FileNotFoundError):
        # No run could have been trained on it.
        return None
    if loaded.digest != configuration["data"]["digest"]:
        return None
    print(f"{source} is the data set of this run, divided as the run divided it")
    print_left_out(loaded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # As above.
        return split_source(loaded, recipe)


def _check_is_another_set(source, name, model):
    """Whether a set that is not divided may hold what a run trained on: refuses, or warns."""
    folder = _run_folder(model)
    if folder is None:
        return
    configuration = finetune.read_configuration(folder)
    places = [Path(place).expanduser() for place in (source, configuration["recipe"]["data"])]
    if places[0].resolve() == places[1].resolve():
        raise ValueError(
            f"{source} is what {folder} was trained on, and its classes, labels, files or file "
            "sizes have changed since: which images the run kept for its test cannot be told any "
            "more. Evaluate new images from a folder or .csv file of their own; a .csv file or a "
            "copy of all evaluates all, what was trained on too"
        )
    if name == configuration["data"]["name"]:
        print(
            f"keras-vit: warning: {source} is called like the data set that {folder} was trained "
            "on, and is not the same. Where it holds images that were trained on, the accuracy is "
            "too high",
            file=sys.stderr,
        )


def _run_folder(model):
    """The folder of the run that a model is from; None where it is of none."""
    path = Path(model).expanduser()
    folder = path if path.is_dir() else path.parent
    return folder if (folder / "recipe.json").exists() else None


if __name__ == "__main__":
    sys.exit(main())
