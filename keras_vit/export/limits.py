"""What an exported model takes of an encoded image."""

from dataclasses import dataclass

# The matrices of the resizing are as wide as the image.
MAX_SIDE = 16_384
# libpng inflates each, to up to 8 MB, and keeps them until the image is decoded.
MAX_TEXTS = 16
# For each libjpeg goes over the whole image, however few its bytes; encoders write about ten.
MAX_SCANS = 100


@dataclass(frozen=True)
class ImageLimits:
    """Bounds on an image; what lies beyond them is refused before it is decoded.

    Whatever they are, no side may be longer than 16,384 pixels, no PNG may have more than 16 texts
    that may be compressed (zTXt, iTXt), and no JPEG more than 100 scans. Decoded images, as the
    signature `pixels` takes them, are held to their number of pixels too.

    Args:
        max_bytes: Size of the file, in bytes.
        max_pixels: Height times width, as the file's header says. A decoded image takes three
            bytes a pixel, and a progressive JPEG two for each sample besides while it is decoded:
            six a pixel, or eight in CMYK. Up to 16 images of a request are decoded at a time.

    Raises:
        ValueError: If a bound is no positive integer.

    Example:

    >>> ImageLimits(max_pixels=4_000_000).max_bytes
    20000000
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 25_000_000

    def __post_init__(self):
        for name in ("max_bytes", "max_pixels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


DEFAULT_LIMITS = ImageLimits()
