"""Checks of a running model server, its answers under load, and the report of both."""

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_vit.serving.client import Client, ServingError, connect
from keras_vit.serving.pictures import NO_LIMIT, good_pictures
from keras_vit.serving.server_checks import (
    Outcome,
    ServeVerdict,
    Subject,
    Wrong,
    judge,
    run_checks,
    run_comparisons,
)
from keras_vit.serving.server_load import LoadResult, run_load

# The checks send them many times; the load sends more.
_CHECKED_PICTURES = 8


@dataclass(frozen=True)
class ServeCheckReport:
    """What `serve_check` found.

    Args:
        model: Name of the served model.
        addresses: By protocol, where it was asked.
        verdicts: What each check came to, in the order they ran.
        loads: The load, one entry a protocol; empty where none was asked for.
    """

    model: str
    addresses: Mapping[str, str]
    verdicts: tuple[ServeVerdict, ...]
    loads: tuple[LoadResult, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(verdict.outcome != "fail" for verdict in self.verdicts)

    def format(self) -> str:
        """The verdicts as a table, how many there are of each, and the latencies last."""
        places = ", ".join(f"{protocol} {at}" for protocol, at in self.addresses.items())
        check = max((len(verdict.check) for verdict in self.verdicts), default=0)
        lines = [f"{self.model} at {places}", ""]
        lines += [
            f"{_SIGNS[verdict.outcome]:6}{verdict.protocol:6}{verdict.check:{check + 2}}"
            f"{' '.join(verdict.detail.split())}"
            for verdict in self.verdicts
        ]
        counts = Counter(verdict.outcome for verdict in self.verdicts)
        lines += ["", ", ".join(f"{counts[name]} {word}" for name, word in _WORDS.items())]
        if self.loads:
            lines += ["", *_load_table(self.loads)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.format()


_SIGNS = {"pass": "pass", "fail": "FAIL", "not applicable": "n/a"}
_WORDS: dict[Outcome, str] = {
    "pass": "passed",
    "fail": "failed",
    "not applicable": "not applicable",
}


def serve_check(
    addresses: str | Sequence[str],
    *,
    model: str | None = None,
    images: str | os.PathLike | None = None,
    requests: int = 200,
    clients: int = 4,
    batch_size: int = 1,
    hostile: float = 0.05,
    tolerance: float = 1e-4,
    timeout: float = 30.0,
    max_pixels: int = NO_LIMIT,
) -> ServeCheckReport:
    """Checks a running server of an exported model, and measures how fast it answers.

    It speaks TensorFlow Serving's interface to TensorFlow Serving or to any other server that has
    it, and finds out which protocol each address speaks. It sends good pictures to every signature
    that the model's metadata has and an export may have, then bad pictures and bad requests, each
    of which must be answered with an error of its own and leave the server well, and then a load,
    whose every answer is compared with the one before it. Nothing but the addresses is contacted.

    Args:
        addresses: `HOST:PORT` of REST (TensorFlow Serving: 8501) or of gRPC (8500), or both, in any
            order.
        model: Name of the served model; None: the only one, of a server that can list its models,
            which TensorFlow Serving cannot.
        images: A folder of JPEG and PNG files to send, sub-folders included; None: pictures made
            here, of every kind. The checks take the first 8, the load as many as it sends; no
            others are read.
        requests: Requests of the load, for each protocol; 0: no load.
        clients: How many of them are under way at a time.
        batch_size: Pictures in a request of the load.
        hostile: Share of the load's requests that have a bad picture among theirs.
        tolerance: How far two answers for the same picture may differ: probabilities and scores
            as they are, logits and embeddings relative to their largest value.
        timeout: Seconds to wait for an answer.
        max_pixels: Height times width of a picture made here, at most: the limit of a model that
            takes no larger ones, which no server tells.

    Returns:
        The report; `print` shows it, `passed` says whether no check failed.

    Raises:
        ConnectionError: If nothing listens at an address, or what does is no model server.
        TimeoutError: If a server does not say what it is in time.
        ImportError: If an address speaks gRPC and `tensorflow-serving-api` is not installed.
        ValueError: If an argument is out of range, or the server has no such model.
        OSError: If the pictures cannot be read.

    Example:

    ```python
    report = serve_check(["localhost:8500", "localhost:8501"], model="pets")
    print(report)
    assert report.passed
    ```
    """
    addresses = [addresses] if isinstance(addresses, str) else list(addresses)
    _check_arguments(requests, clients, batch_size, hostile, tolerance, timeout, max_pixels)
    if images is None:
        pictures = good_pictures(max_pixels)
    else:
        count = max(_CHECKED_PICTURES, requests * batch_size)
        pictures = _read_pictures(Path(images), count)
    first = dict(list(pictures.items())[:_CHECKED_PICTURES])
    verdicts: list[ServeVerdict] = []
    loads: list[LoadResult] = []
    with _connected(addresses, timeout) as servers:
        model = _model_name(servers, model)
        subjects = [Subject(server, model, first, tolerance, max_pixels) for server in servers]
        for subject in subjects:
            verdicts += run_checks(subject)
        if len(subjects) == 2:
            verdicts += run_comparisons(*subjects)
        for subject in subjects if requests else ():
            load = functools.partial(
                _load,
                loads,
                subject,
                list(pictures.values()),
                requests=requests,
                clients=clients,
                batch_size=batch_size,
                hostile=hostile,
            )
            verdicts.append(judge("load", subject.client.protocol, load))
    places = {server.protocol: server.address for server in servers}
    return ServeCheckReport(model, places, tuple(verdicts), tuple(loads))


def _check_arguments(requests, clients, batch_size, hostile, tolerance, timeout, max_pixels):
    for name, value, least in (
        ("requests", requests, 0),
        ("clients", clients, 1),
        ("batch_size", batch_size, 1),
        ("max_pixels", max_pixels, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be an integer from {least} on. Received: {value!r}")
    if not 0 <= hostile <= 1:
        raise ValueError(f"`hostile` must be a share, 0 to 1. Received: {hostile!r}")
    for name, value in (("tolerance", tolerance), ("timeout", timeout)):
        if not value > 0:
            raise ValueError(f"`{name}` must be positive. Received: {value!r}")


def _read_pictures(folder, count):
    if not folder.is_dir():
        raise NotADirectoryError(f"`images` must be a folder of pictures. Received: {folder}")
    suffixes = (".jpg", ".jpeg", ".png")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes)
    if not files:
        raise ValueError(f"The folder {folder} has no {', '.join(suffixes)} files.")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files[:count]}


@contextlib.contextmanager
def _connected(addresses: list[str], timeout: float) -> Iterator[list[Client]]:
    if len(addresses) not in (1, 2):
        raise ValueError(
            "Give the address of REST, of gRPC, or both, as HOST:PORT. "
            f"Received {len(addresses)} addresses."
        )
    with contextlib.ExitStack() as stack:
        servers = []
        for address in addresses:
            servers.append(connect(address, timeout=timeout))
            stack.callback(servers[-1].close)
        if len(servers) == 2 and servers[0].protocol == servers[1].protocol:
            raise ValueError(
                f"Both {addresses[0]} and {addresses[1]} speak {servers[0].protocol}. Give one "
                "address of REST and one of gRPC, or check one server after the other."
            )
        yield servers


def _model_name(servers, model):
    if model is None:
        listed = sorted({name for server in servers for name in server.models()})
        if len(listed) != 1:
            found = f"It has {', '.join(listed)}." if listed else "It does not list its models."
            raise ValueError(f"Name the model that {servers[0].address} serves. {found}")
        (model,) = listed
    for server in servers:
        try:
            server.status(model)
        except ServingError as error:
            if error.code in ("404", "NOT_FOUND"):
                raise ValueError(
                    f"{server.address} has no model {model!r}. It says: {error.message}"
                ) from error
        except (OSError, ValueError):
            # The check of the status says so.
            continue
    return model


def _load(loads, subject, pictures, **options):
    result = run_load(subject, pictures, **options)
    loads.append(result)
    sent = f"{result.requests} requests, {result.hostile} of them hostile"
    if result.answered < result.requests:
        sent = f"{result.sent} of {sent}, {result.answered} answered"
    if result.wrong:
        seen = "; ".join(f"{count} times {what}" for what, count in result.wrong.items())
        raise Wrong(f"{sent}: {seen}.")
    return f"{sent}: every answer right"


def _load_table(loads):
    load = loads[0]
    titles = ("answered", "p50", "p90", "p99", "max", "requests/s", "pictures/s")
    yield (
        f"{load.requests} requests from {load.clients} clients, {load.batch_size} pictures each; "
        "latencies in ms"
    )
    yield f"{'':6}" + "".join(f"{title:>12}" for title in titles)
    for load in loads:
        values = [1000 * load.percentile(percent) for percent in (50, 90, 99, 100)]
        values += [load.requests_per_second, load.pictures_per_second]
        figures = "".join(f"{value:12.1f}" for value in values)
        yield f"{load.protocol:6}{load.answered:12}{figures}"
