"""Training and evaluation batches, and the threads that make them ahead."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from keras_vit.data import (
    Augmentation,
    EvaluationBatches,
    ImageSet,
    TrainingBatches,
    decode_image,
    prefetch,
    prepare_image,
)
from keras_vit.layers import ImagePreprocessing


def numbered(count, size=2):
    """A set in memory whose labels say which image of the set it is."""
    images = np.zeros((count, size, size, 3), "uint8")
    images[:] = np.arange(count)[:, None, None, None]
    return ImageSet(images, np.arange(count, dtype="int32"), tuple(map(str, range(count))))


@pytest.fixture
def files(tmp_path):
    """Five images on disk of different sizes, smooth in both directions."""
    paths = []
    for index in range(5):
        y, x = np.mgrid[: 30 + index, : 50 - index]
        pixels = np.stack([4 * y, 4 * x, np.full_like(x, 40 * index)], axis=-1).astype("uint8")
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    return ImageSet(tuple(paths), np.array([0, 1, 0, 1, 0], "int32"), ("cat", "dog"))


def training(image_set, *, batch_size, seed, **policy):
    """Batches by a policy, as pairs of images and labels."""
    return TrainingBatches(
        image_set, batch_size=batch_size, seed=seed, augmentation=Augmentation(**policy)
    )


# training ----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32), st.integers(1, 3))
def test_the_stream_is_whole_epochs_one_after_the_other(count, batch_size, seed, epochs):
    batches = training(numbered(count), batch_size=batch_size, seed=seed, image_size=2)
    steps = -(-count * epochs // batch_size)
    labels = np.concatenate([batches[step][1] for step in range(steps)])
    assert len(labels) == steps * batch_size
    for epoch in range(epochs):
        assert sorted(labels[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 10**6))
def test_a_batch_is_a_pure_function_of_seed_and_step(count, batch_size, step):
    options = {"batch_size": batch_size, "seed": 5, "image_size": 2}
    here, there = (training(numbered(count), **options) for _ in range(2))
    there[0], there[step + 1]
    (ours, labels), (theirs, their_labels) = here[step], there[step]
    np.testing.assert_array_equal(ours["images"], theirs["images"])
    np.testing.assert_array_equal(ours["boxes"], theirs["boxes"])
    np.testing.assert_array_equal(labels, their_labels)


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed, epoch):
        batches = training(numbered(50), batch_size=50, seed=seed, image_size=2)
        return tuple(batches[epoch][1])

    assert len({order(0, 0), order(0, 1), order(1, 0), order(1, 1)}) == 4


def test_images_in_memory_are_handed_out_as_they_are():
    inputs, labels = training(numbered(9, size=5), batch_size=4, seed=0, image_size=64)[1]
    images = inputs["images"]
    assert images.shape == (4, 5, 5, 3) and images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(images[:, 0, 0, 0], labels)


def test_images_on_disk_are_cropped_and_mirrored(files):
    batches = training(files, batch_size=200, seed=0, image_size=(16, 12), resize_size=24)
    inputs, labels = batches[0]
    images = inputs["images"]
    assert images.shape == (200, 16, 12, 3) and images.dtype == np.uint8
    index = np.rint(images[..., 2].mean(axis=(1, 2)) / 40).astype(int)
    np.testing.assert_array_equal(files.labels[index], labels)
    # Columns grow to the right unless the image is mirrored; rows always grow downwards.
    mirrored = images[:, 0, -1, 1] < images[:, 0, 0, 1]
    assert 70 < mirrored.sum() < 130
    assert (images[:, -1, 0, 0] > images[:, 0, 0, 0]).all()
    # The height of the resized image is 24, so that there are 9 places for 16 rows.
    first = index == 0
    assert len(np.unique(images[first][:, 0, 0, 0])) == 9
    without = training(files, batch_size=50, seed=0, image_size=(16, 12), horizontal_flip=False)
    images = without[0][0]["images"]
    assert (images[:, 0, -1, 1] > images[:, 0, 0, 1]).all()


def test_the_whole_of_a_resized_image_can_be_the_crop(files):
    """With no margin to choose from, an image of the right size is handed out as it is."""
    batches = training(
        files.take([0]), batch_size=1, seed=0, image_size=(30, 50), resize_size=(30, 50)
    )
    image = batches[0][0]["images"][0]
    expected = decode_image(files.images[0])
    assert any(np.array_equal(image, side) for side in (expected, expected[:, ::-1]))


def test_augmentation_is_a_pure_function_of_seed_step_and_index(files):
    options = {"batch_size": 6, "image_size": 16, "resize_size": 28}
    one, same = (training(files, seed=1, **options)[3][0]["images"] for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert (one != training(files, seed=2, **options)[3][0]["images"]).any()


def test_the_crop_is_taken_from_eight_sevenths_unless_said_otherwise(files):
    options = {"batch_size": 5, "seed": 0, "image_size": 14}
    np.testing.assert_array_equal(
        training(files, **options)[0][0]["images"],
        training(files, resize_size=16, **options)[0][0]["images"],
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1. Received: 0"),
        ({"image_size": 0}, "`image_size` must be a positive int or a pair.*image_size=0"),
        ({"resize_size": 15}, "`resize_size` must not be below `image_size`"),
    ],
)
def test_arguments_outside_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        training(numbered(3), **{"batch_size": 2, "seed": 0, "image_size": 16, **options})


def test_images_on_disk_follow_the_policy(files):
    policy = Augmentation((16, 12), crop="inception", augment="randaugment", mixup=0.2)
    inputs, targets = TrainingBatches(files, batch_size=6, seed=0, augmentation=policy)[2]
    assert inputs["images"].shape == (6, 16, 12, 3) and inputs["images"].dtype == np.uint8
    assert "boxes" not in inputs and inputs["operations"].shape == (6, 2)
    assert targets.shape == (6, 2)


def test_no_images_make_no_batches():
    with pytest.raises(ValueError, match="no images"):
        training(numbered(3).take([]), batch_size=2, seed=0, image_size=16)


def test_steps_do_not_count_backwards():
    with pytest.raises(IndexError, match="-1"):
        training(numbered(3), batch_size=2, seed=0, image_size=16)[-1]


# evaluation --------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 50))
def test_evaluation_sees_each_image_once_in_order(count, batch_size):
    batches = EvaluationBatches(
        numbered(count), batch_size=batch_size, preprocessing=ImagePreprocessing(), image_size=8
    )
    parts = [batches[index] for index in range(len(batches))]
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in parts]), range(count))
    assert all(1 <= len(images) <= batch_size for images, _ in parts)
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_evaluation_prepares_images_on_disk(files):
    preprocessing = ImagePreprocessing(crop_fraction=0.8)
    batches = EvaluationBatches(
        files, batch_size=4, preprocessing=preprocessing, image_size=(16, 20)
    )
    images, labels = batches[1]
    assert len(batches) == 2 and images.dtype == np.float32 and labels.tolist() == [0]
    expected = prepare_image(decode_image(files.images[4]), (16, 20), preprocessing)
    np.testing.assert_array_equal(images[0], expected)


def test_a_file_that_is_no_image_is_named(files):
    files.images[2].write_bytes(b"no image")
    batches = EvaluationBatches(
        files, batch_size=5, preprocessing=ImagePreprocessing(), image_size=8
    )
    with pytest.raises(ValueError, match=r"2\.png cannot be decoded"):
        list(prefetch(batches, 0, 1))


# prefetch ----------------------------------------------------------------------------------------


class Slow:
    """Batches that take a time of their own; it remembers which were asked for."""

    def __init__(self, failing=None):
        self.failing = failing
        self.asked = []

    def __getitem__(self, index):
        self.asked.append(index)
        time.sleep(0.002 * ((index * 7) % 3))
        if index == self.failing:
            raise RuntimeError(f"batch {index}")
        return index, index


def prefetching_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("workers, ahead", [(None, 4), (1, 1), (3, 1), (5, 20)])
def test_batches_come_in_order(workers, ahead):
    found = list(prefetch(Slow(), 3, 30, workers=workers, ahead=ahead))
    assert found == [(index, index) for index in range(3, 30)]
    assert not prefetching_threads()


def test_nothing_is_made_where_nothing_is_wanted():
    assert list(prefetch(Slow(), 3, 3)) == []


def test_no_more_than_said_is_made_ahead():
    batches = Slow()
    stream = prefetch(batches, 0, 1000, workers=2, ahead=5)
    next(stream)
    time.sleep(0.1)
    assert 2 <= len(batches.asked) <= 6
    stream.close()


def test_an_error_is_raised_at_its_turn_and_ends_the_threads():
    stream = prefetch(Slow(failing=4), 0, 100, workers=3)
    found = []
    with pytest.raises(RuntimeError, match="batch 4"):
        for index, _ in stream:
            found.append(index)
    assert found == [0, 1, 2, 3]
    assert not prefetching_threads()


def test_closing_ends_the_threads():
    stream = prefetch(Slow(), 0, 10**9, workers=4)
    next(stream)
    assert prefetching_threads()
    stream.close()
    assert not prefetching_threads()
