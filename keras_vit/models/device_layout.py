"""Which device holds which part of the weights, for models that do not fit one."""

import keras

from keras_vit.models.config import VisionTransformerConfig

BATCH_AXIS, MODEL_AXIS = "batch", "model"

# Of two matrices in a row the first is divided by its outputs and the second by its inputs, so that
# what lies between them stays on its device (Megatron-LM, arXiv 1909.08053). So it is in the MLP;
# queries, keys and values are one kernel, whose parts XLA regroups by heads. Everything else is
# small and whole on every device.
_LAYOUTS = {
    r".*/query_key_value/kernel": (None, MODEL_AXIS),
    r".*/query_key_value/bias": (MODEL_AXIS,),
    r"block_\d+/attention/projection/kernel": (MODEL_AXIS, None),
    r".*mlp/expansion/kernel": (None, MODEL_AXIS),
    r".*mlp/expansion/bias": (MODEL_AXIS,),
    r".*mlp/projection/kernel": (MODEL_AXIS, None),
}


def layout_map(
    config: VisionTransformerConfig, mesh: keras.distribution.DeviceMesh
) -> keras.distribution.LayoutMap:
    """The layout of a Vision Transformer's weights for `keras.distribution.ModelParallel`.

    The kernels of attention and MLP, nearly all of a large model's weights, are divided along the
    mesh's axis `model`; the optimizer's variables follow them. Batches are divided along the axis
    `batch`. The gradients and losses are those of one device, to rounding. Needs the JAX backend.

    Args:
        config: The architecture.
        mesh: Devices in two axes, `batch` and `model`.

    Returns:
        The layouts by patterns of the weights' paths.

    Raises:
        ValueError: If the mesh has other axes, or its axis `model` does not divide the heads and
            the units of the MLP.

    Example:

    >>> mesh = keras.distribution.DeviceMesh(
    ...     (2, 4), ("batch", "model"), [f"cpu:{i}" for i in range(8)]
    ... )
    >>> config = VisionTransformerConfig(
    ...     patch_size=16, hidden_size=1024, depth=24, mlp_dim=4096, num_heads=16
    ... )
    >>> layout_map(config, mesh)["block_0/mlp/expansion/kernel"].axes
    (None, 'model')
    """
    if set(mesh.axis_names) != {BATCH_AXIS, MODEL_AXIS}:
        raise ValueError(
            f"The mesh must have the axes {BATCH_AXIS!r} and {MODEL_AXIS!r}. Received: "
            f"{tuple(mesh.axis_names)}"
        )
    parts = mesh.shape[list(mesh.axis_names).index(MODEL_AXIS)]
    for field in ("num_heads", "mlp_dim"):
        count = getattr(config, field)
        if count % parts:
            fitting = [part for part in range(1, parts) if count % part == 0]
            raise ValueError(
                f"The mesh's axis {MODEL_AXIS!r} has {parts} devices, which cannot divide "
                f"{field}={count} evenly. Choose {fitting[-1]} devices for it, the others for "
                f"{BATCH_AXIS!r}"
            )
    layouts = keras.distribution.LayoutMap(mesh)
    for pattern, axes in _LAYOUTS.items():
        layouts[pattern] = axes
    return layouts
