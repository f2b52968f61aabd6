"""The tasks of VTAB-1k and the other named sets, on generated images."""

from pathlib import Path

import numpy as np
import pytest
from tfds_mocks import SPLIT_SIZES, mocked_data

from keras_vit.data import decode_image, load_data
from keras_vit.data.vtab import VTAB_TASKS, find_task

pytest.importorskip("tensorflow_datasets")

# Task: classes, test images, whether images are arrays. The counts follow from the TFDS catalog
# and the splits of google-research/task_adaptation.
TASKS = {
    "caltech101": (102, 6_084, False),
    "cifar100": (100, 10_000, True),
    "clevr_count": (8, 15_000, False),
    "clevr_distance": (6, 15_000, False),
    "diabetic_retinopathy": (5, 42_670, False),
    "dmlab": (6, 22_735, False),
    "dsprites_location": (16, 73_728, True),
    "dsprites_orientation": (16, 73_728, True),
    "dtd": (47, 1_880, False),
    "eurosat": (10, 5_400, True),
    "flowers102": (102, 6_149, False),
    "kitti_distance": (4, 711, False),
    "patch_camelyon": (2, 32_768, True),
    "pets": (37, 3_669, False),
    "resisc45": (45, 6_300, False),
    "smallnorb_azimuth": (18, 12_150, True),
    "smallnorb_elevation": (9, 12_150, True),
    "sun397": (397, 21_750, False),
    "svhn": (10, 26_032, True),
}

NAMED = {
    "cifar10": (10, True, False),
    "cifar100": (100, True, False),
    "imagenet2012": (1000, False, False),
    "oxford_flowers102": (102, False, True),
    "oxford_iiit_pet": (37, False, False),
}


def pixels(image_set, index):
    image = image_set.images[index]
    return image if image_set.in_memory else decode_image(image)


@pytest.mark.parametrize("task", sorted(VTAB_TASKS))
def test_a_task_has_its_classes_and_splits(task, tmp_path):
    classes, _, in_memory = TASKS[task]
    with mocked_data():
        source = load_data(f"vtab/{task}", cache_dir=tmp_path)
    assert len(source.class_names) == len(set(source.class_names)) == classes
    for part in (source.train, source.validation, source.test):
        assert part.in_memory == in_memory
        # The generated examples go through the labels in turn.
        assert set(part.labels.tolist()) == set(range(min(classes, len(part))))
        assert pixels(part, 0).shape[2] == 3
    # What lies in the cache is enough from now on.
    assert load_data(f"vtab/{task}", cache_dir=tmp_path).digest == source.digest


def test_every_task_is_tested():
    assert set(TASKS) == set(VTAB_TASKS)


@pytest.mark.parametrize("task", sorted(VTAB_TASKS))
def test_the_slices_are_800_200_and_the_test_of_the_paper(task):
    """The 200 lie in what the task's code calls val, which shares no image with train or test."""
    row = VTAB_TASKS[task]
    sizes = SPLIT_SIZES[row.tfds]
    taken = {}
    for name, part in (("train", row.train), ("validation", row.validation), ("test", row.test)):
        first, end = part.bounds(sizes[part.split])
        taken[name] = {(part.split, number) for number in range(first, end)}
    assert [len(taken[name]) for name in ("train", "validation", "test")] == [
        800,
        200,
        TASKS[task][1],
    ]
    assert len(set.union(*taken.values())) == sum(map(len, taken.values()))


@pytest.mark.parametrize(
    "task, validation, test",
    [
        # task_adaptation: the last 10 % of train are val; floor(73,257 * 0.9) = 65,931.
        ("svhn", "train[65931:66131]", "test[0:26032]"),
        ("caltech101", "train[2754:2954]", "test[0:6084]"),
        ("pets", "train[2944:3144]", "test[0:3669]"),
        ("flowers102", "validation[0:200]", "test[0:6149]"),
        ("eurosat", "train[16200:16400]", "train[21600:27000]"),
        ("resisc45", "train[18900:19100]", "train[25200:31500]"),
        ("clevr_count", "train[63000:63200]", "validation[0:15000]"),
        ("dsprites_location", "train[589824:590024]", "train[663552:737280]"),
        ("smallnorb_azimuth", "test[0:200]", "test[12150:24300]"),
    ],
)
def test_slices_are_those_of_the_benchmark_s_code(task, validation, test):
    row = VTAB_TASKS[task]
    for part, expected in ((row.validation, validation), (row.test, test)):
        assert part.instruction(SPLIT_SIZES[row.tfds][part.split]) == expected


def test_what_tfds_stores_at_a_slice_is_what_is_loaded(tmp_path):
    """On a prepared set of the true name, whose images are numbered."""
    write_svhn(tmp_path / "tfds", train=2_015, test=7)
    source = load_data("vtab/svhn", data_dir=tmp_path / "tfds", cache_dir=tmp_path / "cache")
    assert (source.name, source.version) == ("vtab/svhn", "3.1.0")

    def numbers(image_set):
        return image_set.images[:, 0, 0, 0] + 256 * image_set.images[:, 0, 0, 1].astype(int)

    assert numbers(source.train).tolist() == list(range(800))
    # 90 % of 2,015 are 1,813 images.
    assert numbers(source.validation).tolist() == list(range(1_813, 2_013))
    assert numbers(source.test).tolist() == list(range(7))
    assert source.train.labels.tolist() == [number % 10 for number in range(800)]


def test_a_set_that_is_not_whole_is_refused(tmp_path):
    write_svhn(tmp_path / "tfds", train=1_205, test=7)
    with pytest.raises(
        ValueError, match=r"svhn_cropped/3\.1\.0 in .* has 1,205 train images.*1,284 or more"
    ):
        load_data("vtab/svhn", data_dir=tmp_path / "tfds", cache_dir=tmp_path / "cache")


def write_svhn(folder, train, test):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )

    def example(number):
        image = np.zeros((32, 32, 3), "uint8")
        image[..., 0], image[..., 1] = number % 256, number // 256
        return number, {"image": image, "label": number % 10}

    tfds.dataset_builders.store_as_tfds_dataset(
        name="svhn_cropped",
        version="3.1.0",
        features=features,
        split_datasets={"train": map(example, range(train)), "test": map(example, range(test))},
        data_dir=folder,
        disable_shuffling=True,
    )


def test_the_page_of_data_sets_has_the_slices_of_every_task():
    page = Path(__file__).resolve().parents[1] / "docs/datasets.md"
    if not page.exists():
        pytest.skip("docs/ is not here")
    rows = [line.strip("| ").split(" | ") for line in page.read_text("utf-8").splitlines()]
    rows = {row[0].strip("`"): row[1:] for row in rows if row[0].startswith("`vtab/")}
    assert set(rows) == {"vtab/TASK", *(f"vtab/{name}" for name in VTAB_TASKS)}
    for name, task in VTAB_TASKS.items():
        classes, images, _ = TASKS[name]
        expected = [f"`{task.tfds}`", str(classes), f"{images:,}"]
        row = rows[f"vtab/{name}"]
        assert [row[0], row[1], row[5]] == expected
        for cell, part in ((row[3], task.validation), (row[4], task.test)):
            size = SPLIT_SIZES[task.tfds][part.split]
            whole = part.bounds(size) == (0, size)
            assert cell == f"`{part.split if whole else part.instruction(size)}`"


# labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(3, 11))
def test_clevr_counts_start_at_three(count):
    task = find_task("vtab/clevr_count")
    label = task.label({"objects": {"size": np.zeros(count, "int64")}})
    assert label == count - 3
    assert task.class_names[label] == str(count)


@pytest.mark.parametrize(
    "distances, name",
    [
        ([9.9, 7.0], "up to 8"),
        # A distance that equals a threshold belongs to the class below it.
        ([8.0, 12.0], "up to 8"),
        ([8.1], "8 to 8.5"),
        ([8.5], "8 to 8.5"),
        ([11.0, 8.6, 9.9], "8.5 to 9"),
        ([9.4], "9 to 9.5"),
        ([9.8], "9.5 to 10"),
        ([10.2, 10.1], "over 10"),
    ],
)
def test_clevr_distance_is_that_of_the_nearest_object(distances, name):
    task = find_task("vtab/clevr_distance")
    # The first two coordinates are the place in the picture.
    coordinates = np.array([[3.0, 5.0, distance] for distance in distances], "float32")
    label = task.label({"objects": {"pixel_coords": coordinates}})
    assert task.class_names[label] == name


CAR, VAN, TRUCK, PEDESTRIAN, TRAM = 0, 1, 2, 3, 6


@pytest.mark.parametrize(
    "objects, name",
    [
        ([(CAR, 30.0), (VAN, 7.9)], "up to 8 m"),
        ([(TRUCK, 8.0)], "up to 8 m"),
        ([(TRUCK, 8.5), (CAR, 60.0)], "8 to 20 m"),
        ([(CAR, 20.5), (PEDESTRIAN, 2.0)], "over 20 m"),
        ([(PEDESTRIAN, 2.0), (TRAM, 9.0)], "no vehicle"),
        ([], "no vehicle"),
    ],
)
def test_kitti_distance_is_that_of_the_nearest_car_van_or_truck(objects, name):
    task = find_task("vtab/kitti_distance")
    types = np.array([kind for kind, _ in objects], "int64")
    location = np.array([[-50.0, 1.7, depth] for _, depth in objects], "float32").reshape(-1, 3)
    label = task.label({"objects": {"type": types, "location": location}})
    assert task.class_names[label] == name


@pytest.mark.parametrize(
    "task, key, values",
    [
        ("dsprites_location", "label_x_position", 32),
        ("dsprites_orientation", "label_orientation", 40),
    ],
)
def test_dsprites_groups_neighbouring_values_in_sixteen(task, key, values):
    row = find_task(f"vtab/{task}")
    labels = [row.label({key: value}) for value in range(values)]
    # The reference divides by the float values / 16 and rounds down.
    assert labels == [int(value // (values / 16)) for value in range(values)]
    assert sorted(set(labels)) == list(range(16))
    first, last = row.class_names[labels[-1]].split(" to ")
    assert labels[int(first)] == labels[int(last)] == 15


def test_dsprites_shapes_are_white_on_black(tmp_path):
    with mocked_data():
        source = load_data("vtab/dsprites_location", cache_dir=tmp_path)
    assert np.unique(source.test.images).tolist() == [0, 255]


def test_smallnorb_is_grey_and_of_the_left_camera(tmp_path):
    with mocked_data():
        source = load_data("vtab/smallnorb_azimuth", cache_dir=tmp_path)
    images = source.train.images
    assert images.shape[1:] == (96, 96, 3)
    assert (images[..., :1] == images).all() and len(np.unique(images)) > 2


def test_an_unknown_task_gets_the_nearest_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'vtab/flower102' is no task.*Did you mean flowers102"):
        load_data("vtab/flower102", cache_dir=tmp_path)


# the other named sets ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_named_set_has_its_classes_and_splits(name, tmp_path):
    classes, in_memory, has_validation = NAMED[name]
    with mocked_data():
        source = load_data(name, cache_dir=tmp_path)
    assert len(source.class_names) == classes
    # The validation images of ImageNet are its test: the published test images have no labels.
    assert (source.validation is not None) == has_validation
    for part in (source.train, source.test):
        assert part.in_memory == in_memory
        assert set(part.labels.tolist()) == set(range(classes))


def test_a_set_without_the_splits_that_are_needed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(SPLIT_SIZES, "smallnorb", {"train": 24_300})
    with (
        mocked_data(),
        pytest.raises(
            ValueError,
            match=r"smallnorb/2\.\d\.0 .* has the splits train\. Expected all of test, train",
        ),
    ):
        load_data("vtab/smallnorb_azimuth", cache_dir=tmp_path)
