"""Fetching from a server that misbehaves. No other server is ever contacted."""

import errno
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import bad_server
import numpy as np
import pytest
from bad_server import BadServer

from cfrestore.errors import ConfigError, WeightsError
from cfrestore.weights import (
    WEIGHT_FILES,
    HubFile,
    Progress,
    UnreachableError,
    WeightFile,
    fetch,
    fetching,
    locate,
    remove,
    table,
    transport,
)

CONTENT = b"\x80" + np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[:-1] + b"!"
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()


@dataclass
class Store:
    """An empty store, and a table with the single file `weights`, which the server has.

    Attributes:
        folder: where the file will be.
        server: the server that has it.
        said: the messages of the fetches so far.
    """

    folder: Path
    server: BadServer
    monkeypatch: pytest.MonkeyPatch
    said: list[str]

    @property
    def file(self) -> Path:
        return self.folder / "weights.pth"

    @property
    def part(self) -> Path:
        return self.folder / "weights.pth.part"

    def publish(
        self, *urls: str, size: int | None = len(CONTENT), sha256: str | None = SHA256
    ) -> None:
        row = WeightFile(
            "weights", "weights.pth", urls or (self.server.url(),), size, sha256, "MIT", "tests"
        )
        self.monkeypatch.setattr(table, "WEIGHT_FILES", (row,))

    def hurry(self) -> None:
        """Shortens the timeouts for servers that hang."""
        self.monkeypatch.setattr(transport, "OPEN_SECONDS", 0.3)
        self.monkeypatch.setattr(transport, "SILENCE_SECONDS", 0.3)

    def fetch(self) -> Path:
        return fetch("weights", lambda progress: self.said.append(progress.remark))

    def fails(self, kind: type[WeightsError] = WeightsError) -> str:
        """Fetches in vain; returns the error's sentence. Checks that no file is left to use."""
        with pytest.raises(kind) as error:
            self.fetch()
        assert not self.file.exists()
        assert "\n" not in str(error.value)
        assert "weights.pth" in str(error.value)
        return str(error.value)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    home = tmp_path / "home"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CFRESTORE_HOME", str(home))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("CFRESTORE_OFFLINE")
    monkeypatch.setattr(fetching, "PAUSES", (0.001, 0.001, 0.001))
    with BadServer(CONTENT).running() as server:
        made = Store(home, server, monkeypatch, [])
        made.publish()
        yield made


# Success


def test_a_file_is_fetched_once(store: Store, tmp_path: Path) -> None:
    told: list[Progress] = []
    assert locate("weights") is None
    assert fetch("weights", told.append) == store.file
    assert store.file.read_bytes() == CONTENT
    assert {progress.total for progress in told} == {len(CONTENT)}
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert told[-1].done == len(CONTENT)
    ledger = json.loads((tmp_path / "cache/cfrestore/verified.json").read_text())
    assert ledger[str(store.file)][2] == SHA256
    assert fetch("weights") == fetch("weights.pth") == locate("weights") == store.file
    assert store.server.asked == [("/weights.pth", None)]
    assert not store.part.exists()


def test_without_a_home_the_cache_is_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CFRESTORE_HOME")
    assert fetch("weights") == tmp_path / "cache/cfrestore/weights.pth"


@pytest.mark.parametrize("place", ["weights", "cache/cfrestore"])
def test_what_is_here_is_not_fetched(store: Store, tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "weights.pth").write_bytes(CONTENT)
    assert fetch("weights").resolve() == tmp_path / place / "weights.pth"
    assert store.server.asked == []


@pytest.mark.parametrize("behaviour", [bad_server.chunked, bad_server.unframed()])
def test_a_body_of_unknown_length_is_taken(store: Store, behaviour: bad_server.Behaviour) -> None:
    store.server.will(behaviour)
    assert store.fetch().read_bytes() == CONTENT


def test_redirects_are_followed(store: Store) -> None:
    there = store.server.url("elsewhere/weights.pth")
    store.server.will(bad_server.redirects(there))
    assert store.fetch().read_bytes() == CONTENT
    assert [path for path, _ in store.server.asked] == ["/weights.pth", "/elsewhere/weights.pth"]


def test_an_unknown_name_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="did you mean 'weights'"):
        fetch("weihgts")


# Resuming


def test_an_interrupted_fetch_is_continued(store: Store) -> None:
    store.folder.mkdir()
    store.part.write_bytes(CONTENT[:123_456])
    assert store.fetch().read_bytes() == CONTENT
    assert store.server.asked == [("/weights.pth", "bytes=123456-")]


def test_a_redirected_fetch_is_continued(store: Store) -> None:
    store.server.will(bad_server.redirects(store.server.url("elsewhere")))
    store.folder.mkdir()
    store.part.write_bytes(CONTENT[:1000])
    assert store.fetch().read_bytes() == CONTENT
    assert store.server.asked[-1] == ("/elsewhere", "bytes=1000-")


def test_a_complete_part_needs_no_server(store: Store) -> None:
    store.folder.mkdir()
    store.part.write_bytes(CONTENT)
    assert store.fetch().read_bytes() == CONTENT
    assert store.server.asked == []


@pytest.mark.parametrize(
    "behaviour", [bad_server.ignores_range, bad_server.wrong_range, bad_server.refuses_range]
)
def test_a_server_that_cannot_resume_is_asked_anew(
    store: Store, behaviour: bad_server.Behaviour
) -> None:
    store.server.will(behaviour)
    store.folder.mkdir()
    store.part.write_bytes(CONTENT[:1000])
    assert store.fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("length", [1000, len(CONTENT), len(CONTENT) + 1000])
def test_a_part_of_another_file_does_no_harm(store: Store, length: int) -> None:
    store.folder.mkdir()
    store.part.write_bytes(b"?" * length)
    assert store.fetch().read_bytes() == CONTENT
    assert "starting anew" in "".join(store.said)
    assert store.server.asked[-1] == ("/weights.pth", None)


def test_a_part_is_continued_by_the_second_source(store: Store) -> None:
    first = store.server.will(bad_server.breaks_off(1000), bad_server.status(404), path="first")
    store.publish(first, store.server.url("second"))
    assert store.fetch().read_bytes() == CONTENT
    assert store.server.asked[-1] == ("/second", "bytes=1000-")


# Temporary problems


@pytest.mark.parametrize(
    "behaviour",
    [
        bad_server.breaks_off(100_000),
        bad_server.resets(100_000),
        bad_server.halfway,
        bad_server.closes,
        bad_server.babbles,
        bad_server.status(500),
        bad_server.status(503),
        bad_server.status(429),
    ],
)
def test_trouble_that_passes_is_sat_out(store: Store, behaviour: bad_server.Behaviour) -> None:
    if behaviour is bad_server.halfway:
        store.hurry()
    url = store.server.will(behaviour, behaviour, bad_server.honest)
    assert store.fetch().read_bytes() == CONTENT
    remarks = [remark for remark in store.said if remark]
    assert len(remarks) == 2
    assert all(url in remark and "trying again" in remark for remark in remarks)


def test_attempts_that_bring_something_do_not_count(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_STEP", 10_000)
    store.server.will(bad_server.breaks_off(20_000))
    assert store.fetch().read_bytes() == CONTENT
    assert len(store.server.asked) == 16


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_attempts_that_bring_the_same_again_do_count(
    store: Store, monkeypatch: pytest.MonkeyPatch, sha256: str | None
) -> None:
    monkeypatch.setattr(fetching, "_STEP", 10_000)

    def same_again(handler: bad_server.Handler, content: bytes) -> None:
        handler.head(200, Content_Length=len(content))
        handler.wfile.write(content[:100_000])

    url = store.server.will(same_again)
    store.publish(sha256=sha256)
    text = store.fails()
    assert f"{url} broke off after 100000 of 300001 bytes, again and again" in text
    assert len(store.server.asked) == 4


# Permanent problems


@pytest.mark.parametrize(
    ("behaviour", "reason", "requests"),
    [
        (bad_server.status(404), "answered 404 Not Found", 1),
        (bad_server.status(403), "answered 403 Forbidden", 1),
        (bad_server.status(503), "answered 503 Service Unavailable, again and again", 4),
        (bad_server.closes, "broke the connection, again and again", 4),
        (bad_server.breaks_off(0), "broke off after 0 of 300001 bytes, again and again", 4),
        (bad_server.sends(OTHER), f"sent a file of SHA-256 {OTHER_SHA256}, expected {SHA256}", 1),
        (bad_server.sends(CONTENT[:-9]), "offers a file of 299992 bytes, expected 300001", 1),
        (bad_server.sends(CONTENT * 9), "offers a file of 2700009 bytes, expected 300001", 1),
        (bad_server.unframed(b"!" * 10**8), "sends more than the 300001 bytes expected", 1),
        (bad_server.hangs, "did not answer within 0.3 s", 1),
        (bad_server.halfway, "fell silent for 0.3 s, again and again", 4),
    ],
)
def test_trouble_that_stays_ends_in_one_sentence(
    store: Store, behaviour: bad_server.Behaviour, reason: str, requests: int
) -> None:
    if behaviour in (bad_server.hangs, bad_server.halfway):
        store.hurry()
    url = store.server.will(behaviour)
    assert f"weights.pth could not be fetched: {url} {reason}" in store.fails()
    assert len(store.server.asked) == requests


def test_redirects_in_a_circle_end(store: Store) -> None:
    url = store.server.will(bad_server.redirects(store.server.url("round")))
    store.server.will(bad_server.redirects(url), path="round")
    assert f"{url} redirects in a circle" in store.fails()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/weights.pth", "http://"])
def test_redirects_to_nowhere_end(store: Store, target: str) -> None:
    url = store.server.will(bad_server.redirects(target))
    assert url in store.fails()


def test_the_encrypted_is_not_left_for_the_open() -> None:
    request = transport.Request("https://127.0.0.1/weights.pth")
    redirect = transport._Redirects().redirect_request
    with pytest.raises(transport.HTTPError):
        redirect(request, None, 302, "Found", {}, "http://127.0.0.1/")  # type: ignore[arg-type]
    followed = redirect(request, None, 302, "Found", {}, "https://127.0.0.1/a")  # type: ignore[arg-type]
    assert followed is not None


def test_the_second_source_stands_in_for_the_first(store: Store) -> None:
    first = store.server.will(bad_server.sends(OTHER), path="first")
    store.publish(first, store.server.url("second"))
    assert store.fetch().read_bytes() == CONTENT
    assert [path for path, _ in store.server.asked] == ["/first", "/second"]


def test_when_every_source_fails_each_is_named(store: Store) -> None:
    first = store.server.will(bad_server.status(404), path="first")
    second = store.server.will(bad_server.sends(OTHER), path="second")
    store.publish(first, second)
    text = store.fails()
    assert f"{first} answered 404 Not Found; {second} sent a file of SHA-256 {OTHER_SHA256}" in text


# No network


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/weights.pth"


def test_a_refused_connection_is_told(store: Store) -> None:
    store.publish(closed_port())
    assert "cannot be reached (Connection refused)" in store.fails(UnreachableError)


def test_a_name_that_is_not_resolved_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    store.publish("https://weights.invalid/weights.pth")
    text = store.fails(UnreachableError)
    assert "https://weights.invalid/weights.pth cannot be reached (Temporary failure in" in text


def test_a_resolver_that_hangs_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def hang(*_arguments: object, **_options: object) -> None:
        never.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "too late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    store.hurry()
    store.publish("https://weights.invalid/weights.pth")
    assert "did not answer within 0.3 s" in store.fails(UnreachableError)
    never.set()


def test_a_server_that_is_reached_but_has_nothing_is_no_lack_of_network(store: Store) -> None:
    store.publish(closed_port(), store.server.will(bad_server.status(404)))
    with pytest.raises(WeightsError) as error:
        store.fetch()
    assert not isinstance(error.value, UnreachableError)


def test_offline_opens_no_socket(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a socket was opened")

    row = table.WEIGHT_FILES[0]
    monkeypatch.setattr(table, "WEIGHT_FILES", (replace(row, hub=HubFile("a/b", "weights.pth")),))
    monkeypatch.setenv("CFRESTORE_OFFLINE", "1")
    monkeypatch.setattr(socket, "socket", refuse)
    text = store.fails()
    assert "offline" in text
    assert store.server.url() in text
    store.folder.mkdir()
    store.file.write_bytes(CONTENT)
    assert fetch("weights") == store.file


@pytest.mark.parametrize("value", ["", "0"])
def test_offline_can_be_said_to_be_off(
    store: Store, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CFRESTORE_OFFLINE", value)
    assert store.fetch() == store.file


# The disk


def test_a_store_that_cannot_be_made_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("CFRESTORE_HOME", str(tmp_path / "a file/home"))
    text = store.fails()
    assert f"of {store.server.url()} cannot be stored in {tmp_path}/a file/home: Not a dir" in text


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write anywhere")
def test_a_read_only_store_is_told(store: Store) -> None:
    store.folder.mkdir(mode=0o500)
    assert "Permission denied" in store.fails()


def test_a_read_only_file_system_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)  # which creates locks
    assert "Read-only file system" in store.fails()


def test_a_disk_without_room_is_told_before_anything_is_sent(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 8, 1000))
    text = store.fails()
    assert f"weights.pth needs 300001 more bytes in {store.folder}, where 1000 are free" in text


def test_a_disk_that_fills_up_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    assert f"cannot be stored in {store.folder}: No space left on device" in store.fails()


def test_a_write_that_fails_midway_is_told_and_continued_later(store: Store) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        assert "File too large" in store.fails()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 0 < store.part.stat().st_size <= 200_000
    assert store.fetch().read_bytes() == CONTENT
    assert store.server.asked[-1][1] is not None


def test_a_wrong_file_in_the_way_is_not_replaced_until_it_is_removed(store: Store) -> None:
    store.folder.mkdir()
    store.file.write_bytes(OTHER)
    with pytest.raises(WeightsError, match=f"{OTHER_SHA256}, expected {SHA256}"):
        store.fetch()
    assert store.file.read_bytes() == OTHER
    assert remove("weights") == (store.file,)
    assert store.fetch().read_bytes() == CONTENT


# No recorded digest


def test_without_a_digest_on_record_the_first_is_pinned(store: Store) -> None:
    store.publish(size=None, sha256=None)
    store.fetch()
    assert (store.folder / "weights.pth.sha256").read_text() == f"{SHA256}  weights.pth\n"
    assert any("could not be verified" in r and SHA256 in r for r in store.said)
    store.file.write_bytes(OTHER)
    with pytest.raises(WeightsError, match=f"first seen here.*{OTHER_SHA256}, expected {SHA256}"):
        locate("weights")
    store.file.unlink()
    store.server.will(bad_server.sends(OTHER))
    text = store.fails()
    assert f"sent a file of SHA-256 {OTHER_SHA256}, expected {SHA256} as first seen here" in text
    assert "`cfrestore weights remove weights` forgets" in text
    assert [path.suffix for path in remove("weights")] == [".sha256"]
    assert store.fetch().read_bytes() == OTHER


def test_what_cannot_be_verified_is_not_continued(store: Store) -> None:
    store.publish(size=None, sha256=None)
    store.folder.mkdir()
    store.part.write_bytes(OTHER[:1000])
    store.server.will(bad_server.breaks_off(1000), bad_server.honest)
    assert store.fetch().read_bytes() == CONTENT
    assert {asked for _, asked in store.server.asked} == {None}


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (bad_server.sends(b"<html>Please log in</html>"), "sent no weight file"),
        (bad_server.unframed(), "does not say how long the file is"),
    ],
)
def test_what_cannot_be_the_file_is_not_pinned(
    store: Store, behaviour: bad_server.Behaviour, reason: str
) -> None:
    store.publish(size=None, sha256=None)
    store.server.will(behaviour)
    assert reason in store.fails()
    assert not list(store.folder.glob("*.sha256"))


def test_what_is_absurdly_long_is_not_begun(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "LARGEST", 100_000)
    store.publish(size=None, sha256=None)
    assert "offers a file of 300001 bytes, expected less than 100000" in store.fails()


# Several processes

ROW = ("weights.pth", len(CONTENT), SHA256, "MIT", "tests")
SCRIPT = f"""
import sys
from cfrestore.weights import HubFile, WeightFile, fetch, table
url, repository = sys.argv[1:]
hub = HubFile(repository, "sub/weights.pth", "dataset") if repository else None
file, *others = {ROW!r}
table.WEIGHT_FILES = (WeightFile("weights", file, (url,), *others, hub),)
def report(progress):
    if progress.remark:
        print(progress.remark, flush=True)
print(fetch("weights", report), flush=True)
"""


def start(url: str, repository: str = "", **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, url, repository],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
    )


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("what was waited for did not come")


def test_two_processes_fetch_a_file_once(store: Store) -> None:
    url = store.server.will(bad_server.halfway)
    first = start(url)
    wait_for(lambda: bool(store.server.asked))
    second = start(url)
    assert second.stdout is not None
    assert "Another process is fetching weights.pth" in second.stdout.readline()
    store.server.released.set()
    assert first.communicate()[0] == second.communicate()[0] == f"{store.file}\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert store.file.read_bytes() == CONTENT
    assert len(store.server.asked) == 1


def test_a_process_that_dies_leaves_its_part_to_the_next(store: Store) -> None:
    url = store.server.will(bad_server.halfway, bad_server.honest)
    first = start(url)
    half = len(CONTENT) // 2
    wait_for(lambda: store.part.exists() and store.part.stat().st_size == half)
    first.kill()
    first.wait()
    assert first.stdout is not None
    first.stdout.close()
    assert not store.file.exists()
    assert store.fetch().read_bytes() == CONTENT
    assert store.server.asked[-1] == ("/weights.pth", f"bytes={half}-")


# The hub


def test_the_hub_is_the_second_source(store: Store, tmp_path: Path) -> None:
    url = store.server.will(bad_server.status(404))
    environment = {"HF_ENDPOINT": store.server.url("hub"), "HF_HOME": str(tmp_path / "hf")}
    fetched = start(url, "owner/name", **environment)
    assert fetched.communicate()[0] == f"{store.file}\n"
    path = "/hub/datasets/owner/name/resolve/main/sub/weights.pth"
    assert [path for path, _ in store.server.asked] == ["/weights.pth", path]


def test_the_hubs_own_word_for_offline_is_heeded(store: Store, tmp_path: Path) -> None:
    url = store.server.will(bad_server.status(404))
    environment = {"HF_ENDPOINT": store.server.url("hub"), "HF_HUB_OFFLINE": "1"}
    fetched = start(url, "owner/name", HF_HOME=str(tmp_path / "hf"), **environment)
    fetched.communicate()
    assert fetched.returncode != 0
    assert [path for path, _ in store.server.asked] == ["/weights.pth"]


@pytest.mark.parametrize(
    ("content", "requests"), [(CONTENT, 0), (OTHER, 1)], ids=["whole", "another"]
)
def test_the_users_own_cache_of_the_hub_is_looked_into(
    store: Store, tmp_path: Path, content: bytes, requests: int
) -> None:
    folder = tmp_path / "hf/hub/datasets--owner--name"
    cached = folder / "snapshots/0123abcd/sub/weights.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0123abcd")
    fetched = start(store.server.url(), "owner/name", HF_HOME=str(tmp_path / "hf"))
    out = fetched.communicate()[0]
    assert out == f"{cached if content == CONTENT else store.file}\n"
    assert len(store.server.asked) == requests


# The real thing


def test_the_real_detector_file_is_fetched_and_works(
    shared: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cfrestore.detect import load_detector

    row = next(row for row in WEIGHT_FILES if row.name == "mobilenet")
    store.server.content = (shared / "weights" / row.file).read_bytes()
    served = replace(row, urls=(store.server.will(bad_server.breaks_off(700_000)),))
    monkeypatch.setattr(table, "WEIGHT_FILES", (served,))
    path = fetch("mobilenet")
    assert len(store.server.asked) == 3
    assert path == store.folder / row.file
    assert load_detector("mobilenet").name == "retinaface-mobilenet0.25"
