"""Writes keras_vit/serving/serving_ops.txt, the operations that a stock TensorFlow Serving runs.

python tests/make_serving_ops.py PYTHON [PYTHON ...]

Each PYTHON is an interpreter with another release of TensorFlow, such as one of `python -m venv
tf219` after `tf219/bin/pip install tensorflow-cpu==2.19.*`. What all releases run is kept.

The model server is linked from the same C++ as the library inside the wheel. Asked through its C
interface, without Python, that library has no kernel for a Python function either. The server
also links TensorFlow Text and Decision Forests, whose operations are not listed.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

LIST = Path(__file__).resolve().parents[1] / "keras_vit" / "serving" / "serving_ops.txt"

# Run by each interpreter: its library's operations and kernels as serialised messages.
DUMP = """
import ctypes, importlib.util, pathlib, sys

class Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("free", ctypes.c_void_p)]

folder = pathlib.Path(importlib.util.find_spec("tensorflow").origin).parent
ctypes.CDLL(str(folder / "libtensorflow_framework.so.2"), mode=ctypes.RTLD_GLOBAL)
library = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"))
library.TF_Version.restype = ctypes.c_char_p
library.TF_NewStatus.restype = ctypes.c_void_p
library.TF_GetAllOpList.restype = ctypes.POINTER(Buffer)
library.TF_GetAllRegisteredKernels.restype = ctypes.POINTER(Buffer)
library.TF_GetAllRegisteredKernels.argtypes = [ctypes.c_void_p]
output = pathlib.Path(sys.argv[1])
for name, buffer in {
    "operations": library.TF_GetAllOpList().contents,
    "kernels": library.TF_GetAllRegisteredKernels(library.TF_NewStatus()).contents,
}.items():
    (output / name).write_bytes(ctypes.string_at(buffer.data, buffer.length))
(output / "version").write_bytes(library.TF_Version())
"""

# The server has no XLA compiler, TPU, TensorRT or NCCL; oneDNN's operations are put in at run time
# where the build has them. `Abort` would end the server.
LEFT_OUT = re.compile("Xla|T[Pp][Uu]|TRT|Nccl|DTensor|Ifrt|_Mkl|^Abort$")
# Replaced by other operations before a graph runs, so that they need no kernel.
REWRITTEN = {"AccumulateNV2"}

HEAD = """\
# The {count} operations that a stock TensorFlow Serving is taken to run: what the C libraries of
# TensorFlow {versions} all run on a CPU, but for Abort and for what is XLA's,
# TPU's, TensorRT's, NCCL's or oneDNN's own.
# Written by: python tests/make_serving_ops.py PYTHON ..., an interpreter with each version.
"""


def operations(python):
    """The version of an interpreter's TensorFlow, and the operations it runs on a CPU."""
    from tensorflow.core.framework import kernel_def_pb2, op_def_pb2

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-c", DUMP, folder], check=True, stderr=subprocess.DEVNULL)
        folder = Path(folder)
        known = op_def_pb2.OpList.FromString((folder / "operations").read_bytes()).op
        kernels = kernel_def_pb2.KernelList.FromString((folder / "kernels").read_bytes()).kernel
        version = (folder / "version").read_text()
    runs = {kernel.op for kernel in kernels if kernel.device_type in ("CPU", "DEFAULT")}
    return version, {op.name for op in known} & (runs | REWRITTEN)


def main(pythons):
    if not pythons:
        sys.exit(__doc__)
    versions, sets = zip(*map(operations, pythons), strict=True)
    names = sorted(name for name in set.intersection(*sets) if not LEFT_OUT.search(name))
    head = HEAD.format(count=len(names), versions=", ".join(versions))
    LIST.write_text(head + "".join(f"{name}\n" for name in names), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
