"""The table of published sizes."""

from keras_vit.layers.nearest import nearest_names

# Sizes Ti, S, B, L, H, g: arXiv 2010.11929 table 1, 2106.10270 section 3.2, 2106.04560 table 2.
SIZES = {
    "ti": {"hidden_size": 192, "depth": 12, "mlp_dim": 768, "num_heads": 3},
    "s": {"hidden_size": 384, "depth": 12, "mlp_dim": 1536, "num_heads": 6},
    "b": {"hidden_size": 768, "depth": 12, "mlp_dim": 3072, "num_heads": 12},
    "l": {"hidden_size": 1024, "depth": 24, "mlp_dim": 4096, "num_heads": 16},
    "h": {"hidden_size": 1280, "depth": 32, "mlp_dim": 5120, "num_heads": 16},
    "g": {"hidden_size": 1408, "depth": 40, "mlp_dim": 6144, "num_heads": 16},
}

VARIANTS = {
    "vit_ti16": {"patch_size": 16, **SIZES["ti"]},
    "vit_s8": {"patch_size": 8, **SIZES["s"]},
    "vit_s16": {"patch_size": 16, **SIZES["s"]},
    "vit_s32": {"patch_size": 32, **SIZES["s"]},
    "vit_b8": {"patch_size": 8, **SIZES["b"]},
    "vit_b16": {"patch_size": 16, **SIZES["b"]},
    "vit_b32": {"patch_size": 32, **SIZES["b"]},
    "vit_l16": {"patch_size": 16, **SIZES["l"]},
    "vit_l32": {"patch_size": 32, **SIZES["l"]},
    "vit_h14": {"patch_size": 14, **SIZES["h"]},
    "vit_g14": {"patch_size": 14, **SIZES["g"]},
}


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
