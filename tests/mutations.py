"""Damages weight files in a seeded way: their bytes, their headers, their tensors, their config.

Every function takes a `numpy.random.Generator` and returns the damaged thing beside a word on what
was done. Some of what comes out is still a valid file of other content, which is meant.
"""

import io
import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import safetensors.numpy

INTEGERS = (0, 1, 2, 7, 8, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1)
DTYPES = ("F16", "F32", "F64", "BF16", "I32", "I64", "BOOL", "F8_E4M3", "C64", "F4", "", None, 7)
VALUES = (None, True, -1, 0, 3, 2**70, 1.5, 1e999, "", "abc", [], {}, [[]], [0, 0], [-1], "🦆")


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def _place(data, rng, margin=0):
    """A position in the data, in its first or last part as often as anywhere."""
    end = max(1, len(data) - margin)
    part = rng.integers(3)
    if part == 0:
        return int(rng.integers(min(end, 512)))
    if part == 1:
        return end - 1 - int(rng.integers(min(end, 2048)))
    return int(rng.integers(end))


def mutate_bytes(data, rng):
    """Flips, overwrites, cuts, inserts, moves or deletes bytes anywhere in a file."""
    data = bytearray(data)
    kind = pick(rng, ("flip", "flips", "cut", "integer", "fill", "delete", "insert", "splice"))
    place, length = _place(data, rng), int(rng.integers(1, 200))
    if kind == "flip":
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == "flips":
        for _ in range(int(rng.integers(2, 30))):
            data[_place(data, rng)] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[place:]
    elif kind == "integer":
        size = pick(rng, (2, 4, 8))
        place = _place(data, rng, size)
        data[place : place + size] = (pick(rng, INTEGERS) % 256**size).to_bytes(size, "little")
    elif kind == "fill":
        length = min(length, len(data) - place)
        data[place : place + length] = bytes([pick(rng, (0, 255, 32))]) * length
    elif kind == "delete":
        del data[place : place + length]
    elif kind == "insert":
        data[place:place] = rng.bytes(length)
    else:
        source = _place(data, rng)
        data[place : place + length] = data[source : source + length]
    return bytes(data), kind


def mutate_tensors(tensors, rng):
    """Changes one or two tensors, or which there are; the file around them stays valid."""
    tensors, done = dict(tensors), []
    for _ in range(int(rng.integers(1, 3))):
        if not tensors:
            break
        name = pick(rng, sorted(tensors))
        kind = pick(rng, sorted(_TENSOR_MUTATIONS))
        _TENSOR_MUTATIONS[kind](tensors, name, rng)
        done.append(f"{kind} {name}")
    return tensors, ", ".join(done)


def _rename(tensors, name, rng):
    other = pick(rng, ("x", name + "x", name[:-1], name.upper(), "params/" + name, "model." + name))
    tensors[other] = tensors.pop(name)


def _swap(tensors, name, rng):
    same = [key for key in sorted(tensors) if tensors[key].shape == tensors[name].shape]
    other = pick(rng, same)
    tensors[name], tensors[other] = tensors[other], tensors[name]


def _duplicate(tensors, name, rng):
    tensors[pick(rng, ("extra", name + "_1", "params/" + name, "opt/target/" + name))] = tensors[
        name
    ]


def _spoil(tensors, name, rng):
    array = np.array(tensors[name], "float32" if rng.integers(2) else "float64")
    if array.size:
        array.flat[int(rng.integers(array.size))] = pick(rng, (np.nan, np.inf, -np.inf, 3e38))
    tensors[name] = array


def _change_value(tensors, name, rng):
    array = np.array(tensors[name])
    if array.size:
        array.flat[int(rng.integers(array.size))] = float(rng.normal())
    tensors[name] = array


def _cast(tensors, name, rng):
    dtypes = ("float16", "float64", ml_dtypes.bfloat16, "int32", "int64", "bool", "complex64")
    with np.errstate(all="ignore"):
        tensors[name] = tensors[name].astype(pick(rng, dtypes))


def _reshape(tensors, name, rng):
    array = tensors[name]
    forms = [
        array.reshape(-1),
        array[None],
        array.reshape(array.shape[::-1]),
        array[:-1],
        array[:0],
    ]
    tensors[name] = np.concatenate([array, array]) if rng.integers(4) == 0 else pick(rng, forms)


def _deepen(tensors, name, rng):
    for key in sorted(tensors):
        for mark in ("encoderblock_", "blocks."):
            if mark + "0" in key:
                tensors[key.replace(mark + "0", mark + "1")] = tensors[key]


_TENSOR_MUTATIONS = {
    "rename": _rename,
    "swap": _swap,
    "duplicate": _duplicate,
    "spoil": _spoil,
    "change": _change_value,
    "cast": _cast,
    "reshape": _reshape,
    "deepen": _deepen,
    "drop": lambda tensors, name, rng: tensors.pop(name),
    "transpose": lambda tensors, name, rng: tensors.update(
        {name: np.ascontiguousarray(tensors[name].T)}
    ),
    "axes": lambda tensors, name, rng: tensors.update({name: np.asfortranarray(tensors[name])}),
    "negate": lambda tensors, name, rng: tensors.update({name: -tensors[name].astype("float32")}),
}


def mutate_safetensors_header(data, rng):
    """Edits the header of a .safetensors file; its data stay where they are."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = sorted(name for name in header if name != "__metadata__")
    entry, other = header[pick(rng, names)], header[pick(rng, names)]
    kind = pick(
        rng, ("offset", "offsets", "dtype", "shape", "size", "value", "metadata", "length", "text")
    )
    if kind == "offset":
        entry["data_offsets"][int(rng.integers(2))] += pick(rng, (-8, -4, -1, 1, 4, 2**40, 2**64))
    elif kind == "offsets":
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif kind == "dtype":
        entry["dtype"] = pick(rng, DTYPES)
    elif kind == "shape":
        entry["shape"] = pick(rng, (entry["shape"][::-1], [*entry["shape"], 1], other["shape"], []))
    elif kind == "size" and entry["shape"]:
        entry["shape"][int(rng.integers(len(entry["shape"])))] = pick(
            rng, (-1, 0, 1, 2**31, 2**63, 1.0, True, None)
        )
    elif kind == "value":
        pick(rng, (header, entry))[pick(rng, ("dtype", "shape", "data_offsets", "new"))] = pick(
            rng, VALUES
        )
    elif kind == "metadata":
        header["__metadata__"] = pick(rng, ({"format": "pt"}, *VALUES))
    text = json.dumps(header).encode()
    if kind == "text":
        text = mutate_bytes(text, rng)[0]
    claimed = pick(rng, INTEGERS) if kind == "length" else len(text)
    return claimed.to_bytes(8, "little") + text + body, f"header: {kind}"


def mutate_npz_member(path, rng):
    """Edits the .npy header or bytes of a member in an archive, whose checksum then fits again."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    index = int(rng.integers(len(members)))
    info, data = members[index]
    stream = io.BytesIO(data)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    kind = pick(rng, ("order", "shape", "descr", "bytes", "bytes", "twice", "name"))
    if kind == "order":
        header["fortran_order"] = True
    elif kind == "shape":
        header["shape"] = pick(rng, (shape[::-1], (*shape, 1), (-1,), (2**40, *shape), (), (0,)))
    elif kind == "descr":
        header["descr"] = pick(
            rng, (">f4", "<f8", "<i4", "|O", "|V4", "|V2", "<U1", [("a", "<f4")])
        )
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    data = buffer.getvalue() + data[stream.tell() :]
    if kind == "bytes":
        data = mutate_bytes(data, rng)[0]
    name = info.filename
    if kind == "name":
        name = pick(rng, ("/", "../", "x/../", "./", "a\\", "\0", "é")) + name
    members[index : index + 1] = [(name, data)] * (2 if kind == "twice" else 1)
    with zipfile.ZipFile(path, "w", info.compress_type) as archive:
        for name, content in members:
            name = name if isinstance(name, str) else name.filename
            archive.writestr(zipfile.ZipInfo(name), content, info.compress_type)
    return f"member {info.filename}: {kind}"


def mutate_npz_directory(data, rng):
    """Overwrites a field in an archive's central directory, or in a member's own header."""
    data = bytearray(data)
    signature = pick(rng, (b"PK\x01\x02", b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"))
    places = [i for i in range(len(data) - 46) if data[i : i + 4] == signature]
    if not places:
        return mutate_bytes(bytes(data), rng)
    form = pick(rng, ("<H", "<I"))
    place = pick(rng, places) + int(rng.integers(4, 42))
    value = pick(rng, INTEGERS) % 256 ** struct.calcsize(form)
    if rng.integers(2):
        value = (struct.unpack_from(form, data, place)[0] + pick(rng, (-1, 1, 4))) % (value + 1)
    struct.pack_into(form, data, place, value)
    return bytes(data), "directory"


def mutate_config(config, rng):
    """Changes the bytes of a config.json, or a value anywhere in it."""
    text = json.dumps(config)
    if rng.integers(3) == 0:
        return mutate_bytes(text.encode(), rng)[0], "config: bytes"
    config = json.loads(text)
    target = pick(rng, (config, config["model_args"], config["pretrained_cfg"]))
    key = pick(rng, (*sorted(target), "num_classes", "patch_size", "act_layer", "global_pool"))
    if rng.integers(4) == 0:
        target.pop(key, None)
        return json.dumps(config).encode(), f"config: no {key}"
    target[key] = pick(rng, VALUES)
    return json.dumps(config).encode(), f"config: {key}={str(target[key])[:20]}"


def write_mutated_npz(path, tensors, compressed, rng):
    """Writes a .npz file of these tensors and damages it; returns what was done."""
    kind = pick(rng, ("bytes", "directory", "member", "tensors", "tensors"))
    done = kind
    if kind == "tensors":
        tensors, done = mutate_tensors(tensors, rng)
    (np.savez_compressed if compressed else np.savez)(path, **tensors)
    if kind == "member":
        done = mutate_npz_member(path, rng)
    elif kind in ("bytes", "directory"):
        mutate = mutate_bytes if kind == "bytes" else mutate_npz_directory
        data, done = mutate(path.read_bytes(), rng)
        path.write_bytes(data)
    return done


def write_mutated_hub(folder, tensors, config, rng):
    """Writes a hub folder of these tensors and damages it; returns what was done."""
    path = folder / "model.safetensors"
    kind = pick(rng, ("bytes", "header", "header", "tensors", "tensors", "config"))
    text, done = json.dumps(config).encode(), kind
    if kind == "tensors":
        tensors, done = mutate_tensors(tensors, rng)
    elif kind == "config":
        text, done = mutate_config(config, rng)
    (folder / "config.json").write_bytes(text)
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path
    )
    if kind in ("bytes", "header"):
        mutate = mutate_bytes if kind == "bytes" else mutate_safetensors_header
        data, done = mutate(path.read_bytes(), rng)
        path.write_bytes(data)
    return done
