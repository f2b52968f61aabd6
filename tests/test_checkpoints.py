"""Published formats: exact values, position grids, the report, and files that do not fit."""

import io
import json
import pickle
import zipfile

import keras
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from parameters import slow_except
from PIL import Image
from random_checkpoints import google_tensors, timm_tensors, write_google, write_timm
from reference_forward import google_forward, timm_forward

import keras_vit
from keras_vit.checkpoints import CheckpointError, inspect_checkpoint, resample_positions

TOLERANCE = 2e-5


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def images(size=(12, 12)):
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")


def small_model(**fields):
    config = {
        **{"patch_size": 4, "hidden_size": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2},
        **{"image_size": 12, "num_classes": 5, "include_preprocessing": False},
        **fields,
    }
    return keras_vit.models.vision_transformer(keras_vit.models.VisionTransformerConfig(**config))


def weights_of(model):
    return {weight.path: to_numpy(weight).copy() for weight in model.weights}


def assert_unchanged(model, before):
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)


# Exactness against an independent forward pass.


@pytest.mark.parametrize(
    "options",
    [{}, {"linen": True}, {"cls": False}, {"rep": 12}, {"heads": 4, "patch": 2, "grid": (6, 6)}],
    ids=str,
)
def test_google_equals_the_float64_forward_pass(tmp_path, options):
    tensors = write_google(tmp_path / "model.npz", **options)
    model = keras_vit.from_checkpoint(tmp_path / "model.npz", include_preprocessing=False)
    assert_close(to_numpy(model(images())), google_forward(tensors, images()))


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, (12, 12)), ({"fc_norm": True}, (12, 12)), ({"grid": (2, 4)}, (8, 16))],
    ids=str,
)
def test_timm_equals_the_float64_forward_pass(tmp_path, options, size):
    tensors = write_timm(tmp_path, image_size=size, **options)
    model = keras_vit.from_checkpoint(tmp_path, include_preprocessing=False)
    assert_close(to_numpy(model(images(size))), timm_forward(tensors, images(size), 2))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("vit_tiny_augreg", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        pytest.param("deit_tiny", "deit_tiny_patch16_224", marks=pytest.mark.slow),
    ],
)
def test_trained_models_on_photographs(shared, name, folder):
    with np.load(shared / "reference" / f"{name}_imagenet_samples.io.npz") as data:
        crops, logits = data["crops"], data["logits"]
    weights = shared / "weights" / folder
    assert_close(to_numpy(keras_vit.ViTTi16(weights=weights)(crops)), logits)


# Position grids.


def test_position_resampling_equals_the_formats_own_code(shared):
    with np.load(shared / "reference" / "position_resampling.npz") as data:
        cases = {name: data[name] for name in data.files}
    positions = cases.pop("pos_embed")
    tried = 0
    for name, expected in cases.items():
        rule = {"google_zoom_order1": "google", "timm_bicubic_antialias": "timm"}
        rule = rule.get(name.rsplit("_", 1)[0])
        if rule is None:
            continue
        grid = tuple(map(int, name.rsplit("_", 1)[1].split("x")))
        assert_close(resample_positions(positions, (3, 3), grid, rule, 1), expected)
        tried += 1
    assert tried == 7


def test_google_rule_equals_scipy_zoom():
    ndimage = pytest.importorskip("scipy.ndimage")
    grid = np.random.default_rng(0).normal(size=(4, 3, 5)).astype("float32")
    for target in ((7, 9), (2, 2), (1, 5), (4, 3)):
        zoom = (target[0] / 4, target[1] / 3, 1)
        expected = ndimage.zoom(grid, zoom, order=1).reshape(1, -1, 5)
        found = resample_positions(grid.reshape(1, 12, 5), (4, 3), target, "google")
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_torchvision_rule_aligns_the_corners_of_pytorchs_bicubic():
    """As `torchvision.models.vision_transformer.interpolate_embeddings`."""
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(0).normal(size=(1, 5, 7, 7)).astype("float32")
    positions = grid.reshape(1, 5, 49).transpose(0, 2, 1)
    for target in ((12, 12), (4, 4), (1, 9)):
        expected = torch.nn.functional.interpolate(
            torch.tensor(grid), target, mode="bicubic", align_corners=True
        ).numpy()
        found = resample_positions(positions, (7, 7), target, "torchvision")
        np.testing.assert_allclose(found[0].T, expected.reshape(5, -1), atol=1e-5)


def test_timm_rule_has_pillows_antialias():
    grid = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    for target in ((3, 2), (5, 9), (8, 4)):
        image = Image.fromarray(grid).resize(target[::-1], Image.Resampling.BICUBIC)
        found = resample_positions(grid.reshape(1, 48, 1), (8, 6), target, "timm")
        np.testing.assert_allclose(found.reshape(target), np.asarray(image), atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    source=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    target=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    rule=st.sampled_from(["google", "timm"]),
    prefix=st.integers(0, 2),
)
def test_resampling_keeps_constants_and_prefixes(source, target, rule, prefix):
    rng = np.random.default_rng(0)
    head = rng.normal(size=(1, prefix, 3)).astype("float32")
    grid = np.broadcast_to(
        rng.normal(size=(1, 1, 3)).astype("float32"), (1, source[0] * source[1], 3)
    )
    found = resample_positions(np.concatenate([head, grid], 1), source, target, rule, prefix)
    assert found.shape == (1, prefix + target[0] * target[1], 3)
    np.testing.assert_array_equal(found[:, :prefix], head)
    expected = np.broadcast_to(grid[:, :1], found[:, prefix:].shape)
    np.testing.assert_allclose(found[:, prefix:], expected, atol=1e-5)


def test_an_unknown_rule_of_resampling_is_named():
    with pytest.raises(ValueError, match="`rule` must be one of google.*Received: rule='googel'"):
        resample_positions(np.ones((1, 4, 2)), (2, 2), (3, 3), "googel")


@pytest.mark.parametrize("size", [(20, 20), (8, 8), (16, 28)])
def test_loading_at_another_resolution(tmp_path, size):
    tensors = write_timm(tmp_path / "hub")
    write_google(tmp_path / "model.npz")
    for path, rule in ((tmp_path / "hub", "timm"), (tmp_path / "model.npz", "google")):
        model = small_model(image_size=size, activation="gelu" if rule == "timm" else "gelu_tanh")
        report = keras_vit.load_checkpoint(model, path)
        assert list(report.resampled) == ["patch_encoder/position_embedding"]
        grid = (size[0] // 4, size[1] // 4)
        original = (
            tensors["pos_embed"]
            if rule == "timm"
            else google_tensors()["Transformer/posembed_input/pos_embedding"]
        )
        expected = resample_positions(original, (3, 3), grid, rule, 1)
        found = weights_of(model)["patch_encoder/position_embedding"]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert f"3x3 → {grid[0]}x{grid[1]} by {rule}'s rule" in str(report)


def test_the_name_of_published_weights_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (inspect_checkpoint, lambda path: keras_vit.load_checkpoint(small_model(), path)):
        with pytest.raises(FileNotFoundError, match=r"b16-augreg-in21k\. .*zoo.weights_path\(name"):
            read("b16-augreg-in21k")


# The report.


def assert_accounts_for_all(report, model, file_tensors):
    taken = [t for tensors in (*report.used.values(), *report.resampled.values()) for t in tensors]
    assert sorted(taken + list(report.dropped)) == sorted(file_tensors)
    weights = [*report.used, *report.resampled, *report.new]
    assert sorted(weights) == sorted(weight.path for weight in model.weights)
    assert len(str(report).splitlines()) <= 24
    assert max(map(len, str(report).splitlines())) <= 240


def test_report_of_a_whole_load(tmp_path):
    tensors = write_google(tmp_path / "model.npz")
    model = small_model(activation="gelu_tanh")
    report = keras_vit.load_checkpoint(model, tmp_path / "model.npz")
    assert_accounts_for_all(report, model, tensors)
    assert not report.dropped and not report.new and not report.resampled


def test_transfer_zeroes_the_head_and_drops_pre_logits(tmp_path):
    tensors = write_google(tmp_path / "model.npz", rep=12)
    model = small_model(num_classes=3, activation="gelu_tanh", image_size=20)
    model.get_layer("head").kernel.assign(np.ones((16, 3)))
    report = keras_vit.load_checkpoint(model, tmp_path / "model.npz")
    assert_accounts_for_all(report, model, tensors)
    assert set(report.dropped) == {
        *("head/kernel", "head/bias", "pre_logits/kernel", "pre_logits/bias")
    }
    assert set(report.new) == {"head/kernel", "head/bias"}
    assert not to_numpy(model.get_layer("head").kernel).any()


def test_a_head_of_zeros_that_nobody_asked_for_is_told(tmp_path, recwarn):
    write_google(tmp_path / "model.npz")
    write_google(tmp_path / "headless.npz", classes=0)
    fields = {"hidden_size": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "image_size": 12}
    fields |= {"patch_size": 4, "weights": tmp_path / "model.npz"}
    for silent in ({"num_classes": 5}, {"num_classes": 1000}, {"include_top": False}):
        keras_vit.ViTTi16(**silent, **fields)
    for silent in ({}, {"num_classes": 10}):
        keras_vit.from_checkpoint(tmp_path / "model.npz", **silent)
    keras_vit.from_checkpoint(tmp_path / "headless.npz")
    assert not recwarn
    with pytest.warns(UserWarning, match=r"model.npz has a head of 5 .*of 1000.*num_classes=5"):
        model = keras_vit.create("vit_ti16", **fields)
    assert model.output_shape == (None, 1000)
    with pytest.warns(UserWarning, match=r"headless.npz has no head.*num_classes=1000"):
        keras_vit.from_checkpoint(tmp_path / "headless.npz", include_top=True)


def test_a_model_knows_what_became_of_its_file(tmp_path):
    write_google(tmp_path / "model.npz")
    model = keras_vit.from_checkpoint(tmp_path / "model.npz", num_classes=3, image_size=20)
    report = keras_vit.load_checkpoint(model, tmp_path / "model.npz")
    assert model.load_report == report
    assert "as none is stated" in str(model.load_report)
    assert set(report.new) == {"head/kernel", "head/bias"}
    fields = {"hidden_size": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "patch_size": 4}
    fields |= {"image_size": 20, "num_classes": 3, "weights": tmp_path / "model.npz"}
    assert keras_vit.create("vit_ti16", **fields).load_report == report


def test_without_a_top_the_files_head_is_dropped(tmp_path):
    tensors = write_timm(tmp_path)
    model = small_model(include_top=False)
    report = keras_vit.load_checkpoint(model, tmp_path)
    assert_accounts_for_all(report, model, tensors)
    assert set(report.dropped) == {"head.weight", "head.bias"}


def test_the_class_token_may_be_dropped_or_added_for_transfer(tmp_path):
    with_token = write_google(tmp_path / "token.npz")
    without = write_google(tmp_path / "gap.npz", cls=False)
    model = small_model(num_classes=3, class_token=False, pooling="avg", activation="gelu_tanh")
    report = keras_vit.load_checkpoint(model, tmp_path / "token.npz")
    assert_accounts_for_all(report, model, with_token)
    assert report.dropped["cls"] == "the model has no class token"
    name = "Transformer/posembed_input/pos_embedding"
    np.testing.assert_array_equal(
        weights_of(model)["patch_encoder/position_embedding"], with_token[name][:, 1:]
    )
    model = small_model(num_classes=3, activation="gelu_tanh")
    report = keras_vit.load_checkpoint(model, tmp_path / "gap.npz")
    assert_accounts_for_all(report, model, without)
    assert report.new["patch_encoder/class_token"] == "zero: the file has no class token"
    positions = weights_of(model)["patch_encoder/position_embedding"]
    assert not positions[:, 0].any()
    np.testing.assert_array_equal(positions[:, 1:], without[name])


# What the files say is followed.


def test_builders_follow_the_format(tmp_path):
    write_google(tmp_path / "model.npz", width=192, heads=3, depth=12, patch=16, grid=(2, 2))
    with pytest.raises(CheckpointError, match=r"Dense_0/kernel is \(192, 384\)"):
        keras_vit.ViTTi16(weights=tmp_path / "model.npz", image_size=32, num_classes=5)
    write_google(tmp_path / "small.npz")
    model = keras_vit.from_checkpoint(tmp_path / "small.npz")
    assert model.get_layer("block_0").activation == "gelu_tanh"
    assert model.get_layer("preprocessing").mean == (0.5, 0.5, 0.5)
    write_timm(tmp_path / "hub")
    layer = keras_vit.from_checkpoint(tmp_path / "hub").get_layer("preprocessing")
    assert layer.mean == (0.4, 0.5, 0.6)
    assert layer.crop_fraction == 0.9
    override = keras_vit.from_checkpoint(
        tmp_path / "hub", preprocessing="imagenet", activation="quick_gelu", num_classes=2
    )
    assert override.get_layer("preprocessing").mean == (0.485, 0.456, 0.406)
    assert override.get_layer("block_1").activation == "quick_gelu"


def test_a_bare_file_makes_the_builder_ask(tmp_path):
    write_timm(tmp_path)
    (tmp_path / "config.json").unlink()
    file = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="pass `num_heads`"):
        keras_vit.from_checkpoint(file)
    with pytest.raises(ValueError, match="pass preprocessing="):
        keras_vit.from_checkpoint(file, num_heads=2)
    model = keras_vit.from_checkpoint(file, num_heads=2, preprocessing="imagenet")
    assert model.output_shape == (None, 5)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"activation": "gelu"}, "activation"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon"),
        ({"include_preprocessing": True, "preprocessing": "imagenet"}, "preprocessing"),
        ({"pooling": "avg"}, "pooling"),
    ],
)
def test_a_known_difference_is_an_error_unless_accepted(tmp_path, options, name):
    write_google(tmp_path / "model.npz")
    model = small_model(**{"activation": "gelu_tanh", **options})
    before = weights_of(model)
    with pytest.raises(CheckpointError, match=f'accept=\\("{name}",\\)'):
        keras_vit.load_checkpoint(model, tmp_path / "model.npz")
    assert_unchanged(model, before)
    keras_vit.load_checkpoint(model, tmp_path / "model.npz", accept=(name,))
    with pytest.raises(ValueError, match="`accept` may hold"):
        keras_vit.load_checkpoint(model, tmp_path / "model.npz", accept=("head",))


def test_heads_that_only_a_config_tells(tmp_path):
    write_timm(tmp_path, heads=2)
    with pytest.raises(CheckpointError, match="num_heads: the file's is 2, the model's 4"):
        keras_vit.load_checkpoint(small_model(num_heads=4), tmp_path)


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "more"),
    [
        ("rope_base", 50.0, 100.0, {"positions": "rope"}),
        ("window_size", None, (2, 2), {"global_blocks": 1}),
        ("global_blocks", 1, 2, {"window_size": 2, "depth": 3}),
    ],
)
def test_what_shows_in_no_tensor_is_compared(tmp_path, name, ours, theirs, more):
    small_model(**more | {name: theirs}).save(tmp_path / "model.keras")
    if ours is None:
        more = {}
    model = small_model(**more | {name: ours})
    with pytest.raises(CheckpointError, match=f"{name}: the file's is .*, the model's {ours};"):
        keras_vit.load_checkpoint(model, tmp_path / "model.keras")
    keras_vit.load_checkpoint(model, tmp_path / "model.keras", accept=(name,))
    if ours is not None:
        chosen = keras_vit.from_checkpoint(tmp_path / "model.keras", **{name: ours})
        assert getattr(keras_vit.models.config_of(chosen), name) == ours


def test_keras_files_load_at_another_size_and_class_count(tmp_path):
    source = small_model(include_preprocessing=True, preprocessing="imagenet")
    for weight in source.weights:
        weight.assign(np.random.default_rng(3).normal(size=weight.shape))
    source.save(tmp_path / "model.keras")
    source.save_weights(tmp_path / "model.weights.h5")
    for name in ("model.keras", "model.weights.h5"):
        model = small_model(
            num_classes=2, image_size=(20, 8), include_preprocessing=True, preprocessing="imagenet"
        )
        report = keras_vit.load_checkpoint(model, tmp_path / name)
        assert_accounts_for_all(report, model, weights_of(source))
        kernel = "block_1/mlp/expansion/kernel"
        np.testing.assert_array_equal(weights_of(model)[kernel], weights_of(source)[kernel])
        assert not weights_of(model)["head/kernel"].any()
    rebuilt = keras_vit.from_checkpoint(tmp_path / "model.keras")
    assert rebuilt.get_layer("preprocessing").mean == (0.485, 0.456, 0.406)
    np.testing.assert_array_equal(rebuilt.get_weights()[-2], source.get_weights()[-2])
    with pytest.raises(ValueError, match="without the architecture"):
        keras_vit.from_checkpoint(tmp_path / "model.weights.h5")


def test_a_keras_file_without_a_head_gets_one_of_zeros(tmp_path):
    source = small_model(include_top=False, representation_size=8)
    source.save(tmp_path / "model.keras")
    model = keras_vit.from_checkpoint(tmp_path / "model.keras", num_classes=10)
    assert model.output_shape == (None, 10)
    assert not weights_of(model)["head/kernel"].any()
    kernel = "block_1/mlp/expansion/kernel"
    np.testing.assert_array_equal(weights_of(model)[kernel], weights_of(source)[kernel])
    same = keras_vit.from_checkpoint(tmp_path / "model.keras")
    assert same.output_shape == source.output_shape == (None, 8)


def test_a_keras_file_without_preprocessing_does_not_tell_it(tmp_path):
    small_model().save(tmp_path / "model.keras")
    arguments = {"image_size": 12, "hidden_size": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2}
    arguments |= {"patch_size": 4, "num_classes": 5, "weights": str(tmp_path / "model.keras")}
    with pytest.raises(ValueError, match="does not tell how images were scaled.*preprocessing="):
        keras_vit.create("vit_ti16", **arguments)
    model = keras_vit.create("vit_ti16", preprocessing="imagenet", **arguments)
    assert model.get_layer("preprocessing").mean == (0.485, 0.456, 0.406)


def test_what_a_bare_file_does_not_tell_can_be_said(tmp_path):
    tensors = write_timm(tmp_path)
    (tmp_path / "config.json").unlink()
    said = {"num_heads": 2, "include_preprocessing": False, "layer_norm_epsilon": 1e-5}
    model = keras_vit.from_checkpoint(tmp_path / "model.safetensors", **said)
    assert model.get_layer("encoder_norm").epsilon == 1e-5
    assert weights_of(model)["head/bias"].tolist() == tensors["head.bias"].tolist()


def test_a_new_head_can_be_asked_for(tmp_path):
    tensors = write_google(tmp_path / "model.npz", rep=16)
    model = small_model(activation="gelu_tanh")
    report = keras_vit.load_checkpoint(model, tmp_path / "model.npz", new_head=True)
    assert_accounts_for_all(report, model, tensors)
    assert report.dropped["head/kernel"] == "a new head was asked for"
    assert not to_numpy(model.get_layer("head").kernel).any()


def test_half_precision_files(tmp_path):
    tensors = google_tensors()
    np.savez(tmp_path / "half.npz", **{k: v.astype("float16") for k, v in tensors.items()})
    import ml_dtypes

    short = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
    np.savez(tmp_path / "bfloat16.npz", **{k: v.view("V2") for k, v in short.items()})
    for name in ("half", "bfloat16"):
        model = small_model(activation="gelu_tanh")
        keras_vit.load_checkpoint(model, tmp_path / f"{name}.npz")
        found = weights_of(model)["block_0/mlp/expansion/kernel"]
        original = tensors["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"]
        np.testing.assert_allclose(found, original, rtol=1e-2)
    hub = write_timm(tmp_path / "hub")
    short = {k: v.astype(ml_dtypes.bfloat16) for k, v in hub.items()}
    safetensors.numpy.save_file(short, tmp_path / "hub" / "model.safetensors")
    model = keras_vit.from_checkpoint(tmp_path / "hub")
    found = weights_of(model)["block_0/mlp/expansion/kernel"]
    np.testing.assert_allclose(found, hub["blocks.0.mlp.fc1.weight"].T, rtol=1e-2)


def test_inspect_says_what_is_there(tmp_path):
    write_timm(tmp_path)
    text = inspect_checkpoint(tmp_path)
    for expected in ("timm", "hidden_size", "16", "num_classes", "pos_embed", "(1, 10, 16)"):
        assert expected in text


@pytest.mark.parametrize("file_format", ["google", "keras"])
def test_features_go_through_the_files_pre_logits(tmp_path, file_format):
    tensors = write_google(tmp_path / "model.npz", rep=12)
    path = tmp_path / "model.npz"
    if file_format == "keras":
        path = tmp_path / "model.keras"
        keras_vit.from_checkpoint(tmp_path / "model.npz", include_top=False).save(path)
    model = keras_vit.from_checkpoint(path, include_top=False)
    np.testing.assert_array_equal(
        weights_of(model)["pre_logits/kernel"], tensors["pre_logits/kernel"]
    )
    plain = small_model(include_top=False, activation="gelu_tanh")
    report = keras_vit.load_checkpoint(plain, tmp_path / "model.npz")
    assert report.dropped["pre_logits/kernel"] == "the model ends before it"


def test_positions_of_the_right_number_are_taken_as_they_are(tmp_path):
    tensors = write_google(tmp_path / "model.npz", grid=(2, 8))
    model = small_model(image_size=(8, 32), activation="gelu_tanh")
    report = keras_vit.load_checkpoint(model, tmp_path / "model.npz")
    assert not report.resampled
    np.testing.assert_array_equal(
        weights_of(model)["patch_encoder/position_embedding"],
        tensors["Transformer/posembed_input/pos_embedding"],
    )
    assert "taken as those of 2x8, not 4x4: the file does not say" in report.notes[-1]


def test_positions_of_a_bare_timm_file_are_those_of_a_square(tmp_path):
    """As timm's code, which compares grids, not numbers."""
    positions = write_timm(tmp_path, grid=(4, 4))["pos_embed"]
    (tmp_path / "config.json").unlink()
    model = small_model(image_size=(8, 32))
    report = keras_vit.load_checkpoint(model, tmp_path, accept=("preprocessing",))
    assert "positions 4x4 → 2x8 by timm's rule" in report.notes
    assert_close(
        weights_of(model)["patch_encoder/position_embedding"],
        resample_positions(positions, (4, 4), (2, 8), "timm", 1),
    )
    write_timm(tmp_path, grid=(2, 7))
    (tmp_path / "config.json").unlink()
    model = small_model(image_size=(8, 28))
    assert not keras_vit.load_checkpoint(model, tmp_path, accept=("preprocessing",)).resampled


@pytest.mark.parametrize("class_token", [True, False])
def test_a_class_token_brings_or_takes_its_own_position_alone(tmp_path, class_token):
    """As with timm's vit_so150m2_patch16_reg1_gap_256, whose register has a position."""
    positions = write_timm(tmp_path, class_token=not class_token, registers=2, slots="all")[
        "pos_embed"
    ]
    pooling = "token" if class_token else "avg"
    fields = {"num_classes": 3, "class_token": class_token, "pooling": pooling}
    model = keras_vit.from_checkpoint(tmp_path, **fields)
    found = weights_of(model)["patch_encoder/position_embedding"]
    if class_token:
        assert not found[:, 0].any()
        found = found[:, 1:]
    else:
        positions = positions[:, 1:]
    np.testing.assert_array_equal(found, positions)


def test_positions_of_other_tokens_that_are_as_many_are_refused(tmp_path):
    write_timm(tmp_path, class_token=False, registers=1, slots="all")
    model = small_model(num_classes=3, register_tokens=1, preprocessing="imagenet")
    before = weights_of(model)
    with pytest.raises(CheckpointError, match="position_slots: the file's is 'all', the model's"):
        keras_vit.load_checkpoint(model, tmp_path, accept=("preprocessing",))
    assert_unchanged(model, before)


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_variants_of_the_hub_config(tmp_path):
    def flat(config):
        config.update(config.pop("pretrained_cfg"), model_args=None)

    def ancestor(config):
        config["model_args"].pop("img_size")
        config["pretrained_cfg"].update(input_size=[3, 224, 224], crop_pct=None)

    def pooled(config):
        config["global_pool"] = "avg"

    for name, change in {"flat": flat, "ancestor": ancestor, "pooled": pooled}.items():
        write_timm(tmp_path / name)
        change_config(tmp_path / name, change)
        heads = {"num_heads": 2} if name == "flat" else {}
        model = keras_vit.from_checkpoint(tmp_path / name, **heads)
        assert model.input_shape == (None, 12, 12, 3)
        assert model.get_layer("preprocessing").mean == (0.4, 0.5, 0.6)
        assert model.get_layer("pool").pooling == ("avg" if name == "pooled" else "token")


def test_heads_that_the_architecture_tells(tmp_path):
    write_timm(tmp_path, width=24)
    change_config(tmp_path, lambda config: config["model_args"].pop("num_heads"))
    model = keras_vit.from_checkpoint(tmp_path)
    assert model.get_layer("block_0").num_heads == 3
    assert "3 heads, as vit_tiny_patch16_224 has them" in inspect_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"qk_norm": True}, "qk_norm=True"),
        ({"pool_include_prefix": True}, "pool_include_prefix"),
        ({"qkv_bias": False}, "qkv_bias=False"),
        ({"global_pool": "max"}, "global_pool='max'"),
    ],
)
def test_arguments_that_change_the_function_are_not_ignored(tmp_path, arguments, named):
    write_timm(tmp_path)
    change_config(tmp_path, lambda config: config["model_args"].update(arguments))
    with pytest.raises(CheckpointError, match=named):
        keras_vit.from_checkpoint(tmp_path)


def test_softmax_and_rates_survive_our_own_file(tmp_path):
    source = small_model(classifier_activation="softmax", drop_path=0.1, dropout=0.2)
    source.save(tmp_path / "model.keras")
    twin = keras_vit.from_checkpoint(tmp_path / "model.keras")
    assert keras_vit.models.config_of(twin) == keras_vit.models.config_of(source)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({"depth": 3}, {}),
        ({"pooling": "map"}, {}),
        ({"representation_size": 5}, {}),
        ({"pooling": "avg", "pool_norm": True}, {"pooling": "avg"}),
        ({"class_token": False, "pooling": "avg"}, {"pooling": "avg"}),
    ],
    ids=str,
)
def test_weights_files_of_another_architecture_are_refused(tmp_path, stored, wanted):
    small_model(**stored).save_weights(tmp_path / "model.weights.h5")
    model = small_model(**wanted)
    before = weights_of(model)
    with pytest.raises(CheckpointError, match=r"unexpected|missing"):
        keras_vit.load_checkpoint(model, tmp_path / "model.weights.h5")
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "pooling", slow_except(["token", "avg", "map", "token+avg"], fast=["token", "map"])
)
def test_weights_files_restore_every_weight(tmp_path, pooling):
    source = small_model(pooling=pooling, representation_size=6, dropout=0.1, drop_path=0.1)
    for weight in source.weights:
        weight.assign(np.random.default_rng(3).normal(size=weight.shape))
    # As after a training: the optimizer's state is in the file too.
    source.compile("adam", "mse", metrics=["mse"])
    source.optimizer.build(source.trainable_variables)
    source.save_weights(tmp_path / "model.weights.h5")
    model = small_model(pooling=pooling, representation_size=6)
    report = keras_vit.load_checkpoint(model, tmp_path / "model.weights.h5")
    assert_accounts_for_all(report, model, weights_of(source))
    assert_unchanged(model, weights_of(source))
    assert "does not tell" in str(report)


# Files that do not fit.


def mutations():
    """Name → (what is done to Google's tensors, what the error must name)."""
    kernel = "Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"
    query = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"

    def without(name):
        return lambda tensors: {k: v for k, v in tensors.items() if k != name}

    def replaced(name, change):
        return lambda tensors: tensors | {name: change(tensors[name])}

    def with_nan(array):
        array = array.copy()
        array.flat[3] = np.nan
        return array

    return {
        "missing": (without(kernel), kernel),
        "short bias": (replaced("head/bias", lambda a: a[:-1]), "head/bias is (4,)"),
        "transposed": (replaced(kernel, np.transpose), kernel),
        "other heads": (replaced(query, lambda a: a.reshape(16, 4, 4)), "query/kernel"),
        "extra": (lambda tensors: tensors | {"Transformer/extra": np.ones(3, "float32")}, "extra"),
        "nan": (replaced(kernel, with_nan), kernel),
        "infinite": (replaced(kernel, lambda a: a * np.inf), kernel),
        "integers": (replaced(kernel, lambda a: a.astype("int32")), kernel),
        "positions": (
            replaced("Transformer/posembed_input/pos_embedding", lambda a: a[:, :-1]),
            "pos_embedding",
        ),
        "scalar": (replaced("cls", lambda a: a.ravel()[0]), "cls"),
        "flat positions": (
            replaced("Transformer/posembed_input/pos_embedding", np.ravel),
            "do not describe a Vision Transformer",
        ),
        "scalar bias": (replaced("head/bias", lambda a: a[0]), "head/bias is ()"),
        "no positions": (without("Transformer/posembed_input/pos_embedding"), "pos_embedding"),
        "twice": (
            lambda tensors: tensors | {query.replace("_1/", "_0/"): tensors[query]},
            "two tensors for one weight",
        ),
    }


@pytest.mark.parametrize("case", mutations())
def test_a_file_that_does_not_fit_names_the_tensor(tmp_path, case):
    change, named = mutations()[case]
    np.savez(tmp_path / "model.npz", **change(google_tensors()))
    model = small_model(activation="gelu_tanh")
    before = weights_of(model)
    with pytest.raises(CheckpointError) as error:
        keras_vit.load_checkpoint(model, tmp_path / "model.npz")
    assert named in str(error.value)
    assert "model.npz" in str(error.value)
    assert_unchanged(model, before)


def test_one_error_names_every_tensor(tmp_path):
    write_google(tmp_path / "model.npz", depth=4)
    with pytest.raises(CheckpointError, match="depth: the file's is 4, the model's 2") as error:
        keras_vit.load_checkpoint(small_model(activation="gelu_tanh"), tmp_path / "model.npz")
    for name in google_tensors(depth=4):
        assert (name in str(error.value)) == ("encoderblock_2" in name or "encoderblock_3" in name)


@pytest.mark.parametrize(
    ("fields", "differing"),
    [({"depth": 4}, ["depth"]), ({"distillation_token": True}, ["distillation_token", "missing"])],
    ids=str,
)
def test_a_difference_is_said_once(tmp_path, fields, differing):
    write_timm(tmp_path, heads=2)
    with pytest.raises(CheckpointError) as error:
        keras_vit.load_checkpoint(small_model(**fields), tmp_path)
    lines = str(error.value).splitlines()[1:]
    assert sorted({line.split(":")[0].strip() for line in lines}) == differing
    assert "block_" not in str(error.value)


def test_heads_that_contradict_the_argument(tmp_path):
    write_google(tmp_path / "model.npz")
    for fields in ({"num_classes": 7, "include_top": False}, {"num_classes": 0}):
        with pytest.raises(ValueError, match=r"pass include_top=False and no `num_classes`"):
            keras_vit.from_checkpoint(tmp_path / "model.npz", **fields)


def test_a_class_token_under_a_map_head(tmp_path):
    write_google(tmp_path / "model.npz", style="big_vision", linen=True, map_head=True)
    with pytest.raises(CheckpointError, match="cls beside MAPHead_0"):
        keras_vit.from_checkpoint(tmp_path / "model.npz")


def test_a_head_that_needs_pre_logits_says_so(tmp_path):
    write_google(tmp_path / "model.npz", rep=16)
    with pytest.raises(CheckpointError, match="representation_size=16"):
        keras_vit.load_checkpoint(small_model(activation="gelu_tanh"), tmp_path / "model.npz")


def test_a_config_that_contradicts_the_positions(tmp_path):
    write_timm(tmp_path, image_size=(20, 20))
    with pytest.raises(CheckpointError, match="10 positions, which are not the 5x5"):
        keras_vit.from_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".keras", ".weights.h5"])
@pytest.mark.parametrize("kind", ["empty", "garbage", "truncated"])
def test_damaged_files(tmp_path, suffix, kind):
    path = tmp_path / f"model{suffix}"
    model = small_model(activation="gelu_tanh")
    if kind == "truncated":
        if suffix == ".npz":
            np.savez(path, **google_tensors())
        elif suffix == ".safetensors":
            safetensors.numpy.save_file(timm_tensors(), path)
        elif suffix == ".keras":
            model.save(path)
        else:
            model.save_weights(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    else:
        path.write_bytes(b"" if kind == "empty" else b"no weights at all" * 99)
    before = weights_of(model)
    with pytest.raises(CheckpointError, match=path.name):
        keras_vit.load_checkpoint(model, path)
    assert_unchanged(model, before)


def test_a_flipped_byte_in_a_tensor_is_noticed(tmp_path):
    path = tmp_path / "model.npz"
    np.savez(path, **google_tensors())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.npz"):
        keras_vit.load_checkpoint(small_model(activation="gelu_tanh"), path)


class Bomb:
    """What a pickle could do when it is read."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pkl"])
def test_pickles_are_refused_with_the_way_to_convert(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"(?s)pickle.*weights_only=True.*safetensors"):
        keras_vit.load_checkpoint(small_model(), path)
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        keras_vit.from_checkpoint(tmp_path)


def test_object_arrays_are_never_unpickled(tmp_path):
    path = tmp_path / "model.npz"
    np.savez(path, **google_tensors(), extra=np.array([Bomb()], dtype=object))
    with pytest.raises(CheckpointError, match="pickled Python object"):
        keras_vit.load_checkpoint(small_model(), path)


def test_a_header_that_lies_about_its_size(tmp_path):
    path = tmp_path / "model.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, tensor in google_tensors().items():
            member = io.BytesIO()
            header = np.lib.format.header_data_from_array_1_0(tensor)
            if name == "embedding/bias":
                header["shape"] = (1_600_000_000,)
            np.lib.format.write_array_header_1_0(member, header)
            data = member.getvalue() + tensor.tobytes()
            archive.writestr(f"{name}.npy", data)
    with pytest.raises(CheckpointError, match="embedding/bias is damaged"):
        keras_vit.load_checkpoint(small_model(), path)


def test_foreign_files(tmp_path):
    np.savez(tmp_path / "foreign.npz", weights=np.ones(3), bias=np.ones(3))
    with pytest.raises(CheckpointError, match=r"no known format.*bias, weights"):
        keras_vit.load_checkpoint(small_model(), tmp_path / "foreign.npz")
    safetensors.numpy.save_file({"stem.0.bias": np.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "convnext_tiny"}))
    with pytest.raises(CheckpointError, match=r"convnext_tiny\) is of no known format.*stem\.0"):
        keras_vit.from_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="unknown kind"):
        keras_vit.load_checkpoint(small_model(), tmp_path / "notes.txt")
    write_timm(tmp_path / "hub")
    (tmp_path / "hub" / "config.json").write_text("{no json")
    with pytest.raises(CheckpointError, match=r"config\.json is no JSON"):
        keras_vit.from_checkpoint(tmp_path / "hub")
    (tmp_path / "hub" / "config.json").write_text(json.dumps({"model_args": {"act_layer": "relu"}}))
    with pytest.raises(CheckpointError, match="unsupported `act_layer`"):
        keras_vit.from_checkpoint(tmp_path / "hub")


def test_a_number_in_the_place_of_stacked_blocks_is_named(tmp_path):
    tensors = google_tensors() | {"Transformer/encoderblock/step": np.float32(3)}
    np.savez(tmp_path / "model.npz", **tensors)
    with pytest.raises(CheckpointError, match="unexpected: Transformer/encoderblock/step"):
        keras_vit.load_checkpoint(small_model(activation="gelu_tanh"), tmp_path / "model.npz")


def test_few_bytes_that_speak_of_millions_of_blocks(tmp_path):
    path = tmp_path / "model.npz"
    many = np.zeros(2_000_000, "int8")
    np.savez_compressed(path, **{"Transformer/encoderblock/LayerNorm_0/scale": many})
    assert path.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"LayerNorm_0/scale is \(2000000,\).*at most 1000"):
        inspect_checkpoint(path)
    np.savez_compressed(path, **google_tensors(), **{"Transformer/encoderblock/x": many})
    with pytest.raises(CheckpointError, match="unexpected: Transformer/encoderblock/x,"):
        keras_vit.load_checkpoint(small_model(activation="gelu_tanh"), path)


def test_one_name_that_speaks_of_millions_of_units(tmp_path):
    path = tmp_path / "model.npz"
    tensors = google_tensors(stem_blocks=(1,), patch=1)
    tensors["block1/unit5000000/conv1/kernel"] = tensors["block1/unit1/conv1/kernel"]
    np.savez(path, **tensors)
    with pytest.raises(CheckpointError, match=r"model\.npz: .*speak of 5000000 units in the stem"):
        inspect_checkpoint(path)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("модель.npz", "vision_transformer"),
        ("(1) vit.npz", "1__vit"),
        ("-b_16.npz", "b_16"),
        ("B_16-i21k.npz", "B_16-i21k"),
    ],
)
def test_any_files_name_makes_a_model_that_predicts(tmp_path, file, name):
    write_google(tmp_path / file)
    model = keras_vit.from_checkpoint(tmp_path / file)
    assert model.name == name
    assert model.predict(images(), verbose=0).shape == (2, 5)


@pytest.mark.parametrize("name", ["nothing.npz", "no/such/folder", "model.safetensors"])
def test_missing_files(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name.split("/")[-1]):
        keras_vit.load_checkpoint(small_model(), tmp_path / name)
    with pytest.raises(FileNotFoundError, match=name.split("/")[-1]):
        keras_vit.ViTTi16(weights=tmp_path / name)
