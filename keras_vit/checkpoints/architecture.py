"""What the weights that a file holds tell of the model, whatever the file's format."""

import re

_BLOCK = re.compile(r"block_(\d+)/")
_UNIT = re.compile(r"stem/stage_(\d+)_unit_(\d+)/conv1/")
# Heads that are not 64 wide, by the width of the tokens: So400m, H/14, g/14, G/14, 7B.
_PUBLISHED_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 4096: 32}
HEAD_SIZE = 64


def architecture(shapes):
    """Fields of `VisionTransformerConfig` that follow from which weights there are.

    Args:
        shapes: Path of each weight that the file holds → its shape in the model.

    Returns:
        A dict of fields.

    Raises:
        KeyError: If the weights are not those of a Vision Transformer.
        ValueError: If they are fewer than the units of the stem that they speak of.
    """
    block = "block_0"
    mlp_dim = shapes[f"{block}/mlp/projection/kernel"][0]
    known = {
        "hidden_size": shapes[f"{block}/attention_norm/gamma"][0],
        "depth": 1 + max(int(match[1]) for match in map(_BLOCK.match, shapes) if match),
        "mlp_dim": mlp_dim,
        "gated_mlp": shapes[f"{block}/mlp/expansion/kernel"][1] == 2 * mlp_dim,
        "class_token": "patch_encoder/class_token" in shapes,
        "distillation_token": "patch_encoder/distillation_token" in shapes,
        "register_tokens": shapes.get("patch_encoder/register_tokens", (1, 0))[1],
        "patch_bias": "patch_encoder/projection/bias" in shapes,
        "pre_norm": "pre_norm/gamma" in shapes,
        "pool_norm": "pool_norm/gamma" in shapes,
        "qk_norm": f"{block}/attention/query_norm/gamma" in shapes,
        "qkv_bias": f"{block}/attention/query_key_value/bias" in shapes,
        # What the scales started from is not known, and no longer matters.
        "layer_scale": 1e-5 if f"{block}/attention_scale/gamma" in shapes else None,
    }
    if f"{block}/attention/query_value_bias" in shapes:
        known["qkv_bias"] = "query_value"
    kinds = {
        "learned": "patch_encoder/position_embedding",
        "relative": f"{block}/attention/relative_position_bias/table",
    }
    known["positions"] = "+".join(kind for kind, name in kinds.items() if name in shapes) or None
    if "head/kernel" in shapes:
        known["num_classes"] = shapes["head/kernel"][-1]
    if "pre_logits/bias" in shapes:
        known["representation_size"] = shapes["pre_logits/bias"][0]
    return known | _stem(shapes)


def _stem(shapes):
    if "stem/root_conv/kernel" not in shapes:
        return {}
    units = {(int(match[1]), int(match[2])) for match in map(_UNIT.match, shapes) if match}
    stages = 1 + max((stage for stage, _ in units), default=-1)
    blocks = tuple(1 + max(unit for of, unit in units if of == stage) for stage in range(stages))
    if sum(blocks) > len(shapes):
        raise ValueError(
            f"the names of its {len(shapes)} weights speak of {sum(blocks)} units in the stem"
        )
    return {"stem_width": shapes["stem/root_conv/kernel"][-1], "stem_blocks": blocks}


def published_heads(hidden_size, notes):
    """The heads of the published models of this width, and a note that it was so assumed."""
    heads = _PUBLISHED_HEADS.get(hidden_size)
    if heads is None and hidden_size % HEAD_SIZE == 0 and hidden_size >= 3 * HEAD_SIZE:
        heads = hidden_size // HEAD_SIZE
    if heads is None:
        return {}
    notes.append(
        f"{heads} heads of {hidden_size // heads}, as published for the width {hidden_size}"
    )
    return {"num_heads": heads}
