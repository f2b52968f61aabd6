"""The same outputs, computed in parts that may run beside each other."""

import inspect
import itertools

import keras
from keras import ops

from keras_vit.layers.transformer_block import TransformerBlock
from keras_vit.models.cloning import uncompiled_clone

# With less, products are slow, and there are more operations than threads gain.
_FEWEST_TOKENS = 24


def with_images_in_parts(model, parts):
    """`model` for inference, its layers called for so many equal parts of a batch.

    TensorFlow computes operations that do not need each other at the same time. Where it divides
    each operation among the cores instead, all wait for the last one, at each operation.

    Args:
        model: A model of `vision_transformer`, or any functional one.
        parts: Number of parts; batches must have a multiple of it.

    Returns:
        A functional model, not compiled, that shares the weights and computes the same numbers.
        Layers that may compare images, all but keras_vit's and a few of Keras', are called for
        whole batches, and so is what follows them; `model` itself where its blocks would be, or
        where its inputs are no batches of any size.

    Example:

    >>> import numpy as np
    >>> from keras_vit.models import VisionTransformerConfig, vision_transformer
    >>> config = VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=2, mlp_dim=64, num_heads=4, image_size=16
    ... )
    >>> divided = with_images_in_parts(vision_transformer(config), 2)
    >>> divided(np.zeros((4, 16, 16, 3), "float32")).shape == (4, 1000)
    True
    """
    if not any(_has_blocks(x) and _works_on_each_image(x) for x in _operations(model)):
        return model
    if not all(tuple(x.shape[:1]) == (None,) for x in model.inputs):
        return model
    divided = _Divided(model, lambda images: ops.split(images, parts, axis=0), axis=0)

    def call(layer, *arguments, **options):
        whole = keras.tree.flatten((arguments, options))
        if not _works_on_each_image(layer) or not all(map(divided.may_be_parted, whole)):
            return layer(*arguments, **options)
        outputs = []
        for part in zip(*(divided.parts(x, parts) for x in whole), strict=True):
            own_arguments, own_options = keras.tree.pack_sequence_as((arguments, options), part)
            outputs.append(layer(*own_arguments, **own_options))
        return keras.tree.map_structure(lambda *parts: divided.joined(parts), *outputs)

    return uncompiled_clone(model, clone_function=lambda layer: layer, call_function=call)


def with_tokens_in_parts(model, parts):
    """`model` for inference, its blocks called for tokens in so many parts.

    Like `with_images_in_parts` for batches of any size, a single image above all: parts of the
    tokens wait for each other's keys and values alone, once in each block.

    Args:
        model: A model of `vision_transformer`, or any functional one.
        parts: Number of parts; fewer where they would have less than 24 tokens.

    Returns:
        A functional model, not compiled, that shares the weights and computes the same numbers;
        `model` itself where no block allows it: those with positions or windows, that merge or
        prune tokens, have too few, or are inside of another model.

    Example:

    >>> import numpy as np
    >>> from keras_vit.models import VisionTransformerConfig, vision_transformer
    >>> config = VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=2, mlp_dim=64, num_heads=4, image_size=32
    ... )
    >>> divided = with_tokens_in_parts(vision_transformer(config), 2)
    >>> divided(np.zeros((1, 32, 32, 3), "float32")).shape == (1, 1000)
    True
    """
    if not any(map(_takes_parts, _operations(model))):
        return model
    is_divided = False

    def bounds(tokens):
        count = tokens.shape[1] or 0
        number = min(parts, count // _FEWEST_TOKENS)
        return [count * part // number for part in range(1, number)]

    divided = _Divided(model, lambda tokens: ops.split(tokens, bounds(tokens), axis=1), axis=1)

    def call(layer, *arguments, **options):
        nonlocal is_divided
        is_plain = len(arguments) == 1 and not options.keys() - {"output_tokens"}
        if not _takes_parts(layer) or not is_plain:
            return layer(*arguments, **options)
        (tokens,), output_tokens = arguments, options.get("output_tokens")
        if min(bounds(tokens), default=0) < (output_tokens or 1):
            return layer(tokens, output_tokens=output_tokens)
        is_divided = True
        in_parts = BlockInParts(layer, output_tokens, name=divided.free_name())
        return divided.joined(in_parts(*divided.parts(tokens, parts)))

    clone = uncompiled_clone(model, clone_function=lambda layer: layer, call_function=call)
    return clone if is_divided else model


class BlockInParts(keras.layers.Layer):
    """`TransformerBlock.call_in_parts` as a layer of a functional model.

    Args:
        block: The block, whose weights it has.
        output_tokens: As of the method.
        name: Name of the layer.
    """

    def __init__(self, block, output_tokens=None, name=None):
        super().__init__(dtype=block.dtype_policy, autocast=False, name=name)
        self.block = block
        self.output_tokens = output_tokens
        self.built = True

    def call(self, *parts):
        return self.block.call_in_parts(parts, self.output_tokens)

    def compute_output_spec(self, *parts):
        if self.output_tokens is None:
            shapes = [part.shape for part in parts]
        else:
            shapes = [(parts[0].shape[0], self.output_tokens, parts[0].shape[2])]
        return [keras.KerasTensor(shape, self.block.compute_dtype) for shape in shapes]


def _operations(model):
    """The steps of a model that is nothing but a graph; none of others."""
    # A class of one's own may have its own `call`.
    if not type(model).__module__.startswith("keras.") or not model.built:
        return ()
    steps = model.layers if isinstance(model, keras.Sequential) else model.operations
    # Keras' copies of a graph do not know that an input may be left out.
    return () if any(getattr(step, "optional", False) for step in steps) else steps


def _has_blocks(operation):
    layers = operation._flatten_layers() if isinstance(operation, keras.Layer) else ()
    return any(isinstance(layer, TransformerBlock) for layer in layers)


def _works_on_each_image(operation):
    """Whether an image's outputs are made of that image alone, as far as is known."""
    if isinstance(operation, keras.Model):
        inner = _operations(operation)
        return bool(inner) and all(map(_works_on_each_image, inner))
    if type(operation) is keras.layers.LayerNormalization:
        return operation.axis in (-1, [-1])
    if type(operation) is keras.layers.Dense:
        return inspect.getmodule(operation.activation) is inspect.getmodule(keras.activations.relu)
    ours = type(operation).__module__.startswith("keras_vit.")
    return ours or type(operation) in (keras.layers.InputLayer, keras.layers.Dropout)


def _takes_parts(layer):
    is_plain = type(layer) is TransformerBlock
    return is_plain and layer.positions is None and layer.window_size is None


class _Divided:
    """What is divided while a graph is called anew, by its tensors' ids."""

    def __init__(self, model, split, axis):
        self._names = {operation.name for operation in _operations(model)}
        self._split = split
        self._axis = axis
        self._parts: dict[int, tuple] = {}

    def free_name(self):
        """A name that no step of the model has: Keras' own may be those of a loaded model."""
        numbers = itertools.count(len(self._names))
        name = next(x for x in (f"in_parts_{n}" for n in numbers) if x not in self._names)
        self._names.add(name)
        return name

    def may_be_parted(self, argument):
        """Whether its first axis is that of the images: of inputs, and of what is joined here."""
        if not isinstance(argument, keras.KerasTensor):
            return not getattr(argument, "shape", ())
        maker = argument._keras_history.operation
        is_input = isinstance(maker, keras.layers.InputLayer) and len(argument.shape) > 1
        return is_input or id(argument) in self._parts

    def parts(self, argument, count):
        """The parts of a tensor; other arguments are the same for each."""
        if not isinstance(argument, keras.KerasTensor):
            return [argument] * count
        if id(argument) not in self._parts:
            parts = self._split(argument)
            parts[0]._keras_history.operation.name = self.free_name()
            # With the tensor, so that no other one gets its id.
            self._parts[id(argument)] = argument, parts
        return self._parts[id(argument)][1]

    def joined(self, parts):
        """The whole of them, which nothing computes where only its parts are asked for."""
        if len(parts) == 1:
            return parts[0]
        whole = ops.concatenate(parts, axis=self._axis)
        whole._keras_history.operation.name = self.free_name()
        self._parts[id(whole)] = whole, parts
        return whole
