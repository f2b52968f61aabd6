"""How fast an exported model answers, from bytes: `python -m benchmarks.serving`.

For each architecture, in one process and in turn, so that a drift of the machine's speed meets all
alike: our SavedModel from JPEG bytes (decoding and resizing included) and from pixels, in a
session, as the model server runs it; the model's own forward pass on pixels of its size that are
decoded already, by `inference_function`, which has what a stock server has not, and by
`predict_on_batch`, of which the faster counts; and the SavedModel that keras-hub exports of the
same architecture, in a session too, fed floats of its size. Weights are random. Medians over the
repetitions are printed with the ratio to the own forward pass and, where it is installed, to
keras-hub. Ours must answer what the model does before anything is timed.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import keras
import numpy as np
from PIL import Image

import keras_vit
from benchmarks import machine
from benchmarks.inputs import draw_what_starts_at_zero
from benchmarks.measuring import TOLERANCES, relative_difference
from benchmarks.processes import missing_package
from keras_vit.data import prepare_image
from keras_vit.serving.checked_model import read_model
from keras_vit.serving.files import describe_signatures
from keras_vit.serving.running_checks import load_model

IMAGE_SIZE = 224
FORWARD = ("own forward, inference_function", "own forward, predict_on_batch")
HUB = "keras-hub SavedModel, floats"
# What keras-hub has too.
MODELS = [name for name in keras_vit.list_models() if name.startswith("vit_")]


def jpeg_files(folder, count):
    """Files of a folder, or made-up photographs of 500 x 375 pixels: waves and a little noise."""
    if folder is not None:
        paths = sorted(Path(folder).glob("*.jp*g"))[:count]
        return [paths[index % len(paths)].read_bytes() for index in range(count)]
    random = np.random.default_rng(0)
    row, column = np.mgrid[:375, :500]
    files = []
    for index in range(count):
        wave = np.sin(row / (9 + index))[..., None] + np.cos(column / 13)[..., None]
        image = 128 + 50 * wave + random.normal(0, 8, (375, 500, 3))
        stream = io.BytesIO()
        Image.fromarray(np.uint8(np.clip(image, 0, 255))).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def mounted(folder, stack):
    """A function of a signature's name and its inputs: a session, as the model server has one."""
    _, model = read_model(Path(folder))
    _, run = load_model(model, stack)
    return run


def keras_hub_model(config, precision):
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=(IMAGE_SIZE, IMAGE_SIZE, 3),
        patch_size=config.patch_size,
        num_layers=config.depth,
        num_heads=config.num_heads,
        hidden_dim=config.hidden_size,
        mlp_dim=config.mlp_dim,
        dtype=precision,
    )
    return keras_hub.models.ViTImageClassifier(backbone, num_classes=1000)


def runners(name, batch_size, token_parts, files, folder, stack):
    """What is timed, by its row: functions of no arguments that end with the numbers at hand."""
    model = keras_vit.create(name)
    draw_what_starts_at_zero(model)
    pixels = np.random.default_rng(0).integers(
        0, 256, (batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), dtype="uint8"
    )
    floats = pixels / np.float32(255)
    infer = keras_vit.models.inference_function(model)
    rows = {
        FORWARD[0]: lambda: keras.ops.convert_to_numpy(infer(pixels)),
        FORWARD[1]: lambda: model.predict_on_batch(pixels),
    }
    config, preprocessing = keras_vit.models.config_of(model), model.get_layer("preprocessing")
    prepared = [prepare_image(image, config.image_size, preprocessing) for image in pixels]
    expected = model.predict_on_batch(np.stack(prepared))
    names = [str(index) for index in range(1000)]
    for precision in ("float32", "bfloat16"):
        export = partial(
            keras_vit.export_saved_model,
            model,
            f"{folder}/{name}",
            class_names=names,
            precision=precision,
        )
        ours = export()
        ask, ask_parts = mounted(ours, stack), mounted(export(token_parts=token_parts), stack)
        ending = "" if precision == "float32" else f", {precision}"
        rows |= {
            f"keras_vit SavedModel, bytes{ending}": partial(
                ask, "serving_default", {"image_bytes": np.array(files, dtype=object)}
            ),
            f"keras_vit SavedModel, pixels{ending}": partial(ask, "pixels", {"pixels": pixels}),
            f"keras_vit SavedModel in parts, pixels{ending}": partial(
                ask_parts, "pixels", {"pixels": pixels}
            ),
        }
        for exported in (ask, ask_parts):
            answer = exported("pixels", {"pixels": pixels})["logits"]
            largest = relative_difference(answer, expected)
            if largest > TOLERANCES["forward", precision]:
                raise RuntimeError(f"{ours} differs by {largest:.1e} of the largest logit")
        if missing_package(("keras_hub",)):
            continue
        hub = keras_hub_model(config, precision)
        assert hub.count_params() == model.count_params()
        hub.export(f"{folder}/hub_{name}_{precision}", verbose=False)
        ask_hub = mounted(f"{folder}/hub_{name}_{precision}", stack)
        (hub_input,) = describe_signatures(f"{folder}/hub_{name}_{precision}")["serving_default"][
            "inputs"
        ]
        rows[f"{HUB}{ending}"] = partial(ask_hub, "serving_default", {hub_input: floats})
    return rows


def measure(rows, batch_size, repetitions, batches):
    """Images a second of each row, one value a repetition of so many batches."""
    for run in rows.values():
        run(), run()  # Traces and compiles.
    rates = {name: [] for name in rows}
    for _ in range(repetitions):
        for name, run in rows.items():
            began = time.perf_counter()
            for _ in range(batches):
                run()
            rates[name].append(batches * batch_size / (time.perf_counter() - began))
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["vit_ti16", "vit_b16"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--token-parts", type=int, default=2, help="number of cores")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--batches", type=int, default=5, help="in a row, a repetition")
    parser.add_argument("--images", help="folder of JPEG files; made up where not given")
    arguments = parser.parse_args()
    files = jpeg_files(arguments.images, arguments.batch_size)
    tables = {}
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            rows = runners(name, arguments.batch_size, arguments.token_parts, files, folder, stack)
            tables[name] = measure(
                rows, arguments.batch_size, arguments.repetitions, arguments.batches
            )
    source = "files of --images" if arguments.images else "made-up JPEG of 500 x 375 px"
    print(f"Batch {arguments.batch_size}, {IMAGE_SIZE} px, {source}, weights random")
    print(machine.sentence(machine.describe()))
    print(f"{'':58}{'images/s':>10}{'min':>8}{'max':>8}{'x own forward':>15}{'x keras-hub':>13}")
    for name, rates in tables.items():
        medians = {row: statistics.median(found) for row, found in rates.items()}
        own = max(medians[row] for row in FORWARD)
        for row, found in rates.items():
            hub = medians.get(HUB + (", bfloat16" if row.endswith("bfloat16") else ""))
            beside = f"{medians[row] / hub:.2f}" if hub else "not installed"
            print(
                f"{name + ': ' + row:58}{medians[row]:10.1f}{min(found):8.1f}{max(found):8.1f}"
                f"{medians[row] / own:15.2f}{beside:>13}"
            )


if __name__ == "__main__":
    main()
