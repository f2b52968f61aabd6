"""keras_vit beside the libraries whose checkpoints it reads: `python -m tests.parity`."""

import sys

# TensorFlow and the Triton of torch's CUDA builds each bring an LLVM, and abort the process when
# both load. Nothing here is compiled, so torch goes without.
sys.modules.setdefault("triton", None)
