"""timm's Vision Transformers: safetensors, bare or beside the hub's config.json."""

import re

from keras_vit.checkpoints.layouts import Rule
from keras_vit.checkpoints.positions import square_image_size
from keras_vit.models import VARIANTS, Preprocessing

FORMAT = "timm"
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def canonical_name(name):
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
        Rule("patch_encoder/position_embedding", ("pos_embed",)),
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
    positions = shapes.get("pos_embed", (1, 0, 0))[1] - known["class_token"]
    image_size = square_image_size(positions, known["patch_size"])
    if image_size:
        known["image_size"] = image_size
    hidden = shapes.get("blocks.0.mlp.fc1.bias", ())
    if len(hidden) == 1:
        known["mlp_dim"] = hidden[0]
    if "head.bias" in shapes:
        known["num_classes"] = shapes["head.bias"][0]
    if "pre_logits.fc.bias" in shapes:
        known["representation_size"] = shapes["pre_logits.fc.bias"][0]
    notes = []
    for row in VARIANTS.values():
        sizes = ("hidden_size", "depth", "mlp_dim")
        if all(known.get(size) == row[size] for size in sizes):
            known["num_heads"] = row["num_heads"]
            notes.append(f"{row['num_heads']} heads, as published for this width and depth")
            break
    if hub_config is None:
        # A bare file says neither; these are timm's for every plain ViT and DeiT.
        known |= {"activation": "gelu", "layer_norm_epsilon": 1e-6}
        notes.append("exact GELU and epsilon 1e-6, timm's defaults: no config.json beside the file")
    else:
        known |= _hub_facts(hub_config)
        if "num_heads" in hub_config.get("model_args", {}):
            notes = []
    return known, notes


# timm's names of activations and poolings in `model_args`.
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_POOLINGS = {"token": "token", "avg": "avg", "map": "map", "": None}


def _hub_facts(hub_config):
    arguments = hub_config.get("model_args", {})
    pretrained = hub_config.get("pretrained_cfg", {})
    known = {
        "activation": _translated(arguments, "act_layer", "gelu", _ACTIVATIONS),
        "layer_norm_epsilon": float(arguments.get("norm_eps", 1e-6)),
    }
    if "global_pool" in arguments:
        known["pooling"] = _translated(arguments, "global_pool", "token", _POOLINGS)
    if "num_heads" in arguments:
        known["num_heads"] = int(arguments["num_heads"])
    size = arguments.get("img_size") or pretrained.get("input_size", ())[1:]
    if size:
        known["image_size"] = (size, size) if isinstance(size, int) else tuple(size)
    if "mean" in pretrained and "std" in pretrained:
        known["preprocessing"] = Preprocessing(
            mean=tuple(pretrained["mean"]),
            std=tuple(pretrained["std"]),
            crop_fraction=pretrained.get("crop_pct", 0.875),
            crop_mode=pretrained.get("crop_mode", "center"),
            interpolation=pretrained.get("interpolation", "bicubic"),
        )
    return known


def _translated(arguments, name, default, table):
    value = arguments.get(name, default)
    if value not in table:
        raise ValueError(
            f"config.json: unsupported `{name}`. Expected one of "
            f"{', '.join(map(repr, table))}. Received: {name}={value!r}"
        )
    return table[value]
