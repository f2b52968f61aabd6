"""The augmentation of batches on the device."""

import dataclasses

import keras
from keras import ops

from keras_vit.data import image_operations
from keras_vit.data.augmentation import (
    AUGMIX_CHAINS,
    AUGMIX_OPERATIONS,
    IDENTITY_MATRIX,
    JITTER_OPERATIONS,
    OPERATIONS,
    RANDAUGMENT_OPERATIONS,
    THREE_AUGMENT_OPERATIONS,
    Augmentation,
)

_POLICY_OPERATIONS = {
    "none": (),
    "randaugment": RANDAUGMENT_OPERATIONS,
    "augmix": AUGMIX_OPERATIONS,
    "three": THREE_AUGMENT_OPERATIONS,
}

# What is drawn for each image on its own.
_CHANGING = (
    "operations",
    "operation_values",
    "matrices",
    "chain_weights",
    "jitter_operations",
    "jitter_operation_values",
    "erased_boxes",
    "erased_seeds",
)


@keras.saving.register_keras_serializable(package="keras_vit")
class Augment(keras.layers.Layer):
    """Augments a batch as `TrainingBatches` drew it: a function of its inputs, nothing random.

    All images go through the crop, the mixing and nothing else together; every operation works on
    the images that drew it only. With TensorFlow on a CPU an image goes through all its operations
    before the next does, which keeps it in the cache. It computes in float32 whatever the dtype
    policy.

    Args:
        augmentation: The policy that the batches were drawn by: an `Augmentation`, or its fields
            as a dictionary.

    Input shape:
        A dictionary as in `TrainingBatches.input_spec`: `images`, uint8
        `(batch, height, width, 3)`, and what was drawn. Images without `boxes` are cropped
        already.

    Output shape:
        `(batch, *image_size, 3)`, float32, 0 to 255.

    Raises:
        ValueError: If images without `boxes` are of another size than the policy's.

    Example:

    >>> import numpy as np
    >>> layer = Augment(Augmentation(16))
    >>> images, boxes = np.zeros((2, 8, 8, 3), "uint8"), np.array([[0, 0, 7, 7], [1, 8, 8, 1]])
    >>> tuple(layer({"images": images, "boxes": boxes}).shape)
    (2, 16, 16, 3)
    """

    def __init__(self, augmentation, **kwargs):
        # Autocast would round pixels to bfloat16 before they are resized.
        super().__init__(autocast=False, **kwargs)
        if isinstance(augmentation, dict):
            augmentation = Augmentation(**augmentation)
        self.augmentation = augmentation

    def build(self, input_shape):
        size = tuple(input_shape["images"][1:3])
        if "boxes" not in input_shape and size != self.augmentation.size:
            raise ValueError(
                f"Images that come without `boxes` must be of the size {self.augmentation.size}. "
                f"Received: images of shape {tuple(input_shape['images'])}"
            )
        if None in size:
            raise ValueError(
                "Images must come as (batch, height, width, 3) with only the batch unknown. "
                f"Received: images of shape {tuple(input_shape['images'])}"
            )
        self.built = True

    def call(self, inputs):
        inputs = {name: ops.convert_to_tensor(array) for name, array in inputs.items()}
        changing = {name: inputs[name] for name in inputs if name in _CHANGING}
        changing["images"] = self._crop(inputs)
        if len(changing) > 1 and image_operations.in_graph_on_cpu():
            images = image_operations.one_by_one(self._change, changing)
        else:
            images = self._change(changing)
        if "partners" in inputs:
            images = image_operations.mix(
                images, inputs["partners"], inputs.get("mix_ratios"), inputs.get("mix_boxes")
            )
        # Nothing in here has weights.
        return ops.stop_gradient(images)

    def _crop(self, inputs):
        if "boxes" not in inputs:
            return inputs["images"]
        images, boxes = inputs["images"], ops.cast(inputs["boxes"], "float32")
        rows, columns = (
            image_operations.resampling_rows(
                boxes[:, axis],
                boxes[:, axis + 2],
                images.shape[1 + axis],
                self.augmentation.size[axis],
                self.augmentation.interpolation,
                self.augmentation.padding,
            )
            for axis in (0, 1)
        )
        return image_operations.resample(ops.cast(images, "float32"), rows, columns)

    def _change(self, inputs):
        """What happens to each image on its own, after the crop."""
        images = inputs["images"]
        policy = _POLICY_OPERATIONS[self.augmentation.augment]
        if "chain_weights" in inputs:
            images = self._mix_chains(_as_uint8(images), inputs, set(policy))
        elif "operations" in inputs:
            names = {*policy, *(JITTER_OPERATIONS if self.augmentation.color_jitter else ())}
            images = _operate(
                _as_uint8(images), names, inputs["operations"], inputs["operation_values"]
            )
            if "matrices" in inputs:
                images = _transform(images, inputs["matrices"])
        if "jitter_operations" in inputs:
            images = _operate(
                _as_uint8(images),
                set(JITTER_OPERATIONS),
                inputs["jitter_operations"],
                inputs["jitter_operation_values"],
            )
        images = ops.cast(images, "float32")
        if "erased_boxes" in inputs:
            boxes, seeds = inputs["erased_boxes"], inputs["erased_seeds"]
            images = image_operations.apply_where(
                image_operations.erase, images, boxes[:, 2] > 0, (boxes, seeds)
            )
        return images

    def _mix_chains(self, images, inputs, names):
        weights = inputs["chain_weights"][..., None, None, None]
        mixed = ops.cast(images, "float32") * weights[:, AUGMIX_CHAINS]
        for chain in range(AUGMIX_CHAINS):
            changed = _operate(
                images,
                names,
                inputs["operations"][:, chain],
                inputs["operation_values"][:, chain],
            )
            changed = _transform(changed, inputs["matrices"][:, chain])
            mixed = mixed + changed * weights[:, chain]
        return mixed

    def compute_output_shape(self, input_shape):
        return (input_shape["images"][0], *self.augmentation.size, 3)

    def compute_output_spec(self, inputs):
        shape = (inputs["images"].shape[0], *self.augmentation.size, 3)
        return keras.KerasTensor(shape, dtype="float32")

    def get_config(self):
        return {**super().get_config(), "augmentation": dataclasses.asdict(self.augmentation)}


def _as_uint8(images):
    if keras.backend.standardize_dtype(images.dtype) == "uint8":
        return images
    return ops.cast(ops.floor(images + 0.5), "uint8")


def _operate(images, names, kinds, values):
    """Operations on colour, in their order: all those that map values are one step."""
    singles = {
        "color": image_operations.change_color,
        "sharpness": image_operations.change_sharpness,
        "blur": image_operations.blur,
    }
    for slot in range(kinds.shape[1]):
        kind, value = kinds[:, slot], values[:, slot]
        if not names.isdisjoint(image_operations.TABLE_OPERATIONS):
            first, last = (
                OPERATIONS.index(image_operations.TABLE_OPERATIONS[end]) for end in (0, -1)
            )
            images = image_operations.apply_where(
                image_operations.change_values,
                images,
                (kind >= first) & (kind <= last),
                (kind, value),
            )
        for name, function in singles.items():
            if name in names:
                images = image_operations.apply_where(
                    function, images, kind == OPERATIONS.index(name), (value,)
                )
    return images


def _transform(images, matrices):
    moved = ops.any(matrices != ops.convert_to_tensor(IDENTITY_MATRIX, "float32"), axis=-1)
    return image_operations.apply_where(
        image_operations.transform, images, moved, (matrices,), dtype="float32"
    )
