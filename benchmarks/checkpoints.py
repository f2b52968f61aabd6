"""How long training stands still for a checkpoint: `python -m benchmarks.checkpoints [MODEL]`.

Saves the state of a model with SGD's momentum, waiting for the disk and not, and prints medians.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras

import keras_vit
from benchmarks import machine
from keras_vit.finetune.state import CheckpointWriter, Progress, save_training_state

REPETITIONS = 5


def main(name="vit_b16"):
    model = keras_vit.create(name)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    waiting, beside, written = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for step in range(REPETITIONS):
            began = time.perf_counter()
            path = save_training_state(Path(folder), model, Progress(step), "run")
            waiting.append(time.perf_counter() - began)
            size = path.stat().st_size
            with CheckpointWriter(Path(folder), "run") as writer:
                began = time.perf_counter()
                future = writer.save(model, Progress(step))
                beside.append(time.perf_counter() - began)
                future.result()
                written.append(time.perf_counter() - began)
    print(machine.sentence(machine.describe()))
    print(f"{name}, {size / 2**20:,.0f} MiB of state, median of {REPETITIONS}:")
    print(f"| written while training waits | {statistics.median(waiting):.2f} s |")
    print(f"| training stands still (a copy in memory) | {statistics.median(beside):.2f} s |")
    print(f"| on the disk, beside the training | {statistics.median(written):.2f} s |")


if __name__ == "__main__":
    main(*sys.argv[1:])
