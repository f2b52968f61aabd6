"""Requests that suit a signature, made up: for warming a server up, and for checking a model."""

import numpy as np

from keras_vit.serving.pictures import NO_LIMIT, encode, photograph, shrunk

CLASSIFY = "tensorflow/serving/classify"
# The feature of a tf.Example that holds the encoded image.
IMAGE_FEATURE = "image/encoded"


def made_up_images(
    count: int,
    image_size: tuple[int, int],
    *,
    max_bytes: int = NO_LIMIT,
    max_pixels: int = NO_LIMIT,
) -> list[bytes]:
    """Image files of sizes around `image_size` in pixels, JPEG and PNG in turn.

    Those beyond the limits are smaller.
    """
    height, width = image_size
    sizes = [(height + 7 * (i % 8), width + 5 * (i % 9)) for i in range(count)]
    return [
        _image_file(index, ("JPEG", "PNG")[index % 2], shrunk(size, max_pixels), max_bytes)
        for index, size in enumerate(sizes)
    ]


def _image_file(seed, kind, size, max_bytes):
    while len(image := encode(photograph(*size, seed), kind)) > max_bytes:
        if size == (1, 1):
            raise ValueError(
                f"A {kind} file of one pixel has {len(image)} bytes. Let the model take larger "
                f"files. Received: max_bytes={max_bytes}"
            )
        size = shrunk(size, max(1, size[0] * size[1] // 2))
    return image


def image_input(signature: dict) -> str | None:
    """The input of a signature that takes encoded images.

    Args:
        signature: A row of `keras_vit.serving.files.describe_signatures`.

    Returns:
        Its name: of `inputs` of a classifier of `tf.Example`, or of an only input of strings
        `(batch,)` that has `image` in its name or ends with `bytes`. None if there is none.
    """
    if len(signature["inputs"]) != 1:
        return None
    (name, tensor), *_ = signature["inputs"].items()
    if tensor["dtype"] != "string" or tensor["shape"] is None or len(tensor["shape"]) != 1:
        return None
    is_image = "image" in name or name.endswith("bytes")
    return name if is_image or signature["method_name"] == CLASSIFY else None


def image_request(signature: dict, images: list[bytes]) -> dict[str, np.ndarray]:
    """Inputs for a signature that has an `image_input`, as it wants them."""
    import tensorflow as tf

    def serialised_example(image):
        feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
        features = tf.train.Features(feature={IMAGE_FEATURE: feature})
        return tf.train.Example(features=features).SerializeToString()

    if signature["method_name"] == CLASSIFY:
        images = [serialised_example(image) for image in images]
    # Not an array of NumPy's bytes, which loses zeros at the end.
    return {str(image_input(signature)): np.array(images, dtype=object)}


def made_up_request(
    signature: dict,
    batch_size: int,
    image_size: tuple[int, int],
    *,
    max_bytes: int = NO_LIMIT,
    max_pixels: int = NO_LIMIT,
) -> dict[str, np.ndarray] | None:
    """Inputs for one call of a signature.

    Args:
        signature: A row of `keras_vit.serving.files.describe_signatures`.
        batch_size: Size of the first axis.
        image_size: `(height, width)` in pixels of images, and of inputs `(batch, height, width,
            channels)` that leave them open.
        max_bytes: Size of an image file at most.
        max_pixels: Height times width of an image at most.

    Returns:
        Input name → array, or None for strings whose content cannot be guessed.
    """
    import tensorflow as tf

    if image_input(signature):
        images = made_up_images(batch_size, image_size, max_bytes=max_bytes, max_pixels=max_pixels)
        return image_request(signature, images)
    if any(tensor["dtype"] == "string" for tensor in signature["inputs"].values()):
        return None
    request = {}
    for name, tensor in signature["inputs"].items():
        sizes = (tensor["shape"] or [None])[1:]
        open_sizes = (*shrunk(image_size, max_pixels), 3) if len(sizes) == 3 else (2,) * len(sizes)
        sizes = [
            other if size is None else size for size, other in zip(sizes, open_sizes, strict=True)
        ]
        shape = (batch_size, *sizes)
        count = np.prod(shape, dtype=int)
        dtype = tf.as_dtype(tensor["dtype"]).as_numpy_dtype
        # Small enough for an index or a boolean; colours for pixels.
        values = np.arange(count) % (251 if tensor["dtype"] in ("uint8", "float32") else 2)
        request[name] = values.astype(dtype).reshape(shape)
    return request
