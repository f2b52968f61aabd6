"""Which dtype policy `auto` stands for."""

import sys
from types import SimpleNamespace

import keras
import pytest

from keras_vit.finetune import resolve_precision
from keras_vit.finetune.precision import Accelerator, find_accelerator


@pytest.mark.parametrize(
    ("kind", "bfloat16", "expected"),
    [
        ("cpu", False, "float32"),
        ("cpu", True, "float32"),
        ("gpu", True, "mixed_bfloat16"),
        ("gpu", False, "mixed_float16"),
        ("tpu", True, "mixed_bfloat16"),
    ],
)
def test_auto(kind, bfloat16, expected):
    assert resolve_precision("auto", Accelerator(kind, "device", 1, bfloat16)) == expected


def test_what_is_asked_for_is_kept():
    old = Accelerator("gpu", "V100", 1, bfloat16=False)
    assert resolve_precision("mixed_bfloat16", old) == "mixed_bfloat16"


def test_finds_what_the_backend_computes_on():
    found = find_accelerator()
    assert found.kind in ("cpu", "gpu", "tpu") and found.count >= 1
    if found.kind == "cpu":
        assert resolve_precision("auto") == "float32"


@pytest.mark.parametrize(
    ("capability", "bfloat16"), [((7, 0), False), ((8, 0), True), ((9, 0), True)]
)
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_compute_capability_decides_on_every_backend(monkeypatch, backend, capability, bfloat16):
    device = SimpleNamespace(
        platform="gpu",
        device_kind="card",
        name="card",
        compute_capability=".".join(map(str, capability)),
    )
    modules = {
        "tensorflow": SimpleNamespace(
            config=SimpleNamespace(
                list_logical_devices=lambda kind: [],
                list_physical_devices=lambda kind: [device],
                experimental=SimpleNamespace(
                    get_device_details=lambda _: {
                        "compute_capability": capability,
                        "device_name": "card",
                    }
                ),
            )
        ),
        "jax": SimpleNamespace(devices=lambda: [device]),
        "torch": SimpleNamespace(
            cuda=SimpleNamespace(
                is_available=lambda: True,
                get_device_capability=lambda _: capability,
                get_device_name=lambda _: "card",
                device_count=lambda: 1,
            )
        ),
    }
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setitem(sys.modules, backend, modules[backend])
    assert find_accelerator() == Accelerator("gpu", "card", 1, bfloat16)
