"""Fetching published weights, from a server on the loopback that behaves as networks do."""

import concurrent.futures
import dataclasses
import email.message
import hashlib
import http.server
import io
import json
import os
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from random_checkpoints import google_tensors, write_timm

import keras_vit
from keras_vit.models import Preprocessing
from keras_vit.zoo import download
from keras_vit.zoo.catalog import PublishedFile, PublishedWeights, find
from keras_vit.zoo.download import DownloadError, fetch_weights


def checkpoint(classes):
    """The bytes of a .npz file of Google's, of images of 12 px."""
    stream = io.BytesIO()
    np.savez(stream, **google_tensors(classes=classes))
    return stream.getvalue()


# More than a megabyte, so that it comes in several chunks.
CLASSES = 18_000
CONTENT = checkpoint(CLASSES)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[:700_000] + b"!" + CONTENT[700_001:]


class Server:
    """Answers each request by the next of `script`, and by the last one from there on."""

    def __init__(self):
        self.content, self.etag, self.script, self.requests = CONTENT, '"1"', [serve], []
        self.folder = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append((self.path, dict(self.headers)))
                step = outer.script[min(len(outer.requests), len(outer.script)) - 1]
                step(outer, self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def ranges(self):
        return [headers.get("Range") for _, headers in self.requests]

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def serve(server, handler, *, sent=None, length=None, headers=()):
    """An honest answer to ranges, which `sent` cuts off and `length` lies about."""
    start, content = 0, server.content
    if server.folder:
        content = (server.folder / handler.path[1:]).read_bytes()
    asked = handler.headers.get("Range")
    if asked and handler.headers.get("If-Range") == server.etag:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.send_header("ETag", server.etag)
    handler.send_header("Content-Length", str(len(content) - start if length is None else length))
    for name, value in headers:
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content[start:sent])


def cut_at(position):
    return lambda server, handler: serve(server, handler, sent=position)


def status(code, *headers):
    def step(server, handler):
        handler.send_response(code)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return step


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("KERAS_VIT_MIRROR", "KERAS_VIT_OFFLINE", "KERAS_VIT_LOCK"):
        monkeypatch.delenv(name, raising=False)


TIMM_FILES = ("model.safetensors", "config.json")


def published(server, *names, name="b16-test-data", format="google", **file):
    return PublishedWeights(
        name=name,
        published_name=name,
        variant="test",
        family="test",
        format=format,
        files=tuple(
            PublishedFile(f"{server.address}/{each}", **file) for each in names or ["w.npz"]
        ),
        image_size=12,
        num_classes=CLASSES,
        preprocessing=Preprocessing(mean=0.5, std=0.5),
        licence="apache-2.0",
    )


def fetch(entry, tmp_path, **options):
    options = {"cache": tmp_path, "wait": 0.001, "timeout": 5.0, "verbose": False, **options}
    return fetch_weights(entry, **options)


def pins(tmp_path):
    return json.loads((tmp_path / "keras_vit.lock").read_text())


def nothing_at_its_place(tmp_path):
    return not (tmp_path / "b16-test-data" / "w.npz").exists()


def test_fetches_once_pins_and_returns_the_file(server, tmp_path):
    entry = published(server)
    path = fetch(entry, tmp_path)
    assert path == tmp_path / "b16-test-data" / "w.npz"
    assert path.read_bytes() == CONTENT
    assert pins(tmp_path) == {"b16-test-data": {"w.npz": DIGEST}}
    assert fetch(entry, tmp_path) == path
    assert len(server.requests) == 1
    assert not list(tmp_path.rglob("*.partial*"))


def test_many_files_make_a_folder(server, tmp_path):
    server.folder = tmp_path / "server"
    write_timm(server.folder, classes=CLASSES)
    folder = fetch(published(server, *TIMM_FILES, format="timm"), tmp_path)
    assert folder == tmp_path / "b16-test-data"
    for name in TIMM_FILES:
        assert (folder / name).read_bytes() == (server.folder / name).read_bytes()
    assert set(pins(tmp_path)["b16-test-data"]) == {"model.safetensors", "config.json"}


def test_progress_is_shown(server, tmp_path, capsys):
    fetch(published(server), tmp_path, verbose=True)
    assert "w.npz" in capsys.readouterr().out


def test_goes_on_after_a_cut(server, tmp_path):
    server.script = [cut_at(400_000), cut_at(900_000), serve]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=400000-", "bytes=900000-"]
    assert server.requests[1][1]["If-Range"] == '"1"'


def test_goes_on_in_a_later_call(server, tmp_path):
    server.script = [cut_at(300_000), status(503)]
    with pytest.raises(DownloadError, match=r"503.*2 attempts.*300,000 bytes"):
        fetch(published(server), tmp_path, attempts=2)
    assert nothing_at_its_place(tmp_path)
    server.script = [serve]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=300000-"


def test_starts_anew_where_the_file_has_changed(server, tmp_path):
    def changed(server, handler):
        server.content, server.etag = OTHER, '"2"'
        serve(server, handler)

    server.script = [cut_at(500_000), changed]
    assert fetch(published(server), tmp_path).read_bytes() == OTHER
    assert server.ranges == [None, "bytes=500000-"]


def test_starts_anew_where_ranges_are_ignored(server, tmp_path):
    def ignores(server, handler):
        del handler.headers["Range"]
        serve(server, handler)

    server.script = [cut_at(500_000), ignores]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT


def test_does_not_join_another_range(server, tmp_path):
    def shifted(server, handler):
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT)

    server.script = [cut_at(500_000), shifted, serve]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=500000-", None]


def test_range_beyond_the_end_starts_anew(server, tmp_path):
    server.script = [cut_at(500_000), status(416), serve]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges[2] is None


def test_weak_validators_are_not_trusted(server, tmp_path):
    server.etag = 'W/"1"'
    server.script = [cut_at(500_000), serve]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_a_file_of_unknown_length_starts_anew(server, tmp_path):
    def chunked(server, handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("ETag", server.etag)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(f"{len(CONTENT):x}\r\n".encode() + CONTENT[:500_000])
        handler.close_connection = True

    server.script = [chunked, serve]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_a_part_that_nobody_asked_for_is_refused(server, tmp_path):
    server.script = [status(206)]
    with pytest.raises(DownloadError, match="sent a part of the file"):
        fetch(published(server), tmp_path)
    assert nothing_at_its_place(tmp_path) and not (tmp_path / "keras_vit.lock").exists()


def test_length_that_is_too_long_is_an_error(server, tmp_path):
    too_long = len(CONTENT) + 10
    server.script = [lambda server, handler: serve(server, handler, length=too_long), status(416)]
    with pytest.raises(DownloadError, match="416|less than|attempts"):
        fetch(published(server), tmp_path, attempts=2)
    assert nothing_at_its_place(tmp_path)


def test_length_that_is_too_short_is_an_error_where_the_publisher_tells(server, tmp_path):
    server.script = [lambda server, handler: serve(server, handler, length=1000)]
    with pytest.raises(DownloadError, match=rf"{len(CONTENT):,} bytes.*1,000"):
        fetch(published(server, size=len(CONTENT)), tmp_path)
    with pytest.raises(DownloadError, match=DIGEST):
        fetch(published(server, sha256=DIGEST), tmp_path)
    assert nothing_at_its_place(tmp_path)


def test_changed_byte_is_an_error_that_names_both_digests(server, tmp_path):
    server.content = OTHER
    digest = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(DownloadError, match=rf"{digest}.*{DIGEST}"):
        fetch(published(server, sha256=DIGEST), tmp_path)
    assert nothing_at_its_place(tmp_path)
    assert not list(tmp_path.rglob("*.partial*"))
    server.content = CONTENT
    assert fetch(published(server, sha256=DIGEST), tmp_path).read_bytes() == CONTENT
    assert not (tmp_path / "keras_vit.lock").exists()


def test_pinned_digest_holds_for_a_later_download(server, tmp_path):
    lock = tmp_path / "repository" / "keras_vit.lock"
    fetch(published(server), tmp_path / "one", lock=lock)
    server.content = OTHER
    digest = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(DownloadError, match=rf"{digest}.*{DIGEST}.*take b16-test-data out"):
        fetch(published(server), tmp_path / "two", lock=lock)
    assert nothing_at_its_place(tmp_path / "two")
    lock.write_text("{}")
    assert fetch(published(server), tmp_path / "two", lock=lock).read_bytes() == OTHER


def test_lock_file_by_environment(server, tmp_path, monkeypatch):
    lock = tmp_path / "here.lock"
    monkeypatch.setenv("KERAS_VIT_LOCK", str(lock))
    fetch(published(server), tmp_path / "cache")
    assert json.loads(lock.read_text())["b16-test-data"]["w.npz"] == DIGEST


@pytest.mark.parametrize("text", ["[1]", "not json", '{"b16-test-data": 3}'])
def test_broken_lock_file_is_an_error(server, tmp_path, text):
    (tmp_path / "keras_vit.lock").write_text(text)
    with pytest.raises(DownloadError, match=r"keras_vit.lock does not hold"):
        fetch(published(server), tmp_path)
    assert (tmp_path / "keras_vit.lock").read_text() == text
    assert not server.requests


def test_a_file_that_came_whole_is_not_asked_for_again(server, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(hashlib, "file_digest", interrupted)
        fetch(published(server), tmp_path)
    server.script = [status(416)]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_the_digest_that_the_hub_told_holds_for_a_file_that_came_whole(
    server, tmp_path, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    hub = status(302, ("Location", "/cdn"), ("X-Linked-Etag", f'"{"0" * 64}"'))
    server.script = [hub, serve]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(hashlib, "file_digest", interrupted)
        fetch(published(server), tmp_path)
    with pytest.raises(DownloadError, match=f"{DIGEST}.*{'0' * 64}"):
        fetch(published(server), tmp_path)


def unwritable(monkeypatch, folder):
    """Refuses what is made in `folder`, as the system does where there are no permissions."""
    make = Path.mkdir

    def refuse(path, *arguments, **options):
        if path.is_relative_to(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)


def test_what_cannot_be_pinned_is_not_fetched_again(server, tmp_path, monkeypatch):
    cache, repository = tmp_path / "cache", tmp_path / "repository"
    with monkeypatch.context() as patch:
        unwritable(patch, repository)
        with pytest.raises(DownloadError, match=r"repository: Permission denied.*KERAS_VIT_LOCK"):
            fetch(published(server), cache, lock=repository / "keras_vit.lock")
    fetch(published(server), cache, lock=repository / "keras_vit.lock")
    assert len(server.requests) == 1
    assert {path.name for path in repository.iterdir()} == {
        "keras_vit.lock",
        ".keras_vit.lock.lock",
    }


def test_verified_weights_are_used_where_nothing_can_be_written(server, tmp_path, monkeypatch):
    def state():
        return {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}

    path = fetch(published(server), tmp_path)
    before = state()
    with monkeypatch.context() as patch:
        unwritable(patch, tmp_path)
        assert fetch(published(server), tmp_path) == path
        with pytest.raises(DownloadError, match=r"b16-other-data.*KERAS_HOME"):
            fetch(published(server, name="b16-other-data"), tmp_path)
    assert state() == before


def test_cached_file_that_was_changed_is_noticed(server, tmp_path):
    path = fetch(published(server), tmp_path)
    path.write_bytes(OTHER + b"more")
    with pytest.raises(DownloadError, match=rf"{DIGEST}.*Delete"):
        fetch(published(server), tmp_path)


def test_full_verification_reads_a_file_that_looks_unchanged(server, tmp_path):
    path = fetch(published(server), tmp_path)
    before = path.stat()
    path.write_bytes(OTHER)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fetch(published(server), tmp_path) == path
    with pytest.raises(DownloadError, match=DIGEST):
        fetch(published(server), tmp_path, verify=True)


def test_digest_that_the_hub_tells_where_it_redirects(server, tmp_path):
    entry = published(server, "resolve/w.npz")
    hub = status(302, ("Location", "/cdn"), ("X-Linked-Etag", f'"{"0" * 64}"'))
    server.script = [hub, serve]
    with pytest.raises(DownloadError, match=f"{DIGEST}.*{'0' * 64}"):
        fetch(entry, tmp_path)
    server.requests.clear()
    server.script = [status(302, ("Location", "/cdn"), ("X-Linked-Etag", f'"{DIGEST}"')), serve]
    assert fetch(entry, tmp_path).read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/resolve/w.npz", "/cdn"]


def test_redirect_to_plain_http_is_refused():
    headers = email.message.Message()
    request = urllib.request.Request("https://example.org/w.npz")
    with pytest.raises(DownloadError, match="not https"):
        download._SafeRedirects().redirect_request(
            request, None, 302, "Found", headers, "http://example.org/w.npz"
        )


def test_plain_http_addresses_are_refused(tmp_path):
    entry = published(type("Elsewhere", (), {"address": "http://example.org"}))
    with pytest.raises(DownloadError, match="https://"):
        fetch(entry, tmp_path)


def test_missing_file_is_not_asked_for_again(server, tmp_path):
    server.script = [status(404)]
    with pytest.raises(DownloadError, match="404"):
        fetch(published(server), tmp_path)
    assert len(server.requests) == 1


def test_overloaded_server_is_asked_again(server, tmp_path):
    server.script = [status(503), status(429, ("Retry-After", "0")), serve]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT


def test_trickle_is_given_up(server, tmp_path):
    stop = threading.Event()

    def trickle(server, handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        for index in range(200):
            if stop.wait(0.02):
                return
            try:
                handler.wfile.write(CONTENT[index : index + 1])
            except OSError:
                return

    server.script = [trickle]
    begin = time.monotonic()
    with pytest.raises(DownloadError, match=r"stalled after.*2 attempts"):
        fetch(published(server), tmp_path, timeout=0.2, attempts=2)
    assert time.monotonic() - begin < 3
    stop.set()


def test_no_length_is_taken_within_bounds(server, tmp_path, monkeypatch):
    def unbounded(server, handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)

    server.script = [unbounded]
    assert fetch(published(server), tmp_path / "a").read_bytes() == CONTENT
    monkeypatch.setattr(download, "MOST_UNDECLARED", 1000)
    with pytest.raises(DownloadError, match="no length"):
        fetch(published(server), tmp_path / "b")
    assert not list((tmp_path / "b").rglob("*.partial"))


def test_two_at_once_fetch_one_file(server, tmp_path):
    def slow(server, handler):
        time.sleep(0.1)
        serve(server, handler)

    server.script = [slow]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(published(server), tmp_path), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(server.requests) == 1


def test_pins_of_different_weights_at_once_are_all_kept(server, tmp_path):
    entries = [published(server, name=f"b16-test-{index}") for index in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda entry: fetch(entry, tmp_path), entries))
    assert set(pins(tmp_path)) == {entry.name for entry in entries}


def test_offline_error_says_how_to_put_it_there(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_VIT_OFFLINE", "1")
    with pytest.raises(DownloadError) as caught:
        fetch(published(server), tmp_path)
    text = str(caught.value)
    assert f"{server.address}/w.npz" in text
    assert str(tmp_path / "b16-test-data" / "w.npz") in text
    assert "KERAS_VIT_MIRROR" in text
    assert not server.requests
    (tmp_path / "b16-test-data" / "w.npz").write_bytes(CONTENT)
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT


def test_mirror_by_name_and_by_file(server, tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    write_timm(mirror / "b16-test-data", classes=CLASSES)
    (mirror / "w.npz").write_bytes(CONTENT)
    monkeypatch.setenv("KERAS_VIT_OFFLINE", "1")
    two = published(server, *TIMM_FILES, format="timm")
    assert fetch(two, tmp_path / "cache", mirror=mirror) == mirror / "b16-test-data"
    monkeypatch.setenv("KERAS_VIT_MIRROR", str(mirror))
    assert fetch(published(server), tmp_path / "cache") == mirror / "w.npz"
    (mirror / "w.npz").write_bytes(OTHER)
    with pytest.raises(DownloadError, match=DIGEST):
        fetch(published(server), tmp_path / "cache")


def test_a_file_name_of_two_weights_is_no_name_in_a_mirror(tmp_path, monkeypatch):
    tuned = find("b16-vit-in21k-ft-in1k-384")
    assert tuned.files[0].name == find("b16-vit-in21k").files[0].name == "ViT-B_16.npz"
    (tmp_path / "ViT-B_16.npz").write_bytes(CONTENT)
    monkeypatch.setenv("KERAS_VIT_OFFLINE", "1")
    with pytest.raises(DownloadError, match="KERAS_VIT_MIRROR as b16-vit-in21k-ft-in1k-384/ViT-B"):
        fetch(tuned, tmp_path / "cache", mirror=tmp_path)


@pytest.mark.parametrize(
    "content, error",
    [
        (b"<html>Sign in to this network</html>", "w.npz is no .npz file"),
        (CONTENT[:-1000], "w.npz is no .npz file, or a truncated one"),
        (checkpoint(5), rf"w.npz is not b16-test-data.*num_classes={CLASSES}.*num_classes=5"),
        (checkpoint(0), rf"num_classes={CLASSES}. Found: num_classes=0"),
    ],
)
def test_what_is_not_the_published_checkpoint_is_not_pinned(server, tmp_path, content, error):
    server.content = content
    for _ in range(2):
        with pytest.raises(DownloadError, match=f"{error}.*Delete it"):
            fetch(published(server), tmp_path)
    assert not (tmp_path / "keras_vit.lock").exists()
    (tmp_path / "b16-test-data" / "w.npz").unlink()
    server.content = CONTENT
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "stated, found",
    [
        ({"image_size": 384}, r"image_size=384. Found: image_size=\(12, 12\)"),
        ({"format": "timm"}, "format=timm. Found: format=google"),
        ({"variant": "vit_b16"}, r"patch_size=16. Found: patch_size=\(4, 4\)"),
    ],
)
def test_what_the_catalog_tells_of_weights_holds_in_a_mirror(server, tmp_path, stated, found):
    (tmp_path / "w.npz").write_bytes(CONTENT)
    entry = dataclasses.replace(published(server), **stated)
    with pytest.raises(DownloadError, match=f"{found}. Replace it"):
        fetch(entry, tmp_path / "cache", mirror=tmp_path)
    assert not (tmp_path / "cache" / "keras_vit.lock").exists()


def test_arguments_are_checked_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_VIT_OFFLINE", "1")
    name = "l16-augreg-in21k"
    with pytest.raises(TypeError, match="num_classes.*Received: num_class=10"):
        keras_vit.from_checkpoint(name, num_class=10)
    with pytest.raises(ValueError, match="include_top=False and no `num_classes`"):
        keras_vit.from_checkpoint(name, num_classes=10, include_top=False)
    with pytest.raises(ValueError, match="`resampling` must be.*resampling='googel'"):
        keras_vit.from_checkpoint(name, resampling="googel")
    for weights in (name, None):
        with pytest.raises(ValueError, match="resampling='googel'"):
            keras_vit.create("vit_l16", weights=weights, resampling="googel")
    assert not list(tmp_path.iterdir())


def test_gated_weights_are_explained(server, tmp_path):
    entry = dataclasses.replace(published(server), gated=True, licence="dinov3-license")
    with pytest.raises(DownloadError, match=r"dinov3-license.*accept.*pass the folder's path"):
        fetch(entry, tmp_path)
    assert not server.requests


def test_no_server_at_all(server, tmp_path):
    entry = published(server)
    server.close()
    with pytest.raises(DownloadError, match=r"no connection.*2 attempts"):
        fetch(entry, tmp_path, attempts=2)


def test_cache_follows_keras_home(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "models" / "keras_vit"
    assert download.lock_path() == tmp_path / "models" / "keras_vit" / "keras_vit.lock"
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".keras" / "models" / "keras_vit"
