"""The suite `scale`: keras_vit alone against image size, batch, depth, devices and processes.

The measure is training steps of ViT-Ti/16, images a second and peak memory. Devices are JAX's: the
GPUs where there are any, else logical devices of one CPU (which share its cores, so that what is
seen there is what dividing the work costs, not what more hardware gives) under
`keras.distribution.DataParallel`. Processes are those of `jax.distributed` on this machine's CPU,
which they share; the memory is that of one of them.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from importlib.util import find_spec

from benchmarks import results
from benchmarks.contenders import Contender
from benchmarks.measuring import as_json, measure_row
from benchmarks.ratios import rounded, spread
from benchmarks.table import markdown, mebibytes, said_of

MODEL, IMAGE_SIZE, BATCH_SIZE = "vit_ti16", 224, 8
# What changes → its values; the others stay.
AXES = {
    "image_size": (224, 288, 384, 512),
    "batch_size": (1, 2, 4, 8, 16, 32),
    "depth": (3, 6, 12, 24),
    "devices": (1, 2, 4),
    "processes": (1, 2),
}


@dataclasses.dataclass(frozen=True)
class _Scaled(Contender):
    devices: int = 1
    processes: int | None = None

    def environment(self, dtype):
        variables = super().environment(dtype)
        if self.devices > 1:
            flags = os.environ.get("XLA_FLAGS", "")
            count = f"--xla_force_host_platform_device_count={self.devices}"
            variables["XLA_FLAGS"] = f"{flags} {count}".strip()
        if self.processes is not None:
            variables["JAX_PLATFORMS"] = "cpu"
        return variables


def contender_of(axis, value, framework):
    """keras_vit's training step with one thing changed."""
    job = {"library": "keras_vit", "image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE}
    fields = {"depth": value} if axis == "depth" else {}
    job |= {"fields": fields, "devices": 1, "processes": 1}
    job |= {axis: value} if axis != "depth" else {}
    framework = "jax" if axis in ("devices", "processes") else framework
    return _Scaled(
        library="keras_vit",
        framework=framework,
        how=f"{axis} {value}",
        make="benchmarks.scaling:train",
        packages=(framework,),
        options=job,
        compiles=True,
        devices=job["devices"],
        processes=value if axis == "processes" else None,
    )


def train(job):
    """A training step on so many devices, or in so many processes."""
    if job["processes"] > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        for number in range(1, job["processes"]):
            # Ends with this one: of the same group, and the hosts watch each other.
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.scaling", json.dumps(job)],
                env={**os.environ, **_host(address, job["processes"], number)},
                stdout=subprocess.DEVNULL,
            )
        os.environ.update(_host(address, job["processes"], 0))
    return _train_on_this_host(job)


def _host(address, processes, number):
    """The environment of a process, as `keras_vit.finetune` reads it."""
    return {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(processes),
        "KERAS_DISTRIBUTION_PROCESS_ID": str(number),
    }


def _train_on_this_host(job):
    import keras

    from keras_vit.finetune.hosts import agree, join_hosts

    join_hosts()
    # The same weights on all hosts.
    keras.utils.set_random_seed(0)
    count = job["devices"] * job["processes"]
    if count > 1:
        devices = keras.distribution.list_devices()
        if len(devices) < count:
            raise ValueError(f"{len(devices)} devices are there, {count} were asked for")
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=devices[:count], auto_shard_dataset=False)
        )
    from benchmarks.keras_models import train as train_step

    # Each host has its part of the batch.
    batch_size = job["batch_size"] // job["processes"]
    # Several devices and hosts wait for each step, so one does.
    step = train_step({**job, "batch_size": batch_size, "ahead": False})

    def launch():
        # The other host must not begin while it is another contender's turn.
        agree("step")
        return step.launch()

    return dataclasses.replace(step, launch=launch)


def row_of(value, cell, batch_size):
    if cell.absent is not None:
        return [value, said_of(cell), "", ""]
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
    return good


def main():
    """A process that trains for ever with the one that started it."""
    step = _train_on_this_host(json.loads(sys.argv[1]))
    # As the other begins.
    step.outputs()
    while True:
        step.launch()


if __name__ == "__main__":
    main()
