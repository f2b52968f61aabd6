"""What layers refuse: inputs and counts that they would compute something else of."""

import keras
import numpy as np
import pytest

from keras_vit.layers import (
    AttentionPooling,
    ImagePreprocessing,
    MultiHeadSelfAttention,
    PatchDropout,
    PatchEncoder,
    TokenMergingBlock,
    TokenPooling,
    TokenPruningBlock,
    TransformerBlock,
)


def some(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize("register_tokens", [0, 4])
@pytest.mark.parametrize("positions", ["learned", "sincos1d"])
@pytest.mark.parametrize("count", [1, 8, 10])
def test_an_encoder_takes_as_many_patches_as_it_was_built_for(register_tokens, positions, count):
    encoder = PatchEncoder(8, register_tokens=register_tokens, positions=positions)
    encoder.build((None, 9, 12))
    assert encoder(some(2, 9, 12)).shape[1] == 10 + register_tokens
    with pytest.raises(ValueError, match="expected axis 1 of input shape to have value 9"):
        encoder(some(2, count, 12))
    with pytest.raises(ValueError, match="expected axis 1 of input shape to have value 9"):
        encoder(keras.Input((count, 12)))


@pytest.mark.parametrize("grid", [(1, 1), (2, 2)])
def test_fixed_positions_are_those_of_all_patches(grid):
    with pytest.raises(ValueError, match="`grid` must have as many places as there are patches"):
        PatchEncoder(8, positions="sincos2d", grid=grid)(some(2, 9, 12))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: TransformerBlock(2, 16),
        lambda: TokenMergingBlock(2, 16, token_merging=1),
        lambda: TokenPruningBlock(2, 16, token_keep_rate=0.5, prefix_tokens=1),
        lambda: MultiHeadSelfAttention(2),
        lambda: AttentionPooling(2, 16),
        lambda: TokenPooling("avg", prefix_tokens=0),
        lambda: PatchDropout(0.5),
        lambda: PatchEncoder(8),
    ],
)
@pytest.mark.parametrize("shape", [(2, 7, 7, 8), (2, 8)])
def test_maps_and_single_tokens_are_no_sequences(layer, shape):
    with pytest.raises(ValueError, match="expected ndim=3"):
        layer()(some(*shape))
    with pytest.raises(ValueError, match="expected ndim=3"):
        layer()(keras.Input(shape[1:]))


@pytest.mark.parametrize("count", [-1, 1.0, True, "1", None])
@pytest.mark.parametrize(
    "layer",
    [
        lambda count: TransformerBlock(2, 16, prefix_tokens=count),
        lambda count: TokenMergingBlock(2, 16, token_merging=1, prefix_tokens=count),
        lambda count: AttentionPooling(2, 16, prefix_tokens=count),
        lambda count: TokenPooling("avg", prefix_tokens=count),
        lambda count: PatchDropout(0.5, prefix_tokens=count),
    ],
)
def test_prefix_tokens_are_a_count(layer, count):
    with pytest.raises(ValueError, match="`prefix_tokens` must be an int of at least 0"):
        layer(count)


def test_register_tokens_are_a_count():
    with pytest.raises(ValueError, match="`register_tokens` must be an int of at least 0"):
        PatchEncoder(8, register_tokens=-1)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: AttentionPooling(2, 16, prefix_tokens=5),
        lambda: TokenPooling("avg", prefix_tokens=5),
        lambda: TokenPooling("token+avg", prefix_tokens=3),
        lambda: PatchDropout(0.5, prefix_tokens=3),
    ],
)
def test_there_must_be_patches_after_the_prefix(layer):
    with pytest.raises(ValueError, match="needs patches after the `prefix_tokens`"):
        layer()(some(2, 3, 8))
    assert TokenPooling("token", prefix_tokens=3)(some(2, 3, 8)).shape == (2, 8)


def test_preprocessing_of_three_channels_refuses_another_number():
    with pytest.raises(ValueError, match=r"are of 3 channels\. Received images of the shape"):
        ImagePreprocessing()(keras.Input((28, 28, 1)))
    with pytest.raises(ValueError, match="are of 3 channels"):
        ImagePreprocessing()(some(2, 28, 28, 1))
    assert ImagePreprocessing(0.5, 0.5)(some(2, 28, 28, 1)).shape == (2, 28, 28, 1)
