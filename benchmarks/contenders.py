"""Who is measured: a table with a row for each contender. A new one is a new row."""

import dataclasses

OURS = "keras_vit"
# Environment in which float32 means float32, on a GPU too.
FLOAT32 = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "NVIDIA_TF32_OVERRIDE": "0"}


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to do a suite's step.

    Args:
        library: Whose model it is.
        framework: What computes it: `"tensorflow"`, `"jax"` or `"torch"`.
        how: What else tells it from the library's others.
        make: `"module:function"` that makes the `Step` of a job.
        packages: What must be installed.
        options: Added to the job.
        variables: Added to the environment of its process.
        compiles: Whether its first step compiles and may take longer than a repetition.
        compared: Whether it computes what the others do, which is checked before it is timed.
    """

    library: str
    framework: str
    how: str
    make: str
    packages: tuple[str, ...]
    options: dict = dataclasses.field(default_factory=dict)
    variables: dict = dataclasses.field(default_factory=dict)
    compiles: bool = False
    compared: bool = True

    @property
    def name(self):
        return " ".join(filter(None, (self.library, self.framework, self.how)))

    def environment(self, dtype):
        """Environment variables of its process."""
        backend = {} if self.framework == "torch" else {"KERAS_BACKEND": self.framework}
        return {**backend, **(FLOAT32 if dtype == "float32" else {}), **self.variables}


def _keras(library, framework, how, function, variables=None, **options):
    package = library.replace("-", "_")
    return Contender(
        library,
        framework,
        how,
        f"benchmarks.keras_models:{function}",
        (framework, package),
        {"library": library, **options},
        variables or {},
        compiles=framework == "jax" or options.get("jit_compile", False) is not False,
    )


def _torch(library, how, function, variables=None, **options):
    return Contender(
        library,
        "torch",
        how,
        f"benchmarks.torch_models:{function}",
        ("torch", library),
        {"library": library, **options},
        variables or {},
        compiles=options.get("compile", False),
    )


# TensorFlow's own default on CPUs without AVX-512 VNNI; keras_vit turns oneDNN on.
_WITHOUT_ONEDNN = {"TF_ENABLE_ONEDNN_OPTS": "0"}
# Handing work over may take longer than a small model's work on one image.
_ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
# Each thread takes operations of its own; with it `inference_function` computes in parts.
_THREAD_EACH = {"TF_NUM_INTRAOP_THREADS": "1"}
# Of which `inference_function` makes no parts.
_UNDIVIDED = {"TF_NUM_INTEROP_THREADS": "1"}
# For processes whose weights do not change: they are packed for the products once.
_FROZEN = {"TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": "1", "TORCHINDUCTOR_FREEZING": "1"}
FORWARD = (
    _keras(OURS, "tensorflow", "", "forward", jit_compile=None),  # As inference_function chooses.
    _keras(OURS, "tensorflow", "no XLA", "forward", jit_compile=False),
    _keras(OURS, "tensorflow", "no XLA, no oneDNN", "forward", _WITHOUT_ONEDNN, jit_compile=False),
    _keras(OURS, "tensorflow", "XLA", "forward", jit_compile=True),
    _keras(OURS, "tensorflow", "one thread", "forward", _ONE_THREAD, jit_compile=None),
    _keras(OURS, "tensorflow", "undivided", "forward", _UNDIVIDED, jit_compile=None),
    _keras(OURS, "tensorflow", "in parts", "forward", _THREAD_EACH, jit_compile=None),
    _keras(OURS, "tensorflow", "frozen", "forward", _FROZEN, jit_compile=None),
    _keras(
        OURS, "tensorflow", "frozen, one thread", "forward", _FROZEN | _ONE_THREAD, jit_compile=None
    ),
    _keras(
        OURS, "tensorflow", "frozen, in parts", "forward", _FROZEN | _THREAD_EACH, jit_compile=None
    ),
    _keras(OURS, "jax", "", "forward"),
    _keras("keras-hub", "tensorflow", "", "forward", jit_compile=False),
    _keras("keras-hub", "tensorflow", "XLA", "forward", jit_compile=True),
    _keras("keras-hub", "tensorflow", "one thread", "forward", _ONE_THREAD, jit_compile=False),
    _keras("keras-hub", "tensorflow", "a thread each", "forward", _THREAD_EACH, jit_compile=False),
    _keras("keras-hub", "tensorflow", "XLA, one thread", "forward", _ONE_THREAD, jit_compile=True),
    _keras("keras-hub", "tensorflow", "frozen", "forward", _FROZEN, jit_compile=False),
    _keras(
        "keras-hub",
        "tensorflow",
        "frozen, one thread",
        "forward",
        _FROZEN | _ONE_THREAD,
        jit_compile=False,
    ),
    _keras("keras-hub", "jax", "", "forward"),
    _torch("timm", "eager", "forward"),
    _torch("timm", "eager, one thread", "forward", _ONE_THREAD),
    _torch("timm", "compile", "forward", compile=True),
    _torch("timm", "compile, one thread", "forward", _ONE_THREAD, compile=True),
    _torch("timm", "compile, frozen", "forward", _FROZEN, compile=True),
    _torch("timm", "compile, frozen, one thread", "forward", _FROZEN | _ONE_THREAD, compile=True),
    _torch("transformers", "eager", "forward"),
    _torch("transformers", "compile", "forward", compile=True),
    _torch("transformers", "compile, one thread", "forward", _ONE_THREAD, compile=True),
    _torch("transformers", "compile, frozen", "forward", _FROZEN, compile=True),
    _torch(
        "transformers",
        "compile, frozen, one thread",
        "forward",
        _FROZEN | _ONE_THREAD,
        compile=True,
    ),
)
TRAIN = (
    _keras(OURS, "tensorflow", "", "train"),  # XLA or not: what keras_vit.finetune chooses.
    _keras(OURS, "tensorflow", "no oneDNN", "train", _WITHOUT_ONEDNN),
    _keras(OURS, "tensorflow", "XLA", "train", jit_compile=True),
    _keras(OURS, "jax", "", "train"),
    _keras("keras-hub", "tensorflow", "", "train", jit_compile=False),
    _keras("keras-hub", "tensorflow", "XLA", "train", jit_compile=True),
    _keras("keras-hub", "jax", "", "train"),
    _torch("timm", "eager", "train"),
    _torch("timm", "compile", "train", compile=True),
    _torch("transformers", "eager", "train"),
    _torch("transformers", "compile", "train", compile=True),
)
MATRIX_PRODUCTS = tuple(
    Contender(
        "matrix products",
        framework,
        "",
        "benchmarks.matrix_products:products",
        (framework,),
        {"framework": framework},
        compiles=framework == "jax",
        compared=False,
    )
    for framework in ("tensorflow", "jax", "torch")
)


def chosen(contenders, patterns):
    """The contenders that are called so, or whose name contains one of these texts; all without.

    Raises:
        ValueError: If a text is in no name.
    """
    if not patterns:
        return contenders
    names = [contender.name for contender in contenders]
    found = set()
    for pattern in patterns:
        # A whole name is that contender's alone, though others begin with it.
        meant = {name for name in names if name == pattern} or {n for n in names if pattern in n}
        if not meant:
            raise ValueError(
                f"No contender's name contains {pattern!r}. There are: {', '.join(names)}"
            )
        found |= meant
    return tuple(contender for contender in contenders if contender.name in found)
