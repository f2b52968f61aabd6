"""The parent's side of `benchmarks.worker`: processes that are asked, waited for, and ended."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

# For all workers alike.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # As keras_vit sets it, for keras-hub too.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # OpenMP's threads must not spin through another contender's turn (Intel's do for 200 ms).
    "KMP_BLOCKTIME": "1",
    # On a GPU the workers of a row share its memory, and peaks are to be what was needed.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}


class Absent(Exception):
    """Why there is no figure, in the words of the table's cell."""


class Failed(Absent):
    """A contender that should have run and did not, or computed something else."""


def missing_package(packages):
    """The first of these packages that is not installed; None where all are."""
    return next((name for name in packages if find_spec(name) is None), None)


class Worker:
    """A process of `benchmarks.worker`.

    Args:
        environment: Added to that of this process.
    """

    def __init__(self, environment=None):
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=REPOSITORY,
            env={
                **os.environ,
                **ENVIRONMENT,
                "PYTHONPATH": os.pathsep.join(
                    filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
                ),
                **(environment or {}),
            },
            # Compilers and the like that it starts end with it.
            start_new_session=True,
        )
        self._unread, self._ended = b"", False

    def ask(self, timeout, **request):
        """The answer to a request.

        Raises:
            Absent: After `timeout` seconds; the process is dead then. Or if a package is missing.
            Failed: If it raised, or died.
        """
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._read_line(time.monotonic() + timeout)
        except BrokenPipeError:
            line = b""
        if line is None:
            self.kill()
            raise Absent(f"over {timeout:g} s")
        if not line:
            self.kill()
            raise Failed(f"died with status {self._process.returncode}: {self._last_words()}")
        answer = json.loads(line)
        if answer.get("missing"):
            self.kill()
            raise Absent(f"not installed: {answer['missing']}")
        if not answer["ok"]:
            self.kill()
            raise Failed(answer["error"])
        return answer

    def kill(self):
        """Ends the process and all that it started; once is enough."""
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _read_line(self, deadline):
        """The next line; b"" at the end of the stream, None at the deadline."""
        stream = self._process.stdout
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                return None
            read = os.read(stream.fileno(), 65536)
            if not read:
                return b""
            self._unread += read
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _last_words(self):
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"
