"""The result of a run: result.json, a summary for the terminal, and what it was computed on."""

import dataclasses
import datetime
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_vit._version import __version__
from keras_vit.data import LeftOut
from keras_vit.finetune.evaluation import Evaluation
from keras_vit.finetune.precision import find_accelerator
from keras_vit.finetune.state import read_json, write_json


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run and everything needed to repeat it.

    Attributes:
        name: Name of the run.
        test: Accuracy on the test images, measured once, at the end; None where the run made a
            choice and did not look at them.
        validation: Accuracy on the validation split with the final weights; None without one.
        train_images: Number of images trained on.
        steps: Number of optimizer steps.
        minutes: Wall time of all sessions of the run, in minutes.
        images_per_second: Training throughput of the last session; None where that trained no step.
        configuration: What recipe.json holds: options, architecture, data set, weights' digest.
        versions: Of Python, the backend and the packages.
        machine: What the run was computed on.
        finished: When the run ended, in ISO 8601, UTC.
        peak_memory: Most memory that the process had at a time, in bytes; None where unknown. See
            `peak_memory`.
        waiting_share: Share of the last session's steps that passed waiting for images; None where
            that trained no step, and for results of versions that did not measure it.
        best_step: The step with the best validation accuracy; None where none was evaluated.
        left_out: Images that the data set names and the run did without, and why.
    """

    name: str
    test: Evaluation | None
    validation: Evaluation | None
    train_images: int
    steps: int
    minutes: float
    images_per_second: float | None
    configuration: dict
    versions: dict
    machine: dict
    finished: str
    peak_memory: int | None = None
    waiting_share: float | None = None
    best_step: int | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def kept_step(self) -> int | None:
        """The step that the model is of where `keep="best"` chose one; None: the last."""
        return self.best_step if self.configuration["recipe"].get("keep") == "best" else None

    def __str__(self) -> str:
        recipe = self.configuration["recipe"]
        trained = self.images_per_second is not None
        pace = f", {self.images_per_second:,.0f} images/s" if trained else ""
        memory = f", {self.peak_memory / 2**30:.1f} GiB" if self.peak_memory else ""
        known = self.waiting_share is not None
        waiting = f", {self.waiting_share:.1%} waiting for images" if known else ""
        skipped = f" ({len(self.left_out):,} are left out)" if self.left_out else ""
        step = self.kept_step
        kept = f"\n  model       of step {step:,}, the best of all evaluations" if step else ""
        return "\n".join(
            (
                f"{self.name}",
                f"  test        {self.test or 'not looked at'}",
                f"  validation  {self.validation or 'none'}",
                f"  training    {self.train_images:,} images{skipped}, {self.steps:,} steps of "
                f"{recipe['batch_size']}, {self.minutes:.1f} minutes{pace}{waiting}{memory}{kept}",
                f"  computed in {recipe['precision']} on {self.machine['accelerator']} with "
                f"{self.versions['backend']} {self.versions['backend_version']}",
                *(
                    f"  changed     after step {change['after_step']}: "
                    + "; ".join(change["options"])
                    for change in self.configuration.get("changes", [])
                ),
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
        # Results of earlier versions have none.
        fields["left_out"] = tuple(LeftOut(**item) for item in fields.get("left_out", ()))
        return RunResult(**fields)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: it holds no result ({error!r})") from error


def make_result(
    *,
    configuration: dict,
    test: Evaluation | None,
    validation: Evaluation | None,
    train_images: int,
    steps: int,
    seconds: float,
    images_per_second: float | None,
    waiting_share: float | None = None,
    best_step: int | None = None,
    left_out: tuple[LeftOut, ...] = (),
) -> RunResult:
    """Makes the result of a run that ends now, on this machine."""
    return RunResult(
        name=configuration["recipe"]["name"],
        test=test,
        validation=validation,
        train_images=train_images,
        steps=steps,
        minutes=seconds / 60,
        images_per_second=images_per_second,
        configuration=configuration,
        versions=package_versions(),
        machine=describe_machine(),
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        peak_memory=peak_memory(),
        waiting_share=waiting_share,
        best_step=best_step,
        left_out=left_out,
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


def peak_memory() -> int | None:
    """The most memory that this process had at a time, in bytes.

    On a GPU it is what the backend allocated there, else what the process had resident in main
    memory. It counts from the start of the process, so a second run in one process cannot show
    less than the first.

    Returns:
        The number of bytes; None where the system does not tell.

    Example:

    >>> peak_memory() > 2**20
    True
    """
    if find_accelerator().kind == "cpu":
        return _peak_resident_memory()
    return {
        "tensorflow": _tensorflow_peak_memory,
        "jax": _jax_peak_memory,
        "torch": _torch_peak_memory,
    }[keras.backend.backend()]()


def _peak_resident_memory():
    # Linux's ru_maxrss also counts the program that started this one; VmHWM does not.
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has no such module.
        return None
    # In kilobytes, on macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _tensorflow_peak_memory():
    import tensorflow as tf

    try:
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    except (ValueError, KeyError):  # Only GPUs and TPUs of some kinds count.
        return None


def _jax_peak_memory():
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def _torch_peak_memory():
    import torch

    return int(torch.cuda.max_memory_allocated())
