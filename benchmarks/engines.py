"""What each engine and each precision costs and gives: `python -m benchmarks.engines --model …`.

One classifier is exported to every engine in every precision. For each: the size of its files, its
accuracy on labelled images, on how many it names the class that the float32 SavedModel does, the
largest difference of a probability, and images a second for batches of 1 and 8 decoded pictures of
375 x 500 pixels, resizing included, two threads everywhere. Each repetition times all of them in
turn, so that a drift of the machine's speed meets all alike; medians are printed. Then the same for
models whose smallest weights are zero.

int8 is calibrated with every other image of the folder, its labels unread.
"""

import argparse
import csv
import dataclasses
import json
import statistics
import tempfile
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

import keras_vit
from keras_vit.data import decode_image
from keras_vit.export.engines import FORMATS, export_engine, load_engine
from keras_vit.export.pruning import prune
from keras_vit.export.quantization import quantize_int8
from keras_vit.finetune.report import describe_machine

THREADS, BATCH_SIZES, PICTURE_SIZE = 2, (1, 8), (375, 500)
SPARSITIES = (0.3, 0.5, 0.7)
REFERENCE = "SavedModel float32"


@dataclasses.dataclass
class Row:
    """A row of the table.

    Args:
        name: Engine and precision.
        megabytes: Size of the model's files.
        zipped_megabytes: Size of the same, deflated.
        top1: Share of the images whose best class is the label's, in percent.
        agreement: Number of images whose best class is that of the float32 SavedModel.
        difference: Largest difference of a probability to it.
        images_per_second: By batch size.
    """

    name: str
    megabytes: float
    zipped_megabytes: float
    top1: float = 0.0
    agreement: int = 0
    difference: float = 0.0
    images_per_second: dict[int, float] = dataclasses.field(default_factory=dict)


def labelled_images(folder):
    with Path(folder, "labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    images = [decode_image(Path(folder, row["file"])) for row in rows]
    return images, np.array([int(row["label"]) for row in rows])


def saved_model(model, folder, names, precision="float32"):
    """The folder of a SavedModel and its function of pixels."""
    import tensorflow as tf

    path = keras_vit.export_saved_model(
        model, folder, class_names=names, precision=precision, warmup_batch_sizes=()
    )
    loaded = tf.saved_model.load(str(path))

    def run(pixels, loaded=loaded):
        outputs = loaded.signatures["pixels"](pixels=tf.constant(pixels))
        return {"probabilities": outputs["probabilities"].numpy()}

    return path, run


def runners(model, folder, images):
    """(name, folder, function of pixels) of each engine, precision and sparsity."""
    names = [str(index) for index in range(model.output_shape[-1])]
    for precision in ("float32", "bfloat16"):
        yield f"SavedModel {precision}", *saved_model(model, folder / precision, names, precision)
    yield "SavedModel Keras int8", *saved_model(quantize_int8(model), folder / "keras", names)
    for format, engine in FORMATS.items():
        for precision in engine.precisions:
            path = export_engine(
                model,
                folder / f"{format}-{precision}",
                format,
                class_names=names,
                precision=precision,
                calibration_images=images[::2] if precision == "int8" else None,
            )
            yield f"{engine.title} {precision}", path, load_engine(path, threads=THREADS)
    for sparsity in SPARSITIES:
        share = f"{sparsity:.0%} zeros"
        yield f"SavedModel {share}", *saved_model(prune(model, sparsity), folder / share, names)
        path = export_engine(
            model, folder / f"o{share}", "openvino", class_names=names, sparsity=sparsity
        )
        yield f"OpenVINO {share}", path, load_engine(path, threads=THREADS)


def sizes(folder):
    """Megabytes of the model's files, plain and deflated."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix not in (".md", ".json", ".txt")]
    with tempfile.TemporaryFile() as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, path.relative_to(folder))
        zipped = stream.tell()
    return sum(path.stat().st_size for path in files) / 1e6, zipped / 1e6


def measure_accuracy(rows, runs, images, labels):
    reference = None
    for row in rows:
        run = runs[row.name]
        found = np.concatenate([run(image[None])["probabilities"] for image in images])
        if reference is None:
            assert row.name == REFERENCE
            reference = found
        best = found.argmax(axis=1)
        row.top1 = float(100 * np.mean(best == labels))
        row.agreement = int((best == reference.argmax(axis=1)).sum())
        row.difference = float(np.abs(found - reference).max())


def measure_speed(rows, runs, repetitions, seconds):
    pixels = np.random.default_rng(0).integers(0, 256, (8, *PICTURE_SIZE, 3), dtype="uint8")
    for batch_size in BATCH_SIZES:
        batch = pixels[:batch_size]
        rates = {row.name: [] for row in rows}
        for repetition in range(repetitions + 1):
            for row in rows:
                start, count = time.perf_counter(), 0
                while count == 0 or time.perf_counter() - start < seconds:
                    runs[row.name](batch)
                    count += 1
                # The first compiles and allocates.
                if repetition:
                    elapsed = time.perf_counter() - start
                    rates[row.name].append(count * batch_size / elapsed)
        for row in rows:
            row.images_per_second[batch_size] = statistics.median(rates[row.name])


def table(rows, count):
    lines = [
        f"| | MB | zipped | top-1, % | agrees, of {count} | largest Δp "
        "| images/s, batch 1 | batch 8 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        rates = " | ".join(f"{rate:.1f}" for rate in row.images_per_second.values())
        lines.append(
            f"| {row.name} | {row.megabytes:.1f} | {row.zipped_megabytes:.1f} | {row.top1:.1f} | "
            f"{row.agreement} | {row.difference:.1e} | {rates} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="checkpoint, of keras_vit.from_checkpoint")
    parser.add_argument("--images", required=True, help="folder with labels.csv: file,label")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a repetition of each")
    options = parser.parse_args()

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    images, labels = labelled_images(options.images)
    model = keras_vit.from_checkpoint(options.model)
    with tempfile.TemporaryDirectory() as folder:
        rows, runs = [], {}
        for name, path, run in runners(model, Path(folder), images):
            rows.append(Row(name, *sizes(path)))
            runs[name] = run
            print(f"wrote {name}", flush=True)
        measure_accuracy(rows, runs, images, labels)
        measure_speed(rows, runs, options.repetitions, options.seconds)
    packages = ("keras", "tensorflow", "onnxruntime", "openvino", "nncf", "ai-edge-litert")
    machine = {**describe_machine(), **{package: version(package) for package in packages}}
    result = {"machine": machine, "threads": THREADS, "rows": [dataclasses.asdict(r) for r in rows]}
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    else:
        print(json.dumps(result))
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(table(rows, len(images)))


if __name__ == "__main__":
    main()
