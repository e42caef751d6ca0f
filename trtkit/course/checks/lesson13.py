"""Instant checks of lesson 13's exercises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from trtkit.bench.traffic import arrivals
from trtkit.course.checks import NotSolved, number, show
from trtkit.course.pictures import lesson01, lesson13
from trtkit.course.queueing import latencies_ms, simulate
from trtkit.course.running import STEPS
from trtkit.course.timeline import COMPUTE, DOWN, UP, Timeline, overlapped

# Milliseconds of each step: the host, a copy or the computing may be the slowest.
CASES: dict[str, dict[str, float]] = {
    name: dict(zip(STEPS, times, strict=True))
    for name, times in {
        "computing is slowest": (0.6, 0.4, 1.6, 0.1, 0.1),
        "the copy up is": (0.5, 2.2, 1.0, 0.1, 0.1),
        "the host is": (1.5, 0.4, 1.0, 0.2, 0.8),
        "the copy down is": (0.2, 0.4, 0.8, 1.9, 0.3),
    }.items()
}
MAX_BATCH, MAX_DELAY_MS = 8, 2.0
BATCHES = 12


def check_slowest(slowest: Callable[[Mapping[str, float]], Any]) -> None:
    """Lesson 13, exercise 1: milliseconds a batch when everything overlaps."""
    right = [per_batch(ms) for ms in CASES.values()]
    yours = [number(slowest(dict(ms)), "slowest(ms)") for ms in CASES.values()]
    show(lesson01.against(list(CASES), right, yours, "ms a batch"), "Your ms a batch on the right ones.")
    if np.allclose(yours, right):
        print("Right: the slowest unit sets the pace, and the host's two steps are one unit.")
        return
    if np.allclose(yours, [max(ms.values()) for ms in CASES.values()]):
        raise NotSolved("Nearly. Stage and hand-out are both the host's work: it does them one after the other.")
    if np.allclose(yours, [sum(ms.values()) for ms in CASES.values()]):
        raise NotSolved("That is the time of one batch alone. With everything overlapping, which unit never rests?")
    raise NotSolved("Add up what each of the four units has to do for one batch. Then: which of them never rests?")


def per_batch(ms: Mapping[str, float]) -> float:
    """Exercise 1's answer."""
    return max(ms["stage"] + ms["hand-out"], ms["upload"], ms["compute"], ms["download"])


def check_start(start: Callable[[int, float], Any]) -> None:
    """Lesson 13, exercise 2: a rule that starts full batches at once and others when the oldest has waited 2 ms."""
    times = (arrivals(1500, 40, seed=3) * 1e3).tolist()
    for waiting, oldest, want, hint in (
        (MAX_BATCH, 0.0, True, f"{MAX_BATCH} requests wait: the batch is full, and it should start at once"),
        (1, MAX_DELAY_MS, True, "the oldest request has waited 2 ms, and a batch of one should start now"),
        (1, 0.5, False, "one request has waited 0.5 ms: there is still time for others to come"),
        (MAX_BATCH - 1, 1.9, False, "one place is free and there is time left"),
    ):
        answer = start(waiting, oldest)
        if answer is None:
            raise NotSolved("start(waiting, oldest_ms) returned nothing yet; it says True or False.")
        if bool(answer) is not want:
            raise NotSolved(f"start({waiting}, {oldest}) says {answer}: {hint}.")
    batches = simulate(times, start, lambda n: 1 + 0.1 * n, MAX_BATCH)
    show(lesson13.served(times, batches), "Requests joined to the batches in which your rule put them.")
    late = max(latencies_ms(times, batches))
    print(f"Right: {len(times)} requests in {len(batches)} batches, the slowest took {late:.1f} ms.")


class Steps:
    """The five steps of a batch on the model, with two sets of buffers in turn; who waits for whom is left out."""

    def __init__(self, gpu: Timeline, ms: Mapping[str, float]) -> None:
        self.gpu, self.ms = gpu, ms

    def stage(self, k: int) -> None:
        """The host copies batch k into pinned memory."""
        self.gpu.host(f"stage {k}", self.ms["stage"], writes=[f"pinned in {k % 2}"])

    def up(self, k: int) -> None:
        """On the stream "up"."""
        self._put("up", UP, k, "upload", f"pinned in {k % 2}", f"in {k % 2}")

    def compute(self, k: int) -> None:
        """On the stream "compute"."""
        self._put("compute", COMPUTE, k, "compute", f"in {k % 2}", f"out {k % 2}")

    def down(self, k: int) -> None:
        """On the stream "down"."""
        self._put("down", DOWN, k, "download", f"out {k % 2}", f"pinned out {k % 2}")

    def hand_out(self, k: int) -> None:
        """The host copies the outputs of batch k out of pinned memory."""
        self.gpu.host(f"hand out {k}", self.ms["hand-out"], reads=[f"pinned out {k % 2}"])

    def _put(self, stream: str, unit: str, k: int, step: str, reads: str, writes: str) -> None:
        self.gpu.put(stream, unit, f"{step} {k}", self.ms[step], [reads], [writes])


OneBatch = Callable[[Timeline, Steps, int, dict[int, float]], Any]


def check_pipeline(one_batch: OneBatch) -> None:
    """Lesson 13, exercise 3: three streams and two sets of buffers, right whatever the steps take, and fast."""
    runs = {name: _piped(one_batch, ms) for name, ms in CASES.items()}
    for name, gpu in runs.items():
        for first, second in gpu.races()[:1]:
            show(lesson13.timelines({name: gpu}), "Your pipeline; red is what was done in the wrong order.")
            buffer = ", ".join(sorted((first.writes & (second.reads | second.writes)) | (first.reads & second.writes)))
            raise NotSolved(
                f"Where {name}: {second.name!r} began before {first.name!r} was done, and both touch {buffer!r}. "
                "A stream waits for another by gpu.wait(stream, gpu.record(other)); the host by gpu.synchronize(event)."
            )
    for name, gpu in runs.items():
        best = overlapped(BATCHES, CASES[name], slots=2)
        if gpu.total > 1.02 * best.total:
            show(lesson13.timelines({"yours": gpu, "possible": best}), "Your pipeline above a faster one.")
            raise NotSolved(
                f"Right, but where {name} it takes {gpu.total:.1f} ms and {best.total:.1f} would do. Who waits for "
                "whom without need? The host has to wait only before it touches buffers that are still in use."
            )
    name, gpu = next(iter(runs.items()))
    show(lesson13.timelines({name: gpu}), "Your pipeline: all units work side by side.")
    print("Right, and as fast as two sets of buffers can be.")


def _piped(one_batch: OneBatch, ms: Mapping[str, float]) -> Timeline:
    """What the answer does with some batches; the outputs of the last two are handed out at the end."""
    gpu, done = Timeline(), dict[int, float]()
    steps = Steps(gpu, ms)
    for k in range(BATCHES):
        one_batch(gpu, steps, k, done)
    for k in (BATCHES - 2, BATCHES - 1):
        if k not in done:
            raise NotSolved(f"done[{k}] should be the event after which the outputs of batch {k} are in pinned memory.")
        gpu.synchronize(done[k])
        steps.hand_out(k)
    missing = {f"{step.replace('-', ' ')} {k}" for step in STEPS for k in range(BATCHES)}
    missing -= {span.name for span in gpu.spans}
    if missing:
        raise NotSolved(f"Every batch goes through all five steps; {min(missing)!r} was never ordered.")
    return gpu


def piped(gpu: Timeline, steps: Steps, k: int, done: dict[int, float]) -> None:
    """Exercise 3's answer."""
    if k >= 2:
        gpu.synchronize(done[k - 2])
        steps.hand_out(k - 2)
    steps.stage(k)
    steps.up(k)
    gpu.wait("compute", gpu.record("up"))
    steps.compute(k)
    gpu.wait("down", gpu.record("compute"))
    steps.down(k)
    done[k] = gpu.record("down")


COUNTS = {1: 30, 2: 9, 3: 7, 5: 8, 6: 14, 7: 5, 9: 6, 12: 11, 13: 9, 20: 2, 31: 3, 32: 6}


def check_sizes(sizes: Callable[[Mapping[int, int], int], Any]) -> None:
    """Lesson 13, exercise 4: the k batch sizes with which the fewest rows are computed for nothing."""
    for counts, k in ((COUNTS, 4), (COUNTS, 3), ({8: 1, 32: 5}, 2), ({4: 2}, 1)):
        best = best_sizes(counts, k)
        answer = sizes(dict(counts), k)
        if not isinstance(answer, Iterable) or isinstance(answer, str):
            raise NotSolved("sizes(counts, k) returns the sizes, as a list of whole numbers.")
        yours = sorted(int(size) for size in answer)
        if counts is COUNTS and k == 4:
            show(lesson13.padding(counts, yours, best), "Your batch sizes and the best ones on what comes.")
        if not yours or len(yours) > k:
            raise NotSolved(f"For k = {k} you gave {len(yours)} sizes.")
        if yours[-1] < max(counts):
            raise NotSolved(f"A batch of {max(counts)} rows comes, and your largest size is {yours[-1]}.")
        if wasted(counts, yours) > wasted(counts, best):
            raise NotSolved(
                f"{yours} compute {wasted(counts, yours)} rows for nothing; {wasted(counts, best)} are possible with "
                f"k = {k}. There are few enough choices to try them all (itertools.combinations)."
            )
    print(f"Right: {best_sizes(COUNTS, 4)}. Powers of two would waste "
          f"{wasted(COUNTS, (1, 2, 4, 8, 16, 32))} rows with six sizes, yours {wasted(COUNTS, best_sizes(COUNTS, 4))} "
          "with four.")  # fmt: skip


def wasted(counts: Mapping[int, int], sizes: Sequence[int]) -> int:
    """Rows computed for nothing when every batch is filled up to the next of the sizes."""
    return sum(times * (min(size for size in sizes if size >= rows) - rows) for rows, times in counts.items())


def best_sizes(counts: Mapping[int, int], k: int) -> list[int]:
    """Exercise 4's answer: a size that no batch has would only waste more, so the candidates are few."""
    rows = sorted(counts)
    most = rows[-1]
    chosen = min(combinations(rows[:-1], min(k, len(rows)) - 1), key=lambda c: wasted(counts, [*c, most]))
    return [*chosen, most]
