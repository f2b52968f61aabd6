"""What was measured on: processor, memory, accelerator, versions."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "keras",
    "tensorflow",
    "jax",
    "torch",
    "keras-hub",
    "keras-cv",
    "timm",
    "transformers",
    "numpy",
)
# What decides how fast matrix products can be on a CPU.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe():
    """Processor and its flags, cores, memory, GPU, and package versions, as plain values.

    It asks the system and no framework, so that this process computes nothing.
    """
    import keras_vit._version

    return {
        "platform": f"{platform.system()}-{platform.machine()}",
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "flags": _flags(),
        "memory_gib": _memory(),
        "gpu": gpu(),
        "packages": {"keras-vit": keras_vit._version.__version__, **_versions()},
    }


def sentence(machine):
    """The same in two lines."""
    flags = ", ".join(f"{'' if there else 'no '}{name}" for name, there in machine["flags"].items())
    packages = ", ".join(f"{name} {found}" for name, found in machine["packages"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores ({flags}), "
        f"{machine['memory_gib'] or '?'} GiB, GPU: {machine['gpu'] or 'none'}\n"
        f"Python {machine['python']}, {packages}"
    )


def _read(path):
    return Path(path).read_text() if Path(path).exists() else ""


def _processor():
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _flags():
    found = re.search(r"^flags\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    there = set(found[1].split()) if found else set()
    return {name: name in there for name in FLAGS} if there else {}


def _memory():
    found = re.search(r"^MemTotal:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return round(int(found[1]) / 2**20, 1) if found else None


def gpu():
    """Names and drivers of the NVIDIA GPUs; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip().replace("\n", "; ") or None


def _versions():
    return {name: _version(name) for name in PACKAGES}


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
