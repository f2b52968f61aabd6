"""Steps of PyTorch models: timm's and transformers', with the weights of keras_vit."""

import contextlib
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.inputs import NUM_CLASSES, images_of, labels_of
from benchmarks.worker import Step

LEARNING_RATE = 0.01


def import_timm():
    """timm, also beside a torchvision that was built for another PyTorch.

    timm imports torchvision for its transforms, which are not used here. Where torchvision's
    compiled half does not load, its import fails for want of two operators; declared, it passes.
    """
    try:
        import timm
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):  # Declared already.
                library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        import_timm.library = library  # What it declared lives as long as it does.
        import timm
    return timm


def build_timm(job):
    import safetensors.torch

    timm = import_timm()
    folder = Path(job["weights"], "timm")
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], **config.get("model_args", {}))
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"), strict=True)
    return model


def build_transformers(job):
    with contextlib.suppress(ModuleNotFoundError):
        import_timm()  # transformers imports torchvision too.
    from transformers import ViTForImageClassification

    model, loading = ViTForImageClassification.from_pretrained(
        Path(job["weights"], "hf"), attn_implementation="sdpa", output_loading_info=True
    )
    wrong = {key: value for key, value in loading.items() if value}
    if wrong:
        raise ValueError(f"The weights do not fit transformers' model: {wrong}")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # Read now, not in the first step.
    return Logits(model)


class Logits(torch.nn.Module):
    """transformers' classifier as a function to logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).logits


BUILDERS = {"timm": build_timm, "transformers": build_transformers}


def forward(job):
    """A forward pass under `torch.inference_mode`, eager or compiled."""
    device = _device()
    dtype = getattr(torch, job["dtype"])
    # timm's own benchmark converts the model for inference, and trains under autocast.
    model = BUILDERS[job["library"]](job).eval().to(device, dtype)
    if job.get("compile"):
        model = torch.compile(model)
    images = _channels_first(images_of(job)).to(device, dtype)

    @torch.inference_mode()
    def launch():
        return model(images)

    return Step(
        launch=launch,
        outputs=lambda: launch().float().cpu().numpy(),
        wait=_wait,
        peak_memory=_accelerator_memory(),
        facts=_facts(),
    )


def train(job):
    """A training step: cross-entropy, backward pass, SGD with momentum."""
    device = _device()
    model = BUILDERS[job["library"]](job).train().to(device)
    if job.get("compile"):
        model = torch.compile(model)
    # One pass over the weights.
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, fused=True)
    loss_function = torch.nn.CrossEntropyLoss()
    # As a pipeline that is ahead has put them.
    batch = _channels_first(images_of(job)).to(device)
    targets = torch.from_numpy(labels_of(job)).to(device)
    precision = (
        torch.autocast(device.type, torch.bfloat16)
        if job["dtype"] == "bfloat16"
        else contextlib.nullcontext()
    )

    def launch():
        with precision:
            loss = loss_function(model(batch), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return Step(
        launch=launch,
        outputs=lambda: np.array([launch().item() for _ in range(job["steps_compared"])]),
        wait=_wait,
        peak_memory=_accelerator_memory(),
        facts=_facts(),
    )


def build(job):
    """Seconds of `timm.create_model`, weights included; see `benchmarks.startup`."""
    import time

    timm = import_timm()
    began = time.perf_counter()
    model = timm.create_model(job["timm"], num_classes=NUM_CLASSES)
    seconds = time.perf_counter() - began
    return seconds, sum(parameter.numel() for parameter in model.parameters())


def _channels_first(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait(result):
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _accelerator_memory():
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated


def _facts():
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
    }
