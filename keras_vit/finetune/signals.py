"""What becomes of a run that is told to stop."""

import contextlib
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunInterrupted(KeyboardInterrupt):
    """A run was told to stop, saved its state and stopped.

    Attributes:
        signal: The number of the signal; the process' exit status is 128 + signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class StopRequest:
    """Whether a signal asked the run to stop.

    Attributes:
        signal: The number of the first signal; None so far.
    """

    signal: int | None = None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first SIGTERM or SIGINT into a request; a second one ends the process at once.

    At once means in the middle of a step too, when Python's own handlers would have to wait for
    it. In another thread than the main one signals stay as they are.

    Example:

    >>> with stop_requests() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.signal == signal.SIGTERM
    Received SIGTERM: saving and stopping after this step; again stops at once.
    True
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def handle(number, _):
        if stop.signal is None:
            stop.signal = number
            _say(
                f"Received {signal.Signals(number).name}: saving and stopping after this step; "
                "again stops at once."
            )

    def watch():
        # The system's part of Python writes each signal's number here as it comes.
        seen = 0
        while number := reading.recv(1):
            seen += number[0] in SIGNALS
            if seen > 1:
                os._exit(128 + number[0])

    watcher = threading.Thread(target=watch, name="stop_requests", daemon=True)
    handlers = {number: signal.signal(number, handle) for number in SIGNALS}
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writing.close()
        watcher.join()
        reading.close()


def _say(line):
    """Prints a line past Python's buffer, which what the signal interrupted may be writing to."""
    try:
        # A notebook's stream has a number too: that of the server's terminal.
        place = sys.stdout.fileno() if isinstance(sys.stdout, io.TextIOWrapper) else None
    except (OSError, ValueError):
        place = None
    if place is None:
        print(line, flush=True)
        return
    # A step is not lost for a line that nobody can read.
    with contextlib.suppress(OSError):
        os.write(place, f"{line}\n".encode())
