"""SavedModels in a C program that has none of our code: what a model server would answer."""

import csv
import functools
import os
import struct
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from serving_consumer import (
    LIBRARY,
    Consumer,
    RequestError,
    compile_consumer,
    read_signatures,
    tensorflow_library,
    why_not,
)
from serving_consumer.pictures import good_files, hostile_files, picture

import keras_vit
from keras_vit.data import decode_image, prepare_image
from keras_vit.export import ImageLimits, export_saved_model
from keras_vit.inspection import attention_rollout
from keras_vit.models import VisionTransformerConfig, vision_transformer

tf = pytest.importorskip("tensorflow", reason="a SavedModel needs TensorFlow")
if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel is exported on the TensorFlow backend", allow_module_level=True)

NAMES = ("cat", "dog", "naïve", "ox", "pig", "rat", "yak")
IMAGE_SIZE, TOP = (12, 20), 3
LIMITS = ImageLimits(max_bytes=50_000, max_pixels=100_000)
HOSTILE = hostile_files(LIMITS.max_bytes)
INVALID_ARGUMENT, NOT_FOUND, INTERNAL = 3, 5, 13


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The compiled consumer, one for all processes of a run."""
    if reason := why_not():
        # Who names a library wants it tested.
        (pytest.fail if os.environ.get(LIBRARY) else pytest.skip)(reason)
    folder = tmp_path_factory.getbasetemp()
    return compile_consumer(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    config = VisionTransformerConfig(
        patch_size=4,
        hidden_size=32,
        depth=2,
        mlp_dim=64,
        num_heads=4,
        image_size=IMAGE_SIZE,
        num_classes=len(NAMES),
        dropout=0.3,
        drop_path=0.3,
    )
    model = vision_transformer(config)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.3, weight.shape) for weight in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "pets"
    return export_saved_model(
        model, path, class_names=NAMES, top=TOP, limits=LIMITS, attention=True
    )


@pytest.fixture(scope="module")
def consumer(program, folder):
    with Consumer(program, folder, workers=17) as consumer:
        yield consumer
        assert consumer.running, consumer.said()


def pixels_of(model, files):
    preprocessing = model.get_layer("preprocessing")
    images = [prepare_image(decode_image(file), IMAGE_SIZE, preprocessing) for file in files]
    return np.stack(images)


def softmax(logits):
    exponential = np.exp(logits - logits.max(-1, keepdims=True).astype("float64"))
    return exponential / exponential.sum(-1, keepdims=True)


def example(file):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[file]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return tf.train.Example(features=features).SerializeToString()


def best_names(logits):
    return [[NAMES[i].encode() for i in row] for row in np.argsort(-logits, axis=-1)[:, :TOP]]


def check_classification(answer, logits):
    """What `serving_default` and `pixels` answer to good images, beside the model's logits."""
    probabilities = softmax(logits)
    np.testing.assert_allclose(answer["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
    assert answer["classes"].tolist() == best_names(logits)
    best = -np.sort(-probabilities, axis=-1)[:, :TOP]
    np.testing.assert_allclose(answer["scores"], best, atol=1e-5)


def with_hostile(files):
    """The files with a hostile one in every third place, and what is wrong with each of those."""
    kinds = iter(list(HOSTILE) * len(files))
    wrong = {row: next(kinds) for row in range(1, len(files), 3)}
    return [HOSTILE[wrong[row]] if row in wrong else file for row, file in enumerate(files)], wrong


@pytest.fixture(scope="module")
def files():
    return good_files(64)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_serving_default_answers_as_the_model(consumer, model, files, batch):
    answer = consumer.call(image_bytes=files[-batch:])
    assert set(answer) == {"classes", "scores", "probabilities", "logits", "error"}
    check_classification(answer, model.predict(pixels_of(model, files[-batch:]), verbose=0))
    assert answer["error"].tolist() == [b""] * batch


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_pixels_answers_as_the_model(consumer, model, batch):
    images = np.stack([picture(37, 29, seed) for seed in range(batch)])
    answer = consumer.call("pixels", pixels=images)
    assert set(answer) == {"classes", "scores", "probabilities", "logits"}
    preprocessing = model.get_layer("preprocessing")
    prepared = np.stack([prepare_image(image, IMAGE_SIZE, preprocessing) for image in images])
    check_classification(answer, model.predict(prepared, verbose=0))


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_classify_answers_as_the_model(consumer, model, files, batch):
    answer = consumer.call("classify", inputs=[example(file) for file in files[-batch:]])
    assert set(answer) == {"classes", "scores"}
    logits = model.predict(pixels_of(model, files[-batch:]), verbose=0)
    assert answer["classes"].tolist() == best_names(logits)
    best = -np.sort(-softmax(logits), axis=-1)[:, :TOP]
    np.testing.assert_allclose(answer["scores"], best, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_embed_answers_what_the_head_reads(consumer, model, files, batch):
    answer = consumer.call("embed", image_bytes=files[-batch:])
    assert set(answer) == {"embedding", "error"}
    pooled = keras.Model(model.input, model.get_layer("head").input)
    expected = pooled.predict(pixels_of(model, files[-batch:]), verbose=0)
    np.testing.assert_allclose(answer["embedding"], expected, atol=1e-4)
    assert answer["error"].tolist() == [b""] * batch


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_attention_answers_the_rollout(consumer, model, files, batch):
    answer = consumer.call("attention", image_bytes=files[-batch:])
    assert set(answer) == {"attention", "error"}
    expected = attention_rollout(model).predict(pixels_of(model, files[-batch:]), verbose=0)
    assert expected.shape == (batch, 3, 5)
    np.testing.assert_allclose(answer["attention"], expected, atol=1e-5)
    assert answer["error"].tolist() == [b""] * batch


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bad_image_has_an_error_of_its_own_and_spares_its_neighbours(
    consumer, model, files, kind
):
    alone = consumer.call(image_bytes=[HOSTILE[kind]])
    together = consumer.call(image_bytes=[files[0], HOSTILE[kind], files[1]])
    for answer, row in ((alone, 0), (together, 1)):
        assert answer["error"][row]
        assert answer["classes"][row].tolist() == [b""] * TOP
        for name in ("scores", "probabilities", "logits"):
            assert not answer[name][row].any()
    assert together["error"][[0, 2]].tolist() == [b"", b""]
    good = {name: value[[0, 2]] for name, value in together.items()}
    check_classification(good, model.predict(pixels_of(model, files[:2]), verbose=0))


@pytest.mark.parametrize("batch", [3, 64])
@pytest.mark.parametrize("signature", ["serving_default", "classify", "embed", "attention"])
def test_bad_images_in_every_signature(consumer, files, signature, batch):
    mixed, wrong = with_hostile(files[:batch])
    if signature == "classify":
        answer = consumer.call(signature, inputs=[example(file) for file in mixed])
        clean = consumer.call(signature, inputs=[example(file) for file in files[:batch]])
        errors = [row[0].decode() for row in answer["classes"]]
        assert all((error in NAMES) != (row in wrong) for row, error in enumerate(errors))
        values = "scores"
    else:
        answer = consumer.call(signature, image_bytes=mixed)
        clean = consumer.call(signature, image_bytes=files[:batch])
        assert [bool(error) for error in answer["error"]] == [row in wrong for row in range(batch)]
        values = {"embed": "embedding", "attention": "attention"}.get(signature, "logits")
    assert not answer[values][sorted(wrong)].any()
    good = [row for row in range(batch) if row not in wrong]
    np.testing.assert_allclose(answer[values][good], clean[values][good], atol=1e-5)


def test_no_images_are_answered_with_no_rows(consumer):
    answer = consumer.call(image_bytes=[])
    assert answer["logits"].shape == (0, len(NAMES))
    assert answer["classes"].shape == answer["scores"].shape == (0, TOP)
    assert consumer.call("embed", image_bytes=[])["embedding"].shape == (0, 32)


@pytest.mark.slow
def test_strict_mode_fails_the_call_and_the_next_one_is_answered(program, model, files, tmp_path):
    folder = export_saved_model(
        model, tmp_path / "strict", class_names=NAMES, limits=LIMITS, on_error="fail"
    )
    with Consumer(program, folder) as consumer, consumer.client() as client:
        for bad in HOSTILE.values():
            with pytest.raises(RequestError) as failed:
                client.call(image_bytes=[files[0], bad])
            assert failed.value.code == INVALID_ARGUMENT
        answer = client.call(image_bytes=files[:2])
        logits = model.predict(pixels_of(model, files[:2]), verbose=0)
        np.testing.assert_allclose(answer["logits"], logits, atol=1e-4)


@pytest.mark.slow
def test_bfloat16_answers_nearly_as_the_model(program, model, files, tmp_path):
    folder = export_saved_model(model, tmp_path / "half", class_names=NAMES, precision="bfloat16")
    with Consumer(program, folder) as consumer:
        answer = consumer.call(image_bytes=files[:8])
    assert answer["probabilities"].dtype == answer["logits"].dtype == np.float32
    logits = model.predict(pixels_of(model, files[:8]), verbose=0)
    # bfloat16 keeps 8 bits.
    np.testing.assert_allclose(answer["probabilities"], softmax(logits), atol=0.05)
    assert np.abs(answer["logits"] - logits).max() > 1e-4


def test_sixteen_clients_share_a_session(consumer, files):
    """Each gets the answers to its own pictures, while others get errors."""
    alone = consumer.call(image_bytes=files)
    problems = []

    def ask(number):
        rng = np.random.default_rng(number)
        try:
            with consumer.client() as client:
                for _ in range(12):
                    rows = rng.choice(len(files), rng.integers(1, 5))
                    answer = client.call(image_bytes=[*(files[row] for row in rows), b"no image"])
                    np.testing.assert_allclose(
                        answer["logits"][:-1], alone["logits"][rows], atol=1e-4
                    )
                    assert [bool(error) for error in answer["error"]] == [False] * len(rows) + [
                        True
                    ]
                    with pytest.raises(RequestError, match="no tensor 'nowhere:0'"):
                        client.run({}, ["nowhere:0"])
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def growth_of_memory(client, call, calls):
    """How much more memory is resident after some calls, once a few have been made, in bytes."""
    for _ in range(5):
        call()
    before, _ = client.memory()
    for _ in range(calls):
        call()
    after, highest = client.memory()
    assert 0 < before <= highest and after <= highest
    return after - before


@pytest.mark.slow
def test_memory_stays_flat(consumer, files):
    mixed, _ = with_hostile(files[:12])
    # 4 MB a call, 160 MB in all, which the limit refuses; the rest is decoded.
    mixed += [bytes(1_000_000)] * 4
    with consumer.client() as client:
        again = functools.partial(client.call, image_bytes=mixed)
        assert growth_of_memory(client, again, 40) < 20_000_000


def test_the_consumer_itself_gives_back_what_it_was_fed_and_fetched(program, tmp_path):
    """Else the memory of a served model would say nothing."""
    echo = tf.function(lambda numbers, texts: {"sum": 2 * numbers, "joined": texts + texts})
    specs = tf.TensorSpec((None, None), tf.float32), tf.TensorSpec((None,), tf.string)
    concrete = echo.get_concrete_function(*specs)
    tf.saved_model.save(tf.Module(), str(tmp_path / "echo"), {"serving_default": concrete})
    numbers, texts = np.ones((500, 1000), "float32"), [b"", b"\x00\xff", b"x" * 1_000_000]
    with Consumer(program, tmp_path / "echo") as consumer, consumer.client() as client:
        answer = client.call(numbers=numbers, texts=texts)
        np.testing.assert_array_equal(answer["sum"], 2 * numbers)
        assert answer["joined"].tolist() == [text + text for text in texts]
        again = functools.partial(client.call, numbers=numbers, texts=texts)
        assert growth_of_memory(client, again, 40) < 20_000_000


def test_requests_that_cannot_be_run_are_errors_of_their_own(consumer, files):
    tensor = consumer.signatures["serving_default"].inputs["image_bytes"][0]
    name = struct.pack("<Q", len(tensor)) + tensor.encode()
    feed = struct.pack("<II", 1, 1) + name
    with consumer.client() as client:
        for message in [
            b"",
            struct.pack("<I", 9),
            feed,
            feed + struct.pack("<IIq", 7, 1, 2**60),
            feed + struct.pack("<IIq", 7, 1, -1),
            feed + struct.pack("<IIq", 7, 99, 1),
            feed + struct.pack("<IIqQ", 1, 1, 2, 4) + bytes(4),
            feed + struct.pack("<IIqQ", 7, 1, 1, 2**40) + bytes(4),
            struct.pack("<III", 1, 2**31, 0),
        ]:
            with pytest.raises(RequestError) as failed:
                client.request(message)
            assert failed.value.code in (INVALID_ARGUMENT, NOT_FOUND)
        fetch = consumer.signatures["serving_default"].outputs["logits"][0]
        with pytest.raises(RequestError) as failed:
            client.run({tensor: np.float32([1, 2])}, [fetch])
        assert failed.value.code in (INVALID_ARGUMENT, INTERNAL)
        with pytest.raises(RequestError) as failed:
            client.run({tensor: files[:1]}, [fetch.split(":")[0] + ":99"])
        assert failed.value.code == NOT_FOUND
        assert client.call(image_bytes=files[:1])["error"].tolist() == [b""]


def test_warm_up_records_are_replayed_by_tensor_name(consumer, folder):
    """What the server does with the records before it calls a version ready."""
    prediction_log_pb2 = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2",
        reason="warm-up records are read with tensorflow-serving-api",
    )
    signatures = read_signatures(folder)
    replayed = set()
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.WhichOneof("log_type") == "classify_log":
            request = log.classify_log.request
            examples = request.input.example_list.examples
            inputs = {"inputs": np.array([e.SerializeToString() for e in examples], object)}
        else:
            assert log.WhichOneof("log_type") == "predict_log"
            request = log.predict_log.request
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        signature = request.model_spec.signature_name
        names = signatures[signature].inputs
        fetches = [tensor for tensor, _ in signatures[signature].outputs.values()]
        with consumer.client() as client:
            feeds = {names[name][0]: value for name, value in inputs.items()}
            outputs = client.run(feeds, fetches)
        (batch,) = {len(value) for value in inputs.values()}
        assert all(len(value) == batch for value in outputs)
        errors = dict(zip(signatures[signature].outputs, outputs, strict=True)).get("error", [])
        assert not any(errors)
        replayed.add((signature, batch))
    assert replayed == {(signature, batch) for signature in signatures for batch in (1, 8)}


def test_a_function_to_compile_fails_as_in_the_stock_server(program, tmp_path):
    """The server is started without --xla_cpu_compilation_enabled; the consumer, like it."""
    twice = tf.function(lambda x: 2 * x, jit_compile=True)
    served = tf.function(lambda x: {"y": twice(x)})
    concrete = served.get_concrete_function(tf.TensorSpec((None,), tf.float32))
    tf.saved_model.save(tf.Module(), str(tmp_path / "compiled"), {"serving_default": concrete})
    x = np.float32([1, 2])
    with Consumer(program, tmp_path / "compiled") as consumer, consumer.client() as client:
        for _ in range(2):
            with pytest.raises(RequestError, match="XLA compilation disabled"):
                client.call(x=x)
    # It is the switch that fails it, nothing else.
    with Consumer(program, tmp_path / "compiled", allow_xla=True) as consumer:
        np.testing.assert_array_equal(consumer.call(x=x)["y"], 2 * x)


def test_a_folder_that_is_no_saved_model_is_refused(program, folder, tmp_path):
    (tmp_path / "saved_model.pb").write_bytes((folder / "saved_model.pb").read_bytes())
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        Consumer(program, tmp_path)


def test_the_library_is_the_one_that_was_asked_for(consumer):
    loaded = Path(f"/proc/{consumer.process.pid}/maps").read_text()
    assert str(tensorflow_library() / "libtensorflow_cc.so.2") in loaded


@pytest.mark.slow
def test_vit_ti_keeps_its_accuracy_from_bytes(program, shared, tmp_path):
    """83.2 +- 0.8 % of 250 pictures of ImageNet, as `keras-vit evaluate` says of the model."""
    samples = shared / "data" / "imagenet_samples"
    with open(samples / "labels.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    model = keras_vit.from_checkpoint(
        shared / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    )
    names = [f"class {index}" for index in range(1000)]
    folder = export_saved_model(model, tmp_path / "vit_tiny", class_names=names)
    right = 0
    with Consumer(program, folder) as consumer, consumer.client() as client:
        for start in range(0, len(rows), 25):
            batch = rows[start : start + 25]
            answer = client.call(
                image_bytes=[(samples / row["file"]).read_bytes() for row in batch]
            )
            assert not any(answer["error"])
            right += sum(
                classes[0].decode() == f"class {row['label']}"
                for classes, row in zip(answer["classes"], batch, strict=True)
            )
    assert len(rows) == 250
    assert abs(right / 250 - 0.832) <= 0.008
