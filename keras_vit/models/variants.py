"""The table of published models: sizes, families, and which of their pairs there are."""

from keras_vit.layers.nearest import nearest_names
from keras_vit.models.preprocessing import CLIP_SCALING

# Ti to g: arXiv 2010.11929 table 1, 2106.10270 section 3.2, 2106.04560 table 2; So400m:
# 2305.13035; DINOv2's g: 2304.07193 table 17; DINOv3's S+, H+ and 7B: 2508.10104; the optimised
# g of SigLIP 2: 2502.14786; medium: DeiT III, 2204.07118.
SIZES = {
    "ti": {"hidden_size": 192, "depth": 12, "mlp_dim": 768, "num_heads": 3},
    "s": {"hidden_size": 384, "depth": 12, "mlp_dim": 1536, "num_heads": 6},
    "m": {"hidden_size": 512, "depth": 12, "mlp_dim": 2048, "num_heads": 8},
    "b": {"hidden_size": 768, "depth": 12, "mlp_dim": 3072, "num_heads": 12},
    "l": {"hidden_size": 1024, "depth": 24, "mlp_dim": 4096, "num_heads": 16},
    "so400m": {"hidden_size": 1152, "depth": 27, "mlp_dim": 4304, "num_heads": 16},
    "h": {"hidden_size": 1280, "depth": 32, "mlp_dim": 5120, "num_heads": 16},
    "g": {"hidden_size": 1408, "depth": 40, "mlp_dim": 6144, "num_heads": 16},
    "bigg": {"hidden_size": 1664, "depth": 48, "mlp_dim": 8192, "num_heads": 16},
    "gopt": {"hidden_size": 1536, "depth": 40, "mlp_dim": 6144, "num_heads": 16},
}
_SWIGLU = {"gated_mlp": True, "activation": "silu"}
_DEIT = {"preprocessing": "imagenet"}
_DINOV2 = {"preprocessing": "imagenet", "layer_scale": 1e-5}
_SIGLIP = {"pooling": "map", "class_token": False, "activation": "gelu_tanh"}
_BEIT = {
    "positions": "relative",
    "qkv_bias": "query_value",
    "layer_scale": 0.1,
    "pooling": "avg",
    "pool_norm": True,
}
FAMILIES = {
    "vit": {},
    # Beyer et al., arXiv 2205.01580: a better plain ViT-S/16.
    "big_vision": {
        "pooling": "avg",
        "class_token": False,
        "positions": "sincos2d",
        "activation": "gelu_tanh",
    },
    "deit": _DEIT,
    "deit_distilled": {**_DEIT, "distillation_token": True},
    "deit3": {**_DEIT, "layer_scale": 1e-6, "position_slots": "patches"},
    "mae": _DEIT,
    "dino": _DEIT,
    "dinov2": _DINOV2,
    "dinov2_reg": {**_DINOV2, "register_tokens": 4},
    "dinov3": {
        **_DINOV2,
        "register_tokens": 4,
        "positions": "rope",
        "qkv_bias": "query_value",
        "layer_norm_epsilon": 1e-5,
    },
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "clip": {
        "pre_norm": True,
        "patch_bias": False,
        "activation": "quick_gelu",
        "layer_norm_epsilon": 1e-5,
        "preprocessing": CLIP_SCALING,
    },
    "beit": _BEIT,
    "beitv2": _BEIT,
}
# (family, sizes with their patches); a row is called family_sizepatch, a distilled one
# deit_sizepatch_distilled.
_PUBLISHED = (
    ("vit", "ti16 s8 s16 s32 b8 b16 b32 l16 l32 h14 g14 bigg14 so400m14"),
    ("big_vision", "s16"),
    ("deit", "ti16 s16 b16"),
    ("deit_distilled", "ti16 s16 b16"),
    ("deit3", "s16 m16 b16 l16 h14"),
    ("mae", "b16 l16 h14"),
    ("dino", "s8 s16 b8 b16"),
    ("dinov2", "s14 b14 l14 g14"),
    ("dinov2_reg", "s14 b14 l14 g14"),
    ("dinov3", "s16 splus16 b16 l16 hplus16 7b16"),
    ("siglip", "b16 l16 so400m14 so400m16"),
    ("siglip2", "b16 b32 l16 so400m14 so400m16 gopt16"),
    ("clip", "b16 b32 l14 h14 g14 bigg14"),
    ("beit", "b16 l16"),
    ("beitv2", "b16 l16"),
)
# Where a family has a size of its own.
_OWN_SIZES = {
    ("big_vision", "s"): {**SIZES["s"], "representation_size": 384},
    ("dinov2", "g"): {
        "hidden_size": 1536,
        "depth": 40,
        "mlp_dim": 4096,
        "num_heads": 24,
        **_SWIGLU,
    },
    ("dinov3", "splus"): {**SIZES["s"], **_SWIGLU},
    ("dinov3", "hplus"): {**SIZES["h"], "num_heads": 20, **_SWIGLU},
    ("dinov3", "7b"): {
        **{"hidden_size": 4096, "depth": 40, "mlp_dim": 8192, "num_heads": 32},
        **_SWIGLU,
        "qkv_bias": False,
    },
}
_OWN_SIZES["dinov2_reg", "g"] = _OWN_SIZES["dinov2", "g"]
# ResNet stem and Transformer (arXiv 2010.11929 and 2106.10270): patches are cut from features.
_HYBRIDS = {
    "vit_r_ti16": {"patch_size": 8, **SIZES["ti"], "stem_blocks": ()},
    "vit_r26_s32": {"patch_size": 1, **SIZES["s"], "stem_blocks": (2, 2, 2, 2)},
    "vit_r50_b16": {"patch_size": 1, **SIZES["b"], "stem_blocks": (3, 4, 9)},
    "vit_r50_l32": {"patch_size": 1, **SIZES["l"], "stem_blocks": (3, 4, 6, 3)},
}


def _row(family, size_and_patch):
    size = size_and_patch.rstrip("0123456789")
    patch = int(size_and_patch[len(size) :])
    numbers = _OWN_SIZES.get((family, size)) or SIZES[size]
    return {"patch_size": patch, **FAMILIES[family], **numbers}


def _name(family, size_and_patch):
    base = family.removesuffix("_distilled")
    return f"{base}_{size_and_patch}{family.removeprefix(base)}"


VARIANTS = {
    _name(family, size): _row(family, size)
    for family, sizes in _PUBLISHED
    for size in sizes.split()
} | _HYBRIDS


def get_variant(variant):
    """The table's row called `variant`, as arguments of `VisionTransformerConfig`.

    Raises:
        ValueError: For an unknown name, with the nearest ones.

    Example:

    >>> get_variant("vit_b16")["hidden_size"]
    768
    """
    if variant not in VARIANTS:
        raise ValueError(
            f"Unknown model. {nearest_names(variant, VARIANTS)} Received: variant={variant!r}"
        )
    return dict(VARIANTS[variant])
