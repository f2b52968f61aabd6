"""The matrix products of a model alone: what the machine could do, measured in the same run.

A step computes every product of a forward pass once, with weights of its own for each layer, so
that they come from memory as they do in the model. Nothing lies between the products.
"""

import dataclasses

import numpy as np

from benchmarks.worker import Step


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product, or a batch of equal ones.

    Args:
        left: Shape of the left matrices.
        right: Shape of the right ones.
        times: How often the model computes it.
        weights: Whether the right one is a weight, and so another in each layer.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    times: int
    weights: bool = True

    @property
    def flops(self):
        """Floating-point operations, all times together: two a multiply-add."""
        return 2 * self.times * int(np.prod(self.left)) * self.right[-1]


def products_of(config, batch_size):
    """The products of a forward pass of a Vision Transformer.

    Args:
        config: A `VisionTransformerConfig` without a stem.
        batch_size: Number of images.

    Returns:
        A list of `Product`.
    """
    patches = int(np.prod(config.grid))
    tokens, width = patches + config.prefix_tokens, config.hidden_size
    pixels = int(np.prod(config.patch_size)) * 3
    heads, depth = batch_size * config.num_heads, config.depth
    rows = batch_size * tokens
    queries, keys = (heads, tokens, width // config.num_heads), (heads, width // config.num_heads)
    scores = (heads, tokens, tokens)
    return [
        Product((batch_size * patches, pixels), (pixels, width), 1),
        Product((rows, width), (width, 3 * width), depth),
        Product(queries, (*keys, tokens), depth, weights=False),
        Product(scores, queries, depth, weights=False),
        Product((rows, width), (width, width), depth),
        Product((rows, width), (width, config.mlp_dim), depth),
        Product((rows, config.mlp_dim), (config.mlp_dim, width), depth),
        Product((batch_size, width), (width, config.num_classes), 1),
    ]


def products(job):
    """All products of a job's model in its framework."""
    shapes = [Product(**fields) for fields in job["products"]]
    return {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[job["framework"]](
        shapes, job["dtype"]
    )


def _operands(shapes, convert):
    """(left, right) of each product in the order of a pass, layer by layer."""
    random = np.random.default_rng(0)

    def draw(shape):
        return convert(random.standard_normal(shape, "float32"))

    lefts = [draw(product.left) for product in shapes]
    shared = [None if product.weights else draw(product.right) for product in shapes]
    pairs = []
    for layer in range(max(product.times for product in shapes)):
        for product, left, right in zip(shapes, lefts, shared, strict=True):
            if layer < product.times:
                pairs.append((left, draw(product.right) if right is None else right))
    return pairs


def _step(multiply, pairs, to_numpy, wait):
    def launch():
        for left, right in pairs:
            result = multiply(left, right)
        return result

    return Step(launch=launch, outputs=lambda: to_numpy(launch()), wait=wait)


def _tensorflow(shapes, dtype):
    import tensorflow as tf

    pairs = _operands(shapes, lambda array: tf.cast(array, dtype))
    return _step(
        tf.matmul, pairs, lambda x: tf.cast(x, "float32").numpy(), lambda x: x[..., :1].numpy()
    )


def _jax(shapes, dtype):
    import jax
    import jax.numpy as jnp

    pairs = _operands(shapes, lambda array: jnp.asarray(array, dtype))
    multiply = jax.jit(jnp.matmul)
    on_cpu = jax.devices()[0].platform == "cpu"

    def alone(left, right):
        # On a CPU JAX would begin the next product beside this one.
        return jax.block_until_ready(multiply(left, right))

    return _step(
        alone if on_cpu else multiply,
        pairs,
        lambda x: np.asarray(x.astype("float32")),
        jax.block_until_ready,
    )


def _torch(shapes, dtype):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pairs = _operands(
        shapes, lambda array: torch.from_numpy(array).to(device, getattr(torch, dtype))
    )

    def wait(result):
        if device == "cuda":
            torch.cuda.synchronize()

    return _step(torch.matmul, pairs, lambda x: x.float().cpu().numpy(), wait)
