"""What a backend has compiled, kept for the next time."""

import keras

from keras_vit.data import cache_folder
from keras_vit.finetune.precision import find_accelerator


def keep_compiled_programs() -> None:
    """Lets JAX keep the programs that it compiles for an accelerator, and take them from there.

    For a GPU it tries the kernels of each matrix product. A run that goes on, or the next of a
    sweep, then need not compile again, and has the kernels that were chosen before. They lie in
    `compiled` of the cache's folder (`$KERAS_VIT_CACHE`), which may be deleted at any time, and
    into which nobody else should be able to write; `$JAX_COMPILATION_CACHE_DIR` names another one,
    `$JAX_ENABLE_COMPILATION_CACHE=false` turns it off. It stays on for the rest of the process.

    For programs on one device: JAX does not find those on several again that call cuDNN. Does
    nothing on a CPU, or where the backend is not JAX.
    """
    if keras.backend.backend() != "jax" or find_accelerator().kind == "cpu":
        return
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
