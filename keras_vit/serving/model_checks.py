"""Checks of a SavedModel before it is mounted: will a stock TensorFlow Serving load and run it?"""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_vit.serving.checked_model import NOT_APPLICABLE, CheckFailed, first_line, read_model
from keras_vit.serving.running_checks import RUNNING_CHECKS, load_model
from keras_vit.serving.static_checks import STATIC_CHECKS


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one check found.

    Attributes:
        check: Name of the check.
        passed: Whether the model may be served as far as this check can tell. A check that does
            not apply passes, and one that could not be run does not; `detail` says which.
        detail: What was looked at, or what is wrong and what to do.
    """

    check: str
    passed: bool
    detail: str

    @property
    def applies(self) -> bool:
        """Whether there was something to check."""
        return not self.detail.startswith(NOT_APPLICABLE)


def check_saved_model(folder: str | os.PathLike, *, run: bool = True) -> tuple[Verdict, ...]:
    """Checks a SavedModel for a stock TensorFlow Serving; nothing is written.

    A SavedModel is a program: its operations read and write files with the rights of the process.
    The checks that only read it come first, and if one fails, nothing of the model is run. That
    is no sandbox: run the checks on models whose source is trusted.

    The model is run by TensorFlow on the CPU, by tensor names, as the server does. What this cannot
    show is the server's own HTTP front and batching.

    Args:
        folder: Folder of one version, with `saved_model.pb`; of any origin.
        run: Whether to run the model too; False leaves those checks out.

    Returns:
        A verdict for each check, in this order:

        - `readable`: `saved_model.pb` is whole and has one graph for serving.
        - `signatures`: at least one; each of a known method, with what the method asks for.
        - `batch axis`: the first axis of every input and output is open.
        - `types`: of inputs and outputs are known to the server's REST and gRPC.
        - `operations`: all are in `serving_ops.txt`, those of functions included.
        - `XLA`: no function has `jit_compile=True`.
        - `Python functions`: none is called.
        - `assets`, `variables`: all are there; every stored tensor has the right checksum.
        - `warm-up file`: whole, and its requests suit the signatures.
        - `loads`: variables are restored and the model is initialised.
        - `warm-up`: every request of the file is answered.
        - `batches`: requests of 1 and 3 rows are answered, with as many rows, each row alone as
          among the others.
        - `mixed sizes`: images of several sizes are answered, each as if it were alone.
        - `bad image`: does not change the answers for its neighbours in the batch.

    Example:

    ```python
    for verdict in check_saved_model("saved_models/pets/1"):
        print("ok  " if verdict.passed else "FAIL", verdict.check, "-", verdict.detail)
    ```
    """
    folder = Path(folder)
    readable, model = _verdict("readable", read_model, folder)
    verdicts = [readable]
    for name, check in STATIC_CHECKS.items():
        verdict = _not_run(name, [readable])
        if readable.passed:
            verdict, _ = _verdict(name, check, model)
        verdicts.append(verdict)
    if not run:
        return tuple(verdicts)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if failed:
        return (*verdicts, *(_not_run(name, failed) for name in ("loads", *RUNNING_CHECKS)))
    with contextlib.ExitStack() as stack:
        loads, ask = _verdict("loads", load_model, model, stack)
        verdicts.append(loads)
        for name, running_check in RUNNING_CHECKS.items():
            verdicts.append(
                _verdict(name, running_check, model, ask)[0]
                if loads.passed
                else _not_run(name, [loads])
            )
    return tuple(verdicts)


def _verdict(name: str, check: Callable, *arguments) -> tuple[Verdict, Any]:
    """The verdict of a check that returns its detail, or `(detail, result)`."""
    try:
        detail = check(*arguments)
    except CheckFailed as error:
        return Verdict(name, False, str(error)), None
    except Exception as error:
        # Whatever a broken model makes TensorFlow raise is a finding, not the end of the checks.
        return Verdict(name, False, f"{type(error).__name__}: {first_line(error)}"), None
    detail, result = detail if isinstance(detail, tuple) else (detail, None)
    return Verdict(name, True, detail), result


def _not_run(name, failed):
    reasons = ", ".join(verdict.check for verdict in failed)
    return Verdict(name, False, f"not run, because of: {reasons}")
