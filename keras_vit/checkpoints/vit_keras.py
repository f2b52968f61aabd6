"""vit-keras' files, of Keras 2 and Keras 3.

Names and arithmetic: https://github.com/faustomorales/vit-keras, vit_keras/layers.py and vit.py.
"""

import re

from keras_vit.checkpoints.architecture import architecture, published_heads
from keras_vit.checkpoints.layouts import Rule, flax_dense
from keras_vit.models import PRESETS

FORMAT = "vit-keras"
POSITIONS = "Transformer/posembed_input/pos_embedding"
# It zooms positions as Google's code does.
RESAMPLING = "google"
BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")
_ALIASES = (
    # Keras 2 writes a layer's name twice: that of the group, and that within the variable's.
    (re.compile(r"^([^/]+|Transformer/[^/]+)/\1/"), r"\1/"),
    # With Keras 3 layers are called without slashes, and inner ones by their attributes.
    (
        re.compile(r"^Transformer_(encoderblock_\d+|encoder_norm|posembed_input)/"),
        r"Transformer/\1/",
    ),
    (re.compile(r"/att/combine_heads/"), "/MultiHeadDotProductAttention_1/out/"),
    (re.compile(r"/att/(query|key|value)_dense/"), r"/MultiHeadDotProductAttention_1/\1/"),
    (re.compile(r"/mlpblock/Transformer_encoderblock_\d+_Dense_"), "/Dense_"),
    (re.compile(r"/layernorm1/"), "/LayerNorm_0/"),
    (re.compile(r"/layernorm2/"), "/LayerNorm_2/"),
)
# Before February 2021 an inner layer of the MLP had no prefix.
_OLD_DENSE = re.compile(r"^Transformer/encoderblock_0/Dense_0/kernel$")


def canonical_name(name):
    """The tensor's name as vit-keras called it under Keras 2, without the group's.

    Example:

    >>> canonical_name("Transformer_encoderblock_0/att/combine_heads/bias")
    'Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/bias'
    """
    for pattern, replacement in _ALIASES:
        name = pattern.sub(replacement, name)
    return name


def published_name(name, file_names):
    """What a tensor that is missing would be called among `file_names`.

    Example:

    >>> published_name("head/bias", ["head/head/kernel"])
    'head/head/bias'
    """
    layer, _, variable = BLOCK.sub("#/", name).rpartition("/")
    number = BLOCK.match(name)
    for there in file_names:
        if BLOCK.sub("#/", canonical_name(there)).rpartition("/")[0] == layer:
            found = f"{there.rpartition('/')[0]}/{variable}"
            return re.sub(r"(?<=encoderblock_)\d+", number[1], found) if number else found
    return name


def recognises(names):
    """Whether the canonical `names` are of this format."""
    return {"embedding/kernel", "Transformer/encoder_norm/gamma"} <= set(names)


def rules(depth, shapes):
    """The `Rule` of each weight of the model."""
    result = [
        Rule("patch_encoder/projection/kernel", ("embedding/kernel",), "flax_patches"),
        Rule("patch_encoder/projection/bias", ("embedding/bias",)),
        Rule("patch_encoder/class_token", ("class_token/cls",)),
        Rule("patch_encoder/position_embedding", (POSITIONS,)),
        *_norm("encoder_norm", "Transformer/encoder_norm"),
        *flax_dense("pre_logits", "pre_logits"),
        *flax_dense("head", "head"),
    ]
    for index in range(depth):
        block, tensor = f"block_{index}", f"Transformer/encoderblock_{index}"
        attention = f"{tensor}/MultiHeadDotProductAttention_1"
        result += [
            *_norm(f"{block}/attention_norm", f"{tensor}/LayerNorm_0"),
            *(
                Rule(
                    f"{block}/attention/query_key_value/{kind}",
                    tuple(f"{attention}/{part}/{kind}" for part in ("query", "key", "value")),
                )
                for kind in ("kernel", "bias")
            ),
            *flax_dense(f"{block}/attention/projection", f"{attention}/out"),
            *_norm(f"{block}/mlp_norm", f"{tensor}/LayerNorm_2"),
            *flax_dense(f"{block}/mlp/expansion", f"{tensor}/Dense_0"),
            *flax_dense(f"{block}/mlp/projection", f"{tensor}/Dense_1"),
        ]
    return result


def _norm(weight, tensor):
    return [Rule(f"{weight}/{part}", (f"{tensor}/{part}",)) for part in ("gamma", "beta")]


def facts(weights, shapes, file):
    """What a file tells of its model; see `google.facts`."""
    known, notes = architecture(weights), []
    if known["positions"] is None:
        raise KeyError("patch_encoder/position_embedding")
    known |= {
        "patch_size": tuple(shapes["embedding/kernel"][:2]),
        "pooling": "token",
        "position_slots": "class",
        "activation": "gelu",
        "layer_norm_epsilon": 1e-6,
        "preprocessing": PRESETS["inception"],
    }
    if any(map(_OLD_DENSE.match, file.shapes)):
        known["activation"] = "gelu_tanh"
        notes.append("GELU's tanh approximation, as in vit-keras before February 2021")
    known |= _told_by_layers((file.hub_config or {}).get("model"))
    if "num_heads" not in known:
        known |= published_heads(known["hidden_size"], notes)
    return known, notes


def _told_by_layers(model):
    """What the config of a whole model, which only some files hold, says beyond its weights."""
    told = {}
    for layer in ((model or {}).get("config") or {}).get("layers") or ():
        config = layer["config"]
        if layer["class_name"] == "InputLayer":
            size = tuple(config["batch_input_shape"][1:3])
            told |= {} if None in size else {"image_size": size}
        if "num_heads" in config:
            told["num_heads"] = config["num_heads"]
        if config["name"] == "head" and config["activation"] != "linear":
            told["classifier_activation"] = config["activation"]
    return told
