"""Lesson 14: right answers pass, wrong ones get their hint, and the tables are made of the records."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from matplotlib.figure import Figure

from trtkit.bench import record
from trtkit.bench.kernels import Span, charged_times
from trtkit.bench.measure import Measurement
from trtkit.bench.roofline import Machine
from trtkit.course import inside
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson14 as checks
from trtkit.course.pictures import lesson14 as pictures
from trtkit.engine.profile import KernelTime, LayerCost, Profile, lay_over

MACHINE = Machine("a GPU", 1e12, 1e11)


def least(flops: float, moved: float, machine: Machine) -> float:
    return 1e6 * max(flops / machine.flops, moved / machine.bytes)


def tiles(shape: tuple[int, int, int, int]) -> int:
    n, c, h, w = shape
    return -(-n * h * w // 128) * -(-c // 128)


def trusted(raw: bytes, key: dict[str, str]) -> bytes | None:
    head, _, data = raw.partition(b"\n")
    try:
        told = json.loads(head)
        good = told["key"] == key and told["sha256"] == hashlib.sha256(data).hexdigest()
    except (ValueError, KeyError, TypeError):
        return None
    return data if good else None


def test_right_answers_pass(capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_least(least)
    checks.check_tiles(tiles)
    checks.check_charged(charged_times)
    checks.check_trusted(trusted)
    assert capsys.readouterr().out.count("Right:") == 4


WRONG: list[tuple[Any, Any, str]] = [
    (checks.check_least, lambda f, b, m: None, "nothing yet"),
    (checks.check_least, lambda f, b, m: 1e6 * (f / m.flops + b / m.bytes), "not their sum"),
    (checks.check_least, lambda f, b, m: max(f / m.flops, b / m.bytes), "the longer one, in µs"),
    (checks.check_tiles, lambda shape: shape[2] * shape[3] / 128, "counts whole"),
    (checks.check_tiles, lambda shape: tiles((1, *shape[1:])), "all pictures are rows|pixels of all"),
    (checks.check_charged, lambda spans: None, "a time for each span"),
    (checks.check_charged, lambda spans: [s.end - s.begin for s in spans], "add up to"),
    (checks.check_charged, lambda spans: [4, -2, 7], "a negative time|add up"),
    (checks.check_charged, lambda spans: [0, 0, spans[-1].end - spans[0].begin], "the shares are not"),
    (checks.check_trusted, lambda raw, key: raw.partition(b"\n")[2], "another driver"),
    (checks.check_trusted, lambda raw, key: None, "its bytes are good"),
    (checks.check_trusted, lambda raw, key: json.loads(raw.partition(b"\n")[0]) and raw, "your function raised"),
]


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG)
def test_wrong_answers_get_a_hint(check: Any, answer: Any, hint: str) -> None:
    with pytest.raises(NotSolved, match=hint):
        check(answer)


def profile_of(name: str = "net, fp16, x (2, 3)", batch: int = 2) -> Profile:
    layers = [
        LayerCost("a", "gemm", "gemm", ("fc",), ("MatMul", "Relu"), 2_000_000, 40_000, 4, "encoder.layer.0.dense"),
        LayerCost("b", "kgen", "Add", ("sum",), ("Add",), 1000, 8000, 0, "encoder.layer.0.norm"),
        LayerCost("c", "kgen", "Move", (), (), 0, 8000, 0, "encoder.layer.1"),
    ]
    kernels = [
        KernelTime("gemm", 8.0, 8.0),
        KernelTime("__myl_Add_0x", 3.0, 3.0),
        KernelTime("__myl_Move_0x", 1.0, 1.0),
    ]
    power = {"watts": 300.0, "sm_mhz": 1700, "throttled": [], "mj_per_call": 6.0}
    times = tuple(lay_over(kernels, layers, MACHINE.flops, MACHINE.bytes))
    return Profile(name, times, 13.0, "a GPU", MACHINE.flops, MACHINE.bytes, 132, {"batch": batch, "power": power})


@pytest.fixture
def records(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTKIT_RECORDS", str(tmp_path))
    one = Measurement.from_samples([1.0, 2.0, 3.0])
    record.save("profile-net-fp16-b2/trtkit", one, command="test", extra=profile_of().as_facts())
    record.save("peaks/fp16", one, command="test", extra={"flops": 7e14, "bytes": 3e12})
    steps = {"read": 10.0, "open": 400.0, "first_run": 50.5}
    for kind in ("without", "with"):
        record.save(f"cold-start/{kind}", one, command="test", extra={"ms": steps})
    for way, more in (("plain", {}), ("stripped", {"refit_s": 0.5, "refitted_bytes": 5_000_000})):
        facts = {"bytes": 1_000_000, "build_s": 2.0, "error": 1e-3, **more}
        record.save(f"refit-resnet50/{way}", one, command="test", extra=facts)


def test_tables_come_from_the_records(records: None) -> None:
    found = inside.profiled("net", 2)
    assert found.source.startswith("recalled: ") and found.layers == profile_of().layers
    assert "limited by" in inside.told(found) or "tiles" in inside.told(found)
    assert inside.kinds(found.layers) == {"products": 8.0, "all others": 3.0, "TensorRT's own": 1.0}
    assert inside.energy([found])[found.name]["mj_per_sample"] == 3.0
    assert "400.0        50.5         2.0" in inside.start_table(inside.cold_starts())
    assert "     0.50     5.00" in inside.refit_table(inside.refits())
    if inside.peaks()[1] != "measured here":
        assert inside.peaks()[0].balance == pytest.approx(700 / 3)


def test_pictures_are_drawn(records: None) -> None:
    one = profile_of()
    spans = [Span("a", 0, 4), Span("b", 3, 6)]
    figures = [
        pictures.work([layer.cost for layer in one.layers], MACHINE, "a test"),
        pictures.against_the_roof({"one": one, "two": one}),
        pictures.guessed(one),
        pictures.timeline(spans, charged_times(spans)),
        pictures.energies(inside.energy([one]), "a test"),
        pictures.starts(inside.cold_starts()),
        pictures.widths({"numpy": {16: 1.0, 128: 3.0}}, "a test"),
        one.plot(),
    ]
    assert all(isinstance(drawn, Figure) for drawn in figures)
    texts = [text.get_text() for text in figures[-1].axes[0].texts]
    assert "encoder" in texts and "layer.0" in texts and "MatMul" in texts
