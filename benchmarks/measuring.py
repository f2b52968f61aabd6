"""One row of contenders: all are built, all compute the same, and then they are timed in turn."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from benchmarks.processes import Absent, Failed, Worker, missing_package

# Largest difference to the reference, as a share of the largest absolute value of it. bfloat16 has
# 8 bits: 12 blocks of random weights differ by one or two hundredths between any two libraries.
TOLERANCES = {
    ("forward", "float32"): 2e-5,
    ("forward", "bfloat16"): 5e-2,
    # Losses of the first steps: each update divides the differences of the gradients by nothing.
    ("train", "float32"): 2e-4,
    ("train", "bfloat16"): 2e-2,
}
# A repetition is as many steps as fill so many seconds.
REPETITION_SECONDS = 0.5


@dataclasses.dataclass
class Limits:
    """How long and how often.

    Args:
        repetitions: Number of times each contender is timed.
        timeout: Seconds after which a repetition is given up.
        compile_timeout: Seconds for the first step of a contender that compiles, and for building.
        alone: Whether a contender ends before the next begins, instead of taking turns with it: for
            a GPU whose memory holds one of them.
    """

    repetitions: int = 9
    timeout: float = 120.0
    compile_timeout: float = 300.0
    alone: bool = False


@dataclasses.dataclass
class Cell:
    """What was found out about a contender.

    Args:
        name: The contender's.
        absent: Why there are no figures; None if there are.
        failed: Whether that is a failure, not an absence.
        seconds: Of a step, one value a repetition.
        build_seconds: Until the model was built, with its weights.
        first_seconds: Of the first step, or the first few, compilation included.
        difference: Largest difference to the reference, as a share of its largest absolute value.
        built_memory: Bytes of main memory before the first step: framework and weights. None on a
            GPU.
        peak_memory: Bytes.
        idle: Cores that it kept busy while it was not its turn, at most.
        facts: Device and the like.
    """

    name: str
    absent: str | None = None
    failed: bool = False
    seconds: list[float] = dataclasses.field(default_factory=list)
    build_seconds: float | None = None
    first_seconds: float | None = None
    difference: float | None = None
    built_memory: int | None = None
    peak_memory: int | None = None
    idle: float = 0.0
    facts: dict = dataclasses.field(default_factory=dict)

    @property
    def step_memory(self):
        """Bytes that the steps added: activations, gradients, state; None where it is unknown."""
        if self.built_memory is None or self.peak_memory is None:
            return None
        return self.peak_memory - self.built_memory

    def give_up(self, error):
        self.absent, self.failed = str(error), isinstance(error, Failed)
        self.seconds = []


def relative_difference(outputs, reference):
    """Largest difference as a share of the reference's largest absolute value."""
    if outputs.shape != reference.shape:
        return math.inf
    difference = np.max(np.abs(outputs - reference)) / np.max(np.abs(reference))
    return float(difference) if np.isfinite(difference) else math.inf


def measure_row(contenders, job, limits, folder, *, compare=None, say=print):
    """Measures contenders beside each other.

    Args:
        contenders: A sequence of `Contender`.
        job: What each of them is to do; its options come on top.
        limits: `Limits`.
        folder: An existing folder for outputs.
        compare: `(reference, tolerance)`; the reference None: that of the first contender that
            there is. None: nothing is compared.
        say: Takes lines of progress.

    Returns:
        A list of `Cell`, one a contender. One that computes something else than the reference has
        failed and was not timed.
    """
    cells = [Cell(contender.name) for contender in contenders]
    reference, tolerance = compare or (None, math.inf)
    pairs = list(zip(contenders, cells, strict=True))
    for group in [[pair] for pair in pairs] if limits.alone else [pairs]:
        workers = {}
        try:
            for contender, cell in group:
                try:
                    worker, outputs = _prepare(contender, job, limits, Path(folder), cell)
                    workers[id(cell)] = worker
                    if compare is not None and contender.compared:
                        reference = outputs if reference is None else reference
                        _compare(cell, outputs, reference, tolerance)
                    say(f"  {cell.name}: ready, {_differs(cell)}first {cell.first_seconds:.1f} s")
                except Absent as error:
                    cell.give_up(error)
                    say(f"  {cell.name}: {'FAILED: ' * cell.failed}{cell.absent}")
            _time([cell for _, cell in group if cell.absent is None], workers, limits, say)
        finally:
            for worker in workers.values():
                worker.kill()
    return cells


def _compare(cell, outputs, reference, tolerance):
    cell.difference = relative_difference(outputs, reference)
    if cell.difference > tolerance:
        raise Failed(
            f"differs by {cell.difference:.1e} of the largest value, which may be {tolerance:.0e}"
        )


def _differs(cell):
    return "" if cell.difference is None else f"differs by {cell.difference:.1e}, "


def _prepare(contender, job, limits, folder, cell):
    missing = missing_package(contender.packages)
    if missing:
        raise Absent(f"not installed: {missing}")
    worker = Worker(contender.environment(job.get("dtype", "float32")))
    try:
        built = worker.ask(
            limits.compile_timeout,
            do="prepare",
            make=contender.make,
            job={**job, **contender.options},
        )
        path = folder / "outputs.npy"
        limit = limits.compile_timeout if contender.compiles else limits.timeout
        first = worker.ask(limit, do="check", path=str(path))
    except BaseException:
        worker.kill()
        raise
    cell.build_seconds, cell.first_seconds = built["seconds"], first["seconds"]
    cell.facts, cell.built_memory = built["facts"], built["memory"]
    return worker, np.load(path)


def _time(cells, workers, limits, say):
    """A B C, A B C, …: a drift of the machine's speed meets all alike."""
    steps = {}
    for repetition in range(-1, limits.repetitions):  # The first only finds out how many steps.
        for cell in [cell for cell in cells if cell.absent is None]:
            worker = workers[id(cell)]
            try:
                answer = worker.ask(limits.timeout, do="time", steps=steps.get(id(cell), 1))
            except Absent as error:
                cell.give_up(error)
                say(f"  {cell.name}: {'FAILED: ' * cell.failed}{cell.absent}")
                continue
            if repetition < 0:
                steps[id(cell)] = max(1, math.ceil(REPETITION_SECONDS / answer["seconds"]))
                continue
            cell.seconds.append(answer["seconds"])
            cell.idle = max(cell.idle, answer["idle"])
            say(
                f"  {repetition + 1}/{limits.repetitions} {cell.name}: "
                f"{1000 * answer['seconds']:.1f} ms"
            )
    for cell in [cell for cell in cells if cell.absent is None]:
        try:
            answer = workers[id(cell)].ask(limits.timeout, do="memory")
        except Absent as error:
            cell.give_up(error)
            continue
        cell.peak_memory = answer["peak"]
        if not answer["since_built"]:
            cell.built_memory = None  # The peak may be that of building.


def run_once(make, job, environment, path, timeout):
    """Lets a worker prepare and check a job, and ends it: for what is needed before a row.

    Returns:
        The outputs.
    """
    worker = Worker(environment)
    try:
        worker.ask(timeout, do="prepare", make=make, job=job)
        worker.ask(timeout, do="check", path=str(path))
    finally:
        worker.kill()
    return np.load(path)


def as_json(cell):
    """A cell as plain values."""
    return json.loads(json.dumps(dataclasses.asdict(cell)))
