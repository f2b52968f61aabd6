"""Several hosts as one job: how they find each other, and what ends them when one is gone."""

import atexit
import contextlib
import itertools
import os
import secrets
import socket
import sys
import threading
import time

import keras

# Keras' own names for `keras.distribution.initialize`.
ADDRESS_VARIABLE = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
COUNT_VARIABLE = "KERAS_DISTRIBUTION_NUM_PROCESSES"
NUMBER_VARIABLE = "KERAS_DISTRIBUTION_PROCESS_ID"

# How long hosts wait for each other at the start.
JOINING_SECONDS = 300
HEARTBEAT_SECONDS = 2.0
# A host that is not heard for so long is gone. JAX has a watch of its own, which says less: it
# comes second.
SILENCE_SECONDS = 20.0
# How long the others may go on when one has left.
LEAVING_SECONDS = 30.0
# Whoever dies meanwhile is noticed by the watch.
_FOR_EVER_MS = 7 * 24 * 3600 * 1000

_ALIVE, _LEAVES = b".", b"q"
_OPEN_PORTS = (
    "Besides the port of the job, hosts meet on one that the system chooses: let them reach each "
    "other on all ports, and start all of them again"
)
_meetings = itertools.count()
_watch: "_Watch | None" = None


def join_hosts() -> None:
    """Makes this process one of the hosts that the environment describes.

    KERAS_DISTRIBUTION_JOB_ADDRESSES is the address and port of host 0, on which it listens,
    KERAS_DISTRIBUTION_NUM_PROCESSES the number of hosts and KERAS_DISTRIBUTION_PROCESS_ID the
    number of this one, from 0. Does nothing where they are absent or speak of one host, or after
    the first call. It must come before JAX computes anything.

    Raises:
        ValueError: If one of them is missing or no number, or the backend is not JAX.
        RuntimeError: If JAX is in use already, or the hosts do not find each other.
    """
    global _watch
    described = _described_hosts()
    if described is None or _watch is not None:
        return
    address, hosts, host = described
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"{COUNT_VARIABLE}={hosts} asks for several hosts, which need JAX. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}; set KERAS_BACKEND=jax, or unset "
            f"{COUNT_VARIABLE}"
        )
    import jax

    # What carries the sums between CPUs; GPUs have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        hosts,
        host,
        initialization_timeout=JOINING_SECONDS,
        heartbeat_timeout_seconds=int(2 * SILENCE_SECONDS),
    )
    _watch = _Watch(address, hosts, host)
    # Before JAX's own, which waits for all hosts.
    atexit.register(_watch.leave)


def host_count() -> int:
    """Number of hosts of the job; 1 for a process on its own."""
    return _watch.hosts if _watch else 1


def host_number() -> int:
    """Number of this host in the job, from 0; the first one writes the run's folder."""
    return _watch.host if _watch else 0


def agree(what: str, value: object = None) -> None:
    """Waits until all hosts are here, and makes sure that they see the same.

    Does nothing for a process on its own.

    Args:
        what: What the value is, for the message.
        value: What must be the same everywhere; compared as text.

    Raises:
        ValueError: On every host, if they differ; the message has the value of each.
    """
    if _watch is None:
        return
    place = f"keras_vit/meeting/{next(_meetings)}"
    _client().key_value_set(f"{place}/{_watch.host}", f"{value}")
    values = [
        _client().blocking_key_value_get(f"{place}/{host}", _FOR_EVER_MS)
        for host in range(_watch.hosts)
    ]
    if len(set(values)) > 1:
        seen = "\n  ".join(f"host {host}: {value}" for host, value in enumerate(values))
        raise ValueError(f"The hosts do not see the same {what}:\n  {seen}")


def _described_hosts():
    """Address of host 0, number of hosts and of this one; None for a process on its own."""
    names = (ADDRESS_VARIABLE, COUNT_VARIABLE, NUMBER_VARIABLE)
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if not given or given.get(COUNT_VARIABLE) == "1":
        return None
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(
            f"{', '.join(given)} describes a job of several hosts; {', '.join(missing)} is "
            "missing. Set all three, or none"
        )
    address = given[ADDRESS_VARIABLE].split(",")[0]
    count, number = given[COUNT_VARIABLE], given[NUMBER_VARIABLE]
    if not (count.isdigit() and number.isdigit() and int(number) < int(count)):
        raise ValueError(
            f"Expected a number of hosts and the number of this one, from 0. Received: "
            f"{COUNT_VARIABLE}={count!r}, {NUMBER_VARIABLE}={number!r}"
        )
    if not address.rpartition(":")[2].isdigit():
        raise ValueError(
            "Expected the address and port of host 0, such as 10.0.0.1:1234. Received: "
            f"{ADDRESS_VARIABLE}={address!r}"
        )
    return address, int(count), int(number)


def _client():
    from jax._src import distributed

    return distributed.global_state.client


class _Watch:
    """Ends this process when another host is gone: a collective would wait for it for ever.

    Every host has a connection to host 0, over which both send a sign of life. Who leaves says so.
    """

    def __init__(self, address, hosts, host):
        self.hosts = hosts
        self.host = host
        self._leaving = threading.Event()
        self._left = threading.Semaphore(0)
        self._connections = self._accept() if host == 0 else self._connect(address)
        for peer, connection in self._connections.items():
            connection.settimeout(SILENCE_SECONDS)
            threading.Thread(target=self._listen, args=(peer, connection), daemon=True).start()
        threading.Thread(target=self._send_signs_of_life, daemon=True).start()

    def _accept(self):
        # The key keeps out whoever finds the port.
        key = secrets.token_hex(16).encode()
        connections: dict[int, socket.socket] = {}
        with _listener() as listener:
            listener.settimeout(JOINING_SECONDS)
            port = listener.getsockname()[1]
            _client().key_value_set("keras_vit/watch", f"{port} {key.decode()}")
            while len(connections) < self.hosts - 1:
                try:
                    connection, _ = listener.accept()
                except TimeoutError as error:
                    absent = sorted({*range(1, self.hosts)} - connections.keys())
                    raise RuntimeError(
                        f"Of {self.hosts} hosts, those numbered {absent} have not reached port "
                        f"{port} of host 0 for {JOINING_SECONDS} s. {_OPEN_PORTS}"
                    ) from error
                connection.settimeout(SILENCE_SECONDS)
                # A stranger may break off, or say nothing.
                with contextlib.suppress(OSError):
                    shown, _, number = _receive(connection, len(key) + 9).partition(b" ")
                    if secrets.compare_digest(shown, key):
                        connections[int(number)] = connection
                        continue
                connection.close()
        return connections

    def _connect(self, address):
        port, key = (
            _client().blocking_key_value_get("keras_vit/watch", 1000 * JOINING_SECONDS).split()
        )
        name = address.rpartition(":")[0].strip("[]")
        try:
            connection = socket.create_connection((name, int(port)), timeout=JOINING_SECONDS)
        except OSError as error:
            raise RuntimeError(
                f"Host {self.host} cannot reach port {port} of host 0, {name}: {error}. "
                f"{_OPEN_PORTS}"
            ) from error
        connection.sendall(f"{key} {self.host:08d}".encode())
        return {0: connection}

    def _send_signs_of_life(self):
        while True:
            self._send(_ALIVE)
            time.sleep(HEARTBEAT_SECONDS)

    def _send(self, sign):
        for connection in self._connections.values():
            # Whoever listens to a broken one notices.
            with contextlib.suppress(OSError):
                connection.sendall(sign)

    def _listen(self, peer, connection):
        reason = "is gone"
        try:
            while signs := connection.recv(64):
                if _LEAVES in signs:
                    self._left.release()
                    if not self._leaving.wait(LEAVING_SECONDS):
                        _end(f"Host {peer} has left the job before its end; see what it printed.")
                    return
        except TimeoutError:
            reason = f"has not been heard for {SILENCE_SECONDS:.0f} s"
        except OSError:
            pass
        _end(f"Host {peer} {reason}: this host cannot go on alone.")

    def leave(self) -> None:
        """Waits for the other hosts to leave too, at the end of the process."""
        self._leaving.set()
        self._send(_LEAVES)
        for _ in self._connections:
            if not self._left.acquire(timeout=LEAVING_SECONDS):
                # JAX would wait for them for minutes.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)


def _listener():
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _receive(connection, size):
    received = b""
    while len(received) < size and (more := connection.recv(size - len(received))):
        received += more
    return received


def _end(message):
    advice = "The same command, on all hosts or on fewer, goes on from the last checkpoint."
    # Not through sys.stderr: the thread that holds its lock may wait for the host that is gone.
    os.write(2, f"error: {message} {advice}\n".encode())
    os._exit(1)
