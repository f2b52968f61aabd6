"""Google's .npz checkpoints of vision_transformer, with published and linen tensor names."""

import re

from keras_vit.checkpoints.layouts import Rule
from keras_vit.models import PRESETS

FORMAT = "google"
POSITIONS = "Transformer/posembed_input/pos_embedding"
# Published files number a block's parts together, newer ones each kind apart.
_ALIASES = (
    ("/MultiHeadDotProductAttention_1/", "/MultiHeadDotProductAttention_0/"),
    ("/LayerNorm_2/", "/LayerNorm_1/"),
    ("/MlpBlock_3/", "/MlpBlock_0/"),
)
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")


def canonical_name(name):
    """The tensor's name as today's code writes it.

    Example:

    >>> canonical_name("Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias")
    'Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias'
    """
    for old, new in _ALIASES:
        name = name.replace(old, new)
    return name


def published_name(name, file_names):
    """What a tensor that is missing would be called among `file_names`, old or new.

    Example:

    >>> old = ["Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias"]
    >>> published_name("Transformer/encoderblock_1/MlpBlock_0/Dense_0/bias", old)
    'Transformer/encoderblock_1/MlpBlock_3/Dense_0/bias'
    """
    for old, new in _ALIASES:
        if any(old in file_name for file_name in file_names):
            name = name.replace(new, old)
    return name


def recognises(names):
    """Whether the canonical `names` are of this format."""
    return {"embedding/kernel", "Transformer/encoder_norm/scale"} <= set(names)


def rules(config):
    """The `Rule` of each weight of the model that `config` describes."""
    result = [
        Rule("patch_encoder/projection/kernel", ("embedding/kernel",), "flax_patches"),
        Rule("patch_encoder/projection/bias", ("embedding/bias",)),
        Rule("patch_encoder/class_token", ("cls",)),
        Rule("patch_encoder/position_embedding", (POSITIONS,)),
    ]
    for index in range(config.depth):
        result += _block_rules(f"block_{index}", f"Transformer/encoderblock_{index}")
    norm = "pool_norm" if config.pool_norm else "encoder_norm"
    result += _norm_rules(norm, "Transformer/encoder_norm")
    for name in ("pre_logits", "head"):
        result += _dense_rules(name, name)
    return result


def _norm_rules(weight, tensor):
    return [
        Rule(f"{weight}/gamma", (f"{tensor}/scale",)),
        Rule(f"{weight}/beta", (f"{tensor}/bias",)),
    ]


def _dense_rules(weight, tensor):
    return [Rule(f"{weight}/{part}", (f"{tensor}/{part}",)) for part in ("kernel", "bias")]


def _block_rules(block, tensor):
    attention = f"{tensor}/MultiHeadDotProductAttention_0"
    parts = ("query", "key", "value")
    return [
        *_norm_rules(f"{block}/attention_norm", f"{tensor}/LayerNorm_0"),
        Rule(
            f"{block}/attention/query_key_value/kernel",
            tuple(f"{attention}/{part}/kernel" for part in parts),
            "flax_query_key_value_kernel",
        ),
        Rule(
            f"{block}/attention/query_key_value/bias",
            tuple(f"{attention}/{part}/bias" for part in parts),
            "flax_query_key_value_bias",
        ),
        Rule(
            f"{block}/attention/projection/kernel",
            (f"{attention}/out/kernel",),
            "flax_attention_projection",
        ),
        Rule(f"{block}/attention/projection/bias", (f"{attention}/out/bias",)),
        *_norm_rules(f"{block}/mlp_norm", f"{tensor}/LayerNorm_1"),
        *_dense_rules(f"{block}/mlp/expansion", f"{tensor}/MlpBlock_0/Dense_0"),
        *_dense_rules(f"{block}/mlp/projection", f"{tensor}/MlpBlock_0/Dense_1"),
    ]


def facts(shapes, hub_config):
    """What a file with tensors of these canonical names and shapes tells of its model.

    Returns:
        A pair: a dict of fields of `VisionTransformerConfig`, and sentences on what was assumed.
    """
    patch_height, patch_width, _, hidden_size = shapes["embedding/kernel"]
    class_token = "cls" in shapes
    depth = 1 + max((int(m[1]) for m in map(_BLOCK.match, shapes) if m), default=-1)
    known = {
        "patch_size": (patch_height, patch_width),
        "hidden_size": hidden_size,
        "depth": depth,
        "class_token": class_token,
        "pooling": "token" if class_token else "avg",
        "pool_norm": False,
        "activation": "gelu_tanh",
        "layer_norm_epsilon": 1e-6,
        "preprocessing": PRESETS["inception"],
    }
    block = "Transformer/encoderblock_0"
    known["num_heads"] = shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][1]
    known["mlp_dim"] = shapes[f"{block}/MlpBlock_0/Dense_0/bias"][0]
    if "head/kernel" in shapes:
        known["num_classes"] = shapes["head/kernel"][-1]
    if "pre_logits/bias" in shapes:
        known["representation_size"] = shapes["pre_logits/bias"][0]
    return known, []
