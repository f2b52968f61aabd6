"""Runs side by side: a table for the terminal, and a page with their learning curves."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from keras_vit.finetune.evaluation import Evaluation
from keras_vit.finetune.figures import RUN_COLOURS, comparison_curves, plot_style, save_figures
from keras_vit.finetune.folder import DIVISION, read_configuration
from keras_vit.finetune.log import read_log
from keras_vit.finetune.metrics import mcnemar_p_value
from keras_vit.finetune.page import (
    UNKNOWN,
    check_packages,
    memory_text,
    option_text,
    percent,
    render,
)
from keras_vit.finetune.predictions import read_predictions
from keras_vit.finetune.recipe import FREE_FIELDS, Recipe, recipe_fields
from keras_vit.finetune.repetition import plain_options
from keras_vit.finetune.report import RunResult, read_result
from keras_vit.finetune.state import read_json, replace_file

SIGNIFICANT = 0.05
# Columns that stand in every table, before the options that differ.
COLUMNS = (
    "run",
    "test accuracy",
    "validation",
    "steps x batch",
    "minutes",
    "images/s",
    "peak memory",
)


@dataclass(frozen=True)
class ComparedRun:
    """What a run's folder tells of it.

    Attributes:
        folder: The run's folder.
        configuration: What recipe.json holds.
        result: What result.json holds; None for a run that is not finished.
        log: The rows of log.csv.
    """

    folder: Path
    configuration: dict[str, Any]
    result: RunResult | None
    log: list[dict[str, float]]

    @property
    def test(self) -> Evaluation | None:
        """Accuracy on the test images; None before the end, or where they were not looked at."""
        return self.result.test if self.result else None

    @property
    def validation_accuracy(self) -> float | None:
        """That of the final weights; of a run that is not finished, the last one in its log."""
        if self.result:
            return self.result.validation.accuracy if self.result.validation else None
        logged = [row["validation_accuracy"] for row in self.log if "validation_accuracy" in row]
        return logged[-1] if logged else None


def compare_runs(folders: Iterable[str | Path], output: str | Path | None = None) -> str:
    """Compares runs, finished or not, best first, by what they reached and how they differ.

    They are sorted by validation accuracy where every run has one, else by test accuracy.
    Whether the best two differ by more than the choice of test images explains is said by
    McNemar's exact test where both keep predictions.csv for the same images, else by whether
    their 95 % intervals overlap.

    Args:
        folders: The runs' folders, and sweeps', whose final runs are compared. What is no run is
            left out, with a printed note.
        output: An .html file, or a folder for compare.html, to write as well, with PNG files of the
            curves in `figures/` beside it.

    Returns:
        The table and what was found, as text.

    Raises:
        ValueError: If no folder is a run, or a file in one is damaged; the message names it.
        ImportError: If `output` is given and matplotlib or jinja2 is not installed.
    """
    if output is not None:
        check_packages()
    runs = _sorted_runs(list(_read_runs(folders)))
    if not runs:
        raise ValueError("There are no runs to compare: expected folders that hold a recipe.json")
    names = _run_names(runs)
    options = _differing_options(runs)
    header = [*COLUMNS, *options]
    rows = [
        [
            _text_cell(name),
            *_cells(run),
            *(_text_cell(values[index]) for values in options.values()),
        ]
        for index, (name, run) in enumerate(zip(names, runs, strict=True))
    ]
    notes = [*_data_notes(runs), *_change_notes(runs, names), *_difference(runs, names)]
    text = "\n".join([_text_table(header, rows), *(["", *notes] if notes else [])])
    if output is not None:
        text += f"\n\nwritten to {_write_page(Path(output), header, rows, notes, runs, names)}"
    return text


def _read_runs(folders):
    seen = set()
    for folder in map(_final_run, map(Path, folders)):
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        if not (folder / "recipe.json").is_file():
            reason = "it holds no recipe.json" if folder.is_dir() else "it is no folder"
            if (folder / "sweep.json").is_file():
                reason = f"it is a sweep that is not finished, whose runs are {folder}/lr-*"
            print(f"{folder} is no run: {reason}. It is left out.")
            continue
        yield ComparedRun(
            folder,
            read_configuration(folder),
            read_result(folder / "result.json"),
            read_log(folder / "log.csv"),
        )


def _final_run(folder):
    """A run's folder; of a sweep that is finished that of its final run."""
    sweep = folder / "sweep.json"
    final = read_json(sweep).get("final") if sweep.is_file() else None
    return folder / final if final else folder


def _sorted_runs(runs):
    by_validation = all(run.validation_accuracy is not None for run in runs)

    def rank(run):
        test = run.test.accuracy if run.test else -1.0
        return (-run.validation_accuracy, -test) if by_validation else (-test,)

    return sorted(runs, key=rank)


def _run_names(runs):
    names = [run.configuration["recipe"]["name"] for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


class _Cell(NamedTuple):
    """What a table shows, and what the page sorts it by; None where that is unknown."""

    text: str
    value: str | float | None


def _text_cell(text):
    return _Cell(text, None if text == UNKNOWN else text)


def _cells(run: ComparedRun) -> list[_Cell]:
    """The cells of a run after its name, up to the options."""
    recipe, result, test = run.configuration["recipe"], run.result, run.test
    last = run.log[-1]["step"] if run.log else 0
    done, steps = result.steps if result else last, recipe["steps"]
    if not result or done < steps:
        steps = f"{done} of {steps}"
    accuracy = UNKNOWN
    if test:
        low, high = test.interval
        accuracy = f"{test.accuracy:.2%} ({100 * low:.1f} to {100 * high:.1f})"
    logged = [row["images_per_second"] for row in run.log if "images_per_second" in row]
    # The session that ended the run may have trained no step.
    pace = (result and result.images_per_second) or (logged[-1] if logged else 0)
    minutes, memory = (result.minutes, result.peak_memory) if result else (None, None)
    return [
        _Cell(accuracy, test.accuracy if test else None),
        _Cell(percent(run.validation_accuracy), run.validation_accuracy),
        _Cell(f"{steps} x {recipe['batch_size']}", done),
        _Cell("unfinished" if minutes is None else f"{minutes:.1f}", minutes),
        _Cell(f"{pace:,.0f}" if pace else UNKNOWN, pace or None),
        _Cell(memory_text(memory), memory),
    ]


def _differing_options(runs) -> dict[str, list[str]]:
    """The options that are not the same in all runs: the value of each run, by name."""
    settings = [_settings(run) for run in runs]
    names = dict.fromkeys(name for options in settings for name in options)
    columns = {}
    for name in names:
        values = [options.get(name, UNKNOWN) for options in settings]
        known = [value for value in values if value != UNKNOWN]
        if any(value != known[0] for value in known):
            columns[name.replace("_", " ")] = [_setting_text(value) for value in values]
    return columns


def _settings(run):
    """What decides what a run computes. Files and data count by their digest, with a name to show.

    An option that a run of an older version does not name has its default.
    """
    configuration = run.configuration
    recipe = plain_options(recipe_fields(Recipe())) | configuration["recipe"]
    hidden = ("name", "steps", "batch_size", *FREE_FIELDS)
    settings = {name: value for name, value in recipe.items() if name not in hidden}
    if configuration.get("weights_sha256"):
        settings["weights"] = _Digested(Path(recipe["weights"]).name, configuration)
    data = configuration["data"]
    settings["data"] = _Digested(data["name"], data["digest"])
    settings["backend"] = configuration["backend"]
    architecture = configuration.get("architecture")
    settings["architecture"] = "its own" if architecture else "by name"
    for name, value in (architecture or {}).items():
        settings[f"architecture {name}"] = value
    if run.result:
        settings["computed on"] = run.result.machine["accelerator"]
    return settings


class _Digested:
    """A file or data set: it shows its name, and is the same as another by its content."""

    def __init__(self, name, content):
        if isinstance(content, dict):
            content = content["weights_sha256"], content.get("weights_config_sha256")
        self.name, self.content = name, content

    def __eq__(self, other):
        return isinstance(other, _Digested) and self.content == other.content

    def __hash__(self):
        return hash(self.content)


def _setting_text(value):
    return value.name if isinstance(value, _Digested) else option_text(value)


def _data_notes(runs):
    if len({run.configuration["data"]["digest"] for run in runs}) > 1:
        yield "The runs are of different data: their accuracies cannot be compared."
        return
    judged = [run for run in runs if run.validation_accuracy is not None]
    recipes = [
        plain_options(recipe_fields(Recipe())) | run.configuration["recipe"] for run in judged
    ]
    differ = [
        name.replace("_", " ")
        for name in DIVISION
        if any(recipe.get(name) != recipes[0].get(name) for recipe in recipes)
    ]
    if differ:
        yield (
            f"The runs differ in {', '.join(differ)}: where their validation images were held out "
            "of the training images, they are not the same ones."
        )


def _change_notes(runs, names):
    changed = [
        name for name, run in zip(names, runs, strict=True) if run.configuration.get("changes")
    ]
    if changed:
        yield (
            f"Options were changed on the way in {', '.join(changed)}: the table shows those at "
            "the end."
        )


def _difference(runs, names):
    """Whether the best two differ by more than the choice of test images explains."""
    tested = [(name, run) for name, run in zip(names, runs, strict=True) if run.test][:2]
    if len(tested) < 2:
        return
    (first_name, first), (second_name, second) = tested
    if first.configuration["data"]["digest"] != second.configuration["data"]["digest"]:
        return
    pair = f"{first_name} and {second_name}"
    answers = [read_predictions(run.folder / "predictions.csv") for run in (first, second)]
    if _same_images(first, second, *answers):
        right = [[_is_right(row) for row in rows] for rows in answers]
        only_first = sum(a and not b for a, b in zip(*right, strict=True))
        only_second = sum(b and not a for a, b in zip(*right, strict=True))
        probability = mcnemar_p_value(only_first, only_second)
        verdict = "they differ" if probability < SIGNIFICANT else "no difference is shown"
        yield (
            f"{pair}: of {len(answers[0]):,} test images the first alone got {only_first:,} "
            f"right, the second alone {only_second:,}. McNemar's exact test: p = "
            f"{probability:.2g}, {verdict} (at {SIGNIFICANT}). Another seed of training may "
            "change more than that."
        )
        return
    (low, high), (other_low, other_high) = first.test.interval, second.test.interval
    overlap = low <= other_high and other_low <= high
    yield (
        f"{pair}: their 95 % intervals {'overlap, no difference is shown' if overlap else ''}"
        f"{'' if overlap else 'do not overlap, they differ'}. predictions.csv of both for the same "
        "images would tell more exactly."
    )


def _is_right(row):
    # Classes may share a name (ImageNet's two cranes); then the probabilities tell them apart.
    return row["label"] == row["predicted"] and row["label_probability"] == row["confidence"]


def _same_images(first, second, answers, other_answers):
    """Whether two files of answers are about the same images, of one data set."""
    if not answers or not other_answers:
        return False
    # Those that a run of before was left with may be of its validation images.
    counts = {len(answers), len(other_answers), first.test.count, second.test.count}
    if len(counts) > 1:
        return False
    for row, other in zip(answers, other_answers, strict=True):
        if (row["image"], row["label"]) != (other["image"], other["label"]):
            return False
    if not answers[0]["image"].isdigit():
        return True
    recipes = [run.configuration["recipe"] for run in (first, second)]
    if all(recipes[0].get(name) == recipes[1].get(name) for name in ("seed", "test_images")):
        return True
    # Indices of two choices of images are alike; their labels are not, unless sorted by class.
    labels = [row["label"] for row in answers]
    changes = sum(label != after for label, after in itertools.pairwise(labels))
    return changes >= len(set(labels))


def _text_table(header: Sequence[str], rows: Sequence[Sequence[_Cell]]) -> str:
    """Columns of one width each: the first on the left, the others on the right."""
    texts = [header, *([cell.text for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for row in texts:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _write_page(output: Path, header, rows, notes, runs, names) -> Path:
    path = output if output.suffix == ".html" else output / "compare.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    logs: Mapping = {name: run.log for name, run in zip(names, runs, strict=True) if run.log}
    with plot_style():
        figures = {f"compare_{name}": plot for name, plot in comparison_curves(logs).items()}
        drawings = save_figures(figures, path.parent / "figures")
    title = f"{len(runs)} runs compared" if len(runs) > 1 else "One run"
    colours = iter(range(len(logs)))
    page = render(
        "compare.html",
        title=title,
        header=header,
        rows=[
            {
                "cells": cells,
                "colour": RUN_COLOURS[next(colours) % len(RUN_COLOURS)] if run.log else None,
            }
            for cells, run in zip(rows, runs, strict=True)
        ],
        notes=notes,
        drawings=drawings,
        data=sorted({run.configuration["data"]["name"] for run in runs}),
    )
    replace_file(path, page)
    return path
