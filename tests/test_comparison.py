"""Runs side by side: their order, the options that differ, and whether the best two differ."""

import dataclasses
import json

import numpy as np
import pytest
from chromium import chromium, open_page
from made_up_runs import some_images, some_outputs, some_result, write_log
from PIL import Image

from keras_vit.finetune import Recipe
from keras_vit.finetune.comparison import compare_runs
from keras_vit.finetune.figures import comparison_curves, plot_style
from keras_vit.finetune.log import read_log
from keras_vit.finetune.predictions import make_predictions, write_predictions
from keras_vit.finetune.report import read_result, write_result


def make_run(
    folder,
    name,
    *,
    strength,
    finished=True,
    validation=None,
    answers=True,
    class_names=None,
    **changes,
):
    """A run's folder; `strength` says how good its model is, `changes` are options."""
    folder = folder / name
    folder.mkdir()
    images = some_images(400, 4)
    images = dataclasses.replace(images, class_names=class_names or images.class_names)
    outputs = some_outputs(images, strength=strength)
    recipe = Recipe(name=name, precision="float32", **changes)
    result = some_result(images, outputs, recipe=recipe, validation=validation is not None)
    if validation is not None:
        result = dataclasses.replace(
            result, validation=dataclasses.replace(result.validation, accuracy=validation)
        )
    (folder / "recipe.json").write_text(json.dumps(result.configuration))
    write_log(folder)
    if finished:
        write_result(folder / "result.json", result)
    if finished and answers:
        write_predictions(folder / "predictions.csv", make_predictions(images, outputs))
    return folder


def table_of(text):
    """The lines of the table, each a dict by column; columns are two spaces apart."""
    lines = text.split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert len({len(line) for line in lines}) == 1
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


def test_best_first_with_the_options_that_differ(tmp_path):
    runs = [
        make_run(tmp_path, "weak", strength=0.5, learning_rate=0.3),
        make_run(tmp_path, "strong", strength=4.0, learning_rate=0.01, dropout=0.1),
        make_run(tmp_path, "middling", strength=1.5, learning_rate=0.03),
    ]
    rows = table_of(compare_runs(runs))
    assert [row["run"] for row in rows] == ["strong", "middling", "weak"]
    assert [row["learning rate"] for row in rows] == ["0.01", "0.03", "0.3"]
    assert [row["dropout"] for row in rows] == ["0.1", "0.0", "0.0"]
    assert list(rows[0])[7:] == ["learning rate", "dropout"]
    assert rows[0]["steps x batch"] == "500 x 512"
    assert rows[0]["minutes"] == "1.5"
    assert rows[0]["images/s"] == "123"
    assert rows[0]["peak memory"].endswith("iB")
    images = some_images(400, 4)
    accuracy = (some_outputs(images, strength=4.0).argmax(1) == images.labels).mean()
    assert rows[0]["test accuracy"].startswith(f"{accuracy:.2%} (")


def test_validation_decides_where_all_runs_have_it(tmp_path):
    runs = [
        make_run(tmp_path, "a", strength=4.0, validation=0.5),
        make_run(tmp_path, "b", strength=0.5, validation=0.9),
        make_run(tmp_path, "c", strength=2.0, finished=False),
    ]
    # An unfinished run has what its log says last: 0.5 + 120 / 300.
    rows = table_of(compare_runs(runs))
    assert [(row["run"], row["validation"]) for row in rows] == [
        ("b", "90.00%"),
        ("c", "90.00%"),
        ("a", "50.00%"),
    ]
    assert rows[1]["steps x batch"] == "120 of 500 x 512"
    assert rows[1]["minutes"] == "unfinished"
    runs.append(make_run(tmp_path, "d", strength=8.0))
    assert table_of(compare_runs(runs))[0]["run"] == "d"


def test_the_steps_that_were_done_are_shown(tmp_path):
    folders = [make_run(tmp_path, name, strength=4.0) for name in ("stopped", "whole")]
    result = read_result(folders[0] / "result.json")
    write_result(folders[0] / "result.json", dataclasses.replace(result, steps=150))
    rows = {row["run"]: row for row in table_of(compare_runs(folders))}
    assert rows["stopped"]["steps x batch"] == "150 of 500 x 512"
    assert rows["stopped"]["minutes"] == "1.5"
    assert rows["whole"]["steps x batch"] == "500 x 512"


def test_the_best_two_differ_where_mcnemar_says_so(tmp_path):
    runs = [
        make_run(tmp_path, "a", strength=4.0),
        make_run(tmp_path, "b", strength=1.0, learning_rate=0.3),
    ]
    images = some_images(400, 4)
    right = [
        some_outputs(images, strength=strength).argmax(1) == images.labels
        for strength in (4.0, 1.0)
    ]
    only_first, only_second = (right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()
    text = compare_runs(runs)
    counts = f"first alone got {only_first} right, the second alone {only_second}."
    assert counts in text
    assert "they differ" in text
    # Two classes of one name are two still.
    cranes = {"class_names": ("crane", "crane", "dog", "cat")}
    alike = [
        make_run(tmp_path, f"{name}2", strength=strength, **cranes)
        for name, strength in (("a", 4.0), ("b", 1.0))
    ]
    assert counts in compare_runs(alike)
    similar = make_run(tmp_path, "c", strength=3.9, learning_rate=0.1)
    assert "no difference is shown" in compare_runs([runs[0], similar])


def test_intervals_decide_without_answers_for_the_same_images(tmp_path):
    first = make_run(tmp_path, "a", strength=4.0)
    far = make_run(tmp_path, "b", strength=0.5, answers=False)
    near = make_run(tmp_path, "c", strength=3.9, answers=False)
    assert "95 % intervals do not overlap, they differ" in compare_runs([first, far])
    assert "95 % intervals overlap, no difference is shown" in compare_runs([first, near])
    # The same file, but it is about other images.
    other = make_run(tmp_path, "d", strength=3.9)
    lines = (other / "predictions.csv").read_text().splitlines()
    (other / "predictions.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    assert "intervals overlap" in compare_runs([first, other])
    # They are of fewer images than the test.
    for run in (first, other):
        (run / "predictions.csv").write_text("\n".join(lines[:-40]) + "\n")
    assert "intervals overlap" in compare_runs([first, other])


def test_other_data_is_said_and_not_compared(tmp_path):
    runs = [make_run(tmp_path, name, strength=2.0) for name in "ab"]
    for file in ("recipe.json", "result.json"):
        text = (runs[1] / file).read_text().replace("d1635f", "f1035e")
        (runs[1] / file).write_text(text.replace('"name": "digits"', '"name": "letters"'))
    text = compare_runs(runs)
    assert "different data" in text
    assert "McNemar" not in text
    assert {row["data"] for row in table_of(text)} == {"digits", "letters"}


def test_of_a_sweep_the_final_run_is_compared(tmp_path, capsys):
    single = make_run(tmp_path, "single", strength=2.0)
    (tmp_path / "sweep").mkdir()
    make_run(tmp_path / "sweep", "lr-0.1", strength=3.0)
    make_run(tmp_path / "sweep", "final-lr-0.1", strength=4.0)
    (tmp_path / "sweep/sweep.json").write_text('{"runs": [], "final": "final-lr-0.1"}')
    rows = table_of(compare_runs([single, tmp_path / "sweep"]))
    assert {row["run"] for row in rows} == {"single", "final-lr-0.1"}
    (tmp_path / "sweep/sweep.json").write_text('{"runs": [], "final": null}')
    assert len(table_of(compare_runs([single, tmp_path / "sweep"]))) == 1
    assert "it is a sweep that is not finished, whose runs are" in capsys.readouterr().out
    (tmp_path / "sweep/sweep.json").write_text("{")
    with pytest.raises(ValueError, match=r"sweep\.json is damaged"):
        compare_runs([single, tmp_path / "sweep"])


def test_runs_that_hold_out_other_images_are_said_to(tmp_path):
    runs = [
        make_run(tmp_path, name, strength=2.0, validation=0.8, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert "not the same ones" not in compare_runs(runs[:2])
    assert "The runs differ in seed: where their validation images" in compare_runs(runs)
    fewer = make_run(tmp_path, "d", strength=2.0, validation=0.8, validation_fraction=0.2)
    assert "The runs differ in validation fraction:" in compare_runs([runs[0], fewer])
    tested = [make_run(tmp_path, f"t{seed}", strength=2.0, seed=seed) for seed in (0, 1)]
    assert "not the same ones" not in compare_runs(tested)


def test_runs_that_were_changed_on_the_way_are_named(tmp_path):
    runs = [make_run(tmp_path, name, strength=2.0) for name in ("steady", "changed")]
    assert "on the way" not in compare_runs(runs)
    configuration = json.loads((runs[1] / "recipe.json").read_text())
    configuration["changes"] = [{"after_step": 60, "options": ["steps: 500, there 60"]}]
    (runs[1] / "recipe.json").write_text(json.dumps(configuration))
    assert "Options were changed on the way in changed:" in compare_runs(runs)


def test_options_of_older_runs_have_their_defaults(tmp_path):
    runs = [make_run(tmp_path, name, strength=2.0) for name in "ab"]
    configuration = json.loads((runs[0] / "recipe.json").read_text())
    del configuration["recipe"]["momentum"]
    (runs[0] / "recipe.json").write_text(json.dumps(configuration))
    assert "momentum" not in compare_runs(runs)


def test_what_is_no_run_is_left_out_and_what_is_damaged_is_named(tmp_path, capsys):
    run = make_run(tmp_path, "a", strength=2.0)
    (tmp_path / "empty").mkdir()
    text = compare_runs([tmp_path / "empty", tmp_path / "absent", run, run])
    assert len(table_of(text)) == 1
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'empty'} is no run: it holds no recipe.json" in printed
    assert f"{tmp_path / 'absent'} is no run: it is no folder" in printed
    with pytest.raises(ValueError, match="no runs to compare"):
        compare_runs([tmp_path / "empty"])
    for name in ("result.json", "recipe.json"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            compare_runs([run])
        (run / name).write_bytes(whole)
    (run / "log.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"log\.csv is damaged"):
        compare_runs([run])


def test_a_click_sorts_by_numbers_and_what_is_unknown_comes_last(tmp_path):
    columns = {
        "minutes": (9.0, 80.0, 1200.0),
        "images_per_second": (98.0, 999.0, 1234.0),
        "peak_memory": (96 * 2**20, 980 * 2**20, 6 * 2**28),
        "steps": (60, 400, 1500),
    }
    runs = []
    for index, name in enumerate(("little", "some", "much")):
        runs.append(make_run(tmp_path, name, strength=4.0 - index))
        changes = {column: values[index] for column, values in columns.items()}
        result = dataclasses.replace(read_result(runs[-1] / "result.json"), **changes)
        write_result(runs[-1] / "result.json", result)
    runs.append(make_run(tmp_path, "stopped", strength=1.0, finished=False))
    (runs[-1] / "log.csv").unlink()
    compare_runs(reversed(runs), tmp_path)
    with chromium() as browser:
        open_page(browser, tmp_path / "compare.html")
        names = "return [...document.querySelectorAll('tbody th')].map(head => head.textContent)"
        unknown_last = ["little", "some", "much", "stopped"]
        # No step is a number.
        orders = {"steps x batch": ["stopped", "little", "some", "much"]}
        for column in ("minutes", "images/s", "peak memory", "steps x batch"):
            head = browser.find_element("xpath", f"//th/button[text()='{column}']")
            head.click()
            assert browser.execute_script(names) == orders.get(column, unknown_last)
        minutes = browser.find_element("xpath", "//th/button[text()='minutes']")
        minutes.click()
        minutes.click()
        assert browser.execute_script(names) == ["much", "some", "little", "stopped"]


@pytest.mark.parametrize("count", [2, 10])  # More have their legend beside the plot.
def test_a_name_that_begins_with_an_underscore_is_in_the_legends(tmp_path, count):
    write_log(tmp_path)
    rows = read_log(tmp_path / "log.csv")
    runs = {f"_run {index}": rows for index in range(count)}
    with plot_style():
        figure = comparison_curves(runs)["loss"]
    (legend,) = figure.legends or (figure.axes[0].get_legend(),)
    shown = [text.get_text().strip("\u200b") for text in legend.get_texts()]
    assert shown == list(runs)


def test_the_page(tmp_path):
    runs = [
        make_run(tmp_path, f"run {index}", strength=1.0 + index, learning_rate=0.01 + index)
        for index in range(10)
    ]
    runs.append(make_run(tmp_path, "stopped", strength=1.0, finished=False))
    text = compare_runs(runs, tmp_path / "out")
    path = tmp_path / "out" / "compare.html"
    assert text.endswith(f"written to {path}")
    figures = sorted((tmp_path / "out" / "figures").iterdir())
    assert [file.name for file in figures] == [
        "compare_accuracy.png",
        "compare_loss.png",
        "compare_validation_accuracy.png",
    ]
    assert all(np.asarray(Image.open(file)).std() > 5 for file in figures)
    with chromium() as browser:
        open_page(browser, path)
        assert len(browser.find_elements("css selector", "svg")) == 3
        heads = browser.find_elements("css selector", "thead button")
        heads[1].click()
        first = browser.find_element("css selector", "tbody th").text
        assert first == "run 0"
