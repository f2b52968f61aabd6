"""What it takes for two runs of the same recipe to end with the same bits."""

import os

import keras

# Read by XLA when JAX starts, and by cuBLAS when PyTorch does.
_XLA_FLAG = "--xla_gpu_deterministic_ops=true"
_CUBLAS_WORKSPACE = ":4096:8"


def fix_order_of_operations(*, deterministic: bool = False) -> bool:
    """Fixes the order in which a backend computes, as far as that decides the last bits.

    TensorFlow on a CPU runs one operation at a time then, each on all cores. Operations that run
    beside each other share the threads, and how a sum is divided among them then differs from run
    to run, in the last bits. One at a time took some 6 % longer (14 steps of ViT-Ti/16 at 160 px,
    batch 64, two cores). It must be said before the backend computes anything.

    Args:
        deterministic: Whether a GPU may use only operations that give the same bits each time:
            TensorFlow's and PyTorch's own switch, and XLA's on JAX. What has no such form is an
            error then.

    Returns:
        Whether runs are reproducible now, as far as it is up to the order of operations.
    """
    return {
        "tensorflow": _fix_tensorflow,
        "jax": _fix_jax,
        "torch": _fix_torch,
    }[keras.backend.backend()](deterministic)


def _fix_tensorflow(deterministic):
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        if deterministic:
            tf.config.experimental.enable_op_determinism()
        return True
    try:
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow is in use already.
        return tf.config.threading.get_inter_op_parallelism_threads() == 1
    return True


def _fix_jax(deterministic):
    if not deterministic:
        return True
    flags = os.environ.get("XLA_FLAGS", "").split()
    if _XLA_FLAG in flags:
        return True
    from jax._src import xla_bridge

    if xla_bridge.backends_are_initialized():
        return False
    os.environ["XLA_FLAGS"] = " ".join([*flags, _XLA_FLAG])
    return True


def _fix_torch(deterministic):
    if deterministic:
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACE)
        torch.use_deterministic_algorithms(True)
    return True
