"""Models that merge or prune tokens, exported and served by TensorFlow alone."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from parameters import slow_except

from keras_vit.export import export_saved_model
from keras_vit.models import (
    Preprocessing,
    VisionTransformerConfig,
    vision_transformer,
    without_unread_tokens,
)
from keras_vit.serving.model_checks import check_saved_model

tf = pytest.importorskip("tensorflow", reason="a SavedModel needs TensorFlow")
if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel is exported on the TensorFlow backend", allow_module_level=True)

NAMES = ("cat", "dog", "ox")
OPTIONS = [
    {"token_merging": 5, "patch_dropout": 0.2},
    {"token_merging": 5, "pooling": "avg", "class_token": False},
    {"token_keep_rate": 0.5, "register_tokens": 1},
]
CONSUMER = """
import json, sys
import numpy as np, tensorflow as tf

model = tf.saved_model.load(sys.argv[1])
pixels = tf.constant(np.load(sys.argv[2]))
answers = [model.signatures["pixels"](pixels=pixels[:n])["logits"].numpy() for n in (3, 1)]
assert "keras_vit" not in sys.modules
print(json.dumps([answer.tolist() for answer in answers]))
"""


def tiny(**fields):
    model = vision_transformer(
        VisionTransformerConfig(
            **{"patch_size": 4, "hidden_size": 16, "mlp_dim": 24, "num_heads": 2},
            # Pictures of its own size are taken whole.
            preprocessing=Preprocessing(mean=(0.5,), std=(0.5,), crop_fraction=1.0),
            **{"depth": 3, "image_size": 24, "num_classes": 3, **fields},
        )
    )
    generator = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(generator.normal(0.1, 0.4, weight.shape))
    return model


def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), "uint8")


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_an_export_gives_the_numbers_of_the_model(tmp_path):
    model = tiny(depth=2, **OPTIONS[0])
    # A loss that no config holds.
    model.compile(loss=lambda labels, logits: tf.reduce_mean(logits - labels, axis=-1))
    folder = export_saved_model(model, tmp_path, class_names=NAMES, warmup_batch_sizes=())
    loaded = tf.saved_model.load(str(folder))
    for pixels in (pictures(), pictures()[:1]):
        found = loaded.signatures["pixels"](pixels=tf.constant(pixels))["logits"]
        assert_close(found, model(pixels).numpy())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_export_in_parts_gives_the_numbers_of_the_model(tmp_path, precision):
    model = tiny(image_size=40, distillation_token=True)
    folder = export_saved_model(
        model,
        tmp_path,
        class_names=NAMES,
        token_parts=3,
        precision=precision,
        warmup_batch_sizes=(),
    )
    loaded = tf.saved_model.load(str(folder))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), "uint8")
    for batch in (pixels, pixels[:1]):
        found = loaded.signatures["pixels"](pixels=tf.constant(batch))["logits"]
        expected = model(batch).numpy()
        if precision == "float32":
            assert_close(found, expected)
        else:
            np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())
    # 102 tokens in three parts, of which the last block computes one: keys, values and norms.
    functions = loaded.signatures["pixels"].graph.as_graph_def().library.function
    counts = [sum(n.op.startswith("BatchMatMul") for n in f.node_def) for f in functions]
    assert max(counts) == 2 * (3 * (3 - 1) + 1)
    assert json.loads((folder / "signatures.json").read_text())["token_parts"] == 3
    assert all(verdict.passed for verdict in check_saved_model(folder))


@pytest.mark.parametrize(
    "fields",
    [{"positions": "rope"}, {"positions": "relative"}, {"token_merging": 2}, {"image_size": 16}],
    ids=str,
)
def test_tokens_that_cannot_be_parted_are_an_error(tmp_path, fields):
    with pytest.raises(ValueError, match="token_parts=2"):
        export_saved_model(tiny(**fields), tmp_path, class_names=NAMES, token_parts=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_tensorflow_alone_serves_the_numbers_of_the_model(tmp_path, options):
    model = tiny(**options)
    folder = export_saved_model(model, tmp_path / "pets", class_names=NAMES)
    # Only operations that a stock server has, among other things.
    refused = [check for check in check_saved_model(folder) if not check.passed]
    assert not refused
    np.save(tmp_path / "pixels.npy", pictures())
    result = subprocess.run(
        [sys.executable, "-c", CONSUMER, folder, tmp_path / "pixels.npy"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    whole, first = map(np.array, json.loads(result.stdout))
    expected = model.predict(pictures(), verbose=0)
    assert_close(whole, expected)
    assert_close(first, expected[:1])


@pytest.mark.parametrize(
    "options", slow_except([OPTIONS[0], OPTIONS[2]], fast=[OPTIONS[2]]), ids=["merging", "pruning"]
)
def test_the_last_block_computes_what_the_head_reads(options):
    model = tiny(**options)
    shorter = without_unread_tokens(model)
    np.testing.assert_allclose(
        shorter.predict(pictures(), verbose=0), model.predict(pictures(), verbose=0), atol=1e-4
    )


def test_a_map_of_places_is_refused(tmp_path):
    with pytest.raises(ValueError, match="token_merging=5"):
        export_saved_model(tiny(token_merging=5), tmp_path, class_names=NAMES, attention=True)
