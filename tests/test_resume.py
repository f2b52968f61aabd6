"""Killed at any moment, the same command goes on and ends with the same weights."""

import dataclasses
import signal

import numpy as np
import pytest
from small_runs import (
    ARCHITECTURE,
    RECIPE,
    Killed,
    after_row,
    assert_same_weights,
    kill,
    start,
    wait_for,
    weights_of,
)

from keras_vit.data import load_data
from keras_vit.finetune import run
from keras_vit.finetune.log import read_log


def test_killed_within_an_epoch_it_ends_with_the_same_weights(tmp_path, digits, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(killed)
    # An epoch has 13.5 steps, so this is in the middle of the second.
    wait_for(killed / "run" / "checkpoints" / "step_00000020.safetensors", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "run" / "result.json").exists()
    assert process.returncode == -signal.SIGKILL
    for folder in (killed, whole):
        recipe = dataclasses.replace(RECIPE, output=str(folder))
        run(recipe, source=digits, architecture=ARCHITECTURE)
        assert ("Going on after step" in capsys.readouterr().out) == (folder == killed)
    assert_same_weights(whole / "run", killed / "run")
    rows = [read_log(folder / "run" / "log.csv") for folder in (whole, killed)]
    assert [row["step"] for row in rows[0]] == list(range(5, 61, 5))
    for row in (*rows[0], *rows[1]):
        del row["images_per_second"], row["waiting_share"]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "precision", [pytest.param("float32", marks=pytest.mark.slow), "mixed_bfloat16"]
)
def test_what_is_computed_in_one_pass_is_resumed(tmp_path, monkeypatch, precision):
    # As of larger models.
    monkeypatch.setattr("keras_vit.layers.one_pass._LARGE", 0)
    test_every_kind_of_state_is_resumed(tmp_path, monkeypatch, {"precision": precision})


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "learning_rate": 1e-2},
        {"precision": "mixed_float16", "micro_batch_size": 48},
        {"precision": "mixed_bfloat16", "label_smoothing": 0.1},
    ],
    ids=["adamw", "float16-accumulated", "bfloat16-smoothed"],
)
def test_every_kind_of_state_is_resumed(tmp_path, monkeypatch, changes):
    digits = load_data("digits")
    recipe = dataclasses.replace(
        RECIPE, steps=12, log_every=2, checkpoint_every=4, evaluate_every=0, **changes
    )
    whole = dataclasses.replace(recipe, output=str(tmp_path / "whole"))
    killed = dataclasses.replace(recipe, output=str(tmp_path / "killed"))
    run(whole, source=digits, architecture=ARCHITECTURE)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        after_row(patch, 10, kill)
        run(killed, source=digits, architecture=ARCHITECTURE)
    run(killed, source=digits, architecture=ARCHITECTURE)
    assert_same_weights(tmp_path / "whole" / "run", tmp_path / "killed" / "run")
    rows = [read_log(tmp_path / name / "run" / "log.csv") for name in ("whole", "killed")]
    assert [row["step"] for row in rows[0]] == [2, 4, 6, 8, 10, 12]
    for expected, found in zip(*rows, strict=True):
        for column in ("step", "loss", "accuracy", "learning_rate"):
            assert found[column] == expected[column]


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_only_its_steps(tmp_path, monkeypatch, capsys):
    digits = load_data("digits")
    recipe = dataclasses.replace(RECIPE, steps=12, checkpoint_every=4, evaluate_every=0)
    whole = dataclasses.replace(recipe, output=str(tmp_path / "whole"))
    damaged = dataclasses.replace(recipe, output=str(tmp_path / "damaged"))
    for each in (whole, damaged):
        run(each, source=digits, architecture=ARCHITECTURE)
    folder = tmp_path / "damaged" / "run"
    for name in ("result.json", "model.keras"):
        (folder / name).unlink()
    newest = folder / "checkpoints" / "step_00000012.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    capsys.readouterr()
    run(damaged, source=digits, architecture=ARCHITECTURE)
    printed = capsys.readouterr().out
    assert str(newest) in printed and "Going on after step 8 of 12" in printed
    assert_same_weights(tmp_path / "whole" / "run", folder)


@pytest.mark.slow
def test_killed_between_the_last_step_and_the_result(tmp_path):
    digits = load_data("digits")
    recipe = dataclasses.replace(RECIPE, steps=4, warmup_steps=1, output=str(tmp_path))
    first = run(recipe, source=digits, architecture=ARCHITECTURE)
    before = weights_of(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    second = run(recipe, source=digits, architecture=ARCHITECTURE)
    assert (second.test.accuracy, second.validation.accuracy) == (
        first.test.accuracy,
        first.validation.accuracy,
    )
    for expected, found in zip(before, weights_of(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(found, expected)
