"""A thousand damaged files: each is refused by name, or read exactly; nothing in between."""

import contextlib
import os
import pathlib
import re
import signal
import sys
import warnings

import numpy as np
import pytest
import safetensors
from mutations import write_mutated_hub, write_mutated_npz
from random_checkpoints import google_tensors, timm_tensors, write_google, write_timm

import keras_vit

# Of each kind; more of them are other ones too.
CASES = int(os.environ.get("KERAS_VIT_FUZZ_CASES", "80"))
SMALL = {"width": 8, "depth": 1}
CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"img_size": [12, 12], "num_heads": 2},
    "pretrained_cfg": {
        "input_size": [3, 12, 12],
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    },
}
EVERYTHING = ("activation", "layer_norm_epsilon", "preprocessing", "pooling")


class Hang(BaseException):
    """Not an Exception, so that nobody takes it for a damaged file."""


@contextlib.contextmanager
def watchdog(seconds=30):
    """Ends what takes far too long, where the system has alarms."""

    def stop(*_):
        raise Hang(f"took more than {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# What each weight is in the tensors of a file, written down apart from the loader.


def google_weights(read, depth):
    weights = {
        "patch_encoder/class_token": lambda: read("cls"),
        "patch_encoder/position_embedding": lambda: read(
            "Transformer/posembed_input/pos_embedding"
        ),
        "patch_encoder/projection/kernel": lambda: read("embedding/kernel").reshape(-1, 8),
        "patch_encoder/projection/bias": lambda: read("embedding/bias"),
        "encoder_norm/gamma": lambda: read("Transformer/encoder_norm/scale"),
        "encoder_norm/beta": lambda: read("Transformer/encoder_norm/bias"),
        "head/kernel": lambda: read("head/kernel"),
        "head/bias": lambda: read("head/bias"),
    }
    for index in range(depth):
        weights |= _google_block(read, f"block_{index}", f"Transformer/encoderblock_{index}")
    return weights


def _google_block(read, ours, theirs):
    attention, mlp = f"{theirs}/MultiHeadDotProductAttention_1", f"{theirs}/MlpBlock_3"
    qkv = [f"{attention}/{part}" for part in ("query", "key", "value")]
    return {
        f"{ours}/attention_norm/gamma": lambda: read(f"{theirs}/LayerNorm_0/scale"),
        f"{ours}/attention_norm/beta": lambda: read(f"{theirs}/LayerNorm_0/bias"),
        f"{ours}/attention/query_key_value/kernel": lambda: np.concatenate(
            [read(f"{name}/kernel").reshape(8, 8) for name in qkv], axis=1
        ),
        f"{ours}/attention/query_key_value/bias": lambda: np.concatenate(
            [read(f"{name}/bias").reshape(8) for name in qkv]
        ),
        f"{ours}/attention/projection/kernel": lambda: read(f"{attention}/out/kernel").reshape(
            8, 8
        ),
        f"{ours}/attention/projection/bias": lambda: read(f"{attention}/out/bias"),
        f"{ours}/mlp_norm/gamma": lambda: read(f"{theirs}/LayerNorm_2/scale"),
        f"{ours}/mlp_norm/beta": lambda: read(f"{theirs}/LayerNorm_2/bias"),
        f"{ours}/mlp/expansion/kernel": lambda: read(f"{mlp}/Dense_0/kernel"),
        f"{ours}/mlp/expansion/bias": lambda: read(f"{mlp}/Dense_0/bias"),
        f"{ours}/mlp/projection/kernel": lambda: read(f"{mlp}/Dense_1/kernel"),
        f"{ours}/mlp/projection/bias": lambda: read(f"{mlp}/Dense_1/bias"),
    }


def timm_weights(read, depth):
    weights = {
        "patch_encoder/class_token": lambda: read("cls_token"),
        "patch_encoder/position_embedding": lambda: read("pos_embed"),
        "patch_encoder/projection/kernel": lambda: (
            read("patch_embed.proj.weight").transpose(2, 3, 1, 0).reshape(-1, 8)
        ),
        "patch_encoder/projection/bias": lambda: read("patch_embed.proj.bias"),
    }
    norms, denses = {"encoder_norm": "norm"}, {"head": "head"}
    for index in range(depth):
        ours, theirs = f"block_{index}", f"blocks.{index}"
        norms |= {
            f"{ours}/attention_norm": f"{theirs}.norm1",
            f"{ours}/mlp_norm": f"{theirs}.norm2",
        }
        denses |= {
            f"{ours}/attention/query_key_value": f"{theirs}.attn.qkv",
            f"{ours}/attention/projection": f"{theirs}.attn.proj",
            f"{ours}/mlp/expansion": f"{theirs}.mlp.fc1",
            f"{ours}/mlp/projection": f"{theirs}.mlp.fc2",
        }
    for ours, theirs in norms.items():
        weights[f"{ours}/gamma"] = lambda name=f"{theirs}.weight": read(name)
        weights[f"{ours}/beta"] = lambda name=f"{theirs}.bias": read(name)
    for ours, theirs in denses.items():
        weights[f"{ours}/kernel"] = lambda name=f"{theirs}.weight": read(name).T
        weights[f"{ours}/bias"] = lambda name=f"{theirs}.bias": read(name)
    return weights


@contextlib.contextmanager
def independent_reader(path):
    """Function from a tensor's name to it, by the formats' own libraries."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            yield lambda name: as_float32(file[_stored_name(name, file.files)])
    else:
        with safetensors.safe_open(path / "model.safetensors", framework="np") as file:
            yield lambda name: as_float32(file.get_tensor(_stored_name(name, file.keys())))


def _stored_name(name, names):
    """The prefixes under which the formats nest a model are not part of the name."""
    return next((other for other in names if other == name), None) or next(
        other for other in names if re.fullmatch(r"(params/|opt/target/|model\.)" + name, other)
    )


def as_float32(array):
    return (
        (array.view("uint16").astype("uint32") << 16).view("float32")
        if (array.dtype == "V2")
        else array.astype("float32")
    )


def weights_of(model):
    return {weight.path: np.array(weight) for weight in model.weights}


def assert_same(weights, expected):
    for name, value in expected.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


def assert_exact(weights, report, path):
    """The weights are those of the file as the formats' own libraries see it."""
    with independent_reader(path) as read:
        expected = (google_weights if path.suffix == ".npz" else timm_weights)(read, depth=2)
        for name in report.used:
            np.testing.assert_array_equal(weights[name], expected[name](), err_msg=name)
    others = set(weights) - set(report.used)
    assert others == set(report.resampled) | set(report.new)
    assert set(report.resampled) <= {"patch_encoder/position_embedding"}
    for name in report.new:
        assert name.startswith("head/") or name == "patch_encoder/class_token"
        assert not weights[name].any(), name


def try_to_load(model, path):
    """Loads a damaged file; whether it was taken. What must always hold is asserted."""
    before = weights_of(model)
    try:
        with watchdog():
            report = keras_vit.load_checkpoint(model, path, accept=EVERYTHING)
    except (ValueError, FileNotFoundError) as error:
        assert str(path) in str(error), f"the error does not name the file: {error}"
        assert len(str(error)) < 20_000
        assert_same(weights_of(model), before)
        return False
    assert_exact(weights_of(model), report, path)
    return True


def try_to_build(path):
    """Builds the model that a damaged file describes; whether there was one."""
    try:
        with watchdog():
            model = keras_vit.from_checkpoint(path)
    except (ValueError, FileNotFoundError) as error:
        assert str(path) in str(error), f"the error does not name the file: {error}"
        return False
    weights = weights_of(model)
    report = keras_vit.load_checkpoint(model, path, accept=EVERYTHING)
    assert_same(weights_of(model), weights)
    assert_exact(weights, report, path)
    return True


def peak_memory(reset=False):
    """Peak resident bytes of this process since it was last reset; 0 where nobody tells."""
    if sys.platform != "linux":
        return 0
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024


def write_case(path, kind, case):
    """Writes a damaged file of a kind; returns what was done to it."""
    rng = np.random.default_rng([case, len(kind)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of duplicate names, and of casts that lose values.
        if path.suffix == ".npz":
            return write_mutated_npz(path, google_tensors(**SMALL), kind == "deflated", rng)
        return write_mutated_hub(path, timm_tensors(**SMALL), CONFIG, rng)


@pytest.mark.parametrize("cases", [CASES // 4, pytest.param(CASES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["stored", "deflated", "hub", "hub of other seeds"])
def test_damaged_files(tmp_path, kind, cases):
    path = tmp_path / ("hub" if kind.startswith("hub") else "model.npz")
    write_timm(path, **SMALL) if kind.startswith("hub") else write_google(path, **SMALL)
    model = keras_vit.from_checkpoint(path)
    memory = peak_memory(reset=True)
    failures, loaded, built = [], 0, 0
    for case in range(cases):
        done = write_case(path, kind, case)
        try:
            loaded += try_to_load(model, path)
            built += try_to_build(path)
        except (Exception, Hang) as error:
            failures.append(
                f"case {case} of {kind}, {done}: {type(error).__name__}: {error!s:.500}"
            )
    print(f"{kind}: {loaded} of {cases} loaded, {built} built")
    assert not failures, "\n".join(failures)
    # Neither is it all refused nor all taken; of the few cases, more may be of one kind.
    least, most = (cases / 20, cases / 2) if cases == CASES else (0, cases)
    assert least < loaded < most
    assert least < built < most
    assert peak_memory() - memory < 400 << 20
