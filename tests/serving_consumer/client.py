"""Starts the consumer and talks to it; the messages are described in consumer.c."""

import math
import os
import socket
import struct
import subprocess
import tempfile

import numpy as np

from serving_consumer.signatures import read_signatures

RUN, MEMORY, OK, STRING = 1, 2, 0, 7
# TF_DataType of TensorFlow's tf_datatype.h; strings are arrays of bytes objects.
DTYPES = {1: "float32", 2: "float64", 3: "int32", 4: "uint8", 6: "int8", 9: "int64", 10: "bool"}
CODES = {np.dtype(name): code for code, name in DTYPES.items()}


class RequestError(Exception):
    """A request that failed in the consumer; `code` is its TF_Code."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Consumer:
    """A running consumer, which ends with the `with` block.

    Args:
        program: What `compile_consumer` gave.
        folder: A SavedModel, the folder of one version.
        workers: Connections served at a time.
        allow_xla: Leaves XLA on, which the stock server does not.

    Raises:
        RuntimeError: If the SavedModel cannot be loaded, with what the consumer said.
    """

    def __init__(self, program, folder, workers=4, allow_xla=False):
        self.signatures = read_signatures(folder)
        # A file: a pipe that nobody reads would stop the consumer when it is full.
        self.log = tempfile.TemporaryFile("w+")
        command = [program, folder, str(workers), *(["allow-xla"] if allow_xla else [])]
        self.process = subprocess.Popen(
            list(map(os.fspath, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        port = self.process.stdout.readline().removeprefix("port ")
        if not port:
            self.process.communicate()
            raise RuntimeError(f"The consumer ended with {self.process.returncode}: {self.said()}")
        self.port = int(port)
        self.version = self.process.stdout.readline().split()[-1]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        # Closes its standard input, which it waits for.
        self.process.communicate()
        self.log.close()

    @property
    def running(self):
        return self.process.poll() is None

    def said(self):
        """What it wrote to standard error."""
        self.log.seek(0)
        return self.log.read()

    def client(self):
        """A connection of its own."""
        return Client(self)

    def call(self, signature="serving_default", **inputs):
        """One call over a connection of its own; see `Client.call`."""
        with self.client() as client:
            return client.call(signature, **inputs)


class Client:
    """One connection to a consumer, for one thread; a request is answered before the next."""

    def __init__(self, consumer):
        self.signatures = consumer.signatures
        self.socket = socket.create_connection(("127.0.0.1", consumer.port))
        # An answer is waited for before anything else is sent.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.socket.close()

    def call(self, signature="serving_default", **inputs):
        """Calls a signature by its names.

        Args:
            signature: Name of the signature.
            **inputs: Arrays; lists of bytes for a string tensor of one axis.

        Returns:
            An array for each output of the signature.

        Raises:
            RequestError: If TensorFlow failed the call.
        """
        signature = self.signatures[signature]
        feeds = {signature.inputs[name][0]: value for name, value in inputs.items()}
        fetches = [tensor for tensor, _ in signature.outputs.values()]
        return dict(zip(signature.outputs, self.run(feeds, fetches), strict=True))

    def run(self, feeds, fetches):
        """Feeds and fetches tensors by their names in the graph."""
        parts = [struct.pack("<II", RUN, len(feeds))]
        for name, value in feeds.items():
            parts += [_string(name.encode()), _encoded(value)]
        parts += [struct.pack("<I", len(fetches)), *(_string(name.encode()) for name in fetches)]
        answer = self.request(b"".join(parts))
        (count,) = answer.numbers("<I")
        return [answer.tensor() for _ in range(count)]

    def memory(self):
        """Resident memory of the consumer in bytes: now, and the highest so far."""
        return self.request(struct.pack("<I", MEMORY)).numbers("<qq")

    def request(self, message):
        """Sends a message as it is; what follows the code of the answer."""
        self.socket.sendall(_string(message))
        (size,) = struct.unpack("<Q", self._receive(8))
        answer = _Reader(self._receive(size))
        (code,) = answer.numbers("<I")
        if code != OK:
            raise RequestError(code, answer.string().decode(errors="replace"))
        return answer

    def _receive(self, size):
        received = bytearray(size)
        view = memoryview(received)
        while view:
            n = self.socket.recv_into(view)
            if n == 0:
                raise ConnectionError("The consumer closed the connection.")
            view = view[n:]
        return received


def _string(value):
    return struct.pack("<Q", len(value)) + value


def _encoded(value):
    if not isinstance(value, np.ndarray) and all(isinstance(item, bytes) for item in value):
        value = np.array([*value, None], object)[:-1]
    array = np.asarray(value)
    shape = struct.pack(f"<I{array.ndim}q", array.ndim, *array.shape)
    if array.dtype == object:
        return struct.pack("<I", STRING) + shape + b"".join(map(_string, array.flat))
    return struct.pack("<I", CODES[array.dtype]) + shape + _string(array.tobytes())


class _Reader:
    def __init__(self, message):
        self.message, self.at = message, 0

    def numbers(self, form):
        values = struct.unpack_from(form, self.message, self.at)
        self.at += struct.calcsize(form)
        return values

    def string(self):
        (size,) = self.numbers("<Q")
        self.at += size
        return bytes(self.message[self.at - size : self.at])

    def tensor(self):
        dtype, rank = self.numbers("<II")
        shape = self.numbers(f"<{rank}q")
        if dtype != STRING:
            return np.frombuffer(self.string(), DTYPES[dtype]).reshape(shape)
        strings = [self.string() for _ in range(math.prod(shape))]
        return np.array([*strings, None], object)[:-1].reshape(shape)
