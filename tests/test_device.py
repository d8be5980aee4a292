import pytest
import torch

from cfrestore.device import (
    autocast,
    available_devices,
    choose_device,
    describe,
    inference,
    synchronize,
)
from cfrestore.errors import ConfigError

CPU = torch.device("cpu")


def pretend(monkeypatch: pytest.MonkeyPatch, cards: int, metal: bool, current: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: metal)


@pytest.mark.parametrize(
    ("cards", "metal", "name", "expected"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, False, "auto", "cuda:1"),
        (2, False, "cuda", "cuda:1"),
        (2, False, "cuda:0", "cuda:0"),
        (2, False, "cpu", "cpu"),
        (0, True, "mps", "mps"),
    ],
)
def test_the_named_device_is_chosen(monkeypatch, cards, metal, name, expected):
    pretend(monkeypatch, cards, metal, current=1)
    assert choose_device(name) == torch.device(expected)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", "mps"])
def test_an_absent_device_is_refused_and_what_there_is_is_listed(monkeypatch, name):
    pretend(monkeypatch, cards=0, metal=False)
    with pytest.raises(
        ConfigError, match=f"'{name}' is not available here; choose one of: auto, cpu"
    ):
        choose_device(name)


def test_a_card_beyond_the_last_is_refused(monkeypatch):
    pretend(monkeypatch, cards=2, metal=False)
    with pytest.raises(ConfigError, match="auto, cuda:0, cuda:1, cpu"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:", "cuda:-1", "cpu:0 "])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ConfigError, match="is unknown"):
        choose_device(name)


def test_the_cpu_is_always_there_and_can_be_described():
    assert available_devices()[-1] == "cpu"
    assert describe(CPU).startswith("cpu (")


def test_inference_records_no_gradients():
    weight = torch.ones(2, requires_grad=True)
    with inference():
        assert not (weight * 2).requires_grad
    assert (weight * 2).requires_grad


def test_the_cpu_computes_in_float32_even_under_autocast():
    with autocast(CPU, enabled=True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    synchronize(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_computes_in_bfloat16_only_where_asked():
    device = choose_device("cuda")
    assert "GiB" in describe(device)
    matrix = torch.ones(2, 2, device=device)
    for enabled, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with autocast(device, enabled):
            assert (matrix @ matrix).dtype == dtype
    synchronize(device)
