"""Where images come from: TFDS, folders, manifests, cached arrays, digits, and their division."""

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from keras_vit.data import (
    ImageSet,
    decode_image,
    imagenet_class_names,
    join,
    load_data,
    split_images,
    subset,
)

REPOSITORY = Path(__file__).resolve().parents[1]


def write_image(path):
    """A picture of one colour, which its own name and its folder's name decide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = zlib.crc32(f"{path.parent.name}/{path.name}".encode()).to_bytes(4, "big")[:3]
    Image.new("RGB", (5, 4), tuple(colour)).save(path)
    return path


def write_classes(folder, counts):
    for name, count in counts.items():
        for index in range(count):
            write_image(folder / name / f"{index}.png")
    return folder


def labelled(labels, classes=None):
    """An image set whose images say which image of the set they are."""
    labels = np.asarray(labels, "int32")
    images = np.zeros((len(labels), 2, 2, 3), "uint8")
    images[:, 0, 0, 0] = np.arange(len(labels)) % 256
    images[:, 0, 0, 1] = np.arange(len(labels)) // 256
    classes = classes or labels.max() + 1
    return ImageSet(images, labels, tuple(map(str, range(classes))))


def identities(image_set):
    return image_set.images[:, 0, 0, 0].astype(int) + 256 * image_set.images[:, 0, 0, 1].astype(int)


def class_counts(image_set):
    return np.bincount(image_set.labels, minlength=len(image_set.class_names))


# ImageSet ----------------------------------------------------------------------------------------


def test_take_keeps_images_and_labels_together():
    taken = labelled([0, 1, 2, 1]).take([3, 0])
    assert identities(taken).tolist() == [3, 0]
    assert taken.labels.tolist() == [1, 0]


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_the_range_is_named(label):
    with pytest.raises(ValueError, match=rf"0\.\.1.*Received: {label} for image 1"):
        ImageSet(np.zeros((2, 4, 4, 3), "uint8"), np.array([0, label], "int32"), ("cat", "dog"))


@pytest.mark.parametrize("shape, dtype", [((2, 4, 4, 1), "uint8"), ((2, 4, 4, 3), "float32")])
def test_images_of_another_kind_are_refused(shape, dtype):
    with pytest.raises(ValueError, match="must be uint8 of shape"):
        ImageSet(np.zeros(shape, dtype), np.array([0, 1], "int32"), ("cat", "dog"))


# division ----------------------------------------------------------------------------------------


label_lists = st.lists(st.integers(0, 6), min_size=2, max_size=300)


@given(label_lists, st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_a_split_is_a_partition_with_the_shares_of_each_class(labels, fraction, seed):
    image_set = labelled(labels)
    if not 0 < round(len(labels) * fraction) < len(labels):
        with pytest.raises(ValueError, match="leaves images on both sides"):
            split_images(image_set, fraction, seed=seed)
        return
    if class_counts(image_set).max() == 1:
        with pytest.raises(ValueError, match="one of each class"):
            split_images(image_set, fraction, seed=seed)
        return
    kept, held_out = split_images(image_set, fraction, seed=seed)
    # Every class keeps an image, so that there may be fewer.
    assert set(kept.labels) == set(labels)
    missing = round(len(labels) * fraction) - len(held_out)
    assert 0 <= missing <= np.count_nonzero(class_counts(kept) == 1)
    both = np.concatenate([identities(kept), identities(held_out)])
    assert sorted(both) == list(range(len(labels)))
    for part in (kept, held_out):
        assert (np.diff(identities(part)) > 0).all()
        assert (part.labels == np.asarray(labels)[identities(part)]).all()
    shares = class_counts(image_set) * (round(len(labels) * fraction) / len(labels))
    assert (abs(class_counts(held_out) - shares) < 1 + 1e-9).all()


@given(label_lists, st.data())
def test_a_subset_has_exactly_the_count_and_the_shares(labels, data):
    count = data.draw(st.integers(1, len(labels)))
    image_set = labelled(labels)
    part = subset(image_set, count, seed=3)
    assert len(set(identities(part))) == len(part) == count
    shares = class_counts(image_set) * (count / len(labels))
    assert (abs(class_counts(part) - shares) < 1 + 1e-9).all()
    assert identities(subset(image_set, count, seed=3)).tolist() == identities(part).tolist()


def test_the_seed_decides_the_division():
    image_set = labelled(np.arange(400) % 4)
    parts = [identities(split_images(image_set, 0.5, seed=seed)[1]).tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_equal_remainders_do_not_favour_the_first_classes():
    image_set = labelled(np.arange(500) % 50)
    first = [subset(image_set, 10, seed=seed).labels.mean() for seed in range(50)]
    assert 20 < np.mean(first) < 29


@pytest.mark.parametrize("count", [0, 5])
def test_a_subset_larger_than_the_set_is_refused(count):
    with pytest.raises(ValueError, match=rf"1\.\.4.*Received: {count}"):
        subset(labelled([0, 1, 0, 1]), count, seed=0)


def test_joined_sets_keep_images_and_labels_together(tmp_path):
    whole = labelled([0, 1, 2, 1])
    joined = join(whole.take([3, 0]), whole.take([2]))
    assert identities(joined).tolist() == [3, 0, 2]
    assert joined.labels.tolist() == [1, 0, 2] and joined.class_names == whole.class_names
    folder = load_data(write_classes(tmp_path, {"dog": 5, "cat": 5}))
    both = join(folder.train, folder.test)
    assert both.images == (*folder.train.images, *folder.test.images)
    assert class_counts(both).tolist() == [5, 5]


def test_sets_of_different_kinds_cannot_be_joined(tmp_path):
    arrays = labelled([0, 1])
    files = ImageSet((tmp_path / "a.png",), np.array([0], "int32"), ("0", "1"))
    larger = ImageSet(np.zeros((1, 4, 4, 3), "uint8"), np.array([0], "int32"), ("0", "1"))
    for other, message in (
        (files, r"\(2, 2\) and files"),
        (larger, r"\(2, 2\) and \(4, 4\)"),
        (labelled([0, 2]), "same classes"),
    ):
        with pytest.raises(ValueError, match=message):
            join(arrays, other)


# digits ------------------------------------------------------------------------------------------


def test_digits_need_no_file():
    digits = load_data("digits", seed=0)
    assert (len(digits.train), len(digits.test), digits.validation) == (1438, 359, None)
    assert digits.class_names == tuple("0123456789")
    assert digits.train.image_size == (8, 8)
    images = np.concatenate([digits.train.images, digits.test.images])
    assert (images.min(), images.max()) == (0, 255)
    assert (images[..., 0] == images[..., 2]).all()
    assert class_counts(digits.test).min() >= 34
    assert load_data("digits", seed=0).digest == digits.digest != load_data("digits", seed=1).digest


@pytest.mark.parametrize("fraction, train, test", [(0, 1797, None), (1, None, 1797)])
def test_all_images_may_be_one_split(fraction, train, test):
    digits = load_data("digits", test_fraction=fraction)
    assert (digits.train and len(digits.train)) == train
    assert (digits.test and len(digits.test)) == test


# folders -----------------------------------------------------------------------------------------


def test_a_folder_a_class(tmp_path):
    write_classes(tmp_path / "pets", {"dog": 10, "cat": 5})
    (tmp_path / "pets/dog/notes.txt").write_text("no image")
    (tmp_path / "pets/.hidden").mkdir()
    write_image(tmp_path / "pets/cat/deeper/6.JPG")
    pets = load_data(tmp_path / "pets")
    assert pets.name == "pets" and pets.class_names == ("cat", "dog")
    assert (len(pets.train), len(pets.test)) == (13, 3)
    for part in (pets.train, pets.test):
        assert not part.in_memory and part.image_size is None
        for path, label in zip(part.images, part.labels, strict=True):
            assert pets.class_names[label] in path.parts


@pytest.mark.parametrize(
    "train, validation, test",
    [
        ("train", "val", "test"),
        ("train", "validation", "test"),
        ("Train", "Valid", "TEST"),
        ("Training", "val", "test"),
        ("training", "Validation", "Testing"),
    ],
)
def test_a_folder_that_is_divided(tmp_path, train, validation, test):
    for split, count in ((train, 3), (validation, 2), (test, 1)):
        write_classes(tmp_path / split, {"dog": count, "cat": count})
    source = load_data(tmp_path)
    sizes = [len(part) for part in (source.train, source.validation, source.test)]
    assert sizes == [6, 4, 2]
    assert all(test in path.parts for path in source.test.images)


def test_folders_that_macos_and_tools_add_are_not_read(tmp_path):
    for split in ("train", "test"):
        write_classes(tmp_path / split, {"dog": 2, "cat": 2, "__MACOSX": 1, ".cache": 1})
    write_image(tmp_path / "__MACOSX/train/dog/0.png")
    write_image(tmp_path / "train/dog/.thumbnails/0.png")
    source = load_data(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert (len(source.train), len(source.test)) == (4, 4)


def test_a_lone_name_of_a_split_may_be_a_class(tmp_path):
    write_classes(tmp_path, {"valid": 5, "invalid": 5})
    assert load_data(tmp_path).class_names == ("invalid", "valid")


@pytest.mark.parametrize(
    "first, second",
    [
        ("train_images", "test_images"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("dev", "eval"),
        ("TrainSet", "test"),
        ("set-train2017", "set-val2017"),
    ],
)
def test_splits_by_other_names_are_not_taken_for_classes(tmp_path, first, second):
    write_classes(tmp_path / first, {"cat": 2, "dog": 2, "elk": 2})
    write_classes(tmp_path / second, {"cat": 2, "dog": 2})
    write_image(tmp_path / "pictures/0.png")
    names = sorted(name.split("/")[0] for name in (first, second))
    with pytest.raises(ValueError, match=f"{names[0]}/, {names[1]}/ have no images of") as error:
        load_data(tmp_path)
    assert "in them: cat/, dog/, elk/." in str(error.value)
    assert "train/, val/ and test/, or one folder of images a class, or a .csv" in str(error.value)


@pytest.mark.parametrize(
    "files",
    [
        ["train_a/2020/0.png", "train_a/2021/0.png", "tram_a/2020/0.png", "tram_a/2021/0.png"],
        # Valley and oval, contest and latest have no word of a split in them.
        ["valley/a/0.png", "valley/b/0.png", "oval/a/0.png", "oval/b/0.png"],
        ["test_a/2020/0.png", "test_a/2021/0.png", "test_b/2020/0.png", "test_b/2021/0.png"],
        ["train_a/images/0.png", "test_a/images/0.png"],
        ["train_a/0.png", "train_a/x/0.png", "train_a/y/0.png", "test_a/x/0.png", "test_a/y/0.png"],
        ["train_a/x/0.png", "train_a/y/0.png", "test_a/v/0.png", "test_a/w/0.png"],
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_classes_may_have_folders_in_them(tmp_path, files):
    for name in files:
        write_image(tmp_path / name)
    names = sorted({name.split("/")[0] for name in files})
    source = load_data(tmp_path, test_fraction=1)
    assert list(source.class_names) == names and len(source.test) == len(files)


def test_without_test_images_the_validation_images_are_the_test(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        write_classes(tmp_path / split, {"dog": count, "cat": count})
    source = load_data(tmp_path)
    assert (len(source.train), source.validation, len(source.test)) == (6, None, 4)


def test_a_folder_with_train_alone_is_divided_and_one_with_test_alone_is_not(tmp_path):
    write_classes(tmp_path / "a/train", {"dog": 5, "cat": 5})
    write_classes(tmp_path / "b/test", {"dog": 5, "cat": 5})
    divided, test_alone = load_data(tmp_path / "a"), load_data(tmp_path / "b")
    assert (len(divided.train), len(divided.test)) == (8, 2)
    assert (test_alone.train, len(test_alone.test)) == (None, 10)


def test_the_classes_of_a_folder_take_the_order_that_is_given(tmp_path):
    write_classes(tmp_path, {"cat": 1})
    source = load_data(tmp_path, class_names=["dog", "cat", "bird"], test_fraction=1)
    assert source.test.labels.tolist() == [1]
    assert source.class_names == ("dog", "cat", "bird")


def test_the_digest_sees_content_and_not_place(tmp_path):
    digests = []
    for name, counts in (("a", {"x": 2, "y": 2}), ("b", {"x": 2, "y": 2}), ("c", {"x": 2, "z": 2})):
        digests.append(load_data(write_classes(tmp_path / name, counts), test_fraction=1).digest)
    assert digests[0] == digests[1] != digests[2]
    Image.new("RGB", (50, 40)).save(tmp_path / "a/x/0.png")
    assert load_data(tmp_path / "a", test_fraction=1).digest != digests[0]


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "has no folders in it"),
        (["0.png"], "has no folders in it.*one folder of images a class"),
        (["cat/notes.txt", "dog/0.png"], "cat has no images in it"),
        (["cat/0.png"], "one class only: cat"),
        (["train/cat/0.png", "train/dog/0.png", "test/dogs/0.png"], "'dogs'.*Did you mean dog"),
        (["val/a/0.png", "validation/a/0.png"], "both val/ and validation/"),
        (["train/a/0.png", "Train/a/0.png"], "both Train/ and train/"),
        (["train/a/0.png", "validate/a/0.png", "old/a/0.png"], "has old/, validate/. Expected"),
        (["val/a/0.png", "test/a/0.png", "practice/a/0.png"], "beside them has practice/"),
        (["train/a/0.png", "test/a/0.png", "test/b/0.png"], "'b', which is none of 1 classes"),
        (["train/a/0.png", "test/a/0.png"], "train images of one class only: a"),
        (["test/a/0.png"], "test images of one class only: a"),
        (["Train/a/0.png", "training/a/0.png"], "both Train/ and training/"),
        (
            ["train/a/0.png", "train/b/0.png", "test/0.png", "test/1.png"],
            r"test has 2 images in it, which lie in no class folder, the first is 0\.png.*columns "
            r"file,label,split; .* move test/ away",
        ),
    ],
)
def test_folders_that_do_not_fit_are_named(tmp_path, files, message):
    for name in files:
        if name.endswith(".png"):
            write_image(tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text("no image")
    with pytest.raises(ValueError, match=message) as error:
        load_data(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_name_that_several_classes_have_is_refused(tmp_path):
    write_classes(tmp_path, {"crane": 1, "otter": 1})
    with pytest.raises(ValueError, match="'crane', and several classes"):
        load_data(tmp_path, class_names=imagenet_class_names())


def test_folders_called_by_wordnet_ids_are_the_classes_of_imagenet(tmp_path):
    ids = {"n01440764": 0, "n02012849": 134, "n03126707": 517, "n15075141": 999}
    write_classes(tmp_path / "images", dict.fromkeys(ids, 1))
    names = imagenet_class_names()
    source = load_data(tmp_path / "images", class_names=names, test_fraction=1)
    assert source.class_names == names
    assert {path.parent.name: label for path, label in pairs(source.test)} == ids
    assert names[134] == names[517] == "crane"
    assert load_data(tmp_path / "images", test_fraction=1).class_names == tuple(ids)
    write_classes(tmp_path / "images", {"n00000000": 1})
    with pytest.raises(ValueError, match="'n00000000', which is none of 1000 classes"):
        load_data(tmp_path / "images", class_names=names, test_fraction=1)


def pairs(image_set):
    return zip(image_set.images, image_set.labels.tolist(), strict=True)


# classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["", "train", "test"])
def test_images_of_one_class_can_be_evaluated_where_the_names_are_given(tmp_path, split):
    write_classes(tmp_path / "set" / split, {"cat": 2})
    source = load_data(tmp_path / "set", class_names=["dog", "cat"], test_fraction=1)
    assert source.train is None and source.test.labels.tolist() == [1, 1]


@pytest.mark.parametrize("split", ["", "train"])
def test_images_of_one_class_cannot_be_trained_on(tmp_path, split):
    write_classes(tmp_path / "set" / split, {"cat": 10})
    for fraction in (0, 0.2):
        with pytest.raises(ValueError, match="train images of one class only: cat"):
            load_data(tmp_path / "set", class_names=["dog", "cat"], test_fraction=fraction)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_only_image_of_a_class_is_trained_on(tmp_path):
    write_classes(tmp_path, {"cat": 4, "dog": 1, "elk": 1, "fox": 1, "owl": 1})
    source = load_data(tmp_path)
    assert class_counts(source.train).tolist() == [2, 1, 1, 1, 1]
    assert class_counts(source.test).tolist() == [2, 0, 0, 0, 0]


def test_one_image_a_class_cannot_be_divided(tmp_path):
    write_classes(tmp_path, {"cat": 1, "dog": 1})
    with pytest.raises(ValueError, match="2 images are one of each class"):
        load_data(tmp_path, test_fraction=0.5)


def test_indices_that_no_training_image_has_are_counted(tmp_path):
    lines = ["file,label,split", "a.png,0,train", "b.png,900,train", "c.png,5,test"]
    path = write_manifest(tmp_path, lines)
    with pytest.warns(
        UserWarning, match=r"labels\.csv: 899 of 901 classes have no image"
    ) as caught:
        load_data(path)
    assert len(caught) == 1


def test_nothing_is_said_of_classes_where_a_model_gives_them(tmp_path, recwarn):
    write_classes(tmp_path, {"cat": 5, "dog": 5})
    load_data(tmp_path)
    load_data(tmp_path, class_names=["cat", "dog", "bird"], test_fraction=1)
    assert not recwarn.list


# manifests ---------------------------------------------------------------------------------------


def write_manifest(folder, lines):
    for line in lines[1:]:
        if line.split(",")[0].endswith(".png"):
            write_image(folder / line.split(",")[0])
    path = folder / "labels.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_a_manifest_of_names(tmp_path):
    path = write_manifest(tmp_path, ["name,label,file", "a.png,dog,a.png", "b.png,cat,b.png"])
    source = load_data(path, test_fraction=1)
    assert source.class_names == ("cat", "dog")
    assert source.test.labels.tolist() == [1, 0]
    assert source.test.images == (tmp_path / "a.png", tmp_path / "b.png")


def test_a_manifest_of_indices_with_splits(tmp_path):
    lines = ["file,label,split", "x/a.png,2,train", "b.png,1,val", "c.png,0,Train", "d.png,1,TEST"]
    with pytest.warns(UserWarning, match="1 of 3 classes have no image to train on"):
        source = load_data(str(write_manifest(tmp_path, lines)))
    assert source.class_names == ("0", "1", "2")
    assert source.train.labels.tolist() == [2, 0]
    assert source.train.images[0] == tmp_path / "x/a.png"
    assert (source.validation.labels.tolist(), source.test.labels.tolist()) == ([1], [1])


def test_the_indices_of_a_manifest_count_in_the_names_that_are_given(tmp_path):
    path = write_manifest(tmp_path, ["file,label", "a.png,2"])
    source = load_data(path, class_names=["x", "y", "z", "w"], test_fraction=1)
    assert source.class_names[source.test.labels[0]] == "z"


def test_digits_as_names_are_names(tmp_path):
    path = write_manifest(tmp_path, ["file,label", "a.png,7", "b.png,5"])
    source = load_data(path, class_names=["5", "6", "7"], test_fraction=1)
    assert source.test.labels.tolist() == [2, 0]


def test_labels_that_count_from_1_are_said_to(tmp_path):
    def path_of(*labels):
        lines = [f"{number}.png,{label}" for number, label in enumerate(labels)]
        return write_manifest(tmp_path, ["file,label,split", *lines])

    with pytest.warns(UserWarning, match="train on: '0'; the labels seem to count from 1. .*sub"):
        load_data(path_of("1,train", "2,train", "3,train", "1,test", "2,test", "3,test"))
    for labels in (["0,test", "1,test"], ["1,test", "4,test"]):
        with pytest.warns(UserWarning, match="have no image to train on") as caught:
            load_data(path_of("1,train", "2,train", *labels))
        assert not any("count from 1" in str(warning.message) for warning in caught)
    names = ["x", "y", "z"]
    with pytest.raises(ValueError, match="label 3. Expected 0 to 2; they seem to count from 1"):
        load_data(path_of("1,test", "2,test", "3,test"), class_names=names)
    for labels in (["0,test", "3,test"], ["1,test", "4,test"]):
        with pytest.raises(ValueError, match="Expected 0 to 2$"):
            load_data(path_of(*labels), class_names=names)


@pytest.mark.parametrize("labels, is_said", [("12", True), ("012", False), ("23", False)])
def test_numbers_that_may_be_names_or_indices_are_said_to_be_names(
    tmp_path, recwarn, labels, is_said
):
    lines = [f"{number}.png,{label}" for number, label in enumerate(labels)]
    path = write_manifest(tmp_path, ["file,label", *lines])
    source = load_data(path, class_names=["1", "2", "3"], test_fraction=1)
    messages = [str(warning.message) for warning in recwarn]
    if is_said:
        assert source.test.labels.tolist() == [0, 1]
        (message,) = messages
        assert "read as names of classes: 1 is the class called '1', which has the index 0" in (
            message
        )
        assert recwarn[0].filename == __file__
    else:
        # One reading alone is possible: 0 is no name, 3 no index.
        assert source.test.labels.tolist() == {"012": [0, 1, 2], "23": [1, 2]}[labels]
        assert not messages


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_suffix_in_capital_letters_is_the_same(tmp_path):
    path = write_manifest(tmp_path, ["file,label", "a.png,ant", "b.png,bee"])
    assert len(load_data(path.rename(tmp_path / "UP.CSV"), test_fraction=1).test) == 2
    arrays = write_cache(tmp_path).rename(tmp_path / "UP.NPZ")
    assert len(load_data(arrays).train) == 3


@pytest.mark.parametrize(
    "lines, message",
    [
        (["path,label", "a.png,1"], "has the columns 'path', 'label'. Expected 'file', 'label'"),
        (["file, label", "a.png,1"], "has the columns 'file', ' label'. .* without blanks beside"),
        (["file,label"], "lists no images"),
        (["file,label", "a.png"], "line 2: file or label is empty"),
        (["file,label", "a.png,0", "b.png,-1"], "label -1. Expected 0 to"),
        (["file,label", "a.png,0", "b.png,999999999999999999999"], "label 9+. Expected 0 to"),
        (["file,label", "a.png,0", "b.png,1O"], "labels that are numbers, and the label '1O'"),
        (["file,label", "a.png,0", "b.png,0"], "one class only: 0"),
        (["file,label", "a.png,7", "b.png,7", "c.png,7"], "train images of one class only: 7"),
        (["file,label,split", "a.png,7,test", "b.png,7,test"], "test images of one class only: 7"),
        (["file,label,split", "a.png,0"], "line 2: the split is None"),
        (["file,label,split", "a.png,0,train", "b.png,1,tset"], "line 3: the split is 'tset'"),
        (["file,label", 'a.png,"0'], "cannot be read as a CSV file"),
        (["file,label", "a.png,0", "b.png,1", "./a.png,0"], r"line 4: \./a\.png is in line 2 al"),
        (["file,label", "a.png,cat", "a.png,dog"], "line 3: a.png has the label 'dog', and 'cat'"),
        (
            ["file,label,split", "a.png,0,train", "b.png,1,train", "a.png,0,test"],
            "line 4: a.png is in test, and in train in line 2. Expected a file in one of them",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_named(tmp_path, lines, message):
    path = write_manifest(tmp_path, lines)
    with pytest.raises(ValueError, match=message) as error:
        load_data(path)
    assert str(path) in str(error.value)


def test_a_split_may_list_a_file_twice(tmp_path):
    lines = ["file,label,split", "a.png,0,train", "a.png,0,train", "b.png,1,train", "c.png,0,test"]
    source = load_data(write_manifest(tmp_path, lines))
    assert source.train.labels.tolist() == [0, 0, 1]


def test_a_file_that_a_manifest_lists_several_times_is_divided_as_one(tmp_path):
    rows = [f"{index}.png,{index % 2},train" for index in range(12)]
    # To weigh it more, and under another name.
    rows += rows[:4] + rows[:2] + ["more/../3.png,1,train"]
    (tmp_path / "more").mkdir()
    path = write_manifest(tmp_path, ["file,label,split", *rows])
    for seed in range(5):
        source = load_data(path, test_fraction=0.5, seed=seed)
        files = [{file.resolve() for file in part.images} for part in (source.train, source.test)]
        assert not files[0] & files[1]
        assert [len(part) for part in files] == [6, 6]
        assert len(source.train) + len(source.test) == 19
    # One file is no two images to divide.
    once = ImageSet((path, path), np.array([0, 0], "int32"), ("a",))
    with pytest.raises(ValueError, match="to divide 1 images"):
        split_images(once, 0.5, seed=0)


def test_a_manifest_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("file,label\nä.png,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels.csv cannot be read as a CSV file in UTF-8"):
        load_data(path)


def test_missing_files_of_a_manifest_are_named(tmp_path):
    path = write_manifest(tmp_path, ["file,label", "a.png,0", "b.png,1"])
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"lists 1 of 2 files.*b\.png"):
        load_data(path)


# arrays and TFDS ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./absent", "/absent/folder", "absent.csv", "absent.npz"])
def test_paths_that_do_not_exist(name):
    with pytest.raises(FileNotFoundError, match=r"absent.* does not exist"):
        load_data(name)


@pytest.mark.parametrize("name", ["photo.png", "labels.tsv", "notes"])
def test_another_file_is_no_data_set(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("file\tlabel\n")
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        with pytest.raises(ValueError, match=f"{name} is no data set. Expected a folder"):
            load_data(path)


def test_an_unknown_name_gets_the_nearest_ones(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError, match=r"'cifar01'.*Did you mean cifar10"):
        load_data("cifar01", cache_dir=tmp_path)


def test_a_set_that_is_not_for_classification_is_refused(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError, match="not for image classification"):
        load_data("ag_news_subset", cache_dir=tmp_path)


def test_a_set_that_cannot_be_downloaded_says_where_to_put_it(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    # Nothing listens on the discard port of this machine, so there is no way out.
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match=r"(?s)tfds build cifar100.*DIR/cifar100/3\.0\.2"):
        load_data("cifar100", data_dir=tmp_path, cache_dir=tmp_path)


class TestTinyTFDS:
    """A set of our own that TFDS prepared, of small images of one size or of large ones."""

    @pytest.fixture(
        params=[(6, 6), pytest.param((None, None), marks=pytest.mark.slow)], ids=["small", "large"]
    )
    def prepared(self, request, tmp_path):
        return write_tfds(tmp_path / "tfds", request.param)

    def test_it_is_read_once_and_then_without_tensorflow(self, prepared, tmp_path):
        cache = tmp_path / "cache"
        first = load_data("tiny", data_dir=prepared, cache_dir=cache)
        assert (first.name, first.version, first.class_names) == ("tiny", "1.2.0", ("b", "a"))
        # The test image without a label is left out.
        assert first.train.labels.tolist() == [0, 1, 0]
        assert first.test.labels.tolist() == [1]
        image = first.train.images[2]
        pixels = image if first.train.in_memory else decode_image(image)
        assert (pixels == 20).all()
        assert [path.name for path in cache.iterdir()] == [
            "tiny-1.2.0.npz" if first.train.in_memory else "tiny-1.2.0"
        ]
        again = run_without_tensorflow(f"load_data('tiny', cache_dir={str(cache)!r}).digest")
        assert again == first.digest

    def test_another_version_is_not_taken_from_the_cache(self, prepared, tmp_path):
        load_data("tiny", data_dir=prepared, cache_dir=tmp_path / "cache")
        assert load_data("tiny:1.2.0", cache_dir=tmp_path / "cache").version == "1.2.0"
        with pytest.raises(ValueError, match="tiny:1.3.0"):
            load_data("tiny:1.3.0", data_dir=tmp_path / "none", cache_dir=tmp_path / "cache")


def test_a_set_that_another_process_cached_meanwhile_is_taken(tmp_path, monkeypatch):
    data, cache = write_tfds(tmp_path / "tfds", (None, None)), tmp_path / "cache"
    rename = Path.rename

    def rename_later(path, target):
        shutil.copytree(path, target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_later)
    assert len(load_data("tiny", data_dir=data, cache_dir=cache).train) == 3
    assert [path.name for path in cache.iterdir()] == ["tiny-1.2.0"]


def test_a_set_is_found_in_the_cache_without_its_config_where_there_is_one(tmp_path, capsys):
    pytest.importorskip("tensorflow_datasets")
    for config, version in (("rgb", "1.0.0"), ("rgb", "2.0.0"), ("all", "1.0.0")):
        write_cache(tmp_path, f"wheat-{config}", version)
    write_cache(tmp_path, "vtab-wheat", "1.0.0")
    assert load_data("wheat:2.0.0", cache_dir=tmp_path).version == "2.0.0"
    assert "wheat is read as wheat-rgb" in capsys.readouterr().out
    for name in ("wheat", "wheat:1.0.0", "wheat/none", "whea", "vtab"):
        with pytest.raises(ValueError, match=f"{name}' is no file or folder here|no task"):
            load_data(name, cache_dir=tmp_path)
    (tmp_path / "wheat-all-1.0.0.npz").unlink()
    assert load_data("wheat", cache_dir=tmp_path).version == "2.0.0"


def test_what_an_interrupted_run_left_is_not_taken_for_the_cache(tmp_path):
    (tmp_path / ".digits_of_mine-1.0.0.123.partial").mkdir()
    (tmp_path / "digits_of_mine-1.0.0.npz.123.partial").write_bytes(b"")
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError, match="no TFDS data set"):
        load_data("digits_of_mine", cache_dir=tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "pickled", "empty"])
def test_a_cached_file_that_does_not_fit_is_named(tmp_path, damage):
    path = tmp_path / "set.npz"
    if damage == "truncated":
        cache = write_cache(tmp_path)
        path.write_bytes(cache.read_bytes()[:-200])
    elif damage == "foreign":
        np.savez(path, weights=np.zeros(3))
    elif damage == "pickled":
        names = np.array([{"a": 1}], dtype=object)
        np.savez(path, name="x", version="1", class_names=names, allow_pickle=True)
    else:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"set\.npz cannot be read as a data set"):
        load_data(path)


def test_the_labels_of_a_cached_set_are_indices_whatever_its_classes_are_called(tmp_path, capsys):
    folder = tmp_path / "numbered-1.0.0"
    rows = ["file,label,split", "a.png,0,train", "b.png,1,train", "c.png,0,test"]
    folder.mkdir()
    write_manifest(folder, rows).rename(folder / "manifest.csv")
    (folder / "class_names.txt").write_text("1\n0\n")
    source = load_data("numbered", cache_dir=tmp_path)
    assert source.class_names == ("1", "0")
    assert source.train.labels.tolist() == [0, 1] and source.test.labels.tolist() == [0]
    load_data("numbered", data_dir=tmp_path / "elsewhere", cache_dir=tmp_path)
    assert f"numbered is read from {folder}" in capsys.readouterr().out


def test_a_cached_file_is_a_source_of_its_own(tmp_path):
    source = load_data(str(write_cache(tmp_path)))
    assert (source.name, len(source.train), len(source.test)) == ("tiny", 3, 1)


@pytest.mark.slow
def test_cifar10_offline(shared, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    source = load_data("cifar10", data_dir=shared / "data/tfds", cache_dir=tmp_path)
    assert (len(source.train), len(source.test)) == (50_000, 10_000)
    assert source.train.images.shape == (50_000, 32, 32, 3)
    assert (class_counts(source.train) == 5000).all() and (class_counts(source.test) == 1000).all()
    assert source.class_names[:3] == ("airplane", "automobile", "bird")
    # The channels' means of CIFAR-10, as published with many recipes.
    means = source.train.images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, (0.4914, 0.4822, 0.4465), atol=2e-3)


def test_the_imagenet_samples(shared):
    names = imagenet_class_names()
    source = load_data(
        shared / "data/imagenet_samples/labels.csv", class_names=names, test_fraction=1
    )
    assert source.train is None and len(source.test) == 250
    for path, label in zip(source.test.images, source.test.labels, strict=True):
        assert path.stem.partition("_n")[2].partition("_")[2] == names[label].replace(" ", "_")


def test_imagenet_class_names(shared):
    lines = (shared / "data/imagenet_classes.tsv").read_text("utf-8").splitlines()
    assert imagenet_class_names() == tuple(line.split("\t")[1] for line in lines)


def test_imagenet_class_names_are_the_1000():
    joined = "\n".join(imagenet_class_names()).encode()
    assert len(imagenet_class_names()) == 1000
    assert (imagenet_class_names()[0], imagenet_class_names()[999]) == ("tench", "toilet tissue")
    assert hashlib.sha256(joined).hexdigest()[:8] == "1f386e0d"


def write_tfds(folder, size):
    """Prepares the set `tiny` as TFDS does: 3 train and 2 test images, one without a label."""
    tfds = pytest.importorskip("tensorflow_datasets")
    classes = tfds.features.ClassLabel(names=["b", "a"])
    features = tfds.features.FeaturesDict(
        {"picture": tfds.features.Image(shape=(*size, 3), encoding_format="png"), "kind": classes}
    )

    def example(number, label):
        return number, {"picture": np.full((6, 6, 3), 10 * number, "uint8"), "kind": label}

    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.2.0",
        features=features,
        split_datasets={
            "train": [example(0, 0), example(1, 1), example(2, 0)],
            "test": [example(3, 1), example(4, -1)],
        },
        data_dir=folder,
        disable_shuffling=True,
    )
    return folder


def write_cache(folder, name="tiny", version="1.2.0"):
    """The .npz that loading the tiny set leaves, without TFDS."""
    path = folder / f"{name}-{version}.npz"
    arrays = {
        "name": name,
        "version": version,
        "class_names": np.array(["b", "a"]),
        "train_images": np.zeros((3, 6, 6, 3), "uint8"),
        "train_labels": np.array([0, 1, 0], "int32"),
        "test_images": np.zeros((1, 6, 6, 3), "uint8"),
        "test_labels": np.array([1], "int32"),
    }
    np.savez(path, **arrays)
    return path


def run_without_tensorflow(expression):
    """Evaluates an expression in a process where TensorFlow and TFDS cannot be imported."""
    program = textwrap.dedent(f"""
        import sys
        for name in ("tensorflow", "tensorflow_datasets"):
            sys.modules[name] = None
        from keras_vit.data import load_data
        print({expression})
    """)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KERAS_BACKEND": "numpy", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_large_set_is_shown_by_its_counts():
    images = ImageSet(np.zeros((3, 4, 4, 3), "uint8"), np.array([0, 1, 1], "int32"), ("a", "b"))
    assert repr(images) == "<ImageSet: 3 images of 2 classes, in memory>"
