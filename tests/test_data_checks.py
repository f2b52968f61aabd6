"""What is said of data that can be read, but is hardly meant: classes, and equal pictures."""

import shutil
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from PIL import Image

from keras_vit.data import (
    DataSource,
    ImageSet,
    check_class_names,
    imagenet_class_names,
    join,
    load_data,
    split_images,
)
from keras_vit.data.class_names import imagenet_wordnet_ids


def write_images(folder, files):
    """One noisy picture a file, each other."""
    for number, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3)).astype("uint8")
        Image.fromarray(pixels).save(path)
    return folder


def write_flowers(folder):
    names = [f"{split}/{name}" for split in ("train", "test") for name in ("rose", "tulip")]
    return write_images(folder, [f"{name}/{index}.png" for name in names for index in range(3)])


def messages(*args, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_data(*args, **options)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def write_arrays(folder, train, test, test_labels=None):
    """A .npz file of 2×2 images; each number is an image's content."""
    arrays = {"name": "tiny", "version": "1", "class_names": np.array(["b", "a"])}
    for split, numbers in (("train", train), ("test", test)):
        arrays[f"{split}_images"] = np.tile(
            np.array(numbers, "uint8")[:, None, None, None], (1, 2, 2, 3)
        )
        arrays[f"{split}_labels"] = np.arange(len(numbers), dtype="int32") % 2
    if test_labels is not None:
        arrays["test_labels"] = np.array(test_labels, "int32")
    np.savez(folder / "tiny.npz", **arrays)
    return folder / "tiny.npz"


def test_nothing_is_said_of_good_data(tmp_path):
    assert messages(write_flowers(tmp_path / "flowers")) == []
    assert messages(write_arrays(tmp_path, [1, 2, 3, 4], [5, 6])) == []
    assert messages("digits") == []


# classes -----------------------------------------------------------------------------------------


def test_files_of_class_folders_that_are_no_images_by_their_names_are_counted(tmp_path):
    folder = write_flowers(tmp_path / "flowers")
    for name in ("1.heic", "2.HEIC", "notes.txt", "deeper/README", ".hidden"):
        (folder / "train/rose/deeper").mkdir(exist_ok=True)
        (folder / "train/rose" / name).write_bytes(b"no image")
    # Beside the classes, where nobody looks for images.
    (folder / "train/licence.txt").write_text("free")
    (message,) = messages(folder)
    assert "flowers: 4 files in the folders of classes are passed over" in message
    assert "2 .heic, 1 .txt, 1 without a suffix. Expected .apng, .bmp" in message


def test_images_beside_the_folders_of_classes_are_counted(tmp_path):
    divided = write_flowers(tmp_path / "flowers")
    for name in ("train/x.png", "test/y.JPG", "test/.z.png", "test/notes.txt"):
        (divided / name).write_bytes(b"no image")
    (message,) = messages(divided)
    assert "flowers: 2 images beside the folders of classes are passed over" in message
    assert "the first is test/y.JPG. Expected each in the folder of its class" in message
    (message,) = messages(divided / "train", test_fraction=1)
    assert "train: 1 images beside the folders of classes" in message and "is x.png." in message


def test_classes_with_folders_of_the_same_names_may_be_splits(tmp_path):
    files = [f"{place}/{name}/0.png" for place in ("a", "b") for name in ("rose", "tulip")]
    (message,) = messages(write_images(tmp_path / "flowers", files), test_fraction=1)
    assert "flowers: a/, b/ have no images of their own, and folders of the same names" in message
    assert "in them: rose/, tulip/. They are taken for classes. Where they are splits" in message
    # Others beside them are no splits.
    assert messages(write_images(tmp_path / "more", [*files, "c/0.png"]), test_fraction=1) == []


def test_each_suffix_of_a_format_that_is_read_is_taken(tmp_path):
    suffixes = {"JPEG": "jfif jpe jpeg jpg", "PNG": "apng png", "PPM": "pbm pgm pnm ppm"}
    for number, (kind, names) in enumerate(suffixes.items()):
        for suffix in names.split():
            path = write_images(tmp_path, [f"{number % 2}/{suffix}.png"]) / f"{number % 2}"
            picture = Image.open(path / f"{suffix}.png")
            picture.save(path / f"picture.{suffix}", kind)
            (path / f"{suffix}.png").unlink()
    assert len(load_data(tmp_path, test_fraction=1).test) == 10


def test_classes_without_training_images_are_named_with_the_test_images_they_cost(tmp_path):
    names = ["a.png", "b.png", "c.png", "d.png", "e.png"]
    write_images(tmp_path, names)
    labels = ["0,train", "0,train", "2,train", "1,test", "2,test"]
    path = tmp_path / "labels.csv"
    lines = [f"{name},{label}\n" for name, label in zip(names, labels, strict=True)]
    path.write_text("file,label,split\n" + "".join(lines))
    (message,) = messages(path)
    assert "labels.csv: 1 of 3 classes have no image to train on: '1'" in message
    assert "1 of 2 test images are of these classes and will count as wrong" in message
    assert "1 of 3 classes have no test image, so their accuracy stays unknown: '0'" in message
    assert "fewer" not in message


def test_fewer_images_than_classes(tmp_path):
    write_images(tmp_path, ["a.png", "b.png", "c.png"])
    path = tmp_path / "labels.csv"
    path.write_text("file,label,split\na.png,0,train\nb.png,41,train\nc.png,0,test\n")
    (message,) = messages(path)
    assert "40 of 42 classes have no image to train on: '1', '2', '3', '4', '5', … (40)" in message
    assert "2 training images are fewer than the 42 classes" in message
    assert "indices without gaps" in message


def test_a_class_without_test_images(tmp_path):
    folder = write_flowers(tmp_path / "flowers")
    shutil.rmtree(folder / "test/tulip")
    (message,) = messages(folder)
    assert "flowers: 1 of 2 classes have no test image" in message and "'tulip'" in message


def test_a_class_without_training_images_in_a_folder_is_an_error(tmp_path):
    folder = write_flowers(tmp_path / "flowers")
    (folder / "train/rose").rename(folder / "train/rosse")
    with pytest.raises(ValueError, match=r"test has the class 'rose'.*Did you mean rosse"):
        load_data(folder)


def source_of(*names):
    images = ImageSet(np.zeros((1, 2, 2, 3), "uint8"), np.zeros(1, "int32"), names)
    return DataSource("flowers", "", "", images, None, None)


def test_the_same_classes_are_those_of_the_model():
    check_class_names(source_of("rose", "tulip"), ["rose", "tulip"], "class_names.txt")
    check_class_names(source_of(*imagenet_wordnet_ids()), imagenet_class_names(), "the model")


@pytest.mark.parametrize(
    "found, known, message",
    [
        (
            ["daisy", "rosse", "tulip"],
            ["daisy", "rose", "tulip"],
            r"flowers has other classes than runs/a/class_names\.txt: 'rosse' is new and 'rose' is "
            r"gone\. Did you rename it\?",
        ),
        (["daisy", "x"], ["daisy", "tulip"], "'x' is new and 'tulip' is gone. Did you rename it"),
        (
            ["daisies", "roses", "lily"],
            ["daisy", "rose"],
            "'daisies' is new and 'daisy' is gone, 'roses' is new and 'rose' is gone, and 1 others",
        ),
        (["b", "a"], ["a", "b"], r"class 0 is 'b', and 'a' there\."),
        (["a", "b", "c"], ["a", "b"], r"3 instead of 2; 'c' new\."),
        (["a"], ["a", "b"], r"1 instead of 2; 'b' gone\."),
        (["a", "b", "a"], ["a", "b"], "3 names with repetitions, and 2 there"),
    ],
)
def test_other_classes_than_the_model_s(found, known, message):
    with pytest.raises(ValueError, match=message) as error:
        check_class_names(source_of(*found), known, "runs/a/class_names.txt")
    assert "Expected the same names in the same order" in str(error.value)


def test_wholly_other_classes_are_told_apart_in_no_time():
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"1000 instead of 999; 'class-0', .* … \(1000\) new"):
        check_class_names(
            source_of(*(f"class-{number}" for number in range(1000))),
            [f"klasse_{number}" for number in range(999)],
            "there",
        )
    assert time.perf_counter() - began < 0.5


# equal pictures ----------------------------------------------------------------------------------


def test_training_images_among_the_test_images_of_a_folder(tmp_path):
    folder = write_flowers(tmp_path / "flowers")
    shutil.copy(folder / "train/rose/1.png", folder / "test/rose/copy.png")
    shutil.copy(folder / "train/rose/1.png", folder / "test/rose/again.png")
    shutil.copy(folder / "train/tulip/0.png", folder / "test/tulip/copy.png")
    (message,) = messages(folder)
    assert "flowers: test images that are training images too: 3 of 9, the first is" in message
    assert f"{folder / 'test/rose/again.png'} (rose)" in message
    assert f"{folder / 'train/rose/1.png'} (rose)" in message


def test_images_that_are_in_two_splits_are_said_for_each_two(tmp_path):
    folder = write_flowers(tmp_path / "flowers")
    write_images(folder, ["train/rose/0.png"] * 20 + ["val/rose/3.png", "val/tulip/3.png"])
    assert messages(folder) == []
    shutil.copy(folder / "val/rose/3.png", folder / "test/rose/copy.png")
    (message,) = messages(folder)
    assert "flowers: test images that are validation images too: 1 of 7, the first is" in message
    assert f"{folder / 'test/rose/copy.png'} (rose) = {folder / 'val/rose/3.png'} (rose)" in message
    assert "own_validation='train', and in a sweep's final run: take them out" in message
    shutil.copy(folder / "val/tulip/3.png", folder / "train/tulip/copy.png")
    _, message = messages(folder)
    assert "validation images that are training images too: 1 of 2, the first is" in message
    assert f"val/tulip/3.png (tulip) = {folder / 'train/tulip/copy.png'} (tulip)" in message
    assert "by which early_stopping, keep='best' and a sweep choose, will be too high" in message
    shutil.copy(folder / "val/rose/3.png", folder / "train/rose/copy.png")
    first, second, third = messages(folder)
    assert "test images that are training images too: 1 of 7" in first
    assert "test images that are validation images too: 1 of 7" in second
    assert "validation images that are training images too: 2 of 2" in third


def write_copies(folder):
    """Two classes of 10 pictures, of each of which 7 are one."""
    names = ("rose", "tulip")
    write_images(folder, [f"{name}/{index}.png" for name in names for index in range(10)])
    for name in names:
        for index in (1, 3, 5, 6, 8, 9):
            shutil.copy(folder / name / "0.png", folder / name / f"{index}.png")
    return folder


@pytest.mark.parametrize("seed", range(5))
def test_copies_stay_on_one_side_where_a_folder_is_divided(tmp_path, seed):
    folder = write_copies(tmp_path / "flowers")
    assert messages(folder, test_fraction=0.5, seed=seed) == []
    source = load_data(folder, test_fraction=0.5, seed=seed)
    assert len(source.train) + len(source.test) == 20
    # And where some of train are held out.
    sides = [source.train, source.test, *split_images(source.train, 0.5, seed=seed)]
    contents = [{path.read_bytes() for path in side.images} for side in sides]
    assert [len(content) for content in contents] == [4, 4, 2, 2]
    assert not contents[0] & contents[1] and not contents[2] & contents[3]


def test_copies_stay_on_one_side_where_joined_splits_are_divided(tmp_path):
    source = load_data(write_copies(tmp_path / "flowers"), test_fraction=0.5)
    both = join(source.train, source.test)
    sides = split_images(both, 0.5, seed=0)
    contents = [{path.read_bytes() for path in side.images} for side in sides]
    assert [len(content) for content in contents] == [4, 4]


def test_without_copies_files_are_divided_as_ever(tmp_path):
    names = [f"{name}/{index}.png" for name in ("rose", "tulip") for index in range(5)]
    source = load_data(write_images(tmp_path, names), test_fraction=0.4, seed=3)
    assert [path.relative_to(tmp_path).as_posix() for path in source.test.images] == [
        "rose/0.png",
        "rose/2.png",
        "tulip/0.png",
        "tulip/3.png",
    ]


def test_a_class_keeps_its_only_image_though_another_has_a_copy(tmp_path):
    folder = tmp_path / "flowers"
    write_images(folder, [f"rose/{index}.png" for index in range(4)])
    (folder / "tulip").mkdir()
    shutil.copy(folder / "rose/2.png", folder / "tulip/0.png")
    for seed in range(5):
        with pytest.warns(UserWarning, match="in two classes or more: 1"):
            source = load_data(folder, test_fraction=0.5, seed=seed)
        assert set(source.train.labels) == {0, 1}


def test_a_folder_of_one_picture_a_class_and_its_copies_cannot_be_divided(tmp_path):
    folder = write_images(tmp_path, ["rose/0.png", "tulip/0.png"])
    for name in ("rose", "tulip"):
        shutil.copy(folder / name / "0.png", folder / name / "1.png")
    with pytest.raises(ValueError, match="The 2 different images are one of each class"):
        load_data(folder, test_fraction=0.5)


def test_a_picture_in_two_classes(tmp_path):
    folder = write_flowers(tmp_path / "flowers")
    (folder / "train/rose/link.png").symlink_to(folder / "train/tulip/2.png")
    (message,) = messages(folder)
    assert "flowers: pictures that are in two classes or more: 1, the first is" in message
    assert "rose/link.png (rose)" in message and "tulip/2.png (tulip)" in message


def test_files_of_one_size_whose_middle_agrees_are_read_whole(tmp_path):
    folder = write_flowers(tmp_path / "flowers")
    content = bytearray(100_000)
    for split, last in (("train", 0), ("test", 1)):
        content[-1] = last
        # A BMP whose pixels differ in the last byte only.
        (folder / split / "rose/large.bmp").write_bytes(bytes(content))
    assert messages(folder) == []
    content[-1] = 0
    (folder / "test/rose/large.bmp").write_bytes(bytes(content))
    assert "training images too: 1 of 7" in messages(folder)[0]


def test_files_that_are_read_whole_are_not_kept_in_memory(tmp_path):
    content = bytearray(2**20)
    for number in range(20):
        content[-1] = number
        path = tmp_path / f"{number % 2}" / f"{number}.bmp"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    tracemalloc.start()
    try:
        assert messages(tmp_path) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20


def test_equal_pictures_of_arrays(tmp_path):
    leak, twofold = messages(write_arrays(tmp_path, [1, 2, 3, 3], [4, 2, 5], test_labels=[0, 1, 0]))
    assert "training images too: 1 of 3, the first is test image 1 (a) = train image 1 (a)" in leak
    assert (
        "in two classes or more: 1, the first is train image 2 (b) = train image 3 (a)" in twofold
    )


def test_equal_pictures_are_looked_for_where_a_model_gives_the_classes(tmp_path):
    folder = tmp_path / "flowers"
    write_images(folder, ["rose/0.png", "tulip/0.png"])
    shutil.copy(folder / "rose/0.png", folder / "tulip/1.png")
    names = ["daisy", "rose", "tulip"]
    (message,) = messages(folder, class_names=names, test_fraction=1)
    assert "in two classes or more: 1" in message
