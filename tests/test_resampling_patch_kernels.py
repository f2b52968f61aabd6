"""Patch embeddings at another patch size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vit.checkpoints.patch_kernels import PATCH_RESAMPLING_RULES, resample_patch_kernel
from keras_vit.layers.resampling import resampling_matrix

RULES = tuple(PATCH_RESAMPLING_RULES)
sides = st.integers(1, 9)
sizes = st.tuples(sides, sides)


def resize(patch, size, rule):
    """A patch (height, width, channels) at another size, as the rule resizes it."""
    vertical, horizontal = (
        resampling_matrix(source, target, **PATCH_RESAMPLING_RULES[rule])
        for source, target in zip(patch.shape[:2], size, strict=True)
    )
    return np.einsum("ir,js,rsc->ijc", vertical, horizontal, patch)


def embed(patch, kernel):
    return np.einsum("ijc,ijcd->d", patch, kernel)


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=50)
@given(source=sizes, growth=st.tuples(st.integers(0, 8), st.integers(0, 8)))
def test_an_enlarged_patch_keeps_its_embedding(rule, source, growth):
    target = tuple(side + more for side, more in zip(source, growth, strict=True))
    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(*source, 3, 5)), rng.normal(size=(*source, 3))
    resampled = resample_patch_kernel(kernel, target, rule)
    assert resampled.shape == (*target, 3, 5)
    np.testing.assert_allclose(
        embed(resize(patch, target, rule), resampled), embed(patch, kernel), atol=1e-10
    )


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=50)
@given(source=sizes, target=sizes)
def test_it_is_the_pseudo_inverse_of_the_whole_resize(rule, source, target):
    kernel = np.random.default_rng(0).normal(size=(*source, 1, 2))
    pixels = np.eye(source[0] * source[1]).reshape(-1, *source, 1)
    matrix = np.stack([resize(pixel, target, rule).ravel() for pixel in pixels], axis=1)
    # One axis may grow while the other shrinks: the matrix has then less than full rank.
    expected = np.linalg.pinv(matrix.T, rcond=1e-10) @ kernel.reshape(-1, 2)
    found = resample_patch_kernel(kernel, target, rule)
    np.testing.assert_allclose(found.reshape(-1, 2), expected, atol=1e-10)


# What timm 1.0.31 and big_vision give for the kernel 0, 1, 4, 9, … of one channel.
PUBLISHED = {
    ("timm", (2, 2), (3, 3)): [
        [-0.31464410, -0.21188661, -0.10912949],
        [0.67183542, 1.55555463, 2.43927455],
        [1.65831518, 3.32299733, 4.98768044],
    ],
    ("timm", (4, 4), (2, 3)): [
        [-22.2570992, -11.5513153, 11.6384506],
        [322.663055, 361.712036, 508.724854],
    ],
    ("google", (2, 2), (3, 3)): [
        [-0.44444430, -0.44444424, -0.44444436],
        [0.55555570, 1.55555570, 2.55555582],
        [1.55555546, 3.55555582, 5.55555534],
    ],
    ("google", (4, 4), (2, 3)): [
        [18.5538483, 51.2000122, 70.2461472],
        [247.476944, 435.200104, 417.322998],
    ],
}


@pytest.mark.parametrize(("rule", "source", "target"), PUBLISHED)
def test_it_is_what_the_published_code_computes(rule, source, target):
    kernel = np.arange(source[0] * source[1]).reshape(*source, 1, 1) ** 2.0
    found = resample_patch_kernel(kernel, target, rule)[..., 0, 0]
    expected = np.array(PUBLISHED[rule, source, target])
    # Both compute in float32.
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("rule", RULES)
def test_the_same_size_passes_unchanged(rule):
    kernel = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype("float32")
    assert resample_patch_kernel(kernel, (4, 3), rule) is kernel
    assert resample_patch_kernel(kernel, 5, rule).dtype == "float32"


def test_bad_arguments():
    kernel = np.zeros((4, 4, 3, 2), "float32")
    with pytest.raises(ValueError, match="Unknown rule of patch resampling"):
        resample_patch_kernel(kernel, 8, "pillow")
    with pytest.raises(ValueError, match="`target_size` must be a positive int"):
        resample_patch_kernel(kernel, (8, 0))
    with pytest.raises(ValueError, match=r"must have the shape .* Received: shape=\(48, 2\)"):
        resample_patch_kernel(kernel.reshape(48, 2), 8)
