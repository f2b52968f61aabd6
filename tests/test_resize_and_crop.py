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


def run(layer, images):
    return keras.ops.convert_to_numpy(layer(images))


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(st.integers(2, 24), st.integers(2, 24)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([0.8, 1.0]),
    st.sampled_from(["center", "squash"]),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
def test_images_are_prepared_as_on_the_host(
    source_size, image_size, crop_fraction, crop_mode, interpolation
):
    policy = {
        "crop_fraction": crop_fraction,
        "crop_mode": crop_mode,
        "interpolation": interpolation,
    }
    images = noise(2, *source_size, 3)
    outputs = run(ResizeAndCrop(image_size, **policy), images)
    assert outputs.dtype == np.float32
    for output, image in zip(outputs, images, strict=True):
        expected = prepare_image(image, image_size, ImagePreprocessing(**policy))
        np.testing.assert_allclose(output, expected, atol=0.02)


def test_bicubic_overshoot_is_clipped():
    images = np.zeros((4, 6, 6, 3), "uint8")
    images[:, 3:, 3:] = 255
    outputs = run(ResizeAndCrop(21, interpolation="bicubic"), images)
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
        (14, 21), crop_fraction=0.9, crop_mode="squash", interpolation="nearest", name="resize"
    )
    rebuilt = ResizeAndCrop.from_config(layer.get_config())
    assert rebuilt.get_config() == layer.get_config()
    images = noise(4, 8, 8, 3)
    np.testing.assert_array_equal(run(layer, images), run(rebuilt, images))


def test_a_model_trains_and_is_saved_with_it(tmp_path):
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(ResizeAndCrop(14)(inputs)))
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
        ({"image_size": 0}, "`image_size` must be a positive int or a pair.*image_size=0"),
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
