"""An independent statement of the Vision Transformers: NumPy, float64, no code of keras_vit.

It takes the tensors of Google's .npz or timm's .safetensors files by the names that they have there
(`google_forward`, `timm_forward`); the other formats are timm's under other names. Written by the
papers: ViT (arXiv 2010.11929), DeiT (2012.12877), LayerScale (2103.17239), SwiGLU (2002.05202),
registers (2309.16588), BEiT (2106.08254), attention pooling (1810.00825, as in 2106.04560), rotary
positions (2104.09864, as in DINOv3, 2508.10104), weight standardisation (1903.10520, as in
1912.11370), FlexiViT (2212.08013).
"""

import dataclasses
import math
import re

import numpy as np

_erf = np.vectorize(math.erf)


def gelu(x):
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def gelu_tanh(x):
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def quick_gelu(x):
    return x / (1.0 + np.exp(-1.702 * x))


def silu(x):
    return x / (1.0 + np.exp(-x))


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu, "silu": silu}


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


def attend(query, key, value, bias=0.0):
    """(batch, tokens, heads, head size) each; the bias is added to the scores."""
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    return np.einsum("bhqk,bkhd->bqhd", softmax(scores + bias), value)


def _doubles(tensors):
    return {name: np.asarray(value, "float64") for name, value in tensors.items()}


def _below(tensors, prefix):
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}


# Positions that are not stored.


def sin_cos_2d(grid, width):
    """big_vision's: a quarter of the channels each for sin and cos of column and row."""
    frequencies = [10000.0 ** -(i / (width // 4 - 1)) for i in range(width // 4)]
    rows = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            angles = [[side * f for f in frequencies] for side in (x, x, y, y)]
            turns = (np.sin, np.cos, np.sin, np.cos)
            rows.append(np.concatenate([turn(a) for turn, a in zip(turns, angles, strict=True)]))
    return np.stack(rows)


def rotate(x, grid, base):
    """DINOv3's rotary positions, of the last `grid` tokens of (batch, tokens, heads, size)."""
    quarter = x.shape[-1] // 4
    rows, columns = grid
    prefix = x.shape[1] - rows * columns
    result = x.copy()
    for patch in range(rows * columns):
        # Centres of patches, the image's sides at -1 and 1.
        y = 2.0 * (patch // columns + 0.5) / rows - 1.0
        x_ = 2.0 * (patch % columns + 0.5) / columns - 1.0
        for i in range(2 * quarter):
            period = base ** (2.0 * (i % quarter) / (2 * quarter))
            angle = 2.0 * math.pi * (y if i < quarter else x_) / period
            first, second = x[:, prefix + patch, :, i], x[:, prefix + patch, :, i + 2 * quarter]
            turned = first * math.cos(angle) - second * math.sin(angle)
            result[:, prefix + patch, :, i] = turned
            turned = second * math.cos(angle) + first * math.sin(angle)
            result[:, prefix + patch, :, i + 2 * quarter] = turned
    return result


def relative_bias(table, grid, prefix):
    """BEiT's: (heads, tokens, tokens) of a table of offsets, then the class token's three rows."""
    rows, columns = grid
    count = rows * columns
    bias = np.zeros((table.shape[1], prefix + count, prefix + count))
    for query in range(count):
        for key in range(count):
            down = query // columns - key // columns + rows - 1
            right = query % columns - key % columns + columns - 1
            offset = table[down * (2 * columns - 1) + right]
            bias[:, prefix + query, prefix + key] = offset
    if prefix:
        from_class, to_class, own = table[-3:]
        bias[:, 0, 1:] = from_class[:, None]
        bias[:, 1:, 0] = to_class[:, None]
        bias[:, 0, 0] = own
    return bias


# The ResNet before the patches, tensors by Google's names.


def standardised(kernel, rule):
    centred = kernel - kernel.mean((0, 1, 2))
    variance = (centred**2).mean((0, 1, 2))
    if rule == "google":
        return centred / (np.sqrt(variance) + 1e-5)
    return centred / np.sqrt(variance + 1e-8)


def _windows(x, side, stride, fill):
    """The pixels under each of the side * side places of a window, with SAME padding."""
    padding, sizes = [(0, 0)], []
    for size in x.shape[1:3]:
        sizes.append(-(-size // stride))
        total = max((sizes[-1] - 1) * stride + side - size, 0)
        padding.append((total // 2, total - total // 2))
    x = np.pad(x, [*padding, (0, 0)], constant_values=fill)
    for row in range(side):
        for column in range(side):
            rows = slice(row, row + stride * (sizes[0] - 1) + 1, stride)
            columns = slice(column, column + stride * (sizes[1] - 1) + 1, stride)
            yield row, column, x[:, rows, columns]


def convolve(x, kernel, stride=1):
    return sum(w @ kernel[row, column] for row, column, w in _windows(x, len(kernel), stride, 0))


def max_pool(x):
    return np.max([window for _, _, window in _windows(x, 3, 2, -np.inf)], axis=0)


def group_norm(x, scale, bias, epsilon, groups=32):
    shape = x.shape
    x = x.reshape(shape[0], -1, groups, shape[3] // groups)
    centred = x - x.mean((1, 3), keepdims=True)
    x = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + epsilon)
    return x.reshape(shape) * scale.ravel() + bias.ravel()


def resnet_stem(t, x, rule):
    """The root block, then stages of bottleneck units that halve the grid from the second on."""
    epsilon = {"google": 1e-6, "timm": 1e-5}[rule]

    def conv_norm(x, conv, norm, stride=1):
        x = convolve(x, standardised(t[f"{conv}/kernel"], rule), stride)
        return group_norm(x, t[f"{norm}/scale"], t[f"{norm}/bias"], epsilon)

    x = max_pool(np.maximum(conv_norm(x, "conv_root", "gn_root", 2), 0))
    for unit in sorted(
        {match[0] for match in map(re.compile(r"block\d+/unit\d+/").match, t) if match}
    ):
        stride = 2 if unit.endswith("/unit1/") and not unit.startswith("block1/") else 1
        y = np.maximum(conv_norm(x, f"{unit}conv1", f"{unit}gn1"), 0)
        y = np.maximum(conv_norm(y, f"{unit}conv2", f"{unit}gn2", stride), 0)
        y = conv_norm(y, f"{unit}conv3", f"{unit}gn3")
        if f"{unit}conv_proj/kernel" in t:
            x = conv_norm(x, f"{unit}conv_proj", f"{unit}gn_proj", stride)
        x = np.maximum(x + y, 0)
    return x


# Google's vision_transformer and big_vision.


def google_forward(tensors, images):
    """Logits, from the tensors of a file without prefixes and with a tensor for each block."""
    t = _doubles(tensors)
    x = images.astype("float64")
    if "conv_root/kernel" in t:
        x = resnet_stem(t, x, "google")
    kernel = t["embedding/kernel"]
    grid = [side // len(kernel) for side in x.shape[1:3]]
    x = patchify(x, kernel.shape[0]) @ kernel.reshape(-1, kernel.shape[-1])
    x = x + t["embedding/bias"]
    if "Transformer/posembed_input/pos_embedding" in t:
        # vision_transformer's.
        x = _with_class_token(x, t) + t["Transformer/posembed_input/pos_embedding"]
    else:
        # big_vision's: positions of the patches alone.
        x = x + (t["pos_embedding"] if "pos_embedding" in t else sin_cos_2d(grid, x.shape[2]))
        x = _with_class_token(x, t)
    depth = len({name.split("/")[1] for name in t if "encoderblock" in name})
    for index in range(depth):
        x = _google_block(_below(t, f"Transformer/encoderblock_{index}/"), x)
    x = layer_norm(x, t["Transformer/encoder_norm/scale"], t["Transformer/encoder_norm/bias"])
    x = _google_pool(t, x)
    if "pre_logits/kernel" in t:
        x = np.tanh(x @ t["pre_logits/kernel"] + t["pre_logits/bias"])
    return x @ t["head/kernel"] + t["head/bias"] if "head/kernel" in t else x


def _with_class_token(x, t):
    return np.concatenate([np.repeat(t["cls"], len(x), 0), x], axis=1) if "cls" in t else x


def _google_attention(t, name, queries, tokens):
    q, k, v = (
        np.einsum("btd,dhe->bthe", x, t[f"{name}/{part}/kernel"]) + t[f"{name}/{part}/bias"]
        for part, x in (("query", queries), ("key", tokens), ("value", tokens))
    )
    attended = np.einsum("bthe,hed->btd", attend(q, k, v), t[f"{name}/out/kernel"])
    return attended + t[f"{name}/out/bias"]


def _google_mlp(t, name, x):
    x = gelu_tanh(x @ t[f"{name}/Dense_0/kernel"] + t[f"{name}/Dense_0/bias"])
    return x @ t[f"{name}/Dense_1/kernel"] + t[f"{name}/Dense_1/bias"]


def _google_block(t, x):
    # Modules are numbered in the order of their making, counted per class in newer files.
    part = {name.split("/")[0].split("_")[0]: name.split("/")[0] for name in t}
    norms = sorted({name.split("/")[0] for name in t if name.startswith("LayerNorm")})
    y = layer_norm(x, t[f"{norms[0]}/scale"], t[f"{norms[0]}/bias"])
    x = x + _google_attention(t, part["MultiHeadDotProductAttention"], y, y)
    y = layer_norm(x, t[f"{norms[1]}/scale"], t[f"{norms[1]}/bias"])
    return x + _google_mlp(t, part["MlpBlock"], y)


def _google_pool(t, x):
    if "MAPHead_0/probe" in t:
        pool = _below(t, "MAPHead_0/")
        probe = np.repeat(pool["probe"], len(x), 0)
        x = _google_attention(pool, "MultiHeadDotProductAttention_0", probe, x)
        y = layer_norm(x, pool["LayerNorm_0/scale"], pool["LayerNorm_0/bias"])
        return (x + _google_mlp(pool, "MlpBlock_0", y))[:, 0]
    return x[:, 0] if "cls" in t else x.mean(1)


# timm's.


@dataclasses.dataclass(frozen=True)
class Switches:
    """What timm's tensors do not tell."""

    num_heads: int
    pooling: str
    activation: str = "gelu"
    epsilon: float = 1e-6
    rope_base: float | None = None


def timm_forward(tensors, images, num_heads, *, pooling=None, both=False, **switches):
    """Logits of timm's tensors; pooled tokens if there is no head, a pair if `both`."""
    t = _doubles(tensors)
    pooling = pooling or ("avg" if "fc_norm.weight" in t else "token")
    s = Switches(num_heads, pooling, **switches)
    x, grid = _timm_tokens(t, images.astype("float64"))
    prefix = x.shape[1] - grid[0] * grid[1]
    if "norm_pre.weight" in t:
        x = _norm(t, x, "norm_pre", s)
    for index in range(len({name.split(".")[1] for name in t if name.startswith("blocks.")})):
        x = _timm_block(_below(t, f"blocks.{index}."), x, grid, s)
    if "norm.weight" in t:
        x = _norm(t, x, "norm", s)
    if "head_dist.weight" in t:
        logits = _linear(t, x[:, 0], "head"), _linear(t, x[:, 1], "head_dist")
        return logits if both else (logits[0] + logits[1]) / 2
    x = _timm_pool(t, x, prefix, s)
    if "fc_norm.weight" in t:
        x = _norm(t, x, "fc_norm", s)
    if "pre_logits.fc.weight" in t:
        x = np.tanh(_linear(t, x, "pre_logits.fc"))
    return _linear(t, x, "head") if "head.weight" in t else x


def _linear(t, x, name):
    return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0.0)


def _norm(t, x, name, s):
    return layer_norm(x, t[f"{name}.weight"], t[f"{name}.bias"], s.epsilon)


def _timm_tokens(t, x):
    """The tokens [class, distillation, registers, patches] with positions, and the grid."""
    stem = _timm_stem(t)
    if stem:
        x = resnet_stem(stem, x, "timm")
    kernel = t["patch_embed.proj.weight"]
    grid = tuple(side // kernel.shape[-1] for side in x.shape[1:3])
    flat = kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)
    x = patchify(x, kernel.shape[-1]) @ flat.T + t.get("patch_embed.proj.bias", 0.0)
    prefix = [t[name] for name in ("cls_token", "dist_token", "reg_token") if name in t]
    tokens = np.concatenate([*(np.repeat(token, len(x), 0) for token in prefix), x], axis=1)
    if "pos_embed" in t:
        # Where fewer tokens than all have positions, the last before the patches have none.
        positions = t["pos_embed"]
        count = positions.shape[1] - x.shape[1]
        tokens[:, :count] += positions[:, :count]
        tokens[:, tokens.shape[1] - x.shape[1] :] += positions[:, count:]
    return tokens, grid


def _timm_stem(t):
    """The stem's tensors by Google's names; none of a model without."""
    result = {}
    for name, tensor in _below(t, "patch_embed.backbone.").items():
        name = re.sub(
            r"stages\.(\d+)\.blocks\.(\d+)\.",
            lambda match: f"block{int(match[1]) + 1}/unit{int(match[2]) + 1}/",
            name.removeprefix("stem."),
        )
        name = name.replace("downsample.conv", "conv_proj").replace("downsample.norm", "gn_proj")
        name = re.sub(r"^conv\.", "conv_root.", re.sub(r"^norm\.", "gn_root.", name))
        name = re.sub(r"norm(\d)", r"gn\1", name).replace(".bias", "/bias")
        if tensor.ndim == 4:
            result[name.replace(".weight", "/kernel")] = tensor.transpose(2, 3, 1, 0)
        else:
            result[name.replace(".weight", "/scale")] = tensor
    return result


def _timm_block(t, x, grid, s):
    first, second = (("ls1.gamma", "ls2.gamma"), ("gamma_1", "gamma_2"))["gamma_1" in t]
    y = _timm_attention(t, _norm(t, x, "norm1", s), grid, s)
    x = x + y * t.get(first, 1.0)
    return x + _timm_mlp(t, _norm(t, x, "norm2", s), s) * t.get(second, 1.0)


def _timm_attention(t, x, grid, s):
    projected = _linear(t, x, "attn.qkv").reshape(*x.shape[:2], 3, s.num_heads, -1)
    q, k, v = np.moveaxis(projected, 2, 0)
    if "attn.q_bias" in t:
        q = q + t["attn.q_bias"].reshape(s.num_heads, -1)
        v = v + t["attn.v_bias"].reshape(s.num_heads, -1)
    if "attn.q_norm.weight" in t:
        q, k = _norm(t, q, "attn.q_norm", s), _norm(t, k, "attn.k_norm", s)
    bias = 0.0
    if "attn.relative_position_bias_table" in t:
        prefix = x.shape[1] - grid[0] * grid[1]
        bias = relative_bias(t["attn.relative_position_bias_table"], grid, prefix)
    if s.rope_base is not None:
        q, k = rotate(q, grid, s.rope_base), rotate(k, grid, s.rope_base)
    return _linear(t, attend(q, k, v, bias).reshape(x.shape), "attn.proj")


def _timm_mlp(t, x, s):
    activation = ACTIVATIONS[s.activation]
    if "mlp.fc1_g.weight" in t:
        hidden = activation(_linear(t, x, "mlp.fc1_g")) * _linear(t, x, "mlp.fc1_x")
    elif len(t["mlp.fc1.weight"]) == 2 * t["mlp.fc2.weight"].shape[1]:
        gate, value = np.split(_linear(t, x, "mlp.fc1"), 2, axis=-1)
        hidden = activation(gate) * value
    else:
        hidden = activation(_linear(t, x, "mlp.fc1"))
    return _linear(t, hidden, "mlp.fc2")


def _timm_pool(t, x, prefix, s):
    patches = x[:, prefix:]
    if s.pooling == "avg":
        return patches.mean(1)
    if s.pooling == "token+avg":
        return np.concatenate([x[:, 0], patches.mean(1)], axis=-1)
    if s.pooling == "token":
        return x[:, 0]
    pool = _below(t, "attn_pool.")
    query = _linear(pool, pool["latent"], "q").reshape(1, 1, s.num_heads, -1)
    key_value = _linear(pool, patches, "kv").reshape(*patches.shape[:2], 2, s.num_heads, -1)
    key, value = np.moveaxis(key_value, 2, 0)
    attended = attend(np.repeat(query, len(x), 0), key, value).reshape(len(x), -1)
    attended = _linear(pool, attended, "proj")
    return attended + _timm_mlp(pool, _norm(pool, attended, "norm", s), s)


# Sizes other than those of the training.


def _cubic(x, a):
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def axis_weights(source, target, rule):
    """(target, source): how much of each old place each new one takes.

    `"google"` is linear with the corners aligned, `"timm"` cubic (a = -0.5) with antialias,
    `"hf"` cubic (a = -0.75) without, `"linear"` linear without; the latter three align edges.
    `"torchvision"` is as `"hf"` with the corners aligned.
    """
    weights = np.zeros((target, source))
    for new in range(target):
        centre = (new + 0.5) * source / target - 0.5
        if rule in ("google", "torchvision"):
            centre = new * (source - 1) / (target - 1) if target > 1 else 0.0
        if rule == "timm":
            scale = max(source / target, 1.0)
            for old in range(source):
                weights[new, old] = _cubic((old - centre) / scale, -0.5)
            weights[new] /= weights[new].sum()
            continue
        for old in range(math.floor(centre) - 1, math.floor(centre) + 3):
            is_cubic = rule in ("hf", "torchvision")
            taken = _cubic(old - centre, -0.75) if is_cubic else max(0, 1 - abs(old - centre))
            weights[new, min(max(old, 0), source - 1)] += taken
    return weights


def resized_positions(positions, source, target, rule, prefix):
    """(1, prefix + rows * columns, width) for another grid."""
    grid = np.asarray(positions[0, prefix:], "float64").reshape(*source, -1)
    down, right = (axis_weights(a, b, rule) for a, b in zip(source, target, strict=True))
    grid = np.tensordot(down, np.tensordot(right, grid, (1, 1)), (1, 1))
    return np.concatenate([positions[:, :prefix], grid.reshape(1, -1, grid.shape[-1])], axis=1)


def resized_patch_kernel(kernel, target, rule):
    """FlexiViT's, equation 4: `pinv(transpose(B)) w` for the resize `B` of a flattened patch."""
    down, right = (axis_weights(kernel.shape[i], target[i], rule) for i in (0, 1))
    resize = np.kron(down, right)
    flat = kernel.reshape(kernel.shape[0] * kernel.shape[1], -1).astype("float64")
    return (np.linalg.pinv(resize.T) @ flat).reshape(*target, *kernel.shape[2:])
