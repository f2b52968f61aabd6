"""Choosing a learning rate on held-out training images, then one run on all of them."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_vit.data import DataSource
from keras_vit.finetune.evaluation import Evaluation
from keras_vit.finetune.folder import with_unused_name
from keras_vit.finetune.hosts import host_number, join_hosts
from keras_vit.finetune.loop import TrainingDiverged
from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.report import RunResult
from keras_vit.finetune.run import check_export, export_run, run
from keras_vit.finetune.source import load_source, write_left_out
from keras_vit.finetune.state import write_json
from keras_vit.models import VisionTransformerConfig

# Where a recipe holds nothing out.
HELD_OUT = 0.1


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        validation: The accuracy on the held-out images by learning rate; None where the training
            diverged.
        learning_rate: The one that was chosen.
        final: The result of the run on all training images, tested once.
    """

    validation: dict[float, Evaluation | None]
    learning_rate: float
    final: RunResult

    def __str__(self) -> str:
        return f"{format_sweep(self.validation)}\n{self.final}"


def format_sweep(validation: dict[float, Evaluation | None]) -> str:
    """The held-out accuracy of each learning rate as a table, the best marked.

    Example:

    >>> judged = Evaluation(100, 0.9, 1.0, (0.83, 0.94), 10.0)
    >>> print(format_sweep({0.01: judged, 0.3: None}))
    learning rate  held-out images
    0.01           90.00% of 100 images (95 % interval 83.00% to 94.00%)  ← chosen
    0.3            diverged
    """
    best = choose(validation)
    lines = ["learning rate  held-out images"]
    for rate, evaluation in validation.items():
        text = "diverged" if evaluation is None else f"{evaluation}"
        lines.append(f"{rate:<13g}  {text}{'  ← chosen' if rate == best else ''}")
    return "\n".join(lines)


def choose(validation: dict[float, Evaluation | None]) -> float:
    """The learning rate of the highest held-out accuracy; of equal ones the lowest.

    Raises:
        TrainingDiverged: If no run came to its end.
    """
    finished = {rate: judged.accuracy for rate, judged in validation.items() if judged}
    if not finished:
        raise TrainingDiverged(
            f"The training diverged with every learning rate: {', '.join(map(str, validation))}. "
            "Try lower ones"
        )
    return min(finished, key=lambda rate: (-finished[rate], rate))


def sweep(
    recipe: Recipe,
    learning_rates: Sequence[float],
    *,
    source: DataSource | None = None,
    architecture: VisionTransformerConfig | None = None,
) -> SweepResult:
    """Trains with each learning rate, chooses on held-out images, trains on all, and tests once.

    The runs are folders in OUTPUT/NAME: `lr-0.01`, …, and `final-lr-0.01` for the rate that is
    chosen. Interrupted, the same call goes on where it was, and one with more rates too: runs that
    are finished are not repeated. `sweep.json` holds the table and the name of the final run, whose
    model `export` writes to saved_models/NAME; `fresh` starts over in NAME-2.

    Args:
        recipe: All options; `learning_rate` is replaced.
        learning_rates: The grid, such as `protocol_learning_rates` gives it.
        source: The images, instead of what `recipe.data` names.
        architecture: See `run`.

    Returns:
        A `SweepResult`.

    Raises:
        ValueError: If there are no rates, or a rate comes twice or is not above 0; or for
            `early_stopping` and `keep="best"`, as the final run has no validation images.
        TrainingDiverged: If the training diverges with every rate.
    """
    rates = [float(rate) for rate in learning_rates]
    usable = all(math.isfinite(rate) and rate > 0 for rate in rates)
    if not rates or not usable or len(set(rates)) < len(rates):
        raise ValueError(
            f"`learning_rates` must be different numbers above 0, one or more. Received: {rates}"
        )
    if recipe.early_stopping or recipe.keep == "best":
        raise ValueError(
            "A sweep trains on all images in the end: none are left that early_stopping or "
            f'keep="best" could go by. Received: early_stopping={recipe.early_stopping}, '
            f"keep={recipe.keep!r}; "
            "leave them out, or pass them to a run with the learning rate that the sweep chose"
        )
    check_export(recipe)
    # Before any host looks which names are free, or writes.
    join_hosts()
    if recipe.fresh:
        recipe = with_unused_name(recipe)
    folder = Path(recipe.output) / recipe.name
    source = source or load_source(recipe, folder)
    if host_number() == 0:
        write_left_out(folder, recipe, source)
    choosing = recipe
    if source.validation is not None and recipe.own_validation == "train":
        choosing = dataclasses.replace(recipe, own_validation="hold_out")
        if recipe.train_images and source.train is not None:
            # A subset of both sets may be larger than the one that is trained on here.
            fewer = min(recipe.train_images, len(source.train))
            choosing = dataclasses.replace(choosing, train_images=fewer)
    has_own = source.validation is not None and choosing.own_validation == "hold_out"
    if not has_own and not choosing.validation_fraction:
        print(f"{HELD_OUT:.0%} of the training images are held out to choose by.")
        choosing = dataclasses.replace(choosing, validation_fraction=HELD_OUT)
    validation: dict[float, Evaluation | None] = {}
    for rate in rates:
        print(f"\n== learning rate {rate:g}", flush=True)
        try:
            result = run(
                dataclasses.replace(
                    choosing,
                    name=_run_name(rate),
                    output=str(folder),
                    learning_rate=rate,
                    export=False,
                ),
                source=source,
                architecture=architecture,
                test=False,
            )
            validation[rate] = result.validation
        except TrainingDiverged as error:
            print(error, flush=True)
            validation[rate] = None
        _write(folder, validation)
    best = choose(validation)
    # Of its own for each rate: a wider grid may choose another one.
    final_name = f"final-{_run_name(best)}"
    _write(folder, validation, final_name)
    print(f"\n{format_sweep(validation)}\n\n== on all training images", flush=True)
    everything: dict[str, Any] = {"validation_fraction": 0.0, "export": False}
    if recipe.own_validation == "hold_out":
        everything["own_validation"] = "train"
    final = run(
        dataclasses.replace(
            recipe, name=final_name, output=str(folder), learning_rate=best, **everything
        ),
        source=source,
        architecture=architecture,
    )
    if recipe.export and host_number() == 0:
        export_run(folder / final_name, recipe.name, source.class_names)
    return SweepResult(validation, best, final)


def _run_name(rate):
    """All digits of the rate: no two share a folder."""
    return f"lr-{rate}".removesuffix(".0")


def _write(folder, validation, final=None):
    rows = [
        {"learning_rate": rate, "validation": judged and dataclasses.asdict(judged)}
        for rate, judged in validation.items()
    ]
    if host_number() == 0:
        write_json(folder / "sweep.json", {"runs": rows, "final": final})
