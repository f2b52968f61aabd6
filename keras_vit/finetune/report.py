"""What a run leaves behind: result.json, a summary, a picture of the learning curves."""

import dataclasses
import datetime
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_vit._version import __version__
from keras_vit.finetune.evaluation import Evaluation
from keras_vit.finetune.log import read_log
from keras_vit.finetune.precision import find_accelerator
from keras_vit.finetune.state import read_json, write_json


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run and everything needed to repeat it.

    Attributes:
        name: Name of the run.
        test: Accuracy on the test images, measured once, at the end.
        validation: Accuracy on the validation split with the final weights; None without one.
        train_images: Number of images trained on.
        steps: Number of optimizer steps.
        minutes: Wall time of all sessions of the run, in minutes.
        images_per_second: Training throughput of the last session.
        configuration: What recipe.json holds: options, architecture, data set, weights' digest.
        versions: Of Python, the backend and the packages.
        machine: What the run was computed on.
        finished: When the run ended, in ISO 8601, UTC.
    """

    name: str
    test: Evaluation
    validation: Evaluation | None
    train_images: int
    steps: int
    minutes: float
    images_per_second: float
    configuration: dict
    versions: dict
    machine: dict
    finished: str

    def __str__(self) -> str:
        recipe = self.configuration["recipe"]
        validation = f"{self.validation}" if self.validation else "none"
        return "\n".join(
            (
                f"{self.name}",
                f"  test        {self.test}",
                f"  validation  {validation}",
                f"  training    {self.train_images:,} images, {self.steps:,} steps of "
                f"{recipe['batch_size']}, {self.minutes:.1f} minutes, "
                f"{self.images_per_second:,.0f} images/s",
                f"  computed in {recipe['precision']} on {self.machine['accelerator']} with "
                f"{self.versions['backend']} {self.versions['backend_version']}",
            )
        )


def write_result(path: str | Path, result: RunResult) -> None:
    """Writes a result as JSON."""
    write_json(path, dataclasses.asdict(result))


def read_result(path: str | Path) -> RunResult | None:
    """Reads what `write_result` wrote; None where there is no such file."""
    path = Path(path)
    if not path.exists():
        return None
    fields = read_json(path)
    try:
        for name in ("test", "validation"):
            if fields[name]:
                interval = tuple(fields[name].pop("interval"))
                fields[name] = Evaluation(**fields[name], interval=interval)
        return RunResult(**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: it holds no result ({error!r})") from error


def make_result(
    *,
    configuration: dict,
    test: Evaluation,
    validation: Evaluation | None,
    train_images: int,
    seconds: float,
    images_per_second: float,
) -> RunResult:
    """Makes the result of a run that ends now, on this machine."""
    return RunResult(
        name=configuration["recipe"]["name"],
        test=test,
        validation=validation,
        train_images=train_images,
        steps=configuration["recipe"]["steps"],
        minutes=seconds / 60,
        images_per_second=images_per_second,
        configuration=configuration,
        versions=package_versions(),
        machine=describe_machine(),
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def package_versions() -> dict[str, str]:
    """Versions of Python, keras_vit, Keras, NumPy and the running backend."""
    backend = keras.backend.backend()
    return {
        "python": platform.python_version(),
        "keras_vit": __version__,
        "keras": keras.__version__,
        "backend": backend,
        "backend_version": str(sys.modules[backend].__version__),
        "numpy": np.__version__,
    }


def describe_machine() -> dict:
    """Platform, processors and accelerator."""
    accelerator = find_accelerator()
    return {
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "accelerator": accelerator.name,
        "accelerators": accelerator.count,
    }


def draw_learning_curves(runs: dict[str, str | Path], path: str | Path, title: str = "") -> None:
    """Draws loss and accuracy over the steps of several runs as a PNG.

    Args:
        runs: Folder of each run by its label.
        path: The PNG file to write.
        title: Heading of the picture.

    Raises:
        ImportError: If matplotlib is not installed; it comes with the extra `recipes`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, column in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for label, folder in runs.items():
            rows = read_log(Path(folder) / "log.csv")
            axes.plot([row["step"] for row in rows], [row[column] for row in rows], label=label)
        axes.set(xlabel="step", ylabel=f"training {column}")
        axes.legend()
    figure.suptitle(title)
    beside = Path(path).with_name(f".{Path(path).name}.partial")
    figure.savefig(beside, format="png", dpi=120)
    os.replace(beside, path)
