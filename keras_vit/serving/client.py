"""A client of TensorFlow Serving's two interfaces, REST and gRPC, with one set of methods.

It speaks to TensorFlow Serving and to every server that offers the same interface. REST needs
nothing but the standard library; gRPC needs the official stubs, `tensorflow-serving-api`.

Sources: https://www.tensorflow.org/tfx/serving/api_rest and the files of `tensorflow_serving/apis`.
"""

import base64
import contextlib
import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

CLASSIFY = "tensorflow/serving/classify"

Values = Sequence[bytes] | np.ndarray
Layout = Literal["rows", "shorthand", "columns"]

# Bytes of an answer: at a time, and at the most.
_PART, _LONGEST_ANSWER = 2**16, 2**28

# What a connection that the server has closed raises.
_CLOSED = (ConnectionResetError, ConnectionAbortedError)

_DTYPES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_HALF": "float16"}

# The faults of a request, not of the server: what TensorFlow Serving maps to 4xx over REST.
_REFUSALS = {
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
}


class ServingError(RuntimeError):
    """An error that the server answered with.

    Args:
        code: HTTP status such as "400", or the gRPC status such as "INVALID_ARGUMENT".
        message: What the server says of it.
        documented: Whether the answer has the documented form: over REST, a JSON object with
            `error`.
    """

    def __init__(self, code: str, message: str, *, documented: bool = True):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.documented = documented

    @property
    def is_refusal(self) -> bool:
        """Whether the server says that the request is at fault, not the server."""
        return self.code in _REFUSALS or (self.code.isdecimal() and 400 <= int(self.code) < 500)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its dtype such as "float32" or "string", and its shape.

    An axis of any size is None; a shape of any rank is None as a whole.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """A signature as the server's metadata describes it."""

    name: str
    method: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


class RestClient:
    """Speaks TensorFlow Serving's REST interface.

    A connection is kept open for each thread that uses the client.

    Args:
        address: `HOST:PORT`; TensorFlow Serving's REST port is 8501 unless told otherwise.
        timeout: Seconds to wait for an answer.

    Example:

    ```python
    with RestClient("localhost:8501") as client:
        signature = client.signatures("pets")["serving_default"]
        answer = client.predict("pets", signature, {"image_bytes": [Path("cat.jpg").read_bytes()]})
    answer["classes"][0]
    ```
    """

    protocol = "REST"

    def __init__(self, address: str, timeout: float = 30.0):
        self.address = address
        self.timeout = timeout
        self._host, self._port = split_address(address)
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        """Closes the connections of all threads."""
        for connection in self._connections:
            connection.close()

    def call(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Sends one HTTP request as it is.

        Args:
            method: "GET" or "POST".
            path: Such as `/v1/models/pets`.
            body: What is posted.

        Returns:
            The HTTP status and the body of the answer, whatever they are.

        Raises:
            ConnectionError: If there is no answer, or none in HTTP.
            TimeoutError: If there is none in time.
        """
        connection, is_new = self._connection()
        try:
            return self._exchange(connection, method, path, body)
        except TimeoutError as error:
            connection.close()
            raise TimeoutError(
                f"{self.address} (REST) did not answer {method} {path} within {self.timeout:g} s."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            # A server may close a kept connection at any time; that is no failure of the request.
            if not is_new and isinstance(error, _CLOSED):
                return self.call(method, path, body)
            raise ConnectionError(
                f"{self.address} (REST) gave no HTTP answer to {method} {path}: "
                f"{str(error).strip() or type(error).__name__}"
            ) from error

    def models(self) -> tuple[str, ...]:
        """Names of the models, of a server that can list them.

        TensorFlow Serving cannot; OpenVINO Model Server does at `/v1/config`.

        Returns:
            The names; empty where the server has no such list.
        """
        status, body = self.call("GET", "/v1/config")
        try:
            models = _parsed(body)
        except ValueError:
            return ()
        if status != 200 or not isinstance(models, dict):
            return ()
        return tuple(
            name
            for name, entry in models.items()
            if isinstance(entry, dict) and "model_version_status" in entry
        )

    def status(self, model: str) -> dict[int, str]:
        """States such as "AVAILABLE" of the versions of a model."""
        answer = self._json("GET", _path(model))
        with _well_formed(self.address, "status"):
            return {
                int(entry["version"]): entry["state"] for entry in answer["model_version_status"]
            }

    def signatures(self, model: str) -> dict[str, Signature]:
        """Signatures of the version that the server takes when none is named."""
        answer = self._json("GET", _path(model) + "/metadata")
        with _well_formed(self.address, "metadata"):
            return {
                name: Signature(
                    name,
                    entry.get("method_name", ""),
                    *(
                        {key: _json_spec(value) for key, value in entry.get(side, {}).items()}
                        for side in ("inputs", "outputs")
                    ),
                )
                for name, entry in answer["metadata"]["signature_def"]["signature_def"].items()
            }

    def request(
        self,
        model: str,
        signature: Signature,
        inputs: Mapping[str, Values],
        *,
        version: int | None = None,
        layout: Layout = "rows",
    ) -> tuple[str, bytes]:
        """Encodes a request, for `send`.

        Args:
            model: Name of the model.
            signature: Which of its signatures; that for classify is asked by `:classify`.
            inputs: Values by the name of the input, encoded images as bytes, the first axis of an
                array the batch. For classify: bytes by the name of the feature of `tf.Example`.
            version: None: the one that the server takes by itself.
            layout: "rows" is `instances` of named values, "shorthand" `instances` of the values
                alone, for a signature of one input, "columns" `inputs`.

        Returns:
            Path and body.
        """
        path = _path(model, version)
        columns = {
            name: [_json_value(value) for value in values] for name, values in inputs.items()
        }
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        body: dict[str, Any] = {"signature_name": signature.name}
        if signature.method == CLASSIFY:
            return path + ":classify", json.dumps({**body, "examples": rows}).encode()
        if layout == "columns":
            body["inputs"] = columns
        elif layout == "shorthand":
            (body["instances"],) = columns.values()
        else:
            body["instances"] = rows if columns else [{}]
        return path + ":predict", json.dumps(body).encode()

    def send(self, request: tuple[str, bytes]) -> bytes:
        """Sends an encoded request.

        Returns:
            The body of the answer, for `outputs`.

        Raises:
            ServingError: If the server answers with an error.
            ConnectionError: If it gives no answer.
            TimeoutError: If it gives none in time.
        """
        path, body = request
        status, answer = self.call("POST", path, body)
        _raise_for_status(status, answer)
        return answer

    def outputs(self, signature: Signature, answer: bytes) -> dict[str, np.ndarray]:
        """Decodes the answer to a request.

        Returns:
            Arrays by the name of the output; strings are arrays of bytes objects.

        Raises:
            ValueError: If the answer does not have the documented form.
        """
        with _well_formed(self.address, "answer"):
            parsed = _parsed(answer)
            if signature.method == CLASSIFY:
                return _classified(
                    [[label, score] for label, score in row] for row in parsed["results"]
                )
            if "outputs" in parsed:
                columns = parsed["outputs"]
                if len(signature.outputs) == 1:
                    columns = dict.fromkeys(signature.outputs, columns)
            elif len(signature.outputs) == 1:
                columns = dict.fromkeys(signature.outputs, parsed["predictions"])
            else:
                rows = parsed["predictions"]
                columns = {name: [row[name] for row in rows] for name in rows[0]}
            return {
                name: _array(name, values, signature.outputs[name].dtype)
                for name, values in columns.items()
            }

    def predict(
        self, model: str, signature: Signature, inputs: Mapping[str, Values], **options: Any
    ) -> dict[str, np.ndarray]:
        """Asks the model: `request`, `send` and `outputs` in one, with their arguments."""
        return self.outputs(signature, self.send(self.request(model, signature, inputs, **options)))

    def _connection(self):
        """This thread's connection, and whether nothing was sent over it yet."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self.timeout)
            self._local.connection = connection
            self._connections.append(connection)
        return connection, connection.sock is None

    def _exchange(self, connection, method, path, body):
        # A server that refuses a large body may answer before it has read all of it.
        with contextlib.suppress(BrokenPipeError):
            connection.request(method, path, body, {"Content-Type": "application/json"})
        # A time-out of the socket ends only silence, not an answer without an end.
        deadline, answer = time.monotonic() + self.timeout, bytearray()
        # The connection takes no other request before the answer is closed, which `read1` does at
        # its end in later Pythons only.
        with connection.getresponse() as response:
            while part := response.read1(_PART):
                answer += part
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(answer) > _LONGEST_ANSWER:
                    raise ConnectionError(f"the answer has more than {_LONGEST_ANSWER} bytes")
        return response.status, bytes(answer)

    def _json(self, method, path):
        status, body = self.call(method, path)
        _raise_for_status(status, body)
        with _well_formed(self.address, "answer"):
            return _parsed(body)


class GrpcClient:
    """Speaks TensorFlow Serving's gRPC interface, through the official stubs.

    Args:
        address: `HOST:PORT`; TensorFlow Serving's gRPC port is 8500 unless told otherwise.
        timeout: Seconds to wait for an answer.

    Raises:
        ImportError: If `tensorflow-serving-api` is not installed.
    """

    protocol = "gRPC"

    def __init__(self, address: str, timeout: float = 30.0):
        try:
            import grpc
            from tensorflow_serving.apis import (
                model_service_pb2_grpc,
                prediction_service_pb2_grpc,
            )
        except ImportError as error:
            raise ImportError(
                "Speaking gRPC to a model server needs the official stubs: "
                "pip install tensorflow-serving-api"
            ) from error
        self.address = address
        self.timeout = timeout
        # Batches of pictures exceed gRPC's 4 MB; an address is asked itself, never by a proxy.
        options = {
            "grpc.max_send_message_length": -1,
            "grpc.max_receive_message_length": -1,
            "grpc.enable_http_proxy": 0,
            "grpc.enable_retries": 0,
        }
        split_address(address)
        self._channel = grpc.insecure_channel(address, options=list(options.items()))
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def models(self) -> tuple[str, ...]:
        """Names of the models: the interface has no call that lists them."""
        return ()

    def status(self, model: str) -> dict[int, str]:
        """States such as "AVAILABLE" of the versions of a model."""
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        response = self._call(self._models.GetModelStatus, request)
        state = get_model_status_pb2.ModelVersionStatus.State.Name
        return {entry.version: state(entry.state) for entry in response.model_version_status}

    def signatures(self, model: str) -> dict[str, Signature]:
        """Signatures of the version that the server takes when none is named."""
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest()
        request.model_spec.name = model
        request.metadata_field.append("signature_def")
        response = self._call(self._prediction.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        if not response.metadata["signature_def"].Unpack(signatures):
            raise ValueError(f"The metadata of {self.address} has no `signature_def`.")
        return {
            name: Signature(
                name,
                entry.method_name,
                {key: _proto_spec(value) for key, value in entry.inputs.items()},
                {key: _proto_spec(value) for key, value in entry.outputs.items()},
            )
            for name, entry in signatures.signature_def.items()
        }

    def request(
        self,
        model: str,
        signature: Signature,
        inputs: Mapping[str, Values],
        *,
        version: int | None = None,
    ) -> Any:
        """Encodes a request, for `send`; the arguments are those of `RestClient.request`.

        Returns:
            A `PredictRequest`, or for classify a `ClassificationRequest`.
        """
        import tensorflow as tf
        from tensorflow_serving.apis import classification_pb2, predict_pb2

        is_classify = signature.method == CLASSIFY
        request: Any = (
            classification_pb2.ClassificationRequest()
            if is_classify
            else predict_pb2.PredictRequest()
        )
        request.model_spec.name = model
        request.model_spec.signature_name = signature.name
        if version is not None:
            request.model_spec.version.value = version
        if not is_classify:
            for name, values in inputs.items():
                # A NumPy array of bytes would lose the zeros at their ends.
                dtype = None if isinstance(values, np.ndarray) else tf.string
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values, dtype=dtype))
            return request
        for row in zip(*inputs.values(), strict=True):
            example = request.input.example_list.examples.add()
            for name, value in zip(inputs, row, strict=True):
                # Numbers are how a wrong dtype is tried.
                if isinstance(value, bytes):
                    example.features.feature[name].bytes_list.value.append(value)
                else:
                    example.features.feature[name].float_list.value.append(value)
        return request

    def send(self, request: Any) -> Any:
        """Sends an encoded request.

        Returns:
            The `PredictResponse` or `ClassificationResponse`, for `outputs`.

        Raises:
            ServingError: If the server answers with an error.
            ConnectionError: If it gives no answer.
            TimeoutError: If it gives none in time.
        """
        is_predict = request.DESCRIPTOR.name == "PredictRequest"
        call = self._prediction.Predict if is_predict else self._prediction.Classify
        return self._call(call, request)

    def outputs(self, signature: Signature, answer: Any) -> dict[str, np.ndarray]:
        """Decodes the answer to a request.

        Returns:
            Arrays by the name of the output; strings are arrays of bytes objects.
        """
        import tensorflow as tf

        if signature.method == CLASSIFY:
            return _classified(
                [[entry.label, entry.score] for entry in row.classes]
                for row in answer.result.classifications
            )
        return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}

    def predict(
        self, model: str, signature: Signature, inputs: Mapping[str, Values], **options: Any
    ) -> dict[str, np.ndarray]:
        """Asks the model: `request`, `send` and `outputs` in one, with their arguments."""
        return self.outputs(signature, self.send(self.request(model, signature, inputs, **options)))

    def _call(self, method, request):
        import grpc

        try:
            return method(request, timeout=self.timeout)
        except grpc.RpcError as error:
            code = error.code()
            details = error.details() or "no details"
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError(
                    f"{self.address} (gRPC) did not answer within {self.timeout:g} s."
                ) from error
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise ConnectionError(
                    f"{self.address} (gRPC) is not available: {details}"
                ) from error
            raise ServingError(code.name, details) from error


Client = RestClient | GrpcClient


def connect(address: str, *, timeout: float = 30.0) -> Client:
    """Finds out whether an address speaks REST or gRPC.

    Args:
        address: `HOST:PORT` of a running server.
        timeout: Seconds to wait for each answer, now and later.

    Returns:
        A client of the protocol that the address speaks.

    Raises:
        ConnectionError: If nothing listens there, or what does speaks neither.
        TimeoutError: If what listens there says nothing.
        ImportError: If it may speak gRPC and `tensorflow-serving-api` is not installed.
        ValueError: If the address is not `HOST:PORT`.
    """
    rest = RestClient(address, timeout)
    try:
        # TensorFlow Serving says that the name is missing: an error, but JSON.
        _, body = rest.call("GET", "/v1/models")
    except TimeoutError:
        rest.close()
        return _connect_grpc(address, timeout)
    except ConnectionError as error:
        rest.close()
        # Who speaks HTTP/2 alone says something else, or hangs up.
        if isinstance(error.__cause__, http.client.HTTPException | ConnectionResetError):
            return _connect_grpc(address, timeout)
        raise ConnectionError(
            f"No server answers at {address} ({error.__cause__}). Start it, or correct the "
            "address; TensorFlow Serving listens at 8500 (gRPC) and 8501 (REST)."
        ) from error
    try:
        is_json = isinstance(_parsed(body), dict)
    except ValueError:
        is_json = False
    if is_json:
        return rest
    rest.close()
    raise ConnectionError(
        f"{address} speaks HTTP, but GET /v1/models was not answered with JSON: it is not the "
        f"REST interface of a model server. It said: {_start(body)}"
    )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`.

    Raises:
        ValueError: If the address has another form.

    Example:

    >>> split_address("[::1]:8501")
    ('::1', 8501)
    """
    parts = urllib.parse.urlsplit(f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.netloc != address or "@" in address:
        raise ValueError(
            "An address must be HOST:PORT, such as localhost:8501 or [::1]:8500. "
            f"Received: {address!r}"
        )
    return host, port


def _connect_grpc(address, timeout):
    client = GrpcClient(address, timeout)
    try:
        client.status("")
    except ServingError as error:
        # A model without a name is not found: what matters is who says so.
        if error.code != "UNIMPLEMENTED":
            return client
        client.close()
        raise ConnectionError(
            f"{address} speaks gRPC, but has no tensorflow.serving.ModelService: it is not a "
            "model server with TensorFlow Serving's interface."
        ) from error
    except TimeoutError as error:
        client.close()
        raise TimeoutError(
            f"{address} takes connections, but answers neither REST nor gRPC within {timeout:g} s."
        ) from error
    except ConnectionError as error:
        client.close()
        raise ConnectionError(
            f"{address} speaks neither the REST nor the gRPC interface of a model server. {error}"
        ) from error
    return client


def _path(model, version=None):
    path = f"/v1/models/{urllib.parse.quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{version}"


def _raise_for_status(status, body):
    if status == 200:
        return
    try:
        message = _parsed(body)["error"]
    except (ValueError, KeyError, TypeError):
        raise ServingError(str(status), _start(body), documented=False) from None
    raise ServingError(str(status), message)


def _parsed(body):
    try:
        return json.loads(body)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deep") from error


@contextlib.contextmanager
def _well_formed(address, what):
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"The {what} of {address} does not have the documented form: "
            f"{type(error).__name__}: {error}"
        ) from error


def _start(body):
    text = body[:200].decode("utf-8", "replace").strip()
    return repr(text) if text else "nothing"


def _json_value(value):
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return value.tolist()


def _json_spec(entry):
    shape = entry.get("tensor_shape", {})
    # int64 is written as text.
    sizes = [int(axis["size"]) for axis in shape.get("dim", [])]
    return _spec(entry["dtype"], shape.get("unknown_rank", False), sizes)


def _proto_spec(entry):
    from tensorflow.core.framework import types_pb2

    shape = entry.tensor_shape
    sizes = [axis.size for axis in shape.dim]
    return _spec(types_pb2.DataType.Name(entry.dtype), shape.unknown_rank, sizes)


def _spec(dtype, unknown_rank, sizes):
    name = _DTYPES.get(dtype, dtype.removeprefix("DT_").lower())
    shape = None if unknown_rank else tuple(None if size < 0 else size for size in sizes)
    return TensorSpec(name, shape)


def _array(name, values, dtype):
    if dtype != "string":
        return np.array(values, dtype)

    def decode(value):
        if isinstance(value, dict):
            return base64.b64decode(value["b64"])
        if not isinstance(value, str):
            raise ValueError(f"{name} should be text, and is {value!r}")
        return value.encode()

    return np.frompyfunc(decode, 1, 1)(np.array(values, dtype=object))


def _classified(rows):
    """classes and scores of a classification, from rows of (label, score)."""
    rows = list(rows)
    labels = [[label.encode() for label, _ in row] for row in rows]
    return {
        "classes": np.array(labels, dtype=object),
        "scores": np.array([[score for _, score in row] for row in rows], "float32"),
    }
