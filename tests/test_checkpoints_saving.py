"""Writing published formats: bit-exact, loadable by their own code, or refused with reasons."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parameters import slow_except
from random_checkpoints import google_tensors, randomise, write_google, write_timm

import keras_vit
from keras_vit.checkpoints import open_checkpoint, save_checkpoint, tensor_writing
from keras_vit.cli import main
from keras_vit.models import Preprocessing, VisionTransformerConfig, config_of, vision_transformer

SIZES = {
    "patch_size": 8,
    "hidden_size": 32,
    "depth": 2,
    "mlp_dim": 64,
    "num_heads": 4,
    "num_classes": 5,
    "image_size": 24,
}
GOOGLE_SWITCHES = {"activation": "gelu_tanh"}
REFERENCES = (
    *(f"google_vit_{name}" for name in ("token", "pre_logits", "gap", "linen_names")),
    *("google_hybrid_r_stem", "google_hybrid_resnet"),
    *(f"big_vision_{name}" for name in ("gap", "tok", "map", "gap_sincos2d", "tok_rep")),
    "big_vision_gap_scan",
    *(f"timm_vit_{name}" for name in ("token", "gap_fc_norm", "nonsquare", "reg4_ls")),
    "timm_vit_qk_norm_no_qkv_bias",
    *(f"timm_{name}" for name in ("deit_distilled", "deit3", "dinov2_swiglu", "siglip_map")),
    "timm_clip_pre_norm",
    *("hf_vit", "hf_deit_distilled", "hf_dinov2"),
)


def build(**switches):
    """A tiny model whose every weight is random."""
    model = vision_transformer(VisionTransformerConfig(**SIZES | switches))
    randomise(model)
    return model


@functools.cache
def model_of(family):
    """The model of a family: built once for all formats, and only read."""
    return build(**FAMILIES[family][0])


def weights_of(model):
    return {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights}


def assert_same_model(found, expected):
    assert config_of(found) == config_of(expected)
    found, expected = weights_of(found), weights_of(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def canonical_tensors(path):
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def assert_same_tensors(found, expected):
    found, expected = canonical_tensors(found), canonical_tensors(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def target(folder, format):
    return folder / ("model.npz" if format == "google" else "model")


def reference(shared, name):
    """(path, format, what the file does not tell) of a reference checkpoint."""
    folder = shared / "reference"
    format = "google" if name.startswith(("google", "big_vision")) else name.split("_")[0]
    path = folder / (f"{name}.ckpt.npz" if format == "google" else name)
    return path, format, {"image_size": 24} if name.endswith("sincos2d") else {}


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_files_come_back_bit_for_bit(shared, tmp_path, name):
    path, format, rest = reference(shared, name)
    model = keras_vit.from_checkpoint(path, **rest)
    written = save_checkpoint(model, target(tmp_path, format), format)
    assert_same_model(keras_vit.from_checkpoint(written, **rest), model)
    if not name.startswith("big_vision_gap") or "sincos" in name:
        assert_same_tensors(written, path)  # The others are written as vision_transformer's.


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("timm_vit_token", ("hf", "timm")),
        ("timm_vit_nonsquare", ("hf", "timm")),
        ("timm_deit_distilled", ("hf", "timm")),
        ("google_vit_token", ("timm", "hf", "google")),
        ("google_vit_gap", ("hf", "timm", "google")),
        ("big_vision_tok", ("timm", "google")),
        ("big_vision_map", ("timm", "google")),
        ("hf_vit", ("timm", "hf")),
        ("hf_deit_distilled", ("timm", "hf")),
    ],
)
def test_through_other_formats_and_back(shared, tmp_path, name, formats):
    path, _, rest = reference(shared, name)
    model = first = keras_vit.from_checkpoint(path, **rest)
    for format in formats:
        (tmp_path / format).mkdir()
        written = save_checkpoint(model, target(tmp_path / format, format), format)
        model = keras_vit.from_checkpoint(written, **rest)
        assert_same_model(model, first)
    assert_same_tensors(written, path)


def file_shapes(path):
    with open_checkpoint(path) as checkpoint:
        return dict(checkpoint.file.shapes)


@pytest.mark.parametrize(
    "name",
    ["google_vit_linen_names"]
    + [f"big_vision_{name}" for name in ("tok", "map", "gap_sincos2d", "tok_rep")],
)
def test_names_and_shapes_are_those_of_googles_own_files(shared, tmp_path, name):
    path, format, rest = reference(shared, name)
    written = save_checkpoint(keras_vit.from_checkpoint(path, **rest), tmp_path / "x.npz", format)
    assert file_shapes(written) == file_shapes(path)


@pytest.mark.parametrize("options", [{}, {"cls": False}, {"rep": 8}], ids=str)
def test_google_names_of_today_whatever_the_source_had(tmp_path, options):
    write_google(tmp_path / "old.npz", **options)
    model = keras_vit.from_checkpoint(tmp_path / "old.npz")
    written = save_checkpoint(model, tmp_path / "new.npz", "google")
    expected = google_tensors(linen=True, **options)
    with np.load(written, allow_pickle=False) as found:
        assert set(found.files) == set(expected)
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_timm_folder_is_what_was_read(tmp_path):
    tensors = write_timm(tmp_path / "source")
    model = keras_vit.from_checkpoint(tmp_path / "source")
    written = save_checkpoint(model, tmp_path / "copy", class_names=list("abcde"))
    found = safetensors.numpy.load_file(written / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    config = json.loads((written / "config.json").read_text())
    assert config["label_names"] == list("abcde")
    assert config["pretrained_cfg"]["crop_pct"] == 0.9
    assert config["pretrained_cfg"]["mean"] == [0.4, 0.5, 0.6]


# Switches, and which formats express them.
_DINOV2 = {"layer_scale": 0.1, "pooling": "token+avg"}
_DINOV3 = {"positions": "rope", "layer_scale": 0.1, "layer_norm_epsilon": 1e-5}
_SWIGLU = {"gated_mlp": True, "activation": "silu"}
_BEIT = {"positions": "relative", "qkv_bias": "query_value", "pooling": "avg", "pool_norm": True}
_CLIP = {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu"}
_NO_HEAD = {"include_top": False}
_REGISTERS = {"register_tokens": 4}
FAMILIES = {
    "vit": ({}, "timm hf"),
    "vit, tanh GELU": (GOOGLE_SWITCHES, "timm hf google"),
    "vit, HF's epsilon, not square": (
        {"layer_norm_epsilon": 1e-12, "image_size": (16, 32), "mlp_dim": 57},
        "timm hf",
    ),
    "vit, no head": (_NO_HEAD, "timm hf"),
    "vit, pre_logits, no head": ({"representation_size": 16, **_NO_HEAD}, "hf"),
    "no biases of q, k, v": ({"qkv_bias": False}, "timm hf"),
    "qk_norm": ({"qk_norm": True, **_REGISTERS, "position_slots": "all"}, "timm"),
    "fc_norm": ({"pooling": "avg", "pool_norm": True}, "timm"),
    "mean, no class token": (
        {"pooling": "avg", "class_token": False, "layer_norm_epsilon": 1e-5},
        "timm hf",
    ),
    "map": ({"pooling": "map", "class_token": False, **GOOGLE_SWITCHES}, "timm google"),
    "map, no head": ({"pooling": "map", "class_token": False, **_NO_HEAD}, "timm hf"),
    "map, registers": (
        {"pooling": "map", "position_slots": "all", **_REGISTERS},
        "timm",
    ),
    "distilled": ({"distillation_token": True}, "timm hf"),
    "deit without teacher": ({"register_tokens": 1, "position_slots": "all"}, "timm hf"),
    "deit3": ({"layer_scale": 0.1, "position_slots": "patches"}, "timm"),
    "dinov2": (_DINOV2, "hf"),
    "dinov2, no head": ({"layer_scale": 0.1, **_NO_HEAD}, "timm hf"),
    "dinov2, SwiGLU": ({**_DINOV2, **_SWIGLU, "hidden_size": 48, "mlp_dim": 128}, "hf"),
    "swiglu, no scales": ({**_SWIGLU, "mlp_dim": 57}, "timm"),
    "dinov2, registers": ({**_DINOV2, **_REGISTERS}, "hf"),
    "dinov3": ({**_DINOV3, **_REGISTERS, **_NO_HEAD, "qkv_bias": "query_value"}, "timm hf"),
    "dinov3, no registers": ({**_DINOV3, **_NO_HEAD, "qkv_bias": False}, "timm hf"),
    "dinov3, three biases": ({**_DINOV3, **_SWIGLU, **_REGISTERS, **_NO_HEAD}, "hf"),
    "dinov3, head": ({**_DINOV3, **_SWIGLU, "qkv_bias": False, "pooling": "avg"}, "timm"),
    "rope, no scales": ({"positions": "rope", "qkv_bias": False, "rope_base": 50.0}, "timm"),
    "rope, learned too": ({"positions": "learned+rope", "qkv_bias": False}, "timm"),
    "clip": ({**_CLIP, "layer_norm_epsilon": 1e-5, **_NO_HEAD}, "timm hf"),
    "beit": ({**_BEIT, "layer_scale": 0.1}, "timm hf"),
    "beit, not square": ({**_BEIT, "image_size": (16, 32)}, "timm"),
    "beit, both positions": (
        {"positions": "learned+relative", "qkv_bias": "query_value"},
        "timm hf",
    ),
    "eva": ({"qkv_bias": "query_value", "pooling": "avg"}, "timm"),
    "hybrid": (
        {"stem_blocks": (), "stem_rule": "timm", "patch_size": 2, "image_size": 32},
        "timm",
    ),
    "google hybrid": (
        {"stem_blocks": (1, 1), "stem_width": 32, "patch_size": 1, "image_size": 32}
        | GOOGLE_SWITCHES,
        "google",
    ),
    "sin-cos": ({"positions": "sincos2d", **GOOGLE_SWITCHES}, "google"),
    "no positions": ({"positions": None}, "timm"),
    "all tokens": ({"pooling": None}, "timm"),
}


@pytest.mark.parametrize("format", ["timm", "hf", "google"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_written_or_refused(tmp_path, family, format):
    _, formats = FAMILIES[family]
    model = model_of(family)
    path = target(tmp_path, format)
    if format not in formats.split():
        with pytest.raises(ValueError, match="does not express this model") as error:
            save_checkpoint(model, path, format)
        for able in formats.split():
            assert f'format="{able}"' in str(error.value).splitlines()[-1]
        assert not list(tmp_path.iterdir())
        return
    save_checkpoint(model, path, format)
    rest = {"image_size": model.input_shape[1:3], "layer_scale": config_of(model).layer_scale}
    if model.layers[-1].name.startswith("head") and format != "google":
        rest.pop("image_size")
    assert_same_model(keras_vit.from_checkpoint(path, **rest), model)


LIBRARIES = {"timm": "timm", "hf": "transformers"}
CASES = [
    (family, format)
    for family, (_, formats) in FAMILIES.items()
    for format in formats.split()
    if format in LIBRARIES
]


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Folder with, for each family, our output and that of the formats' own code."""
    folder = tmp_path_factory.mktemp("families")
    for number, (switches, formats) in enumerate(FAMILIES.values()):
        model = build(**switches, include_preprocessing=False)
        images = np.random.default_rng(2).normal(size=(2, *model.input_shape[1:]))
        case = folder / str(number)
        case.mkdir()
        np.save(case / "images.npy", images.astype("float32"))
        np.save(case / "ours.npy", keras.ops.convert_to_numpy(model(images.astype("float32"))))
        for format in LIBRARIES.keys() & formats.split():
            save_checkpoint(model, case / format, format, preprocessing="imagenet")
    script = Path(__file__).with_name("published_libraries.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, script, folder], check=True, env=environment)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("family", "format"), CASES)
@pytest.mark.skipif(
    not all(map(find_spec, ("torch", *LIBRARIES.values()))),
    reason="needs torch, timm and transformers (the extra parity)",
)
def test_the_formats_own_code_computes_the_same(computed, family, format):
    folder = computed / str(list(FAMILIES).index(family))
    if (folder / f"{format}.txt").exists():
        pytest.fail((folder / f"{format}.txt").read_text())
    found, expected = np.load(folder / f"{format}.npy"), np.load(folder / "ours.npy")
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_refusal_lists_every_field_and_who_can(tmp_path):
    model = build(
        layer_scale=0.1,
        layer_norm_epsilon=1e-5,
        qk_norm=True,
        preprocessing="imagenet",
        pooling="avg",
        pool_norm=True,
    )
    with pytest.raises(ValueError, match='format="google"') as error:
        save_checkpoint(model, tmp_path / "x.npz", "google")
    lines = str(error.value).splitlines()
    listed = {line.split(":")[0].strip() for line in lines[1:-1]}
    assert listed == {
        *("layer_scale", "layer_norm_epsilon", "qk_norm", "preprocessing", "pooling"),
        *("pool_norm", "activation"),
    }
    (line,) = (line for line in lines if "qk_norm" in line)
    assert "the model's is True, a file would imply False" in line
    assert '"timm"' in line and '"hf"' not in line
    assert 'format="timm"' in lines[-1]
    assert not list(tmp_path.iterdir())


def test_an_epsilon_that_timm_takes_from_no_file(tmp_path):
    near = build(layer_norm_epsilon=1e-12)
    with pytest.warns(UserWarning, match=r"is 1e-12, and timm's .* computes with 1e-06"):
        save_checkpoint(near, tmp_path / "near")
    config = json.loads((tmp_path / "near" / "config.json").read_text())
    assert config["norm_eps"] == 1e-12 and "norm_eps" not in config["model_args"]
    assert_same_model(keras_vit.from_checkpoint(tmp_path / "near"), near)
    with pytest.raises(
        ValueError, match=r"layer_norm_epsilon: .* 0\.001, a file would imply 1e-06"
    ):
        save_checkpoint(build(layer_norm_epsilon=1e-3), tmp_path / "far")


def test_a_softmax_at_the_end_is_in_no_format(tmp_path):
    with pytest.raises(ValueError, match="classifier_activation.*'softmax'.*no published format"):
        save_checkpoint(build(classifier_activation="softmax"), tmp_path / "x")


def test_bias_that_a_clip_projection_cannot_hold(tmp_path):
    model = build(**_CLIP, layer_norm_epsilon=1e-5)
    with pytest.raises(ValueError, match="head/bias: .* would imply 'zero'"):
        save_checkpoint(model, tmp_path / "x", "hf")
    model.get_layer("head").bias.assign(np.zeros(5))
    save_checkpoint(model, tmp_path / "x", "hf")
    assert_same_model(keras_vit.from_checkpoint(tmp_path / "x"), model)


def test_unknown_preprocessing_stays_unsaid(tmp_path):
    model = build(include_preprocessing=False)
    with pytest.warns(UserWarning, match="pass preprocessing="):
        save_checkpoint(model, tmp_path / "unsaid")
    with pytest.raises(ValueError, match="does not tell how images were scaled"):
        keras_vit.from_checkpoint(tmp_path / "unsaid")
    again = keras_vit.from_checkpoint(tmp_path / "unsaid", include_preprocessing=False)
    assert_same_model(again, model)
    save_checkpoint(model, tmp_path / "x", preprocessing="imagenet")
    read = keras_vit.from_checkpoint(tmp_path / "x")
    assert config_of(read).preprocessing.mean == (0.485, 0.456, 0.406)
    with pytest.raises(ValueError, match="for models without their own"):
        save_checkpoint(read, tmp_path / "y", preprocessing="imagenet")


@pytest.mark.parametrize("format", ["timm", "hf"])
@pytest.mark.parametrize("image_size", [pytest.param(24, marks=pytest.mark.slow), (16, 32)])
@pytest.mark.parametrize("crop", [(1.0, "squash"), (0.9, "center"), (0.75, "squash")])
def test_evaluation_policy_comes_back(tmp_path, format, image_size, crop):
    policy = Preprocessing(0.4, 0.3, *crop, interpolation="bilinear")
    model = build(preprocessing=policy, image_size=image_size)
    save_checkpoint(model, tmp_path / "x", format)
    assert config_of(keras_vit.from_checkpoint(tmp_path / "x")).preprocessing == policy


@pytest.mark.parametrize(
    ("dtype", "stored"),
    slow_except(
        [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
        fast=[("bfloat16", "float32")],
    ),
)
@pytest.mark.parametrize("format", ["timm", "google"])
def test_dtypes_of_the_variables(tmp_path, dtype, stored, format):
    if (
        dtype == "float64"
        and keras.backend.standardize_dtype(keras.ops.zeros(1, dtype).dtype) != dtype
    ):
        pytest.skip("JAX computes in float64 only where JAX_ENABLE_X64 is set")
    config = VisionTransformerConfig(**SIZES, **GOOGLE_SWITCHES)
    model = vision_transformer(config, dtype=dtype)
    path = save_checkpoint(model, target(tmp_path, format), format)
    for name, tensor in canonical_tensors(path).items():
        if not name.startswith("head"):
            assert tensor.dtype == stored, name
    read = keras_vit.from_checkpoint(path, dtype=dtype)
    for name, value in weights_of(model).items():
        np.testing.assert_array_equal(weights_of(read)[name], value, err_msg=name)


def test_names_of_classes(tmp_path):
    model = build()
    names = ["ant", "bee", "cat", "dog", "elk"]
    save_checkpoint(model, tmp_path / "x", "hf", class_names=names)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert list(config["id2label"].values()) == names
    assert config["label2id"]["dog"] == 3
    for wrong in (names[:4], ["ant"] * 5):
        with pytest.raises(ValueError, match="must be 5 different names"):
            save_checkpoint(model, tmp_path / "y", "hf", class_names=wrong)


@pytest.mark.parametrize("format", ["timm", "google"])
def test_nothing_is_replaced_unasked(tmp_path, format):
    model, path = build(**GOOGLE_SWITCHES), target(tmp_path, format)
    save_checkpoint(model, path, format)
    model.get_layer("head").bias.assign(np.ones(5))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_checkpoint(model, path, format)
    save_checkpoint(model, path, format, overwrite=True)
    assert_same_model(keras_vit.from_checkpoint(path), model)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("format", ["timm", "google"])
def test_what_another_process_wrote_meanwhile_is_not_replaced(
    tmp_path, monkeypatch, format, has_links
):
    first, second = build(**GOOGLE_SWITCHES), build(**GOOGLE_SWITCHES)
    first.get_layer("head").bias.assign(np.ones(5))
    path = target(tmp_path, format)
    to_disk = tensor_writing.to_disk

    def overtaken(file):
        monkeypatch.setattr(tensor_writing, "to_disk", to_disk)
        save_checkpoint(first, path, format)
        to_disk(file)

    def refused(*_):
        raise PermissionError("Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(tensor_writing, "to_disk", overtaken)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_checkpoint(second, path, format)
    assert_same_model(keras_vit.from_checkpoint(path), first)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_was_there_comes_back_when_replacing_it_fails(tmp_path, monkeypatch, error):
    model, path = build(), tmp_path / "x"
    save_checkpoint(model, path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    replace = os.replace

    def stopped(source, place):
        if place == path and source.name == "new":
            raise error
        replace(source, place)

    model.get_layer("head").bias.assign(np.ones(5))
    monkeypatch.setattr(os, "replace", stopped)
    monkeypatch.setattr(os, "rename", stopped)
    with pytest.raises(error):
        save_checkpoint(model, path, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_folder_is_taken(tmp_path):
    model, path = build(), tmp_path / "x"
    path.mkdir()
    assert_same_model(keras_vit.from_checkpoint(save_checkpoint(model, path)), model)


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        save_checkpoint(build(), tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_was_there_stays_when_writing_fails(tmp_path, monkeypatch):
    model = build(**GOOGLE_SWITCHES)
    for format in ("timm", "google"):
        save_checkpoint(model, target(tmp_path, format), format)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model.get_layer("head").bias.assign(np.full(5, np.nan))
    for format in ("timm", "google"):
        with pytest.raises(ValueError, match="head/bias holds values that are NaN"):
            save_checkpoint(model, target(tmp_path, format), format, overwrite=True)

    def full(file):
        raise OSError("no space left on device")

    model.get_layer("head").bias.assign(np.zeros(5))
    monkeypatch.setattr(tensor_writing, "to_disk", full)
    for format in ("timm", "google"):
        with pytest.raises(OSError, match="no space"):
            save_checkpoint(model, target(tmp_path, format), format, overwrite=True)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_wrong_arguments(tmp_path):
    model = build(**GOOGLE_SWITCHES)
    with pytest.raises(ValueError, match="Unknown format"):
        save_checkpoint(model, tmp_path / "x", "tim")
    with pytest.raises(ValueError, match=r"path of a \.npz file"):
        save_checkpoint(model, tmp_path / "x", "google")
    with pytest.raises(ValueError, match="path of a folder"):
        save_checkpoint(model, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="built by keras_vit"):
        save_checkpoint(keras.Sequential([keras.layers.Dense(2)]), tmp_path / "x")


@pytest.mark.parametrize(
    ("fields", "cut"), [({}, "block_0"), ({}, "block_1"), ({"distillation_token": True}, "head")]
)
@pytest.mark.parametrize("format", ["timm", "hf"])
def test_a_model_that_was_cut_is_refused(tmp_path, fields, cut, format):
    model = build(**fields)
    cut = keras.Model(model.input, model.get_layer(cut).output)
    with pytest.raises(ValueError, match="cut from|does not express this model"):
        save_checkpoint(cut, tmp_path / "x", format)
    assert not list(tmp_path.iterdir())


def test_convert_on_the_command_line(tmp_path, capsys):
    write_google(tmp_path / "google.npz")
    arguments = ["convert", str(tmp_path / "google.npz"), str(tmp_path / "hub"), "--format", "hf"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "hub")
    assert_same_model(
        keras_vit.from_checkpoint(tmp_path / "hub"),
        keras_vit.from_checkpoint(tmp_path / "google.npz"),
    )
    assert main(arguments) == 2
    assert "overwrite" in capsys.readouterr().err


CONFIGS = st.fixed_dictionaries(
    {
        "patch_size": st.sampled_from([4, (2, 4)]),
        "hidden_size": st.sampled_from([16, 24]),
        "depth": st.integers(1, 2),
        "mlp_dim": st.sampled_from([16, 24, 29]),
        "num_heads": st.sampled_from([1, 2]),
        "num_classes": st.sampled_from([1, 3]),
        "image_size": st.sampled_from([4, 8, (4, 16), (16, 8)]),
    },
    optional={
        "include_top": st.booleans(),
        "pooling": st.sampled_from(["token", "avg", "map", "token+avg", None]),
        "class_token": st.booleans(),
        "distillation_token": st.booleans(),
        "register_tokens": st.integers(0, 2),
        "representation_size": st.sampled_from([None, 8]),
        "activation": st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "silu"]),
        "gated_mlp": st.booleans(),
        "positions": st.sampled_from(
            ["sincos1d", "sincos2d", "rope", "relative", "learned+relative", "learned+rope", None]
        ),
        "position_slots": st.sampled_from(["patches", "class", "all"]),
        "patch_bias": st.booleans(),
        "pre_norm": st.booleans(),
        "qkv_bias": st.sampled_from([True, False, "query_value"]),
        "qk_norm": st.booleans(),
        "layer_scale": st.sampled_from([None, 1e-5]),
        "layer_norm_epsilon": st.sampled_from([1e-6, 1e-5, 1e-12]),
        "pool_norm": st.booleans(),
        "preprocessing": st.sampled_from(["inception", "imagenet"]),
        "dropout": st.sampled_from([0.0, 0.1]),
    },
)


@pytest.mark.slow
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(fields=CONFIGS, format=st.sampled_from(["timm", "hf", "google"]))
def test_any_model_is_refused_with_reasons_or_comes_back(tmp_path_factory, fields, format):
    try:
        config = VisionTransformerConfig(**fields)
        model = vision_transformer(config)
    except ValueError:
        return
    randomise(model)
    path = target(tmp_path_factory.mktemp("any"), format)
    try:
        save_checkpoint(model, path, format)
    except ValueError as error:
        lines = str(error).splitlines()[1:-1]
        assert lines
        assert all("a file would imply" in line for line in lines), lines
        assert not list(path.parent.iterdir())
        return
    rest = {"head_output": config.head_output, "dropout": config.dropout}
    with open_checkpoint(path) as checkpoint:
        if "image_size" not in checkpoint.facts:
            rest["image_size"] = config.image_size
    read = keras_vit.from_checkpoint(path, **rest)
    found, expected = weights_of(read), weights_of(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    images = np.random.default_rng(0).integers(0, 256, (1, *model.input_shape[1:]))
    for a, b in zip(
        keras.tree.flatten(read(images)), keras.tree.flatten(model(images)), strict=True
    ):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
    assert dataclasses.replace(
        config_of(read),
        preprocessing=config.preprocessing,
        layer_scale=config.layer_scale,
        rope_base=config.rope_base,
    ) == dataclasses.replace(config_of(model), preprocessing=config.preprocessing)
