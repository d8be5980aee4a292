"""The GPU benchmark, on a machine without a GPU."""

import json
from pathlib import Path

import gpu
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cfrestore.models.codeformer import CodeFormer, CodeFormerConfig


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["gpu.py", *words])
    monkeypatch.setattr(gpu, "autotune", lambda: None)  # it affects the whole process
    return gpu.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_card_there_is_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 2
    said = capsys.readouterr()
    assert said.err == "There is no CUDA device here, so there is nothing to measure.\n"
    assert said.out == ""


def test_the_whole_script_runs_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "all.json"
    assert run(monkeypatch, "--device", "cpu", "--small", "--json", str(path)) == 0
    said = capsys.readouterr().out
    record = json.loads(path.read_text())
    assert set(record) == {
        "machine", "ceilings", "rates", "parts", "codes", "differences", "surroundings"
    }  # fmt: skip
    assert all(row["painter_faces_per_second"] > 0 for row in record["rates"])
    assert all(row["failed"] == 0 for row in record["rates"])
    assert [row["part"] for row in record["parts"]] == [
        "encoder", "transformer", "generator", "fusion"
    ]  # fmt: skip
    for row in record["rates"]:
        assert f"{row['painter_faces_per_second']:.1f}" in said
    assert "left out" not in said


def test_what_there_is_no_time_for_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--device", "cpu", "--small", "--minutes", "0") == 0
    said = capsys.readouterr().out
    assert "left out for want of time: tiny | tf32 | tf32 | eager | 2" in said
    assert "left out for want of time: cost of alignment and pasting" in said


def test_operations_are_those_that_torch_counts() -> None:
    config = CodeFormerConfig.tiny()
    work = gpu.count(config, batch=2).values()
    with torch.device("meta"), torch.no_grad():
        network, x = CodeFormer(config).eval().requires_grad_(False), torch.empty(2, 3, 128, 128)
        with FlopCounterMode(display=False) as counter:
            network(x, 0.5)
    counted = sum(own.convolutions + own.products for own in work)
    assert counted == counter.get_total_flops()


def test_traffic_is_operands_and_results() -> None:
    layer = torch.nn.Conv2d(3, 5, 3, padding=1, device="meta")
    with torch.no_grad(), gpu.Counting() as counting:
        layer(torch.empty(2, 3, 8, 8, device="meta")).relu()
    assert counting.work.numbers == 2 * 3 * 64 + 5 * 3 * 9 + 5 + 2 * 5 * 64
    assert counting.work.convolutions == 2 * (2 * 64) * 5 * 27


def test_floors_take_the_slower_of_operations_and_bytes() -> None:
    peaks = gpu.Peaks(fp32=1, tf32=2, half=4, bandwidth=0.5)
    work = gpu.Work(convolutions=4e12, products=1e12, numbers=1e12)
    assert work.seconds(gpu.FP32, peaks) == (5, 8)
    assert work.seconds(gpu.TF32, peaks) == (2.5, 8)
    assert work.seconds(gpu.BF16, peaks) == (1.25, 4)
    assert gpu.peaks_of("NVIDIA H100 80GB HBM3", None) == gpu.CARDS["NVIDIA H100"]
    assert gpu.peaks_of("NVIDIA H100 PCIe", None) == gpu.CARDS["NVIDIA H100 PCIe"]
    assert gpu.peaks_of("Another", None) is None
    assert gpu.peaks_of("NVIDIA H200", [1, 2, 3, 4]) == gpu.Peaks(1, 2, 3, 4)
