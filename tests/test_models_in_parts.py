"""Inference in parts that run beside each other answers as the model does."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

import keras_vit
from keras_vit.models import VisionTransformerConfig, inference_function, vision_transformer
from keras_vit.models.in_parts import with_images_in_parts, with_tokens_in_parts

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the parts are for TensorFlow's threads"
)

CONFIG = VisionTransformerConfig(
    patch_size=4, hidden_size=32, depth=3, mlp_dim=64, num_heads=4, image_size=32, num_classes=5
)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, size=(6, 32, 32, 3)).astype("float32")


@pytest.fixture
def threads(monkeypatch):
    """Says what `inference_function` finds: threads for each operation, and for operations."""
    import tensorflow as tf

    def are(within, between):
        for name, count in (("intra", within), ("inter", between)):
            monkeypatch.setattr(
                tf.config.threading, f"get_{name}_op_parallelism_threads", lambda count=count: count
            )

    return are


def model_of(**fields):
    keras.utils.set_random_seed(0)
    model = vision_transformer(dataclasses.replace(CONFIG, **fields))
    for variable in model.weights:  # Nothing that is zero, as new heads are.
        variable.assign(RNG.normal(0.0, 0.1, variable.shape))
    return model


def matrix_products(function, batch):
    """How many products of two batches of matrices, as attention has, a batch is put through."""
    import tensorflow as tf

    graph = tf.function(function).get_concrete_function(tf.TensorSpec(batch.shape)).graph
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return sum(node.op.startswith("BatchMatMul") for node in nodes)


def assert_same(found, expected):
    keras.tree.map_structure(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), found, expected
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pooling": "avg"},
        {"pooling": None, "include_top": False},
        {"distillation_token": True, "head_output": "both"},
        {"pooling": "map", "class_token": False, "register_tokens": 3},
        {"qk_norm": True, "layer_scale": 0.5, "pre_norm": True, "representation_size": 8},
        {"positions": "rope"},
        {"positions": "relative", "qkv_bias": "query_value"},
        {"window_size": 2, "global_blocks": 1},
        {"token_merging": 4},
        {"token_keep_rate": 0.7},
        {"stem_blocks": (1, 1), "stem_width": 32, "patch_size": 1},
    ],
    ids=str,
)
def test_parts_answer_as_the_model(fields, threads):
    model = model_of(**fields)
    threads(within=1, between=3)
    infer = inference_function(model)
    for count in (6, 2):  # A multiple of three, and none.
        assert_same(infer(IMAGES[:count]), model(IMAGES[:count], training=False))


@pytest.mark.parametrize(
    ("within", "between", "images", "parts"),
    [
        (1, 3, 6, 3),  # Each thread its images.
        (1, 2, 1, 2),  # Each thread its tokens.
        (1, 8, 1, 2),  # Of which a part has at least 24.
        (4, 4, 6, 2),  # Operations have more threads: images in two parts,
        (4, 4, 1, 1),  # tokens in one.
        (4, 1, 6, 1),
        (1, 1, 6, 1),
    ],
)
def test_the_threads_decide_on_the_parts(within, between, images, parts, threads):
    model, batch = model_of(), IMAGES[:images]
    threads(within, between)
    whole = 2 * CONFIG.depth
    found = matrix_products(inference_function(model), batch)
    # The last block computes one token, which one part has.
    is_last_once = parts > 1 and images == 1
    assert found == (2 * (parts * (CONFIG.depth - 1) + 1) if is_last_once else parts * whole)


def test_the_environment_says_how_many_threads_there_are(threads, monkeypatch):
    threads(within=0, between=0)
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "3")
    assert matrix_products(inference_function(model_of()), IMAGES) == 3 * 2 * CONFIG.depth


class WithoutMean(keras.layers.Layer):
    """What an image's features are beside those of its batch."""

    def call(self, features):
        return features - ops.mean(features, axis=0)


@pytest.mark.parametrize(
    "change",
    [
        WithoutMean(),
        lambda features: features - ops.mean(features, axis=0),
        keras.layers.Activation(lambda features: features / ops.max(features)),
        keras.layers.Activation(keras.layers.Softmax(axis=0)),
        keras.layers.Dense(5, activation=lambda features: features - features[:1]),
    ],
    ids=["layer", "operations", "activation", "softmax", "dense layer's activation"],
)
@pytest.mark.parametrize("nested", [False, True])
def test_images_that_are_compared_stay_together(change, nested, threads):
    threads(within=1, between=3)
    model = model_of()
    backbone = model if nested else keras.Model(model.input, model.layers[-2].output)
    graph = keras.Model(model.input, change(backbone(backbone.input) if nested else model.output))
    assert_same(inference_function(graph)(IMAGES), graph(IMAGES, training=False))
    # As one layer of another model, too.
    outer = keras.Model(graph.input, graph(graph.input) * 2)
    assert_same(inference_function(outer)(IMAGES), outer(IMAGES, training=False))


def clips(features):
    """Of each clip of three images, and what is made of that."""
    return keras.layers.Dense(3)(ops.mean(ops.reshape(features, (-1, 3, 5)), axis=1))


def weighted(features):
    """Each image's weight beside the others' of its batch."""
    shares = keras.layers.Activation("softmax")(keras.layers.Dense(1)(features)[:, 0])
    return features * shares[:, None]


def about_the_mean(features):
    mean = ops.mean(features, axis=0, keepdims=True)
    return features - keras.layers.Dense(5)(mean)


@pytest.mark.parametrize("head", [clips, weighted, about_the_mean])
@pytest.mark.parametrize("within", [1, 4])
def test_what_is_made_of_compared_images_stays_whole(head, within, threads):
    threads(within, between=3)
    model = model_of()
    graph = keras.Model(model.input, head(model.output))
    assert_same(inference_function(graph)(IMAGES), graph(IMAGES, training=False))


class Centred(keras.layers.LayerNormalization):
    def call(self, features):
        return super().call(features - ops.mean(features, axis=0, keepdims=True))


def test_norms_over_images_stay_whole(threads):
    threads(within=1, between=3)
    model = model_of()
    factors = keras.Input((), name="factors")
    normed = keras.layers.LayerNormalization(center=False, scale=False)(factors)
    inputs = [IMAGES, np.arange(6.0, dtype="float32")]
    for graph in (
        keras.Model([model.input, factors], model.output * normed[:, None]),
        keras.Model([model.input, factors], Centred()(model.output) * factors[:, None]),
    ):
        assert_same(inference_function(graph)(inputs), graph(inputs, training=False))


def test_constants_of_a_batch_stay_whole(threads):
    threads(within=1, between=2)
    attention = keras_vit.layers.MultiHeadSelfAttention(4)
    inputs = keras.Input((65, 32))
    tokens = model_of().get_layer("block_0")(inputs)
    sizes = RNG.uniform(1, 2, size=(4, 65)).astype("float32")
    graph = keras.Model(inputs, attention(tokens, sizes=sizes))
    batch = RNG.normal(size=(4, 65, 32)).astype("float32")
    assert_same(inference_function(graph)(batch), graph(batch, training=False))


@pytest.mark.parametrize("images", [6, 1])
def test_names_of_a_loaded_model_are_no_hindrance(images, threads, tmp_path):
    threads(within=1, between=2)
    keras.utils.clear_session()
    model = model_of()
    both = keras.layers.Concatenate(name="in_parts_9")([model.output, model.output])
    keras.Model(model.input, ops.split(both, [2], axis=1)[0]).save(tmp_path / "model.keras")
    keras.utils.clear_session()  # As in a new process.
    loaded = keras.models.load_model(tmp_path / "model.keras")
    batch = IMAGES[:images]
    assert_same(inference_function(loaded)(batch), loaded(batch, training=False))


def test_a_sequential_model_keeps_all_outputs(threads):
    threads(within=1, between=3)
    model = model_of(distillation_token=True, head_output="both")
    graph = keras.Sequential([keras.Input((32, 32, 3)), model])
    found = inference_function(graph)(IMAGES)
    assert found.keys() == {"logits_cls", "logits_dist"}
    assert_same(found, graph(IMAGES, training=False))


class Tripled(keras.Model):
    def call(self, inputs, training=None):
        return super().call(inputs, training=training) * 3


@pytest.mark.parametrize("nested", [False, True])
def test_a_class_of_ones_own_keeps_its_call(nested, threads):
    threads(within=1, between=3)
    model = model_of(pooling="avg")
    graph = Tripled(model.input, model.output)
    if nested:
        graph = keras.Model(model.input, graph(model.input) + 1)
    for batch in (IMAGES, IMAGES[:1]):
        assert_same(inference_function(graph)(batch), graph(batch, training=False))


def test_inputs_of_any_kind_are_taken(threads):
    threads(within=1, between=2)
    model = model_of(pooling="avg")
    fixed = keras.Input((32, 32, 3), batch_size=1)
    factor = keras.Input(batch_shape=())
    more = keras.Input((1,), optional=True)
    for graph, inputs in (
        (keras.Model(fixed, model(fixed)), IMAGES[:4]),
        (keras.Model([model.input, factor], model.output * factor), [IMAGES, np.float32(2)]),
        (keras.Model([model.input, more], model.output * 2), [IMAGES, None]),
        (keras.Model([model.input, more], model.output * 2), [IMAGES[:1], None]),
    ):
        assert_same(inference_function(graph)(inputs), graph(inputs, training=False))


def test_a_sequential_model_is_built_by_what_it_is_given(threads):
    threads(within=1, between=2)
    tokens = RNG.normal(size=(2, 5, 8)).astype("float32")
    graph = keras.Sequential([keras_vit.layers.TransformerBlock(2, 16), keras.layers.Dense(3)])
    found = inference_function(graph)(tokens)
    assert_same(found, graph(tokens, training=False))


def test_the_weights_are_the_models():
    model = model_of()
    for divided in (with_images_in_parts(model, 2), with_tokens_in_parts(model, 2)):
        assert {id(weight) for weight in divided.weights} == {id(w) for w in model.weights}


def test_models_inside_of_others_are_divided(threads):
    threads(within=1, between=3)
    model = model_of()
    inputs = keras.Input((32, 32, 3))
    for graph in (
        keras.Model(inputs, keras.layers.Dense(2)(model(inputs))),
        keras.Sequential([model, keras.layers.Dense(2)]),
    ):
        infer = inference_function(graph)
        assert_same(infer(IMAGES), graph(IMAGES, training=False))
        assert matrix_products(infer, IMAGES) == 3 * 2 * CONFIG.depth


def test_more_tokens_than_a_part_has_are_computed(threads):
    threads(within=1, between=2)
    model = model_of()
    tokens = keras.Input((65, 32))
    for options in ({"output_tokens": 50}, {"attended_tokens": 10}, {"output_tokens": 3}):
        graph = keras.Model(tokens, model.get_layer("block_1")(tokens, **options))
        batch = RNG.normal(size=(1, 65, 32)).astype("float32")
        assert_same(inference_function(graph)(batch), graph(batch, training=False))


def test_inputs_of_which_one_is_not_a_multiple_are_not_divided(threads):
    threads(within=1, between=2)
    model = model_of()
    factor = keras.Input((), batch_size=1)
    graph = keras.Model([model.input, factor], model.output * factor)
    inputs = [IMAGES, np.array([2.0], "float32")]
    assert_same(inference_function(graph)(inputs), graph(inputs, training=False))


def test_trained_weights_are_those_of_the_parts(threads):
    threads(within=1, between=2)
    model = model_of()
    infer = inference_function(model)
    for batch in (IMAGES, IMAGES[:1]):
        before = np.asarray(infer(batch))
        model.get_layer("head").bias.assign_add(np.arange(5.0))
        np.testing.assert_allclose(infer(batch), before + np.arange(5.0), atol=1e-4)
