"""What a model's blocks hand on, taken apart: patches as a grid, the other tokens by name."""

import math

import keras
from keras import ops

from keras_vit.inspection.blocks import SharedLayers, block_indices, config_with_places


def features(model, blocks=None, *, norm=False, blocks_only=False):
    """A model from images to the tokens after each block, and to what the head takes.

    It shares the weights of `model`, which stays as it is; nothing is copied.

    Args:
        model: A model that keras_vit built, possibly saved and loaded since.
        blocks: The blocks to look at: an int, a sequence of them (negative ones count from the
            end), or None for all.
        norm: Whether the encoder's last norm is applied to the blocks' outputs too, as linear
            probes on DINOv2 take them.
        blocks_only: Whether to leave out `tokens` and `pre_logits`; the images then run no further
            than the last block asked for.

    Returns:
        A `keras.Model` from images as `model` takes them to a dict:

        - `"block_0"`, …: the output of that block, a dict of `"grid"` `(batch, rows, columns,
          hidden_size)`, and, where the model has them, `"class_token"` and
          `"distillation_token"` `(batch, hidden_size)`, `"register_tokens"` `(batch, registers,
          hidden_size)`;
        - `"tokens"`: such a dict of the encoder's output, after the last norm where that precedes
          the pooling;
        - `"pre_logits"`: what the head takes, or would take where there is none; for a
          distilled model what the class token's takes, and `"pre_logits_distillation"` the other's.

    Raises:
        ValueError: If `model` is no Vision Transformer of keras_vit, merges, prunes or fills up
            tokens, does not compute all tokens of a block or has not a block asked for, or if
            `norm` is asked for and the norm follows the pooling.

    Example:

    >>> import numpy as np
    >>> from keras_vit.models import VisionTransformerConfig, vision_transformer
    >>> model = vision_transformer(VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=3, mlp_dim=64, num_heads=4, image_size=(16, 32)
    ... ))
    >>> outputs = features(model, blocks=[-1])(np.zeros((2, 16, 32, 3), "float32"))
    >>> sorted(outputs)
    ['block_2', 'pre_logits', 'tokens']
    >>> outputs["block_2"]["grid"].shape == (2, 4, 8, 32)
    True
    """
    config = config_with_places(model)
    indices = block_indices(blocks, config.depth)
    names = {layer.name for layer in model.layers}
    if norm and "encoder_norm" not in names:
        raise ValueError(
            "`norm=True` needs a norm that precedes the pooling. Received: "
            f"model={model.name!r}, whose norm follows it (pool_norm)"
        )
    outputs = {}
    for index in indices:
        tokens = model.get_layer(f"block_{index}").output
        if norm:
            encoder_norm = model.get_layer("encoder_norm")
            tokens = SharedLayers([encoder_norm], encoder_norm)(tokens)
        outputs[f"block_{index}"] = _parts(tokens, config)
    if not blocks_only:
        last = "encoder_norm" if "encoder_norm" in names else f"block_{config.depth - 1}"
        outputs["tokens"] = _parts(model.get_layer(last).output, config)
        outputs["pre_logits"] = _pre_logits(model, names, last)
        if "pool_distillation" in names:
            outputs["pre_logits_distillation"] = model.get_layer("pool_distillation").output
    if not outputs:
        raise ValueError(f"Nothing to look at. Received: blocks={blocks!r}, blocks_only=True")
    return keras.Model(model.input, outputs, name=f"{model.name}_features")


def _pre_logits(model, names, last):
    """What the layer `head` takes; without one, or with one of another name, the top's end."""
    if "head" in names:
        return model.get_layer("head").input
    ends = [name for name in ("pre_logits", "pool_norm", "pool") if name in names]
    return model.get_layer([*ends, last][0]).output


def _parts(tokens, config):
    """[class, distillation, registers…, patches row by row] by name."""
    parts = {}
    count = config.prefix_tokens + math.prod(config.grid)
    if tokens.shape[1] != count:
        raise ValueError(
            f"A block computes {tokens.shape[1]} of the {count} tokens, as the last one of a model "
            "that `without_unread_tokens` made. Expected all of them: look into the model that it "
            "was made from, or, of a file, into keras_vit.from_checkpoint(path)"
        )
    patches = ops.reshape(tokens[:, config.prefix_tokens :], (-1, *config.grid, config.hidden_size))
    first = 0
    for name in ("class_token", "distillation_token"):
        if getattr(config, name):
            parts[name] = tokens[:, first]
            first += 1
    if config.register_tokens:
        parts["register_tokens"] = tokens[:, first : config.prefix_tokens]
    return {"grid": patches, **parts}
