"""Copying while computing: three streams that wait for each other only where one needs what another made."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.engine.cuda import NON_BLOCKING, cuda, current
from trtkit.model import check_inputs

if TYPE_CHECKING:
    from trtkit.engine.bound import HostBound
    from trtkit.engine.gpu import GpuSession

SLOTS = 3  # sets of buffers: one being filled, one computed with, one being emptied


class Overlap:
    """Runs batch after batch of a session, each in the next of three sets of buffers.

    Batch k+1 is uploaded on one stream while k is computed on the session's and the outputs of k-1 are downloaded on a
    third. A stream waits for an event of another, never for the host; the host waits only for outputs that it hands
    out, and then the buffers they came through are free for the next batch.
    """

    def __init__(self, session: GpuSession) -> None:
        self.session = session
        with current():
            self.up, self.down = cuda.Stream(NON_BLOCKING), cuda.Stream(NON_BLOCKING)

    def run(self, batches: Iterable[Any]) -> Iterator[dict[str, np.ndarray]]:
        """The outputs of every batch, in order."""
        under_way: deque[_Pending] = deque()
        for number, batch in enumerate(batches):
            if len(under_way) == SLOTS:
                yield under_way.popleft().finish()
            under_way.append(self._start(batch, number % SLOTS))
        while under_way:
            yield under_way.popleft().finish()

    def _start(self, batch: Any, slot: int) -> _Pending:
        session = self.session
        session._check_open()
        arrays = check_inputs(session.inputs, batch, session.name)
        with current():
            bound = session.host_bound(arrays, 1 + slot)  # 0 is `run`'s, which may be called in between
            if bound.pending is not None:
                bound.pending.finish()  # of another iterator over this session, which is not done or was given up
            bound.upload(arrays, self.up)
            session.stream.wait_for_event(_mark(self.up))
            bound.launch(session.stream.handle)
            self.down.wait_for_event(_mark(session.stream))
            bound.download(self.down)
            bound.pending = _Pending(bound, _mark(self.down))
            return bound.pending

    def wait(self) -> None:
        self.up.synchronize()
        self.down.synchronize()


class _Pending:
    """Outputs on their way."""

    def __init__(self, bound: HostBound, downloaded: Any) -> None:
        self.bound, self.downloaded = bound, downloaded
        self.outputs: dict[str, np.ndarray] | None = None

    def finish(self) -> dict[str, np.ndarray]:
        """Wait for them; from then on the buffers that they came through are free."""
        if self.outputs is None:
            with current():
                self.downloaded.synchronize()
                self.outputs = self.bound.results()
                self.bound.pending = None
        return self.outputs


def _mark(stream: Any) -> Any:
    """An event that happens when the stream has done all that was put on it so far."""
    event = cuda.Event(cuda.event_flags.DISABLE_TIMING)
    event.record(stream)
    return event
