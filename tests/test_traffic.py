"""Poisson load: arrivals as they should be, and latencies that hide no queue."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from trtkit.bench.traffic import arrivals, poisson_load
from trtkit.errors import EngineError


def answered(value: Any = None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(1000, 20_000, seed=1)
    gaps = np.diff(times)
    assert (gaps >= 0).all() and times[-1] == pytest.approx(20, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # an exponential's are equal
    np.testing.assert_array_equal(times, arrivals(1000, 20_000, seed=1))


def test_every_sample_is_sent_in_turn() -> None:
    got: list[int] = []
    load = poisson_load(lambda sample: answered(got.append(sample)), [1, 2, 3], 20_000, 7)  # type: ignore[func-returns-value]
    assert got == [1, 2, 3, 1, 2, 3, 1] and load.latencies_ms.shape == (7,) and (load.latencies_ms > 0).all()
    assert load.throughput_per_s == pytest.approx(7 / load.seconds)
    assert load.percentile_ms(50) <= load.percentile_ms(99) and "20000/s offered" in str(load)
    assert load.measurement("cpu").count == 7


def test_a_queue_shows_in_the_latencies() -> None:
    """One worker of 2 ms a request and 20 requests at once: the last one waits for all others."""
    with ThreadPoolExecutor(1) as executor:
        load = poisson_load(lambda sample: executor.submit(time.sleep, 0.002), [0], 1e6, 20)
    assert load.latencies_ms.max() >= 20 * 2 and load.throughput_per_s <= 500


def test_a_slow_sender_cannot_hide_it() -> None:
    """As when `submit` blocks, since the line is full."""
    load = poisson_load(lambda sample: answered(time.sleep(0.002)), [0], 1e6, 20)  # type: ignore[func-returns-value]
    assert load.latencies_ms.max() >= 20 * 2


def test_who_is_turned_away_is_counted() -> None:
    def submit(sample: int) -> Future[Any]:
        if sample:
            raise EngineError("full")
        return answered()

    assert poisson_load(submit, [0, 1, 1], 1e5, 9).refused == 6
    with pytest.raises(EngineError, match="All 3 requests were turned away"):
        poisson_load(submit, [1], 1e5, 3)


def test_what_a_request_raises_is_raised() -> None:
    failed: Future[Any] = Future()
    failed.set_exception(ValueError("bad"))
    with pytest.raises(ValueError, match="bad"):
        poisson_load(lambda sample: failed, [0], 1e5, 2)
