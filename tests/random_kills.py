"""Kills a run at random, again and again, and compares its end with that of a run left alone.

`python tests/random_kills.py [KILLS]`: the recipe of small_runs.py, longer; SIGKILL after
a random time of training or, every fourth, of starting. Ends with status 1 if a bit differs of
weights, log or result.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import small_runs

from keras_vit.finetune.log import read_log

# What is measured, not computed.
MEASURED = ("images_per_second", "waiting_share", "minutes", "finished", "peak_memory")


def start(output, **options):
    """A run that keeps its best weights."""
    return small_runs.start(output, subprocess.DEVNULL, None, keep="best", **options)


def without_measurements(value):
    """Plain values without what differs from run to run, and without the folder's name."""
    if isinstance(value, dict):
        return {
            name: without_measurements(part)
            for name, part in value.items()
            if name not in (*MEASURED, "output")
        }
    return [without_measurements(part) for part in value] if isinstance(value, list) else value


def outcome(folder):
    """Weights' digest, rows of the log and result of a finished run."""
    import keras

    model = keras.saving.load_model(folder / "model.keras")
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return {
        "weights": digest.hexdigest(),
        "log": without_measurements(read_log(folder / "log.csv")),
        "result": without_measurements(json.loads((folder / "result.json").read_text())),
    }


def newest_step(output):
    """The step of the newest checkpoint; 0 without one."""
    newest = max((output / "run" / "checkpoints").glob("step_*.safetensors"), default=None)
    return int(newest.stem.removeprefix("step_")) if newest else 0


def wait_until_it_trains(process, output):
    """Waits for a checkpoint that was not there before, or for the end."""
    before = newest_step(output)
    while newest_step(output) <= before and process.poll() is None:
        time.sleep(0.005)


def kill_at_random(output, kills, seconds, seed=0, **options):
    """Starts a run until it has been killed so many times, then lets it finish.

    Args:
        output: Folder of the run.
        kills: Number of SIGKILLs; every fourth comes while the process starts.
        seconds: The longest time that a session trains.
        seed: Of the times.

    Returns:
        The steps that the newest checkpoints were of when the run was killed.
    """
    draw, steps = random.Random(seed), []
    while len(steps) < kills:
        process = start(output, **options)
        if len(steps) % 4 < 3:
            wait_until_it_trains(process, output)
            longest = seconds
        else:
            longest = 5.0
        try:
            status = process.wait(timeout=draw.uniform(0.0, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            status = process.wait()
        if status == 0:
            raise RuntimeError(f"The run ended after {len(steps)} kills: give it more steps")
        if status != -signal.SIGKILL:
            raise RuntimeError(f"The run ended by itself with status {status}")
        steps.append(newest_step(output))
        print(f"kill {len(steps)} of {kills}: newest checkpoint of step {steps[-1]}", flush=True)
    if start(output, **options).wait() != 0:
        raise RuntimeError("The run could not be finished")
    return steps


def main(kills=20):
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        # Long enough for all kills to fall into it.
        options = {"steps": 100 * kills}
        process = start(whole, **options)
        wait_until_it_trains(process, whole)
        began = time.monotonic()
        if process.wait() != 0:
            return 1
        seconds = time.monotonic() - began
        print(f"uninterrupted: {seconds:.1f} s of training", flush=True)
        steps = kill_at_random(killed, kills, seconds / kills, **options)
        expected, found = outcome(whole / "run"), outcome(killed / "run")
    for part in expected:
        same = expected[part] == found[part]
        print(f"{part}: {'bit-identical' if same else 'DIFFERENT'}")
    print(f"{kills} kills, with newest checkpoints of the steps {steps}")
    return 0 if expected == found else 1


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    sys.exit(main(*map(int, sys.argv[1:])))
