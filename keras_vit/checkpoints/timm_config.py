"""timm's config.json: which architecture a model is, and what its constructor is given."""

import math

from keras_vit.checkpoints.descriptions import Description, differing, exact_ratio
from keras_vit.checkpoints.hub_config import side

# Architectures of timm 1.0 by family: (name, width, side of a patch). The nearest one gives the
# file its name and its class in timm; `model_args` state the sizes themselves.
_PLAIN = (
    ("vit_tiny_patch16_224", 192, 16),
    ("vit_small_patch8_224", 384, 8),
    ("vit_small_patch16_224", 384, 16),
    ("vit_small_patch32_224", 384, 32),
    ("vit_base_patch8_224", 768, 8),
    ("vit_base_patch16_224", 768, 16),
    ("vit_base_patch32_224", 768, 32),
    ("vit_large_patch16_224", 1024, 16),
    ("vit_large_patch32_224", 1024, 32),
    ("vit_huge_patch14_224", 1280, 14),
    ("vit_giant_patch14_224", 1408, 14),
    ("vit_gigantic_patch14_224", 1664, 14),
)
# timm takes no epsilon from a file: it is the architecture's.
_CLIP = (
    ("vit_base_patch16_clip_224", 768, 16),
    ("vit_base_patch32_clip_224", 768, 32),
    ("vit_large_patch14_clip_224", 1024, 14),
    ("vit_huge_patch14_clip_224", 1280, 14),
)
_GATED = (("vit_giant_patch14_dinov2", 1536, 14),)
_DISTILLED = (
    ("deit_tiny_distilled_patch16_224", 192, 16),
    ("deit_small_distilled_patch16_224", 384, 16),
    ("deit_base_distilled_patch16_224", 768, 16),
)
_BEIT = (("beit_base_patch16_224", 768, 16), ("beit_large_patch16_224", 1024, 16))
_EVA = (("eva_giant_patch14_224", 1408, 14),)
_DINOV3 = (
    ("vit_small_patch16_dinov3", 384, 16),
    ("vit_base_patch16_dinov3", 768, 16),
    ("vit_large_patch16_dinov3", 1024, 16),
)
# Blocks of the ResNet before the patches → the only architecture that has them.
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
# An epsilon this far from the architecture's changes a trained model's logits by less than 1e-4 of
# the largest: transformers' 1e-12, where timm has 1e-6.
_EPSILON_TOLERANCE = 1e-6
_POOLINGS = {"token": "token", "avg": "avg", "map": "map", None: ""}


def described(config, class_names):
    """The `Description` of a model in timm's terms."""
    family = _family(config)
    architecture, epsilon = _architecture(config, family)
    arguments = _ARGUMENTS[family](config)
    first = "patch_embed.proj"
    naming: tuple[str, ...] = ()
    if config.stem_blocks is not None:
        first = "patch_embed.backbone" + ".stem" * bool(config.stem_blocks) + ".conv"
        naming = tuple(
            f"patch_embed.backbone.stages.{stage}.blocks.{unit}."
            for stage, units in enumerate(config.stem_blocks)
            for unit in range(units)
        )
    if family == "beit" and config.gated_mlp:
        naming = tuple(f"blocks.{index}.mlp.fc1_g.weight" for index in range(config.depth))
    hub_config = {
        "architecture": architecture,
        "num_classes": arguments["num_classes"],
        "num_features": config.hidden_size,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": _pretrained_cfg(config, arguments, first),
    }
    other_epsilon = not math.isclose(config.layer_norm_epsilon, epsilon, rel_tol=1e-6)
    if other_epsilon:
        # timm passes it over, and `from_checkpoint` does not.
        hub_config["norm_eps"] = config.layer_norm_epsilon
    if class_names is not None:
        hub_config["label_names"] = list(class_names)
    return Description(
        naming=naming,
        file_name=_named_gamma if family in ("beit", "eva") else str,
        hub_config=hub_config,
        implied=_implied(config, family) | _implied_epsilon(config, epsilon),
        notes=(_epsilon_note(config, architecture, epsilon),) if other_epsilon else (),
    )


def _implied_epsilon(config, epsilon):
    is_near = abs(config.layer_norm_epsilon - epsilon) <= _EPSILON_TOLERANCE
    return {} if is_near else differing(config, {"layer_norm_epsilon": epsilon})


def _epsilon_note(config, architecture, epsilon):
    return (
        f"The epsilon of the model's norms is {config.layer_norm_epsilon}, and timm's "
        f"{architecture} computes with {epsilon}: there the logits of a trained model differ by "
        "some 1e-5 of the largest, those of an untrained one by up to 1e-3. config.json keeps the "
        'epsilon for from_checkpoint ("norm_eps"); format="hf" is exact where it has such a model'
    )


def _family(config):
    if config.attention_positions == "relative":
        return "beit"
    if config.attention_positions == "rope" or config.qkv_bias == "query_value":
        return "eva"
    return "vit"


def _architecture(config, family):
    """The name, and its epsilon."""
    is_coarse = math.isclose(config.layer_norm_epsilon, 1e-5)
    if family == "vit" and config.stem_blocks is not None:
        return _HYBRIDS.get(config.stem_blocks, "vit_base_r50_s16_224"), 1e-6
    if family == "beit":
        rows, epsilon = _BEIT, 1e-6
    elif family == "eva":
        # The classes of EVA take an `init_values` of 0 for a scale, and DINOv3's have one.
        has_scale = config.layer_scale is not None
        rows, epsilon = (_DINOV3, 1e-5) if is_coarse and has_scale else (_EVA, 1e-6)
    elif config.distillation_token:
        rows, epsilon = _DISTILLED, 1e-6
    elif config.gated_mlp:
        rows, epsilon = _GATED, 1e-6
    else:
        rows, epsilon = (_CLIP, 1e-5) if is_coarse else (_PLAIN, 1e-6)

    def distance(row):
        return (
            abs(math.log(row[1] / config.hidden_size)),
            abs(math.log(row[2] / config.patch_size[0])),
        )

    return min(rows, key=distance)[0], epsilon


def _common_arguments(config):
    """What the constructors of all of timm's classes call alike."""
    return {
        "img_size": side(config.image_size),
        "patch_size": side(config.patch_size),
        "num_classes": config.num_classes if config.include_top else 0,
        "global_pool": _POOLINGS.get(config.pooling, "token"),
        "embed_dim": config.hidden_size,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": exact_ratio(config.mlp_dim, config.hidden_size),
        "qkv_bias": bool(config.qkv_bias),
        # None would leave the architecture's own.
        "init_values": config.layer_scale or 0.0,
    }


def _vit_arguments(config):
    is_learned = config.token_positions == "learned"
    return _common_arguments(config) | {
        # timm's gated MLP halves its hidden layer.
        "mlp_ratio": exact_ratio(config.mlp_dim * (1 + config.gated_mlp), config.hidden_size),
        "class_token": config.class_token,
        "pos_embed": "learn" if is_learned else "",
        "no_embed_class": is_learned and not config.prefix_positions,
        "reg_tokens": config.register_tokens,
        "pre_norm": config.pre_norm,
        "fc_norm": config.pool_norm,
        "qk_norm": config.qk_norm,
        "act_layer": config.activation,
    }


def _beit_arguments(config):
    return _common_arguments(config) | {
        "use_abs_pos_emb": config.token_positions == "learned",
        "use_rel_pos_bias": True,
        "swiglu_mlp": config.gated_mlp,
        "use_fc_norm": config.pool_norm,
    }


def _eva_arguments(config):
    is_learned = config.token_positions == "learned"
    arguments = _common_arguments(config) | {
        "class_token": config.class_token,
        "num_reg_tokens": config.register_tokens,
        "no_embed_class": is_learned and not config.prefix_positions,
        "use_abs_pos_emb": is_learned,
        "use_rot_pos_emb": config.attention_positions == "rope",
        "qk_norm": config.qk_norm,
        "swiglu_mlp": config.gated_mlp,
        "use_fc_norm": config.pool_norm,
        "use_pre_transformer_norm": config.pre_norm,
    }
    if config.layer_scale is None:
        del arguments["init_values"]
    if config.attention_positions == "rope":
        arguments |= {
            "rope_type": "dinov3",
            "rope_temperature": config.rope_base,
            "rope_rotate_half": True,
        }
    return arguments


_ARGUMENTS = {"vit": _vit_arguments, "beit": _beit_arguments, "eva": _eva_arguments}


def _implied(config, family):
    """What timm's class of this family has otherwise, though the tensors would be read."""
    wanted = {"representation_size": None, "patch_bias": not config.pre_norm}
    if family != "vit":
        wanted["stem_blocks"] = None
        wanted["distillation_token"] = False
        if config.qkv_bias is True:
            wanted["qkv_bias"] = "query_value"
    if family == "beit":
        wanted |= {"class_token": True, "register_tokens": 0, "qk_norm": False, "pre_norm": False}
        wanted["patch_bias"] = True
        if config.pooling == "map":
            wanted["pooling"] = "avg"
    if config.token_positions == "learned":
        if family == "beit":
            wanted["position_slots"] = "class"
        elif config.prefix_positions not in (0, config.prefix_tokens):
            wanted["position_slots"] = "all"
    if config.distillation_token:
        wanted |= {"register_tokens": 0, "pooling": "token", "position_slots": "class"}
        wanted["gated_mlp"] = False
    if config.pooling == "map":
        wanted["gated_mlp"] = False
        if family == "eva" and config.prefix_tokens:
            wanted["pooling"] = "avg"  # Its attention pools the tokens before the patches too.
    if config.stem_blocks is not None and family == "vit":
        wanted |= {"stem_width": 64, "stem_rule": "timm"}
        if config.stem_blocks not in _HYBRIDS:
            wanted["stem_blocks"] = (3, 4, 9)
        for name, value in (("distillation_token", False), ("gated_mlp", False)):
            wanted[name] = value
    return differing(config, wanted)


def _pretrained_cfg(config, arguments, first):
    preprocessing, scaling = config.preprocessing, {}
    if config.include_preprocessing:
        scaling = {
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "crop_pct": preprocessing.crop_fraction,
            "crop_mode": preprocessing.crop_mode,
            "interpolation": preprocessing.interpolation,
        }
    return {
        "input_size": [3, *config.image_size],
        "fixed_input_size": True,
        **scaling,
        "num_classes": arguments["num_classes"],
        "pool_size": None,
        "first_conv": first,
        "classifier": ["head", "head_dist"] if config.distillation_token else "head",
    }


def _named_gamma(name):
    """BEiT's names of LayerScale.

    Example:

    >>> _named_gamma("blocks.0.ls1.gamma")
    'blocks.0.gamma_1'
    """
    for number in "12":
        name = name.replace(f".ls{number}.gamma", f".gamma_{number}")
    return name
