"""How long a training step waits for its images: `python -m benchmarks.input`.

Trains ViT-Ti/16, whose steps are the shortest to hide decoding behind, with the loop of a run: on a
temporary folder of made-up JPEG files of 500 x 375 px, and on arrays of 32 x 32 px in memory at 224
and 384 px. For each it prints the share of a step that was waiting (median and worst, after the
first step, which compiles, and what was made ahead meanwhile), the images a second of the training
and of its input alone, and their ratio. Then the input of the folder alone by number of threads,
beside tf.data (decode_jpeg, a random crop, resize) and, in a process of its own,
torch.utils.data.DataLoader with timm's training transform, on the same files.
"""

import argparse
import contextlib
import io
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from benchmarks.processes import missing_package
from benchmarks.serving import jpeg_files
from keras_vit import ViTTi16
from keras_vit.data import Augmentation, ImageSet, TrainingBatches, prefetch
from keras_vit.finetune import Recipe
from keras_vit.finetune.loop import training_steps
from keras_vit.finetune.report import describe_machine
from keras_vit.finetune.splits import Splits
from keras_vit.finetune.training import set_up_training

CLASSES = ("first", "second")
PARTS = ("jpeg", "224", "384", "peers")
FILES = 64
# More than what is made ahead while the first step compiles.
UNCOUNTED_STEPS = 2

TIMM_LOADER = """
import sys, time
from pathlib import Path
import torch
from PIL import Image
from timm.data import create_transform

class Files(torch.utils.data.Dataset):
    def __init__(self):
        self.paths = sorted(Path(sys.argv[1]).glob("*.jpg"))
        self.transform = create_transform(
            224, is_training=True, auto_augment=None, color_jitter=None, interpolation="bilinear"
        )
    def __len__(self):
        return int(sys.argv[2])
    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index % len(self.paths)]).convert("RGB"))

loader = torch.utils.data.DataLoader(
    Files(), batch_size=int(sys.argv[3]), num_workers=int(sys.argv[4])
)
batches = iter(loader)
first = len(next(batches))
began = time.perf_counter()
count = sum(len(batch) for batch in batches)
print(count / (time.perf_counter() - began))
"""


def folder_set(folder):
    """An image set of made-up JPEG files, written to a folder."""
    paths = []
    for index, content in enumerate(jpeg_files(None, FILES)):
        paths.append(Path(folder) / f"{index:03}.jpg")
        paths[-1].write_bytes(content)
    return ImageSet(tuple(paths), np.arange(FILES, dtype="int32") % 2, CLASSES)


def array_set(size=32, count=2000):
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype="uint8")
    return ImageSet(images, np.arange(count, dtype="int32") % 2, CLASSES)


def train(image_set, image_size, batch_size, steps):
    """The results of some steps of a run's training loop, and the batches that it took."""
    recipe = Recipe(
        model="vit_ti16",
        image_size=image_size,
        batch_size=batch_size,
        micro_batch_size=batch_size,
        steps=steps + UNCOUNTED_STEPS,
        warmup_steps=0,
        precision="float32",
        crop="inception",
    )
    model = ViTTi16(num_classes=len(CLASSES), image_size=image_size)
    with contextlib.redirect_stdout(io.StringIO()):  # The table of weights.
        training, recipe = set_up_training(model, recipe, Splits(image_set, None, image_set))
    results = list(training_steps(training.compiled, recipe, training.batches))
    return results[UNCOUNTED_STEPS:], training.batches


def pace(batches, count, workers=None):
    """Images a second of batches alone, made by threads and thrown away."""
    began = time.perf_counter()
    made = sum(len(targets) for _, targets in prefetch(batches, 0, count, workers=workers))
    return made / (time.perf_counter() - began)


def tensorflow_pace(image_set, batch_size, count, workers):
    """The same by tf.data: decode_jpeg, a random part of the image, resize."""
    import tensorflow as tf

    @tf.autograph.experimental.do_not_convert
    def read(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        corner, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros((1, 0, 4)),
            area_range=(0.05, 1.0),
            min_object_covered=0.0,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.image.resize(tf.slice(image, corner, size), (224, 224))

    paths = [str(path) for path in image_set.images]
    data = tf.data.Dataset.from_tensor_slices(paths).repeat()
    data = data.map(read, num_parallel_calls=workers).batch(batch_size).prefetch(2)
    began = time.perf_counter()
    made = sum(len(batch) for batch in data.take(count).as_numpy_iterator())
    return made / (time.perf_counter() - began)


def timm_pace(folder, batch_size, count, workers):
    """The same by timm's transform in processes of PyTorch; the first batch starts the clock.

    NaN if it failed, and None if it is not installed.
    """
    if missing_package(("torch", "timm")):
        return None
    arguments = [folder, (count + 1) * batch_size, batch_size, workers]
    result = subprocess.run(
        [sys.executable, "-c", TIMM_LOADER, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    if result.returncode:
        print(f"timm's loader failed: {result.stderr.strip().splitlines()[-1]}")
        return math.nan
    return float(result.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batches", type=int, default=16, help="of the input alone")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    size, count = arguments.batch_size, arguments.batches
    print(f"{keras.backend.backend()} backend, {platform.machine()} with {describe_machine()}")
    with tempfile.TemporaryDirectory() as folder:
        files = folder_set(folder)
        cases = {
            "jpeg": ("JPEG, 500 x 375, at 224 px", files, 224),
            "224": ("32 x 32 in memory, at 224 px", array_set(), 224),
            "384": ("32 x 32 in memory, at 384 px", array_set(), 384),
        }
        rows = []
        for name, image_set, image_size in (
            case for part, case in cases.items() if part in arguments.parts
        ):
            results, batches = train(image_set, image_size, size, arguments.steps)
            shares = [result.waiting_seconds / result.seconds for result in results]
            rate = size * len(results) / sum(result.seconds for result in results)
            alone = pace(batches, count)
            rows.append((name, statistics.median(shares), max(shares), rate, alone))
        print(f"ViT-Ti/16, batch {size}, random crop and flip, {arguments.steps} steps counted")
        print(f"{'':30}{'waiting':>10}{'worst':>8}{'images/s':>10}{'input alone':>13}{'ratio':>8}")
        for name, median, worst, rate, alone in rows:
            print(
                f"{name:30}{median:10.2%}{worst:8.2%}{rate:10.1f}{alone:13.1f}{alone / rate:8.1f}"
            )
        if "peers" not in arguments.parts:
            return 0
        batches = TrainingBatches(
            files, batch_size=size, seed=0, augmentation=Augmentation(224, crop="inception")
        )
        print("\nInput alone, JPEG of 500 x 375 to random crops of 224 px, images/s")
        print(f"{'threads':>8}{'keras_vit':>12}{'tf.data':>12}{'timm, processes':>18}")
        failed = False
        for workers in arguments.threads:
            ours = pace(batches, count, workers)
            peers = tensorflow_pace(files, size, count, workers)
            timm = timm_pace(folder, size, count, workers)
            failed |= timm is not None and math.isnan(timm)
            shown = "not installed" if timm is None else f"{timm:.1f}"
            print(f"{workers:8}{ours:12.1f}{peers:12.1f}{shown:>18}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
