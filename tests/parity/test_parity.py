"""Every family at tiny size, against the library that publishes it."""

import dataclasses

import keras
import numpy as np
import pytest
import transformers

import keras_vit

from . import architectures, comparison, google, libraries
from .cases import CASES, Case

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_are_the_librarys(case):
    for row in comparison.compare(case, "tiny"):
        assert not row.problem, row.problem
        # A random ResNet amplifies rounding: what float32 costs the library itself counts too.
        assert row.error <= max(comparison.BOUNDS["tiny"], 4 * row.noise), row


def test_the_bound_tells_the_two_gelus_apart(tmp_path):
    case = Case("ViT", "timm", "vit_base_patch16_224")
    model = libraries.build(case, "tiny", tmp_path)
    reference = libraries.run(case, model, libraries.native_size(case, model))
    wrong = comparison.load(case, "tiny", tmp_path, activation="gelu_tanh")
    output = keras.ops.convert_to_numpy(wrong(reference.images))
    assert libraries.relative_error(output, reference.output) > comparison.BOUNDS["tiny"]


# Written as the vision tower alone, and as a ViTModel.
WRITTEN_OUTPUTS = {"SiglipModel": "pooled", "ViTMAEModel": "class_token"}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.library in ("timm", "transformers")], ids=str
)
def test_written_folders_load_in_the_library(case, tmp_path):
    model = libraries.build(case, "tiny", tmp_path / "read")
    reference = libraries.run(case, model, libraries.native_size(case, model))
    loaded = comparison.load(case, "tiny", tmp_path / "read")
    written = tmp_path / "written"
    format = {"timm": "timm", "transformers": "hf"}[case.library]
    keras_vit.save_checkpoint(loaded, written, format=format, preprocessing="imagenet")
    opened = comparison.reopened(case, written)
    output = WRITTEN_OUTPUTS.get(case.model, case.output)
    again = libraries.run(
        dataclasses.replace(case, output=output), opened, reference.images.shape[1:3]
    )
    assert libraries.relative_error(again.output, reference.output) <= 1e-6


GOOGLE = {
    "token": {},
    "pre_logits": {"representation_size": 24},
    "gap": {"pooling": "avg", "class_token": False},
    "not square": {"image_size": (24, 40)},
    "R stem": {"stem_blocks": (), "stem_width": 32, "patch_size": 2},
    "ResNet": {"stem_blocks": (1, 2), "stem_width": 32, "patch_size": 1, "image_size": 32},
}


@pytest.mark.parametrize("fields", GOOGLE.values(), ids=GOOGLE)
def test_written_npz_files_run_in_googles_own_code(fields, tmp_path):
    pytest.importorskip(
        "vit_jax", reason="needs github.com/google-research/vision_transformer on the path"
    )
    sizes = {"hidden_size": 32, "depth": 2, "mlp_dim": 48, "num_heads": 4, "num_classes": 5}
    config = keras_vit.models.VisionTransformerConfig(
        **{"patch_size": 8, "image_size": 24, "activation": "gelu_tanh", **sizes, **fields},
        include_preprocessing=False,
    )
    model = keras_vit.models.vision_transformer(config)
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.normal(0.3, 0.3, weight.shape))
    images = random.normal(size=(2, *config.image_size, 3)).astype("float32")
    keras_vit.save_checkpoint(
        model, tmp_path / "model.npz", format="google", preprocessing="inception"
    )
    stem = config.stem_blocks
    resnet = None if stem is None else (stem, config.stem_width / 64)
    reference = google.forward(tmp_path / "model.npz", images, resnet)
    output = keras.ops.convert_to_numpy(model(images))
    assert libraries.relative_error(output, reference) <= comparison.BOUNDS["tiny"]


@pytest.mark.parametrize("name", architectures.names())
def test_timms_architectures_are_read_off_their_headers_or_refused(name, tmp_path):
    """Also those that have a plain model's tensors and compute something else."""
    model = architectures.build(name)
    if not architectures.obstacles(model):
        facts, expected = architectures.told(name, model), architectures.measured(model)
        assert {field: facts.get(field) for field in expected} == expected
        if name != "vit_base_patch16_gap_224":  # Of which no weights are published.
            # A bare file tells less, and nothing else.
            bare = architectures.told(name, model, is_bare=True)
            for field in ("activation", "layer_norm_epsilon", "num_heads"):
                assert bare.get(field, expected[field]) == expected[field]
        return
    tiny = {"num_kv_heads": (4, 4, 4)} if name.endswith("_sapiens2") else {}
    tiny |= {"embed_dim": 768} if name == "vit_base_mci_224" else {}
    case = Case("other", "timm", name, tiny=tiny)
    libraries.build(case, "tiny", tmp_path)
    with pytest.raises(ValueError):
        comparison.load(case, "tiny", tmp_path)
