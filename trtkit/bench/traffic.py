"""Load: requests that arrive when they like, as from many users who know nothing of each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtkit.bench.measure import Measurement
from trtkit.errors import EngineError


@dataclass(frozen=True)
class Load:
    """What came of a load: each request's latency, from when it should have arrived until its answer was there."""

    rate_per_s: float
    seconds: float  # from the first arrival to the last answer
    latencies_ms: np.ndarray = field(repr=False)
    refused: int = 0  # requests that were turned away

    @property
    def throughput_per_s(self) -> float:
        return self.latencies_ms.size / self.seconds

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latencies_ms, percent))

    def measurement(self, device: str) -> Measurement:
        return Measurement.from_samples(self.latencies_ms, device)

    def __str__(self) -> str:
        p50, p99 = self.percentile_ms(50), self.percentile_ms(99)
        return f"{self.rate_per_s:g}/s offered: {self.throughput_per_s:.0f}/s, p50 {p50:.3g} ms, p99 {p99:.3g} ms"


def arrivals(rate_per_s: float, requests: int, seed: int = 0) -> np.ndarray:
    """Seconds at which the requests of a Poisson process arrive: independent, `rate_per_s` a second on average.

    >>> arrivals(100, 3).round(3).tolist()
    [0.007, 0.017, 0.017]
    """
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate_per_s, requests))


def poisson_load(
    submit: Callable[[Any], Future[Any]], samples: Sequence[Any], rate_per_s: float, requests: int, seed: int = 0
) -> Load:
    """Send samples in turn at the times of a Poisson process and wait for all answers.

    A request that is sent late counts from when it was due: who is too slow to send cannot hide a queue so.

    Args:
        submit: takes a sample, returns a Future; one that raises EngineError turns the request away.

    Raises:
        EngineError: every request was turned away; what a request raises otherwise is raised here.
    """
    due = arrivals(rate_per_s, requests, seed)
    done = np.full(requests, np.nan)
    futures = []
    begin = time.perf_counter()

    def finished(number: int) -> Callable[[Future[Any]], None]:
        return lambda future: done.__setitem__(number, time.perf_counter() - begin)

    for number, when in enumerate(due.tolist()):
        if (left := when - (time.perf_counter() - begin)) > 0:
            time.sleep(left)  # never spinning, which would keep Python's lock from those who serve
        try:
            future = submit(samples[number % len(samples)])
        except EngineError:
            continue
        future.add_done_callback(finished(number))
        futures.append(future)
    for future in futures:
        future.result()
    while np.isnan(done).sum() > requests - len(futures):  # a callback may run a moment after `result` returns
        time.sleep(1e-4)
    answered = ~np.isnan(done)
    if not answered.any():
        raise EngineError(f"All {requests} requests were turned away.")
    latencies = (done - due)[answered] * 1e3
    return Load(rate_per_s, float(done[answered].max() - due[0]), latencies, requests - len(futures))
