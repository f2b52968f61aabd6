"""The load of serve-check: what it sends, and how it counts what becomes of that."""

import numpy as np
import pytest

from keras_vit.serving.client import Signature, TensorSpec
from keras_vit.serving.pictures import bad_pictures, good_pictures
from keras_vit.serving.server_checks import Subject
from keras_vit.serving.server_load import run_load

PICTURES = list(good_pictures().values())
SIGNATURE = Signature("serving_default", "", {"image_bytes": TensorSpec("string", (None,))}, {})


class StandIn:
    """In the place of a client: answers a picture with its length, the load's as long as told."""

    protocol = "REST"

    def __init__(self, answers=np.inf, then=None):
        self.sent, self.answers, self.then = [], answers, then

    def request(self, model, signature, inputs):
        return inputs["image_bytes"]

    def send(self, files):
        self.sent.append(files)
        if len(self.sent) > self.answers:
            raise self.then
        return files

    def outputs(self, signature, files):
        good = np.array([file in PICTURES for file in files])
        return {
            "logits": np.float32([len(file) for file in files]) * good,
            "error": np.where(good, b"", b"no picture").astype(object),
        }

    def predict(self, model, signature, inputs):
        return self.outputs(signature, self.request(model, signature, inputs))


def load_of(client, **options):
    subject = Subject(client, "pets", {}, 1e-4, signatures={"serving_default": SIGNATURE})
    options = {"clients": 1, "batch_size": 1, "hostile": 0.05, **options}
    return run_load(subject, PICTURES, **options)


def test_every_bad_picture_is_sent_in_every_row():
    client, bad = StandIn(), list(bad_pictures().values())
    load = load_of(client, requests=20 * 2 * len(bad), batch_size=2, clients=3)
    seen = {(row, file) for files in client.sent for row, file in enumerate(files) if file in bad}
    assert seen == {(row, file) for row in range(2) for file in bad}
    count = 2 * len(bad)
    assert (load.requests, load.sent, load.answered) == (20 * count, 20 * count, 20 * count)
    assert load.hostile == count and not load.wrong and len(load.latencies) == 19 * count


@pytest.mark.parametrize(
    "end, sent, hostile",
    [
        # A server that hangs is asked no more, one that is gone refuses each request at once.
        (TimeoutError("no answer"), 5, 1),
        (ConnectionError("no server"), 20, 5),
    ],
)
def test_what_a_server_does_not_answer_is_not_counted_as_answered(end, sent, hostile):
    load = load_of(StandIn(answers=4, then=end), requests=20, batch_size=2, hostile=0.25)
    assert (load.requests, load.sent, load.answered, load.hostile) == (20, sent, 4, hostile)
    assert load.wrong == {str(end): sent - 4}
    assert load.requests_per_second == 4 / load.seconds
    assert load.pictures_per_second == 8 / load.seconds
