"""Every family in every format against an independent statement of it, from random files alone."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import safetensors.numpy
from conftest import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_checkpoints import (
    as_torchvision,
    google_tensors,
    stacked,
    timm_tensors,
    write_google,
    write_timm,
    write_transformers,
)
from reference_forward import (
    axis_weights,
    google_forward,
    resized_patch_kernel,
    resized_positions,
    timm_forward,
)

import keras_vit
from keras_vit.checkpoints import CheckpointError, inspect_checkpoint

TOLERANCE = 2e-5


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def images(size=(12, 12)):
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")


def load(path, **fields):
    return keras_vit.from_checkpoint(path, include_preprocessing=False, **fields)


def weight(model, path):
    return to_numpy(next(weight for weight in model.weights if weight.path == path))


# timm: name → (options of the file, model_args, what the forward pass is told).

SCALED = {"layer_scale": "ls1.gamma"}
DINOV3 = {
    **{"qkv_bias": "query_value", "layer_scale": "gamma_1", "slots": None, "classes": None},
    **{"registers": 2, "architecture": "vit_small_patch16_dinov3"},
}
ROPE = {"use_rot_pos_emb": True, "rope_type": "dinov3", "rope_rotate_half": True}
EVA = "eva_giant_patch14_224"
BEIT = {
    **{"qkv_bias": "query_value", "layer_scale": "gamma_1", "slots": None, "relative": True},
    **{"fc_norm": True, "architecture": "beit_base_patch16_224"},
}
SILU = {"activation": "silu"}
AVERAGE = {"pooling": "avg"}
TIMM = {
    "vit": ({"depth": 2}, {}, {}),
    "no head": ({"classes": None}, {}, {}),
    "tanh gelu": ({}, {"act_layer": "gelu_tanh"}, {"activation": "gelu_tanh"}),
    "epsilon": ({}, {"norm_eps": 0.01}, {"epsilon": 0.01}),
    "mean": ({}, {"global_pool": "avg"}, {"pooling": "avg"}),
    "mean, then norm": ({"fc_norm": True}, {"global_pool": "avg"}, {}),
    "mean without class token": ({"class_token": False}, {}, {"pooling": "avg"}),
    "distilled": ({"distilled": True}, {}, {}),
    "deit3": ({"slots": "patches", **SCALED}, {}, {}),
    "registers": ({"registers": 3, "slots": "patches", **SCALED}, {}, {}),
    "registers with positions": ({"registers": 3, "slots": "all"}, {}, {}),
    "registers alone": (
        {"registers": 1, "slots": "all", "class_token": False, "fc_norm": True},
        {"global_pool": "avg"},
        {},
    ),
    "swiglu": (
        {"gated": "packed", "registers": 4, "slots": "patches", **SCALED},
        {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"},
        SILU,
    ),
    "swiglu apart": ({"gated": "apart"}, {"mlp_layer": "SwiGLU"}, SILU),
    "gated gelu": ({"gated": "packed"}, {"mlp_layer": "SwiGLUPacked"}, {"activation": "gelu"}),
    "clip": (
        {"pre_norm": True, "architecture": "vit_base_patch32_clip_quickgelu_224"},
        {},
        {"activation": "quick_gelu", "epsilon": 1e-5},
    ),
    "siglip": (
        {"map_pool": True, "class_token": False, "classes": None},
        {"global_pool": "map"},
        {"pooling": "map"},
    ),
    "map with registers": (
        {"map_pool": True, "class_token": False, "registers": 2, "slots": "patches"},
        {"global_pool": "map"},
        {"pooling": "map"},
    ),
    "qk norm": ({"qk_norm": True, "qkv_bias": False}, {"qk_norm": True, "qkv_bias": False}, {}),
    "eva": (
        {"qkv_bias": "query_value", "fc_norm": True, "architecture": EVA},
        {},
        {},
    ),
    "eva, the mean unsaid": ({"qkv_bias": "query_value", "architecture": EVA}, {}, AVERAGE),
    "eva with rotary positions": (
        {**DINOV3, "architecture": EVA, "fc_norm": True},
        {**ROPE, "use_abs_pos_emb": False},
        {"rope_base": 10000.0},
    ),
    "eva with both positions": (
        {**DINOV3, "architecture": EVA, "slots": "all"},
        {**ROPE, "rope_temperature": 50.0, "rope_grid_indexing": "ij"},
        {"rope_base": 50.0, **AVERAGE},
    ),
    "dinov3 with both positions": (
        {**DINOV3, "slots": "all"},
        {"use_abs_pos_emb": True},
        {"rope_base": 100.0, "epsilon": 1e-5, **AVERAGE},
    ),
    "dinov3 without positions": (
        DINOV3,
        {"use_rot_pos_emb": False},
        {"epsilon": 1e-5, **AVERAGE},
    ),
    "dinov3": (DINOV3, {}, {"rope_base": 100.0, "epsilon": 1e-5, "pooling": "avg"}),
    "dinov3 swiglu, not square": (
        {**DINOV3, "grid": (2, 4), "gated": "apart", "heads": 4},
        {"rope_temperature": 50.0, "global_pool": "token"},
        {"rope_base": 50.0, "epsilon": 1e-5, "pooling": "token", **SILU},
    ),
    "beit": (BEIT, {"global_pool": "avg"}, {}),
    "beit, not square": ({**BEIT, "grid": (2, 4), "heads": 4}, {}, {}),
    "beit with learned positions": ({**BEIT, "slots": "class"}, {}, {}),
    "stem": ({"stem_blocks": (), "patch": 2, "image_size": (24, 24)}, {}, {}),
    "resnet": ({"stem_blocks": (2, 1), "patch": 1, "image_size": (24, 24)}, {}, {}),
}


@pytest.mark.parametrize("case", TIMM)
def test_timm(tmp_path, case):
    options, arguments, switches = TIMM[case]
    options = {"heads": 2, "depth": 1, **options}
    size = options.pop("image_size", None)
    size = size or tuple(4 * side for side in options.get("grid", (3, 3)))
    tensors = write_timm(tmp_path, image_size=size, arguments=arguments, **options)
    model = load(tmp_path)
    expected = timm_forward(tensors, images(size), options["heads"], **switches)
    assert_close(to_numpy(model(images(size))), expected)


MAP = {"map_pool": True, "classes": 5}


@pytest.mark.parametrize(
    ("options", "arguments", "said"),
    [
        ({}, {"rope_rotate_half": False}, "expected rope_rotate_half=True .* Received: .*False"),
        ({}, {"rope_type": "cat"}, "expected rope_type='dinov3' .* Received: rope_type='cat'"),
        ({"architecture": EVA}, {"use_rot_pos_emb": True}, "rope_type='cat', timm's default"),
        (
            {"architecture": EVA, "slots": "all"},
            {"use_rot_pos_emb": True, "rope_type": "dinov3"},
            "rope_rotate_half=False, timm's default",
        ),
        ({}, {"rope_grid_indexing": "xy"}, "unsupported model_args: rope_grid_indexing='xy'"),
        ({}, {"proj_bias": False}, "unsupported model_args: proj_bias=False"),
        (MAP, {"global_pool": "map"}, "global_pool='map' .* with 3 tokens before the patches"),
        (
            {**MAP, "class_token": False, "registers": 0, "gated": "packed"},
            {"global_pool": "map"},
            "global_pool='map' .* with gated MLPs",
        ),
    ],
    ids=str,
)
def test_what_timms_eva_computes_otherwise_is_refused(tmp_path, options, arguments, said):
    write_timm(tmp_path, depth=1, arguments=arguments, **DINOV3 | options)
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path)


@pytest.mark.slow
@settings(
    deadline=None,
    # JAX compiles every operation anew for every shape.
    max_examples=10 if keras.backend.backend() == "jax" else 25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_timm_in_any_combination(tmp_path, data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    heads = draw(2, 4)
    switches = {"activation": draw("gelu", "gelu_tanh", "quick_gelu", "silu")}
    switches["epsilon"] = draw(1e-6, 1e-5, 1e-3)
    options = {
        "width": draw(16, 24),
        "depth": draw(1, 2),
        "grid": draw((3, 3), (2, 3)),
        "class_token": draw(True, False),
        "registers": draw(0, 1, 3),
        "slots": draw("patches", "class", "all"),
        "layer_scale": draw(None, "ls1.gamma", "gamma_1"),
        "gated": draw(None, "packed", "apart"),
        "qk_norm": draw(True, False),
        "qkv_bias": draw(True, False, "query_value"),
        "pre_norm": draw(True, False),
    }
    pooling = draw("token", "avg", "map") if options["class_token"] else draw("avg", "map")
    options |= {"map_pool": pooling == "map", "fc_norm": pooling == "avg" and draw(True, False)}
    options["distilled"] = pooling == "token" and draw(True, False)
    size = tuple(4 * side for side in options["grid"])
    arguments = {
        **{"embed_dim": options["width"], "depth": options["depth"], "global_pool": pooling},
        **{"patch_size": 4, "class_token": options["class_token"]},
        **{"act_layer": switches["activation"], "norm_eps": switches["epsilon"]},
    }
    tensors = write_timm(tmp_path, heads=heads, image_size=size, arguments=arguments, **options)
    expected = timm_forward(tensors, images(size), heads, pooling=pooling, **switches)
    assert_close(to_numpy(load(tmp_path)(images(size))), expected)


def test_both_heads_of_a_distilled_model(tmp_path):
    tensors = write_timm(tmp_path, distilled=True, depth=1)
    found = load(tmp_path, head_output="both")(images())
    expected = timm_forward(tensors, images(), 2, both=True)
    assert set(found) == {"logits_cls", "logits_dist"}
    assert_close(to_numpy(found["logits_cls"]), expected[0])
    assert_close(to_numpy(found["logits_dist"]), expected[1])


# transformers: name → (naming, config.json, options of the file, what the forward pass is told).

SIZES = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 12},
    **{"intermediate_size": 32, "patch_size": 4},
}
CLASSIC = {**SIZES, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
EXACT = {"epsilon": 1e-12}
DINOV2 = {
    **{key: value for key, value in SIZES.items() if key != "intermediate_size"},
    **{"model_type": "dinov2", "mlp_ratio": 2, "layer_norm_eps": 1e-6},
}
BEIT_FILE = {
    **{"qkv_bias": "query_value", "layer_scale": "gamma_1", "slots": None, "relative": True},
    **{"fc_norm": True, "prefix": "beit."},
}
SIGLIP = {**SIZES, "model_type": "siglip_vision_model"}
SIGLIP_FILE = {"class_token": False, "map_pool": True}
TANH = {"activation": "gelu_tanh", "epsilon": 1e-6}
TRANSFORMERS = {
    "vit": ("classic", {**CLASSIC, "model_type": "vit"}, {"prefix": "vit."}, EXACT),
    "vit, sharded": (
        "classic",
        {**CLASSIC, "model_type": "vit", "num_hidden_layers": 2},
        {"prefix": "vit.", "depth": 2, "shards": 3},
        EXACT,
    ),
    "vit with a pooler": (
        "classic",
        {**CLASSIC, "model_type": "vit", "hidden_act": "gelu_new"},
        {"classes": None, "rep": 16},
        {"epsilon": 1e-12, "activation": "gelu_tanh"},
    ),
    "msn": ("classic", {**SIZES, "model_type": "vit_msn"}, {"prefix": "vit."}, {}),
    "mae": ("classic", {**SIZES, "model_type": "vit_mae"}, {"classes": None}, EXACT),
    "ijepa": (
        "classic",
        {**SIZES, "model_type": "ijepa"},
        {"class_token": False, "prefix": "ijepa."},
        {"pooling": "avg", **EXACT},
    ),
    "deit": (
        "teacher",
        {**CLASSIC, "model_type": "deit"},
        {"distilled": True, "prefix": "deit."},
        EXACT,
    ),
    "dinov2": ("dinov2", DINOV2, {**SCALED, "classes": None}, {}),
    "dinov2 with a head": (
        "dinov2",
        DINOV2,
        {**SCALED, "prefix": "dinov2.", "head_inputs": 32},
        {"pooling": "token+avg"},
    ),
    "dinov2 with registers": (
        "dinov2",
        {**DINOV2, "model_type": "dinov2_with_registers", "num_register_tokens": 3},
        {**SCALED, "registers": 3, "prefix": "dinov2_with_registers.", "head_inputs": 32},
        {"pooling": "token+avg"},
    ),
    "dinov2 swiglu": (
        "dinov2 swiglu",
        {**DINOV2, "mlp_ratio": 4, "use_swiglu_ffn": True},
        {**SCALED, "gated": "packed", "mlp": 48, "classes": None},
        SILU,
    ),
    "dinov3": (
        "dinov3",
        {**SIZES, "model_type": "dinov3_vit", "num_register_tokens": 2},
        {"qkv_bias": "query_value", "registers": 2, "slots": None, "classes": None, **SCALED},
        {"rope_base": 100.0, "epsilon": 1e-5},
    ),
    "dinov3 gated": (
        "dinov3",
        {**SIZES, "model_type": "dinov3_vit", "hidden_act": "silu", "rope_theta": 30.0},
        {"gated": "apart", "qkv_bias": "query_value", "slots": None, "classes": None, **SCALED},
        {"rope_base": 30.0, "epsilon": 1e-5, **SILU},
    ),
    "beit": (
        "classic",
        {**CLASSIC, "model_type": "beit", "use_relative_position_bias": True},
        BEIT_FILE,
        EXACT,
    ),
    "data2vec": (
        "classic",
        {**CLASSIC, "model_type": "data2vec-vision", "use_absolute_position_embeddings": True},
        {**BEIT_FILE, "slots": "class", "prefix": "data2vec_vision."},
        EXACT,
    ),
    "siglip": (
        "siglip",
        {"model_type": "siglip", "vision_config": SIGLIP},
        {**SIGLIP_FILE, "prefix": "vision_model.", "classes": None},
        {"pooling": "map", **TANH},
    ),
    "siglip alone": (
        "siglip",
        SIGLIP,
        {**SIGLIP_FILE, "classes": None},
        {"pooling": "map", **TANH},
    ),
    "siglip with a head": (
        "siglip",
        {"model_type": "siglip", "vision_config": SIGLIP},
        {**SIGLIP_FILE, "prefix": "vision_model."},
        {"pooling": "avg", **TANH},
    ),
    "clip": (
        "clip",
        {"model_type": "clip", "vision_config": {**SIZES, "model_type": "clip_vision_model"}},
        {"pre_norm": True, "prefix": "vision_model.", "head_bias": False},
        {"activation": "quick_gelu", "epsilon": 1e-5},
    ),
    "clip alone": (
        "clip",
        {**SIZES, "model_type": "clip_vision_model", "hidden_act": "gelu"},
        {"pre_norm": True, "classes": None},
        {"epsilon": 1e-5},
    ),
}


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_transformers(tmp_path, case):
    naming, config, options, switches = TRANSFORMERS[case]
    tensors = write_transformers(tmp_path, naming, config, **{"depth": 1, **options})
    expected = timm_forward(tensors, images(), 2, **switches)
    assert_close(to_numpy(load(tmp_path)(images())), expected)


@pytest.mark.parametrize(
    ("case", "naming"),
    [
        ("vit", "classic in memory"),
        ("ijepa", "classic in memory"),
        ("beit", "classic in memory"),
        ("dinov2 with a head", "dinov2 in memory"),
        ("dinov2 swiglu", "dinov2 swiglu in memory"),
    ],
)
def test_transformers_names_in_memory(tmp_path, case, naming):
    """As `save_file(model.state_dict(), …)` stores them, beside the config.json of the model."""
    _, config, options, switches = TRANSFORMERS[case]
    if case == "dinov2 swiglu":
        options = {**options, "gated": "apart"}
    tensors = write_transformers(tmp_path, naming, config, **{"depth": 1, **options})
    expected = timm_forward(tensors, images(), 2, **switches)
    assert_close(to_numpy(load(tmp_path)(images())), expected)


def test_transformers_deit_without_a_teacher(tmp_path):
    """Its distillation token is among the tokens, and no head looks at it."""
    config = {**CLASSIC, "model_type": "deit"}
    tensors = write_transformers(
        tmp_path, "classic", config, prefix="deit.", depth=1, distilled=True, head_dist=False
    )
    assert_close(to_numpy(load(tmp_path)(images())), timm_forward(tensors, images(), 2, **EXACT))


def test_transformers_beit_with_a_shared_table(tmp_path):
    config = {**CLASSIC, "model_type": "beit", "num_hidden_layers": 2}
    tensors = write_transformers(tmp_path, "classic", config, depth=2, **BEIT_FILE)
    stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    first, second = (name for name in sorted(stored) if name.endswith("bias_table"))
    shared = "beit.encoder.relative_position_bias.relative_position_bias_table"
    stored[shared] = stored.pop(first)
    del stored[second]
    safetensors.numpy.save_file(stored, tmp_path / "model.safetensors")
    name = "blocks.{}.attn.relative_position_bias_table"
    tensors[name.format(1)] = tensors[name.format(0)]
    assert_close(to_numpy(load(tmp_path)(images())), timm_forward(tensors, images(), 2, **EXACT))


# torchvision's names.


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("rep", [None, 12])
def test_torchvision(tmp_path, is_old, rep):
    tensors = timm_tensors(depth=2, rep=rep)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(as_torchvision(tensors, is_old=is_old), path)
    model = load(path, num_heads=2)
    assert_close(to_numpy(model(images())), timm_forward(tensors, images(), 2))


def test_transformers_beit_with_two_last_norms(tmp_path):
    """BeitForMaskedImageModeling where the encoder does not pool by the mean."""
    config = {**CLASSIC, "model_type": "beit", "architectures": ["BeitForMaskedImageModeling"]}
    options = BEIT_FILE | {"fc_norm": False}
    norm = {"layernorm.weight": np.ones(16, "float32")}
    write_transformers(tmp_path, "classic", config, more=norm, depth=1, **options)
    said = "BeitForMaskedImageModeling.* two tensors for one weight; .* save the encoder"
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path)


# Google's: name → (options of the file, how its tensors are then stored).


def prefixed(prefix):
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def inlined_pool(tensors):
    return {name.removeprefix("MAPHead_0/"): tensor for name, tensor in tensors.items()}


def unsqueezed_norms(tensors):
    """Old files' group norms have an axis of size one for each axis of the images."""
    return {
        name: tensor.reshape(1, 1, 1, -1) if "gn" in name.split("/")[-2:][0] else tensor
        for name, tensor in tensors.items()
    }


def old_positions(tensors):
    return {
        "Transformer/pos_embedding" if name == "pos_embedding" else name: tensor
        for name, tensor in tensors.items()
    }


def as_it_is(tensors):
    return tensors


BIG_VISION = {"style": "big_vision", "linen": True}
MAP_HEAD = {**BIG_VISION, "map_head": True, "cls": False}
HYBRID = {"patch": 1, "stem_blocks": (1, 2), "image_size": (24, 24)}
GOOGLE = {
    "optimizer's target": ({"depth": 2}, prefixed("opt/target/")),
    "params": ({"linen": True, "depth": 2}, prefixed("params/")),
    "images beside texts": ({**MAP_HEAD, "classes": None}, prefixed("params/img/")),
    "big_vision, mean": ({**BIG_VISION, "cls": False}, as_it_is),
    "big_vision, class token": (BIG_VISION, prefixed("params/")),
    "big_vision, pre_logits": ({**BIG_VISION, "rep": 16}, as_it_is),
    "big_vision, old name of positions": ({**BIG_VISION, "cls": False}, old_positions),
    "scan": ({**BIG_VISION, "cls": False, "depth": 3}, stacked),
    "scan, prefixed": (
        {**BIG_VISION, "depth": 3},
        lambda tensors: prefixed("params/")(stacked(tensors)),
    ),
    "map": (MAP_HEAD, as_it_is),
    "map, inlined": (MAP_HEAD, inlined_pool),
    "sin-cos": ({"style": "sincos", "linen": True, "cls": False}, as_it_is),
    "sin-cos, not square": (
        {"style": "sincos", "linen": True, "cls": False, "image_size": (8, 16)},
        as_it_is,
    ),
    "stem": ({"stem_blocks": (), "patch": 2, "image_size": (24, 24)}, as_it_is),
    "resnet": (HYBRID, as_it_is),
    "resnet, norms unsqueezed": (HYBRID, unsqueezed_norms),
}


@pytest.mark.parametrize("case", GOOGLE)
def test_google(tmp_path, case):
    options, stored = GOOGLE[case]
    options = {"depth": 1, **options}
    size = options.pop("image_size", (12, 12))
    tensors = google_tensors(**options)
    np.savez(tmp_path / "model.npz", **stored(tensors))
    asked = {"image_size": size} if options.get("style") == "sincos" else {}
    model = load(tmp_path / "model.npz", **asked)
    assert_close(to_numpy(model(images(size))), google_forward(tensors, images(size)))


# What a file does not tell is asked for.


def without_config(folder):
    (folder / "config.json").unlink()
    return folder / "model.safetensors"


NO_TOKENS = {"class_token": False}
WIDE = {"mlp": 16, "patch": 1, "grid": (1, 1)}


@pytest.mark.parametrize(
    ("options", "given", "asked"),
    [
        ({}, {}, "number of heads; pass `num_heads`"),
        ({"slots": None}, {"num_heads": 2}, "pass `image_size`"),
        ({"grid": (2, 3)}, {"num_heads": 2}, "pass `image_size`"),
        ({"pre_norm": True}, {"num_heads": 2}, "pass `activation`"),
        ({**NO_TOKENS, "map_pool": True}, {"num_heads": 2}, "pass `activation`"),
        (NO_TOKENS, {"num_heads": 2}, "pass `activation`"),
        (
            {"slots": None},
            {"num_heads": 2, "image_size": 12, "positions": "rope"},
            "pass `layer_norm_epsilon`",
        ),
        ({"width": 1280, "gated": "apart", **WIDE}, {}, "pass `num_heads`"),
        ({"width": 1536, **WIDE}, {}, "pass `num_heads`"),
    ],
    ids=[
        *("heads", "rotary positions", "not square", "CLIP", "SigLIP", "SigLIP's mean"),
        *("DINOv3's epsilon", "DINOv3's H+", "SigLIP 2's g"),
    ],
)
def test_a_bare_timm_file_asks(tmp_path, options, given, asked):
    write_timm(tmp_path, depth=1, **options)
    path = without_config(tmp_path)
    with pytest.raises(ValueError, match=rf"model\.safetensors does not tell .*{asked}"):
        load(path, **given)


def test_a_bare_timm_file_asks_for_the_scaling_of_images(tmp_path):
    write_timm(tmp_path, depth=1)
    with pytest.raises(ValueError, match="how images were scaled: pass preprocessing="):
        keras_vit.from_checkpoint(without_config(tmp_path), num_heads=2)


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({"width": 1280}, 16),
        ({"width": 1536, "gated": "packed", "registers": 2, "slots": "patches"}, 24),
        ({"width": 192, "class_token": False, "registers": 1, "slots": "patches"}, 3),
        ({"width": 192, "distilled": True}, 3),
    ],
    ids=["H/14", "DINOv2's g", "registers, mean", "DeiT"],
)
def test_a_bare_timm_file_of_which_there_is_one_reading_asks_nothing(tmp_path, options, heads):
    write_timm(tmp_path, depth=1, **WIDE | options)
    config = keras_vit.models.config_of(load(without_config(tmp_path)))
    assert (config.num_heads, config.layer_norm_epsilon) == (heads, 1e-6)
    assert config.activation == ("silu" if "gated" in options else "gelu")


SMALL = {
    **{"hidden_size": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 4},
    **{"image_size": 12, "num_classes": 5, "include_preprocessing": False},
}


@pytest.mark.parametrize(
    ("variant", "options", "switches"),
    [
        ("clip_b16", {"pre_norm": True}, {"activation": "quick_gelu", "epsilon": 1e-5}),
        (
            "siglip2_so400m16",
            {"map_pool": True, **NO_TOKENS},
            {"activation": "gelu_tanh", "pooling": "map"},
        ),
        (
            "dinov3_b16",
            {**DINOV3, "registers": 4, "fc_norm": True, "classes": 5},
            {"rope_base": 100.0, "epsilon": 1e-5},
        ),
    ],
)
def test_builders_tell_what_a_bare_timm_file_does_not(tmp_path, variant, options, switches):
    options = {name: value for name, value in options.items() if name != "architecture"}
    tensors = write_timm(tmp_path, depth=1, **options)
    path, given = without_config(tmp_path), {}
    if "activation" in switches:
        # Of a family there may be two.
        with pytest.raises(ValueError, match="does not tell the activation.*config.json"):
            keras_vit.create(variant, weights=path, **SMALL)
        given = {"activation": switches["activation"]}
    model = keras_vit.create(variant, weights=path, **SMALL, **given)
    assert_close(to_numpy(model(images())), timm_forward(tensors, images(), 2, **switches))
    assert model.get_layer("block_0").layer_norm_epsilon == switches.get("epsilon", 1e-6)
    # And what the caller says goes before the builder's row.
    model = keras_vit.create(variant, weights=tmp_path, **SMALL, activation="silu")
    assert model.get_layer("block_0").activation == "silu"


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("siglip2_gopt16", {"width": 1536, "map_pool": True, **NO_TOKENS}),
        (
            "dinov3_hplus16",
            {**DINOV3, "width": 1280, "gated": "apart", "registers": 4, "classes": 5},
        ),
    ],
)
def test_builders_tell_the_heads_that_a_bare_timm_file_does_not(tmp_path, variant, options):
    options = {name: value for name, value in options.items() if name != "architecture"}
    write_timm(tmp_path, depth=1, **options | {"mlp": 32})
    fields = SMALL | {"hidden_size": options["width"]}
    del fields["num_heads"]
    fields["activation"] = keras_vit.models.VARIANTS[variant]["activation"]
    model = keras_vit.create(variant, weights=without_config(tmp_path), **fields)
    assert model.get_layer("block_0").num_heads == keras_vit.models.VARIANTS[variant]["num_heads"]


def test_builders_ask_for_what_a_bare_transformers_file_does_not_tell(tmp_path):
    config = {**CLASSIC, "model_type": "vit"}
    tensors = write_transformers(tmp_path, "classic", config, depth=1, prefix="vit.")
    path, given = without_config(tmp_path), {}
    for name, answer in {"activation": "gelu", "layer_norm_epsilon": 1e-12}.items():
        with pytest.raises(ValueError, match=rf"model\.safetensors does not tell .*`{name}`"):
            keras_vit.create("vit_b16", weights=path, **SMALL, **given)
        given[name] = answer
    model = keras_vit.create("vit_b16", weights=path, **SMALL, **given)
    assert_close(to_numpy(model(images())), timm_forward(tensors, images(), 2, **EXACT))


def test_a_bare_transformers_file_asks(tmp_path):
    config = {**CLASSIC, "model_type": "vit"}
    tensors = write_transformers(tmp_path, "classic", config, depth=1, prefix="vit.")
    path, given = without_config(tmp_path), {}
    answers = {"num_heads": 2, "activation": "gelu", "layer_norm_epsilon": 1e-12}
    for name, answer in answers.items():
        with pytest.raises(ValueError, match=rf"model\.safetensors does not tell .*`{name}`"):
            load(path, **given)
        given[name] = answer
    assert_close(
        to_numpy(load(path, **given)(images())), timm_forward(tensors, images(), 2, **EXACT)
    )


def test_sin_cos_positions_ask_for_the_image_size(tmp_path):
    write_google(tmp_path / "model.npz", style="sincos", linen=True, cls=False, depth=1)
    with pytest.raises(ValueError, match=r"model\.npz does not tell .*pass `image_size`"):
        load(tmp_path / "model.npz")


def test_a_bare_beit_file_of_a_square_grid_tells_it(tmp_path):
    tensors = write_timm(tmp_path, depth=1, **BEIT)
    model = load(without_config(tmp_path), num_heads=2)
    assert_close(to_numpy(model(images())), timm_forward(tensors, images(), 2))


# What was assumed is said.


def test_positions_that_no_tensor_tells_are_asked_for(tmp_path):
    write_timm(tmp_path, depth=1, slots=None)
    path = without_config(tmp_path)
    with pytest.raises(ValueError, match="pass `positions`"):
        load(path, num_heads=2, image_size=12)
    given = {"num_heads": 2, "image_size": 12, "layer_norm_epsilon": 1e-5}
    model = load(path, positions="rope", **given)
    assert keras_vit.models.config_of(model).positions == "rope"
    model = load(path, positions=None, **given)
    assert keras_vit.models.config_of(model).positions is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 192, "heads": 3}, "3 heads of 64, as published for the width 192"),
        ({}, "activation gelu and epsilon 1e-06, timm's for such tensors: no config.json"),
        ({"pre_norm": True}, "epsilon 1e-05, timm's"),
        ({"gated": "packed"}, "activation silu and epsilon 1e-06, timm's"),
    ],
)
def test_assumptions_of_a_bare_timm_file(tmp_path, options, said):
    write_timm(tmp_path, depth=1, **options)
    path = without_config(tmp_path)
    given = {"activation": "quick_gelu"} if "pre_norm" in options else {}
    model = load(path, num_heads=options.get("heads", 2), image_size=12, **given)
    assert said in inspect_checkpoint(path)
    assert said in str(keras_vit.load_checkpoint(model, path))


def test_assumptions_of_other_formats(tmp_path):
    write_google(tmp_path / "model.npz", style="sincos", linen=True, cls=False, depth=1)
    assert "fixed sin-cos positions, big_vision's" in inspect_checkpoint(tmp_path / "model.npz")
    safetensors.numpy.save_file(as_torchvision(timm_tensors()), tmp_path / "vision.safetensors")
    assert "as torchvision publishes them" in inspect_checkpoint(tmp_path / "vision.safetensors")
    config = {**CLASSIC, "model_type": "vit"}
    write_transformers(tmp_path / "hub", "classic", config, depth=1, prefix="vit.")
    assert "no preprocessor_config.json beside the file" in inspect_checkpoint(tmp_path / "hub")


@pytest.mark.parametrize(
    ("told", "factor"),
    [({"rescale_factor": 1 / 127.5}, 1 / 127.5), ({"do_rescale": False}, 1.0), ({}, 1 / 255)],
)
@pytest.mark.parametrize("normalise", [True, False])
def test_the_factor_of_a_preprocessor_config_is_followed(tmp_path, told, factor, normalise):
    config = {**CLASSIC, "model_type": "vit"}
    write_transformers(tmp_path, "classic", config, depth=1, prefix="vit.")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    told = {"image_mean": mean, "image_std": std, "do_normalize": normalise, **told}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    scale = keras_vit.from_checkpoint(tmp_path).get_layer("preprocessing")
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 4, 4, 3)).astype("float32")
    expected = (pixels * factor - mean) / std if normalise else pixels * factor
    np.testing.assert_allclose(to_numpy(scale(pixels)), expected, rtol=1e-4, atol=1e-4)


CROP = {"do_center_crop": True, "crop_size": 224}
SQUARE = {"height": 256, "width": 256}


@pytest.mark.parametrize(
    ("told", "mode", "fraction"),
    [
        ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, **CROP}, "squash", 0.875),
        ({"image_processor_type": "DeiTImageProcessor", "size": SQUARE, **CROP}, "squash", 0.875),
        ({"size": [256, 256], **CROP}, "squash", 0.875),
        ({"size": 224}, "squash", 1.0),
        ({"size": SQUARE, **CROP, "crop_size": 256}, "squash", 1.0),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 256, **CROP}, "center", 0.875),
        ({"image_processor_type": "BitImageProcessor", "size": 256, **CROP}, "center", 0.875),
        ({"size": {"shortest_edge": 256}, **CROP}, "center", 0.875),
    ],
    ids=str,
)
def test_sizes_of_a_preprocessor_config(tmp_path, told, mode, fraction):
    """A number is a square's, but for the processors of CLIP and of its kind."""
    config = {**CLASSIC, "model_type": "vit"}
    write_transformers(tmp_path, "classic", config, depth=1, prefix="vit.")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    layer = keras_vit.from_checkpoint(tmp_path).get_layer("preprocessing")
    assert (layer.crop_mode, layer.crop_fraction) == (mode, fraction)


def test_a_number_is_the_shorter_side_in_an_unnamed_processor_of_clip(tmp_path):
    naming, config, options, _ = TRANSFORMERS["clip alone"]
    write_transformers(tmp_path, naming, config, depth=1, **options)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 256, **CROP}))
    layer = keras_vit.from_checkpoint(tmp_path).get_layer("preprocessing")
    assert (layer.crop_mode, layer.crop_fraction) == ("center", 0.875)


def test_another_base_of_rotary_positions_is_named(tmp_path):
    write_timm(tmp_path, depth=1, **DINOV3, arguments={"rope_temperature": 50.0})
    assert load(tmp_path).get_layer("block_0").rope_base == 50.0
    model = load(tmp_path, rope_base=30.0)
    assert model.get_layer("block_0").rope_base == 30.0
    with pytest.raises(CheckpointError, match="rope_base: the file's is 50.0, the model's 30.0"):
        keras_vit.load_checkpoint(model, tmp_path)
    keras_vit.load_checkpoint(model, tmp_path, accept=("rope_base",))


# A size that the patches do not cover.


@pytest.mark.parametrize("library", ["timm", "siglip", "dinov3"])
def test_an_image_size_that_is_no_multiple_of_the_patch(tmp_path, library):
    """So400m/14 at 384 px has 27 x 27 patches: the convolution leaves out the last 6 pixels."""
    if library == "siglip":
        naming, config, options, switches = TRANSFORMERS["siglip alone"]
        config = config | {"image_size": 14}
        tensors = write_transformers(tmp_path, naming, config, depth=1, **options)
    else:
        options, _, switches = TIMM["dinov3" if library == "dinov3" else "vit"]
        tensors = write_timm(tmp_path, image_size=(14, 14), **options)
    model = load(tmp_path)
    assert model.input_shape == (None, 12, 12, 3)
    assert_close(to_numpy(model(images())), timm_forward(tensors, images(), 2, **switches))
    said = "images of (12, 12) px, which (3, 3) patches cover, not (14, 14)"
    assert said in inspect_checkpoint(tmp_path)


# A config that contradicts the tensors.


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embed_dim", 32),
        ("depth", 3),
        ("reg_tokens", 4),
        ("class_token", False),
        ("qk_norm", True),
        ("qkv_bias", False),
        ("pre_norm", True),
    ],
)
def test_model_args_that_contradict_the_tensors(tmp_path, key, value):
    write_timm(tmp_path, depth=1, arguments={key: value})
    with pytest.raises(CheckpointError, match=key) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_size", 32, "hidden_size=32, the tensors have 16"),
        ("num_hidden_layers", 3, "depth=3, the tensors have 1"),
        ("intermediate_size", 64, "mlp_dim=64, the tensors have 32"),
        ("patch_size", 8, r"patch_size=\(8, 8\), the tensors have \(4, 4\)"),
        ("image_size", 20, "10 positions, which are not the 5x5 of"),
        ("num_register_tokens", 4, "register_tokens=4, the tensors have 0"),
    ],
)
def test_a_transformers_config_that_contradicts_the_tensors(tmp_path, key, value, said):
    config = {**CLASSIC, "model_type": "vit", key: value}
    write_transformers(tmp_path, "classic", config, depth=1, prefix="vit.")
    with pytest.raises(CheckpointError, match=said) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert f"config.json's {key}" in str(error.value)


# What belongs to no Vision Transformer is left out, with a reason.


def test_text_towers_are_left_out(tmp_path):
    noise = np.ones((3, 3), "float32")
    config, options = TRANSFORMERS["clip"][1:3]
    reasons = {
        "text_model.encoder.layers.0.mlp.fc1.weight": "of the text tower",
        "text_projection.weight": "of the text tower",
        "logit_scale": "of the loss between images and texts",
    }
    write_transformers(
        tmp_path / "clip", "clip", config, more=dict.fromkeys(reasons, noise), depth=1, **options
    )
    report = keras_vit.load_checkpoint(load(tmp_path / "clip"), tmp_path / "clip")
    assert report.dropped == reasons
    tensors = prefixed("params/img/")(google_tensors(**MAP_HEAD, depth=1))
    others = dict.fromkeys(("params/txt/Embed_0/embedding", "params/t", "params/b"), noise)
    np.savez(tmp_path / "siglip.npz", **tensors, **others)
    report = keras_vit.load_checkpoint(load(tmp_path / "siglip.npz"), tmp_path / "siglip.npz")
    assert report.dropped == dict.fromkeys(others, "of the text tower, or of the loss")


def test_decoders_and_mask_tokens_are_left_out(tmp_path):
    noise = np.ones((3, 3), "float32")
    more = {
        "decoder.decoder_layers.0.output.dense.weight": "of the decoder of pre-training",
        "vit.embeddings.mask_token": "for masked pre-training alone",
    }
    write_transformers(
        tmp_path,
        "classic",
        {**SIZES, "model_type": "vit_mae"},
        prefix="vit.",
        more=dict.fromkeys(more, noise),
        depth=1,
        classes=None,
    )
    report = keras_vit.load_checkpoint(load(tmp_path), tmp_path)
    assert report.dropped == more


def test_an_unused_map_head_is_left_out(tmp_path):
    naming, config, options, _ = TRANSFORMERS["siglip with a head"]
    write_transformers(tmp_path, naming, config, depth=1, **options)
    report = keras_vit.load_checkpoint(load(tmp_path), tmp_path)
    assert report.dropped["vision_model.head.probe"] == "the file's own head does not use it"


# Other sizes.


@pytest.mark.parametrize("rule", ["google", "timm", "hf", "torchvision"])
@pytest.mark.parametrize("size", [(20, 16), (8, 28)])
def test_the_rule_of_resampling_can_be_chosen(tmp_path, rule, size):
    tensors = write_timm(tmp_path, depth=1)
    model = load(tmp_path, image_size=size, resampling=rule)
    grid = tuple(side // 4 for side in size)
    expected = resized_positions(tensors["pos_embed"], (3, 3), grid, rule, 1)
    assert_close(weight(model, "patch_encoder/position_embedding"), expected)
    tensors["pos_embed"] = expected
    assert_close(to_numpy(model(images(size))), timm_forward(tensors, images(size), 2))


@pytest.mark.parametrize("naming", ["classic", "registers", "google", "torchvision"])
def test_each_format_has_its_own_rule(tmp_path, naming):
    path, given, prefix = tmp_path, {}, 1
    rule = {"classic": "hf", "registers": "timm"}.get(naming, naming)
    if naming == "google":
        path = tmp_path / "model.npz"
        tensors = write_google(path, depth=1)
        positions = tensors["Transformer/posembed_input/pos_embedding"]
    elif naming == "torchvision":
        path, given = tmp_path / "model.safetensors", {"num_heads": 2}
        tensors = timm_tensors(depth=1)
        positions = tensors["pos_embed"]
        safetensors.numpy.save_file(as_torchvision(tensors), path)
    else:
        case = {"classic": "vit", "registers": "dinov2 with registers"}[naming]
        name, config, options, _ = TRANSFORMERS[case]
        positions = write_transformers(path, name, config, depth=1, **options)["pos_embed"]
    model = load(path, image_size=(24, 16), **given)
    expected = resized_positions(positions, (3, 3), (6, 4), rule, prefix)
    assert_close(weight(model, "patch_encoder/position_embedding"), expected)


def test_relative_positions_at_another_size(tmp_path):
    naming, config, options, _ = TRANSFORMERS["beit"]
    tensors = write_transformers(tmp_path, naming, config, depth=1, **options)
    table = tensors["blocks.0.attn.relative_position_bias_table"]
    model = load(tmp_path, image_size=(8, 20))
    down, right = axis_weights(5, 3, "linear"), axis_weights(5, 9, "linear")
    offsets = np.einsum("ir,jc,rch->ijh", down, right, table[:-3].reshape(5, 5, -1))
    found = weight(model, "block_0/attention/relative_position_bias/table")
    assert_close(found, np.concatenate([offsets.reshape(27, -1), table[-3:]]))


@pytest.mark.parametrize("grid", [(2, 4), (4, 2)])
def test_relative_positions_of_a_grid_that_is_not_square(tmp_path, grid):
    """transformers swaps the table's axes, and then resamples it to its own grid."""
    naming, config, options, _ = TRANSFORMERS["beit"]
    size = [4 * side for side in grid]
    tensors = write_transformers(
        tmp_path, naming, config | {"image_size": size}, depth=1, grid=grid, **options
    )
    name = "blocks.0.attn.relative_position_bias_table"
    rows, columns = (2 * side - 1 for side in grid)
    table = tensors[name][:-3].reshape(columns, rows, -1)
    down, right = axis_weights(columns, rows, "linear"), axis_weights(rows, columns, "linear")
    offsets = np.einsum("ir,jc,rch->ijh", down, right, table).reshape(rows * columns, -1)
    tensors[name] = np.concatenate([offsets, tensors[name][-3:]])
    expected = timm_forward(tensors, images(size), 2, **EXACT)
    assert_close(to_numpy(load(tmp_path)(images(size))), expected)


def test_rotary_positions_at_another_size(tmp_path):
    options, _, switches = TIMM["dinov3"]
    tensors = write_timm(tmp_path, depth=1, **options)
    model = load(tmp_path, image_size=(8, 20))
    expected = timm_forward(tensors, images((8, 20)), 2, **switches)
    assert_close(to_numpy(model(images((8, 20)))), expected)


@pytest.mark.parametrize("rule", ["timm", "google"])
@pytest.mark.parametrize(("source", "target"), [(4, (2, 2)), (2, (4, 4)), (4, (2, 6))])
def test_another_patch_size(tmp_path, source, target, rule):
    grid, target_grid = (12 // source,) * 2, tuple(12 // side for side in target)
    tensors = write_timm(tmp_path, patch=source, grid=grid, depth=1)
    model = load(tmp_path, patch_size=target, resampling=None if rule == "timm" else rule)
    kernel = tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    kernel = resized_patch_kernel(kernel, target, "linear" if rule == "google" else rule)
    found = weight(model, "patch_encoder/projection/kernel")
    assert_close(found, kernel.reshape(found.shape))
    positions = resized_positions(tensors["pos_embed"], grid, target_grid, rule, 1)
    assert_close(weight(model, "patch_encoder/position_embedding"), positions)


@pytest.mark.parametrize(("source", "target"), [(4, 2), (2, 4)])
def test_another_patch_size_in_the_forward_pass(tmp_path, source, target):
    grid, target_grid = (12 // source,) * 2, (12 // target,) * 2
    tensors = write_timm(tmp_path, patch=source, grid=grid, depth=1)
    model = load(tmp_path, patch_size=target)
    kernel = tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    kernel = resized_patch_kernel(kernel, (target, target), "timm")
    tensors["patch_embed.proj.weight"] = kernel.transpose(3, 2, 0, 1)
    tensors["pos_embed"] = resized_positions(tensors["pos_embed"], grid, target_grid, "timm", 1)
    assert_close(to_numpy(model(images())), timm_forward(tensors, images(), 2))


# Memory.

MEASURE = """
import math, pathlib, re, sys
import keras_vit

def resident(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(field + r":\\s+(\\d+)", status)[1]) * 1024

small, large = sys.argv[1:]
keras_vit.from_checkpoint(small, include_preprocessing=False, num_heads=2)
# The peak so far is that of the imports; ru_maxrss could not be reset, and outlives an exec.
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
model = keras_vit.from_checkpoint(large, include_preprocessing=False)
weights = sum(4 * math.prod(weight.shape) for weight in model.weights)
print(weights, (resident("VmHWM") - before) / weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_holds_the_weights_once(tmp_path):
    paths = [tmp_path / "small.safetensors", tmp_path / "large.safetensors"]
    for path, width, depth in zip(paths, (16, 768), (1, 20), strict=True):
        safetensors.numpy.save_file(timm_tensors(width=width, depth=depth), path)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    weights, growth = map(float, run.stdout.split()[-2:])
    print(f"grew by {growth:.3f} x the weights of {weights / 1e6:.0f} MB")
    assert weights > 300e6
    assert growth < 1.3
