"""What options of the model save and cost in training: `python -m benchmarks.training_options`.

Training steps (SGD) of a model with each option, a fresh process each, in turn: peak memory, and
the seconds of the steps after the first, which compiles. Medians over the repetitions are printed
with the ratio to the model without options.
"""

import argparse
import json
import platform
import statistics
import time

import keras
import numpy as np

import keras_vit
from benchmarks.memory import in_a_fresh_process, memory_gigabytes
from keras_vit.finetune.report import describe_machine

# Name → fields of the config.
OPTIONS = {
    "none": {},
    "remat": {"remat": True},
    "drop_path 0.4": {"drop_path": 0.4},
    "efficient_drop_path 0.4": {"drop_path": 0.4, "efficient_drop_path": True},
    "patch_dropout 0.5": {"patch_dropout": 0.5},
}


def steps(variant, image_size, batch_size, fields, count):
    """Gigabytes before the first step and at the peak, and the seconds of each step."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, image_size, image_size, 3), dtype="uint8")
    labels = random.integers(0, 10, batch_size)
    model = keras_vit.create(variant, 10, image_size=image_size, **fields)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=False)
    before, seconds = memory_gigabytes(peak=False), []
    for step in range(count + 1):
        began = time.perf_counter()
        model.train_on_batch(images, labels)
        if step:
            seconds.append(time.perf_counter() - began)
    return {"before": before, "peak": memory_gigabytes(peak=True), "seconds": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="vit_b16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="of a process, after the first")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--case", type=json.loads, help="measure this case alone")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(steps(**options.case)))
        return
    case = {name: getattr(options, name) for name in ("variant", "image_size", "batch_size")}
    found = {name: [] for name in OPTIONS}
    for _ in range(options.repetitions):
        for name, runs in found.items():
            run = in_a_fresh_process(
                "benchmarks.training_options", fields=OPTIONS[name], count=options.steps, **case
            )
            runs.append(run)
            print(f"{name}: {run}", flush=True)
    print(f"{case}, {keras.backend.backend()} backend, float32,")
    print(f"{platform.machine()} with {describe_machine()}")
    print(
        f"{'option':>24}{'before, GB':>12}{'peak, GB':>10}{'ratio':>7}{'step, s':>10}{'ratio':>7}"
    )
    base = {}
    for name, runs in found.items():
        before, peak = (statistics.median(run[key] for run in runs) for key in ("before", "peak"))
        seconds = statistics.median(value for run in runs for value in run["seconds"])
        base = base or {"peak": peak, "seconds": seconds}
        print(
            f"{name:>24}{before:12.2f}{peak:10.2f}{peak / base['peak']:7.2f}{seconds:10.2f}"
            f"{seconds / base['seconds']:7.2f}"
        )


if __name__ == "__main__":
    main()
