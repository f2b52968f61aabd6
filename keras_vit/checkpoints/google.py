"""Google's .npz checkpoints: vision_transformer's and big_vision's, old names and new."""

import re

from keras_vit.checkpoints.architecture import architecture
from keras_vit.checkpoints.descriptions import Description, differing
from keras_vit.checkpoints.layouts import Rule, flax_dense, flax_norm
from keras_vit.models import PRESETS

FORMAT = "google"
POSITIONS = "pos_embedding"
# Where vision_transformer keeps positions, those of the class token among them.
OLD_POSITIONS = "Transformer/posembed_input/pos_embedding"
_PREFIXES = ("opt/target/", "params/img/", "params/")
# (a name's part as published, as today's code writes it).
_ALIASES = (
    ("/MultiHeadDotProductAttention_1/", "/MultiHeadDotProductAttention_0/"),
    ("/LayerNorm_2/", "/LayerNorm_1/"),
    ("/MlpBlock_3/", "/MlpBlock_0/"),
    ("Transformer/pos_embedding", POSITIONS),
)
_INLINED_POOL = re.compile(r"(probe|MlpBlock_0|MultiHeadDotProductAttention_0|LayerNorm_0)(/|$)")
BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")
_STACKED = "Transformer/encoderblock/"
# A stacked tensor may claim millions of blocks in a few deflated bytes; published models have up
# to 48.
MOST_BLOCKS = 1000
IGNORED = (
    (re.compile(r"^(txt/|t$|b$)"), "of the text tower, or of the loss"),
    (re.compile(r"^opt/state/"), "of the optimizer"),
)


def canonical_name(name):
    """The tensor's name as today's code writes it, without a prefix.

    Example:

    >>> canonical_name("opt/target/Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias")
    'Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias'
    """
    name = _without_prefix(name)
    for old, new in _ALIASES:
        name = name.replace(old, new)
    return f"MAPHead_0/{name}" if _INLINED_POOL.match(name) else name


def _without_prefix(name):
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def published_name(name, file_names):
    """What a tensor that is missing would be called among `file_names`, old or new.

    Example:

    >>> old = ["Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias"]
    >>> published_name("Transformer/encoderblock_1/MlpBlock_0/Dense_0/bias", old)
    'Transformer/encoderblock_1/MlpBlock_3/Dense_0/bias'
    """
    for old, new in _ALIASES[:-1]:
        if any(old in file_name for file_name in file_names):
            name = name.replace(new, old)
    if file_names:
        found = file_names[0]
        name = found[: len(found) - len(_without_prefix(found))] + name
    return name


def recognises(names):
    """Whether the canonical `names` are of this format."""
    return {"embedding/kernel", "Transformer/encoder_norm/scale"} <= set(names)


def normalised_shape(name, shape):
    """The shape by which a tensor is looked at: group norms without their axes of size one."""
    is_group_norm = re.search(r"(^|/)gn(\d+|_root|_proj)/", name)
    return shape[-1:] if is_group_norm and all(side == 1 for side in shape[:-1]) else shape


def unstacked(name, shape):
    """Names of the tensors that big_vision's scan layout stacked in this one, or None.

    Raises:
        ValueError: If they are more than `MOST_BLOCKS`.
    """
    if name not in _STACKED_NAMES or not shape:
        return None
    if shape[0] > MOST_BLOCKS:
        raise ValueError(
            f"{name} is {shape}, stacked of {shape[0]} blocks. Expected at most {MOST_BLOCKS}"
        )
    rest = name.removeprefix(_STACKED)
    return [f"Transformer/encoderblock_{index}/{rest}" for index in range(shape[0])]


def rules(depth, shapes):
    """The `Rule` of each weight; `shapes` are those of the canonical names, if there is a file."""
    positions = OLD_POSITIONS if OLD_POSITIONS in shapes else POSITIONS
    result = [
        Rule("patch_encoder/projection/kernel", ("embedding/kernel",), "flax_patches"),
        Rule("patch_encoder/projection/bias", ("embedding/bias",)),
        Rule("patch_encoder/class_token", ("cls",)),
        Rule("patch_encoder/position_embedding", (positions,)),
    ]
    for index in range(depth):
        result += _block_rules(f"block_{index}", f"Transformer/encoderblock_{index}")
    result += flax_norm("encoder_norm", "Transformer/encoder_norm")
    result += _pool_rules("MAPHead_0")
    for name in ("pre_logits", "head"):
        result += flax_dense(name, name)
    return result + _stem_rules(shapes)


def _block_rules(block, tensor):
    attention = f"{tensor}/MultiHeadDotProductAttention_0"
    return [
        *flax_norm(f"{block}/attention_norm", f"{tensor}/LayerNorm_0"),
        *_heads_rules(f"{block}/attention/query_key_value", attention, ("query", "key", "value")),
        Rule(
            f"{block}/attention/projection/kernel",
            (f"{attention}/out/kernel",),
            "flax_heads_projection",
        ),
        Rule(f"{block}/attention/projection/bias", (f"{attention}/out/bias",)),
        *flax_norm(f"{block}/mlp_norm", f"{tensor}/LayerNorm_1"),
        *flax_dense(f"{block}/mlp/expansion", f"{tensor}/MlpBlock_0/Dense_0"),
        *flax_dense(f"{block}/mlp/projection", f"{tensor}/MlpBlock_0/Dense_1"),
    ]


def _heads_rules(weight, attention, parts):
    return [
        Rule(
            f"{weight}/{kind}",
            tuple(f"{attention}/{part}/{kind}" for part in parts),
            f"flax_heads_{kind}",
        )
        for kind in ("kernel", "bias")
    ]


def _pool_rules(tensor):
    attention = f"{tensor}/MultiHeadDotProductAttention_0"
    return [
        Rule("pool/probe", (f"{tensor}/probe",)),
        *_heads_rules("pool/query", attention, ("query",)),
        *_heads_rules("pool/key_value", attention, ("key", "value")),
        Rule("pool/projection/kernel", (f"{attention}/out/kernel",), "flax_heads_projection"),
        Rule("pool/projection/bias", (f"{attention}/out/bias",)),
        *flax_norm("pool/norm", f"{tensor}/LayerNorm_0"),
        *flax_dense("pool/mlp/expansion", f"{tensor}/MlpBlock_0/Dense_0"),
        *flax_dense("pool/mlp/projection", f"{tensor}/MlpBlock_0/Dense_1"),
    ]


def _stem_rules(shapes):
    result = [
        Rule("stem/root_conv/kernel", ("conv_root/kernel",)),
        *flax_norm("stem/root_norm", "gn_root"),
    ]
    units = {match[0]: match for match in map(_UNIT.match, shapes) if match}
    for tensor, match in units.items():
        weight = f"stem/stage_{int(match[1]) - 1}_unit_{int(match[2]) - 1}"
        for part in ("1", "2", "3"):
            result.append(Rule(f"{weight}/conv{part}/kernel", (f"{tensor}/conv{part}/kernel",)))
            result += flax_norm(f"{weight}/norm{part}", f"{tensor}/gn{part}")
        result.append(Rule(f"{weight}/projection/kernel", (f"{tensor}/conv_proj/kernel",)))
        result += flax_norm(f"{weight}/projection_norm", f"{tensor}/gn_proj")
    return result


_UNIT = re.compile(r"block(\d+)/unit(\d+)")
# Other names are not taken apart, so that a file cannot ask for MOST_BLOCKS pieces of each.
_STACKED_NAMES = {
    name for rule in _block_rules("block", _STACKED.removesuffix("/")) for name in rule.tensors
}


def facts(weights, shapes, file):
    """What a file tells of its model.

    Args:
        weights: Path of each weight that the file holds → its shape in the model.
        shapes: Canonical name of each tensor → its shape.
        file: The open `TensorFile`.

    Returns:
        A pair: a dict of fields of `VisionTransformerConfig`, and sentences on what was assumed.
    """
    attention = "Transformer/encoderblock_0/MultiHeadDotProductAttention_0"
    known = architecture(weights)
    known |= {
        "patch_size": shapes["embedding/kernel"][:2],
        "num_heads": shapes[f"{attention}/query/kernel"][1],
        "pooling": "token" if known["class_token"] else "avg",
        "activation": "gelu_tanh",
        "layer_norm_epsilon": 1e-6,
        "preprocessing": PRESETS["inception"],
    }
    if "MAPHead_0/probe" in shapes:
        if known["class_token"]:
            raise ValueError(
                "cls beside MAPHead_0: no published code has a class token under a MAP head, so "
                "which tokens the head pools is not known"
            )
        known["pooling"] = "map"
    notes = []
    if known["positions"] is None:
        known["positions"] = "sincos2d"
        notes.append("fixed sin-cos positions, big_vision's, because the file stores none")
    # vision_transformer adds positions after the class token is there, big_vision before.
    if OLD_POSITIONS in shapes:
        known["position_slots"] = "class"
    return known, notes


def described(config, class_names):
    """The `Description` of a model in the terms of Google's code.

    vision_transformer's names of today where it has such a model, else big_vision's.
    """
    units = tuple(
        f"block{stage}/unit{unit}"
        for stage, count in enumerate(config.stem_blocks or (), 1)
        for unit in range(1, count + 1)
    )
    wanted = {"pool_norm": False, "patch_bias": True, "gated_mlp": False}
    is_big_vision = config.pooling == "map" or config.positions == "sincos2d"
    if config.class_token and config.position_slots == "patches":
        is_big_vision = True
    if not is_big_vision:
        return Description((*units, OLD_POSITIONS), implied=differing(config, wanted))
    wanted |= {"stem_blocks": None, "class_token": config.pooling == "token"}
    if config.token_positions == "learned":
        wanted["position_slots"] = "patches"
    return Description(units, "params/{}".format, implied=differing(config, wanted))
