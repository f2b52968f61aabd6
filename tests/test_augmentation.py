"""The augmentation policy, and what is drawn by it on the host."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_vit.data import Augmentation, ImageSet, TrainingBatches
from keras_vit.data.augmentation import (
    AUGMIX_OPERATIONS,
    GEOMETRIC_OPERATIONS,
    OPERATIONS,
    RANDAUGMENT_OPERATIONS,
    crop_boxes,
    draw_crops,
    draw_operations,
    operation_value,
)

POLICIES = {
    "default": Augmentation(16),
    "randaugment": Augmentation(16, augment="randaugment", color_jitter=0.3),
    "augmix": Augmentation(16, crop="inception", augment="augmix", color_jitter=0.3),
    "three": Augmentation(16, crop="squash", augment="three", color_jitter=0.3),
    "mixed": Augmentation(16, crop="pad", mixup=0.8, cutmix=1.0, random_erasing=0.5),
}


def noise_set(count=12, size=(9, 11), classes=5):
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (count, *size, 3), dtype="uint8")
    return ImageSet(
        images, np.arange(count, dtype="int32") % classes, tuple("abcdefghij"[:classes])
    )


def batches(policy, image_set=None, batch_size=8, seed=3, **options):
    return TrainingBatches(
        image_set or noise_set(), batch_size=batch_size, seed=seed, augmentation=policy, **options
    )


def drawn(count=4000, step=0, **policy):
    """One large batch, without its images."""
    policy = Augmentation(**{"image_size": 32, **policy})
    inputs, targets = batches(policy, noise_set(size=(2, 2)), count)[step]
    del inputs["images"]
    return inputs, targets


def assert_close_to_share(found, share):
    """Within five standard deviations of a share that is drawn as often as `found` is long."""
    found = np.asarray(found)
    assert abs(found.mean() - share) <= 5 * np.sqrt(share * (1 - share) / len(found)) + 1e-12


def assert_uniform(values, low, high):
    """The Kolmogorov-Smirnov distance, which exceeds 2 / sqrt(n) once in two thousand times."""
    values = np.sort(np.asarray(values).ravel())
    assert low <= values[0] and values[-1] <= high
    expected = (values - low) / (high - low)
    steps = np.arange(1, len(values) + 1) / len(values)
    assert abs(steps - expected).max() < 2 / np.sqrt(len(values))


# purity ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_batch_is_a_pure_function_of_seed_and_step(policy):
    one, other = batches(policy), batches(policy)
    other[0], other[8]
    for (ours, targets), (theirs, their_targets) in [(one[7], other[7]), (one[2], other[2])]:
        assert list(ours) == list(theirs)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
        np.testing.assert_array_equal(targets, their_targets)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_steps_and_seeds_draw_apart(policy):
    first, second = batches(policy)[0][0], batches(policy)[1][0]
    seeded = batches(policy, seed=4)[0][0]
    for name in set(first) - {"partners", "images"}:
        # The ratio and the box of a batch may be none.
        if name not in ("mix_ratios", "mix_boxes"):
            assert (first[name] != second[name]).any(), name
            assert (first[name] != seeded[name]).any(), name


def test_each_part_draws_from_a_stream_of_its_own():
    """What is added to a policy leaves alone what the other parts draw."""
    small = Augmentation(16, augment="randaugment", random_erasing=0.3)
    large = dataclasses.replace(small, mixup=0.8, horizontal_flip=False, color_jitter=0.4)
    few, many = batches(small)[5][0], batches(large)[5][0]
    np.testing.assert_array_equal(few["matrices"], many["matrices"])
    np.testing.assert_array_equal(few["operations"], many["operations"][:, :2])
    np.testing.assert_array_equal(few["erased_boxes"], many["erased_boxes"])
    # Mirrored boxes run from right to left.
    np.testing.assert_array_equal(
        np.sort(few["boxes"][:, [1, 3]], axis=1), many["boxes"][:, [1, 3]]
    )


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_input_spec_is_what_comes(policy):
    stream = batches(policy)
    inputs, _ = stream[3]
    assert stream.input_spec == {
        name: (array.shape[1:], str(array.dtype)) for name, array in inputs.items()
    }
    assert {len(array) for array in inputs.values()} == {8}


def test_nothing_is_drawn_for_what_is_not_asked_for():
    assert list(batches(POLICIES["default"]).input_spec) == ["images", "boxes"]


# crops -------------------------------------------------------------------------------------------


def boxes_of(source_size, count=4000, **policy):
    """Crop boxes of many images, of one size, as top, left, bottom, right."""
    augmentation = Augmentation(**policy)
    return crop_boxes(augmentation, draw_crops(augmentation, 0, 0, count), source_size)


def test_resize_crops_lie_evenly_in_the_image_that_covers():
    # 40 x 60 is resized to 20 x 30, so that there are 5 places for the rows and 15 for columns.
    top, left, bottom, right = boxes_of((40, 60), image_size=16, resize_size=20).T
    np.testing.assert_allclose([bottom - top, right - left], 32)
    assert set(top) == {2.0 * row for row in range(5)}
    assert set(left) == {2.0 * column for column in range(15)}
    assert_close_to_share(top == 4, 1 / 5)
    assert_close_to_share(left == 28, 1 / 15)


def test_squash_crops_ignore_the_aspect_ratio():
    top, left, bottom, right = boxes_of((40, 60), image_size=16, resize_size=20, crop="squash").T
    np.testing.assert_allclose(bottom - top, 32)
    np.testing.assert_allclose(right - left, 48)
    np.testing.assert_allclose(sorted(set(left)), np.arange(5) * 3.0)
    assert_close_to_share(top == 8, 1 / 5)


def test_the_crop_is_taken_from_eight_sevenths_unless_said_otherwise():
    np.testing.assert_array_equal(
        boxes_of((30, 40), image_size=14), boxes_of((30, 40), image_size=14, resize_size=16)
    )


def test_pad_crops_are_of_the_size_of_the_image():
    top, left, bottom, right = boxes_of((10, 12), image_size=16, crop="pad", crop_padding=3).T
    np.testing.assert_array_equal(bottom - top, 10)
    np.testing.assert_array_equal(right - left, 12)
    for corner in (top, left):
        assert set(corner) == set(range(-3, 4))
        assert_close_to_share(corner == -3, 1 / 7)


def test_inception_crops_are_uniform_in_area_and_log_uniform_in_aspect():
    # Of a square image, a crop of at most 9/16 of the area fits at any allowed aspect ratio, so
    # that nothing is drawn again.
    top, left, bottom, right = boxes_of(
        (1000, 1000), image_size=16, crop="inception", crop_min_area=0.1
    ).T
    height, width = bottom - top, right - left
    area, aspect = height * width / 1e6, width / height
    assert_uniform(area[area < 0.55], 0.099, 0.551)
    assert_close_to_share(area < 0.55, 0.45 / 0.9 / _share_that_fits(0.1))
    assert area.min() + 1e-3 >= 0.1 and area.max() <= 1
    assert_uniform(np.log(aspect[area < 0.55]), np.log(0.748), np.log(1.337))
    small = area < 0.2
    assert_uniform((top / (1000 - height))[small], 0, 1)
    assert_uniform((left / (1000 - width))[small], 0, 1)
    assert min(top.min(), left.min()) >= 0 and max(bottom.max(), right.max()) <= 1000


def _share_that_fits(smallest_area):
    random = np.random.default_rng(0)
    area = random.uniform(smallest_area, 1, 200_000)
    aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), 200_000))
    return np.mean((area * aspect <= 1) & (area / aspect <= 1))


def test_inception_falls_back_to_the_middle():
    """Of an image that is ten times as wide as high, no large part has an allowed aspect."""
    boxes = boxes_of((10, 100), image_size=16, crop="inception", crop_min_area=0.9, count=50)
    np.testing.assert_array_equal(boxes, np.tile([0, 43, 10, 56], (50, 1)))
    boxes = boxes_of((100, 10), image_size=16, crop="inception", crop_min_area=0.9, count=50)
    np.testing.assert_array_equal(boxes, np.tile([43, 0, 56, 10], (50, 1)))


@settings(max_examples=50)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from(["resize", "squash", "inception"]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_crops_lie_in_their_image(source_size, crop, image_size):
    boxes = boxes_of(source_size, image_size=image_size, crop=crop, count=50)
    assert boxes.shape == (50, 4)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= np.array(source_size) + 1e-9).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_every_second_image_is_mirrored():
    inputs, _ = drawn()
    assert_close_to_share(inputs["boxes"][:, 1] > inputs["boxes"][:, 3], 0.5)
    inputs, _ = drawn(horizontal_flip=False)
    assert (inputs["boxes"][:, 1] < inputs["boxes"][:, 3]).all()


# operations --------------------------------------------------------------------------------------


def test_randaugment_draws_each_operation_as_often():
    inputs, _ = drawn(augment="randaugment", augment_operations=3)
    kinds = inputs["operations"]
    assert kinds.shape == (4000, 3)
    for slot in range(3):
        assert_close_to_share(kinds[:, slot] == 0, 0.5)
    for name in RANDAUGMENT_OPERATIONS:
        assert_close_to_share(kinds.ravel() == OPERATIONS.index(name), 0.5 / 15)
    assert len(RANDAUGMENT_OPERATIONS) == 15
    # Places in the order are independent: as many pairs of the same as of any two.
    same = (kinds[:, 0] == kinds[:, 1]) & (kinds[:, 0] > 0)
    assert_close_to_share(same, 15 * (0.5 / 15) ** 2)


@pytest.mark.parametrize(
    "name, level, sign, expected",
    # Computed by hand from the definitions of timm 1.0 (auto_augment.py), set "increasing".
    [
        ("rotate", 10, -1, -30.0),
        ("rotate", 5, 1, 15.0),
        ("shear_x", 9, 1, 0.27),
        ("shear_y", 10, -1, -0.3),
        ("translate_x", 10, 1, 0.45),
        ("translate_y", 4, -1, -0.18),
        ("posterize", 9, 1, 1),
        ("posterize", 0, 1, 4),
        ("posterize", 10, 1, 0),
        ("solarize", 9, 1, 26),
        ("solarize", 10, 1, 0),
        ("solarize_add", 9, 1, 99),
        ("contrast", 10, -1, 0.1),
        ("contrast", 10, 1, 1.9),
        ("brightness", 0, 1, 1.0),
        ("color", 5, -1, 0.55),
        ("sharpness", 9, 1, 1.81),
    ],
)
def test_what_a_level_means(name, level, sign, expected):
    found = operation_value(name, np.array(float(level)), np.array(float(sign)), shift=0.45)
    assert found == pytest.approx(expected)


def test_levels_spread_around_the_magnitude():
    inputs, _ = drawn(20_000, augment="randaugment", augment_operations=1)
    kinds, values = inputs["operations"][:, 0], inputs["operation_values"][:, 0]
    rotations = values[kinds == OPERATIONS.index("rotate")]
    levels = abs(rotations) / 3
    # A normal distribution around 9 with 0.5, cut off at 10.
    assert levels.max() <= 10 + 1e-5 and abs(np.median(levels) - 9) < 0.1
    assert_close_to_share(levels > 9.999, 0.02275)
    assert_close_to_share(levels < 8.5, 0.1587)
    assert_close_to_share(rotations > 0, 0.5)
    inputs, _ = drawn(augment="randaugment", augment_magnitude=4, augment_magnitude_std=0)
    added = inputs["operation_values"][inputs["operations"] == OPERATIONS.index("solarize_add")]
    assert set(added) == {44.0}


def test_augmix_draws_chains_and_their_weights():
    inputs, _ = drawn(augment="augmix", augment_magnitude=3)
    kinds, values, weights = (
        inputs[name] for name in ("operations", "operation_values", "chain_weights")
    )
    assert kinds.shape == values.shape == (4000, 3, 3) and inputs["matrices"].shape == (4000, 3, 6)
    depths = (kinds > 0).sum(axis=2)
    # Operations come first in a chain.
    assert ((kinds > 0) == (np.arange(3) < depths[..., None])).all()
    for depth in (1, 2, 3):
        assert_close_to_share(depths.ravel() == depth, 1 / 3)
    for name in AUGMIX_OPERATIONS:
        assert_close_to_share(kinds[..., 0].ravel() == OPERATIONS.index(name), 1 / 9)
    assert len(AUGMIX_OPERATIONS) == 9
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    # Beta(1, 1) is uniform; of Dirichlet(1, 1, 1), one share alone is above t in (1 - t) ** 2.
    assert_uniform(weights[:, 3], 0, 1)
    shares = weights[:, :3] / (1 - weights[:, 3:])
    for chain in range(3):
        assert_close_to_share(shares[:, chain] > 0.5, 0.25)
    rotations = values[kinds == OPERATIONS.index("rotate")]
    assert_uniform(abs(rotations) / 3, 0.1, 3)


def test_three_augment_draws_one_of_three():
    inputs, _ = drawn(augment="three")
    kinds, values = inputs["operations"][:, 0], inputs["operation_values"][:, 0]
    assert inputs["operations"].shape == (4000, 1) and "matrices" not in inputs
    for name in ("color", "solarize", "blur"):
        assert_close_to_share(kinds == OPERATIONS.index(name), 1 / 3)
    assert set(values[kinds == OPERATIONS.index("color")]) == {0.0}
    assert set(values[kinds == OPERATIONS.index("solarize")]) == {128.0}
    assert_uniform(values[kinds == OPERATIONS.index("blur")], 0.1, 2.0)


@pytest.mark.parametrize("strength, low", [(0.3, 0.7), (1.5, 0.0)])
def test_jitter_draws_an_order_and_factors(strength, low):
    inputs, _ = drawn(color_jitter=strength)
    kinds, values = inputs["operations"], inputs["operation_values"]
    expected = sorted(OPERATIONS.index(name) for name in ("brightness", "contrast", "color"))
    assert (np.sort(kinds, axis=1) == expected).all()
    orders, counts = np.unique(kinds, axis=0, return_counts=True)
    assert len(orders) == 6 and counts.min() > 500
    for kind in expected:
        assert_uniform(values[kinds == kind], low, 1 + strength)


def test_jitter_comes_after_the_policy():
    for policy in ("randaugment", "three"):
        inputs, _ = drawn(100, augment=policy, color_jitter=0.3)
        assert (inputs["operations"][:, -3:] > 0).all()
    inputs, _ = drawn(100, augment="augmix", color_jitter=0.3)
    assert inputs["jitter_operations"].shape == (100, 3)


def pillow_matrix(name, value, width, height):
    """What an operation does to places, as `Image.transform` takes it."""
    if name == "rotate":
        recorded = {}

        class Recorder(Image.Image):
            def transform(self, size, method, data, *_, **__):
                recorded["data"] = data
                return self

        blank = Recorder()
        blank._mode, blank._size, blank.im = "L", (width, height), Image.new("L", (1, 1)).im
        blank.rotate(value)
        return recorded["data"]
    return {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value * height),
    }[name]


def test_matrices_put_the_operations_of_an_image_together():
    """Backwards: from the last changed image through each operation to the first."""
    policy = Augmentation((20, 30), augment="randaugment", augment_operations=4)
    arrays = draw_operations(policy, 0, 0, 300)
    places = np.random.default_rng(0).uniform(0, 30, (2, 5))
    several = 0
    for kinds, values, matrix in zip(
        arrays["operations"], arrays["operation_values"], arrays["matrices"], strict=True
    ):
        expected = places
        names = [OPERATIONS[kind] for kind in kinds]
        several += sum(name in GEOMETRIC_OPERATIONS for name in names) > 1
        for name, value in reversed(list(zip(names, values, strict=True))):
            if name in GEOMETRIC_OPERATIONS:
                a, b, c, d, e, f = pillow_matrix(name, float(value), 30, 20)
                x, y = expected
                expected = np.array([a * x + b * y + c, d * x + e * y + f])
        found = matrix.reshape(2, 3) @ np.concatenate([places, np.ones((1, 5))])
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert several > 20


# erasing -----------------------------------------------------------------------------------------


def test_erased_boxes_are_of_their_share_and_aspect():
    inputs, _ = drawn(random_erasing=0.25, image_size=200)
    boxes = inputs["erased_boxes"]
    erased = boxes[:, 2] > 0
    assert_close_to_share(erased, 0.25)
    assert (boxes[~erased] == 0).all()
    top, left, bottom, right = boxes[erased].T
    height, width = bottom - top, right - left
    area, aspect = height * width / 200**2, height / width
    assert (area > 0.019).all() and (area < 0.34).all()
    # Up to this area nothing is too high or too wide to fit, so that nothing is drawn again.
    small = area < 0.29
    assert_uniform(area[small], 0.019, 0.2905)
    assert_uniform(np.log(aspect[small & (area > 0.1)]), np.log(0.285), np.log(3.5))
    assert min(top.min(), left.min()) == 0 and max(bottom.max(), right.max()) <= 200
    assert_uniform(((top + 0.5) / (201 - height))[area < 0.05], 0, 1)
    assert len(set(inputs["erased_seeds"])) > 3990


# mixing ------------------------------------------------------------------------------------------


def test_partners_stay_in_their_micro_batch():
    stream = batches(Augmentation(16, mixup=0.5), batch_size=12, micro_batch_size=4)
    inputs, _ = stream[0]
    assert inputs["partners"].tolist() == [3, 2, 1, 0] * 3
    # One ratio each.
    assert (inputs["mix_ratios"].reshape(3, 4) == inputs["mix_ratios"].reshape(3, 4)[:, :1]).all()
    assert len(set(inputs["mix_ratios"])) == 3


def test_mixing_takes_no_more_memory_than_its_targets():
    image_set = dataclasses.replace(noise_set(), class_names=tuple(map(str, range(4000))))
    stream = batches(Augmentation(16, mixup=0.5), image_set)
    tracemalloc.start()
    try:
        _, targets = stream[0]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert targets.shape == (8, 4000)
    assert peak < 4 * targets.nbytes


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_follow_the_pixels(alphas):
    mixup, cutmix = alphas
    policy = Augmentation((10, 14), mixup=mixup, cutmix=cutmix)
    image_set = noise_set(60, (2, 2))
    stream = batches(policy, image_set, batch_size=12, micro_batch_size=4)
    for step in range(20):
        inputs, targets = stream[step]
        labels = TrainingBatches(
            image_set, batch_size=12, seed=3, augmentation=Augmentation((10, 14))
        )[step][1]
        assert targets.dtype == np.float32 and targets.shape == (12, 5)
        np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
        for image in range(12):
            own = inputs["mix_ratios"][image] if mixup else 1.0
            if cutmix:
                top, left, bottom, right = inputs["mix_boxes"][image]
                if bottom > top:
                    assert own == 1.0
                    own = 1 - (bottom - top) * (right - left) / 140
            expected = np.zeros(5)
            expected[labels[image]] += own
            expected[labels[image // 4 * 4 + inputs["partners"][image]]] += 1 - own
            np.testing.assert_allclose(targets[image], expected, atol=1e-6)


def test_mixed_batches_are_as_often_as_asked_and_of_either_kind():
    policy = Augmentation(32, mixup=0.8, cutmix=1.0, mix_probability=0.6)
    inputs, _ = batches(policy, noise_set(size=(2, 2)), 8000, micro_batch_size=2)[0]
    ratios, boxes = inputs["mix_ratios"][::2], inputs["mix_boxes"][::2]
    blended, cut = ratios < 1, boxes[:, 2] > boxes[:, 0]
    assert not (blended & cut).any()
    assert_close_to_share(blended, 0.3)
    # A box may be empty: where its side is below a pixel.
    assert 0.25 < cut.mean() < 0.34
    # Beta(0.8, 0.8) by the mean and the variance 1 / (4 (2 alpha + 1)).
    assert abs(ratios[blended].mean() - 0.5) < 0.03
    assert abs(ratios[blended].var() - 1 / 10.4) < 0.01


def test_cutmix_boxes_are_cut_off_at_the_border():
    inputs, _ = batches(
        Augmentation(100, cutmix=1.0), noise_set(size=(2, 2)), 4000, micro_batch_size=1
    )[0]
    top, left, bottom, right = inputs["mix_boxes"].T
    assert min(top.min(), left.min()) == 0 and max(bottom.max(), right.max()) == 100
    whole = (top > 0) & (left > 0) & (bottom < 100) & (right < 100)
    np.testing.assert_array_equal((bottom - top)[whole], (right - left)[whole])
    # With Beta(1, 1) the box takes a uniform share of the area, before it is cut off; a centre
    # in the middle half in both directions with a side of at most half is not cut off.
    centre = (top + bottom) // 2, (left + right) // 2
    middle = np.all([(c >= 25) & (c < 75) for c in centre], axis=0)
    side = (bottom - top)[middle & whole]
    assert_uniform((side[side < 50] + 0.5) ** 2 / 1e4, 0, 0.26)


def test_labels_stay_classes_without_mixing():
    _, targets = drawn(10, random_erasing=1.0, augment="augmix")
    assert targets.dtype == np.int32 and targets.shape == (10,)


# repeated augmentation ---------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 4))
def test_images_are_repeated_and_the_epoch_keeps_its_length(count, batch_size, repetitions):
    images = np.zeros((count, 2, 2, 3), "uint8")
    image_set = ImageSet(images, np.arange(count, dtype="int32"), tuple(map(str, range(count))))
    policy = Augmentation(2, repeated_augmentation=repetitions)
    stream = TrainingBatches(image_set, batch_size=batch_size, seed=0, augmentation=policy)
    steps = -(-2 * count // batch_size)
    labels = np.concatenate([stream[step][1] for step in range(steps)])
    for epoch in range(2):
        found = labels[epoch * count : (epoch + 1) * count]
        whole = count // repetitions * repetitions
        repeated = found[:whole].reshape(-1, repetitions)
        assert (repeated == repeated[:, :1]).all()
        assert len(set(found)) == -(-count // repetitions)


def test_repeated_images_are_augmented_apart():
    inputs, targets = drawn(12, repeated_augmentation=3, crop="inception")
    assert len(set(targets[:3])) == 1
    assert len(np.unique(inputs["boxes"][:3], axis=0)) == 3


# the policy --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 0}, "`image_size` must be a positive int or a pair.*image_size=0"),
        ({"resize_size": 15}, "`resize_size` must not be below `image_size`"),
        ({"crop": "border"}, "`crop` must be one of resize, squash, inception, pad. .*'border'"),
        ({"augment": "autoaugment"}, "`augment` must be one of none, .*augment='autoaugment'"),
        ({"interpolation": "area"}, "`interpolation` must be one of nearest"),
        ({"crop_min_area": 0}, r"`crop_min_area` must be \(0, 1\]. Received: crop_min_area=0"),
        ({"crop_min_area": 1.1}, "crop_min_area=1.1"),
        ({"crop_padding": -1}, "`crop_padding` must be an int of 0 or more"),
        ({"crop_padding": 2.5}, "`crop_padding` must be an int.*crop_padding=2.5"),
        ({"augment_operations": 0}, "`augment_operations` must be an int of 1 or more"),
        ({"augment_operations": 2.5}, "`augment_operations` must be an int.*=2.5"),
        ({"augment_operations": True}, "`augment_operations` must be an int.*=True"),
        ({"augment_magnitude": 10.5}, r"`augment_magnitude` must be 0\.\.10"),
        ({"augment_magnitude_std": -1}, "augment_magnitude_std=-1"),
        ({"color_jitter": -0.1}, "color_jitter=-0.1"),
        ({"random_erasing": 1.5}, r"`random_erasing` must be 0\.\.1"),
        ({"mixup": -1}, "mixup=-1"),
        ({"cutmix": float("nan")}, "cutmix=nan"),
        ({"mixup": float("inf")}, "mixup=inf"),
        ({"mixup": "0.8"}, "`mixup` must be 0 or more. Received: mixup='0.8'"),
        ({"mix_probability": -0.5}, "mix_probability=-0.5"),
        ({"repeated_augmentation": 0}, "`repeated_augmentation` must be an int of 1 or more"),
        ({"repeated_augmentation": 1.5}, "`repeated_augmentation` must be an int.*=1.5"),
    ],
)
def test_values_outside_their_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**{"image_size": 16, **options})


def test_a_batch_is_whole_micro_batches():
    with pytest.raises(ValueError, match="batch_size=8, micro_batch_size=3"):
        batches(Augmentation(16, mixup=1.0), micro_batch_size=3)
