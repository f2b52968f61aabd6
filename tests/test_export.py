"""SavedModels for serving: the numbers of the model, without any of our code."""

import dataclasses
import errno
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parameters import slow_except
from PIL import Image

from keras_vit.data import decode_image, evaluation_geometry, prepare_image
from keras_vit.export import ImageLimits, export_saved_model
from keras_vit.export.image_graph import prepare
from keras_vit.export.quantization import quantize_int8
from keras_vit.inspection import attention_rollout
from keras_vit.layers import ImagePreprocessing
from keras_vit.models import VisionTransformerConfig, config_of, vision_transformer
from keras_vit.serving.files import WARMUP_FILE
from keras_vit.serving.model_checks import check_saved_model
from keras_vit.serving.prediction_log import read_warmup_requests

tf = pytest.importorskip("tensorflow", reason="a SavedModel needs TensorFlow")
if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel is exported on the TensorFlow backend", allow_module_level=True)

NAMES = ("cat", "dog", "naïve", "ox", "pig", "rat", "yak")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def small_model(image_size=(12, 20), activation=None, classes=7, **policy):
    """A model of the library's outline whose logits spread over several units."""
    keras.utils.set_random_seed(1)
    images = keras.Input((*image_size, 3), name="images")
    x = ImagePreprocessing(MEAN, STD, name="preprocessing", **policy)(images)
    x = keras.layers.Conv2D(16, 4, strides=4, activation="gelu", name="patches")(x)
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(x))
    head = keras.layers.Dense(
        classes, activation, kernel_initializer="he_normal", dtype="float32", name="head"
    )
    return keras.Model(images, head(x))


def photograph(height, width, seed):
    """Waves with an edge: smooth enough for JPEG, sharp enough that bicubic overshoots."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, 3)
    wave = np.sin(row[..., None] / 5 + phase) + np.cos(column[..., None] / 3 - phase)
    wave[height // 3 :, width // 2 :] *= -1
    return np.uint8(np.clip(127.5 + 90 * wave, 0, 255))


def encode(image, kind, mode=None, **options):
    stream = io.BytesIO()
    image = Image.fromarray(image)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def mixed_files():
    """Files of every kind, no two of one size; some with alpha, a palette or 16 bits."""
    image = photograph(33, 64, 2)
    grey = photograph(25, 31, 5)[..., 0]
    return [
        encode(photograph(40, 30, 0), "JPEG", quality=80),
        encode(photograph(9, 57, 1), "JPEG", subsampling=2, progressive=True),
        encode(image, "PNG"),
        encode(np.dstack([image[:12, :20], grey[:12, :20]]), "PNG"),
        encode(image[:28], "PNG", mode="P"),
        encode(image[5:, :29], "JPEG", mode="CMYK"),
        encode(grey, "JPEG"),
        encode(grey[:, 1:], "PNG"),
        encode(grey[1:].astype("uint16") * 256 + grey[:-1], "PNG"),
        encode(photograph(300, 211, 4), "JPEG", subsampling=1),
    ]


def expected(model, images, image_size):
    preprocessing = model.get_layer("preprocessing")
    batch = [prepare_image(image, image_size, preprocessing) for image in images]
    return model.predict(np.stack(batch), verbose=0)


def softmax(logits):
    exponential = np.exp(logits - logits.max(-1, keepdims=True).astype("float64"))
    return exponential / exponential.sum(-1, keepdims=True)


def signature(folder, name="serving_default"):
    loaded = tf.saved_model.load(str(folder))
    run = loaded.signatures[name]
    # The signature does not keep the variables of the loaded object alive.
    run.loaded = loaded
    return run


POLICIES = [
    {"crop_mode": "center", "crop_fraction": 0.875, "interpolation": "bicubic"},
    {"crop_mode": "center", "crop_fraction": 1.0, "interpolation": "bilinear"},
    {"crop_mode": "center", "crop_fraction": 0.9, "interpolation": "nearest"},
    {"crop_mode": "squash", "crop_fraction": 1.0, "interpolation": "bilinear"},
    {"crop_mode": "squash", "crop_fraction": 0.8, "interpolation": "bicubic"},
]


@pytest.mark.parametrize(
    "policy", slow_except(POLICIES, POLICIES[:1]), ids=lambda p: "-".join(map(str, p.values()))
)
@pytest.mark.parametrize(
    "image_size",
    [
        pytest.param((16, 16), id="square", marks=pytest.mark.slow),
        pytest.param((12, 20), id="wide"),
    ],
)
def test_both_signatures_give_the_numbers_of_the_model(tmp_path, policy, image_size):
    model = small_model(image_size, **policy)
    folder = export_saved_model(model, tmp_path / "pets", class_names=NAMES)
    assert folder == tmp_path / "pets" / "1"

    files = mixed_files()
    logits = expected(model, map(decode_image, files), image_size)
    outputs = signature(folder)(image_bytes=tf.constant(files))
    outputs = {name: value.numpy() for name, value in outputs.items()}
    assert set(outputs) == {"probabilities", "logits", "classes", "scores", "error"}
    assert not any(outputs["error"])
    assert all(len(value) == len(files) for value in outputs.values())
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(outputs["probabilities"], softmax(logits), atol=1e-5)
    order = np.argsort(-logits, axis=-1)[:, :5]
    assert [[name.decode() for name in row] for row in outputs["classes"]] == [
        [NAMES[index] for index in row] for row in order
    ]
    np.testing.assert_array_equal(
        outputs["scores"], np.take_along_axis(outputs["probabilities"], order, axis=-1)
    )

    pixels = np.stack([photograph(37, 29, seed) for seed in range(2)])
    outputs = signature(folder, "pixels")(pixels=tf.constant(pixels))
    assert set(outputs) == {"probabilities", "logits", "classes", "scores"}
    logits = expected(model, pixels, image_size)
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(outputs["probabilities"], softmax(logits), atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model and the folder of its export."""
    model = small_model()
    return model, export_saved_model(model, tmp_path_factory.mktemp("pets"), class_names=NAMES)


def test_the_batch_may_have_any_size(exported):
    _, folder = exported
    serve, files = signature(folder), mixed_files()
    together = serve(image_bytes=tf.constant(files))["logits"].numpy()
    for index, file in enumerate(files):
        alone = serve(image_bytes=tf.constant([file]))["logits"].numpy()
        np.testing.assert_allclose(alone, together[index : index + 1], atol=1e-5)
    none = serve(image_bytes=tf.constant([], tf.string))
    assert none["probabilities"].shape == (0, len(NAMES)) and none["classes"].shape == (0, 5)


CONSUMER = '''
import json, sys

class Without:
    """A finder that finds everything but keras and keras_vit."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ("keras", "tf_keras", "keras_vit"):
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
import tensorflow as tf

for name in ("keras", "keras_vit"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(name + " could be imported")
model = tf.saved_model.load(sys.argv[1])
files = tf.constant([open(name, "rb").read() for name in sys.argv[2:]])
outputs = model.signatures["serving_default"](image_bytes=files)
print(json.dumps({
    "probabilities": outputs["probabilities"].numpy().tolist(),
    "classes": [[name.decode() for name in row] for row in outputs["classes"].numpy()],
    "variables": len(model.weights),
}))
'''


def test_a_process_without_keras_and_keras_vit_can_serve_it(tmp_path, exported):
    model, folder = exported
    files = mixed_files()
    for index, file in enumerate(files):
        (tmp_path / str(index)).write_bytes(file)
    result = subprocess.run(
        [sys.executable, "-c", CONSUMER, folder, *(tmp_path / str(i) for i in range(len(files)))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    logits = expected(model, map(decode_image, files), (12, 20))
    np.testing.assert_allclose(answer["probabilities"], softmax(logits), atol=1e-5)
    assert [row[0] for row in answer["classes"]] == [NAMES[i] for i in logits.argmax(-1)]
    assert answer["variables"] == len(model.weights)


def test_what_is_written_suits_tensorflow_serving(tmp_path):
    """No function to compile, batch first everywhere, serve tag, the weights and no other state."""
    model = small_model()
    # The compiled training step must not leak into the exported graph.
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    folder = export_saved_model(model, tmp_path, class_names=NAMES)

    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    (graph,) = saved.meta_graphs
    assert list(graph.meta_info_def.tags) == ["serve"]
    for function in graph.graph_def.library.function:
        assert not function.attr["_XlaMustCompile"].b
        assert not any(node.attr["_XlaMustCompile"].b for node in function.node_def)
    signatures = {"serving_default", "pixels", "classify", "embed"}
    assert graph.signature_def.keys() - {"__saved_model_init_op"} == signatures
    for name in signatures:
        definition = graph.signature_def[name]
        method = "classify" if name == "classify" else "predict"
        assert definition.method_name == f"tensorflow/serving/{method}"
        for tensor in (*definition.inputs.values(), *definition.outputs.values()):
            assert tensor.tensor_shape.dim[0].size == -1
    inputs = graph.signature_def["serving_default"].inputs
    assert list(inputs) == ["image_bytes"]
    assert list(graph.signature_def["pixels"].inputs) == ["pixels"]

    written = {
        name: shape
        for name, shape in tf.train.list_variables(str(folder / "variables" / "variables"))
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    }
    assert sorted(map(tuple, written.values())) == sorted(
        tuple(variable.shape) for variable in model.weights
    )


# Each kind of pooling, of tokens and of attention, since exports leave out what is not read.
TRANSFORMERS = {
    "token": {},
    "softmax": {"classifier_activation": "softmax"},
    "registers_and_layer_scale": {"register_tokens": 2, "layer_scale": 0.3, "gated_mlp": True},
    "rope_and_norms": {"positions": "rope", "qk_norm": True},
    "relative_positions": {"positions": "relative"},
    "distilled": {"distillation_token": True},
    "distilled_softmax": {"distillation_token": True, "classifier_activation": "softmax"},
    "avg": {"pooling": "avg", "pool_norm": True},
    "token+avg": {"pooling": "token+avg"},
    "map": {"pooling": "map"},
    "representation": {"representation_size": 16},
}


def small_transformer(**switches):
    config = VisionTransformerConfig(
        **{
            "patch_size": 4,
            "hidden_size": 32,
            "depth": 2,
            "mlp_dim": 64,
            "num_heads": 4,
            "image_size": (12, 20),
            "num_classes": len(NAMES),
            "dropout": 0.3,
            "attention_dropout": 0.3,
            "drop_path": 0.3,
            **switches,
        }
    )
    model = vision_transformer(config)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.3, weight.shape) for weight in model.get_weights()])
    return model


@pytest.mark.parametrize("name", slow_except(TRANSFORMERS, fast=["distilled"]))
def test_a_vision_transformer(tmp_path, name):
    switches = TRANSFORMERS[name]
    model = small_transformer(**switches)
    files = mixed_files()
    folder = export_saved_model(
        model, tmp_path, class_names=NAMES, attention=True, warmup_batch_sizes=()
    )
    loaded = tf.saved_model.load(str(folder))
    outputs = loaded.signatures["serving_default"](image_bytes=tf.constant(files))
    probabilities = expected(model, map(decode_image, files), (12, 20))
    if not switches.get("classifier_activation"):
        probabilities = softmax(probabilities)
    assert np.ptp(probabilities) > 0.1
    np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=1e-5)
    np.testing.assert_allclose(softmax(outputs["logits"].numpy()), probabilities, atol=1e-5)

    images = [decode_image(file) for file in files]
    looking = attention_rollout(model)
    attention = loaded.signatures["attention"](image_bytes=tf.constant([*files, b"bad"]))
    np.testing.assert_allclose(
        attention["attention"][:-1], expected(looking, images, (12, 20)), atol=1e-5
    )
    assert not attention["attention"][-1].numpy().any()
    assert [bool(error) for error in attention["error"].numpy()] == [False] * len(files) + [True]

    embedding = loaded.signatures["embed"](image_bytes=tf.constant([*files, b"bad"]))
    features = [
        expected(keras.Model(model.input, model.get_layer(head).input), images, (12, 20))
        for head in ("head", "head_distillation")
        if head in {layer.name for layer in model.layers}
    ]
    np.testing.assert_allclose(
        embedding["embedding"][:-1], np.mean(features, axis=0), rtol=1e-4, atol=1e-4
    )
    assert not embedding["embedding"][-1].numpy().any()
    assert set(embedding) == {"embedding", "error"} and embedding["error"].numpy()[-1]


def with_a_second_branch():
    model = small_transformer(preprocessing="imagenet")
    x = keras.layers.Conv2D(8, 3, activation="relu")(model.get_layer("preprocessing").output)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Concatenate()([model.get_layer("pool").output, x])
    return keras.Model(model.input, keras.layers.Dense(len(NAMES))(x))


def with_padding():
    model = small_transformer(preprocessing="imagenet")
    layers = [type(layer).from_config(layer.get_config()) for layer in model.layers[1:]]
    x = images = keras.Input((4, 12, 3))
    for layer in [layers[0], keras.layers.ZeroPadding2D(4), *layers[1:]]:
        x = layer(x)
    padded = keras.Model(images, x)
    padded.set_weights(model.get_weights())
    return padded


@pytest.mark.parametrize(
    "build", slow_except([with_a_second_branch, with_padding], fast=[with_padding])
)
def test_scaled_pixels_that_others_read_too(tmp_path, build):
    model = build()
    folder = export_saved_model(model, tmp_path, class_names=NAMES, warmup_batch_sizes=())
    pixels = np.stack([photograph(37, 29, seed) for seed in range(2)])
    outputs = signature(folder, "pixels")(pixels=tf.constant(pixels))
    logits = expected(model, pixels, model.input_shape[1:3])
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-4)


def test_attention_needs_a_vision_transformer(tmp_path):
    with pytest.raises(ValueError, match="Vision Transformer built by keras_vit"):
        export_saved_model(small_model(), tmp_path / "x", class_names=NAMES, attention=True)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_bfloat16_on_request(tmp_path):
    model = small_transformer()
    folder = export_saved_model(model, tmp_path, class_names=NAMES, precision="bfloat16")
    written = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    types = set(written.get_variable_to_dtype_map().values()) - {tf.string}
    # The head stays float32.
    assert types == {tf.bfloat16, tf.float32}
    files = mixed_files()
    outputs = signature(folder)(image_bytes=tf.constant(files))
    assert outputs["logits"].dtype == outputs["probabilities"].dtype == tf.float32
    logits = expected(model, map(decode_image, files), (12, 20))
    assert np.abs(outputs["logits"] - logits).max() < 0.03 * np.abs(logits).max()
    assert np.abs(outputs["logits"] - logits).max() > 0
    # The model that was given is as it was.
    assert {weight.dtype for weight in model.weights} == {"float32"}


def test_the_heads_of_a_distilled_model_stay_float32(tmp_path):
    model = small_transformer(distillation_token=True)
    folder = export_saved_model(
        model, tmp_path, class_names=NAMES, precision="bfloat16", warmup_batch_sizes=()
    )
    outputs = signature(folder, "pixels")(pixels=photograph(12, 20, 0)[None])
    logits = outputs["logits"]
    assert (tf.cast(tf.cast(logits, tf.bfloat16), tf.float32) != logits).numpy().any()
    types = [weight.dtype for weight in signature(folder).loaded.weights]
    assert types.count(tf.float32) == 4 and set(types) == {tf.float32, tf.bfloat16}


def adapted_transformer(**switches):
    model = small_transformer(**switches)
    dense = model.get_layer("block_0").mlp.expansion
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.ones(dense.lora_kernel_b.shape))
    return model


def quantized_transformer():
    return quantize_int8(small_transformer(depth=1))


@pytest.mark.slow
def test_adapters_that_are_not_merged(tmp_path):
    model = adapted_transformer()
    with pytest.raises(ValueError, match="adapters .LoRA. that are not merged"):
        export_saved_model(model, tmp_path, class_names=NAMES, precision="bfloat16")
    folder = export_saved_model(model, tmp_path, class_names=NAMES)
    files = mixed_files()[:3]
    logits = expected(model, map(decode_image, files), (12, 20))
    outputs = signature(folder)(image_bytes=tf.constant(files))
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_eight_bits_on_request(tmp_path):
    model = small_transformer()
    folder = export_saved_model(model, tmp_path, class_names=NAMES, precision="int8-dynamic")
    written = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    assert tf.int8 in written.get_variable_to_dtype_map().values()
    files = mixed_files()
    logits = expected(model, map(decode_image, files), (12, 20))
    outputs = signature(folder)(image_bytes=tf.constant(files))
    assert 0 < np.abs(outputs["logits"] - logits).max() < 0.1 * np.abs(logits).max()


def test_class_names_are_an_asset(tmp_path):
    folder = export_saved_model(small_model(), tmp_path, class_names=NAMES)
    labels = folder / "assets" / "class_names.txt"
    assert labels.read_text("utf-8").splitlines() == list(NAMES)
    # The graph reads them there.
    labels.write_text("".join(f"{name.upper()}\n" for name in NAMES), "utf-8")
    outputs = signature(folder)(image_bytes=tf.constant(mixed_files()[:1]))
    names = {name.decode() for name in outputs["classes"][0].numpy()}
    assert names < {name.upper() for name in NAMES}


def with_last_layer(layer):
    model = small_model()
    return keras.Model(model.input, layer(model.output))


SOFTMAXES = {
    "activation": lambda: small_model(activation="softmax"),
    "Activation": lambda: with_last_layer(keras.layers.Activation("softmax")),
    "Softmax": lambda: with_last_layer(keras.layers.Softmax()),
}


@pytest.mark.parametrize("softmax", slow_except(SOFTMAXES, fast=["activation", "Softmax"]))
def test_softmax_head_gives_the_logits_before_it(tmp_path, softmax):
    linear, softmaxed = small_model(), SOFTMAXES[softmax]()
    softmaxed.set_weights(linear.get_weights())
    folder = export_saved_model(softmaxed, tmp_path, class_names=NAMES)
    pixels = np.stack([photograph(30, 40, 1)])
    outputs = signature(folder, "pixels")(pixels=tf.constant(pixels))
    logits = expected(linear, pixels, (12, 20))
    probabilities = expected(softmaxed, pixels, (12, 20))
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=1e-5)
    # The model itself is left as it is.
    np.testing.assert_array_equal(expected(softmaxed, pixels, (12, 20)), probabilities)


def sequential(base):
    return keras.Sequential([keras.Input((12, 20, 3)), base, keras.layers.Dense(7)])


def functional(base):
    images = keras.Input((12, 20, 3))
    x = keras.layers.Dropout(0.5)(base(images, training=False))
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(images, keras.layers.Dense(7, "softmax")(x))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize("build", slow_except([sequential, functional], fast=[functional]))
def test_a_head_on_a_model_that_is_called_as_a_layer(tmp_path, build):
    base = small_transformer(depth=1, include_top=False)
    model = build(base)
    folder = export_saved_model(model, tmp_path, class_names=NAMES, warmup_batch_sizes=())
    image = photograph(30, 40, 1)
    outputs = signature(folder, "pixels")(pixels=tf.constant(image[None]))
    prepared = prepare_image(image, (12, 20), base.get_layer("preprocessing"))
    answer = model.predict(prepared[None], verbose=0)
    name = "logits" if build is sequential else "probabilities"
    np.testing.assert_allclose(outputs[name], answer, rtol=1e-4, atol=1e-5)


def test_mixed_precision_keeps_float32_outputs(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_model()
    finally:
        keras.config.set_dtype_policy("float32")
    folder = export_saved_model(model, tmp_path, class_names=NAMES, warmup_batch_sizes=())
    assert json.loads((folder / "signatures.json").read_text())["precision"] == "mixed_bfloat16"
    pixels = np.stack([photograph(12, 20, 1)])
    outputs = signature(folder, "pixels")(pixels=tf.constant(pixels))
    assert outputs["logits"].dtype == tf.float32
    # bfloat16 keeps 8 bits; the graphs are the same, their fusion may differ.
    np.testing.assert_allclose(
        outputs["logits"], expected(model, pixels, (12, 20)), rtol=2e-2, atol=1e-2
    )


@pytest.mark.slow
def test_fewer_classes_than_top(tmp_path):
    folder = export_saved_model(small_model(classes=2), tmp_path, class_names=["a", "b"])
    outputs = signature(folder)(image_bytes=tf.constant(mixed_files()[:3]))
    assert outputs["classes"].shape == outputs["scores"].shape == (3, 2)


def png_of_size(height, width):
    """A PNG whose header promises a picture that does not follow."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I4s", 13, b"IHDR") + header
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", zlib.crc32(chunk[4:]))


def with_texts(png, kind, count, length=1000):
    """A PNG with compressed texts of that many bytes each."""
    text = zlib.compress(b" " * length, 9)
    content = kind + {b"zTXt": b"key\0\0", b"iTXt": b"key\0\1\0\0\0"}[kind] + text
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:33] + count * chunk + png[33:]


def with_scans(count, behind=b""):
    """A progressive JPEG whose last scan is repeated, and what stands behind it."""
    jpeg = encode(photograph(12, 20, 0), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + (count - jpeg.count(b"\xff\xda")) * scan + jpeg[-2:] + behind


def bad_files():
    """Files that cannot be taken, and a part of the error each gets."""
    jpeg, png = mixed_files()[0], mixed_files()[2]
    no_header = jpeg[:20]
    # A chunk that decoders pass over, where a smaller size is looked for.
    large = encode(photograph(90, 90, 0), "PNG")
    unknown = b"abCd" + large[16:29].replace(struct.pack(">II", 90, 90), struct.pack(">II", 9, 9))
    feigned = struct.pack(">I", 13) + unknown + struct.pack(">I", zlib.crc32(unknown))
    feigned = large[:8] + feigned + large[8:]
    assert decode_image(feigned).shape == (90, 90, 3)
    return [
        (b"", "empty"),
        (b"no image", "neither a JPEG nor a PNG"),
        (encode(photograph(12, 20, 0), "BMP"), "neither a JPEG nor a PNG"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        (no_header, "cannot be decoded"),
        (jpeg[: len(jpeg) // 2], "cannot be decoded"),
        (png[: len(png) // 2], "cannot be decoded"),
        (png[:20], "cannot be decoded"),
        (png[:16] + png[20:], "pixels: at most 4096"),
        (png[:60] + bytes(len(png) - 60), "cannot be decoded"),
        (png_of_size(60_000, 60_000), "60000 x 60000 pixels: at most 4096"),
        (png_of_size(2**31 - 1, 2**31 - 1), "2147483647 x 2147483647 pixels"),
        (png_of_size(2**32 - 1, 2), "4294967295 x 2 pixels"),
        (png_of_size(0, 5), "0 x 5 pixels"),
        (feigned, "does not begin with its size"),
        (png[:10], "does not begin with its size"),
        (png_of_size(2, 20_000), "2 x 20000 pixels: at most 4096 and no side above 16384"),
        (encode(photograph(65, 64, 0), "JPEG"), "65 x 64 pixels: at most 4096"),
        (encode(photograph(40, 40, 0), "BMP") * 50, "bytes: at most 50000"),
        (with_scans(101), "more than 100 scans in the JPEG"),
        (with_texts(png, b"zTXt", 17), "more than 16 zTXt and iTXt texts in the PNG"),
        (with_texts(with_texts(png, b"iTXt", 8), b"zTXt", 9), "more than 16 zTXt and iTXt texts"),
    ]


LIMITS = ImageLimits(max_bytes=50_000, max_pixels=4096)


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """A model and the folder of its export with limits."""
    model, folder = small_model(), tmp_path_factory.mktemp("limited")
    return model, export_saved_model(model, folder, class_names=NAMES, limits=LIMITS)


def test_a_bad_image_does_not_hurt_its_neighbours(limited):
    _, folder = limited
    serve, good = signature(folder), mixed_files()[:4]
    files, errors = map(list, zip(*bad_files(), strict=True))
    mixed = [*good[:2], *files, *good[2:]]
    outputs = {name: value.numpy() for name, value in serve(image_bytes=tf.constant(mixed)).items()}
    for text, error in zip(errors, outputs["error"][2:-2], strict=True):
        assert text in error.decode()
    bad = slice(2, -2)
    assert not outputs["scores"][bad].any() and not outputs["probabilities"][bad].any()
    assert not outputs["logits"][bad].any() and not any(outputs["classes"][bad].ravel())

    alone = {name: value.numpy() for name, value in serve(image_bytes=tf.constant(good)).items()}
    rows = [0, 1, len(mixed) - 2, len(mixed) - 1]
    for name, value in alone.items():
        if value.dtype == object:
            np.testing.assert_array_equal(outputs[name][rows], value)
        else:
            np.testing.assert_allclose(outputs[name][rows], value, atol=1e-5)
    # None of them good: the batch is answered all the same.
    outputs = serve(image_bytes=tf.constant(files))
    assert all(outputs["error"].numpy()) and not outputs["probabilities"].numpy().any()


def test_what_is_taken_of_texts_and_scans(limited):
    _, folder = limited
    png = mixed_files()[2]
    pngs = [png, with_texts(png, b"zTXt", 16), with_texts(png, b"iTXt", 16)]
    # A film behind a picture holds the two bytes of the marker by chance.
    jpegs = [with_scans(100), with_scans(100, 1000 * b"\xff\xda\x01")]
    outputs = signature(folder)(image_bytes=tf.constant(pngs + jpegs))
    assert outputs["error"].numpy().tolist() == [b""] * 5
    np.testing.assert_array_equal(outputs["logits"][:2], outputs["logits"][1:3])


def test_a_sound_export_with_limits_passes_its_checks(limited):
    _, folder = limited
    verdicts = {verdict.check: verdict for verdict in check_saved_model(folder)}
    assert all(verdict.passed and verdict.applies for verdict in verdicts.values()), verdicts
    assert "pixels (in two calls)" in verdicts["mixed sizes"].detail


def test_a_picture_at_its_limits_is_taken(tmp_path):
    file = encode(photograph(64, 64, 0), "PNG")
    limits = ImageLimits(max_bytes=len(file), max_pixels=64 * 64)
    folder = export_saved_model(small_model(), tmp_path, class_names=NAMES, limits=limits)
    outputs = signature(folder)(image_bytes=tf.constant([file, file + b"\0"]))
    assert outputs["error"].numpy().tolist() == [
        b"",
        f"{len(file) + 1} bytes: at most {len(file)} are taken".encode(),
    ]
    assert outputs["scores"].numpy()[0, 0] > 0


def test_pixels_have_limits_too(limited):
    model, folder = limited
    ask = signature(folder, "pixels")
    for size in [(65, 64), (1, 20_000), (0, 5)]:
        with pytest.raises(tf.errors.InvalidArgumentError, match="found .rows, columns"):
            ask(pixels=tf.zeros((1, *size, 3), tf.uint8))
    # Lines that are too long to be resized for all images at once.
    long = np.stack([photograph(1, 4096, seed) for seed in range(20)])
    logits = ask(pixels=tf.constant(long))["logits"].numpy()
    np.testing.assert_allclose(logits, expected(model, long, (12, 20)), atol=1e-4)


@pytest.mark.parametrize(
    "limits",
    [{"max_pixels": 12 * 20}, {"max_pixels": 150, "max_bytes": 700}],
    ids=["the size of the model", "less than that"],
)
def test_warm_up_and_checks_keep_to_the_limits(tmp_path, limits):
    folder = export_saved_model(
        small_model(),
        tmp_path,
        class_names=NAMES,
        limits=ImageLimits(**limits),
        on_error="fail",
    )
    assert [v for v in check_saved_model(folder) if not v.passed] == []
    asked = []
    for request in read_warmup_requests(folder / WARMUP_FILE):
        inputs = {name: tf.constant(array) for name, array in request.inputs.items()}
        outputs = signature(folder, request.signature)(**inputs)
        asked.append((request.signature, len(outputs.popitem()[1])))
    signatures = ("serving_default", "classify", "embed", "pixels")
    assert asked == [(name, size) for name in signatures for size in (1, 8)]


def test_strict_mode_fails_the_call(tmp_path):
    folder = export_saved_model(
        small_model(), tmp_path, class_names=NAMES, limits=LIMITS, on_error="fail"
    )
    serve, good = signature(folder), mixed_files()[0]
    assert serve(image_bytes=tf.constant([good]))["error"].numpy().tolist() == [b""]
    for file, text in bad_files():
        match = None if text == "cannot be decoded" else text
        with pytest.raises(tf.errors.InvalidArgumentError, match=match):
            serve(image_bytes=tf.constant([good, file]))
    # The model goes on.
    assert serve(image_bytes=tf.constant([good]))["scores"].numpy()[0, 0] > 0


def example(**features):
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
                for name, value in features.items()
            }
        )
    ).SerializeToString()


def test_classify_takes_examples(limited):
    _, folder = limited
    files = mixed_files()[:3]
    inputs = [example(**{"image/encoded": [file], "image/format": [b"any"]}) for file in files]
    bad = [example(), example(**{"image/encoded": [b"no image"]}), b"no example"]
    outputs = signature(folder, "classify")(inputs=tf.constant([*inputs, *bad]))
    assert set(outputs) == {"classes", "scores"}
    expected_outputs = signature(folder)(image_bytes=tf.constant(files))
    np.testing.assert_array_equal(outputs["classes"][:3], expected_outputs["classes"])
    np.testing.assert_allclose(outputs["scores"][:3], expected_outputs["scores"], atol=1e-5)
    assert not outputs["scores"].numpy()[3:].any()
    errors = outputs["classes"].numpy()[3:]
    assert [error[0].split(b":")[0].split(b" ")[0] for error in errors] == [
        *(b"no", b"neither", b"no")
    ]
    assert not any(errors[:, 1:].ravel())


sizes = st.integers(1, 60)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    source=st.tuples(sizes, sizes),
    image_size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    crop_fraction=st.floats(0.5, 1.0),
    crop_mode=st.sampled_from(["center", "squash"]),
)
def test_the_graph_crops_where_evaluation_geometry_says(
    source, image_size, crop_fraction, crop_mode
):
    # Pixels that hold their own position show where nearest took them from.
    policy = ImagePreprocessing(
        crop_fraction=crop_fraction, crop_mode=crop_mode, interpolation="nearest"
    )
    height, width, top, left = evaluation_geometry(
        *source, image_size, crop_fraction=crop_fraction, crop_mode=crop_mode
    )
    row, column = np.mgrid[: source[0], : source[1]].astype("uint8")
    image = np.stack([row, column, column], axis=-1)
    cropped = prepare(tf.constant(image[None]), image_size, policy)[0].numpy()
    rows = (2 * (np.arange(image_size[0]) + top) + 1) * source[0] // (2 * height)
    columns = (2 * (np.arange(image_size[1]) + left) + 1) * source[1] // (2 * width)
    np.testing.assert_array_equal(cropped[..., 0], np.tile(rows[:, None], (1, image_size[1])))
    np.testing.assert_array_equal(cropped[..., 1], np.tile(columns, (image_size[0], 1)))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_the_graph_resizes_as_prepare_image(interpolation):
    """Also for noise of full contrast, the worst case for weights that are not exact."""
    policy = ImagePreprocessing(crop_fraction=0.9, interpolation=interpolation)
    rng = np.random.default_rng(0)
    # The largest is resized in parts.
    for source in [(500, 375), (64, 48), (31, 200), (5, 3), (1400, 2100)]:
        image = rng.integers(0, 2, (*source, 3), dtype="uint8") * np.uint8(255)
        here = prepare(tf.constant(image[None]), (64, 48), policy)[0].numpy()
        assert here.min() >= 0 and here.max() <= 255
        np.testing.assert_allclose(here, prepare_image(image, (64, 48), policy), atol=5e-4)


def test_versions_count_up_and_are_never_overwritten(tmp_path):
    model = small_model()
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "mine").write_text("kept")
    (tmp_path / "notes").mkdir()
    assert export_saved_model(model, tmp_path, class_names=NAMES).name == "8"
    assert export_saved_model(model, tmp_path, class_names=NAMES, version=3).name == "3"
    with pytest.raises(FileExistsError, match="7 exists"):
        export_saved_model(model, tmp_path, class_names=NAMES, version=7)
    folders = sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir())
    assert folders == ["3", "7", "8", "notes"]
    assert (tmp_path / "7" / "mine").read_text() == "kept"
    # Readable by a server that runs as another user, as far as the umask of this one allows.
    (tmp_path / "new").mkdir()
    assert (tmp_path / "8").stat().st_mode == (tmp_path / "new").stat().st_mode


def no_preprocessing():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(7)])


def test_a_preprocessing_layer_is_added_as_the_error_says(tmp_path):
    bare = small_transformer(include_preprocessing=False)
    with pytest.raises(ValueError, match="anew with `include_preprocessing=True`") as raised:
        export_saved_model(bare, tmp_path, class_names=NAMES)
    assert "anew.set_weights(model.get_weights())" in str(raised.value)
    anew = vision_transformer(dataclasses.replace(config_of(bare), include_preprocessing=True))
    anew.set_weights(bare.get_weights())
    folder = export_saved_model(anew, tmp_path, class_names=NAMES, warmup_batch_sizes=())
    image = photograph(12, 20, 0)
    outputs = signature(folder, "pixels")(pixels=tf.constant(image[None]))
    prepared = prepare_image(image, (12, 20), anew.get_layer("preprocessing"))
    logits = bare.predict(prepared[None] / 127.5 - 1, verbose=0)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-4)


def unknown_size():
    x = images = keras.Input((None, None, 3))
    x = ImagePreprocessing(name="preprocessing")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(7)(x))


def augmented_before():
    base = small_transformer(depth=1, include_top=False)
    flip = keras.layers.RandomFlip()
    return keras.Sequential([keras.Input((12, 20, 3)), flip, base, keras.layers.Dense(7)])


def ends_in_operation():
    model = small_model()
    return keras.Model(model.input, keras.ops.softmax(model.output))


def mean_of_softmaxes():
    model = small_model(activation="softmax")
    second = keras.layers.Dense(len(NAMES), "softmax", name="second")(model.layers[-1].input)
    return keras.Model(model.input, keras.layers.Average()([model.output, second]))


def mean_of_models():
    """Their head is called, and merged with logits before the mean."""
    model = small_model()
    pooled = model.layers[-1].input
    features = keras.Input(pooled.shape[1:])
    head = keras.Model(features, keras.layers.Dense(7, "sigmoid", name="rated")(features))
    both = keras.layers.Maximum()([model.output, head(pooled)])
    return keras.Model(model.input, keras.layers.Average()([model.output, both]))


def cast_softmax():
    model = small_model(activation="softmax")
    cast = keras.layers.Activation("linear", dtype="float32")
    return keras.Model(model.input, cast(model.output))


def token_outputs():
    model = small_model()
    return keras.Model(model.input, model.get_layer("patches").output)


def compiled_layer():
    @keras.saving.register_keras_serializable(package="test_export")
    class Compiled(keras.layers.Layer):
        def call(self, x):
            return tf.function(lambda x: x * 2, jit_compile=True)(x)

    images = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(Compiled()(ImagePreprocessing(name="preprocessing")(images)))
    return keras.Model(images, keras.layers.Dense(7)(x))


@pytest.mark.parametrize(
    "build, arguments, message",
    [
        (small_model, {"class_names": NAMES[:-1]}, "7 classes. Received 6 names"),
        (small_model, {"class_names": "abcdefg"}, "sequence of non-empty strings"),
        (small_model, {"class_names": range(7)}, "sequence of non-empty strings"),
        (small_model, {"class_names": [*NAMES[:6], "two\nlines"]}, "must be one line"),
        (
            small_model,
            {"precision": "int8"},
            "`precision` must be one of float32, bfloat16, int8-dynamic",
        ),
        (small_model, {"token_parts": 0}, "`token_parts` must be a positive integer"),
        (small_model, {"on_error": "ignore"}, "`on_error` must be one of row, fail"),
        (small_model, {"warmup_batch_sizes": [0]}, "must be positive integers"),
        (small_model, {"limits": ImageLimits(max_bytes=50)}, "file of one pixel has"),
        (small_model, {"top": 0}, "`top` must be a positive integer"),
        (small_model, {"version": 0}, "`version` must be a positive integer"),
        (small_model, {"version": "1"}, "`version` must be a positive integer"),
        (no_preprocessing, {}, "no `preprocessing` layer"),
        (unknown_size, {}, "known height and width"),
        (lambda: small_model(activation="sigmoid"), {}, "its activation 'sigmoid'"),
        (augmented_before, {}, "on something else than its images"),
        (lambda: small_model(classes=1), {"class_names": ["yes"]}, "Train it with two classes"),
        (quantized_transformer, {"precision": "bfloat16"}, "already quantised .int8."),
        (adapted_transformer, {"precision": "bfloat16"}, "Save and load it, which merges them"),
        (ends_in_operation, {}, "whose activation is None"),
        (mean_of_softmaxes, {}, "must be given logits.*whose activation is 'softmax'"),
        (mean_of_models, {}, "the probabilities of 'rated', whose activation is 'sigmoid'"),
        (cast_softmax, {}, "the probabilities of 'head', whose activation is 'softmax'"),
        (token_outputs, {}, "one output of shape"),
        (compiled_layer, {}, "jit_compile=True"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_writing(tmp_path, build, arguments, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        export_saved_model(model, tmp_path / "out", **{"class_names": NAMES, **arguments})
    assert not (tmp_path / "out").exists()


def test_a_warm_up_that_the_servers_batching_refuses_is_not_exported(tmp_path):
    (tmp_path / "batching_parameters.txt").write_text("max_batch_size { value: 4 }")
    with pytest.raises(ValueError, match="Raise it there, or warm up smaller batches"):
        export_saved_model(small_model(), tmp_path, class_names=NAMES, warmup_batch_sizes=(1, 8))
    assert [entry.name for entry in tmp_path.iterdir()] == ["batching_parameters.txt"]


def test_a_path_that_is_a_file_is_refused(tmp_path):
    version = export_saved_model(small_model(), tmp_path / "x", class_names=NAMES)
    with pytest.raises(FileExistsError, match="is an exported version itself"):
        export_saved_model(small_model(), version, class_names=NAMES)
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        export_saved_model(small_model(), tmp_path / "out", class_names=NAMES)


def test_the_name_is_that_of_the_path_and_not_of_what_it_links_to(tmp_path, monkeypatch):
    (tmp_path / "disk2").mkdir()
    (tmp_path / "pets").symlink_to(tmp_path / "disk2")
    (tmp_path / "dogs").mkdir()
    monkeypatch.chdir(tmp_path / "dogs")
    for path, name in ((tmp_path / "pets", "pets"), (".", "dogs")):
        folder = export_saved_model(small_model(), path, class_names=NAMES, warmup_batch_sizes=())
        assert json.loads((folder / "signatures.json").read_text())["name"] == name
        assert f'base_path: "/models/{name}"' in (folder.parent / "models.config").read_text()


def test_another_backend_is_refused(tmp_path, monkeypatch):
    model = small_model()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=tensorflow"):
        export_saved_model(model, tmp_path / "out", class_names=NAMES)
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    save = tf.saved_model.save

    def full_disk(module, path, signatures):
        save(module, path, signatures=signatures)
        raise OSError("No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_saved_model(small_model(), tmp_path / "new" / "pets", class_names=NAMES)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "pets" / "4").mkdir(parents=True)
    with pytest.raises(OSError, match="No space left"):
        export_saved_model(small_model(), tmp_path / "pets", class_names=NAMES)
    assert [entry.name for entry in (tmp_path / "pets").iterdir()] == ["4"]


def test_a_full_disk_leaves_no_lock_and_no_version_without_the_servers_files(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_at_the_end(source, target):
        replace(source, target) if "batching" not in str(target) else full_disk()

    replace = os.replace
    # The last thing that is written to the lock.
    for name, failing in (("socket.gethostname", full_disk), ("os.replace", full_at_the_end)):
        with monkeypatch.context() as patched:
            patched.setattr(name, failing)
            with pytest.raises(OSError, match="No space left"):
                export_saved_model(small_model(), tmp_path / "pets", class_names=NAMES)
        assert list(tmp_path.iterdir()) == []


def test_exports_at_the_same_time_take_different_numbers(tmp_path, monkeypatch):
    save = tf.saved_model.save

    def export(version=None):
        return export_saved_model(
            small_model(), tmp_path, class_names=NAMES, version=version, warmup_batch_sizes=()
        )

    def beside_another(module, path, signatures):
        monkeypatch.setattr(tf.saved_model, "save", save)
        save(module, path, signatures=signatures)
        assert export(given) == tmp_path / "1"

    given = None
    monkeypatch.setattr(tf.saved_model, "save", beside_another)
    assert export() == tmp_path / "2"
    for version in (1, 2):
        folder = tmp_path / str(version)
        assert json.loads((folder / "signatures.json").read_text())["version"] == version
        assert f"version {version}\n" in (folder / "README.md").read_text()

    shutil.rmtree(tmp_path / "1")
    given = 1
    monkeypatch.setattr(tf.saved_model, "save", beside_another)
    with pytest.raises(FileExistsError, match="1 exists, and a version is never overwritten"):
        export(version=1)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"1", "2"}


def test_a_version_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    fsync, rename = os.fsync, os.rename
    on_disk, at_rename = set(), set()

    def syncing(descriptor):
        fsync(descriptor)
        on_disk.add(os.fstat(descriptor).st_ino)

    def renaming(partial, destination):
        at_rename.update(on_disk)
        on_disk.clear()
        rename(partial, destination)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    folder = export_saved_model(small_model(), tmp_path, class_names=NAMES)
    written = (tmp_path / "models.config", folder, *folder.rglob("*"))
    assert {path.stat().st_ino for path in written} <= at_rename
    assert on_disk == {tmp_path.stat().st_ino}


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path, monkeypatch):
    save = tf.saved_model.save
    killed = tmp_path / ".7.partial-0123" / "variables"
    killed.mkdir(parents=True)
    (killed / "variables.index").write_text("half of it")

    def during_another(module, path, signatures):
        monkeypatch.setattr(tf.saved_model, "save", save)
        save(module, path, signatures=signatures)
        export(version=2)

    def export(version):
        export_saved_model(
            small_model(), tmp_path, class_names=NAMES, version=version, warmup_batch_sizes=()
        )

    monkeypatch.setattr(tf.saved_model, "save", during_another)
    export(version=1)
    assert {entry.name for entry in tmp_path.iterdir() if entry.is_dir()} == {"1", "2"}
    assert not list(tmp_path.glob(".*"))
