"""Fetches published weights into the Keras cache, whole and verified, or not at all.

A file grows as `.download/NAME.partial` inside the entry's folder of the cache, is gone on with
after a cut, and is renamed to its place once its length and digest are right. The digest is the
publisher's where there is one; else that of its first use, which `keras_vit.lock` holds.
"""

import contextlib
import dataclasses
import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import keras

from keras_vit.checkpoints import CheckpointError, open_checkpoint
from keras_vit.models import VARIANTS
from keras_vit.zoo.catalog import PublishedWeights, read_catalog
from keras_vit.zoo.file_lock import file_lock

CHUNK = 1 << 20
# A connection that brings less over a whole time-out counts as stalled.
LEAST_BYTES_A_SECOND = 1024
# How much is taken from a server that tells no length: enough for a config.json.
MOST_UNDECLARED = 1 << 24
LONGEST_WAIT = 60.0
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(OSError):
    """Published weights cannot be had, or are not what they were."""


class _Cut(Exception):
    """The connection broke or stalled; what has come is kept, and another try may go on."""

    def __init__(self, reason, wait=0.0):
        super().__init__(reason)
        self.wait = wait


@dataclasses.dataclass(frozen=True)
class _Effort:
    timeout: float
    attempts: int
    wait: float
    verbose: bool


def cache_folder() -> Path:
    """Where fetched weights are kept: `models/keras_vit` in $KERAS_HOME, or in ~/.keras."""
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    return Path(home).expanduser() / "models" / "keras_vit"


def lock_path(cache: Path | None = None) -> Path:
    """The file of pinned digests: $KERAS_VIT_LOCK, or `keras_vit.lock` in the cache."""
    named = os.environ.get("KERAS_VIT_LOCK")
    return Path(named).expanduser() if named else (cache or cache_folder()) / "keras_vit.lock"


def fetch_weights(
    entry: PublishedWeights,
    *,
    cache: str | os.PathLike | None = None,
    mirror: str | os.PathLike | None = None,
    lock: str | os.PathLike | None = None,
    verify: bool = False,
    timeout: float = 30.0,
    attempts: int = 5,
    wait: float = 1.0,
    verbose: bool = True,
) -> Path:
    """The published weights on this machine: from the mirror, the cache, or their publisher.

    The publisher's digest must be met; where there is none, a checkpoint such as the catalog tells
    of must be in the file at its first use, whose digest is pinned in the lock file, and a later
    file must have the same. A file in the cache is read again for
    that when its size or time of change is not what it was; a file in the mirror, always.

    Args:
        entry: What to fetch, as `keras_vit.zoo.catalog.find` returns it.
        cache: Folder of fetched weights; None: `cache_folder()`.
        mirror: Folder with NAME/FILE for each file, or FILE for weights of one file that no others
            are called like; None: $KERAS_VIT_MIRROR. What it lacks is looked for in the cache, and
            then fetched.
        lock: File of pinned digests; None: `lock_path()`. In a repository it can be committed.
        verify: Whether a file in the cache is read again although it looks unchanged.
        timeout: Seconds without (almost) any byte after which a connection counts as cut.
        attempts: How often the same place in a file is tried.
        wait: Seconds before the second attempt; each further one waits twice as long.
        verbose: Whether progress is printed.

    Returns:
        The path of the only file, or of the folder with all files.

    Raises:
        DownloadError: If the weights cannot be had, or are not those of their digest, or not what
            the catalog says. With KERAS_VIT_OFFLINE=1 nothing is fetched.
    """
    cache = Path(cache).expanduser() if cache else cache_folder()
    lock = Path(lock).expanduser() if lock else lock_path(cache)
    mirror = mirror or os.environ.get("KERAS_VIT_MIRROR")
    # Before anything is fetched: the lock file may be damaged.
    pins = _read_pins(lock).get(entry.name, {})
    folder = _mirrored(entry, Path(mirror).expanduser()) if mirror else None
    with _told_where_to_write(cache, lock):
        if folder is not None:
            advice = "Replace it"
            digests = {file.name: _digest(folder / file.name) for file in entry.files}
        else:
            folder, advice = cache / entry.name, "Delete it, and it is fetched again"
            effort = _Effort(timeout, attempts, wait, verbose)
            digests = _cached_digests(entry, folder, pins, lock, verify, effort)
        path = folder / entry.files[0].name if len(entry.files) == 1 else folder
        _check_all(entry, folder, digests, pins, lock, advice)
        if any(_known_digest(file, pins) is None for file in entry.files):
            _check_contents(entry, path, advice)
            _pin(entry, folder, digests, lock, advice)
    return path


@contextlib.contextmanager
def _told_where_to_write(cache, lock):
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise DownloadError(
            f"{error.filename}: {error.strerror}. Weights are fetched into {cache}, and their "
            f"digests kept in {lock}: make both writable, or name other places by KERAS_HOME and "
            "KERAS_VIT_LOCK, or pass the path of a file instead of a name"
        ) from error


def _mirrored(entry, mirror):
    """The mirror's folder that has all files of `entry`; None where there is none."""
    candidates = [mirror / entry.name] + ([mirror] if _is_told_by_its_file(entry) else [])
    for folder in candidates:
        if all((folder / file.name).is_file() for file in entry.files):
            return folder
    return None


def _is_told_by_its_file(entry):
    """Whether `entry` is one file that no other weights are called like, as Google's are."""
    namesakes = {
        other.name
        for other in read_catalog().values()
        if any(file.name == entry.files[0].name for file in other.files)
    }
    return len(entry.files) == 1 and namesakes <= {entry.name}


# Digests.


def _cached_digests(entry, folder, pins, lock, verify, effort):
    """The digest of each file in the cache; what is missing is fetched, what has changed read."""
    digests = {file.name: _stamped_digest(folder, file) for file in entry.files}
    if not verify and None not in digests.values():
        return digests
    (folder / ".download").mkdir(parents=True, exist_ok=True)
    with file_lock(folder / ".download" / "lock"):
        for file in entry.files:
            path = folder / file.name
            if not path.exists():
                digest = _fetch(entry, file, folder, pins, lock, effort)
            elif verify or (digest := _stamped_digest(folder, file)) is None:
                digest = _digest(path)
                _stamp(folder, file, digest)
            digests[file.name] = digest
    return digests


def _stamped_digest(folder, file):
    """The digest of a file in the cache that looks as it did when it was read; else None."""
    path = folder / file.name
    if not path.exists():
        return None
    stat, stamp = path.stat(), _read_json(_stamp_path(folder, file), {})
    unchanged = (stamp.get("size"), stamp.get("mtime")) == (stat.st_size, stat.st_mtime_ns)
    return stamp.get("sha256") if unchanged else None


def _stamp(folder, file, digest):
    stat = (folder / file.name).stat()
    stamp = {"sha256": digest, "size": stat.st_size, "mtime": stat.st_mtime_ns}
    _write_json(_stamp_path(folder, file), stamp)


def _stamp_path(folder, file):
    return folder / ".download" / f"{file.name}.verified.json"


def _known_digest(file, pins):
    return file.sha256 or pins.get(file.name)


def _check_all(entry, folder, digests, pins, lock, advice):
    for file in entry.files:
        _check(entry, file, folder / file.name, digests[file.name], pins, lock, advice)


def _check(entry, file, path, digest, pins, lock, advice):
    """Raises if `path` is not the published file, or not that of the first use."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise DownloadError(
            f"{path} has {size:,} bytes. {file.address} was published with {file.size:,}. {advice}"
        )
    if _known_digest(file, pins) in (None, digest):
        return
    if file.sha256 is not None:
        raise DownloadError(
            f"{path} has the sha256 {digest}. {file.address} was published with {file.sha256}. "
            f"{advice}"
        )
    raise DownloadError(
        f"{path} has the sha256 {digest}, but {lock} says {pins[file.name]}, as it was at the "
        f"first use of {entry.name}. {advice}; if {file.address} was changed on purpose, take "
        f"{entry.name} out of {lock}"
    )


def _check_contents(entry, path, advice):
    """Raises if `path` is no checkpoint, or another than the catalog tells of."""
    row = VARIANTS.get(entry.variant, {})
    stated = {name: row[name] for name in ("patch_size", "hidden_size", "depth") if row}
    stated |= {
        "format": entry.format,
        "image_size": entry.image_size,
        "num_classes": entry.num_classes,
    }
    try:
        with open_checkpoint(path) as checkpoint:
            found = {
                **checkpoint.facts,
                "format": checkpoint.format,
                "num_classes": checkpoint.num_classes,
            }
    except CheckpointError as error:
        raise DownloadError(f"{error}. Expected {entry.name}. {advice}") from error
    for name, value in stated.items():
        if value is not None and found.get(name, value) not in (value, (value, value)):
            raise DownloadError(
                f"{path} is not {entry.name}, which was published with {name}={value}. Found: "
                f"{name}={found[name]}. {advice}"
            )


def _pin(entry, folder, digests, lock, advice):
    """Keeps the digests that nobody told before."""
    with file_lock(lock.with_name(f".{lock.name}.lock")):
        pins = _read_pins(lock)
        own = pins.setdefault(entry.name, {})
        # Another process may have been first.
        _check_all(entry, folder, digests, own, lock, advice)
        own |= {file.name: digests[file.name] for file in entry.files if file.sha256 is None}
        _write_json(lock, pins)


def _read_pins(lock):
    pins = _read_json(lock, None) if lock.exists() else {}
    if not isinstance(pins, dict) or not all(isinstance(files, dict) for files in pins.values()):
        raise DownloadError(
            f"{lock} does not hold digests by name and file, as JSON. Restore it, or delete it to "
            "pin what the cache holds anew"
        )
    return pins


def _digest(path):
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# One file.


def _fetch(entry, file, folder, pins, lock, effort):
    """Downloads, verifies and renames one file; its digest."""
    place = folder / file.name
    _check_allowed(entry, file, place)
    partial = folder / ".download" / f"{file.name}.partial"
    told = _download(file, partial, place, effort)
    digest = _digest(partial)
    advice = "Nothing was kept of it; try again later, or tell the publisher"
    try:
        if told is not None and file.sha256 is None and digest != told:
            raise DownloadError(
                f"{file.address} came with the sha256 {digest}. Its server says {told}. {advice}"
            )
        _check(entry, file, partial, digest, pins, lock, advice)
    except DownloadError:
        _discard(partial)
        raise
    os.replace(partial, place)
    _discard(partial)
    _stamp(folder, file, digest)
    return digest


def _check_allowed(entry, file, place):
    by_hand = (
        f"Fetch {file.address} where there is a network, and put it at {place}, or into a folder "
        f"named by KERAS_VIT_MIRROR as {entry.name}/{file.name}"
    )
    if os.environ.get("KERAS_VIT_OFFLINE", "0") not in ("", "0"):
        raise DownloadError(f"KERAS_VIT_OFFLINE is set, and {place} is not there. {by_hand}")
    if entry.gated:
        page = file.address.partition("/resolve/")[0]
        raise DownloadError(
            f"{entry.name} is for those who accepted its licence ({entry.licence}): read it at "
            f"{page}, accept it, fetch {', '.join(other.name for other in entry.files)} there, "
            f"and put them into {place.parent}, or pass the folder's path instead of the name"
        )
    address = urlsplit(file.address)
    if address.scheme != "https" and address.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise DownloadError(f"{file.address} is not safe. Expected an address with https://")


def _download(file, partial, place, effort):
    """Makes `partial` whole, over as many connections as it takes; the digest the server told."""
    attempt, reached = 1, _length(partial)
    while True:
        try:
            return _transfer(file, partial, effort)
        except _Cut as cut:
            if _length(partial) >= reached + CHUNK:
                attempt = 0
            reached = max(reached, _length(partial))
            if attempt >= effort.attempts:
                raise DownloadError(
                    f"{file.address}: {cut}. Gave up after {attempt} attempts; the next one goes "
                    f"on after the {reached:,} bytes that have come. Or fetch it by other means "
                    f"and put it at {place}"
                ) from cut
            pause = max(cut.wait, effort.wait * 2 ** max(attempt - 1, 0))
            time.sleep(min(pause, LONGEST_WAIT))
            attempt += 1


def _transfer(file, partial, effort):
    """One connection: appends to `partial`, or starts it anew where the file has changed; none
    where it is whole. The digest that the server told, or None."""
    begun = _read_json(_notes(partial), {}) if partial.exists() else {}
    if partial.exists() and _length(partial) == begun.get("length"):
        return begun.get("sha256")
    # What has come of a file of unknown length cannot be told from the whole: it starts anew.
    can_go_on = begun.get("validator") and begun.get("length") is not None
    start = _length(partial) if can_go_on else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "keras_vit"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": begun["validator"]}
    redirects = _SafeRedirects()
    with _open(file, headers, redirects, effort, partial) as response:
        if response.status == 206 and not start:
            raise DownloadError(
                f"{file.address}: the server sent a part of the file, asked for all of it. Fetch "
                "it by other means, and pass its path"
            )
        if response.status == 206:
            _check_range(response, start, begun["length"], file, partial)
            length = begun["length"]
        else:
            start, length = 0, _declared_length(response, file)
            _discard(partial)
            notes = {
                "validator": _validator(response.headers),
                "length": length,
                "sha256": redirects.digest,
            }
            _write_json(_notes(partial), notes)
        _check_space(partial, start, length)
        _copy(response, partial, start, length, file, effort)
    return redirects.digest


def _open(file, headers, redirects, effort, partial):
    request = urllib.request.Request(file.address, headers=headers)
    try:
        return urllib.request.build_opener(redirects).open(request, timeout=effort.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            _discard(partial)
            raise _Cut("the server has less than what has come before") from error
        if error.code in _TRANSIENT:
            after = error.headers.get("Retry-After", "")
            wait = float(after) if after.isdecimal() else 0.0
            raise _Cut(f"the server says {error.code} {error.reason}", wait) from error
        raise DownloadError(
            f"{file.address}: the server says {error.code} {error.reason}. The file may have been "
            "moved, or be for those alone who accepted its licence; if you have it, pass its path"
        ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror):
            place = partial.parent.parent / file.name
            raise DownloadError(
                f"{file.address} cannot be reached: {error.reason}. Without a network, put "
                f"{file.name} at {place}, or into a folder named by KERAS_VIT_MIRROR as "
                f"{place.parent.name}/{file.name}"
            ) from error
        raise _Cut(f"no connection ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, DownloadError):
            raise
        raise _Cut(f"no connection ({error or type(error).__name__})") from error


def _copy(response, partial, start, length, file, effort):
    """Appends what comes, within the declared length."""
    limit = MOST_UNDECLARED if length is None else length
    bar = keras.utils.Progbar(length, unit_name="byte") if effort.verbose else None
    if bar:
        print(f"Downloading {file.name} from {file.address}")
    done, window, at_window = start, time.monotonic(), start
    with partial.open("ab") as stream:
        while done < limit or length is None:
            try:
                chunk = response.read1(min(CHUNK, limit - done or 1))
            except (OSError, http.client.HTTPException) as error:
                raise _Cut(f"cut off after {done:,} bytes ({error})") from error
            if not chunk:
                break
            stream.write(chunk)
            done += len(chunk)
            if length is None and done > limit:
                _discard(partial)
                raise DownloadError(
                    f"{file.address} tells no length and has more than {limit:,} bytes. Fetch it "
                    "by other means, and pass its path"
                )
            now = time.monotonic()
            if now - window >= effort.timeout:
                if done - at_window < LEAST_BYTES_A_SECOND * effort.timeout:
                    raise _Cut(f"stalled after {done:,} bytes")
                window, at_window = now, done
            if bar:
                bar.update(done, finalize=done == length)
    if length is not None and done < length:
        raise _Cut(f"ended after {done:,} of {length:,} bytes")


def _declared_length(response, file):
    """The whole file's length, as the server and the publisher tell it; None if neither does."""
    text = response.headers.get("Content-Length", "")
    length = int(text) if text.isdecimal() and response.status == 200 else None
    if file.size is not None and length is not None and length != file.size:
        raise DownloadError(
            f"{file.address} was published with {file.size:,} bytes. The server offers {length:,}, "
            "so that it is another file. Nothing was fetched"
        )
    return file.size if length is None else length


def _check_range(response, start, length, file, partial):
    found = response.headers.get("Content-Range", "")
    if found != f"bytes {start}-{length - 1}/{length}":
        _discard(partial)
        raise _Cut(f"asked for bytes {start}-{length - 1}/{length}, the server sent {found!r}")


def _check_space(partial, start, length):
    free = shutil.disk_usage(partial.parent).free
    if length is not None and length - start > free:
        raise DownloadError(
            f"{partial.parent} has {free:,} bytes free. Expected {length - start:,} for "
            f"{partial.name}. Make room, or name another folder by KERAS_HOME"
        )


def _validator(headers):
    """What tells whether the file is still the same; a weak ETag does not."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, never from https to anything less; keeps the digest that the hub tells."""

    digest: str | None = None

    def redirect_request(self, request, response, code, message, headers, address):
        # The hub of Hugging Face names the sha256 of a large file where it redirects to it.
        told = re.fullmatch('"([0-9a-f]{64})"', headers.get("X-Linked-Etag", ""))
        self.digest = told[1] if told else self.digest
        if urlsplit(request.full_url).scheme == "https" != urlsplit(address).scheme:
            raise DownloadError(
                f"{request.full_url} leads to {address}, which is not https. It was not followed"
            )
        return super().redirect_request(request, response, code, message, headers, address)


# Files beside files.


def _notes(partial):
    return partial.with_name(f"{partial.name}.json")


def _length(path):
    return path.stat().st_size if path.exists() else 0


def _discard(partial):
    partial.unlink(missing_ok=True)
    _notes(partial).unlink(missing_ok=True)


def _read_json(path, default):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default


def _write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, path)
