"""keras-hub's .h5 files and presets: ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP.

Of the last two the vision tower is read, alone or in the whole model, as the presets have it.

The names, and what each family does not say in its config, are those of keras-hub 0.32
(https://github.com/keras-team/keras-hub, keras_hub/src/models).
"""

import re

from keras_vit.checkpoints.architecture import architecture
from keras_vit.checkpoints.hub_config import translated
from keras_vit.checkpoints.layouts import Rule
from keras_vit.models import Preprocessing

FORMAT = "keras-hub"
POSITIONS = "position_embedding"
# The rule of where its weights come from; its own, for DINOv2 alone, has another cubic kernel.
RESAMPLING = "hf"
# Part of the model → where a family keeps it. `#` is a block's number, `#1` one counted from 1
# that the first block lacks; a prefix that the user's name of the model makes is `~`.
_FAMILIES = (
    {
        "patches": "vit_patching_and_embedding/patch_embedding",
        "class_token": "vit_patching_and_embedding/class_token",
        POSITIONS: "vit_patching_and_embedding/position_embedding/embeddings",
        "block_#/norm_1": "vit_encoder/encoder_layers/vi_t_encoder_block#1/layer_norm_1",
        "block_#/attention": "vit_encoder/encoder_layers/vi_t_encoder_block#1/mha",
        "block_#/norm_2": "vit_encoder/encoder_layers/vi_t_encoder_block#1/layer_norm_2",
        "block_#/expansion": "vit_encoder/encoder_layers/vi_t_encoder_block#1/mlp/dense_1",
        "block_#/projection": "vit_encoder/encoder_layers/vi_t_encoder_block#1/mlp/dense_2",
        "norm": "vit_encoder/layer_norm",
    },
    {
        "patches": "deit_patching_and_embedding/patch_embedding",
        "class_token": "deit_patching_and_embedding/class_token",
        "distillation_token": "deit_patching_and_embedding/distillation_token",
        POSITIONS: "deit_patching_and_embedding/position_embedding",
        "block_#/norm_1": "deit_encoder/encoder_layers/dei_t_encoder_block#1/layer_norm_1",
        "block_#/attention": "deit_encoder/encoder_layers/dei_t_encoder_block#1/mha",
        "block_#/norm_2": "deit_encoder/encoder_layers/dei_t_encoder_block#1/layer_norm_2",
        "block_#/expansion": "deit_encoder/encoder_layers/dei_t_encoder_block#1/mlp/dense",
        "block_#/projection": (
            "deit_encoder/encoder_layers/dei_t_encoder_block#1/output_layer/dense"
        ),
        "norm": "deit_encoder/layer_norm",
    },
    # DINOv2 and DINOv3.
    {
        "patches": "~embeddings/patch_embeddings/projection",
        "class_token": "~embeddings/class_token",
        "mask_token": "~embeddings/mask_token",
        "register_tokens": "~embeddings/register_tokens",
        POSITIONS: "~embeddings/position_embedding",
        "source_positions": "~embeddings/source_positions",
        "block_#/norm_1": "~encoder/layers_#/norm1",
        "block_#/attention": "~encoder/layers_#/attention/attention",
        "block_#/scale_1": "~encoder/layers_#/layer_scale1",
        "block_#/norm_2": "~encoder/layers_#/norm2",
        "block_#/expansion": "~encoder/layers_#/mlp/fc1",
        "block_#/projection": "~encoder/layers_#/mlp/fc2",
        "block_#/scale_2": "~encoder/layers_#/layer_scale2",
        "norm": "~layernorm",
    },
    {
        "block_#/expansion": "~encoder/layers_#/mlp/weights_in",
        "block_#/projection": "~encoder/layers_#/mlp/weights_out",
    },
    {
        "block_#/attention": "~encoder/layers_#/attention",
        "block_#/gate": "~encoder/layers_#/mlp/gate_proj",
        "block_#/expansion": "~encoder/layers_#/mlp/up_proj",
        "block_#/projection": "~encoder/layers_#/mlp/down_proj",
    },
    # Beside the towers of a whole CLIP or SigLIP; the projection leads into the space of the texts.
    {"loss": "clip_head", "projection": "vision_projection"},
    {"loss": "siglip_head"},
    # CLIP.
    {
        "patches": "~embedding/patch_embedding",
        "class_token": "~embedding/class_token",
        "position_ids": "~embedding/position_ids",
        POSITIONS: "~embedding/position_embedding/embeddings",
        "pre_norm": "~pre_layer_norm",
        "block_#/norm_1": "~encoder_block_#/layer_norm_1",
        "block_#/attention": "~encoder_block_#/attention",
        "block_#/norm_2": "~encoder_block_#/layer_norm_2",
        "block_#/expansion": "~encoder_block_#/dense_1",
        "block_#/projection": "~encoder_block_#/dense_2",
        "norm": "~layer_norm",
    },
    # SigLIP.
    {
        "block_#/norm_1": "~encoder_block_#/layer_norm1",
        "block_#/attention": "~encoder_block_#/self_attn",
        "block_#/norm_2": "~encoder_block_#/layer_norm2",
        "block_#/expansion": "~encoder_block_#/mlp/fc1",
        "block_#/projection": "~encoder_block_#/mlp/fc2",
        "norm": "~post_layer_norm",
        "pool": "~head",
    },
    {"pre_logits": "pre_logits", "predictions": "predictions"},
)
IGNORED = (
    (re.compile(r"^([^/]*text_encoder(_\d+)?|text_projection)/"), "of the text tower"),
    (re.compile(r"^loss/"), "of the loss between images and texts"),
    (re.compile(r"^mask_token$"), "for training on masked images"),
    (re.compile(r"^position_ids$"), "the numbers of the positions"),
    (
        re.compile(r"^source_positions$"),
        "the positions before keras-hub brought them to the model's grid",
    ),
)


def _pattern(place):
    pattern = re.escape(place).replace(r"\#1", r"(?P<from_1>(?:_\d+)?)")
    pattern = pattern.replace(r"\#", r"(?P<block>\d+)").replace(r"\~", r"(?:[^/]+_)?")
    # A classifier's files hold the backbone under its name, those of a whole CLIP the vision tower.
    outer = r"[^/]*vision_encoder(?:_\d+)?" if place.startswith("~") else "[^/]+"
    return re.compile(rf"(?:{outer}/)?{pattern}(?P<variable>/.+)?$")


_PATTERNS = tuple((_pattern(place), part) for family in _FAMILIES for part, place in family.items())
BLOCK = re.compile(r"block_(\d+)/")


def canonical_name(name):
    """The tensor's name by the part of the model, the same for all families.

    Example:

    >>> canonical_name("vit_encoder/encoder_layers/vi_t_encoder_block_1/mha/query_dense/kernel")
    'block_1/attention/query_dense/kernel'
    """
    match, part = _placed(name)
    if match is None:
        return name
    groups = match.groupdict()
    block = groups.get("block") or (groups.get("from_1") or "_0").removeprefix("_")
    return part.replace("#", block) + (match["variable"] or "")


def published_name(name, file_names):
    """What a tensor that is missing would be called among `file_names`.

    Example:

    >>> published_name("block_7/norm_1/beta", ["x_encoder/layers_0/norm1/gamma"])
    'x_encoder/layers_7/norm1/beta'
    """
    number = BLOCK.match(name)
    wanted = BLOCK.sub("block_#/", name)
    for there in file_names:
        match, part = _placed(there)
        if match is not None and f"{wanted}/".startswith(f"{part}/"):
            place = there.removesuffix(match["variable"] or "")
            if number:
                group = "block" if "block" in match.groupdict() else "from_1"
                block = {"block": number[1], "from_1": f"_{number[1]}".removesuffix("_0")}[group]
                place = place[: match.start(group)] + block + place[match.end(group) :]
            return place + wanted.removeprefix(part)
    families = [family for family in _FAMILIES if name in family]
    for family in families:
        if any(_pattern(place).match(there) for place in family.values() for there in file_names):
            return family[name].removeprefix("~")
    return name


def _placed(name):
    """How a name in the file matches, and the part of the model that it is of; None, None."""
    found = ((pattern.match(name), part) for pattern, part in _PATTERNS)
    return next(((match, part) for match, part in found if match), (None, None))


def recognises(names):
    """Whether the canonical `names` are of this format."""
    return {"patches/kernel", "block_0/attention/query_dense/kernel"} <= set(names)


def rules(depth, shapes):
    """The `Rule` of each weight; `shapes` tell which of the family's layers the file has."""
    # keras-hub's DeiT has no head for its distillation token: it is what a register token is.
    registers = "distillation_token" if "distillation_token" in shapes else "register_tokens"
    result = [
        *_dense("patch_encoder/projection", "patches", layout="flax_patches"),
        Rule("patch_encoder/register_tokens", (registers,)),
        *(
            Rule(f"patch_encoder/{weight}", (tensor,), layouts[len(shapes.get(tensor, ()))])
            for weight, tensor, layouts in (
                ("class_token", "class_token", {0: "same", 1: "vector", 3: "same"}),
                ("position_embedding", POSITIONS, {0: "same", 2: "unbatched", 3: "same"}),
            )
        ),
        *_norm("pre_norm", "pre_norm"),
        *_norm("encoder_norm", "norm"),
        *_pool_rules(shapes),
        *_dense("pre_logits", "pre_logits"),
        *(
            _with_bias("head", shapes, "projection")
            if "projection/kernel" in shapes
            else _dense("head", "predictions")
        ),
    ]
    for index in range(depth):
        result += _block_rules(f"block_{index}", shapes)
    return result


def _block_rules(block, shapes):
    gate = (f"{block}/gate",) if f"{block}/gate/kernel" in shapes else ()
    query, key, value = names = _parts(f"{block}/attention", "query", "key", "value")
    result = [
        *_norm(f"{block}/attention_norm", f"{block}/norm_1"),
        *_heads(f"{block}/attention/query_key_value", shapes, *names),
        *_output(f"{block}/attention/projection", f"{block}/attention/output_dense", shapes),
        Rule(f"{block}/attention_scale/gamma", (f"{block}/scale_1/gamma",)),
        *_norm(f"{block}/mlp_norm", f"{block}/norm_2"),
        *_with_bias(f"{block}/mlp/expansion", shapes, *gate, f"{block}/expansion"),
        *_with_bias(f"{block}/mlp/projection", shapes, f"{block}/projection"),
        Rule(f"{block}/mlp_scale/gamma", (f"{block}/scale_2/gamma",)),
    ]
    if f"{query}/bias" in shapes and f"{key}/bias" not in shapes:
        biases = (f"{query}/bias", f"{value}/bias")
        result.append(Rule(f"{block}/attention/query_value_bias", biases, "rows"))
    return result


def _pool_rules(shapes):
    query, key, value = _parts("pool/attention", "query", "key", "value")
    if "pool/probe" not in shapes:
        return []
    return [
        Rule("pool/probe", ("pool/probe",)),
        *_heads("pool/query", shapes, query),
        *_heads("pool/key_value", shapes, key, value),
        *_output("pool/projection", "pool/attention/output_dense", shapes),
        *_norm("pool/norm", "pool/layer_norm"),
        *_dense("pool/mlp/expansion", "pool/mlp/fc1"),
        *_dense("pool/mlp/projection", "pool/mlp/fc2"),
    ]


def _parts(attention, *parts):
    return tuple(f"{attention}/{part}_dense" for part in parts)


def _norm(weight, tensor):
    return [Rule(f"{weight}/{part}", (f"{tensor}/{part}",)) for part in ("gamma", "beta")]


def _dense(weight, *tensors, layout="same"):
    return [
        Rule(f"{weight}/kernel", tuple(f"{tensor}/kernel" for tensor in tensors), layout),
        Rule(f"{weight}/bias", tuple(f"{tensor}/bias" for tensor in tensors)),
    ]


def _with_bias(weight, shapes, *tensors):
    """A linear layer that has a bias here in any case."""
    kernel, bias = _dense(weight, *tensors)
    if not any(tensor in shapes for tensor in bias.tensors) and kernel.tensors[0] in shapes:
        bias = Rule(bias.weight, (), "zero")
    return [kernel, bias]


def _heads(weight, shapes, *tensors):
    """Keras's attention keeps heads apart; DINOv3's does not."""
    kernel, bias = _dense(weight, *tensors)
    if len(shapes.get(kernel.tensors[0], ())) != 3:
        return [kernel, bias]
    return [
        Rule(kernel.weight, kernel.tensors, "flax_heads_kernel"),
        Rule(bias.weight, bias.tensors, "flax_heads_bias"),
    ]


def _output(weight, tensor, shapes):
    kernel, bias = _with_bias(weight, shapes, tensor)
    if len(shapes.get(f"{tensor}/kernel", ())) == 3:
        kernel = Rule(kernel.weight, kernel.tensors, "flax_heads_projection")
    return [kernel, bias]


# keras-hub's activations.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_approximate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
# Fields of a backbone's config that must agree with the tensors.
_SIZES = {
    "num_layers": "depth",
    "hidden_dim": "hidden_size",
    "num_heads": "num_heads",
    "patch_size": "patch_size",
}


def facts(weights, shapes, file):
    """What a file tells of its model; see `google.facts`."""
    hub = file.hub_config or {}
    backbone, task = (_config_of(hub, key) for key in ("backbone", "task"))
    backbone = backbone or _config_of(task, "backbone")
    backbone = _config_of(backbone, "vision_encoder") or backbone
    known, notes = architecture(weights), []
    known["patch_size"] = tuple(shapes["patches/kernel"][:2])
    query = shapes["block_0/attention/query_dense/kernel"]
    if len(query) == 3:
        known["num_heads"] = query[1]
    elif backbone:
        known["num_heads"] = backbone["num_heads"]
    known |= _family_facts(known, shapes, backbone, notes)
    known |= _pooling(known, shapes, task, notes)
    if backbone:
        known |= _image_size(backbone, known)
    if "converter" in hub:
        known |= _preprocessing(_config_of(hub, "converter"), notes)
    return known, notes


def _config_of(configs, key):
    """The arguments of the object that keras-hub serialised under this key."""
    return (configs.get(key) or {}).get("config") or {}


def _family_facts(known, shapes, backbone, notes):
    """What follows from the family: activation, epsilon, and which tokens have positions."""
    told = {"activation": "gelu", "layer_norm_epsilon": 1e-6}
    if known["pre_norm"]:
        told = {"activation": "quick_gelu", "layer_norm_epsilon": 1e-5}
    elif "pool/probe" in shapes:
        told["activation"] = "gelu_tanh"
    elif POSITIONS not in shapes:
        told |= {"layer_norm_epsilon": 1e-5, "positions": "rope"}
    if "distillation_token" in shapes:
        told["position_slots"] = "all"
        notes.append("the distillation token is a register token, since it has no head")
    elif POSITIONS in shapes:
        told["position_slots"] = "class" if known["class_token"] else "patches"
    if known["gated_mlp"]:
        told["activation"] = "silu"
    if not backbone:
        notes.append(
            f"{told['activation']} and epsilon {told['layer_norm_epsilon']}, keras-hub's defaults: "
            "no config.json beside the file"
        )
        return told
    for theirs, ours in _SIZES.items():
        found = backbone.get(theirs)
        pair = (found, found) if ours == "patch_size" and isinstance(found, int) else found
        if ours in known and _as_tuple(pair) != known[ours]:
            raise ValueError(f"config.json says {theirs}={found!r}, the tensors {known[ours]!r}")
    activation = backbone.get("intermediate_activation", backbone.get("hidden_activation"))
    if activation is not None:
        told["activation"] = translated("activation", activation, _ACTIVATIONS)
    epsilon = backbone.get("layer_norm_epsilon", backbone.get("layer_norm_eps"))
    if epsilon is not None:
        if "pool/probe" in shapes and epsilon != told["layer_norm_epsilon"]:
            raise ValueError(f"unsupported: layer_norm_epsilon={epsilon} with a last norm of 1e-6")
        told["layer_norm_epsilon"] = float(epsilon)
    if "rope_theta" in backbone:
        told["rope_base"] = float(backbone["rope_theta"])
    return told


def _pooling(known, shapes, task, notes):
    if "pool/probe" in shapes:
        return {"pooling": "map"}
    told = {"pooling": "token" if known["class_token"] else "avg"}
    if "predictions/kernel" not in shapes:
        return told
    if not task:
        notes.append(f"pooling={told['pooling']!r} and logits: no task.json beside the file")
        return told
    pooling = task.get("pooling")
    if pooling != {"token": "token", "avg": "gap"}[told["pooling"]]:
        raise ValueError(
            f"unsupported: pooling={pooling!r} with use_class_token={known['class_token']} in "
            "task.json pools otherwise than any keras_vit model"
        )
    activation = task.get("activation")
    if activation not in (None, "linear"):
        if not isinstance(activation, str):
            raise ValueError(f"unsupported activation in task.json: {activation!r:.100}")
        told["classifier_activation"] = activation
    return told


def _image_size(backbone, known):
    shape = backbone.get("image_shape")
    if not shape:
        return {}
    # A model with channels first says so nowhere else.
    size = tuple(shape[:2] if shape[-1] == 3 else shape[1:])
    # DINOv3 takes images of any size where none is given.
    return {} if None in size else {"image_size": size}


def _preprocessing(converter, notes):
    """Mean and std of `pixels * scale + offset`; none where images are scaled another way."""
    if not {"scale", "offset"} <= converter.keys() or converter.get("pad_to_aspect_ratio"):
        return {}
    scale = 1.0 if converter["scale"] is None else converter["scale"]
    offset = 0.0 if converter["offset"] is None else converter["offset"]
    std = [1 / (255 * value) for value in _three(scale)]
    interpolation = converter.get("interpolation", "bilinear")
    if interpolation not in ("nearest", "bilinear", "bicubic"):
        notes.append(f"bilinear interpolation instead of the file's {interpolation}")
        interpolation = "bilinear"
    return {
        "preprocessing": Preprocessing(
            mean=tuple(-value * s for value, s in zip(_three(offset), std, strict=True)),
            std=tuple(std),
            crop_mode="center" if converter.get("crop_to_aspect_ratio", True) else "squash",
            interpolation=interpolation,
        )
    }


def _three(value):
    values = value if isinstance(value, list) else [value]
    return [float(part) for part in (values * 3 if len(values) == 1 else values)]


def _as_tuple(value):
    return tuple(value) if isinstance(value, list) else value
