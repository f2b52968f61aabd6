"""Models with fewer tokens: built, read back, saved, loaded, resized, counted, refused."""

import dataclasses

import keras
import numpy as np
import pytest
from parameters import slow_except, slow_on_jax

import keras_vit
from keras_vit.layers import TokenMergingBlock, TokenPooling, TokenPruningBlock, TransformerBlock
from keras_vit.models import (
    VisionTransformerConfig,
    config_of,
    count_macs,
    vision_transformer,
    without_unread_tokens,
)

TINY = {
    "patch_size": 4,
    "hidden_size": 16,
    "depth": 4,
    "mlp_dim": 24,
    "num_heads": 2,
    "image_size": 24,
    "num_classes": 3,
}
OPTIONS = {
    "merging": {"token_merging": 5},
    "merging before a mean": {"token_merging": 5, "pooling": "avg", "class_token": False},
    "merging before a pooling by attention": {"token_merging": 40, "pooling": "map"},
    "merging beside all tokens": {
        "token_merging": 3,
        "distillation_token": True,
        "register_tokens": 2,
        "head_output": "both",
    },
    "merging beside token and mean": {
        "token_merging": 4,
        "pooling": "token+avg",
        "layer_scale": 0.5,
        "qkv_bias": "query_value",
        "qk_norm": True,
        "gated_mlp": True,
        "pool_norm": True,
    },
    "pruning": {"token_keep_rate": 0.5},
    "pruning beside registers": {"token_keep_rate": 0.7, "register_tokens": 3},
    "dropping": {"patch_dropout": 0.5, "pre_norm": True},
    "dropping and merging": {"patch_dropout": 0.5, "token_merging": 5, "pooling": "map"},
}


def tiny(**fields):
    """A model whose every weight matters."""
    model = vision_transformer(VisionTransformerConfig(**TINY | fields))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(rng.normal(0.1, 0.3, weight.shape))
    return model


def images(size=24, count=3):
    return np.random.default_rng(0).uniform(0, 255, (count, size, size, 3)).astype("float32")


def run(model, pixels, **options):
    outputs = model(pixels, **options)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    return np.stack([keras.ops.convert_to_numpy(output) for output in outputs])


def plain_twin(model):
    """The model of the same weights that keeps all of its tokens."""
    config = dataclasses.replace(
        config_of(model), token_merging=0, token_keep_rate=1.0, patch_dropout=0.0
    )
    twin = vision_transformer(config)
    values = {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights}
    for weight in twin.weights:
        weight.assign(values.pop(weight.path))
    assert all("seed" in path for path in values)
    return twin


@slow_on_jax
@pytest.mark.parametrize("name", slow_except(OPTIONS, fast=["merging beside token and mean"]))
def test_a_model_is_read_back_saved_resized_and_of_the_same_weights(name, tmp_path):
    model = tiny(**OPTIONS[name])
    config = VisionTransformerConfig(**TINY | OPTIONS[name])
    assert config_of(model) == config
    outputs = run(model, images())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert config_of(loaded) == config
    np.testing.assert_array_equal(run(loaded, images()), outputs)
    again = keras_vit.from_checkpoint(tmp_path / "model.keras")
    np.testing.assert_array_equal(run(again, images()), outputs)
    whole = keras_vit.from_checkpoint(
        tmp_path / "model.keras", token_merging=0, token_keep_rate=1.0, patch_dropout=0.0
    )
    np.testing.assert_array_equal(run(whole, images()), run(plain_twin(model), images()))
    if config.reduction:
        assert np.abs(run(whole, images()) - outputs).max() > 1e-4
    resized = keras_vit.resize(model, image_size=32)
    assert config_of(resized) == dataclasses.replace(config, image_size=32)
    assert np.isfinite(run(resized, images(32), training=True)).all()


def test_a_model_that_keeps_all_tokens_is_built_of_plain_layers():
    model = tiny()
    assert not [layer for layer in model.layers if layer.name == "patch_dropout"]
    blocks = [model.get_layer(f"block_{index}") for index in range(4)]
    assert {type(block) for block in blocks} == {TransformerBlock}
    names = [layer.name for layer in tiny(patch_dropout=0.1, pre_norm=True).layers]
    first = names.index("patch_encoder")
    assert names[first : first + 4] == ["patch_encoder", "patch_dropout", "pre_norm", "block_0"]


def test_how_many_tokens_each_block_hands_on():
    def counts(**fields):
        model = tiny(depth=12, **fields)
        outputs = [model.get_layer(f"block_{index}").output for index in range(12)]
        return [(o[0] if isinstance(o, (list, tuple)) else o).shape[1] for o in outputs]

    assert counts(token_merging=2) == [37 - 2 * (i + 1) for i in range(12)]
    # 36 patches: half of them at most.
    assert counts(token_merging=20)[:4] == [1 + 18, 1 + 9, 1 + 5, 1 + 3]
    # The 4th, 7th and 10th block, as in EViT: 18 of 36 and one of the rest, 10 of 19, 6 of 11.
    assert counts(token_keep_rate=0.5) == [37] * 3 + [20] * 3 + [12] * 3 + [8] * 3
    model = tiny(depth=16, token_keep_rate=0.5)
    pruning = [i for i in range(16) if isinstance(model.get_layer(f"block_{i}"), TokenPruningBlock)]
    assert pruning == [4, 8, 12]


@slow_on_jax
def test_images_of_equal_patches_lose_nothing_by_merging():
    """Equal patches at equal positions are one: merged or not, the output is the same."""
    model = tiny(token_merging=5, positions=None, pooling="token+avg")
    pixels = np.tile(images(4), (1, 6, 6, 1))
    np.testing.assert_allclose(
        run(model, pixels), run(plain_twin(model), pixels), rtol=1e-4, atol=1e-4
    )


def test_merging_goes_by_content_alone():
    """Without positions, patches of a half that swap places change nothing in one block."""
    model = tiny(depth=1, token_merging=5, positions=None, pooling="avg")
    tokens = images().reshape(3, 6, 4, 6, 4, 3)
    turned = tokens[:, :, :, [2, 3, 4, 5, 0, 1]]
    np.testing.assert_allclose(
        run(model, tokens.reshape(3, 24, 24, 3)),
        run(model, turned.reshape(3, 24, 24, 3)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_patches_are_dropped_in_training_alone():
    model = tiny(patch_dropout=0.5, pooling="avg")
    still = run(model, images())
    np.testing.assert_array_equal(still, run(plain_twin(model), images()))
    one, two = (run(model, images(), training=True) for _ in range(2))
    assert np.abs(one - two).max() > 1e-3 and np.abs(one - still).max() > 1e-3


def test_builders_take_the_options():
    model = keras_vit.create("vit_ti16", 2, image_size=64, token_merging=2, patch_dropout=0.2)
    assert isinstance(model.get_layer("block_11"), TokenMergingBlock)
    model = keras_vit.ViTTi16(2, image_size=64, token_keep_rate=0.7)
    assert config_of(model).token_keep_rate == 0.7


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"token_merging": 2, "positions": "rope"}, ("token_merging", "positions")),
        ({"token_keep_rate": 0.5, "positions": "learned+rope"}, ("token_keep_rate", "positions")),
        ({"patch_dropout": 0.5, "positions": "relative"}, ("patch_dropout", "positions")),
        ({"token_merging": 2, "pooling": None}, ("token_merging", "pooling")),
        ({"token_merging": 2, "token_keep_rate": 0.5}, ("token_keep_rate", "token_merging")),
        ({"token_keep_rate": 0.5, "pooling": "avg"}, ("token_keep_rate", "pooling")),
        (
            {"token_keep_rate": 0.5, "pooling": "avg", "class_token": False},
            ("token_keep_rate", "pooling"),
        ),
        ({"token_keep_rate": 0.0}, ("token_keep_rate=0.0",)),
        ({"token_keep_rate": 1.5}, ("token_keep_rate=1.5",)),
        ({"token_merging": -1}, ("token_merging=-1",)),
        ({"token_merging": 2.0}, ("token_merging=2.0",)),
        ({"patch_dropout": 1.0}, ("patch_dropout=1.0",)),
    ],
)
def test_what_contradicts_itself_is_named(fields, names):
    with pytest.raises(ValueError) as error:
        VisionTransformerConfig(**TINY | fields)
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize("option", ["merging", "pruning"])
def test_places_in_the_image_are_refused(option):
    from keras_vit import inspection

    model = tiny(**OPTIONS[option])
    for look in (
        inspection.features,
        inspection.attention_maps,
        inspection.attention_rollout,
        inspection.patch_attention,
    ):
        with pytest.raises(ValueError, match="token_(merging=5|keep_rate=0.5); look into a model"):
            look(model)
    # Patches that are dropped in training only are all there when one looks.
    assert inspection.features(tiny(patch_dropout=0.5), [-1])(images())["block_3"]["grid"].shape


def test_a_format_that_cannot_say_it_refuses_it(tmp_path):
    with pytest.raises(ValueError, match="token_merging"):
        keras_vit.save_checkpoint(tiny(token_merging=2), tmp_path / "timm", "timm")


def test_multiply_adds_by_hand():
    """Attention sees the tokens that come in, the MLP those that are left."""
    config = VisionTransformerConfig(**TINY | {"depth": 2, "token_merging": 5})
    width, patches = 16, 36
    expected = patches * 48 * width + width * 3
    for tokens, left in ((37, 32), (32, 27)):
        expected += tokens * 4 * width * width + 2 * tokens * tokens * width
        expected += left * 2 * width * 24
    assert count_macs(config) == expected
    pruned = VisionTransformerConfig(**TINY | {"token_keep_rate": 0.5})
    whole = VisionTransformerConfig(**TINY)
    assert count_macs(pruned) < 0.7 * count_macs(whole)


def with_a_second_reader(model):
    tokens = model.get_layer("encoder_norm").output
    mean = keras.layers.GlobalAveragePooling1D()(tokens)
    both = keras.layers.Concatenate()([model.get_layer("pool").output, mean])
    return keras.Model(model.input, both)


def with_its_tokens(model):
    return keras.Model(model.input, [model.output, model.get_layer("encoder_norm").output])


def with_a_map_of_places(model):
    patches = model.get_layer("block_3").output[:, 1:]
    places = keras.layers.Reshape((6, 6, 16))(patches)
    return keras.Model(model.input, [model.output, places])


@pytest.mark.parametrize("extend", [with_a_second_reader, with_its_tokens, with_a_map_of_places])
def test_tokens_that_others_read_are_all_computed(extend):
    model = extend(tiny())
    assert without_unread_tokens(model) is model


def test_a_mean_of_earlier_tokens_is_left_alone():
    model = tiny()
    early = TokenPooling("avg")(model.get_layer("block_0").output)
    model = keras.Model(model.input, [model.output, early])
    shorter = without_unread_tokens(model)
    assert last_tokens(shorter) == 1
    to_numpy = keras.ops.convert_to_numpy
    for found, expected in zip(shorter(images()), model(images()), strict=True):
        found, expected = to_numpy(found), to_numpy(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def last_tokens(model):
    """How many tokens reach the pooling of `model`."""
    seen = []

    def call(layer, *arguments, **options):
        if layer.name == "pool":
            seen.append(arguments[0].shape[1])
        return layer(*arguments, **options)

    keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)
    return seen[0]


def test_a_compiled_model_of_fewer_tokens_is_not_compiled():
    model = tiny()
    outputs = run(model, images())
    model.compile("adam", loss=lambda labels, logits: keras.ops.mean(logits - labels, axis=-1))
    shorter = without_unread_tokens(model)
    assert model.compiled and not shorter.compiled and last_tokens(shorter) == 1
    assert [id(weight) for weight in shorter.weights] == [id(weight) for weight in model.weights]
    np.testing.assert_allclose(run(shorter, images()), outputs, rtol=1e-4, atol=1e-5)
