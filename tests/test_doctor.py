import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from stubs import StubNetwork, save_network, small_network

from cfrestore import doctor, weights
from cfrestore.cli import main
from cfrestore.doctor import examine, hide_credentials
from cfrestore.extras import HEADLESS
from cfrestore.weights import WEIGHT_FILES

KEYS = {
    "schema": int,
    "cfrestore": str,
    "python": str,
    "platform": str,
    "cpus": int,
    "memory": (int, type(None)),
    "cuda_version": (str, type(None)),
    "driver": (str, type(None)),
    "packages": list,
    "devices": list,
    "folders": list,
    "environment": dict,
    "weights": list,
    "auto": dict,
    "notes": list,
    "problems": list,
    "exit_code": int,
}


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without published weights, with one device, whose connections are refused."""

    def refuse(*words: object, **settings: object) -> None:
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("CFRESTORE_OFFLINE")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CFRESTORE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("cfrestore.device.available_devices", lambda: ("cpu",))
    (tmp_path / "home").mkdir()
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *words])
    said = capsys.readouterr()
    assert said.err == ""
    return int(ended.value.code or 0), said.out


def test_all_is_well_here(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = ask(capsys, "--json")
    found = json.loads(text)
    assert {key: isinstance(found[key], kind) for key, kind in KEYS.items()} == dict.fromkeys(
        KEYS, True
    )
    assert set(found) == set(KEYS)
    assert (code, found["exit_code"], found["schema"], found["problems"]) == (0, 0, 1, [])
    versions = {package["name"]: package["version"] for package in found["packages"]}
    assert set(doctor.PACKAGES) <= set(versions) <= set(doctor.PACKAGES | doctor.EXTRAS)
    assert versions["torch"] == torch.__version__
    assert all(versions.values())
    assert [row["name"] for row in found["weights"]] == [row.name for row in WEIGHT_FILES]
    states = {row["name"]: row["state"] for row in found["weights"]}
    assert [states.pop(name) for name in ("compact", "compact-upsampler")] == ["shipped"] * 2
    assert set(states.values()) == {"absent"}
    (device,) = found["devices"]
    assert device["name"] == "cpu"
    assert device["change"] > 1
    assert device["seconds"] > 0
    auto = found["auto"]
    assert (auto["model"], auto["detector"], auto["parser"]) == ("compact (256 px)", "mtcnn", None)
    assert "codeformer.pth" in found["notes"][0]


def test_people_read_the_same(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = ask(capsys)
    assert code == 0
    assert text.splitlines()[-1] == "no problems found"
    assert f"torch            {torch.__version__}" in text
    assert "w changes pixels (by " in text
    assert str(machine / "home") in text
    assert "PROBLEM" not in text
    assert all(row.name in text for row in WEIGHT_FILES)


def test_a_device_whose_memory_is_full_is_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*values: object, **others: object) -> None:
        raise MemoryError("CUDA out of memory.")

    monkeypatch.setattr("cfrestore.restore.restore_faces", fail)
    monkeypatch.setattr("cfrestore.pipeline.load_pipeline", fail)
    code, text = ask(capsys)
    assert code == 1
    assert "problem: cpu fails: CUDA out of memory." in text
    assert "problem: the default choice cannot be loaded: CUDA out of memory." in text


def test_a_damaged_weight_file_is_exit_code_4(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine / "home/parsing_parsenet.pth").write_bytes(b"half a file")
    code, text = ask(capsys)
    assert code == 4
    assert re.search(r"parsenet +wrong +PROBLEM: ", text)
    assert text.count("problem: ") == 1
    assert text.splitlines()[-1] == "1 problem found"
    found = json.loads(ask(capsys, "--json")[1])
    (row,) = (row for row in found["weights"] if row["name"] == "parsenet")
    assert row["state"] == "wrong"
    assert "SHA-256" in row["error"]
    assert row["sha256"] in row["error"]
    assert found["problems"] == [{"code": 4, "text": row["error"]}]


def test_weights_are_read_even_if_they_look_unchanged(machine: Path) -> None:
    path, row = machine / "home/vqgan_code1024.pth", weights.weight_file("vqgan")
    path.write_bytes(b"right")
    assert doctor._weights(row).state == "pinned"
    times = path.stat()
    path.write_bytes(b"wrong")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert doctor._weights(row).state == "wrong"


def test_damaged_shipped_weights_are_exit_code_4(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine / "_shipped").mkdir()
    path = save_network(machine / "_shipped/compact.safetensors", small_network())
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(weights.store, "PACKAGE", machine)
    code, text = ask(capsys)
    assert code == 4
    assert re.search(r"compact +wrong +PROBLEM: .*its SHA-256 is", text)
    assert f"problem: cpu fails: {path} is damaged" in text
    monkeypatch.setattr(weights.store, "PACKAGE", machine / "nowhere")
    report = examine()
    assert report.exit_code == 4
    assert {row.name: row.state for row in report.weights}["compact"] == "wrong"
    assert "missing from this installation" in (report.auto.error or "")


@pytest.mark.parametrize("name", sorted(doctor.PACKAGES))
def test_a_missing_package_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, name: str, machine: Path
) -> None:
    monkeypatch.setitem(sys.modules, doctor.PACKAGES[name], None)
    report = examine()
    # MTCNN's weights come with facenet-pytorch; exit code 4 means that weights are missing.
    assert report.exit_code == (4 if name == "facenet-pytorch" else 1)
    assert name in {package.name for package in report.packages if package.error}
    assert any(problem.text.startswith(f"{name} cannot be imported") for problem in report.problems)


def test_opencv_without_a_desktop_s_libraries_gets_advice(
    monkeypatch: pytest.MonkeyPatch, machine: Path
) -> None:
    (machine / "broken.py").write_text("raise ImportError('libGL.so.1: cannot open it')")
    monkeypatch.syspath_prepend(machine)
    monkeypatch.setitem(doctor.PACKAGES, "opencv-python", "broken")
    said = [problem.text for problem in examine().problems]
    assert f"opencv-python cannot be imported: libGL.so.1: cannot open it; {HEADLESS}" in said


@pytest.mark.parametrize("absent", ["torch", "numpy", "huggingface_hub"])
def test_a_fresh_process_without_a_package_shows_no_traceback(machine: Path, absent: str) -> None:
    code = (
        f"import sys; sys.modules[{absent!r}] = None\n"
        "from cfrestore.cli import main; sys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    broken = [package for package in found["packages"] if package["error"]]
    assert absent in {package["name"] for package in broken}
    assert len(found["problems"]) >= len(broken)


def test_a_package_may_break_in_any_way(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    """As torchvision does with another version of torch than its own."""
    (machine / "broken.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(machine)
    assert doctor._package("broken", "broken").error == "operator nms does not exist"


def test_a_network_that_ignores_w_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "load_codeformer", lambda path, device: StubNetwork())
    (device,) = doctor._devices()
    assert device.change == 0
    assert device.error == "w changes no pixels"
    blank = StubNetwork(lambda x: x * float("nan"))
    monkeypatch.setattr(weights, "load_codeformer", lambda path, device: blank)
    (device,) = doctor._devices()
    assert device.error == "the network's output is not finite"


def test_a_device_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(weights, "load_codeformer", lambda path, device: StubNetwork(fail))
    report = examine()
    assert report.exit_code == 1
    (problem,) = report.problems
    assert problem.text == "cpu fails: no kernel image is available for execution on the device"


def test_the_default_choice_is_what_the_command_would_load(
    machine: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFRESTORE_HOME", str(shared / "weights"))
    report = examine()
    assert report.auto.detector == "retinaface-mobilenet0.25"
    states = {row.name: row.state for row in report.weights}
    assert states["mobilenet"] == "verified"
    assert states["retinaface"] == "absent"


def test_folders_that_cannot_be_looked_into_or_made_are_told(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, file = machine / "closed/in", machine / "file"
    file.touch()
    exists = Path.exists

    def refuse(self: Path) -> bool:
        if self == closed:
            raise PermissionError(13, "Permission denied")
        return exists(self)

    monkeypatch.setattr(Path, "exists", refuse)
    assert not doctor._folder("", closed).exists
    found = doctor._folder("", file / "in")
    assert (found.exists, found.writable) == (False, False)


def test_folders_are_those_that_are_searched(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, beside, cache, _hub = doctor._folders()
    assert (home.path, home.exists, home.writable) == (str(machine / "home"), True, True)
    assert home.purpose.endswith("fetched to")
    assert (beside.path, beside.exists) == (str(machine / "weights"), False)
    assert cache.path == str(machine / "cache/cfrestore")
    assert (home.free or 0) > 0
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert not next(doctor._folders()).writable
    assert any(note.startswith(f"{home.path} cannot be written to") for note in examine().notes)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://user:secret@proxy:3128/", "http://***@proxy:3128/"),
        ("https://us@er:se/cr@et@proxy", "https://***@proxy"),
        ("user:secret@proxy:3128", "***@proxy:3128"),
        ("localhost,.example.org", "localhost,.example.org"),
    ],
)
def test_proxies_are_shown_without_credentials(
    monkeypatch: pytest.MonkeyPatch, address: str, shown: str
) -> None:
    assert hide_credentials(address) == shown
    monkeypatch.setenv("https_proxy", address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert doctor._environment()["https_proxy"] == shown
    assert "secret" not in json.dumps(doctor._environment())


def test_every_field_is_documented(repository: Path) -> None:
    text = (repository / "docs/doctor.md").read_text(encoding="utf-8")
    report = asdict(examine())
    parts = ("packages", "devices", "folders", "weights")
    names = {*KEYS, *report["auto"], *(name for part in parts for name in report[part][0])}
    assert names <= set(re.findall(r"`(\w+)`", text))
    assert f"`schema` is {doctor.SCHEMA};" in text
