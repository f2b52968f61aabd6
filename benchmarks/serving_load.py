"""Hostile load on a served model: `python -m benchmarks.serving_load SAVED_MODEL`.

A C program that stands for a model server (tests/serving_consumer) loads the SavedModel once and
shares one session between its workers. Clients send requests to `serving_default`, each over a
connection of its own, the next one as soon as the last is answered. A share of the requests
carries one file that no server should decode, alone or between good pictures: an empty file, text,
cut files, headers that promise 60000 x 60000 pixels, random bytes, more bytes than the model takes.

Every answer is compared with what TensorFlow in Python says of each picture alone, and every bad
file must come back as the error of its own row, its neighbours untouched. Resident memory of the
program is printed before the load, after a warm-up, while it runs, and at the end. The exit status
is 0 when every answer was right, nothing was restarted, and memory did not grow by more than 5 %.

The pictures are those of `--images`: a folder, by default the ImageNet samples of the shared folder
(KERAS_VIT_SHARED, ../shared), and without it 64 made-up ones.
"""

import argparse
import contextlib
import json
import os
import platform
import queue
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from keras_vit.finetune.report import describe_machine
from keras_vit.serving.server_checks import certain_classes

REPOSITORY = Path(__file__).resolve().parents[1]
# `tests` is no package: one of this name may be installed by another distribution.
sys.path.insert(0, str(REPOSITORY / "tests"))

from serving_consumer import Consumer, compile_consumer  # noqa: E402
from serving_consumer.pictures import good_files, hostile_files  # noqa: E402

BATCH_SIZES = (1, 1, 1, 1, 2, 4)
# The default of keras_vit.export.ImageLimits, for a model that does not say its own.
MAX_BYTES = 20_000_000
MEMORY_GROWTH = 1.05


@dataclass
class Results:
    """What the clients saw; each of them adds to it under the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    seconds: list = field(default_factory=list)
    images: int = 0
    good: int = 0
    refused: int = 0
    wrong: list = field(default_factory=list)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("saved_model", type=Path, help="a version's folder, or the folder of them")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--hostile", type=float, default=0.05, help="share of the requests")
    parser.add_argument("--warm-up", type=int, default=500, help="requests before it counts")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of a probability")
    parser.add_argument("--images", type=Path, help="a folder of JPEG or PNG files")
    return parser.parse_args()


def version_folder(path):
    """The version that a server would serve: the highest."""
    if (path / "saved_model.pb").is_file():
        return path
    versions = [int(entry.name) for entry in path.glob("*") if entry.name.isdecimal()]
    if not versions:
        sys.exit(f"{path} holds neither a saved_model.pb nor versions of a model.")
    return path / str(max(versions))


def pictures(folder):
    """Good files, and where they come from."""
    shared = REPOSITORY / os.environ.get("KERAS_VIT_SHARED", "../shared")
    folder = folder or shared / "data" / "imagenet_samples"
    kinds = (".jpg", ".jpeg", ".png")
    files = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in kinds]
    if files:
        return [path.read_bytes() for path in files], str(folder.name)
    return good_files(64, largest=500), "made up"


def max_bytes(folder):
    path = folder / "signatures.json"
    facts = json.loads(path.read_text()) if path.is_file() else {}
    return facts.get("limits", {}).get("max_bytes", MAX_BYTES)


def expected_answers(folder, files):
    """What TensorFlow in this process says of each picture alone."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    serve = loaded.signatures["serving_default"]
    answers = []
    for file in files:
        answer = serve(image_bytes=tf.constant([file]))
        answers.append({name: value.numpy()[0] for name, value in answer.items()})
        if answers[-1]["error"]:
            sys.exit(f"A picture to be sent as a good one is refused: {answers[-1]['error']}")
    return answers


def plan(count, share, num_files, hostile, seed):
    """The requests: for each the rows of its batch, numbers of good files or a hostile kind."""
    rng = np.random.default_rng(seed)
    kinds = list(hostile)
    bad = set(rng.permutation(count)[: round(count * share)].tolist())
    requests = []
    for number in range(count):
        rows = rng.integers(num_files, size=rng.choice(BATCH_SIZES)).tolist()
        if number in bad:
            rows[rng.integers(len(rows))] = kinds[number % len(kinds)]
        requests.append(rows)
    return requests


def difference(answer, row, expected, tolerance):
    """What is wrong with a row that should hold a good answer; None where nothing is."""
    if answer["error"][row]:
        return f"refused: {answer['error'][row].decode()}"
    off = np.abs(answer["probabilities"][row] - expected["probabilities"]).max()
    if not off <= tolerance:
        return f"probabilities off by {off:.1e}"
    # Names are compared where rounding cannot have exchanged two of them.
    certain = certain_classes(expected, tolerance)
    if (answer["classes"][row] != expected["classes"])[certain].any():
        return f"classes {answer['classes'][row]} for {expected['classes']}"
    return None


def problems_of(answer, rows, expected, tolerance):
    problems = []
    for index, row in enumerate(rows):
        if isinstance(row, int):
            problem = difference(answer, index, expected[row], tolerance)
            problems += [f"picture {row} in row {index} of {rows}: {problem}"] if problem else []
        elif not answer["error"][index]:
            problems.append(f"{row!r} in row {index} of {rows} has no error")
        elif answer["probabilities"][index].any() or answer["scores"][index].any():
            problems.append(f"{row!r} in row {index} of {rows} has scores")
    return problems


def ask(consumer, requests, files, hostile, expected, tolerance, results):
    """One client: takes requests until none is left."""
    with consumer.client() as client:
        while True:
            try:
                rows = requests.get_nowait()
            except queue.Empty:
                return
            batch = [files[row] if isinstance(row, int) else hostile[row] for row in rows]
            began = time.perf_counter()
            try:
                answer = client.call(image_bytes=batch)
                seconds = time.perf_counter() - began
                problems = problems_of(answer, rows, expected, tolerance)
            except Exception as error:
                seconds = time.perf_counter() - began
                problems = [f"{rows}: {type(error).__name__}: {error}"]
            bad = any(isinstance(row, str) for row in rows)
            with results.lock:
                results.seconds.append(seconds)
                results.images += len(rows)
                results.wrong += problems
                results.refused += bad and not problems
                results.good += not bad and not problems
            if not consumer.running:
                return


def run(consumer, clients, requests, *rest):
    """All requests, by that many clients at a time; results, seconds and samples of the memory."""
    waiting = queue.SimpleQueue()
    for request in requests:
        waiting.put(request)
    results, samples, done = Results(), [], threading.Event()

    def sample():
        # The clients tell of a consumer that ended.
        with contextlib.suppress(ConnectionError), consumer.client() as client:
            while not done.wait(1.0):
                samples.append(client.memory()[0])

    threads = [
        threading.Thread(target=ask, args=(consumer, waiting, *rest, results))
        for _ in range(clients)
    ]
    sampler = threading.Thread(target=sample, daemon=True)
    began = time.perf_counter()
    for thread in (sampler, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    done.set()
    sampler.join()
    return results, seconds, samples


def print_report(results, seconds, count, memory, samples):
    milliseconds = np.sort(results.seconds) * 1e3
    mb = [f"{value / 1e6:.0f}" for value in memory]
    shown = (
        [samples[i] for i in np.linspace(0, len(samples) - 1, 12).astype(int)] if samples else []
    )
    percentiles = (f"{np.percentile(milliseconds, p):.0f}" for p in (50, 90, 99, 100))
    print(f"requests answered      {len(milliseconds)} of {count}, {results.images} files")
    print(f"good requests right    {results.good}")
    print(f"hostile ones refused   {results.refused}, for their own row alone")
    print(f"wrong                  {len(results.wrong)}")
    print(f"seconds                {seconds:.1f}")
    print(f"throughput             {len(milliseconds) / seconds:.1f} requests/s, ", end="")
    print(f"{results.images / seconds:.1f} files/s")
    print(
        "latency                p50 {} ms, p90 {} ms, p99 {} ms, highest {} ms".format(*percentiles)
    )
    print("resident memory        start {} MB, warmed {} MB, end {} MB, highest {} MB".format(*mb))
    print(f"  while it ran         {' '.join(f'{value / 1e6:.0f}' for value in shown)} MB")
    for problem in results.wrong[:20]:
        print(f"  {problem}")


def memory_of(consumer):
    with consumer.client() as client:
        return client.memory()


def main():
    options = arguments()
    folder = version_folder(options.saved_model)
    limit = max_bytes(folder)
    hostile = hostile_files(limit)
    files, source = pictures(options.images)
    files = [file for file in files if len(file) <= limit]
    expected = expected_answers(folder, files)
    num = options.requests
    requests = plan(num, options.hostile, len(files), hostile, seed=0)
    # All clients at once with the largest file first: memory that is kept for reuse is kept then.
    worst = [[kind] for kind in sorted(hostile, key=lambda kind: -len(hostile[kind]))]
    warm_up = [row for row in worst for _ in range(options.clients)]
    warm_up += plan(options.warm_up, options.hostile, len(files), hostile, seed=1)
    print(f"{folder}, {len(files)} pictures ({source}), {num} requests of {BATCH_SIZES} files")
    print(
        f"{options.clients} clients, {options.hostile:.1%} of the requests hostile: {list(hostile)}"
    )
    print(f"{platform.machine()} with {describe_machine()}")
    rest = (files, hostile, expected, options.tolerance)
    with tempfile.TemporaryDirectory() as build:
        program = compile_consumer(Path(build))
        # One more worker, for the one that asks for the memory.
        with Consumer(program, folder, workers=options.clients + 1) as consumer:
            print(f"TensorFlow {consumer.version}'s C library\n")
            start, _ = memory_of(consumer)
            warmed_by, _, _ = run(consumer, options.clients, warm_up, *rest)
            if not consumer.running:
                sys.exit(f"The consumer ended during the warm-up: {consumer.said()}")
            warmed, _ = memory_of(consumer)
            results, seconds, samples = run(consumer, options.clients, requests, *rest)
            running = consumer.running
            end, highest = memory_of(consumer) if running else (0, 0)
            results.wrong += warmed_by.wrong
            print_report(results, seconds, num, (start, warmed, end, highest), samples)
            print(f"restarts               {0 if running else 'it ended: ' + consumer.said()}")
    verdicts = {
        "every request answered": len(results.seconds) == num,
        "every good answer right, every bad file an error of its own": not results.wrong,
        "no restart": running,
        f"memory at the end at most {MEMORY_GROWTH} x warmed": 0 < end <= MEMORY_GROWTH * warmed,
    }
    for what, holds in verdicts.items():
        print(f"{'yes' if holds else 'NO ':3} {what}")
    sys.exit(0 if all(verdicts.values()) else 1)


if __name__ == "__main__":
    main()
