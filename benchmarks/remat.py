"""What recomputing activations saves and costs: `python -m benchmarks.remat`.

Training steps (SGD) of ViT-B/16, 224 px, batch 16, with and without `remat`, a fresh process each,
in turn: its peak memory, and the seconds of the steps after the first, which compiles. Medians over
the repetitions are printed with the ratio to a model without.
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


def steps(variant, image_size, batch_size, remat, count):
    """Gigabytes before the first step and at the peak, and the seconds of each step."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, image_size, image_size, 3), dtype="uint8")
    labels = random.integers(0, 10, batch_size)
    model = keras_vit.create(variant, 10, image_size=image_size, drop_path=0.1, remat=remat)
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
    found = {False: [], True: []}
    for _ in range(options.repetitions):
        for remat, runs in found.items():
            run = in_a_fresh_process("benchmarks.remat", remat=remat, count=options.steps, **case)
            runs.append(run)
            print(f"remat {remat}: {run}", flush=True)
    print(f"{case}, {keras.backend.backend()} backend, float32,")
    print(f"{platform.machine()} with {describe_machine()}")
    print(f"{'remat':>6}{'before, GB':>12}{'peak, GB':>10}{'ratio':>7}{'step, s':>10}{'ratio':>7}")
    base = {}
    for remat, runs in found.items():
        before, peak = (statistics.median(run[key] for run in runs) for key in ("before", "peak"))
        seconds = statistics.median(value for run in runs for value in run["seconds"])
        base = base or {"peak": peak, "seconds": seconds}
        print(
            f"{remat!s:>6}{before:12.2f}{peak:10.2f}{peak / base['peak']:7.2f}{seconds:10.2f}"
            f"{seconds / base['seconds']:7.2f}"
        )


if __name__ == "__main__":
    main()
