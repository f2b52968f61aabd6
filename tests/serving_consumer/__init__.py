"""A consumer of SavedModels that has none of our code, and what the tests need to talk to it."""

from serving_consumer.building import LIBRARY, compile_consumer, tensorflow_library, why_not
from serving_consumer.client import Client, Consumer, RequestError
from serving_consumer.signatures import Signature, read_signatures

__all__ = [
    "LIBRARY",
    "Client",
    "Consumer",
    "RequestError",
    "Signature",
    "compile_consumer",
    "read_signatures",
    "tensorflow_library",
    "why_not",
]
