"""The benchmarks beside the peers: `python -m benchmarks [SUITE …]`; see docs/benchmarks.md."""

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.contenders import FORWARD, TRAIN, chosen
from benchmarks.measuring import Limits
from benchmarks.processes import ENVIRONMENT
from benchmarks.results import RESULTS, commit_of_the_start
from benchmarks.startup import starts

SUITES = ("import", "build", "forward", "train", "input", "augment", "export", "memory", "scale")
# Suites that are modules with a `main()`.
MODULES = {"input": "input", "augment": "augmentation", "export": "serving"}
TABLES = {
    "forward": (FORWARD,),
    "train": (TRAIN,),
    "memory": (FORWARD, TRAIN),
    "import": (starts("import"),),
    "build": (starts("build"),),
}
# Suites → the options that they read.
_LIMITS = ("repetitions", "timeout", "folder")
_SIZES = ("models", "batch_sizes", "dtypes", "image_size", "compile_timeout", "alone")
READ = {
    "import": (*_LIMITS, "contenders"),
    "build": (*_LIMITS, "contenders"),
    "forward": (*_LIMITS, *_SIZES, "contenders"),
    "train": (*_LIMITS, *_SIZES, "contenders"),
    "memory": ("timeout", "folder", *_SIZES, "contenders"),
    "scale": (*_LIMITS, "compile_timeout", "alone"),
}
# Batch sizes of a training step, by model.
TRAIN_BATCHES = {"vit_b16": 4, "vit_ti16": 16}


@dataclasses.dataclass(frozen=True)
class Options:
    """What was asked for on the command line.

    Args:
        models: Names of `keras_vit.list_models()`.
        batch_sizes: Images a step; None for the suite's own.
        dtypes: `"float32"` and `"bfloat16"`; None for the suite's own.
        image_size: Pixels.
        contenders: Texts of which a contender's name must contain one; none: all.
        limits: How long and how often.
        folder: Where results go.
    """

    models: tuple[str, ...]
    batch_sizes: tuple[int, ...] | None
    dtypes: tuple[str, ...] | None
    image_size: int
    contenders: tuple[str, ...]
    limits: Limits
    folder: Path


def rows_of(suite, options):
    """The rows of `forward` or `train`."""
    from benchmarks.model_rows import Row

    dtypes = options.dtypes or {"forward": ("float32", "bfloat16"), "train": ("float32",)}[suite]
    rows = []
    for model in options.models:
        batches = options.batch_sizes or (
            (1, 8) if suite == "forward" else (TRAIN_BATCHES.get(model, 4),)
        )
        rows += [
            Row(suite, model, options.image_size, batch, dtype)
            for batch in batches
            for dtype in dtypes
        ]
    return rows


def run(suite, options):
    """Runs a suite; False where a contender failed."""
    if suite in ("forward", "train"):
        from benchmarks import model_rows

        return model_rows.run(suite, rows_of(suite, options), options, options.folder)
    if suite == "memory":
        from benchmarks import model_rows

        float32 = dataclasses.replace(options, dtypes=options.dtypes or ("float32",))
        rows = [*rows_of("forward", float32), *rows_of("train", float32)]
        return model_rows.run_memory(rows, options, options.folder)
    if suite in ("import", "build"):
        from benchmarks import startup

        return startup.run(suite, options)
    if suite == "scale":
        from benchmarks import scaling

        return scaling.run(options)
    return run_module(suite)


def run_module(suite):
    """The suites that are commands of their own, with the options that they have by default."""
    module = "benchmarks." + MODULES[suite]
    if find_spec(module) is None:
        print(f"{suite}: there is no module {module}")
        return False
    return subprocess.run([sys.executable, "-m", module]).returncode == 0


def parse(arguments=None):
    """`(suites, Options)` of a command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)}; all")
    parser.add_argument("--models", nargs="+", default=["vit_ti16", "vit_b16"])
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--contenders", nargs="+", default=[], help="parts of names; all")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a repetition")
    parser.add_argument("--compile-timeout", type=float, default=300.0)
    parser.add_argument("--alone", action="store_true", help="one after the other, not in turn")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where results go")
    found = parser.parse_args(arguments)
    if found.repetitions < 1:
        parser.error(f"--repetitions must be at least 1: {found.repetitions}")
    unknown = [suite for suite in found.suites if suite not in SUITES]
    if unknown:
        parser.error(f"no such suite: {', '.join(unknown)}. There are: {', '.join(SUITES)}")
    suites = found.suites or list(SUITES)
    read = {name for suite in suites for name in READ.get(suite, ())}
    for name, value in vars(found).items():
        if value != parser.get_default(name) and name not in ("suites", *read):
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} is read by none of the suites {', '.join(suites)}")
    for suite in suites:
        try:
            for table in TABLES.get(suite, ()):
                chosen(table, found.contenders)
        except ValueError as error:
            parser.error(f"{suite}: {error}")
    _check_models(found.models, parser)
    limits = Limits(found.repetitions, found.timeout, found.compile_timeout, found.alone)
    options = Options(
        models=tuple(found.models),
        batch_sizes=found.batch_sizes and tuple(found.batch_sizes),
        dtypes=found.dtypes and tuple(found.dtypes),
        image_size=found.image_size,
        contenders=tuple(found.contenders),
        limits=limits,
        folder=found.folder,
    )
    return suites, options


def _check_models(models, parser):
    from keras_vit.models import VARIANTS

    for model in models:
        if model not in VARIANTS:
            parser.error(f"no such model: {model}. There are: {', '.join(VARIANTS)}")


def main(arguments=None):
    # Of this process, before it imports Keras; it computes nothing itself.
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("KERAS_BACKEND", "tensorflow" if find_spec("tensorflow") else "jax")
    suites, options = parse(arguments)
    # What ends this process ends its workers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    commit_of_the_start()  # Now: commits may follow while it runs.
    good = True
    for suite in suites:
        print(f"== {suite}", flush=True)
        good &= run(suite, options)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
