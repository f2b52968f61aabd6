"""Runs of seconds on scikit-learn's digits, that are killed, stopped and compared to the bit."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import keras
import numpy as np

from keras_vit.finetune import Recipe
from keras_vit.finetune.log import RunLog
from keras_vit.models import VisionTransformerConfig

ARCHITECTURE = VisionTransformerConfig(
    patch_size=4, hidden_size=16, depth=2, mlp_dim=32, num_heads=2, image_size=8
)
# Batches of 96 straddle the epochs of 1,294 images; every source of randomness is in use.
RECIPE = Recipe(
    name="run",
    image_size=8,
    resize_size=9,
    steps=60,
    batch_size=96,
    warmup_steps=5,
    learning_rate=0.1,
    validation_fraction=0.1,
    dropout=0.1,
    drop_path=0.1,
    evaluate_every=20,
    checkpoint_every=5,
    precision="float32",
    report=False,
)
PROGRAM = """
    import dataclasses, sys
    sys.path.insert(0, {tests!r})
    import small_runs
    from keras_vit.finetune import run, user_errors
    recipe = dataclasses.replace(small_runs.RECIPE, output={output!r}, **{changes!r})
    with user_errors():
        run(recipe, architecture=small_runs.ARCHITECTURE)
"""


class Killed(BaseException):
    """Stands for the end of the process."""


def start(output, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **changes):
    """A process that runs RECIPE with changes, as a command line would."""
    program = PROGRAM.format(tests=str(Path(__file__).parent), output=str(output), changes=changes)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=stdout,
        stderr=stderr,
        text=True,
    )


def wait_for(path, process, seconds=120):
    """Waits until a process has written a file."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.002)


def after_row(monkeypatch, step, act):
    """Calls something when the row of a step has been written into a log."""
    write = RunLog.write

    def write_and_act(log, row):
        write(log, row)
        if row["step"] == step:
            act()

    monkeypatch.setattr(RunLog, "write", write_and_act)


def kill():
    """Ends a run as far as a process can that goes on."""
    raise Killed


def weights_of(folder):
    """The weights of a finished run."""
    model = keras.saving.load_model(folder / "model.keras")
    return [np.asarray(weight) for weight in model.get_weights()]


def assert_same_weights(first, second):
    """Two finished runs ended with the same bits."""
    for expected, found in zip(weights_of(first), weights_of(second), strict=True):
        np.testing.assert_array_equal(found, expected)
