"""keras-hub's and vit-keras' HDF5 files: exact values, what they tell, and what is refused."""

import json
import os

import h5py
import keras
import numpy as np
import pytest
from parameters import slow_except, slow_on_jax
from reference_forward import google_forward, timm_forward

import keras_vit
from keras_vit.checkpoints import CheckpointError, inspect_checkpoint
from keras_vit.checkpoints.h5_files import open_h5

TOLERANCE = 2e-5
WIDTH, HEADS, DEPTH, CLASSES, PATCH = 16, 2, 2, 5, 4


def assert_close(found, expected):
    found, expected = (keras.ops.convert_to_numpy(x) for x in (found, expected))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def images(size=(16, 16)):
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")


def write_h5(path, tensors, attributes=None):
    """Writes tensors and attributes by their paths in the file."""
    with h5py.File(path, "w") as file:
        for name, tensor in tensors.items():
            file[name] = tensor
        for group, name in (attributes or {}).items():
            file.require_group(group).attrs["name"] = name
    return path


# Layouts written by hand, so that the tests need neither library.


def timm_names(index):
    """timm's name of each linear layer and norm of a block, and of the rest."""
    block = f"blocks.{index}"
    return {
        "norm_1": f"{block}.norm1",
        "query": f"{block}.attn.query",
        "key": f"{block}.attn.key",
        "value": f"{block}.attn.value",
        "out": f"{block}.attn.proj",
        "norm_2": f"{block}.norm2",
        "expansion": f"{block}.mlp.fc1",
        "projection": f"{block}.mlp.fc2",
    }


def random_parts(grid):
    """(layer, variable) → tensor, linear kernels as (inputs, outputs)."""
    rng = np.random.default_rng(3)
    shapes = {
        ("patches", "kernel"): (PATCH, PATCH, 3, WIDTH),
        ("patches", "bias"): (WIDTH,),
        ("class_token", ""): (1, 1, WIDTH),
        ("positions", ""): (1, grid[0] * grid[1] + 1, WIDTH),
        ("norm", "gamma"): (WIDTH,),
        ("norm", "beta"): (WIDTH,),
        ("head", "kernel"): (WIDTH, CLASSES),
        ("head", "bias"): (CLASSES,),
    }
    for index in range(DEPTH):
        for layer in timm_names(index):
            sides = {"expansion": (WIDTH, 32), "projection": (32, WIDTH)}.get(layer, (WIDTH, WIDTH))
            key = f"{index}/{layer}"
            if layer.startswith("norm"):
                shapes |= {(key, "gamma"): (WIDTH,), (key, "beta"): (WIDTH,)}
            else:
                shapes |= {(key, "kernel"): sides, (key, "bias"): sides[1:]}
    return {
        name: rng.normal(scale=0.3, size=shape).astype("float32") for name, shape in shapes.items()
    }


def as_timm(parts):
    """The parts under timm's names, for `timm_forward`."""
    tensors = {"cls_token": parts["class_token", ""], "pos_embed": parts["positions", ""]}
    tensors["patch_embed.proj.weight"] = parts["patches", "kernel"].transpose(3, 2, 0, 1)
    tensors["patch_embed.proj.bias"] = parts["patches", "bias"]
    names = {"norm": "norm", "head": "head"}
    for index in range(DEPTH):
        names |= {f"{index}/{part}": name for part, name in timm_names(index).items()}
    for (layer, variable), tensor in parts.items():
        if layer in names:
            kind = "weight" if variable in ("kernel", "gamma") else "bias"
            tensors[f"{names[layer]}.{kind}"] = tensor.T
    for index in range(DEPTH):
        for kind in ("weight", "bias"):
            attention = f"blocks.{index}.attn"
            joined = [
                tensors.pop(f"{attention}.{part}.{kind}") for part in ("query", "key", "value")
            ]
            tensors[f"{attention}.qkv.{kind}"] = np.concatenate(joined)
    return tensors


def as_google(parts):
    """The parts under Google's names, for `google_forward`."""
    size = WIDTH // HEADS
    tensors = {"cls": parts["class_token", ""]}
    tensors["Transformer/posembed_input/pos_embedding"] = parts["positions", ""]
    kinds = {"gamma": "scale", "beta": "bias", "kernel": "kernel", "bias": "bias"}
    names = {"patches": "embedding", "norm": "Transformer/encoder_norm", "head": "head"}
    for index in range(DEPTH):
        block = f"Transformer/encoderblock_{index}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        names |= {f"{index}/{part}": f"{attention}/{part}" for part in ("query", "key", "value")}
        names |= {f"{index}/out": f"{attention}/out", f"{index}/norm_1": f"{block}/LayerNorm_0"}
        names |= {f"{index}/norm_2": f"{block}/LayerNorm_2"}
        names |= {f"{index}/expansion": f"{block}/MlpBlock_3/Dense_0"}
        names |= {f"{index}/projection": f"{block}/MlpBlock_3/Dense_1"}
    for (layer, variable), tensor in parts.items():
        if layer not in names:
            continue
        part = layer.rpartition("/")[2]
        if part in ("query", "key", "value"):
            tensor = tensor.reshape(*tensor.shape[:-1], HEADS, size)
        if (part, variable) == ("out", "kernel"):
            tensor = tensor.reshape(HEADS, size, WIDTH)
        tensors[f"{names[layer]}/{kinds[variable]}"] = tensor
    return tensors


VIT_KERAS_2 = {
    "patches": "embedding/embedding",
    "class_token": "class_token/class_token/cls",
    "positions": "Transformer/posembed_input/Transformer/posembed_input/pos_embedding",
    "norm": "Transformer/encoder_norm/Transformer/encoder_norm",
    "head": "head/head",
}
VIT_KERAS_2_BLOCK = {
    "norm_1": "{block}/{block}/LayerNorm_0",
    "query": "{block}/{block}/MultiHeadDotProductAttention_1/query",
    "key": "{block}/{block}/MultiHeadDotProductAttention_1/key",
    "value": "{block}/{block}/MultiHeadDotProductAttention_1/value",
    "out": "{block}/{block}/MultiHeadDotProductAttention_1/out",
    "norm_2": "{block}/{block}/LayerNorm_2",
    "expansion": "{block}/{block}/Dense_0",
    "projection": "{block}/{block}/Dense_1",
}


def write_vit_keras(path, parts, old=False, prefix=""):
    """As `model.save_weights` of vit-keras does with Keras 2; `prefix` as `model.save`."""
    tensors = {}
    for (layer, variable), tensor in parts.items():
        index, _, part = layer.rpartition("/")
        place = VIT_KERAS_2.get(layer) or VIT_KERAS_2_BLOCK[part].format(
            block=f"Transformer/encoderblock_{index}"
        )
        if old and part in ("expansion", "projection"):
            place = place.replace(f"Transformer/encoderblock_{index}/", "", 1)
            place = f"Transformer/encoderblock_{index}/" + place.rpartition("/")[2]
        tensors[prefix + place + (f"/{variable}:0" if variable else ":0")] = tensor
    return write_h5(path, tensors)


VIT_KERAS_3_BLOCK = {
    "norm_1": "layernorm1",
    "query": "att/query_dense",
    "key": "att/key_dense",
    "value": "att/value_dense",
    "out": "att/combine_heads",
    "norm_2": "layernorm2",
    "expansion": "mlpblock/layers/dense",
    "projection": "mlpblock/layers/dense_1",
}
KERAS_HUB_BLOCK = {
    "norm_1": "layer_norm_1",
    "query": "mha/query_dense",
    "key": "mha/key_dense",
    "value": "mha/value_dense",
    "out": "mha/output_dense",
    "norm_2": "layer_norm_2",
    "expansion": "mlp/dense_1",
    "projection": "mlp/dense_2",
}
NUMBERS = {"": "0", "kernel": "0", "gamma": "0", "bias": "1", "beta": "1"}


def suffix(index):
    return f"_{index}" if index != "0" else ""


def write_vit_keras_3(path, parts):
    """As `model.save_weights` of vit-keras does with Keras 3."""
    places = {
        "patches": "layers/conv2d",
        "class_token": "layers/class_token",
        "positions": "layers/add_position_embs",
        "norm": "layers/layer_normalization",
        "head": "layers/dense",
    }
    names = {
        "layers/conv2d/vars": "embedding",
        "layers/add_position_embs/vars": "Transformer_posembed_input",
        "layers/layer_normalization/vars": "Transformer_encoder_norm",
        "layers/dense/vars": "head",
    }
    tensors = {}
    for (layer, variable), tensor in parts.items():
        index, _, part = layer.rpartition("/")
        block = f"layers/transformer_block{suffix(index)}"
        place = places.get(layer) or f"{block}/{VIT_KERAS_3_BLOCK[part]}"
        tensors[f"{place}/vars/{NUMBERS[variable]}"] = tensor
        if index:
            name = f"Transformer_encoderblock_{index}"
            names[f"{block}/vars"] = name
            names[f"{block}/mlpblock/layers/dense/vars"] = f"{name}_Dense_0"
            names[f"{block}/mlpblock/layers/dense_1/vars"] = f"{name}_Dense_1"
    return write_h5(path, tensors, names)


def write_keras_hub(path, parts):
    """As keras-hub's `ViTImageClassifier.save_weights` does."""
    model = "layers/vi_t_backbone"
    places = {
        "patches": f"{model}/layers/vi_t_patching_and_embedding/patch_embedding",
        "class_token": f"{model}/layers/vi_t_patching_and_embedding",
        "positions": f"{model}/layers/vi_t_patching_and_embedding/position_embedding",
        "norm": f"{model}/layers/vi_t_encoder/layer_norm",
        "head": "layers/dense",
    }
    names = {
        f"{model}/vars": "vi_t_backbone",
        f"{model}/layers/vi_t_patching_and_embedding/vars": "vit_patching_and_embedding",
        f"{model}/layers/vi_t_encoder/vars": "vit_encoder",
        "layers/dense/vars": "predictions",
    }
    tensors = {"optimizer/vars/0": np.int64(3)}
    for (layer, variable), tensor in parts.items():
        index, _, part = layer.rpartition("/")
        block = f"{model}/layers/vi_t_encoder/encoder_layers/vi_t_encoder_block{suffix(index)}"
        if part in ("query", "key", "value"):
            tensor = tensor.reshape(*tensor.shape[:-1], HEADS, WIDTH // HEADS)
        if (part, variable) == ("out", "kernel"):
            tensor = tensor.reshape(HEADS, WIDTH // HEADS, WIDTH)
        if layer == "positions":
            tensor = tensor[0]
        place = places.get(layer) or f"{block}/{KERAS_HUB_BLOCK[part]}"
        tensors[f"{place}/vars/{NUMBERS[variable]}"] = tensor
    return write_h5(path, tensors, names)


@pytest.mark.parametrize(
    ("file_name", "write"),
    [
        ("model.h5", write_vit_keras),
        ("whole.h5", lambda path, parts: write_vit_keras(path, parts, prefix="model_weights/")),
        ("model.weights.h5", write_vit_keras_3),
    ],
)
def test_vit_keras_equals_the_float64_forward_pass(tmp_path, file_name, write):
    parts = random_parts((2, 4))
    path = write(tmp_path / file_name, parts)
    model = keras_vit.from_checkpoint(path, num_heads=HEADS, image_size=(8, 16))
    given = images((8, 16))
    assert_close(model(given * 127.5 + 127.5), timm_forward(as_timm(parts), given, HEADS))


def test_vit_keras_before_2021_approximated_gelu(tmp_path):
    parts = random_parts((3, 3))
    path = write_vit_keras(tmp_path / "old.h5", parts, old=True)
    model = keras_vit.from_checkpoint(path, num_heads=HEADS, include_preprocessing=False)
    assert_close(model(images((12, 12))), google_forward(as_google(parts), images((12, 12))))
    assert "February 2021" in inspect_checkpoint(path)


def test_vit_keras_heads_are_asked_for(tmp_path):
    path = write_vit_keras(tmp_path / "model.h5", random_parts((3, 3)))
    with pytest.raises(ValueError, match="num_heads"):
        keras_vit.from_checkpoint(path)


def test_whole_vit_keras_model_tells_heads_and_image_size(tmp_path):
    parts = random_parts((2, 4))
    path = write_vit_keras(tmp_path / "model.h5", parts, prefix="model_weights/")
    layers = [
        {
            "class_name": "InputLayer",
            "config": {"name": "x", "batch_input_shape": [None, 8, 16, 3]},
        },
        {"class_name": "Custom>TransformerBlock", "config": {"name": "b", "num_heads": HEADS}},
        {"class_name": "Dense", "config": {"name": "head", "activation": "softmax"}},
    ]
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": layers}})
    model = keras_vit.from_checkpoint(path, include_preprocessing=False)
    logits = timm_forward(as_timm(parts), images((8, 16)), HEADS)
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    assert_close(model(images((8, 16))), exponents / exponents.sum(-1, keepdims=True))


def test_keras_hub_equals_the_float64_forward_pass(tmp_path):
    parts = random_parts((3, 3))
    path = write_keras_hub(tmp_path / "model.weights.h5", parts)
    model = keras_vit.from_checkpoint(path, include_preprocessing=False)
    expected = timm_forward(as_timm(parts), images((12, 12)), HEADS)
    assert_close(model(images((12, 12))), expected)


def test_keras_hub_preprocessing_is_asked_for(tmp_path):
    path = write_keras_hub(tmp_path / "model.weights.h5", random_parts((3, 3)))
    with pytest.raises(ValueError, match="preprocessing="):
        keras_vit.from_checkpoint(path)


# Models that keras-hub builds and saves.


@pytest.fixture
def keras_hub():
    return pytest.importorskip("keras_hub")


def randomise(model):
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith("position_ids"):
            weight.assign(np.arange(weight.shape[1])[None])
        elif "seed" not in weight.path:
            weight.assign(rng.normal(scale=0.3, size=weight.shape).astype("float32"))
    return model


SIZES = {"patch_size": PATCH, "num_layers": DEPTH, "hidden_dim": WIDTH, "num_heads": HEADS}


def vit_classifier(keras_hub, shape=(16, 24, 3), preprocessor=None, head=None, **options):
    backbone = keras_hub.models.ViTBackbone(image_shape=shape, mlp_dim=32, **SIZES, **options)
    return randomise(
        keras_hub.models.ViTImageClassifier(
            backbone, CLASSES, preprocessor=preprocessor, **(head or {})
        )
    )


VITS = [
    ({"layer_norm_epsilon": 1e-2, "name": "mine"}, {"intermediate_dim": 7}),
    ({"use_class_token": False}, {"pooling": "gap", "activation": "softmax"}),
    ({"use_mha_bias": False, "use_mlp_bias": False, "use_patch_bias": False}, {}),
    ({}, {}),
]


@slow_on_jax
@pytest.mark.parametrize(("options", "head"), slow_except(VITS, VITS[:2]), ids=str)
def test_keras_hub_vit(tmp_path, keras_hub, options, head):
    theirs = vit_classifier(keras_hub, head=head, **options)
    theirs.save_to_preset(str(tmp_path))
    ours = keras_vit.from_checkpoint(tmp_path, include_preprocessing=False)
    assert_close(ours(images((16, 24))), theirs(images((16, 24))))


def test_keras_hub_scaling_of_images(tmp_path, keras_hub):
    scale = [1 / 255 / deviation for deviation in (0.2, 0.25, 0.3)]
    converter = keras_hub.layers.ViTImageConverter(
        image_size=(16, 24), scale=scale, offset=[-1.5, -1.0, -0.5], interpolation="bicubic"
    )
    preprocessor = keras_hub.models.ViTImageClassifierPreprocessor(converter)
    theirs = vit_classifier(keras_hub, preprocessor=preprocessor)
    theirs.save_to_preset(str(tmp_path))
    ours = keras_vit.from_checkpoint(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 16, 24, 3)).astype("uint8")
    assert_close(ours(pixels), theirs(converter(pixels)))
    preprocessing = ours.get_layer("preprocessing")
    assert preprocessing.interpolation == "bicubic"
    assert preprocessing.mean == pytest.approx((0.3, 0.25, 0.15))


def test_keras_hub_deit(tmp_path, keras_hub):
    backbone = keras_hub.models.DeiTBackbone(image_shape=(16, 24, 3), intermediate_dim=32, **SIZES)
    theirs = randomise(keras_hub.models.DeiTImageClassifier(backbone, CLASSES))
    theirs.save_to_preset(str(tmp_path))
    ours = keras_vit.from_checkpoint(tmp_path, include_preprocessing=False)
    assert_close(ours(images((16, 24))), theirs(images((16, 24))))


ENCODERS = {
    "dinov2": ("DINOV2Backbone", {"position_embedding_shape": (20, 20, 3)}),
    "dinov2_registers": (
        "DINOV2Backbone",
        {"position_embedding_shape": (16, 16, 3), "num_register_tokens": 2, "name": "named"},
    ),
    "dinov2_swiglu": (
        "DINOV2Backbone",
        {
            "position_embedding_shape": (16, 16, 3),
            "use_swiglu_ffn": True,
            "use_mask_token": False,
            "num_register_tokens": 3,
        },
    ),
    "dinov3": ("DINOV3Backbone", {"layer_norm_eps": 1e-3, "rope_theta": 50.0}),
    "dinov3_gated": (
        "DINOV3Backbone",
        {"use_gated_mlp": True, "hidden_activation": "silu", "use_key_bias": False},
    ),
    "clip": ("CLIPVisionEncoder", {}),
    "siglip": ("SigLIPVisionEncoder", {"name": "vision"}),
}


@pytest.mark.parametrize("case", ENCODERS)
def test_keras_hub_encoders(tmp_path, keras_hub, case):
    name, options = ENCODERS[case]
    theirs = randomise(
        getattr(keras_hub.models, name)(
            image_shape=(16, 16, 3), intermediate_dim=32, **SIZES, **options
        )
    )
    theirs.save_to_preset(str(tmp_path))
    pooling = {} if name.startswith("SigLIP") else {"pooling": None}
    ours = keras_vit.from_checkpoint(tmp_path, include_preprocessing=False, **pooling)
    assert_close(ours(images()), theirs({next(iter(theirs.input)): images()}))


WHOLE_TEXT = {
    **{"vocabulary_size": 20, "embedding_dim": 16, "hidden_dim": 16, "num_layers": 1},
    **{"num_heads": 2, "intermediate_dim": 32},
}


@slow_on_jax
@pytest.mark.parametrize("names", [{}, {"name": "clip_vision_encoder"}], ids=["unnamed", "named"])
@pytest.mark.parametrize("family", ["CLIP", "SigLIP"])
def test_keras_hub_vision_tower_beside_its_text_tower(tmp_path, keras_hub, family, names):
    """As presets are published: the whole model, whose image embeddings ours gives."""
    vision = getattr(keras_hub.models, f"{family}VisionEncoder")(
        image_shape=(16, 16, 3), intermediate_dim=32, **SIZES, **names
    )
    text = getattr(keras_hub.models, f"{family}TextEncoder")(**WHOLE_TEXT)
    projection = {"projection_dim": 6} if family == "CLIP" else {}
    theirs = randomise(getattr(keras_hub.models, f"{family}Backbone")(vision, text, **projection))
    theirs.save_to_preset(str(tmp_path))
    ours = keras_vit.from_checkpoint(tmp_path, include_preprocessing=False)
    assert_close(ours(images()), theirs.get_vision_embeddings(images()))
    dropped = keras_vit.load_checkpoint(ours, tmp_path).dropped
    assert "of the text tower" in dropped.values()


@slow_on_jax
def test_keras_hub_shards_and_bfloat16(tmp_path, keras_hub):
    theirs = vit_classifier(keras_hub, dtype="bfloat16")
    theirs.save_to_preset(str(tmp_path), max_shard_size=1e-5)
    os.remove(tmp_path / "task.json")
    assert (tmp_path / "model_00001.weights.h5").exists()
    report = keras_vit.load_checkpoint(
        ours := keras_vit.from_checkpoint(tmp_path, include_preprocessing=False), tmp_path
    )
    assert not report.new and not report.dropped
    head = keras.ops.convert_to_numpy(keras.ops.cast(theirs.output_dense.kernel, "float32"))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours.get_layer("head").kernel), head)
    os.remove(tmp_path / "model_00001.weights.h5")
    with pytest.raises(CheckpointError, match=r"shard model_00001.weights.h5.*is missing"):
        keras_vit.from_checkpoint(tmp_path)


def test_keras_hub_that_no_model_here_computes(tmp_path, keras_hub):
    vit_classifier(keras_hub, head={"pooling": "gap"}).save_to_preset(str(tmp_path / "gap"))
    with pytest.raises(CheckpointError, match="pooling='gap'"):
        keras_vit.from_checkpoint(tmp_path / "gap")
    # All patches have position 0 in a CLIP that was made without weights.
    clip = keras_hub.models.CLIPVisionEncoder(image_shape=(16, 16, 3), intermediate_dim=32, **SIZES)
    clip.save_to_preset(str(tmp_path / "clip"))
    with pytest.raises(CheckpointError, match="embedding/position_ids must be 0, 1, 2"):
        keras_vit.from_checkpoint(tmp_path / "clip")


def test_keras_hub_config_that_contradicts_the_tensors(tmp_path):
    write_keras_hub(tmp_path / "model.weights.h5", random_parts((3, 3)))
    config = {"config": {"num_layers": DEPTH + 1, "image_shape": [12, 12, 3]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="num_layers=3, the tensors 2"):
        keras_vit.from_checkpoint(tmp_path)


# Files that are damaged, or that reach for more than they hold.

QUERY = (
    "layers/vi_t_backbone/layers/vi_t_encoder/encoder_layers/vi_t_encoder_block_1/mha/query_dense"
)
NAME = "vit_encoder/encoder_layers/vi_t_encoder_block_1/mha/query_dense"
KERNEL, BIAS = f"{QUERY}/vars/0", f"{QUERY}/vars/1"


@pytest.fixture
def hub_file(tmp_path):
    return write_keras_hub(tmp_path / "model.weights.h5", random_parts((3, 3)))


def load(path):
    return keras_vit.from_checkpoint(path, include_preprocessing=False)


def replace(path, name, tensor=None, **options):
    with h5py.File(path, "a") as file:
        del file[name]
        if tensor is not None or options:
            file.create_dataset(name, data=tensor, **options)


def test_truncated_file(hub_file):
    os.truncate(hub_file, os.path.getsize(hub_file) - 100)
    with pytest.raises(CheckpointError, match=r"model.weights.h5 .*truncated"):
        load(hub_file)


def test_other_content(tmp_path):
    path = tmp_path / "model.h5"
    path.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(CheckpointError, match="no HDF5 file"):
        load(path)
    with pytest.raises(CheckpointError, match="no known format"):
        load(write_h5(tmp_path / "other.h5", {"layers/dense/vars/0": np.zeros((2, 3), "f4")}))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, f"{QUERY}/vars/0 is missing"),
        (np.zeros((HEADS, 8, WIDTH), "f4"), f"{NAME}/kernel.*{WIDTH}"),
        (np.full((WIDTH, HEADS, 8), np.nan, "f4"), f"{NAME}/kernel holds 256 values.*NaN"),
        (np.zeros((WIDTH, HEADS, 8), "i4"), f"{NAME}/kernel must hold floats. Found: int32"),
        (np.full((WIDTH, HEADS, 8), b"x", object), f"{NAME}/kernel must hold floats"),
    ],
    ids=["missing", "transposed", "nan", "integers", "objects"],
)
def test_wrong_tensors(hub_file, tensor, message):
    replace(hub_file, KERNEL, tensor)
    with pytest.raises(CheckpointError, match=message):
        load(hub_file)


def test_tensor_too_few_and_too_many(hub_file):
    replace(hub_file, BIAS)
    with pytest.raises(CheckpointError, match=f"{NAME}/bias"):
        load(hub_file)
    write_keras_hub(hub_file, random_parts((3, 3)))
    with h5py.File(hub_file, "a") as file:
        file["layers/another/vars/0"] = np.zeros((2, 3), "f4")
    with pytest.raises(CheckpointError, match="unexpected: another/kernel"):
        load(hub_file)


def test_group_in_place_of_a_data_set(hub_file):
    replace(hub_file, KERNEL)
    with h5py.File(hub_file, "a") as file:
        file.create_group(KERNEL)
    with pytest.raises(CheckpointError, match=f"{KERNEL} is a group; expected a data set"):
        load(hub_file)


@pytest.mark.parametrize("link", ["external", "soft", "hard"])
def test_links(hub_file, tmp_path, link):
    secret = write_h5(tmp_path / "secret.h5", {"x": np.zeros((WIDTH, HEADS, 8), "f4")})
    with h5py.File(hub_file, "a") as file:
        del file[KERNEL]
        file[KERNEL] = {
            "external": lambda: h5py.ExternalLink(secret, "x"),
            "soft": lambda: h5py.SoftLink("/" + BIAS),
            "hard": lambda: file[BIAS],
        }[link]()
    message = "under another name" if link == "hard" else f"{KERNEL} is a link to elsewhere"
    with pytest.raises(CheckpointError, match=message):
        load(hub_file)


def test_a_group_that_contains_itself(hub_file):
    with h5py.File(hub_file, "a") as file:
        file[f"{QUERY}/again"] = file["layers"]
    with pytest.raises(CheckpointError, match="under another name"):
        load(hub_file)


def test_data_in_other_files(hub_file, tmp_path):
    shape = (WIDTH, HEADS, 8)
    (tmp_path / "secret").write_bytes(bytes(4 * WIDTH * WIDTH))
    outside = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
    replace(hub_file, KERNEL, shape=shape, dtype="f4", external=outside)
    with pytest.raises(CheckpointError, match=f"{KERNEL} lie in another file"):
        load(hub_file)
    replace(hub_file, KERNEL, np.zeros(shape, "f4"))
    source = write_h5(tmp_path / "other.h5", {"x": np.zeros(shape, "f4")})
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource(source, "x", shape)
    with h5py.File(hub_file, "a") as file:
        del file[KERNEL]
        file.create_virtual_dataset(KERNEL, layout)
    with pytest.raises(CheckpointError, match=f"{KERNEL} lie in another file"):
        load(hub_file)


def test_files_that_claim_more_than_they_hold(hub_file):
    huge = (1 << 20, 1 << 20)
    replace(hub_file, KERNEL, shape=huge, dtype="f4", chunks=(1 << 10, 1), compression="gzip")
    with pytest.raises(CheckpointError, match=f"{KERNEL} is compressed"):
        load(hub_file)
    replace(hub_file, KERNEL, shape=huge, dtype="f4", chunks=(1 << 10, 1))
    with pytest.raises(CheckpointError, match=f"{KERNEL} is damaged: .* the file holds 0"):
        load(hub_file)
    replace(hub_file, KERNEL, shape=(1 << 30, 1 << 30), dtype="f4", chunks=(1, 1))
    with pytest.raises(CheckpointError, match=f"{KERNEL} is damaged"):
        load(hub_file)


@pytest.mark.parametrize("place", ["../other.h5", "/etc/passwd", "a.pkl", 3, None])
def test_shards_in_odd_places(tmp_path, place):
    path = tmp_path / "model.weights.json"
    path.write_text(json.dumps({"weight_map": {"/layers/dense/vars": place}}))
    with pytest.raises(CheckpointError, match=r"model.weights.json: /layers/dense/vars is said"):
        load(path)


def test_slices(hub_file):
    with open_h5(hub_file) as file:
        name = f"vi_t_backbone/{NAME}/kernel"
        np.testing.assert_array_equal(file.read(name, 3), file.read(name)[3])
        with pytest.raises(IndexError, match=f"holds {WIDTH} slices"):
            file.read(name, WIDTH)


def test_any_flipped_byte_is_refused_or_harmless(hub_file):
    """No changed byte makes a tensor of another shape, or one that is not finite."""
    whole = hub_file.read_bytes()
    with open_h5(hub_file) as file:
        shapes = dict(file.shapes)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        hub_file.write_bytes(damaged)
        try:
            with open_h5(hub_file) as file:
                for name in shapes.keys() & file.shapes.keys():
                    tensor = file.read(name)
                    assert tensor.shape == file.shapes[name]
                    assert np.isfinite(tensor).all()
        except CheckpointError as error:
            assert str(hub_file) in str(error)
