"""What timm's architectures are, read off models without memory, and a table that says the same.

A checkpoint's tensors tell widths, depth and which parts there are. Three things they do not tell:
the activation, the norms' epsilon and the number of heads. A hub config.json names the
architecture, and `fields` gives the three by its name.
"""

import re
import warnings

import timm
from timm.layers import GELUTanh, LayerNorm, QuickGELU, SwiGLU
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models import beit, eva, vision_transformer
from torch import nn

MODULES = ("vision_transformer", "deit", "beit", "eva", "vision_transformer_hybrid")

# Activation and epsilon where no row says otherwise, and a head's size where no width does.
DEFAULTS = {"activation": "gelu", "layer_norm_epsilon": 1e-6}
HEAD_SIZE = 64
HEADS_OF_WIDTH = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 4096: 32}

# (pattern searched in the architecture's name, fields); all rows that match apply, in order.
ROWS = (
    (r"^vit_.*_clip_|_dinov3|_lingbot", {"layer_norm_epsilon": 1e-5}),
    (r"_quickgelu_", {"activation": "quick_gelu"}),
    (
        r"(giantopt_patch16|so400m_patch16|base_patch32)_siglip|large_patch16_siglip.*_512",
        {"activation": "gelu_tanh"},
    ),
    (
        r"giant_.*(_dinov2|_tipsv2|_lingbot)|_plus_patch16_dinov3|_7b_.*_dinov3",
        {"activation": "silu"},
    ),
    (r"giantopt_|base_patch16_gap_224", {"num_heads": 16}),
    (r"huge_plus_", {"num_heads": 20}),
    (r"^test_vit2?$", {"num_heads": 2}),
)


def fields(architecture, hidden_size):
    """Activation, epsilon and heads of timm's `architecture`, by the table."""
    known = {**DEFAULTS, "num_heads": HEADS_OF_WIDTH.get(hidden_size, hidden_size // HEAD_SIZE)}
    for pattern, row in ROWS:
        if re.search(pattern, architecture):
            known |= row
    return known


def names():
    """Every architecture of `MODULES`."""
    return [name for module in MODULES for name in timm.list_models(module=module)]


def build(name, **arguments):
    """The architecture without memory for its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name, pretrained=False, device="meta", **arguments)


def obstacles(model):
    """Why the switches of `VisionTransformerConfig` do not express `model`: empty where they do."""
    found = [type(block).__name__ for block in model.blocks[:1] if type(block) not in _PLAIN_BLOCKS]
    if not found:
        attention, mlp = model.blocks[0].attn, model.blocks[0].mlp
        found += [] if type(attention) in _PLAIN_ATTENTIONS else [type(attention).__name__]
        for owner, part, what in (
            (attention, "norm", "norm inside the attention"),
            (attention, "gate", "gated attention"),
            (mlp, "norm", "norm inside the MLP"),
        ):
            if not isinstance(getattr(owner, part, None), nn.Identity | None):
                found.append(what)
    found += sorted(
        {
            type(module).__name__
            for name, module in model.named_modules()
            if "norm" in name.rpartition(".")[2]
            and "backbone" not in name
            and not isinstance(module, nn.LayerNorm | nn.Identity)
        }
    )
    if isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity):
        found.append("no final norm")
    if not isinstance(getattr(model.patch_embed, "norm", nn.Identity()), nn.Identity):
        found.append("norm of the patches")
    found += _obstacles_of_stem(model)
    rope = getattr(model, "rope", None)
    if rope is not None and type(rope).__name__ != "RotaryEmbeddingDinoV3":
        found.append(f"rotary positions of the kind {type(rope).__name__}")
    if getattr(model, "pool_include_prefix", False):
        found.append("registers are pooled")
    return list(dict.fromkeys(found))


_PLAIN_BLOCKS = (vision_transformer.Block, beit.Block, eva.EvaBlock)
_PLAIN_ATTENTIONS = (vision_transformer.Attention, beit.Attention, eva.EvaAttention)


def _obstacles_of_stem(model):
    tensors = [name for name in model.state_dict() if "backbone" in name]
    if not tensors:
        return []
    if any("running_mean" in name for name in tensors):
        return ["batch norms in the stem"]
    return [] if tensors[0].startswith("patch_embed.backbone") and _is_bit(tensors) else ["stem"]


def _is_bit(tensors):
    return any(".backbone.conv." in name or ".backbone.stem.conv." in name for name in tensors)


def measured(model):
    """Activation, epsilon and heads of a plain model, read off its modules."""
    mlp = model.blocks[0].mlp
    activation = "silu" if isinstance(mlp, SwiGLU) else _ACTIVATIONS[type(mlp.act)]
    epsilons = {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm | LayerNorm)}
    pool = getattr(model, "attn_pool", None)
    heads = {block.attn.num_heads for block in model.blocks}
    if isinstance(pool, AttentionPoolLatent):
        heads.add(pool.num_heads)
        if _ACTIVATIONS[type(pool.mlp.act)] != activation:
            raise AssertionError("the pooling's activation differs from the blocks'")
    (epsilon,), (num_heads,) = epsilons, heads
    return {"activation": activation, "layer_norm_epsilon": epsilon, "num_heads": num_heads}


_ACTIVATIONS = {
    nn.GELU: "gelu",
    GELUTanh: "gelu_tanh",
    QuickGELU: "quick_gelu",
    nn.SiLU: "silu",
}


def survey():
    """Each architecture's name → (obstacles, measured fields or None, fields by the table)."""
    found = {}
    for name in names():
        model = build(name)
        reasons = obstacles(model)
        known = None if reasons else measured(model)
        found[name] = (reasons, known, fields(name, model.embed_dim))
    return found


def main():
    """Prints what is plain, how many architectures each row covers, and what is not and why."""
    found = survey()
    plain = {name: known for name, (reasons, known, _) in found.items() if not reasons}
    wrong = [name for name in plain if found[name][1] != found[name][2]]
    print(
        f"{len(found)} architectures, {len(plain)} plain, {len(wrong)} contradict the table {wrong}"
    )
    for pattern, row in ROWS:
        print(f"  {sum(bool(re.search(pattern, name)) for name in plain):3}  {pattern}  {row}")
    reasons = {}
    for name, (why, _, _) in found.items():
        if why:
            reasons.setdefault("; ".join(why), []).append(name)
    for why, those in sorted(reasons.items()):
        print(f"not plain ({len(those)}): {why}\n    {' '.join(those)}")


if __name__ == "__main__":
    main()
