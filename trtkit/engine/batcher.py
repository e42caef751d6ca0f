"""Batcher: requests of many callers, computed together, none held back longer than agreed."""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from trtkit.engine.closing import close_at_exit
from trtkit.engine.session import Session
from trtkit.errors import EngineError, ModelError
from trtkit.model import TensorInfo, check_inputs

Answer = dict[str, np.ndarray]
DEFAULT_BATCH = 32
_REMEMBERED = 1024  # kinds of requests


class Batcher:
    """Collects single requests into batches, since a GPU computes eight samples in hardly more time than one.

    A batch starts when it is full, or when its oldest request has waited `max_delay_ms` and the session (of a pool: a
    worker) is free; while it is busy, batches grow. Only requests of equal shapes but for the batch come together.
    A batch is filled up to the next of `sizes` by repeating a row, so that an engine runs few shapes, each with a CUDA
    graph. Rows of a batch must not influence each other, as in any network for inference they do not.

    Args:
        session: a `Session` or `Pool`; closing it stays with whoever opened it, after the batcher.
        max_batch: rows of the largest batch; by default the engine's, if its batch is fixed, else 32.
        max_delay_ms: longest time a request waits for others. 0 never waits, but still takes all that is there.
        sizes: batch sizes to run; by default the powers of two and `max_batch`, as far as the engine takes them.
        max_waiting: requests that may wait; with more, `submit` blocks or refuses.

    Raises:
        ModelError: the network's inputs have no batch in common, or the engine does not take `max_batch`.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model(
    ...     '<ir_version: 10, opset_import: ["": 20]> g (float[n, 2] x) => (float[n, 2] y) {y = Relu(x)}'))
    >>> with trtkit.build(model).open("cpu") as session, Batcher(session, max_delay_ms=20) as batcher:
    ...     futures = [batcher.submit(np.full(2, i, np.float32)) for i in range(3)]
    ...     [future.result()["y"].tolist() for future in futures]
    [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    """

    def __init__(
        self,
        session: Session,
        max_batch: int | None = None,
        max_delay_ms: float = 2.0,
        *,
        sizes: Sequence[int] | None = None,
        max_waiting: int = 1024,
    ) -> None:
        self.session = session
        self.name = session.name
        self.sizes = _sizes(session, max_batch, sizes)
        self.max_batch = self.sizes[-1]
        self._infos = tuple(TensorInfo(i.name, ("batch", *i.shape[1:]), i.dtype) for i in session.inputs)
        self._fitting: set[Any] = set()  # names, shapes and dtypes of requests that fit
        self._ranks = {info.name: len(info.shape) for info in self._infos}
        self._line = _Line(self.max_batch, max_delay_ms / 1e3, max_waiting)
        self.batches: Counter[int] = Counter()  # how many batches of each size were run
        self._threads = [
            threading.Thread(target=_serve, args=(self._line, session, self.sizes, self.batches), daemon=True)
            for _ in range(getattr(session, "workers", 1))
        ]
        for thread in self._threads:
            thread.start()
        close_at_exit(self)

    def submit(self, inputs: Mapping[str, Any] | Any, timeout_s: float | None = None) -> Future[Answer]:
        """Hand in one sample, or a small batch of them; `result()` of what this returns waits for its outputs.

        A sample comes without the batch dimension, and so do its outputs. Leave the arrays unchanged until the result
        is there. In asyncio: `await asyncio.wrap_future(batcher.submit(x))`.

        Args:
            inputs: NumPy arrays by name, or one array where there is one input.
            timeout_s: how long to wait while `max_waiting` requests are waiting; None for ever, 0 not at all.

        Raises:
            ModelError: it does not fit the network; nobody else's request is disturbed.
            EngineError: too many are waiting, or the batcher is closed.
        """
        given, single = self._with_batch(inputs)
        arrays = self._checked(given)
        rows = len(next(iter(arrays.values())))
        request = _Request(arrays, rows, single, Future(), time.monotonic())
        self._line.put(request, timeout_s, self.name)
        return request.future

    def _checked(self, inputs: Mapping[str, Any] | Any) -> dict[str, np.ndarray]:
        """The inputs as arrays that fit; what fitted once is not looked at again, for that takes 50 µs."""
        seen = None
        if type(inputs) is dict and all(type(array) is np.ndarray for array in inputs.values()):
            seen = tuple([(name, array.shape, array.dtype) for name, array in inputs.items()])
            if seen in self._fitting:
                return dict(inputs)
        arrays = check_inputs(self._infos, inputs, self.name)
        rows = len(next(iter(arrays.values())))
        if rows > self.max_batch:
            raise ModelError(
                f"A request of {rows} rows does not fit into a batch of at most {self.max_batch}. Split it, or give "
                "the batcher a larger max_batch."
            )
        size = _round_up(rows, self.sizes)
        self.session.check_shapes({name: (size, *array.shape[1:]) for name, array in arrays.items()})
        if seen is not None and list(inputs) == list(arrays) and len(self._fitting) < _REMEMBERED:
            self._fitting.add(seen)
        return arrays

    def _with_batch(self, inputs: Mapping[str, Any] | Any) -> tuple[Mapping[str, Any] | Any, bool]:
        """The inputs with a batch dimension, and whether they came without."""
        named = inputs if isinstance(inputs, Mapping) else {self._infos[0].name: inputs}
        ranks = self._ranks
        if not named or not all(np.ndim(value) == ranks.get(name, 0) - 1 for name, value in named.items()):
            return inputs, False
        return {name: np.asarray(value)[None] for name, value in named.items()}, True

    def run(self, inputs: Mapping[str, Any] | Any, timeout_s: float | None = None) -> Answer:
        """`submit` and wait for the outputs."""
        return self.submit(inputs, timeout_s).result()

    @property
    def waiting(self) -> int:
        """How many requests wait for their batch to begin."""
        return self._line.waiting

    def close(self, cancel: bool = False) -> None:
        """Compute what was handed in (or cancel what has not begun), then end; a second call does nothing."""
        self._line.end(cancel)
        for thread in self._threads:
            if thread is not threading.current_thread():  # as when a request's own callback closes
                thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # half made, or the interpreter is ending
            self.close()


class _Request(NamedTuple):
    arrays: dict[str, np.ndarray]
    rows: int
    single: bool
    future: Future[Answer]
    arrived: float  # seconds, time.monotonic

    @property
    def kind(self) -> tuple[tuple[int, ...], ...]:
        """Requests of one kind can be in one batch."""
        return tuple(array.shape[1:] for array in self.arrays.values())


class _Line:
    """Where requests wait: the threads that serve take batches out of it, the callers put requests in."""

    def __init__(self, max_batch: int, max_delay_s: float, max_waiting: int) -> None:
        self.max_batch, self.max_delay_s, self.max_waiting = max_batch, max_delay_s, max_waiting
        self.groups: dict[Any, deque[_Request]] = {}
        self.rows: Counter[Any] = Counter()  # of each group
        self.waiting = 0
        self.ending = False
        lock = threading.Lock()
        self.arrival, self.room = threading.Condition(lock), threading.Condition(lock)

    def put(self, request: _Request, timeout_s: float | None, name: str) -> None:
        with self.room:
            if not self.room.wait_for(lambda: self.ending or self.waiting < self.max_waiting, timeout_s):
                raise EngineError(
                    f"{self.waiting} requests are waiting for {name!r}, as many as may (max_waiting). It is slower "
                    "than requests come in: turn some away, or use a pool of more workers."
                )
            if self.ending:
                raise EngineError(f"This batcher of {name!r} is closed. Make another one.")
            kind = request.kind
            group = self.groups.setdefault(kind, deque())
            group.append(request)
            self.rows[kind] += request.rows
            self.waiting += 1
            if len(group) == 1 or self.rows[kind] >= self.max_batch:  # else whoever waits knows when to wake up
                self.arrival.notify()

    def take(self) -> list[_Request] | None:
        """Wait for a batch that is full, or whose oldest request has waited long enough; None at the end."""
        with self.arrival:
            while True:
                now = time.monotonic()
                kind, due = self._next()
                if kind is None and self.ending:
                    return None
                if kind is not None and due <= now:
                    return self._batch(kind)
                self.arrival.wait(None if kind is None else due - now)

    def _next(self) -> tuple[Any, float]:
        """Which group is due first, and when."""
        best, when = None, float("inf")
        for kind, group in self.groups.items():
            ready = self.ending or self.rows[kind] >= self.max_batch
            due = group[0].arrived + (0 if ready else self.max_delay_s)
            if due < when:
                best, when = kind, due
        return best, when

    def _batch(self, kind: Any) -> list[_Request]:
        group = self.groups[kind]
        batch: list[_Request] = []  # may stay empty: all were cancelled
        rows = 0
        while group and rows + group[0].rows <= self.max_batch:
            request = group.popleft()
            self.rows[kind] -= request.rows
            self.waiting -= 1
            if request.future.set_running_or_notify_cancel():
                batch.append(request)
                rows += request.rows
        if not group:
            del self.groups[kind], self.rows[kind]
        else:
            self.arrival.notify()  # somebody else may be waiting for what was here before
        self.room.notify_all()
        return batch

    def end(self, cancel: bool) -> None:
        with self.arrival:
            self.ending = True
            if cancel:
                for group in self.groups.values():
                    for request in group:
                        request.future.cancel()
            self.arrival.notify_all()
            self.room.notify_all()


def _serve(line: _Line, session: Session, sizes: Sequence[int], batches: Counter[int]) -> None:
    """What each thread does; it knows nothing of the batcher, so that one that is forgotten can be collected."""
    while (batch := line.take()) is not None:
        if batch:
            _answer(batch, session, sizes, batches)


def _answer(batch: list[_Request], session: Session, sizes: Sequence[int], batches: Counter[int]) -> None:
    try:
        answers = _compute(batch, session, sizes, batches)
    except Exception as error:  # noqa: BLE001  (it is raised again where somebody waits for the result)
        if len(batch) == 1:
            batch[0].future.set_exception(error)
        else:  # one of them may be to blame, by a number that no table has: the others shall not suffer
            for request in batch:
                _answer([request], session, sizes, batches)
        return
    for request, answer in zip(batch, answers, strict=True):
        request.future.set_result(answer)


def _compute(batch: list[_Request], session: Session, sizes: Sequence[int], batches: Counter[int]) -> list[Answer]:
    """The outputs of each request, all computed in one run."""
    rows = sum(request.rows for request in batch)
    size = _round_up(rows, sizes)
    names = list(batch[0].arrays)
    if len(batch) == 1 and rows == size:
        outputs = session.run(batch[0].arrays)
    else:
        outputs = session.run({name: _stacked([request.arrays[name] for request in batch], size) for name in names})
    batches[size] += 1
    for name, output in outputs.items():
        if np.ndim(output) == 0 or len(output) != size:
            raise EngineError(
                f"Output {name!r} of {session.name!r} has the shape {np.shape(output)} for a batch of {size}, so it "
                "cannot be shared out among the requests. Run this network with batches of your own."
            )
    answers, start = [], 0
    for request in batch:
        part: Any = start if request.single else slice(start, start + request.rows)
        answers.append({name: np.array(output[part]) for name, output in outputs.items()})
        start += request.rows
    return answers


def _stacked(arrays: list[np.ndarray], size: int) -> np.ndarray:
    """The arrays below each other, and their first row again until there are `size` rows."""
    stacked = np.empty((size, *arrays[0].shape[1:]), arrays[0].dtype)
    start = 0
    for array in arrays:
        stacked[start : start + len(array)] = array
        start += len(array)
    stacked[start:] = arrays[0][0]
    return stacked


def _round_up(rows: int, sizes: Sequence[int]) -> int:
    return sizes[bisect_left(sizes, rows)]


def _sizes(session: Session, max_batch: int | None, sizes: Sequence[int] | None) -> tuple[int, ...]:
    """The batch sizes to run, in order. Raises ModelError when there are none."""
    first = {info.shape[0] if info.shape else None for info in session.inputs}
    fixed = {size for size in first if isinstance(size, int)}
    if None in first or len(fixed) > 1 or (fixed and len(fixed) != len(first)):
        raise ModelError(
            f"The inputs of {session.name!r} have no batch in common, {', '.join(map(str, session.inputs))}: requests "
            "cannot be put into batches."
        )
    largest = max_batch or max([*(sizes or ()), *fixed], default=DEFAULT_BATCH)
    if fixed:
        wanted = sorted(fixed)
    else:
        wanted = sorted({*(sizes or (2**power for power in range(largest.bit_length()))), largest})
    fitting = tuple(size for size in wanted if 0 < size <= largest and _takes(session, size))
    if not fitting or fitting[-1] != largest:
        raise ModelError(
            f"{session.name!r} does not take batches of {largest}. Give the batcher a max_batch inside the engine's "
            "profile, or build with `shapes` that include it."
        )
    return fitting


def _takes(session: Session, size: int) -> bool:
    """Whether the engine takes this batch; where another dimension may change too, each request will tell."""
    shapes = {info.name: (size, *info.shape[1:]) for info in session.inputs}
    if any(isinstance(dim, str) for shape in shapes.values() for dim in shape):
        return True
    try:
        session.check_shapes(shapes)  # type: ignore[arg-type]  # no names are left in them
    except ModelError:
        return False
    return True
