"""The config, the builder, the table of variants and the named builders."""

import dataclasses
import gc
import itertools

import keras
import numpy as np
import pytest
from parameters import slow_except, slow_on_jax

import keras_vit
from keras_vit.layers import ImagePreprocessing
from keras_vit.models import (
    VARIANTS,
    VisionTransformerConfig,
    config_of,
    count_parameters,
    vision_transformer,
)
from keras_vit.zoo import builders

TINY = {"patch_size": 4, "hidden_size": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2}

BUILDERS = {
    "vit_ti16": keras_vit.ViTTi16,
    "vit_s8": keras_vit.ViTS8,
    "vit_s16": keras_vit.ViTS16,
    "vit_s32": keras_vit.ViTS32,
    "vit_b8": keras_vit.ViTB8,
    "vit_b16": keras_vit.ViTB16,
    "vit_b32": keras_vit.ViTB32,
    "vit_l16": keras_vit.ViTL16,
    "vit_l32": keras_vit.ViTL32,
    "vit_h14": keras_vit.ViTH14,
    "vit_g14": keras_vit.ViTg14,
}


def parameters(patch_size, hidden_size, depth, mlp_dim, num_heads, num_classes=1000):
    """The paper's equations, counted by hand."""
    d = hidden_size
    embedding = (patch_size**2 * 3 + 1) * d + d + ((224 // patch_size) ** 2 + 1) * d
    block = 4 * d + (d + 1) * 3 * d + (d + 1) * d + (d + 1) * mlp_dim + (mlp_dim + 1) * d
    return embedding + depth * block + 2 * d + (d + 1) * num_classes


def tiny(**fields):
    return vision_transformer(VisionTransformerConfig(**{**TINY, "image_size": 16, **fields}))


def images(size=(16, 16), count=2):
    return np.random.default_rng(0).uniform(0, 255, (count, *size, 3)).astype("float32")


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def test_list_models_is_the_table():
    assert keras_vit.list_models() == sorted(VARIANTS)
    assert set(BUILDERS) < set(VARIANTS)


# tests/test_models_counts.py has the count of every variant.
@pytest.mark.parametrize("variant", BUILDERS)
def test_the_builder_of_a_variant(variant, monkeypatch):
    """What a builder would build has the parameters of the paper's equations."""
    monkeypatch.setattr(builders, "vision_transformer", lambda config, dtype, name: (config, name))
    config, name = BUILDERS[variant]()
    assert name == variant
    assert count_parameters(config) == parameters(**VARIANTS[variant])


@pytest.mark.parametrize("variant", slow_except(["vit_ti16", "vit_s32"], fast=["vit_s32"]))
def test_parameters_of_built_models(variant):
    assert BUILDERS[variant]().count_params() == parameters(**VARIANTS[variant])


@slow_on_jax
def test_one_variant_of_each_family_runs():
    """Two blocks of it, which tells that its switches fit each other."""
    families = {name.partition("_")[0]: name for name in VARIANTS}
    assert len(families) > 10
    for name in [*families.values(), "deit_ti16_distilled", "dinov2_reg_s14", "vit_r26_s32"]:
        small = {"hidden_size": 32, "num_heads": 2, "mlp_dim": 64, "depth": 2, "num_classes": 3}
        row = VARIANTS[name]
        stride = VisionTransformerConfig(**row).patch_stride[0]
        model = keras_vit.create(name, image_size=2 * stride, **small)
        assert model(images(model.input_shape[1:3])).shape == (2, 3), name
        config = VisionTransformerConfig(**row | small | {"image_size": 2 * stride})
        assert config_of(model) == config, name


def test_parameters_of_the_readme():
    assert keras_vit.ViTB16(num_classes=100).count_params() == 85_875_556


def test_layer_names_are_the_documented_ones():
    names = [layer.name for layer in tiny(representation_size=8).layers]
    assert names == [
        *("images", "preprocessing", "patches", "patch_encoder", "block_0", "block_1"),
        *("encoder_norm", "pool", "pre_logits", "head"),
    ]
    names = [layer.name for layer in tiny(pool_norm=True, pooling="avg").layers]
    assert names[-3:] == ["pool", "pool_norm", "head"]
    assert "encoder_norm" not in names


ARGUMENTS = {
    "num_classes": [3],
    "image_size": [16, (8, 16)],
    "include_top": [True, False],
    "pooling": ["token", "avg", "map", "token+avg", None],
    "class_token": [True, False],
    "representation_size": [None, 8],
    "classifier_activation": [None, "softmax"],
    "include_preprocessing": [True, False],
    "preprocessing": ["inception", "imagenet", (0.4, 0.3), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))],
    "activation": ["gelu", "gelu_tanh", "quick_gelu"],
    "dropout": [0.0, 0.1],
    "attention_dropout": [0.0, 0.1],
    "drop_path": [0.0, 0.2],
}


def combinations():
    """Each argument's every value, with the others drawn; and every pooling with every top."""
    rng = np.random.default_rng(0)
    for name, values in ARGUMENTS.items():
        for value in values:
            yield {n: v[rng.integers(len(v))] for n, v in ARGUMENTS.items()} | {name: value}
    keys = ("pooling", "class_token", "include_top", "representation_size")
    for chosen in itertools.product(*(ARGUMENTS[key] for key in keys)):
        yield dict(zip(keys, chosen, strict=True))


COMBINATIONS = list(combinations())


@pytest.mark.parametrize("options", slow_except(COMBINATIONS, COMBINATIONS[::5]))
def test_every_argument_alone_and_together(options):
    if "token" in str(options["pooling"]) and not options["class_token"]:
        with pytest.raises(ValueError, match="needs a class token"):
            tiny(**options)
        return
    config = VisionTransformerConfig(**{**TINY, "image_size": 16, **options})
    model = vision_transformer(config)
    outputs = to_numpy(model(images(config.image_size)))
    width = 16 * (2 if config.pooling == "token+avg" else 1)
    width = config.representation_size or width
    width = config.num_classes if config.include_top else width
    tokens = config.grid[0] * config.grid[1] + config.class_token
    expected = (2, tokens, width) if config.pooling is None else (2, width)
    assert outputs.shape == expected, options
    assert np.isfinite(outputs).all()
    rebuilt = config_of(model)
    blank = {"num_classes": 1000} if not config.include_top else {}
    if not config.include_top:
        blank["classifier_activation"] = None
    if not config.include_preprocessing:
        blank["preprocessing"] = "inception"
    assert rebuilt == dataclasses.replace(config, **blank)


def test_head_starts_at_zero():
    outputs = to_numpy(tiny(num_classes=4)(images()))
    np.testing.assert_array_equal(outputs, np.zeros((2, 4)))
    softmax = tiny(num_classes=4, classifier_activation="softmax")
    np.testing.assert_allclose(to_numpy(softmax(images())), np.full((2, 4), 0.25))


def test_uint8_and_float_pixels_are_the_same():
    model = tiny(include_top=False)
    pixels = images().astype("uint8")
    whole = to_numpy(model(pixels))
    np.testing.assert_allclose(whole, to_numpy(model(pixels.astype("float32"))), rtol=1e-6)
    np.testing.assert_allclose(whole, model.predict(pixels, verbose=0), rtol=1e-3, atol=1e-4)


def test_preprocessing_inside_equals_preprocessing_outside():
    inside = tiny(include_top=False, preprocessing="imagenet")
    outside = tiny(include_top=False, include_preprocessing=False)
    outside.set_weights(inside.get_weights())
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scaled = ((images() / 255 - mean) / std).astype("float32")
    np.testing.assert_allclose(
        to_numpy(inside(images())), to_numpy(outside(scaled)), rtol=1e-3, atol=1e-4
    )


def test_drop_path_rises_linearly():
    model = tiny(depth=5, drop_path=0.4)
    rates = [model.get_layer(f"block_{i}").drop_path_rate for i in range(5)]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_logits_are_float32_under_mixed_precision(dtype):
    config = VisionTransformerConfig(**TINY, image_size=16, num_classes=3)
    model, exact = vision_transformer(config, dtype=dtype), vision_transformer(config)
    rng = np.random.default_rng(0)
    weights = [rng.normal(scale=0.2, size=w.shape).astype("float32") for w in exact.weights]
    model.set_weights(weights)
    exact.set_weights(weights)
    outputs = model(images())
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    assert keras.backend.standardize_dtype(model.get_layer("block_0").compute_dtype) == dtype[6:]
    reference = to_numpy(exact(images()))
    assert np.abs(to_numpy(outputs) - reference).max() < 0.05 * np.abs(reference).max() + 0.02


def test_saved_model_file_keeps_everything(tmp_path):
    model = tiny(num_classes=3, preprocessing="imagenet", image_size=(8, 16), drop_path=0.1)
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(16, 3)))
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert config_of(twin) == config_of(model)
    pixels = images((8, 16))
    np.testing.assert_array_equal(to_numpy(model(pixels)), to_numpy(twin(pixels)))


@pytest.fixture
def little_garbage():
    """Keras collects garbage after each layer that it quantises: what is there already is left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


QUANTIZED = [("int8", {"pooling": "map"}), ("int8", {}), ("int4", {}), ("float8", {})]


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize(("mode", "fields"), slow_except(QUANTIZED, QUANTIZED[:1]))
def test_a_quantised_model_is_saved_whole(mode, fields, tmp_path, little_garbage):
    model = tiny(num_classes=5, depth=1, **fields)
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(16, 5)))
    model.quantize(mode)
    outputs = to_numpy(model(images()))
    for name in ("first", "second"):
        model.save(tmp_path / f"{name}.keras")
        model = keras.saving.load_model(tmp_path / f"{name}.keras")
    assert model.get_layer("block_0").mlp.projection.quantization_mode == mode
    np.testing.assert_array_equal(to_numpy(model(images())), outputs)
    with pytest.raises(ValueError, match="holds a quantised model.*load_model"):
        keras_vit.from_checkpoint(tmp_path / "second.keras")


def test_gradient_reaches_every_weight():
    """One SGD step with a loss on all outputs moves each trainable weight."""
    model = tiny(num_classes=3)
    rng = np.random.default_rng(0)
    head = model.get_layer("head")
    head.kernel.assign(rng.normal(size=(16, 3)))
    before = [to_numpy(w).copy() for w in model.trainable_weights]
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
    model.train_on_batch(images(count=4), rng.normal(size=(4, 3)).astype("float32"))
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.abs(to_numpy(weight) - old).max() > 0, weight.path


BAD = {
    "image_size": [0, -16, (16, 0), 17, (16, 18), 2.0, "16", (4, 4, 4), None],
    "patch_size": [0, -1, 3.5],
    "num_classes": [0, -1, 2.5, None],
    "num_heads": [0, 3],
    "depth": [0],
    "hidden_size": [0],
    "mlp_dim": [-1],
    "dropout": [1.0, -0.1, None, "a", False],
    "drop_path": [1.5, float("nan")],
    "attention_dropout": [-1],
    "patch_dropout": ["0.5"],
    "token_keep_rate": [0.0, 1.1, None],
    "layer_scale": [0.0, -1, "a", True],
    "rope_base": ["100", float("inf")],
    "include_top": ["False", 0, None],
    "include_preprocessing": ["no"],
    "class_token": ["no"],
    "distillation_token": ["no"],
    "gated_mlp": [1],
    "patch_bias": [None],
    "pre_norm": ["x"],
    "qkv_bias": [1, "all"],
    "qk_norm": ["no"],
    "pool_norm": [[]],
    "remat": [1],
    "pooling": ["mean", "cls"],
    "activation": ["gelu_exact"],
    "preprocessing": ["imgnet", 0.5, ((0.5,), (0.5,), (0.5,))],
    "layer_norm_epsilon": [0.0],
    "representation_size": [0],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_bad_argument_is_named(name, value):
    with pytest.raises(ValueError, match=rf"{name}\b.*{name}="):
        tiny(**{name: value})


def test_no_classes_are_no_head():
    with pytest.raises(ValueError, match="`include_top=False`.*num_classes=0"):
        tiny(num_classes=0)


@pytest.mark.parametrize("pair", [((0.5, 0.5), (0.5, 0.5)), (0.5, 0.0), (0.5, (1, 1, -1))])
def test_a_pair_that_cannot_scale_pixels(pair):
    with pytest.raises(ValueError, match=r"`(mean|std)` must"):
        tiny(preprocessing=pair)


def test_a_distilled_model_without_pooling_has_one_head_for_all_tokens():
    options = {"distillation_token": True, "pooling": None, "num_classes": 3}
    model = tiny(classifier_activation="softmax", **options)
    outputs = to_numpy(model(images()))
    assert outputs.shape == (2, 18, 3)
    np.testing.assert_allclose(outputs.sum(-1), 1.0, rtol=1e-5)
    assert config_of(model).classifier_activation == "softmax"
    with pytest.raises(ValueError, match=r'`head_output="both"` needs a pooling.*pooling=None'):
        tiny(head_output="both", **options)


def test_one_mean_for_channels_of_several_deviations():
    scale = ImagePreprocessing(mean=0.5, std=(0.2, 0.25, 0.5))
    found = to_numpy(scale(np.full((1, 1, 1, 3), 255.0, "float32")))
    np.testing.assert_allclose(found.ravel(), [2.5, 2.0, 1.0], rtol=1e-6)


def test_numpy_numbers_are_numbers():
    model = tiny(
        image_size=np.int64(8),
        num_classes=np.int32(3),
        dropout=np.float32(0.1),
        qkv_bias=np.bool_(False),
        pre_norm=np.bool_(True),
    )
    assert model.input_shape == (None, 8, 8, 3)
    config = config_of(model)
    assert config.num_classes == 3
    assert config.qkv_bias is False and config.pre_norm is True


def test_the_error_says_which_size_would_fit():
    with pytest.raises(ValueError, match="whose height would fit as 208 or 224"):
        keras_vit.ViTB16(image_size=(220, 224))


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match="Did you mean vit_b16"):
        keras_vit.create("vit_b61")
    with pytest.raises(ValueError, match="Did you mean inception"):
        keras_vit.ViTTi16(preprocessing="inceptoin")


def test_list_models_by_pattern():
    assert keras_vit.list_models("vit_?16") == ["vit_b16", "vit_l16", "vit_s16"]
    assert "dinov2_reg_g14" in keras_vit.list_models("dinov2*")
    assert keras_vit.list_models("nothing") == []


def test_named_builders_take_name_and_dtype():
    model = keras_vit.ViTTi16(num_classes=2, image_size=32, name="mine", dtype="mixed_bfloat16")
    assert model.name == "mine"
    assert model.get_layer("block_3").dtype_policy.name == "mixed_bfloat16"
    with pytest.raises(TypeError, match="num_clases"):
        keras_vit.ViTTi16(num_clases=2)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pooling": "map"},
        {"stem_blocks": (1,), "stem_width": 32, "patch_size": 2},
        {"gated_mlp": True, "layer_scale": 1e-5, "qk_norm": True, "positions": "rope"},
    ],
    ids=["plain", "map", "hybrid", "options"],
)
def test_what_is_frozen_stays_frozen_in_copies(fields, tmp_path):
    def trained(model):
        return [weight.path for weight in model.trainable_weights]

    model = tiny(num_classes=3, **fields)
    for layer in model.layers:
        layer.trainable = layer.name in ("block_1", "head")
    expected = trained(model)
    assert len(expected) < len(model.weights)
    model.save(tmp_path / "model.keras")
    assert trained(keras.saving.load_model(tmp_path / "model.keras")) == expected
    assert trained(keras.models.clone_model(model)) == expected
    model.trainable = False
    whole = keras.Sequential([model, keras.layers.Dense(2)])
    whole.build((None, 16, 16, 3))
    whole.save(tmp_path / "whole.keras")
    assert len(trained(keras.saving.load_model(tmp_path / "whole.keras"))) == 2


@pytest.mark.parametrize(
    ("outputs", "what"),
    [
        (lambda model: keras.layers.Softmax(name="shares")(model.output), "shares"),
        (lambda model: keras.ops.softmax(model.output), "softmax"),
        (lambda model: model.output[:, :2], "get_item"),
        (lambda model: another_head(model, keras.layers.Dropout(0.1, name="drop")), "drop"),
        (
            lambda model: another_head(
                model, keras.layers.Dense(8, activation="gelu", name="pre_logits")
            ),
            "pre_logits",
        ),
    ],
    ids=["layer", "operation", "slice", "before the head", "another activation"],
)
def test_what_was_added_to_a_model_is_not_left_out_of_its_copies(outputs, what, tmp_path):
    model = tiny(num_classes=3)
    model = keras.Model(model.input, outputs(model))
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=f"has besides: {what}"):
        keras_vit.save_checkpoint(model, tmp_path / "timm", "timm")
    with pytest.raises(ValueError, match=f"has besides: {what}"):
        keras_vit.resize(model, (32, 32))
    with pytest.raises(ValueError, match=f"besides {what}.*, which its like would lack"):
        keras_vit.from_checkpoint(tmp_path / "model.keras")
    # To train on from, what was added may go.
    report = keras_vit.from_checkpoint(tmp_path / "model.keras", num_classes=7).load_report
    assert any(f"layers that were added are left out: {what}" in note for note in report.notes)


def another_head(model, layer):
    return keras.layers.Dense(3, name="head")(layer(model.get_layer("pool").output))
