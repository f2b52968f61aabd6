"""transformers' config.json and preprocessor_config.json: which of its classes a model is."""

import math

from keras_vit.checkpoints.descriptions import Description, differing
from keras_vit.checkpoints.hub_config import side

# (class with a head, class without) by model type.
_CLASSES = {
    "vit": ("ViTForImageClassification", "ViTModel"),
    "deit": ("DeiTForImageClassification", "DeiTModel"),
    "beit": ("BeitForImageClassification", "BeitModel"),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Model"),
    "dinov2_with_registers": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersModel",
    ),
    "dinov3_vit": (None, "DINOv3ViTModel"),
    "clip_vision_model": ("CLIPVisionModelWithProjection", "CLIPVisionModel"),
    "siglip_vision_model": ("SiglipForImageClassification", "SiglipVisionModel"),
}
# Of the encoder inside a model with a head.
_PREFIXES = {"clip_vision_model": "vision_model.", "siglip_vision_model": "vision_model."}
_HEADS = ("classifier.", "cls_classifier.", "distillation_classifier.", "visual_projection.")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}
# PIL's numbers of interpolations.
_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def described(config, class_names):
    """The `Description` of a model in transformers' terms."""
    model_type = _model_type(config)
    return Description(
        naming=_naming(config, model_type),
        file_name=_file_name(config, model_type),
        hub_config=_hub_config(config, model_type, class_names),
        preprocessor_config=_preprocessor_config(config) if config.include_preprocessing else None,
        zeros=_unused_tensors(config, model_type),
        implied=_implied(config, model_type),
    )


def _model_type(config):
    if config.attention_positions == "rope":
        return "dinov3_vit"
    if config.attention_positions == "relative" or config.qkv_bias == "query_value":
        return "beit"
    if config.pre_norm:
        return "clip_vision_model"
    if config.distillation_token or _is_deit_without_teacher(config):
        return "deit"
    if config.register_tokens:
        return "dinov2_with_registers"
    if config.layer_scale is not None or config.pooling == "token+avg":
        return "dinov2"
    return "vit" if config.class_token else "siglip_vision_model"


def _is_deit_without_teacher(config):
    """Whether transformers' DeiT has it: a second token, and a head for the class token alone."""
    is_such = config.register_tokens == 1 and config.position_slots == "all"
    return is_such and config.layer_scale is None and not config.distillation_token


def _naming(config, model_type):
    patches = {
        "dinov3_vit": "embeddings.patch_embeddings.weight",
        "clip_vision_model": "embeddings.patch_embedding.weight",
        "siglip_vision_model": "embeddings.patch_embedding.weight",
    }
    names = [patches.get(model_type, "embeddings.patch_embeddings.projection.weight")]
    for index in range(config.depth):
        classic, dinov3 = f"encoder.layer.{index}", f"layer.{index}"
        if model_type.startswith("dinov2"):
            names.append(f"{classic}.layer_scale1.lambda1")
            if config.gated_mlp:
                names.append(f"{classic}.mlp.weights_in.weight")
        if config.qkv_bias == "query_value":
            names.append(f"{classic}.attention.attention.query.bias")
            names.append(f"{dinov3}.attention.q_proj.bias")
        if config.gated_mlp:
            names.append(f"{dinov3}.mlp.gate_proj.weight")
    if model_type == "deit":
        names.append("embeddings.distillation_token")
    if config.include_top and config.distillation_token:
        names.append("distillation_classifier.weight")
    elif config.include_top and model_type not in ("dinov3_vit", "clip_vision_model"):
        names.append("classifier.weight")
    return tuple(names)


def _file_name(config, model_type):
    prefix = _PREFIXES.get(model_type, f"{model_type}.") if config.include_top else ""
    return lambda name: name if name.startswith(_HEADS) else prefix + name


def _hub_config(config, model_type, class_names):
    result = {
        "architectures": [_class_name(config, model_type)],
        "model_type": model_type,
        "dtype": "float32",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "hidden_act": _ACTIVATIONS[config.activation],
        "layer_norm_eps": float(config.layer_norm_epsilon),
        # What the patches cover: of a stem, which no class has, nothing is said.
        "image_size": side(
            tuple(n * patch for n, patch in zip(config.grid, config.patch_size, strict=True))
        ),
        "patch_size": side(config.patch_size),
        "num_channels": 3,
    } | _TYPE_FIELDS[model_type](config)
    if model_type == "siglip_vision_model" and config.include_top:
        outer = {key: result.pop(key) for key in ("architectures", "dtype")}
        result = {**outer, "model_type": "siglip", "vision_config": result}
    if config.include_top and model_type != "clip_vision_model":
        names = class_names or [f"LABEL_{index}" for index in range(config.num_classes)]
        result["id2label"] = {str(index): name for index, name in enumerate(names)}
        result["label2id"] = {name: index for index, name in enumerate(names)}
    return result


def _class_name(config, model_type):
    name = _CLASSES[model_type][0 if config.include_top else 1]
    return f"{name}WithTeacher" if config.distillation_token and config.include_top else name


def _vit_fields(config):
    fields = {"intermediate_size": config.mlp_dim, "qkv_bias": bool(config.qkv_bias)}
    if config.representation_size is not None:
        fields |= {"pooler_output_size": config.representation_size, "pooler_act": "tanh"}
    return fields


def _beit_fields(config):
    return {
        "intermediate_size": config.mlp_dim,
        "use_absolute_position_embeddings": config.token_positions == "learned",
        "use_relative_position_bias": config.attention_positions == "relative",
        "use_shared_relative_position_bias": False,
        "use_mask_token": False,
        "use_mean_pooling": config.pool_norm,
        "layer_scale_init_value": float(config.layer_scale or 0),
    }


def _dinov2_ratio(config):
    """The whole number that says the width of the MLP, or comes nearest."""
    exact = config.mlp_dim / config.hidden_size * (1.5 if config.gated_mlp else 1)
    nearest = {max(1, math.floor(exact)), max(1, math.ceil(exact))}
    return min(nearest, key=lambda ratio: abs(_dinov2_width(config, ratio) - config.mlp_dim))


def _dinov2_width(config, ratio):
    width = config.hidden_size * ratio
    # transformers' SwiGLU takes two thirds, rounded up to a multiple of 8.
    return (int(width * 2 / 3) + 7) // 8 * 8 if config.gated_mlp else width


def _dinov2_fields(config):
    fields = {
        "mlp_ratio": _dinov2_ratio(config),
        "use_swiglu_ffn": config.gated_mlp,
        "qkv_bias": bool(config.qkv_bias),
        "layerscale_value": float(config.layer_scale or 1),
        "apply_layernorm": True,
    }
    if config.register_tokens:
        return fields | {"num_register_tokens": config.register_tokens}
    return fields | {"use_mask_token": False}


def _dinov3_fields(config):
    return {
        "intermediate_size": config.mlp_dim,
        "use_gated_mlp": config.gated_mlp,
        "num_register_tokens": config.register_tokens,
        "rope_theta": float(config.rope_base),
        "query_bias": bool(config.qkv_bias),
        "key_bias": config.qkv_bias is True,
        "value_bias": bool(config.qkv_bias),
        "proj_bias": True,
        "mlp_bias": True,
        "layerscale_value": float(config.layer_scale or 1),
    }


def _clip_fields(config):
    fields = {"intermediate_size": config.mlp_dim}
    return fields | ({"projection_dim": config.num_classes} if config.include_top else {})


def _siglip_fields(config):
    has_head = config.pooling == "map" and not config.include_top
    return {"intermediate_size": config.mlp_dim, "vision_use_head": has_head}


_TYPE_FIELDS = {
    "vit": _vit_fields,
    "deit": _vit_fields,
    "beit": _beit_fields,
    "dinov2": _dinov2_fields,
    "dinov2_with_registers": _dinov2_fields,
    "dinov3_vit": _dinov3_fields,
    "clip_vision_model": _clip_fields,
    "siglip_vision_model": _siglip_fields,
}


def _unused_tensors(config, model_type):
    """What these classes hold and use in pre-training alone, or hold though it is empty."""
    shapes = {}
    if model_type == "dinov2_with_registers":
        shapes["embeddings.mask_token"] = (1, config.hidden_size)
    if model_type == "dinov3_vit":
        shapes["embeddings.mask_token"] = (1, 1, config.hidden_size)
        if not config.register_tokens:
            shapes["embeddings.register_tokens"] = (1, 0, config.hidden_size)
    file_name = _file_name(config, model_type)
    return {file_name(name): shape for name, shape in shapes.items()}


def _implied(config, model_type):
    """What transformers' class has otherwise, though the tensors would be read."""
    wanted = {
        "class_token": model_type != "siglip_vision_model",
        "distillation_token": model_type == "deit" and config.distillation_token,
        "patch_bias": model_type != "clip_vision_model",
        "stem_blocks": None,
        "pool_norm": model_type == "beit" and config.pooling == "avg",
    }
    if config.token_positions == "learned":
        wanted["position_slots"] = "class" if wanted["class_token"] else "patches"
        if model_type == "deit" and not config.distillation_token:
            wanted["position_slots"] = "all"
    if model_type not in ("dinov2", "dinov2_with_registers", "dinov3_vit"):
        registers = int(model_type == "deit" and not config.distillation_token)
        wanted |= {"gated_mlp": False, "register_tokens": registers}
        if model_type != "beit":
            wanted["layer_scale"] = None
    if model_type in ("vit", "deit", "clip_vision_model", "siglip_vision_model"):
        wanted["positions"] = "learned"
    if model_type in ("vit", "deit", "clip_vision_model", "dinov3_vit"):
        wanted["pooling"] = "token"
    if model_type.startswith("dinov2"):
        wanted |= _implied_by_dinov2(config)
    if model_type.startswith("dino") and config.layer_scale is None:
        wanted["layer_scale"] = 1.0
    if model_type == "dinov3_vit":
        wanted |= {"include_top": False, "positions": "rope"}
    if model_type == "beit" or (
        model_type.startswith("dinov2") and config.token_positions == "learned"
    ):
        # Of other images their code takes the positions for those of a square, and BEiT's the
        # axes of its tables for each other.
        wanted["image_size"] = (config.image_size[0],) * 2
    if model_type == "beit":
        wanted |= {"qkv_bias": "query_value", "pooling": "avg" if config.pool_norm else "token"}
    if model_type not in ("vit", "deit"):
        wanted["representation_size"] = None
    if model_type in ("clip_vision_model", "siglip_vision_model"):
        wanted |= {"qkv_bias": True, "image_size": (config.image_size[0],) * 2}
    if model_type in ("clip_vision_model", "siglip_vision_model", "dinov3_vit", "beit"):
        wanted["patch_size"] = (config.patch_size[0],) * 2
    return differing(config, wanted)


def _implied_by_dinov2(config):
    return {
        "pooling": "token+avg" if config.include_top else "token",
        "positions": "learned",
        "mlp_dim": _dinov2_width(config, _dinov2_ratio(config)),
    }


def _preprocessor_config(config):
    preprocessing, (height, width) = config.preprocessing, config.image_size
    result = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": _RESAMPLE[preprocessing.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    # A thousandth of a pixel below the whole number that the fraction may be of.
    resized = [math.floor(side / preprocessing.crop_fraction + 1e-3) for side in config.image_size]
    if preprocessing.crop_mode == "center" or resized != [height, width]:
        result |= {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"height": resized[0], "width": resized[1]},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            # No processor takes it, but pixels are whole and the fraction is not.
            "crop_pct": preprocessing.crop_fraction,
        }
    if preprocessing.crop_mode == "center":
        result["size"] = {"shortest_edge": max(resized)}
    return result
