"""Watts, clocks and joules while something runs, as the GPU's own sensors tell them (NVML)."""

from __future__ import annotations

import threading
import time
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple

from trtkit.errors import MissingError, extra

# NVML's reasons for a clock below the highest, from its header; idle and what the user set are no throttling.
_THROTTLES = {0x4: "power limit", 0x8: "hardware slowdown", 0x20: "too hot", 0x40: "too hot (hardware)",
              0x80: "power brake"}  # fmt: skip


class Reading(NamedTuple):
    """What the sensors said at one moment; `throttled` names why the clock is held down, empty when it is not."""

    watts: float
    sm_mhz: int
    memory_mhz: int
    celsius: int
    throttled: tuple[str, ...]


class Watch:
    """Reads the sensors in a thread while the block runs; afterwards `facts` sums up.

    The energy is the difference of the GPU's total counter, in joules; None on GPUs that have none. The counter moves
    every tenth of a second or so: watch for a second or more.

    Raises:
        MissingError: there is no NVML, which comes with the driver, or no nvidia-ml-py.
    """

    def __init__(self, every_s: float = 0.02) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        except Exception as error:  # NVMLError, or no such module
            needs = f"Reading power and clocks needs NVML and nvidia-ml-py: {extra('gpu')}"
            raise MissingError(f"{needs} ({error}).") from error
        self._nvml: Any = pynvml
        self.every_s = every_s
        self.readings: list[Reading] = []
        self.seconds = 0.0
        self.joules: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def read(self) -> Reading:
        """The sensors now."""
        nvml, card = self._nvml, self._handle
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)
        return Reading(
            nvml.nvmlDeviceGetPowerUsage(card) / 1e3,
            nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM),
            nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM),
            nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU),
            tuple(name for bit, name in _THROTTLES.items() if reasons & bit),
        )

    def _sample(self) -> None:
        while not self._end.is_set():
            self.readings.append(self.read())
            self._end.wait(self.every_s)

    def _counter(self) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError:
            return None

    def __enter__(self) -> Watch:
        self.readings.append(self.read())  # here, and not only in the thread, so that an error is seen
        self._before, self._begin = self._counter(), time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._begin
        after = self._counter()
        self._end.set()
        self._thread.join()
        if self._before is not None and after is not None:
            self.joules = after - self._before

    def facts(self, calls: int | None = None) -> dict[str, Any]:
        """Medians over the readings and the energy, as a record keeps them; `calls` were made meanwhile."""
        middle = {
            name: round(float(median(getattr(reading, name) for reading in self.readings)), 1)
            for name in ("watts", "sm_mhz", "memory_mhz", "celsius")
        }
        reasons = sorted({reason for reading in self.readings for reason in reading.throttled})
        found = {**middle, "throttled": reasons, "readings": len(self.readings), "seconds": round(self.seconds, 3)}
        if self.joules is not None:
            found["joules"] = round(self.joules, 3)
            if calls:
                found |= {"calls": calls, "mj_per_call": round(1e3 * self.joules / calls, 3)}
        return found
