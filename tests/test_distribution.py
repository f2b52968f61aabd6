"""Many devices and hosts compute what one device does, and end together.

Devices are logical ones of the CPU, hosts are processes on the loopback.
"""

import dataclasses
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import small_runs
from hypothesis import given
from hypothesis import strategies as st
from small_runs import ARCHITECTURE

from keras_vit.data import Augmentation, ImageSet, TrainingBatches, load_data
from keras_vit.finetune import Recipe, hosts, run
from keras_vit.finetune.distribution import make_distribution, replica_rows
from keras_vit.finetune.hosts import agree, join_hosts
from keras_vit.finetune.log import read_log
from keras_vit.finetune.optimizer import make_optimizer
from keras_vit.finetune.rules import WeightPlan
from keras_vit.layers import one_pass

# Nothing random in the model.
RECIPE = dataclasses.replace(
    small_runs.RECIPE,
    steps=50,
    clip_norm=1.0,
    dropout=0.0,
    drop_path=0.0,
    evaluate_every=25,
    log_every=1,
)
# What is drawn for images, partners in mixing, micro-batches, an average of the weights.
MIXED = {
    "steps": 20,
    "micro_batch_size": 48,
    "mixup": 0.2,
    "cutmix": 1.0,
    "random_erasing": 0.25,
    "label_smoothing": 0.1,
    "ema_decay": 0.5,
    "weight_decay": 0.01,
}
# Of 359 test images 103 are left for the last batch, which two devices cannot divide.
HEAD = {"steps": 10, "adapt": "head", "resize_size": None}
NADAM = {"optimizer": "nadam", "steps": 10, "warmup_steps": 2, "learning_rate": 0.001}
SCALED = {"steps": 10, "precision": "mixed_float16", "micro_batch_size": 48}


def start(runs, *, backend, devices=1, host=None):
    """A process that runs recipes one after the other: changes of RECIPE, by the output folder."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path])),
        "KERAS_BACKEND": backend,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    if host:
        port, number = host
        env["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = f"127.0.0.1:{port}"
        env["KERAS_DISTRIBUTION_NUM_PROCESSES"] = "2"
        env["KERAS_DISTRIBUTION_PROCESS_ID"] = str(number)
    program = "import sys, test_distribution; test_distribution.work(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(devices), json.dumps(runs)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def work(devices, runs):
    """What a process of `start` does; refusals are printed."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * int(devices),
        )
    large = one_pass._LARGE
    for output, changes in json.loads(runs).items():
        one_pass._LARGE = 0 if changes.pop("one_pass", False) else large
        try:
            run(
                dataclasses.replace(RECIPE, output=output, **changes),
                architecture=ARCHITECTURE,
            )
        except ValueError as error:
            print("refused:", error)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_pair(output, changes=None):
    """Two hosts with one device each."""
    port = free_port()
    runs = {str(output): {"distribute": "data_parallel", **(changes or {})}}
    return [start(runs, backend="jax", host=(port, number)) for number in range(2)]


def finish(*processes, seconds=400):
    """What processes that must end well have printed."""
    texts = [process.communicate(timeout=seconds) for process in processes]
    for process, (_, errors) in zip(processes, texts, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return [printed for printed, _ in texts]


def losses(folder):
    rows = read_log(folder / "run" / "log.csv")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return np.array([row["loss"] for row in rows])


def result(folder):
    return json.loads((folder / "run" / "result.json").read_text())


def assert_same_course(first, second, tolerance=1e-4):
    np.testing.assert_allclose(losses(second), losses(first), rtol=tolerance)
    for split in ("validation", "test"):
        one, other = (result(folder)[split] for folder in (first, second))
        # One image more or less may be right where logits are equal to rounding.
        assert abs(one["accuracy"] - other["accuracy"]) <= 1.01 / one["count"]


@pytest.fixture(scope="module")
def courses(tmp_path_factory):
    """The folder of the runs on one and two devices of one host, by backend, and what was said."""
    folders = {}
    for backend, many in (("tensorflow", "mirrored"), ("jax", "data_parallel")):
        folder = tmp_path_factory.mktemp(backend)
        runs = {
            "one": {},
            "two": {"distribute": many},
            "one_pass": {"distribute": many, "one_pass": True},
            "unclipped": {"clip_norm": 0.0, "steps": 20},
            "nadam_one": NADAM,
            "nadam_two": {**NADAM, "distribute": many},
            "head_one": HEAD,
            "head_two": {**HEAD, "distribute": many},
            "mixed_one": MIXED,
            "mixed_two": {**MIXED, "distribute": many},
            "scaled_one": SCALED,
            "scaled_two": {**SCALED, "distribute": many},
            "odd": {"batch_size": 95, "distribute": many},
            "odd_parts": {"micro_batch_size": 3, "distribute": many},
        }
        runs = {str(folder / name): changes for name, changes in runs.items()}
        folders[backend] = folder, start(runs, backend=backend, devices=2)
    return {backend: (folder, *finish(process)) for backend, (folder, process) in folders.items()}


BACKENDS = pytest.mark.parametrize("backend", ["tensorflow", "jax"])


@pytest.mark.slow
@BACKENDS
def test_two_devices_compute_what_one_does(courses, backend):
    folder, _ = courses[backend]
    assert_same_course(folder / "one", folder / "two")
    assert len(losses(folder / "two")) == 50
    assert_same_course(folder / "one", folder / "one_pass")
    assert_same_course(folder / "nadam_one", folder / "nadam_two")
    # Clipping is at work, so it is the gradient of the whole batch that was clipped.
    clipped, unclipped = (losses(folder / name)[:20] for name in ("one", "unclipped"))
    assert np.abs(clipped - unclipped).max() > 1e-2


@pytest.mark.slow
@BACKENDS
def test_the_head_alone_is_evaluated_on_an_odd_number_of_images(courses, backend):
    folder, _ = courses[backend]
    assert_same_course(folder / "head_one", folder / "head_two")


@pytest.mark.slow
@BACKENDS
def test_draws_partners_and_micro_batches_are_those_of_one_device(courses, backend):
    folder, _ = courses[backend]
    assert_same_course(folder / "mixed_one", folder / "mixed_two")
    # Half precision rounds the sums of the gradients coarsely.
    assert_same_course(folder / "scaled_one", folder / "scaled_two", tolerance=2e-2)


@pytest.mark.slow
@BACKENDS
def test_batches_that_do_not_divide_are_refused(courses, backend):
    _, printed = courses[backend]
    assert (
        "refused: 2 devices cannot divide batch_size=95 images evenly. Choose a multiple of 2, "
        "such as 94 or 96" in printed
    )
    assert "2 devices cannot divide micro_batch_size=3 images evenly" in printed


def wait_for_step(folder, step, processes, seconds=120):
    end = time.monotonic() + seconds
    while not any(
        int(path.stem.removeprefix("step_")) >= step
        for path in (folder / "run" / "checkpoints").glob("step_*.safetensors")
    ):
        assert all(process.poll() is None for process in processes), "a host ended too early"
        assert time.monotonic() < end, f"step {step} did not come"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_host_that_dies_ends_the_other_and_the_job_resumes(courses, tmp_path):
    one, folder, alone = courses["jax"][0] / "one", tmp_path / "pair", tmp_path / "alone"
    for killed, step in ((1, 10), (0, 25)):
        pair = start_pair(folder)
        wait_for_step(folder, step, pair)
        pair[killed].send_signal(signal.SIGKILL)
        _, errors = pair[1 - killed].communicate(timeout=60)
        assert pair[1 - killed].returncode not in (0, None)
        assert f"error: Host {killed} is gone" in errors
        assert "goes on from the last checkpoint" in errors
        pair[killed].communicate()
        assert not (folder / "run" / "result.json").exists()
    shutil.copytree(folder, alone)
    printed, silent = finish(*start_pair(folder))
    assert "Going on after step" in printed and "Going on" not in silent
    assert_same_course(one, folder)
    (printed,) = finish(start({str(alone): {}}, backend="jax"))
    assert "Going on after step" in printed
    assert_same_course(one, alone)
    # Finished: nobody trains again.
    assert "finished" in finish(*start_pair(folder))[0]


@pytest.mark.slow
def test_two_hosts_begin_and_finish(tmp_path):
    changes = {
        "steps": 2,
        "evaluate_every": 2,
        "warmup_steps": 0,
        "train_images": 96,
        "batch_size": 16,
    }
    printed, silent = finish(*start_pair(tmp_path, changes))
    assert "validation" in printed and "validation" not in silent
    assert len(losses(tmp_path)) == 2


@pytest.mark.slow
def test_hosts_must_see_the_same_folder(tmp_path):
    finish(start({str(tmp_path / "a"): {"steps": 5}}, backend="jax"))
    port = free_port()
    changes = {"distribute": "data_parallel", "steps": 5}
    hosts = [
        start({str(tmp_path / name): changes}, backend="jax", host=(port, number))
        for number, name in enumerate("ab")
    ]
    for printed in finish(*hosts):
        assert "refused: The hosts do not see the same" in printed


@given(st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_copies_take_each_row_once_and_keep_pairs(replicas, half, paired):
    size = 2 * half * replicas
    rows = replica_rows(size, replicas, paired=paired)
    assert rows.shape == (replicas, 2 * half)
    assert sorted(rows.ravel()) == list(range(size))
    assert (np.diff(rows, axis=1) > 0).all()
    if paired:
        for own in rows:
            assert set(own) == {size - 1 - row for row in own}


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9))
def test_the_shards_of_hosts_make_up_the_batch(hosts, groups, images, step):
    random = np.random.default_rng(0)
    image_set = ImageSet(
        random.integers(0, 256, (20, 8, 8, 3)).astype("uint8"),
        np.arange(20, dtype="int32") % 3,
        ("a", "b", "c"),
    )
    options = {
        "batch_size": groups * hosts * images,
        "micro_batch_size": hosts * images,
        "seed": 1,
        "augmentation": Augmentation(8, mixup=0.2, cutmix=1.0, augment="randaugment"),
    }
    inputs, targets = TrainingBatches(image_set, **options)[step]
    shards = [
        TrainingBatches(image_set, **options, shard=(host, hosts))[step] for host in range(hosts)
    ]

    def joined(parts):
        parts = [part.reshape(groups, images, *part.shape[1:]) for part in parts]
        return np.concatenate(parts, axis=1).reshape(-1, *parts[0].shape[2:])

    np.testing.assert_array_equal(joined([shard[1] for shard in shards]), targets)
    for name, array in inputs.items():
        np.testing.assert_array_equal(joined([shard[0][name] for shard in shards]), array)


def test_a_host_decodes_its_own_images_only(tmp_path, monkeypatch):
    from keras_vit.data import batches

    image_set = load_data("digits").train
    files = [tmp_path / f"{number}.png" for number in range(8)]
    labels = np.zeros(8, "int32")
    opened = []

    def decode(path):
        opened.append(path)
        return image_set.images[0]

    monkeypatch.setattr(batches, "decode_image", decode)
    policy = Augmentation(8)
    for host in range(2):
        TrainingBatches(
            ImageSet(files, labels, ("a",)),
            batch_size=8,
            seed=0,
            augmentation=policy,
            shard=(host, 2),
        )[0]
        assert len(opened) == 4 * (host + 1)
    assert set(opened) == set(files)


def test_a_shard_must_be_a_part_of_a_micro_batch(digits):
    options = {"batch_size": 12, "micro_batch_size": 6, "seed": 0, "augmentation": Augmentation(8)}
    for shard in ((0, 4), (2, 2), (-1, 2)):
        with pytest.raises(ValueError, match="`shard` must be one of the parts"):
            TrainingBatches(digits.train, **options, shard=shard)


NAMES = ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("10.0.0.1:1234", "2", None), "KERAS_DISTRIBUTION_PROCESS_ID is missing"),
        ((None, "2", "0"), "KERAS_DISTRIBUTION_JOB_ADDRESSES is missing"),
        (("10.0.0.1:1234", "2", "2"), "number of this one, from 0. Received: .*'2', .*'2'"),
        (("10.0.0.1:1234", "two", "0"), "Received: .*'two'"),
        (("10.0.0.1", "2", "0"), "such as 10.0.0.1:1234. Received: .*='10.0.0.1'"),
    ],
)
def test_a_job_that_is_described_badly_is_refused(monkeypatch, values, message):
    for name, value in zip(NAMES, values, strict=True):
        if value is not None:
            monkeypatch.setenv(f"KERAS_DISTRIBUTION_{name}", value)
    with pytest.raises(ValueError, match=message):
        join_hosts()


def test_one_host_joins_nobody(monkeypatch):
    for name, value in zip(NAMES, ("10.0.0.1:1234", "1", "0"), strict=True):
        monkeypatch.setenv(f"KERAS_DISTRIBUTION_{name}", value)
    join_hosts()
    agree("anything", 1)


def join_without_jax(monkeypatch, host, client):
    """Joins a job of two hosts, of which this is one and JAX knows nothing."""
    jax = pytest.importorskip("jax")
    for name, value in zip(NAMES, ("127.0.0.1:1234", "2", str(host)), strict=True):
        monkeypatch.setenv(f"KERAS_DISTRIBUTION_{name}", value)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(hosts, "_client", lambda: client)
    join_hosts()


def test_a_host_that_cannot_reach_host_0_says_which_port_is_closed(monkeypatch):
    port = free_port()
    client = SimpleNamespace(blocking_key_value_get=lambda *_: f"{port} key")
    message = f"Host 1 cannot reach port {port} of host 0, 127.0.0.1: .*on all ports"
    with pytest.raises(RuntimeError, match=message):
        join_without_jax(monkeypatch, 1, client)


def test_host_0_lets_strangers_go_and_names_the_hosts_that_did_not_come(monkeypatch):
    def break_off(_, value):
        stranger = socket.create_connection(("127.0.0.1", int(value.split()[0])))
        # Closed at once, it is reset.
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stranger.close()

    monkeypatch.setattr(hosts, "JOINING_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match=r"those numbered \[1\] have not reached port \d+"):
        join_without_jax(monkeypatch, 0, SimpleNamespace(key_value_set=break_off))


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX joins the hosts it is told of")
def test_hosts_need_jax(monkeypatch):
    for name, value in zip(NAMES, ("10.0.0.1:1234", "2", "0"), strict=True):
        monkeypatch.setenv(f"KERAS_DISTRIBUTION_{name}", value)
    with pytest.raises(ValueError, match="several hosts, which need JAX"):
        join_hosts()


def test_each_backend_has_its_own_distribution():
    wrong = {"tensorflow": ["data_parallel"], "jax": ["mirrored"]}.get(
        keras.backend.backend(), ["data_parallel", "mirrored"]
    )
    for name in wrong:
        with pytest.raises(ValueError, match=f"distribute='{name}' needs"):
            make_distribution(name)


DROPPED = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import test_distribution
test_distribution.drop_on_two_devices()
"""


def drop_on_two_devices():
    """A kernel whose gradient is the mean over two copies of which of its units were kept."""
    recipe = Recipe(learning_rate=1.0, momentum=0.0, clip_norm=0.0, steps=2, warmup_steps=0)
    units = 1000
    with make_distribution("mirrored").scope() as distribution:
        inputs = keras.Input((units,))
        dropped = keras.layers.Dropout(0.5, seed=0)(inputs)
        outputs = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(dropped)
        model = keras.Model(inputs, outputs)
        (kernel,) = model.trainable_variables
        plan = WeightPlan(kernel.path, units, True, 1.0, 0.0)
        model.compile(
            make_optimizer(recipe, [kernel], [plan]),
            loss=lambda targets, outputs: keras.ops.mean(outputs, axis=-1),
        )
        distribution.take_over(model)
        steps, before = [], np.zeros(units)
        for _ in range(2):
            model.train_on_batch(np.ones((2, units), "float32"), np.zeros((2, 2), "float32"))
            after = kernel.numpy()[:, 0]
            steps.append(before - after)
            before = after
    # Kept twice, once or never, as independent draws would have it; and anew in each step.
    for step in steps:
        assert set(np.round(step, 3)) == {0.0, 1.0, 2.0}, set(step)
        assert abs((step == 1.0).mean() - 0.5) < 0.1
    assert abs((steps[0] == steps[1]).mean() - 0.375) < 0.1


@pytest.mark.slow
def test_copies_drop_different_units():
    done = subprocess.run(
        [sys.executable, "-c", DROPPED],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path])),
            "KERAS_BACKEND": "tensorflow",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
