"""Constants of a model folded into its weights, for serving."""

import itertools

import keras
import numpy as np

from keras_vit.export.copying import copy_with_weights, has_adapters, quantization_modes
from keras_vit.layers.image_preprocessing import ImagePreprocessing
from keras_vit.layers.patch_encoder import PatchEncoder
from keras_vit.layers.patches import Patches
from keras_vit.layers.transformer_block import TransformerBlock


def fold_constants(model):
    """A copy of a Vision Transformer that makes two passes over its values fewer.

    The scaling of the queries goes into their weights, and that of the pixels, in float32, into
    the patch projection, where nothing else reads them. The numbers are the same up to rounding.
    Models of other kinds, quantised ones, and those with adapters (LoRA) that are not merged are
    handed back as they are.
    """
    blocks = [layer for layer in model.layers if isinstance(layer, TransformerBlock)]
    if not blocks or quantization_modes(model) or has_adapters(model):
        return model
    folded = copy_with_weights(model)
    layers = {layer.name: layer for layer in folded.layers}
    for block in blocks:
        _fold_query_scale(layers[block.name].attention)
    chain = [layers.get(name) for name in ("preprocessing", "patches", "patch_encoder")]
    scaling, _, encoder = chain
    if (
        all(map(isinstance, chain, (ImagePreprocessing, Patches, PatchEncoder)))
        and _is_read_in_turn(chain, folded.outputs)
        and encoder.use_bias
        and encoder.compute_dtype == scaling.compute_dtype == "float32"
    ):
        _fold_scaling(encoder, scaling)
    return folded


def _is_read_in_turn(layers, outputs):
    """Whether each layer of a fresh model is called once, and read by the next one alone."""
    outputs = {id(output) for output in outputs}
    return all(len(layer._inbound_nodes) == 1 for layer in layers) and all(
        [node.operation for node in layer._outbound_nodes] == [reader]
        and id(layer.output) not in outputs
        for layer, reader in itertools.pairwise(layers)
    )


def _fold_query_scale(attention):
    scale, width = attention.query_scale, attention.num_heads * attention.head_dim
    attention.query_scale = 1.0
    if attention.qk_norm:
        for weight in attention.query_norm.weights:
            weight.assign(weight * scale)
        return
    of_queries = np.where(np.arange(3 * width) < width, scale, 1.0)
    for weight in attention.query_key_value.weights:
        weight.assign(weight * keras.ops.cast(of_queries, weight.dtype))
    if attention.query_value_bias is not None:
        bias = attention.query_value_bias
        bias.assign(bias * keras.ops.cast([[scale], [1.0]], bias.dtype))


def _fold_scaling(encoder, scaling):
    kernel, bias = map(np.array, encoder.projection.get_weights())
    # Channels are the last of a patch's axes.
    mean, std = (np.resize(values, len(kernel)) for values in (scaling.mean, scaling.std))
    kernel = kernel.astype("float64") / std[:, None]
    encoder.projection.set_weights([kernel / 255.0, bias - mean @ kernel])
    # Neither scale nor offset is left.
    scaling.mean, scaling.std = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
