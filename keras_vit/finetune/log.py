"""The log of a run: log.csv, the same for TensorBoard, and a line on the terminal."""

import csv
import io
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from keras_vit.finetune.loop import StepResult
from keras_vit.finetune.state import replace_file
from keras_vit.finetune.tensorboard import ScalarWriter

COLUMNS = (
    "step",
    "loss",
    "accuracy",
    "learning_rate",
    "images_per_second",
    "validation_accuracy",
    "waiting_share",
)

# The share of the time from which on the terminal's line speaks of waiting for images.
NOTABLE_WAITING = 0.02


def read_log(path: str | Path) -> list[dict[str, float]]:
    """The rows of a log.csv, by column; cells that are empty are left out.

    A last line that a kill cut short is left out too.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        # A run of an earlier version has fewer columns.
        if rows.fieldnames and tuple(rows.fieldnames) not in (COLUMNS, COLUMNS[:-1]):
            raise ValueError(f"its columns are {', '.join(rows.fieldnames)}")
        return [
            {
                name: int(cell) if name == "step" else float(cell)
                for name, cell in row.items()
                if cell
            }
            for row in rows
        ]
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


class RunLog:
    """Writes the rows of a run to log.csv and to TensorBoard.

    Rows after `start` are cut, so that a run which goes on from a checkpoint logs no step twice.
    TensorBoard's files are made anew from the rows that stay.

    Args:
        folder: Folder of the run.
        start: Number of steps already done.
    """

    def __init__(self, folder: str | Path, start: int = 0):
        self.path = Path(folder) / "log.csv"
        kept = [row for row in self._read() if row["step"] <= start]
        replace_file(self.path, self._lines([dict(zip(COLUMNS, COLUMNS, strict=True)), *kept]))
        shutil.rmtree(Path(folder) / "tensorboard", ignore_errors=True)
        self._scalars = ScalarWriter(Path(folder) / "tensorboard", time.time())
        for row in kept:
            self._write_scalars(row)

    def _read(self):
        try:
            return read_log(self.path)
        except ValueError as error:
            aside = self.path.with_name("log.csv.damaged")
            os.replace(self.path, aside)
            print(f"{error}. It is kept as {aside}; the log begins anew.")
            return []

    def write(self, row: dict[str, float]) -> None:
        """Adds a row, by column; columns that are absent stay empty."""
        with open(self.path, "ab") as file:
            file.write(self._lines([row]))
        self._write_scalars(row)

    def close(self) -> None:
        """Closes TensorBoard's file."""
        self._scalars.close()

    def _write_scalars(self, row):
        scalars = {name: value for name, value in row.items() if name != "step"}
        self._scalars.write(scalars, int(row["step"]), time.time())

    @staticmethod
    def _lines(rows):
        buffer = io.StringIO()
        csv.DictWriter(buffer, COLUMNS, lineterminator="\n").writerows(rows)
        return buffer.getvalue().encode()


class ProgressLine:
    """Shows how far a loop has come: one line that is rewritten on a terminal.

    Where the output is a file or a pipe, only the calls with `keep=True` print, a line each.

    Args:
        total: Number of units of work.
        unit: What comes after the counts.
    """

    def __init__(self, total: int, unit: str = ""):
        self._total = total
        self._unit = unit
        self._rewrites = sys.stdout.isatty()

    def show(self, done: int, text: str, *, seconds_left: float | None = None, keep=False) -> None:
        """Shows the counts, a bar, a text and the time left."""
        if not (self._rewrites or keep):
            return
        width = len(str(self._total))
        filled = 20 * done // self._total
        line = (
            f"{done:>{width}}/{self._total}{self._unit} {'━' * filled}{'─' * (20 - filled)} {text}"
        )
        if seconds_left is not None:
            minutes, seconds = divmod(round(seconds_left), 60)
            line += f"  ETA {minutes}:{seconds:02d}"
        if self._rewrites:
            print(f"\r\x1b[K{line}", end="", flush=True)
        else:
            print(line, flush=True)

    def end(self) -> None:
        """Ends the line."""
        if self._rewrites:
            print(flush=True)


class Meter:
    """Means over the steps since the last row, and the pace of the session.

    The first step of a session, which compiles, does not count towards the pace.

    Args:
        batch_size: Images a step.
        steps: Number of steps of the run.
        since_row: What `since_row` was when the run was left.
    """

    def __init__(
        self,
        batch_size: int,
        steps: int,
        since_row: Sequence[tuple[float, float, float]] = (),
    ):
        self._batch_size = batch_size
        self._steps = steps
        self._since_row = list(since_row)
        self._seconds: list[float] = []
        self._waiting: list[float] = []
        self._step = 0

    def add(self, result: StepResult) -> None:
        """Takes in the result of a step."""
        self._since_row.append((result.loss, result.accuracy, result.learning_rate))
        self._seconds.append(result.seconds)
        self._waiting.append(result.waiting_seconds)
        self._step = result.step

    def row(self) -> dict[str, float]:
        """The row of log.csv for the steps since the last row."""
        count = len(self._since_row)
        losses, accuracies, learning_rates = zip(*self._since_row, strict=True)
        self._since_row = []
        return {
            "step": self._step,
            "loss": sum(losses) / count,
            "accuracy": sum(accuracies) / count,
            "learning_rate": learning_rates[-1],
            "images_per_second": self._pace(count),
            "waiting_share": self._waiting_share(count),
        }

    @property
    def since_row(self) -> tuple[tuple[float, float, float], ...]:
        """Loss, accuracy and learning rate of each step since the last row."""
        return tuple(self._since_row)

    @property
    def images_per_second(self) -> float | None:
        """Throughput of the session; None where it trained no step."""
        return self._pace(len(self._seconds)) if self._seconds else None

    @property
    def waiting_share(self) -> float | None:
        """Share of the session's time in steps that passed waiting for images; None where it
        trained no step."""
        return self._waiting_share(len(self._seconds)) if self._seconds else None

    @property
    def seconds_left(self) -> float:
        """Estimated time of the steps that are left, by the last 50."""
        return (self._steps - self._step) * self._batch_size / self._pace(50)

    def text(self, row: dict[str, float] | None = None) -> str:
        """A row, or the last step, as a line for the terminal."""
        if row is None:
            row = {
                "images_per_second": self._pace(50),
                "waiting_share": self._waiting_share(50),
                **dict(
                    zip(("loss", "accuracy", "learning_rate"), self._since_row[-1], strict=True)
                ),
            }
        text = (
            f"loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  learning rate "
            f"{row['learning_rate']:.2e}  {row['images_per_second']:,.0f} images/s"
        )
        if row["waiting_share"] >= NOTABLE_WAITING:
            text += f", {row['waiting_share']:.0%} of the time waiting for images"
        if "validation_accuracy" in row:
            text += f"  validation accuracy {row['validation_accuracy']:.4f}"
        return text

    def _pace(self, last):
        """Images per second over the last steps."""
        seconds = (self._seconds[1:] or self._seconds)[-last:]
        return self._batch_size * len(seconds) / sum(seconds)

    def _waiting_share(self, last):
        """Share of the last steps' time that passed waiting for images."""
        seconds, waiting = (
            sum((values[1:] or values)[-last:]) for values in (self._seconds, self._waiting)
        )
        return waiting / seconds if seconds else 0.0
