"""Fewer tokens: patch dropout, token merging and token pruning, against NumPy in float64."""

import keras
import numpy as np
import pytest
from parameters import slow_on_jax
from reference_forward import softmax

from keras_vit import layers
from keras_vit.layers.one_pass import in_this_process
from keras_vit.layers.token_reduction import (
    merge_tokens,
    merged_tokens,
    prune_tokens,
    pruned_tokens,
    take_tokens,
)


def to_numpy(x):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, x)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def tome(tokens, sizes, keys, count, prefix):
    """ToMe's section 3 for one sample, in loops: (tokens, width), (tokens,), (heads, tokens, …)."""
    metric = keys.astype("float64").mean(0)
    metric /= np.linalg.norm(metric, axis=-1, keepdims=True)
    sources = [i for i in range(len(tokens)) if i % 2 == 0 and i >= prefix]
    targets = [i for i in range(len(tokens)) if i % 2 == 1 and i >= prefix]
    count = min(count, (len(tokens) - prefix) // 2)
    if count == 0:
        return tokens, sizes
    edges = {}
    for i in sources:
        likeness = [metric[i] @ metric[j] for j in targets]
        edges[i] = (max(likeness), targets[int(np.argmax(likeness))])
    merged = sorted(edges, key=lambda i: -edges[i][0])[:count]
    groups = {j: [j] + [i for i in merged if edges[i][1] == j] for j in targets}
    new_tokens = [tokens[i] for i in range(prefix)]
    new_sizes = [sizes[i] for i in range(prefix)]
    for i in sources:
        if i not in merged:
            new_tokens.append(tokens[i])
            new_sizes.append(sizes[i])
    for members in groups.values():
        weights = sizes[members].astype("float64")
        new_tokens.append((tokens[members] * weights[:, None]).sum(0) / weights.sum())
        new_sizes.append(weights.sum())
    return np.array(new_tokens), np.array(new_sizes)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("patches", [1, 7, 12])
@pytest.mark.parametrize("count", [3, 100])
def test_merging_is_the_papers(prefix, patches, count):
    tokens = random(3, prefix + patches, 6)
    keys = random(3, 2, prefix + patches, 5, seed=1)
    sizes = np.random.default_rng(2).integers(1, 5, (3, prefix + patches)).astype("float32")
    found, found_sizes = to_numpy(
        merge_tokens(*map(keras.ops.convert_to_tensor, (tokens, sizes, keys)), count, prefix)
    )
    left = prefix + patches - min(count, patches // 2)
    assert found.shape == (3, left, 6) and found_sizes.shape == (3, left)
    for sample in range(3):
        expected = tome(tokens[sample], sizes[sample], keys[sample], count, prefix)
        np.testing.assert_allclose(found[sample], expected[0], atol=1e-5)
        np.testing.assert_array_equal(found_sizes[sample], expected[1])
    np.testing.assert_array_equal(found[:, :prefix], tokens[:, :prefix])
    np.testing.assert_array_equal(found_sizes.sum(1), sizes.sum(1))
    # What is neither moved nor met is not rounded either.
    whole = {token.tobytes() for token in tokens.reshape(-1, 6)}
    assert sum(t.tobytes() in whole for t in found.reshape(-1, 6)) >= 3 * (left - count)


def test_a_sample_is_merged_without_the_others():
    tokens, keys = random(4, 9, 6), random(4, 2, 9, 5, seed=1)
    sizes = np.ones((4, 9), "float32")
    whole = to_numpy(merge_tokens(*map(keras.ops.convert_to_tensor, (tokens, sizes, keys)), 3, 1))
    turned = [keras.ops.convert_to_tensor(part[[2, 0, 3, 1]]) for part in (tokens, sizes, keys)]
    for one, other in zip(whole, to_numpy(merge_tokens(*turned, 3, 1)), strict=True):
        np.testing.assert_array_equal(one[[2, 0, 3, 1]], other)


def evit(tokens, attention, rate, prefix):
    """EViT's section 3 for one sample."""
    count = len(tokens) - prefix
    kept = int(np.ceil(rate * count - 1e-9))
    if kept + 1 >= count:
        return tokens
    order = prefix + np.argsort(-attention[prefix:])
    rest = order[kept:]
    fused = (tokens[rest] * attention[rest, None]).sum(0) / attention[rest].sum()
    return np.concatenate([tokens[:prefix], tokens[order[:kept]], fused[None]])


@pytest.mark.parametrize("prefix", [1, 2, 5])
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.7, 0.95, 1.0])
def test_pruning_is_the_papers(prefix, rate):
    tokens = random(3, prefix + 10, 6)
    attention = softmax(random(3, prefix + 10, seed=1).astype("float64"))
    arguments = map(keras.ops.convert_to_tensor, (tokens, attention.astype("float32")))
    found = to_numpy(prune_tokens(*arguments, rate, prefix))
    for sample in range(3):
        expected = evit(tokens[sample].astype("float64"), attention[sample], rate, prefix)
        np.testing.assert_allclose(found[sample], expected, atol=1e-5)
    assert found.shape[1] == prefix + 10 - pruned_tokens(10, rate)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_tokens_are_reduced_in_this_process_as_elsewhere(dtype):
    # Numbers that bfloat16 has, so that both see the same likenesses.
    tokens, keys = (
        (random(*shape, seed=seed) * 16).round() / 16
        for seed, shape in enumerate(((2, 197, 96), (2, 1, 197, 16)))
    )
    sizes = np.random.default_rng(2).integers(1, 5, (2, 197)).astype("float32")
    attention = softmax(random(2, 197, seed=3).astype("float64")).astype("float32")
    arrays = (tokens, sizes, keys, attention)
    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    tensors[0], tensors[2] = (keras.ops.cast(tensors[i], dtype) for i in (0, 2))
    with in_this_process():
        merged, new_sizes = merge_tokens(*tensors[:3], 20, 1)
        pruned = prune_tokens(tensors[0], tensors[3], 0.7, 1)
    assert {keras.backend.standardize_dtype(x.dtype) for x in (merged, pruned)} == {dtype}
    merged, new_sizes, pruned = to_numpy(
        [keras.ops.cast(x, "float32") for x in (merged, new_sizes, pruned)]
    )
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 2**-7, "atol": 2**-7}
    )
    for sample in range(2):
        expected, expected_sizes = tome(tokens[sample], sizes[sample], keys[sample], 20, 1)
        np.testing.assert_allclose(merged[sample], expected, **tolerance)
        np.testing.assert_array_equal(new_sizes[sample], expected_sizes)
        expected = evit(tokens[sample].astype("float64"), attention[sample], 0.7, 1)
        np.testing.assert_allclose(pruned[sample], expected, **tolerance)


def test_counts_of_tokens():
    assert [merged_tokens(n, 4) for n in (0, 1, 2, 7, 8, 100)] == [0, 0, 1, 3, 4, 4]
    # EViT at 224 px: 196 patches, 138 kept of them, and one that is made of the others.
    assert 196 - pruned_tokens(196, 0.7) == 138 + 1
    assert [pruned_tokens(10, rate) for rate in (1.0, 0.9, 0.8, 0.7, 0.1)] == [0, 0, 1, 2, 8]


def test_tokens_are_taken_from_their_own_sample():
    values = random(3, 5, 2)
    indices = np.array([[4, 0], [1, 1], [2, 3]], "int32")
    expected = np.take_along_axis(values, indices[..., None], axis=1)
    arguments = keras.ops.convert_to_tensor(values), keras.ops.convert_to_tensor(indices)
    np.testing.assert_array_equal(to_numpy(take_tokens(*arguments)), expected)


def blocks(**options):
    """A TransformerBlock and a TokenMergingBlock of the same random weights."""
    plain = layers.TransformerBlock(2, 24, prefix_tokens=1)
    merging = layers.TokenMergingBlock(2, 24, prefix_tokens=1, **options)
    for block in (plain, merging):
        block.build((None, 9, 16))
    weights = [random(*weight.shape, seed=i) * 0.4 for i, weight in enumerate(plain.weights)]
    plain.set_weights(weights), merging.set_weights(weights)
    return plain, merging


def test_merging_none_is_a_plain_block():
    plain, merging = blocks(token_merging=0)
    tokens = random(2, 9, 16)
    found, sizes = to_numpy(merging(tokens))
    # To rounding: the plain block's attention is the backend's own.
    np.testing.assert_allclose(found, to_numpy(plain(tokens)), atol=1e-5)
    np.testing.assert_array_equal(sizes, np.ones((2, 9)))


def test_a_block_is_its_equations():
    """Attention by sizes, then merging by the keys, then the MLP: from the weights, in float64."""
    _, block = blocks(token_merging=3)
    tokens, sizes = random(2, 9, 16), np.array([[1, 1, 2, 1, 3, 1, 1, 5, 1]] * 2, "float32")
    from reference_forward import gelu, layer_norm

    w = {p.path.split("/", 1)[1]: to_numpy(p.value).astype("float64") for p in block.weights}

    def dense(x, name):
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    def norm(x, name):
        return layer_norm(x, w[f"{name}/gamma"], w[f"{name}/beta"])

    found, found_sizes = to_numpy(block(tokens, sizes))
    for sample in range(2):
        x = tokens[sample].astype("float64")
        qkv = dense(norm(x, "attention_norm"), "attention/query_key_value")
        query, key, value = qkv.reshape(9, 3, 2, 8).transpose(1, 2, 0, 3)
        scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(8)) * sizes[sample]
        attended = scores / scores.sum(-1, keepdims=True) @ value
        x = x + dense(attended.transpose(1, 0, 2).reshape(9, 16), "attention/projection")
        x, left = tome(x, sizes[sample], key, 3, prefix=1)
        x = x + dense(gelu(dense(norm(x, "mlp_norm"), "mlp/expansion")), "mlp/projection")
        np.testing.assert_allclose(found[sample], x, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(found_sizes[sample], left)


@slow_on_jax
def test_equal_tokens_can_be_merged_without_loss():
    """Four pairs of equal patches: with half of them merged, every other token is what it was."""
    plain, merging = blocks(token_merging=4)
    tokens = random(2, 9, 16)
    tokens[:, 2::2] = tokens[:, 1::2]
    found, sizes = to_numpy(merging(tokens))
    np.testing.assert_array_equal(sizes, [[1, 2, 2, 2, 2]] * 2)
    np.testing.assert_allclose(found, to_numpy(plain(tokens))[:, [0, 1, 3, 5, 7]], atol=1e-5)
    # And with the sizes also the blocks after it compute what they would have.
    after, _ = to_numpy(blocks(token_merging=0)[1](found, sizes))
    expected = to_numpy(plain(plain(tokens)))
    np.testing.assert_allclose(after, expected[:, [0, 1, 3, 5, 7]], atol=1e-4)
    for pool in (layers.TokenPooling("avg"), layers.AttentionPooling(2, 8, prefix_tokens=1)):
        unmerged = to_numpy(pool(expected))
        np.testing.assert_allclose(to_numpy(pool(after, sizes)), unmerged, atol=1e-4)
        assert np.abs(to_numpy(pool(after)) - unmerged).max() < 1e-4  # Equal sizes are no sizes.
    uneven = np.array([[1, 1, 3]], "float32")
    mean = to_numpy(layers.TokenPooling("avg")(np.array([[[9.0], [2], [6]]], "float32"), uneven))
    np.testing.assert_allclose(mean, [[5.0]])


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_sizes_stay_exact_in_short_types(policy):
    block = layers.TokenMergingBlock(2, 24, token_merging=2, prefix_tokens=1, dtype=policy)
    sizes = np.full((2, 9), 4099, "float32")
    tokens, found = block(random(2, 9, 16), sizes)
    assert keras.backend.standardize_dtype(tokens.dtype) == block.compute_dtype
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert (to_numpy(found).sum(1) == 9 * 4099).all()


def test_a_pruning_block_asks_its_own_attention():
    plain, _ = blocks(token_merging=0)
    pruning = layers.TokenPruningBlock(2, 24, token_keep_rate=0.5, prefix_tokens=1)
    pruning.build((None, 9, 16))
    pruning.set_weights(plain.get_weights())
    tokens = random(2, 9, 16)
    found, unpruned = to_numpy(pruning(tokens)), to_numpy(plain(tokens))
    asked = to_numpy(plain.attention_weights(keras.ops.convert_to_tensor(tokens)))
    order = 1 + np.argsort(-asked[:, :, 0, 1:].mean(1))
    for sample in range(2):
        kept = [0, *order[sample, :4]]
        np.testing.assert_allclose(found[sample, :5], unpruned[sample, kept], atol=1e-5)
    assert found.shape == (2, 1 + 4 + 1, 16)


def test_patch_dropout_keeps_patches_at_random_and_in_order():
    layer = layers.PatchDropout(0.6, prefix_tokens=2, seed=3)
    tokens = np.broadcast_to(np.arange(12, dtype="float32")[None, :, None], (3000, 12, 1))
    found = to_numpy(layer(tokens, training=True))[..., 0]
    assert found.shape == (3000, 2 + 4)
    np.testing.assert_array_equal(found[:, :2], [[0, 1]] * 3000)
    assert (np.diff(found, axis=1) > 0).all()
    # Each patch in four of ten samples: four standard deviations.
    shares = [(found == patch).any(1).mean() for patch in range(2, 12)]
    assert np.abs(np.array(shares) - 0.4).max() < 4 * np.sqrt(0.4 * 0.6 / 3000)
    # And pairs as often as if drawn without looking: 4/10 * 3/9.
    both = ((found == 2).any(1) & (found == 3).any(1)).mean()
    assert abs(both - 4 / 10 * 3 / 9) < 4 * np.sqrt(0.134 * 0.866 / 3000)
    assert (to_numpy(layer(tokens, training=True))[..., 0] != found).any()
    np.testing.assert_array_equal(to_numpy(layer(tokens)), tokens)


@pytest.mark.parametrize(("rate", "kept"), [(0.9, 1), (0.99, 1), (0.7, 3), (0.05, 9)])
def test_patch_dropout_keeps_a_fixed_number(rate, kept):
    found = layers.PatchDropout(rate, prefix_tokens=1)(random(2, 11, 4), training=True)
    assert found.shape == (2, 1 + kept, 4)


@pytest.mark.slow
def test_a_compiled_training_step_drops_and_merges():
    inputs = keras.Input((17, 16))
    x = layers.PatchDropout(0.5, prefix_tokens=1)(inputs)
    x, sizes = layers.TokenMergingBlock(2, 24, token_merging=3, prefix_tokens=1)(x)
    x = layers.TokenPooling("token+avg")(x, sizes)
    model = keras.Model(inputs, x)
    before = [to_numpy(weight.value).copy() for weight in model.trainable_weights]
    jit = keras.backend.backend() != "torch"
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse", jit_compile=jit)
    assert np.isfinite(model.train_on_batch(random(4, 17, 16), random(4, 32, seed=1)))
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.abs(to_numpy(weight.value) - old).max() > 0, weight.path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.PatchDropout(1.0), r"`rate` must be in \[0, 1\)"),
        (lambda: layers.TokenMergingBlock(2, 8, token_merging=-1), "token_merging=-1"),
        (
            lambda: layers.TokenMergingBlock(2, 8, token_merging=1, positions="rope", grid=(2, 2)),
            "`positions`",
        ),
        (lambda: layers.TokenPruningBlock(2, 8, token_keep_rate=0.0, prefix_tokens=1), "rate=0.0"),
        (lambda: layers.TokenPruningBlock(2, 8, token_keep_rate=0.5), "prefix_tokens=0"),
        (
            lambda: layers.TokenPruningBlock(
                2, 8, token_keep_rate=0.5, prefix_tokens=1, positions="rope", grid=(2, 2)
            ),
            "`positions`",
        ),
        (
            lambda: layers.TokenMergingBlock(2, 8, token_merging=1, prefix_tokens=1)(
                random(1, 5, 4), output_tokens=2
            ),
            "output_tokens=2, prefix_tokens=1",
        ),
        (lambda: layers.TokenMergingBlock(2, 8, token_merging=2.5), "token_merging=2.5"),
        (
            lambda: layers.TokenMergingBlock(2, 8, token_merging=1)(keras.Input((None, 4))),
            "an unknown number of tokens, prefix_tokens=0",
        ),
        (
            lambda: layers.TokenMergingBlock(2, 8, token_merging=1, prefix_tokens=3)(
                random(1, 2, 4)
            ),
            "2 tokens, prefix_tokens=3",
        ),
        (
            lambda: layers.TokenPruningBlock(2, 8, token_keep_rate=0.5, prefix_tokens=1)(
                keras.Input((None, 4))
            ),
            "an unknown number of tokens, prefix_tokens=1",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "option", [{"remat": True}, {"efficient_drop_path": True}, {"window_size": 2, "grid": (4, 4)}]
)
@pytest.mark.parametrize(
    ("block", "fewer"),
    [
        (layers.TokenMergingBlock, {"token_merging": 1}),
        (layers.TokenPruningBlock, {"token_keep_rate": 0.5}),
    ],
)
def test_options_that_would_be_ignored_are_refused(block, fewer, option):
    with pytest.raises(ValueError, match=f"`{next(iter(option))}` is not there.*leave it out"):
        block(2, 8, prefix_tokens=1, **fewer, **option)
