"""Pools: several threads and one engine, on the CPU and on the pretended GPU."""

from __future__ import annotations

import gc
import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.engine import device
from tests.engine.pretended import batch
from trtkit.engine.engine import Engine
from trtkit.engine.pool import Pool, _Free
from trtkit.engine.session import CpuSession
from trtkit.errors import EngineError, ModelError
from trtkit.reference import Reference


@pytest.fixture
def pool_of(gpu: device.Gpu, tmp_path: Path) -> Callable[..., Pool]:
    """Opens pools of the pretended GPU's engine."""
    engine: Any = SimpleNamespace(manifest={"model": "net"}, plan=b"plan", choose_device=lambda device: "cuda")
    return lambda workers=2, **options: Pool(engine, workers, **{"cache_dir": tmp_path, **options})


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Runs on the CPU wait for this event."""
    event, run = threading.Event(), Reference.run

    def held(self: Reference, inputs: Any, outputs: Any = None) -> Any:
        event.wait()
        return run(self, inputs, outputs)

    monkeypatch.setattr(Reference, "run", held)
    return event


def hammer(pool: Pool, threads: int, calls: int, seed: int) -> None:
    """Every thread sends batches of its own sizes and values, and checks what it gets."""

    def work(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        for i in range(calls):
            size = rng.choice((1, 2, 3, 7, 32))
            x = batch(size, number * 1000 + i)
            np.testing.assert_array_equal(pool.run(x)["y"], expected(pool, x))

    with ThreadPoolExecutor(threads) as executor:
        for future in [executor.submit(work, number) for number in range(threads)]:
            future.result()


def expected(pool: Pool, x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) if pool.device == "cpu" else 2 * x


# On both


@pytest.mark.parametrize("share_memory", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_many_threads_on_the_gpu(gpu: device.Gpu, pool_of: Callable[..., Pool], share_memory: bool, seed: int) -> None:
    gpu.random.seed(seed)
    with pool_of(3, share_memory=share_memory, kept_shapes=3) as pool:
        assert pool.device == "NVIDIA Pretence" and [i.name for i in (*pool.inputs, *pool.outputs)] == ["x", "y"]
        hammer(pool, threads=6, calls=40, seed=seed)
    assert gpu.memory == {} and gpu.graphs == {}


def test_many_threads_on_the_cpu(relu_engine: Engine) -> None:
    with relu_engine.open_pool(3, "cpu") as pool:
        assert pool.device == "cpu"
        hammer(pool, threads=6, calls=50, seed=0)
        with pytest.raises(ModelError, match="has no input 'z'"):
            pool.run({"z": batch(1)})


def test_submitted_work(relu_engine: Engine) -> None:
    with relu_engine.open_pool(2, "cpu") as pool:
        futures = [pool.submit(batch(2, i - 5)) for i in range(20)]
        bad = pool.submit(batch(1).astype(np.float64))
        for i, future in enumerate(futures):
            np.testing.assert_array_equal(future.result()["y"], np.maximum(batch(2, i - 5), 0))
        with pytest.raises(ModelError, match="astype"):
            bad.result()


def test_batches_in_order_from_several_workers(pool_of: Callable[..., Pool]) -> None:
    with pool_of(3) as pool:
        for overlap in (True, False):
            outputs = pool.run_many((batch(1 + i % 3, i) for i in range(25)), overlap)
            assert [got["y"][0, 0] for got in outputs] == [2 * i for i in range(25)]


# On the GPU


def test_contexts_share_what_they_can(gpu: device.Gpu, pool_of: Callable[..., Pool]) -> None:
    with pool_of(3):
        assert gpu.count("context with 1 config") == 3 and len(gpu.memory) == 3  # one scratch memory each
    with pool_of(3, share_memory=True):
        assert len(gpu.memory) == 1
    gc.collect()
    assert gpu.count("end of Runtime") == gpu.count("end of Engine") == gpu.count("end of Cache") == 2
    assert gpu.count("end of Context") == 6


def test_sharing_with_a_tensorrt_without_runtime_caches(
    gpu: device.Gpu, pool_of: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(device.Engine, "create_runtime_config")
    with pool_of(2, share_memory=True) as pool:
        assert len(gpu.memory) == 1
        hammer(pool, threads=4, calls=20, seed=1)


def test_two_contexts_in_one_scratch_memory_would_show(
    gpu: device.Gpu, pool_of: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pretended GPU is no good unless what `turn` prevents goes wrong without it."""
    from contextlib import nullcontext

    with pool_of(2, share_memory=True) as pool:
        monkeypatch.setattr(type(pool._one.loaded), "turn", lambda self, stream: nullcontext())  # type: ignore[attr-defined]
        sessions = [pool._free.get(), pool._free.get()]
        wrong = 0
        for seed in range(20):
            gpu.random.seed(seed)
            both = zip(*(s.run_many([batch(2, 1 + i)] * 4) for i, s in enumerate(sessions)), strict=True)  # type: ignore[union-attr]
            wrong += any((a["y"][0, 0], b["y"][0, 0]) != (2, 4) for a, b in both)
        assert wrong
        for session in sessions:
            pool._free.put(session)


def test_half_made_pools_leave_nothing(gpu: device.Gpu, pool_of: Callable[..., Pool]) -> None:
    gpu.contexts_left = 2
    for share_memory in (False, True):
        with pytest.raises(EngineError, match="cannot make an execution context"):
            pool_of(3, share_memory=share_memory)
        gc.collect()
        assert gpu.memory == {} and gpu.count("end of Runtime") == gpu.count("end of Engine") == 1 + share_memory
    with pytest.raises(TypeError, match="no_such_option"):
        pool_of(3, no_such_option=1)
    assert gpu.memory == {}


def test_a_failing_run_gives_its_worker_back(gpu: device.Gpu, pool_of: Callable[..., Pool]) -> None:
    with pool_of(1) as pool:
        gpu.fails = True
        for _ in range(3):
            with pytest.raises(EngineError, match="TensorRT failed"):
                pool.run(batch(2))
        gpu.fails = False
        np.testing.assert_array_equal(pool.run(batch(2), timeout_s=1)["y"], batch(2, 2))


def test_warmed_up_pools_record_nothing_more(gpu: device.Gpu, pool_of: Callable[..., Pool]) -> None:
    with pool_of(3) as pool:
        pool.warm_up(batch(size) for size in (1, 2, 3, 7, 32))
        assert gpu.count("capture") == 15
        hammer(pool, threads=5, calls=20, seed=3)
        with pytest.raises(ModelError, match="outside the engine's profile"):
            pool.warm_up([batch(65)])
        assert gpu.count("capture") == 15 and len(pool._free) == 3
    with pytest.raises(EngineError, match="closed"):
        pool.warm_up([batch(1)])


# Waiting and closing


def test_free_workers_are_found_whoever_waits() -> None:
    """Many threads, few workers, some who give up: each worker has one user at a time, and none is lost."""
    free, users = _Free(), [0, 0]
    workers: list[Any] = [0, 1]
    for worker in workers:
        free.put(worker)

    def work(seed: int) -> int:
        rng, timeouts = random.Random(seed), 0
        for _ in range(300):
            try:
                worker: Any = free.get(rng.choice((None, 0.0, 1e-4)))
            except TimeoutError:
                timeouts += 1
                continue
            users[worker] += 1
            assert users[worker] == 1
            users[worker] -= 1
            free.put(worker)
        return timeouts

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))
    assert sorted(free._workers) == [0, 1] and free._waiting == 0  # type: ignore[type-var]


def test_no_worker_is_free(relu_engine: Engine, slow: threading.Event) -> None:
    with relu_engine.open_pool(1, "cpu") as pool:
        first = pool.submit(batch(1, 3))
        while pool._free:  # until it has taken the worker
            pass
        with pytest.raises(EngineError, match=r"None of the 1 workers of 'g' became free in 0\.01 s"):
            pool.run(batch(1), timeout_s=0.01)
        slow.set()
        assert first.result()["y"][0, 0] == 3


@pytest.mark.parametrize("cancel", [False, True])
def test_closing_waits_or_cancels(relu_engine: Engine, slow: threading.Event, cancel: bool) -> None:
    pool = relu_engine.open_pool(1, "cpu")
    futures = [pool.submit(batch(1, i)) for i in range(5)]
    while not futures[0].running():
        pass
    closer = threading.Thread(target=pool.close, args=(cancel,))
    closer.start()
    while cancel and not futures[-1].cancelled():
        pass
    slow.set()
    closer.join()
    assert futures[0].result()["y"][0, 0] == 0
    for i, future in enumerate(futures[1:], 1):
        if cancel:
            with pytest.raises(CancelledError):
                future.result()
        else:
            assert future.result()["y"][0, 0] == i
    for use in (lambda: pool.run(batch(1)), lambda: pool.submit(batch(1)), pool.__enter__):
        with pytest.raises(EngineError, match="This pool of 'g' is closed"):
            use()


def test_who_waits_for_a_worker_hears_of_the_end(relu_engine: Engine, slow: threading.Event) -> None:
    pool = relu_engine.open_pool(1, "cpu")
    answers: list[Any] = []

    def call() -> None:
        try:
            answers.append(pool.run(batch(1, 5))["y"][0, 0])
        except EngineError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    while pool._free:
        pass
    closer = threading.Thread(target=pool.close)
    closer.start()
    slow.set()
    for thread in (*threads, closer):
        thread.join()
    assert len(answers) == 4 and all(a == 5 or "is closed" in a for a in answers) and 5 in answers


def test_no_workers(relu_engine: Engine) -> None:
    with pytest.raises(EngineError, match="at least one worker, got workers=0"):
        relu_engine.open_pool(0)


def test_cores_are_shared_out(relu_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    import trtkit.engine.pool as module

    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    asked: list[int] = []
    monkeypatch.setattr(Reference, "__init__", lambda self, model, threads=0, **_: asked.append(threads))
    for workers in (1, 4, 16):
        relu_engine.open_pool(workers, "cpu").close()
    assert asked == [8, 2, 1]


def test_the_interpreter_ends_with_a_pool_open() -> None:
    """Work is under way, nobody closed anything: a clean exit all the same."""
    program = """
import numpy as np, onnx, trtkit
from trtkit.engine.pool import Pool, _Free
from types import SimpleNamespace
model = trtkit.load(onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {y = Relu(x)}'))
engine = SimpleNamespace(manifest={"model": "g", "profiles": [{}]}, choose_device=lambda d: "cpu",
                         _needs_model=lambda purpose: model)
pool = Pool(engine, 2)
futures = [pool.submit(np.ones((1, 4), np.float32)) for _ in range(50)]
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_one_cpu_session_serves_threads(relu_engine: Engine) -> None:
    with relu_engine.open("cpu") as session, ThreadPoolExecutor(4) as executor:
        assert isinstance(session, CpuSession)
        outputs = executor.map(session.run, (batch(2, i) for i in range(40)))
        assert [got["y"][0, 0] for got in outputs] == list(itertools.islice(itertools.count(), 40))
