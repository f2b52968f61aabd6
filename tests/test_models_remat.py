"""Activations computed again in the backward pass: the same training, with less memory."""

import dataclasses

import keras
import numpy as np
import pytest
from parameters import slow_except, slow_on_jax

import keras_vit
from keras_vit.models import VisionTransformerConfig, config_of, vision_transformer

CONFIG = {
    "patch_size": 4,
    "hidden_size": 16,
    "depth": 2,
    "mlp_dim": 24,
    "num_heads": 2,
    "num_classes": 5,
    "image_size": 8,
}
STOCHASTIC = {"dropout": 0.2, "attention_dropout": 0.2, "drop_path": 0.4}
IMAGES = np.random.default_rng(0).uniform(0, 255, (8, 8, 8, 3)).astype("float32")
LABELS = np.arange(8) % 5
# JAX compiles, or it would compile each recomputation anew. Sums then are in another order.
IS_JAX = keras.backend.backend() == "jax"


def build(remat, dtype=None, **fields):
    """A model with the seeds and the weights of its twin."""
    keras.utils.set_random_seed(3)
    config = VisionTransformerConfig(**CONFIG, remat=remat, **fields)
    model = vision_transformer(config, dtype=dtype)
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return model


def states(model):
    """Of the generators of random numbers."""
    return [keras.ops.convert_to_numpy(w) for w in model.variables if "seed" in w.path]


def train(model, jit_compile=IS_JAX, steps=2):
    """Losses of a few steps; gradients of one are what it changes."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=jit_compile)
    history = model.fit(IMAGES, LABELS, batch_size=4, epochs=steps, shuffle=False, verbose=0)
    return history.history["loss"]


def assert_same_training(plain, remat, tolerance=1e-4 if IS_JAX else 1e-5):
    np.testing.assert_allclose(plain[0], remat[0], rtol=tolerance)
    np.testing.assert_array_equal(states(plain[1]), states(remat[1]))
    for ours, theirs in zip(plain[1].trainable_weights, remat[1].trainable_weights, strict=True):
        ours, theirs = (keras.ops.convert_to_numpy(weight) for weight in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def trained(remat, jit_compile=IS_JAX, **fields):
    model = build(remat, **fields)
    return train(model, jit_compile), model


FIELDS = [
    {**STOCHASTIC, "window_size": 1, "global_blocks": 1, "layer_scale": 0.1},
    {**STOCHASTIC, "efficient_drop_path": True},
    STOCHASTIC,
    {},
]


@slow_on_jax
@pytest.mark.parametrize("fields", slow_except(FIELDS, FIELDS[:2]))
def test_training_is_the_same(fields):
    """Also where what is dropped is drawn: the second time it must be drawn alike."""
    plain, remat = trained(False, **fields), trained(True, **fields)
    assert_same_training(plain, remat)
    # The draws matter, and go on from step to step.
    if fields:
        assert states(plain[1])
        other = build(False, **fields)
        for variable in other.variables:
            if "seed" in variable.path:
                variable.assign(keras.ops.add(variable, 1))
        assert not np.allclose(train(other), plain[0], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the others compile, or know no compiler"
)
def test_training_is_the_same_under_xla():
    assert_same_training(*(trained(remat, True, **STOCHASTIC) for remat in (False, True)), 1e-4)


@pytest.mark.slow
def test_frozen_blocks_and_adapters():
    found = []
    for remat in (False, True):
        model = build(remat, **STOCHASTIC)
        model.get_layer("block_0").trainable = False
        keras.utils.set_random_seed(4)
        model.get_layer("block_1").attention.query_key_value.enable_lora(2)
        found.append((train(model), model))
    frozen = [w.path for w in found[1][1].trainable_weights]
    assert frozen and not any("block_0" in path for path in frozen)
    assert_same_training(*found)


@pytest.mark.slow
def test_mixed_precision():
    losses = [train(build(remat, "mixed_bfloat16", drop_path=0.4)) for remat in (False, True)]
    np.testing.assert_allclose(*losses, rtol=2e-2)


def is_recomputed(model, training):
    """Whether a block rematerialises in a call of the model."""
    calls, original = [], keras.remat
    keras.remat = lambda function: calls.append(function) or original(function)
    try:
        model(IMAGES, training=training)
    finally:
        keras.remat = original
    return len(calls)


def test_it_happens_in_training_only():
    assert is_recomputed(build(True), training=True) == CONFIG["depth"]
    assert is_recomputed(build(True), training=False) == 0
    assert is_recomputed(build(True), training=None) == 0
    assert is_recomputed(build(False), training=True) == 0


def test_weights_config_and_files_are_the_same(tmp_path):
    plain, remat = build(False), build(True)
    assert [w.path for w in plain.weights] == [w.path for w in remat.weights]
    assert config_of(remat) == dataclasses.replace(config_of(plain), remat=True)
    remat.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert config_of(twin).remat is True
    assert config_of(keras_vit.resize(remat, image_size=12)).remat is True
    outputs = [keras.ops.convert_to_numpy(model(IMAGES)) for model in (plain, remat, twin)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[1], outputs[2])
    keras_vit.save_checkpoint(remat, tmp_path / "timm", "timm")
    read = keras_vit.from_checkpoint(tmp_path / "timm", remat=True)
    assert config_of(read).remat is True
    assert config_of(keras_vit.from_checkpoint(tmp_path / "timm")).remat is False


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_anything_else_than_a_bool_is_refused(wrong):
    with pytest.raises(ValueError, match="`remat` must be one of"):
        VisionTransformerConfig(**CONFIG, remat=wrong)
