"""`keras-vit explain`: the pictures it writes, what it prints, and how it ends."""

from pathlib import Path

import keras
import numpy as np
import pytest
from parameters import slow_except
from PIL import Image

from keras_vit.cli import main
from keras_vit.data import decode_image
from keras_vit.inspection import attention_rollout, draw_overlay, patch_attention
from keras_vit.models import VisionTransformerConfig, vision_transformer


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    keras.utils.set_random_seed(1)
    config = VisionTransformerConfig(
        patch_size=4,
        hidden_size=16,
        depth=2,
        mlp_dim=16,
        num_heads=2,
        num_classes=6,
        image_size=(8, 16),
        preprocessing=(0.5, 0.5),
    )
    model = vision_transformer(config)
    generator = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(generator.normal(0, 0.5, weight.shape))
    folder = tmp_path_factory.mktemp("tiny")
    model.save(folder / "model.keras")
    (folder / "class_names.txt").write_text("ant\nbee\ncat\ndog\nelk\nfox\n")
    return folder / "model.keras"


@pytest.fixture
def image(tmp_path):
    """An image file of the model's own size."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def explain(model_file, output, *arguments):
    options = ("explain", "--model", model_file, "--output", output, *arguments)
    return main([str(option) for option in options])


def maps_of(model_file, image, look, **options):
    model = keras.saving.load_model(model_file)
    pixels = decode_image(image)[None].astype("float32")
    return keras.ops.convert_to_numpy(look(model, **options)(pixels))[0]


def assert_pictures_equal(file, expected):
    # Rounding may fall either way.
    np.testing.assert_allclose(decode_image(file).astype(int), expected.astype(int), atol=2)


@pytest.mark.parametrize("fusion", slow_except(["mean", "max"], fast=["mean"]))
def test_the_picture_is_the_rollout_over_the_image(model_file, image, tmp_path, fusion):
    assert explain(model_file, tmp_path / "maps", image, "--head-fusion", fusion) == 0
    rollout = maps_of(model_file, image, attention_rollout, head_fusion=fusion)
    expected = draw_overlay(decode_image(image), rollout)
    assert_pictures_equal(tmp_path / "maps" / "cat.png", expected)


@pytest.mark.parametrize("fusion", slow_except(["mean", "max", "min"], fast=["mean"]))
def test_a_block_can_be_drawn(model_file, image, tmp_path, fusion):
    options = ("--block", 0, "--head-fusion", fusion)
    assert explain(model_file, tmp_path / "maps", image, *options) == 0
    fused = getattr(np, fusion)(maps_of(model_file, image, patch_attention, block=0), axis=0)
    expected = draw_overlay(decode_image(image), fused)
    assert_pictures_equal(tmp_path / "maps" / "cat.png", expected)


@pytest.mark.parametrize(
    ("options", "block"), slow_except([((), -1), (("--block", 0), 0)], fast=[((), -1)])
)
def test_every_head_can_be_drawn_on_a_sheet(model_file, image, tmp_path, options, block):
    assert explain(model_file, tmp_path / "maps", image, "--heads", *options) == 0
    heads = maps_of(model_file, image, patch_attention, block=block)
    first, second = (draw_overlay(decode_image(image), head) for head in heads)
    white = np.full((8, 4, 3), 255)
    expected = np.concatenate([first, white, second], axis=1)
    assert_pictures_equal(tmp_path / "maps" / "cat.png", expected)


def test_the_path_and_the_classes_are_printed_as_by_predict(model_file, image, tmp_path, capsys):
    assert main(["predict", str(image), "--model", str(model_file)]) == 0
    file, *classes = capsys.readouterr().out.splitlines()
    assert explain(model_file, tmp_path / "maps", image) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"{file} → {tmp_path / 'maps' / 'cat.png'}"
    assert rest == classes
    assert len(rest) == 5


def test_a_photograph_keeps_its_size_and_the_unseen_part_is_dark(model_file, tmp_path):
    Image.new("RGB", (90, 20), (200, 200, 200)).save(tmp_path / "wide.jpg")
    assert explain(model_file, tmp_path, tmp_path / "wide.jpg") == 0
    picture = decode_image(tmp_path / "wide.png")
    assert picture.shape == (20, 90, 3)
    assert (picture[:, [0, 20, 70, 89]] == 30).all()
    assert (picture[:, 30:60] != 30).any(-1).all()


def test_a_strip_of_which_less_than_a_pixel_is_seen_is_drawn(model_file, tmp_path):
    Image.new("RGB", (1, 300), (200, 200, 200)).save(tmp_path / "strip.jpg")
    assert explain(model_file, tmp_path, tmp_path / "strip.jpg") == 0
    assert decode_image(tmp_path / "strip.png").shape == (300, 1, 3)


@pytest.mark.slow
def test_images_of_one_name_get_a_picture_each(model_file, image, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    Image.new("RGB", (30, 10)).save(tmp_path / "other" / "cat.jpg")
    assert explain(model_file, tmp_path / "maps", image, tmp_path / "other" / "cat.jpg") == 0
    assert explain(model_file, tmp_path / "maps", image) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "→" in line]
    names = [Path(line.split(" → ")[1]).name for line in lines]
    assert names == ["cat.png", "cat-2.png", "cat-3.png"]
    shapes = [decode_image(tmp_path / "maps" / name).shape for name in names]
    assert shapes == [(8, 16, 3), (10, 30, 3), (8, 16, 3)]


def test_a_picture_beside_its_image_does_not_replace_it(model_file, image, tmp_path):
    before = image.read_bytes()
    assert explain(model_file, tmp_path, image) == 0
    assert image.read_bytes() == before
    assert (tmp_path / "cat-2.png").exists()


def test_bad_images_are_named_and_the_others_drawn(model_file, image, tmp_path, capsys):
    (tmp_path / "notes.jpg").write_text("no image")
    bad = (tmp_path / "notes.jpg", tmp_path / "absent.png")
    assert explain(model_file, tmp_path / "maps", *bad, image) == 2
    errors = capsys.readouterr().err
    assert "notes.jpg" in errors
    assert "absent.png" in errors
    assert [file.name for file in (tmp_path / "maps").iterdir()] == ["cat.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one image file"),
        (("cat.png", "--block", "2"), "2 blocks, 0 to 1"),
        (
            ("cat.png", "--heads", "--head-fusion", "max"),
            "nothing reads `head_fusion` with --heads",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(model_file, tmp_path, capsys, arguments, message):
    assert explain(model_file, tmp_path / "maps", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()
