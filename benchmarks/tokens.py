"""What fewer tokens cost and give: `python -m benchmarks.tokens --model … --images …`.

One classifier, as it is, with token merging and with token pruning, at several rates: accuracy on
labelled images, multiply-adds, and images a second of its `inference_function` on batches of 8, two
threads. Each repetition times all of them in turn, so that a drift of the machine's speed meets all
alike; the median is printed, and the median of the ratios to the whole model within a repetition.
"""

import argparse
import dataclasses
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

import keras_vit
from benchmarks.engines import labelled_images
from keras_vit.data import prepare_image
from keras_vit.finetune.report import describe_machine
from keras_vit.models import config_of, count_macs

THREADS, BATCH_SIZE = 2, 8
MERGED, KEPT = (2, 4, 8, 12, 16), (0.9, 0.7, 0.5)


@dataclasses.dataclass
class Row:
    """A row of the table.

    Args:
        name: What is done to the tokens.
        macs: Multiply-adds of one image.
        top1: Share of the images whose best class is the label's, in percent.
        top5: Share of those that have the label's among the best five.
        images_per_second: The median over the repetitions.
        ratio: The median ratio to the whole model's speed in the same repetition.
    """

    name: str
    macs: int
    top1: float = 0.0
    top5: float = 0.0
    images_per_second: float = 0.0
    ratio: float = 0.0


def cases(checkpoint, dtype):
    """A row, the function and the model of each case, the whole model first."""
    options = [("all tokens", {})]
    options += [(f"token_merging={count}", {"token_merging": count}) for count in MERGED]
    options += [(f"token_keep_rate={rate}", {"token_keep_rate": rate}) for rate in KEPT]
    for name, fields in options:
        model = keras_vit.from_checkpoint(checkpoint, dtype=dtype, **fields)
        function = keras_vit.models.inference_function(model)
        yield Row(name, count_macs(config_of(model))), function, model


def prepared_images(folder, model):
    images, labels = labelled_images(folder)
    preprocessing = model.get_layer("preprocessing")
    size = model.input_shape[1:3]
    return np.stack([prepare_image(image, size, preprocessing) for image in images]), labels


def measure_accuracy(row, function, images, labels):
    import tensorflow as tf

    batches = range(0, len(images) - len(images) % 50, 50)
    logits = [function(tf.constant(images[i : i + 50])).numpy() for i in batches]
    if len(images) % 50:
        logits.append(function(tf.constant(images[-(len(images) % 50) :])).numpy())
    logits = np.concatenate(logits).astype("float32")
    # Of equal ones, as bfloat16 has them, the first is the better.
    order = np.argsort(-logits, axis=1, kind="stable")
    ranks = (order == labels[:, None]).argmax(axis=1)
    row.top1, row.top5 = (float(100 * np.mean(ranks < k)) for k in (1, 5))


def measure_speed(rows, functions, image_size, repetitions, seconds):
    import tensorflow as tf

    generator = np.random.default_rng(0)
    batch = tf.constant(generator.uniform(0, 255, (BATCH_SIZE, *image_size, 3)), tf.float32)
    rates = {row.name: [] for row in rows}
    for repetition in range(repetitions + 1):
        for row, function in zip(rows, functions, strict=True):
            start, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - start < seconds:
                function(batch).numpy()
                count += 1
            # The first traces and allocates.
            if repetition:
                elapsed = time.perf_counter() - start
                rates[row.name].append(count * BATCH_SIZE / elapsed)
    whole = rates[rows[0].name]
    for row in rows:
        own = rates[row.name]
        row.images_per_second = statistics.median(own)
        row.ratio = statistics.median(a / b for a, b in zip(own, whole, strict=True))


def table(rows):
    lines = [
        "| | GMACs | top-1, % | top-5, % | images/s | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.macs / 1e9:.2f} | {row.top1:.1f} | {row.top5:.1f} | "
            f"{row.images_per_second:.1f} | {row.ratio:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="checkpoint, of keras_vit.from_checkpoint")
    parser.add_argument("--images", required=True, help="folder with labels.csv: file,label")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a repetition of each")
    options = parser.parse_args()

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    rows, functions, images = [], [], None
    for row, function, model in cases(options.model, options.dtype):
        if images is None:
            images, labels = prepared_images(options.images, model)
        measure_accuracy(row, function, images, labels)
        rows.append(row)
        functions.append(function)
        print(f"{row.name}: top-1 {row.top1:.1f} %, top-5 {row.top5:.1f} %", flush=True)
    measure_speed(rows, functions, images.shape[1:3], options.repetitions, options.seconds)
    machine = {**describe_machine(), **{name: version(name) for name in ("keras", "tensorflow")}}
    result = {"machine": machine, "threads": THREADS, "rows": [dataclasses.asdict(r) for r in rows]}
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(table(rows))


if __name__ == "__main__":
    main()
