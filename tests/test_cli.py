"""The command line: what it prints, and how it ends."""

import dataclasses
import io
import json
import shutil
import socket
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from random_checkpoints import write_timm, write_transformers

from keras_vit import zoo
from keras_vit.cli import COMMANDS, main
from keras_vit.data import imagenet_class_names, load_data
from keras_vit.finetune import Recipe, run_command_line
from keras_vit.finetune.folder import describe_run
from keras_vit.models import VisionTransformerConfig, vision_transformer

CLASS_NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")

exports_saved_models = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="a SavedModel is exported on the TensorFlow backend",
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A folder as a run leaves it: a model whose answers differ from image to image."""
    keras.utils.set_random_seed(1)
    config = VisionTransformerConfig(
        patch_size=4,
        hidden_size=16,
        depth=1,
        mlp_dim=32,
        num_heads=2,
        num_classes=len(CLASS_NAMES),
        image_size=8,
    )
    model = vision_transformer(config)
    head = model.get_layer("head")
    head.kernel.assign(5 * np.random.default_rng(1).standard_normal(head.kernel.shape))
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    model.save(folder / "model.keras")
    (folder / "class_names.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Image files of the model's own size, so that preparing them changes nothing."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), "uint8")
    files = [folder / f"{index}.png" for index in range(len(pixels))]
    for image, file in zip(pixels, files, strict=True):
        Image.fromarray(image).save(file)
    return files


def pixels_of(files):
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype("float32")


def answers(run_folder, files):
    model = keras.saving.load_model(run_folder / "model.keras")
    return np.asarray(model(pixels_of(files)))


def error_of(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.startswith("keras-vit: ")
    return captured.err


def printed_by(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_list_names_every_model(capsys):
    lines = printed_by(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines[1:]] == zoo.list_models()


def test_list_takes_a_pattern(capsys):
    lines = printed_by(capsys, "list", "vit_b16*").splitlines()
    assert [line.split() for line in lines[1:]] == [["vit_b16", "16", "768", "12", "3072", "12"]]


def test_list_names_the_nearest_model(capsys):
    assert "Did you mean vit_b16" in error_of(capsys, "list", "vit_b61")


def test_inspect_prints_format_and_architecture(capsys, run_folder):
    printed = printed_by(capsys, "inspect", run_folder / "model.keras")
    assert "keras" in printed
    assert "hidden_size" in printed
    assert "patch_encoder" in printed


def test_inspect_names_a_missing_file(capsys, tmp_path):
    assert "absent.npz" in error_of(capsys, "inspect", tmp_path / "absent.npz")


def test_predict_prints_five_classes_by_probability(capsys, run_folder, images):
    printed = printed_by(capsys, "predict", "--model", run_folder, *images[:2])
    logits = answers(run_folder, images[:2])
    expected = []
    for file, row in zip(images[:2], logits, strict=True):
        shares = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        best = np.argsort(-shares)[:5]
        expected.append(str(file))
        expected += [f"{shares[index]:.2%} {CLASS_NAMES[index]}" for index in best]
    assert [" ".join(line.split()) for line in printed.splitlines()] == expected


@pytest.mark.skipif(sys.platform != "linux", reason="file names are no bytes elsewhere")
def test_a_file_name_that_is_no_utf_8_is_printed(monkeypatch, run_folder, images, tmp_path):
    file = tmp_path / "odd \udcff.png"
    file.write_bytes(images[0].read_bytes())
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8"))
    assert main(["predict", str(file), "--model", str(run_folder)]) == 0
    sys.stdout.flush()
    assert printed.getvalue().splitlines()[0].endswith(rb"odd \udcff.png")
    # The command lines of the recipes.
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8"))
    with pytest.raises(SystemExit):
        run_command_line(Recipe(), ["--help"])
    print(file)


def test_predict_takes_a_keras_file_and_finds_the_class_names_beside_it(capsys, run_folder, images):
    from_folder = printed_by(capsys, "predict", images[0], "--model", run_folder)
    from_file = printed_by(capsys, "predict", images[0], "--model", run_folder / "model.keras")
    assert from_folder == from_file


def test_predict_without_class_names_prints_indices(capsys, run_folder, images, tmp_path):
    file = tmp_path / "model.keras"
    file.write_bytes((run_folder / "model.keras").read_bytes())
    printed = printed_by(capsys, "predict", images[0], "--model", file)
    best = int(answers(run_folder, images[:1])[0].argmax())
    assert printed.splitlines()[1].split()[1] == str(best)


def test_what_tells_no_classes_is_refused(capsys, images, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 12}
    sizes |= {"intermediate_size": 32, "patch_size": 4, "model_type": "clip_vision_model"}
    config = {"model_type": "clip", "vision_config": sizes}
    options = {"prefix": "vision_model.", "pre_norm": True, "head_bias": False}
    write_transformers(tmp_path / "clip", "clip", config, **options)
    # The projection into the space of the texts.
    assert zoo.from_checkpoint(tmp_path / "clip").output_shape == (None, 5)
    write_timm(tmp_path / "headless", classes=None)
    for folder in (tmp_path / "clip", tmp_path / "headless"):
        message = error_of(capsys, "predict", images[0], "--model", folder)
        assert f"{folder} has no classification head" in message


def test_predict_names_a_file_that_is_no_image(capsys, run_folder, tmp_path):
    file = tmp_path / "notes.jpg"
    file.write_text("no image")
    assert "notes.jpg" in error_of(capsys, "predict", file, "--model", run_folder)


def saved_model(path, **fields):
    sizes = {"patch_size": 4, "hidden_size": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2}
    vision_transformer(VisionTransformerConfig(**sizes, image_size=8, **fields)).save(path)
    return path


def test_predict_shows_what_a_sigmoid_says_of_each_class(capsys, images, tmp_path):
    file = saved_model(tmp_path / "s.keras", num_classes=3, classifier_activation="sigmoid")
    printed = printed_by(capsys, "predict", images[0], "--model", file)
    # The head is zero.
    assert printed.count("50.00%") == 3


def test_a_model_of_one_output_has_no_probabilities(capsys, images, tmp_path):
    file = saved_model(tmp_path / "binary.keras", num_classes=1)
    for command in (["predict", images[0]], ["export", "--output", tmp_path / "exported"]):
        assert "with two classes" in error_of(capsys, *command, "--model", file)


def test_predict_needs_an_image(capsys, run_folder):
    assert "one image" in error_of(capsys, "predict", "--model", run_folder)


def test_class_names_must_fit_the_model(capsys, run_folder, images, tmp_path):
    (tmp_path / "model.keras").write_bytes((run_folder / "model.keras").read_bytes())
    (tmp_path / "class_names.txt").write_text("ant\nbee\n")
    error = error_of(capsys, "predict", images[0], "--model", tmp_path)
    assert "class_names.txt" in error
    assert "6 lines" in error


def write_manifest(folder, files, labels):
    """A manifest and, beside it, the images that it lists."""
    manifest = folder / "labels.csv"
    for file in files:
        shutil.copy(file, folder)
    rows = [f"{file.name},{label}" for file, label in zip(files, labels, strict=True)]
    manifest.write_text("\n".join(["file,label", *rows]) + "\n")
    return manifest


def percentages(printed):
    lines = dict(line.split(maxsplit=1) for line in printed.splitlines() if " " in line)
    return lines["top-1"].split()[0], lines["top-5"].split()[0], lines["images"].split()[0]


@pytest.mark.parametrize("by_name", [True, False])
def test_evaluate_matches_classes_by_name_or_index(capsys, run_folder, images, tmp_path, by_name):
    order = np.argsort(-answers(run_folder, images), axis=1)
    # Nine right, two second best, one last.
    labels = [*order[:9, 0], *order[9:11, 1], order[11, -1]]
    given = [CLASS_NAMES[label] if by_name else int(label) for label in labels]
    manifest = write_manifest(tmp_path, images, given)
    printed = printed_by(capsys, "evaluate", run_folder, "--data", manifest, "--batch-size", "5")
    assert percentages(printed) == ("75.00%", "91.67%", "12")
    assert "46.77% to 91.11%" in printed


def test_evaluate_names_a_class_the_model_does_not_know(capsys, run_folder, images, tmp_path):
    labels = ["ant", "bee", "dgo"] * 4
    manifest = write_manifest(tmp_path, images, labels)
    error = error_of(capsys, "evaluate", run_folder, "--data", manifest)
    assert "'dgo'" in error
    assert "Known: ant, bee, cat, dog" in error


def test_evaluate_refuses_a_data_set_with_other_classes(capsys, run_folder):
    error = error_of(capsys, "evaluate", run_folder, "--data", "digits")
    assert "other classes" in error and "10 instead of 6" in error
    assert "'0', '1', '2'" in error


def test_evaluate_names_the_splits_there_are(capsys, run_folder, images, tmp_path):
    manifest = write_manifest(tmp_path, images, ["ant", "bee"] * 6)
    error = error_of(capsys, "evaluate", run_folder, "--data", manifest, "--split", "validation")
    assert "Expected --split test" in error


def test_evaluate_leaves_out_what_the_run_trained_on(
    capsys, run_folder, images, tmp_path, monkeypatch
):
    manifest = write_manifest(tmp_path, images, [*CLASS_NAMES] * 2)
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    source = load_data(manifest)
    configuration = describe_run(
        Recipe(data=str(manifest), seed=3, validation_fraction=0.0), source
    )
    (folder / "recipe.json").write_text(json.dumps(configuration))
    # The run's folder or its model, the manifest under any path.
    monkeypatch.chdir(tmp_path)
    for model, path in ((folder, manifest), (folder / "model.keras", manifest.name)):
        printed = printed_by(capsys, "evaluate", model, "--data", path)
        assert "divided as the run divided it" in printed
        assert percentages(printed)[2] == str(len(source.test))


@pytest.mark.filterwarnings("error::UserWarning")
def test_evaluate_goes_without_the_missing_images_of_another_set(
    capsys, run_folder, images, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    configuration = describe_run(Recipe(validation_fraction=0.0), load_data("digits"))
    (run / "recipe.json").write_text(json.dumps(configuration))
    # Two images a class: divided for a run, classes would have none to be tested.
    manifest = write_manifest(tmp_path, images, [*CLASS_NAMES] * 2)
    words = ("evaluate", run, "--data", manifest)
    assert percentages(printed_by(capsys, *words))[2] == "12"
    (tmp_path / images[3].name).unlink()
    assert "3.png" in error_of(capsys, *words)
    printed = printed_by(capsys, *words, "--damaged-images", "skip")
    assert "1 images are left out, 11 are used" in printed and percentages(printed)[2] == "11"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["folder", "manifest"])
def test_evaluate_refuses_the_run_s_data_set_once_it_has_changed(
    capsys, run_folder, images, tmp_path, kind
):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    place = tmp_path / "first" / "photos"
    for index, file in enumerate(images):
        folder = place / CLASS_NAMES[index % 6]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
    files = sorted(place.glob("*/*.png"))
    lines = ["file,label", *(f"photos/{f.parent.name}/{f.name},{f.parent.name}" for f in files)]
    manifest = tmp_path / "first" / "photos.csv"
    manifest.write_text("\n".join(lines) + "\n")
    data = place if kind == "folder" else manifest
    configuration = describe_run(Recipe(data=str(data), validation_fraction=0.0), load_data(data))
    (run / "recipe.json").write_text(json.dumps(configuration))
    assert "divided as the run" in printed_by(capsys, "evaluate", run, "--data", data)
    # One picture more.
    shutil.copy(files[0], files[0].with_name("new.png"))
    manifest.write_text(manifest.read_text() + "photos/ant/new.png,ant\n")
    error = error_of(capsys, "evaluate", run, "--data", data)
    assert "have changed since" in error and "of their own" in error
    # Elsewhere it is a set of its own; one of the same name may hold the same images.
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    assert main(["evaluate", str(run), "--data", str(tmp_path / "second" / data.name)]) == 0
    captured = capsys.readouterr()
    assert "called like the data set" in captured.err
    assert percentages(captured.out)[2] == "13"


def test_evaluate_takes_the_division_of_a_changed_set_that_has_its_own(
    capsys, run_folder, images, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    data = tmp_path / "photos"
    for index, file in enumerate(images):
        folder = data / ("train", "test")[index // 6] / CLASS_NAMES[index % 6]
        folder.mkdir(parents=True)
        shutil.copy(file, folder)
    configuration = describe_run(Recipe(data=str(data), validation_fraction=0.0), load_data(data))
    (run / "recipe.json").write_text(json.dumps(configuration))
    Image.new("RGB", (8, 8)).save(data / "test" / "bee" / "new.png")
    assert percentages(printed_by(capsys, "evaluate", run, "--data", data))[2] == "7"


def test_class_names_are_those_in_a_hub_folder(capsys, images, tmp_path):
    write_timm(tmp_path / "hub", image_size=(8, 8), grid=(2, 2))
    (tmp_path / "class_names.txt").write_text("wrong\n" * 5)
    (tmp_path / "hub" / "class_names.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    assert "elk" in printed_by(capsys, "predict", "--model", tmp_path / "hub", images[0])


def hub_folder(folder, classes=5, **labels):
    write_timm(folder, image_size=(8, 8), grid=(2, 2), classes=classes)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **labels}))
    return folder


def test_class_names_are_those_that_the_checkpoint_tells(capsys, images, tmp_path):
    names = ["ant", "bee", "cat", "dog", "elk"]
    for labels, expected in (
        ({"label_names": names}, names),
        ({"id2label": dict(enumerate(names))}, names),
        ({"id2label": {index: f"LABEL_{index}" for index in range(5)}}, list("01234")),
        ({"label_names": names[:4]}, list("01234")),
    ):
        folder = hub_folder(tmp_path, **labels)
        lines = printed_by(capsys, "predict", "--model", folder, images[0]).splitlines()
        assert sorted(line.split()[1] for line in lines[1:]) == expected


def test_a_thousand_classes_without_names_are_said_to_be_taken_for_imagenet(
    capsys, images, tmp_path
):
    model = hub_folder(tmp_path, classes=1000)
    assert main(["predict", "--model", str(model), str(images[0])]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"{model} does not name its 1000 classes: taken for ImageNet's\n"
    shown = {" ".join(line.split()[1:]) for line in captured.out.splitlines()[1:]}
    assert shown < set(imagenet_class_names())
    own = hub_folder(tmp_path, classes=1000, label_names=[f"bird {n}" for n in range(1000)])
    assert main(["predict", "--model", str(own), str(images[0])]) == 0
    captured = capsys.readouterr()
    assert not captured.err and captured.out.count("bird") == 5


@exports_saved_models
def test_export_takes_the_class_names_of_the_checkpoint(capsys, tmp_path):
    names = ["ant", "bee", "cat", "dog", "elk"]
    model = hub_folder(tmp_path / "hub", label_names=names)
    printed_by(capsys, "export", "--model", model, "--output", tmp_path / "served")
    labels = tmp_path / "served" / "1" / "assets" / "class_names.txt"
    assert labels.read_text().splitlines() == names


@exports_saved_models
def test_export_takes_class_names_of_a_file_and_says_where_it_has_none(capsys, tmp_path):
    model, served = hub_folder(tmp_path / "hub"), tmp_path / "served"
    labels = tmp_path / "labels.txt"
    options = ["--model", str(model), "--output", str(served)]
    command = ["export", *options, "--warmup-batch-sizes", "1"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "does not name its classes: the names exported are 0 to 4" in captured.err
    assert "--class-names FILE" in captured.err

    labels.write_text("ant\nbee\n")
    error = error_of(capsys, *command, "--class-names", labels)
    assert f"{labels} must hold 5 lines, one a class. Found: 2" in error
    labels.write_text("ant\nbee\ncat\ndog\nelk\n")
    # It goes before what lies beside the model.
    (model / "class_names.txt").write_text("wrong\n" * 5)
    assert main([*command, "--class-names", str(labels)]) == 0
    assert "does not name" not in capsys.readouterr().err
    assert (served / "2" / "assets" / "class_names.txt").read_text() == labels.read_text()


@pytest.mark.slow
@exports_saved_models
def test_export_writes_versions(capsys, run_folder, tmp_path):
    for version in "12":
        printed = printed_by(
            capsys, "export", "--model", run_folder, "--output", tmp_path / "served"
        )
        assert printed.splitlines()[-1] == str(tmp_path / "served" / version)
        assert (tmp_path / "served" / version / "saved_model.pb").exists()


@exports_saved_models
def test_export_checks_what_it_wrote(capsys, run_folder, tmp_path):
    options = ("--model", run_folder, "--output", tmp_path / "served", "--attention", "--top", "2")
    printed_by(capsys, "export", *options, "--warmup-batch-sizes", "1", "--precision", "bfloat16")
    folder = tmp_path / "served" / "1"
    facts = json.loads((folder / "signatures.json").read_text())
    assert facts["precision"] == "bfloat16" and facts["top"] == 2
    assert set(facts["signatures"]) > {"serving_default", "attention"}
    printed = printed_by(capsys, "export", "--check", folder)
    assert "ready to be served, 15 of 15 checks passed, 0 do not apply" in printed
    (folder / "variables" / "variables.index").unlink()
    assert main(["export", "--check", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  variables" in printed and "not ready to be served" in printed


def test_export_says_what_is_missing(capsys, run_folder, tmp_path):
    error = error_of(capsys, "export", "--model", run_folder)
    assert "--model MODEL --output FOLDER" in error
    assert "is no SavedModel" in error_of(capsys, "export", "--check", tmp_path)
    options = ("--model", run_folder, "--format", "onnx", "--top", "3")
    error = error_of(capsys, "export", "--check", tmp_path, *options)
    assert "nothing reads `model` and `format` and `top` with --check FOLDER" in error
    options = ("--model", run_folder, "--output", tmp_path / "new", "--format", "onnx")
    error = error_of(capsys, "export", *options, "--attention")
    assert "nothing reads `attention` with --format onnx" in error


def test_serve_check_of_no_server(capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        assert address in error_of(capsys, "serve-check", address)


def test_finetune_runs_a_recipe(capsys, tmp_path, run_folder):
    options = (
        "--name tiny --data digits --image-size 16 --steps 2 --warmup-steps 1 --batch-size 8 "
        "--train-images 40 --test-images 20 --validation-fraction 0.25 --no-horizontal-flip"
    )
    weights = ("--weights", run_folder / "model.keras")
    printed = printed_by(capsys, "finetune", *options.split(), *weights, "--output", tmp_path)
    result = json.loads((tmp_path / "tiny" / "result.json").read_text())
    assert result["steps"] == 2
    assert result["test"]["count"] == 20
    assert str(tmp_path / "tiny") in printed


def test_finetune_refuses_an_option_out_of_range(capsys, tmp_path):
    error = error_of(capsys, "finetune", "--momentum", "1.5", "--output", tmp_path)
    assert "momentum" in error
    assert not list(tmp_path.iterdir())


def help_of(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does(capsys, command):
    assert COMMANDS[command].__doc__.splitlines()[0].rstrip(".") in help_of(capsys, command)


def test_help_shows_every_option_of_a_recipe_and_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["finetune", "--protocol", "none", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Recipe):
        assert field.name.replace("_", "-") in printed
    assert "(default: 0.03)" in printed
    assert "(default: 500)" in printed


@pytest.mark.parametrize("arguments", [["lsit"], ["finetune", "--stpes", "3"], []])
def test_an_unreadable_command_line_ends_with_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_a_traceback_is_shown_on_demand(monkeypatch):
    monkeypatch.setenv("KERAS_VIT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="vit_b61"):
        main(["list", "vit_b61"])
