"""Whether XLA pays for a training step on this machine: `python -m benchmarks.jit_compile`.

Trains ViT-Ti/16 at 160 px on random images, with and without `jit_compile`, in float32 and
mixed_bfloat16. Each repetition runs all cases in turn, so that a drift of the machine's speed
meets them alike; medians over the repetitions are printed with the ratio to `jit_compile=False`.
"""

import platform
import statistics
import time

import keras
import numpy as np

import keras_vit

IMAGE_SIZE, BATCH_SIZE, REPETITIONS, STEPS = 160, 32, 5, 4
CASES = [(dtype, jit) for dtype in ("float32", "mixed_bfloat16") for jit in (False, True)]


def compiled_model(dtype, jit_compile):
    """A model that is ready to train."""
    model = keras_vit.ViTTi16(num_classes=10, image_size=IMAGE_SIZE, dtype=dtype)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_vit.finetune.SGD(1e-3), loss, jit_compile=jit_compile)
    return model


def seconds_of(model, images, labels):
    """Seconds a step, over a few steps."""
    began = time.perf_counter()
    for _ in range(STEPS):
        model.train_on_batch(images, labels)
    return (time.perf_counter() - began) / STEPS


def main():
    random = np.random.default_rng(0)
    shape = (BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = random.integers(0, 256, shape, dtype="uint8")
    labels = random.integers(0, 10, BATCH_SIZE)
    models = {case: compiled_model(*case) for case in CASES}
    for model in models.values():
        seconds_of(model, images, labels)  # Compiles.
    seconds = {case: [] for case in CASES}
    for _ in range(REPETITIONS):
        for case, model in models.items():
            seconds[case].append(seconds_of(model, images, labels))
    print(f"ViT-Ti/16, {IMAGE_SIZE} px, batch {BATCH_SIZE}, {keras.backend.backend()} backend,")
    print(f"{platform.machine()} with {keras_vit.finetune.report.describe_machine()}")
    print(f"{'dtype':16}{'jit_compile':>12}{'images/s':>10}{'min':>8}{'max':>8}{'ratio':>8}")
    for dtype, jit in CASES:
        rates = sorted(BATCH_SIZE / s for s in seconds[dtype, jit])
        median = statistics.median(rates)
        base = BATCH_SIZE / statistics.median(seconds[dtype, False])
        print(
            f"{dtype:16}{jit!s:>12}{median:10.1f}{rates[0]:8.1f}{rates[-1]:8.1f}"
            f"{median / base:8.2f}"
        )


if __name__ == "__main__":
    main()
