"""Random checkpoints in the published layouts, so that tests need no file from outside."""

import json

import numpy as np
import safetensors.numpy


def _random(shape, rng, scale=0.3):
    return rng.normal(scale=scale, size=shape).astype("float32")


def google_tensors(
    *, width=16, depth=2, heads=2, patch=4, grid=(3, 3), classes=5, cls=True, rep=None, linen=False
):
    """Name → tensor in google-research/vision_transformer's layout."""
    rng = np.random.default_rng(7)
    attention, second, mlp = (
        ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
        if linen
        else ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
    )
    size = width // heads
    shapes = {
        "embedding/kernel": (patch, patch, 3, width),
        "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, grid[0] * grid[1] + cls, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (rep or width, classes),
        "head/bias": (classes,),
    }
    if cls:
        shapes["cls"] = (1, 1, width)
    if rep:
        shapes |= {"pre_logits/kernel": (width, rep), "pre_logits/bias": (rep,)}
    for index in range(depth):
        block = f"Transformer/encoderblock_{index}"
        for name in ("LayerNorm_0", second):
            shapes |= {f"{block}/{name}/scale": (width,), f"{block}/{name}/bias": (width,)}
        for name in ("query", "key", "value"):
            shapes[f"{block}/{attention}/{name}/kernel"] = (width, heads, size)
            shapes[f"{block}/{attention}/{name}/bias"] = (heads, size)
        shapes[f"{block}/{attention}/out/kernel"] = (heads, size, width)
        shapes[f"{block}/{attention}/out/bias"] = (width,)
        shapes[f"{block}/{mlp}/Dense_0/kernel"] = (width, 2 * width)
        shapes[f"{block}/{mlp}/Dense_0/bias"] = (2 * width,)
        shapes[f"{block}/{mlp}/Dense_1/kernel"] = (2 * width, width)
        shapes[f"{block}/{mlp}/Dense_1/bias"] = (width,)
    return {name: _random(shape, rng) for name, shape in shapes.items()}


def timm_tensors(*, width=16, depth=2, patch=4, grid=(3, 3), classes=5, fc_norm=False):
    """Name → tensor in timm's layout."""
    rng = np.random.default_rng(8)
    shapes = {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "cls_token": (1, 1, width),
        "pos_embed": (1, grid[0] * grid[1] + 1, width),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    norms = ["fc_norm" if fc_norm else "norm"]
    for index in range(depth):
        block = f"blocks.{index}"
        norms += [f"{block}.norm1", f"{block}.norm2"]
        for name, outputs, inputs in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 2 * width, width),
            ("mlp.fc2", width, 2 * width),
        ):
            shapes |= {
                f"{block}.{name}.weight": (outputs, inputs),
                f"{block}.{name}.bias": (outputs,),
            }
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {name: _random(shape, rng) for name, shape in shapes.items()}


def write_google(path, **options):
    """Writes a .npz file; returns its tensors."""
    tensors = google_tensors(**options)
    np.savez(path, **tensors)
    return tensors


def write_timm(folder, *, heads=2, image_size=(12, 12), **options):
    """Writes a hub folder; returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = timm_tensors(**options)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": list(image_size), "num_heads": heads},
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


def randomise(model):
    """Draws every weight of a model anew, so that none is left at zero or one."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        middle = float(weight.path.endswith("gamma"))
        weight.assign(middle + rng.normal(scale=0.3, size=weight.shape))
