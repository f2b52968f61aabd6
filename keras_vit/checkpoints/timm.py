"""timm's Vision Transformers: safetensors, bare or beside the hub's config.json.

The state dicts of DeiT, MAE, DINO and DINOv2 as their authors publish them have the same names,
but for a few.
"""

import re

from keras_vit.checkpoints.architecture import architecture, published_heads
from keras_vit.checkpoints.hub_config import translated
from keras_vit.checkpoints.layouts import Rule, torch_dense, torch_norm
from keras_vit.layers.patches import as_pair
from keras_vit.models import Preprocessing

FORMAT = "timm"
BLOCK = re.compile(r"blocks\.(\d+)\.")
# (pattern, the name in timm's vision_transformer.py): BEiT's and DINOv3's in timm, DINOv2's own.
_ALIASES = (
    (re.compile(r"^(model|module|backbone)\."), ""),
    (re.compile(r"\.gamma_([12])$"), r".ls\1.gamma"),
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    (re.compile(r"^register_tokens$"), "reg_token"),
)
IGNORED = (
    (re.compile(r"(^|\.)mask_token$"), "for masked pre-training alone"),
    (re.compile(r"^(decoder|pred)"), "of the decoder of pre-training"),
    (re.compile(r"relative_position_index$"), "it follows from the grid"),
    (re.compile(r"^rope(_embed)?\.periods$"), "it follows from the grid"),
    (re.compile(r"\.attn\.k_bias$"), "always zero"),
)


def canonical_name(name):
    """The tensor's name as timm's vision_transformer.py has it.

    Example:

    >>> canonical_name("blocks.0.gamma_1")
    'blocks.0.ls1.gamma'
    """
    for pattern, replacement in _ALIASES:
        name = pattern.sub(replacement, name)
    return name


def published_name(name, file_names):
    """What a tensor that is missing would be called among `file_names`."""
    if any(file_name.endswith(".gamma_1") for file_name in file_names):
        name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
    return name


def recognises(names):
    """Whether the canonical `names` are of this format."""
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= set(names)


def rules(depth, shapes):
    """The `Rule` of each weight; `shapes` tell which of two ways a file has to store it."""
    result = [
        Rule("patch_encoder/projection/kernel", ("patch_embed.proj.weight",), "torch_patches"),
        Rule("patch_encoder/projection/bias", ("patch_embed.proj.bias",)),
        Rule("patch_encoder/class_token", ("cls_token",)),
        Rule("patch_encoder/distillation_token", ("dist_token",)),
        Rule("patch_encoder/register_tokens", ("reg_token",)),
        Rule("patch_encoder/position_embedding", ("pos_embed",)),
        *torch_norm("pre_norm", "norm_pre"),
    ]
    for index in range(depth):
        result += _block_rules(f"block_{index}", f"blocks.{index}", shapes)
    result += torch_norm("encoder_norm", "norm")
    result += torch_norm("pool_norm", "fc_norm")
    result += _pool_rules()
    result += torch_dense("pre_logits", "pre_logits.fc")
    result += torch_dense("head", "head")
    result += torch_dense("head_distillation", "head_dist")
    return result + _stem_rules(shapes)


def _block_rules(block, tensor, shapes):
    attention = f"{block}/attention"
    gate = f"{tensor}.mlp.fc1_g"
    expansion = (gate, f"{tensor}.mlp.fc1_x") if f"{gate}.weight" in shapes else None
    return [
        *torch_norm(f"{block}/attention_norm", f"{tensor}.norm1"),
        *torch_dense(f"{attention}/query_key_value", f"{tensor}.attn.qkv"),
        Rule(
            f"{attention}/query_value_bias",
            (f"{tensor}.attn.q_bias", f"{tensor}.attn.v_bias"),
            "rows",
        ),
        *torch_norm(f"{attention}/query_norm", f"{tensor}.attn.q_norm"),
        *torch_norm(f"{attention}/key_norm", f"{tensor}.attn.k_norm"),
        Rule(
            f"{attention}/relative_position_bias/table",
            (f"{tensor}.attn.relative_position_bias_table",),
        ),
        *torch_dense(f"{attention}/projection", f"{tensor}.attn.proj"),
        Rule(f"{block}/attention_scale/gamma", (f"{tensor}.ls1.gamma",)),
        *torch_norm(f"{block}/mlp_norm", f"{tensor}.norm2"),
        *torch_dense(f"{block}/mlp/expansion", *(expansion or (f"{tensor}.mlp.fc1",))),
        *torch_dense(f"{block}/mlp/projection", f"{tensor}.mlp.fc2"),
        Rule(f"{block}/mlp_scale/gamma", (f"{tensor}.ls2.gamma",)),
    ]


def _pool_rules():
    return [
        Rule("pool/probe", ("attn_pool.latent",)),
        *torch_dense("pool/query", "attn_pool.q"),
        *torch_dense("pool/key_value", "attn_pool.kv"),
        *torch_dense("pool/projection", "attn_pool.proj"),
        *torch_norm("pool/norm", "attn_pool.norm"),
        *torch_dense("pool/mlp/expansion", "attn_pool.mlp.fc1"),
        *torch_dense("pool/mlp/projection", "attn_pool.mlp.fc2"),
    ]


_BACKBONE = "patch_embed.backbone"
_UNIT = re.compile(rf"{_BACKBONE}\.stages\.(\d+)\.blocks\.(\d+)")


def _stem_rules(shapes):
    # Without stages, the stem is all there is of the backbone.
    root = f"{_BACKBONE}.stem" if any(map(_UNIT.match, shapes)) else _BACKBONE
    result = [
        Rule("stem/root_conv/kernel", (f"{root}.conv.weight",), "torch_convolution"),
        *torch_norm("stem/root_norm", f"{root}.norm"),
    ]
    for tensor, match in {m[0]: m for m in map(_UNIT.match, shapes) if m}.items():
        weight = f"stem/stage_{match[1]}_unit_{match[2]}"
        for conv, norm, ours in (
            *((f"conv{part}", f"norm{part}", part) for part in "123"),
            ("downsample.conv", "downsample.norm", None),
        ):
            name = ("projection", "projection_norm") if ours is None else (conv, norm)
            result.append(
                Rule(
                    f"{weight}/{name[0]}/kernel", (f"{tensor}.{conv}.weight",), "torch_convolution"
                )
            )
            result += torch_norm(f"{weight}/{name[1]}", f"{tensor}.{norm}")
    return result


def facts(weights, shapes, file):
    """What a file tells of its model; see `google.facts`."""
    known = architecture(weights)
    known["patch_size"] = tuple(shapes["patch_embed.proj.weight"][2:])
    hub_config = file.hub_config
    notes = []
    if "pool/probe" in weights:
        known["pooling"] = "map"
    elif known["pool_norm"] or not known["class_token"]:
        known["pooling"] = "avg"
    else:
        known["pooling"] = "token"
    if "stem_blocks" in known:
        known["stem_rule"] = "timm"
    if hub_config is None:
        known |= _bare_facts(known, notes)
    else:
        known |= _hub_facts(hub_config, known, notes)
    _add_computed_positions(known, hub_config)
    if "num_heads" not in {*known, *known.get("ambiguous", ())}:
        known |= published_heads(known["hidden_size"], notes)
    return known, notes


# (width, whether the MLPs are gated) of published models that differ in the number of heads:
# DINOv3's H+ has 20 of 64; SigLIP 2's optimised g has 16 of 96.
_AMBIGUOUS_HEADS = ((1280, True), (1536, False))


def _bare_facts(known, notes):
    """What all models that timm publishes with such tensors have; and, as `ambiguous`, the fields
    that differ from one of them to the other, which no tensor tells."""
    # SigLIP's have no tokens but the patches, and these no scales.
    is_siglips = not (known["class_token"] or known["register_tokens"] or known["layer_scale"])
    ambiguous = {
        "activation": known["pre_norm"] or is_siglips,
        # Nothing stored means rotary positions, DINOv3's among them.
        "layer_norm_epsilon": known["positions"] is None,
        "num_heads": (known["hidden_size"], known["gated_mlp"]) in _AMBIGUOUS_HEADS,
    }
    told = {
        "activation": "silu" if known["gated_mlp"] else "gelu",
        "layer_norm_epsilon": 1e-5 if known["pre_norm"] else 1e-6,
    }
    told = {name: value for name, value in told.items() if not ambiguous[name]}
    if told:
        said = " and ".join(f"{name.split('_')[-1]} {value}" for name, value in told.items())
        notes.append(f"{said}, timm's for such tensors: no config.json beside the file")
    return told | {"ambiguous": frozenset(name for name in ambiguous if ambiguous[name])}


def _add_computed_positions(known, hub_config):
    """Rotary positions beside those stored; where there are none of either, they are asked for."""
    config = hub_config or {}
    arguments = _model_args(config)
    has_dinov3s = bool(re.search(r"_dinov3|_lingbot", str(config.get("architecture", ""))))
    stored = known["positions"]
    if arguments.get("use_rot_pos_emb", has_dinov3s):
        known["positions"] = f"{stored}+rope" if stored else "rope"
        known["rope_base"] = _rotary_base(arguments, has_dinov3s)
    elif stored is None and hub_config is None:
        del known["positions"]
    elif stored is None and not (
        arguments.get("pos_embed") in ("", "none") or arguments.get("use_rot_pos_emb") is False
    ):
        raise ValueError("the tensor pos_embed is missing, and config.json tells of no other kind")


def _rotary_base(arguments, has_dinov3s):
    """The base of the rotary positions, which must be DINOv3's; what is not said is the
    architecture's, or the default of timm's constructor."""
    for name, wanted, default in (
        ("rope_type", "dinov3", "cat"),
        ("rope_rotate_half", True, False),
    ):
        value = arguments.get(name, wanted if has_dinov3s else default)
        if value != wanted:
            raise ValueError(
                f"unsupported rotary positions: expected {name}={wanted!r} in model_args, as "
                f"DINOv3 has it. Received: {name}={value!r}"
                + ("" if name in arguments else ", timm's default")
            )
    return float(arguments.get("rope_temperature", 100.0 if has_dinov3s else 10000.0))


# What timm's architectures have and neither tensors nor config.json tell: all rows whose pattern
# is found in the architecture's name apply, in order (timm 1.0, all plain architectures).
ARCHITECTURES = (
    (r"^vit_.*_clip_|_dinov3|_lingbot", {"layer_norm_epsilon": 1e-5}),
    (r"_quickgelu_", {"activation": "quick_gelu"}),
    (
        r"(giantopt_patch16|so400m_patch16|base_patch32)_siglip|large_patch16_siglip.*_512",
        {"activation": "gelu_tanh"},
    ),
    (r"giantopt_|base_patch16_gap_224", {"num_heads": 16}),
    (r"huge_plus_", {"num_heads": 20}),
    (r"^test_vit2?$", {"num_heads": 2}),
)
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16, "giant": 16}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
_POOLINGS = {"token": "token", "avg": "avg", "map": "map", "": None}
_MLP_LAYERS = {"Mlp": False, "SwiGLUPacked": True, "SwiGLU": True}
# Arguments of timm's constructors that are read here or seen in the tensors, and such as change
# nothing when a model is evaluated. One that is not listed may change the function.
_KNOWN_ARGUMENTS = (
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "act_layer"),
    *("norm_eps", "global_pool", "num_classes", "in_chans", "class_token", "fc_norm"),
    *("qkv_bias", "drop_rate", "pos_drop_rate", "patch_drop_rate"),
    *("proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init"),
    *("strict_img_size", "dynamic_img_size", "dynamic_img_pad", "no_embed_class", "reg_tokens"),
    *("init_values", "qk_norm", "pre_norm", "pos_embed", "use_abs_pos_emb", "use_rel_pos_bias"),
    *("mlp_layer", "num_reg_tokens", "swiglu_mlp", "rope_type", "rope_temperature"),
    *("use_rot_pos_emb", "rope_rotate_half", "use_post_transformer_norm", "use_fc_norm"),
    *("use_pre_transformer_norm", "head_init_scale", "rope_shift_coords"),
    *("rope_jitter_coords", "rope_rescale_coords", "ref_feat_shape"),
)
# Such as may have this value alone.
_FIXED_ARGUMENTS = {
    **{"final_norm": True, "use_post_norm": False, "proj_bias": True, "qkv_fused": True},
    **{"attn_type": "eva", "rope_grid_indexing": "ij"},
}
# Architectures of timm's class Eva that are read.
_EVA = r"^eva_|_dinov3|_lingbot"
# Architectures whose tensors are named like a plain model's, and that compute something else.
_OTHERS = (
    (r"_rope_|^eva02_|^vit_pe_", "rotary positions of another kind than DINOv3's"),
    (r"_rpn_", "norms after the residual branches"),
    (r"^test_vit3$", "registers that are pooled"),
)
# (argument of timm's constructor, our field): what the tensors must agree with.
_CHECKED = (
    ("embed_dim", "hidden_size"),
    ("depth", "depth"),
    ("reg_tokens", "register_tokens"),
    ("num_reg_tokens", "register_tokens"),
    ("qk_norm", "qk_norm"),
    ("pre_norm", "pre_norm"),
    ("class_token", "class_token"),
    ("qkv_bias", "qkv_bias"),
)


def _model_args(hub_config):
    """What timm's constructor is given; None is nothing there."""
    arguments = hub_config.get("model_args") or {}
    return {name: value for name, value in arguments.items() if value is not None}


def _hub_facts(hub_config, known, notes):
    arguments = _model_args(hub_config)
    architecture_name = str(hub_config.get("architecture", ""))
    # Older files keep it on the first level.
    pretrained = hub_config.get("pretrained_cfg") or hub_config
    for pattern, reason in _OTHERS:
        if re.search(pattern, architecture_name):
            raise ValueError(f"unsupported architecture {architecture_name!r}: it has {reason}")
    _check_arguments(arguments, known)
    told = {"activation": "silu" if known["gated_mlp"] else "gelu", "layer_norm_epsilon": 1e-6}
    for pattern, row in ARCHITECTURES:
        if re.search(pattern, architecture_name):
            told |= row
    if arguments.get("act_layer"):
        told["activation"] = translated("act_layer", arguments["act_layer"], _ACTIVATIONS)
    elif "mlp_layer" in arguments and translated("mlp_layer", arguments["mlp_layer"], _MLP_LAYERS):
        # timm hands its own default, exact GELU, to the layer.
        told["activation"] = "silu" if arguments["mlp_layer"] == "SwiGLU" else "gelu"
    # No argument of timm's. Folders of earlier versions have it among them.
    epsilon = hub_config.get("norm_eps", arguments.get("norm_eps"))
    if epsilon is not None:
        told["layer_norm_epsilon"] = float(epsilon)
    pooling = arguments.get("global_pool", hub_config.get("global_pool"))
    if pooling is not None:
        told["pooling"] = translated("global_pool", pooling, _POOLINGS)
    elif re.search(r"^(eva|beit)|_dinov3", architecture_name):
        told["pooling"] = "avg"
    elif arguments.get("fc_norm") and known["class_token"]:
        told["pooling"] = "token"  # The constructor's default.
    if told.get("pooling") == "map" and re.search(_EVA, architecture_name):
        _check_map_pooling(known)
    heads = arguments.get("num_heads")
    if heads is not None:
        if type(heads) is not int or heads < 1:
            raise ValueError(f"model_args say num_heads={heads!r}, which must be a positive int")
        told["num_heads"] = heads
    elif "num_heads" not in told:
        told |= _named_heads(architecture_name, known["hidden_size"], notes)
    _check_classes(hub_config, arguments, known)
    if arguments.get("no_embed_class"):
        told["position_slots"] = "patches"
    # What the constructor was given is so; the input size may be that of an ancestor.
    size = arguments.get("img_size")
    told["image_size" if size is not None else "likely_image_size"] = (
        size if size is not None else (pretrained.get("input_size") or (3, None, None))[1:]
    )
    if "mean" in pretrained and "std" in pretrained:
        told["preprocessing"] = Preprocessing(
            mean=tuple(pretrained["mean"]),
            std=tuple(pretrained["std"]),
            crop_fraction=pretrained.get("crop_pct") or 0.875,
            crop_mode=pretrained.get("crop_mode") or "center",
            interpolation=pretrained.get("interpolation") or "bicubic",
        )
    return told


def _check_map_pooling(known):
    """timm's EVA pools by attention to all tokens, through an MLP with exact GELU."""
    prefix = known["class_token"] + known["register_tokens"]
    if prefix or known["gated_mlp"]:
        what = f"{prefix} tokens before the patches" if prefix else "gated MLPs"
        raise ValueError(
            f"unsupported global_pool='map' of timm's EVA with {what}, which no keras_vit model "
            "pools as it does"
        )


def _check_classes(hub_config, arguments, known):
    stated = arguments.get("num_classes", hub_config.get("num_classes"))
    found = known.get("num_classes", 0)
    if type(stated) is int and stated > 0 and stated != found:
        what = f"head.weight has {found}" if found else "the tensor head.weight is missing"
        raise ValueError(f"config.json says num_classes={stated}, and {what}")


def _named_heads(architecture_name, hidden_size, notes):
    """Heads of the size that the name says, for widths that no published model has."""
    for word, heads in _HEADS.items():
        if f"_{word}_" in architecture_name and hidden_size % heads == 0 and hidden_size < 192:
            notes.append(f"{heads} heads, as {architecture_name} has them")
            return {"num_heads": heads}
    return {}


def _check_arguments(arguments, known):
    unknown = [
        name
        for name, value in arguments.items()
        if (
            value != _FIXED_ARGUMENTS[name]
            if name in _FIXED_ARGUMENTS
            else value and name not in _KNOWN_ARGUMENTS
        )
    ]
    if unknown:
        raise ValueError(
            "unsupported model_args: "
            + ", ".join(f"{name}={arguments[name]!r}" for name in unknown)
        )
    patch_size = arguments.get("patch_size")
    if patch_size is not None and as_pair(patch_size, "patch_size") != known["patch_size"]:
        raise ValueError(
            f"model_args say patch_size={patch_size!r}, the tensor "
            f"patch_embed.proj.weight {known['patch_size']!r}"
        )
    if arguments.get("init_values") and known["layer_scale"] is None:
        raise ValueError(
            f"model_args say init_values={arguments['init_values']!r}, and the tensors "
            "blocks.*.ls1.gamma are missing"
        )
    if arguments.get("in_chans", 3) != 3:
        raise ValueError(f"unsupported model_args: in_chans={arguments['in_chans']!r}, not 3")
    if "mlp_ratio" in arguments:
        width = int(known["hidden_size"] * arguments["mlp_ratio"])
        # A packed gate counts as part of the width, or does not.
        if width not in (known["mlp_dim"], known["mlp_dim"] * (1 + known["gated_mlp"])):
            raise ValueError(
                f"model_args say mlp_ratio={arguments['mlp_ratio']!r}, which is a width of "
                f"{width}; the tensors have {known['mlp_dim']}"
            )
    for name, field in _CHECKED:
        # BEiT's queries and values have biases, and its keys have none.
        found = bool(known[field]) if field == "qkv_bias" else known[field]
        if name in arguments and arguments[name] != found:
            raise ValueError(
                f"model_args say {name}={arguments[name]!r}, the tensors {known[field]!r}"
            )
