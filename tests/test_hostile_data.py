"""Pictures, folders and manifests that somebody made up: each ends as its policy says."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import struct
import sys
import unicodedata
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parameters import slow_except
from PIL import Image
from small_runs import Killed, after_row, assert_same_weights, kill

from keras_vit.cli import main
from keras_vit.data import LeftOut, check_images, decode_image, load_data
from keras_vit.finetune import Recipe, run
from keras_vit.models import VisionTransformerConfig

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 7, 3), dtype="uint8")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".JPG", ".apng", ".png"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)


def encoded(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


GOOD = {file_format: encoded(Image.fromarray(PIXELS), file_format) for file_format in FORMATS}


def write_picture(path, number=0):
    """A picture that no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype="uint8")
    Image.fromarray(pixels).save(path, "PNG")
    return path


def write_pets(folder, count=3):
    for number, name in itertools.product(range(count), ("cat", "dog")):
        write_picture(folder / name / f"{number}.png", 2 * number + (name == "dog"))
    return folder


class Opened:
    """What this process opens or lists while it is watched; a hook cannot be taken away again."""

    def __init__(self):
        self.watching = False
        self.paths = []
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if not self.watching:
            return
        if event in ("open", "os.listdir", "os.scandir") and isinstance(
            arguments[0], (str, bytes, os.PathLike)
        ):
            self.paths.append(os.fsdecode(arguments[0]))
        elif event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"):
            self.paths.append(f"program: {arguments[0]}")

    @contextlib.contextmanager
    def nothing_in(self, folder):
        """Nothing in a folder is opened, nothing in it is listed, and no program is started."""
        self.paths, self.watching = [], True
        try:
            yield
        finally:
            self.watching = False
        outside = os.path.realpath(folder)
        wrong = [
            path
            for path in self.paths
            if path.startswith("program: ")
            or os.path.realpath(path) == outside
            or os.path.realpath(path).startswith(outside + os.sep)
        ]
        assert not wrong


OPENED = Opened()


# pictures ----------------------------------------------------------------------------------------


def png_of_size(width, height):
    """A PNG whose header says so and that has hardly any pixels."""

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(99))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff_of(width, height, samples=1, tile=None):
    """A deflated TIFF of zeros whose header says so, in one tile where its side is given."""
    data = zlib.compress(bytes(min((tile or width) * (tile or height) * samples, 2**20)))
    tags = {256: width, 257: height, 259: 8, 262: 1 if samples == 1 else 2, 277: samples}
    tags |= {322: tile, 323: tile, 324: 0, 325: len(data)} if tile else {273: 0, 279: len(data)}
    # Eight bits a sample; more than two samples have theirs somewhere else.
    bits = struct.pack("<HHI", 258, 3, samples) + struct.pack("<HH", 8, 8)
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    if samples > 2:
        bits = struct.pack("<HHII", 258, 3, samples, start)
    place = start + 2 * samples
    tags[324 if tile else 273] = place
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()}
    entries[258] = bits
    return b"".join(
        (
            b"II*\0" + struct.pack("<IH", 8, len(entries)),
            *(entries[tag] for tag in sorted(entries)),
            struct.pack("<I", 0) + struct.pack("<H", 8) * samples + data,
        )
    )


def in_mode(mode, file_format):
    return encoded(Image.new(mode, (5, 4)), file_format)


def animation(file_format, **options):
    frames = [Image.fromarray(np.full((4, 5, 3), value, "uint8")) for value in (10, 200, 90)]
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)


TAKEN = {
    **{f"good {name}": content for name, content in GOOD.items()},
    "CMYK JPEG": in_mode("CMYK", "JPEG"),
    "CMYK TIFF": in_mode("CMYK", "TIFF"),
    "LAB TIFF": in_mode("LAB", "TIFF"),
    "grey with alpha": in_mode("LA", "PNG"),
    "16 bits": in_mode("I;16", "PNG"),
    "16 bits, TIFF": in_mode("I;16", "TIFF"),
    "a TIFF that is to be turned": encoded(Image.fromarray(PIXELS), "TIFF", tiffinfo={274: 6}),
    "1 bit": in_mode("1", "PNG"),
    "YCbCr": in_mode("YCbCr", "TIFF"),
    "RGBA WebP": in_mode("RGBA", "WEBP"),
    "animated GIF": animation("GIF"),
    "APNG": animation("PNG"),
    "animated WebP": animation("WEBP", lossless=True),
    "pages": animation("TIFF"),
    "a long strip": encoded(Image.new("L", (1, 20_000)), "PNG"),
}
REFUSED = {
    "empty": (b"", "cannot identify"),
    "text": (b"no image, but some words", "cannot identify"),
    "page": (b"<!DOCTYPE html><title>404</title>", "cannot identify"),
    "floats": (in_mode("F", "TIFF"), "floating-point"),
    "32 bits": (in_mode("I", "TIFF"), "32-bit integers"),
    "five channels": (tiff_of(4, 4, samples=5), "pixel mode"),
    "PNG of 90 megapixels": (png_of_size(9_000, 10_000), "9,000 x 10,000 pixels"),
    "PNG of 4 gigapixels": (png_of_size(2**16, 2**16), "pixels"),
    "PNG of 2**60 pixels": (png_of_size(2**30, 2**30), "pixels"),
    "PNG without width": (png_of_size(0, 10), ""),
    "TIFF of 100 megapixels": (tiff_of(10_000, 10_000), "10,000 x 10,000 pixels"),
    "TIFF with a large tile": (tiff_of(16, 16, tile=30_000), "tiles of 30,000 x 30,000 pixels"),
    "BMP of 100 megapixels": (
        GOOD["BMP"][:18] + struct.pack("<ii", 10_000, 10_000) + GOOD["BMP"][26:],
        "10,000 x 10,000 pixels",
    ),
    "GIF of 4 gigapixels": (
        GOOD["GIF"][:6] + b"\xff\xff\xff\xff" + GOOD["GIF"][10:],
        "65,535 x 65,535 pixels",
    ),
    "PPM of 100 megapixels": (b"P6 10000 10000 255\n123", "10,000 x 10,000 pixels"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "identify"),
    "icon": (encoded(Image.fromarray(PIXELS), "ICO"), "cannot identify"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "cannot identify"),
    "Targa": (encoded(Image.fromarray(PIXELS), "TGA"), "cannot identify"),
}


@st.composite
def hostile_pictures(draw):
    """What it is, the bytes, and whether they must be taken; None: either."""
    kind = draw(st.sampled_from(["taken", "refused", "truncated", "changed"]))
    if kind == "taken":
        name = draw(st.sampled_from(sorted(TAKEN)))
        return name, TAKEN[name], True
    if kind == "refused":
        name = draw(st.sampled_from(sorted(REFUSED)))
        return name, REFUSED[name][0], False
    name = draw(st.sampled_from(sorted(TAKEN)))
    content = bytearray(TAKEN[name])
    if kind == "truncated":
        # Some formats end in bytes that nobody needs, and of an animation only one frame is read.
        length = draw(st.integers(0, len(content) - 1))
        return f"{name}, cut", bytes(content[:length]), False if length < 20 else None
    for _ in range(draw(st.integers(1, 8))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return f"{name}, changed", bytes(content), None


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return write_pets(tmp_path_factory.mktemp("pets"))


@settings(max_examples=80, derandomize=True, deadline=None)
@given(hostile_pictures(), st.sampled_from(SUFFIXES))
def test_each_picture_ends_as_its_policy_says(pets, picture, suffix):
    what, content, is_taken = picture
    file = pets / "cat" / f"hostile{suffix}"
    file.write_bytes(content)
    try:
        with warnings.catch_warnings(), OPENED.nothing_in("/nowhere"):
            warnings.simplefilter("ignore")
            # Pillow would go on after this warning.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            skipping = load_data(pets, test_fraction=0, damaged_images="skip")
            failing = load_data(pets, test_fraction=0)
            try:
                check_images(failing.train)
                message = ""
            except ValueError as error:
                message = str(error)
            left_out = [item.file for item in skipping.left_out]
            assert left_out in ([], [f"cat/{file.name}"]), what
            assert (file in skipping.train.images) == (not left_out)
            assert len(skipping.train) == 7 - len(left_out)
            if left_out:
                assert is_taken is not True, (what, skipping.left_out)
                assert (
                    message.startswith("1 of 7 images cannot be decoded") and file.name in message
                )
                with pytest.raises(ValueError, match=re.escape(str(file))):
                    decode_image(file)
            else:
                assert is_taken is not False, what
                assert not message
                decoded = decode_image(file)
                assert decoded.dtype == np.uint8 and decoded.shape[2] == 3
                assert decoded.size <= 3 * Image.MAX_IMAGE_PIXELS
    finally:
        file.unlink()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_says_why(tmp_path, name):
    content, reason = REFUSED[name]
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"photo\.png cannot be decoded: .*" + reason):
        decode_image(tmp_path / "photo.png")


def test_the_limit_is_the_limit_and_no_warning(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    for content in GOOD.values():
        assert decode_image(content).shape == (9, 7, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 62)
    for content in GOOD.values():
        with pytest.raises(ValueError, match="7 x 9 pixels. Expected at most 62"):
            decode_image(content)
    assert not recwarn.list


def test_a_file_much_larger_than_its_pixels_can_be_is_refused_unread(monkeypatch):
    monkeypatch.setattr("keras_vit.data.images.MOST_BYTES_BESIDE", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    with pytest.raises(ValueError, match="it has 10,000 bytes. Expected at most 604"):
        decode_image(GOOD["JPEG"].ljust(10_000, b"\0"))


@pytest.mark.parametrize("name", ["animated GIF", "APNG", "animated WebP", "pages"])
def test_of_an_animation_the_first_frame_is_read(name):
    np.testing.assert_array_equal(decode_image(TAKEN[name]), np.full((4, 5, 3), 10))


def test_of_an_animation_the_first_frame_is_read_as_by_tensorflow():
    tf = pytest.importorskip("tensorflow")
    for name in ("animated GIF", "APNG"):
        expected = tf.io.decode_image(TAKEN[name], channels=3, expand_animations=False).numpy()
        np.testing.assert_array_equal(decode_image(TAKEN[name]), expected, name)


def test_a_picture_is_read_by_its_content_and_not_by_its_name(tmp_path):
    for suffix in SUFFIXES:
        (tmp_path / f"photo{suffix}").write_bytes(GOOD["PNG"])
        np.testing.assert_array_equal(decode_image(tmp_path / f"photo{suffix}"), PIXELS)


# nothing outside the folder ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of pictures with hostile ones among them, and a folder beside it."""
    place = tmp_path_factory.mktemp("place")
    inside, outside = place / "inside", place / "outside"
    for number in range(8):
        write_picture(inside / f"good{number}.png", number)
    write_picture(outside / "secret.png", 100)
    write_picture(place / "inside.png", 101)
    (inside / "text.png").write_text("no image")
    (inside / "cut.png").write_bytes((inside / "good0.png").read_bytes()[:60])
    (inside / "bomb.png").write_bytes(png_of_size(2**16, 2**16))
    (inside / "folder.png").mkdir()
    os.mkfifo(inside / "pipe.png")
    (inside / "to_outside.png").symlink_to(outside / "secret.png")
    (inside / "to_folder").symlink_to(outside)
    (inside / "to_inside.png").symlink_to(inside / "good0.png")
    (inside / "to_nothing.png").symlink_to("absent.png")
    (inside / "to_itself.png").symlink_to("to_itself.png")
    write_picture(inside / unicodedata.normalize("NFC", "é.png"), 102)
    return place


# What a row says, what the list of what is left out calls it, and why; None where it is read.
ROWS = {
    "inside by an absolute path": ("{inside}/good4.png", None, None),
    "inside by a link": ("to_inside.png", None, None),
    "inside by a detour": ("../inside/good5.png", None, None),
    "damaged": ("text.png", "text.png", "cannot identify"),
    "cut": ("cut.png", "cut.png", ""),
    "bomb": ("bomb.png", "bomb.png", "pixels"),
    "missing": ("absent.png", "absent.png", "no such file"),
    "missing, in no folder": ("no/absent.png", "no/absent.png", "no such file"),
    "missing in this normal form": ("e\u0301.png", "e\u0301.png", "the normal form NFC"),
    "too long": ("x" * 5000 + ".png", "x" * 5000 + ".png", "no such file"),
    "of two lines": ('"a\nb.png"', "a\\nb.png", "no such file"),
    "a folder": ("folder.png", "folder.png", "is a folder"),
    "a pipe": ("pipe.png", "pipe.png", "no regular file"),
    "a link to nothing": ("to_nothing.png", "to_nothing.png", "no such file"),
    "a link to itself": ("to_itself.png", "to_itself.png", "no such file"),
    "escaping": ("../outside/secret.png", "../outside/secret.png", "outside of"),
    "escaping to a neighbour": ("../inside.png", "../inside.png", "outside of"),
    "escaping by a link": ("to_outside.png", "to_outside.png", "outside of"),
    "escaping by a folder": ("to_folder/secret.png", "to_folder/secret.png", "outside of"),
    "escaping and missing": ("../../../absent.png", "../../../absent.png", "outside of"),
    "escaping from a detour": ("a/../../outside/other.png", None, "outside of"),
    "outside by an absolute path": ("{outside}/secret.png", "../outside/secret.png", "outside of"),
    "a device": ("/dev/zero", None, "outside of"),
}


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(sorted(ROWS)), min_size=1, max_size=6, unique=True), st.data())
def test_each_row_ends_as_its_policy_says(place, kinds, data):
    inside = place / "inside"
    # Two images of each class stay, whatever becomes of the others.
    rows = {f"good{number}.png": (None, None, None) for number in range(4)}
    for kind in kinds:
        cell, called, reason = ROWS[kind]
        rows[cell.format(inside=inside, outside=place / "outside")] = kind, called, reason
    labelled = [f"{cell},{('cat', 'dog')[number % 2]}" for number, cell in enumerate(rows)]
    lines = ["file,label", *data.draw(st.permutations(labelled)), ""]
    start, end = (
        data.draw(st.sampled_from(["", "\ufeff"])),
        data.draw(st.sampled_from(["\n", "\r\n"])),
    )
    manifest = inside / "labels.csv"
    manifest.write_bytes((start + end.join(lines)).encode())
    refused = {cell: row for cell, row in rows.items() if row[2] is not None}
    at_once = [row for row in refused.values() if row[0] not in ("damaged", "cut", "bomb")]
    with OPENED.nothing_in(place / "outside"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Equal pictures.
        source = load_data(manifest, test_fraction=0, damaged_images="skip")
        assert len(source.train) == len(rows) - len(refused)
        assert len(source.left_out) == len(refused)
        for _, called, reason in refused.values():
            assert any(
                called in (None, item.file) and reason in item.reason for item in source.left_out
            ), (called, source.left_out)
        again = load_data(manifest, test_fraction=0, left_out=source.left_out)
        assert (again.digest, again.left_out) == (source.digest, source.left_out)
        if at_once:
            with pytest.raises((ValueError, FileNotFoundError)) as error:
                load_data(manifest, test_fraction=0)
            assert f"labels.csv lists {len(at_once)} of {len(rows)} files" in str(error.value)
            assert re.search(r"the first is .*: line \d+: ", str(error.value))
        elif refused:
            with pytest.raises(ValueError, match=f"^{len(refused)} of {len(rows)} images cannot"):
                check_images(load_data(manifest, test_fraction=0).train)
        else:
            check_images(load_data(manifest, test_fraction=0).train)


def test_a_file_outside_is_named_with_row_target_and_what_to_do(place):
    manifest = place / "inside/labels.csv"
    manifest.write_text("file,label\ngood0.png,cat\nto_outside.png,dog\n")
    with pytest.raises(ValueError, match=r"1 of 2 files") as error:
        load_data(manifest)
    message = str(error.value)
    assert f"{manifest} lists" in message and "to_outside.png: line 3: it leads to" in message
    assert str(os.path.realpath(place / "outside/secret.png")) in message
    assert "put a .csv file into the folder that all of its files are in" in message
    # Which is how to do it.
    above = place / "labels.csv"
    above.write_text("file,label\ninside/good0.png,cat\noutside/secret.png,dog\n")
    assert len(load_data(above, test_fraction=1).test) == 2
    above.unlink()


def test_the_folder_itself_may_be_a_link(tmp_path):
    write_pets(tmp_path / "pets")
    (tmp_path / "link").symlink_to(tmp_path / "pets")
    rows = "file,label\ncat/0.png,cat\ndog/0.png,dog\n"
    (tmp_path / "pets/labels.csv").write_text(rows)
    for name in ("link", "link/labels.csv"):
        assert not load_data(tmp_path / name, test_fraction=1, damaged_images="skip").left_out


@pytest.fixture
def linked_pets(tmp_path):
    """A folder with a link to a file in it, and four ways to lead out of it."""
    folder = write_pets(tmp_path / "pets")
    write_picture(tmp_path / "outside/secret.png", 100)
    (folder / "cat/inside.png").symlink_to("../dog/0.png")
    (folder / "cat/outside.png").symlink_to(tmp_path / "outside/secret.png")
    (folder / "cat/above.png").symlink_to("../../outside/secret.png")
    (folder / "cat/folder").symlink_to(tmp_path / "outside")
    (folder / "dog/loop").symlink_to("..")
    return folder


def test_links_that_lead_out_of_a_folder(linked_pets):
    with OPENED.nothing_in(linked_pets.parent / "outside"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Equal pictures.
        with pytest.raises(
            ValueError, match=r"pets lists 4 of 11 files that .* the first is .*cat"
        ):
            load_data(linked_pets)
        source = load_data(linked_pets, test_fraction=0, damaged_images="skip")
    reasons = {item.file: item.reason for item in source.left_out}
    assert sorted(reasons) == ["cat/above.png", "cat/folder", "cat/outside.png", "dog/loop"]
    assert all("outside of" in reasons[name] for name in reasons if name.startswith("cat"))
    assert reasons["dog/loop"] == "it is a folder, and links to folders are not followed"
    assert len(source.train) == 7 and linked_pets / "cat/inside.png" in source.train.images


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("name", ["bird", "train/bird", "test"])
def test_a_class_or_split_that_leads_out_of_a_folder_is_an_error(tmp_path, name, policy):
    folder = tmp_path / "pets"
    write_pets(folder if name == "bird" else folder / "train")
    write_pets(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with OPENED.nothing_in(tmp_path / "outside"), pytest.raises(ValueError) as error:
        load_data(folder, damaged_images=policy)
    assert f"{folder / name} is not read: it leads to" in str(error.value)


def test_a_class_that_is_a_link_to_nothing_is_an_error(tmp_path):
    folder = write_pets(tmp_path / "pets")
    (folder / "bird").symlink_to(tmp_path / "absent")
    with pytest.raises(ValueError, match="bird is a link to nothing"):
        load_data(folder, damaged_images="skip")


def test_a_name_that_is_no_text(tmp_path):
    folder = write_pets(tmp_path / "pets")
    write_picture(folder / "cat" / os.fsdecode(b"caf\xe9.png"), 100)
    with pytest.raises(ValueError, match=r"caf\\udce9\.png: its name is not UTF-8"):
        load_data(folder)
    source = load_data(folder, test_fraction=0, damaged_images="skip")
    assert source.left_out == (LeftOut("cat/caf\\udce9.png", "its name is not UTF-8; rename it"),)
    again = load_data(folder, test_fraction=0, left_out=source.left_out)
    assert again.left_out == source.left_out
    write_picture(folder / os.fsdecode(b"\xe9") / "0.png", 101)
    with pytest.raises(ValueError, match="one line of text in UTF-8"):
        load_data(folder, damaged_images="skip")


# what is left ------------------------------------------------------------------------------------


def test_a_class_or_a_split_without_an_image_is_an_error(tmp_path):
    folder = write_pets(tmp_path / "pets")
    for path in (folder / "dog").iterdir():
        path.write_text("no image")
    message = (
        r"pets: no image of the class 'dog' is left: 3 would be left out, the first is .*0\.png"
    )
    with pytest.raises(ValueError, match=message):
        load_data(folder, damaged_images="skip")
    write_pets(tmp_path / "divided/train")
    write_pets(tmp_path / "divided/test", 1)
    (tmp_path / "divided/test/dog/0.png").write_text("no image")
    with pytest.warns(UserWarning, match="1 of 2 classes have no test image"):
        assert len(load_data(tmp_path / "divided", damaged_images="skip").test) == 1
    (tmp_path / "divided/test/cat/0.png").write_text("no image")
    with pytest.raises(ValueError, match="no test image of the class 'cat' is left"):
        load_data(tmp_path / "divided", damaged_images="skip")


def test_what_was_left_out_is_left_out_again_and_nothing_else(tmp_path):
    folder = write_pets(tmp_path / "pets", 10)
    (folder / "cat/3.png").write_text("no image")
    source = load_data(folder, damaged_images="skip")
    assert [item.file for item in source.left_out] == ["cat/3.png"]
    assert len(source.train) + len(source.test) == 19
    write_picture(folder / "cat/3.png", 300)
    again = load_data(folder, left_out=source.left_out)
    assert (again.digest, again.left_out) == (source.digest, source.left_out)
    assert again.train.images == source.train.images
    # Another file that cannot be used is not left out.
    (folder / "dog/4.png").unlink()
    (folder / "dog/4.png").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"lists 1 of 20 files.*dog/4\.png"):
        load_data(folder, left_out=source.left_out)


def test_an_unknown_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be 'error' or 'skip'. Received: 'ignore'"):
        load_data(write_pets(tmp_path), damaged_images="ignore")


# manifests ---------------------------------------------------------------------------------------

PICTURES = [f"good{number}.png" for number in range(8)]
# What is done to a row of a manifest, as bytes, and what is said of it.
ROW_DAMAGES = {
    "latin-1": (b"caf\xe9.png,cat", "line {line}: .*Save it again as UTF-8"),
    "a NUL byte in the file": (b"good\0.png,cat", "line {line}: there is a NUL byte"),
    "a NUL byte in the label": (b"other.png,c\0at", "line {line}: there is a NUL byte"),
    "a cell more": (b"other.png,cat,train,x", "line {line}: 4 cells under 3 columns"),
    "a comma in the name": (b"a,b.png,cat,train", "line {line}: 4 cells under 3 columns"),
    "no label": (b"other.png", "line {line}: file or label is empty"),
    "an empty label": (b"other.png,,train", "line {line}: file or label is empty"),
    "an empty file": (b",cat,train", "line {line}: file or label is empty"),
    "no split": (b"other.png,cat", "line {line}: the split is None"),
    "an unknown split": (b"other.png,cat,tset", "line {line}: the split is 'tset'"),
    "a long field": (
        b"x" * 200_000 + b",cat,train",
        "row that begins in line {line}: field larger",
    ),
    "an open quote": (b'"other.png,cat,train', "row that begins in line {line}: unexpected end"),
    "text after a quote": (b'"other"x,cat,train', "row that begins in line {line}: "),
    "blanks before a label": (b"other.png, cat,train", "line {line}: the label ' cat' has blanks"),
    "a float": (b"other.png,1.0,train", "line {line}: the label '1.0' is neither a name"),
    "not a number": (b"other.png,nan,train", "line {line}: the label 'nan' is neither a name"),
    "an infinity": (b"other.png,-inf,train", "line {line}: the label '-inf' is neither"),
    "a number among names": (b"other.png,7,train", "the label '.*' in line"),
    "another label": (b"good0.png,dog,train", "line {line}: good0.png has the label 'dog'"),
    "another split": (b"./good0.png,cat,test", "line {line}: ./good0.png is in test"),
    "a label of two lines": (b'other.png,"c\nat",train', r"the class 'c\\nat'. Expected one line"),
}


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    st.sampled_from(sorted(ROW_DAMAGES)), st.integers(1, 8), st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(), st.sampled_from(["error", "skip"]),
)  # fmt: skip
def test_a_damaged_manifest_is_an_error_that_names_the_line(
    place, damage, position, end, blank_line, policy
):
    row, message = ROW_DAMAGES[damage]
    lines = [b"file,label,split"]
    lines += [f"{name},{('cat', 'dog')[i % 2]},train".encode() for i, name in enumerate(PICTURES)]
    # After the first, which it may contradict.
    lines.insert(1 + position, row)
    if blank_line:
        lines.insert(1, b"")
    manifest = place / "inside/labels.csv"
    manifest.write_bytes(end.join(lines) + end)
    with OPENED.nothing_in(place / "outside"), pytest.raises(ValueError) as error:
        load_data(manifest, damaged_images=policy)
    text = str(error.value)
    assert str(manifest) in text and len(text) < 1000
    assert re.search(message.format(line=2 + position + blank_line), text), text


@pytest.mark.parametrize(
    "labels, message",
    [
        (["0", "1", "-1"], "line 4: there is the label -1. Expected 0 to 99999"),
        (["0", "1", "100000"], "line 4: there is the label 100000. Expected"),
        (["0", "1", "9" * 5000], r"line 4: there is the label 9{20}… \(5000 digits\)"),
        (["0", "1", "1.0"], "labels that are numbers, and the label '1.0' in line 4"),
        (["0", "1", " 1"], "labels that are numbers, and the label ' 1' in line 4"),
        (["0", "1", "nan"], "labels that are numbers, and the label 'nan' in line 4"),
        (["0", "1", "\uff11"], "labels that are numbers, and the label '\uff11' in line 4"),
        (["0", "1", "True"], "labels that are numbers, and the label 'True' in line 4"),
        (["café", "cafe\u0301", "tea"], r"look the same.*normal forms of Unicode"),
    ],
)
def test_labels_that_are_neither_indices_nor_names(place, labels, message):
    manifest = place / "inside/labels.csv"
    rows = [f"{name},{label}" for name, label in zip(PICTURES, labels, strict=False)]
    manifest.write_text("\n".join(["file,label", *rows]), "utf-8")
    with pytest.raises(ValueError, match=message):
        load_data(manifest)


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "gbk"]
)
def test_a_manifest_in_another_encoding_is_an_error(place, encoding):
    manifest = place / "inside/labels.csv"
    manifest.write_bytes("file,label\ngood0.png,cat\ngood1.png,é\n".encode(encoding, "replace"))
    with pytest.raises(ValueError, match=r"labels\.csv.*UTF-8"):
        load_data(manifest)


def test_names_in_any_script_are_read_as_they_are(tmp_path):
    names = ["наука.png", "猫.png", "é.png", "e\u0301.png", "a b.png", 'quo"te.png', "com,ma.png"]
    rows = []
    for number, name in enumerate(names):
        write_picture(tmp_path / name, number)
        quoted = name.replace('"', '""')
        rows.append(f'"{quoted}",{("собака", "猫")[number % 2]}')
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]), "utf-8-sig")
    source = load_data(tmp_path / "labels.csv", test_fraction=0, damaged_images="skip")
    assert [path.name for path in source.train.images] == names
    assert source.class_names == ("собака", "猫") and not source.left_out


@pytest.mark.slow
def test_a_manifest_of_many_classes_takes_no_quadratic_time(tmp_path):
    # With a comparison of each class with each it would take minutes.
    (tmp_path / "a.png").write_bytes(GOOD["PNG"])
    rows = "".join(f"x{number}.png,c{number}\n" for number in range(60_000))
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    with pytest.raises(FileNotFoundError, match="lists 60000 of 60000 files"):
        load_data(tmp_path / "labels.csv")


# runs --------------------------------------------------------------------------------------------

ARCHITECTURE = VisionTransformerConfig(
    patch_size=4, hidden_size=8, depth=1, mlp_dim=16, num_heads=2, image_size=8
)


def pets_and_recipe(folder, name, **changes):
    """A set of 32 pictures, of which four cannot be used, and a recipe for it."""
    pets = write_pets(folder / name / "pets", 16)
    for file, content in (("cat/3.png", b"no image"), ("dog/5.png", png_of_size(2**16, 2**16))):
        (pets / file).write_bytes(content)
    for file in ("cat/7.png", "dog/11.png"):
        (pets / file).unlink()
        (pets / file).symlink_to("/etc/hostname" if "cat" in file else "absent.png")
    recipe = Recipe(
        name="run",
        data=str(pets),
        output=str(folder / name),
        damaged_images="skip",
        image_size=8,
        steps=8,
        warmup_steps=1,
        batch_size=4,
        learning_rate=0.1,
        log_every=1,
        evaluate_every=0,
        checkpoint_every=4,
        precision="float32",
        report=False,
    )
    return pets, dataclasses.replace(recipe, **changes)


LEFT_OUT = ["cat/3.png", "cat/7.png", "dog/11.png", "dog/5.png"]


@pytest.mark.slow
def test_a_run_that_goes_on_leaves_out_the_same_images(tmp_path, monkeypatch, capsys):
    _, whole = pets_and_recipe(tmp_path, "whole")
    pets, killed = pets_and_recipe(tmp_path, "killed")
    expected = run(whole, architecture=ARCHITECTURE)
    assert "4 images are left out, 28 are used:\n  cat/3.png: cannot" in capsys.readouterr().out
    with monkeypatch.context() as patch, pytest.raises(Killed):
        after_row(patch, 6, kill)
        run(killed, architecture=ARCHITECTURE)
    # One is mended and one is gone.
    write_picture(pets / "cat/3.png", 300)
    (pets / "dog/11.png").unlink()
    capsys.readouterr()
    result = run(killed, architecture=ARCHITECTURE)
    printed = capsys.readouterr().out
    assert "Going on after step 4 of 8" in printed
    assert "lists 1 images that" in printed and "the first is dog/11.png" in printed
    assert result.train_images == expected.train_images
    assert [item.file for item in expected.left_out] == LEFT_OUT
    assert_same_weights(tmp_path / "whole/run", tmp_path / "killed/run")
    written = json.loads((tmp_path / "whole/run/result.json").read_text())
    assert [item["file"] for item in written["left_out"]] == LEFT_OUT
    assert "cannot identify" in written["left_out"][0]["reason"]
    assert "outside of" in written["left_out"][1]["reason"]
    assert f"({len(LEFT_OUT)} are left out)" in str(expected)


@pytest.mark.parametrize("number", slow_except([0, 1, 2], fast=[1]))
def test_a_run_that_is_killed_between_its_first_files_goes_on(tmp_path, monkeypatch, number):
    _, recipe = pets_and_recipe(tmp_path, "killed", steps=2)
    written, replace = [], os.replace

    def replace_or_end(source, target):
        if Path(target).parent == tmp_path / "killed/run":
            if len(written) == number:
                kill()
            written.append(target)
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", replace_or_end)
        run(recipe, architecture=ARCHITECTURE)
    assert len(written) == number
    result = run(recipe, architecture=ARCHITECTURE)
    assert [item.file for item in result.left_out] == LEFT_OUT


def test_a_picture_that_is_damaged_meanwhile_is_said_and_not_left_out(
    tmp_path, monkeypatch, capsys
):
    pets, recipe = pets_and_recipe(tmp_path, "killed")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        after_row(patch, 1, kill)
        run(recipe, architecture=ARCHITECTURE)
    (pets / "cat/1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="(?s)holds another run.*data digest"):
        run(recipe, architecture=ARCHITECTURE)
    (pets / "cat/1.png").unlink()
    (pets / "cat/1.png").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"lists 1 of 32 files.*cat/1\.png"):
        run(recipe, architecture=ARCHITECTURE)


def test_a_run_does_not_begin_with_damaged_images_unless_told_to(tmp_path):
    pets, recipe = pets_and_recipe(tmp_path, "a", damaged_images="error")
    with pytest.raises(ValueError, match=r"lists 2 of 32 files.*cat/7\.png: it leads to"):
        run(recipe, architecture=ARCHITECTURE)
    for file in ("cat/7.png", "dog/11.png"):
        (pets / file).unlink()
    with pytest.raises(ValueError, match=r"(?s)2 of 30 images cannot be decoded.*cat/3\.png"):
        run(recipe, architecture=ARCHITECTURE)
    assert not (tmp_path / "a/run").exists()


@pytest.mark.slow
def test_what_was_left_out_is_in_the_report_and_evaluation_leaves_it_out(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pets, recipe = pets_and_recipe(tmp_path, "a", report=True, steps=1, checkpoint_every=0)
    run(recipe, architecture=ARCHITECTURE)
    page = (tmp_path / "a/run/report.html").read_text("utf-8")
    section = page[page.index('<h2 id="left-out">') :]
    assert "4 images of the data set could not be used" in section
    assert all(name in section for name in LEFT_OUT) and "cannot identify" in section
    capsys.readouterr()
    arguments = ["evaluate", str(tmp_path / "a/run"), "--data", str(pets)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "is the data set of this run" in printed and "4 images are left out" in printed
    (pets / "cat/0.png").write_bytes(b"another one")
    assert main([*arguments, "--damaged-images", "skip"]) == 2
    assert "have changed since" in capsys.readouterr().err
    arguments[-1] = str(pets.rename(tmp_path / "others"))
    assert main([*arguments, "--damaged-images", "skip"]) == 0
    assert "5 images are left out, 27 are used" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "lists 2 of 32 files" in capsys.readouterr().err
