"""log.csv and TensorBoard's files."""

import csv
import struct

import numpy as np
import pytest

from keras_vit.finetune.log import RunLog, read_log
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
