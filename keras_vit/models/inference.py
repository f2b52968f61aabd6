"""A model as a function for inference."""

import contextlib
import os
import threading
from typing import NamedTuple

import keras

from keras_vit.layers.one_pass import has_cpus_alone, in_this_process
from keras_vit.models.in_parts import with_images_in_parts, with_tokens_in_parts
from keras_vit.models.unread_tokens import without_unread_tokens


def inference_function(model):
    """`model` as a function from inputs to outputs, in the fastest way of its backend.

    For inference in this process: it leaves out the tokens that nobody reads. JAX compiles it,
    PyTorch runs it without gradients. On TensorFlow XLA compiles all of it, and on a CPU, of a
    model in shorter floats, whose products are slower under XLA, or one that is computed in parts:
    the scaling of pixels, norms, the merging and pruning of tokens, and softmax where TensorFlow's
    own rounds more than once.
    TensorFlow Serving does not run such functions; `keras_vit.export` writes what it runs. Each new
    shape of the inputs is compiled, and kept: fill up the last batch of many.

    On a CPU TensorFlow is faster with `TF_NUM_INTRAOP_THREADS=1` in the environment, of which
    training has nothing: each thread then has images of its own, or tokens where the batch is no
    multiple of the threads. Otherwise the images are computed in two parts, if they are even.

    The weights stay those of the model: after further training the function answers by the new
    ones. Where layers change (`enable_lora`, `quantize`), make it anew. With TensorFlow on a CPU
    that has bfloat16 a model of `dtype="bfloat16"` is the fastest; `"mixed_bfloat16"` makes
    bfloat16 of its weights in every call.

    Args:
        model: A model of `vision_transformer`, or any functional one.

    Returns:
        A function of what the model takes, an array or a tensor, or several in its structure, to
        the tensors that the model answers with.

    Example:

    >>> import numpy as np
    >>> from keras_vit.models import VisionTransformerConfig, vision_transformer
    >>> config = VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=2, mlp_dim=64, num_heads=4, image_size=16
    ... )
    >>> infer = inference_function(vision_transformer(config))
    >>> infer(np.zeros((2, 16, 16, 3), "float32")).shape == (2, 1000)
    True
    """
    graph = without_unread_tokens(model)
    return _COMPILERS[keras.backend.backend()](graph)


def _tensorflow_function(graph):
    import tensorflow as tf

    layers = graph._flatten_layers()
    are_short = any(layer.compute_dtype in ("bfloat16", "float16") for layer in layers)
    are_for_xla = all(layer.supports_jit for layer in layers)
    on_cpus = has_cpus_alone()
    # By the inputs alone: TensorFlow's own look-up goes through all weights, each time.
    programs = {}
    # Layers are called anew, which threads must not do at the same time.
    making = threading.RLock()
    # By how they are divided: a clone's calls stay with the layers.
    graphs: dict[tuple, keras.Model] = {}

    def answer(inputs):
        # Arrays would be compiled for one by one.
        inputs = keras.tree.map_structure(as_tensor, inputs)
        kind = repr((keras.tree.map_structure(kind_of, inputs), tf.inside_function()))
        if kind not in programs:
            with making:
                programs[kind] = programs.get(kind) or program_for(inputs)
        function, executor = programs[kind]
        with executor():
            return function(inputs)

    def program_for(inputs):
        """A function compiled for such inputs, and the context that says how TensorFlow runs it."""
        sizes = [
            None if x is None or not x.shape.rank else x.shape[0]
            for x in keras.tree.flatten(inputs)
        ]
        division = _division(sizes) if on_cpus else (_whole, 1)
        if division not in graphs:
            how, parts = division
            graphs[division] = how(graph, parts)
        divided = graphs[division]
        is_whole = divided is graph
        is_one_program = are_for_xla and not (on_cpus and (are_short or not is_whole))

        def infer(inputs):
            with in_this_process():
                return divided(inputs, training=False)

        compiled = tf.function(infer, jit_compile=is_one_program, autograph=False)
        executor = contextlib.nullcontext
        if on_cpus and is_whole and not is_one_program and not tf.inside_function():
            # The thread that calls launches all operations, which TensorFlow would hand from thread
            # to thread; what one of them computes is divided among the cores all the same.
            executor = _launched_by_the_caller
        with executor():
            return compiled.get_concrete_function(inputs), executor

    def as_tensor(value):
        return value if value is None or tf.is_tensor(value) else tf.convert_to_tensor(value)

    def kind_of(value):
        return None if value is None else (type(value), value.shape, value.dtype)

    return answer


def divided_among_threads(model, batch_sizes):
    """`model` for inference, in the parts that TensorFlow's threads compute beside each other.

    Where an operation takes one thread (`TF_NUM_INTRAOP_THREADS=1` in the environment, or
    `tf.config.threading`), each thread has a part of the images, or, of an image that is alone,
    of the tokens. Where operations are divided themselves, two parts of the images take turns: one
    uses the threads that the other leaves between two operations.

    Args:
        model: A model of `vision_transformer`, or any functional one.
        batch_sizes: Numbers of images of all inputs; None for one that is not known.

    Returns:
        A functional model, not compiled, that shares the weights and computes the same numbers;
        `model` itself on accelerators, other backends and single threads, and where it has no
        blocks that can be divided.
    """
    if keras.backend.backend() != "tensorflow" or not has_cpus_alone():
        return model
    how, parts = _division(batch_sizes)
    return how(model, parts)


def _division(batch_sizes):
    """The function that divides a model for batches of such sizes, and the number of parts."""
    threads = _threads()
    takes_one = threads.within == 1
    parts = threads.between if takes_one else min(threads.between, 2)
    if parts > 1 and all(size and size % parts == 0 for size in batch_sizes):
        return with_images_in_parts, parts
    return (with_tokens_in_parts, parts) if parts > 1 and takes_one else (_whole, 1)


def _whole(model, parts):
    return model


def _launched_by_the_caller():
    import tensorflow as tf

    return tf.experimental.function_executor_type("SINGLE_THREADED_EXECUTOR")


class _Threads(NamedTuple):
    """How many TensorFlow has: for the work of an operation, and for operations."""

    within: int
    between: int


def _threads():
    import tensorflow as tf

    def number(configured, variable):
        stated = os.environ.get(variable, "")
        return configured or (int(stated) if stated.isdecimal() else 0) or cores

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return _Threads(
        number(tf.config.threading.get_intra_op_parallelism_threads(), "TF_NUM_INTRAOP_THREADS"),
        number(tf.config.threading.get_inter_op_parallelism_threads(), "TF_NUM_INTEROP_THREADS"),
    )


def _jax_function(graph):
    import jax

    # In an order that does not depend on which of them train.
    variables = graph.variables

    @jax.jit
    def infer(values, inputs):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return graph(inputs, training=False)

    return lambda inputs: infer([variable.value for variable in variables], inputs)


def _torch_function(graph):
    import torch

    def answer(inputs):
        with torch.inference_mode():
            return graph(inputs, training=False)

    return answer


_COMPILERS = {"tensorflow": _tensorflow_function, "jax": _jax_function, "torch": _torch_function}
