"""Models of timm, transformers and torchvision with random weights, saved as their hubs do."""

import dataclasses
import gc
import json
import time
import warnings
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
import torchvision
import transformers

from .cases import Case

IMAGES = 2
CLASSES = {"full": 1000, "tiny": 7}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a library computes.

    Args:
        images: (batch, height, width, 3), normalised already.
        output: What is compared, in float32.
        exact: The same in float64.
        parameters: Number of the library's parameters.
        seconds: What the float32 pass took.
    """

    images: np.ndarray
    output: np.ndarray
    exact: np.ndarray
    parameters: int
    seconds: float

    @property
    def noise(self):
        """Relative error of the library's own float32 pass."""
        return relative_error(self.output, self.exact)


def relative_error(found, reference):
    """max |found - reference| / max |reference|."""
    return float(np.abs(found - reference).max() / np.abs(reference).max())


def randomise(model, seed=0):
    """Draws every parameter anew, so that none is left where leaving it out would not show.

    Kernels have a standard deviation of 0.7 / sqrt(inputs); norms' scales lie around 1,
    LayerScale's around 0.5; biases, tokens, positions and tables around 0.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            mean, deviation = _distribution(name, tensor)
            tensor.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator))


_SCALES = ("ls1.gamma", "ls2.gamma", "gamma_1", "gamma_2", "lambda1", "lambda_1", "lambda_2")
_TABLES = (
    "pos_embed",
    "position_embedding",
    "_table",
    "token",
    "class_embedding",
    "probe",
    "latent",
)


def _distribution(name, tensor):
    if name.endswith(_SCALES):
        return 0.5, 0.1
    if any(table in name for table in _TABLES):
        return 0.0, 0.3
    if tensor.ndim >= 2:
        return 0.0, 0.7 / tensor[0].numel() ** 0.5
    return (1.0, 0.2) if name.endswith("weight") else (0.0, 0.1)


def build(case: Case, size: str, folder: Path):
    """Builds the model of `case` at `size` ("full" or "tiny"), and saves it in `folder`.

    Returns:
        The model, in evaluation mode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _BUILDERS[case.library](case, size, folder).eval()


def _build_timm(case, size, folder):
    arguments = case.arguments | (case.full if size == "full" else _timm_tiny(case))
    model = timm.create_model(case.model, **arguments)
    randomise(model)
    timm.models.save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    return model


def _timm_tiny(case):
    patch = 14 if "patch14" in case.model else 32 if "patch32" in case.model else 16
    sizes = {"img_size": 3 * patch, "embed_dim": 32, "depth": 3, "num_heads": 4}
    classes = {} if "num_classes" in case.arguments else {"num_classes": CLASSES["tiny"]}
    return sizes | classes | case.tiny


_TRANSFORMERS_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 24,
    "patch_size": 8,
}
_TEXT = {**_TRANSFORMERS_TINY, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}


def _build_transformers(case, size, folder):
    model_class = getattr(transformers, case.model)
    config_class = model_class.config_class
    arguments = case.arguments | (case.full if size == "full" else _TRANSFORMERS_TINY | case.tiny)
    if hasattr(config_class, "mlp_ratio"):
        arguments.pop("intermediate_size", None)
    if "vision_config" in config_class.sub_configs:
        arguments = {"vision_config": arguments, "text_config": _TEXT}
    config = config_class(**arguments)
    if case.model.endswith(("Classification", "Teacher")):
        config.num_labels = CLASSES[size]
    model = model_class(config)
    randomise(model)
    model.save_pretrained(folder)
    if "vision_config" in config_class.sub_configs:
        _leave_defaults_out(folder / "config.json", config_class.sub_configs["vision_config"]())
    return model


def _leave_defaults_out(path, defaults):
    """Leaves what differs from the class's defaults, as older releases wrote nested configs."""
    config = json.loads(path.read_text(encoding="utf-8"))
    nested, known = config["vision_config"], defaults.to_dict()
    config["vision_config"] = {
        key: value
        for key, value in nested.items()
        if key == "model_type" or known.get(key) != value
    }
    path.write_text(json.dumps(config), encoding="utf-8")


def _build_torchvision(case, size, folder):
    if size == "full":
        model = getattr(torchvision.models, case.model)()
    else:
        model = torchvision.models.VisionTransformer(
            image_size=48,
            patch_size=16,
            num_layers=3,
            num_heads=4,
            hidden_dim=32,
            mlp_dim=64,
            num_classes=CLASSES["tiny"],
        )
    randomise(model)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    return model


_BUILDERS = {
    "timm": _build_timm,
    "transformers": _build_transformers,
    "torchvision": _build_torchvision,
}


def _without_masking(model, images):
    """An MAE encoder that keeps every patch, and its order."""
    model.config.mask_ratio = model.embeddings.config.mask_ratio = 0.0
    patches = model.embeddings.patch_embeddings.num_patches
    order = torch.arange(patches, dtype=images.dtype).expand(len(images), -1)
    return model(images, noise=order).last_hidden_state[:, 0]


# What is compared: logits, what the library calls the pooled output, or an embedding.
OUTPUTS = {
    "logits": lambda model, images, **rest: model(images, **rest).logits,
    "pooled": lambda model, images, **rest: model(images, **rest).pooler_output,
    "embedding": lambda model, images, **rest: model(images, **rest).image_embeds,
    "vision_pooled": lambda model, images: model.vision_model(images).pooler_output,
    "vision_embedding": lambda model, images: model.visual_projection(
        model.vision_model(images).pooler_output
    ),
    "class_token": lambda model, images: model(images).last_hidden_state[:, 0],
    "unmasked_class_token": _without_masking,
}


def run(case: Case, model, image_size, seed=1) -> Reference:
    """What `model` computes on random images, in float32 and in float64.

    Args:
        case: The case that `model` was built for.
        model: A model of `build`; it is left in float64.
        image_size: (height, width) of the images.
        seed: Of the images.
    """
    images = np.random.default_rng(seed).normal(size=(IMAGES, *image_size, 3)).astype("float32")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        start = time.perf_counter()
        output = _forward(case, model.float(), pixels)
        seconds = time.perf_counter() - start
        exact = _forward(case, model.double(), pixels.double())
    parameters = sum(tensor.numel() for tensor in model.parameters())
    return Reference(images, output.numpy(), exact.numpy(), parameters, seconds)


def _forward(case, model, pixels):
    if case.library != "transformers":
        return model(pixels)
    rest = {}
    if tuple(pixels.shape[2:]) != native_size(case, model) and case.model not in _ANY_SIZE:
        rest["interpolate_pos_encoding"] = True
    return OUTPUTS[case.output](model, pixels, **rest)


# These resample positions, or have none, without being asked.
_ANY_SIZE = (
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
    "DINOv3ViTModel",
)


def native_size(case, model):
    """(height, width) of the images that `model` was built for."""
    if case.library == "timm":
        return tuple(model.patch_embed.img_size)
    if case.library == "torchvision":
        return (model.image_size,) * 2
    config = getattr(model.config, "vision_config", model.config)
    size = config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def at_other_size(case, size, folder, model):
    """The model of `case` for images of `case.other_size`, by the library's own rule.

    timm builds a second model and loads the saved file through its checkpoint filter; transformers
    resamples in the model's forward pass.
    """
    if case.library != "timm":
        return model
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arguments = (config.get("model_args") or {}) | {"img_size": other_size(case, size)}
    file = {"file": str(folder / "model.safetensors"), "num_classes": config["num_classes"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(
            case.model, pretrained=True, pretrained_cfg_overlay=file, **arguments
        ).eval()


def other_size(case, size):
    """(height, width) of the second comparison; square at tiny size where it is at full size."""
    if size == "full":
        return case.other_size
    if case.library == "transformers":
        return (32, 32) if case.other_size[0] == case.other_size[1] else (32, 40)
    patch = _timm_tiny(case)["img_size"] // 3
    columns = 4 if case.other_size[0] == case.other_size[1] else 5
    return (4 * patch, columns * patch)


def free():
    """Returns the memory of models that nothing refers to."""
    gc.collect()
