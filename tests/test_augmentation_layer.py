"""`Augment` as a Keras layer, with the batches of `TrainingBatches`."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parameters import slow_except
from PIL import Image

from keras_vit.data import Augment, Augmentation, ImageSet, TrainingBatches

REPOSITORY = Path(__file__).resolve().parents[1]
EVERYTHING = {
    "crop": "inception",
    "augment": "randaugment",
    "color_jitter": 0.3,
    "random_erasing": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
}


def image_set(size=(9, 11), count=20):
    images = np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype="uint8")
    return ImageSet(images, np.arange(count, dtype="int32") % 4, tuple("abcd"))


def batches(policy, batch_size=6, **options):
    return TrainingBatches(
        options.pop("images", None) or image_set(),
        batch_size=batch_size,
        seed=0,
        augmentation=policy,
        **options,
    )


def run(layer, inputs):
    return keras.ops.convert_to_numpy(layer(inputs))


def graph_inputs(stream):
    return {
        name: keras.Input(shape, dtype=dtype, name=name)
        for name, (shape, dtype) in stream.input_spec.items()
    }


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.fixed_dictionaries(
        {
            "image_size": st.tuples(st.integers(4, 20), st.integers(4, 20)),
            "crop": st.sampled_from(["resize", "squash", "inception", "pad"]),
            "interpolation": st.sampled_from(["nearest", "bilinear", "bicubic"]),
            "augment": st.sampled_from(["none", "randaugment", "augmix", "three"]),
            "augment_operations": st.integers(1, 3),
            "augment_magnitude": st.integers(0, 10),
            "color_jitter": st.sampled_from([0.0, 0.4]),
            "random_erasing": st.sampled_from([0.0, 1.0]),
            "mixup": st.sampled_from([0.0, 0.8]),
            "cutmix": st.sampled_from([0.0, 1.0]),
        }
    ),
    st.tuples(st.integers(2, 20), st.integers(2, 20)),
    st.integers(1, 20),
)
def test_any_policy_gives_images_of_its_size(options, source_size, batch_size):
    policy = Augmentation(**options)
    inputs, targets = batches(policy, batch_size, images=image_set(source_size))[1]
    outputs = run(Augment(policy), inputs)
    assert outputs.dtype == np.float32 and outputs.shape == (batch_size, *policy.size, 3)
    assert np.isfinite(outputs).all() and outputs.min() >= 0 and outputs.max() <= 255.001
    assert len(targets) == batch_size


def test_the_same_inputs_give_the_same_images():
    policy = Augmentation(16, **EVERYTHING)
    stream = batches(policy)
    np.testing.assert_array_equal(
        run(Augment(policy), stream[2][0]), run(Augment(policy), stream[2][0])
    )


def test_micro_batches_give_what_the_batch_gives():
    """But for the partners, each image is on its own."""
    policy = Augmentation(16, crop="inception", augment="randaugment", random_erasing=0.5)
    inputs, _ = batches(policy, 12)[0]
    whole = run(Augment(policy), inputs)
    parts = [
        run(Augment(policy), {name: array[start : start + 4] for name, array in inputs.items()})
        for start in (0, 4, 8)
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_images_may_come_one_by_one(backend):
    """Of each policy, on each backend, eagerly and compiled."""
    pytest.importorskip(backend)
    code = """
        import sys
        import keras, numpy as np
        from keras_vit.data import Augment, Augmentation, ImageSet, TrainingBatches

        assert keras.backend.backend() == sys.argv[1]
        arrays = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype="uint8")
        images = ImageSet(arrays, np.arange(3, dtype="int32") % 2, ("a", "b"))
        for options in (
            {"augment": "randaugment"},
            {"augment": "augmix"},
            {"augment": "three"},
            {"color_jitter": 0.4},
        ):
            policy = Augmentation(16, **options)
            stream = TrainingBatches(images, batch_size=3, seed=0, augmentation=policy)
            inputs, _ = stream[0]
            layer = Augment(policy)

            def compiled(count):
                spec = {
                    name: keras.Input(
                        batch_shape=(count, *array.shape[1:]), dtype=str(array.dtype), name=name
                    )
                    for name, array in inputs.items()
                }
                return keras.Model(spec, layer(spec)).predict_on_batch

            for of_all, of_one in ((layer, layer), (compiled(3), compiled(1))):
                expected = keras.ops.convert_to_numpy(of_all(inputs))
                assert abs(expected - arrays).max() > 9
                for index in range(3):
                    one = {name: array[index : index + 1] for name, array in inputs.items()}
                    differing = abs(keras.ops.convert_to_numpy(of_one(one))[0] - expected[index])
                    # What is rounded to whole values may fall to either side.
                    assert np.mean(differing > 0.01) < 0.01 and differing.max() < 4, options
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), backend],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_partners_of_a_micro_batch_are_found_in_it():
    plain = Augmentation(16, horizontal_flip=False, resize_size=16)
    policy = Augmentation(16, horizontal_flip=False, resize_size=16, mixup=1.0)
    inputs, _ = batches(policy, 12, micro_batch_size=4)[0]
    unmixed = run(Augment(plain), {name: inputs[name] for name in ("images", "boxes")})
    for start in (0, 4, 8):
        part = {name: array[start : start + 4] for name, array in inputs.items()}
        own, ratio = unmixed[start : start + 4], part["mix_ratios"][0]
        expected = ratio * own + (1 - ratio) * own[::-1]
        np.testing.assert_allclose(run(Augment(policy), part), expected, atol=1e-3)


def test_images_from_disk_are_cropped_on_the_host_as_on_the_device(tmp_path):
    """The same draws, boxes and flips: the images agree but for the rounding of the host."""
    y, x = np.mgrid[:40, :60]
    arrays = [
        np.stack([3 * x, 4 * y, 2 * (x + y) - 20 * index], axis=-1).clip(0, 255).astype("uint8")
        for index in range(6)
    ]
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    labels, names = np.arange(6, dtype="int32") % 4, tuple("abcd")
    in_memory = ImageSet(np.stack(arrays), labels, names)
    on_disk = ImageSet(tuple(tmp_path / f"{index}.png" for index in range(6)), labels, names)
    for crop in ("resize", "squash", "inception", "pad"):
        policy = Augmentation((16, 20), crop=crop, mixup=0.4)
        device, host = batches(policy, images=in_memory)[3], batches(policy, images=on_disk)[3]
        assert "boxes" in device[0] and "boxes" not in host[0]
        assert host[0]["images"].shape == (6, 16, 20, 3)
        found, expected = (run(Augment(policy), inputs) for inputs, _ in (host, device))
        np.testing.assert_allclose(found, expected, atol=1.01)
        np.testing.assert_array_equal(host[1], device[1])
        spec = batches(policy, images=on_disk).input_spec
        assert spec["images"] == ((16, 20, 3), "uint8") and "boxes" not in spec


# as a Keras layer --------------------------------------------------------------------------------


def test_shapes_and_dtypes_are_known_in_a_graph():
    policy = Augmentation((16, 12), **EVERYTHING)
    symbolic = Augment(policy)(graph_inputs(batches(policy)))
    assert symbolic.shape == (None, 16, 12, 3) and symbolic.dtype == "float32"


@pytest.mark.parametrize(
    "dtype",
    slow_except(["mixed_bfloat16", "mixed_float16", "bfloat16"], fast=["mixed_bfloat16"]),
)
def test_pixels_stay_float32_under_every_policy(dtype):
    policy = Augmentation(16, **EVERYTHING)
    inputs, _ = batches(policy)[0]
    layer = Augment(policy, dtype=dtype)
    assert layer(graph_inputs(batches(policy))).dtype == "float32"
    np.testing.assert_array_equal(run(layer, inputs), run(Augment(policy), inputs))


def test_the_config_rebuilds_the_layer():
    policy = Augmentation((16, 20), **EVERYTHING)
    layer = Augment(policy, name="augment")
    rebuilt = Augment.from_config(layer.get_config())
    assert rebuilt.augmentation == policy and rebuilt.get_config() == layer.get_config()


def test_a_model_trains_and_is_saved_with_it(tmp_path):
    policy = Augmentation(14, **EVERYTHING)
    small, large = batches(policy, 4), batches(policy, 10)
    inputs = graph_inputs(small)
    pixels = keras.layers.Rescaling(1 / 255)(Augment(policy)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(pixels)))
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    before = model.get_weights()[0]
    # Two batch sizes: the graph must not fix the first one.
    for stream in (small, large, small):
        assert np.isfinite(model.train_on_batch(*stream[0]))
    assert (model.get_weights()[0] != before).any()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        model.predict_on_batch(large[1][0]), again.predict_on_batch(large[1][0])
    )


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the others always compile, or know no XLA"
)
@pytest.mark.parametrize("augment", ["randaugment", "augmix", "three"])
def test_xla_compiles_it(augment):
    import tensorflow as tf

    policy = Augmentation(16, **{**EVERYTHING, "augment": augment})
    inputs, _ = batches(policy)[0]
    layer = Augment(policy)
    compiled = keras.ops.convert_to_numpy(tf.function(layer, jit_compile=True)(inputs))
    # Where the crop is rounded to whole pixels, XLA may round up what TensorFlow rounds down.
    assert np.mean(abs(compiled - run(layer, inputs)) > 1.01) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_every_backend_makes_the_same_images(tmp_path, backend):
    pytest.importorskip(backend)
    code = """
        import sys
        import keras, numpy as np
        from keras_vit.data import Augment, Augmentation

        assert keras.backend.backend() == sys.argv[2]
        for name in ("randaugment", "three"):
            with np.load(f"{sys.argv[1]}/{name}.npz") as arrays:
                inputs = dict(arrays)
            expected = inputs.pop("expected")
            policy = Augmentation(
                16, augment=name, color_jitter=0.3, random_erasing=0.5, mixup=0.8, cutmix=1.0
            )
            spec = {
                key: keras.Input(array.shape[1:], dtype=str(array.dtype), name=key)
                for key, array in inputs.items()
            }
            outputs = keras.Model(spec, Augment(policy)(spec)).predict_on_batch(inputs)
            # What is rounded to whole values may fall to either side.
            assert np.mean(abs(outputs - expected) > 0.01) < 0.002, name
            assert abs(outputs - expected).max() < 3, name
    """
    for name in ("randaugment", "three"):
        policy = Augmentation(
            16, augment=name, color_jitter=0.3, random_erasing=0.5, mixup=0.8, cutmix=1.0
        )
        inputs, _ = batches(policy, 16, images=image_set((16, 16)))[0]
        del inputs["boxes"]
        np.savez(tmp_path / f"{name}.npz", **inputs, expected=run(Augment(policy), inputs))
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), backend],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_images_without_boxes_must_be_of_the_size():
    images = np.zeros((2, 8, 9, 3), "uint8")
    with pytest.raises(ValueError, match=r"must be of the size \(16, 16\).*\(2, 8, 9, 3\)"):
        Augment(Augmentation(16))({"images": images})


def test_an_input_of_unknown_size_is_refused():
    inputs = {"images": keras.Input((None, 8, 3), dtype="uint8"), "boxes": keras.Input((4,))}
    with pytest.raises(ValueError, match="only the batch unknown"):
        Augment(Augmentation(16))(inputs)
