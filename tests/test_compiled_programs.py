"""Programs that JAX compiled are kept between processes, on an accelerator."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from keras_vit.finetune import compiled_programs
from keras_vit.finetune.precision import Accelerator

compiled_programs.find_accelerator = lambda: Accelerator(sys.argv[1], "device", 1, bfloat16=True)
compiled_programs.keep_compiled_programs()
import jax

# Small programs too.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
assert jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((3, 3))).sum() == 36
print("/jax/compilation_cache/cache_hits" in events)
"""


def hits(folder, kind="gpu", **variables):
    """Whether a process that computes something took a program from the folder."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind],
        env={
            **{k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"},
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "KERAS_VIT_CACHE": str(folder),
            **variables,
        },
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split()[-1] == "True"


def test_the_next_process_takes_what_was_compiled(tmp_path):
    assert not hits(tmp_path)
    assert any((tmp_path / "compiled").iterdir())
    assert hits(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_cpu_keeps_nothing_and_a_folder_of_ones_own_is_taken(tmp_path, kind):
    own = {} if kind == "cpu" else {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    assert not hits(tmp_path, kind, **own)
    assert not (tmp_path / "compiled").exists()
    assert (tmp_path / "own").exists() == (kind == "gpu")
