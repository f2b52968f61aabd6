"""Parameters and multiply-adds counted from the config: exact, and the published ones."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vit.models import (
    VARIANTS,
    VisionTransformerConfig,
    count_flops,
    count_macs,
    count_parameters,
    vision_transformer,
)

# Parameters of every variant with 1,000 classes at 224 px. Those of the ViTs and the hybrids are
# published; 178 plain architectures of timm 1.0.31, all families among them, have exactly what
# `count_parameters` says of the configs that their files are read as.
PARAMETERS = {
    "vit_ti16": 5_717_416,
    "vit_s8": 22_055_272,
    "vit_s16": 22_050_664,
    "vit_s32": 22_878_952,
    "vit_b8": 86_576_872,
    "vit_b16": 86_567_656,
    "vit_b32": 88_224_232,
    "vit_l16": 304_326_632,
    "vit_l32": 306_535_400,
    "vit_h14": 632_045_800,
    "vit_g14": 1_012_611_432,
    "vit_bigg14": 1_844_440_680,
    "vit_so400m14": 413_597_656,
    "vit_r_ti16": 6_337_704,
    "vit_r26_s32": 36_431_912,
    "vit_r50_b16": 98_659_112,
    "vit_r50_l32": 328_994_856,
    "big_vision_s16": 22_122_472,
    "deit_ti16": 5_717_416,
    "deit_s16": 22_050_664,
    "deit_b16": 86_567_656,
    "deit_ti16_distilled": 5_910_800,
    "deit_s16_distilled": 22_436_432,
    "deit_b16_distilled": 87_338_192,
    "deit3_s16": 22_059_496,
    "deit3_m16": 38_849_512,
    "deit3_b16": 86_585_320,
    "deit3_l16": 304_374_760,
    "deit3_h14": 632_126_440,
    "mae_b16": 86_567_656,
    "mae_l16": 304_326_632,
    "mae_h14": 632_045_800,
    "dino_s8": 22_055_272,
    "dino_s16": 22_050_664,
    "dino_b8": 86_576_872,
    "dino_b16": 86_567_656,
    "dinov2_s14": 22_013_800,
    "dinov2_b14": 86_493_928,
    "dinov2_l14": 304_252_904,
    "dinov2_g14": 1_136_306_664,
    "dinov2_reg_s14": 22_015_336,
    "dinov2_reg_b14": 86_497_000,
    "dinov2_reg_l14": 304_257_000,
    "dinov2_reg_g14": 1_136_312_808,
    "dinov3_s16": 21_981_160,
    "dinov3_splus16": 29_077_480,
    "dinov3_b16": 86_428_648,
    "dinov3_l16": 304_153_576,
    "dinov3_hplus16": 841_872_360,
    "dinov3_7b16": 6_720_127_976,
    "siglip_b16": 93_653_224,
    "siglip_l16": 316_919_784,
    "siglip_so400m14": 428_833_704,
    "siglip_so400m16": 428_971_944,
    "siglip2_b16": 93_653_224,
    "siglip2_b32": 95_309_800,
    "siglip2_l16": 316_919_784,
    "siglip2_so400m14": 428_833_704,
    "siglip2_so400m16": 428_971_944,
    "siglip2_gopt16": 1_164_613_096,
    "clip_b16": 86_568_424,
    "clip_b32": 88_225_000,
    "clip_l14": 304_204_776,
    "clip_h14": 632_047_080,
    "clip_g14": 1_012_612_840,
    "clip_bigg14": 1_844_442_344,
    "beit_b16": 86_530_984,
    "beit_l16": 304_430_568,
    "beitv2_b16": 86_530_984,
    "beitv2_l16": 304_430_568,
}
# Without the head, at the published resolution: what timm 1.0.31 builds, number by number.
WITHOUT_HEAD = {
    ("dinov2_s14", 518): 22_056_192,
    ("dinov2_g14", 518): 1_136_479_232,
    ("dinov3_splus16", 256): 28_692_480,
    ("siglip_b16", 224): 92_884_224,
    ("siglip_so400m14", 224): 427_680_704,
    ("siglip2_so400m16", 256): 427_888_064,
    ("siglip2_gopt16", 256): 1_163_168_256,
    ("clip_b16", 224): 85_799_424,
    ("clip_l14", 224): 303_179_776,
    ("clip_bigg14", 224): 1_842_777_344,
    ("vit_r50_b16", 224): 97_890_112,
}
# Those small enough to be built here for a count of their own.
SMALL = [name for name, count in PARAMETERS.items() if count < 30e6]


def variant(name, **fields):
    return VisionTransformerConfig(**{**VARIANTS[name], **fields})


def test_every_variant_has_a_count():
    assert set(PARAMETERS) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_of_the_variants(name):
    assert count_parameters(variant(name)) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "size"), WITHOUT_HEAD)
def test_parameters_without_head(name, size):
    config = variant(name, image_size=size, include_top=False)
    assert count_parameters(config) == WITHOUT_HEAD[name, size]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_variants_have_as_many_when_built(name):
    assert vision_transformer(variant(name)).count_params() == PARAMETERS[name]


@st.composite
def configs(draw):
    """Tiny configs over all switches; what contradicts itself is mended."""
    fields = {
        "hidden_size": 16,
        "num_heads": draw(st.sampled_from([2, 4])),
        "depth": draw(st.integers(1, 2)),
        "mlp_dim": draw(st.sampled_from([8, 24])),
        "num_classes": draw(st.integers(1, 5)),
        "include_top": draw(st.booleans()),
        "class_token": draw(st.booleans()),
        "register_tokens": draw(st.integers(0, 3)),
        "position_slots": draw(st.sampled_from(["patches", "class", "all"])),
        "gated_mlp": draw(st.booleans()),
        "patch_bias": draw(st.booleans()),
        "pre_norm": draw(st.booleans()),
        "qkv_bias": draw(st.sampled_from([True, False, "query_value"])),
        "qk_norm": draw(st.booleans()),
        "layer_scale": draw(st.sampled_from([None, 0.1])),
        "representation_size": draw(st.sampled_from([None, 6])),
        "pooling": draw(st.sampled_from(["token", "avg", "map", "token+avg", None])),
        "pool_norm": draw(st.booleans()),
        "stem_blocks": draw(st.sampled_from([None, None, None, (), (1,), (2, 1)])),
        "stem_width": 32,
        "distillation_token": draw(st.booleans()),
    }
    tokens = draw(st.sampled_from([None, "learned", "sincos1d", "sincos2d"]))
    attention = draw(st.sampled_from([None, "rope", "relative"]))
    fields["positions"] = "+".join(filter(None, (tokens, attention))) or None
    if fields["distillation_token"]:
        fields |= {"class_token": True, "representation_size": None, "pool_norm": False}
        fields["pooling"] = draw(st.sampled_from(["token", None]))
        if fields["pooling"]:
            fields["head_output"] = draw(st.sampled_from(["average", "both"]))
    if attention == "relative":
        fields |= {"distillation_token": False, "register_tokens": 0, "head_output": "average"}
    if not fields["class_token"] and fields["pooling"] in ("token", "token+avg"):
        fields["pooling"] = "avg"
    if fields["pooling"] is None:
        fields["pool_norm"] = False
    if attention != "relative" and fields["depth"] > 1 and draw(st.booleans()):
        window_size = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        fields |= {"window_size": window_size, "global_blocks": 1}
    patch = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    grid = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    stride = {None: 1, (): 4, (1,): 4, (2, 1): 8}[fields["stem_blocks"]]
    size = tuple(stride * p * side for p, side in zip(patch, grid, strict=True))
    return VisionTransformerConfig(patch_size=patch, image_size=size, **fields)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(configs())
def test_parameters_are_those_of_the_model(config):
    assert count_parameters(config) == vision_transformer(config).count_params()


def executed_macs(model):
    """Multiply-adds of the products and convolutions in the program that JAX traces."""
    import jax

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            shapes = [tuple(variable.aval.shape) for variable in equation.invars]
            results = sum(math.prod(variable.aval.shape) for variable in equation.outvars)
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                total += results * math.prod(shapes[0][axis] for axis in contracted)
            elif equation.primitive.name == "conv_general_dilated":
                outputs = equation.params["dimension_numbers"].rhs_spec[0]
                total += results * math.prod(shapes[1]) // shapes[1][outputs]
            for inner in jax.core.jaxprs_in_params(equation.params):
                total += count(inner)
        return total

    images = np.zeros((1, *model.input_shape[1:]), "float32")
    return count(jax.make_jaxpr(lambda images: model(images))(images).jaxpr)


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="counts in the program that JAX traces"
)
@settings(max_examples=60, deadline=None)
@given(configs())
def test_multiply_adds_are_those_of_the_program(config):
    assert count_macs(config) == executed_macs(vision_transformer(config))


def test_multiply_adds_by_hand():
    """B/16 at 224 px: 14 x 14 patches and a class token."""
    tokens, width = 14 * 14 + 1, 768
    patches = 14 * 14 * (16 * 16 * 3) * width
    attention = tokens * width * 3 * width + 2 * tokens * tokens * width + tokens * width * width
    mlp = 2 * tokens * width * 3072
    head = width * 1000
    assert patches + 12 * (attention + mlp) + head == 17_563_828_224
    assert count_macs(variant("vit_b16")) == 17_563_828_224
    assert count_flops(variant("vit_b16")) == 2 * 17_563_828_224


@pytest.mark.parametrize(
    ("name", "size", "published"),
    [
        # In units of 1e9: MMPretrain's table of DeiT III, which counts the norms too.
        ("deit3_s16", 224, 4.61),
        ("deit3_s16", 384, 15.52),
        ("deit3_m16", 224, 8.00),
        ("deit3_b16", 224, 17.58),
        ("deit3_b16", 384, 55.54),
    ],
)
def test_published_multiply_adds(name, size, published):
    assert count_macs(variant(name, image_size=size)) / 1e9 == pytest.approx(published, rel=3e-3)


def test_a_non_square_image_costs_what_its_tokens_do():
    square, wide = variant("vit_ti16", image_size=64), variant("vit_ti16", image_size=(32, 128))
    assert count_macs(square) == count_macs(wide)
    assert count_parameters(square) == count_parameters(wide)
