"""log.csv and TensorBoard's files."""

import csv
import struct
import time

import keras
import numpy as np
import pytest

from keras_vit.finetune.log import Meter, RunLog, read_log
from keras_vit.finetune.loop import StepResult, training_steps
from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.tensorboard import ScalarWriter


def row(step):
    return {"step": step, "loss": 1 / step, "accuracy": 0.1 * step, "learning_rate": 1e-3}


def written(folder, start=0, steps=()):
    log = RunLog(folder, start)
    for step in steps:
        log.write(row(step))
    log.close()
    return read_log(folder / "log.csv")


def test_rows_come_back(tmp_path):
    assert written(tmp_path, steps=(1, 2)) == [row(1), row(2)]
    with open(tmp_path / "log.csv", newline="") as file:
        assert next(csv.reader(file))[:4] == ["step", "loss", "accuracy", "learning_rate"]


def test_rows_after_the_checkpoint_are_cut(tmp_path):
    written(tmp_path, steps=(1, 2, 3))
    assert [r["step"] for r in written(tmp_path, start=2, steps=(3, 4))] == [1, 2, 3, 4]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_row_that_was_cut_short_is_left_out(tmp_path, cut):
    written(tmp_path, steps=(1, 2))
    data = (tmp_path / "log.csv").read_bytes()
    (tmp_path / "log.csv").write_bytes(data[:-cut])
    assert read_log(tmp_path / "log.csv") == [row(1)]


def test_tensorflow_reads_the_events(tmp_path):
    tf = pytest.importorskip("tensorflow")
    writer = ScalarWriter(tmp_path, wall_time=10.5)
    for step in (1, 130, 40_000):
        writer.write({"loss": 0.25 * step, "validation_accuracy": 0.5}, step, 20.5)
    writer.close()
    (path,) = tmp_path.iterdir()
    events = list(tf.compat.v1.train.summary_iterator(str(path)))
    assert events[0].file_version == "brain.Event:2" and events[0].wall_time == 10.5
    assert [event.step for event in events[1:]] == [1, 130, 40_000]
    for event in events[1:]:
        values = {value.tag: value.simple_value for value in event.summary.value}
        assert values == {"loss": 0.25 * event.step, "validation_accuracy": 0.5}


def test_a_resumed_run_has_one_event_file_with_the_rows_that_stayed(tmp_path):
    tf = pytest.importorskip("tensorflow")
    written(tmp_path, steps=(1, 2, 3))
    written(tmp_path, start=2, steps=(3,))
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = list(tf.compat.v1.train.summary_iterator(str(path)))
    assert [event.step for event in events[1:]] == [1, 2, 3]


def test_first_record_is_framed_as_specified(tmp_path):
    ScalarWriter(tmp_path, wall_time=0.0).close()
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert len(data) == 8 + 4 + length + 4
    assert b"brain.Event:2" in data
    # CRC-32C of eight bytes, checked against the definition bit by bit.
    crc = 0xFFFFFFFF
    for bit in np.unpackbits(np.frombuffer(data[:8], "uint8"), bitorder="little"):
        crc = (crc >> 1) ^ (0x82F63B78 if (crc ^ int(bit)) & 1 else 0)
    crc ^= 0xFFFFFFFF
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert struct.unpack("<I", data[8:12]) == (masked,)


# waiting for images ------------------------------------------------------------------------------


def result(step, seconds, waiting):
    return StepResult(step, 1.0, 0.5, 1e-3, seconds, waiting)


def test_the_share_of_waiting_leaves_out_the_step_that_compiles():
    meter = Meter(batch_size=8, steps=10)
    assert (meter.waiting_share, meter.images_per_second) == (None, None)
    meter.add(result(1, 100.0, 90.0))
    for step in (2, 3):
        meter.add(result(step, 2.0, 0.25 * (step - 2)))
    row = meter.row()
    assert row["waiting_share"] == meter.waiting_share == 0.25 / 4
    assert "6% of the time waiting for images" in meter.text(row)
    meter.add(result(4, 4.0, 0.0))
    row = meter.row()
    assert row["waiting_share"] == 0 and "waiting" not in meter.text(row)
    assert meter.waiting_share == 0.25 / 8


def test_a_log_of_a_version_that_did_not_measure_waiting_goes_on(tmp_path):
    columns = "step,loss,accuracy,learning_rate,images_per_second,validation_accuracy"
    (tmp_path / "log.csv").write_text(f"{columns}\n1,2.0,0.5,0.1,100.0,\n")
    rows = written(tmp_path, start=1, steps=[2])
    assert rows[0] == {
        "step": 1,
        "loss": 2.0,
        "accuracy": 0.5,
        "learning_rate": 0.1,
        "images_per_second": 100.0,
    }
    assert rows[1] == row(2)


class LateBatches:
    """Batches that are there after a twentieth of a second."""

    def __getitem__(self, step):
        time.sleep(0.05)
        return {"images": np.zeros((2, 4), "float32")}, np.zeros(2, "int32")


def test_a_step_tells_how_long_it_waited_for_its_images():
    inputs = {"images": keras.Input((4,), name="images")}
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs["images"]))
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    recipe = Recipe(model="vit_ti16", batch_size=2, micro_batch_size=2, steps=2, warmup_steps=0)
    found = list(training_steps(model, recipe, LateBatches()))
    assert [step.step for step in found] == [1, 2]
    # The first batch is asked for by the first step.
    assert found[0].waiting_seconds >= 0.05
    assert all(0 <= step.waiting_seconds < step.seconds for step in found)
