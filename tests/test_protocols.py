"""The published protocols and the shipped recipes: all are built, and have the papers' figures."""

import csv
import dataclasses
import warnings
from fnmatch import fnmatchcase

import numpy as np
import pytest
from conftest import REPOSITORY
from scripts import RECIPES, load_script
from tfds_mocks import mocked_data

from keras_vit.data import DataSource, ImageSet, load_data
from keras_vit.finetune import Recipe, run
from keras_vit.finetune.protocols import (
    BUDGETS,
    DATA_SETS,
    PROTOCOLS,
    VTAB_TASKS,
    find_protocol,
    protocol_learning_rates,
    protocol_recipe,
)
from keras_vit.finetune.splits import split_source
from keras_vit.models import VARIANTS, VisionTransformerConfig, count_parameters

TINY = VisionTransformerConfig(
    patch_size=8, hidden_size=16, depth=2, mlp_dim=32, num_heads=2, image_size=16
)


def values(recipe, *names):
    return tuple(getattr(recipe, name) for name in names)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_value_of_a_protocol_is_a_recipe(name):
    built = [
        protocol_recipe(name, data, budget=budget, model=model)
        for data in (*DATA_SETS, "photographs/flowers", "lists/birds.csv")
        for budget in (None, *BUDGETS)
        for model in (None, "vit_s16", "vit_b16", "mae_l16", "deit3_h14")
    ]
    assert all(isinstance(recipe, Recipe) for recipe in built)
    assert len({recipe.name for recipe in built}) == len({*DATA_SETS, "flowers", "birds"}) * 4


@pytest.mark.parametrize("adapt", ["full", "head", "lora"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_way_to_adapt_is_in_the_recipe(name, adapt):
    recipe = protocol_recipe(name, "cifar10", adapt=adapt)
    assert recipe.adapt == adapt
    assert recipe.name.endswith(adapt) == (adapt != "full")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_version_of_a_data_set_has_its_values(name):
    for data, version in (("cifar10", "3.0.2"), ("oxford_iiit_pet", "4.0.0"), ("vtab/pets", "4")):
        general = protocol_recipe(name, data)
        pinned = protocol_recipe(name, f"{data}:{version}")
        assert pinned.data == f"{data}:{version}"
        assert dataclasses.replace(pinned, data=data) == general
        rates = [protocol_learning_rates(name, each) for each in (data, pinned.data)]
        assert rates[0] == rates[1]
    with pytest.raises(ValueError, match="no task 'vtab/pet'.*pets"):
        protocol_recipe(name, "vtab/pet:4.0.0")
    assert protocol_recipe(name, "C:/photos/cifar10").name.startswith("cifar10-")


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_changes_name_options_and_fit_some_data_and_model(protocol):
    options = {field.name for field in dataclasses.fields(Recipe)}
    for change in protocol.changes:
        assert set(change.values) <= options
        assert change.source
        assert set(change.budget) <= {"*", *BUDGETS}
        # A pattern that fits nothing is a name misspelt.
        for patterns, names in ((change.data, DATA_SETS), (change.model, VARIANTS)):
            for pattern in patterns:
                assert any(fnmatchcase(name, pattern) for name in names), pattern


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_published_accuracies_have_a_source(protocol):
    assert protocol.source
    for entry in protocol.published:
        assert entry.data in (*DATA_SETS, "vtab")
        assert entry.budget in BUDGETS
        assert 60 < entry.accuracy < 100
        assert entry.source


# arXiv 2010.11929, table 4; README of google-research/vision_transformer.
@pytest.mark.parametrize(
    ("data", "budget", "steps", "warmup", "rates"),
    [
        ("cifar10", "quick", 500, 50, (0.001, 0.003, 0.01, 0.03)),
        ("cifar10", "standard", 1000, 100, (0.001, 0.003, 0.01, 0.03)),
        ("cifar10", "full", 10000, 500, (0.001, 0.003, 0.01, 0.03)),
        ("cifar100", None, 10000, 500, (0.001, 0.003, 0.01, 0.03)),
        ("imagenet2012", None, 20000, 500, (0.003, 0.01, 0.03, 0.06)),
        ("oxford_iiit_pet", None, 500, 100, (0.001, 0.003, 0.01, 0.03)),
        ("oxford_flowers102", None, 500, 100, (0.001, 0.003, 0.01, 0.03)),
        ("vtab/eurosat", None, 2500, 200, (0.01,)),
    ],
)
def test_vit_has_the_steps_and_rates_of_table_4(data, budget, steps, warmup, rates):
    recipe = protocol_recipe("vit", data, budget=budget)
    assert values(recipe, "steps", "warmup_steps") == (steps, warmup)
    assert protocol_learning_rates("vit", data) == rates
    assert values(recipe, "optimizer", "momentum", "batch_size", "clip_norm", "weight_decay") == (
        *("sgd", 0.9, 512, 1.0, 0.0),
    )
    assert values(recipe, "image_size", "schedule") == (384, "cosine")


def test_a_model_has_its_own_values():
    options = ("learning_rate", "layer_decay", "drop_path", "epochs")
    # FINETUNE.md of facebookresearch/mae.
    for model, expected in {
        None: (5e-4, 0.65, 0.1, 100),
        "mae_b16": (5e-4, 0.65, 0.1, 100),
        "mae_l16": (1e-3, 0.75, 0.2, 50),
        "mae_h14": (1e-3, 0.75, 0.3, 50),
    }.items():
        recipe = protocol_recipe("mae", "imagenet2012", model=model)
        assert values(recipe, *options) == expected
        assert recipe.model == model
    assert protocol_recipe("mae", "imagenet2012").peak_learning_rate == pytest.approx(2e-3)
    # README_revenge.md of facebookresearch/deit.
    for model, expected in {
        "deit3_s16": (384, 0.0),
        "deit3_b16": (384, 0.15),
        "deit3_l16": (384, 0.4),
        "deit3_h14": (224, 0.55),
    }.items():
        recipe = protocol_recipe("deit3", "imagenet2012", model=model)
        assert values(recipe, "image_size", "drop_path") == expected
    assert protocol_recipe("vit", "cifar10", model="vit_b16").learning_rate == 0.01
    assert protocol_recipe("vit", "cifar10", model="vit_l16").learning_rate == 0.03


# arXiv 1912.11370, supplement F.
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_vtab_keeps_what_a_label_depends_on(name, budget):
    unflipped, whole = set(), set()
    for task in VTAB_TASKS:
        recipe = protocol_recipe(name, f"vtab/{task}", budget=budget)
        if not recipe.horizontal_flip:
            unflipped.add(task)
        if recipe.resize_size == recipe.image_size and recipe.crop == "squash":
            whole.add(task)
    assert unflipped == {"dsprites_orientation", "smallnorb_azimuth", "dsprites_location"}
    assert whole == {
        *("clevr_count", "clevr_distance", "dmlab", "kitti_distance", "dsprites_location"),
    }


@pytest.mark.parametrize("name", PROTOCOLS)
def test_digits_are_not_mirrored(name):
    assert not protocol_recipe(name, "digits").horizontal_flip
    assert protocol_recipe(name, "photographs").horizontal_flip


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "transfer"])
def test_vtab_trains_on_all_of_its_1000_images(name):
    def images(count):
        classes = tuple(f"class {index}" for index in range(397))
        labels = np.arange(count, dtype="int32") % len(classes)
        return ImageSet(np.zeros((count, 1, 1, 3), "uint8"), labels, classes)

    source = DataSource("vtab/sun397", "", "0", images(800), images(200), images(400))
    splits = split_source(source, protocol_recipe(name, "vtab/sun397"))
    assert (len(splits.train), splits.validation) == (1000, None)


@pytest.mark.parametrize("name", ["deit", "deit3", "deit3_in21k", "mae"])
def test_metas_protocols_train_on_all_2040_images_of_flowers(name):
    def images(count):
        labels = np.arange(count, dtype="int32") % 102
        classes = tuple(f"class {index}" for index in range(102))
        return ImageSet(np.zeros((count, 1, 1, 3), "uint8"), labels, classes)

    source = DataSource("oxford_flowers102", "", "0", images(1020), images(1020), images(102))
    splits = split_source(source, protocol_recipe(name, "oxford_flowers102"))
    assert (len(splits.train), splits.validation) == (2040, None)
    # One's own images that are set apart are chosen by.
    splits = split_source(source, protocol_recipe(name, "photographs"))
    assert (len(splits.train), len(splits.validation)) == (1020, 1020)


def test_a_batch_is_no_larger_than_a_data_set_of_1000_images():
    for name in PROTOCOLS:
        # Data of unknown size may be as small.
        for data in ("vtab/dtd", "oxford_flowers102", "photographs/flowers", "lists/birds.csv"):
            assert protocol_recipe(name, data).batch_size <= 1000


@pytest.mark.parametrize(
    ("name", "batch", "peak"), [("deit3_in21k", 2048, 3e-4), ("mae", 1024, 2e-3)]
)
def test_a_smaller_batch_than_the_authors_has_a_rate_in_proportion(name, batch, peak):
    large, small = (protocol_recipe(name, data) for data in ("imagenet2012", "photographs"))
    assert (large.batch_size, small.batch_size) == (batch, 256)
    assert large.peak_learning_rate == pytest.approx(peak)
    assert small.peak_learning_rate == pytest.approx(peak * 256 / batch)


def test_vtab_tasks_are_those_that_can_be_loaded():
    vtab = pytest.importorskip("keras_vit.data.vtab")
    assert set(vtab.VTAB_TASKS) == set(VTAB_TASKS)
    assert len(VTAB_TASKS) == 19


def test_another_image_size_keeps_the_proportion_of_the_crop():
    recipe = protocol_recipe("vit", "cifar10", image_size=192)
    assert values(recipe, "image_size", "resize_size") == (192, 224)
    recipe = protocol_recipe("deit", "cifar10", image_size=192)
    assert values(recipe, "image_size", "resize_size") == (192, None)


def test_mae_evaluates_the_whole_image_above_224_px():
    fractions = [
        protocol_recipe("mae", "cifar10", image_size=size).evaluation_crop_fraction
        for size in (None, 192, 224, 240, 384)
    ]
    assert fractions == [0.875, 0.875, 0.875, 1.0, 1.0]


def test_the_epsilon_is_that_of_the_authors_optimizers():
    for name in ("deit", "deit3", "deit3_in21k", "mae"):
        assert protocol_recipe(name, "imagenet2012").optimizer_options == {"epsilon": 1e-8}


def test_a_folder_gets_the_general_values_and_its_own_name():
    recipe = protocol_recipe("augreg", "photographs/My flowers", budget="quick")
    assert values(recipe, "name", "data") == ("My-flowers-augreg-quick", "photographs/My flowers")
    assert recipe.steps == 100
    assert protocol_recipe("vit", "lists/birds.csv").name == "birds-vit"
    general = protocol_recipe("vit", "lists/birds.csv")
    assert dataclasses.replace(general, name="finetune", data="digits") == PROTOCOLS["vit"].recipe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vitt", "cifar10", {}), "vitt.*Did you mean vit"),
        (("vit", "vtab/eurosta", {}), "eurosta.*Did you mean eurosat"),
        (("vit", "cifar10", {"budget": "fast"}), "quick, standard, full.*fast"),
        (("vit", "cifar10", {"model": "vit_b61"}), "vit_b61.*Did you mean.*vit_b16"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(arguments, message):
    protocol, data, options = arguments
    with pytest.raises(ValueError, match=message):
        protocol_recipe(protocol, data, **options)


def test_find_protocol_lists_all():
    with pytest.raises(ValueError, match="transfer, vit, augreg, deit, deit3.*mae, big_vision"):
        find_protocol("resnet")


def shipped_recipes():
    """The values of recipes/*.py by file and name; a table of recipes counts with its first."""
    found = {}
    for path in RECIPES:
        module = load_script(path)
        for name, value in vars(module).items():
            if isinstance(value, dict):
                value = next((v for v in value.values() if isinstance(v, Recipe)), None)
            if isinstance(value, Recipe):
                found[f"{path.stem}.{name}"] = (module, value)
    return found


SHIPPED = shipped_recipes()


def test_every_benchmark_is_shipped():
    files = {name.partition(".")[0] for name in SHIPPED}
    assert {*DATA_SETS[:5], "vtab", "cifar10_from_scratch", "digits"} <= files
    for path in RECIPES:
        head = path.read_text(encoding="utf-8").split('"""')[1]
        for part in ("Command:", "Hardware:", "Published:", "Measured"):
            assert part in head, (path, part)


def test_the_page_of_the_recipes_is_up_to_date():
    module = load_script(REPOSITORY / "docs" / "make_recipes.py")
    page = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == module.page(), "docs/recipes.md is out of date: run `make recipes`"
    for protocol in PROTOCOLS.values():
        assert f"`{protocol.name}`" in page
        assert all(entry.source in page for entry in protocol.published)


def test_the_vit_from_scratch_has_at_most_10_million_parameters():
    architecture = SHIPPED["cifar10_from_scratch.RECIPE"][0].ARCHITECTURE
    assert (architecture.patch_size, architecture.image_size) == ((4, 4), (32, 32))
    assert count_parameters(dataclasses.replace(architecture, num_classes=10)) <= 10e6


def generated_source(classes=4, each=8, size=20):
    random = np.random.default_rng(0)

    def image_set():
        labels = np.repeat(np.arange(classes, dtype=np.int32), each)
        images = random.integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
        names = tuple(f"class {index}" for index in range(classes))
        return ImageSet(images, labels, names)

    return DataSource(
        name="generated",
        version="",
        digest="0",
        train=image_set(),
        validation=None,
        test=image_set(),
    )


def two_steps(recipe, folder):
    """The recipe on tiny images: all its options but the sizes, for two steps."""
    schedule = (
        {"steps": 2, "warmup_steps": min(recipe.warmup_steps, 1)}
        if recipe.epochs is None
        else {"epochs": 1, "warmup_epochs": 0.5}
    )
    return dataclasses.replace(
        recipe,
        **schedule,
        name="two-steps",
        model=None,
        image_size=16,
        resize_size=18 if recipe.resize_size else None,
        train_images=None,
        test_images=None,
        validation_fraction=0.0,
        batch_size=16,
        micro_batch_size=8,
        precision="float32",
        evaluate_every=0,
        checkpoint_every=0,
        log_every=1,
        output=str(folder),
        report=False,
    )


def check_two_steps(recipe, folder):
    result = run(two_steps(recipe, folder), source=generated_source(), architecture=TINY)
    assert result.steps == 2
    with open(folder / "two-steps" / "log.csv", encoding="utf-8", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert result.test.count == 32


@pytest.mark.slow
@pytest.mark.parametrize("data", ["cifar10", "imagenet2012", "vtab/dsprites_location"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_trains_for_two_steps(name, data, tmp_path):
    check_two_steps(protocol_recipe(name, data), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_trains_for_two_steps(name, tmp_path):
    check_two_steps(SHIPPED[name][1], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA_SETS)
def test_every_named_data_set_trains_for_two_steps(data, tmp_path):
    recipe = protocol_recipe("vit", data)
    recipe = dataclasses.replace(
        two_steps(recipe, tmp_path),
        # The size that the recipe trains at, of images as the data set has them.
        image_size=recipe.image_size,
        resize_size=recipe.resize_size,
        validation_fraction=0.0,
        batch_size=8,
        micro_batch_size=8,
        test_images=8,
    )
    with mocked_data(num_examples=64), warnings.catch_warnings():
        # So few images do not show every class.
        warnings.simplefilter("ignore", UserWarning)
        source = load_data(data, cache_dir=tmp_path / "cache")
    coarse = dataclasses.replace(TINY, patch_size=32, image_size=recipe.image_size)
    result = run(recipe, source=source, architecture=coarse)
    assert (result.steps, result.test.count) == (2, 8)
    assert result.configuration["data"]["classes"] == len(source.class_names)
