"""The suite `scale`: keras_vit alone against image size, batch, depth and number of devices.

The measure is training steps of ViT-Ti/16, images a second and peak memory. Devices are JAX's: the
GPUs where there are any, else logical devices of one CPU (which share its cores, so that what is
seen there is what dividing the work costs, not what more hardware gives) under
`keras.distribution.DataParallel`.
"""

import dataclasses
import os
import tempfile
from importlib.util import find_spec

from benchmarks import results
from benchmarks.contenders import Contender
from benchmarks.measuring import as_json, measure_row
from benchmarks.ratios import rounded, spread
from benchmarks.table import markdown, mebibytes

MODEL, IMAGE_SIZE, BATCH_SIZE = "vit_ti16", 224, 8
# What changes → its values; the others stay.
AXES = {
    "image_size": (224, 288, 384, 512),
    "batch_size": (1, 2, 4, 8, 16, 32),
    "depth": (3, 6, 12, 24),
    "devices": (1, 2, 4),
}


@dataclasses.dataclass(frozen=True)
class _Scaled(Contender):
    devices: int = 1

    def environment(self, dtype):
        variables = super().environment(dtype)
        if self.devices > 1:
            flags = os.environ.get("XLA_FLAGS", "")
            count = f"--xla_force_host_platform_device_count={self.devices}"
            variables["XLA_FLAGS"] = f"{flags} {count}".strip()
        return variables


def contender_of(axis, value, framework):
    """keras_vit's training step with one thing changed."""
    job = {"library": "keras_vit", "image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE}
    fields = {"depth": value} if axis == "depth" else {}
    job |= {"fields": fields, "devices": 1} | ({axis: value} if axis != "depth" else {})
    framework = "jax" if axis == "devices" else framework
    return _Scaled(
        library="keras_vit",
        framework=framework,
        how=f"{axis} {value}",
        make="benchmarks.scaling:train",
        packages=(framework,),
        options=job,
        compiles=True,
        devices=job["devices"],
    )


def train(job):
    """A training step on so many devices."""
    if job["devices"] > 1:
        import keras

        devices = keras.distribution.list_devices()
        if len(devices) < job["devices"]:
            raise ValueError(f"{len(devices)} devices are there, {job['devices']} were asked for")
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=devices[: job["devices"]])
        )
    from benchmarks.keras_models import train as train_step

    return train_step(job)


def row_of(value, cell, batch_size):
    if cell.absent is not None:
        return [value, ("FAILED: " if cell.failed else "") + cell.absent, "", ""]
    rates = spread([batch_size / seconds for seconds in cell.seconds])
    milliseconds = rounded(1000 * batch_size / rates.median)
    return [value, rates, milliseconds, mebibytes(cell.peak_memory)]


def run(options, say=print):
    """Measures each axis, its values in turn, and writes; the tables last."""
    framework = os.environ.get("KERAS_BACKEND") or (
        "tensorflow" if find_spec("tensorflow") else "jax"
    )
    job = {"model": MODEL, "dtype": "float32", "weights": None, "steps_compared": 1}
    tables, content, good = [], [], True
    for axis, values in AXES.items():
        say(f"\nscale: {axis}")
        rows = [contender_of(axis, value, framework) for value in values]
        with tempfile.TemporaryDirectory() as folder:
            cells = measure_row(rows, job, options.limits, folder, say=say)
        lines = [
            row_of(value, cell, row.options["batch_size"])
            for value, row, cell in zip(values, rows, cells, strict=True)
        ]
        backend = rows[0].framework
        tables += [
            f"## {axis}, on {backend}",
            "",
            markdown([axis, "images/s", "ms a step", "peak MiB"], lines),
            "",
        ]
        content.append({"axis": axis, "values": values, "cells": [as_json(cell) for cell in cells]})
        good &= not any(cell.failed for cell in cells)
        head = f"Training steps of {MODEL}, {IMAGE_SIZE} px, batch {BATCH_SIZE}, float32.\n\n"
        text = results.write(
            "scale", {"axes": content}, head + "\n".join(tables), folder=options.folder
        )
    say(f"\n{text}")
    say("Two processes (jax.distributed) are not measured by this suite.")
    return good
