"""Labelled images: where they come from, how they are prepared, and their batches."""

from keras_vit.data.augment import Augment
from keras_vit.data.augmentation import Augmentation
from keras_vit.data.batches import EvaluationBatches, TrainingBatches, prefetch
from keras_vit.data.cache import cache_folder
from keras_vit.data.checks import check_class_names
from keras_vit.data.class_names import imagenet_class_names
from keras_vit.data.image_files import check_images
from keras_vit.data.image_set import DataSource, ImageSet, LeftOut, join, split_images, subset
from keras_vit.data.images import decode_image, evaluation_geometry, prepare_image
from keras_vit.data.resize_and_crop import ResizeAndCrop
from keras_vit.data.sources import load_data

__all__ = [
    "Augment",
    "Augmentation",
    "DataSource",
    "EvaluationBatches",
    "ImageSet",
    "LeftOut",
    "ResizeAndCrop",
    "TrainingBatches",
    "cache_folder",
    "check_class_names",
    "check_images",
    "decode_image",
    "evaluation_geometry",
    "imagenet_class_names",
    "join",
    "load_data",
    "prefetch",
    "prepare_image",
    "split_images",
    "subset",
]
