"""How fast RandAugment is here and in its peers: `python -m benchmarks.augmentation`.

Two operations an image, at 224 px, in batches of 64, on the device of the backend: `Augment` with
what `TrainingBatches` draws for it, each operation applied half of the time (timm's RandAugment,
that of a recipe) and always; `keras.layers.RandAugment` (Keras core), which always applies them, so
that the row that counts beside it is the second; and `keras_cv.layers.RandAugment`, where it is
installed, in tf.data with as many parallel calls as there are cores. Images are uint8 and of their
size already, so that nothing is cropped. Each repetition runs all of them in turn, so that a drift
of the machine's speed meets them alike; medians over the repetitions are printed with the ratio to
Keras core. The time of all cores that an image takes is printed too: what else runs on the machine
changes it less than it changes the images a second.
"""

import os
import statistics
import time
from unittest import mock

import keras
import numpy as np

from benchmarks import machine
from benchmarks.processes import missing_package
from keras_vit.data import Augment, Augmentation, augmentation
from keras_vit.data.augmentation import draw_operations

IMAGE_SIZE, BATCH_SIZE, REPETITIONS = 224, 64, 5
OURS, ALL = "keras_vit, each applied half the time", "keras_vit, every operation applied"
CORE, CV = "keras.layers.RandAugment", "keras_cv RandAugment, tf.data"
# Keras core takes seconds a batch.
BATCHES = {OURS: 10, ALL: 10, CORE: 1, CV: 2}


class MeanOfImages(keras.layers.Layer):
    """The mean of each image that a layer makes in training.

    The images themselves stay on the device, as they do in training.
    """

    def __init__(self, layer, **options):
        super().__init__()
        self.layer, self.options = layer, options

    def call(self, inputs):
        return keras.ops.mean(self.layer(inputs, **self.options), axis=(1, 2, 3))

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((None,), "float32")


def ours(images, probability):
    """Batches with `Augment`, their drawing included."""
    policy = Augmentation(IMAGE_SIZE, augment="randaugment")

    def inputs_of(step):
        # No field of the policy says so: timm's half is part of what it means.
        with mock.patch.object(augmentation, "RANDAUGMENT_PROBABILITY", probability):
            return {"images": images, **draw_operations(policy, 0, step, len(images))}

    specification = {
        name: keras.Input(array.shape[1:], dtype=str(array.dtype), name=name)
        for name, array in inputs_of(0).items()
    }
    model = keras.Model(specification, MeanOfImages(Augment(policy))(specification))
    return lambda count: [model.predict_on_batch(inputs_of(step)) for step in range(count)]


def keras_core(images):
    """Batches with the layer of Keras itself."""
    layer = keras.layers.RandAugment(value_range=(0, 255), num_ops=2, factor=0.9)
    inputs = keras.Input(images.shape[1:], dtype="uint8")
    model = keras.Model(inputs, MeanOfImages(layer, training=True)(inputs))
    return lambda count: [model.predict_on_batch(images) for _ in range(count)]


def keras_cv(images):
    """Batches with the layer of keras-cv, which is made for tf.data."""
    import keras_cv as library
    import tensorflow as tf

    layer = library.layers.RandAugment(
        value_range=(0, 255), augmentations_per_image=2, magnitude=0.9
    )
    dataset = tf.data.Dataset.from_tensors(images).repeat()
    dataset = dataset.map(
        lambda batch: layer(tf.cast(batch, tf.float32)),
        num_parallel_calls=os.cpu_count(),
    )
    # A stream each time, so that nothing is made ahead in the time of the others.
    return lambda count: list(dataset.take(count).as_numpy_iterator())


def main():
    random = np.random.default_rng(0)
    shape = (BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = random.integers(0, 256, shape, dtype="uint8")
    runners = {
        OURS: ours(images, 0.5),
        ALL: ours(images, 1.0),
        CORE: keras_core(images),
    }
    missing = missing_package(("keras_cv", "tensorflow"))
    if missing is None:
        runners[CV] = keras_cv(images)
    for run in runners.values():
        run(1)  # Compiles.
    rates, processor_time = ({name: [] for name in runners} for _ in range(2))
    for _ in range(REPETITIONS):
        for name, run in runners.items():
            count = BATCHES[name] * BATCH_SIZE
            began, processor_began = time.perf_counter(), time.process_time()
            run(BATCHES[name])
            rates[name].append(count / (time.perf_counter() - began))
            processor_time[name].append((time.process_time() - processor_began) / count)
    print(f"RandAugment, 2 operations, {IMAGE_SIZE} px, batch {BATCH_SIZE}, uint8 in, float32 out")
    print(f"{keras.backend.backend()} backend. {machine.sentence(machine.describe())}")
    print(
        f"{'':40}{'images/s':>10}{'min':>8}{'max':>8}{'ratio':>8}{'CPU ms/image':>14}{'ratio':>8}"
    )
    base, base_time = statistics.median(rates[CORE]), statistics.median(processor_time[CORE])
    for name, found in rates.items():
        median, seconds = statistics.median(found), statistics.median(processor_time[name])
        print(
            f"{name:40}{median:10.1f}{min(found):8.1f}{max(found):8.1f}{median / base:8.1f}"
            f"{1000 * seconds:14.2f}{base_time / seconds:8.1f}"
        )
    if missing is not None:
        print(f"{CV:40}not installed: {missing}")


if __name__ == "__main__":
    main()
