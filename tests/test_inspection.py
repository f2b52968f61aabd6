"""Features, attention maps, rollout, and maps drawn over pictures."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parameters import slow_except
from PIL import Image
from reference_forward import layer_norm, softmax

import keras_vit
from keras_vit.inspection import draw_overlay, draw_sheet, patch_attention, seen_box, write_picture
from keras_vit.inspection.blocks import block_indices
from keras_vit.layers import ImagePreprocessing
from keras_vit.models import (
    VisionTransformerConfig,
    even_tokens,
    vision_transformer,
    with_even_tokens,
    without_unread_tokens,
)

ROWS, COLUMNS = 3, 2
PATCHES = ROWS * COLUMNS
LOOKS = [keras_vit.features, keras_vit.attention_maps, keras_vit.attention_rollout]


def build(dtype=None, **fields):
    """A tiny model in which no weight is zero or one."""
    config = {
        "patch_size": 4,
        "hidden_size": 16,
        "depth": 3,
        "mlp_dim": 24,
        "num_heads": 4,
        "num_classes": 5,
        "image_size": (4 * ROWS, 4 * COLUMNS),
        **fields,
    }
    model = vision_transformer(VisionTransformerConfig(**config), dtype=dtype)
    generator = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(generator.normal(0.1, 0.4, weight.shape))
    return model


def some_images(count=2):
    return np.random.default_rng(0).uniform(0, 255, (count, 4 * ROWS, 4 * COLUMNS, 3)).astype("f4")


def output_of(model, layer, images, attribute="output"):
    tensor = getattr(model.get_layer(layer), attribute)
    return keras.ops.convert_to_numpy(keras.Model(model.input, tensor)(images))


def as_arrays(outputs):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)


TOKENS = [
    {"distillation_token": True, "register_tokens": 3},
    {"pooling": "avg", "class_token": False},
    {},
    {"register_tokens": 2},
    {"distillation_token": True},
]


@pytest.mark.parametrize("fields", slow_except(TOKENS, TOKENS[:2]), ids=str)
def test_features_are_the_blocks_tokens_taken_apart(fields):
    model, images = build(**fields), some_images()
    outputs = as_arrays(keras_vit.features(model)(images))
    names = ["class_token"] * fields.get("class_token", True)
    names += ["distillation_token"] * fields.get("distillation_token", False)
    names += ["register_tokens"] * ("register_tokens" in fields)
    layers = {"block_0": "block_0", "block_1": "block_1", "block_2": "block_2"}
    for name, layer in (layers | {"tokens": "encoder_norm"}).items():
        parts, tokens = outputs[name], output_of(model, layer, images)
        assert list(parts) == ["grid", *names]
        assert parts["grid"].shape == (2, ROWS, COLUMNS, 16)
        expected = [parts[part].reshape(2, -1, 16) for part in (*names, "grid")]
        np.testing.assert_allclose(np.concatenate(expected, 1), tokens, rtol=1e-6)


HEADS = [
    {"pooling": "map"},
    {"pooling": "avg", "pool_norm": True},
    {"representation_size": 7},
    {"pooling": "token+avg"},
    {},
]


@pytest.mark.parametrize("fields", slow_except(HEADS, HEADS[:3]), ids=str)
def test_the_head_gives_the_logits_from_pre_logits(fields):
    model, images = build(**fields), some_images()
    pre_logits = keras_vit.features(model, blocks=[])(images)["pre_logits"]
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model.get_layer("head")(pre_logits)),
        keras.ops.convert_to_numpy(model(images)),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("fields", [{}, {"head_output": "both"}, {"include_top": False}], ids=str)
def test_a_distilled_model_has_pre_logits_for_either_head(fields):
    model, images = build(distillation_token=True, **fields), some_images()
    outputs = as_arrays(keras_vit.features(model, blocks=[])(images))
    np.testing.assert_allclose(outputs["pre_logits"], outputs["tokens"]["class_token"])
    np.testing.assert_allclose(
        outputs["pre_logits_distillation"], outputs["tokens"]["distillation_token"]
    )


def test_pre_logits_without_a_head_are_the_models_output():
    model, images = build(include_top=False), some_images()
    outputs = as_arrays(keras_vit.features(model, blocks=-1)(images))
    np.testing.assert_allclose(outputs["pre_logits"], outputs["tokens"]["class_token"])


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "pool"),
        ({"pooling": "avg", "pool_norm": True}, "pool_norm"),
        ({"representation_size": 6, "include_top": False}, "pre_logits"),
        ({"distillation_token": True}, "pool"),
        ({"pooling": None, "include_top": False}, "encoder_norm"),
    ],
)
def test_pre_logits_under_a_head_of_ones_own_are_what_it_takes(fields, end):
    model, images = build(**fields), some_images()
    logits = keras.layers.Dense(7, name="classifier")(model.get_layer(end).output)
    outputs = keras_vit.features(keras.Model(model.input, logits), blocks=[])(images)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(outputs["pre_logits"]), output_of(model, end, images)
    )


def test_tokens_that_are_not_computed_are_not_shown(tmp_path):
    model, images = build(), some_images()
    without_unread_tokens(model).save(tmp_path / "shorter.keras")
    shorter = keras.saving.load_model(tmp_path / "shorter.keras")
    with pytest.raises(ValueError, match=r"computes 1 of the 7 tokens.*from_checkpoint\(path\)"):
        keras_vit.features(shorter)
    features = keras_vit.features(shorter, blocks=[0], blocks_only=True)(images)
    expected = output_of(model, "block_0", images)[:, 0]
    np.testing.assert_allclose(features["block_0"]["class_token"], expected, rtol=1e-5)
    whole = keras_vit.from_checkpoint(tmp_path / "shorter.keras")
    assert keras_vit.features(whole).output["block_2"]["grid"].shape[1:] == (ROWS, COLUMNS, 16)
    np.testing.assert_allclose(
        keras_vit.attention_maps(shorter)(images)["block_2"],
        keras_vit.attention_maps(model)(images)["block_2"],
        rtol=1e-5,
    )


def test_tokens_that_are_filled_up_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(even_tokens, "has_kernel", lambda shape, dtype: True)
    model, images = build(), some_images()
    with_even_tokens(model).save(tmp_path / "even.keras")
    even = keras.saving.load_model(tmp_path / "even.keras")
    for look in (*LOOKS, patch_attention):
        with pytest.raises(
            ValueError, match=r"takes 8 tokens where the model has 7.*from_checkpoint\(path\)"
        ):
            look(even)
    whole = keras_vit.from_checkpoint(tmp_path / "even.keras")
    np.testing.assert_allclose(
        keras_vit.attention_maps(whole)(images)["block_2"],
        keras_vit.attention_maps(model)(images)["block_2"],
        rtol=1e-5,
    )


@pytest.mark.parametrize("look", LOOKS)
def test_a_graph_of_another_models_layers_is_refused(look):
    with pytest.raises(ValueError, match="look into the model that was given to `without_unread"):
        look(without_unread_tokens(build()))


def test_features_can_be_normed():
    model, images = build(), some_images()
    outputs = as_arrays(keras_vit.features(model, blocks=[0, -1], norm=True)(images))
    assert sorted(outputs) == ["block_0", "block_2", "pre_logits", "tokens"]
    np.testing.assert_allclose(outputs["block_2"]["grid"], outputs["tokens"]["grid"], rtol=1e-6)
    gamma, beta = (keras.ops.convert_to_numpy(w) for w in model.get_layer("encoder_norm").weights)
    expected = layer_norm(output_of(model, "block_0", images)[:, 0], gamma, beta)
    np.testing.assert_allclose(outputs["block_0"]["class_token"], expected, rtol=1e-3, atol=1e-5)


def test_features_of_blocks_only_run_no_further():
    inside = keras_vit.features(build(), blocks=1, blocks_only=True)
    assert list(inside.output) == ["block_1"]
    names = {layer.name for layer in inside.layers}
    assert "block_1" in names
    assert not names & {"block_2", "encoder_norm", "head"}


def look_everywhere(model):
    return (
        keras_vit.features(model, norm="encoder_norm" in {layer.name for layer in model.layers}),
        keras_vit.attention_maps(model),
        patch_attention(model),
        keras_vit.attention_rollout(model),
    )


@pytest.mark.parametrize("pooling", slow_except(["token", "map"], fast=["token"]))
def test_looking_leaves_the_model_as_it_is_and_shares_its_weights(pooling):
    model, images = build(pooling=pooling), some_images()
    answer = keras.ops.convert_to_numpy(model(images))
    graph = [len(layer._inbound_nodes) for layer in model.layers]
    inside = look_everywhere(model)
    before = [as_arrays(part(images)) for part in inside]
    assert [len(layer._inbound_nodes) for layer in model.layers] == graph
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(images)), answer)
    own = {id(weight) for weight in model.weights}
    for part in inside:
        assert part.weights
        assert {id(weight) for weight in part.weights} <= own
    projection = model.get_layer("patch_encoder").weights[0]
    projection.assign(np.random.default_rng(2).normal(size=projection.shape))
    for part, old in zip(inside, before, strict=True):
        pairs = zip(
            keras.tree.flatten(as_arrays(part(images))), keras.tree.flatten(old), strict=True
        )
        assert not any(np.allclose(new, former) for new, former in pairs)


@pytest.mark.slow
def test_a_saved_model_can_be_looked_into(tmp_path):
    model, images = build(), some_images()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for old, new in zip(look_everywhere(model), look_everywhere(loaded), strict=True):
        keras.tree.map_structure(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            as_arrays(old(images)),
            as_arrays(new(images)),
        )


def test_what_shares_weights_is_not_saved(tmp_path):
    with pytest.raises(NotImplementedError, match="Save the other model"):
        keras_vit.attention_maps(build()).save(tmp_path / "maps.keras")


@pytest.mark.slow
def test_looking_twice_fits_into_one_model():
    model, images = build(), some_images()
    parts = [part.output for part in (*look_everywhere(model), *look_everywhere(model))]
    outputs = as_arrays(keras.Model(model.input, [model.output, *parts])(images))
    np.testing.assert_array_equal(outputs[4], outputs[8])


@given(st.integers(1, 40), st.data())
def test_block_indices_are_those_of_a_list(depth, data):
    blocks = data.draw(st.lists(st.integers(-depth, depth - 1)))
    assert block_indices(blocks, depth) == sorted({range(depth)[block] for block in blocks})


@pytest.mark.parametrize("look", [keras_vit.features, keras_vit.attention_maps])
def test_blocks_that_are_not_there_are_named(look):
    model = build()
    for block in (3, -4):
        with pytest.raises(ValueError, match=rf"0 to 2.*Received: block {block}"):
            look(model, blocks=[0, block])
    for blocks in ("block_0", 2.0, True, [0.5], [True]):
        with pytest.raises(ValueError, match="sequence of ints"):
            look(model, blocks=blocks)
    with pytest.raises(ValueError, match="Nothing to look at"):
        look(model, blocks=[], **({"blocks_only": True} if look is keras_vit.features else {}))


def test_patch_attention_takes_one_block():
    model = build()
    for block in (None, [0, 1], 1.0):
        with pytest.raises(ValueError, match=r"`block` must be an int. Received: block="):
            patch_attention(model, block=block)


@pytest.mark.parametrize("look", LOOKS)
def test_other_models_are_refused(look):
    images = keras.Input((8, 8, 3))
    other = keras.Model(images, keras.layers.Flatten()(images))
    with pytest.raises(ValueError, match="built by keras_vit"):
        look(other)


def test_arguments_out_of_range_are_named():
    model = build(pooling="avg", pool_norm=True)
    with pytest.raises(ValueError, match="pool_norm"):
        keras_vit.features(model, norm=True)
    for look in (keras_vit.attention_rollout, patch_attention):
        with pytest.raises(ValueError, match="`head_fusion` must be one of mean, max, min"):
            look(model, head_fusion="median")
    with pytest.raises(ValueError, match="`discard_ratio` must be in"):
        keras_vit.attention_rollout(model, discard_ratio=1.0)


def stated_attention(model, index, images):
    """The attention of a block, stated in NumPy: (batch, heads, tokens, tokens)."""
    tokens = output_of(model, f"block_{index}", images, "input").astype("float64")
    weights = {
        weight.path.split(f"block_{index}/")[1]: keras.ops.convert_to_numpy(weight)
        for weight in model.get_layer(f"block_{index}").weights
    }
    normed = layer_norm(tokens, weights["attention_norm/gamma"], weights["attention_norm/beta"])
    projection = "attention/query_key_value"
    qkv = normed @ weights[f"{projection}/kernel"] + weights[f"{projection}/bias"]
    query, key, _ = np.moveaxis(qkv.reshape(*qkv.shape[:2], 3, 4, 4), 2, 0)
    return softmax(np.einsum("bqhd,bkhd->bhqk", query, key) / 2.0)


def test_attention_maps_follow_the_equations():
    model, images = build(register_tokens=1), some_images()
    maps = as_arrays(keras_vit.attention_maps(model, blocks=[0, -1])(images))
    assert list(maps) == ["block_0", "block_2"]
    for index in (0, 2):
        weights = maps[f"block_{index}"]
        assert weights.shape == (2, 4, PATCHES + 2, PATCHES + 2)
        np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(
            weights, stated_attention(model, index, images), rtol=2e-3, atol=1e-5
        )


def test_attention_maps_run_no_further_than_the_last_block_asked_for():
    inside = keras_vit.attention_maps(build(), blocks=1)
    names = {layer.name for layer in inside.layers}
    assert "block_0" in names
    assert "block_1" not in names


def without_preference(**fields):
    """A model whose queries and keys are zero: every token attends to all alike."""
    model = build(**fields)
    for layer in model.layers:
        if layer.name.startswith("block_"):
            for weight in layer.attention.query_key_value.weights:
                weight.assign(np.zeros(weight.shape))
    return model


def test_attention_without_preference_is_uniform():
    model = without_preference()
    weights = as_arrays(keras_vit.attention_maps(model)(some_images()))
    shares = as_arrays(patch_attention(model, 0)(some_images()))
    assert shares.shape == (2, 4, ROWS, COLUMNS)
    for array in (*weights.values(), shares):
        np.testing.assert_allclose(array, 1 / (PATCHES + 1), rtol=1e-6)


@pytest.mark.parametrize("head_fusion", slow_except(["mean", "max", "min"], fast=["mean"]))
@pytest.mark.parametrize("pooling", ["token", "avg", "token+avg"])
def test_rollout_of_uniform_attention_is_known(pooling, head_fusion):
    """With P = 1/tokens everywhere, ((1 + P) / 2)^depth = P + (1 - P) / 2^depth."""
    rollout = keras_vit.attention_rollout(
        without_preference(pooling=pooling), head_fusion=head_fusion
    )
    tokens = PATCHES + 1
    token = (1 - 2**-3) / tokens
    average = token + 2**-3 / PATCHES
    expected = {"token": token, "avg": average, "token+avg": (token + average) / 2}[pooling]
    shares = as_arrays(rollout(some_images()))
    assert shares.shape == (2, ROWS, COLUMNS)
    np.testing.assert_allclose(shares, expected, rtol=1e-5)


def stated_rollout(model, images, first_row, fuse, discarded):
    """Abnar and Zuidema's product of matrices in NumPy, weights discarded one by one."""
    product = np.eye(PATCHES + 1)
    for index in range(3):
        weights = fuse(stated_attention(model, index, images), 1)
        for row in weights.reshape(-1, PATCHES + 1):
            for _ in range(discarded):
                row[np.flatnonzero(row)[row[row > 0].argmin()]] = 0.0
        weights = weights + np.eye(PATCHES + 1)
        product = weights / weights.sum(-1, keepdims=True) @ product
    return (first_row[:, None] @ product)[:, 0, 1:].reshape(-1, ROWS, COLUMNS)


@pytest.mark.parametrize(
    "fuse", slow_except([np.mean, np.max, np.min], fast=[np.mean]), ids=["mean", "max", "min"]
)
@pytest.mark.parametrize(("ratio", "discarded"), [(0.0, 0), (0.45, 3)])
def test_rollout_follows_the_equations(fuse, ratio, discarded):
    model, images = build(), some_images()
    name = {np.mean: "mean", np.max: "max", np.min: "min"}[fuse]
    rollout = keras_vit.attention_rollout(model, head_fusion=name, discard_ratio=ratio)
    class_token = np.eye(1, PATCHES + 1).repeat(2, 0)
    expected = stated_rollout(model, images, class_token, fuse, discarded)
    np.testing.assert_allclose(as_arrays(rollout(images)), expected, rtol=5e-3, atol=1e-5)


def test_rollout_starts_from_the_attention_of_a_pooling():
    model, images = build(pooling="map"), some_images()
    pool = model.get_layer("pool")
    # The pooling looks at the patches alone, not at the class token before them.
    tokens = output_of(model, "encoder_norm", images).astype("float64")[:, 1:]
    query = keras.ops.convert_to_numpy(pool.query(pool.probe)).reshape(4, 4)
    kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in pool.key_value.weights)
    key = (tokens @ kernel + bias)[..., :16]
    scores = np.einsum("hd,bkhd->bhk", query, key.reshape(2, -1, 4, 4)) / 2.0
    weights = np.pad(softmax(scores).mean(1), [(0, 0), (1, 0)])
    expected = stated_rollout(model, images, weights, np.mean, 0)
    shares = as_arrays(keras_vit.attention_rollout(model)(images))
    np.testing.assert_allclose(shares, expected, rtol=5e-3, atol=1e-5)


KINDS = [
    {"register_tokens": 2, "positions": "learned+rope", "layer_scale": 0.1, "qk_norm": True},
    {"class_token": False, "pooling": None, "gated_mlp": True, "activation": "silu"},
    {"distillation_token": True, "head_output": "both"},
    {"positions": "relative", "qkv_bias": "query_value", "pooling": "avg", "pool_norm": True},
    {"pre_norm": True, "register_tokens": 1, "pooling": None},
]


@pytest.mark.parametrize("fields", slow_except(KINDS, KINDS[:2]), ids=str)
def test_every_kind_of_model_can_be_looked_into(fields):
    model, images = build(**fields), some_images()
    maps = as_arrays(keras_vit.attention_maps(model)(images))
    identity = product = np.eye(maps["block_0"].shape[-1])
    for weights in maps.values():
        np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
        product = (weights.mean(1) + identity) / 2 @ product
    if fields.get("pooling") == "avg" or not fields.get("class_token", True):
        rows = product[:, -PATCHES:]
    else:
        rows = product[:, : 1 + fields.get("distillation_token", False)]
    expected = rows.mean(1)[:, -PATCHES:].reshape(2, ROWS, COLUMNS)
    shares = as_arrays(keras_vit.attention_rollout(model)(images))
    np.testing.assert_allclose(shares, expected, rtol=1e-4)


def test_patch_attention_is_the_class_tokens_row():
    model, images = build(), some_images()
    expected = stated_attention(model, 1, images)[:, :, 0, 1:].reshape(2, 4, ROWS, COLUMNS)
    shares = as_arrays(patch_attention(model, 1)(images))
    np.testing.assert_allclose(shares, expected, rtol=2e-3, atol=1e-5)
    fused = as_arrays(patch_attention(model, 1, head_fusion="max")(images))
    np.testing.assert_allclose(fused, expected.max(1), rtol=2e-3, atol=1e-5)


def test_a_model_in_bfloat16_gives_shares_in_float32():
    model, images = build(dtype="mixed_bfloat16"), some_images()
    for look in (keras_vit.attention_rollout, patch_attention):
        shares = look(model)(images)
        assert keras.backend.standardize_dtype(shares.dtype) == "float32"
        exact = build()
        expected = as_arrays(look(exact)(images))
        np.testing.assert_allclose(as_arrays(shares), expected, atol=0.1)


@pytest.mark.slow
def test_predict_gives_the_same_in_batches():
    rollout, images = keras_vit.attention_rollout(build()), some_images(5)
    shares = rollout.predict(images, batch_size=2, verbose=0)
    np.testing.assert_allclose(shares, as_arrays(rollout(images)), rtol=1e-5)


@pytest.mark.parametrize("hottest", [(0, 0), (2, 1), (1, 0)])
def test_the_hottest_patch_is_the_brightest(hottest):
    patch_map = np.zeros((ROWS, COLUMNS))
    patch_map[hottest] = 3.0
    picture = draw_overlay(np.full((30, 24, 3), 60, "uint8"), patch_map)
    assert picture.shape == (30, 24, 3)
    row, column = np.unravel_index(picture.sum(-1).argmax(), (30, 24))
    assert (row // 10, column // 12) == hottest


def test_opacity_covers_the_picture():
    shades = np.random.default_rng(0).integers(0, 256, (8, 8, 1), "uint8").repeat(3, -1)
    np.testing.assert_array_equal(draw_overlay(shades, np.eye(2), opacity=0.0), shades)
    covered = draw_overlay(shades, np.eye(2), opacity=1.0)
    np.testing.assert_array_equal(covered, draw_overlay(255 - shades, np.eye(2), opacity=1.0))


def test_one_patch_far_above_all_others_does_not_hide_them():
    image, patch_map = np.zeros((140, 140, 3), "uint8"), np.zeros((14, 14))
    patch_map[5, 5:10], patch_map[0, 0] = 1.0, 100.0
    brightness = draw_overlay(image, patch_map).sum(-1)
    assert min(brightness[55, 75], brightness[5, 5]) > 0.9 * brightness.max()
    patch_map[5] = 0.0
    alone = draw_overlay(image, patch_map).sum(-1)
    assert alone[5, 5] > 0.9 * brightness.max()
    assert alone[55, 75] == alone.min()


def test_a_map_without_differences_is_drawn_cold():
    image = np.full((8, 8, 3), 100, "uint8")
    picture = draw_overlay(image, np.full((2, 2), 0.25))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1


def test_what_the_network_did_not_see_is_dimmed():
    image = np.full((40, 80, 3), 200, "uint8")
    box = seen_box(40, 80, (16, 16), ImagePreprocessing(crop_fraction=0.5))
    assert box == (10, 30, 30, 50)
    picture = draw_overlay(image, np.eye(2), box=box, opacity=0.0)
    assert (picture[10:30, 30:50] == 200).all()
    picture[10:30, 30:50] = 0
    assert picture.max() == 30


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@given(height=st.integers(1, 400), width=st.integers(1, 400), fraction=st.floats(0.5, 1.0))
def test_the_seen_part_lies_in_the_image(crop_mode, height, width, fraction):
    policy = ImagePreprocessing(crop_fraction=fraction, crop_mode=crop_mode)
    top, left, bottom, right = seen_box(height, width, (16, 32), policy)
    assert 0 <= top < bottom <= height
    assert 0 <= left < right <= width


def test_of_a_strip_a_pixel_is_seen():
    assert seen_box(1, 300, (16, 16), ImagePreprocessing()) == (0, 150, 1, 151)
    assert seen_box(301, 1, (16, 16), ImagePreprocessing()) == (150, 0, 151, 1)


@pytest.mark.parametrize(
    ("image", "patch_map", "options", "message"),
    [
        (np.zeros((8, 8, 3)), np.eye(2), {}, "`image` must be a uint8 array"),
        (np.zeros((8, 8), "uint8"), np.eye(2), {}, "`image` must be a uint8 array"),
        (np.zeros((8, 8, 3), "uint8"), np.zeros(4), {}, "`patch_map` must be an array"),
        (np.zeros((8, 8, 3), "uint8"), np.full((2, 2), np.nan), {}, "finite"),
        (np.zeros((8, 8, 3), "uint8"), np.eye(2), {"opacity": 2}, "`opacity` must be in"),
        (
            np.zeros((8, 9, 3), "uint8"),
            np.eye(2),
            {"box": (0, 3, 8, 3)},
            "`box` must.*8 pixels high and 9",
        ),
        (np.zeros((8, 9, 3), "uint8"), np.eye(2), {"box": (0, 0, 9, 8)}, r"box=\(0, 0, 9, 8\)"),
    ],
)
def test_what_cannot_be_drawn_is_named(image, patch_map, options, message):
    with pytest.raises(ValueError, match=message):
        draw_overlay(image, patch_map, **options)


def test_a_sheet_holds_every_picture():
    pictures = [np.full((6, 8, 3), shade, "uint8") for shade in range(5)]
    sheet = draw_sheet(pictures, gap=1)
    assert sheet.shape == (13, 26, 3)
    for shade in range(5):
        assert (sheet == shade).all(-1).sum() == 48
    assert (sheet[:6, :8] == 0).all()
    assert (sheet[7:, 9:17] == 4).all()


def test_a_picture_replaces_no_file(tmp_path):
    first, second = (np.full((4, 4, 3), shade, "uint8") for shade in (1, 2))
    paths = [write_picture(picture, tmp_path, "cat") for picture in (first, second)]
    assert [path.name for path in paths] == ["cat.png", "cat-2.png"]
    for path, picture in zip(paths, (first, second), strict=True):
        np.testing.assert_array_equal(keras_vit.data.decode_image(path), picture)
    assert len(list(tmp_path.iterdir())) == 2


def test_pictures_written_at_once_get_a_file_each(tmp_path, monkeypatch):
    first, second = (np.full((4, 4, 3), shade, "uint8") for shade in (1, 2))
    save = Image.Image.save

    def save_while_another_is_written(*arguments):
        monkeypatch.setattr(Image.Image, "save", save)
        write_picture(second, tmp_path, "cat")
        save(*arguments)

    monkeypatch.setattr(Image.Image, "save", save_while_another_is_written)
    write_picture(first, tmp_path, "cat")
    for name, picture in {"cat.png": first, "cat-2.png": second}.items():
        np.testing.assert_array_equal(keras_vit.data.decode_image(tmp_path / name), picture)


def test_a_picture_that_cannot_be_written_takes_no_name(tmp_path):
    with pytest.raises(TypeError):
        write_picture(np.zeros((4, 4, 5)), tmp_path, "cat")
    assert not list(tmp_path.iterdir())
