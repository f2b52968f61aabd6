"""What lies beside a SavedModel: held to the server's own messages, its examples run."""

import base64
import io
import json
import re
import shutil
import stat
import subprocess

import numpy as np
import pytest
from PIL import Image

from keras_vit.serving.files import (
    describe_signatures,
    write_descriptions,
    write_server_files,
    write_warmup,
)
from keras_vit.serving.made_up_requests import image_request, made_up_images
from keras_vit.serving.prediction_log import (
    WarmupRequest,
    read_warmup_requests,
    write_warmup_requests,
)

tf = pytest.importorskip("tensorflow", reason="a SavedModel needs TensorFlow")

NAME = "pets & naïve"
IMAGE_SIZE = (20, 28)


def decode(images):
    def decode_one(image):
        image = tf.image.resize(tf.io.decode_jpeg(image, channels=3), (4, 4))
        return tf.reduce_mean(image, (0, 1))

    return tf.map_fn(decode_one, images, fn_output_signature=tf.TensorSpec((3,), tf.float32))


def parse(inputs):
    feature = {"image/encoded": tf.io.FixedLenFeature((), tf.string)}
    return tf.io.parse_example(inputs, feature)["image/encoded"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with the signatures of an export, and one with two inputs."""
    names = tf.constant(["r", "g", "b"])

    def classes(scores):
        return {"classes": tf.gather(names, tf.math.top_k(scores, 3)[1]), "scores": scores}

    functions = {
        "serving_default": (
            lambda image_bytes: classes(decode(image_bytes)),
            [tf.TensorSpec((None,), tf.string, name="image_bytes")],
        ),
        "classify": (
            lambda inputs: classes(decode(parse(inputs))),
            [tf.TensorSpec((None,), tf.string, name="inputs")],
        ),
        "pixels": (
            lambda pixels: {"mean": tf.reduce_mean(tf.cast(pixels, tf.float32), (1, 2))},
            [tf.TensorSpec((None, None, None, 3), tf.uint8, name="pixels")],
        ),
        "pair": (
            lambda left, right: {"sum": left + tf.cast(right, tf.float32)},
            [tf.TensorSpec((None, 2), tf.float32, name="left"), tf.TensorSpec((None, 2), tf.int64)],
        ),
    }
    signatures = {
        name: tf.function(function, autograph=False).get_concrete_function(*specifications)
        for name, (function, specifications) in functions.items()
    }
    folder = tmp_path_factory.mktemp("exported") / "1"
    tf.saved_model.save(tf.Module(), str(folder), signatures=signatures)
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
    updater.replace_method_name("classify", "tensorflow/serving/classify", "serve")
    updater.save()
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / NAME / "1")


def test_signatures_are_read_off_the_file(folder):
    signatures = describe_signatures(folder)
    assert list(signatures) == ["serving_default", "classify", "pair", "pixels"]
    pixels = signatures["pixels"]
    assert pixels["method_name"] == "tensorflow/serving/predict"
    (name, row), *others = pixels["inputs"].items()
    assert name == "pixels" and not others
    assert row["dtype"] == "uint8" and row["shape"] == [None, None, None, 3]
    assert re.fullmatch(r"\w+:0", row["tensor"])
    assert pixels["outputs"]["mean"]["shape"] == [None, 3]
    assert signatures["classify"]["method_name"] == "tensorflow/serving/classify"
    assert signatures["serving_default"]["inputs"]["image_bytes"]["dtype"] == "string"


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/saved_model.pb is missing"):
        describe_signatures(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match="is damaged or cut off"):
        describe_signatures(tmp_path)


def test_the_description_is_the_signatures_and_the_facts(folder):
    facts = {"image_size": [20, 28], "on_error": "row", "limits": {"max_bytes": 5}}
    write_descriptions(folder, name=NAME, version=3, facts=facts)
    description = json.loads((folder / "signatures.json").read_text("utf-8"))
    signatures = json.loads(json.dumps(describe_signatures(folder)))
    assert description == {"name": NAME, "version": 3, **facts, "signatures": signatures}
    page = (folder / "README.md").read_text("utf-8")
    assert page.startswith(f"# {NAME}, version 3\n") and '| limits | `{"max_bytes": 5}` |' in page
    for name in signatures:
        assert f"## {name}\n" in page
    assert "| input | `pixels` | uint8 | (any, any, any, 3) |" in page
    assert not [path for path in folder.iterdir() if "partial" in path.name]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"facts": {"version": 2}}, r"`facts` must not hold \['version'\]"),
        ({"name": "a/b"}, "must be printable and have no '/' and no ':'"),
        ({"name": ""}, "Rename the model's folder"),
    ],
)
def test_what_cannot_be_described_is_refused(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_descriptions(folder, **{"name": "a", "version": 1, "facts": {}, **arguments})
    assert not (folder / "README.md").exists()


def blocks(folder, language):
    """The examples of README.md by signature."""
    write_descriptions(folder, name=NAME, version=1, facts={})
    page = (folder / "README.md").read_text("utf-8")
    sections = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    fenced = re.compile(rf"```{language}\n(.*?)```", re.DOTALL)
    found = {name: fenced.findall(text) for name, text in sections}
    assert found.keys() == describe_signatures(folder).keys()
    assert all(len(examples) == 1 for examples in found.values())
    return {name: examples[0] for name, examples in found.items()}


def test_the_curl_examples_send_what_the_signature_takes(folder, tmp_path):
    """Run by a shell in which curl writes down what it was asked to send."""
    from tensorflow.core.protobuf import saved_model_pb2

    (tmp_path / "bin").mkdir()
    curl = tmp_path / "bin" / "curl"
    curl.write_text(
        "#!/bin/sh\n"
        'printf "%s" "$4" > address\n'
        'if [ "$3" = "@-" ]; then cat > body; else printf "%s" "$3" > body; fi\n'
    )
    curl.chmod(curl.stat().st_mode | stat.S_IXUSR)
    image = made_up_images(1, (30, 40))[0]
    (tmp_path / "cat.jpg").write_bytes(image)
    # A name that the shell's printf would take for a place to fill.
    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    definitions = saved.meta_graphs[0].signature_def
    definitions["100%d"].CopyFrom(definitions["serving_default"])
    path.write_bytes(saved.SerializeToString())
    bodies = {}
    for name, command in blocks(folder, "bash").items():
        script = f'PATH="{tmp_path / "bin"}:$PATH"\n{command}'
        subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, check=True)
        bodies[name] = json.loads((tmp_path / "body").read_text())
        assert bodies[name].pop("signature_name") == name
        method = "classify" if name == "classify" else "predict"
        assert (tmp_path / "address").read_text() == (
            f"http://localhost:8501/v1/models/pets%20%26%20na%C3%AFve:{method}"
        )
    encoded = {"b64": base64.b64encode(image).decode()}
    assert bodies["serving_default"] == bodies["100%d"] == {"instances": [encoded]}
    assert bodies["classify"] == {"examples": [{"image/encoded": encoded}]}
    assert bodies["pair"] == {"instances": [{"left": [0, 0], "right": [0, 0]}]}
    assert np.shape(bodies["pixels"]["instances"]) == (1, 2, 2, 3)


def test_the_grpc_examples_are_answered(folder, tmp_path, monkeypatch, capsys):
    """Run against a stand-in that answers the official messages out of the SavedModel."""
    stubs = pytest.importorskip(
        "tensorflow_serving.apis.prediction_service_pb2_grpc",
        reason="needs the package tensorflow-serving-api",
    )
    pytest.importorskip("grpc", reason="needs the package grpcio")
    loaded = tf.saved_model.load(str(folder))
    asked = []

    class StandIn:
        def __init__(self, channel):
            pass

        def Predict(self, request, timeout):
            inputs = {
                name: tf.constant(tf.make_ndarray(tensor))
                for name, tensor in request.inputs.items()
            }
            return self.run(request, inputs)

        def Classify(self, request, timeout):
            examples = [e.SerializeToString() for e in request.input.example_list.examples]
            return self.run(request, {"inputs": tf.constant(examples)})

        def run(self, request, inputs):
            assert request.model_spec.name == NAME
            asked.append(request.model_spec.signature_name)
            return loaded.signatures[asked[-1]](**inputs)

    monkeypatch.setattr(stubs, "PredictionServiceStub", StandIn)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(made_up_images(1, (30, 40))[0])
    examples = blocks(folder, "python")
    for name, example in examples.items():
        exec(compile(example, name, "exec"), {})
    assert asked == list(examples)
    assert "scores" in capsys.readouterr().out


def warmup_logs(path):
    """The records of a warm-up file as the server's own message."""
    prediction_log_pb2 = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2",
        reason="needs the package tensorflow-serving-api",
    )
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


def test_warmup_has_a_request_for_each_signature_and_batch_size(folder):
    path = write_warmup(folder, name=NAME, batch_sizes=(8, 1, 8), image_size=IMAGE_SIZE)
    assert path == folder / "assets.extra" / "tf_serving_warmup_requests"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    found = []
    for log in warmup_logs(path):
        kind = log.WhichOneof("log_type")
        request = getattr(log, kind).request
        assert request.model_spec.name == NAME
        if kind == "classify_log":
            examples = request.input.example_list.examples
            images = [e.features.feature["image/encoded"].bytes_list.value[0] for e in examples]
            size = len(examples)
        else:
            arrays = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            size = len(next(iter(arrays.values())))
            images = arrays.get("image_bytes", [])
            if "pixels" in arrays:
                assert arrays["pixels"].shape == (size, *IMAGE_SIZE, 3)
                assert arrays["pixels"].dtype == "uint8"
        sizes = {Image.open(io.BytesIO(image)).size for image in images}
        assert len(sizes) == len(images)
        found.append((kind, request.model_spec.signature_name, size))
    assert found == [
        ("classify_log" if name == "classify" else "predict_log", name, size)
        for name in ("serving_default", "classify", "pair", "pixels")
        for size in (1, 8)
    ]


def test_the_same_warmup_is_written_again(folder):
    arguments = {"name": NAME, "batch_sizes": (2,), "image_size": IMAGE_SIZE}
    first = write_warmup(folder, **arguments).read_bytes()
    assert write_warmup(folder, **arguments).read_bytes() == first


def test_warmup_is_read_as_it_was_written(folder):
    path = write_warmup(folder, name=NAME, batch_sizes=(3,), image_size=IMAGE_SIZE)
    requests = list(read_warmup_requests(path))
    kinds = ["predict_log", "classify_log", "predict_log", "predict_log"]
    assert [request.kind for request in requests] == kinds
    signatures = tf.saved_model.load(str(folder)).signatures
    for request in requests:
        inputs = {name: tf.constant(array) for name, array in request.inputs.items()}
        outputs = signatures[request.signature](**inputs)
        assert all(len(output) == 3 for output in outputs.values())


def test_the_official_records_are_read(tmp_path):
    prediction_log_pb2 = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2",
        reason="needs the package tensorflow-serving-api",
    )
    logs = [prediction_log_pb2.PredictionLog() for _ in range(4)]
    predict = logs[0].predict_log.request
    predict.model_spec.signature_name = "pixels"
    predict.model_spec.version.value = 7
    predict.inputs["pixels"].CopyFrom(tf.make_tensor_proto(np.arange(4, dtype="uint8")))
    logs[0].log_metadata.sampling_config.sampling_rate = 0.5
    example = logs[1].regress_log.request.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(1.5)
    logs[2].session_run_log.request.target.append("x")
    with tf.io.TFRecordWriter(str(tmp_path / "records")) as writer:
        for log in logs:
            writer.write(log.SerializeToString())
    first, second, third, fourth = read_warmup_requests(tmp_path / "records")
    assert (first.kind, first.signature) == ("predict_log", "pixels")
    np.testing.assert_array_equal(first.inputs["pixels"], np.arange(4, dtype="uint8"))
    assert (second.kind, second.signature) == ("regress_log", "serving_default")
    assert second.inputs["inputs"].tolist() == [example.SerializeToString()]
    assert (third.kind, third.inputs) == ("session_run_log", {})
    assert (fourth.kind, fourth.inputs) == ("", {})


@pytest.mark.parametrize("max_pixels", [2500, 150])
def test_made_up_images_within_limits_differ_in_size_still(max_pixels):
    sizes = {
        Image.open(io.BytesIO(file)).size
        for file in made_up_images(3, (48, 64), max_pixels=max_pixels)
    }
    assert len(sizes) == 3 and max(width * height for width, height in sizes) <= max_pixels


def test_no_byte_of_an_image_is_lost(folder, tmp_path):
    """NumPy's own strings lose zeros at the end."""
    request = image_request(describe_signatures(folder)["serving_default"], [b"a\0\0", b""])
    path = tmp_path / "records"
    record = WarmupRequest("predict_log", "serving_default", request)
    write_warmup_requests(path, [record], model_name="m")
    (read,) = read_warmup_requests(path)
    assert read.inputs["image_bytes"].tolist() == [b"a\0\0", b""]


@pytest.mark.parametrize(
    "batch_sizes, message",
    [
        ((), "`batch_sizes` must be positive integers"),
        ((0, 1), "`batch_sizes` must be positive integers"),
        ((True,), "`batch_sizes` must be positive integers"),
        ((1.5,), "`batch_sizes` must be positive integers"),
        (range(1, 252), "251 batch sizes of 4 signatures are more than the 1000"),
    ],
)
def test_warmup_that_a_server_would_refuse_is_not_written(folder, batch_sizes, message):
    with pytest.raises(ValueError, match=message):
        write_warmup(folder, name=NAME, batch_sizes=batch_sizes, image_size=IMAGE_SIZE)
    assert not (folder / "assets.extra").exists()


def test_strings_that_are_no_images_are_not_made_up(tmp_path):
    module = tf.Module()
    module.run = tf.function(
        lambda text: {"length": tf.strings.length(text)},
        input_signature=[tf.TensorSpec((None,), tf.string, name="text")],
    )
    tf.saved_model.save(module, str(tmp_path), signatures=module.run)
    with pytest.raises(ValueError, match="'serving_default' takes strings that are not images"):
        write_warmup(tmp_path, name="m", batch_sizes=(1,), image_size=IMAGE_SIZE)
    assert list((tmp_path / "assets.extra").iterdir()) == []


def parsed_models(text):
    from google.protobuf import text_format

    model_server_config_pb2 = pytest.importorskip(
        "tensorflow_serving.config.model_server_config_pb2",
        reason="needs the package tensorflow-serving-api",
    )
    (model,) = text_format.Parse(
        text, model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config
    return model


def test_models_config_is_what_the_server_reads(tmp_path):
    write_server_files(tmp_path, name=NAME, batch_sizes=(1, 8))
    text = (tmp_path / "models.config").read_text("ascii")
    model = parsed_models(text)
    assert model.name == NAME and model.base_path == f"/models/{NAME}"
    assert model.model_platform == "tensorflow"
    assert not model.HasField("model_version_policy") and not model.version_labels

    # The two examples in the comments: version 1 alone; both versions, with labels.
    lines = text.splitlines(keepends=True)
    (first, both) = [i for i, line in enumerate(lines) if "# model_version_policy" in line]
    rolled_back = [line.replace("# ", "") if i == first else line for i, line in enumerate(lines)]
    assert [*parsed_models("".join(rolled_back)).model_version_policy.specific.versions] == [1]
    labelled = [line.replace("# ", "") if i >= both else line for i, line in enumerate(lines)]
    labelled = parsed_models("".join(labelled))
    assert [*labelled.model_version_policy.specific.versions] == [1, 2]
    assert dict(labelled.version_labels) == {"stable": 1, "canary": 2}


def batching_parameters():
    """The message of session_bundle_config.proto, which the package of stubs does not hold."""
    from google.protobuf import (
        descriptor_pb2,
        descriptor_pool,
        message_factory,
        wrappers_pb2,
    )

    file = descriptor_pb2.FileDescriptorProto(
        name="batching", package="batching", dependency=["google/protobuf/wrappers.proto"]
    )
    message = file.message_type.add(name="BatchingParameters")
    wrapped = (
        "max_batch_size",
        "batch_timeout_micros",
        "max_enqueued_batches",
        "num_batch_threads",
    )
    for number, name in enumerate(wrapped, start=1):
        field = message.field.add(name=name, number=number, label=1, type=11)
        field.type_name = ".google.protobuf.Int64Value"
    message.field.add(name="allowed_batch_sizes", number=6, label=3, type=3)
    message.field.add(name="pad_variable_length_inputs", number=7, label=1, type=8)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("batching.BatchingParameters")
    )()


@pytest.mark.parametrize("batch_sizes, largest", [((1, 8), 64), ((1, 128), 128), ((), 64)])
def test_batching_parameters_are_what_the_server_reads(tmp_path, batch_sizes, largest):
    from google.protobuf import text_format

    write_server_files(tmp_path, name="pets", batch_sizes=batch_sizes)
    text = (tmp_path / "batching_parameters.txt").read_text("ascii")
    parameters = text_format.Parse(text, batching_parameters())
    assert parameters.max_batch_size.value == largest
    assert "after a change here check it with `keras-vit export --check`" in text
    assert parameters.batch_timeout_micros.value == 0
    assert parameters.max_enqueued_batches.value > 0 and parameters.num_batch_threads.value > 0
    assert not parameters.allowed_batch_sizes and not parameters.pad_variable_length_inputs

    # The server asks for increasing sizes of which the last is the largest batch.
    text = re.sub("^# (allowed_batch_sizes: )", r"\1", text, flags=re.MULTILINE)
    sizes = [*text_format.Parse(text, batching_parameters()).allowed_batch_sizes]
    assert sizes == sorted({*batch_sizes, largest})


def test_an_operators_own_settings_stay(tmp_path):
    (tmp_path / "models.config").write_text("mine")
    written = write_server_files(tmp_path, name="pets", batch_sizes=(1,))
    assert written == (tmp_path / "batching_parameters.txt",)
    assert (tmp_path / "models.config").read_text() == "mine"
    assert write_server_files(tmp_path, name="pets", batch_sizes=(1,)) == ()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "text",
    [
        "max_batch_size { value: 16 }",
        "# max_batch_size { value: 99 }\nmax_batch_size: <\n  value:16\n>",
    ],
)
def test_warm_up_larger_than_the_operators_batches_is_refused(tmp_path, text):
    (tmp_path / "batching_parameters.txt").write_text(text)
    message = "of 17 rows .*batching_parameters.txt: its max_batch_size is 16, and a"
    with pytest.raises(ValueError, match=message):
        write_server_files(tmp_path, name="pets", batch_sizes=(1, 17))
    assert not (tmp_path / "models.config").exists()
    for sizes in ((1, 16), ()):
        write_server_files(tmp_path, name="pets", batch_sizes=sizes)
    assert (tmp_path / "batching_parameters.txt").read_text() == text


def test_settings_for_a_name_that_cannot_be_served_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Received: name='a:b'"):
        write_server_files(tmp_path / "new", name="a:b", batch_sizes=(1,))
    assert not (tmp_path / "new").exists()
