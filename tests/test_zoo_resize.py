"""A model at another resolution: the same weights, resampled as the loading of files does."""

import dataclasses

import keras
import numpy as np
import pytest
from parameters import slow_except
from random_checkpoints import write_google, write_timm

import keras_vit
from keras_vit.checkpoints.positions import resample_positions
from keras_vit.models import VisionTransformerConfig, config_of, vision_transformer

TINY = {
    "patch_size": 4,
    "hidden_size": 16,
    "depth": 2,
    "mlp_dim": 32,
    "num_heads": 2,
    "num_classes": 3,
    "image_size": 12,
}


def tiny(dtype=None, name=None, **fields):
    """A tiny model with every weight random."""
    model = vision_transformer(
        VisionTransformerConfig(**{**TINY, **fields}), dtype=dtype, name=name
    )
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return model


def values(model):
    return {w.path: np.asarray(keras.ops.convert_to_numpy(w)) for w in model.weights}


def outputs(model):
    pixels = np.random.default_rng(1).uniform(0, 255, (2, *model.input_shape[1:]))
    return np.asarray(keras.ops.convert_to_numpy(model(pixels.astype("float32"))))


def assert_equal_weights(model, other):
    ours, theirs = values(model), values(other)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


SIZES = [*(pytest.param(size, marks=pytest.mark.slow) for size in (24, 8)), (8, 20)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", slow_except([None, "timm", "google", "hf"], fast=[None, "google"]))
def test_the_same_as_loading_a_timm_file_at_that_size(tmp_path, size, rule):
    write_timm(tmp_path / "vit")
    model = keras_vit.from_checkpoint(tmp_path / "vit")
    resized = keras_vit.resize(model, size, resampling=rule)
    loaded = keras_vit.from_checkpoint(tmp_path / "vit", image_size=size, resampling=rule)
    assert_equal_weights(resized, loaded)
    assert config_of(resized) == config_of(loaded)
    np.testing.assert_array_equal(outputs(resized), outputs(loaded))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cls", [True, False])
def test_the_same_as_loading_a_google_file_at_that_size(tmp_path, size, cls):
    path = tmp_path / "vit.npz"
    write_google(path, cls=cls)
    fields = {"num_heads": 2, "preprocessing": "inception"}
    model = keras_vit.from_checkpoint(path, **fields)
    resized = keras_vit.resize(model, size, resampling="google")
    loaded = keras_vit.from_checkpoint(path, image_size=size, **fields)
    assert_equal_weights(resized, loaded)
    np.testing.assert_array_equal(outputs(resized), outputs(loaded))


@pytest.mark.parametrize("rule", slow_except(["google", "timm"], fast=["timm"]))
def test_the_same_as_loading_a_google_file_for_another_grid_of_as_many_patches(tmp_path, rule):
    path = tmp_path / "vit.npz"
    write_google(path, grid=(4, 4))
    resized = keras_vit.resize(keras_vit.from_checkpoint(path), (8, 32), resampling=rule)
    loaded = keras_vit.from_checkpoint(path, image_size=(8, 32), resampling=rule)
    assert_equal_weights(resized, loaded)


PATCHES = [(8, (16, 32)), ((2, 4), 16), (8, 24), (2, None), (3, None)]


@pytest.mark.parametrize(("patch", "size"), slow_except(PATCHES, PATCHES[:2]))
def test_the_same_as_loading_at_another_patch_size(tmp_path, patch, size):
    write_timm(tmp_path / "vit")
    model = keras_vit.from_checkpoint(tmp_path / "vit")
    resized = keras_vit.resize(model, size, patch)
    loaded = keras_vit.from_checkpoint(tmp_path / "vit", image_size=size, patch_size=patch)
    assert_equal_weights(resized, loaded)
    assert resized.input_shape == (model.input_shape if size is None else loaded.input_shape)


FAMILIES = {
    "plain": {},
    "no class slot": {"position_slots": "patches"},
    "registers": {"register_tokens": 3, "position_slots": "all"},
    "distilled": {"distillation_token": True, "head_output": "average"},
    "map": {"class_token": False, "pooling": "map"},
    "rope": {"positions": "rope", "register_tokens": 2, "layer_scale": 0.1},
    "learned+rope": {"positions": "learned+rope"},
    "relative": {"positions": "relative", "qkv_bias": "query_value", "pooling": "avg"},
    "relative, no class token": {"positions": "relative", "class_token": False, "pooling": "avg"},
    "sincos1d": {"positions": "sincos1d"},
    "sincos2d": {"positions": "sincos2d"},
    "no positions": {"positions": None},
    "hybrid": {"stem_blocks": (1,), "stem_width": 32, "patch_size": 1},
    "no top": {"include_top": False, "pooling": None},
}


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_every_family(fields):
    """Only what lies on the grid changes; the config is the model's but for the size."""
    model = tiny(**fields)
    resized = keras_vit.resize(model, (20, 8))
    assert config_of(resized) == dataclasses.replace(config_of(model), image_size=(20, 8))
    assert np.isfinite(outputs(resized)).all()
    before, after = values(model), values(resized)
    changed = {path for path in before if before[path].shape != after[path].shape}
    for path in before.keys() - changed:
        np.testing.assert_array_equal(before[path], after[path], err_msg=path)
    positions = config_of(model).positions or ""
    expected = {"patch_encoder/position_embedding"} if "learned" in positions else set()
    if "relative" in positions:
        expected |= {
            f"block_{i}/attention/relative_position_bias/table" for i in range(TINY["depth"])
        }
    assert changed == expected


@pytest.mark.slow
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_the_same_size_gives_the_same_function(fields):
    model = tiny(**fields)
    twin = keras_vit.resize(model, 12, model.get_layer("patches").patch_size)
    assert twin is not model
    assert config_of(twin) == config_of(model)
    assert_equal_weights(twin, model)
    np.testing.assert_array_equal(outputs(twin), outputs(model))


@pytest.mark.parametrize("size", [None, (12, 12)])
def test_a_copy(size):
    model = tiny()
    assert_equal_weights(keras_vit.resize(model, size), model)


def test_there_and_back_where_the_rule_keeps_the_grid_points():
    """Google's rule puts the 3 x 3 points among the 5 x 5 ones, and takes them out again."""
    model = tiny()
    back = keras_vit.resize(keras_vit.resize(model, 20, resampling="google"), 12, None, "google")
    before, after = values(model), values(back)
    for path in before:
        np.testing.assert_allclose(before[path], after[path], atol=1e-6, err_msg=path)


def test_prefix_slots_pass_unchanged():
    model = tiny(distillation_token=True)
    positions = values(keras_vit.resize(model, 20))["patch_encoder/position_embedding"]
    source = values(model)["patch_encoder/position_embedding"]
    assert positions.shape == (1, 2 + 25, 16)
    np.testing.assert_array_equal(positions[:, :2], source[:, :2])
    np.testing.assert_array_equal(
        positions, resample_positions(source, (3, 3), (5, 5), "timm", prefix_tokens=2)
    )


def test_the_model_is_left_as_it_was():
    model = tiny()
    before, config = values(model), config_of(model)
    keras_vit.resize(model, 24, 2).get_layer("head").kernel.assign(np.zeros((16, 3)))
    assert config_of(model) == config
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)


def test_name_and_dtype_policy_are_kept():
    model = tiny(dtype="mixed_bfloat16", name="mine")
    resized = keras_vit.resize(model, 8)
    assert resized.name == "mine"
    for layer in model.layers:
        assert resized.get_layer(layer.name).dtype_policy == layer.dtype_policy
    short = keras_vit.resize(tiny(dtype="bfloat16"), 8, 2)
    assert {keras.backend.standardize_dtype(w.dtype) for w in short.weights} == {
        "bfloat16",
        "float32",  # the head
    }


def test_frozen_layers_stay_frozen():
    model = tiny(layer_scale=0.1)
    for name in ("patch_encoder", "block_0"):
        model.get_layer(name).trainable = False
    model.get_layer("block_1").mlp.trainable = False
    resized = keras_vit.resize(model, 8)
    paths = [weight.path for weight in model.trainable_weights]
    assert [weight.path for weight in resized.trainable_weights] == paths
    assert 0 < len(paths) < len(model.weights)
    assert not resized.get_layer("block_0").attention.trainable
    assert not resized.get_layer("block_1").mlp.projection.trainable
    assert resized.get_layer("block_1").attention.trainable


def test_a_block_thawed_inside_a_frozen_model():
    model = tiny()
    model.trainable = False
    assert keras_vit.resize(model, 8).trainable_weights == []
    model.trainable = True
    model.get_layer("block_0").trainable = False
    model.get_layer("block_0").mlp.trainable = True
    resized = keras_vit.resize(model, 8).get_layer("block_0")
    assert (resized.trainable, resized.mlp.trainable) == (False, True)
    assert not resized.attention.trainable


def test_a_model_from_a_file_and_back(tmp_path):
    model = tiny(preprocessing="imagenet")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_equal_weights(keras_vit.resize(loaded, 20), keras_vit.resize(model, 20))
    keras_vit.resize(model, 20).save(tmp_path / "large.keras")
    large = keras.saving.load_model(tmp_path / "large.keras")
    np.testing.assert_array_equal(outputs(large), outputs(keras_vit.resize(model, 20)))


def test_no_model_of_keras_vit():
    inputs = keras.Input((4,))
    other = keras.Model(inputs, keras.layers.Dense(2)(inputs), name="other")
    with pytest.raises(ValueError, match="built by keras_vit.*other"):
        keras_vit.resize(other, 24)
    with pytest.raises(ValueError, match="built by keras_vit.*'vit_b16'"):
        keras_vit.resize("vit_b16", 24)


def test_a_model_with_layers_of_ones_own():
    model = tiny(include_top=False)
    extended = keras.Model(model.input, keras.layers.Dense(2, name="mine")(model.output))
    with pytest.raises(ValueError, match="has besides: mine; take the model as it was"):
        keras_vit.resize(extended, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 18}, "`image_size`.*whose height would fit as 16 or 20"),
        ({"image_size": (12, 18)}, "whose width would fit as 16 or 20"),
        ({"patch_size": 5}, "a multiple of the patch's \\(5 px\\)"),
        ({"image_size": 0}, "image_size"),
        ({"patch_size": -1}, "patch_size"),
        ({"image_size": 24, "resampling": "big_vision"}, "google, timm, hf.*'big_vision'"),
    ],
)
def test_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_vit.resize(tiny(), **arguments)
