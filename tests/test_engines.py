"""Other engines: the numbers of the Keras model, from what was written and nothing else of ours."""

import importlib.util
import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from parameters import slow_except
from PIL import Image

from keras_vit.data import prepare_image
from keras_vit.export import export_saved_model
from keras_vit.export.engines import FORMATS, export_engine, load_engine
from keras_vit.export.pruning import prune
from keras_vit.export.quantization import quantize_int8
from keras_vit.layers import ImagePreprocessing
from keras_vit.models import VisionTransformerConfig, vision_transformer

tf = pytest.importorskip("tensorflow", reason="models are converted from TensorFlow's graphs")
if keras.backend.backend() != "tensorflow":
    pytest.skip("models are converted on the TensorFlow backend", allow_module_level=True)

NAMES = ("cat", "dog", "naïve", "ox", "pig", "rat", "yak")
MODULES = {
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "litert": ("ai_edge_litert",),
}
SWITCHES = {
    "class token": {},
    "everything in the blocks": {
        "depth": 1,
        "activation": "silu",
        "gated_mlp": True,
        "qk_norm": True,
        "layer_scale": 0.5,
        "qkv_bias": "query_value",
        "positions": "learned+rope",
        "register_tokens": 3,
        "pre_norm": True,
    },
    "mean of the patches": {
        "depth": 1,
        "pooling": "avg",
        "class_token": False,
        "pool_norm": True,
        "positions": "relative",
        "activation": "gelu_tanh",
    },
    "attention pooling": {
        "depth": 1,
        "pooling": "map",
        "class_token": False,
        "positions": "sincos2d",
    },
    "token and mean": {
        "depth": 1,
        "pooling": "token+avg",
        "activation": "quick_gelu",
        "representation_size": 16,
        "patch_bias": False,
    },
    "distilled": {"distillation_token": True, "classifier_activation": "softmax"},
    "ResNet stem": {"depth": 1, "stem_blocks": (1,), "stem_width": 32, "patch_size": 1},
    "merged tokens": {"depth": 2, "token_merging": 2},
    "pruned tokens": {"depth": 4, "token_keep_rate": 0.5},
}


def small_transformer(seed=0, dtype=None, **switches):
    """Random weights, large enough that classes and pictures differ."""
    config = {
        "patch_size": 4,
        "hidden_size": 32,
        "depth": 2,
        "mlp_dim": 64,
        "num_heads": 4,
        "image_size": (12, 20),
        "num_classes": len(NAMES),
        "preprocessing": "imagenet",
        **switches,
    }
    model = vision_transformer(VisionTransformerConfig(**config), dtype=dtype)
    rng = np.random.default_rng(seed)
    weights = [rng.normal(0, 0.25, weight.shape) for weight in model.get_weights()]
    model.set_weights(weights)
    return model


def quantized_transformer():
    return quantize_int8(small_transformer(depth=1))


def photograph(height, width, seed=0):
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:height, :width] * 1.0
    wave = np.sin(row[..., None] / 5 + rng.uniform(0, 6, 3)) + np.cos(column[..., None] / 3)
    wave[height // 3 :, width // 2 :] *= -1
    return np.uint8(np.clip(127.5 + 90 * wave, 0, 255))


def pictures():
    """Batches of one size each: smaller and larger than the model, wide and high, one pixel."""
    sizes = [(12, 20), (40, 31), (9, 57), (130, 90), (1, 1)]
    return [np.stack([photograph(*size, seed=s) for s in range(2)]) for size in sizes]


def probabilities(model, batch):
    preprocessing, image_size = model.get_layer("preprocessing"), model.input_shape[1:3]
    prepared = np.stack([prepare_image(image, image_size, preprocessing) for image in batch])
    return model(prepared, training=False).numpy()


def softmax(logits):
    exponential = np.exp(logits - logits.max(-1, keepdims=True).astype("float64"))
    return exponential / exponential.sum(-1, keepdims=True)


@pytest.fixture(params=FORMATS)
def engine(request):
    for module in MODULES[request.param]:
        pytest.importorskip(module, reason=f"{request.param} models need {module}")
    return request.param


onnx_fast = pytest.mark.parametrize("engine", slow_except(FORMATS, fast=["onnx"]), indirect=True)


@pytest.fixture
def any_engine():
    """The quickest one that is there, for what is the same for all."""
    for format in ("onnx", "litert", "openvino"):
        if all(importlib.util.find_spec(module) for module in MODULES[format]):
            return format
    pytest.skip(f"needs the packages of one engine: {MODULES}")


@pytest.mark.parametrize(
    "switches", slow_except(SWITCHES, fast=["everything in the blocks", "merged tokens"])
)
def test_every_switch_gives_the_probabilities_of_the_model(tmp_path, engine, switches):
    model = small_transformer(**SWITCHES[switches])
    run = load_engine(export_engine(model, tmp_path / "pets", engine, class_names=NAMES), threads=1)
    for batch in pictures():
        expected = probabilities(model, batch)
        if SWITCHES[switches].get("classifier_activation") is None:
            np.testing.assert_allclose(run(batch)["logits"], expected, rtol=1e-3, atol=1e-3)
            expected = softmax(expected)
        outputs = run(batch)
        assert outputs["probabilities"].dtype == outputs["logits"].dtype == np.float32
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
        np.testing.assert_allclose(softmax(outputs["logits"]), expected, atol=1e-5)


def test_exact_gelu_is_written_to_litert(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="LiteRT models need ai_edge_litert")
    model = small_transformer(depth=1, activation="gelu")
    assert export_engine(model, tmp_path / "pets", "litert", class_names=NAMES).is_dir()


POLICIES = [
    {"crop_mode": "center", "crop_fraction": 0.875, "interpolation": "bicubic"},
    {"crop_mode": "center", "crop_fraction": 0.6, "interpolation": "bilinear"},
    {"crop_mode": "squash", "crop_fraction": 0.95, "interpolation": "nearest"},
]


def linear_model(**policy):
    images = keras.Input((12, 20, 3), name="images")
    x = ImagePreprocessing((0.4, 0.5, 0.6), (0.25, 0.3, 0.2), name="preprocessing", **policy)(
        images
    )
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(x))
    head = keras.layers.Dense(len(NAMES), kernel_initializer="he_normal", name="head")
    return keras.Model(images, head(x))


@onnx_fast
@pytest.mark.parametrize(
    "policy", slow_except(POLICIES, POLICIES[:1]), ids=lambda policy: policy["interpolation"]
)
def test_images_of_any_size_are_prepared_as_for_evaluation(tmp_path, engine, policy):
    model = linear_model(**policy)
    run = load_engine(export_engine(model, tmp_path, engine, class_names=NAMES))
    for batch in [*pictures(), photograph(700, 301)[None], photograph(12, 400)[None]]:
        logits = probabilities(model, batch)
        np.testing.assert_allclose(run(batch)["logits"], logits, atol=2e-5)
    # Positions in it are beyond the engines' integers, unless it is squashed: no answer.
    long = photograph(1, 12_000)[None]
    expected = probabilities(model, long) if policy["crop_mode"] == "squash" else np.nan
    np.testing.assert_allclose(run(long)["logits"], np.broadcast_to(expected, (1, 7)), atol=2e-5)


CONSUMER = '''
import sys

class Without:
    """A finder that finds everything but what the model was written with."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ("keras", "keras_vit", "tensorflow", "tf2onnx", "nncf"):
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
for name in ("keras", "keras_vit", "tensorflow"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(name + " could be imported")
exec(sys.stdin.read())
'''


@onnx_fast
def test_the_example_of_the_readme_runs_without_keras_and_tensorflow(tmp_path, engine):
    model = small_transformer()
    folder = export_engine(model, tmp_path / "pets", engine, class_names=NAMES)
    assert folder == tmp_path / "pets" / "1"
    image = photograph(40, 31)
    Image.fromarray(image).save(folder / "cat.jpg", "PNG")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-c", CONSUMER],
        input=example.encode(),
        capture_output=True,
        cwd=folder,
        env={"PATH": "/usr/bin", "PYTHONIOENCODING": "utf-8"},
    )
    assert result.returncode == 0, result.stderr.decode()
    (expected,) = softmax(probabilities(model, image[None]))
    best = expected.argsort()[::-1][:5]
    lines = result.stdout.decode().splitlines()[-5:]
    assert [line.split()[1] for line in lines] == [NAMES[index] for index in best]
    np.testing.assert_allclose(
        [float(line.split()[0]) for line in lines], expected[best], atol=1e-4
    )

    facts = json.loads((folder / "signatures.json").read_text(encoding="utf-8"))
    assert facts["inputs"] == {"pixels": {"dtype": "uint8", "shape": [None, None, None, 3]}}
    assert facts["outputs"]["probabilities"] == {"dtype": "float32", "shape": [None, 7]}
    assert facts["image_size"] == [12, 20] and facts["format"] == engine
    assert facts["preprocessing"]["interpolation"] == "bicubic"
    assert facts["check"]["max_probability_difference"] <= 1e-4
    assert (folder / "class_names.txt").read_text(encoding="utf-8").splitlines() == [*NAMES]


FEWER_BITS = [
    (name, precision) for name, engine in FORMATS.items() for precision in engine.precisions[1:]
]


@pytest.mark.slow
@pytest.mark.parametrize("format, precision", FEWER_BITS)
def test_fewer_bits_are_smaller_and_close(tmp_path, format, precision):
    extra = ("nncf",) if (format, precision) == ("openvino", "int8") else ()
    for module in (*MODULES[format], *extra):
        pytest.importorskip(module, reason=f"{precision} of {format} needs {module}")
    model = small_transformer(hidden_size=96, mlp_dim=384)
    images = [photograph(30, 20 + seed, seed=seed) for seed in range(8)]
    options = {"calibration_images": images} if precision == "int8" else {}
    folder = export_engine(
        model, tmp_path, format, class_names=NAMES, precision=precision, **options
    )
    logits = np.concatenate([probabilities(model, image[None]) for image in images])
    run = load_engine(folder, threads=1)
    # Larger than 16-bit constants reach.
    assert np.isfinite(run(photograph(3100, 3000)[None])["logits"]).all()
    here = np.concatenate([run(image[None])["logits"] for image in images])
    error = np.sqrt(np.mean((here - logits) ** 2)) / logits.std()
    # Rounded, and by no more than the bits account for.
    least = 1e-6 if _computes_in(format, precision) else 0.0
    assert least < error < {"float16": 0.01, "bfloat16": 0.1}.get(precision, 0.3)
    size = sum(file.stat().st_size for file in folder.glob("model.*") if file.suffix != ".xml")
    share = {"float16": 0.65, "bfloat16": 1.3, "int8": 0.4, "int8-dynamic": 0.75}[precision]
    assert size < share * 4 * model.count_params()


def _computes_in(format, precision):
    """Whether the engine rounds; OpenVINO computes in float32 on a CPU without bfloat16."""
    if (format, precision) != ("openvino", "bfloat16"):
        return True
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_a_model_of_mixed_precision_is_written_in_float32(tmp_path, any_engine):
    model = small_transformer(depth=1)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = small_transformer(depth=1)
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(model.get_weights())
    run = load_engine(export_engine(mixed, tmp_path, any_engine, class_names=NAMES))
    batch = pictures()[1]
    np.testing.assert_allclose(run(batch)["logits"], probabilities(model, batch), atol=1e-3)


def test_a_folder_of_images_calibrates(tmp_path):
    pytest.importorskip("onnxruntime", reason="int8 of onnx needs onnxruntime")
    pytest.importorskip("tf2onnx", reason="onnx models need tf2onnx")
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    for seed in range(5):
        Image.fromarray(photograph(20, 30, seed)).save(tmp_path / f"pictures/cat/{seed}.png")
    folder = export_engine(
        small_transformer(depth=1),
        tmp_path / "pets",
        "onnx",
        class_names=NAMES,
        precision="int8",
        calibration_images=tmp_path / "pictures",
    )
    assert json.loads((folder / "signatures.json").read_text())["calibration_images"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 2])
def test_only_products_of_the_blocks_are_quantised(tmp_path, heads):
    onnx = pytest.importorskip("onnx", reason="reads what was written")
    pytest.importorskip("tf2onnx", reason="onnx models need tf2onnx")
    model = small_transformer(distillation_token=heads == 2)
    images = [photograph(30, 20, seed) for seed in range(3)]
    folder = export_engine(
        model, tmp_path, "onnx", class_names=NAMES, precision="int8", calibration_images=images
    )
    graph = onnx.load(folder / "model.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    quantised = {
        name.removesuffix("_quantized")
        for name, kind in kinds.items()
        if kind == onnx.TensorProto.INT8
    }
    kernels = {w.path for w in model.weights if re.match("block_.*/kernel$", w.path)}
    assert {name for name in quantised if name.endswith("/kernel")} == kernels
    assert len(kernels) == 4 * 2
    # Products that are not quantised as they are would be computed in float32 all the same.
    gemms = [node.input[1] for node in graph.node if node.op_type == "Gemm"]
    assert sum(name.startswith("block_") for name in gemms) == 4 * 2


def test_the_graph_has_whole_operations(tmp_path):
    onnx = pytest.importorskip("onnx", reason="reads what was written")
    pytest.importorskip("tf2onnx", reason="onnx models need tf2onnx")
    folder = export_engine(small_transformer(depth=1), tmp_path, "onnx", class_names=NAMES)
    operations = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    assert operations.count("LayerNormalization") == 3 and operations.count("Gelu") == 1
    assert "ReduceMean" not in operations and "Erf" not in operations


@pytest.mark.slow
@pytest.mark.parametrize("precision", FORMATS["onnx"].precisions)
def test_a_model_too_large_for_one_onnx_file_has_its_weights_beside(
    tmp_path, precision, monkeypatch
):
    pytest.importorskip("onnxruntime", reason="onnx models need onnxruntime")
    pytest.importorskip("tf2onnx", reason="onnx models need tf2onnx")
    from keras_vit.export import onnx_file

    monkeypatch.setattr(onnx_file, "_LARGEST_FILE", 10_000)
    model = small_transformer(depth=1, hidden_size=64)
    images = [photograph(30, 20, seed) for seed in range(3)] if precision == "int8" else None
    folder = export_engine(
        model,
        tmp_path,
        "onnx",
        class_names=NAMES,
        precision=precision,
        calibration_images=images,
    )
    files = {file.name: file.stat().st_size for file in folder.glob("model.*")}
    assert set(files) == {"model.onnx", "model.onnx.data"}
    assert files["model.onnx.data"] > 30_000
    batch = pictures()[1]
    bound = 1e-3 if precision == "float32" else 0.3 * probabilities(model, batch).std()
    here = load_engine(folder)(batch)["logits"]
    np.testing.assert_allclose(here, probabilities(model, batch), atol=bound)


def test_pruning_takes_the_smallest_weights_of_each_kernel():
    model = small_transformer()
    before = model.get_weights()
    pruned = prune(model, 0.3)
    for weight, old, new in zip(model.weights, before, pruned.get_weights(), strict=True):
        if weight.path.startswith("block_") and weight.path.endswith("/kernel"):
            zero = new == 0
            assert zero.sum() == round(0.3 * new.size)
            assert np.abs(old[zero]).max() <= np.abs(old[~zero]).min()
            np.testing.assert_array_equal(new[~zero], old[~zero])
        else:
            np.testing.assert_array_equal(new, old)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_sparse_export_computes_the_pruned_model(tmp_path, any_engine):
    model = small_transformer(depth=1)
    folder = export_engine(model, tmp_path, any_engine, class_names=NAMES, sparsity=0.5)
    batch = pictures()[0]
    here = load_engine(folder)(batch)["logits"]
    np.testing.assert_allclose(here, probabilities(prune(model, 0.5), batch), atol=1e-3)
    assert np.abs(here - probabilities(model, batch)).max() > 0.1


def test_keras_int8_copy():
    model = small_transformer(depth=1, hidden_size=96, mlp_dim=384)
    quantised = quantize_int8(model)
    kinds = {weight.path: weight.dtype for weight in quantised.weights}
    kernels = [path for path in kinds if path.endswith("/kernel")]
    assert len(kernels) == 6 and all(kinds[path] == "int8" for path in kernels)
    batch = pictures()[1]
    logits = probabilities(model, batch)
    error = probabilities(quantised, batch) - logits
    assert 1e-4 < np.sqrt(np.mean(error**2)) / logits.std() < 0.2
    assert model.get_layer("block_0").mlp.expansion.kernel.dtype == "float32"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"format": "coreml"}, "`format` must be one of onnx, openvino, litert"),
        ({"precision": "int4"}, "one of float32, int8, int8-dynamic for ONNX"),
        ({"precision": "int8"}, "give `calibration_images`"),
        ({"precision": "int8", "calibration_images": []}, "is empty"),
        (
            {"precision": "int8", "calibration_images": np.zeros((2, 8, 8, 3), "float32")},
            "index 0: float32",
        ),
        ({"calibration_images": [photograph(8, 8)]}, "read for int8 only"),
        ({"class_names": NAMES[:-1]}, "7 classes. Received 6 names"),
        ({"sparsity": 1.0}, "must be in \\[0, 1\\)"),
        ({"sparsity": -0.1}, "must be in \\[0, 1\\)"),
        ({"version": 0}, "`version` must be a positive integer"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, arguments, message):
    for module in MODULES["onnx"]:
        pytest.importorskip(module, reason=f"onnx models need {module}")
    arguments = {"format": "onnx", "class_names": NAMES, **arguments}
    with pytest.raises(ValueError, match=message):
        export_engine(small_transformer(depth=1), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def adapted_transformer():
    with_adapter = small_transformer(depth=1, dtype="mixed_bfloat16")
    with_adapter.get_layer("block_0").mlp.expansion.enable_lora(2)
    return with_adapter


@pytest.mark.parametrize(
    "build, arguments, message",
    [
        (adapted_transformer, {"format": "onnx"}, "Save and load it, which merges them"),
        (quantized_transformer, {"format": "openvino"}, "already quantised .int8."),
        (quantized_transformer, {"format": "onnx", "sparsity": 0.5}, "already quantised .int8."),
        (
            quantized_transformer,
            {"format": "onnx", "precision": "int8-dynamic"},
            "already quantised .int8.",
        ),
    ],
)
def test_what_was_done_to_a_model_before_is_named(tmp_path, build, arguments, message):
    for module in MODULES[arguments["format"]]:
        pytest.importorskip(module, reason=f"{arguments['format']} models need {module}")
    with pytest.raises(ValueError, match=message):
        export_engine(build(), tmp_path / "out", class_names=NAMES, **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_quantised_model_is_written_for_onnx_as_it_is(tmp_path):
    for module in MODULES["onnx"]:
        pytest.importorskip(module, reason=f"onnx models need {module}")
    model, batch = quantized_transformer(), pictures()[1]
    run = load_engine(export_engine(model, tmp_path, "onnx", class_names=NAMES))
    np.testing.assert_allclose(run(batch)["logits"], probabilities(model, batch), atol=1e-4)


def test_an_empty_folder_does_not_calibrate(tmp_path):
    for module in MODULES["onnx"]:
        pytest.importorskip(module, reason=f"onnx models need {module}")
    with pytest.raises(ValueError, match="holds no .jpg, .jpeg or .png file"):
        export_engine(
            small_transformer(depth=1),
            tmp_path / "out",
            "onnx",
            class_names=NAMES,
            precision="int8",
            calibration_images=tmp_path,
        )


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import importlib.metadata

    version = importlib.metadata.version

    def without(package):
        if package == "openvino":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without)
    with pytest.raises(ModuleNotFoundError, match="pip install openvino"):
        export_engine(small_transformer(depth=1), tmp_path / "out", "openvino", class_names=NAMES)


@onnx_fast
def test_a_wrong_model_is_noticed_and_nothing_is_left(tmp_path, engine, monkeypatch):
    from keras_vit.export import pixel_graph

    # Half a pixel off.
    exact = pixel_graph._matrix
    monkeypatch.setattr(
        pixel_graph, "_matrix", lambda old, new, at, *rest: exact(old, new, at + 1, *rest)
    )
    with pytest.raises(RuntimeError, match="differs from the Keras model.*max_probability"):
        export_engine(small_transformer(depth=1), tmp_path / "out", engine, class_names=NAMES)
    assert list(tmp_path.iterdir()) == []


def test_another_backend_is_refused(tmp_path, monkeypatch):
    model = small_transformer(depth=1)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=tensorflow"):
        export_engine(model, tmp_path / "out", "onnx", class_names=NAMES)


def test_versions_count_up_and_are_never_overwritten(tmp_path, any_engine):
    model = linear_model()
    (tmp_path / "7").mkdir()
    assert export_engine(model, tmp_path, any_engine, class_names=NAMES).name == "8"
    with pytest.raises(FileExistsError, match="7 exists"):
        export_engine(model, tmp_path, any_engine, class_names=NAMES, version=7)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["7", "8"]


@pytest.mark.parametrize("file", ["1/saved_model.pb", "models.config"])
def test_a_version_for_another_engine_is_kept_out_of_a_servers_folder(tmp_path, any_engine, file):
    (tmp_path / "pets" / "1").mkdir(parents=True)
    (tmp_path / "pets" / file).write_text("")
    with pytest.raises(FileExistsError, match=f"pets is for a model server: it holds {file}"):
        export_engine(linear_model(), tmp_path / "pets", any_engine, class_names=NAMES)
    assert not (tmp_path / "pets" / "2").exists()


@pytest.mark.parametrize("engine", FORMATS)
def test_a_saved_model_is_kept_out_of_another_engines_folder(tmp_path, engine):
    (tmp_path / "pets" / "1").mkdir(parents=True)
    (tmp_path / "pets" / "1" / FORMATS[engine].file).write_text("")
    with pytest.raises(FileExistsError, match=f"it holds 1/{FORMATS[engine].file}. A model server"):
        export_saved_model(linear_model(), tmp_path / "pets", class_names=NAMES)
    assert not (tmp_path / "pets" / "2").exists()


def test_what_lies_beside_a_saved_model_is_no_other_engines(tmp_path):
    for name in ("saved_model.pb", "model.keras"):
        (tmp_path / "1").mkdir(exist_ok=True)
        (tmp_path / "1" / name).write_text("")
    export_saved_model(linear_model(), tmp_path, class_names=NAMES, warmup_batch_sizes=())
    assert (tmp_path / "2" / "saved_model.pb").exists()


def test_a_saved_model_is_not_loaded_into_another_engine(tmp_path):
    folder = export_saved_model(linear_model(), tmp_path, class_names=NAMES, warmup_batch_sizes=())
    with pytest.raises(ValueError, match=f"{folder} has the format None. Load a SavedModel with"):
        load_engine(folder)
