"""Image files to send: good ones of many kinds and sizes, and ones that no server should decode."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture(height, width, seed):
    """Waves with an edge, uint8 `(height, width, 3)`."""
    row, column = np.mgrid[:height, :width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    wave = np.sin(row[..., None] / 5 + phase) + np.cos(column[..., None] / 3 - phase)
    wave[height // 3 :, width // 2 :] *= -1
    return np.uint8(np.clip(127.5 + 90 * wave, 0, 255))


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def good_files(count, largest=60):
    """JPEG and PNG files in turn, colour, grey, palette and alpha among them, sizes mixed."""
    kinds = [
        ("JPEG", "RGB"),
        ("PNG", "RGB"),
        ("JPEG", "L"),
        ("PNG", "P"),
        ("JPEG", "CMYK"),
        ("PNG", "RGBA"),
        ("PNG", "L"),
    ]
    files = []
    for index in range(count):
        sides = np.random.default_rng(index).integers(8, largest, 2)
        kind, mode = kinds[index % len(kinds)]
        files.append(encoded(Image.fromarray(picture(*sides, index)).convert(mode), kind))
    return files


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png_header(width, height):
    """A PNG file whose header is right and whose image data are a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def hostile_files(max_bytes):
    """What must be refused, by what is wrong with it.

    Args:
        max_bytes: Largest file that the model under test accepts.
    """
    image = Image.fromarray(picture(48, 64, 0))
    jpeg, png = encoded(image, "JPEG"), encoded(image, "PNG")
    frame = jpeg.index(b"\xff\xc0")  # Start of frame: marker, length, precision, height, width.
    damaged = bytearray(png)
    damaged[png.index(b"IDAT") + 20] ^= 0xFF
    first = png.index(b"IDAT") - 4
    grey = encoded(Image.new("L", (8, 8)), "JPEG", progressive=True)
    scan = grey[grey.rindex(b"\xff\xda") : -2]
    text = _chunk(b"zTXt", b"key\0\0" + zlib.compress(b"text"))
    return {
        "empty": b"",
        "text": b"<html><body>404 Not Found</body></html>",
        "random bytes": np.random.default_rng(0).bytes(2000),
        "JPEG cut in half": jpeg[: len(jpeg) // 2],
        "JPEG cut after its marker": jpeg[:3],
        "JPEG of 60000 x 60000": jpeg[: frame + 5] + b"\xea\x60\xea\x60" + jpeg[frame + 9 :],
        "PNG cut in half": png[: len(png) // 2],
        "PNG cut after its signature": png[:8],
        "PNG with a damaged byte": bytes(damaged),
        "PNG of 60000 x 60000": _png_header(60000, 60000),
        "PNG of 1 x 2000000000": _png_header(1, 2_000_000_000),
        "PNG of 1000 compressed texts": png[:first] + 1000 * text + png[first:],
        "JPEG of 1000 scans": grey[:-2] + 1000 * scan + grey[-2:],
        "too many bytes": jpeg + bytes(max_bytes + 1 - len(jpeg)),
        "GIF": encoded(image, "GIF"),
        "BMP": encoded(image, "BMP"),
    }
