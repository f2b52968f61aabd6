"""A process that holds one contender: `python -m benchmarks.worker`.

It reads one JSON object a line from its standard input and answers each with one line. What the
libraries print goes to standard error, so that the answers stay alone on standard output:

- `{"do": "prepare", "make": "module:function", "job": {…}}` builds the contender's `Step`;
- `{"do": "check", "path": …}` runs it for the first time, and writes its outputs as .npy;
- `{"do": "time", "steps": n}` times so many steps;
- `{"do": "memory"}` says the most memory that there was since it was built;
- `{"do": "quit"}` ends.
"""

import dataclasses
import importlib
import importlib.util
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Step:
    """What a contender does again and again.

    Args:
        launch: Does it once. On an accelerator it may return before the work is done.
        outputs: Does it from the start and returns, as an array, what is compared with the others.
        wait: Returns once what `launch` returned is computed.
        peak_memory: Most memory in bytes that the accelerator held; None for main memory.
        facts: What the table should know: device, versions.
    """

    launch: Callable[[], Any]
    outputs: Callable[[], np.ndarray]
    wait: Callable[[Any], Any] = lambda result: result
    peak_memory: Callable[[], int | None] | None = None
    facts: dict = dataclasses.field(default_factory=dict)


def peak_resident_memory():
    """The most main memory in bytes that this process had, since `forget_peak`; None if unknown."""
    status = Path("/proc/self/status")
    found = status.exists() and re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def forget_peak():
    """Lets the peak of main memory start again at what there is now; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _is_installed(module):
    return importlib.util.find_spec(module.partition(".")[0]) is not None


class Contender:
    """Answers the parent's requests, one method each."""

    def __init__(self):
        self.step = None
        self.forgotten = False
        self.idle_since = None

    def prepare(self, request):
        module, function = request["make"].split(":")
        began = time.perf_counter()
        self.step = getattr(importlib.import_module(module), function)(request["job"])
        seconds = time.perf_counter() - began
        # What building took, random initial weights included, is not the step's memory.
        self.forgotten = forget_peak()
        built = None if self.step.peak_memory else peak_resident_memory()
        return {"seconds": seconds, "facts": self.step.facts, "memory": built}

    def check(self, request):
        began = time.perf_counter()
        outputs = np.asarray(self.step.outputs(), "float32")
        seconds = time.perf_counter() - began
        np.save(request["path"], outputs)
        return {"seconds": seconds}

    def time(self, request):
        idle = self._idle_share()
        # Brings the caches back, which the others used meanwhile.
        self.step.wait(self.step.launch())
        began = time.perf_counter()
        for _ in range(request["steps"]):
            result = self.step.launch()
        self.step.wait(result)
        return {"seconds": (time.perf_counter() - began) / request["steps"], "idle": idle}

    def memory(self, request):
        measure = self.step.peak_memory or peak_resident_memory
        return {"peak": measure(), "since_built": self.forgotten or bool(self.step.peak_memory)}

    def answer(self, request):
        try:
            return {"ok": True, **getattr(self, request["do"])(request)}
        except ModuleNotFoundError as error:
            if not error.name or _is_installed(error.name):  # Something in it is not.
                traceback.print_exc()
                return {"ok": False, "error": str(error)}
            return {"ok": False, "missing": error.name}
        except Exception as error:
            traceback.print_exc()
            return {"ok": False, "error": f"{type(error).__name__}: {error}"[:300]}
        finally:
            self.idle_since = time.perf_counter(), time.process_time()

    def _idle_share(self):
        """Cores that this process kept busy since it answered last: it should be none."""
        wall, processor = (
            now - then
            for now, then in zip(
                (time.perf_counter(), time.process_time()), self.idle_since, strict=True
            )
        )
        # Within moments the request itself is most of it.
        return processor / wall if wall > 0.05 else 0.0


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender = Contender()
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "quit":
            break
        print(json.dumps(contender.answer(request)), file=answers, flush=True)
    # Frameworks' threads and destructors have nothing left to do that matters.
    answers.close()
    os._exit(0)


if __name__ == "__main__":
    # The class by its importable name, which the modules that make steps use.
    from benchmarks.worker import main as run

    run()
