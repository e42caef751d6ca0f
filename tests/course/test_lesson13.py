"""Lesson 13: its model of streams, its queues and pictures, and checks that tell right answers from wrong ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from trtkit.bench import record
from trtkit.bench.measure import Measurement
from trtkit.bench.traffic import Load
from trtkit.course import running
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson13 as checks
from trtkit.course.pictures import lesson13 as pictures
from trtkit.course.queueing import Batch, latencies_ms, simulate
from trtkit.course.timeline import COMPUTE, UP, Timeline, in_turn, overlapped
from trtkit.engine.session import CpuSession
from trtkit.errors import RecordError

MS = checks.CASES["computing is slowest"]


# The model of a GPU


def test_streams_keep_their_order_and_units_do_one_thing_at_a_time() -> None:
    gpu = Timeline()
    gpu.put("a", UP, "one", 2)
    gpu.put("b", UP, "two", 1)  # the unit is busy
    gpu.put("b", COMPUTE, "three", 1)  # the stream is
    gpu.put("c", COMPUTE, "four", 1)  # free at once, but ordered later: the unit keeps the order
    assert [(s.name, s.start, s.end) for s in gpu.spans] == [
        ("one", 0, 2), ("two", 2, 3), ("three", 3, 4), ("four", 4, 5)
    ]  # fmt: skip


def test_events_and_the_host() -> None:
    gpu = Timeline()
    gpu.put("a", UP, "one", 2)
    event = gpu.record("a")
    gpu.put("a", UP, "later", 5)  # the event does not wait for it
    gpu.wait("b", event)
    gpu.put("b", COMPUTE, "two", 1)
    gpu.host("meanwhile", 1)
    gpu.synchronize(event)
    gpu.host("after", 1)
    assert {s.name: s.start for s in gpu.spans} == {"one": 0, "later": 2, "two": 2, "meanwhile": 0, "after": 2}


@pytest.mark.parametrize("name", checks.CASES)
def test_overlapping_costs_the_slowest_unit_and_goes_wrong_without_events(name: str) -> None:
    ms = checks.CASES[name]
    assert in_turn(20, ms).total == pytest.approx(20 * sum(ms.values())) and not in_turn(20, ms).races()
    long, short = overlapped(60, ms), overlapped(20, ms)
    assert (long.total - short.total) / 40 == pytest.approx(checks.per_batch(ms))
    assert not long.races() and overlapped(20, ms, events=False).races()
    assert overlapped(20, ms, slots=1).total == pytest.approx(in_turn(20, ms).total)


# Queues


def test_batches_on_paper() -> None:
    times = [0.0, 0.5, 5.0, 5.0, 5.0]
    never = simulate(times, lambda waiting, oldest: False, lambda n: 1.0, 4)
    assert len(never) == 2 and never[0].start > 1000  # overruled in the end
    eager = simulate(times, lambda waiting, oldest: True, lambda n: 1.0, 2)
    assert [batch.requests for batch in eager] == [(0,), (1,), (2, 3), (4,)]
    assert latencies_ms(times, eager) == [1.0, 1.5, 1.0, 1.0, 2.0]
    patient = simulate(times, lambda waiting, oldest: waiting >= 4 or oldest >= 2, lambda n: 1.0, 4)
    assert [batch.requests for batch in patient] == [(0, 1), (2, 3, 4)]
    assert patient[0].start == pytest.approx(2.0, abs=0.06)


def test_the_network_and_its_services() -> None:
    model = running.wide_net(64, 3)
    assert model.op_counts == {"MatMul": 3, "Relu": 2}
    y = model.run(np.ones((2, 64), np.float32))["y"]
    assert y.shape == (2, 64) and 0.05 < y.std() < 20
    with CpuSession(model, [{"x": [[1, 64], [8, 64], [32, 64]]}]) as session:
        found = running.serve(session, [np.ones(64, np.float32)], (2000,), seconds=0.02)
    assert list(found) == list(running.WAYS) and all(one.latencies_ms.size == 32 for (one,) in found.values())


def test_loads_from_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTKIT_RECORDS", str(tmp_path))
    with pytest.raises(RecordError, match="No load was recorded"):
        running.recalled_loads()
    for way in ("batch-1", "dynamic-2ms"):
        extra = {"p99_ms": 3.0, "per_s": 900.0}
        record.save(f"engine-room-poisson-1000/{way}", Measurement.from_samples([1.0, 2.0]), command="c", extra=extra)
    assert running.recalled_loads() == {"batch-1": [(1000, 1.5, 3.0, 900.0)], "dynamic-2ms": [(1000, 1.5, 3.0, 900.0)]}
    assert set(running.recalled("poisson-1000")) == {"batch-1", "dynamic-2ms"}


# Pictures


def test_every_picture_is_drawn() -> None:
    load = Load(100, 1.0, np.array([1.0, 2.0, 9.0]))
    figures = [
        pictures.timelines({"right": overlapped(4, MS), "wrong": overlapped(4, MS, events=False)}),
        pictures.loads({"a": [load, Load(1000, 1.0, np.array([3.0]))]}, note="here"),
        pictures.scaling({"net": {1: 100.0, 2: 180.0, 4: 200.0}}, "relative", "note"),
        pictures.queue({"a": load, "b": load}),
        pictures.growth([4, 8, 2], [4, 8, 8]),
        pictures.profiles({"small": (1, 2, 4), "large": (4, 16, 32)}, {1: "small", 4: "small", 5: "large"}),
        pictures.served([0.0, 1.0], [Batch((0, 1), 1.0, 2.0)]),
        pictures.padding(checks.COUNTS, [8, 32], [12, 32]),
    ]
    assert all(isinstance(figure, Figure) and figure.axes for figure in figures)
    wrong = pictures.timelines({"wrong": overlapped(2, MS, events=False)})
    assert "pairs in the wrong order" in wrong.axes[0].get_title()
    pyplot.close("all")


# Exercises


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    alts: list[str] = []
    monkeypatch.setattr(checks, "show", lambda figure, alt: alts.append(alt) or pyplot.close(figure))  # type: ignore[func-returns-value]
    return alts


def refused(check: Callable[[Any], None], answer: Any) -> str:
    with pytest.raises(NotSolved) as caught:
        check(answer)
    return str(caught.value)


def test_exercise_1(shown: list[str]) -> None:
    checks.check_slowest(checks.per_batch)
    assert shown
    for answer, said in (
        (lambda ms: None, "returned nothing yet"),
        (lambda ms: max(ms.values()), "both the host's work"),
        (lambda ms: sum(ms.values()), "one batch alone"),
        (lambda ms: ms["compute"], "which of them never rests"),
    ):
        assert said in refused(checks.check_slowest, answer)


def test_exercise_2(shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_start(lambda waiting, oldest: waiting >= checks.MAX_BATCH or oldest >= checks.MAX_DELAY_MS)
    assert shown and "Right: 40 requests" in capsys.readouterr().out
    for answer, said in (
        (lambda waiting, oldest: None, "returned nothing yet"),
        (lambda waiting, oldest: oldest >= 2, "the batch is full"),
        (lambda waiting, oldest: waiting >= 8, "has waited 2 ms"),
        (lambda waiting, oldest: True, "there is still time"),
        (lambda waiting, oldest: waiting >= 7 or oldest >= 2, "one place is free"),
    ):
        assert said in refused(checks.check_start, answer)


def lacking(*lines: str) -> checks.OneBatch:
    """Exercise 3's answer without some of its lines."""
    source = inspect.getsource(checks.piped)
    for line in lines:
        assert line in source
        source = source.replace(line, "pass")
    names: dict[str, Any] = {}
    exec(source, vars(checks) | names, names)
    answer: checks.OneBatch = names["piped"]
    return answer


def test_exercise_3(shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_pipeline(checks.piped)
    assert shown and "Right" in capsys.readouterr().out

    def in_turn(gpu: Timeline, steps: checks.Steps, k: int, done: dict[int, float]) -> None:
        checks.piped(gpu, steps, k, done)
        gpu.synchronize(done[k])  # without need

    def nothing(*_: Any) -> None:
        pass

    for answer, said in (
        (nothing, r"done[10] should be"),
        (lacking("steps.down(k)"), "was never ordered"),
        (lacking("steps.hand_out(k - 2)"), "was never ordered"),
        (lacking('gpu.wait("compute", gpu.record("up"))'), "both touch 'in"),
        (lacking('gpu.wait("down", gpu.record("compute"))'), "both touch 'out"),
        (lacking("gpu.synchronize(done[k - 2])"), "both touch"),
        (in_turn, "would do"),
    ):
        assert said in refused(checks.check_pipeline, answer)


def test_exercise_4(shown: list[str]) -> None:
    checks.check_sizes(checks.best_sizes)
    assert shown
    for answer, said in (
        (lambda counts, k: None, "as a list"),
        (lambda counts, k: [1, 2, 4, 8, 16, 32], "you gave 6 sizes"),
        (lambda counts, k: [16], "your largest size is 16"),
        (lambda counts, k: [32], "rows for nothing"),
    ):
        assert said in refused(checks.check_sizes, answer)


def test_the_best_sizes_are_the_best() -> None:
    from itertools import combinations

    counts = {1: 4, 3: 2, 4: 1, 7: 5, 8: 1}
    for k in (1, 2, 3):
        best = min(checks.wasted(counts, c) for c in combinations(range(1, 9), k) if c[-1] == 8)
        assert checks.wasted(counts, checks.best_sizes(counts, k)) == best
