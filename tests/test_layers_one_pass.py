"""What TensorFlow computes in one pass, beside the same operations one by one."""

import math
import os
import pathlib
import subprocess
import sys

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops
from test_layers_gradients import gradients

import keras_vit
from keras_vit.finetune.optimizer import SGD
from keras_vit.layers.activations import training_activation
from keras_vit.layers.image_preprocessing import ImagePreprocessing
from keras_vit.layers.layer_normalization import LayerNormalization
from keras_vit.layers.light_attention import attention_softmax, light_attention
from keras_vit.layers.one_pass import in_one_pass, in_this_process, row_sum

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
only_on_tensorflow = pytest.mark.skipif(
    not ON_TENSORFLOW, reason="JAX compiles by itself, PyTorch's functions are whole"
)


def all_bfloat16():
    return np.arange(2**16, dtype="uint16").view(BFLOAT16)


def assert_rounded(found, exact):
    """`found` is `exact` in bfloat16 to the bit, but where XLA takes small numbers for zero."""
    found, expected = np.asarray(found), exact.astype(BFLOAT16)
    size = np.abs(exact.astype("float32"))
    same = (size == 0) | (size >= np.finfo("float32").tiny)
    assert same.sum() > 65_000
    np.testing.assert_array_equal(found[same].view("uint16"), expected[same].view("uint16"))
    assert np.isnan(found[np.isnan(size)].astype("float32")).all()


def as_array(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


@only_on_tensorflow
def test_every_bfloat16_comes_back():
    numbers = all_bfloat16()
    returned = in_one_pass(lambda x: x)(ops.convert_to_tensor(numbers))
    assert_rounded(returned, numbers)


@only_on_tensorflow
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_results_are_rounded_as_numpy_rounds(share):
    # Between each positive number and the next: a share of the last bit more.
    below = all_bfloat16()[: 2**15]
    wide = below.view("uint16").astype("uint32") << 16
    exact = (wide + np.uint32(share * 2**16)).view("float32")
    exact = np.concatenate([exact, -exact])
    like = -np.zeros(exact.shape, BFLOAT16)  # Changes no number, zeros included.
    rounded = in_one_pass(lambda like, x: like + x)(
        ops.convert_to_tensor(like), ops.convert_to_tensor(exact)
    )
    assert_rounded(rounded, exact)


@only_on_tensorflow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_results_have_the_dtypes_of_the_first_arguments(dtype):
    x = ops.ones((2**15,), dtype)
    factor = ops.convert_to_tensor(np.float32(3))
    product, total = in_one_pass(lambda x, y: (x * 3, y + 1))(x, factor)
    assert (product.dtype, total.dtype) == (x.dtype, factor.dtype)
    np.testing.assert_array_equal(as_array(product), 3)


@pytest.mark.parametrize("size", [48, 2**16])
@pytest.mark.parametrize("shape", [(-1, 2), (2, -1, 8)])
def test_a_row_s_sum_is_that_of_keras(shape, size):
    x = np.random.default_rng(0).normal(100, 1, size=size).astype("float32").reshape(shape)
    sums = in_one_pass(lambda x: x + row_sum(x))(ops.convert_to_tensor(x))
    expected = x + x.astype("float64").sum(-1, keepdims=True)
    np.testing.assert_allclose(as_array(sums), expected, rtol=1e-6)


def big_norm(dtype):
    """A norm, tokens of its dtype of which TensorFlow makes one pass, and what it makes of them."""
    random = np.random.default_rng(0)
    layer = LayerNormalization(epsilon=1e-6, dtype=dtype)
    layer.build((None, None, 192))
    gamma, beta = random.normal(1, 0.3, size=192), random.normal(0, 0.3, size=192)
    layer.set_weights([gamma, beta])
    x = random.normal(5, 3, size=(2, 101, 192)).astype("float32")
    x = ops.cast(ops.convert_to_tensor(x), layer.compute_dtype)
    exact = as_array(x).astype("float64")
    exact -= exact.mean(-1, keepdims=True)
    exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6) * gamma + beta
    return layer, x, exact


# Half of the last bit of the largest numbers, of eight bits or of 24, and some more in float32.
ERRORS = {"float32": 4e-6, "mixed_bfloat16": 2**-7}


@pytest.mark.parametrize("dtype", sorted(ERRORS))
@pytest.mark.parametrize("where", ["anywhere", "this process", "training"])
def test_a_norm_of_many_tokens_is_exact(where, dtype):
    layer, x, exact = big_norm(dtype)
    if where == "this process":
        with in_this_process():
            found = layer(x)
    else:
        found = layer(x, training=where == "training")
    assert keras.backend.standardize_dtype(found.dtype) == layer.compute_dtype
    np.testing.assert_allclose(as_array(found), exact, atol=ERRORS[dtype], rtol=ERRORS[dtype] / 2)


@pytest.mark.parametrize("dtype", sorted(ERRORS))
def test_the_gradient_of_a_norm_of_many_tokens_is_that_of_few(dtype):
    layer, x, _ = big_norm(dtype)
    x = as_array(x)
    factors = np.random.default_rng(1).normal(size=x.shape).astype("float32")

    def gradients_of(rows):
        def function(x, gamma, beta):
            x = ops.cast(x, layer.compute_dtype)
            outputs, _ = layer.stateless_call([gamma, beta], [], x, training=True)
            return ops.sum(ops.cast(outputs, "float32") * ops.convert_to_tensor(factors[:, rows]))

        weights = [ops.convert_to_numpy(weight) for weight in layer.weights]
        return gradients(function, x[:, rows], *weights)

    whole = gradients_of(slice(None))
    parts = [gradients_of(slice(at, at + 1)) for at in range(x.shape[1])]
    tolerance = 2e-6 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(
        whole[0], np.concatenate([part[0] for part in parts], axis=1), atol=tolerance
    )
    for at in (1, 2):
        sums = sum(part[at].astype("float64") for part in parts)
        np.testing.assert_allclose(whole[at], sums, rtol=2e-4, atol=2e-4)


@only_on_tensorflow
def test_one_pass_has_the_gradient_of_its_function_in_bfloat16():
    x = np.random.default_rng(0).normal(size=(2**8, 2**8)).astype("float32")

    def cubes(cube):
        return lambda x: ops.sum(ops.cast(cube(ops.cast(x, "bfloat16")), "float32"))

    (ours,) = gradients(cubes(in_one_pass(lambda x: x * x * x)), x)
    np.testing.assert_allclose(ours, 3 * x**2, rtol=2**-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_of_many_numbers_in_training_is_gelu(dtype):
    x = np.linspace(-8, 8, 2**16).astype("float32").reshape(2**8, -1)
    x = as_array(ops.cast(ops.convert_to_tensor(x), dtype))
    share = np.reshape([0.5 * math.erfc(-v / math.sqrt(2)) for v in x.flat], x.shape)
    gelu = training_activation("gelu")
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype == "float32" else {"rtol": 0.02, "atol": 0.01}
    found = gelu(ops.cast(ops.convert_to_tensor(x), dtype))
    np.testing.assert_allclose(as_array(found), x * share, **tolerance)
    (slope,) = gradients(lambda x: ops.sum(ops.cast(gelu(ops.cast(x, dtype)), "float32")), x)
    density = np.exp(-(x.astype("float64") ** 2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(slope, share + x * density, **tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_large_weight_is_updated_by_the_rule(dtype):
    random = np.random.default_rng(0)
    weight = keras.Variable(random.normal(size=(256, 256)), dtype=dtype)
    optimizer = SGD(learning_rate=0.1, momentum=0.9)
    expected, velocity = as_array(weight).astype("float64"), 0.0
    for _ in range(3):
        gradient = ops.cast(ops.convert_to_tensor(random.normal(size=(256, 256))), dtype)
        optimizer.apply([gradient], [weight])
        velocity = 0.9 * velocity + as_array(gradient)
        expected = expected - 0.1 * velocity
    tolerance = 1e-6 if dtype == "float32" else 0.03
    np.testing.assert_allclose(as_array(weight), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "scale"), [("bfloat16", 1.0), ("bfloat16", 100.0), ("float16", 1.0)]
)
def test_softmax_in_this_process_is_softmax(dtype, scale):
    scores = np.random.default_rng(0).normal(0, scale, size=(2, 4, 70, 71))
    scores[0, 0, 0, :5] = -np.inf  # As a mask leaves them.
    scores = np.asarray(as_array(ops.cast(ops.convert_to_tensor(scores), dtype)), "float64")
    exact = np.exp(scores - scores.max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    with in_this_process():
        found = attention_softmax(ops.cast(ops.convert_to_tensor(scores), dtype))
    # Rounded once; float16 has no numbers between multiples of 2**-24.
    tolerance = (
        {"rtol": 2**-8, "atol": 1e-30} if dtype == "bfloat16" else {"rtol": 2**-11, "atol": 2**-25}
    )
    np.testing.assert_allclose(
        as_array(found), exact, **{name: 1.01 * x for name, x in tolerance.items()}
    )


@only_on_tensorflow
def test_softmax_in_this_process_is_softmax_without_onednn():
    # Read once, when TensorFlow is imported. Its own softmax of bfloat16 is off by 0.1.
    program = "import test_layers_one_pass as tests\n" + "\n".join(
        f"tests.test_softmax_in_this_process_is_softmax({dtype!r}, 1.0)"
        for dtype in ("bfloat16", "float16")
    )
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    folder = pathlib.Path(__file__).parent
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_pixels_are_scaled_in_this_process_as_elsewhere(dtype, pixels):
    images = np.random.default_rng(0).uniform(0, 255, size=(2, 112, 96, 3)).astype(pixels)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scaling = ImagePreprocessing(mean=mean, std=std, dtype=dtype)
    with in_this_process():
        found = scaling(images)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    tolerance = 1e-6 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(
        as_array(found), (images / 255 - mean) / std, rtol=tolerance, atol=1e-6
    )


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch has attention of its own")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("windows", [None, 3])
def test_the_gradient_of_attention_over_many_scores_is_that_of_the_plain_one(dtype, windows):
    random = np.random.default_rng(0)
    shape, mask = (2, 3, 90, 16), None
    if windows:
        shape = (2, 1, windows, 90, 16)
        mask = random.random((windows, 1, 90)) < 0.8  # Of each window other keys are seen.
    arrays = [random.normal(size=shape) for _ in range(3)]
    arrays = [as_array(ops.cast(ops.convert_to_tensor(x), dtype)) for x in arrays]
    factors = ops.convert_to_tensor(random.normal(size=shape).astype("float32"))

    def plain(query, key, value):
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2))
        if windows:
            scores = scores + ops.convert_to_tensor(np.where(mask, 0.0, -1e9).astype("float32"))
        return ops.sum(ops.matmul(ops.softmax(scores, axis=-1), value) * factors)

    def light(*qkv):
        attended = light_attention(*(ops.cast(x, dtype) for x in qkv), mask)
        return ops.sum(ops.cast(attended, "float32") * factors)

    # The largest is 11; in bfloat16 the plain operations are off by 0.17, 0.013 on average.
    most, average = (2e-5, 1e-5) if dtype == "float32" else (0.2, 0.02)
    for found, expected in zip(gradients(light, *arrays), gradients(plain, *arrays), strict=True):
        np.testing.assert_allclose(found, expected, atol=most)
        assert np.sqrt(np.mean((found - expected) ** 2)) < average


CONFIG = keras_vit.models.VisionTransformerConfig(
    patch_size=4, hidden_size=192, depth=2, mlp_dim=256, num_heads=3, image_size=32, num_classes=5
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_bfloat16"])
def test_an_inference_function_answers_as_the_model(dtype):
    keras.utils.set_random_seed(0)
    model = keras_vit.models.vision_transformer(CONFIG, dtype=dtype)
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(192, 5)))
    infer = keras_vit.models.inference_function(model)
    images = np.random.default_rng(0).uniform(0, 255, size=(4, 32, 32, 3)).astype("float32")
    tolerance = 1e-4 if dtype == "float32" else 0.5  # Of 20.
    for batch in (images, images[:1]):
        expected = as_array(model(batch, training=False))
        np.testing.assert_allclose(as_array(infer(batch)), expected, atol=tolerance)
    # Others than before train, as when layers are unfrozen one by one.
    for frozen in ("block_0", "block_1"):
        for name in ("block_0", "block_1"):
            model.get_layer(name).trainable = name != frozen
        expected = as_array(model(images, training=False))
        np.testing.assert_allclose(as_array(infer(images)), expected, atol=tolerance)
    model.get_layer("head").bias.assign(np.arange(5.0) * 100)
    np.testing.assert_allclose(
        as_array(infer(images)), as_array(model(images, training=False)), rtol=0.01, atol=tolerance
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.5)])
def test_an_inference_function_keeps_inputs_of_different_kinds_apart(dtype, tolerance):
    model = keras_vit.models.vision_transformer(CONFIG, dtype=dtype)
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(192, 5)))
    images = np.random.default_rng(0).integers(0, 256, size=(4, 32, 32, 3))
    pixels = keras.Input((32, 32, 3), name="pixels", dtype="uint8")
    for graph, wrap in (
        (model, lambda batch: batch),
        (keras.Model({"pixels": pixels}, model(pixels)), lambda batch: {"pixels": batch}),
    ):
        infer = keras_vit.models.inference_function(graph)
        for batch in (images, images[:3], images):
            expected = as_array(model(batch.astype("float32"), training=False))
            for dtype in ("uint8", "float32"):
                found = infer(wrap(batch.astype(dtype)))
                np.testing.assert_allclose(as_array(found), expected, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.5)])
def test_an_inference_function_keeps_the_structure_of_inputs_and_outputs(dtype, tolerance):
    model = keras_vit.models.vision_transformer(CONFIG, dtype=dtype)
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(192, 5)))
    left, right = (keras.Input((32, 32, 3), name=name) for name in ("left", "right"))
    outputs = {"right": model(right), "both": [model(left), model(left) - model(right)]}
    infer = keras_vit.models.inference_function(keras.Model([right, left], outputs))
    images = np.random.default_rng(0).uniform(0, 255, size=(2, 4, 32, 32, 3)).astype("float32")
    of_left, of_right = (as_array(model(batch, training=False)) for batch in images)
    found = infer([images[1], images[0]])
    assert found.keys() == outputs.keys()
    np.testing.assert_allclose(as_array(found["right"]), of_right, atol=tolerance)
    np.testing.assert_allclose(as_array(found["both"][0]), of_left, atol=tolerance)
    np.testing.assert_allclose(as_array(found["both"][1]), of_left - of_right, atol=2 * tolerance)


@only_on_tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_inference_function_takes_loops_and_inputs_left_out(dtype):
    model = keras_vit.models.vision_transformer(CONFIG, dtype=dtype)
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(192, 5)))
    images = keras.Input((32, 32, 3), name="images")
    more = keras.Input((5,), name="more", optional=True)
    steps = keras.layers.Reshape((5, 1))(model(images))
    loop = keras.layers.LSTM(3, recurrent_initializer="glorot_uniform", dtype=dtype)
    graph = keras.Model({"images": images, "more": more}, LeftOut()([loop(steps), more]))
    infer = keras_vit.models.inference_function(graph)
    pixels = np.random.default_rng(0).uniform(0, 255, size=(2, 32, 32, 3)).astype("float32")
    batch = {"images": pixels, "more": None}
    expected = as_array(graph(batch, training=False))
    np.testing.assert_allclose(
        as_array(infer(batch)), expected, atol=1e-4 if dtype == "float32" else 0.1
    )


class LeftOut(keras.layers.Layer):
    def call(self, inputs):
        tokens, more = inputs
        return tokens if more is None else tokens + 1


@only_on_tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_inference_function_has_gradients(dtype):
    import tensorflow as tf

    model = keras_vit.models.vision_transformer(CONFIG, dtype=dtype)
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(192, 5)))
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)), "float32")
    gradients = []
    for function in (model, keras_vit.models.inference_function(model)):
        with tf.GradientTape() as tape:
            tape.watch(images)
            answer = tf.cast(function(images), "float32")
        gradients.append(tape.gradient(answer, images))
    plain, found = gradients
    tolerance = (1e-4 if dtype == "float32" else 0.1) * np.abs(plain).max()
    np.testing.assert_allclose(found, plain, atol=tolerance)


@only_on_tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_inference_function_is_part_of_a_function_of_any_batch(dtype):
    import tensorflow as tf

    model = keras_vit.models.vision_transformer(CONFIG, dtype=dtype)
    infer = keras_vit.models.inference_function(model)
    images = tf.TensorSpec((None, 32, 32, 3))
    shares = tf.function(lambda batch: tf.nn.softmax(infer(batch)), input_signature=[images])
    for count in (3, 2):
        assert shares(np.zeros((count, 32, 32, 3), "float32")).shape == (count, 5)


@only_on_tensorflow
def test_what_is_not_for_this_process_alone_has_no_xla():
    import tensorflow as tf

    model = keras_vit.models.vision_transformer(CONFIG, dtype="bfloat16")
    images = tf.TensorSpec((8, 32, 32, 3))

    def compiled_parts(function):
        graph = tf.function(function, autograph=False).get_concrete_function(images).graph
        functions = graph.as_graph_def().library.function
        return sum(f.attr["_XlaMustCompile"].b for f in functions)

    with in_this_process():
        assert compiled_parts(lambda batch: model(batch, training=False))
    assert not compiled_parts(lambda batch: model(batch, training=False))
    assert not compiled_parts(model)


@only_on_tensorflow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_after_evaluation_has_whole_norms_and_no_xla(tmp_path, dtype):
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    from keras_vit.export import export_saved_model
    from keras_vit.finetune.evaluation import predict_filled_up

    model = keras_vit.models.vision_transformer(CONFIG, dtype=dtype)
    predict_filled_up(model, np.zeros((4, 32, 32, 3), "float32"), 4)
    folder = export_saved_model(model, tmp_path, class_names=list("abcde"))
    saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    assert not any(function.attr["_XlaMustCompile"].b for function in functions)
    norms = max(
        sum(node.op == "FusedBatchNormV3" for node in function.node_def) for function in functions
    )
    assert norms == 2 * CONFIG.depth + 1
