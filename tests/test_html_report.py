"""The report of a run: what its numbers are, what its page shows, what it copes with."""

import dataclasses
import html
import json
import re
import sys

import numpy as np
import pytest
from chromium import chromium, open_page
from made_up_runs import some_images, some_outputs, some_result, write_log
from parameters import slow_except
from PIL import Image

from keras_vit import cli, finetune
from keras_vit.data import ImageSet
from keras_vit.finetune import Recipe
from keras_vit.finetune.html_report import write_report
from keras_vit.finetune.metrics import (
    calibration,
    class_accuracies,
    confusion_matrix,
    mcnemar_p_value,
    most_confused,
)
from keras_vit.finetune.predictions import make_predictions, read_predictions, write_predictions
from keras_vit.finetune.recipe import recipe_fields
from keras_vit.finetune.repetition import repeat_command
from keras_vit.finetune.report import peak_memory, read_result, write_result
from keras_vit.models import VisionTransformerConfig, vision_transformer

ARCHITECTURE = VisionTransformerConfig(
    patch_size=4, hidden_size=16, depth=2, mlp_dim=32, num_heads=2, image_size=8
)


@pytest.fixture(scope="module")
def browser():
    with chromium() as session:
        yield session


@pytest.fixture(scope="module")
def model():
    return vision_transformer(ARCHITECTURE)


def text_of(path):
    """What a person reads on a page."""
    page = path.read_text(encoding="utf-8")
    page = re.sub(r"<(style|script|svg).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_the_page_is_whole_in_a_browser(tmp_path, browser, model):
    images = some_images(60, 5)
    outputs = some_outputs(images, strength=1.0)
    write_log(tmp_path)
    path = write_report(
        tmp_path,
        model=model,
        result=some_result(images, outputs),
        image_set=images,
        outputs=outputs,
        train_set=some_images(1200, 5),
        weights_table="block_0 … trained",
    )
    assert path == tmp_path / "report.html"
    open_page(browser, path)
    assert len(browser.find_elements("css selector", "#mistakes ~ .pictures img")) == 12 + 2 * 8
    assert len(browser.find_elements("css selector", "svg")) == 6
    figures = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert figures == [
        "accuracy.png",
        "calibration.png",
        "confusion_matrix.png",
        "learning_rate.png",
        "loss.png",
        "throughput.png",
    ]
    for name in figures:
        assert min(Image.open(tmp_path / "figures" / name).size) > 400


def test_a_click_sorts_the_classes_and_colours_follow_the_system(tmp_path, browser):
    images = some_images(60, 5)
    outputs = some_outputs(images, strength=1.0)
    result = some_result(images, outputs)
    path = write_report(tmp_path, model=None, result=result, image_set=images, outputs=outputs)
    open_page(browser, path)
    cells = "return [...document.querySelectorAll('.sortable tbody tr')].map(r => r.cells[{}].%s)"
    accuracy = (cells % "dataset.value").format(3)
    unsorted = [float(value) for value in browser.execute_script(accuracy)]
    assert unsorted == sorted(unsorted)
    heads = browser.find_elements("css selector", ".sortable thead button")
    heads[0].click()
    names = (cells % "textContent").format(0)
    assert browser.execute_script(names) == [f"class {index}" for index in range(5)]
    heads[0].click()
    assert browser.execute_script(names) == [f"class {index}" for index in (4, 3, 2, 1, 0)]
    backgrounds = set()
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colour = "return getComputedStyle(document.body).backgroundColor"
        backgrounds.add(browser.execute_script(colour))
    assert len(backgrounds) == 2


def test_names_cannot_become_code(tmp_path, browser):
    names = (
        "<script>window.taken=1</script>",
        "<img src=x onerror=window.taken=1>",
        '"><b>',
        "$\\frac{$",
        "猫\nand\tdog",
        "bytes \udcff",
        "-- --> ]]>",
    )
    images = some_images(70, len(names))
    images = dataclasses.replace(images, class_names=names)
    outputs = some_outputs(images, strength=1.0)
    result = some_result(images, outputs)
    result = dataclasses.replace(result, name="a <b>bold</b> run")
    write_log(tmp_path)
    table = "</pre><script>window.taken=1</script>"
    path = write_report(
        tmp_path,
        model=None,
        result=result,
        image_set=images,
        outputs=outputs,
        weights_table=table,
    )
    open_page(browser, path)
    assert browser.execute_script("return window.taken") is None
    assert browser.find_element("css selector", "h1").text == "a <b>bold</b> run"
    assert browser.find_element("css selector", "pre").text == table
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.sortable tbody th')].map(h => h.textContent)"
    )
    assert {*names[:5], names[6]} <= set(shown)


SIZES = {
    "two classes": (2, 30, 1.0),
    "a thousand classes": (1000, 60, 9.0),
    "just too many": (31, 400, 2.0),
    "one image": (3, 1, 0.0),
    "no mistakes": (4, 20, 100.0),
}


@pytest.mark.parametrize("name", slow_except(SIZES, fast=["a thousand classes", "no mistakes"]))
def test_sizes(tmp_path, browser, name):
    classes, count, strength = SIZES[name]
    images = some_images(count, classes)
    outputs = some_outputs(images, strength=strength)
    result = some_result(images, outputs, validation=False)
    path = write_report(tmp_path, model=None, result=result, image_set=images, outputs=outputs)
    open_page(browser, path)
    rows = browser.find_elements("css selector", ".sortable tbody tr")
    assert len(rows) == classes
    page = text_of(path)
    assert "There are no rows in log.csv." in page
    assert "no images held out" in page
    if strength == 100.0:
        assert "No image was taken for another class." in page
        assert "There are none." in page


def test_without_test_images_it_shows_the_validation_split(tmp_path):
    images = some_images(30, 3)
    outputs = some_outputs(images, strength=1.0)
    result = some_result(images, outputs, test=False)
    path = write_report(
        tmp_path, model=None, result=result, image_set=images, outputs=outputs, split="validation"
    )
    share = (outputs.argmax(1) == images.labels).mean()
    assert f"Validation accuracy {share:.2%}" in text_of(path)
    assert "Test accuracy" not in text_of(path)
    # Nor is the test's accuracy that of the images shown.
    path = write_report(
        tmp_path / "new" / "folder",
        model=None,
        result=some_result(images, some_outputs(images, strength=100.0)),
        image_set=images,
        outputs=outputs,
        split="validation",
    )
    assert f"Validation accuracy {share:.2%}" in text_of(path)
    path = write_report(tmp_path, model=None, result=result)
    assert "Validation accuracy 72.50%" in text_of(path)
    assert "Confusion" not in text_of(path)


@pytest.mark.slow
def test_outputs_that_are_not_finite_are_counted_as_wrong(tmp_path, browser):
    images = some_images(20, 4)
    outputs = some_outputs(images, strength=20.0)
    outputs[0] = np.nan
    outputs[1, 2] = np.nan  # of the right class, 1, is a number
    outputs[2, 2] = np.inf  # the right class
    outputs[3, 0] = -np.inf
    predictions = make_predictions(images, outputs)
    assert predictions.predicted[:4].tolist() == [-1, -1, 2, 3]
    assert predictions.correct.sum() == 18
    assert predictions.confidence[2] == 1.0
    assert np.isnan(predictions.confidence[:2]).all()
    assert confusion_matrix(predictions).sum() == 18
    assert class_accuracies(predictions)[0].accuracy == 0.8
    result = some_result(images, outputs)
    path = write_report(tmp_path, model=None, result=result, image_set=images, outputs=outputs)
    open_page(browser, path)
    assert "For 2 images an output was not a number" in text_of(path)
    rows = read_predictions(tmp_path / "predictions.csv")
    assert [row["predicted"] for row in rows[:3]] == ["", "", "class 2"]
    outputs[:] = np.nan
    path = write_report(tmp_path, model=None, result=result, image_set=images, outputs=outputs)
    open_page(browser, path)


@pytest.mark.slow
def test_files_of_any_size(tmp_path, browser, model):
    paths = []
    for index, size in enumerate([(1, 300), (700, 20), (8, 8), (640, 480)]):
        paths.append(tmp_path / f"picture {index}.png")
        Image.effect_noise(size, 60).convert("RGB").save(paths[-1])
    images = ImageSet(tuple(paths), np.array([0, 1, 0, 1], "int32"), ("cat", "dog"))
    outputs = np.array([[0, 1], [1, 0], [0, 2], [0, 1]], "float32")
    result = some_result(images, outputs)
    path = write_report(tmp_path, model=model, result=result, image_set=images, outputs=outputs)
    open_page(browser, path)
    sizes = browser.execute_script(
        "return [...document.images].map(i => [i.naturalWidth, i.naturalHeight])"
    )
    assert max(max(size) for size in sizes) <= 224
    assert [224, 224] in sizes  # 8 x 8, each pixel 28 times
    assert "cat → dog 88.1%" in text_of(path)
    assert "picture 2.png" in text_of(path)
    rows = read_predictions(tmp_path / "predictions.csv")
    assert [row["image"] for row in rows] == [str(path) for path in paths]


def test_classes_of_one_name_are_counted_apart(tmp_path):
    names = ("crane", "crane", "dog")
    images = dataclasses.replace(some_images(9, 3), class_names=names)
    trained_on = np.array([0] * 5 + [1] * 2 + [2], "int32")
    train_set = ImageSet(np.zeros((8, 4, 4, 3), "uint8"), trained_on, names)
    outputs = some_outputs(images, strength=100.0)
    path = write_report(
        tmp_path,
        model=None,
        result=some_result(images, outputs),
        image_set=images,
        outputs=outputs,
        train_set=train_set,
    )
    # Trained on, test images, right.
    classes = text_of(path).split("Accuracy of each class")[1]
    assert re.findall(r"(crane|dog) (\d) 3 3", classes) == [
        ("crane", "5"),
        ("crane", "2"),
        ("dog", "1"),
    ]


def test_the_surest_mistakes_come_first(tmp_path):
    images = some_images(90, 3)
    outputs = some_outputs(images, strength=0.0)
    result = some_result(images, outputs)
    path = write_report(tmp_path, model=None, result=result, image_set=images, outputs=outputs)
    rows = read_predictions(tmp_path / "predictions.csv")
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    wrong.sort(key=lambda row: -float(row["confidence"]))
    section = text_of(path).split("Most confident mistakes")[1].split("Where it looks")[0]
    shown = re.findall(r"(class \d) → (class \d) ([\d.]+%) image (\d+)", section)
    assert shown == [
        (row["label"], row["predicted"], f"{float(row['confidence']):.1%}", row["image"])
        for row in wrong[:12]
    ]


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ((95, 5), "0 1 0 1 0 1 0 1"),
        ((5, 0, 1, 95), "0 2 3 0 3 0 3 0"),
        ((1, 1), "0 1"),
        ((2,) * 40, "2 7 12 17 22 27 32 37"),
    ],
)
def test_rollout_is_drawn_of_as_many_classes_as_fit(tmp_path, counts, shown):
    labels = np.repeat(np.arange(len(counts)), counts).astype("int32")
    names = tuple(f"class {index}" for index in range(len(counts)))
    images = ImageSet(some_images(len(labels), 1).images, labels, names)
    outputs = some_outputs(images, strength=100.0)
    path = write_report(
        tmp_path,
        model=vision_transformer(dataclasses.replace(ARCHITECTURE, num_classes=len(counts))),
        result=some_result(images, outputs),
        image_set=images,
        outputs=outputs,
    )
    looks = text_of(path).split("Where it looks")[1]
    assert re.findall(r"class (\d+) 100.0%", looks) == shown.split()


def test_rollout_is_left_out_where_it_means_nothing(tmp_path):
    import keras

    images = some_images(10, 2)
    outputs = some_outputs(images)
    inputs = keras.Input((8, 8, 3))
    plain = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    path = write_report(
        tmp_path,
        model=plain,
        result=some_result(images, outputs),
        image_set=images,
        outputs=outputs,
    )
    assert "Not drawn: " in text_of(path)


def test_outputs_must_fit_the_images(tmp_path):
    images = some_images(10, 2)
    with pytest.raises(ValueError, match=r"\(10, 2\).*\(9, 2\)"):
        write_report(
            tmp_path,
            model=None,
            result=some_result(images, some_outputs(images)),
            image_set=images,
            outputs=some_outputs(images)[1:],
        )


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_the_extra_is_named_and_the_answers_are_kept(tmp_path, monkeypatch, package):
    images = some_images(10, 2)
    outputs = some_outputs(images)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"keras-vit\[recipes\]"):
        write_report(
            tmp_path,
            model=None,
            result=some_result(images, outputs),
            image_set=images,
            outputs=outputs,
        )
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.csv"]


def test_the_configuration_shows_what_differs_first(tmp_path):
    images = some_images(10, 2)
    outputs = some_outputs(images)
    recipe = Recipe(name="mine", learning_rate=0.007, batch_size=64, export=True)
    result = some_result(images, outputs, recipe=recipe)
    page = text_of(write_report(tmp_path, model=None, result=result))
    changed, everything = page.split(f"All {len(recipe_fields(recipe))} options")
    assert "learning_rate 0.007 0.03" in changed
    assert "export yes no" in changed
    assert "momentum" not in changed
    assert "momentum 0.9" in everything
    assert "d1635f" in page
    assert "--name mine \\ --batch-size 64 \\ --learning-rate 0.007 \\ --export" in page


def test_no_command_repeats_a_run_that_was_changed_on_the_way(tmp_path):
    images = some_images(10, 2)
    result = some_result(images, some_outputs(images))
    steady = text_of(write_report(tmp_path, model=None, result=result))
    assert "to the last bit" in steady and "no single command" not in steady
    options = ["learning_rate: 0.001, there 0.1", "dropout: 0.1, there 0.0"]
    changes = [{"after_step": 60, "options": options}]
    changed = {**result.configuration, "changes": changes}
    result = dataclasses.replace(result, configuration=changed)
    page = text_of(write_report(tmp_path, model=None, result=result))
    assert f"after step 60: {'; '.join(options)}" in page
    assert "no single command repeats it" in page and "to the last bit" not in page


def test_of_the_best_evaluation_it_is_said_which_step_it_was(tmp_path):
    images = some_images(10, 2)
    for keep, best_step in (("best", 300), ("best", None), ("last", 300)):
        recipe = Recipe(keep=keep, evaluate_every=100)
        result = some_result(images, some_outputs(images), recipe=recipe)
        result = dataclasses.replace(result, best_step=best_step)
        page = text_of(write_report(tmp_path, model=None, result=result))
        for text in (page, str(result)):
            said = "of step 300, the best of all evaluations" in text
            assert said == (keep == "best" and best_step is not None)


@pytest.mark.parametrize(
    ("given", "name", "is_own"),
    [
        ("cifar100", "cifar10", True),
        ("cifar10", "c", True),
        ("cifar10", "cifar10", False),
        ("cifar10:3.0.2", "cifar10", False),
        ("vtab/dmlab", "vtab-dmlab", False),
        ("imagenet_v2", "imagenet_v2/matched-frequency", False),
        ("absent/pets", "pets", False),
        ("absent/pets.csv", "pets", False),
    ],
)
def test_a_data_set_of_its_own_has_not_the_name_that_was_given(tmp_path, given, name, is_own):
    images = some_images(10, 2)
    result = some_result(images, some_outputs(images), recipe=Recipe(data=given))
    data = {**result.configuration["data"], "name": name}
    result = dataclasses.replace(result, configuration={**result.configuration, "data": data})
    page = text_of(write_report(tmp_path, model=None, result=result))
    assert ("from Python with a data set of its own" in page) == is_own


RECIPES = (
    Recipe(),
    Recipe(name="-x", data="a folder", weights="it's here.npz", seed=3, steps=60),
    Recipe(train_images=100, horizontal_flip=False, export=True, optimizer="adamw", dropout=0.1),
    Recipe(learning_rate=3e-05, clip_norm=0.0, resize_size=256, micro_batch_size=8, batch_size=64),
    Recipe(adapt="lora", lora_rank=4, optimizer="adamw", optimizer_options={"beta_2": 0.95}),
    Recipe(trainable_rules=((r"head/(kernel|bias)", True), (".*", False))),
    Recipe(optimizer="adamw", optimizer_options={"amsgrad": True, "beta_2": 0.95}),
    Recipe(
        optimizer="lion",
        layer_decay=0.75,
        weight_decay=0.05,
        weight_decay_rules=((".*/kernel", 1.0), (".*", 0.0)),
        optimizer_options={"beta_1": 0.9, "beta_2": 0.98},
    ),
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_line_says_the_same_recipe(monkeypatch, recipe):
    found = []
    monkeypatch.setattr(finetune, "run", found.append)
    words = repeat_command(json.loads(json.dumps(recipe_fields(recipe))))
    assert words[0] == "keras-vit"
    assert cli.main(words[1:]) == 0
    assert found == [recipe]


def test_calibration_is_that_of_guo_et_al():
    images = some_images(500, 6)
    outputs = 1.5 * some_outputs(images, strength=1.5)
    logits = outputs.astype("float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected, likelihood, brier = 0.0, 0.0, 0.0
    for low in np.arange(15) / 15:
        inside = [row for row in range(500) if low < probabilities[row].max() <= low + 1 / 15]
        if inside:
            right = np.mean([probabilities[r].argmax() == images.labels[r] for r in inside])
            sure = np.mean([probabilities[r].max() for r in inside])
            expected += len(inside) / 500 * abs(right - sure)
    for row, label in enumerate(images.labels):
        likelihood -= np.log(probabilities[row, label]) / 500
        brier += sum((probabilities[row, c] - (c == label)) ** 2 for c in range(6)) / 500
    found = calibration(make_predictions(images, outputs))
    np.testing.assert_allclose(found.expected_error, expected, rtol=1e-9)
    np.testing.assert_allclose(found.log_loss, likelihood, rtol=1e-9)
    np.testing.assert_allclose(found.brier_score, brier, rtol=1e-9)
    confidence = probabilities.max(1)
    expected_counts, _ = np.histogram(confidence, np.arange(16) / 15)
    assert found.counts.tolist() == expected_counts.tolist()
    assert found.counts[-1] > 0


def test_confusion_and_classes():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2], "int32")
    answers = np.array([0, 1, 1, 1, 1, 0, 2, 1])
    images = ImageSet(np.zeros((8, 4, 4, 3), "uint8"), labels, ("ant", "bee", "cow", "dog"))
    predictions = make_predictions(images, np.eye(4)[answers] * 5)
    assert confusion_matrix(predictions).tolist() == [
        [1, 2, 0, 0],
        [0, 2, 0, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 0],
    ]
    assert confusion_matrix(predictions, groups=2).tolist() == [[5, 0], [2, 1]]
    assert most_confused(predictions, 2) == [(0, 1, 2), (2, 0, 1)]
    rows = class_accuracies(predictions)
    assert [row.name for row in rows] == ["ant", "cow", "bee", "dog"]
    assert (rows[0].correct, rows[0].count, rows[0].mistaken_for) == (1, 3, "bee")
    assert rows[2].mistaken_for is None
    assert rows[3].accuracy is None


@pytest.mark.parametrize("counts", [(0, 0), (3, 3), (1, 9), (40, 60), (900, 1000)])
def test_mcnemar_is_the_binomial_test(counts):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    np.testing.assert_allclose(mcnemar_p_value(*counts), expected, rtol=1e-9)
    assert mcnemar_p_value(*counts[::-1]) == mcnemar_p_value(*counts)


def test_predictions_survive_the_file(tmp_path):
    images = ImageSet(("a,b\n.png", "bytes \udcff.png"), np.array([0, 1], "int32"), ('"x"', "y"))
    path = tmp_path / "predictions.csv"
    write_predictions(path, make_predictions(images, np.log([[3, 1], [3, 1]])))
    first, second = read_predictions(path)
    assert first == {
        "image": "a,b\n.png",
        "label": '"x"',
        "predicted": '"x"',
        "confidence": "0.75",
        "label_probability": "0.75",
    }
    assert second["image"] == "bytes \udcff.png"
    assert second["label_probability"] == "0.25"
    path.write_text("image,label\n1,2\n")
    with pytest.raises(ValueError, match=r"predictions\.csv is damaged"):
        read_predictions(path)
    assert read_predictions(tmp_path / "absent.csv") is None


def test_names_with_a_carriage_return_survive_the_file(tmp_path):
    files = ("a\rb.png", "c\r\nd.png", "e.png")
    images = ImageSet(files, np.array([0, 1, 1], "int32"), ("x\ry", "z"))
    path = tmp_path / "predictions.csv"
    write_predictions(path, make_predictions(images, np.log([[3, 1], [3, 1], [1, 3]])))
    rows = read_predictions(path)
    assert tuple(row["image"] for row in rows) == files
    assert [row["predicted"] for row in rows] == ["x\ry", "x\ry", "z"]


def test_results_of_before_and_of_sweeps_can_be_read(tmp_path):
    images = some_images(10, 2)
    result = some_result(images, some_outputs(images), test=False)
    assert result.peak_memory > 2**20
    write_result(tmp_path / "result.json", result)
    assert read_result(tmp_path / "result.json") == result
    assert "not looked at" in str(result)
    fields = json.loads((tmp_path / "result.json").read_text())
    del fields["peak_memory"]
    (tmp_path / "result.json").write_text(json.dumps(fields))
    assert read_result(tmp_path / "result.json").peak_memory is None


@pytest.mark.parametrize("name", ["test", "validation", "left_out"])
def test_a_result_with_a_number_for_a_part_is_damaged(tmp_path, name):
    images = some_images(10, 2)
    write_result(tmp_path / "result.json", some_result(images, some_outputs(images)))
    fields = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({**fields, name: 5}))
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        read_result(tmp_path / "result.json")


@pytest.mark.skipif(sys.platform != "linux", reason="in other units elsewhere")
def test_peak_memory_is_about_what_the_system_counts():
    import resource

    counted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Only about: the system's figure also covers the program that started this one.
    assert 0.2 * counted < peak_memory() <= 1.01 * counted
