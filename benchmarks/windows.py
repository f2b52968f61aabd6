"""From which image size on window attention pays: `python -m benchmarks.windows`.

Forward passes and training steps (SGD) of one model, with attention between all patches and in
windows with four global blocks. Each repetition runs all cases in turn, so that a drift of the
machine's speed meets them alike; medians over the repetitions are printed with the ratio to
attention between all patches. Peak memory is that of a training step, in a fresh process a case.
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

PARTS = ("speed", "memory")


def compiled_model(variant, image_size, window_size):
    model = keras_vit.create(variant, 10, image_size=image_size, window_size=window_size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=False)
    return model


def batch(image_size, size):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (size, image_size, image_size, 3), dtype="uint8")
    return images, random.integers(0, 10, size)


def seconds(variant, image_size, batch_size, windows, repetitions):
    """(seconds of forward passes, of training steps) by window."""
    images, labels = batch(image_size, batch_size)
    models = {window: compiled_model(variant, image_size, window) for window in windows}
    found = {window: ([], []) for window in windows}
    for repetition in range(repetitions + 1):
        for window, model in models.items():
            began = time.perf_counter()
            model.predict_on_batch(images)
            between = time.perf_counter()
            model.train_on_batch(images, labels)
            ended = time.perf_counter()
            # The first one compiles.
            if repetition:
                found[window][0].append(between - began)
                found[window][1].append(ended - between)
    return found


def memory_of_a_step(variant, image_size, batch_size, window_size):
    """Gigabytes before the first training step, and at the peak of two."""
    model = compiled_model(variant, image_size, window_size)
    before = memory_gigabytes(peak=False)
    for _ in range(2):
        model.train_on_batch(*batch(image_size, batch_size))
    return {"before": before, "peak": memory_gigabytes(peak=True)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="vit_ti16")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384, 512, 768, 1024])
    parser.add_argument("--windows", type=int, nargs="+", default=[14, 16])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--case", type=json.loads, help="measure the memory of this case alone")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(memory_of_a_step(**options.case)))
        return
    variant, batch_size, windows = options.variant, options.batch_size, [None, *options.windows]
    print(f"{variant}, batch {batch_size}, {keras.backend.backend()} backend, float32,")
    print(f"{platform.machine()} with {describe_machine()}")
    if "speed" in options.parts:
        print(f"{'px':>5}{'window':>8}{'forward, ms':>13}{'ratio':>7}{'step, ms':>11}{'ratio':>7}")
    for image_size in options.sizes if "speed" in options.parts else ():
        found = seconds(variant, image_size, batch_size, windows, options.repetitions)
        base = [statistics.median(times) for times in found[None]]
        for window, times in found.items():
            forward, step = map(statistics.median, times)
            print(
                f"{image_size:5}{window or 'none':>8}{1000 * forward:13.1f}{base[0] / forward:7.2f}"
                f"{1000 * step:11.1f}{base[1] / step:7.2f}",
                flush=True,
            )
    if "memory" in options.parts:
        print(f"{'px':>5}{'window':>8}{'before, GB':>12}{'peak, GB':>10}")
    for image_size in options.sizes if "memory" in options.parts else ():
        for window in windows:
            case = {"variant": variant, "image_size": image_size, "batch_size": batch_size}
            found = in_a_fresh_process("benchmarks.windows", window_size=window, **case)
            print(
                f"{image_size:5}{window or 'none':>8}{found['before']:12.2f}{found['peak']:10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
