"""TFDS sets with generated images: the sets' own features and split sizes, no download."""

import contextlib
import io
import zlib
from unittest import mock

import numpy as np
from PIL import Image

# Examples by split, as the TFDS catalog has them.
SPLIT_SIZES = {
    "caltech101": {"train": 3_060, "test": 6_084},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "clevr": {"train": 70_000, "validation": 15_000, "test": 15_000},
    "diabetic_retinopathy_detection/btgraham-300": {
        "sample": 10,
        "train": 35_126,
        "validation": 10_906,
        "test": 42_670,
    },
    "dmlab": {"train": 65_550, "validation": 22_628, "test": 22_735},
    "dsprites": {"train": 737_280},
    "dtd": {"train": 1_880, "validation": 1_880, "test": 1_880},
    "eurosat/rgb": {"train": 27_000},
    "imagenet2012": {"train": 1_281_167, "validation": 50_000, "test": 100_000},
    "kitti": {"train": 6_347, "validation": 423, "test": 711},
    "oxford_flowers102": {"train": 1_020, "validation": 1_020, "test": 6_149},
    "oxford_iiit_pet": {"train": 3_680, "test": 3_669},
    "patch_camelyon": {"train": 262_144, "validation": 32_768, "test": 32_768},
    "resisc45": {"train": 31_500},
    "smallnorb": {"train": 24_300, "test": 24_300},
    "sun397/tfds": {"train": 76_128, "validation": 10_875, "test": 21_750},
    "svhn_cropped": {"train": 73_257, "test": 26_032, "extra": 531_131},
}

# The side of images whose size the set leaves open.
SIDE = 24


@contextlib.contextmanager
def mocked_data(num_examples=None):
    """Within it `load_data` finds all sets of the table above prepared, with generated images.

    Hand `load_data` an empty `cache_dir`, or it finds what lies in the cache.

    Args:
        num_examples: Most examples of each split; those that VTAB-1k asks for are 800 and 200.
            None: twice as many as the set has classes, but at least 64.
    """
    import tensorflow_datasets as tfds

    original = tfds.builder

    def builder(name, **options):
        built = original(name, **options)
        key = built.info.full_name.rpartition("/")[0]
        if key in SPLIT_SIZES:
            built.info.set_splits(
                tfds.core.splits.SplitDict(
                    tfds.core.SplitInfo(name=split, shard_lengths=[size], num_bytes=0)
                    for split, size in SPLIT_SIZES[key].items()
                )
            )
        return built

    def as_dataset(self, split, decoders, **_):
        return _generated(
            self.info, split, decoders.extract_features(self.info.features), num_examples
        )

    with (
        tfds.testing.mock_data(policy=tfds.testing.MockPolicy.USE_CODE, as_dataset_fn=as_dataset),
        mock.patch.object(tfds, "builder", builder),
        mock.patch.object(tfds.core.DatasetBuilder, "is_prepared", lambda self: True),
    ):
        yield


def _generated(info, split, features, num_examples):
    import tensorflow as tf

    part = info.splits[split]
    count = min(part.num_examples, num_examples or max(64, 2 * _class_count(features)))
    first = zlib.crc32(f"{info.full_name} {split}".encode())
    # ImageNet's test images have no labels.
    labelled = not (info.name == "imagenet2012" and split == "test")
    count = count if labelled else 8

    examples = [
        {key: _value(key, part, first, number) for key, part in features.items()}
        | ({} if labelled else {"label": -1})
        for number in range(count)
    ]
    if "objects" not in features:
        columns = {key: [example[key] for example in examples] for key in features}
        return tf.data.Dataset.from_tensor_slices(columns)
    # Of another number in each example.
    signature = {key: _signature(part) for key, part in features.items()}
    return tf.data.Dataset.from_generator(lambda: examples, output_signature=signature)


def _class_count(features):
    return max((getattr(part, "num_classes", 0) or 0 for part in features.values()), default=0)


def _signature(part):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if isinstance(part, tfds.features.Image):
        return tf.TensorSpec((), tf.string)
    if isinstance(part, tfds.features.ClassLabel):
        return tf.TensorSpec((), tf.int64)
    return {
        key: tf.TensorSpec((None, *value.shape), value.tf_dtype)
        for key, value in part.feature.items()
    }


def _value(key, part, first, number):
    import tensorflow_datasets as tfds

    if isinstance(part, tfds.features.Image):
        return _encoded(part, np.random.default_rng((first, number)))
    if isinstance(part, tfds.features.ClassLabel):
        return number % part.num_classes
    assert key == "objects"
    objects = scene(number)
    return {key: objects[key] for key in part.feature}


def scene(number):
    """The objects of CLEVR's or KITTI's example: each class comes up within a few numbers."""
    count = 3 + number % 8
    clevr_distances = 12.0 + np.arange(count, dtype="float32")
    clevr_distances[-1] = (7.5, 8.25, 8.75, 9.25, 9.75, 10.5)[number % 6]
    kitti_distances = 1.0 + np.arange(count, dtype="float32")
    # Pedestrians, who are nearer than every vehicle.
    types = np.full(count, 3)
    if number % 4 < 3:
        kitti_distances[-1], types[-1] = (7.5, 15.0, 40.0)[number % 4], number % 3
    return {
        "size": np.zeros(count, "int64"),
        "pixel_coords": _points(clevr_distances),
        "location": _points(kitti_distances),
        "type": types,
    }


def _points(depths):
    return np.stack([0 * depths, 0 * depths, depths], axis=-1)


def _encoded(feature, generator):
    height, width, channels = (size or SIDE for size in feature.shape)
    shape = (8, 8) if channels == 1 else (8, 8, 3)
    # The pixels of dSprites are 0 and 1.
    top = 2 if feature.shape == (64, 64, 1) else 256
    image = Image.fromarray(generator.integers(0, top, shape).astype("uint8"))
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
