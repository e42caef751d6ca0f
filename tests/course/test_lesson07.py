"""Lesson 07: calibrators in one run, spoilt data, and checks that take right answers and meet others with a hint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import trtkit
from trtkit.course import photos
from trtkit.course.calibrating import as_pixels, hot_pixels, onnxruntime_ends, our_ends, race, through_int8, two_errors
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson07 as checks
from trtkit.course.pictures import lesson07 as pictures
from trtkit.course.trained import evaluate, trained
from trtkit.errors import DataError
from trtkit.graph.taps import Taps
from trtkit.quant.calibrate import METHODS, Calibration, calibrate
from trtkit.quant.qdq import observable


def percentile_end(counts: np.ndarray, width: float, percent: float) -> float:
    return width * (1 + np.searchsorted(np.cumsum(counts), counts.sum() * percent / 100))


def merge(a: np.ndarray, top_a: float, b: np.ndarray, top_b: float) -> tuple[np.ndarray, float]:
    if top_a > top_b:
        return merge(b, top_b, a, top_a)
    while top_a < top_b:
        a = np.concatenate([a.reshape(-1, 2).sum(axis=1), np.zeros(len(a) // 2, a.dtype)])
        top_a *= 2
    return a + b, top_b


def choose(x: np.ndarray, w: np.ndarray, ends: np.ndarray) -> float:
    return min(ends, key=lambda end: checks.output_error(x, w, end))


def best_for_x(x: np.ndarray, w: np.ndarray, ends: np.ndarray) -> float:
    return min(ends, key=lambda end: np.mean((through_int8(x, end) - x) ** 2))


def suspects(largest: np.ndarray) -> np.ndarray:
    return np.flatnonzero((largest > 4 * np.median(largest, axis=0)).any(axis=1))


def by_deviation(largest: np.ndarray) -> np.ndarray:
    return np.flatnonzero((largest > largest.mean(axis=0) + 3 * largest.std(axis=0)).any(axis=1))


def test_right_answers_pass(capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_percentile(percentile_end)
    checks.check_merge(merge)
    checks.check_output(choose)
    checks.check_suspects(suspects)
    out = capsys.readouterr().out
    assert out.count("Right:") == 4
    before, after = (float(word.rstrip("%")) for word in out.split() if word.endswith("%") and "." in word)
    assert before < after - 5 and after > 85


WRONG: list[tuple[Any, Any, str]] = [
    (checks.check_percentile, lambda c, w, p: None, "nothing yet"),
    (checks.check_percentile, lambda c, w, p: percentile_end(c, w, p) - w, "last bin begins"),
    (checks.check_percentile, lambda c, w, p: w * len(c) * p / 100, "percentage of the range"),
    (checks.check_percentile, lambda c, w, p: w * len(c), "add up the counts"),
    (checks.check_merge, lambda a, ta, b, tb: None, "two things"),
    (checks.check_merge, lambda a, ta, b, tb: (a + b, ta), "the larger one"),
    (checks.check_merge, lambda a, ta, b, tb: (a + b, max(ta, tb)), "in wrong bins"),
    (checks.check_merge, lambda a, ta, b, tb: (b, max(ta, tb)), "came out"),
    (checks.check_merge, lambda a, ta, b, tb: (np.append(a, b), max(ta, tb)), "there were 32"),
    (checks.check_output, lambda x, w, ends: None, "nothing yet"),
    (checks.check_output, lambda x, w, ends: -1.0, "not among"),
    (checks.check_output, best_for_x, "best for x itself"),
    (checks.check_output, lambda x, w, ends: ends[-1], "clips nothing"),
    (checks.check_output, lambda x, w, ends: ends[0], "keep the best"),
    (checks.check_suspects, lambda largest: None, "list of batch numbers"),
    (checks.check_suspects, lambda largest: [], "255 times too large"),
    (checks.check_suspects, by_deviation, "the median stays"),
    (checks.check_suspects, lambda largest: [*checks.BAD, checks.DARK], "is dark"),
    (checks.check_suspects, lambda largest: range(12), "is dark"),
    (checks.check_suspects, lambda largest: [*checks.BAD, 0], "is fine"),
]


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG, ids=[f"{c.__name__}-{hint}" for c, _, hint in WRONG])
def test_wrong_answers_get_a_hint(check: Any, answer: Any, hint: str) -> None:
    with pytest.raises(NotSolved, match=hint):
        check(answer)


def test_a_race_finds_what_each_calibration_finds() -> None:
    task, model = checks.digits_network()
    names = observable(model)["tensors"]
    found = race(model, task.calibration[:3], names)
    for method in METHODS:
        assert found[method] == calibrate(model, task.calibration[:3], names, method)
    with pytest.raises(DataError, match="no calibration data"):
        race(model, [], names)


def test_a_range_is_kept_to_half_a_step_and_clipped_at_its_end() -> None:
    x = np.random.default_rng(0).standard_normal(1000)
    kept = through_int8(x, 2.0)
    inside = np.abs(x) <= 2.0
    assert np.abs(kept - x)[inside].max() <= 2 / 127 / 2 * (1 + 1e-9) and np.abs(kept[~inside]).min() == 2.0
    rounding, clipping = two_errors(x, 2.0)
    assert rounding + clipping == pytest.approx(((kept - x) ** 2).sum()) and clipping > rounding > 0
    assert two_errors(x, np.abs(x).max())[1] == 0


def test_hot_pixels_touch_one_picture() -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    spoilt = hot_pixels(images, 5, 100.0)
    assert (spoilt != images).sum() == 15 and (spoilt[0] == 100).sum() == 15 and np.array_equal(spoilt[1:], images[1:])


def test_pixels_are_what_was_normalised() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    images = np.stack([photos.normalise(each) for each in pixels])
    assert np.array_equal(as_pixels(images), pixels.transpose(0, 3, 1, 2))


def test_onnxruntime_agrees_on_percentiles_and_its_entropy_is_max() -> None:
    task, model = checks.digits_network()
    tensors = Taps(model, [name for name in observable(model)["tensors"] if name != "x"]).run(task.calibration[0])
    ours, seconds = our_ends(tensors, METHODS["percentile"])
    theirs, _ = onnxruntime_ends(tensors, "percentile", 8192)
    assert len(tensors) == 3 and theirs == pytest.approx(ours, rel=2e-3) and seconds >= 0
    largest = {name: float(np.abs(x).max()) for name, x in tensors.items()}
    assert our_ends(tensors, METHODS["max"])[0] == largest
    assert onnxruntime_ends(tensors, "entropy", 128)[0] == pytest.approx(largest)
    assert onnxruntime_ends(tensors, "entropy", 1024)[0] != pytest.approx(largest)


def test_one_range_of_entropy_is_what_costs_mnist_its_points() -> None:
    task = trained("mnist")
    model = trtkit.optimize(task.model)
    found = race(model, task.calibration, observable(model)["tensors"])
    first = Taps(model).names[[node.op_type for node in model.ir.graph].index("Clip")]
    fine, mended = dict(found["percentile"].ranges), dict(found["entropy"].ranges)
    fine[first], mended[first] = mended[first], fine[first]
    assert fine[first] < found["mse"][first] / 2
    scores = [evaluate(task, trtkit.quantize(model, None, calibration=Calibration(each, "mix", 1)).run)
              for each in (fine, mended)]  # fmt: skip
    assert scores[0] < 0.96 and scores[1] > 0.98


def test_pictures_draw() -> None:
    x = np.linspace(0.1, 4, 64)
    counts = np.arange(1, 129)
    ends = {"max": 4.0, "percentile": 3.0, "mse": 2.0, "entropy": 1.0}
    drawn = [
        pictures.scores({"photographs": (0.9, 16.0), "noise": (0.3, 5.0)}, "agreement"),
        pictures.trade_off(x, x**2, 1 / x, 1.0),
        pictures.cuts({"a tensor": (counts, 4.0, ends)}),
        pictures.growth([("first", np.array([3, 1, 0, 2]), 1.0), ("then", np.array([4, 2, 1, 0]), 2.0)]),
        pictures.p_and_q({"4 bins": (np.ones(4) / 4, np.ones(4) / 4)}, 8),
        pictures.curves({"a tensor": (x, np.where(x < 1, np.inf, x), 2.0)}, "divergence"),
        pictures.by_layer({"mse": [1.0, 2.0], "entropy": [-3.0, 0.5]}),
        pictures.grouped({"digits": dict.fromkeys(ends, 0.9)}, "accuracy"),
        pictures.with_count([1, 2, 4], {"range": {"max": [1.0, 2, 3]}}),
        pictures.against({"max": ([1.0, 2.0], [1.0, 3.0])}, "ours", "theirs"),
        pictures.graph_and_engine({"graph": [("Conv", "Int8", "Float")] * 11, "engine": [("kgen", "Float", "mixed")]}),
        pictures.suspects(np.array([1.0, 16.0]), [1], [1]),
        pictures.against_best(x, {"layer": (1 / x, 2.0)}),
        pictures.two_counts(np.array([1, 2]), np.array([1, 3])),
    ]
    assert all(isinstance(fig, Figure) for fig in drawn)
    bars = [bar.get_width() for bar in drawn[0].axes[0].patches]
    assert bars == pytest.approx([90, 30])
    assert [text.get_text() for text in drawn[3].axes[0].texts] == ["3", "1", "2"]
    assert len(drawn[5].axes[0].lines[0].get_xdata()) == int((x >= 1).sum())
    assert [text.get_text() for text in drawn[10].legends[0].get_texts()] == ["FP32", "INT8", "both"]
