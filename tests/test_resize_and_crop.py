"""ResizeAndCrop, on whatever backend KERAS_BACKEND names."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vit.data import ResizeAndCrop, prepare_image
from keras_vit.layers import ImagePreprocessing

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype="uint8")


def run(layer, images, **options):
    return keras.ops.convert_to_numpy(layer(images, **options))


def resized(image, size, interpolation="bilinear"):
    """The whole resized image, by the arithmetic of the host."""
    policy = ImagePreprocessing(crop_mode="squash", interpolation=interpolation)
    return prepare_image(image, size, policy)


def find_crop(crop, whole):
    """`(top, left, mirrored)` of a crop in a resized image; fails if it is nowhere in it."""
    height, width, _ = crop.shape
    for mirrored in (False, True):
        wanted = crop[:, ::-1] if mirrored else crop
        for top in range(whole.shape[0] - height + 1):
            for left in range(whole.shape[1] - width + 1):
                part = whole[top : top + height, left : left + width]
                if abs(part - wanted).max() < 0.02:
                    return top, left, mirrored
    raise AssertionError("The output is no crop of the resized image")


# evaluation --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(st.integers(2, 24), st.integers(2, 24)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([0.8, 1.0]),
    st.sampled_from(["center", "squash"]),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
def test_evaluation_prepares_as_the_host_does(
    source_size, image_size, crop_fraction, crop_mode, interpolation
):
    policy = {
        "crop_fraction": crop_fraction,
        "crop_mode": crop_mode,
        "interpolation": interpolation,
    }
    images = noise(2, *source_size, 3)
    outputs = run(ResizeAndCrop(image_size, **policy), images, training=False)
    assert outputs.dtype == np.float32
    for output, image in zip(outputs, images, strict=True):
        expected = prepare_image(image, image_size, ImagePreprocessing(**policy))
        np.testing.assert_allclose(output, expected, atol=0.02)


def test_evaluation_is_the_default_and_draws_nothing():
    images = noise(2, 8, 8, 3)
    layer = ResizeAndCrop(14)
    state = np.asarray(keras.ops.convert_to_numpy(layer.seed_generator.state))
    np.testing.assert_array_equal(run(layer, images), run(layer, images, training=False))
    np.testing.assert_array_equal(state, keras.ops.convert_to_numpy(layer.seed_generator.state))


# training ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(
    st.tuples(st.integers(4, 16), st.integers(4, 16)),
    st.sampled_from([(12, 12), (9, 14)]),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
def test_training_hands_out_crops_of_the_image_that_covers(source_size, image_size, interpolation):
    layer = ResizeAndCrop(image_size, resize_size=15, interpolation=interpolation, seed=0)
    images = noise(4, *source_size, 3)
    outputs = run(layer, images, training=True)
    assert outputs.dtype == np.float32
    height, width = source_size
    scale = max(15 / height, 15 / width)
    covering = max(15, int(height * scale + 1e-9)), max(15, int(width * scale + 1e-9))
    for output, image in zip(outputs, images, strict=True):
        find_crop(output, resized(image, covering, interpolation))


def test_crops_and_flips_are_drawn_evenly_and_apart_for_each_image():
    image = noise(6, 6, 3)
    layer = ResizeAndCrop(14, resize_size=16, seed=0)
    outputs = run(layer, np.repeat(image[None], 900, axis=0), training=True)
    whole = resized(image, (16, 16))
    found = np.array([find_crop(output, whole) for output in outputs])
    # 3 rows times 3 columns times 2 sides, 50 of each expected.
    counts = np.bincount(found[:, 0] * 6 + found[:, 1] * 2 + found[:, 2], minlength=18)
    assert len(counts) == 18
    # The chi-squared statistic of 17 degrees of freedom is above 40.8 once in a thousand.
    assert ((counts - 50) ** 2 / 50).sum() < 40.8


def test_without_flips_no_image_is_mirrored():
    image = noise(6, 6, 3)
    layer = ResizeAndCrop(14, resize_size=16, horizontal_flip=False, seed=0)
    outputs = run(layer, np.repeat(image[None], 50, axis=0), training=True)
    whole = resized(image, (16, 16))
    assert not any(find_crop(output, whole)[2] for output in outputs)


def test_the_seed_decides_the_sequence():
    images = noise(32, 8, 8, 3)

    def sequence(seed):
        layer = ResizeAndCrop(14, seed=seed)
        return np.stack([run(layer, images, training=True) for _ in range(2)])

    first = sequence(1)
    np.testing.assert_array_equal(first, sequence(1))
    assert (first != sequence(2)).any()
    assert (first[0] != first[1]).any()


def test_the_crop_is_taken_from_eight_sevenths_unless_said_otherwise():
    images = noise(8, 8, 8, 3)
    np.testing.assert_array_equal(
        run(ResizeAndCrop(14, seed=3), images, training=True),
        run(ResizeAndCrop(14, resize_size=16, seed=3), images, training=True),
    )


def test_bicubic_overshoot_is_clipped():
    images = np.zeros((4, 6, 6, 3), "uint8")
    images[:, 3:, 3:] = 255
    layer = ResizeAndCrop(21, interpolation="bicubic", seed=0)
    for training in (False, True):
        outputs = run(layer, images, training=training)
        assert outputs.min() == 0.0 and outputs.max() == 255.0


# as a Keras layer --------------------------------------------------------------------------------


def test_shapes_and_dtypes_are_known_in_a_graph():
    layer = ResizeAndCrop((16, 12))
    symbolic = layer(keras.Input((8, 9, 3), dtype="uint8"))
    assert symbolic.shape == (None, 16, 12, 3) and symbolic.dtype == "float32"
    assert layer.compute_output_shape((None, 8, 9, 3)) == (None, 16, 12, 3)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_pixels_stay_float32_under_every_policy(policy):
    images = noise(2, 8, 8, 3)
    layer = ResizeAndCrop(14, dtype=policy)
    assert layer(keras.Input((8, 8, 3), dtype="uint8")).dtype == "float32"
    np.testing.assert_array_equal(run(layer, images), run(ResizeAndCrop(14), images))


def test_the_config_rebuilds_the_layer():
    layer = ResizeAndCrop(
        (14, 21), resize_size=28, crop_fraction=0.9, crop_mode="squash",
        interpolation="nearest", horizontal_flip=False, seed=7, name="resize",
    )  # fmt: skip
    rebuilt = ResizeAndCrop.from_config(layer.get_config())
    assert rebuilt.get_config() == layer.get_config()
    images = noise(4, 8, 8, 3)
    for training in (False, True):
        np.testing.assert_array_equal(
            run(layer, images, training=training), run(rebuilt, images, training=training)
        )
    assert ResizeAndCrop.from_config(ResizeAndCrop(14).get_config()).resize_size is None


def test_a_model_trains_and_is_saved_with_it(tmp_path):
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(ResizeAndCrop(14, seed=0)(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = noise(6, 8, 8, 3), np.array([0, 1, 0, 1, 0, 1], "int32")
    # Two batch sizes: the graph must not fix the first one.
    model.train_on_batch(images, labels)
    model.train_on_batch(images[:4], labels[:4])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        model.predict(images, verbose=0), again.predict(images, verbose=0)
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 0}, "must be at least 1. Received: 0"),
        ({"resize_size": 13}, r"`resize_size` must not be below .*resize_size=\(13, 13\)"),
        ({"crop_fraction": 0}, "crop_fraction=0"),
        (
            {"crop_mode": "border"},
            "`crop_mode` must be one of center, squash. Received: crop_mode='border'",
        ),
        (
            {"interpolation": "area"},
            "`interpolation` must be one of nearest.*Received: interpolation='area'",
        ),
    ],
)
def test_arguments_outside_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        ResizeAndCrop(**{"image_size": 14, **options})


@pytest.mark.parametrize("shape", [(None, None, 3), (8, None, 3)])
def test_an_input_of_unknown_size_is_refused(shape):
    with pytest.raises(ValueError, match="only the batch unknown"):
        ResizeAndCrop(14)(keras.Input(shape, dtype="uint8"))
