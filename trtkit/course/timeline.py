"""A model of a GPU's streams and events, to draw what overlaps: durations are put in, nothing here is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

HOST, UP, COMPUTE, DOWN = "host", "copy up", "compute", "copy down"
UNITS = (HOST, UP, COMPUTE, DOWN)
EPSILON = 1e-9


@dataclass(frozen=True)
class Span:
    """One piece of work: which unit did it, from when to when, and which buffers it touched."""

    name: str
    unit: str
    start: float
    end: float
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()

    def conflicts(self, other: Span) -> bool:
        """Whether the order of the two matters: one writes what the other reads or writes."""
        return bool(self.writes & (other.reads | other.writes) or other.writes & self.reads)


class Timeline:
    """A host that gives orders, and a GPU with three units that work side by side: copy up, compute, copy down.

    As in CUDA, orders on one stream are done one after the other. Orders on different streams are done as soon as
    their unit is free, unless a stream was told to wait for an event. Giving an order costs the host nothing here.

    >>> gpu = Timeline()
    >>> for k in "ab":
    ...     gpu.put("s", UP, f"{k} up", 1.0)
    ...     gpu.put("s", COMPUTE, f"{k} compute", 2.0)
    >>> [(span.name, span.start, span.end) for span in gpu.spans][-2:]
    [('b up', 3.0, 4.0), ('b compute', 4.0, 6.0)]
    """

    def __init__(self) -> None:
        self.now = 0.0  # the host's time
        self.spans: list[Span] = []
        self._streams: dict[str, float] = {}  # when each has done all that was put on it
        self._units: dict[str, float] = {}

    def host(self, name: str, ms: float, reads: Iterable[str] = (), writes: Iterable[str] = ()) -> None:
        """The host works for a while, and gives no orders meanwhile."""
        self._add(name, HOST, self.now, ms, reads, writes)
        self.now += ms

    def put(
        self, stream: str, unit: str, name: str, ms: float, reads: Iterable[str] = (), writes: Iterable[str] = ()
    ) -> None:
        """An order to the GPU; the host goes on at once."""
        start = max(self.now, self._streams.get(stream, 0.0), self._units.get(unit, 0.0))
        self._add(name, unit, start, ms, reads, writes)
        self._streams[stream] = self._units[unit] = start + ms

    def record(self, stream: str) -> float:
        """An event: the moment at which all that is on the stream by now will be done."""
        return self._streams.get(stream, 0.0)

    def wait(self, stream: str, event: float) -> None:
        """What is put on the stream from now on waits for the event; the host does not."""
        self._streams[stream] = max(self._streams.get(stream, 0.0), event)

    def synchronize(self, event: float) -> None:
        """The host waits for the event."""
        self.now = max(self.now, event)

    def _add(self, name: str, unit: str, start: float, ms: float, reads: Iterable[str], writes: Iterable[str]) -> None:
        self.spans.append(Span(name, unit, start, start + ms, frozenset(reads), frozenset(writes)))

    @property
    def total(self) -> float:
        """When the last piece of work is done."""
        return max((span.end for span in self.spans), default=0.0)

    def races(self) -> list[tuple[Span, Span]]:
        """Pairs of pieces that touch one buffer and were not done in the order in which they were ordered."""
        return [
            (first, second)
            for number, first in enumerate(self.spans)
            for second in self.spans[number + 1 :]
            if first.conflicts(second) and second.start < first.end - EPSILON
        ]


def in_turn(batches: int, ms: Mapping[str, float]) -> Timeline:
    """`Session.run` again and again. `ms` by step: stage, upload, compute, download, hand-out."""
    gpu = Timeline()
    for k in range(batches):
        gpu.host(f"stage {k}", ms["stage"], writes=["pinned in"])
        gpu.put("s", UP, f"up {k}", ms["upload"], reads=["pinned in"], writes=["in"])
        gpu.put("s", COMPUTE, f"compute {k}", ms["compute"], reads=["in"], writes=["out"])
        gpu.put("s", DOWN, f"down {k}", ms["download"], reads=["out"], writes=["pinned out"])
        gpu.synchronize(gpu.record("s"))
        gpu.host(f"hand out {k}", ms["hand-out"], reads=["pinned out"])
    return gpu


def overlapped(batches: int, ms: Mapping[str, float], slots: int = 3, events: bool = True) -> Timeline:
    """`Session.run_many` as `trtkit.engine.overlap` does it, or without its events, which goes wrong."""
    gpu = Timeline()
    done: dict[int, float] = {}

    def finish(k: int) -> None:
        if events:
            gpu.synchronize(done[k])
        gpu.host(f"hand out {k}", ms["hand-out"], reads=[f"pinned out {k % slots}"])

    for k in range(batches):
        s = k % slots
        if k >= slots:
            finish(k - slots)
        gpu.host(f"stage {k}", ms["stage"], writes=[f"pinned in {s}"])
        gpu.put("up", UP, f"up {k}", ms["upload"], reads=[f"pinned in {s}"], writes=[f"in {s}"])
        if events:
            gpu.wait("compute", gpu.record("up"))
        gpu.put("compute", COMPUTE, f"compute {k}", ms["compute"], reads=[f"in {s}"], writes=[f"out {s}"])
        if events:
            gpu.wait("down", gpu.record("compute"))
        gpu.put("down", DOWN, f"down {k}", ms["download"], reads=[f"out {s}"], writes=[f"pinned out {s}"])
        done[k] = gpu.record("down")
    for k in range(max(0, batches - slots), batches):
        finish(k)
    return gpu
