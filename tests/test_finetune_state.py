"""Training checkpoints: whole or absent, damaged ones passed over, nothing missing in them."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vit.finetune import Recipe
from keras_vit.finetune.adaptation import prepare_for_training
from keras_vit.finetune.loop import compile_for_training
from keras_vit.finetune.state import (
    Progress,
    replace_file,
    restore_training_state,
    save_training_state,
)

IMAGES = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
LABELS = np.arange(8) % 3


def compiled_model(precision="float32", **options):
    recipe = Recipe(batch_size=8, precision=precision, optimizer="adamw", **options)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dropout(0.5, dtype=precision),
            keras.layers.Dense(4, dtype=precision),
            keras.layers.Dense(3, dtype="float32"),
        ]
    )
    compile_for_training(model, recipe, prepare_for_training(model, recipe))
    return model


def state(model):
    return [np.asarray(v.numpy()) for v in (*model.variables, *model.optimizer.variables)]


def train(model, steps):
    for _ in range(steps):
        model.train_on_batch(IMAGES, LABELS)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_goes_on_exactly_where_it_was_saved(tmp_path, precision):
    model = compiled_model(precision)
    train(model, 3)
    save_training_state(tmp_path, model, Progress(3, 1.5), "run")
    train(model, 2)
    other = compiled_model(precision)
    assert restore_training_state(tmp_path, other, "run") == Progress(3, 1.5)
    train(other, 2)
    for expected, found in zip(state(model), state(other), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_dropout_seed_and_the_loss_scale_are_kept(tmp_path):
    model = compiled_model("mixed_float16")
    train(model, 2)
    model.optimizer.dynamic_scale.assign(64.0)
    save_training_state(tmp_path, model, Progress(2, 0.0), "run")
    other = compiled_model("mixed_float16")
    restore_training_state(tmp_path, other, "run")
    assert float(other.optimizer.dynamic_scale.numpy()) == 64.0
    np.testing.assert_array_equal(
        other.layers[0].seed_generator.state.numpy(), model.layers[0].seed_generator.state.numpy()
    )


def test_two_are_kept(tmp_path):
    model = compiled_model()
    for step in (1, 2, 10):
        save_training_state(tmp_path, model, Progress(step), "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_00000002.safetensors",
        "step_00000010.safetensors",
    ]


@settings(max_examples=25, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), truncate=st.booleans())
def test_a_damaged_file_falls_back_to_the_one_before(tmp_path_factory, position, truncate):
    folder = tmp_path_factory.mktemp("checkpoints")
    model = compiled_model()
    save_training_state(folder, model, Progress(1), "run")
    newest = save_training_state(folder, model, Progress(2), "run")
    data = bytearray(newest.read_bytes())
    place = int(position * len(data))
    data[place] ^= 0x01
    newest.write_bytes(data[:place] if truncate else data)
    warnings = []
    found = restore_training_state(folder, model, "run", warn=warnings.append)
    if found.step == 2:  # A changed byte that says nothing, such as a space in the header.
        assert not truncate and not warnings
    else:
        assert found == Progress(1)
        assert str(newest) in warnings[0]


def test_all_damaged_is_an_error_and_nothing_is_overwritten(tmp_path):
    model = compiled_model()
    for step in (1, 2):
        save_training_state(tmp_path, model, Progress(step), "run").write_bytes(b"")
    warnings = []
    with pytest.raises(ValueError, match="None of the 2 training checkpoints.*--fresh"):
        restore_training_state(tmp_path, model, "run", warn=warnings.append)
    assert len(warnings) == 2


def test_another_runs_checkpoint_is_passed_over(tmp_path):
    model = compiled_model()
    save_training_state(tmp_path, model, Progress(1), "run")
    warnings = []
    with pytest.raises(ValueError, match="None of the 1 training checkpoints"):
        restore_training_state(tmp_path, model, "other", warn=warnings.append)
    assert "another run" in warnings[0]


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    model = compiled_model()
    save_training_state(tmp_path, model, Progress(1), "run")
    kernel = model.layers[1].kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(FloatingPointError, match="after step 2"):
        save_training_state(tmp_path, model, Progress(2), "run")
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.safetensors"]


def test_replace_file_leaves_the_old_content_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    replace_file(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
