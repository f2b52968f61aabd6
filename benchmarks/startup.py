"""The suites `import` and `build`: what a user waits for before the first image.

Every measurement is a fresh process, and the contenders take turns.
"""

import dataclasses
import json
import os
import subprocess
import sys

from benchmarks import results
from benchmarks.contenders import chosen
from benchmarks.processes import ENVIRONMENT, REPOSITORY, missing_package
from benchmarks.ratios import rounded, speed_ratio, spread
from benchmarks.table import markdown

# Prints the seconds, and how many parameters there are, on its last line.
_PROGRAM = """
import json, time
{before}
began = time.perf_counter()
{timed}
seconds = time.perf_counter() - began
print(json.dumps([seconds, int({parameters})]))
"""
_KERAS_HUB = """backbone = keras_hub.models.ViTBackbone(
    image_shape=(224, 224, 3), patch_size=16, num_layers=24, num_heads=16, hidden_dim=1024,
    mlp_dim=4096,
)
model = keras_hub.models.ViTImageClassifier(backbone, num_classes=1000)"""


@dataclasses.dataclass
class Start:
    """Something that is done once in a process.

    Args:
        name: The row of the table.
        framework: Backend of Keras, or `"torch"`.
        package: Whose it is.
        before: What the program does before the clock runs.
        timed: What it is timed for.
        parameters: Expression of the number of parameters.
        seconds: One value a repetition.
        count: Number of parameters that it said.
        absent: Why there are no figures.
    """

    name: str
    framework: str
    package: str
    before: str
    timed: str
    parameters: str = "0"
    seconds: list[float] = dataclasses.field(default_factory=list)
    count: int | None = None
    absent: str | None = None

    @property
    def program(self):
        return _PROGRAM.format(before=self.before, timed=self.timed, parameters=self.parameters)


def starts(suite):
    """The rows of a suite; keras_vit's are the first of each framework."""
    counted = "model.count_params()"
    if suite == "import":
        return [
            Start(f"{name}, {backend}", backend, package, *timed)
            for backend in ("tensorflow", "jax")
            for name, package, timed in (
                ("keras_vit after keras", "keras_vit", ("import keras", "import keras_vit")),
                ("keras_hub after keras", "keras_hub", ("import keras", "import keras_hub")),
                ("keras alone", "keras", ("", "import keras")),
            )
        ]
    rows = []
    for backend in ("tensorflow", "jax"):
        ours = "import keras_vit", "model = keras_vit.ViTL16()", counted
        theirs = "import keras_hub", _KERAS_HUB, counted
        rows += [
            Start(f"keras_vit ViTL16, {backend}", backend, "keras_vit", *ours),
            Start(f"keras-hub ViTImageClassifier, {backend}", backend, "keras_hub", *theirs),
        ]
    timm = (
        "from benchmarks.torch_models import import_timm; timm = import_timm()",
        'model = timm.create_model("vit_large_patch16_224")',
        "sum(parameter.numel() for parameter in model.parameters())",
    )
    return [*rows, Start("timm vit_large_patch16_224", "torch", "timm", *timm)]


def measure(rows, limits, say=print):
    """Runs all programs in turn; each row takes its seconds or the reason why it has none."""
    for row in rows:
        missing = missing_package((row.framework, row.package))
        row.absent = f"not installed: {missing}" if missing else None
    # The first turn brings the files into memory and is not counted.
    for repetition in range(-1, limits.repetitions):
        for row in rows:
            if row.absent is not None:
                continue
            found = run_program(row.program, row.framework, limits.timeout)
            if isinstance(found, str):
                row.absent, row.seconds = found, []
            elif repetition >= 0:
                row.seconds.append(found[0])
                row.count = found[1]
            said = row.absent or f"{found[0]:.2f} s"
            say(f"  {repetition + 1}/{limits.repetitions} {row.name}: {said}")
    counts = {row.count for row in rows if row.count is not None}
    if len(counts) > 1:
        for row in rows:
            row.absent, row.seconds = f"FAILED: {row.count} parameters, not all have them", []


def run_program(program, framework, timeout):
    """`[seconds, parameters]` of a fresh process, or the reason why there is nothing."""
    environment = {**os.environ, **ENVIRONMENT, "KERAS_BACKEND": framework}
    paths = str(REPOSITORY), os.environ.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"over {timeout:g} s"
    if ended.returncode:
        return f"FAILED: {(ended.stderr.strip().splitlines() or ['no message'])[-1][:200]}"
    return json.loads(ended.stdout.strip().splitlines()[-1])


def table(rows):
    """Seconds of each row, and how many times as fast keras_vit on the same framework is.

    timm, which runs on neither backend, is beside keras_vit's first row.
    """
    found = ratios(rows)
    lines = [[row.name, row.absent or spread(row.seconds), found.get(row.name, "")] for row in rows]
    return markdown(["", "seconds", "keras_vit is x as fast"], lines)


def ratios(rows):
    """`Spread` of each row beside keras_vit's of the same framework, or its first, by name.

    What keras_vit comes on top of, Keras itself, is no peer of it.
    """
    ours = {row.framework: row for row in reversed(rows) if row.package == "keras_vit"}
    first = next(iter(reversed(ours.values())), None)
    pairs = [
        (ours.get(row.framework, first), row)
        for row in rows
        if row.seconds and row.package != "keras"
    ]
    return {
        row.name: speed_ratio(mine.seconds, row.seconds)
        for mine, row in pairs
        if mine is not None and mine.seconds
    }


def run(suite, options, say=print):
    """Measures and writes; the table last. Returns whether nothing failed."""
    rows = chosen(starts(suite), options.contenders)
    measure(rows, options.limits, say)
    found = ratios(rows)
    bars = [
        (row.name, found[row.name])
        for row in rows
        if row.name in found and row.package != "keras_vit"
    ]
    content = {"rows": [dataclasses.asdict(row) for row in rows]}
    head = f"{options.limits.repetitions} fresh processes each, in turn. Median (least..most).\n\n"
    shown = [(f"{suite}, beside keras_vit", bars)]
    text = results.write(suite, content, head + table(rows), bars=shown, folder=options.folder)
    say(f"\n{text}")
    for row in rows:
        if row.seconds:
            say(f"{row.name}: {rounded(spread(row.seconds).median)} s")
    return not any((row.absent or "").startswith("FAILED") for row in rows)
