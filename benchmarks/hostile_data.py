"""Memory that a hostile picture takes: bombs that are refused, and the largest that is taken.

    python -m benchmarks.hostile_data

Each picture is checked, and decoded, in a fresh process each; the figure is by how much the peak of
its memory grows (Linux).
"""

import argparse
import json
import struct
import tempfile
import zlib
from pathlib import Path

from PIL import Image

from benchmarks.memory import in_a_fresh_process, memory_gigabytes

SIDE = 30_000
# 89,472,681 pixels; Pillow's limit is 89,478,485.
LARGEST_SIDE = 9_459


def write_png_bomb(path):
    """A grey PNG of 900 megapixels, all of them there and black."""

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", _deflated(SIDE * (SIDE + 1)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))


def write_tiff_bomb(path):
    """A grey TIFF of 16 x 16 pixels, in one tile of 900 megapixels."""
    data = _deflated(SIDE * SIDE)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: SIDE, 323: SIDE, 324: 0}
    tags[325] = len(data)
    tags[324] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(head + data)


def _deflated(count):
    deflate = zlib.compressobj(1)
    parts = [deflate.compress(bytes(2**20)) for _ in range(count // 2**20)]
    return b"".join([*parts, deflate.compress(bytes(count % 2**20)), deflate.flush()])


def write_largest(path):
    """A picture of four channels that is just small enough."""
    size = LARGEST_SIDE, LARGEST_SIDE
    Image.new("RGBA" if path.suffix == ".png" else "RGB", size, "red").save(path)


PICTURES = {
    "900-megapixels.png": write_png_bomb,
    "tile-of-900-megapixels.tif": write_tiff_bomb,
    "largest.png": write_largest,
    "largest.jpg": write_largest,
    "largest.webp": write_largest,
}


def measure(path, how):
    """Decodes or checks a picture; what came of it and how much memory it took."""
    from keras_vit.data import decode_image
    from keras_vit.data.images import undecodable

    before = memory_gigabytes(peak=True)
    if how == "checked":
        refused = undecodable(path) is not None
    else:
        try:
            decode_image(path)
            refused = False
        except ValueError:
            refused = True
    return {"refused": refused, "gigabytes": memory_gigabytes(peak=True) - before}


def main():
    """Measures all pictures, or the one of `--case`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=json.loads)
    case = parser.parse_args().case
    if case:
        print(json.dumps(measure(**case)))
        return
    print(f"{'picture':28}{'file':>12}  {'':8}  {'':8}{'memory':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for name, write in PICTURES.items():
            path = Path(folder, name)
            write(path)
            for how in ("checked", "decoded"):
                found = in_a_fresh_process("benchmarks.hostile_data", path=str(path), how=how)
                verdict = "refused" if found["refused"] else "taken"
                kilobytes = path.stat().st_size / 1e3
                memory = 1e3 * found["gigabytes"]
                print(f"{name:28}{kilobytes:9,.0f} kB  {how:8}  {verdict:8}{memory:7,.0f} MB")


if __name__ == "__main__":
    main()
