"""Pictures that a server is checked with: good ones of every kind, and hostile ones."""

import io
import math
import struct
import zlib
from collections.abc import Mapping

import numpy as np

OVERSIZED_BYTES = 32 * 2**20
NO_LIMIT = 2**63
# Bytes of a PNG's signature and its first chunk, the header.
_PNG_HEADER = 33


def good_pictures(max_pixels: int = NO_LIMIT) -> Mapping[str, bytes]:
    """Encoded pictures by a name of their kind: JPEG and PNG, no two of one size.

    Those of more than `max_pixels` are smaller.

    Example:

    >>> list(good_pictures())[:2]
    ['JPEG', 'PNG']
    """

    def colours(height, width, seed):
        return photograph(*shrunk((height, width), max_pixels), seed)

    def grey(height, width):
        return colours(height, width, 5)[..., 0]

    low_bits = grey(23, 31)
    sixteen_bits = low_bits[::-1].astype("uint16") * 256 + low_bits
    return {
        "JPEG": encode(colours(96, 64, 0), "JPEG"),
        "PNG": encode(colours(33, 64, 1), "PNG"),
        "progressive JPEG": encode(colours(57, 90, 2), "JPEG", progressive=True),
        "CMYK JPEG": encode(colours(40, 29, 3), "JPEG", mode="CMYK"),
        "grey JPEG": encode(grey(25, 31), "JPEG"),
        "grey PNG": encode(grey(24, 31), "PNG"),
        "palette PNG": encode(colours(28, 64, 6), "PNG", mode="P"),
        "16-bit PNG": encode(sixteen_bits, "PNG"),
    }


def shrunk(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """About the same shape, `(height, width)`, of at most that many pixels.

    Example:

    >>> shrunk((48, 64), 2500)
    (43, 57)
    """
    height, width = size
    factor = min(1.0, math.sqrt(max_pixels / (height * width)))
    height = min(max(1, int(height * factor)), max_pixels)
    return height, max(1, min(int(width * factor), max_pixels // height))


def bad_pictures() -> Mapping[str, bytes]:
    """What is sent as a picture and is none, or none that may be decoded, by name."""
    jpeg = encode(photograph(96, 64, 0), "JPEG")
    png = encode(photograph(16, 16, 1), "PNG")
    progressive = encode(photograph(16, 16, 2), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    text = _chunk(b"zTXt", b"key\0\0" + zlib.compress(b" " * 10_000))
    return {
        "empty": b"",
        "text": b"This is no picture.",
        "truncated JPEG": jpeg[: len(jpeg) // 2],
        "random bytes": np.random.default_rng(0).bytes(2000),
        "60000 x 60000 PNG": _png(60000, 60000),
        "60000 x 60000 PNG that feigns 10 x 10": _png(60000, 60000, feigned=(10, 10)),
        "PNG with 1000 compressed texts": png[:_PNG_HEADER] + 1000 * text + png[_PNG_HEADER:],
        "JPEG with 1000 scans": progressive[:-2] + 1000 * scan + progressive[-2:],
    }


def oversized_picture() -> bytes:
    """32 MiB that begin as a JPEG does."""
    return encode(photograph(96, 64, 0), "JPEG")[:200].ljust(OVERSIZED_BYTES, b"\0")


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """Waves with an edge, uint8 `(height, width, 3)`."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, 3)
    wave = np.sin(row[..., None] / 7 + phase) + np.cos(column[..., None] / 4 - phase)
    wave[height // 3 :, width // 2 :] *= -1
    return np.clip(127.5 + 80 * wave, 0, 255).astype("uint8")


def encode(image: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    """Encodes pixels with Pillow, as `kind` "JPEG" or "PNG", after a change to `mode`."""
    from PIL import Image

    stream = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(stream, kind, **options)
    return stream.getvalue()


def _chunk(kind, data):
    content = kind + data
    return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))


def _png(width, height, feigned=None):
    """A PNG whose header promises a size, and whose pixels are a few zeros.

    A chunk that decoders do not know may stand before, with a `feigned` size where that of the
    header is looked for.
    """

    def header(*sides):
        return struct.pack(">IIBBBBB", *sides, 8, 2, 0, 0, 0)

    chunks = [] if feigned is None else [_chunk(b"abCd", header(*feigned))]
    chunks += [
        _chunk(b"IHDR", header(width, height)),
        _chunk(b"IDAT", zlib.compress(b"\0" * 10000)),
        _chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
