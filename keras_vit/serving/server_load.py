"""Load for a running model server: many requests from several clients, every answer looked at."""

import concurrent.futures
import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from keras_vit.serving.client import ServingError
from keras_vit.serving.pictures import bad_pictures
from keras_vit.serving.server_checks import (
    FAILURES,
    NotApplicable,
    Subject,
    Wrong,
    difference,
    is_bad_row,
    signature_inputs,
    why_failed,
)


@dataclass(frozen=True)
class LoadResult:
    """How fast a server answered under load.

    A latency is the time from sending an encoded request to having its whole answer. The client
    computes too, on the machine that it runs on: what it reads of the answers is in the
    throughput, and not in the latencies.

    Args:
        protocol: "REST" or "gRPC".
        requests: Number of requests that were to be sent.
        sent: How many of them were; fewer where an answer did not come in time.
        answered: How many of those the server answered, be it with an error or wrongly.
        hostile: How many of those sent had a bad picture among theirs.
        clients: Number of clients, each with one request at a time.
        batch_size: Pictures in a request.
        seconds: Time from the first request to the last answer, or to the end of the wait for it.
        latencies: Seconds, one a request that was answered, of requests without a bad picture.
        wrong: What was wrong, and how many times.
    """

    protocol: str
    requests: int
    sent: int
    answered: int
    hostile: int
    clients: int
    batch_size: int
    seconds: float
    latencies: tuple[float, ...]
    wrong: Mapping[str, int]

    @property
    def requests_per_second(self) -> float:
        return self.answered / self.seconds

    @property
    def pictures_per_second(self) -> float:
        return self.answered * self.batch_size / self.seconds

    def percentile(self, percent: float) -> float:
        """A percentile of the latencies, in seconds; NaN where no request was answered."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else float("nan")


def run_load(
    subject: Subject,
    pictures: list[bytes],
    *,
    requests: int,
    clients: int,
    batch_size: int,
    hostile: float,
) -> LoadResult:
    """Sends requests to the first signature that takes pictures.

    Args:
        subject: The model, after its checks.
        pictures: Good pictures, sent in turn.
        requests: How many requests.
        clients: How many of them are under way at a time.
        batch_size: Pictures in a request.
        hostile: Share of requests in which one of the pictures is a bad one, 0 to 1.

    Returns:
        The latencies, and what was wrong with the answers.

    Raises:
        ServingError: If the pictures are refused before the load begins.
        OSError: If the server does not answer before the load begins.
    """
    signature = next(subject.with_pictures(), None)
    if signature is None:
        raise NotApplicable("no signature takes pictures")
    expected = _expected(subject, signature, pictures, batch_size)
    known, tolerance = subject.answers.get(signature.name), subject.tolerance
    if known and difference(known, _first(expected, known), tolerance) > tolerance:
        raise Wrong("before the load, good pictures are answered otherwise than by the checks")
    bad = list(bad_pictures().values())
    # Of several threads: these are appended to, never counted up.
    sent: list[int] = []
    answered: list[int] = []
    latencies: list[float] = []
    wrong: list[str] = []
    counter = itertools.count()
    has_ended = threading.Event()

    def one_request(index):
        rows = [(index * batch_size + row) % len(pictures) for row in range(batch_size)]
        files = [pictures[row] for row in rows]
        bad_row = None
        if is_hostile(index, hostile):
            # By turns every kind in every row, which the index itself would not come to.
            number = _hostile_before(index, hostile)
            bad_row = number // len(bad) % batch_size
            files[bad_row] = bad[number % len(bad)]
        inputs = signature_inputs(signature, files)
        request = subject.client.request(subject.model, signature, inputs)
        sent.append(index)
        start = time.perf_counter()
        try:
            raw = subject.client.send(request)
        except ServingError as error:
            answered.append(index)
            if bad_row is None or not error.is_refusal:
                raise Wrong(f"error {error.code} for good pictures") from error
            if not subject.refuses_calls.get(signature.name, True):
                raise Wrong("a bad picture fails its neighbours") from error
            return
        seconds = time.perf_counter() - start
        answered.append(index)
        if bad_row is None:
            latencies.append(seconds)
        answer = subject.client.outputs(signature, raw)
        _check_answer(subject, signature, answer, expected, rows, bad_row)

    def work():
        while not has_ended.is_set() and (index := next(counter)) < requests:
            try:
                one_request(index)
            except FAILURES as error:
                wrong.append(why_failed(error))
                # A server that hangs would be waited for with every request that is left.
                if isinstance(error, TimeoutError):
                    has_ended.set()

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for worker in [pool.submit(work) for _ in range(clients)]:
            worker.result()
    seconds = time.perf_counter() - start
    return LoadResult(
        subject.client.protocol,
        requests,
        len(sent),
        len(answered),
        sum(is_hostile(index, hostile) for index in sent),
        clients,
        batch_size,
        seconds,
        tuple(latencies),
        dict(Counter(wrong)),
    )


def is_hostile(index: int, share: float) -> bool:
    """Whether a request is one of the `share` that are hostile, spread evenly.

    Example:

    >>> [index for index in range(10) if is_hostile(index, 0.2)]
    [4, 9]
    """
    return _hostile_before(index + 1, share) > _hostile_before(index, share)


def _hostile_before(index, share):
    return int(index * share + 1e-9)


def _expected(subject, signature, pictures, batch_size):
    """The answer for each picture."""
    answers = [
        subject.ask(signature, pictures[start : start + batch_size])
        for start in range(0, len(pictures), batch_size)
    ]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _first(expected, known):
    return {name: value[: len(known[name])] for name, value in expected.items()}


def _check_answer(subject, signature, answer, expected, rows, bad_row):
    if bad_row is not None and not is_bad_row(signature, answer, bad_row):
        raise Wrong("a bad picture without an error of its own")
    good = [position for position in range(len(rows)) if position != bad_row]
    seen = {name: value[good] for name, value in answer.items()}
    right = {name: value[[rows[position] for position in good]] for name, value in expected.items()}
    if not difference(right, seen, subject.tolerance) <= subject.tolerance:
        raise Wrong("an answer that differs from the one before the load")
