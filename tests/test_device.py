import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from stubs import save_network, small_network

from cfrestore import device
from cfrestore.device import (
    Precision,
    autocast,
    available_devices,
    check_compiling,
    choose_code_precision,
    choose_device,
    choose_parsing_precision,
    choose_precision,
    describe,
    download,
    inference,
    one_thread,
    reduced,
    reuse_memory,
    synchronize,
    upload,
)
from cfrestore.errors import ConfigError
from cfrestore.weights import load_codeformer

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


@pytest.mark.parametrize("answer", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_faces_are_parsed_in_bf16_where_the_processor_has_it(monkeypatch, answer):
    for question in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, question, lambda yes=question == answer: yes, raising=False)
    assert choose_parsing_precision("auto", CPU) is Precision.BF16
    assert choose_parsing_precision("fp16", CPU) is Precision.BF16
    assert choose_parsing_precision("fp32", CPU) is Precision.FP32
    assert choose_parsing_precision("auto", torch.device("cuda")) is Precision.FP32
    monkeypatch.delattr(torch.cpu, answer)  # a torch version that cannot tell
    assert choose_parsing_precision("auto", CPU) is Precision.FP32


def test_inference_records_no_gradients():
    weight = torch.ones(2, requires_grad=True)
    with inference():
        assert not (weight * 2).requires_grad
    assert (weight * 2).requires_grad


TF32 = """
import torch
from cfrestore.device import Precision, inference, reduced

def switches():
    if hasattr(torch.backends.cudnn, "conv"):  # torch 2.9 and later
        pair = torch.backends.cudnn.conv, torch.backends.cuda.matmul
        return [switch.fp32_precision for switch in pair]
    return [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32]

{host}
before = switches()
try:
    with inference():
        assert switches() in (["ieee", "ieee"], [False, False]), switches()
        assert not torch.backends.cuda.matmul.allow_tf32  # as torch's compiler reads it
        with reduced(torch.device("cuda"), Precision.TF32):
            assert switches() in (["tf32", "tf32"], [True, True]), switches()
            assert torch.backends.cuda.matmul.allow_tf32
        assert switches() in (["ieee", "ieee"], [False, False]), switches()
        1 / 0
except ZeroDivisionError:
    assert switches() == before, (switches(), before)
"""


@pytest.mark.parametrize(
    "host",
    [
        "",
        "torch.set_float32_matmul_precision('high')",
        # Only torch 2.9 and later read what the second of these sets.
        "torch.backends.cudnn.allow_tf32 = False; torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_float32_is_float32_in_inference_whatever_the_host_program_set(
    host: str, repository: Path
) -> None:
    # In a separate process, because torch may remember which of its switches were used.
    done = subprocess.run(
        [sys.executable, "-c", TF32.format(host=host)],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("alone", [True, False])
def test_small_networks_run_beside_others_and_large_ones_wait(alone: bool) -> None:
    came = threading.Event()

    def work() -> None:
        with inference(alone=alone):
            came.set()

    with inference():
        other = threading.Thread(target=work)
        other.start()
        assert came.wait(0.5) is not alone
    other.join(10)
    assert came.is_set()


def test_memory_that_is_reused_is_the_c_library_s(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Library:
        def mallopt(self, parameter: int, value: int) -> int:
            return asked.append((parameter, value)) or 1

    monkeypatch.setattr(device, "_TRIMMING", [])
    monkeypatch.setattr(device.sys, "platform", "linux")
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: Library())
    reuse_memory()
    assert asked == [(-3, 256 << 20), (-1, 1 << 30)]
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: object())
    reuse_memory()  # a C library without that function is left alone
    monkeypatch.setattr(device.sys, "platform", "win32")
    monkeypatch.setattr(device.ctypes, "CDLL", None)
    reuse_memory()


def test_kept_memory_is_given_back_where_the_largest_maps_begin(monkeypatch, tmp_path):
    trims = []
    monkeypatch.setattr(device, "_TRIMMING", [])
    path = save_network(tmp_path / "net.safetensors", small_network())
    network, x = load_codeformer(path), torch.zeros(1, 3, 32, 32)
    with inference():
        expected = network(x)  # a program that keeps no memory is left alone
    assert trims == []
    monkeypatch.setattr(device, "_TRIMMING", [trims.append])
    network(x)  # so is training
    assert trims == []
    with inference():
        assert torch.equal(network(x), expected)
    assert trims == [0]


def test_auto_is_float32_on_every_device():
    for kind in ("cpu", "cuda:0", "mps"):
        assert choose_precision("auto", torch.device(kind)) is Precision.FP32
        assert choose_precision("fp32", torch.device(kind)) is Precision.FP32


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_less_is_given_on_request_where_it_is_known_to_work(name):
    for kind in ("cpu", "cuda:0"):
        assert choose_precision(name, torch.device(kind)) is Precision(name)
    with pytest.raises(ConfigError, match=f"{name} is not offered on mps"):
        choose_precision(name, torch.device("mps"))


@pytest.mark.parametrize("choose", [choose_precision, choose_code_precision])
def test_tf32_is_for_cuda(choose):
    assert choose("tf32", torch.device("cuda:0")) is Precision.TF32
    for kind in ("cpu", "mps"):
        with pytest.raises(ConfigError, match=f"tf32 is not offered on {kind}; choose fp32"):
            choose("tf32", torch.device(kind))


@pytest.mark.parametrize("name", ["", "float32", "FP16", "int8"])
def test_an_unknown_precision_is_refused(name):
    with pytest.raises(ConfigError, match="choose one of: auto, fp32, tf32, bf16, fp16"):
        choose_precision(name, CPU)


def test_codes_may_be_chosen_in_half_precision_on_cuda() -> None:
    card = torch.device("cuda:0")
    assert choose_code_precision("auto", card) is Precision.FP32
    for precision in (Precision.FP32, Precision.TF32, Precision.FP16):
        assert choose_code_precision(precision.value, card) is precision
    for kind in ("cpu", "mps"):
        with pytest.raises(ConfigError, match=f"fp16 is not offered on {kind}; choose fp32"):
            choose_code_precision("fp16", torch.device(kind))


@pytest.mark.parametrize("name", ["bf16", "fp8"])
def test_other_precisions_are_not_for_codes(name):
    with pytest.raises(ConfigError, match="choose one of: auto, fp32, tf32, fp16$"):
        choose_code_precision(name, torch.device("cuda:0"))


# Compiling


def test_compiling_is_for_cuda():
    with pytest.raises(ConfigError, match="compile is for CUDA, not for cpu; .* slower"):
        check_compiling(CPU)


@pytest.mark.parametrize(
    ("triton", "compiler", "variable", "problem"),
    [
        (True, "gcc", None, None),
        (True, "clang", None, None),
        (True, None, "mycc", None),
        (True, None, None, "needs a C compiler"),
        (False, "gcc", None, "needs the package triton"),
    ],
)
def test_what_compiling_needs_is_said_before(monkeypatch, triton, compiler, variable, problem):
    monkeypatch.setattr(device, "find_spec", lambda name: object() if triton else None)
    found = lambda name: name if name == compiler else None  # noqa: E731
    monkeypatch.setattr(device.shutil, "which", found)
    monkeypatch.delenv("CC", raising=False)
    if variable:
        monkeypatch.setenv("CC", variable)
    if problem is None:
        check_compiling(torch.device("cuda:0"))
    else:
        with pytest.raises(ConfigError, match=problem):
            check_compiling(torch.device("cuda:0"))


def test_what_cannot_be_compiled_is_said_in_a_sentence():
    def refuse(graph, inputs):
        raise RuntimeError("this card is too old\nand much else")

    compiled = torch.compile(lambda x: x + 1, backend=refuse, fullgraph=True)
    with pytest.raises(ConfigError, match=r"cannot be compiled here: .*too old$"), inference():
        compiled(torch.ones(2))


# Copies


def test_arrays_go_up_as_they_are_and_bytes_come_back():
    values = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    values.flags.writeable = False
    tensor = upload([values, values[::-1], values.transpose(1, 0, 2)], CPU)
    assert (tensor.shape, tensor.dtype) == ((3, 4, 4, 3), torch.uint8)
    back = download(tensor)
    for found, expected in zip(
        back, (values, values[::-1], values.transpose(1, 0, 2)), strict=True
    ):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        (Precision.FP32, torch.float32),
        (Precision.BF16, torch.bfloat16),
        (Precision.FP16, torch.float16),
    ],
)
def test_products_take_the_precision_that_was_asked_for(precision, dtype):
    matrix = torch.ones(2, 2)
    with reduced(CPU, precision):
        assert (matrix @ matrix).dtype == dtype


def test_the_cpu_computes_in_bfloat16_only_where_asked():
    for enabled, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with autocast(CPU, enabled):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
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


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_threads_are_given_back_after_contexts_that_overlap() -> None:
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for pool in (first, second):
            pool.submit(torch.set_num_threads, 3).result()
        contexts = one_thread(), one_thread(), one_thread()
        first.submit(contexts[0].__enter__).result()
        second.submit(contexts[1].__enter__).result()
        first.submit(contexts[0].__exit__, None, None, None).result()
        second.submit(contexts[1].__exit__, None, None, None).result()
        first.submit(contexts[2].__enter__).result()
        first.submit(contexts[2].__exit__, None, None, None).result()
        assert [pool.submit(torch.get_num_threads).result() for pool in (first, second)] == [3, 3]
    torch.set_num_threads(before)
