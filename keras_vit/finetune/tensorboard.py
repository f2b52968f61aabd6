"""Scalars for TensorBoard, written without TensorFlow.

An event file is a row of records (length, checksum of the length, data, checksum of the data);
each record is a protocol buffer `Event`. Scalars need five of its fields, so they are written
here, and a run logs the same whatever the backend is.
"""

import struct
from pathlib import Path


def _crc32c_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _crc32c_table()


def _masked_checksum(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(number):
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _bytes_field(number, data):
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _event(wall_time, step, payload):
    return b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step) + payload


class ScalarWriter:
    """Writes scalars as a TensorBoard event file.

    Args:
        folder: Folder of the event file; made when absent.
        wall_time: Time of the first record, in seconds since 1970; also part of the file's name.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = ScalarWriter(folder, wall_time=0.0)
    ...     writer.write({"loss": 0.5}, step=1, wall_time=1.0)
    ...     writer.close()
    """

    def __init__(self, folder: str | Path, wall_time: float):
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder) / f"events.out.tfevents.{int(wall_time)}.keras_vit"
        self._file = open(path, "wb")
        self._write_record(_event(wall_time, 0, _bytes_field(3, b"brain.Event:2")))

    def write(self, scalars: dict[str, float], step: int, wall_time: float) -> None:
        """Writes the scalars of one step, by tag."""
        values = b"".join(
            _bytes_field(1, _bytes_field(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
            for tag, value in scalars.items()
        )
        self._write_record(_event(wall_time, step, _bytes_field(5, values)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write_record(self, data):
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked_checksum(length) + data + _masked_checksum(data))
        self._file.flush()
