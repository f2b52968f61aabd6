"""timm's Vision Transformers: safetensors, bare or beside the hub's config.json."""

import re

from keras_vit.checkpoints.layouts import Rule
from keras_vit.models import VARIANTS, Preprocessing

FORMAT = "timm"
POSITIONS = "pos_embed"
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def canonical_name(name):
    """timm's names are used as they are."""
    return name


def published_name(name, file_names):
    """timm's names are used as they are."""
    return name


def recognises(names):
    """Whether `names` are of this format."""
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= set(names)


def rules(config):
    """The `Rule` of each weight of the model that `config` describes."""
    result = [
        Rule("patch_encoder/projection/kernel", ("patch_embed.proj.weight",), "torch_patches"),
        Rule("patch_encoder/projection/bias", ("patch_embed.proj.bias",)),
        Rule("patch_encoder/class_token", ("cls_token",)),
        Rule("patch_encoder/position_embedding", (POSITIONS,)),
    ]
    for index in range(config.depth):
        block, tensor = f"block_{index}", f"blocks.{index}"
        result += _norm_rules(f"{block}/attention_norm", f"{tensor}.norm1")
        result += _dense_rules(f"{block}/attention/query_key_value", f"{tensor}.attn.qkv")
        result += _dense_rules(f"{block}/attention/projection", f"{tensor}.attn.proj")
        result += _norm_rules(f"{block}/mlp_norm", f"{tensor}.norm2")
        result += _dense_rules(f"{block}/mlp/expansion", f"{tensor}.mlp.fc1")
        result += _dense_rules(f"{block}/mlp/projection", f"{tensor}.mlp.fc2")
    result += _norm_rules("encoder_norm", "norm")
    result += _norm_rules("pool_norm", "fc_norm")
    result += _dense_rules("pre_logits", "pre_logits.fc")
    result += _dense_rules("head", "head")
    return result


def _norm_rules(weight, tensor):
    return [
        Rule(f"{weight}/gamma", (f"{tensor}.weight",)),
        Rule(f"{weight}/beta", (f"{tensor}.bias",)),
    ]


def _dense_rules(weight, tensor):
    return [
        Rule(f"{weight}/kernel", (f"{tensor}.weight",), "transposed"),
        Rule(f"{weight}/bias", (f"{tensor}.bias",)),
    ]


def facts(shapes, hub_config):
    """What a file with tensors of these names and shapes tells of its model.

    Args:
        shapes: Name → shape.
        hub_config: Content of the config.json beside the file, or None.

    Returns:
        A pair: a dict of fields of `VisionTransformerConfig`, and sentences on what was assumed.
    """
    hidden_size, _, *patch_size = shapes["patch_embed.proj.weight"]
    known = {
        "patch_size": tuple(patch_size),
        "hidden_size": hidden_size,
        "depth": 1 + max(int(m[1]) for m in map(_BLOCK.match, shapes) if m),
        "class_token": "cls_token" in shapes,
        "pool_norm": "fc_norm.weight" in shapes,
        "pooling": "avg" if "fc_norm.weight" in shapes or "cls_token" not in shapes else "token",
    }
    known["mlp_dim"] = shapes["blocks.0.mlp.fc1.bias"][0]
    if "head.weight" in shapes:
        known["num_classes"] = shapes["head.weight"][0]
    if "pre_logits.fc.bias" in shapes:
        known["representation_size"] = shapes["pre_logits.fc.bias"][0]
    notes = []
    if hub_config is None:
        # A bare file says neither; these are timm's for every plain ViT and DeiT.
        known |= {"activation": "gelu", "layer_norm_epsilon": 1e-6}
        notes.append("exact GELU and epsilon 1e-6, timm's defaults: no config.json beside the file")
    else:
        positions = shapes.get(POSITIONS, (1, 0, 0))[1] - known["class_token"]
        known |= _hub_facts(hub_config, known["patch_size"], positions)
    if "num_heads" not in known:
        known |= _published_heads(known, (hub_config or {}).get("architecture", ""), notes)
    return known, notes


# Heads of the sizes that timm's architecture names say.
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16, "giant": 16}


def _published_heads(known, architecture, notes):
    for row in VARIANTS.values():
        if all(known[size] == row[size] for size in ("hidden_size", "depth", "mlp_dim")):
            notes.append(f"{row['num_heads']} heads, as published for this width and depth")
            return {"num_heads": row["num_heads"]}
    for word, heads in _HEADS.items():
        if f"_{word}_" in architecture and known["hidden_size"] % heads == 0:
            notes.append(f"{heads} heads, as {architecture} has them")
            return {"num_heads": heads}
    return {}


# timm's names of activations and poolings.
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_POOLINGS = {"token": "token", "avg": "avg", "map": "map", "": None}
# Arguments of timm's constructor that are read here or seen in the tensors, and such as change
# nothing when a model is evaluated. One that is not listed may change the function.
_KNOWN_ARGUMENTS = (
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "act_layer"),
    *("norm_eps", "global_pool", "num_classes", "in_chans", "class_token", "fc_norm"),
    *("final_norm", "qkv_bias", "drop_rate", "pos_drop_rate", "patch_drop_rate"),
    *("proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init"),
    *("strict_img_size", "dynamic_img_size", "dynamic_img_pad"),
)


def _hub_facts(hub_config, patch_size, positions):
    arguments = hub_config.get("model_args") or {}
    # Older files keep it on the first level.
    pretrained = hub_config.get("pretrained_cfg") or hub_config
    unknown = [name for name, value in arguments.items() if value and name not in _KNOWN_ARGUMENTS]
    if unknown or not arguments.get("qkv_bias", True) or not arguments.get("final_norm", True):
        raise ValueError(
            "unsupported model_args: "
            + ", ".join(f"{name}={arguments[name]!r}" for name in unknown or arguments)
        )
    known = {
        "activation": _translated(arguments, "act_layer", "gelu", _ACTIVATIONS),
        "layer_norm_epsilon": float(arguments.get("norm_eps") or 1e-6),
    }
    pooling = arguments.get("global_pool", hub_config.get("global_pool"))
    if pooling is not None:
        known["pooling"] = _translated({"global_pool": pooling}, "global_pool", "", _POOLINGS)
    if arguments.get("num_heads"):
        known["num_heads"] = int(arguments["num_heads"])
    # What the constructor was given is so; the input size may be that of an ancestor.
    size, told = arguments.get("img_size"), True
    if size is None:
        size, told = (pretrained.get("input_size") or (3, 0, 0))[1:], False
    size = (size, size) if isinstance(size, int) else tuple(size)
    fits = (size[0] // patch_size[0]) * (size[1] // patch_size[1]) == positions
    if told or fits:
        known["image_size"] = size
    if "mean" in pretrained and "std" in pretrained:
        known["preprocessing"] = Preprocessing(
            mean=tuple(pretrained["mean"]),
            std=tuple(pretrained["std"]),
            crop_fraction=pretrained.get("crop_pct") or 0.875,
            crop_mode=pretrained.get("crop_mode") or "center",
            interpolation=pretrained.get("interpolation") or "bicubic",
        )
    return known


def _translated(arguments, name, default, table):
    value = arguments.get(name) or default
    if value not in table:
        raise ValueError(
            f"unsupported `{name}` in config.json. Expected one of "
            f"{', '.join(map(repr, table))}. Received: {name}={value!r}"
        )
    return table[value]
