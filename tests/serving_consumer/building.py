"""Compiles the consumer against the C library that is in TensorFlow's wheel."""

import importlib.util
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

SOURCE = Path(__file__).with_name("consumer.c")
LIBRARY = "KERAS_VIT_TENSORFLOW_LIBRARY"


def tensorflow_library() -> Path:
    """The `tensorflow` folder of a wheel: the installed one, or another release's.

    The environment variable KERAS_VIT_TENSORFLOW_LIBRARY names another one.
    """
    if os.environ.get(LIBRARY):
        folder = Path(os.environ[LIBRARY]).resolve()
        if not (folder / "libtensorflow_cc.so.2").is_file():
            raise FileNotFoundError(
                f"{LIBRARY} is {folder}, where there is no libtensorflow_cc.so.2. Name the "
                "`tensorflow` folder of an installed wheel."
            )
        return folder
    # find_spec imports nothing.
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("TensorFlow is not installed.")
    return Path(spec.submodule_search_locations[0]).resolve()


def why_not() -> str | None:
    """Why the consumer cannot be compiled on this machine; None where it can."""
    if sys.platform != "linux":
        return f"the consumer is written for Linux, this is {sys.platform}"
    if shutil.which("cc") is None:
        return "the consumer is a C program, and there is no compiler `cc` on the PATH"
    if not (tensorflow_library() / "include/tensorflow/c/c_api.h").is_file():
        return f"TensorFlow's wheel in {tensorflow_library()} has no C headers"
    return None


def compile_consumer(folder: Path) -> Path:
    """The compiled program in `folder`; compiled only where it is not there yet."""
    program = folder / "consumer"
    if program.exists():
        return program
    library = tensorflow_library()
    # Several processes may compile at a time: each writes its own file and renames it.
    partial = folder / f"consumer.{uuid.uuid4().hex}"
    command = ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command += ["-isystem", library / "include", SOURCE, "-o", partial]
    command += [library / "libtensorflow_cc.so.2", library / "libtensorflow_framework.so.2"]
    command += ["-Xlinker", "-rpath", "-Xlinker", library]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{SOURCE.name} does not compile:\n{result.stderr}")
    os.replace(partial, program)
    return program
