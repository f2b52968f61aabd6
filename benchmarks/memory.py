"""Peak memory, which a process has one of: what is measured runs in a fresh one each."""

import json
import re
import subprocess
import sys
from pathlib import Path


def memory_gigabytes(peak):
    """Memory of this process that is, or at its peak was, in RAM (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    name = "VmHWM" if peak else "VmRSS"
    return int(re.search(rf"{name}:\s*(\d+) kB", status)[1]) * 1024 / 1e9


def in_a_fresh_process(module, **case):
    """What `module`, called with a case as JSON, prints as JSON in its last line."""
    command = [sys.executable, "-m", module, "--case", json.dumps(case)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{module} failed with {case}:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])
