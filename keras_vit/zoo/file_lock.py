"""A lock that ends with its process, however that ends."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def file_lock(path: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the file at `path`, which nobody else holds meanwhile.

    The system lets go of it when the process ends, even if it is killed, so that a file which is
    left over is no lock. Over NFS it holds between hosts where the server supports locks.

    Args:
        path: A file; it is made, with its folder, and stays.
        wait: Whether to wait for whoever holds it.

    Raises:
        BlockingIOError: Without `wait`, if it is held; the message says by whom.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "lock")
    >>> with file_lock(path):
    ...     pass
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as stream:
        if not _hold(stream, wait):
            raise BlockingIOError(f"{path} is held by {_holder(stream)}")
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        stream.flush()
        yield


def _holder(stream):
    try:
        stream.seek(0)
        return stream.read().decode() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


if os.name == "nt":  # pragma: no cover
    import msvcrt

    # Far behind what is written, so that others can read it.
    _PLACE = 2**20

    def _hold(stream, wait):
        while True:
            stream.seek(_PLACE)
            try:
                msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
else:
    import fcntl

    def _hold(stream, wait):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
