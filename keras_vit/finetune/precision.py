"""Which dtype policy the hardware is good at."""

from dataclasses import dataclass

import keras

# NVIDIA GPUs compute in bfloat16 from compute capability 8.0 (Ampere) on.
BFLOAT16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Accelerator:
    """What the backend computes on.

    Attributes:
        kind: `"cpu"`, `"gpu"` or `"tpu"`.
        name: What the backend calls it.
        count: Number of devices of this kind.
        bfloat16: Whether it computes in bfloat16 at full speed.
    """

    kind: str
    name: str
    count: int
    bfloat16: bool


def find_accelerator() -> Accelerator:
    """The accelerator of the running backend; the CPU where there is none.

    >>> find_accelerator().kind in ("cpu", "gpu", "tpu")
    True
    """
    return {
        "tensorflow": _tensorflow_accelerator,
        "jax": _jax_accelerator,
        "torch": _torch_accelerator,
    }[keras.backend.backend()]()


def resolve_precision(precision: str, accelerator: Accelerator | None = None) -> str:
    """The dtype policy that `"auto"` stands for on this machine.

    Args:
        precision: `"auto"` or the name of a dtype policy, which is handed back as it is.
        accelerator: What to choose for; None: what the backend finds.

    Returns:
        `"float32"` on a CPU, `"mixed_bfloat16"` where the accelerator has it, `"mixed_float16"`
        elsewhere.

    Example:

    >>> resolve_precision("auto", Accelerator("gpu", "V100", 1, bfloat16=False))
    'mixed_float16'
    """
    if precision != "auto":
        return precision
    accelerator = accelerator or find_accelerator()
    if accelerator.kind == "cpu":
        return "float32"
    return "mixed_bfloat16" if accelerator.bfloat16 else "mixed_float16"


def _tensorflow_accelerator():
    import tensorflow as tf

    tpus = tf.config.list_logical_devices("TPU")
    if tpus:
        return Accelerator("tpu", tpus[0].name, len(tpus), bfloat16=True)
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return Accelerator("cpu", "cpu", 1, bfloat16=False)
    details = tf.config.experimental.get_device_details(gpus[0])
    capability = tuple(details.get("compute_capability") or (0, 0))
    name = details.get("device_name", gpus[0].name)
    return Accelerator("gpu", name, len(gpus), capability >= BFLOAT16_CAPABILITY)


def _jax_accelerator():
    import jax

    devices = jax.devices()
    kind = {"cuda": "gpu", "rocm": "gpu"}.get(devices[0].platform, devices[0].platform)
    name = devices[0].device_kind
    if kind != "gpu":
        return Accelerator(kind, name, len(devices), bfloat16=kind == "tpu")
    capability = str(getattr(devices[0], "compute_capability", "0.0"))
    numbers = tuple(int(part) for part in capability.split(".") if part.isdigit())
    return Accelerator("gpu", name, len(devices), numbers >= BFLOAT16_CAPABILITY)


def _torch_accelerator():
    import torch

    if not torch.cuda.is_available():
        return Accelerator("cpu", "cpu", 1, bfloat16=False)
    bfloat16 = torch.cuda.get_device_capability(0) >= BFLOAT16_CAPABILITY
    return Accelerator("gpu", torch.cuda.get_device_name(0), torch.cuda.device_count(), bfloat16)
