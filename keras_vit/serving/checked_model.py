"""A SavedModel that is checked, and how a check says what it found."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from keras_vit.serving.files import describe_signatures, read_saved_model
from keras_vit.serving.made_up_requests import (
    CLASSIFY,
    IMAGE_FEATURE,
    image_input,
    made_up_request,
)

IMAGE_SIZE = (48, 64)
NOT_APPLICABLE = "does not apply:"


class CheckFailed(Exception):
    """What a check found wrong."""


@dataclasses.dataclass(frozen=True)
class CheckedModel:
    folder: Path
    graph: Any
    signatures: dict[str, dict[str, Any]]

    def nodes(self):
        """Every node with the function it is in, None for the graph itself."""
        yield from ((node, None) for node in self.graph.graph_def.node)
        for function in self.graph.graph_def.library.function:
            yield from ((node, function.signature.name) for node in function.node_def)

    def tensors(self):
        for name, signature in self.signatures.items():
            for side in ("inputs", "outputs"):
                for tensor, row in signature[side].items():
                    yield f"{side[:-1]} {tensor!r} of {name!r}", row

    def facts(self):
        """What an export of keras_vit says of itself."""
        try:
            facts = json.loads((self.folder / "signatures.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def limits(self):
        """What an export of keras_vit takes of an image; made-up ones are smaller."""
        told = self.facts().get("limits")
        told = told if isinstance(told, dict) else {}
        names = ("max_bytes", "max_pixels")
        return {name: told[name] for name in names if type(told.get(name)) is int}

    def image_signatures(self):
        return {name: row for name, row in self.signatures.items() if self.takes_images(row)}

    def takes_images(self, signature):
        if not image_input(signature):
            return False
        # Examples of another model have features of their own.
        has_feature = IMAGE_FEATURE.encode() in self.graph.SerializeToString()
        return signature["method_name"] != CLASSIFY or has_feature

    def request(self, signature, batch_size, image_size=IMAGE_SIZE):
        if image_input(signature) and not self.takes_images(signature):
            return None
        return made_up_request(signature, batch_size, image_size, **self.limits())


def read_model(folder):
    try:
        graph = read_saved_model(folder)
    except (OSError, ValueError) as error:
        raise CheckFailed(str(error)) from None
    version = graph.meta_info_def.tensorflow_version or "an unknown version"
    model = CheckedModel(folder, graph, describe_signatures(folder))
    return f"written by TensorFlow {version}", model


def first_line(error):
    """The first line of a message of TensorFlow, which may go on with the whole graph."""
    lines = str(getattr(error, "message", None) or error).splitlines()
    lines = [line.strip() for line in lines if line.strip() not in ("", "Graph execution error:")]
    return lines[0][:500] if lines else "no message"


def some(items):
    """The first few of many findings."""
    items = list(dict.fromkeys(items))
    more = f" and {len(items) - 8} more" if len(items) > 8 else ""
    return "; ".join(items[:8]) + more


def count(number, noun):
    return f"{number} {noun}" + ("" if number == 1 else "s")
