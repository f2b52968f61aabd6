"""Weight files are read exactly, in bounded memory, and damaged ones are refused by name."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vit.checkpoints.reading import (
    CheckpointError,
    as_float,
    open_tensors,
    resolve_path,
)

TENSORS = {
    "stack": np.arange(24, dtype="float32").reshape(4, 3, 2),
    "scalar": np.array(1.5, "float32"),
    "none": np.zeros((0, 3), "float32"),
    "half": np.array([1, -2, 0.5], "float16"),
    "double": np.array([[1e-300, 1 / 3]], "float64"),
    "brain": np.array([1, 3.140625], ml_dtypes.bfloat16),
}


def write(path, tensors, compressed=False):
    if path.suffix == ".npz":
        (np.savez_compressed if compressed else np.savez)(path, **tensors)
    else:
        safetensors.numpy.save_file(tensors, path)
    return path


def read_all(path):
    with open_tensors(path) as file:
        return {name: file.read(name) for name in file.shapes}


def safetensors_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def npz_with(path, members, compression=zipfile.ZIP_STORED, **options):
    """Writes an archive of raw members, name → bytes."""
    with zipfile.ZipFile(path, "w", compression, **options) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of duplicate names.
        for name, data in members:
            archive.writestr(name, data)
    return path


def npy(array, **changes):
    """The bytes of a .npy file, with parts of its header changed."""
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + array.tobytes(order="A")


@pytest.mark.parametrize("kind", ["stored.npz", "deflated.npz", "model.safetensors"])
def test_tensors_are_read_as_they_were_written(tmp_path, kind):
    path = write(tmp_path / kind, TENSORS, compressed="deflated" in kind)
    with open_tensors(path) as file:
        assert file.shapes == {name: tensor.shape for name, tensor in TENSORS.items()}
        for name, tensor in TENSORS.items():
            array = file.read(name)
            assert array.dtype == ("float64" if name == "double" else "float32")
            np.testing.assert_array_equal(array, tensor.astype(array.dtype), strict=True)
        for index in (3, 0, 2):
            np.testing.assert_array_equal(file.read("stack", index), TENSORS["stack"][index])
        np.testing.assert_array_equal(file.read("half", index=1), np.float32(-2))
        with pytest.raises(IndexError, match="stack holds 4 slices"):
            file.read("stack", 4)


@pytest.mark.parametrize("compressed", [False, True])
def test_orders_of_axes_and_bytes(tmp_path, compressed):
    array = np.random.default_rng(0).normal(size=(3, 4, 5))
    tensors = {
        "fortran": np.asfortranarray(array.astype("float32")),
        "big": array.astype(">f4"),
        "big_double": np.asfortranarray(array.astype(">f8")),
        "big_half": array.astype(">f2"),
    }
    with open_tensors(write(tmp_path / "model.npz", tensors, compressed)) as file:
        for name, tensor in tensors.items():
            expected = tensor.astype(np.float64 if "double" in name else np.float32)
            assert file.shapes[name] == (3, 4, 5)
            np.testing.assert_array_equal(file.read(name), expected)
            for index in range(3):
                np.testing.assert_array_equal(file.read(name, index), expected[index])


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from(["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"]),
    fortran=st.booleans(),
    compressed=st.booleans(),
)
def test_any_array_that_numpy_writes(tmp_path_factory, shape, dtype, fortran, compressed):
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    array = np.asfortranarray(array) if fortran else array
    path = tmp_path_factory.mktemp("npz") / "model.npz"
    write(path, {"a/b": array}, compressed)
    np.testing.assert_array_equal(read_all(path)["a/b"], array)


def test_larger_than_a_chunk(tmp_path):
    array = np.random.default_rng(0).normal(size=(3, 700_001)).astype("float32")
    array[2, -1] = 77
    for path in (tmp_path / "model.npz", tmp_path / "model.safetensors"):
        write(path, {"a": array})
        with open_tensors(path) as file:
            np.testing.assert_array_equal(file.read("a"), array)
            np.testing.assert_array_equal(file.read("a", 2), array[2])


def test_as_float_copies_only_what_it_must():
    array = np.ones((300, 200), "float32")
    for same in (array, array.T, array.astype("float64"), array[::2]):
        assert as_float("file", "name", same) is same
    for other in (">f4", ">f8", "float16", ml_dtypes.bfloat16):
        result = as_float("file", "name", array.astype(other))
        assert result.dtype.isnative and result.dtype in ("float32", "float64")
        np.testing.assert_array_equal(result, array)
    raw = np.array([1.5, 2], ml_dtypes.bfloat16).view("V2")
    np.testing.assert_array_equal(as_float("file", "name", raw), np.float32([1.5, 2]))
    array[7, 3] = np.nan
    with pytest.raises(CheckpointError, match="file: tensor name holds 1 values that are NaN"):
        as_float("file", "name", array.T)


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", "uint8"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_what_is_no_float_is_refused_when_it_is_read(tmp_path, suffix, dtype):
    path = write(tmp_path / f"m{suffix}", {"a": np.ones(2, "float32"), "b": np.ones(2, dtype)})
    with open_tensors(path) as file:
        np.testing.assert_array_equal(file.read("a"), [1, 1])
        with pytest.raises(
            CheckpointError, match=rf"m{suffix}: tensor b must hold floats.*{dtype}"
        ):
            file.read("b")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_values_that_are_not_finite(tmp_path, suffix, value):
    array = np.ones((700, 600))
    array[-1, -1] = value
    path = write(tmp_path / f"model{suffix}", {"a": array})
    with open_tensors(path) as file, pytest.raises(CheckpointError, match=rf"model{suffix}: .* a "):
        file.read("a")


# .safetensors

HEADERS = {
    "length": (b"\xff" * 7 + b"\x7f{}", "model.safetensors.*truncated"),
    "long header": (safetensors_bytes(b" " * (9 << 20)), "header of 9437184 bytes"),
    "empty": (b"", "model.safetensors.*truncated"),
    "no JSON": (safetensors_bytes(b"{no"), "model.safetensors is no JSON"),
    "no UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "model.safetensors is no JSON"),
    "list": (safetensors_bytes([]), "model.safetensors must hold a JSON object. Found: list"),
    "nested": (safetensors_bytes(b"[" * 1_000_000), "model.safetensors is no JSON"),
    "nested object": (
        safetensors_bytes(b'{"a":' * 400_000 + b"1" + b"}" * 400_000),
        "model.safetensors is no JSON",
    ),
    "nested entry": (safetensors_bytes(b'{"a":' + b"[" * 90 + b"]" * 90 + b"}"), "tensor a must"),
    "twice": (
        safetensors_bytes(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        "key 'a' occurs twice",
    ),
    "metadata": (safetensors_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "no entry": (safetensors_bytes({"a": 7}), "entry of tensor a must"),
    "no dtype": (safetensors_bytes({"a": {"shape": [1]}}), "entry of tensor a must"),
    "unknown dtype": (safetensors_bytes({"a": entry(0, 8, dtype="F99")}, bytes(8)), "a .* 'F99'"),
    "dtype list": (safetensors_bytes({"a": entry(0, 8, dtype=[])}, bytes(8)), "tensor a .*dtype"),
    "negative": (safetensors_bytes({"a": entry(0, 8, (-2, -1))}, bytes(8)), r"tensor a .*\[-2"),
    "true": (safetensors_bytes({"a": entry(0, 4, (True,))}, bytes(4)), "tensor a .*shape"),
    "fraction": (safetensors_bytes({"a": entry(0, 8, (2.0,))}, bytes(8)), "tensor a .*shape"),
    "overflow": (safetensors_bytes({"a": entry(0, 0, (2**32, 2**32))}), "tensor a .*shape"),
    "zero of giants": (
        safetensors_bytes({"a": entry(0, 0, (0, 2**40, 2**40))}),
        "tensor a .*shape",
    ),
    "rank": (safetensors_bytes({"a": entry(0, 4, [1] * 99)}, bytes(4)), "tensor a .*shape"),
    "size": (safetensors_bytes({"a": entry(0, 8, (3,))}, bytes(8)), "tensor a .*12 bytes"),
    "backwards": (safetensors_bytes({"a": entry(8, 0)}, bytes(8)), "tensor a .*damaged"),
    "before": (safetensors_bytes({"a": entry(-8, 0)}, bytes(8)), "tensor a .*damaged"),
    "three offsets": (
        safetensors_bytes({"a": entry(0, 8) | {"data_offsets": [0, 8, 8]}}, bytes(8)),
        "tensor a .*damaged",
    ),
    "outside": (safetensors_bytes({"a": entry(0, 8)}, bytes(4)), "tensor a reaches"),
    "overlap": (
        safetensors_bytes({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        "tensor b overlaps",
    ),
    "same bytes": (
        safetensors_bytes({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
        "tensor b overlaps",
    ),
    "hole": (safetensors_bytes({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)), "b follows"),
    "hole at the start": (safetensors_bytes({"a": entry(8, 16)}, bytes(16)), "a follows a hole"),
    "more": (safetensors_bytes({"a": entry(0, 8)}, bytes(9)), "1 bytes after its last tensor, a"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie(tmp_path, case):
    content, message = HEADERS[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_all(tmp_path / "model.safetensors")
    assert "model.safetensors" in str(error.value) and len(str(error.value)) < 1000


def test_the_order_of_the_header_is_free(tmp_path):
    data = np.arange(4, dtype="float32").tobytes()
    header = {"b": entry(8, 16), "__metadata__": {"format": "pt"}, "a": entry(0, 8)}
    (tmp_path / "m.safetensors").write_bytes(safetensors_bytes(header, data))
    tensors = read_all(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(tensors["a"], [0, 1])
    np.testing.assert_array_equal(tensors["b"], [2, 3])


@pytest.mark.parametrize("kind", ["stored.npz", "deflated.npz", "model.safetensors"])
def test_a_file_cut_off_anywhere(tmp_path, kind):
    tensors = {"a": np.arange(6, dtype="float32"), "b": np.ones((2, 2), "float32")}
    path = write(tmp_path / kind, tensors, compressed="deflated" in kind)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=kind):
            read_all(path)


# Shards


def write_shards(folder, file_of=None):
    safetensors.numpy.save_file({"a": TENSORS["stack"]}, folder / "one.safetensors")
    safetensors.numpy.save_file(
        {"b": TENSORS["half"], "c": TENSORS["scalar"]}, folder / "two.safetensors"
    )
    file_of = file_of or {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": file_of}))
    return index


def test_shards_are_one_file(tmp_path):
    index = write_shards(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "preprocessor_config.json").write_text('{"do_resize": true}')
    for path in (index, tmp_path):
        with open_tensors(path) as file:
            assert file.path == index
            assert file.shapes == {"a": (4, 3, 2), "b": (3,), "c": ()}
            assert file.hub_config == {"model_type": "vit"}
            assert file.preprocessor_config == {"do_resize": True}
            np.testing.assert_array_equal(file.read("a", 1), TENSORS["stack"][1])
            np.testing.assert_array_equal(file.read("b"), TENSORS["half"].astype("float32"))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/one.safetensors",
        "../one.safetensors",
        "sub/one.safetensors",
        "sub\\one.safetensors",
        "C:one.safetensors",
        "..",
        "",
        "one.bin",
        None,
        7,
        ["one.safetensors"],
    ],
)
def test_an_index_that_leads_elsewhere(tmp_path, name):
    index = write_shards(tmp_path, {"a": name})
    with pytest.raises(CheckpointError, match=r"index\.json: the tensor a is said to be in "):
        read_all(index)


@pytest.mark.parametrize(
    ("file_of", "message"),
    [
        (
            {"a": "one.safetensors", "b": "three.safetensors", "c": "two.safetensors"},
            "three.safetensors, which holds b, is missing",
        ),
        (
            {"a": "one.safetensors", "d": "one.safetensors"},
            "one.safetensors lacks the tensor d, which model.safetensors.index.json says",
        ),
        (
            {"a": "one.safetensors", "b": "two.safetensors"},
            "two.safetensors holds the tensor c, which model.safetensors.index.json does not name",
        ),
        (
            {"a": "two.safetensors", "b": "two.safetensors", "c": "one.safetensors"},
            "one.safetensors holds the tensor a, which .* says is in two.safetensors",
        ),
    ],
)
def test_an_index_that_disagrees_with_its_shards(tmp_path, file_of, message):
    with pytest.raises(CheckpointError, match=message):
        read_all(write_shards(tmp_path, file_of))


def test_a_tensor_in_two_shards(tmp_path):
    index = write_shards(tmp_path)
    safetensors.numpy.save_file(
        {"a": TENSORS["stack"], "b": TENSORS["half"]}, tmp_path / "one.safetensors"
    )
    with pytest.raises(CheckpointError, match="one.safetensors holds the tensor b, which .*two"):
        read_all(index)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', "{", '{"a": NaN}'])
def test_an_index_that_is_none(tmp_path, content):
    index = write_shards(tmp_path)
    index.write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        read_all(tmp_path)


# Folders


def test_what_a_folder_is_read_by(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors and no .*index"):
        resolve_path(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"(?s)pytorch_model\.bin is a pickle.*weights_only"):
        resolve_path(tmp_path)
    for name in ("one.safetensors", "model.keras", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(b"")
        assert resolve_path(tmp_path).name == name
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert resolve_path(tmp_path).name == "model.safetensors"


def test_a_folder_that_leaves_a_choice(tmp_path):
    for name in ("one.safetensors", "two.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds 2 .*one\.safetensors, two\.safetensors"):
        resolve_path(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.npz")
    with pytest.raises(CheckpointError, match=r"model\.npz is no regular file"):
        read_all(tmp_path / "model.npz")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{\x00", "is no JSON"),
        (b"{no", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"a": Infinity}', "is no JSON"),
        (b'"text"', "must hold a JSON object. Found: str"),
        (b"{}" + b" " * (16 << 20), "holds more than 16777216 bytes"),
    ],
    ids=["utf-16", "cut", "nested", "infinity", "text", "large"],
)
def test_bad_json_beside_the_weights(tmp_path, name, content, message):
    write(tmp_path / "model.safetensors", {"a": TENSORS["stack"]})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"/{name} {message}"):
        read_all(tmp_path)


# .npz


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


ARRAY = np.arange(4, dtype="float32")
MEMBERS = {
    "object": ([("a.npy", npy(ARRAY, descr="|O"))], "tensor a is a pickled Python object"),
    "pickle": ([("a.npy", pickle.dumps(Bomb()))], r"a\.npy is no NumPy array"),
    "no suffix": ([("a", npy(ARRAY))], "'a' is no NumPy array"),
    "folder": ([("a/", b"")], "'a/' is no NumPy array"),
    "empty": ([("a.npy", b"")], r"a\.npy is no NumPy array"),
    "version": ([("a.npy", npy(ARRAY)[:6] + b"\x09" + npy(ARRAY)[7:])], r"a\.npy is no NumPy"),
    "twice": ([("a.npy", npy(ARRAY)), ("a.npy", npy(ARRAY + 1))], r"'a\.npy' is in the .* twice"),
    "absolute": ([("/a.npy", npy(ARRAY))], r"'/a\.npy' has an absolute path"),
    "parent": ([("x/../../a.npy", npy(ARRAY))], "absolute path or one that leads elsewhere"),
    "windows": ([("C:\\a.npy", npy(ARRAY))], "absolute path or one that leads elsewhere"),
    "longer": ([("a.npy", npy(ARRAY, shape=(1 << 40,)))], "tensor a is damaged"),
    "shorter": ([("a.npy", npy(ARRAY, shape=(3,)))], "tensor a is damaged"),
    "negative": ([("a.npy", npy(ARRAY, shape=(-2, -2)))], "tensor a is damaged"),
    "giant": ([("a.npy", npy(ARRAY, shape=(2**40, 2**40)))], "tensor a is damaged"),
    "zero of giants": ([("a.npy", npy(ARRAY[:0], shape=(0, 2**40, 2**40)))], "a is damaged"),
    "no bytes": ([("a.npy", npy(ARRAY[:0], descr="<U0", shape=(2**40,)))], "a holds <U0"),
    "dtype": ([("a.npy", npy(ARRAY, descr="<i4"))], "tensor a must hold floats"),
    "record": ([("a.npy", npy(ARRAY, descr=[("x", "<f4")]))], "tensor a must hold floats"),
    "minus signs": (
        [("a.npy", b"\x93NUMPY\x01\x00\x28\x23" + b"-" * 9000)],
        r"a\.npy is no NumPy array",
    ),
    "header of 4 GB": (
        [("a.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"{" * 9000)],
        r"a\.npy is no NumPy array",
    ),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", MEMBERS)
def test_archives_of_other_things(tmp_path, case, compression):
    members, message = MEMBERS[case]
    path = npz_with(tmp_path / "model.npz", members, compression)
    with pytest.raises(CheckpointError, match=message) as error:
        read_all(path)
    assert "model.npz" in str(error.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_to_compress_are_refused(tmp_path, method):
    path = npz_with(tmp_path / "model.npz", [("a.npy", npy(ARRAY))], method)
    with pytest.raises(CheckpointError, match=rf"model\.npz.*'a\.npy' is compressed by {'method'}"):
        read_all(path)


def change_directory(path, offset, form, value):
    """Overwrites a field of the first entry in an archive's central directory."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(b"PK\x01\x02") + offset, value)
    path.write_bytes(data)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("field", "offset", "form", "values"),
    [
        ("encrypted", 8, "<H", [1]),
        ("method", 10, "<H", [8, 0, 12, 99]),
        ("checksum", 16, "<I", [1]),
        ("compressed size", 20, "<I", [0, 3, 140, 400, 0x7FFFFFFF]),
        ("size", 24, "<I", [0, 3, 143, 145, 400, 0x7FFFFFFF]),
        ("offset", 42, "<I", [1, 150, 0x7FFFFFFF]),
    ],
)
def test_a_central_directory_that_lies(tmp_path, field, offset, form, values, compression):
    for value in values:
        path = tmp_path / "model.npz"
        npz_with(path, [("a.npy", npy(ARRAY)), ("b.npy", npy(ARRAY))], compression)
        if field == "method" and value == compression:
            continue
        change_directory(path, offset, form, value)
        with pytest.raises(CheckpointError, match=r"model\.npz"):
            read_all(path)


def test_members_over_each_other(tmp_path):
    path = npz_with(tmp_path / "model.npz", [("a.npy", npy(ARRAY)), ("a.npy", npy(ARRAY))])
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = bytes(4)
    # The same bytes under two names, the way to make a bomb out of little.
    data[second + 46] = data[30] = data[data.index(b"PK\x01\x02") + 46] = ord("c")
    data[second + 46] = ord("b")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.npz: member .\.npy .*overlaps"):
        read_all(path)


def test_an_archive_behind_something_else(tmp_path):
    path = npz_with(tmp_path / "model.npz", [("a.npy", npy(ARRAY))])
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    with pytest.raises(
        CheckpointError, match=r"model\.npz is no \.npz file: 10 bytes of something"
    ):
        read_all(path)


def test_a_bomb_is_refused_without_inflating(tmp_path):
    path = tmp_path / "model.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("bomb.npy", "w") as stream,
    ):
        stream.write(npy(np.zeros(0, "float32"), shape=(32 << 20,)))
        for _ in range(128):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 300_000
    with pytest.raises(CheckpointError, match=r"model\.npz would inflate to .*bomb\.npy alone"):
        read_all(path)


def test_a_member_that_inflates_to_more_than_it_claims(tmp_path):
    path = npz_with(
        tmp_path / "model.npz", [("a.npy", npy(ARRAY) + bytes(1 << 20))], zipfile.ZIP_DEFLATED
    )
    change_directory(path, 24, "<I", len(npy(ARRAY)))
    with pytest.raises(CheckpointError, match=r"model\.npz: tensor a is damaged.*CRC"):
        read_all(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_slice_of_a_damaged_member_is_not_handed_on(tmp_path, compressed):
    stack = np.random.default_rng(0).normal(size=(4, 5000)).astype("float32")
    path = write(tmp_path / "model.npz", {"a": stack}, compressed)
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    with open_tensors(path) as file, pytest.raises(CheckpointError, match="tensor a is damaged"):
        file.read("a", 0)


# Memory

MEASURE = """
import pathlib, re, sys
from keras_vit.checkpoints.reading import open_tensors

def resident(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(field + r":\\s+(\\d+)", status)[1]) * 1024

# The peak so far is that of the imports; ru_maxrss could not be reset, and outlives an exec.
pathlib.Path("/proc/self/clear_refs").write_text("5")
largest, before = 0, resident("VmRSS")
with open_tensors(sys.argv[1]) as file:
    for name, shape in file.shapes.items():
        tensor = file.read(name)
        largest = max(largest, tensor.nbytes)
        tensor = None
        for index in range(shape[0] if sys.argv[2] == "slices" else 0):
            file.read(name, index)
print((resident("VmHWM") - before) / largest)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["stored.npz", "deflated.npz", "model.safetensors", "half.npz"])
def test_reading_holds_one_tensor_at_a_time(tmp_path, kind):
    # About 400 MB in float32; of few different values, so that deflating is quick.
    values = np.random.default_rng(0).integers(0, 4, (8, 1_250_000))
    array = values.astype("float16" if kind == "half.npz" else "float32")
    tensors = {f"tensor_{index}": array for index in range(10)}
    if kind == "deflated.npz":
        members = ((f"{name}.npy", npy(tensor)) for name, tensor in tensors.items())
        path = npz_with(tmp_path / kind, members, zipfile.ZIP_DEFLATED, compresslevel=1)
    else:
        path = write(tmp_path / kind, tensors)
    reads = "whole" if kind == "deflated.npz" else "slices"
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), reads],
        capture_output=True,
        text=True,
        check=True,
    )
    grown = float(result.stdout)
    print(f"{kind}: grew by {grown:.3f} x the largest tensor")
    assert grown < 1.2
