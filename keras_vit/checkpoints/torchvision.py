"""torchvision's Vision Transformers, their state dicts stored as safetensors."""

import re

from keras_vit.checkpoints.architecture import architecture, published_heads
from keras_vit.checkpoints.layouts import Rule, torch_dense, torch_norm
from keras_vit.models import Preprocessing

FORMAT = "torchvision"
# Older releases count the layers of an MLP, newer name them.
_ALIASES = ((".mlp.linear_1.", ".mlp.0."), (".mlp.linear_2.", ".mlp.3."))
BLOCK = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.")
# torchvision.models.ViT_B_16_Weights and its siblings, IMAGENET1K_V1.
_PREPROCESSING = Preprocessing(
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop_fraction=0.875,
    interpolation="bilinear",
)


def canonical_name(name):
    """The tensor's name as today's code writes it.

    Example:

    >>> canonical_name("encoder.layers.encoder_layer_0.mlp.linear_1.bias")
    'encoder.layers.encoder_layer_0.mlp.0.bias'
    """
    for old, new in _ALIASES:
        name = name.replace(old, new)
    return name


def published_name(name, file_names):
    """What a tensor that is missing would be called among `file_names`."""
    for old, new in _ALIASES:
        if any(old in file_name for file_name in file_names):
            name = name.replace(new, old)
    return name


def recognises(names):
    """Whether the canonical `names` are of this format."""
    return {"conv_proj.weight", "encoder.ln.weight"} <= set(names)


def rules(depth, shapes):
    """The `Rule` of each weight."""
    result = [
        Rule("patch_encoder/projection/kernel", ("conv_proj.weight",), "torch_patches"),
        Rule("patch_encoder/projection/bias", ("conv_proj.bias",)),
        Rule("patch_encoder/class_token", ("class_token",)),
        Rule("patch_encoder/position_embedding", ("encoder.pos_embedding",)),
    ]
    for index in range(depth):
        block, tensor = f"block_{index}", f"encoder.layers.encoder_layer_{index}"
        attention = f"{block}/attention/query_key_value"
        result += [
            *torch_norm(f"{block}/attention_norm", f"{tensor}.ln_1"),
            Rule(f"{attention}/kernel", (f"{tensor}.self_attention.in_proj_weight",), "transposed"),
            Rule(f"{attention}/bias", (f"{tensor}.self_attention.in_proj_bias",)),
            *torch_dense(f"{block}/attention/projection", f"{tensor}.self_attention.out_proj"),
            *torch_norm(f"{block}/mlp_norm", f"{tensor}.ln_2"),
            *torch_dense(f"{block}/mlp/expansion", f"{tensor}.mlp.0"),
            *torch_dense(f"{block}/mlp/projection", f"{tensor}.mlp.3"),
        ]
    result += torch_norm("encoder_norm", "encoder.ln")
    result += torch_dense("pre_logits", "heads.pre_logits")
    return result + torch_dense("head", "heads.head")


def facts(weights, shapes, file):
    """What a file tells of its model; see `google.facts`."""
    notes = ["scaling and crop as torchvision publishes them for ImageNet (IMAGENET1K_V1)"]
    known = architecture(weights)
    if known["positions"] is None:
        raise KeyError("patch_encoder/position_embedding")
    known |= {
        "patch_size": shapes["conv_proj.weight"][2:],
        "pooling": "token",
        "activation": "gelu",
        "layer_norm_epsilon": 1e-6,
        "preprocessing": _PREPROCESSING,
        "position_slots": "class",
    }
    return known | published_heads(known["hidden_size"], notes), notes
