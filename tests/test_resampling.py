"""The resampling matrices, beside Pillow's and PyTorch's own resampling."""

from fractions import Fraction

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from keras_vit.data.image_operations import resample
from keras_vit.layers.resampling import INTERPOLATIONS, resampling_matrix

sizes = st.integers(1, 64)


@given(sizes, sizes, st.sampled_from(INTERPOLATIONS), st.booleans(), st.booleans())
def test_rows_sum_to_one(source, target, interpolation, antialias, align_corners):
    matrix = resampling_matrix(
        source, target, interpolation, antialias=antialias, align_corners=align_corners
    )
    assert matrix.shape == (target, source)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)


@given(sizes, st.sampled_from(INTERPOLATIONS), st.booleans(), st.booleans())
def test_the_same_size_is_the_identity(size, interpolation, antialias, align_corners):
    matrix = resampling_matrix(
        size, size, interpolation, antialias=antialias, align_corners=align_corners
    )
    np.testing.assert_allclose(matrix, np.eye(size), atol=1e-12)


@given(sizes, sizes)
def test_nearest_takes_the_pixel_under_the_centre(source, target):
    chosen = resampling_matrix(source, target, "nearest").argmax(axis=1)
    expected = [int((i + Fraction(1, 2)) * source / target) for i in range(target)]
    assert chosen.tolist() == expected


@pytest.mark.parametrize("size", [(5, 7), (9, 4), (40, 33), (24, 24)])
@pytest.mark.parametrize(
    ("interpolation", "filter"),
    [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)],
)
def test_antialias_is_pillows(size, interpolation, filter):
    image = np.random.default_rng(0).uniform(0, 255, (13, 24)).astype("float32")
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], filter))
    found = (
        resampling_matrix(13, size[0], interpolation)
        @ image
        @ resampling_matrix(24, size[1], interpolation).T
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("size", [(5, 7), (9, 4), (40, 33)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_without_antialias_it_is_pytorchs(size, interpolation, align_corners):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).uniform(0, 255, (13, 24))
    expected = torch.nn.functional.interpolate(
        torch.tensor(image)[None, None], size, mode=interpolation, align_corners=align_corners
    )[0, 0].numpy()
    options = {"antialias": False, "cubic_a": -0.75, "align_corners": align_corners}
    found = (
        resampling_matrix(13, size[0], interpolation, **options)
        @ image
        @ resampling_matrix(24, size[1], interpolation, **options).T
    )
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_bad_arguments():
    with pytest.raises(ValueError, match="must be at least 1"):
        resampling_matrix(0, 5)
    with pytest.raises(ValueError, match="`interpolation` must be one of"):
        resampling_matrix(5, 5, "lanczos")


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone rounds by itself")
def test_a_device_multiplies_pixels_in_float32():
    import jax

    images = np.zeros((2, 4, 6, 3), "float32")
    matrices = np.zeros((8, 4), "float32"), np.zeros((9, 6), "float32")
    program = jax.jit(resample).lower(images, *matrices).as_text()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 2 and all("HIGHEST" in line for line in products)
