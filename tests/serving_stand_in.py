"""A stand-in for TensorFlow Serving in tests. It is NOT TensorFlow Serving.

    python -m tests.serving_stand_in FOLDER --name NAME

serves the SavedModels FOLDER/1, FOLDER/2 … with TensorFlow, over gRPC (the official stubs) and
REST (the documented JSON), at ports of its choice, printed as one line of JSON. It knows neither
Keras nor keras_vit. The documented interface is followed, errors included; batching of requests,
several models and configuration files are not there. Whatever passes here may still fail in the
real server: `test_model_server.py` runs that, where there is one.

Sources: https://www.tensorflow.org/tfx/serving/api_rest, and for the codes and texts of errors
TensorFlow Serving's http_server.cc, json_tensor.cc, predict_util.cc and get_model_status_impl.cc.
"""

import argparse
import base64
import binascii
import concurrent.futures
import http.server
import json
import os
import re
import threading
import time
import urllib.parse
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.example import example_pb2
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

CLASSIFY = "tensorflow/serving/classify"
WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"

# How a test breaks the stand-in, to see that a check notices.
BREAKAGES = (
    "none",
    "dies",  # the process ends at a bad picture
    "hangs",  # no answer to a bad picture
    "unsorted",  # scores worst first
    "rest-differs",  # REST answers with other numbers than gRPC
    "internal",  # every error is a 500
    "html",  # errors over REST are no JSON
    "forgiving",  # an unknown version is taken for the present one
    "corrupts",  # after the first error all numbers change
)

# http_server.cc, ToHTTPStatusCode.
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class Refused(Exception):
    """An error that the client is told: a gRPC code's name and a text."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def invalid(message):
    return Refused("INVALID_ARGUMENT", message)


class Version:
    """One loaded version: what its file says of its signatures, and the functions."""

    def __init__(self, folder):
        saved_model = saved_model_pb2.SavedModel.FromString(
            (folder / "saved_model.pb").read_bytes()
        )
        self.number = int(folder.name)
        self.signatures = dict(saved_model.meta_graphs[0].signature_def)
        self.loaded = tf.saved_model.load(str(folder))
        self.warmed = self._warm_up(folder / WARMUP)

    def run(self, signature_name, inputs):
        try:
            outputs = self.loaded.signatures[signature_name](**inputs)
        except tf.errors.OpError as error:
            code = grpc_code(error.error_code)
            raise Refused(code, error.message) from error
        except (TypeError, ValueError) as error:
            raise invalid(str(error)) from error
        return {name: value.numpy() for name, value in outputs.items()}

    def _warm_up(self, file):
        """Replays the warm-up requests; one that fails, fails the loading."""
        if not file.exists():
            return 0
        count = 0
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind == "predict_log":
                predict(self, log.predict_log.request)
            elif kind == "classify_log":
                classify(self, log.classify_log.request)
            else:
                raise ValueError(f"The stand-in cannot replay a {kind}.")
            count += 1
        return count


def grpc_code(number):
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


class Model:
    """The versions of one model: the highest one found is served, or a pinned one."""

    def __init__(self, folder, name, pinned=None, labels=None, broken="none"):
        self.folder, self.name, self.pinned = Path(folder), name, pinned
        self.labels, self.broken = labels or {}, broken
        self.states = {}
        self.present = None
        self.has_failed = False
        self.has_ended = threading.Event()
        self.refresh()

    def refresh(self):
        """Takes up the version that there should be, and then lets the other one go."""
        numbers = [
            int(entry.name)
            for entry in self.folder.iterdir()
            if entry.name.isdecimal() and (entry / "saved_model.pb").exists()
        ]
        wanted = self.pinned if self.pinned is not None else max(numbers, default=None)
        if wanted not in numbers or (self.present and self.present.number == wanted):
            return
        if "error" in self.states.get(wanted, {}):
            return
        self.states[wanted] = {"state": "LOADING"}
        try:
            loaded = Version(self.folder / str(wanted))
        except Exception as error:
            # The version before goes on being served.
            self.states[wanted] = {"state": "END", "error": str(error)}
            return
        before, self.present = self.present, loaded
        self.states[wanted] = {"state": "AVAILABLE"}
        if before:
            self.states[before.number] = {"state": "END"}

    def watch(self, seconds=0.2):
        def loop():
            while True:
                time.sleep(seconds)
                self.refresh()

        threading.Thread(target=loop, daemon=True).start()

    def version(self, spec):
        """The version that a request's model_spec asks for."""
        number = spec.version.value if spec.HasField("version") else None
        if spec.version_label:
            if spec.version_label not in self.labels:
                raise Refused(
                    "FAILED_PRECONDITION",
                    f"Unrecognized servable version label: {spec.version_label}",
                )
            number = self.labels[spec.version_label]
        present = self.present
        is_known = number is None or self.broken == "forgiving" or number == present.number
        if spec.name != self.name or present is None or not is_known:
            what = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise Refused("NOT_FOUND", f"Servable not found for request: {what}")
        return present

    def outcome(self, function, *arguments):
        """Runs a request, with the stand-in's breakage."""
        try:
            outputs = function(*arguments)
        except Refused as error:
            self._failed()
            if self.broken == "internal":
                raise Refused("INTERNAL", str(error)) from error
            raise
        if "error" in outputs and outputs["error"].astype(bool).any():
            self._failed()
        if self.broken == "unsorted" and "scores" in outputs:
            good = outputs["scores"].any(-1)
            for name in ("scores", "classes"):
                outputs[name][good] = outputs[name][good, ::-1]
        if self.broken == "corrupts" and self.has_failed:
            outputs = shifted(outputs)
        return outputs

    def _failed(self):
        self.has_failed = True
        if self.broken == "dies":
            os._exit(3)
        if self.broken == "hangs":
            self.has_ended.wait()


def shifted(outputs):
    return {
        name: value if value.dtype == object else value * np.float32(0.99)
        for name, value in outputs.items()
    }


def predict(version, request):
    name = request.model_spec.signature_name or "serving_default"
    if name not in version.signatures:
        raise Refused("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    expected = version.signatures[name].inputs
    if set(request.inputs) != set(expected):
        raise invalid(
            f"input size does not match signature: sent {sorted(request.inputs)}, "
            f"expected {sorted(expected)}"
        )
    inputs = {}
    for key, proto in request.inputs.items():
        if any(axis.size < 0 for axis in proto.tensor_shape.dim):
            raise invalid(f"tensor parsing error: {key}")
        try:
            inputs[key] = tf.constant(tf.make_ndarray(proto), dtype=proto.dtype)
        except (TypeError, ValueError) as error:
            raise invalid(f"tensor parsing error: {key}") from error
        if proto.dtype != expected[key].dtype:
            raise invalid(
                f"Expects {key} to be {types_pb2.DataType.Name(expected[key].dtype)} but "
                f"{types_pb2.DataType.Name(proto.dtype)} is provided"
            )
    return version.run(name, inputs)


def classify(version, request):
    name = request.model_spec.signature_name or "serving_default"
    if name not in version.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    method = version.signatures[name].method_name
    if method != CLASSIFY:
        raise invalid(
            f"Expected classification signature method_name to be {CLASSIFY}. Was: {method}"
        )
    examples = [example.SerializeToString() for example in request.input.example_list.examples]
    if not examples:
        raise invalid("Input is empty")
    return version.run(name, {"inputs": tf.constant(examples)})


def start_grpc(model, port=0):
    def answer(context, function):
        try:
            return function()
        except Refused as error:
            return context.abort(getattr(grpc.StatusCode, error.code), str(error))

    class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            def run():
                version = model.version(request.model_spec)
                response = predict_pb2.PredictResponse()
                response.model_spec.name = model.name
                response.model_spec.version.value = version.number
                response.model_spec.signature_name = (
                    request.model_spec.signature_name or "serving_default"
                )
                for name, value in model.outcome(predict, version, request).items():
                    dtype = tf.string if value.dtype == object else value.dtype
                    response.outputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
                return response

            return answer(context, run)

        def Classify(self, request, context):
            def run():
                version = model.version(request.model_spec)
                response = classification_pb2.ClassificationResponse()
                response.model_spec.name = model.name
                response.model_spec.version.value = version.number
                outputs = model.outcome(classify, version, request)
                for labels, scores in zip(outputs["classes"], outputs["scores"], strict=True):
                    row = response.result.classifications.add()
                    for label, score in zip(labels, scores, strict=True):
                        row.classes.add(label=label.decode(), score=score)
                return response

            return answer(context, run)

        def GetModelMetadata(self, request, context):
            return answer(context, lambda: metadata(model, request.model_spec))

    class Models(model_service_pb2_grpc.ModelServiceServicer):
        def GetModelStatus(self, request, context):
            return answer(context, lambda: status(model, request.model_spec))

    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(32),
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


def metadata(model, spec):
    version = model.version(spec)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = model.name
    response.model_spec.version.value = version.number
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in version.signatures.items():
        signatures.signature_def[name].CopyFrom(signature)
    response.metadata["signature_def"].Pack(signatures)
    return response


def status(model, spec):
    states = model.states if spec.name == model.name else {}
    if spec.HasField("version"):
        states = {key: value for key, value in states.items() if key == spec.version.value}
        if not states:
            raise Refused(
                "NOT_FOUND", f"Could not find version {spec.version.value} of model {spec.name}"
            )
    if not states:
        raise Refused("NOT_FOUND", f"Could not find any versions of model {spec.name}")
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, state in states.items():
        entry = response.model_version_status.add(version=number, state=state["state"])
        if "error" in state:
            entry.status.error_code = 2
            entry.status.error_message = state["error"]
    return response


_VERSION = r"(?:/versions/(\d+)|/labels/([^/:]+))?"
POST_PATH = re.compile(rf"/v1/models/([^/:]+){_VERSION}:(classify|regress|predict)", re.I)
GET_PATH = re.compile(rf"/v1/models(?:/([^/:]+))?{_VERSION}(/metadata)?", re.I)


def model_spec(match):
    spec = predict_pb2.PredictRequest().model_spec
    spec.name = urllib.parse.unquote(match[1])
    if match[2]:
        spec.version.value = int(match[2])
    if match[3]:
        spec.version_label = urllib.parse.unquote(match[3])
    return spec


def rest_get(model, path):
    match = GET_PATH.fullmatch(path)
    if not match:
        raise invalid(f"Malformed request: GET {path}")
    if not match[1]:
        raise invalid("Missing model name in request.")
    spec = model_spec(match)
    if not match[4]:
        return json_format.MessageToDict(
            status(model, spec),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
    response = metadata(model, spec)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    as_json = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    return {
        "model_spec": json_format.MessageToDict(response.model_spec, **as_json),
        "metadata": {"signature_def": json_format.MessageToDict(signatures, **as_json)},
    }


def rest_post(model, path, body):
    match = POST_PATH.fullmatch(path)
    if not match:
        raise invalid(f"Malformed request: POST {path}")
    version = model.version(model_spec(match))
    try:
        parsed = json.loads(body)
    except ValueError as error:
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(parsed, dict):
        raise invalid("JSON Value: Is not object")
    if match[4].lower() == "classify":
        outputs = model.outcome(classify, version, classification_request(parsed))
        if model.broken == "rest-differs":
            outputs = shifted(outputs)
        rows = zip(outputs["classes"], outputs["scores"], strict=True)
        return {
            "results": [
                [[label.decode(), float(score)] for label, score in zip(*row, strict=True)]
                for row in rows
            ]
        }
    if match[4].lower() == "regress":
        raise Refused("UNIMPLEMENTED", "The stand-in has no regress.")
    request, in_rows = predict_request(version, parsed)
    outputs = model.outcome(predict, version, request)
    return json_outputs(shifted(outputs) if model.broken == "rest-differs" else outputs, in_rows)


def classification_request(parsed):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.signature_name = parsed.get("signature_name", "")
    examples = parsed.get("examples")
    if not isinstance(examples, list) or not examples:
        raise invalid("When method is classify, key 'examples' is expected and was not found")
    for entry in examples:
        if not isinstance(entry, dict):
            raise invalid("Example must be JSON object")
        example = example_pb2.Example()
        for name, value in entry.items():
            feature = example.features.feature[name]
            for item in value if isinstance(value, list) else [value]:
                if is_base64(item):
                    feature.bytes_list.value.append(from_base64(item))
                elif isinstance(item, str):
                    feature.bytes_list.value.append(item.encode())
                elif isinstance(item, float):
                    feature.float_list.value.append(item)
                elif isinstance(item, int):
                    feature.int64_list.value.append(item)
                else:
                    raise invalid(f"Feature: {name} has element with unexpected JSON type")
        request.input.example_list.examples.append(example)
    return request


def predict_request(version, parsed):
    name = parsed.get("signature_name", "serving_default")
    if not isinstance(name, str):
        raise invalid("'signature_name' key must be a string value.")
    if name not in version.signatures:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    expected = version.signatures[name].inputs
    if ("instances" in parsed) == ("inputs" in parsed):
        raise invalid("Missing 'inputs' or 'instances' key")
    in_rows = "instances" in parsed
    if in_rows:
        columns = columns_of_rows(parsed["instances"], expected)
    else:
        columns = parsed["inputs"]
        if not isinstance(columns, dict) or is_base64(columns):
            if len(expected) > 1:
                raise invalid("inputs is a plain value/list, but expecting an object")
            columns = dict.fromkeys(expected, columns)
        for key in expected:
            if key not in columns:
                raise invalid(f"Missing named input: {key} in 'inputs' object.")
        columns = {key: columns[key] for key in expected}
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = name
    for key, values in columns.items():
        request.inputs[key].CopyFrom(tensor_of_json(values, expected[key].dtype))
    return request, in_rows


def columns_of_rows(rows, expected):
    if not isinstance(rows, list) or not rows:
        raise invalid("Excepting 'instances' to be an list/array")
    named = isinstance(rows[0], dict) and not is_base64(rows[0])
    if not named:
        if len(expected) > 1:
            raise invalid("instances is a plain list, but expecting list of objects")
        return dict.fromkeys(expected, rows)
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != set(expected):
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. "
                f"keys must be equal to: {','.join(sorted(expected))}"
            )
    return {key: [row[key] for row in rows] for key in expected}


def tensor_of_json(values, dtype):
    def leaf(value):
        if is_base64(value) and dtype == types_pb2.DT_STRING:
            return from_base64(value)
        if isinstance(value, str) and dtype == types_pb2.DT_STRING:
            return value.encode()
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if dtype == types_pb2.DT_STRING or not is_number:
            kind = types_pb2.DataType.Name(dtype)
            raise invalid(f"JSON Value: {str(value)[:40]} is not of expected type: {kind}")
        return value

    def walk(value):
        return [walk(item) for item in value] if isinstance(value, list) else leaf(value)

    try:
        return tf.make_tensor_proto(walk(values), dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise invalid(f"Encountered list at unexpected size: {error}") from error


def is_base64(value):
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def from_base64(value):
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def json_outputs(outputs, in_rows):
    def encoded(name, value):
        if value.dtype != object:
            return value.tolist()
        if name.endswith("_bytes"):
            convert = np.frompyfunc(lambda item: {"b64": base64.b64encode(item).decode()}, 1, 1)
        else:
            convert = np.frompyfunc(bytes.decode, 1, 1)
        return convert(value).tolist()

    columns = {name: encoded(name, value) for name, value in outputs.items()}
    if len(columns) == 1:
        return {"predictions" if in_rows else "outputs": next(iter(columns.values()))}
    if not in_rows:
        return {"outputs": columns}
    rows = zip(*columns.values(), strict=True)
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in rows]}


def start_rest(model, port=0, lists_models=False):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "serving-stand-in (not TensorFlow Serving)"
        # A reply in two small packets would wait for the client's delayed acknowledgement.
        disable_nagle_algorithm = True

        def do_GET(self):
            if lists_models and self.path == "/v1/config":
                self.reply(200, {model.name: {"model_version_status": []}})
                return
            self.run(lambda: rest_get(model, self.path))

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.run(lambda: rest_post(model, self.path, body))

        def run(self, function):
            try:
                self.reply(200, function())
            except Refused as error:
                self.reply(HTTP_STATUS.get(error.code, 500), {"error": str(error)})

        def reply(self, status, answer):
            is_html = status != 200 and model.broken == "html" and self.command == "POST"
            body = b"<html>Oh no</html>" if is_html else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if is_html else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, server.server_address[1]


def main(arguments=None):
    parser = argparse.ArgumentParser(description="A stand-in for TensorFlow Serving, for tests.")
    parser.add_argument("folder", help="The model's folder, with a sub-folder for each version.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", type=int, help="Serve this one; else the highest.")
    parser.add_argument("--label", action="append", default=[], help="NAME=VERSION")
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--rest-port", type=int, default=0)
    parser.add_argument("--list-models", action="store_true")
    parser.add_argument("--broken", choices=BREAKAGES, default="none")
    options = parser.parse_args(arguments)
    labels = {name: int(number) for name, number in (pair.split("=") for pair in options.label)}
    model = Model(options.folder, options.name, options.version, labels, options.broken)
    model.watch()
    # A gRPC server that nothing refers to ends.
    grpc_server, grpc_port = start_grpc(model, options.grpc_port)
    _, rest_port = start_rest(model, options.rest_port, options.list_models)
    places = {"grpc": f"127.0.0.1:{grpc_port}", "rest": f"127.0.0.1:{rest_port}"}
    facts = {"stand_in": True, "pid": os.getpid(), "name": model.name, **places}
    print(json.dumps(facts), flush=True)
    grpc_server.wait_for_termination()


if __name__ == "__main__":
    main()
