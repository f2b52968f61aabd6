"""An independent statement of the Vision Transformer: NumPy, float64, no code of keras_vit.

It takes the tensors of a Google .npz or timm .safetensors file as they are in the file.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def gelu(x):
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def gelu_tanh(x):
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, scale, bias, epsilon=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + bias


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def patchify(images, patch):
    """Loops over the grid instead of reshaping, to be independent."""
    batch, height, width, _ = images.shape
    rows = [
        images[:, top : top + patch, left : left + patch].reshape(batch, -1)
        for top in range(0, height, patch)
        for left in range(0, width, patch)
    ]
    return np.stack(rows, axis=1)


def attend(query, key, value):
    """(batch, tokens, heads, head size) each."""
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    return np.einsum("bhqk,bkhd->bqhd", softmax(scores), value)


def google_forward(tensors, images):
    """Logits by google-research/vision_transformer's equations, from its tensors."""
    t = {name: np.asarray(value, "float64") for name, value in tensors.items()}
    kernel = t["embedding/kernel"]
    x = patchify(images.astype("float64"), kernel.shape[0]) @ kernel.reshape(-1, kernel.shape[-1])
    x = x + t["embedding/bias"]
    if "cls" in t:
        x = np.concatenate([np.repeat(t["cls"], len(x), 0), x], axis=1)
    x = x + t["Transformer/posembed_input/pos_embedding"]
    depth = len({name.split("/")[1] for name in t if "encoderblock" in name})
    for index in range(depth):
        block = {
            name.split("/", 2)[2]: value
            for name, value in t.items()
            if name.startswith(f"Transformer/encoderblock_{index}/")
        }
        part = {name.split("/")[0].split("_")[0]: name.split("/")[0] for name in block}
        norms = sorted({name.split("/")[0] for name in block if name.startswith("LayerNorm")})
        attention = part["MultiHeadDotProductAttention"]
        y = layer_norm(x, block[f"{norms[0]}/scale"], block[f"{norms[0]}/bias"])
        q, k, v = (
            np.einsum("btd,dhe->bthe", y, block[f"{attention}/{name}/kernel"])
            + block[f"{attention}/{name}/bias"]
            for name in ("query", "key", "value")
        )
        y = np.einsum("bthe,hed->btd", attend(q, k, v), block[f"{attention}/out/kernel"])
        x = x + y + block[f"{attention}/out/bias"]
        y = layer_norm(x, block[f"{norms[1]}/scale"], block[f"{norms[1]}/bias"])
        mlp = part["MlpBlock"]
        y = gelu_tanh(y @ block[f"{mlp}/Dense_0/kernel"] + block[f"{mlp}/Dense_0/bias"])
        x = x + y @ block[f"{mlp}/Dense_1/kernel"] + block[f"{mlp}/Dense_1/bias"]
    x = layer_norm(x, t["Transformer/encoder_norm/scale"], t["Transformer/encoder_norm/bias"])
    x = x[:, 0] if "cls" in t else x.mean(1)
    if "pre_logits/kernel" in t:
        x = np.tanh(x @ t["pre_logits/kernel"] + t["pre_logits/bias"])
    return x @ t["head/kernel"] + t["head/bias"]


def timm_forward(tensors, images, num_heads):
    """Logits by timm's equations, from its tensors."""
    t = {name: np.asarray(value, "float64") for name, value in tensors.items()}

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(x, name):
        return layer_norm(x, t[f"{name}.weight"], t[f"{name}.bias"])

    kernel = t["patch_embed.proj.weight"]
    patches = patchify(images.astype("float64"), kernel.shape[-1])
    flat = kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)
    x = patches @ flat.T + t["patch_embed.proj.bias"]
    x = np.concatenate([np.repeat(t["cls_token"], len(x), 0), x], axis=1) + t["pos_embed"]
    depth = len({name.split(".")[1] for name in t if name.startswith("blocks.")})
    for index in range(depth):
        block = f"blocks.{index}"
        y = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = np.moveaxis(y.reshape(*y.shape[:2], 3, num_heads, -1), 2, 0)
        y = attend(q, k, v)
        x = x + linear(y.reshape(*y.shape[:2], -1), f"{block}.attn.proj")
        y = gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(y, f"{block}.mlp.fc2")
    if "fc_norm.weight" in t:
        return linear(norm(x[:, 1:].mean(1), "fc_norm"), "head")
    return linear(norm(x, "norm")[:, 0], "head")
