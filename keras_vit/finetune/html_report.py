"""The report of a run: one HTML file that shows what it did, without a network."""

from __future__ import annotations

import base64
import datetime
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from keras_vit.data import ImageSet, decode_image, prepare_image
from keras_vit.finetune.evaluation import wilson_interval
from keras_vit.finetune.figures import (
    MOST_CLASSES_DRAWN,
    calibration_figure,
    confusion_figure,
    plot_style,
    run_curves,
    save_figures,
)
from keras_vit.finetune.log import read_log
from keras_vit.finetune.metrics import (
    calibration,
    class_accuracies,
    confusion_matrix,
    most_confused,
)
from keras_vit.finetune.page import (
    UNKNOWN,
    check_packages,
    memory_text,
    option_text,
    percent,
    render,
)
from keras_vit.finetune.predictions import (
    NO_ANSWER,
    Predictions,
    make_predictions,
    write_predictions,
)
from keras_vit.finetune.recipe import Recipe, recipe_fields
from keras_vit.finetune.repetition import plain_options, repeat_command, shell_text
from keras_vit.finetune.report import RunResult
from keras_vit.finetune.state import replace_file
from keras_vit.inspection import attention_rollout, draw_overlay, seen_box, shrink_image

CALIBRATION_BINS = 15
SHOWN_MISTAKES = 12
SHOWN_LOOKS = 8
SHOWN_PAIRS = 12
SHOWN_LEFT_OUT = 100
# Rows and columns of the confusion matrix of many classes.
GROUPS = 50
# Longest side of a picture in the report, in pixels; small images are enlarged to about that.
PICTURE_SIZE = 224
# Parts of an architecture that a run takes from the recipe and the data instead.
_FROM_RECIPE = (
    *("num_classes", "image_size"),
    *("dropout", "attention_dropout", "drop_path", "efficient_drop_path", "remat"),
)


def write_report(
    folder: str | Path,
    *,
    model: keras.Model | None,
    result: RunResult,
    image_set: ImageSet | None = None,
    outputs: np.ndarray | None = None,
    split: str = "test",
    train_set: ImageSet | None = None,
    weights_table: str | None = None,
    command: Sequence[str] | None = None,
) -> Path:
    """Writes report.html, predictions.csv and figures/*.png into a run's folder.

    The page is one file that fetches nothing: plots are drawings inside it, pictures are data
    URIs. It reads log.csv in the folder for the learning curves.

    Args:
        folder: The run's folder, or another; it is made.
        model: The trained model, for attention rollout; None: without.
        result: What result.json holds.
        image_set: The images that the model was tested on, a split of them; None where a run looks
            at none: then without all that is said of them.
        outputs: float array `(count, classes)` of the model's logits, in the set's order.
        split: What these images are called: `"test"` or `"validation"`. Of others than `"test"`
            the headline is counted in `outputs`.
        train_set: The images trained on, for their number in each class; None: without.
        weights_table: Text that says which weights were trained, and how; None: without.
        command: The command line that repeats the run; None: `repeat_command` of its options.

    Returns:
        The path of report.html.

    Raises:
        ImportError: If matplotlib or jinja2 is not installed; they come with the extra `recipes`.
            predictions.csv is written all the same.
        ValueError: If `outputs` do not fit `image_set`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    predictions = None
    if image_set is not None and outputs is not None:
        predictions = make_predictions(image_set, outputs)
        write_predictions(folder / "predictions.csv", predictions)
    check_packages()
    rows = read_log(folder / "log.csv")
    with plot_style():
        figures = run_curves(rows) if rows else {}
        if predictions is not None:
            figures |= _prediction_figures(predictions)
        drawings = save_figures(figures, folder / "figures")
    context = {
        **_run_facts(result, split, predictions, command),
        "drawings": drawings,
        "log_rows": len(rows),
        "weights_table": weights_table,
        "predictions": predictions is not None,
    }
    if predictions is not None and image_set is not None:
        context |= _prediction_facts(predictions, train_set)
        context["mistakes"] = _mistakes(predictions, image_set)
        context |= _attention_facts(model, predictions, image_set)
    path = folder / "report.html"
    replace_file(path, render("report.html", title=result.name, **context))
    return path


def _run_facts(result, split, predictions, command):
    """What the page says of the run itself."""
    configuration, recipe = result.configuration, result.configuration["recipe"]
    defaults = plain_options(recipe_fields(Recipe()))
    options = [{"name": name, "value": option_text(value)} for name, value in recipe.items()]
    changed = [
        {"name": name, "value": option_text(value), "default": option_text(defaults.get(name))}
        for name, value in recipe.items()
        if value != defaults.get(name, not value)
    ]
    own = [
        name
        for name, is_own in (
            ("an architecture", configuration.get("architecture")),
            ("a data set", _is_own_data(configuration)),
        )
        if is_own
    ]
    finished = datetime.datetime.fromisoformat(result.finished)
    return {
        "result": result,
        "data": configuration["data"],
        "class_count": configuration["data"]["classes"],
        "finished": f"{finished.day} {finished:%B %Y, %H:%M} UTC",
        "headline": _headline(result, split, predictions),
        "tiles": _tiles(result),
        "split": split,
        "options": options,
        "changed": changed,
        "fact_lists": _fact_lists(result, predictions, split),
        "left_out": result.left_out[:SHOWN_LEFT_OUT],
        "command": shell_text(command or repeat_command(recipe)),
        "changes_on_the_way": configuration.get("changes", []),
        "from_python": " and ".join(own),
    }


def _is_own_data(configuration):
    """Whether the data set was handed to `run`, as far as its name tells."""
    given, name = configuration["recipe"]["data"], configuration["data"]["name"]
    path, named = Path(given).expanduser(), given.partition(":")[0]
    # In the cache a TFDS set has "-" for "/", and a config where none was named.
    names = (named, named.replace("/", "-"), path.name, path.stem)
    return name not in names and not name.startswith(f"{named}/") and not path.exists()


def _headline(result, split, predictions):
    if result.test is not None and (predictions is None or split == "test"):
        return {**vars(result.test), "label": "Test accuracy"}
    if predictions is not None:
        correct, count = int(predictions.correct.sum()), len(predictions)
        return {
            "label": f"{split.capitalize()} accuracy",
            "accuracy": correct / count,
            "interval": wilson_interval(correct, count),
            "count": count,
            "top5_accuracy": None,
        }
    if result.validation is not None:
        return {**vars(result.validation), "label": "Validation accuracy"}
    return None


def _tiles(result):
    recipe, machine, versions = result.configuration["recipe"], result.machine, result.versions
    validation = result.validation
    accelerators = machine.get("accelerators") or 1
    device = (
        machine["accelerator"]
        if accelerators == 1
        else (f"{accelerators} x {machine['accelerator']}")
    )
    of_what = "of the process" if device == "cpu" else "on the device"
    if device == "cpu":
        device = f"CPU, {machine['processors']} cores"
    steps = f"{result.steps:,} steps of {recipe['batch_size']:,}"
    if result.kept_step:
        steps += f"; the model is of step {result.kept_step:,}, the best of all evaluations"
    rows = (
        (
            "Validation accuracy",
            percent(validation.accuracy) if validation else UNKNOWN,
            f"of {validation.count:,} images" if validation else "no images held out",
        ),
        (
            "Trained on",
            f"{result.train_images:,} images",
            steps,
        ),
        ("Time", _duration(result.minutes), "evaluations included"),
        (
            "Throughput",
            f"{result.images_per_second:,.0f} images/s" if result.images_per_second else UNKNOWN,
            "in training",
        ),
        ("Peak memory", memory_text(result.peak_memory), of_what),
        ("Computed on", device, f"{recipe['precision']}, {versions['backend']}"),
    )
    return [{"label": label, "value": value, "more": more} for label, value, more in rows]


def _duration(minutes):
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _fact_lists(result, predictions, split):
    configuration = result.configuration
    data = configuration["data"]
    counts = f"{result.train_images:,} to train on"
    if result.validation:
        counts += f", {result.validation.count:,} held out"
    if predictions is not None:
        counts += f", {len(predictions):,} {split}"
    if result.left_out:
        counts += f", {len(result.left_out):,} left out"
    weights = {"from": option_text(configuration["recipe"]["weights"] or "random weights")}
    if configuration.get("weights_sha256"):
        weights["sha256"] = configuration["weights_sha256"]
    lists = {
        "Data": {
            "name": " ".join(filter(None, (data["name"], data["version"]))),
            "classes": f"{data['classes']:,}",
            "images": counts,
            "digest": data["digest"],
        },
        "Weights": weights,
        "Versions": {
            "Python": result.versions["python"],
            "keras_vit": result.versions["keras_vit"],
            "Keras": result.versions["keras"],
            result.versions["backend"]: result.versions["backend_version"],
            "NumPy": result.versions["numpy"],
        },
        "Machine": {name: option_text(value) for name, value in result.machine.items()},
    }
    if configuration.get("architecture"):
        lists["Architecture"] = {
            name: option_text(value)
            for name, value in configuration["architecture"].items()
            if name not in _FROM_RECIPE
        }
    return lists


def _prediction_figures(predictions):
    groups = GROUPS if len(predictions.class_names) > MOST_CLASSES_DRAWN else None
    return {
        "confusion_matrix": confusion_figure(
            confusion_matrix(predictions, groups and min(groups, len(predictions.class_names) - 1)),
            predictions.class_names,
        ),
        "calibration": calibration_figure(calibration(predictions, CALIBRATION_BINS)),
    }


def _prediction_facts(predictions: Predictions, train_set):
    """What the page says of the answers."""
    names = predictions.class_names
    counts = np.bincount(predictions.labels, minlength=len(names))
    pairs = most_confused(predictions, SHOWN_PAIRS)
    trained = None
    if train_set is not None:
        trained = np.bincount(train_set.labels, minlength=len(names)).tolist()
    classes = [
        {
            **vars(row),
            "accuracy": row.accuracy,
            "interval": wilson_interval(row.correct, row.count) if row.count else None,
            "trained": trained and trained[row.label],
        }
        for row in class_accuracies(predictions)
    ]
    known = predictions.answered
    return {
        "grouped": len(names) > MOST_CLASSES_DRAWN,
        "confused": [
            {"label": names[label], "answer": names[answer], "count": count, "of": counts[label]}
            for label, answer, count in pairs
        ],
        "unanswered": int((~known).sum()),
        "classes": classes,
        "with_training_counts": trained is not None,
        "calibration": calibration(predictions, CALIBRATION_BINS),
        "mean_confidence": float(predictions.confidence[known].mean()) if known.any() else None,
        "accuracy": float(predictions.correct[known].mean()) if known.any() else None,
    }


def _mistakes(predictions: Predictions, image_set):
    wrong = np.flatnonzero(predictions.answered & ~predictions.correct)
    surest = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:SHOWN_MISTAKES]
    return [
        {
            **_caption(predictions, image_set, index),
            "picture": _inlined(_picture(image_set, index), image_set.image_size),
        }
        for index in surest
    ]


def _caption(predictions, image_set, index):
    answer = predictions.predicted[index]
    path = Path(predictions.images[index])
    return {
        "label": predictions.class_names[predictions.labels[index]],
        "answer": None if answer == NO_ANSWER else predictions.class_names[answer],
        "confidence": float(predictions.confidence[index]),
        "image": f"image {path}" if image_set.in_memory else f"{path.parent.name}/{path.name}",
    }


def _picture(image_set, index):
    """An image at its own size, or smaller where it is large."""
    image = image_set.images[index]
    return shrink_image(image if image_set.in_memory else decode_image(image), PICTURE_SIZE)


def _enlarged(picture):
    """Each pixel repeated, so that the picture is about as large as the others."""
    factor = max(1, PICTURE_SIZE // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _inlined(picture: np.ndarray, image_size=None) -> dict[str, Any]:
    """A picture as a data URI: photographs as JPEG, small images with each pixel as it is."""
    larger = _enlarged(picture)
    small = larger.shape != picture.shape
    buffer = io.BytesIO()
    if small:
        Image.fromarray(larger).save(buffer, "PNG", optimize=True)
    else:
        Image.fromarray(larger).save(buffer, "JPEG", quality=88)
    kind = "png" if small else "jpeg"
    content = base64.b64encode(buffer.getvalue()).decode()
    return {
        "address": f"data:image/{kind};base64,{content}",
        "width": larger.shape[1],
        "height": larger.shape[0],
        "enlarged": small,
    }


def _of_many_classes(labels, most):
    """Indices of images, of each class one before a second of any; spread over many classes."""
    by_class = np.argsort(labels, kind="stable")
    in_order = labels[by_class]
    places = np.arange(len(labels)) - np.searchsorted(in_order, in_order)
    in_turn = by_class[np.argsort(places, kind="stable")]
    count, classes = min(most, len(labels)), int((places == 0).sum())
    return in_turn[((np.arange(count) + 0.5) * max(classes, count) / count).astype(int)]


def _attention_facts(model, predictions, image_set):
    """Attention rollout over images of as many classes as there is room for."""
    if model is None:
        return {"looks": [], "why_no_looks": "there is no model to ask."}
    try:
        rollout = attention_rollout(model)
        policy = model.get_layer("preprocessing")
    except ValueError as error:
        return {"looks": [], "why_no_looks": f"{error}."}
    size = model.input_shape[1:3]
    looks = []
    for index in _of_many_classes(image_set.labels, SHOWN_LOOKS):
        image = image_set.images[index]
        image = image if image_set.in_memory else decode_image(image)
        # One at a time: the attention of large models is large.
        pixels = prepare_image(image, size, policy)
        patch_map = np.asarray(rollout.predict_on_batch(pixels[None]))[0]
        if not np.isfinite(patch_map).all():
            return {"looks": [], "why_no_looks": "the attention of the model is not finite."}
        picture = _enlarged(shrink_image(image, PICTURE_SIZE))
        box = seen_box(*picture.shape[:2], size, policy)
        looks.append(
            {
                **_caption(predictions, image_set, index),
                "picture": _inlined(picture),
                "overlay": _inlined(draw_overlay(picture, patch_map, box=box)),
            }
        )
    return {"looks": looks, "why_no_looks": ""}
