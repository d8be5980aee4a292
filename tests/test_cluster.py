"""The same batch on a Ray cluster of two cores, started and stopped here by the command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from command import Command
from folders import contents, make_pictures
from stubs import StubDetector, face_at, picture, save_network, small_network

from cfrestore.batch import Manifest, plan, remote
from cfrestore.batch import run as engine_run
from cfrestore.batch.engine import PictureIO
from cfrestore.batch.job import named
from cfrestore.batch.ledger import Ledger, manifests_of
from cfrestore.cli import main
from cfrestore.errors import ConfigError, ImageError
from cfrestore.image import Photo, read_photo, write_photo
from cfrestore.pipeline import Pipeline
from cfrestore.procedure import Procedure

REPOSITORY = Path(__file__).parents[1]

WAIT = 300  # seconds until a test that would hang fails


def environment(**others: str) -> dict[str, str]:
    """The environment of commands: no usage reports by Ray, this code, one thread."""
    return {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
        "OMP_NUM_THREADS": "1",
        **others,
    }


def workers_of(session: str, title: str = "") -> list[int]:
    """Processes of a cluster, found by its session's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            named = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if entry.name.isdigit() and session.encode() in told and title.encode() in named:
            found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


class Cluster:
    """A cluster that runs on this machine."""

    address = "auto"

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def command(self, *words: str) -> list[str]:
        engine = ["--engine", "ray", "--address", self.address, "--actors", "2"]
        return [sys.executable, "-m", "cfrestore", *words, *engine]

    def actors(self) -> list[int]:
        """Processes of the actors that have a pipeline."""
        return workers_of(self.mark, "Painting")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("ray.data", reason="needs the extra ray")
    ray = Path(sys.executable).with_name("ray")
    if not Path("/proc/self/environ").exists() or not ray.exists():
        pytest.skip("needs Linux's /proc and the command ray beside Python")
    folder = tmp_path_factory.mktemp("ray", numbered=True)
    port = 20000 + os.getpid() % 20000
    mark = f"cfrestore-test-{os.getpid()}"
    words = ["start", "--head", "--block", "--num-cpus", "2", "--port", str(port)]
    words += ["--include-dashboard", "false", "--object-store-memory", str(200 << 20)]
    words += ["--disable-usage-stats"]
    own = environment(CFRESTORE_OFFLINE="1", CFRESTORE_TEST_CLUSTER=mark)
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(
            [ray, *words], env=own, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    try:
        deadline = time.monotonic() + WAIT
        while b"--block" not in (folder / "log").read_bytes():
            assert head.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield Cluster(mark)
    finally:
        head.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(60)
        for pid in workers_of(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        deadline = time.monotonic() + 10
        while workers_of(mark) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert workers_of(mark) == []


@pytest.fixture(autouse=True)
def ready(here: Path) -> Iterator[None]:
    """The folder has a network; torch has one thread, as on the cluster."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    save_network(Path("tiny.safetensors"), small_network())
    yield
    torch.set_num_threads(before)


def manifest(folder: str) -> dict[str, Any]:
    """A folder's manifest, without the times, which differ from run to run."""
    found = {}
    for name, records in Manifest.read(Path(folder)).records.items():
        (record,) = records
        outputs = {name: print_.sha256 for name, print_ in record.outputs.items()}
        found[name] = (record.source, record.settings, record.input, outputs, record.outcome.faces)
    return found


def records(out: str, folder: str) -> dict[str, dict[str, Any]]:
    """Records by their inputs, without times and the folder of results."""
    found = {}
    for line in out.splitlines():
        record = json.loads(line.replace(f'"{folder}/', '"out/'))
        found[record["path"]] = record | {"seconds": sorted(record["seconds"])}
    return found


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=WAIT, check=False
    )


WORDS = ("--aligned", "--model", "tiny.safetensors", "--device", "cpu", "--json", "--save-crops")


@pytest.mark.slow
def test_one_process_four_shards_and_a_cluster_give_the_same(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(24, 24, 30)
    Path("in/bad.png").write_text("no picture")
    local = Command(capsys)
    one = local("in", "-o", "one/", *WORDS)
    parts = [local("in", "-o", "four/", "--shard", f"{n}/4", *WORDS) for n in (1, 2, 3, 4)]
    many = run(cluster.command("in", "-o", "many/", *WORDS))
    assert (one.code, max(part.code for part in parts), many.returncode) == (1, 1, 1), many.stderr
    assert len(contents("one")) == 48
    assert contents("one") == contents("four") == contents("many")
    assert manifest("one") == manifest("four") == manifest("many")
    assert len(manifest("one")) == 48
    assert [path.name for path in Path("many").glob(".*")] == [".cfrestore.jsonl"]
    found = records(one.out, "one")
    assert found == records(many.stdout, "many")
    assert found == records("".join(part.out for part in parts), "four")
    assert found["in/bad.png"]["code"] == "unreadable"
    assert "24 of 25 pictures written, 1 failed" in many.stderr

    # Finished work is not repeated, whoever did it.
    Path("many/003.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in Path("many").glob("*.png")}
    again = records(run(cluster.command("in", "-o", "many/", *WORDS)).stdout, "many")
    assert {path for path, record in again.items() if record["status"] == "done"} == {"in/003.png"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents("many") == contents("one")
    third = records(local("in", "-o", "many/", *WORDS).out, "many")
    assert {record["status"] for record in third.values()} == {"unchanged", "failed"}
    # With other settings it is, but results edited since then are not lost.
    Path("many/005.png").write_bytes(b"mine")
    other = records(run(cluster.command("in", "-o", "many/", "--w", "0", *WORDS)).stdout, "many")
    codes = {path: record["code"] for path, record in other.items() if record["code"]}
    assert codes == {"in/bad.png": "unreadable", "in/005.png": "exists"}
    assert Path("many/005.png").read_bytes() == b"mine"
    assert contents("many")["004.png"] != contents("one")["004.png"]


@pytest.mark.slow
def test_an_actor_that_is_killed_costs_nothing(cluster: Cluster) -> None:
    make_pictures(500, 24, 30)
    with subprocess.Popen(
        cluster.command("in", "-o", "out/", *WORDS),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        deadline = time.monotonic() + WAIT
        while len(list(Path("out").glob("*.png"))) < 40:
            assert command.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        victims = cluster.actors()
        assert len(victims) == 2
        os.kill(victims[0], signal.SIGKILL)
        written = len(list(Path("out").glob("*.png")))
        out, err = command.communicate(timeout=WAIT)
    assert written < 400, "it was nearly done before it was killed"
    assert command.returncode == 0, err
    found = records(out, "out")
    assert len(out.splitlines()) == len(found) == 500
    assert {record["status"] for record in found.values()} == {"done"}
    assert len(contents("out")) == len(manifest("out")) == 1000
    assert not list(Path("out").rglob(".cfrestore-*"))


@pytest.mark.slow
def test_a_picture_that_kills_whoever_works_on_it_is_reported_and_costs_no_other(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cfrestore.batch import cluster as engine

    make_pictures(30, 24, 30)
    monkeypatch.setenv("CFRESTORE_OFFLINE", "1")

    # Nested, so that they travel by value: the workers cannot import this file.
    def die() -> None:
        import os
        import signal
        from pathlib import Path

        with Path("deaths").open("a") as deaths:
            deaths.write("died\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def reading(source: Path | BinaryIO) -> Photo:
        if str(source) == "in/007.png":
            die()
        return read_photo(source)

    def writing(photo: Photo, target: BinaryIO, *, format: str | None) -> tuple[str, ...]:
        if target.name.endswith("in.restored/019.png"):
            target.write(b"half")
            die()
        return write_photo(photo, target, format=format)

    fatal = picture(24, 30, seed=13)

    def load() -> Procedure:
        from dataclasses import replace

        pipeline = Pipeline(small_network(), StubDetector(face_at(2, 2, 20)))
        procedure = pipeline.restoring()

        def prepare(photo: Photo) -> Any:
            if (photo.pixels == fatal).all():
                die()
            return procedure.prepare(photo)

        return replace(procedure, prepare=prepare)

    jobs = plan(["in"])
    with engine.connected(cluster.address):
        staff = engine.hire(2, None, 1)
        assert (staff.actors, staff.gpus, staff.cpus, staff.threads) == (2, 0, 0.5, 1)
        with pytest.raises(ConfigError, match="do not fit into the cluster, which has 0 GPUs"):
            engine.hire(2, 0.5, 1)
        outcomes = list(engine.run(jobs, load, staff, {}, read=reading, write=writing))
        bad = [outcome for outcome in outcomes if outcome.error]
        assert {outcome.code for outcome in bad} == {"crashed"}
        assert sorted(str(outcome.job.source) for outcome in bad) == [
            "in/007.png",
            "in/013.png",
            "in/019.png",
        ]
        assert len(Path("deaths").read_text().splitlines()) == 6
        assert sorted(outcome.job.source for outcome in outcomes) == sorted(
            job.source for job in jobs
        )
        assert len(contents("in.restored")) == 27
        assert [path.name for path in Path("in.restored").glob(".*")] == [".cfrestore.jsonl"]

        def refuse() -> Procedure:
            raise ConfigError("this cannot be")

        with pytest.raises(ConfigError, match="this cannot be"):
            list(engine.run(plan(["in"], "other"), refuse, staff, {}))
        with pytest.raises(ConfigError, match="this cannot be"):
            engine.ask(refuse, staff)


@pytest.mark.slow
def test_pictures_behind_urls_are_restored_as_others_are(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_pictures(6, 24, 30)
    Command(capsys)("in", "-o", "one/", *WORDS)
    words = [f"file://{tmp_path}/in", "-o", f"file://{tmp_path}/far/", *WORDS]
    first = run(cluster.command(*words))
    assert first.returncode == 0, first.stderr
    assert contents("far") == contents("one")
    assert [path.name for path in Path("far").glob(".*")] == [".cfrestore.jsonl"]
    assert manifest("far").keys() == manifest("one").keys()
    assert sorted(records(first.stdout, "far")) == [
        f"file://{tmp_path}/in/{index:03d}.png" for index in range(6)
    ]
    os.utime("in/002.png")
    Path("far/004.png").unlink()
    again = run(cluster.command(*words))
    done = [path for path, r in records(again.stdout, "far").items() if r["status"] == "done"]
    assert sorted(path[-7:] for path in done) == ["002.png", "004.png"]
    assert contents("far") == contents("one")


def test_a_folder_behind_a_url_looks_like_one_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With memory://, which no other process sees: this one fetches, restores and sends."""
    fsspec = pytest.importorskip("fsspec", reason="needs the extra ray")
    memory = fsspec.filesystem("memory")
    make_pictures(3, 24, 30)
    for path in Path("in").iterdir():
        memory.pipe(f"/there/in/sub/{path.name}", path.read_bytes())
    procedure = Pipeline(small_network(), StubDetector(face_at(2, 2, 20))).restoring()
    statuses = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        os.chdir(folder)
        remote.mirror(["memory://there/in", "local.png"], "memory://there/out", recursive=True)
        jobs = plan(["memory://there/in"], "memory://there/out/", recursive=True)
        assert [named(job.target) for job in jobs] == [
            f"memory://there/out/sub/{index:03d}.png" for index in range(3)
        ]
        io = PictureIO(read_photo, write_photo, Ledger(procedure.settings, manifests_of(jobs)))
        for job in jobs:
            outcome = io.ledger.earlier(job)
            if outcome is None:
                assert isinstance(job.source, Path)
                remote.fetch(job.source)
                (outcome,) = engine_run([job], procedure)
                assert isinstance(job.target, Path)
                assert job.manifest is not None
                remote.send([job.manifest, job.target])
            statuses.append((outcome.status, outcome.error))
    assert statuses == [("done", None)] * 3 + [("unchanged", None)] * 3
    assert len(memory.glob("/there/out/sub/*.png")) == 3
    with pytest.raises(ImageError, match="memory://there/none.png cannot be read"):
        remote.fetch(Path("memory:/there/none.png"))
    with pytest.raises(ConfigError, match="nosuch://x cannot be reached"):
        remote.fetch(Path("nosuch:/x"))
    memory.rm("/there", recursive=True)


@pytest.mark.parametrize("pattern", ["*.png", "a*.png", "a?.png", "[a]1.png", "**/a*"])
def test_patterns_behind_urls_work_wherever_their_first_sign_is(here: Path, pattern: str) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs the extra ray")
    memory = fsspec.filesystem("memory")
    memory.pipe("/far/in/a1.png", b"a picture")
    try:
        remote.mirror([f"memory://far/in/{pattern}"], None, recursive=False)
        (job,) = plan([f"memory://far/in/{pattern}"], "memory://far/out/")
        assert named(job.source) == "memory://far/in/a1.png"
    finally:
        memory.rm("/far", recursive=True)


def test_what_is_said_of_a_cluster_must_make_sense(capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        (["a.png", "--engine", "slurm"], "engine must be local or ray, found 'slurm'"),
        (["a.png", "--actors", "2"], "--actors needs --engine ray"),
        (["s3://b/a.png", "-o", "x/"], "s3://b/a.png is a URL, which --engine ray reads"),
        (["s3://b/a.png", "--engine", "ray"], "with URLs -o is a file or folder"),
        (["-", "-o", "a.png", "--engine", "ray"], "not stdin or stdout"),
    ):
        assert main(words) == 2
        assert sentence in capsys.readouterr().err


def test_a_manifest_is_collected_from_its_parts() -> None:
    from cfrestore.batch.manifest import collect

    Path(".cfrestore-a-1.jsonl").write_bytes(b"one\n")
    Path(".cfrestore-a-2.jsonl").write_bytes(b"two\nthr")
    Path(".cfrestore-b-1.jsonl").write_bytes(b"four\n")
    collect(Path(".cfrestore.jsonl"), ".cfrestore-a-*.jsonl")
    collect(Path(".cfrestore.jsonl"), ".cfrestore-b-*.jsonl")
    assert [path.name for path in Path().glob(".*")] == [".cfrestore.jsonl"]
    assert Path(".cfrestore.jsonl").read_bytes() == b"one\ntwo\nthr\nfour\n"
