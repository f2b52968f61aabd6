"""The layout of weights over devices; computed in a process of its own with eight logical ones."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from parameters import slow_except

from keras_vit.models import VARIANTS, VisionTransformerConfig, layout_map, vision_transformer

CONFIG = VisionTransformerConfig(
    patch_size=4, hidden_size=16, depth=2, mlp_dim=32, num_heads=4, image_size=8, num_classes=5
)


def mesh(*shape, axes=("batch", "model")):
    devices = [f"cpu:{number}" for number in range(int(np.prod(shape)))]
    return keras.distribution.DeviceMesh(shape, axes, devices)


def rows(size):
    names = [name for name in VARIANTS if name.startswith(f"vit_{size}")]
    assert names
    return names


@pytest.mark.parametrize("name", [name for size in "lhg" for name in rows(size)])
@pytest.mark.parametrize("parts", slow_except([2, 4, 8], fast=[8]))
def test_l_h_and_g_are_divided(name, parts):
    config = VisionTransformerConfig(**VARIANTS[name])
    layouts = layout_map(config, mesh(8 // parts, parts))
    model = vision_transformer(CONFIG)
    divided = {weight.path for weight in model.weights if layouts[weight.path] is not None}
    blocks = [w.path for w in model.weights if w.path.startswith("block_") and len(w.shape) == 2]
    assert len(blocks) == 8 and divided >= set(blocks)
    assert not any("norm" in path or path.startswith(("head", "patch")) for path in divided)


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match=r"8 devices, .* num_heads=4 evenly. Choose 4 devices"):
        layout_map(CONFIG, mesh(1, 8))
    with pytest.raises(ValueError, match=r"axes 'batch' and 'model'. Received: \('x', 'model'\)"):
        layout_map(CONFIG, mesh(2, 4, axes=("x", "model")))


PROGRAM = """
    import sys
    import keras, numpy as np
    sys.path.insert(0, {tests!r})
    from test_models_layout import CONFIG
    from keras_vit.finetune import SGD
    from keras_vit.models import layout_map, vision_transformer

    def losses(batches):
        keras.utils.set_random_seed(0)
        model = vision_transformer(CONFIG)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(SGD(0.5, global_clipnorm=1.0), loss)
        return model, [float(model.train_on_batch(*batch)) for batch in batches]

    random = np.random.default_rng(0)
    batches = [
        (random.integers(0, 256, (8, 8, 8, 3)).astype("uint8"), random.integers(0, 5, 8))
        for _ in range(5)
    ]
    _, expected = losses(batches)
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout_map(CONFIG, mesh))
    )
    model, found = losses(batches)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    weights = {{weight.path: weight for weight in model.weights}}
    velocities = dict(zip((w.path for w in model.weights), model.optimizer.velocities))
    for path, shape in (
        ("block_1/attention/query_key_value/kernel", (16, 12)),
        ("block_1/attention/projection/kernel", (4, 16)),
        ("block_1/mlp/expansion/kernel", (16, 8)),
        ("block_1/mlp/projection/kernel", (8, 16)),
        ("block_1/mlp/expansion/bias", (8,)),
        ("head/kernel", (16, 5)),
    ):
        for variable in (weights[path], velocities[path]):
            assert variable.value.addressable_shards[0].data.shape == shape, (path, variable)
"""


@pytest.mark.slow
def test_a_divided_model_trains_as_one_device_does():
    program = textwrap.dedent(PROGRAM.format(tests=os.path.dirname(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
