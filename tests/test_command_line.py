"""What a command line makes of a protocol, a budget and options; the sweep; the batch that fits."""

import dataclasses
import json
import os

import keras
import numpy as np
import pytest
from random_checkpoints import write_timm
from scripts import RECIPES, load_script

import keras_vit
from keras_vit.cli import main
from keras_vit.data import DataSource, ImageSet
from keras_vit.finetune import (
    Recipe,
    TrainingDiverged,
    parse_recipe,
    protocol_learning_rates,
    protocol_recipe,
    recipe_learning_rates,
    run,
    sweep,
)
from keras_vit.finetune import run as run_module
from keras_vit.finetune.batch_size import largest_fitting
from keras_vit.finetune.splits import Splits
from keras_vit.finetune.starting_model import build_model, model_config
from keras_vit.finetune.training import set_up_training
from keras_vit.models import VARIANTS, VisionTransformerConfig

ARCHITECTURE = VisionTransformerConfig(
    patch_size=4, hidden_size=16, depth=1, mlp_dim=32, num_heads=2, image_size=8
)
RECIPE = Recipe(
    name="choice",
    image_size=8,
    resize_size=8,
    horizontal_flip=False,
    optimizer="adamw",
    steps=30,
    batch_size=64,
    warmup_steps=3,
    validation_fraction=0.1,
    evaluate_every=0,
    checkpoint_every=0,
    precision="float32",
    report=False,
)


def parsed(*words):
    return parse_recipe(words)


# the command line --------------------------------------------------------------------------------


def test_without_options_it_is_the_default_protocol_in_a_size_for_this_machine():
    assert parsed() == protocol_recipe("transfer", Recipe.data, budget="quick")


def test_a_protocol_and_a_budget_are_taken_as_published():
    recipe = parsed("--protocol", "vit", "--data", "cifar10", "--budget", "standard")
    assert (recipe.steps, recipe.warmup_steps, recipe.batch_size) == (1000, 100, 512)
    assert (recipe.image_size, recipe.resize_size, recipe.crop) == (384, 448, "squash")
    mae = parsed("--protocol=mae", "--data=imagenet2012", "--budget=full", "--model=vit_l16")
    assert (mae.layer_decay, mae.drop_path, mae.epochs) == (0.75, 0.2, 50)


def test_none_is_the_plain_recipe():
    assert parsed("--protocol", "none") == Recipe()


def test_steps_take_the_place_of_epochs_and_the_warm_up_keeps_its_share():
    base = protocol_recipe("mae", "imagenet2012", budget="quick")
    recipe = parsed("--protocol", "mae", "--data", "imagenet2012", "--steps", "1000")
    assert (recipe.steps, recipe.epochs) == (1000, None)
    assert recipe.warmup_steps == round(1000 * base.warmup_epochs / base.epochs)
    vit = parsed("--protocol", "vit", "--data", "cifar10", "--budget", "full", "--steps", "100")
    assert (vit.steps, vit.warmup_steps) == (100, 5)
    both = parsed("--protocol", "mae", "--data", "x", "--epochs", "7", "--warmup-epochs", "1")
    assert (both.epochs, both.warmup_epochs) == (7, 1)


def test_a_warm_up_in_another_unit_than_the_run_stays_as_it_is():
    in_steps = Recipe(epochs=10, warmup_steps=300)
    assert parse_recipe(["--epochs", "20"], in_steps) == dataclasses.replace(in_steps, epochs=20)
    shorter = parse_recipe(["--steps", "400"], in_steps)
    assert (shorter.steps, shorter.epochs, shorter.warmup_steps) == (400, None, 300)
    # No longer than the run.
    assert parse_recipe(["--steps", "40"], in_steps).warmup_steps == 40
    in_epochs = Recipe(steps=1000, warmup_steps=Recipe.warmup_steps, warmup_epochs=2.0)
    longer = parse_recipe(["--steps", "2000"], in_epochs)
    assert longer == dataclasses.replace(in_epochs, steps=2000)


def test_the_size_before_the_crop_follows_the_image_size():
    recipe = parsed("--protocol", "vit", "--data", "cifar10", "--image-size", "192")
    assert (recipe.image_size, recipe.resize_size) == (192, 224)


def test_what_depends_on_the_image_size_follows_it():
    words = ("--protocol", "mae", "--data", "cifar10", "--image-size")
    assert parsed(*words, "384").evaluation_crop_fraction == 1.0
    assert parsed(*words, "192").evaluation_crop_fraction == 0.875
    own = parsed(*words, "384", "--evaluation-crop-fraction", "0.9")
    assert own.evaluation_crop_fraction == 0.9


def test_the_default_protocol_keeps_what_a_label_depends_on():
    recipe = parsed("--data", "vtab/dsprites_location", "--image-size", "224")
    assert (recipe.horizontal_flip, recipe.crop, recipe.resize_size) == (False, "squash", 224)


def test_what_does_not_apply_of_a_protocol_is_put_away_and_said(capsys):
    recipe = parsed("--protocol", "mae", "--data", "cifar10", "--adapt", "head")
    assert (recipe.mixup, recipe.drop_path, recipe.layer_decay) == (0.0, 0.0, 1.0)
    assert "mixup: 0.8 of the protocol does not apply" in capsys.readouterr().out


def test_another_optimizer_has_not_the_options_of_the_protocols(capsys):
    words = ("--protocol", "mae", "--data", "cifar10", "--optimizer")
    assert parsed(*words, "lion").optimizer_options == {}
    said = "optimizer_options: {'epsilon': 1e-08} of the protocol does not apply"
    assert said in capsys.readouterr().out
    own = parsed(*words, "lion", "--optimizer-options", "beta_2", "0.95")
    assert own.optimizer_options == {"beta_2": 0.95}
    one = parsed(*words, "adam", "--optimizer-options.epsilon", "0.1")
    assert one.optimizer_options == {"epsilon": 0.1}
    assert parsed(*words, "adamw").optimizer_options == {"epsilon": 1e-8}
    assert "does not apply" not in capsys.readouterr().out


@pytest.mark.parametrize("adapt", ["head", "lora"])
@pytest.mark.parametrize("protocol", ["transfer", "vit", "mae", "deit3"])
def test_a_way_to_adapt_is_the_same_in_python(protocol, adapt):
    words = ("--protocol", protocol, "--data", "cifar10:3.0.2", "--budget", "quick")
    recipe = protocol_recipe(protocol, "cifar10:3.0.2", budget="quick", adapt=adapt)
    assert recipe == parsed(*words, "--adapt", adapt)
    # That of a recipe's file stays, whatever the budget.
    standard = protocol_recipe(protocol, "cifar10:3.0.2", budget="standard", adapt=adapt)
    standard = dataclasses.replace(standard, name=recipe.name)
    assert parse_recipe(["--budget", "quick"], standard) == recipe


@pytest.mark.parametrize(
    "words",
    [
        ("--adapt", "head", "--mixup", "0.3"),
        # The default, and the value of the protocol: given is given.
        ("--adapt", "head", "--mixup", "0"),
        ("--protocol", "mae", "--adapt", "head", "--mixup", "0.8"),
        ("--protocol", "mae", "--adapt", "head", "--no_horizontal_flip", "--mixup=0.8"),
    ],
)
def test_what_is_given_and_not_read_is_an_error(words):
    with pytest.raises(ValueError, match="mixup: read only where adapt is"):
        parsed(*words)


def test_what_is_given_counts_also_where_it_equals_the_protocol():
    recipe = parsed("--steps", "4000", "--warmup-steps", "40")
    assert (recipe.steps, recipe.warmup_steps) == (4000, 40)
    sizes = parsed("--protocol", "vit", "--image-size", "224", "--resize-size", "448")
    assert (sizes.image_size, sizes.resize_size) == (224, 448)
    with pytest.raises(ValueError, match="--steps and --epochs say the same"):
        parsed("--protocol", "mae", "--budget", "full", "--epochs", "100", "--steps", "50")


def test_none_is_a_value_as_the_help_shows_it():
    base = parsed("--protocol", "mae", "--data", "x")
    nothing = ("--budget", "None", "--model", "None", "--weights", "None", "--resize-size", "None")
    assert parsed("--protocol", "mae", "--data", "x", *nothing[:-2]) == base
    steps = parsed("--protocol", "mae", "--data", "x", "--epochs", "None", "--steps", "20")
    assert (steps.steps, steps.epochs) == (20, None)
    sizes = ("--protocol", "vit", "--image-size", "192")
    assert (parsed(*sizes).resize_size, parsed(*sizes, *nothing).resize_size) == (224, None)


@pytest.mark.slow
def test_the_values_for_a_size_are_those_of_the_checkpoint(tmp_path):
    # The size of L without its width in the MLP, which nothing asks for.
    keras_vit.create("vit_l16", num_classes=2, mlp_dim=8).save(tmp_path / "large.keras")
    words = ("--protocol", "mae", "--budget", "full", "--data", "imagenet2012")
    recipe = parsed(*words, "--weights", str(tmp_path / "large.keras"))
    assert (recipe.layer_decay, recipe.drop_path, recipe.epochs) == (0.75, 0.2, 50)
    assert recipe.model is None
    of_file = parse_recipe(["--weights", recipe.weights], shipped("imagenet2012"))
    assert of_file == dataclasses.replace(recipe, name="imagenet2012")


def test_a_model_of_other_patches_needs_no_image_size():
    assert parsed("--model", "vit_h14").image_size == 154


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--protocol", "mea"), "`protocol` must be one of.*mae"),
        (("--budget", "quik"), "`budget` must be one of quick, standard, full"),
        (("--protocol", "vit", "--data", "vtab/dmlb"), "VTAB has no task.*dmlab"),
    ],
)
def test_unknown_names_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        parsed(*words)


def test_the_image_size_fits_the_patches_of_the_checkpoint(tmp_path):
    model = keras_vit.models.vision_transformer(
        dataclasses.replace(ARCHITECTURE, patch_size=14, image_size=28)
    )
    model.save(tmp_path / "patch14.keras")
    recipe = parsed("--weights", str(tmp_path / "patch14.keras"))
    assert recipe.image_size == 154


def test_a_recipe_of_a_file_takes_another_budget():
    shipped = dataclasses.replace(protocol_recipe("vit", "cifar10", budget="standard"), name="mine")
    assert parse_recipe([], shipped) == shipped
    quick = parse_recipe(["--budget", "quick"], shipped)
    assert (quick.steps, quick.name) == (500, "mine")
    with pytest.raises(ValueError, match="needs `--protocol`"):
        parse_recipe(["--budget", "quick"], dataclasses.replace(shipped, seed=4))


def shipped(name):
    return load_script(RECIPES[0].parent / f"{name}.py").RECIPE


def test_a_recipe_of_a_file_has_the_values_for_the_model():
    recipe = parse_recipe(["--model", "vit_b16"], shipped("cifar10"))
    assert recipe.learning_rate == 0.01
    words = ("--budget", "standard", "--model", "vit_b16")
    assert recipe == parse_recipe(words, shipped("cifar10"))
    by_protocol = parsed("--protocol", "vit", "--data", "cifar10", *words)
    assert recipe == dataclasses.replace(by_protocol, name="cifar10")
    large = parse_recipe(["--model", "mae_l16"], shipped("imagenet2012"))
    assert (large.layer_decay, large.drop_path, large.epochs) == (0.75, 0.2, 50)


def test_a_recipe_of_a_file_keeps_its_model_and_budget():
    small = protocol_recipe("deit3", "imagenet2012", budget="standard", model="deit3_s16")
    small = dataclasses.replace(small, name="mine")
    assert parse_recipe([], small) == small
    quick = protocol_recipe("deit3", "imagenet2012", budget="quick", model="deit3_s16")
    assert parse_recipe(["--budget", "quick"], small) == dataclasses.replace(quick, name="mine")
    other = protocol_recipe("deit3", "cifar10", budget="standard", model="deit3_s16")
    other = dataclasses.replace(other, name="mine")
    assert parse_recipe(["--data", "cifar10"], small) == other
    # What was changed by hand is none of a protocol, and stays.
    own = dataclasses.replace(shipped("cifar10"), seed=4)
    by_hand = parse_recipe(["--model", "vit_b16"], own)
    assert by_hand == dataclasses.replace(own, model="vit_b16")


def test_the_grid_is_the_protocols_or_around_its_one_value():
    grid = recipe_learning_rates(["--protocol", "vit"], protocol_recipe("vit", "cifar10"))
    assert grid == protocol_learning_rates("vit", "cifar10")
    assert recipe_learning_rates(["--protocol", "none"], Recipe()) == (0.015, 0.03, 0.06)
    lora = parsed("--adapt", "lora")
    assert lora.learning_rate in recipe_learning_rates(["--adapt", "lora"], lora)
    words = ["--learning-rate", "0.5"]
    assert recipe_learning_rates(words, parsed(*words)) == (0.25, 0.5, 1.0)


# the sweep ---------------------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch):
    """The names of the runs that train, and whether each saw the test images."""
    seen = []
    real = run_module.__globals__["_train_and_test"]

    def spy(training, recipe, splits, folder, configuration, began, *, test):
        seen.append((folder.name, test, len(splits.train)))
        return real(training, recipe, splits, folder, configuration, began, test=test)

    monkeypatch.setitem(run_module.__globals__, "_train_and_test", spy)
    return seen


def test_a_sweep_chooses_on_held_out_images_and_tests_once(tmp_path, digits, runs):
    recipe = dataclasses.replace(RECIPE, output=str(tmp_path))
    narrow = sweep(recipe, [1e-5], source=digits, architecture=ARCHITECTURE)
    assert [name for name, *_ in runs] == ["lr-1e-05", "final-lr-1e-05"]
    # A wider grid trains what is new, and a final run for the rate that it chooses.
    rates = [1e-5, 1e-2]
    result = sweep(recipe, rates, source=digits, architecture=ARCHITECTURE)
    assert (narrow.learning_rate, result.learning_rate) == (1e-5, 1e-2)
    assert narrow.final.test.accuracy < result.final.test.accuracy
    assert list(result.validation) == rates
    held_out = len(digits.train) - 1294
    assert runs[0] == ("lr-1e-05", False, 1294)
    assert runs[2:] == [("lr-0.01", False, 1294), ("final-lr-0.01", True, 1438)]
    assert {judged.count for judged in result.validation.values()} == {held_out}
    assert result.final.test.count == len(digits.test) and result.final.validation is None
    for name in ("lr-1e-05", "lr-0.01"):
        assert json.loads((tmp_path / "choice" / name / "result.json").read_text())["test"] is None
    table = json.loads((tmp_path / "choice" / "sweep.json").read_text())
    assert [row["learning_rate"] for row in table["runs"]] == rates
    assert table["final"] == "final-lr-0.01"
    assert "← chosen" in str(result).splitlines()[2]
    # Once more: everything is finished.
    runs.clear()
    again = sweep(recipe, rates, source=digits, architecture=ARCHITECTURE)
    assert (runs, again) == ([], result)


@pytest.mark.slow
def test_a_sweep_goes_on_past_a_rate_that_diverges(tmp_path, digits):
    recipe = dataclasses.replace(
        RECIPE, output=str(tmp_path), optimizer="sgd", clip_norm=0.0, checkpoint_every=1
    )
    result = sweep(recipe, [0.1, 1e30], source=digits, architecture=ARCHITECTURE)
    assert (result.learning_rate, result.validation[1e30]) == (0.1, None)
    lost = dataclasses.replace(recipe, name="lost")
    with pytest.raises(TrainingDiverged, match=r"every learning rate: 1e\+30"):
        sweep(lost, [1e30], source=digits, architecture=ARCHITECTURE)


@pytest.mark.parametrize("rates", [[], [0.1, 0.1], [0.1, 0.0], [0.1, float("nan")]])
def test_a_sweep_checks_its_rates_first(digits, rates, tmp_path):
    with pytest.raises(ValueError, match="different numbers above 0"):
        sweep(dataclasses.replace(RECIPE, output=str(tmp_path)), rates, source=digits)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_fresh_sweep_leaves_what_is_there(tmp_path, digits, runs):
    recipe = dataclasses.replace(RECIPE, output=str(tmp_path), steps=2, warmup_steps=1)
    sweep(recipe, [0.01], source=digits, architecture=ARCHITECTURE)
    before = {path: path.read_bytes() for path in tmp_path.rglob("choice/**/*") if path.is_file()}
    runs.clear()
    fresh = dataclasses.replace(recipe, fresh=True)
    sweep(fresh, [0.01], source=digits, architecture=ARCHITECTURE)
    assert [name for name, *_ in runs] == ["lr-0.01", "final-lr-0.01"]
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == {
        "choice",
        "choice-2",
    }
    names = {path.name for path in (tmp_path / "choice-2").iterdir() if path.name[0] != "."}
    assert names == {"lr-0.01", "final-lr-0.01", "sweep.json"}


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports need TensorFlow")
def test_a_sweep_exports_the_final_model_under_its_own_name(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = dataclasses.replace(RECIPE, steps=2, warmup_steps=1, export=True)
    for _ in range(2):
        sweep(recipe, [0.01], source=digits, architecture=ARCHITECTURE)
    exported = sorted(path.parent for path in tmp_path.glob("saved_models/**/saved_model.pb"))
    assert exported == [tmp_path / "saved_models" / "choice" / "1"]


def test_a_sweep_refuses_an_export_that_the_backend_cannot_make(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    recipe = dataclasses.replace(RECIPE, output=str(tmp_path), export=True)
    with pytest.raises(ValueError, match="`export` needs the TensorFlow backend"):
        sweep(recipe, [0.01], source=digits)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports need TensorFlow")
def test_an_export_that_a_server_would_refuse_is_refused_before_the_training(
    tmp_path, digits, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "saved_models" / RECIPE.name
    folder.mkdir(parents=True)
    (folder / "batching_parameters.txt").write_text("max_batch_size { value: 4 }")
    recipe = dataclasses.replace(RECIPE, export=True)
    with pytest.raises(ValueError, match="of 8 rows is larger .* its max_batch_size is 4"):
        run(recipe, source=digits, architecture=ARCHITECTURE)
    assert not list(tmp_path.rglob("recipe.json"))


def test_one_host_alone_writes_what_a_sweep_leaves_out(tmp_path, digits, monkeypatch):
    def end(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setitem(sweep.__globals__, "run", end)
    recipe = dataclasses.replace(RECIPE, output=str(tmp_path), damaged_images="skip")
    for host, files in ((1, set()), (0, {"left_out.json"})):
        monkeypatch.setitem(sweep.__globals__, "host_number", lambda host=host: host)
        with pytest.raises(KeyboardInterrupt):
            sweep(recipe, [0.01], source=digits)
        assert {path.name for path in tmp_path.glob("choice/*")} == files


def test_hosts_join_before_a_sweep_reads_or_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    recipe = dataclasses.replace(RECIPE, output=str(tmp_path), data="no_such_data_set")
    with pytest.raises(ValueError, match="KERAS_DISTRIBUTION_PROCESS_ID is missing"):
        sweep(recipe, [0.01])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [{"early_stopping": 1}, {"keep": "best"}])
def test_a_sweep_refuses_at_once_what_its_final_run_could_not_do(digits, option, tmp_path):
    recipe = dataclasses.replace(RECIPE, output=str(tmp_path), evaluate_every=1, **option)
    with pytest.raises(ValueError, match="trains on all images in the end"):
        sweep(recipe, [0.1], source=digits)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_holds_images_out_where_the_recipe_does_not(tmp_path, digits, runs):
    recipe = dataclasses.replace(
        RECIPE, output=str(tmp_path), steps=2, warmup_steps=1, validation_fraction=0.0
    )
    sweep(recipe, [0.01], source=digits, architecture=ARCHITECTURE)
    assert [images for _, _, images in runs] == [1294, 1438]


@pytest.mark.slow
def test_a_sweep_over_a_set_with_validation_images_trains_on_them_in_the_end(
    tmp_path, digits, runs
):
    train, validation = digits.train.take(range(1000)), digits.train.take(range(1000, 1438))
    source = DataSource("divided", "", "0", train, validation, digits.test)
    recipe = dataclasses.replace(RECIPE, output=str(tmp_path), steps=3, warmup_steps=1)
    sweep(recipe, [0.01], source=source, architecture=ARCHITECTURE)
    assert [images for _, _, images in runs] == [1000, 1438]
    runs.clear()
    # A subset of both may be larger than the one that is trained on to choose.
    subset = dataclasses.replace(recipe, name="subset", own_validation="train", train_images=1200)
    subset = dataclasses.replace(subset, validation_fraction=0.0)
    sweep(subset, [0.01], source=source, architecture=ARCHITECTURE)
    assert [images for _, _, images in runs] == [1000, 1200]
    runs.clear()
    ignored = dataclasses.replace(recipe, name="ignored", own_validation="ignore")
    sweep(ignored, [0.01], source=source, architecture=ARCHITECTURE)
    assert [images for _, _, images in runs] == [900, 1000]


@pytest.mark.slow
def test_sweep_and_compare_on_the_command_line(tmp_path, capsys):
    words = (
        "sweep --protocol none --name tiny --image-size 16 --steps 2 --warmup-steps 1 "
        "--batch-size 8 --train-images 40 --test-images 20 --validation-fraction 0.25 --no-report "
        "--learning-rates 0.01 0.1 --output"
    )
    assert main([*words.split(), str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    # The table and the result once each.
    assert printed.count("← chosen") == printed.count("of 20 images") == 1
    folders = [str(tmp_path / "tiny" / name) for name in ("lr-0.01", "lr-0.1")]
    assert main(["compare", *folders]) == 0
    assert "learning rate" in capsys.readouterr().out


# the batch that fits -----------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "expected"), [(512, 512), (511, 256), (100, 64), (1, 1)])
def test_the_largest_batch_that_fits_is_found(limit, expected):
    def attempt(images):
        if images > limit:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")

    assert largest_fitting(512, attempt) == expected


def test_divisors_only_and_other_errors_pass():
    tried = []

    def attempt(images):
        tried.append(images)
        if images > 5:
            raise MemoryError

    assert largest_fitting(90, attempt) == 3
    assert tried == [90, 45, 18, 9, 3]
    with pytest.raises(ValueError, match="broken"):
        largest_fitting(4, lambda images: (_ for _ in ()).throw(ValueError("broken")))

    def never(images):
        raise MemoryError

    with pytest.raises(MemoryError, match="Not even one image fits"):
        largest_fitting(4, never)


def test_where_images_are_mixed_one_alone_is_not_tried(digits, monkeypatch):
    tried = []

    def exhausted(self, inputs, targets, **options):
        tried.append(len(targets))
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(keras.Model, "train_on_batch", exhausted)
    for batch_size, sizes, said in (
        (6, [6, 3, 2], "Not even 2 images fit the device's memory. Choose a smaller model"),
        (7, [7], "Not even 7 images fit .* Choose a batch_size with smaller parts .now 7., a smal"),
    ):
        tried.clear()
        recipe = dataclasses.replace(RECIPE, batch_size=batch_size, mixup=0.5)
        splits = Splits(digits.train, None, digits.test)
        model = build_model(recipe, model_config(recipe, ARCHITECTURE, 10))
        with pytest.raises(MemoryError, match=said):
            set_up_training(model, recipe, splits)
        assert tried == sizes


def test_of_several_devices_all_images_at_once_are_counted(capsys):
    tried = []

    def attempt(images):
        tried.append(images)
        raise MemoryError

    with pytest.raises(MemoryError, match="Not even 8 images fit"):
        largest_fitting(48, attempt, multiple_of=8)
    assert tried == [48, 24, 8]
    assert "24 images at once do not fit" in capsys.readouterr().out


def test_an_open_micro_batch_is_found_by_trying_and_leaves_no_trace(digits, monkeypatch):
    recipe = dataclasses.replace(RECIPE, batch_size=16, train_images=200)
    splits = Splits(digits.train, None, digits.test)
    model = build_model(recipe, model_config(recipe, ARCHITECTURE, 10))
    before = [np.array(weight) for weight in model.get_weights()]
    real = keras.Model.train_on_batch

    def small_device(self, inputs, targets, **options):
        if len(targets) > 4:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return real(self, inputs, targets, **options)

    monkeypatch.setattr(keras.Model, "train_on_batch", small_device)
    training, found = set_up_training(model, recipe, splits)
    assert found.micro_batch_size == 4
    assert training.compiled.optimizer.gradient_accumulation_steps == 4
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert not any(np.any(np.array(v)) for v in training.compiled.optimizer._accumulated_gradients)


def test_the_models_name_tells_the_heads_of_a_bare_file_but_not_its_gelu(tmp_path, monkeypatch):
    sizes = {"patch_size": 4, "hidden_size": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2}
    monkeypatch.setitem(VARIANTS, "clip_tiny", VARIANTS["clip_b16"] | sizes)
    write_timm(tmp_path, depth=1, pre_norm=True)
    (tmp_path / "config.json").unlink()
    options = {"weights": str(tmp_path), "image_size": 12, "resize_size": 12}
    recipe = dataclasses.replace(RECIPE, model="clip_tiny", preprocessing="imagenet", **options)
    with pytest.raises(ValueError, match="does not tell the activation.*config.json beside"):
        model_config(recipe)
    with pytest.raises(ValueError, match="pass `num_heads`"):
        model_config(dataclasses.replace(recipe, model=None))


# data that does not fit --------------------------------------------------------------------------


def test_a_renamed_class_is_named_when_a_run_goes_on(tmp_path, digits):
    recipe = dataclasses.replace(RECIPE, output=str(tmp_path), steps=2, warmup_steps=1)
    run(recipe, source=digits, architecture=ARCHITECTURE)
    names = ("zero", *digits.class_names[1:])
    renamed = DataSource(
        digits.name,
        digits.version,
        digits.digest,
        ImageSet(digits.train.images, digits.train.labels, names),
        None,
        ImageSet(digits.test.images, digits.test.labels, names),
    )
    with pytest.raises(ValueError, match="'zero' is new.*'0' is gone"):
        run(recipe, source=renamed, architecture=ARCHITECTURE)


@pytest.mark.parametrize(
    "chosen", [None, "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"]
)
def test_jax_may_take_more_of_a_gpus_memory_than_by_itself(monkeypatch, chosen):
    names = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    for name in names:
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(chosen, "0.5")
    parse_recipe(["--data", "digits"])
    found = {name: os.environ[name] for name in names if name in os.environ}
    # JAX refuses both.
    assert found == ({chosen: "0.5"} if chosen else {names[0]: "0.9"})
