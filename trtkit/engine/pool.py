"""Pool: several threads, one engine: as many calls at once as there are workers, each with a context of its own."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from trtkit.engine.closing import close_at_exit
from trtkit.engine.session import CpuSession, Session
from trtkit.errors import EngineError

if TYPE_CHECKING:
    from trtkit.engine.engine import Engine


class Pool(Session):
    """One engine, loaded once, run by several workers; every method may be called from any thread.

    On the GPU each worker is an execution context with a stream, buffers and CUDA graphs of its own, so that calls of
    several threads overlap, copies with computing and small kernels with each other. On the CPU all workers run one
    ONNX Runtime session, each with its share of the cores. Outputs belong to the caller: NumPy arrays, or for CUDA
    tensors new CUDA tensors.

    Args:
        workers: how many calls run at once.
        device: "cuda", "cpu", or None for the GPU where it can run the engine.
        share_memory: contexts take turns with one scratch memory instead of having one each: less memory, and only
            copies overlap. (GPU; on the CPU there is one memory arena anyway.)
        options: for the GPU, see `trtkit.engine.gpu.GpuSession`.

    Raises:
        EngineError: the engine cannot run there, or TensorRT cannot make the contexts.

    >>> import onnx, trtkit, numpy as np
    >>> model = trtkit.load(onnx.parser.parse_model(
    ...     '<ir_version: 10, opset_import: ["": 20]> g (float[n, 2] x) => (float[n, 2] y) {y = Relu(x)}'))
    >>> with trtkit.build(model).open_pool(workers=2, device="cpu") as pool:
    ...     futures = [pool.submit(np.full((1, 2), i, np.float32)) for i in range(3)]
    ...     [future.result()["y"].tolist() for future in futures]
    [[[0.0, 0.0]], [[1.0, 1.0]], [[2.0, 2.0]]]
    """

    _kind = "pool"

    def __init__(
        self,
        engine: Engine,
        workers: int = 4,
        *,
        device: str | None = None,
        share_memory: bool = False,
        **options: Any,
    ) -> None:
        if workers < 1:
            raise EngineError(f"A pool needs at least one worker, got workers={workers}.")
        self.name = engine.manifest["model"]
        self.workers = workers
        self._gathering = threading.Lock()  # only one may wait for all workers, or each would wait for the other
        with ExitStack() as held:
            opened: Iterable[Session]
            if engine.choose_device(device) == "cpu":
                opened = _cpu_sessions(engine, workers)
            else:
                opened = _gpu_sessions(engine, workers, share_memory, options, held)
            self._free = _Free()
            for session in opened:
                held.callback(session.close)
                self._free.put(session)
            self.device, self.inputs, self.outputs = session.device, session.inputs, session.outputs
            self._one = session
            self._threads = ThreadPoolExecutor(workers, thread_name_prefix=f"pool of {self.name}")
            self._held = held.pop_all()
        close_at_exit(self)

    def run(self, inputs: Mapping[str, Any] | Any, timeout_s: float | None = None) -> dict[str, Any]:
        """Compute the outputs with a free worker, see `Session.run`.

        Raises:
            EngineError: the pool is closed, or no worker became free in `timeout_s` seconds.
        """
        self._check_open()
        return self._run(inputs, timeout_s)

    def _run(self, inputs: Mapping[str, Any] | Any, timeout_s: float | None = None) -> dict[str, Any]:
        worker = self._take(timeout_s)
        try:
            return worker.run_apart(inputs)
        finally:
            self._free.put(worker)

    def submit(self, inputs: Mapping[str, Any] | Any) -> Future[dict[str, Any]]:
        """Begin computing; `result()` of what this returns waits for the outputs, or raises what went wrong.

        Leave the inputs unchanged until then. In asyncio: `await asyncio.wrap_future(pool.submit(x))`.

        Raises:
            EngineError: the pool is closed.
        """
        self._check_open()
        try:
            return self._threads.submit(self._run, inputs)
        except RuntimeError:  # another thread closed it meanwhile
            self._check_open()
            raise

    def run_many(self, batches: Iterable[Any], overlap: bool = True) -> Iterator[dict[str, Any]]:
        """The outputs of many batches, in order, several computed at once; see `Session.run_many`."""
        under_way: queue.SimpleQueue[Future[dict[str, Any]]] = queue.SimpleQueue()
        for batch in batches:
            if under_way.qsize() >= (2 * self.workers if overlap else 1):
                yield under_way.get().result()
            under_way.put(self.submit(batch))
        while not under_way.empty():
            yield under_way.get().result()

    def warm_up(self, samples: Iterable[Mapping[str, Any] | Any]) -> None:
        """Run inputs of the shapes to come on every worker, twice: then kernels are compiled and graphs recorded.

        Raises:
            ModelError: a sample does not fit.
            EngineError: the pool is closed.
        """
        kept = list(samples)
        with self._gathering:
            self._check_open()
            workers = [self._take(None) for _ in range(self.workers)]
            try:
                for worker in workers:
                    for sample in kept * 2:
                        worker.run_apart(sample)
            finally:
                for worker in workers:
                    self._free.put(worker)

    def _take(self, timeout_s: float | None) -> Session:
        """A worker that nobody else has until it is put back."""
        try:
            worker = self._free.get(timeout_s)
        except TimeoutError:
            raise EngineError(
                f"None of the {self.workers} workers of {self.name!r} became free in {timeout_s:g} s. Open the pool "
                "with more workers, or wait longer."
            ) from None
        if worker is None:  # the pool was closed while this call waited
            self._free.put(None)  # for the next one that waits
            raise self._is_closed()
        return worker

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._one.check_shapes(shapes)

    def close(self, cancel: bool = False) -> None:
        """Finish what was submitted (or cancel what has not begun), wait for running calls, free everything."""
        with self._gathering:
            if self._closed:
                return
            super().close()
            self._threads.shutdown(cancel_futures=cancel)
            for _ in range(self.workers):
                self._free.get()  # none is at work any more
            self._free.put(None)
            self._held.close()


class _Free:
    """Workers that nobody uses. The one that became free last is taken first: its caches are warm.

    As `queue.LifoQueue`, but where nobody waits, which is the rule, no lock is taken: that took 8 µs a call.
    """

    def __init__(self) -> None:
        self._workers: list[Session | None] = []
        self._waiting = 0
        self._freed = threading.Condition()

    def put(self, worker: Session | None) -> None:
        self._workers.append(worker)
        if self._waiting:  # who begins to wait after this line finds the worker
            with self._freed:
                self._freed.notify()

    def get(self, timeout_s: float | None = None) -> Session | None:
        """Raises TimeoutError when none becomes free in time."""
        with suppress(IndexError):
            return self._workers.pop()
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._freed:
            self._waiting += 1
            try:
                while True:
                    with suppress(IndexError):  # others may be quicker, again and again
                        return self._workers.pop()
                    if not self._freed.wait(None if until is None else max(0.0, until - time.monotonic())):
                        raise TimeoutError
            finally:
                self._waiting -= 1

    def __len__(self) -> int:
        return len(self._workers)


def _cpu_sessions(engine: Engine, workers: int) -> list[Session]:
    """Sessions over one ONNX Runtime session, whose calls in several threads do not get in each other's way."""
    model = engine._needs_model("run on the CPU")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    reference = model.open_reference(threads=max(1, cores // workers))
    return [CpuSession(model, engine.manifest["profiles"], reference) for _ in range(workers)]


def _gpu_sessions(
    engine: Engine, workers: int, share_memory: bool, options: dict[str, Any], held: ExitStack
) -> Iterator[Session]:
    from trtkit.engine.gpu import GpuSession
    from trtkit.engine.loaded import LoadedEngine

    name = engine.manifest["model"]
    loaded = LoadedEngine(engine.plan, name, options.pop("cache_dir", None), share_memory)
    held.callback(loaded.close)
    for _ in range(workers):
        yield GpuSession(loaded, name, **options)
    held.callback(loaded.save)  # the last one is done first, while the contexts are there
