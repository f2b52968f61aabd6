"""Patch embeddings at another patch size, each by the rule of the code that published it."""

import numpy as np

from keras_vit.layers.nearest import nearest_names
from keras_vit.layers.patches import as_pair
from keras_vit.layers.resampling import resampling_matrix

# How the patches are thought to be resized: big_vision's flexi/vit.py by tf.image.resize, timm's
# resample_patch_embed by PyTorch's interpolate with antialias.
PATCH_RESAMPLING_RULES = {
    "google": {"interpolation": "bilinear", "antialias": False},
    "timm": {"interpolation": "bicubic", "antialias": True},
}


def resample_patch_kernel(kernel, target_size, rule="google"):
    """Resamples the kernel of a patch embedding to another patch size.

    FlexiViT's pseudo-inverse resize
    ([Beyer et al., 2022](https://arxiv.org/abs/2212.08013), section 3.4): where patches are resized
    by the matrix `B`, the kernel becomes `pinv(transpose(B)) @ kernel`. A larger kernel then gives
    an enlarged patch the embedding that the original gave the patch; a smaller one comes nearest
    to that in the mean square over patches of white noise.

    Args:
        kernel: Array of shape `(height, width, channels, hidden_size)`, sides in pixels.
        target_size: Side of the patches wanted in pixels: an int, or (height, width).
        rule: `"google"` (bilinear without antialias, big_vision) or `"timm"` (bicubic with
            antialias): whose code is followed.

    Returns:
        An array of shape `(*target_size, channels, hidden_size)`, of the dtype of `kernel`;
        `kernel` itself if it has this shape.

    Raises:
        ValueError: If `kernel` is no such array, `target_size` is not positive, or for an
            unknown rule.

    Example:

    >>> import numpy as np
    >>> kernel = np.ones((2, 2, 3, 8), "float32")
    >>> resample_patch_kernel(kernel, 4).shape
    (4, 4, 3, 8)
    """
    if rule not in PATCH_RESAMPLING_RULES:
        raise ValueError(
            f"Unknown rule of patch resampling. {nearest_names(rule, PATCH_RESAMPLING_RULES)} "
            f"Received: rule={rule!r}"
        )
    if kernel.ndim != 4:
        raise ValueError(
            "`kernel` must have the shape (height, width, channels, hidden_size). "
            f"Received: shape={kernel.shape}"
        )
    target_size = as_pair(target_size, "target_size")
    if kernel.shape[:2] == target_size:
        return kernel
    # The pseudo-inverse of a Kronecker product is the product of the pseudo-inverses: an axis each.
    vertical, horizontal = (
        np.linalg.pinv(resampling_matrix(source, target, **PATCH_RESAMPLING_RULES[rule]).T)
        for source, target in zip(kernel.shape[:2], target_size, strict=True)
    )
    resampled = np.einsum(
        "ir,js,rscd->ijcd", vertical, horizontal, kernel.astype("float64"), optimize=True
    )
    return resampled.astype(kernel.dtype)
