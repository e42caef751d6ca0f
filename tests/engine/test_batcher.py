"""The dynamic batcher: right answers for everybody, full batches, no late ones, and clean ends."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.pretended import batch
from trtkit.engine.batcher import Batcher
from trtkit.engine.engine import Engine
from trtkit.engine.session import CpuSession, Session
from trtkit.errors import EngineError, ModelError
from trtkit.importers import load
from trtkit.model import TensorInfo

SLOW = 10.0  # seconds nobody waits for: a delay of that long shows that something else started the batch


class Doubler(Session):
    """Doubles x; runs wait for `go`, and fail where x holds a negative number."""

    name = "doubler"

    def __init__(self, shape: tuple[int | str, ...] = ("n", 2), most: int = 64) -> None:
        self.inputs = (TensorInfo("x", shape, np.dtype(np.float32)),)
        self.most, self.go, self.seen = most, threading.Event(), []
        self.go.set()

    seen: list[tuple[int, ...]]

    def run(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        self.go.wait()
        x = inputs["x"]
        self.seen.append(x.shape)
        if (x < 0).any():
            raise ValueError(f"no negative numbers, please: {x.min()}")
        return {"y": 2 * x}

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if shapes["x"][0] > self.most:
            raise ModelError("outside the engine's profile")


def sample(value: float, rows: int = 0, width: int = 2) -> np.ndarray:
    return np.full((rows, width) if rows else (width,), value, np.float32)


def values(futures: list[Future[Any]]) -> list[float]:
    return [float(future.result(timeout=SLOW)["y"].flat[0]) for future in futures]


# Batches


def test_what_waits_is_computed_together() -> None:
    session = Doubler()
    session.go.clear()
    with Batcher(session, 8, max_delay_ms=0) as batcher:
        first = batcher.submit(sample(100))
        while batcher.waiting:  # the first is on its way alone
            pass
        futures = [batcher.submit(sample(i)) for i in range(10)]
        session.go.set()
        assert values([first, *futures]) == [200, *(2 * i for i in range(10))]
    assert session.seen == [(1, 2), (8, 2), (2, 2)] and dict(batcher.batches) == {1: 1, 8: 1, 2: 1}


def test_a_full_batch_waits_for_nobody() -> None:
    session = Doubler()
    with Batcher(session, 4, max_delay_ms=SLOW * 1e3) as batcher:
        assert values([batcher.submit(sample(i)) for i in range(4)]) == [0, 2, 4, 6]
        futures = [batcher.submit(sample(i, rows=2)) for i in range(2)]
        assert values(futures) == [0, 2] and futures[0].result()["y"].shape == (2, 2)
    assert session.seen == [(4, 2), (4, 2)]


def test_the_oldest_request_starts_a_batch_in_time() -> None:
    session = Doubler()
    with Batcher(session, 64, max_delay_ms=1) as batcher:
        assert values([batcher.submit(sample(i)) for i in range(3)]) == [0, 2, 4]
        assert batcher.run(sample(5))["y"].tolist() == [10, 10]


def test_batches_are_filled_up_to_few_sizes() -> None:
    session = Doubler()
    with Batcher(session, 12, max_delay_ms=SLOW * 1e3) as batcher:
        assert batcher.sizes == (1, 2, 4, 8, 12)
        futures = [batcher.submit(sample(i, rows=3)) for i in range(3)]  # nine rows
        batcher.close()
        assert values(futures) == [0, 2, 4]
    assert session.seen == [(12, 2)]
    with Batcher(Doubler(), sizes=(5, 2)) as batcher:
        assert (batcher.sizes, batcher.max_batch) == ((2, 5), 5)


def test_requests_of_other_shapes_have_batches_of_their_own() -> None:
    session = Doubler(("n", "t"))
    with Batcher(session, 4, max_delay_ms=5) as batcher:
        futures = [batcher.submit(sample(i, width=1 + i % 2)) for i in range(8)]
        assert values(futures) == [2.0 * i for i in range(8)]
        assert [future.result()["y"].shape for future in futures] == [(1,), (2,)] * 4
    assert sorted(session.seen) == [(4, 1), (4, 2)]


def test_a_fixed_batch_is_always_filled() -> None:
    session = Doubler((4, 2))
    with Batcher(session, max_delay_ms=1) as batcher:
        assert batcher.sizes == (4,)
        assert values([batcher.submit(sample(3)), batcher.submit(sample(4, rows=2))]) == [6, 8]
    assert set(session.seen) == {(4, 2)}


def test_what_cannot_be_put_into_batches() -> None:
    for shape in ((), (0,)):
        with pytest.raises(ModelError, match=r"have no batch in common|does not take batches"):
            Batcher(Doubler(shape))
    two = Doubler()
    two.inputs = (*two.inputs, TensorInfo("z", (3, 2), np.dtype(np.float32)))
    with pytest.raises(ModelError, match=r"'doubler' have no batch in common, x float32 \(n, 2\), z float32 \(3, 2\)"):
        Batcher(two)
    with pytest.raises(ModelError, match="does not take batches of 128"):
        Batcher(Doubler(), 128)


# Bad requests


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (sample(1, width=3), r"got float32 \(1, 3\)"),
        (sample(1).astype(np.float64), r"astype\('float32'\)"),
        ({"z": sample(1)}, "has no input 'z'"),
        ({}, "needs input x"),
        (sample(1, rows=65), "65 rows does not fit into a batch of at most 64"),
        (np.zeros((0, 2), np.float32), "empty batch"),
    ],
)
def test_a_bad_request_is_refused_when_it_is_handed_in(inputs: Any, said: str) -> None:
    with Batcher(Doubler(), 64) as batcher:
        good = batcher.submit(sample(1))
        with pytest.raises(ModelError, match=said):
            batcher.submit(inputs)
        assert values([good]) == [2]


def test_what_fitted_once_opens_the_door_to_nothing_else() -> None:
    """The checks are left out for what has the names, shapes and dtypes of an earlier request, and for nothing else."""
    session = Doubler(("n", "t"), most=4)
    with Batcher(session, 4, max_delay_ms=0) as batcher:
        for _ in range(3):
            assert batcher.run({"x": sample(1, rows=2)})["y"].tolist() == [[2, 2]] * 2
            assert batcher.run(np.asfortranarray(sample(3, rows=2)))["y"].tolist() == [[6, 6]] * 2
            for wrong in (
                {"z": sample(1, rows=2)},
                {"x": sample(1, rows=2).astype(np.float16)},
                {"x": sample(1, rows=5)},
            ):
                with pytest.raises(ModelError):
                    batcher.submit(wrong)
        mine = {"x": sample(1, rows=2)}
        session.go.clear()
        futures = [batcher.submit(mine), batcher.submit(mine)]
        mine["x"] = sample(9, rows=1)  # the caller's dict is the caller's
        session.go.set()
        assert values(futures) == [2, 2]


def test_who_fails_fails_alone() -> None:
    session = Doubler()
    with Batcher(session, 4, max_delay_ms=SLOW * 1e3) as batcher:
        futures = [batcher.submit(sample(value)) for value in (1, -7, 3, 4)]
        for i in (0, 2, 3):
            assert futures[i].result(SLOW)["y"][0] == (2, None, 6, 8)[i]
        with pytest.raises(ValueError, match="please: -7"):
            futures[1].result(SLOW)
    assert session.seen == [(4, 2), (1, 2), (1, 2), (1, 2), (1, 2)]


def test_outputs_without_a_batch() -> None:
    session = Doubler()
    session.run = lambda inputs: {"y": np.float32(1)}  # type: ignore[method-assign]
    with Batcher(session, 4) as batcher, pytest.raises(EngineError, match=r"'y' of 'doubler' has the shape \(\)"):
        batcher.run(sample(1))


# Too many, and the end


def test_no_more_than_may_wait() -> None:
    session = Doubler()
    session.go.clear()
    with Batcher(session, 1, max_delay_ms=0, max_waiting=2) as batcher:
        futures = [batcher.submit(sample(0))]
        while batcher.waiting:
            pass
        futures += [batcher.submit(sample(i)) for i in (1, 2)]
        for timeout_s in (0, 0.001):
            with pytest.raises(EngineError, match="2 requests are waiting for 'doubler', as many as may"):
                batcher.submit(sample(9), timeout_s)
        blocked = threading.Thread(target=lambda: futures.append(batcher.submit(sample(3))))
        blocked.start()
        session.go.set()
        blocked.join()
        assert values(futures) == [0, 2, 4, 6]


@pytest.mark.parametrize("cancel", [False, True])
def test_closing_computes_or_cancels(cancel: bool) -> None:
    session = Doubler()
    session.go.clear()
    batcher = Batcher(session, 1, max_delay_ms=0)
    futures = [batcher.submit(sample(i)) for i in range(4)]
    while not futures[0].running():
        pass
    closer = threading.Thread(target=batcher.close, args=(cancel,))
    closer.start()
    while not batcher._line.ending:
        pass
    session.go.set()
    closer.join()
    assert futures[0].result()["y"][0] == 0
    for i, future in enumerate(futures[1:], 1):
        if cancel:
            with pytest.raises(CancelledError):
                future.result()
        else:
            assert future.result()["y"][0] == 2 * i
    batcher.close()
    with pytest.raises(EngineError, match="This batcher of 'doubler' is closed"):
        batcher.submit(sample(1))


def test_who_waits_for_room_hears_of_the_end() -> None:
    session = Doubler()
    session.go.clear()
    batcher = Batcher(session, 1, max_delay_ms=0, max_waiting=1)
    first = batcher.submit(sample(0))
    while batcher.waiting:
        pass
    batcher.submit(sample(1))
    said: list[str] = []

    def call() -> None:
        try:
            batcher.submit(sample(2))
        except EngineError as error:
            said.append(str(error))

    threads = [threading.Thread(target=call), threading.Thread(target=batcher.close)]
    threads[0].start()
    while not batcher._line.room._waiters:  # type: ignore[attr-defined]
        pass
    threads[1].start()
    while not batcher._line.ending:
        pass
    session.go.set()
    for thread in threads:
        thread.join()
    assert "is closed" in said[0] and first.done()


def test_cancelled_requests_are_not_computed() -> None:
    session = Doubler()
    session.go.clear()
    with Batcher(session, 1, max_delay_ms=0) as batcher:
        futures = [batcher.submit(sample(i)) for i in range(4)]
        while not futures[0].running():
            pass
        assert futures[1].cancel() and futures[2].cancel()
        session.go.set()
        assert values([futures[0], futures[3]]) == [0, 6]
    assert len(session.seen) == 2


def test_closed_by_a_request_of_its_own() -> None:
    batcher = Batcher(Doubler(), 1, max_delay_ms=0)
    closed = threading.Event()

    def done(_: Any) -> None:
        batcher.close()
        closed.set()

    batcher.submit(sample(1)).add_done_callback(done)
    assert closed.wait(SLOW)


def test_a_forgotten_batcher_ends() -> None:
    batcher = Batcher(Doubler(), 4)
    (thread,), gone = batcher._threads, weakref.ref(batcher)
    batcher.run(sample(1))
    del batcher
    gc.collect()
    assert gone() is None
    thread.join(SLOW)
    assert not thread.is_alive()


# With engines


def expected(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_many_callers_of_an_engine(relu_engine: Engine, workers: int) -> None:
    session: Session = relu_engine.open_pool(workers, "cpu") if workers else relu_engine.open("cpu")

    def call(seed: int) -> None:
        rng = random.Random(seed)
        for i in range(40):
            rows, value = rng.randrange(4), seed * 100 + i - 150
            x = batch(max(rows, 1), value)[slice(None) if rows else 0]
            y = batcher.run(x)["y"]
            assert y.shape == x.shape
            np.testing.assert_array_equal(y, expected(x))

    with session, Batcher(session, 8, max_delay_ms=1) as batcher, ThreadPoolExecutor(6) as executor:
        assert len(batcher._threads) == max(workers, 1)
        list(executor.map(call, range(6)))
    assert sum(batcher.batches.values()) < 240  # some came together


def test_many_callers_of_the_pretended_gpu(opened: Callable[..., Any]) -> None:
    with opened() as session, Batcher(session, 16, max_delay_ms=1) as batcher, ThreadPoolExecutor(4) as executor:
        answers = executor.map(lambda i: batcher.run(batch(1, i)[0])["y"], range(80))
        for i, y in enumerate(answers):
            np.testing.assert_array_equal(y, 2 * batch(1, i)[0])
    with opened(profile=1) as session:
        with pytest.raises(ModelError, match="'net' does not take batches of 32"):
            Batcher(session)
        with Batcher(session, 64) as batcher:  # its least batch is 33
            assert batcher.sizes == (64,) and batcher.run(batch(1, 3))["y"].tolist() == [[6, 6, 6, 6]]


def test_an_index_out_of_range_hurts_nobody_else() -> None:
    """ONNX Runtime fails for the whole batch where one token number is too large."""
    text = """<ir_version: 10, opset_import: ["": 20]> g (int64[n, 3] x) => (float[n, 3, 2] y)
        <float[5, 2] w = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}> { y = Gather(w, x) }"""
    model = load(onnx.parser.parse_model(text))
    with CpuSession(model, [{"x": [[1, 3], [1, 3], [8, 3]]}]) as session, Batcher(session, 2, SLOW * 1e3) as batcher:
        futures = [batcher.submit(np.full(3, token, np.int64)) for token in (4, 5)]
        assert futures[0].result(SLOW)["y"].tolist() == [[8, 9]] * 3
        with pytest.raises(ModelError, match="ONNX Runtime failed"):
            futures[1].result(SLOW)


# Any traffic


@settings(max_examples=25, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=40),
    max_batch=st.integers(5, 9),
    delay_ms=st.sampled_from([0.0, 0.2, 1.0]),
    workers=st.integers(1, 3),
    cancel=st.booleans(),
)
def test_any_traffic_is_answered(
    requests: list[tuple[int, int]], max_batch: int, delay_ms: float, workers: int, cancel: bool
) -> None:
    """Every request has its own answer or is cancelled, no batch is larger than may be, and nothing is left waiting."""
    session = Doubler(("n", "t"))
    session.workers = workers  # type: ignore[attr-defined]  # its run may be called by several threads
    batcher = Batcher(session, max_batch, delay_ms)
    futures = [batcher.submit(sample(i, rows, width)) for i, (rows, width) in enumerate(requests)]
    batcher.close(cancel)
    for i, ((rows, width), future) in enumerate(zip(requests, futures, strict=True)):
        assert future.done()
        if not future.cancelled():
            np.testing.assert_array_equal(future.result()["y"], 2 * sample(i, rows, width))
        else:
            assert cancel
    assert batcher.waiting == 0 and all(shape[0] in batcher.sizes for shape in session.seen)
    assert not any(thread.is_alive() for thread in batcher._threads)


def test_nobody_waits_longer_than_agreed_while_the_session_is_free() -> None:
    """A thread that went to sleep when the line was empty must not miss what another one left there."""
    session = Doubler(("n", "t"))
    session.workers = 3  # type: ignore[attr-defined]
    with Batcher(session, 2, max_delay_ms=3) as batcher:
        for turn in range(30):
            begin = time.monotonic()
            futures = [batcher.submit(sample(i, width=1 + i % 3)) for i in range(7)]
            assert values(futures) == [2.0 * i for i in range(7)]
            assert time.monotonic() - begin < SLOW, turn
