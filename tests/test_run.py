"""Whole runs on tiny models: what they learn, what they leave behind, what they refuse."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_runs import after_row

from keras_vit.data import DataSource, ImageSet
from keras_vit.finetune import (
    Recipe,
    TrainingDiverged,
    compare_runs,
    evaluate,
    run,
    wilson_interval,
)
from keras_vit.finetune.log import read_log
from keras_vit.finetune.optimizer import make_optimizer
from keras_vit.finetune.report import write_result
from keras_vit.finetune.run import resolve_recipe
from keras_vit.finetune.source import load_source
from keras_vit.finetune.splits import split_source
from keras_vit.finetune.starting_model import build_model, model_config
from keras_vit.models import VisionTransformerConfig, vision_transformer

ARCHITECTURE = VisionTransformerConfig(
    patch_size=4, hidden_size=16, depth=1, mlp_dim=32, num_heads=2, image_size=8
)
RECIPE = Recipe(
    name="tiny",
    image_size=8,
    resize_size=8,
    horizontal_flip=False,
    optimizer="adamw",
    learning_rate=1e-2,
    steps=60,
    batch_size=64,
    warmup_steps=5,
    validation_fraction=0.1,
    evaluate_every=30,
    checkpoint_every=30,
    precision="float32",
    report=False,
)


def recipe_in(folder, **changes):
    return dataclasses.replace(RECIPE, output=str(folder), **changes)


def weights_of(folder):
    model = keras.saving.load_model(folder / "model.keras", safe_mode=True)
    return [np.asarray(weight) for weight in model.get_weights()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits):
    """A finished run: its folder and its result."""
    output = tmp_path_factory.mktemp("runs")
    result = run(recipe_in(output, report=True), source=digits, architecture=ARCHITECTURE)
    return output / "tiny", result


def test_learns(finished):
    _, result = finished
    assert result.test.accuracy > 0.4
    assert result.test.interval[0] < result.test.accuracy < result.test.interval[1]
    assert result.validation.accuracy > 0.5
    assert result.test.top5_accuracy > 0.9


def test_leaves_everything_needed_to_repeat_it(finished, digits):
    folder, result = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "checkpoints",
        "class_names.txt",
        "figures",
        "log.csv",
        "model.keras",
        "predictions.csv",
        "recipe.json",
        "report.html",
        "result.json",
        "tensorboard",
    }
    assert (folder / "class_names.txt").read_text().split() == list(digits.class_names)
    written = json.loads((folder / "result.json").read_text())
    assert written["test"]["accuracy"] == result.test.accuracy
    assert written["configuration"] == json.loads((folder / "recipe.json").read_text())
    assert written["configuration"]["recipe"]["seed"] == RECIPE.seed
    assert written["configuration"]["data"]["digest"] == digits.digest
    assert written["configuration"]["architecture"]["depth"] == 1
    assert written["versions"]["keras"] == keras.__version__
    assert written["versions"]["backend"] == keras.backend.backend()
    assert written["machine"]["processors"] == os.cpu_count()
    assert written["configuration"]["backend"] == keras.backend.backend()
    recipe = resolve_recipe(recipe_in(folder.parent, report=True))
    assert Recipe(**written["configuration"]["recipe"]) == recipe


def test_log_has_a_row_every_ten_steps_and_validation_where_asked(finished):
    rows = read_log(finished[0] / "log.csv")
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert [row["step"] for row in rows if "validation_accuracy" in row] == [30, 60]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["validation_accuracy"] == finished[1].validation.accuracy


def test_saved_model_gives_the_same_accuracy_by_itself(finished, digits):
    folder, result = finished
    model = keras.saving.load_model(folder / "model.keras", safe_mode=True)
    assert evaluate(model, digits.test, batch_size=50).accuracy == result.test.accuracy
    layer = model.get_layer("preprocessing")
    assert (layer.crop_fraction, layer.interpolation) == (1.0, RECIPE.interpolation)


@pytest.mark.slow
def test_wide_pictures_are_judged_as_they_were_trained(tmp_path):
    # The class shows at the left or right end, which a crop of the middle loses.
    random = np.random.default_rng(0)
    for number in range(80):
        picture = random.integers(0, 60, (10, 40, 3)).astype("uint8")
        side = number % 2
        picture[:, 36 * side : 36 * side + 4] = 255
        folder = tmp_path / "stripes" / ("left", "right")[side]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number}.png")
    accuracies = {}
    for crop in ("squash", "center"):
        recipe = recipe_in(
            tmp_path / crop,
            data=str(tmp_path / "stripes"),
            crop="squash",
            evaluation_crop=crop,
            batch_size=16,
            validation_fraction=0.0,
        )
        accuracies[crop] = run(recipe, architecture=ARCHITECTURE).test.accuracy
    assert accuracies["squash"] == 1.0
    assert accuracies["center"] < 0.9


def test_a_finished_run_is_not_repeated(finished, digits, capsys):
    folder, result = finished
    before = (folder / "model.keras").stat().st_mtime_ns
    again = run(recipe_in(folder.parent), source=digits, architecture=ARCHITECTURE)
    assert again == result
    assert (folder / "model.keras").stat().st_mtime_ns == before
    assert "nothing more to train" in capsys.readouterr().out


def test_a_run_says_its_classes_and_its_images_before_it_trains(tmp_path, digits, capsys):
    recipe = recipe_in(tmp_path, steps=1, warmup_steps=0, train_images=200)
    run(recipe, source=digits, architecture=ARCHITECTURE)
    expected = "10 classes (0, 1, 2, 3, 4, …): 180 images to train on, 20 for validation, "
    assert f"{expected}{len(digits.test)} for the test\n" in capsys.readouterr().out


def test_a_session_that_trains_no_step_tells_no_pace(finished, digits, tmp_path, capsys):
    folder, result = finished
    shutil.copytree(folder, tmp_path / "tiny")
    # As a kill after the last step leaves it.
    (tmp_path / "tiny" / "result.json").unlink()
    again = run(recipe_in(tmp_path), source=digits, architecture=ARCHITECTURE)
    assert (again.steps, again.test.accuracy) == (60, result.test.accuracy)
    assert (again.images_per_second, again.waiting_share) == (None, None)
    assert " images/s" not in str(again) and "waiting" not in str(again)
    pace = read_log(folder / "log.csv")[-1]["images_per_second"]
    assert f"{pace:,.0f}" in str(compare_runs([tmp_path / "tiny", folder]))


def test_the_time_is_that_of_all_sessions_with_their_evaluations(
    finished, digits, tmp_path, monkeypatch
):
    shutil.copytree(finished[0], tmp_path / "tiny")
    # As a run leaves it that does not look at the test images.
    untested = dataclasses.replace(finished[1], test=None, minutes=1000.0)
    write_result(tmp_path / "tiny" / "result.json", untested)
    judge, clock, hours = run.__globals__["_judge"], time.perf_counter, []

    def judge_for_an_hour(*arguments):
        hours.append(1)
        return judge(*arguments)

    monkeypatch.setitem(run.__globals__, "_judge", judge_for_an_hour)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 3600 * len(hours))
    images = {"source": digits, "architecture": ARCHITECTURE}
    tested = run(recipe_in(tmp_path), **images)
    assert 1120 < tested.minutes < 1125
    changed = run(recipe_in(tmp_path, test_images=100, accept_changes=True), **images)
    assert 1240 < changed.minutes < 1250


@pytest.mark.slow
def test_what_a_finished_run_came_to_is_not_that_of_the_run_that_goes_on(
    tmp_path, finished, digits
):
    shutil.copytree(finished[0], tmp_path / "tiny")
    page, answers = "report.html", "predictions.csv"
    before = {name: (tmp_path / "tiny" / name).read_bytes() for name in (page, answers)}
    longer = recipe_in(tmp_path, steps=70, accept_changes=True)
    # The second time there is something of this step already.
    for changes in ({}, {"test_images": 100}, {"test_images": 90}):
        run(dataclasses.replace(longer, **changes), source=digits, architecture=ARCHITECTURE)
        assert not {page, answers, "figures"} & {
            path.name for path in (tmp_path / "tiny").iterdir()
        }
        run(
            dataclasses.replace(longer, **changes, report=True),
            source=digits,
            architecture=ARCHITECTURE,
        )
        assert (tmp_path / "tiny" / page).read_bytes() != before[page]
        assert (tmp_path / "tiny" / "figures").is_dir()
    assert (tmp_path / "tiny" / "report_of_step_00000060.html").read_bytes() == before[page]
    assert (tmp_path / "tiny" / "predictions_of_step_00000060.csv").read_bytes() == before[answers]
    assert (tmp_path / "tiny" / "figures_of_step_00000070-2").is_dir()


@pytest.mark.slow
def test_a_missing_report_is_made_up_for(finished, digits):
    folder, _ = finished
    before = (folder / "predictions.csv").read_text()
    for name in ("report.html", "predictions.csv"):
        (folder / name).unlink()
    run(recipe_in(folder.parent, report=True), source=digits, architecture=ARCHITECTURE)
    assert (folder / "report.html").exists()
    assert (folder / "predictions.csv").read_text() == before


def test_a_report_of_the_validation_images_is_none_of_the_test(tmp_path, digits):
    recipe = recipe_in(tmp_path, report=True, steps=5)
    folder = tmp_path / "tiny"
    images = {"source": digits, "architecture": ARCHITECTURE}
    judged = run(recipe, test=False, **images).validation.count
    answers = (folder / "predictions.csv").read_text()
    assert len(answers.splitlines()) == 1 + judged
    # As a kill between result and report leaves it, too.
    run(dataclasses.replace(recipe, report=False), **images)
    names = {path.name for path in folder.iterdir()}
    assert not names & {"report.html", "predictions.csv", "figures"}
    assert (folder / "predictions_of_step_00000005.csv").read_text() == answers
    tested = run(recipe, **images).test.count
    assert len((folder / "predictions.csv").read_text().splitlines()) == 1 + tested
    assert "Test accuracy" in (folder / "report.html").read_text()


def test_a_folder_with_another_run_is_refused(finished, digits):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    other = recipe_in(folder.parent, learning_rate=0.5, seed=3, log_every=7)
    with pytest.raises(ValueError, match="another run") as error:
        run(other, source=digits, architecture=ARCHITECTURE)
    text = str(error.value)
    assert "learning_rate: 0.5, there 0.01" in text and "seed: 3, there 0" in text
    assert "log_every" not in text and "--name" in text
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_that_is_no_run_is_refused(tmp_path, digits):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="it is not a run"):
        run(recipe_in(tmp_path), source=digits, architecture=ARCHITECTURE)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns_too(tmp_path, digits, precision):
    recipe = recipe_in(tmp_path, precision=precision)
    assert run(recipe, source=digits, architecture=ARCHITECTURE).test.accuracy > 0.5


def test_mixed_float16_recovers_from_an_overflow(tmp_path, digits, monkeypatch):
    def with_huge_scale(recipe, variables, plans):
        optimizers.append(make_optimizer(recipe, variables, plans))
        optimizers[0].dynamic_scale.assign(2.0**40)
        return optimizers[0]

    optimizers = []
    monkeypatch.setattr("keras_vit.finetune.loop.make_optimizer", with_huge_scale)
    recipe = recipe_in(tmp_path, precision="mixed_float16")
    result = run(recipe, source=digits, architecture=ARCHITECTURE)
    scale = float(optimizers[0].dynamic_scale.numpy())
    skipped = 60 - int(optimizers[0].iterations.numpy())
    assert skipped > 0 and scale == 2.0 ** (40 - skipped)
    assert result.test.accuracy > 0.4


@pytest.mark.slow
def test_accumulation_trains_like_the_whole_batch(tmp_path, digits):
    options = {"steps": 5, "warmup_steps": 1, "optimizer": "sgd"}
    for name, micro_batch_size in (("whole", None), ("parts", 16)):
        recipe = recipe_in(tmp_path, name=name, micro_batch_size=micro_batch_size, **options)
        run(recipe, source=digits, architecture=ARCHITECTURE)
    for whole, parts in zip(
        weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"), strict=True
    ):
        np.testing.assert_allclose(parts, whole, rtol=1e-3, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, digits):
    recipe = recipe_in(
        tmp_path, optimizer="sgd", learning_rate=1e30, clip_norm=0.0, checkpoint_every=1
    )
    with pytest.raises(TrainingDiverged) as error:
        run(recipe, source=digits, architecture=ARCHITECTURE)
    text = str(error.value)
    assert str(tmp_path / "tiny" / "last_good.keras") in text
    good = keras.saving.load_model(tmp_path / "tiny" / "last_good.keras", safe_mode=True)
    assert all(np.isfinite(weight).all() for weight in good.get_weights())
    for advice in ("--learning-rate (now 1e+30)", "--clip-norm", "--precision"):
        assert advice in text
    assert not (tmp_path / "tiny" / "result.json").exists()


def test_of_averaged_weights_the_last_good_ones_are_averages_too(tmp_path, digits, monkeypatch):
    def diverge():
        raise TrainingDiverged("The loss became nan at step 5.")

    changes = {"ema_decay": 0.5, "schedule": "constant", "checkpoint_every": 4, "log_every": 1}
    good = recipe_in(tmp_path, **changes, name="good", steps=4, warmup_steps=0)
    run(good, source=digits, architecture=ARCHITECTURE)
    with monkeypatch.context() as patch, pytest.raises(TrainingDiverged):
        after_row(patch, 5, diverge)
        longer = dataclasses.replace(good, name="longer", steps=8)
        run(longer, source=digits, architecture=ARCHITECTURE)
    last_good = keras.saving.load_model(tmp_path / "longer" / "last_good.keras")
    for expected, found in zip(weights_of(tmp_path / "good"), last_good.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_transfer_starts_from_the_checkpoint_with_a_head_of_zeros(finished, capsys):
    folder, _ = finished
    trained = keras.saving.load_model(folder / "model.keras")
    recipe = dataclasses.replace(RECIPE, weights=str(folder / "model.keras"))
    # As many classes as the checkpoint has, and another number of them.
    for num_classes in (10, 3):
        model = build_model(recipe, model_config(recipe, ARCHITECTURE, num_classes))
        assert "new        head/kernel: zero" in capsys.readouterr().out
        for weight in model.get_layer("head").weights:
            assert not np.asarray(weight).any()
        for weight, expected in zip(
            model.get_layer("block_0").weights, trained.get_layer("block_0").weights, strict=True
        ):
            np.testing.assert_array_equal(np.asarray(weight), np.asarray(expected))


def test_missing_weights_are_named_before_anything_is_written(tmp_path, digits):
    recipe = recipe_in(tmp_path, weights=str(tmp_path / "nothing.npz"))
    with pytest.raises(FileNotFoundError, match="nothing.npz"):
        run(recipe, source=digits, architecture=ARCHITECTURE)
    assert not (tmp_path / "tiny").exists()


def test_the_subset_is_taken_first_and_validation_from_it(digits):
    recipe = dataclasses.replace(RECIPE, train_images=100, test_images=50)
    splits = split_source(digits, recipe)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (90, 10, 50)
    again = split_source(digits, recipe)
    np.testing.assert_array_equal(splits.train.images, again.train.images)


def test_runs_of_other_seeds_are_tested_on_the_same_images(digits, tmp_path):
    recipes = [dataclasses.replace(RECIPE, test_images=50, seed=seed) for seed in (0, 1)]
    first, second = (split_source(digits, recipe) for recipe in recipes)
    np.testing.assert_array_equal(first.test.images, second.test.images)
    assert not np.array_equal(first.train.images, second.train.images)
    # A set that is not divided.
    recipes = [dataclasses.replace(recipe, data="digits") for recipe in recipes]
    digests = {load_source(recipe, tmp_path).digest for recipe in recipes}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "own, validation, most", [("hold_out", 438, 1000), ("train", 10, 1438), ("ignore", 10, 1000)]
)
def test_the_subset_is_of_all_images_that_may_be_trained_on(digits, own, validation, most):
    parts = [digits.train.take(range(1000)), digits.train.take(range(1000, 1438))]
    source = DataSource("divided", "", "0", *parts, digits.test)
    recipe = dataclasses.replace(RECIPE, train_images=100, own_validation=own)
    splits = split_source(source, recipe)
    assert len(splits.train) == (100 if own == "hold_out" else 90)
    assert len(splits.validation) == validation
    everything = dataclasses.replace(recipe, train_images=most, validation_fraction=0.0)
    assert len(split_source(source, everything).train) == most
    with pytest.raises(ValueError, match=f"`train_images` is more.*Expected {most} at most"):
        split_source(source, dataclasses.replace(everything, train_images=most + 1))


def test_more_test_images_than_there_are_are_refused(digits):
    with pytest.raises(ValueError, match="Expected 359 at most.*Received: test_images=360"):
        split_source(digits, dataclasses.replace(RECIPE, test_images=360))


def test_validation_shares_no_image_with_training(digits):
    # Each image says which one it is.
    index = np.arange(len(digits.train))
    images = np.zeros_like(digits.train.images)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = index // 256, index % 256
    marked = dataclasses.replace(digits.train, images=images)
    splits = split_source(dataclasses.replace(digits, train=marked), RECIPE)
    parts = [
        part.images[:, 0, 0, 0].astype(int) * 256 + part.images[:, 0, 0, 1]
        for part in (splits.train, splits.validation)
    ]
    assert sorted(np.concatenate(parts)) == index.tolist()
    assert len(splits.validation) == round(0.1 * len(index))


def test_copies_of_a_training_image_are_not_chosen_by(tmp_path):
    files = [tmp_path / f"{index}.png" for index in range(20)]
    labels = np.arange(20, dtype="int32") % 2
    images = ImageSet((*files, *files[:10]), np.append(labels, labels[:10]), ("even", "odd"))
    source = DataSource("copies", "", "0", images, None, images.take([0, 1]))
    splits = split_source(source, dataclasses.replace(RECIPE, validation_fraction=0.5))
    assert not set(splits.train.images) & set(splits.validation.images)
    assert len(set(splits.validation.images)) == 10
    assert len(splits.train) + len(splits.validation) == 30


@pytest.mark.parametrize("option", ["train_images", "test_images"])
def test_classes_that_a_subset_loses_are_said(digits, option):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split_source(digits, dataclasses.replace(RECIPE, **{option: 20}))
    few = dataclasses.replace(RECIPE, validation_fraction=0.0, **{option: 7})
    message = {
        "train_images": "digits with --train-images 7: 3 of 10 classes have no image to train on.*"
        "Expected one or more of each: raise --train-images",
        "test_images": "digits with --test-images 7: 3 of 10 classes have no test image",
    }[option]
    with pytest.warns(UserWarning, match=message):
        split_source(digits, few)


def test_holding_most_of_the_images_out_is_refused_for_what_it_is(digits):
    with pytest.raises(ValueError, match="Expected 0.5 at most.*validation_fraction=0.6"):
        split_source(digits, dataclasses.replace(RECIPE, validation_fraction=0.6))


def test_a_source_without_test_images_is_refused(digits):
    with pytest.raises(ValueError, match="no test images"):
        split_source(dataclasses.replace(digits, test=None), RECIPE)


def test_images_on_disk_are_trained_on(tmp_path):
    random = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(12):
            size = (int(random.integers(9, 20)), int(random.integers(9, 20)), 3)
            pixels = np.clip(random.normal(level, 10, size), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    recipe = recipe_in(
        tmp_path, data=str(tmp_path / "images"), steps=15, batch_size=8, validation_fraction=0.2
    )
    result = run(recipe, architecture=ARCHITECTURE)
    assert result.test.accuracy == 1.0
    assert result.configuration["data"]["classes"] == 2


def test_evaluate_counts_by_hand_and_in_any_batch_size(digits):
    model = build_model(RECIPE, model_config(RECIPE, ARCHITECTURE, 10))
    head = model.get_layer("head")
    random = np.random.default_rng(0)
    head.set_weights([random.normal(size=weight.shape) for weight in head.get_weights()])
    logits = np.asarray(model.predict(digits.test.images, verbose=0))
    order = np.argsort(-logits, axis=1)
    labels = digits.test.labels
    done = []
    for batch_size in (7, len(labels)):
        found = evaluate(
            model,
            digits.test,
            batch_size=batch_size,
            progress=lambda count, total: done.append((count, total)),
        )
        assert found.count == len(labels)
        assert found.accuracy == np.mean(order[:, 0] == labels)
        assert found.top5_accuracy == np.mean((order[:, :5] == labels[:, None]).any(axis=1))
    assert done[0] == (7, len(labels)) and done[-1] == (len(labels), len(labels))


def test_evaluate_refuses_a_model_with_other_classes(digits):
    with pytest.raises(ValueError, match="3 outputs, the data set 10 classes"):
        evaluate(build_model(RECIPE, model_config(RECIPE, ARCHITECTURE, 3)), digits.test)


def test_of_equal_outputs_the_first_class_is_the_answer(digits):
    """A head of zeros says class 0 for every image."""
    found = evaluate(build_model(RECIPE, model_config(RECIPE, ARCHITECTURE, 10)), digits.test)
    assert found.accuracy == np.mean(digits.test.labels == 0)
    assert found.top5_accuracy == np.mean(digits.test.labels < 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vit_b61"}, "Did you mean vit_b16"),
        ({"model": "vit_ti16", "image_size": 20, "resize_size": 24}, "multiple of the patch"),
        ({"weights": "no/nothing.npz"}, "nothing.npz"),
        ({"model": "vit_b16", "weights": "tiny/model.keras"}, "expected 16. Leave --model out"),
    ],
)
def test_what_needs_no_images_is_checked_before_they_are_read(finished, changes, message):
    if changes.get("weights") == "tiny/model.keras":
        changes = changes | {"weights": str(finished[0] / "model.keras")}
    recipe = recipe_in(finished[0].parent, name="early", data="no_such_data_set", **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(recipe)
    assert not (finished[0].parent / "early").exists()


def test_the_architecture_is_the_checkpoints_unless_it_is_named(finished):
    """Pooling and class token too: a mean-pooled checkpoint is fine-tuned as one."""
    source = VisionTransformerConfig(
        **{**dataclasses.asdict(ARCHITECTURE), "pooling": "avg", "class_token": False}
        | {"preprocessing": "imagenet", "activation": "gelu_tanh"}
    )
    path = finished[0].parent / "pooled.keras"
    vision_transformer(source).save(path)
    recipe = dataclasses.replace(RECIPE, weights=str(path), drop_path=0.1, remat=True)
    config = model_config(recipe, num_classes=4)
    assert (config.pooling, config.class_token) == ("avg", False)
    assert (config.activation, config.drop_path, config.remat) == ("gelu_tanh", 0.1, True)
    assert config.preprocessing.mean == (0.485, 0.456, 0.406)
    assert build_model(recipe, config).output_shape == (None, 4)


def test_a_checkpoint_that_pools_nothing_is_refused(tmp_path):
    source = dataclasses.replace(ARCHITECTURE, pooling=None)
    vision_transformer(source).save(tmp_path / "tokens.keras")
    with pytest.raises(ValueError, match="pools nothing"):
        model_config(dataclasses.replace(RECIPE, weights=str(tmp_path / "tokens.keras")))


@pytest.mark.parametrize(
    "changes",
    [
        {"classifier_activation": "softmax"},
        {"include_top": False},
        {"include_preprocessing": False},
        {"distillation_token": True, "head_output": "both"},
    ],
    ids=lambda changes: list(changes)[-1],
)
def test_a_given_architecture_is_trained_on_logits_of_raw_pixels(changes):
    distilled = changes.get("distillation_token", False)
    plain = dataclasses.replace(ARCHITECTURE, distillation_token=distilled)
    given = dataclasses.replace(ARCHITECTURE, **changes)
    assert model_config(RECIPE, given, 4) == model_config(RECIPE, plain, 4)
    assert build_model(RECIPE, model_config(RECIPE, given, 4)).output_shape == (None, 4)


def test_a_given_architecture_that_pools_nothing_is_refused(tmp_path, digits):
    architecture = dataclasses.replace(ARCHITECTURE, pooling=None)
    with pytest.raises(ValueError, match="The architecture pools nothing"):
        run(recipe_in(tmp_path), source=digits, architecture=architecture)
    assert not (tmp_path / "tiny").exists()


def test_a_bad_image_is_named_before_the_first_step(tmp_path):
    for name in ("dark", "light"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(8):
            image = Image.fromarray(np.full((9, 9, 3), 10 * index, "uint8"))
            image.save(tmp_path / "images" / name / f"{index}.png")
    (tmp_path / "images" / "light" / "5.png").write_bytes(b"no image")
    recipe = recipe_in(tmp_path, data=str(tmp_path / "images"), validation_fraction=0.2)
    with pytest.raises(ValueError, match=r"light.5\.png"):
        run(recipe, architecture=ARCHITECTURE)
    assert not (tmp_path / "tiny").exists()


def test_a_few_images_leave_some_for_validation_or_say_what_to_pass(digits, capsys):
    split_source(digits, RECIPE)
    assert not capsys.readouterr().out
    few = dataclasses.replace(RECIPE, train_images=40, validation_fraction=0.02)
    assert len(split_source(digits, few).validation) == 10
    assert "10 of 40 training images are held out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--validation-fraction 0"):
        split_source(digits, dataclasses.replace(few, train_images=15))


@pytest.mark.parametrize(
    "fraction, held_out, said",
    [
        (0.02, 4, "as many as there are classes of several images: --validation-fraction 0.02"),
        (0.5, 12, "fewer than --validation-fraction 0.5: each class keeps one"),
    ],
)
def test_the_only_image_of_a_class_is_not_held_out(digits, capsys, fraction, held_out, said):
    counts = [5] * 4 + [1] * 6
    labels = digits.train.labels
    few = [np.flatnonzero(labels == label)[:count] for label, count in enumerate(counts)]
    source = dataclasses.replace(digits, train=digits.train.take(np.concatenate(few)))
    splits = split_source(source, dataclasses.replace(RECIPE, validation_fraction=fraction))
    assert set(splits.train.labels) == set(range(10))
    assert (len(splits.validation), len(splits.train)) == (held_out, 26 - held_out)
    assert f"{held_out} of 26 training images are held out for validation, {said}" in (
        capsys.readouterr().out
    )


def test_a_batch_is_accumulated_where_a_cpu_could_not_hold_it(capsys):
    assert resolve_recipe(Recipe(image_size=224)).micro_batch_size == 64
    assert resolve_recipe(Recipe(image_size=384)).micro_batch_size == 16
    assert resolve_recipe(Recipe(image_size=32)).micro_batch_size == 512
    assert resolve_recipe(Recipe(micro_batch_size=256)).micro_batch_size == 256
    assert resolve_recipe(Recipe(batch_size=67)).micro_batch_size == 1
    assert "67 is trained as 1 at a time" in capsys.readouterr().out


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_where_images_are_mixed_two_are_trained_at_once(mixing):
    def micro_batch_size(**options):
        recipe = Recipe(**{mixing: 0.5}, **options)
        return resolve_recipe(recipe).micro_batch_size

    assert micro_batch_size(batch_size=66) == 33
    assert micro_batch_size(batch_size=512, image_size=1280, resize_size=1280) == 2
    assert micro_batch_size(batch_size=1) == 1
    with pytest.raises(
        ValueError, match=r"at most 64, .*=67\. .* such as 64 or 128, .*size=67 where"
    ):
        micro_batch_size(batch_size=67)
    with pytest.raises(ValueError, match=r"at most 2, .*=9\. .* such as 8 or 10, .*size=3 where"):
        micro_batch_size(batch_size=9, image_size=1280, resize_size=1280)
    for chosen in ({"batch_size": 64}, {"batch_size": 67, "micro_batch_size": 67}):
        assert micro_batch_size(**chosen) == chosen["batch_size"]


@pytest.mark.parametrize("name", ["recipe.json", "result.json", "log.csv"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", "a,b\n1,2\n"])
def test_damaged_files_of_a_run_are_named(tmp_path, finished, digits, capsys, name, content):
    shutil.copytree(finished[0], tmp_path / "tiny")
    (tmp_path / "tiny" / name).write_text(content)
    if name == "log.csv":
        (tmp_path / "tiny" / "result.json").unlink()
        run(recipe_in(tmp_path), source=digits, architecture=ARCHITECTURE)
        damaged = (tmp_path / "tiny" / "log.csv.damaged").exists()
        assert damaged == content.endswith("\n")
        return
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        run(recipe_in(tmp_path), source=digits, architecture=ARCHITECTURE)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports need TensorFlow")
def test_export_comes_with_the_run_and_after_it(tmp_path, monkeypatch, finished, digits, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0], tmp_path / "runs" / "tiny")
    exporting = recipe_in(tmp_path / "runs", export=True)
    for expected in ("saved_models/tiny/1\n", "tiny/1 is there already"):
        run(exporting, source=digits, architecture=ARCHITECTURE)
        assert expected in capsys.readouterr().out
    # A model that has changed is another version.
    longer = dataclasses.replace(exporting, steps=61, accept_changes=True)
    run(longer, source=digits, architecture=ARCHITECTURE)
    assert "saved_models/tiny/2\n" in capsys.readouterr().out
    folders = {path.name for path in (tmp_path / "saved_models" / "tiny").glob("*/")}
    assert folders == {"1", "2"}


@given(st.integers(1, 10_000), st.data())
def test_wilson_interval_solves_its_equation(count, data):
    correct = data.draw(st.integers(0, count))
    share = correct / count
    for bound in wilson_interval(correct, count):
        # The bounds are where the score test is at its 95 % limit.
        distance = abs(share - bound)
        limit = 1.959964 * np.sqrt(bound * (1 - bound) / count)
        assert distance == pytest.approx(limit, rel=1e-4, abs=1e-6)


def test_export_is_refused_where_the_backend_cannot_do_it(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
        run(recipe_in(tmp_path, export=True), source=digits, architecture=ARCHITECTURE)


@pytest.mark.slow
def test_runs_under_jax_where_tensorflow_cannot_be_imported(tmp_path):
    pytest.importorskip("jax")
    program = f"""
        import sys
        sys.modules["tensorflow"] = None
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import dataclasses, test_run
        from keras_vit.finetune import run
        recipe = test_run.recipe_in(
            {str(tmp_path)!r},
            steps=20,
            micro_batch_size=32,
            evaluate_every=5,
            ema_decay=0.9,
            augment="randaugment",
            random_erasing=0.5,
            mixup=0.8,
            cutmix=1.0,
        )
        print(run(recipe, architecture=test_run.ARCHITECTURE))
    """
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "tiny" / "result.json").read_text())
    assert result["versions"]["backend"] == "jax"
    assert list((tmp_path / "tiny" / "tensorboard").iterdir())
