"""What XLA compiles for a GPU, without having one: `python -m benchmarks.gpu_programs`.

Forward passes and training steps in bfloat16 on JAX, compiled ahead of time for an H100, of
keras_vit and of keras-hub. Nothing is run and nothing timed. Of each program are printed the
memory that it needs, its calls of cuDNN's attention, and what it reads and writes in all other
kernels than matrix products and attention: bound by the memory's speed, they are what a step costs
beyond these. XLA is not asked to try kernels out, for which it needs the device.

Needs the CUDA libraries: `pip install "jax-cuda12-plugin[with-cuda]"` of JAX's own version.
"""

import argparse
import collections
import json
import math
import os
import re

from benchmarks.memory import in_a_fresh_process
from benchmarks.table import markdown

# (suite, model, image size, batch, fields of the config)
CASES = [
    ("forward", "vit_b16", 224, 512, {}),
    ("forward", "vit_b16", 384, 512, {}),
    ("forward", "vit_l16", 384, 128, {}),
    ("train", "vit_b16", 224, 512, {}),
    ("train", "vit_b16", 384, 128, {}),
    ("train", "vit_b16", 384, 512, {}),
    ("train", "vit_b16", 384, 512, {"remat": True}),
    ("train", "vit_l16", 224, 256, {}),
    ("train", "vit_l16", 384, 128, {}),
    ("train", "vit_l16", 384, 128, {"remat": True}),
]
# What a client would read from the device, as XLA's own text format has it; of Hopper's SXM5 board.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
BYTES = dict(
    zip(
        ["pred", "s8", "u8", "bf16", "f16", "s16", "u16", "s32", "u32", "f32", "s64", "u64", "f64"],
        [1] * 3 + [2] * 4 + [4] * 3 + [8] * 3,
        strict=True,
    )
)
ATTENTION = "__cudnn$fmhaSoftmax"
NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


def compiled(job):
    """The program of a job, compiled for an H100."""
    import jax
    from jax._src import xla_bridge
    from jax._src.cudnn import fused_attention_stablehlo as attention
    from jax.experimental import topologies

    # JAX asks the device that is not there what it can.
    attention.check_cudnn_version = lambda: 90800
    attention.check_compute_capability = lambda capability: True
    attention.is_cuda_compute_capability_equal = lambda capability: capability == "9.0"
    canonical = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda name: "cuda" if name == "gpu" else canonical(name)
    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    device = jax.sharding.SingleDeviceSharding(topology.devices[0])

    def on_device(array):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=device)

    function, arguments, donated = PROGRAMS[job["suite"]](job)
    arguments = jax.tree.map(on_device, arguments)
    lowered = jax.jit(function, donate_argnums=donated).trace(*arguments)
    return lowered.lower(lowering_platforms=("cuda",)).compile()


def _images(job):
    import jax

    return jax.ShapeDtypeStruct((job["batch_size"], *[job["image_size"]] * 2, 3), "float32")


def _forward(job):
    import keras_vit
    from benchmarks.keras_models import BUILDERS, POLICIES

    model = BUILDERS[job["library"]](job, POLICIES[job["dtype"]])
    if job["library"] == "keras_vit":
        model = keras_vit.models.without_unread_tokens(model)
    weights = [
        [variable.value for variable in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    ]

    def forward(trainable, fixed, images):
        return model.stateless_call(trainable, fixed, images, training=False)[0]

    return forward, (*weights, _images(job)), ()


def _train(job):
    import jax
    import numpy as np

    from benchmarks.keras_models import compiled_for_training

    model = compiled_for_training(job)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    # Builds the metrics.
    few = np.zeros((2, *[job["image_size"]] * 2, 3), "float32"), np.zeros(2, "int32")
    model._symbolic_build(data_batch=few)
    state = [
        [variable.value for variable in group]
        for group in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    ]
    labels = jax.ShapeDtypeStruct((job["batch_size"],), "int32")
    return model.train_step, (state, (_images(job), labels)), 0


PROGRAMS = {"forward": _forward, "train": _train}


def facts(job):
    """What is printed of a program."""
    program = compiled(job)
    memory = program.memory_analysis()
    # What is donated counts once.
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    kernels = collections.Counter()
    moved = 0
    for operation, size in entry_operations(program.as_text()):
        kernels[operation] += 1
        if not operation.startswith("__"):
            moved += size
    return {
        "memory": memory.temp_size_in_bytes + kept,
        "attention": [kernels[ATTENTION], kernels[f"{ATTENTION}Backward"]],
        "moved": moved,
    }


def entry_operations(text):
    """The operations of a program's entry, or the targets of its custom calls, and their bytes.

    Args:
        text: An optimized HLO module.

    Yields:
        `(name, bytes read and written)`.

    >>> list(entry_operations('''
    ... %cut (x: f32[8,4]) -> f32[2,4] {
    ...   %x = f32[8,4]{1,0} parameter(0)
    ...   ROOT %s = f32[2,4]{1,0} slice(%x), slice={[0:2], [0:4]}
    ... }
    ...
    ... ENTRY %main (a: f32[8,4]) -> f32[2,4] {
    ...   %a = f32[8,4]{1,0} parameter(0)
    ...   %b = f32[8,4]{1,0} copy(%a)
    ...   ROOT %c = f32[2,4]{1,0} fusion(%b), kind=kLoop, calls=%cut
    ... }
    ... '''))
    [('copy', 256), ('fusion', 64)]
    """
    parts = re.findall(
        r"^(?:ENTRY )?%([\w.\-]+) \([^\n]*\{\n(.*?)\n\}", text, re.DOTALL | re.MULTILINE
    )
    computations = dict(parts)
    entry = re.search(r"^ENTRY %([\w.\-]+)", text, re.MULTILINE)[1]
    shapes = {}
    for line in computations[entry].splitlines():
        found = re.match(r"\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)", line)
        if found is None:
            continue
        name, shape, operation, operands, rest = found.groups()
        shapes[name] = shape
        if operation in NO_KERNEL:
            continue
        fused = computations.get((re.search(r"calls=%([\w.\-]+)", rest) or ["", ""])[1], "")
        read = sum(
            _read(fused, index, shapes[operand])
            for index, operand in enumerate(re.findall(r"%([^\s,]+)", operands))
            if operand in shapes
        )
        target = re.search(r'custom_call_target="([^"]+)"', rest)
        yield target[1] if target else operation, read + _size(shape)


def _size(shape):
    """Bytes of an array, or of all in a tuple."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(BYTES[dtype] * math.prod(map(int, re.findall(r"\d+", n))) for dtype, n in arrays)


def _read(fused, index, shape):
    """Bytes that a fusion reads of an operand: where it only takes slices of it, those."""
    parameter = re.search(rf"%(\S+) = \S+ parameter\({index}\)", fused)
    if parameter is None:
        return _size(shape)
    operand = re.compile(rf"[(\s]%{re.escape(parameter[1])}[,)]")
    users = [line for line in fused.splitlines() if operand.search(line)]
    if not users or not all(re.search(r" (dynamic-)?slice\(", line) for line in users):
        return _size(shape)
    return sum(_size(line.split(" = ")[1].split(" ")[0]) for line in users)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suites", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--models", nargs="+", default=["vit_b16", "vit_l16"])
    parser.add_argument("--libraries", nargs="+", default=["keras_vit", "keras-hub"])
    parser.add_argument("--case", type=json.loads, help="compile this case alone")
    options = parser.parse_args()
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ.update(
        KERAS_BACKEND="jax",
        JAX_PLATFORMS="cpu",
        JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1",
        XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {flags}",
    )
    if options.case:
        print(json.dumps(facts(options.case)))
        return
    rows = []
    for suite, model, image_size, batch_size, fields in CASES:
        if suite not in options.suites or model not in options.models:
            continue
        ours = None
        for library in options.libraries:
            if library != "keras_vit" and fields:
                continue
            found = in_a_fresh_process(
                "benchmarks.gpu_programs",
                suite=suite,
                model=model,
                library=library,
                dtype="bfloat16",
                image_size=image_size,
                batch_size=batch_size,
                fields=fields,
            )
            ours = ours or found
            name = f"{suite} {model} {image_size} px, batch {batch_size}{' remat' * bool(fields)}"
            row = [
                f"{name}, {library}",
                f"{found['memory'] / 2**30:.1f}",
                "{} + {}".format(*found["attention"]),
                f"{found['moved'] / 1e9:.1f}",
                f"{found['moved'] / ours['moved']:.2f}",
            ]
            print(*row, sep="  ", flush=True)
            rows.append(row)
    header = ["", "memory, GiB", "attention calls", "light kernels, GB", "x ours"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
