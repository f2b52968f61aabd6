"""Random checkpoints in the published layouts, so that tests need no file from outside."""

import json

import numpy as np
import safetensors.numpy


def _random(shape, rng, scale=0.3):
    return rng.normal(scale=scale, size=shape).astype("float32")


def google_tensors(
    *,
    width=16,
    depth=2,
    heads=2,
    patch=4,
    grid=(3, 3),
    classes=5,
    cls=True,
    rep=None,
    linen=False,
    style="vision_transformer",
    map_head=False,
    stem_blocks=None,
):
    """Name → tensor in the layout of google-research's vision_transformer.

    The `style` `"big_vision"` gives positions to the patches alone, by that project's name;
    `"sincos"` stores none.
    """
    rng = np.random.default_rng(7)
    attention, second, mlp = (
        ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
        if linen
        else ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
    )
    stem = {} if stem_blocks is None else _stem_shapes(stem_blocks)
    channels = next(reversed(stem.values()))[-1] if stem else 3
    shapes = {
        "embedding/kernel": (patch, patch, channels, width),
        "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, grid[0] * grid[1] + cls, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
    }
    if classes:
        shapes |= {"head/kernel": (rep or width, classes), "head/bias": (classes,)}
    if style != "vision_transformer":
        del shapes["Transformer/posembed_input/pos_embedding"]
        if style == "big_vision":
            shapes["pos_embedding"] = (1, grid[0] * grid[1], width)
    if cls:
        shapes["cls"] = (1, 1, width)
    if rep:
        shapes |= {"pre_logits/kernel": (width, rep), "pre_logits/bias": (rep,)}
    for index in range(depth):
        block = f"Transformer/encoderblock_{index}"
        for name in ("LayerNorm_0", second):
            shapes |= {f"{block}/{name}/scale": (width,), f"{block}/{name}/bias": (width,)}
        shapes |= _google_attention_shapes(f"{block}/{attention}", width, heads)
        shapes |= _google_mlp_shapes(f"{block}/{mlp}", width)
    if map_head:
        head = "MAPHead_0"
        shapes |= {
            f"{head}/probe": (1, 1, width),
            f"{head}/LayerNorm_0/scale": (width,),
            f"{head}/LayerNorm_0/bias": (width,),
        }
        shapes |= _google_attention_shapes(f"{head}/MultiHeadDotProductAttention_0", width, heads)
        shapes |= _google_mlp_shapes(f"{head}/MlpBlock_0", width)
    return {name: _random(shape, rng) for name, shape in (shapes | stem).items()}


def _google_attention_shapes(name, width, heads):
    size = width // heads
    shapes = {}
    for part in ("query", "key", "value"):
        shapes[f"{name}/{part}/kernel"] = (width, heads, size)
        shapes[f"{name}/{part}/bias"] = (heads, size)
    return shapes | {f"{name}/out/kernel": (heads, size, width), f"{name}/out/bias": (width,)}


def _google_mlp_shapes(name, width):
    return {
        f"{name}/Dense_0/kernel": (width, 2 * width),
        f"{name}/Dense_0/bias": (2 * width,),
        f"{name}/Dense_1/kernel": (2 * width, width),
        f"{name}/Dense_1/bias": (width,),
    }


def _stem_shapes(blocks, width=32):
    """Of the ResNet before the patches, by Google's names; the last one has its channels."""
    norm = {"scale": (width,), "bias": (width,)}
    shapes = {"conv_root/kernel": (7, 7, 3, width)}
    shapes |= {f"gn_root/{kind}": shape for kind, shape in norm.items()}
    inputs = width
    for stage, units in enumerate(blocks):
        inner = width * 2**stage
        for unit in range(units):
            name = f"block{stage + 1}/unit{unit + 1}"
            convs = {"1": (1, inputs, inner), "2": (3, inner, inner), "3": (1, inner, 4 * inner)}
            if not unit:
                convs = {"_proj": (1, inputs, 4 * inner), **convs}
            for part, (side, received, made) in convs.items():
                shapes[f"{name}/conv{part}/kernel"] = (side, side, received, made)
                shapes[f"{name}/gn{part}/scale"] = shapes[f"{name}/gn{part}/bias"] = (made,)
            inputs = 4 * inner
    return shapes


def stacked(tensors):
    """big_vision's scan layout: the blocks' tensors in one, along a new first axis."""
    block = "Transformer/encoderblock_"
    result, parts = {}, {}
    for name, tensor in tensors.items():
        if name.startswith(block):
            index, rest = name.removeprefix(block).split("/", 1)
            parts.setdefault(f"Transformer/encoderblock/{rest}", {})[int(index)] = tensor
        else:
            result[name] = tensor
    return result | {name: np.stack([of[i] for i in sorted(of)]) for name, of in parts.items()}


def timm_tensors(
    *,
    width=16,
    depth=2,
    heads=2,
    patch=4,
    grid=(3, 3),
    classes=5,
    fc_norm=False,
    mlp=None,
    class_token=True,
    distilled=False,
    registers=0,
    slots="class",
    layer_scale=None,
    gated=None,
    qk_norm=False,
    qkv_bias=True,
    pre_norm=False,
    map_pool=False,
    relative=False,
    rep=None,
    head_inputs=None,
    head_bias=True,
    head_dist=True,
    stem_blocks=None,
):
    """Name → tensor in timm's layout.

    `slots` says which tokens have positions (`"patches"`, `"class"`, `"all"`, or None without
    any), `layer_scale` the name of the scales (`"ls1.gamma"` or `"gamma_1"`), `gated` whether the
    two halves of a gated MLP are `"packed"` or `"apart"`.
    """
    rng = np.random.default_rng(8)
    stem = {} if stem_blocks is None else _timm_stem_shapes(stem_blocks)
    channels = (
        _stem_shapes(stem_blocks)[next(reversed(_stem_shapes(stem_blocks)))][-1] if stem else 3
    )
    shapes = {"patch_embed.proj.weight": (width, channels, patch, patch)}
    if not pre_norm:
        shapes["patch_embed.proj.bias"] = (width,)
    tokens = {"cls_token": class_token, "dist_token": distilled, "reg_token": registers}
    shapes |= {name: (1, int(count), width) for name, count in tokens.items() if count}
    if slots:
        prefix = {"patches": 0, "class": class_token + distilled}
        prefix["all"] = prefix["class"] + registers
        shapes["pos_embed"] = (1, prefix[slots] + grid[0] * grid[1], width)
    if rep:
        shapes |= _linear_shapes("pre_logits.fc", rep, width)
    for name in ("head", "head_dist") if distilled and head_dist else ("head",):
        if classes:
            shapes |= _linear_shapes(name, classes, head_inputs or rep or width, head_bias)
    shapes |= _norm_shapes("fc_norm" if fc_norm else "norm", width)
    if pre_norm:
        shapes |= _norm_shapes("norm_pre", width)
    mlp = mlp or 2 * width
    if map_pool:
        shapes["attn_pool.latent"] = (1, 1, width)
        shapes |= _norm_shapes("attn_pool.norm", width)
        for name, outputs in (("q", width), ("kv", 2 * width), ("proj", width)):
            shapes |= _linear_shapes(f"attn_pool.{name}", outputs, width)
        shapes |= _timm_mlp_shapes("attn_pool.mlp", width, mlp, None)
    for index in range(depth):
        block = {
            **_norm_shapes("norm1", width),
            **_norm_shapes("norm2", width),
            **_linear_shapes("attn.qkv", 3 * width, width, qkv_bias is True),
            **_linear_shapes("attn.proj", width, width),
            **_timm_mlp_shapes("mlp", width, mlp, gated),
        }
        if qkv_bias == "query_value":
            block |= {"attn.q_bias": (width,), "attn.v_bias": (width,)}
        if qk_norm:
            block |= _norm_shapes("attn.q_norm", width // heads)
            block |= _norm_shapes("attn.k_norm", width // heads)
        if relative:
            offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 * class_token
            block["attn.relative_position_bias_table"] = (offsets, heads)
        if layer_scale:
            block |= {layer_scale: (width,), layer_scale.replace("1", "2"): (width,)}
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return {name: _random(shape, rng) for name, shape in (shapes | stem).items()}


def _linear_shapes(name, outputs, inputs, bias=True):
    weight = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if bias else weight


def _norm_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _timm_mlp_shapes(name, width, hidden, gated):
    halves = ("fc1_g", "fc1_x") if gated == "apart" else ("fc1",)
    shapes = _linear_shapes(f"{name}.fc2", width, hidden)
    for half in halves:
        outputs = 2 * hidden if gated == "packed" else hidden
        shapes |= _linear_shapes(f"{name}.{half}", outputs, width)
    return shapes


def _timm_stem_shapes(blocks):
    """timm's names of `_stem_shapes`."""
    root = "patch_embed.backbone." + ("stem." if blocks else "")
    shapes = {}
    for name, shape in _stem_shapes(blocks).items():
        *unit, layer, kind = name.split("/")
        if unit:
            stage, index = (int(part[-1]) - 1 for part in unit)
            prefix = f"patch_embed.backbone.stages.{stage}.blocks.{index}."
            layer = layer.replace("conv_proj", "downsample.conv")
            layer = layer.replace("gn_proj", "downsample.norm").replace("gn", "norm")
        else:
            prefix, layer = root, {"conv_root": "conv", "gn_root": "norm"}[layer]
        kind = "bias" if kind == "bias" else "weight"
        shapes[f"{prefix}{layer}.{kind}"] = shape[::-1]
    return shapes


def write_google(path, **options):
    """Writes a .npz file; returns its tensors."""
    tensors = google_tensors(**options)
    np.savez(path, **tensors)
    return tensors


def write_timm(
    folder,
    *,
    heads=2,
    image_size=(12, 12),
    architecture="vit_tiny_patch16_224",
    arguments=None,
    **options,
):
    """Writes a hub folder; returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = timm_tensors(heads=heads, **options)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    config = {
        "architecture": architecture,
        "model_args": {
            "img_size": list(image_size),
            "num_heads": heads,
            **(arguments or {}),
        },
        "pretrained_cfg": {
            "input_size": [3, *image_size],
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.3, 0.25],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


# timm's parts of names → transformers', by family; queries, keys and values are stored apart.
_CLASSIC = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks": "encoder.layer",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.qkv": "attention.attention.{query,key,value}",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "gamma_1": "lambda_1",
    "gamma_2": "lambda_2",
    "attn.relative_position_bias_table": (
        "attention.attention.relative_position_bias.relative_position_bias_table"
    ),
    "norm": "layernorm",
    "fc_norm": "pooler.layernorm",
    "pre_logits.fc": "pooler.dense",
    "head": "classifier",
    "head_dist": "distillation_classifier",
}
_DINOV2 = {
    **_CLASSIC,
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
_DINOV3 = {
    **_DINOV2,
    "patch_embed.proj": "embeddings.patch_embeddings",
    "blocks": "layer",
    "attn.qkv": "attention.{q_proj,k_proj,v_proj}",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc1_g": "mlp.gate_proj",
    "mlp.fc1_x": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
    "norm": "norm",
}
_CLIP = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm_pre": "pre_layrnorm",
    "blocks": "encoder.layers",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.{q_proj,k_proj,v_proj}",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm": "post_layernorm",
    "attn_pool.latent": "head.probe",
    "attn_pool.proj": "head.attention.out_proj",
    "attn_pool.norm": "head.layernorm",
    "attn_pool.mlp.fc1": "head.mlp.fc1",
    "attn_pool.mlp.fc2": "head.mlp.fc2",
    "head": "classifier",
}
# As transformers 5 calls them in memory, where a state dict is stored as it is.
_IN_MEMORY = {
    "attn.qkv": "attention.{q_proj,k_proj,v_proj}",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc1_g": "mlp.gate_proj",
    "mlp.fc1_x": "mlp.up_proj",
    "mlp.fc2": "mlp.fc2",
    "attn.relative_position_bias_table": "relative_position_bias.relative_position_bias_table",
}
NAMINGS = {
    "classic": _CLASSIC,
    "teacher": {**_CLASSIC, "head": "cls_classifier"},
    "dinov2": _DINOV2,
    "dinov2 swiglu": {**_DINOV2, "mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"},
    "classic in memory": {**_CLASSIC, **_IN_MEMORY, "blocks": "layers"},
    "dinov2 in memory": {**_DINOV2, **_IN_MEMORY},
    "dinov2 swiglu in memory": {**_DINOV2, **_IN_MEMORY, "mlp.fc2": "mlp.down_proj"},
    "dinov3": _DINOV3,
    "clip": {**_CLIP, "head": "visual_projection"},
    "siglip": _CLIP,
}
_HEADS = ("classifier", "cls_classifier", "distillation_classifier", "visual_projection")


def as_transformers(tensors, naming, prefix=""):
    """timm's tensors by transformers' names; `prefix` is that of the model inside a larger one."""
    names = NAMINGS[naming]
    result = {}
    for name, tensor in tensors.items():
        if name in ("cls_token", "pos_embed") and naming in ("clip", "siglip"):
            tensor = tensor.reshape(-1 if name == "cls_token" else tensor.shape[1:])
        for new, part in _renamed(name, tensor, names):
            result[new if new.startswith(_HEADS) else prefix + new] = part
    if "attn_pool.q.weight" in tensors:
        for kind in ("weight", "bias"):
            parts = [tensors[f"attn_pool.{part}.{kind}"] for part in ("q", "kv")]
            result[f"{prefix}head.attention.in_proj_{kind}"] = np.concatenate(parts)
    return result


def _renamed(name, tensor, names):
    """(name, part of the tensor) of what a tensor becomes."""
    if name.startswith(("attn_pool.q.", "attn_pool.kv.")):
        return
    block = ""
    if name.startswith("blocks."):
        _, index, name = name.split(".", 2)
        block = f"{names['blocks']}.{index}."
    attention, parts = names["attn.qkv"].rstrip("}").split("{")
    query, _, value = parts = parts.split(",")
    if name in ("attn.q_bias", "attn.v_bias"):
        yield f"{block}{attention}{query if 'q_' in name else value}.bias", tensor
        return
    if name.startswith("attn.qkv."):
        for part, piece in zip(parts, np.split(tensor, 3), strict=True):
            yield f"{block}{attention}{part}.{name.removeprefix('attn.qkv.')}", piece
        return
    stem, dot, kind = name.rpartition(".") if name not in names else (name, "", "")
    yield f"{block}{names[stem]}{dot}{kind}", tensor


def write_transformers(folder, naming, config, *, prefix="", more=None, shards=1, **options):
    """Writes a hub folder of transformers; returns timm's tensors of the same model.

    Args:
        folder: Where.
        naming: Key of `NAMINGS`.
        config: config.json.
        prefix: Of the model inside a larger one.
        more: Further tensors, such as a text tower's.
        shards: Number of .safetensors files; of several, an index is written.
        options: Of `timm_tensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = timm_tensors(**options)
    stored = as_transformers(tensors, naming, prefix) | (more or {})
    (folder / "config.json").write_text(json.dumps(config))
    stored = {name: np.ascontiguousarray(tensor) for name, tensor in stored.items()}
    if shards == 1:
        safetensors.numpy.save_file(stored, folder / "model.safetensors")
        return tensors
    names, places = sorted(stored), {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: stored[name] for name in names[shard::shards]}
        safetensors.numpy.save_file(part, folder / file_name)
        places |= dict.fromkeys(part, file_name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


_TORCHVISION = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj": "conv_proj",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.proj": "self_attention.out_proj",
    "norm": "encoder.ln",
    "pre_logits.fc": "heads.pre_logits",
    "head": "heads.head",
}


def as_torchvision(tensors, *, is_old=False):
    """timm's tensors by torchvision's names, or by those of its first releases."""
    layers = ("linear_1", "linear_2") if is_old else ("0", "3")
    names = _TORCHVISION | {f"mlp.fc{i + 1}": f"mlp.{layers[i]}" for i in (0, 1)}
    result = {}
    for name, tensor in tensors.items():
        block = ""
        if name.startswith("blocks."):
            _, index, name = name.split(".", 2)
            block = f"encoder.layers.encoder_layer_{index}."
        stem, _, kind = name.rpartition(".")
        if stem == "attn.qkv":
            new = f"self_attention.in_proj_{kind}"
        else:
            new = names[name] if name in names else f"{names[stem]}.{kind}"
        result[block + new] = tensor
    return result


def randomise(model):
    """Draws every weight of a model anew, so that none is left at zero or one."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        middle = float(weight.path.endswith("gamma"))
        weight.assign(middle + rng.normal(scale=0.3, size=weight.shape))
