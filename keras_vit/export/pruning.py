"""Magnitude pruning: the smallest weights of a trained model set to zero."""

import keras
import numpy as np

from keras_vit.export.copying import copy_with_weights


def prune(model: keras.Model, sparsity: float) -> keras.Model:
    """A copy of a model whose smallest kernel weights are zero; the model is left as it is.

    Each kernel of a Transformer block (queries, keys, values, projections, MLP) loses the same
    share of its weights, those of the smallest magnitude
    ([Han et al., 2015](https://arxiv.org/abs/1506.02626), without training afterwards).
    Embeddings, norms, biases and the head stay as they are.

    None of the engines here computes faster for zeros that lie anywhere, and a file is no smaller
    before it is compressed: pruning shows how much of a model is needed, and is a start for
    training with the zeros kept.

    Args:
        model: A Vision Transformer.
        sparsity: Share of each kernel that becomes zero, in [0, 1).

    Returns:
        A new model with weights of its own.

    Raises:
        ValueError: If `sparsity` is out of range, or the model has no Transformer block, is
            quantised, or has adapters (LoRA) that are not merged.

    Example:

    >>> import numpy as np, keras_vit
    >>> from keras_vit.export.pruning import prune
    >>> model = keras_vit.ViTTi16(num_classes=2, image_size=32)
    >>> kernel = prune(model, 0.5).get_layer("block_0").mlp.expansion.kernel
    >>> float(np.mean(np.asarray(kernel) == 0))
    0.5
    """
    if isinstance(sparsity, bool) or not 0 <= sparsity < 1:
        raise ValueError(f"`sparsity` must be in [0, 1). Received: sparsity={sparsity!r}")
    pruned = copy_with_weights(model)
    kernels = [weight for weight in pruned.weights if _is_block_kernel(weight)]
    if not kernels:
        raise ValueError(
            f"Model {model.name!r} has no kernels in layers named block_0, block_1, …, as those of "
            "`keras_vit` have: there is nothing to prune."
        )
    for kernel in kernels:
        values = np.array(kernel)
        count = round(sparsity * values.size)
        smallest = np.argpartition(np.abs(values), count, axis=None)[:count]
        values.flat[smallest] = 0
        kernel.assign(values)
    return pruned


def _is_block_kernel(weight):
    return weight.path.startswith("block_") and weight.path.endswith("/kernel")
