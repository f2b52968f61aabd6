"""All of timm's architectures: which are plain, and what keras_vit makes of their headers alone.

A checkpoint's tensors tell widths, depth and which parts there are. Three things they do not tell:
the activation, the norms' epsilon and the number of heads. `keras_vit.checkpoints.timm` has a table
of these by the architecture's name, and this holds it to models that timm builds without memory.
"""

import warnings
from pathlib import Path

import timm
from timm.layers import GELUTanh, QuickGELU, SwiGLU
from timm.models import beit, eva, vision_transformer
from torch import nn

from keras_vit.checkpoints.checkpoint import recognise
from keras_vit.checkpoints.tensor_file import TensorFile

MODULES = ("vision_transformer", "deit", "beit", "eva", "vision_transformer_hybrid")


def names():
    """Every architecture of `MODULES`."""
    return [name for module in MODULES for name in timm.list_models(module=module)]


def build(name):
    """The architecture, without memory for its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name, pretrained=False, device="meta")


def told(name, model, *, is_bare=False):
    """What keras_vit reads off a hub folder of the architecture: fields of its config.

    The folder has timm's tensor names and shapes and what published config.json files say, or
    none of these if it `is_bare`.
    """
    file = TensorFile(
        path=Path(f"{name}.safetensors"),
        shapes={key: tuple(tensor.shape) for key, tensor in model.state_dict().items()},
        read=lambda key: None,
        hub_config=None
        if is_bare
        else {
            "architecture": name,
            "num_classes": model.num_classes,
            "global_pool": model.global_pool,
            "pretrained_cfg": model.pretrained_cfg,
        },
    )
    return recognise(file).facts


def measured(model):
    """The same fields of a plain model, read off its modules."""
    block, pool = model.blocks[0], getattr(model, "attn_pool", None)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    mlps = [block.mlp, *([] if pool is None else [pool.mlp])]
    activations = {"silu" if isinstance(m, SwiGLU) else _ACTIVATIONS[type(m.act)] for m in mlps}
    (activation,), (epsilon,) = activations, {norm.eps for norm in norms}
    sides = zip(model.patch_embed.img_size, model.patch_embed.grid_size, strict=True)
    return {
        "activation": activation,
        "layer_norm_epsilon": epsilon,
        "num_heads": block.attn.num_heads,
        "hidden_size": model.embed_dim,
        "depth": len(model.blocks),
        "mlp_dim": block.mlp.fc2.in_features,
        "pooling": model.global_pool,
        "pool_norm": not isinstance(model.fc_norm, nn.Identity),
        "class_token": model.cls_token is not None,
        "distillation_token": getattr(model, "dist_token", None) is not None,
        "register_tokens": 0 if _registers(model) is None else _registers(model).shape[1],
        # What whole patches cover: 378 of the 384 px of So400m/14.
        "image_size": tuple(side // patches * patches for side, patches in sides),
    }


_ACTIVATIONS = {
    nn.GELU: "gelu",
    GELUTanh: "gelu_tanh",
    QuickGELU: "quick_gelu",
    nn.SiLU: "silu",
}


def _registers(model):
    return getattr(model, "reg_token", None)


def obstacles(model):
    """Why the switches of `VisionTransformerConfig` do not express `model`: empty where they do."""
    found = [] if type(model.blocks[0]) in _PLAIN_BLOCKS else [type(model.blocks[0]).__name__]
    if not found:
        found += _obstacles_of_block(model.blocks[0])
    found += {
        type(module).__name__: None
        for name, module in model.named_modules()
        if "norm" in name.rpartition(".")[2]
        and "backbone" not in name
        and not isinstance(module, nn.LayerNorm | nn.Identity)
    }
    if isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity):
        found.append("no final norm")
    stem = [name for name in model.state_dict() if "backbone" in name]
    if any("running_mean" in name for name in stem):
        found.append("batch norms in the stem")
    rope = getattr(model, "rope", None)
    if rope is not None and type(rope).__name__ != "RotaryEmbeddingDinoV3":
        found.append(f"rotary positions of the kind {type(rope).__name__}")
    if getattr(model, "pool_include_prefix", False):
        found.append("registers are pooled")
    return found


_PLAIN_BLOCKS = (vision_transformer.Block, beit.Block, eva.EvaBlock)
_PLAIN_ATTENTIONS = (vision_transformer.Attention, beit.Attention, eva.EvaAttention)


def _obstacles_of_block(block):
    found = [] if type(block.attn) in _PLAIN_ATTENTIONS else [type(block.attn).__name__]
    for owner, part, what in (
        (block.attn, "norm", "norm inside the attention"),
        (block.attn, "gate", "gated attention"),
        (block.mlp, "norm", "norm inside the MLP"),
    ):
        if not isinstance(getattr(owner, part, None), nn.Identity | None):
            found.append(what)
    return found


def main():
    """Prints which architectures keras_vit reads wrongly, and which are not plain and why."""
    plain, wrong, reasons = 0, 0, {}
    for name in names():
        model = build(name)
        why = obstacles(model)
        if why:
            reasons.setdefault("; ".join(why), []).append(name)
            continue
        plain += 1
        facts, expected = told(name, model), measured(model)
        differing = {
            field: (facts.get(field), value)
            for field, value in expected.items()
            if facts.get(field) != value
        }
        if differing:
            wrong += 1
            print(f"{name}: (read, timm's) {differing}")
    others = sum(map(len, reasons.values()))
    print(f"{plain} plain architectures, {wrong} read wrongly; {others} not plain:")
    for why, those in sorted(reasons.items()):
        print(f"- {why}: {', '.join(those)}")


if __name__ == "__main__":
    main()
