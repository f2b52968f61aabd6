"""Decoding, the geometry of evaluation, and resampling on the host."""

import io
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_vit.data import (
    ImageSet,
    check_images,
    decode_image,
    evaluation_geometry,
    prepare_image,
)
from keras_vit.layers import ImagePreprocessing
from keras_vit.layers.resampling import resampling_matrix

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 7, 3), dtype="uint8")
GREY = PIXELS[..., 0]
# The number of a tag.
ORIENTATION = 274

sides = st.integers(1, 900)
model_sides = st.integers(1, 400)
crop_fractions = st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0])


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def smooth_image(height, width):
    """Gradients, as photographs have: noise would hide no error, but allow a large one."""
    y, x = np.mgrid[:height, :width]
    planes = [255 * y / max(height - 1, 1), 255 * x / max(width - 1, 1), 40 * np.sin(x / 9) + 128]
    return np.rint(np.stack(planes, axis=-1)).astype("uint8")


# decoding ----------------------------------------------------------------------------------------


def test_colour_is_decoded_as_it_is(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    for source in (path, str(path), path.read_bytes()):
        decoded = decode_image(source)
        assert decoded.dtype == np.uint8 and decoded.flags.writeable
        np.testing.assert_array_equal(decoded, PIXELS)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        # 257 times an 8-bit value is that value in 16 bits.
        Image.fromarray(GREY.astype("uint16") * 257),
        Image.fromarray(np.stack([GREY, GREY // 2], axis=-1), "LA"),
    ],
    ids=lambda image: image.mode,
)
def test_grey_becomes_rgb(image):
    np.testing.assert_array_equal(
        decode_image(encoded(image)), np.repeat(GREY[..., None], 3, axis=-1)
    )


def test_alpha_is_left_out_and_not_blended():
    transparent = np.concatenate([PIXELS, np.zeros((9, 7, 1), "uint8")], axis=-1)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(transparent))), PIXELS)


def test_a_palette_becomes_rgb():
    image = Image.fromarray(PIXELS).quantize(8)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded(image, transparency=0)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("file_format", "options"),
    [("TIFF", {}), ("TIFF", {"compression": "tiff_deflate"}), ("JPEG", {}), ("PNG", {})],
    ids=["TIFF", "deflated TIFF", "JPEG", "PNG"],
)
def test_exif_orientation_is_not_applied(tmp_path, file_format, options, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    expected = decode_image(encoded(Image.fromarray(PIXELS), file_format, **options))
    path = tmp_path / "phone"
    path.write_bytes(encoded(Image.fromarray(PIXELS), file_format, exif=exif, **options))
    with Image.open(path) as file:
        assert file.getexif()[ORIENTATION] == orientation
    np.testing.assert_array_equal(decode_image(path), expected)
    check_images(on_disk(path))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "1", "P", "CMYK"])
def test_a_tiff_of_any_mode_is_left_as_it_lies(mode):
    image = Image.fromarray(GREY.astype("uint16") * 257)
    if mode == "I;16B":
        image = Image.frombytes(mode, image.size, (GREY.astype(">u2") * 257).tobytes())
    elif mode != "I;16":
        image = Image.fromarray(PIXELS).convert(mode)
    expected = decode_image(encoded(image, "TIFF"))
    turned = encoded(image, "TIFF", tiffinfo={ORIENTATION: 6})
    np.testing.assert_array_equal(decode_image(turned), expected)


def test_an_orientation_in_the_xmp_of_a_tiff_is_not_applied():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    turned = encoded(Image.fromarray(PIXELS), "TIFF", tiffinfo={700: xmp})
    np.testing.assert_array_equal(decode_image(turned), PIXELS)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "notes.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.jpg cannot be decoded"):
        decode_image(path)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image file .*absent\.png"):
        decode_image(tmp_path / "absent.png")


def test_pixels_that_are_no_integers_are_refused(tmp_path):
    path = tmp_path / "depth.tiff"
    Image.fromarray(np.zeros((4, 4), "float32")).save(path)
    with pytest.raises(ValueError, match=r"depth\.tiff .*floating-point"):
        decode_image(path)


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_integers_of_32_bits_are_refused(tmp_path, dtype):
    path = tmp_path / "labels.tiff"
    # 339: how samples are to be read, 1 for integers without a sign.
    options = {"tiffinfo": {339: 1}} if dtype == "uint32" else {}
    Image.fromarray(GREY.astype("int32")).save(path, **options)
    with pytest.raises(ValueError, match=r"labels\.tiff .*32-bit integers.* 8 or 16 bits"):
        decode_image(path)
    with pytest.raises(ValueError, match=r"1 of 1 images.*\n.*labels\.tiff: .*32-bit integers"):
        check_images(on_disk(path))


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_integers_of_16_bits_keep_their_upper_8_whatever_the_file(byte_order):
    expected = np.repeat(GREY[..., None], 3, axis=-1)
    values = GREY.astype("uint16") * 256 + 99
    mode = {"<": "I;16", ">": "I;16B"}[byte_order]
    raw = values.astype(f"{byte_order}u2").tobytes()
    image = Image.frombytes(mode, (7, 9), raw)
    np.testing.assert_array_equal(decode_image(encoded(image, "TIFF")), expected)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(values))), expected)
    pgm = b"P5 7 9 65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(decode_image(pgm), expected)
    # 339: how samples are to be read, 2 for integers with a sign; below 0 is black.
    signed = encoded(image, "TIFF", tiffinfo={339: 2})
    with Image.open(io.BytesIO(signed)) as file:
        assert file.mode == "I"
    np.testing.assert_array_equal(decode_image(signed), np.where(expected < 128, expected, 0))


def test_an_image_of_absurd_size_is_refused_unread(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(ValueError, match=r"bytes cannot be decoded.*7 x 9 pixels.*at most 30"):
        decode_image(encoded(Image.fromarray(PIXELS)))


@given(st.data(), st.sampled_from(["PNG", "JPEG", "GIF", "BMP"]))
def test_damaged_bytes_give_pixels_or_one_kind_of_error(data, file_format):
    whole = bytearray(encoded(Image.fromarray(PIXELS), file_format))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        decoded = decode_image(damaged)
    except ValueError as error:
        assert "cannot be decoded" in str(error)
    else:
        assert decoded.dtype == np.uint8 and decoded.shape[2] == 3


# checking ----------------------------------------------------------------------------------------


def on_disk(*paths):
    return ImageSet(paths, np.zeros(len(paths), "int32"), ("cat", "dog"))


@pytest.fixture
def good(tmp_path):
    paths = [tmp_path / f"good{number}.{kind}" for number in range(20) for kind in ("jpg", "png")]
    for number, path in enumerate(paths):
        Image.fromarray(smooth_image(40 + number, 30)).save(path)
    return paths


@pytest.fixture
def damaged(tmp_path):
    truncated, text, depth = (tmp_path / name for name in ("cut.jpg", "notes.jpg", "depth.tiff"))
    truncated.write_bytes(encoded(Image.fromarray(smooth_image(90, 120)), "JPEG")[:-100])
    text.write_text("no image")
    Image.fromarray(np.zeros((4, 4), "float32")).save(depth)
    return [truncated, text, depth]


def test_images_that_can_be_decoded_pass_and_each_is_read_once(good):
    seen = []
    in_memory = ImageSet(np.zeros((2, 4, 4, 3), "uint8"), np.array([0, 1], "int32"), ("a", "b"))
    sets = on_disk(*good), in_memory, on_disk(*good[:5])
    check_images(*sets, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(16, 40), (32, 40), (40, 40)]
    check_images()
    check_images(in_memory, progress=lambda *_: pytest.fail("there is nothing to read"))


def test_all_images_that_cannot_be_decoded_are_named_at_once(good, damaged):
    with pytest.raises(ValueError, match=r"^3 of 43 images cannot be decoded") as error:
        check_images(on_disk(*good, damaged[0]), on_disk(*damaged[1:]))
    _, *lines = str(error.value).splitlines()
    for path, line, reason in zip(
        damaged, lines, ["truncated", "cannot identify", "floating-point"], strict=True
    ):
        assert line.startswith(f"{path}: ") and reason in line


def test_no_more_than_20_damaged_images_are_named(tmp_path):
    paths = [tmp_path / f"absent{number:02d}.jpg" for number in range(50)]
    with pytest.raises(ValueError, match=r"(?s)^50 of 50 images.*absent00.*absent19") as error:
        check_images(on_disk(*paths))
    assert "absent20" not in str(error.value)


@settings(max_examples=200)
@given(
    st.data(),
    st.sampled_from(["RGB", "L", "CMYK"]),
    st.booleans(),
    st.sampled_from([(1, 1), (8, 8), (17, 9), (70, 50)]),
)
def test_a_jpeg_passes_the_check_just_where_it_can_be_decoded(
    tmp_path_factory, data, mode, progressive, size
):
    image = Image.fromarray(smooth_image(*size)).convert(mode)
    whole = bytearray(encoded(image, "JPEG", progressive=progressive))
    for _ in range(data.draw(st.integers(0, 2))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "checked.jpg"
    path.write_bytes(
        whole[: len(whole) - data.draw(st.integers(0, 3) | st.integers(0, len(whole)))]
    )
    try:
        decode_image(path)
    except ValueError:
        with pytest.raises(ValueError, match=r"1 of 1 images.*\n.*checked\.jpg: "):
            check_images(on_disk(path))
    else:
        check_images(on_disk(path))


# geometry ----------------------------------------------------------------------------------------


@given(sides, sides, model_sides, model_sides, crop_fractions)
def test_the_centre_crop_covers_and_keeps_the_aspect_ratio(
    height, width, model_height, model_width, crop_fraction
):
    resized_height, resized_width, top, left = evaluation_geometry(
        height,
        width,
        (model_height, model_width),
        crop_fraction=crop_fraction,
        crop_mode="center",
    )
    target_height = int(model_height / crop_fraction)
    target_width = int(model_width / crop_fraction)
    # The exact scale at which the image just covers the target.
    scale = max(Fraction(target_height, height), Fraction(target_width, width))
    assert resized_height == int(height * scale) >= target_height
    assert resized_width == int(width * scale) >= target_width
    assert resized_height == target_height or resized_width == target_width
    for first, size, resized in (
        (top, model_height, resized_height),
        (left, model_width, resized_width),
    ):
        assert first >= 0 and first + size <= resized
        assert resized - size - 2 * first in (0, 1)


@given(sides, sides, model_sides, model_sides, crop_fractions)
def test_squash_resizes_both_sides(height, width, model_height, model_width, crop_fraction):
    geometry = evaluation_geometry(
        height,
        width,
        (model_height, model_width),
        crop_fraction=crop_fraction,
        crop_mode="squash",
    )
    target = int(model_height / crop_fraction), int(model_width / crop_fraction)
    assert geometry == (*target, (target[0] - model_height) // 2, (target[1] - model_width) // 2)


def test_an_unknown_crop_mode_is_refused():
    with pytest.raises(ValueError, match="`crop_mode` must be center or squash.*'border'"):
        evaluation_geometry(9, 9, (4, 4), crop_fraction=1.0, crop_mode="border")


# resampling --------------------------------------------------------------------------------------


@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40),
    crop_fractions, st.sampled_from(["center", "squash"]),
    st.sampled_from(["nearest", "bilinear", "bicubic"]), st.integers(0, 255),
)  # fmt: skip
def test_a_plain_image_stays_plain(
    height, width, model_height, model_width, crop_fraction, crop_mode, interpolation, value
):
    preprocessing = ImagePreprocessing(
        crop_fraction=crop_fraction, crop_mode=crop_mode, interpolation=interpolation
    )
    image = np.full((height, width, 3), value, "uint8")
    prepared = prepare_image(image, (model_height, model_width), preprocessing)
    assert prepared.dtype == np.float32 and prepared.shape == (model_height, model_width, 3)
    np.testing.assert_allclose(prepared, value, atol=1e-3)


@given(st.integers(2, 60), st.integers(2, 60), st.integers(1, 30), crop_fractions)
def test_a_mirrored_image_is_the_mirror_image(height, width, side, crop_fraction):
    preprocessing = ImagePreprocessing(crop_fraction=crop_fraction)
    resized_height, resized_width, *_ = evaluation_geometry(
        height, width, (side, side), crop_fraction=crop_fraction, crop_mode="center"
    )
    if (resized_width - side) % 2 or (resized_height - side) % 2:
        return  # The crop is then half a pixel off the centre.
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype="uint8")
    prepared = prepare_image(image, (side, side), preprocessing)
    mirrored = prepare_image(image[::-1, ::-1], (side, side), preprocessing)
    np.testing.assert_allclose(mirrored[::-1, ::-1], prepared, atol=1e-2)


@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(1, 30), st.integers(1, 30),
    crop_fractions, st.sampled_from(["nearest", "bilinear", "bicubic"]),
)  # fmt: skip
def test_it_resizes_by_the_matrices_of_the_layers(
    height, width, model_height, model_width, crop_fraction, interpolation
):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype="uint8")
    resized_height, resized_width, top, left = evaluation_geometry(
        height, width, (model_height, model_width),
        crop_fraction=crop_fraction, crop_mode="center",
    )  # fmt: skip
    rows = resampling_matrix(height, resized_height, interpolation)[top : top + model_height]
    columns = resampling_matrix(width, resized_width, interpolation)[left : left + model_width]
    expected = np.einsum("yh,hwc,xw->yxc", rows, image, columns, optimize=True).clip(0, 255)
    preprocessing = ImagePreprocessing(crop_fraction=crop_fraction, interpolation=interpolation)
    prepared = prepare_image(image, (model_height, model_width), preprocessing)
    np.testing.assert_allclose(prepared, expected, atol=1e-3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(90, 70), (31, 45), (17, 201)])
def test_it_resizes_as_pillow(size, interpolation):
    preprocessing = ImagePreprocessing(crop_mode="squash", interpolation=interpolation)
    # Pillow also clips between its two passes: no overshoot here.
    image = RNG.integers(64, 192, (*size, 3), dtype="uint8")
    prepared = prepare_image(image, (40, 32), preprocessing)
    by_pillow = Image.fromarray(image).resize((32, 40), Image.Resampling[interpolation.upper()])
    # Pillow rounds after each of its two passes.
    np.testing.assert_allclose(prepared, np.asarray(by_pillow), atol=1.6)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_very_long_image_takes_little_memory(size):
    image = np.full((*size, 3), 9, "uint8")
    prepared = prepare_image(image, (64, 64), ImagePreprocessing())
    np.testing.assert_allclose(prepared, 9, atol=1e-3)


def test_pixels_are_clipped_and_not_rounded():
    image = np.zeros((6, 6, 3), "uint8")
    image[:, 3:] = 255
    prepared = prepare_image(image, (17, 17), ImagePreprocessing(crop_mode="squash"))
    assert prepared.min() == 0.0 and prepared.max() == 255.0
    assert (prepared != np.rint(prepared)).any()


@settings(deadline=None, max_examples=25)
@given(
    st.integers(8, 200), st.integers(8, 200), crop_fractions,
    st.sampled_from(["center", "squash"]), st.sampled_from(["bilinear", "bicubic"]),
)  # fmt: skip
def test_it_resizes_as_tensorflow(height, width, crop_fraction, crop_mode, interpolation):
    tf = pytest.importorskip("tensorflow")
    image, (model_height, model_width) = smooth_image(height, width), (32, 24)
    *resized, top, left = evaluation_geometry(
        height, width, (model_height, model_width),
        crop_fraction=crop_fraction, crop_mode=crop_mode,
    )  # fmt: skip
    expected = tf.image.resize(image, resized, interpolation, antialias=True).numpy()
    expected = expected[top : top + model_height, left : left + model_width].clip(0, 255)
    preprocessing = ImagePreprocessing(
        crop_fraction=crop_fraction, crop_mode=crop_mode, interpolation=interpolation
    )
    prepared = prepare_image(image, (model_height, model_width), preprocessing)
    np.testing.assert_allclose(prepared, expected, atol=0.02)


def test_the_imagenet_crops_are_those_of_timm(shared):
    """timm: shorter side to 248 by Pillow, centre crop of 224, rounded to uint8."""
    reference = np.load(shared / "reference/vit_tiny_augreg_imagenet_samples.io.npz")
    preprocessing = ImagePreprocessing(crop_fraction=0.9)
    for name, crop in zip(reference["files"], reference["crops"], strict=True):
        image = decode_image(shared / "data/imagenet_samples" / str(name))
        prepared = prepare_image(image, (224, 224), preprocessing)
        assert abs(prepared - crop).mean() < 0.6


def test_a_folder_is_no_image_and_said_to_be_one(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder\. Expected an image file; name those in it"):
        decode_image(tmp_path)
