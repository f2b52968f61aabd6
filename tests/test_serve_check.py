"""serve-check, against a stand-in for TensorFlow Serving: what it passes, and what it notices."""

import contextlib
import http.server
import json
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from parameters import slow_except

from keras_vit.serving.client import (
    CLASSIFY,
    GrpcClient,
    RestClient,
    ServingError,
    Signature,
    connect,
)
from keras_vit.serving.pictures import bad_pictures, good_pictures, photograph
from keras_vit.serving.serve_check import serve_check
from keras_vit.serving.server_checks import difference, is_bad_row, judge

NEEDED = "the stand-in needs TensorFlow and the official stubs: pip install tensorflow-serving-api"
tf = pytest.importorskip("tensorflow", reason=NEEDED)
grpc = pytest.importorskip("grpc", reason=NEEDED)
apis = pytest.importorskip("tensorflow_serving.apis", reason=NEEDED)
serving_stand_in = pytest.importorskip("serving_stand_in", reason=NEEDED)
small_served_models = pytest.importorskip("small_served_models", reason=NEEDED)

write_model = small_served_models.write_model

SIGNATURES = ("serving_default", "pixels", "classify", "embed", "attention")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of a model with some flaw, each written once."""
    written = {}

    def folder(flaw="none"):
        if flaw not in written:
            written[flaw] = tmp_path_factory.mktemp(flaw) / "pets"
            write_model(written[flaw] / "1", flaw)
        return written[flaw]

    return folder


@contextlib.contextmanager
def stand_in(folder, broken="none", lists_models=False, **options):
    """Serves a folder in this process; its addresses of gRPC and REST, and the model."""
    model = serving_stand_in.Model(folder, "pets", broken=broken, **options)
    grpc_server, grpc_port = serving_stand_in.start_grpc(model)
    rest_server, rest_port = serving_stand_in.start_rest(model, lists_models=lists_models)
    try:
        yield f"127.0.0.1:{grpc_port}", f"127.0.0.1:{rest_port}", model
    finally:
        model.has_ended.set()
        grpc_server.stop(None)
        rest_server.shutdown()
        rest_server.server_close()


@contextlib.contextmanager
def stand_in_process(folder, *options):
    """Serves a folder in a process of its own; what it says of itself."""
    process = subprocess.Popen(
        [sys.executable, serving_stand_in.__file__, folder, "--name", "pets", *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(folder).parent,
    )
    try:
        yield json.loads(process.stdout.readline()), process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def served(models):
    with stand_in(models()) as places:
        yield places


def failed(report):
    return {(v.protocol, v.check) for v in report.verdicts if v.outcome == "fail"}


def failed_checks(report):
    return {check for _, check in failed(report)}


def details(report, check):
    return [verdict.detail for verdict in report.verdicts if verdict.check == check]


def test_a_good_server_passes_every_check(served):
    grpc_address, rest_address, _ = served
    # In either order.
    report = serve_check([rest_address, grpc_address], model="pets", requests=20, clients=3)
    assert failed(report) == set() and report.passed
    assert report.addresses == {"REST": rest_address, "gRPC": grpc_address}
    checks = {(verdict.protocol, verdict.check) for verdict in report.verdicts}
    for name in SIGNATURES:
        assert {("REST", f"{name}: answers"), ("gRPC", f"{name}: answers")} < checks
        assert ("both", f"{name}: REST and gRPC agree") in checks
    not_applicable = {v.check for v in report.verdicts if v.outcome == "not applicable"}
    assert not_applicable == {"embed: scores", "attention: scores", "classify: JSON layouts"}
    text = str(report)
    assert text.splitlines()[0] == f"pets at REST {rest_address}, gRPC {grpc_address}"
    assert " 0 failed" in text
    titles = ["answered", "p50", "p90", "p99", "max", "requests/s", "pictures/s"]
    assert text.splitlines()[-3].split() == titles
    # Percentiles come last, a line a protocol.
    assert [line.split()[0] for line in text.splitlines()[-2:]] == ["REST", "gRPC"]


@pytest.mark.slow
def test_one_protocol_is_enough(served):
    for address, protocol in zip(served[:2], ("gRPC", "REST"), strict=True):
        report = serve_check(address, model="pets", requests=0)
        assert report.passed and report.loads == ()
        assert {verdict.protocol for verdict in report.verdicts} == {protocol}


# A flaw of the model, and the checks that must fail for it, in each protocol.
MODEL_FLAWS = {
    "neighbours": {
        "serving_default: alone as in a batch",
        "pixels: alone as in a batch",
        "classify: alone as in a batch",
        "serving_default: bad pictures among good ones",
        "classify: bad pictures among good ones",
    },
    "sums": {"serving_default: scores", "pixels: scores"},
    "nan": {f"{name}: answers" for name in ("serving_default", "pixels", "classify")},
    "polite": {
        *(f"bad picture: {kind}" for kind in (*bad_pictures(), "32 MiB")),
        *(f"{name}: bad pictures among good ones" for name in SIGNATURES if name != "pixels"),
    },
    "loud": {
        *(f"bad picture: {kind}" for kind in (*bad_pictures(), "32 MiB")),
        "serving_default: bad pictures among good ones",
        "classify: bad pictures among good ones",
    },
    "hurt": {f"{name}: bad pictures among good ones" for name in SIGNATURES if name != "pixels"},
    "fractional": {"classify as serving_default"},
}


@pytest.mark.parametrize("flaw", slow_except(MODEL_FLAWS, fast=["polite"]))
def test_a_flaw_of_the_model_fails_the_checks_of_it_alone(models, flaw):
    with stand_in(models(flaw)) as (grpc_address, rest_address, _):
        report = serve_check([grpc_address, rest_address], model="pets", requests=0)
    expected = MODEL_FLAWS[flaw]
    seen = failed(report) - {("gRPC", c) for c in expected} - {("REST", c) for c in expected}
    assert seen == set()
    assert {(p, c) for p in ("gRPC", "REST") for c in expected} <= failed(report)
    assert not report.passed and "FAIL" in report.format()


def test_a_model_of_another_kind_has_no_signature_that_is_known(tmp_path):
    double = tf.function(lambda x: {"y": 2 * x}).get_concrete_function(
        x=tf.TensorSpec((None,), tf.float32)
    )
    signatures = {"serving_default": double, "double": double}
    tf.saved_model.save(tf.Module(), str(tmp_path / "pets" / "1"), signatures=signatures)
    with stand_in(tmp_path / "pets") as (grpc_address, rest_address, _):
        report = serve_check([grpc_address, rest_address], model="pets")
        for address in (grpc_address, rest_address):
            with connect(address) as client:
                signature = client.signatures("pets")["double"]
                answer = client.predict("pets", signature, {"x": np.float32([1, 2])})
            np.testing.assert_array_equal(answer["y"], [2, 4])
    assert failed_checks(report) == {"metadata"}
    assert "double, serving_default is one that is known" in details(report, "metadata")[0]


# What else a model may hand back for pictures that it does not look at.
OTHER_OUTPUTS = {
    "probabilities alone": lambda probabilities: {},
    "one class a row": lambda probabilities: {"classes": tf.fill([len(probabilities)], "cat")},
    "no class": lambda probabilities: {
        "classes": tf.fill([len(probabilities), 0], ""),
        "scores": probabilities[:, :0],
    },
}


@pytest.mark.parametrize("outputs", OTHER_OUTPUTS)
def test_a_model_with_other_outputs_is_judged_too(tmp_path, outputs):
    def answer(image_bytes):
        probabilities = tf.one_hot(tf.strings.length(image_bytes) % 7, 7)
        return {"probabilities": probabilities, **OTHER_OUTPUTS[outputs](probabilities)}

    strings = tf.TensorSpec((None,), tf.string, name="image_bytes")
    signatures = {"serving_default": tf.function(answer).get_concrete_function(strings)}
    tf.saved_model.save(tf.Module(), str(tmp_path / "pets" / "1"), signatures=signatures)
    with stand_in(tmp_path / "pets") as (_, rest_address, _):
        report = serve_check(rest_address, model="pets", requests=20)
    assert failed_checks(report) == {
        *(f"bad picture: {kind}" for kind in (*bad_pictures(), "32 MiB")),
        "serving_default: bad pictures among good ones",
        "load",
    }
    assert details(report, "bad picture: text") == [
        "serving_default answers as if it were a picture."
    ]


def test_an_answer_of_another_form_fails_its_check():
    classify = Signature("classify", CLASSIFY, {}, {})
    nothing = {"classes": np.empty((1, 0), object), "scores": np.empty((1, 0), "float32")}
    assert not is_bad_row(classify, nothing, 0)
    verdict = judge("load", "REST", lambda: str(is_bad_row(classify, nothing, 1)))
    assert verdict.outcome == "fail" and "form expected: IndexError" in verdict.detail


@pytest.mark.slow
def test_a_model_that_fails_the_whole_call_is_strict_and_passes(models):
    with stand_in(models("strict")) as (grpc_address, rest_address, _):
        report = serve_check(
            [grpc_address, rest_address], model="pets", requests=20, hostile=0.25, batch_size=3
        )
    assert failed(report) == set()
    assert all("call refused" in text for text in details(report, "bad picture: empty"))
    for verdict in report.verdicts:
        if "among good ones" in verdict.check:
            assert verdict.outcome == "not applicable" and "whole call" in verdict.detail
    assert [load.hostile for load in report.loads] == [5, 5]


# A fault of the server, and the checks that notice it: all of these, and no others.
SERVER_FAULTS = {
    "unsorted": {"serving_default: scores", "pixels: scores", "classify: scores"},
    "rest-differs": {f"{name}: REST and gRPC agree" for name in SIGNATURES},
    "forgiving": {"bad request: unknown version"},
}


@pytest.mark.parametrize("broken", slow_except(SERVER_FAULTS, fast=["rest-differs"]))
def test_a_fault_of_the_server_fails_the_check_of_it(models, broken):
    with stand_in(models(), broken) as (grpc_address, rest_address, _):
        report = serve_check([grpc_address, rest_address], model="pets", requests=0)
    seen = failed_checks(report)
    if broken == "rest-differs":
        # 1 % off is also not what probabilities and scores are.
        seen -= {"serving_default: scores", "pixels: scores"}
    assert seen == SERVER_FAULTS[broken]


@pytest.mark.slow
def test_errors_that_are_not_the_documented_ones_fail(models):
    with stand_in(models("strict"), "internal") as (grpc_address, rest_address, _):
        report = serve_check([grpc_address, rest_address], model="pets", requests=0)
    assert {f"bad picture: {kind}" for kind in bad_pictures()} < failed_checks(report)
    assert "documented is 400" in " ".join(details(report, "bad picture: empty"))
    assert "documented is INVALID_ARGUMENT" in " ".join(details(report, "bad picture: empty"))

    with stand_in(models(), "html") as (_, rest_address, _):
        report = serve_check(rest_address, model="pets", requests=0)
    assert failed_checks(report) == {v.check for v in report.verdicts if "bad request" in v.check}
    assert "not the documented JSON" in details(report, "bad request: unknown model")[0]


def test_a_server_that_is_not_well_after_a_bad_picture_fails(models):
    with stand_in(models(), "corrupts") as (_, rest_address, _):
        report = serve_check(rest_address, model="pets", requests=8)
    assert "bad picture: empty" in failed_checks(report)
    assert "otherwise than before" in details(report, "bad picture: empty")[0]
    # The answers before are those of the checks, not of the load's own beginning.
    assert "load" in failed_checks(report)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_a_server_that_dies_of_a_bad_picture_fails(models, protocol):
    with stand_in_process(models(), "--broken", "dies") as (facts, process):
        report = serve_check(facts[protocol], model="pets", requests=4)
        assert process.wait(60) == 3
    checks = [verdict.check for verdict in report.verdicts]
    after = checks[checks.index("bad picture: empty") + 1 : -1]
    assert failed_checks(report) == {"bad picture: empty", "load"}
    assert {v.outcome for v in report.verdicts if v.check in after} == {"not applicable"}


@pytest.mark.slow
def test_a_server_that_hangs_is_waited_for_no_longer_than_told(models):
    with stand_in(models(), "hangs") as (grpc_address, rest_address, _):
        for address in (grpc_address, rest_address):
            report = serve_check(address, model="pets", requests=0, timeout=2)
            assert failed_checks(report) == {"bad picture: empty"}
            assert "within 2 s" in details(report, "bad picture: empty")[0]
            # The others would be waited for as long.
            assert details(report, "bad picture: text") == ["the server did not answer in time"]


@pytest.mark.slow
def test_a_load_that_ends_early_says_how_far_it_came(models):
    with stand_in(models(), "hangs") as (_, address, _):
        report = serve_check(address, model="pets", requests=40, clients=1, timeout=2)
    (detail,) = details(report, "load")
    assert detail.startswith("20 of 40 requests, 1 of them hostile, 19 answered: 1 times ")
    assert str(report).splitlines()[-1].split()[:2] == ["REST", "19"]


def test_load_counts_every_wrong_answer(models):
    with stand_in(models("hurt")) as (grpc_address, _, _):
        report = serve_check(
            grpc_address, model="pets", requests=40, clients=4, batch_size=3, hostile=0.1
        )
    (load,) = report.loads
    assert (load.requests, load.hostile, sum(load.wrong.values())) == (40, 4, 4)
    assert len(load.latencies) == 36
    assert load.percentile(50) <= load.percentile(90) <= load.percentile(100)
    assert "load" in failed_checks(report)


def test_own_pictures_are_sent_and_a_broken_one_is_named(served, tmp_path):
    for name, picture in list(good_pictures().items())[:3]:
        (tmp_path / f"{name}.{'png' if 'PNG' in name else 'JPG'}").write_bytes(picture)
    (tmp_path / "notes.txt").write_text("left out")
    report = serve_check(served[0], model="pets", images=tmp_path, requests=4)
    assert report.passed
    assert details(report, "embed: answers")[0].startswith("3 pictures")
    (tmp_path / "broken.png").write_bytes(b"no PNG")
    report = serve_check(served[0], model="pets", images=tmp_path, requests=0)
    assert "'broken.png' is refused" in details(report, "serving_default: answers")[0]


def test_pictures_of_its_own_keep_to_the_limits_of_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(small_served_models, "_MAX_PIXELS", 400)
    write_model(tmp_path / "pets" / "1")
    with stand_in(tmp_path / "pets") as (_, address, _):
        report = serve_check(address, model="pets", requests=0)
        assert {"serving_default: answers", "pixels: answers"} < failed_checks(report)
        report = serve_check(address, model="pets", requests=20, max_pixels=400)
    assert failed_checks(report) == set()


def test_no_more_pictures_are_read_than_sent(served, tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(good_pictures()["PNG"])
    (tmp_path / "last.png").symlink_to("nothing.png")
    options = {"model": "pets", "images": tmp_path, "batch_size": 2}
    for requests in (1, 5):
        assert serve_check(served[1], requests=requests, **options).passed
    with pytest.raises(FileNotFoundError, match="last.png"):
        serve_check(served[1], requests=6, **options)


def test_difference_of_answers():
    answer = {
        "classes": np.array([[b"cat", b"dog", b"ox"]], dtype=object),
        "scores": np.float32([[0.5, 0.25, 0.25]]),
        "logits": np.float32([[1000, 10, 10]]),
    }
    assert difference(answer, answer, 1e-4) == 0
    # Relative to the largest, where there is no bound.
    logits = np.float32([[1000, 10, 11]])
    assert difference(answer, {**answer, "logits": logits}, 1e-4) == pytest.approx(1e-3)
    swapped = answer["classes"][:, [0, 2, 1]]
    assert difference(answer, {**answer, "classes": swapped}, 1e-4) == 0
    swapped = answer["classes"][:, [1, 0, 2]]
    assert difference(answer, {**answer, "classes": swapped}, 1e-4) == np.inf
    assert difference(answer, {**answer, "logits": logits * np.nan}, 1e-4) == np.inf
    assert difference(answer, {**answer, "logits": logits[:, :2]}, 1e-4) == np.inf
    assert difference(answer, {"scores": answer["scores"]}, 1e-4) == np.inf


def test_near_ties_may_swap_within_the_tolerance():
    answer = {
        "classes": np.array([[b"cat", b"dog", b"ox"]], dtype=object),
        "scores": np.float32([[0.5, 0.23, 0.2]]),
    }
    swapped = {**answer, "classes": answer["classes"][:, [0, 2, 1]]}
    assert difference(answer, swapped, 0.01) == np.inf
    assert difference(answer, swapped, 0.02) == 0
    # A class that is not shown, whose score can be 0.07 or is known, comes in.
    other = {**answer, "classes": np.array([[b"cat", b"dog", b"yak"]], dtype=object)}
    assert difference(answer, other, 0.01) == np.inf
    assert difference(answer, other, 0.07) == 0
    known = {"probabilities": np.float32([[0.02, 0.2, 0.05, 0.5, 0.23]])}
    assert difference(answer | known, other | known, 0.01) == np.inf
    known = {"probabilities": np.float32([[0.19, 0.2, 0.05, 0.5, 0.23]])}
    assert difference(answer | known, other | known, 0.01) == 0


# The official stubs against the stand-in: what the checks are measured with is itself right.


def predict_request(signature, **inputs):
    request = apis.predict_pb2.PredictRequest()
    request.model_spec.name = "pets"
    request.model_spec.signature_name = signature
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return request


def test_official_stubs_get_every_signature(served, models):
    loaded = tf.saved_model.load(str(models() / "1")).signatures
    pictures = list(good_pictures().values())
    pixels = np.stack([photograph(20, 30, 1)])
    with grpc.insecure_channel(served[0]) as channel:
        stub = apis.prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for name in SIGNATURES:
            inputs = {"image_bytes": pictures}
            if name == "pixels":
                inputs = {"pixels": pixels}
            if name == "classify":
                inputs = {"inputs": [example(picture) for picture in pictures]}
            response = stub.Predict(predict_request(name, **inputs))
            expected = loaded[name](**{key: tf.constant(value) for key, value in inputs.items()})
            assert set(response.outputs) == set(expected)
            for key, value in expected.items():
                np.testing.assert_array_equal(tf.make_ndarray(response.outputs[key]), value)
            assert (response.model_spec.version.value, response.model_spec.name) == (1, "pets")


def example(picture):
    bytes_list = tf.train.BytesList(value=[picture])
    feature = {"image/encoded": tf.train.Feature(bytes_list=bytes_list)}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def test_official_stubs_classify(served):
    request = apis.classification_pb2.ClassificationRequest()
    request.model_spec.name = "pets"
    request.model_spec.signature_name = "classify"
    for picture in (good_pictures()["PNG"], b"text"):
        request.input.example_list.examples.add().ParseFromString(example(picture))
    with grpc.insecure_channel(served[0]) as channel:
        stub = apis.prediction_service_pb2_grpc.PredictionServiceStub(channel)
        good, bad = stub.Classify(request).result.classifications
        request.model_spec.signature_name = "embed"
        with pytest.raises(grpc.RpcError) as refused:
            stub.Classify(request)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert {entry.label for entry in good.classes} <= set(small_served_models.CLASSES)
    assert bad.classes[0].label == "not a JPEG or PNG file"
    assert [entry.score for entry in bad.classes] == [0] * 5


@pytest.mark.slow
def test_the_stand_in_switches_versions_and_goes_back(models, tmp_path):
    folder = tmp_path / "pets"
    shutil.copytree(models(), folder)
    with stand_in(folder, labels={"stable": 1}) as (grpc_address, rest_address, model):
        rest, official = RestClient(rest_address), GrpcClient(grpc_address)
        before = answer(rest)
        write_model(folder / "2", seed=1)
        model.refresh()
        assert official.status("pets") == rest.status("pets") == {1: "END", 2: "AVAILABLE"}
        assert np.abs(answer(rest)["logits"] - before["logits"]).max() > 0.1
        np.testing.assert_array_equal(answer(official)["logits"], answer(rest)["logits"])
        # A version that cannot be loaded leaves the one before in its place.
        (folder / "3").mkdir()
        (folder / "3" / "saved_model.pb").write_bytes(b"\xff\xff")
        model.refresh()
        assert rest.status("pets") == {1: "END", 2: "AVAILABLE", 3: "END"}
        assert serve_check(rest_address, model="pets", requests=0).passed
        for number in (2, 3):
            shutil.rmtree(folder / str(number))
        model.refresh()
        np.testing.assert_array_equal(answer(rest)["logits"], before["logits"])
        assert rest.call("GET", "/v1/models/pets/labels/stable/metadata")[0] == 200
        assert rest.call("GET", "/v1/models/pets/labels/canary/metadata")[0] == 400
        assert rest.call("GET", "/v1/models/pets/versions/1")[0] == 200
        assert rest.call("GET", "/v1/models/pets/versions/7")[0] == 404
        rest.close()
        official.close()


def answer(client):
    signature = client.signatures("pets")["serving_default"]
    return client.predict("pets", signature, {"image_bytes": [good_pictures()["PNG"]]})


def test_the_stand_in_replays_warm_up_requests(models, tmp_path):
    folder = tmp_path / "pets"
    shutil.copytree(models(), folder)
    log = apis.prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(
        predict_request("embed", image_bytes=[good_pictures()["JPEG"]])
    )
    file = folder / "1" / serving_stand_in.WARMUP
    file.parent.mkdir()
    for signature, state in (("embed", "AVAILABLE"), ("no_such", "END")):
        log.predict_log.request.model_spec.signature_name = signature
        with tf.io.TFRecordWriter(str(file)) as writer:
            writer.write(log.SerializeToString())
        model = serving_stand_in.Model(folder, "pets")
        assert model.states[1]["state"] == state
    assert "no_such" in model.states[1]["error"]


@pytest.mark.slow
def test_the_stand_in_runs_without_keras_and_without_our_code(models):
    with stand_in_process(models(), "--version", "1") as (facts, process):
        assert facts["stand_in"] is True and facts["pid"] == process.pid
        assert serve_check([facts["grpc"], facts["rest"]], model="pets", requests=0).passed
    script = Path(serving_stand_in.__file__).read_text()
    assert "import keras" not in script and "from keras" not in script


@pytest.mark.slow
def test_an_export_passes(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("a SavedModel is exported on the TensorFlow backend")
    from test_export import NAMES, small_model

    from keras_vit.export import export_saved_model

    export_saved_model(small_model(), tmp_path / "pets", class_names=NAMES)
    with stand_in(tmp_path / "pets") as (grpc_address, rest_address, _):
        report = serve_check([grpc_address, rest_address], model="pets", requests=20)
    assert report.passed, str(report)


# What a user can put right is said so.


@pytest.mark.slow
def test_a_server_that_can_list_its_one_model_needs_no_name(models):
    with stand_in(models(), lists_models=True) as (_, address, _):
        assert serve_check(address, requests=0).model == "pets"


def test_what_is_missing_or_wrong_is_said(served, tmp_path):
    grpc_address, rest_address, _ = served
    for address in (grpc_address, rest_address):
        with pytest.raises(ValueError, match="Name the model .* does not list"):
            serve_check(address)
        with pytest.raises(ValueError, match="no model 'dogs'"):
            serve_check(address, model="dogs")
    with pytest.raises(ValueError, match="speak REST"):
        serve_check([rest_address, rest_address], model="pets")
    with pytest.raises(ValueError, match="Received 0 addresses"):
        serve_check([], model="pets")
    for address in ("localhost", "http://localhost:8501", "localhost:port", ":8501", ""):
        with pytest.raises(ValueError, match="HOST:PORT"):
            serve_check(address, model="pets")
    with pytest.raises(NotADirectoryError, match="folder of pictures"):
        serve_check(rest_address, model="pets", images=tmp_path / "none")
    with pytest.raises(ValueError, match="has no .jpg"):
        serve_check(rest_address, model="pets", images=tmp_path)
    values = {"requests": -1, "clients": 0, "batch_size": 0, "hostile": 2, "max_pixels": 0}
    for name, value in values.items():
        with pytest.raises(ValueError, match=name):
            serve_check(rest_address, model="pets", **{name: value})


def listening_socket():
    server = socket.create_server(("127.0.0.1", 0))
    return server, f"127.0.0.1:{server.getsockname()[1]}"


def test_nothing_at_the_address():
    server, address = listening_socket()
    server.close()
    with pytest.raises(ConnectionError, match=f"No server answers at {address}"):
        connect(address)


def test_a_port_that_says_nothing():
    server, address = listening_socket()
    with server, pytest.raises(TimeoutError, match="answers neither REST nor gRPC within 0.2 s"):
        connect(address, timeout=0.2)


def test_a_port_that_speaks_something_else():
    server, address = listening_socket()

    def greet():
        # As a mail server does.
        with contextlib.suppress(OSError):
            while True:
                server.accept()[0].sendall(b"220 mail.example ESMTP\r\n")

    threading.Thread(target=greet, daemon=True).start()
    with pytest.raises(ConnectionError, match="neither the REST nor the gRPC"):
        connect(address, timeout=10)
    server.close()


@contextlib.contextmanager
def web_server(answer):
    """A server that answers by `answer(handler)`; its address, its requests and connections."""
    requests, connections = [], set()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            requests.append(self.path)
            connections.add(self.client_address)
            answer(self)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", requests, connections
        server.shutdown()


def reply(handler, body):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize("page", [b"<html>", b"[1]", b"[" * 100_000], ids=["html", "list", "deep"])
def test_a_web_server_is_no_model_server(page):
    with (
        web_server(lambda handler: reply(handler, page)) as (address, _, _),
        pytest.raises(ConnectionError, match="speaks HTTP, but"),
    ):
        connect(address)


@pytest.mark.parametrize("hangs_up", [False, True])
def test_every_request_is_sent_once_over_a_connection_that_is_kept(hangs_up):
    def answer(handler):
        # A server may close a connection without having said so.
        handler.close_connection = hangs_up
        reply(handler, b"{}")

    paths = [f"/{number}" for number in range(5)]
    with web_server(answer) as (address, requests, connections), RestClient(address) as client:
        assert [client.call("GET", path) for path in paths] == [(200, b"{}")] * 5
        assert requests == paths
        assert len(connections) == (5 if hangs_up else 1)


def test_a_grpc_server_without_models_is_no_model_server():
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(ConnectionError, match="has no tensorflow.serving.ModelService"):
        connect(f"127.0.0.1:{port}", timeout=10)
    server.stop(None)


def test_clients_say_what_the_server_says(served):
    for address, code in zip(served[:2], ("NOT_FOUND", "404"), strict=True):
        with connect(address) as client, pytest.raises(ServingError, match="dogs") as error:
            client.signatures("dogs")
        assert error.value.code == code and error.value.is_refusal and error.value.documented


def test_proxies_of_the_environment_are_not_asked(served, monkeypatch):
    """Nothing but the addresses given is contacted."""
    grpc_address, rest_address, _ = served
    server, proxy = listening_socket()
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://{proxy}")
    for address in (grpc_address, rest_address):
        with connect(address) as client:
            assert client.status("pets") == {1: "AVAILABLE"}
    server.settimeout(0)
    with server, pytest.raises(BlockingIOError):
        server.accept()


def test_an_answer_without_an_end_is_given_up():
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b" " * 2**16)
        handler.close_connection = True

    with web_server(endless) as (address, _, _):
        client = RestClient(address, timeout=0.2)
        with client, pytest.raises((TimeoutError, ConnectionError), match="did not|more than"):
            client.call("GET", "/v1/models/pets")
