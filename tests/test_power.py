"""Power and clocks, on a pretended NVML."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from trtkit.bench.power import Watch
from trtkit.errors import MissingError


class NVMLError(Exception):
    pass


def nvml(**changes: Any) -> SimpleNamespace:
    joules = iter(range(0, 10**6, 500))  # millijoules, 0.5 J more each time it is asked
    readings = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: "card",
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda card: 0x4 | 0x1,  # the power limit; and idle, which is none
        "nvmlDeviceGetPowerUsage": lambda card: 300_500,
        "nvmlDeviceGetClockInfo": lambda card, which: {"sm": 1980, "memory": 2619}[which],
        "nvmlDeviceGetTemperature": lambda card, which: 40,
        "nvmlDeviceGetTotalEnergyConsumption": lambda card: next(joules),
    }
    names = {"NVML_CLOCK_SM": "sm", "NVML_CLOCK_MEM": "memory", "NVML_TEMPERATURE_GPU": 0, "NVMLError": NVMLError}
    return SimpleNamespace(**{**readings, **names, **changes})


def test_what_was_read_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    with Watch(every_s=0.001) as watch:
        time.sleep(0.02)
    facts = watch.facts(calls=10)
    assert (facts["watts"], facts["sm_mhz"], facts["memory_mhz"], facts["celsius"]) == (300.5, 1980.0, 2619.0, 40.0)
    assert facts["throttled"] == ["power limit"] and facts["readings"] >= 2 and facts["seconds"] >= 0.02
    assert (facts["joules"], facts["mj_per_call"]) == (0.5, 50.0)


def test_a_gpu_without_an_energy_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(card: str) -> float:
        raise NVMLError("not supported")

    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetTotalEnergyConsumption=none))
    with Watch() as watch:
        pass
    assert watch.joules is None and "joules" not in watch.facts(10)


def test_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise NVMLError("driver not loaded")

    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=broken))
    with pytest.raises(MissingError, match=r"needs NVML and nvidia-ml-py.*driver not loaded"):
        Watch()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingError, match="needs NVML"):
        Watch()
