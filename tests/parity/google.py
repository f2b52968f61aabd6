"""Google's own JAX code, where it is installed: github.com/google-research/vision_transformer."""

from types import SimpleNamespace

import jax
import numpy as np

BLOCK = "Transformer/encoderblock_0/"


def forward(path, images, resnet=None):
    """What `vit_jax` computes from a .npz file that it reads itself.

    Args:
        path: The file.
        images: (batch, height, width, 3), normalised.
        resnet: (blocks of each stage, width factor) of a hybrid, or None.

    Raises:
        AssertionError: If names or shapes are not those of the model that the file describes.
    """
    from vit_jax import checkpoint, models_vit

    params = checkpoint.load(str(path))
    found = _shapes(params)
    model = models_vit.VisionTransformer(
        num_classes=found["head/bias"][0],
        patches=SimpleNamespace(size=found["embedding/kernel"][:2]),
        hidden_size=found["embedding/bias"][0],
        transformer={
            "num_layers": sum(name.endswith("LayerNorm_0/scale") for name in found),
            "mlp_dim": found[BLOCK + "MlpBlock_0/Dense_0/bias"][0],
            "num_heads": found[BLOCK + "MultiHeadDotProductAttention_0/query/bias"][0],
            "dropout_rate": 0.0,
            "attention_dropout_rate": 0.0,
        },
        representation_size=found.get("pre_logits/bias", (None,))[0],
        classifier="token" if "cls" in found else "gap",
        resnet=resnet and SimpleNamespace(num_layers=resnet[0], width_factor=resnet[1]),
    )
    expected = _shapes(
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]
    )
    assert found == expected, sorted(set(found.items()) ^ set(expected.items()))
    return np.asarray(model.apply({"params": params}, images, train=False))


def _shapes(tree, prefix=""):
    result = {}
    for name, value in tree.items():
        nested = hasattr(value, "items")
        result |= _shapes(value, f"{prefix}{name}/") if nested else {prefix + name: value.shape}
    return result
