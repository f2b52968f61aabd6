"""Hugging Face transformers' Vision Transformers: safetensors beside config.json.

One table per naming: the classic one (ViT, DeiT, MAE, MSN, I-JEPA, BEiT, data2vec), DINOv2's,
DINOv3's, and that of CLIP and SigLIP.
"""

import math
import re

from keras_vit.checkpoints.architecture import architecture
from keras_vit.checkpoints.hub_config import translated
from keras_vit.checkpoints.layouts import Rule, torch_dense, torch_norm
from keras_vit.layers.patches import as_pair
from keras_vit.models import PRESETS, Preprocessing
from keras_vit.models.preprocessing import CLIP_SCALING

FORMAT = "hf"
_PREFIX = re.compile(
    r"^(vit|deit|dinov2_with_registers|dinov2|dinov3_vit|beit|data2vec_vision|ijepa|vision_model|"
    r"(vit|vision)\.vision_model)\."
)
# (pattern, the name in published files): what transformers 5 calls the tensors in memory, which
# `save_pretrained` turns back and a state dict that is stored as it is does not.
_LAYER = r"^(encoder\.layer\.\d+)\."
_ALIASES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^layers\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
        (r"^layers\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
        (r"^layers\.", "encoder.layer."),
        (_LAYER + r"attention\.q_proj\.", r"\1.attention.attention.query."),
        (_LAYER + r"attention\.k_proj\.", r"\1.attention.attention.key."),
        (_LAYER + r"attention\.v_proj\.", r"\1.attention.attention.value."),
        (_LAYER + r"attention\.o_proj\.", r"\1.attention.output.dense."),
        (_LAYER + r"relative_position_bias\.", r"\1.attention.attention.relative_position_bias."),
        (r"^shared_position_bias\.", "encoder.relative_position_bias."),
    )
)
BLOCK = re.compile(r"(?:encoder\.layers?|layer|model\.layer)\.(\d+)\.")
IGNORED = (
    (re.compile(r"mask_token$"), "for masked pre-training alone"),
    (re.compile(r"^(decoder|lm_head)\b"), "of the decoder of pre-training"),
    (re.compile(r"^(text_model|text_projection)\b"), "of the text tower"),
    (re.compile(r"^logit_(scale|bias)$"), "of the loss between images and texts"),
    (re.compile(r"(position_ids|relative_position_index)$"), "it follows from the grid"),
)


def canonical_name(name):
    """The tensor's name in published files, without the prefix of the model inside a larger one.

    Example:

    >>> canonical_name("vit.embeddings.cls_token")
    'embeddings.cls_token'
    """
    name = _PREFIX.sub("", name).removeprefix("model.")
    for pattern, replacement in _ALIASES:
        name = pattern.sub(replacement, name)
    return name


def published_name(name, file_names):
    """What a tensor that is missing would be called among `file_names`."""
    if name.startswith(("classifier", "cls_classifier", "distillation_", "visual_projection")):
        return name
    prefix = next((match[0] for match in map(_PREFIX.match, file_names) if match), "")
    return prefix + name


def recognises(names):
    """Whether the canonical `names` are of this format."""
    return any(name in names for name in _PATCHES)


# Names of the projection of patches.
_PATCHES = (
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
    "embeddings.patch_embedding.weight",
)


def rules(depth, shapes):
    """The `Rule` of each weight; `shapes` tell which of the namings the file has."""
    patches = next((name for name in _PATCHES if name in shapes), _PATCHES[0])
    is_linear = len(shapes.get(patches, "conv")) == 2  # SigLIP 2 takes patches that are cut.
    result = [
        Rule(
            "patch_encoder/projection/kernel",
            (patches,),
            "transposed" if is_linear else "torch_patches",
        ),
        Rule("patch_encoder/projection/bias", (patches.replace("weight", "bias"),)),
    ]
    if patches == _PATCHES[2]:
        blocks, rest = _clip_block, _clip_rules(shapes)
    elif patches == _PATCHES[1]:
        blocks, rest = _dinov3_block, _dinov3_rules()
    else:
        is_dinov2 = any(name.endswith("layer_scale1.lambda1") for name in shapes)
        blocks, rest = _dinov2_block if is_dinov2 else _classic_block, _classic_rules(shapes)
    for index in range(depth):
        result += blocks(index, shapes)
    return result + rest


def _classic_rules(shapes):
    result = [
        Rule("patch_encoder/class_token", ("embeddings.cls_token",)),
        Rule("patch_encoder/register_tokens", ("embeddings.register_tokens",)),
        Rule("patch_encoder/position_embedding", ("embeddings.position_embeddings",)),
        *torch_norm("encoder_norm", "layernorm"),
        *torch_norm("pool_norm", "pooler.layernorm"),
        *torch_dense("head_distillation", "distillation_classifier"),
    ]
    if "distillation_classifier.weight" in shapes:
        token = Rule("patch_encoder/distillation_token", ("embeddings.distillation_token",))
        return [*result, token, *torch_dense("head", "cls_classifier")]
    if "embeddings.distillation_token" in shapes:
        # Without a head of its own, it is a register.
        result.append(Rule("patch_encoder/register_tokens", ("embeddings.distillation_token",)))
    if "classifier.weight" not in shapes:
        result += torch_dense("pre_logits", "pooler.dense")
    return result + torch_dense("head", "classifier")


def _separate(block, tensor, shapes, query="query", key="key", value="value"):
    """Queries, keys and values apart; keys with a bias, or without."""
    names = tuple(f"{tensor}.{part}" for part in (query, key, value))
    kernel, bias = torch_dense(f"{block}/attention/query_key_value", *names)
    if f"{names[0]}.bias" in shapes and f"{names[1]}.bias" not in shapes:
        biases = (f"{names[0]}.bias", f"{names[2]}.bias")
        bias = Rule(f"{block}/attention/query_value_bias", biases, "rows")
    return [kernel, bias]


_SHARED_TABLE = "encoder.relative_position_bias.relative_position_bias_table"


def _classic_block(index, shapes):
    block, tensor = f"block_{index}", f"encoder.layer.{index}"
    attention = f"{tensor}.attention.attention"
    table = f"{attention}.relative_position_bias.relative_position_bias_table"
    return [
        *torch_norm(f"{block}/attention_norm", f"{tensor}.layernorm_before"),
        *_separate(block, attention, shapes),
        Rule(
            f"{block}/attention/relative_position_bias/table",
            (_SHARED_TABLE if _SHARED_TABLE in shapes else table,),
        ),
        *torch_dense(f"{block}/attention/projection", f"{tensor}.attention.output.dense"),
        Rule(f"{block}/attention_scale/gamma", (f"{tensor}.lambda_1",)),
        *torch_norm(f"{block}/mlp_norm", f"{tensor}.layernorm_after"),
        *torch_dense(f"{block}/mlp/expansion", f"{tensor}.intermediate.dense"),
        *torch_dense(f"{block}/mlp/projection", f"{tensor}.output.dense"),
        Rule(f"{block}/mlp_scale/gamma", (f"{tensor}.lambda_2",)),
    ]


def _dinov2_block(index, shapes):
    block, tensor = f"block_{index}", f"encoder.layer.{index}"
    expansion, projection = ("fc1",), "fc2"
    if f"{tensor}.mlp.weights_in.weight" in shapes:
        expansion, projection = ("weights_in",), "weights_out"
    elif f"{tensor}.mlp.gate_proj.weight" in shapes:  # As transformers 5 has it in memory.
        expansion, projection = ("gate_proj", "up_proj"), "down_proj"
    return [
        *torch_norm(f"{block}/attention_norm", f"{tensor}.norm1"),
        *_separate(block, f"{tensor}.attention.attention", shapes),
        *torch_dense(f"{block}/attention/projection", f"{tensor}.attention.output.dense"),
        Rule(f"{block}/attention_scale/gamma", (f"{tensor}.layer_scale1.lambda1",)),
        *torch_norm(f"{block}/mlp_norm", f"{tensor}.norm2"),
        *torch_dense(f"{block}/mlp/expansion", *(f"{tensor}.mlp.{part}" for part in expansion)),
        *torch_dense(f"{block}/mlp/projection", f"{tensor}.mlp.{projection}"),
        Rule(f"{block}/mlp_scale/gamma", (f"{tensor}.layer_scale2.lambda1",)),
    ]


def _dinov3_rules():
    return [
        Rule("patch_encoder/class_token", ("embeddings.cls_token",)),
        Rule("patch_encoder/register_tokens", ("embeddings.register_tokens",)),
        *torch_norm("encoder_norm", "norm"),
        *torch_dense("head", "classifier"),
    ]


def _dinov3_block(index, shapes):
    block, tensor = f"block_{index}", f"layer.{index}"
    is_gated = f"{tensor}.mlp.gate_proj.weight" in shapes
    expansion = ("gate_proj", "up_proj") if is_gated else ("up_proj",)
    return [
        *torch_norm(f"{block}/attention_norm", f"{tensor}.norm1"),
        *_separate(block, f"{tensor}.attention", shapes, "q_proj", "k_proj", "v_proj"),
        *torch_dense(f"{block}/attention/projection", f"{tensor}.attention.o_proj"),
        Rule(f"{block}/attention_scale/gamma", (f"{tensor}.layer_scale1.lambda1",)),
        *torch_norm(f"{block}/mlp_norm", f"{tensor}.norm2"),
        *torch_dense(f"{block}/mlp/expansion", *(f"{tensor}.mlp.{part}" for part in expansion)),
        *torch_dense(f"{block}/mlp/projection", f"{tensor}.mlp.down_proj"),
        Rule(f"{block}/mlp_scale/gamma", (f"{tensor}.layer_scale2.lambda1",)),
    ]


def _clip_rules(shapes):
    attention = "head.attention"
    in_projection = (f"{attention}.in_proj_weight",), (f"{attention}.in_proj_bias",)
    result = [
        Rule("patch_encoder/class_token", ("embeddings.class_embedding",), "vector"),
        Rule(
            "patch_encoder/position_embedding",
            ("embeddings.position_embedding.weight",),
            "unbatched",
        ),
        *torch_norm("pre_norm", "pre_layrnorm"),
        *torch_norm("encoder_norm", "post_layernorm"),
    ]
    for weight, part in (("query", (0, 1, 3)), ("key_value", (1, 3, 3))):
        result += [
            Rule(f"pool/{weight}/kernel", in_projection[0], "transposed", part),
            Rule(f"pool/{weight}/bias", in_projection[1], "same", part),
        ]
    result += [
        Rule("pool/probe", ("head.probe",)),
        *torch_dense("pool/projection", f"{attention}.out_proj"),
        *torch_norm("pool/norm", "head.layernorm"),
        *torch_dense("pool/mlp/expansion", "head.mlp.fc1"),
        *torch_dense("pool/mlp/projection", "head.mlp.fc2"),
    ]
    if "classifier.weight" in shapes:
        return result + torch_dense("head", "classifier")
    return [
        *result,
        # CLIP's projection into the space that it shares with texts.
        Rule("head/kernel", ("visual_projection.weight",), "transposed"),
        Rule("head/bias", (), "zero"),
    ]


def _clip_block(index, shapes):
    block, tensor = f"block_{index}", f"encoder.layers.{index}"
    return [
        *torch_norm(f"{block}/attention_norm", f"{tensor}.layer_norm1"),
        *_separate(block, f"{tensor}.self_attn", shapes, "q_proj", "k_proj", "v_proj"),
        *torch_dense(f"{block}/attention/projection", f"{tensor}.self_attn.out_proj"),
        *torch_norm(f"{block}/mlp_norm", f"{tensor}.layer_norm2"),
        *torch_dense(f"{block}/mlp/expansion", f"{tensor}.mlp.fc1"),
        *torch_dense(f"{block}/mlp/projection", f"{tensor}.mlp.fc2"),
    ]


# What the configuration of each model type says where a key is absent (transformers 5.23), and
# the scaling of images that the type's published weights were trained with.
_VIT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
}
_DINOV2 = {**_VIT, "layer_norm_eps": 1e-6, "intermediate_size": None, "mlp_ratio": 4}
_SIGLIP = {**_VIT, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_CLIP = {**_VIT, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32}
_DINOV3 = {
    **_VIT,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
}
_IMAGENET = PRESETS["imagenet"]
_HALF = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, crop_mode="squash")
MODEL_TYPES = {
    "vit": (_VIT, _HALF),
    "deit": (_VIT, _IMAGENET),
    "vit_mae": (_VIT, _IMAGENET),
    "vit_msn": ({**_VIT, "layer_norm_eps": 1e-6}, _IMAGENET),
    "ijepa": (_VIT, _IMAGENET),
    "beit": (_VIT, _HALF),
    "data2vec-vision": (_VIT, _HALF),
    "dinov2": (_DINOV2, _IMAGENET),
    "dinov2_with_registers": (_DINOV2, _IMAGENET),
    "dinov3_vit": (_DINOV3, _IMAGENET),
    "siglip": (_SIGLIP, _HALF),
    "siglip_vision_model": (_SIGLIP, _HALF),
    "siglip2": (_SIGLIP, _HALF),
    "siglip2_vision_model": (_SIGLIP, _HALF),
    "clip": (_CLIP, CLIP_SCALING),
    "clip_vision_model": (_CLIP, CLIP_SCALING),
}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
# PIL's numbers of interpolations.
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def facts(weights, shapes, file):
    """What a file tells of its model; see `google.facts`."""
    known = architecture(weights)
    notes: list[str] = []
    known["pooling"] = _pooling(known, shapes)
    kernel = shapes[next(name for name in _PATCHES if name in shapes)]
    if len(kernel) == 4:
        known["patch_size"] = tuple(kernel[2:])
    if known["gated_mlp"]:
        known["activation"] = "silu"
    if "embeddings.position_embedding.weight" in shapes:
        known["position_slots"] = "class" if known["class_token"] else "patches"
    elif known["positions"] and "learned" in known["positions"]:
        # Registers are put between the class token and the patches, without positions.
        is_register = "embeddings.distillation_token" in shapes and not known["distillation_token"]
        known["position_slots"] = "all" if is_register else "class"
    if "embeddings.patch_embeddings.weight" in shapes:
        known["positions"] = "rope"
    if file.hub_config is None:
        return known, notes
    model_type = file.hub_config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"unsupported model_type in config.json. Expected one of {', '.join(MODEL_TYPES)}. "
            f"Received: model_type={model_type!r}"
        )
    _check_names(model_type, file)
    known |= _configured(file.hub_config, model_type, known, shapes)
    if model_type == "dinov2_with_registers":
        known["resampling"] = "timm"  # Its forward pass resamples with antialias.
    elif model_type.startswith("siglip2"):
        known["resampling"] = "siglip2"
    if file.preprocessor_config is not None:
        known["preprocessing"] = _preprocessing(file.preprocessor_config, model_type, notes)
    else:
        known["preprocessing"] = scaling = MODEL_TYPES[model_type][1]
        notes.append(
            f"mean {scaling.mean} and std {scaling.std}, as published for {model_type}: no "
            "preprocessor_config.json beside the file"
        )
    return known, notes


# The prefix that transformers gives a model's tensors inside another → the types that have it.
_TYPES_OF_PREFIX = {
    "vit.": ("vit", "vit_mae", "vit_msn"),
    "deit.": ("deit",),
    "dinov2.": ("dinov2",),
    "dinov2_with_registers.": ("dinov2_with_registers",),
    "beit.": ("beit",),
    "data2vec_vision.": ("data2vec-vision",),
    "ijepa.": ("ijepa",),
}


def _check_names(model_type, file):
    for name in file.shapes:
        for prefix, types in _TYPES_OF_PREFIX.items():
            if name.startswith(prefix) and model_type not in types:
                raise ValueError(
                    f"config.json says model_type={model_type!r}, the tensor is {name}"
                )


def _pooling(known, shapes):
    if "head.probe" in shapes and "classifier.weight" not in shapes:
        return "map"
    if known["pool_norm"] or not known["class_token"]:
        return "avg"
    # DINOv2's head takes the class token and the mean of the patches side by side.
    if shapes.get("classifier.weight", (0, 0))[1] == 2 * known["hidden_size"]:
        return "token+avg"
    return "token"


def _configured(hub_config, model_type, known, shapes):
    defaults = MODEL_TYPES[model_type][0]
    config = {**defaults, **(hub_config.get("vision_config") or hub_config)}
    is_clip = model_type.startswith("clip")
    if is_clip and "classifier.weight" in shapes:
        raise ValueError(
            "CLIPForImageClassification pools tokens that no norm follows, which no keras_vit "
            "model does"
        )
    if "mlp_ratio" in defaults:
        config["intermediate_size"] = None  # DINOv2 has none, whatever the file says.
    mlp_dim = config["intermediate_size"]
    if mlp_dim is None:
        mlp_dim = int(config["hidden_size"] * config["mlp_ratio"])
        if config.get("use_swiglu_ffn"):
            # transformers' Dinov2SwiGLUFFN rounds two thirds up to a multiple of 8.
            mlp_dim = (int(mlp_dim * 2 / 3) + 7) // 8 * 8
    mlp_key = "mlp_ratio" if "mlp_ratio" in defaults else "intermediate_size"
    # (key of config.json, what it says, our field).
    checked = [
        ("hidden_size", config["hidden_size"], "hidden_size"),
        ("num_hidden_layers", config["num_hidden_layers"], "depth"),
        (mlp_key, mlp_dim, "mlp_dim"),
    ]
    if "num_register_tokens" in config and not known["distillation_token"]:
        checked.append(("num_register_tokens", config["num_register_tokens"], "register_tokens"))
    patch_size = as_pair(config["patch_size"], "patch_size")
    if "patch_size" in known:
        checked.append(("patch_size", patch_size, "patch_size"))
    for key, value, field in checked:
        if value != known[field]:
            raise ValueError(
                f"config.json's {key} means {field}={value!r}, the tensors have {known[field]!r}"
            )
    _check_switches(config, hub_config, model_type, known)
    told = {
        "num_heads": config["num_attention_heads"],
        "layer_norm_epsilon": float(config["layer_norm_eps"]),
        "patch_size": patch_size,
        # A size that contradicts the positions is found when the grid is looked for.
        "image_size": config["image_size"],
    }
    if not known["gated_mlp"] or model_type == "dinov3_vit":
        told["activation"] = translated("hidden_act", config["hidden_act"], _ACTIVATIONS)
    if "rope_theta" in config:
        told["rope_base"] = float(config["rope_theta"])
    if model_type.startswith("siglip") and "classifier.weight" in shapes:
        told["pooling"] = "avg"
    if model_type.startswith("siglip2"):
        del told["image_size"]
    return told


def _check_switches(config, hub_config, model_type, known):
    """Keys whose contrary shows in the tensors, or that the model does not have."""
    if config.get("qkv_bias", True) is False and known["qkv_bias"]:
        raise ValueError("config.json says qkv_bias=False, and the tensors have such biases")
    if config.get("num_channels", 3) != 3:
        raise ValueError(
            f"unsupported num_channels in config.json: {config['num_channels']}, not 3"
        )
    if "representation_size" in known and config.get("pooler_act", "tanh") != "tanh":
        raise ValueError(f"unsupported pooler_act in config.json: {config['pooler_act']!r}")
    labels = hub_config.get("id2label")
    has_classes = "num_classes" in known and not model_type.startswith("clip")
    if has_classes and isinstance(labels, dict) and len(labels) != known["num_classes"]:
        raise ValueError(
            f"config.json's id2label names {len(labels)} classes, the head has "
            f"{known['num_classes']}"
        )
    learned = model_type not in ("beit", "data2vec-vision", "dinov3_vit")
    if learned and "learned" not in (known["positions"] or ""):
        raise ValueError("the tensor embeddings.position_embeddings is missing")


def _preprocessing(config, model_type, notes):
    resample = config.get("resample", 3)
    interpolation = _INTERPOLATIONS.get(resample)
    if interpolation is None:
        interpolation = "bicubic"
        notes.append(f"bicubic interpolation instead of the file's, PIL's number {resample}")
    normalise = config.get("do_normalize", True)
    mean, std = (0.0,) * 3, (1.0,) * 3
    if normalise:
        mean, std = (tuple(config.get(f"image_{name}") or (0.5,) * 3) for name in ("mean", "std"))
    # (pixel · factor - mean) / std, in units of 0..1.
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if not math.isclose(255 * factor, 1.0):
        mean, std = (tuple(x / (255 * factor) for x in values) for values in (mean, std))
    size, crop = config.get("size"), config.get("crop_size")
    if isinstance(size, int) and _is_of_the_shorter_side(config, model_type):
        size = {"shortest_edge": size}
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    crop_fraction, crop_mode = 1.0, "squash"
    if shortest is not None or config.get("do_center_crop"):
        # Both sides brought to sizes of their own are a square pressed into shape.
        crop_mode = "center" if shortest is not None or size is None else "squash"
        resized = shortest if shortest is not None else _longest(size)
        if config.get("do_center_crop", True) and crop and resized:
            crop_fraction = _crop_fraction(config, _longest(crop), resized)
    return Preprocessing(
        mean=mean,
        std=std,
        crop_fraction=crop_fraction,
        crop_mode=crop_mode,
        interpolation=interpolation,
    )


# Processors that take a single number as the length of the shorter side; others as a square's.
_SHORTER_SIDE = re.compile(r"(?i)(clip|siglip|bit|convnext)")


def _is_of_the_shorter_side(config, model_type):
    """What old files name the processor by, or the model's type where they name none."""
    keys = ("image_processor_type", "feature_extractor_type")
    named = next((str(config[key]) for key in keys if config.get(key)), model_type)
    return bool(_SHORTER_SIDE.match(named))


def _crop_fraction(config, crop, resized):
    """The share that `save_checkpoint` noted if it means these pixels, else that of the pixels."""
    noted = config.get("crop_pct")
    if noted and math.floor(crop / noted + 1e-3) == resized:
        return noted
    return min(1.0, crop / resized)


def _longest(size):
    if isinstance(size, dict):
        size = [size.get(name) for name in ("height", "width", "shortest_edge")]
    return max(filter(None, size), default=None) if isinstance(size, list) else size
