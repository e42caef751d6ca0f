"""doctor says what is there, what runs, and how to get what is missing, on machines of every kind."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from trtkit import doctor
from trtkit.bench import machine
from trtkit.engine import device, trt
from trtkit.engine.device import Gpu
from trtkit.errors import extra

LAPTOP = Gpu("NVIDIA GeForce RTX 4090", (8, 9), 24 * 2**30, "580.65.06", "13.0")
HOPPER = Gpu("NVIDIA H200", (9, 0), 141 * 2**30, "580.65.06", "13.0")
RTX_17 = trt.Library(ModuleType("tensorrt_rtx"), "TensorRT-RTX", "1.7.1.116")
RTX_16 = trt.Library(ModuleType("tensorrt_rtx"), "TensorRT-RTX", "1.6.1.120")
FULL = trt.Library(ModuleType("tensorrt"), "TensorRT", "11.4.0")


def look(
    monkeypatch: pytest.MonkeyPatch,
    library: trt.Library | None,
    card: Gpu | None,
    missing: tuple[str, ...] = (),
) -> tuple[doctor.Report, dict[str, doctor.Ability]]:
    """The report on a machine with this TensorRT and GPU, where all packages but `missing` are installed."""
    monkeypatch.setattr(doctor.trt, "find", lambda: library)
    monkeypatch.setattr(doctor, "gpu", lambda: card)
    monkeypatch.setattr(machine, "version", lambda name: None if name in missing else "1.0")
    found = doctor.report()
    return found, {ability.what: ability for ability in found.abilities}


def text_of(found: doctor.Report) -> str:
    console = Console(width=160, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(doctor.render(found))
    return captured.get()


def test_this_machine() -> None:
    found = doctor.report()
    assert found.packages["numpy"] and found.memory_bytes > 2**30
    assert doctor.line() == found.line()
    assert "\n" not in found.line()


def test_laptop_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found, can = look(monkeypatch, RTX_17, None, missing=("pycuda",))
    assert can["build TensorRT engines"].live
    assert not can["run engines on a GPU"].live and not found.on_gpu
    assert can["GPU figures"].reason.startswith("recalled")
    assert found.line().endswith("TensorRT-RTX 1.7.1.116, no GPU: models run on the CPU, GPU figures are recalled")
    assert "pip install -e '.[gpu]'" in text_of(found)  # with its square brackets


def test_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found, can = look(monkeypatch, RTX_17, LAPTOP)
    assert all(ability.live for ability in found.abilities)
    assert can["GPU figures"].reason == "measured here"
    assert "RTX 4090" in found.line() and found.line().endswith("engines run on it")
    assert "580.65.06, CUDA 13.0" in text_of(found)


def test_hopper_is_there_but_rtx_1_7_does_not_run_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found, can = look(monkeypatch, RTX_17, HOPPER)
    refusal = can["run engines on a GPU"]
    assert not refusal.live and "GPU figures" in can and not can["GPU figures"].live
    assert "NVIDIA H200" in refusal.reason and "TensorRT-RTX 1.7.1.116 does not run on it" in refusal.reason
    assert "tensorrt-rtx-cu13<1.7" in refusal.way_out
    assert "recalled" in found.line()


@pytest.mark.parametrize("library", [RTX_16, FULL])
def test_hopper_with_another_tensorrt(monkeypatch: pytest.MonkeyPatch, library: trt.Library) -> None:
    found, can = look(monkeypatch, library, HOPPER)
    assert found.on_gpu
    warned = "without NVIDIA's support" in can["run engines on a GPU"].reason
    assert warned == library.is_rtx


def test_gpu_without_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    _, can = look(monkeypatch, FULL, LAPTOP, missing=("pycuda",))
    assert "PyCUDA" in can["run engines on a GPU"].reason
    assert ".[gpu]" in can["run engines on a GPU"].way_out


def test_gpu_without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    _, can = look(monkeypatch, None, LAPTOP)
    assert not can["build TensorRT engines"].live and "tensorrt-rtx-cu13" in can["build TensorRT engines"].way_out
    assert "TensorRT is not" in can["run engines on a GPU"].reason


def test_full_tensorrt_does_not_build_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _, can = look(monkeypatch, FULL, None)
    assert not can["build TensorRT engines"].live
    assert can["build TensorRT engines"].reason == "TensorRT 11.4.0 builds only with a GPU"


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    found, can = look(monkeypatch, RTX_17, None, missing=("torch", "jupyterlab"))
    assert can["load PyTorch modules"].way_out == extra("torch")
    assert not can["open the lessons"].live
    assert "missing: pip install -e '.[torch]'" in text_of(found)


# --- the GPU ---------------------------------------------------------------------------------------------------------


class FakeDriver:
    """libcuda as a driver answers it; `broken` names the call that returns an error."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def __getattr__(self, name: str) -> object:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: 100 if name == self.broken else self.answer(name, arguments)

    def answer(self, name: str, arguments: tuple) -> int:
        if name == "cuDeviceGetName":
            arguments[0].value = b"NVIDIA H200"
        elif name == "cuDeviceGetAttribute":
            arguments[0]._obj.value = {75: 9, 76: 0}[arguments[1]]
        elif name == "cuDeviceTotalMem_v2":
            arguments[0]._obj.value = 141 * 2**30
        elif name == "cuDriverGetVersion":
            arguments[0]._obj.value = 13020
        return 0


def test_the_driver_s_answers_become_a_gpu() -> None:
    found = device._ask(FakeDriver())  # type: ignore[arg-type]  # stands for the ctypes library
    assert found is not None
    assert found[:3] == ("NVIDIA H200", (9, 0), 141 * 2**30) and found.cuda == "13.2"
    assert str(found) == "NVIDIA H200 (compute capability 9.0, 141 GiB)"


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDriverGetVersion"])
def test_a_driver_without_a_gpu_is_no_gpu(call: str) -> None:
    assert device._ask(FakeDriver(broken=call)) is None  # type: ignore[arg-type]  # stands for the ctypes library


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert device.gpu.__wrapped__() is None


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
        ("nothing of the kind", ""),
    ],
)
def test_driver_version(tmp_path: Path, line: str, version: str) -> None:
    (tmp_path / "version").write_text(line + "\n")
    assert device._driver_version(str(tmp_path / "version")) == version
    assert device._driver_version(str(tmp_path / "absent")) == ""
