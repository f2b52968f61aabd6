"""Files that take the place of others once they are on the disk."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced_file(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when it is on the disk.

    Whoever reads `path` sees the old content or the new one, never a part. Where writing fails
    nothing is left.

    Args:
        path: The file.
        shared: Whether other processes may write it at the same time, as in a cache.
    """
    path = Path(path)
    # Of one writer the same: what is left of one that was killed is written over.
    writer = f".{socket.gethostname()}.{os.getpid()}" if shared else ""
    beside = path.with_name(f".partial{writer}.{path.name}")
    try:
        yield beside
        to_disk(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    to_disk(path.parent)


def to_disk(path: str | Path) -> None:
    """Waits until a file's content, or the names in a folder, would survive a power cut.

    Example:

    >>> import tempfile
    >>> to_disk(tempfile.mkdtemp())
    """
    if os.name == "nt" and os.path.isdir(path):  # pragma: no cover
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
