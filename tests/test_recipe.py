"""The recipe: its bounds, its command line, the recipes that are shipped."""

import dataclasses
import json
import os
import tomllib
from types import SimpleNamespace

import pytest
import tyro
from conftest import REPOSITORY
from scripts import RECIPES, load_script

from keras_vit.finetune import Recipe, parse_recipe, recipe_from_fields, run_command_line
from keras_vit.finetune.recipe import differing_fields, recipe_fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a/b"),
        ("name", ".."),
        ("image_size", 0),
        ("image_size", -16),
        ("image_size", 16.5),
        ("resize_size", 100),
        ("train_images", 0),
        ("test_images", 0),
        ("steps", 0),
        ("batch_size", 0),
        ("micro_batch_size", 0),
        ("micro_batch_size", 1024),
        ("micro_batch_size", 100),
        ("warmup_steps", 501),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", "0.1"),
        ("momentum", 1.0),
        ("validation_fraction", 1.0),
        ("label_smoothing", -0.1),
        ("drop_path", 1.0),
        ("log_every", 0),
        ("seed", -1),
        ("steps", True),
        ("optimizer", "adamx"),
        ("precision", "float16"),
        ("interpolation", "lanczos"),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"`{field}`.*Received.*{field}="):
        Recipe(**{field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable_rules": ((".*", "False"),)}, "pairs of a pattern and True or False"),
        ({"trainable_rules": {"head/.*": True}}, "pairs of a pattern and True or False"),
        ({"learning_rate_rules": ((".*", -1.0),)}, "a number, at least 0"),
        ({"horizontal_flip": "no"}, "`horizontal_flip` must be True or False"),
        ({"data": None}, "`data` must be text"),
        ({"epochs": 0.0}, "`epochs` must be"),
        ({"layer_decay": 0.0}, "`layer_decay` must be"),
        ({"mixup": 0.5, "batch_size": 4, "micro_batch_size": 1}, "micro_batch_size=1"),
        ({"optimizer": "adamw", "optimizer_options": {"weight_decay": 0.3}}, "`weight_decay`"),
        ({"optimizer_options": {"use_ema": True}}, "Set `ema_decay`"),
        ({"optimizer_options": {"momentum": 0.5}}, "Set `momentum`"),
        ({"optimizer": "schedulefreeadamw"}, "`optimizer` must be one of"),
        ({"optimizer": "ftrl"}, "`optimizer` must be one of"),
    ],
)
def test_what_would_be_misread_or_not_read_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_an_unknown_key_of_a_file_is_named():
    with pytest.raises(ValueError, match="recipe.json has the unknown option 'stpes'.*steps"):
        recipe_from_fields(recipe_fields(Recipe()) | {"stpes": 3}, "recipe.json")


def test_accumulation_steps():
    assert Recipe().accumulation_steps == 1
    assert Recipe(batch_size=512, micro_batch_size=64).accumulation_steps == 8


def test_differing_fields_leaves_out_what_changes_no_weight():
    first = recipe_fields(Recipe(seed=1, output="here", log_every=1))
    second = recipe_fields(Recipe(seed=2, output="there", log_every=2))
    assert differing_fields(first, second) == {"seed": "1, there 2"}


def test_help_shows_every_option_with_its_default(capsys):
    recipe = Recipe(name="pets", learning_rate=0.0125, weights="B_16.npz")
    with pytest.raises(SystemExit):
        tyro.cli(Recipe, default=recipe, args=["--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(Recipe):
        assert f"--{field.name.replace('_', '-')}" in text, field.name
    for value in ("pets", "0.0125", "B_16.npz"):
        assert value in text


def test_command_line_changes_options_and_rejects_unknown_ones():
    recipe = tyro.cli(Recipe, default=Recipe(), args=["--steps", "70", "--no-horizontal-flip"])
    assert (recipe.steps, recipe.horizontal_flip) == (70, False)
    with pytest.raises(SystemExit):
        tyro.cli(Recipe, default=Recipe(), args=["--stepz", "70"])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_a_value(path):
    module = load_script(path)
    recipes = [value for value in vars(module).values() if isinstance(value, Recipe)]
    assert recipes
    assert module.__doc__.count("python recipes/")


@pytest.mark.parametrize("name", ["cifar100", "oxford_iiit_pet"])
def test_the_head_of_a_recipe_has_the_resize_size_of_another_image_size(name):
    module = load_script(RECIPES[0].parent / f"{name}.py")
    recipe = parse_recipe(["--image-size", "224"], module.RECIPE)
    assert f"{module.RECIPE.resize_size} for 384 px" in module.__doc__
    assert f"{recipe.resize_size} for 224 px" in module.__doc__


def test_the_digits_have_one_result_in_all_places():
    measured = (REPOSITORY / "docs" / "measured.toml").read_text(encoding="utf-8")
    (entry,) = (
        entry for entry in tomllib.loads(measured)["measured"] if entry["recipe"] == "digits.py"
    )
    scratch = float(entry["what"].rpartition("from scratch: ")[2].removesuffix(" %)"))
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    head = load_script(RECIPES[0].parent / "digits.py").__doc__
    for accuracy in (entry["accuracy"], scratch):
        assert f"{accuracy:.2f}% of 448 images" in readme
        assert f"{accuracy:.1f} %" in head


@pytest.mark.slow
def test_digits_recipe_transfers_to_the_other_digits(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    module = load_script(RECIPES[0].parent / "digits.py")
    options = "--pretraining.steps 60 --transfer.steps 16 --images-per-class 4"
    monkeypatch.setattr("sys.argv", ["digits.py", *options.split()])
    module.main()
    runs = tmp_path / "runs"
    results = {
        name: json.loads((runs / name / "result.json").read_text())
        for name in ("digits-0-to-4", "digits-5-to-9", "digits-5-to-9-from-scratch")
    }
    pretraining, transfer, scratch = (results[name]["configuration"] for name in results)
    assert pretraining["data"]["name"] == "digits 0 to 4"
    assert results["digits-5-to-9"]["train_images"] == 20
    # The two differ in where they start from and in nothing else.
    assert transfer["weights_sha256"] and not scratch["weights_sha256"]
    assert transfer["data"] == scratch["data"]
    changed = {
        name for name, value in transfer["recipe"].items() if value != scratch["recipe"][name]
    }
    assert changed == {"name", "weights"}
    names = (runs / "digits-5-to-9" / "class_names.txt").read_text().split()
    assert names == ["5", "6", "7", "8", "9"]
    assert (runs / "digits-5-to-9" / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert "gain" in capsys.readouterr().out


def test_digits_recipe_transfers_from_the_run_that_started_over(monkeypatch):
    module = load_script(RECIPES[0].parent / "digits.py")
    recipes = []

    def run(recipe, **_):
        recipes.append(recipe)
        return SimpleNamespace(name=f"{recipe.name}-2" if recipe.fresh else recipe.name)

    monkeypatch.setattr(module, "run", run)
    fresh = dataclasses.replace(module.PRETRAINING, fresh=True)
    module.demonstrate(module.Demonstration(pretraining=fresh))
    assert recipes[1].weights == os.path.join("runs", "digits-0-to-4-2", "model.keras")


def test_the_tasks_of_vtab_have_a_folder_each(monkeypatch):
    module = load_script(RECIPES[0].parent / "vtab.py")
    names = []

    def run_command_line(recipe, words):
        names.append(parse_recipe(words, recipe).name)
        return SimpleNamespace(test=SimpleNamespace(accuracy=0.5))

    monkeypatch.setattr(module, "run_command_line", run_command_line)
    monkeypatch.setattr("sys.argv", ["vtab.py", "--name", "large", "--steps", "7"])
    module.main()
    assert names == [f"large-{task}" for task in module.RECIPES]
    monkeypatch.setattr("sys.argv", ["vtab.py", "--task", "pets"])
    module.main()
    assert names[-1] == module.RECIPES["pets"].name


def test_a_task_of_vtab_that_fails_is_listed_with_why_after_the_others(monkeypatch, capsys):
    module = load_script(RECIPES[0].parent / "vtab.py")

    def run_recipe(recipe):
        if "resisc45" in recipe.data:
            raise RuntimeError("resisc45 must be downloaded by hand\nfrom its page")
        return SimpleNamespace(test=SimpleNamespace(accuracy=0.5))

    monkeypatch.setitem(run_command_line.__globals__, "run", run_recipe)
    monkeypatch.setattr("sys.argv", ["vtab.py"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    table = capsys.readouterr().out.splitlines()[-20:]
    assert [line.split()[0] for line in table[:-1]] == list(module.RECIPES)
    assert [line for line in table if "failed" in line] == [
        f"{'resisc45':24} failed: resisc45 must be downloaded by hand"
    ]
    assert table[-1].split() == ["mean", "of", "18", "50.00", "%"]
    monkeypatch.setattr("sys.argv", ["vtab.py", "--task", "resisc45"])
    with pytest.raises(SystemExit):
        module.main()
    assert capsys.readouterr().err.startswith("error: resisc45 must be downloaded")


def test_command_line_ends_with_one_message_for_what_a_user_can_put_right(tmp_path, capsys):
    arguments = ["--data", str(tmp_path / "nothing"), "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        run_command_line(Recipe(), arguments)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "nothing" in message
