"""The suites `forward`, `train` and `memory`: models of one size beside each other."""

import dataclasses
import tempfile
from pathlib import Path

from benchmarks import contenders, machine, results
from benchmarks.measuring import TOLERANCES, as_json, measure_row, run_once
from benchmarks.ratios import matrix_rate
from benchmarks.table import conclusion, idle_warning, markdown, mebibytes, row_table, said_of

CONTENDERS = {"forward": contenders.FORWARD, "train": contenders.TRAIN}
# Losses of so many steps are compared before anything is timed.
STEPS_COMPARED = 3
# A backward pass computes two products for each of the forward pass.
PASSES = {"forward": 1, "train": 3}


@dataclasses.dataclass(frozen=True)
class Row:
    """A size at which all contenders are measured."""

    suite: str
    model: str
    image_size: int
    batch_size: int
    dtype: str

    @property
    def title(self):
        size = f"{self.image_size} px, batch {self.batch_size}"
        return f"{self.suite}: {self.model}, {size}, {self.dtype}"


def measure(row, options, folder, say=print):
    """Measures all contenders of a row, and the machine's matrix products among them.

    Returns:
        `(cells, matrix cells, FLOPs of a step, FLOPs of the matrix products)`
    """
    from benchmarks.keras_models import config_of
    from benchmarks.matrix_products import products_of
    from keras_vit.models.counts import count_flops

    say(f"\n{row.title}")
    job = {
        **dataclasses.asdict(row),
        "steps_compared": STEPS_COMPARED,
        "weights": str(Path(folder, row.model, str(row.image_size))),
    }
    config = config_of(job)
    products = products_of(config, row.batch_size)
    if machine.gpu():
        # Products that write all scores of attention would be slower than attention is.
        products = [product for product in products if product.weights]
    job["products"] = [dataclasses.asdict(product) for product in products]
    reference = run_once(
        "benchmarks.inputs:write_weights",
        {**job, "folder": job["weights"]},
        contenders.FLOAT32,
        Path(folder, "reference.npy"),
        options.limits.compile_timeout,
    )
    if row.suite == "train":
        reference = None  # The losses of the first contender.
    models = contenders.chosen(CONTENDERS[row.suite], options.contenders)
    rows = [*models, *contenders.MATRIX_PRODUCTS]
    tolerance = TOLERANCES[row.suite, row.dtype]
    cells = measure_row(rows, job, options.limits, folder, compare=(reference, tolerance), say=say)
    return (
        cells[: len(models)],
        cells[len(models) :],
        PASSES[row.suite] * row.batch_size * count_flops(config),
        sum(product.flops for product in products),
    )


def run(suite, rows, options, folder=results.RESULTS, say=print):
    """Measures rows and writes what was found; the table last.

    Returns:
        Whether no contender failed, and in each row one was there.
    """
    tables, content, bars, good = [], [], [], True
    with tempfile.TemporaryDirectory() as temporary:
        for row in rows:
            cells, matrix, flops, matrix_flops = measure(row, options, temporary, say)
            rate = matrix_rate(matrix, matrix_flops)
            lines = [f"## {row.title}", "", conclusion(cells), ""]
            lines += [row_table(cells, row.batch_size, flops=flops, rate=rate), ""]
            lines += [_matrix_line(matrix, matrix_flops)]
            warning = idle_warning([*cells, *matrix])
            tables.append("\n".join([*lines, *([warning] if warning else []), ""]))
            bars.append((row.title, results.ratio_bars(cells)))
            content.append(
                {
                    "row": dataclasses.asdict(row),
                    "cells": [as_json(cell) for cell in cells],
                    "matrix_products": [as_json(cell) for cell in matrix],
                    "flops": flops,
                    "matrix_flops": matrix_flops,
                    "matrix_rate": rate,
                }
            )
            good &= not any(cell.failed for cell in (*cells, *matrix))
            good &= any(cell.absent is None for cell in cells)
            # After each row, so that what ends early leaves what it found.
            text = results.write(
                suite, {"rows": content}, "\n".join(tables), bars=bars, folder=folder
            )
    say(f"\n{text}")
    return good


def _matrix_line(cells, flops):
    rates = ", ".join(
        f"{cell.name.split()[-1]} "
        + (said_of(cell) or f"{matrix_rate([cell], flops) / 1e9:.0f} GFLOP/s")
        for cell in cells
    )
    return f"Matrix products of the model alone, in the same turns: {rates}."


def memory_table(measured):
    """Peak memory of each contender in each row, in MiB, and what the steps added of it."""
    names = list(dict.fromkeys(cell.name for _, cells in measured for cell in cells))
    found = {
        (row, cell.name): said_of(cell)
        or f"{mebibytes(cell.peak_memory)} ({mebibytes(cell.step_memory)})"
        for row, cells in measured
        for cell in cells
    }
    rows = [[name, *(found.get((row, name), "") for row, _ in measured)] for name in names]
    return markdown(["peak MiB (of the steps)", *(row.title for row, _ in measured)], rows)


def run_memory(rows, options, folder=results.RESULTS, say=print):
    """The suite `memory`: a few steps of each contender, forward and training."""
    limits = dataclasses.replace(options.limits, repetitions=1)
    options = dataclasses.replace(options, limits=limits)
    measured = []
    with tempfile.TemporaryDirectory() as temporary:
        for row in rows:
            measured.append((row, measure(row, options, temporary, say)[0]))
            content = [
                {"row": dataclasses.asdict(row), "cells": [as_json(cell) for cell in cells]}
                for row, cells in measured
            ]
            text = results.write("memory", {"rows": content}, memory_table(measured), folder=folder)
    say(f"\n{text}")
    return not any(cell.failed for _, cells in measured for cell in cells)
