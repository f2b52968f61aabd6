"""The ResNet of hybrids, beside its equations in NumPy: float64, loops, no code of keras_vit."""

import keras
import numpy as np
import pytest
from parameters import slow_on_jax

from keras_vit.layers import ResidualUnit, ResNetStem, WeightStandardizedConv
from keras_vit.layers.resnet_stem import stem_channels, stem_stride

RULES = ("google", "timm")


def standardize(kernel, rule):
    mean, variance = kernel.mean((0, 1, 2)), kernel.var((0, 1, 2))
    if rule == "google":
        return (kernel - mean) / (np.sqrt(variance) + 1e-5)
    return (kernel - mean) / np.sqrt(variance + 1e-8)


def windows(images, size, stride, padding):
    """Each output position's window, padded so that an odd row or column goes to the end."""
    outputs = [-(-side // stride) for side in images.shape[1:3]]
    pads = [
        max((count - 1) * stride + size - side, 0)
        for count, side in zip(outputs, images.shape[1:3], strict=True)
    ]
    pads = [(pad // 2, pad - pad // 2) for pad in pads]
    images = np.pad(images, [(0, 0), *pads, (0, 0)], constant_values=padding)
    return [
        [images[:, i * stride :, j * stride :][:, :size, :size] for j in range(outputs[1])]
        for i in range(outputs[0])
    ]


def convolve(images, kernel, stride, rule):
    kernel = standardize(kernel, rule)
    rows = windows(images, kernel.shape[0], stride, 0.0)
    rows = [[np.einsum("bhwc,hwcf->bf", window, kernel) for window in row] for row in rows]
    return np.array(rows).transpose(2, 0, 1, 3)


def max_pool(images):
    rows = windows(images, 3, 2, -np.inf)
    return np.array([[window.max((1, 2)) for window in row] for row in rows]).transpose(2, 0, 1, 3)


def group_norm(x, gamma, beta, rule):
    groups = np.split(x, 32, axis=-1)
    epsilon = {"google": 1e-6, "timm": 1e-5}[rule]
    groups = [
        (group - group.mean((1, 2, 3), keepdims=True))
        / np.sqrt(group.var((1, 2, 3), keepdims=True) + epsilon)
        for group in groups
    ]
    return np.concatenate(groups, axis=-1) * gamma + beta


def stem_forward(weights, images, blocks, rule):
    def step(x, conv, norm, stride=1):
        x = convolve(x, weights[f"{conv}/kernel"], stride, rule)
        return group_norm(x, weights[f"{norm}/gamma"], weights[f"{norm}/beta"], rule)

    x = max_pool(np.maximum(step(images, "root_conv", "root_norm", 2), 0.0))
    for stage, units in enumerate(blocks):
        for unit in range(units):
            name = f"stage_{stage}_unit_{unit}"
            stride = 2 if stage and not unit else 1
            shortcut = x
            if not unit:
                shortcut = step(x, f"{name}/projection", f"{name}/projection_norm", stride)
            y = np.maximum(step(x, f"{name}/conv1", f"{name}/norm1"), 0.0)
            y = np.maximum(step(y, f"{name}/conv2", f"{name}/norm2", stride), 0.0)
            x = np.maximum(shortcut + step(y, f"{name}/conv3", f"{name}/norm3"), 0.0)
    return x


def randomize(layer):
    """Random values for all weights; kernels are small enough for the epsilons to count."""
    rng = np.random.default_rng(0)
    values = {}
    for weight in layer.weights:
        name = weight.path.split("/", 1)[1]
        kernel = name.endswith("kernel")
        value = (
            rng.normal(0.001, 0.003, weight.shape) if kernel else rng.normal(1, 0.3, weight.shape)
        )
        weight.assign(value.astype("float32"))
        values[name] = value.astype("float32").astype("float64")
    return values


def to_numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("blocks", "width", "size"),
    [((), 64, (33, 50)), ((1, 2), 32, (40, 24)), ((1, 1), 32, (18, 27))],
)
def test_the_stem_is_its_equations(blocks, width, size, rule):
    stem = ResNetStem(blocks, width, rule=rule, name="stem")
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")
    stem.build(images.shape)
    weights = randomize(stem)
    found = to_numpy(stem(images))
    by_rule = {
        name: stem_forward(weights, images.astype("float64"), blocks, name) for name in RULES
    }
    expected = by_rule.pop(rule)
    assert found.shape == expected.shape == stem.compute_output_shape(images.shape)
    bound = 2e-5 * np.abs(expected).max()
    assert np.abs(found - expected).max() < bound
    for other in by_rule.values():
        assert np.abs(found - other).max() > 2 * bound


def test_weights_are_named_by_stage_unit_and_part():
    stem = ResNetStem((1, 2), 32, name="stem")
    stem.build((None, 32, 32, 3))
    unit = [
        f"{part}/{weight}"
        for number in (1, 2, 3)
        for part, weight in (
            (f"conv{number}", "kernel"),
            (f"norm{number}", "gamma"),
            (f"norm{number}", "beta"),
        )
    ]
    projected = [*unit, "projection/kernel", "projection_norm/gamma", "projection_norm/beta"]
    expected = ["stem/root_conv/kernel", "stem/root_norm/gamma", "stem/root_norm/beta"]
    for name, parts in (
        ("stage_0_unit_0", projected),
        ("stage_1_unit_0", projected),
        ("stage_1_unit_1", unit),
    ):
        expected += [f"stem/{name}/{part}" for part in parts]
    assert [weight.path for weight in stem.weights] == expected


@pytest.mark.parametrize(
    ("blocks", "stride", "channels"),
    [((), 4, 64), ((3,), 4, 256), ((3, 4, 9), 16, 1024), ((2, 2, 2, 2), 32, 2048)],
)
def test_stride_and_channels(blocks, stride, channels):
    stem = ResNetStem(blocks)
    assert (stem.stride, stem.channels) == (stride, channels)
    assert (stem_stride(blocks), stem_channels(blocks, 64)) == (stride, channels)
    shape = stem.compute_output_shape((None, 224, 225, 3))
    assert shape == (None, 224 // stride, -(-225 // stride), channels)
    assert stem.compute_output_shape((2, None, None, 3)) == (2, None, None, channels)


@slow_on_jax
def test_r50_has_as_many_weights_as_published():
    stem = ResNetStem((3, 4, 9))
    stem.build((None, 224, 224, 3))
    # R50+B/16 less the transformer: that of B/16 with patches of one pixel and 1024 channels.
    transformer = 86_567_656 - 16 * 16 * 3 * 768 + 1024 * 768
    assert stem.count_params() == 98_659_112 - transformer


def test_the_kernel_is_standardized_before_it_is_rounded():
    layer = WeightStandardizedConv(8, 3, dtype="mixed_bfloat16")
    images = np.random.default_rng(0).normal(size=(1, 5, 5, 4)).astype("float32")
    layer(images)
    # Near 100 bfloat16 has steps of a half, in which this kernel would vanish.
    kernel = np.random.default_rng(1).normal(100.0, 0.1, (3, 3, 4, 8)).astype("float32")
    layer.kernel.assign(kernel)
    expected = convolve(images.astype("float64"), kernel.astype("float64"), 1, "google")
    found = layer(images)
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    assert np.abs(to_numpy(found) - expected).max() < 0.02 * np.abs(expected).max()


def test_a_new_unit_hands_on_its_shortcut():
    unit = ResidualUnit(32)
    inputs = np.random.default_rng(0).normal(size=(2, 4, 4, 128)).astype("float32")
    np.testing.assert_array_equal(to_numpy(unit(inputs)), np.maximum(inputs, 0.0))
    assert unit.projection is None


def test_it_computes_the_same_where_keras_prefers_channels_first():
    images = np.random.default_rng(1).normal(size=(2, 16, 24, 3)).astype("float32")
    stem = ResNetStem((1,), 32)
    expected = to_numpy(stem(images))
    try:
        keras.config.set_image_data_format("channels_first")
        twin = ResNetStem.from_config(stem.get_config())
        twin.build(images.shape)
        twin.set_weights(stem.get_weights())
        np.testing.assert_array_equal(to_numpy(twin(images)), expected)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_bad_arguments():
    with pytest.raises(ValueError, match="`blocks` must give each stage at least one unit"):
        ResNetStem((3, 0))
    for width in (0, 16, 48):
        with pytest.raises(ValueError, match="`width` must be a positive multiple of 32"):
            ResNetStem((), width)
        with pytest.raises(ValueError, match="`width` must be a positive multiple of 32"):
            ResidualUnit(width)
    with pytest.raises(ValueError, match="Unknown rule of a stem. Did you mean google"):
        ResNetStem((), rule="Gogle")
    with pytest.raises(ValueError, match="`filters` must be positive"):
        WeightStandardizedConv(0, 3)
    with pytest.raises(ValueError, match="`strides` must be a positive int"):
        WeightStandardizedConv(8, 3, strides=0)
    for epsilons in ((0.0, 0.0), (-1e-5, 1e-5)):
        with pytest.raises(ValueError, match="must not be negative, nor both zero"):
            WeightStandardizedConv(
                8, 3, variance_epsilon=epsilons[0], deviation_epsilon=epsilons[1]
            )
