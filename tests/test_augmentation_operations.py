"""Image operations on batches, beside Pillow's on one image; on whatever backend is set."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parameters import slow_except
from PIL import Image, ImageEnhance, ImageOps

from keras_vit.data import Augment, Augmentation
from keras_vit.data.augmentation import (
    OPERATIONS,
    crop_boxes,
    draw_crops,
    draw_erasing,
    draw_operations,
)
from keras_vit.data.batches import crop_image

TABLES = (
    "autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add", "contrast",
    "brightness",
)  # fmt: skip
ON_COLOUR = (*TABLES, "color", "sharpness", "blur")


# definitions for one image -----------------------------------------------------------------------


def on_one_image(name, image, value):
    """An operation on one uint8 image, by Pillow where it has it."""
    picture, value = Image.fromarray(image), float(value)
    if name in ("contrast", "brightness", "color", "sharpness"):
        return np.asarray(getattr(ImageEnhance, name.capitalize())(picture).enhance(value))
    if name == "blur":
        return gaussian_blur(image, value)
    if name == "solarize_add":
        table = [min(255, level + int(value)) if level < 128 else level for level in range(256)]
        return np.asarray(picture.point(table * 3))
    if name == "posterize":
        return np.asarray(ImageOps.posterize(picture, int(value))) if value else image * 0
    arguments = [int(value)] if name == "solarize" else []
    return np.asarray(getattr(ImageOps, name)(picture, *arguments))


def gaussian_blur(image, sigma):
    """An axis after the other, the border repeated; Pillow's is an approximation of it."""
    reach = 8
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(image.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    for axis in (0, 1):
        padded = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    return np.rint(padded).astype("uint8")


def clip(place, size):
    return min(max(place, 0), size - 1)


def bilinear(image, matrix):
    """Bilinear resampling by a 3 x 3 matrix, pixel by pixel; also how sure each pixel is.

    Returns:
        The image and which pixels are not within a hair of the border between image and grey.
    """
    height, width, _ = image.shape
    result, sure = np.full(image.shape, 128.0), np.ones((height, width), bool)
    for row in range(height):
        for column in range(width):
            x, y, _ = matrix @ (column + 0.5, row + 0.5, 1)
            sure[row, column] = min(abs(x), abs(y), abs(x - width), abs(y - height)) > 1e-3
            if not (0 <= x < width and 0 <= y < height):
                continue
            x, y = x - 0.5, y - 0.5
            left, top = int(np.floor(x)), int(np.floor(y))
            result[row, column] = sum(
                weight
                * image[np.clip(top + below, 0, height - 1), np.clip(left + beside, 0, width - 1)]
                for below, beside, weight in (
                    (0, 0, (1 - x + left) * (1 - y + top)),
                    (0, 1, (x - left) * (1 - y + top)),
                    (1, 0, (1 - x + left) * (y - top)),
                    (1, 1, (x - left) * (y - top)),
                )
            )
    return result, sure


def matrix_of(name, value, width, height):
    """What a geometric operation does to places, from its definition."""
    matrix = np.eye(3)
    if name == "rotate":
        cosine, sine = np.cos(np.deg2rad(value)), np.sin(np.deg2rad(value))
        matrix[:2, :2] = [[cosine, -sine], [sine, cosine]]
        to_middle = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
        return np.linalg.inv(to_middle) @ matrix @ to_middle
    place, factor = {
        "shear_x": ((0, 1), 1), "shear_y": ((1, 0), 1),
        "translate_x": ((0, 2), width), "translate_y": ((1, 2), height),
    }[name]  # fmt: skip
    matrix[place] = value * factor
    return matrix


def in_sequence(image, kinds, values):
    """The operations of one image: those on colour one after the other, then one resampling."""
    height, width, _ = image.shape
    matrix = np.eye(3)
    for kind, value in zip(kinds, values, strict=True):
        name = OPERATIONS[kind]
        if name in ON_COLOUR:
            image = on_one_image(name, image, value)
        elif name != "identity":
            matrix = matrix @ matrix_of(name, value, width, height)
    if (matrix == np.eye(3)).all():
        return image.astype(float), np.ones((height, width), bool)
    return bilinear(image, matrix)


# pictures and runs -------------------------------------------------------------------------------


def pictures(count=6, height=21, width=26):
    """Smooth ones, noise, narrow ranges, and one that is flat."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    images = random.integers(0, 256, (count, height, width, 3))
    images[0] = np.stack([6 * x, 255 - 8 * y, 4 * (x + y)], axis=-1)
    images[1] = random.normal((60, 120, 200), (5, 20, 30), (height, width, 3))
    images[2] = (17, 200, 128)
    return np.clip(images, 0, 255).astype("uint8")


def augment(policy, inputs):
    return keras.ops.convert_to_numpy(Augment(policy)(inputs))


def augment_in_graph(policy, inputs):
    """As in training: TensorFlow then works on one image at a time, with fused operations."""
    specification = {
        name: keras.Input(array.shape[1:], dtype=str(array.dtype), name=name)
        for name, array in inputs.items()
    }
    model = keras.Model(specification, Augment(policy)(specification))
    return model.predict_on_batch(inputs)


def operate(images, kinds, values, policy="randaugment", **options):
    """`Augment` with the operations given."""
    policy = Augmentation(images.shape[1:3], augment=policy, **options)
    return augment(
        policy,
        {
            "images": images,
            "operations": kinds.astype("int32"),
            "operation_values": values.astype("float32"),
        },
    )


# operations on colour ----------------------------------------------------------------------------

ARGUMENTS = {
    "posterize": [0, 1, 2, 3, 4, 8],
    "solarize": [0, 26, 128, 256],
    "solarize_add": [0, 55, 110],
    "contrast": [0.1, 0.5, 1.0, 1.3, 1.9],
    "brightness": [0.1, 0.5, 1.0, 1.3, 1.9],
    "color": [0.0, 0.1, 0.5, 1.0, 1.3, 1.9],
    "sharpness": [0.1, 0.5, 1.0, 1.3, 1.9],
    "blur": [0.1, 0.5, 1.3, 2.0],
}


@pytest.mark.parametrize("name", ON_COLOUR)
def test_operations_on_colour_are_those_of_pillow(name):
    for value in ARGUMENTS.get(name, [0.0]):
        images = pictures()
        kinds = np.full((len(images), 1), OPERATIONS.index(name))
        policy = "three" if name == "blur" else "randaugment"
        found = operate(images, kinds, np.full(kinds.shape, value), policy)
        assert (found == np.rint(found)).all()
        expected = np.stack([on_one_image(name, image, value) for image in images])
        assert abs(found - expected).max() <= 1, value
        # Off by one only where float32 and Pillow's numbers fall on two sides of a whole one.
        assert np.mean(found != expected) < 0.01, value
        if value not in (0.0, 1.0, 0.1, 8, 256) or name in ("autocontrast", "equalize", "invert"):
            assert abs(found - images).max() > 1


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(1, 256),
)
def test_equalize_and_autocontrast_of_any_histogram(seed, size, levels):
    random = np.random.default_rng(seed)
    values = random.permutation(256)[:levels]
    images = values[random.integers(levels, size=(2, *size, 3))].astype("uint8")
    for name in ("equalize", "autocontrast", "contrast"):
        kinds = np.full((2, 1), OPERATIONS.index(name))
        found = operate(images, kinds, np.full((2, 1), 1.4))
        expected = np.stack([on_one_image(name, image, 1.4) for image in images])
        assert abs(found - expected).max() <= 1


def test_the_blur_is_near_pillows():
    from PIL import ImageFilter

    image = pictures()[:1]
    kinds = np.full((1, 1), OPERATIONS.index("blur"))
    found = operate(image, kinds, np.full((1, 1), 1.5), "three")[0]
    blurred = Image.fromarray(image[0]).filter(ImageFilter.GaussianBlur(1.5))
    assert abs(found - np.asarray(blurred, float)).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3), (9, 1)])
def test_small_images_go_through_every_operation(size):
    images = pictures(4, *size)
    for name in ON_COLOUR:
        kinds = np.full((4, 1), OPERATIONS.index(name))
        found = operate(
            images, kinds, np.full((4, 1), 1.0), "three" if name == "blur" else "randaugment"
        )
        expected = np.stack([on_one_image(name, image, 1.0) for image in images])
        assert abs(found - expected).max() <= 1


def test_only_images_that_drew_an_operation_are_changed():
    images = pictures(30)
    kinds = np.zeros((30, 1), int)
    kinds[4::5] = OPERATIONS.index("invert")
    found = operate(images, kinds, np.zeros((30, 1)))
    np.testing.assert_array_equal(found[4::5], 255.0 - images[4::5])
    rest = kinds[:, 0] == 0
    np.testing.assert_array_equal(found[rest], images[rest])


# geometric operations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value",
    [("rotate", 27.0), ("rotate", -8.0), ("shear_x", 0.27), ("shear_x", -0.1), ("shear_y", -0.3),
     ("shear_y", 0.2), ("translate_x", 0.23), ("translate_y", -0.41)],
)  # fmt: skip
def test_geometric_operations_are_those_of_pillow(name, value):
    images = pictures()
    _, height, width, _ = images.shape
    matrix = matrix_of(name, value, width, height)
    policy = Augmentation((height, width), augment="randaugment")
    found = augment(
        policy,
        {
            "images": images,
            "operations": np.zeros((6, 2), "int32"),
            "operation_values": np.zeros((6, 2), "float32"),
            "matrices": np.tile(matrix[:2].ravel(), (6, 1)).astype("float32"),
        },
    )
    for image, ours in zip(images, found, strict=True):
        by_hand, sure = bilinear(image, matrix)
        assert sure.mean() > 0.9
        np.testing.assert_allclose(ours[sure], by_hand[sure], atol=0.05)
        picture, options = Image.fromarray(image), {
            "resample": Image.Resampling.BILINEAR, "fillcolor": (128, 128, 128)
        }  # fmt: skip
        if name == "rotate":
            expected = picture.rotate(value, **options)
        else:
            method = Image.Transform.AFFINE
            expected = picture.transform(picture.size, method, tuple(matrix[:2].ravel()), **options)
        # Pillow cuts fractions off.
        assert abs(ours - np.asarray(expected, float))[sure].max() < 1.001
        grey = (np.asarray(expected) == 128).all(axis=-1)
        assert 0.03 < grey.mean() < 0.5


# policies ----------------------------------------------------------------------------------------


POLICIES = [
    {"augment": "randaugment", "color_jitter": 0.4},
    {"augment": "three", "color_jitter": 0.3},
    {"augment": "randaugment"},
    {"augment": "randaugment", "augment_operations": 4, "augment_magnitude": 5},
    {"augment": "three"},
    {"color_jitter": 0.4},
]


@pytest.mark.parametrize("run", slow_except([augment, augment_in_graph], fast=[augment_in_graph]))
@pytest.mark.parametrize("options", slow_except(POLICIES, POLICIES[:2]))
def test_a_policy_is_its_operations_one_after_the_other(options, run):
    images = np.tile(pictures(), (8, 1, 1, 1))
    policy = Augmentation(images.shape[1:3], **options)
    drawn = draw_operations(policy, 0, 0, len(images))
    found = run(policy, {"images": images, **drawn})
    differing, changed = [], 0
    for index, image in enumerate(images):
        expected, sure = in_sequence(
            image, drawn["operations"][index], drawn["operation_values"][index]
        )
        changed += abs(expected - image).max() > 2
        differing.append(abs(found[index] - expected)[sure].ravel())
    assert changed > len(images) / 3
    differing = np.concatenate(differing)
    # A difference of one by rounding can become one of several in a later operation.
    assert np.mean(differing > 0.05) < 0.01 and differing.max() <= 4


@pytest.mark.slow
@pytest.mark.parametrize("run", [augment, augment_in_graph])
def test_augmix_mixes_its_chains(run):
    images = np.tile(pictures(), (3, 1, 1, 1))
    policy = Augmentation(images.shape[1:3], augment="augmix", augment_magnitude=5)
    drawn = draw_operations(policy, 0, 0, len(images))
    found = run(policy, {"images": images, **drawn})
    changed = 0
    for index, image in enumerate(images):
        weights = drawn["chain_weights"][index]
        chains = [
            in_sequence(
                image, drawn["operations"][index, chain], drawn["operation_values"][index, chain]
            )
            for chain in range(3)
        ]
        expected = weights[3] * image.astype(float)
        for weight, (chain, _) in zip(weights, chains, strict=False):
            expected += weight * chain
        sure = np.all([sure for _, sure in chains], axis=0)
        assert abs(found[index] - expected)[sure].max() <= 1
        changed += abs(found[index] - image).max() > 2
    assert changed > len(images) / 2


def test_jitter_follows_the_chains_of_augmix():
    images = pictures()
    size = images.shape[1:3]
    policy = Augmentation(size, augment="augmix", color_jitter=0.4)
    drawn = draw_operations(policy, 0, 0, len(images))
    mixed = augment(
        Augmentation(size, augment="augmix"),
        {"images": images, **{name: drawn[name] for name in drawn if "jitter" not in name}},
    )
    found = augment(policy, {"images": images, **drawn})
    for index, image in enumerate(np.floor(mixed + 0.5).astype("uint8")):
        expected, _ = in_sequence(
            image, drawn["jitter_operations"][index], drawn["jitter_operation_values"][index]
        )
        assert abs(found[index] - expected).max() <= 2


# crops -------------------------------------------------------------------------------------------


def pillow_crop(image, box, size, interpolation, padding):
    """`Image.resize(box=)` on float pixels, so that nothing is rounded."""
    image = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left, bottom, right = np.clip(box + padding, 0, np.tile(image.shape[:2], 2))
    resampling = Image.Resampling[interpolation.upper()]
    channels = [
        Image.fromarray(channel.astype("float32")).resize(
            size[::-1], resampling, box=(left, top, right, bottom)
        )
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.clip(np.stack([np.asarray(channel) for channel in channels], axis=-1), 0, 255)


@settings(max_examples=60)
@given(
    st.sampled_from(["resize", "squash", "inception", "pad"]),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.integers(0, 10**6),
)
def test_crops_on_the_device_and_on_the_host_are_pillows(
    crop, interpolation, source_size, image_size, seed
):
    policy = Augmentation(image_size, crop=crop, interpolation=interpolation, crop_padding=3)
    # Far enough from 0 and 255 that a cubic kernel never leaves them: the host clips twice.
    image = np.random.default_rng(seed).integers(80, 170, (*source_size, 3), dtype="uint8")
    boxes = crop_boxes(policy, draw_crops(policy, seed, 0, 4), source_size)
    mirrored = boxes[:, [0, 3, 2, 1]]
    both = np.concatenate([boxes, mirrored]).astype("float32")
    found = augment(policy, {"images": np.tile(image, (8, 1, 1, 1)), "boxes": both})
    for index, box in enumerate(boxes):
        expected = pillow_crop(image, box, image_size, interpolation, policy.padding)
        if interpolation == "nearest":
            # Between two pixels, Pillow's rounding and ours may take either.
            assert np.mean(found[index] != expected) < 0.2
        else:
            np.testing.assert_allclose(found[index], expected, atol=0.05)
            # The host rounds after each axis.
            assert abs(crop_image(image, box, policy) - expected).max() <= 1.51
        np.testing.assert_allclose(found[index + 4], found[index][:, ::-1], atol=0.05)


def test_nearest_takes_whole_pixels_of_the_right_place():
    """With 4 of 8 pixels, those in the middle of two; the second of them, as everywhere here."""
    image = np.arange(8, dtype="uint8").reshape(1, 8, 1)
    images = np.tile(image, (1, 8, 1, 3))
    policy = Augmentation((8, 4), interpolation="nearest")
    found = augment(policy, {"images": images, "boxes": np.array([[0, 0, 8, 8.0]])})
    assert found[0, 0, :, 0].tolist() == [1, 3, 5, 7]
    found = augment(policy, {"images": images, "boxes": np.array([[0, 8, 8, 4.0]])})
    assert found[0, 0, :, 0].tolist() == [7, 6, 5, 4]


def test_outside_of_the_image_there_are_zeros():
    images = np.full((1, 4, 4, 3), 200, "uint8")
    policy = Augmentation(4, crop="pad", crop_padding=2)
    found = augment(policy, {"images": images, "boxes": np.array([[-2, 1, 2, 5.0]])})[0, ..., 0]
    expected = np.zeros((4, 4))
    expected[2:, :3] = 200
    np.testing.assert_allclose(found, expected, atol=1e-3)


# erasing and mixing ------------------------------------------------------------------------------


def random_pixels(seed, height, width):
    """MurmurHash3's finaliser of the seed and the place of each pixel, in 64 bits."""
    place = np.arange(height * width, dtype="uint64") * 0x9E3779B1 & 0xFFFFFFFF
    bits = np.uint64(seed) ^ place
    bits = (bits ^ bits >> np.uint64(16)) * np.uint64(0x85EBCA6B) & np.uint64(0xFFFFFFFF)
    bits = (bits ^ bits >> np.uint64(13)) * np.uint64(0xC2B2AE35) & np.uint64(0xFFFFFFFF)
    bits ^= bits >> np.uint64(16)
    channels = [(bits >> np.uint64(shift)) & np.uint64(255) for shift in (0, 8, 16)]
    return np.stack(channels, axis=-1).reshape(height, width, 3).astype(float)


@pytest.mark.parametrize("run", [augment, augment_in_graph])
def test_a_box_is_filled_with_random_pixels(run):
    images = pictures(20, 30, 40)
    policy = Augmentation((30, 40), random_erasing=0.5)
    drawn = draw_erasing(policy, 0, 0, 20)
    found = run(policy, {"images": images, **drawn})
    erased = 0
    for image, box, seed, ours in zip(
        images, drawn["erased_boxes"], drawn["erased_seeds"], found, strict=True
    ):
        top, left, bottom, right = box
        erased += bottom > 0
        expected = image.astype(float)
        pixels = random_pixels(seed, 30, 40)
        expected[top:bottom, left:right] = pixels[top:bottom, left:right]
        np.testing.assert_array_equal(ours, expected)
    assert 5 < erased < 15


def test_random_pixels_are_uniform_and_differ():
    pixels = np.stack([random_pixels(seed, 50, 60) for seed in (0, 1, 2**31 - 1)])
    counts = np.bincount(pixels.astype(int).ravel(), minlength=256)
    expected = pixels.size / 256
    # The chi-squared statistic of 255 degrees of freedom is above 331 once in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 331
    flat = pixels.reshape(3, -1)
    assert abs(np.corrcoef(flat) - np.eye(3)).max() < 0.05
    assert abs(np.corrcoef(flat[:, :-3].ravel(), flat[:, 3:].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(pixels.reshape(-1, 3).T) - np.eye(3)).max() < 0.05


def test_mixing_blends_or_cuts():
    images = pictures(4, 10, 12)
    partners = np.array([3, 2, 1, 0], "int32")
    ratios = np.array([0.3, 0.3, 1.0, 1.0], "float32")
    boxes = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [2, 3, 7, 12], [0, 0, 1, 1]], "int32")
    inputs = {"images": images, "partners": partners}
    policy = Augmentation((10, 12), mixup=0.8, cutmix=1.0)
    found = augment(policy, inputs | {"mix_ratios": ratios, "mix_boxes": boxes})
    as_float = images.astype(float)
    np.testing.assert_allclose(found[:2], 0.3 * as_float[:2] + 0.7 * as_float[[3, 2]], atol=1e-3)
    expected = as_float[2].copy()
    expected[2:7, 3:12] = as_float[1, 2:7, 3:12]
    np.testing.assert_allclose(found[2], expected, atol=1e-3)
    expected = as_float[3].copy()
    expected[0, 0] = as_float[0, 0, 0]
    np.testing.assert_allclose(found[3], expected, atol=1e-3)
    cut_alone = augment(Augmentation((10, 12), cutmix=1.0), inputs | {"mix_boxes": boxes})
    np.testing.assert_allclose(cut_alone[2:], found[2:], atol=1e-3)
    np.testing.assert_array_equal(cut_alone[:2], images[:2])
