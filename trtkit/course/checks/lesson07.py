"""Instant checks of lesson 07's exercises."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import trtkit
from trtkit.course.calibrating import through_int8
from trtkit.course.checks import NotSolved, number, show
from trtkit.course.pictures import lesson01, lesson07
from trtkit.course.trained import Trained, evaluate, trained
from trtkit.graph.taps import Taps
from trtkit.passes.common import array
from trtkit.quant.calibrate import MaxCalibrator, PercentileCalibrator
from trtkit.quant.qdq import observable

Array = NDArray[Any]
BAD, DARK, SPOILT = (3, 9), 6, 255  # batches of exercise 4, and how many times too large the bad ones are


@cache
def digits_network() -> tuple[Trained, trtkit.model.Model]:
    """The trained network that reads digits, and its optimised graph."""
    task = trained("digits")
    return task, trtkit.optimize(task.model)


def histograms() -> dict[str, tuple[Array, float]]:
    """Exercise 1's data: counts of |x| in 64 bins, and how wide a bin is."""
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(20_000)
    values = {"normal": normal, "after ReLU": np.maximum(normal, 0), "with outliers": np.append(normal, [40.0] * 20)}
    found = {}
    for name, x in values.items():
        calibrator = PercentileCalibrator(bins=64)
        calibrator.observe(x)
        found[name] = calibrator.counts, calibrator.bin_width
    return found


def check_percentile(end: Callable[[Array, float, float], Any]) -> None:
    """Lesson 07, exercise 1: the end of the range that leaves `percent` percent of the values inside."""
    cases = {(name, percent): each for name, each in histograms().items() for percent in (90.0, 99.9)}
    yours, right = {}, {}
    for (name, percent), (counts, width) in cases.items():
        yours[name, percent] = number(end(counts.copy(), width, percent), "percentile_end(counts, width, percent)")
        right[name, percent] = width * (1 + int((np.cumsum(counts) < counts.sum() * percent / 100).sum()))
    labels = [f"{name}, {percent:g} %" for name, percent in cases]
    show(
        lesson01.against(labels, list(right.values()), list(yours.values()), "end of the range"),
        "Your ends on right ones.",
    )
    for case, (counts, width) in cases.items():
        want, have = right[case], yours[case]
        if not np.isclose(want, have):
            hint = (
                "add up the counts from zero on, and stop at the first bin where the sum reaches percent / 100 of all"
            )
            if np.isclose(have, want - width):
                hint = "that is where the last bin begins, and all of it has to be inside"
            elif np.isclose(have, width * len(counts) * case[1] / 100):
                hint = "that is a percentage of the range; wanted is a percentage of the values"
            raise NotSolved(f"{case[0]}, {case[1]:g} %: the range ends at {want:.3f}, and yours at {have:.3f}: {hint}.")
    print("Right: twenty outliers at 40 move the 90 % end by one wide bin, and not the way they move the maximum.")


def check_merge(merge: Callable[[Array, float, Array, float], Any]) -> None:
    """Lesson 07, exercise 2: the histograms that two machines made of their halves, as if one had seen all."""
    rng = np.random.default_rng(1)
    for times, swap in ((1, False), (2, False), (8, False), (4, True)):
        narrow, wide = rng.integers(0, 50, (2, 32))
        folded = np.concatenate([narrow.reshape(-1, times).sum(axis=1), np.zeros(32 - 32 // times, int)])
        right, top = folded + wide, 0.75 * times
        a, top_a, b, top_b = (wide, top, narrow, 0.75) if swap else (narrow, 0.75, wide, top)
        answer = merge(a.copy(), top_a, b.copy(), top_b)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2 or np.ndim(answer[0]) != 1:
            raise NotSolved("merge(a, top_a, b, top_b) returns two things: the counts, an array, and their top.")
        counts = np.asarray(answer[0])
        if times == 8 or counts.shape != right.shape or not np.array_equal(counts, right):
            show(lesson07.two_counts(right, counts), "Your counts on the right ones.")
        where = f"Tops {top_a:g} and {top_b:g}"
        if not np.isclose(number(answer[1], "The top of merge(...)"), top):
            raise NotSolved(f"{where}: the top has to be {top:g}, the larger one, so that every value is inside.")
        if counts.shape != right.shape:
            raise NotSolved(f"{where}: {len(counts)} bins came back, and there were 32.")
        if counts.sum() != right.sum():
            raise NotSolved(f"{where}: {right.sum()} values went in, and {counts.sum()} came out.")
        if not np.array_equal(counts, right):
            raise NotSolved(f"{where}: no value is lost, but some are in wrong bins. In the histogram with the lower "
                            f"top {times} neighbours become one, and the bins behind them are empty.")  # fmt: skip
    print("Right: two machines may share the work, and nobody has to send an activation.")


def layers() -> dict[str, tuple[Array, Array]]:
    """Exercise 3's layers: what comes in (N, K) and weights (K, M); one real, one with a loud channel nobody needs."""
    task, model = digits_network()
    gemm = next(node for node in model.ir.graph if node.op_type == "Gemm")
    weight = array(gemm.inputs[1])
    assert weight is not None and gemm.inputs[0] is not None
    x = Taps(model, [gemm.inputs[0].name or ""]).run(task.calibration[0])[gemm.inputs[0].name or ""]
    rng = np.random.default_rng(3)
    loud, idle = rng.standard_normal((256, 32)), rng.standard_normal((32, 8))
    loud[:, 5] *= 30
    idle[5] = 0
    return {"digits, first Gemm": (x, weight.T), "a loud channel with weight 0": (loud, idle)}


def output_error(x: Array, w: Array, end: float) -> float:
    """Mean squared error of x @ w when x goes through INT8 with this end of the range."""
    return float(np.mean(((through_int8(x, end) - x) @ w) ** 2))


def check_output(choose: Callable[[Array, Array, Array], Any]) -> None:
    """Lesson 07, exercise 3: the end of the range with the least error of what the layer gives out."""
    panels: dict[str, tuple[Array, float]] = {}
    verdicts = []
    ends = np.arange(1, 101) / 100
    for name, (x, w) in layers().items():
        here = ends * np.abs(x).max()
        have = number(choose(x.copy(), w.copy(), here.copy()), "choose(x, w, ends)")
        errors = np.array([output_error(x, w, end) for end in here])
        panels[name] = (errors, have / np.abs(x).max())
        itself = here[np.argmin([np.mean((through_int8(x, end) - x) ** 2) for end in here])]
        verdicts.append((name, have, float(here[np.argmin(errors)]), float(itself), here))
    show(lesson07.against_best(ends, panels), "Error of the layer's output over the end of the range, and your end.")
    for name, have, want, itself, here in verdicts:
        if not np.isclose(here, have).any():
            raise NotSolved(f"{name}: {have:g} is not among the ends that you got. Return one of them.")
        if not np.isclose(have, want):
            hint = "measure through_int8(x, end) @ w against x @ w for each end, and keep the best"
            if np.isclose(have, itself):
                hint = "that is best for x itself, and a channel that meets weights of 0 may be clipped"
            elif np.isclose(have, here[-1]):
                hint = "that is the largest |x|, which clips nothing and rounds most coarsely"
            raise NotSolved(f"{name}: best is {want:.3f}, yours is {have:.3f}: {hint}.")
    print("Right: what a layer does with a tensor decides how it is best rounded.")


def batches(spoilt: bool) -> list[dict[str, Array]]:
    """Exercise 4's batches of digits. One is dark, which is fine; where `spoilt`, two run from 0 to 255."""
    task, _ = digits_network()
    found = [dict(batch) for batch in task.calibration[:12]]
    found[DARK] = {"x": found[DARK]["x"] * np.float32(0.2)}
    for i in BAD if spoilt else ():
        found[i] = {"x": found[i]["x"] * np.float32(SPOILT)}
    return found


def largest_by_batch(model: trtkit.model.Model, data: list[dict[str, Array]]) -> Array:
    """The largest |x| of every tensor that is quantised, batch by batch: (batches, tensors)."""
    names = observable(model)["tensors"]
    taps = Taps(model, names)
    rows = []
    for batch in data:
        tensors = taps.run(batch)
        row = []
        for name in names:
            calibrator = MaxCalibrator()
            calibrator.observe(tensors[name])
            row.append(calibrator.amax())
        rows.append(row)
    return np.array(rows)


def check_suspects(find: Callable[[Array], Any]) -> None:
    """Lesson 07, exercise 4: which batches are out of line, from the largest |x| of each tensor in each batch."""
    task, model = digits_network()
    for spoilt in (True, False):
        data, wrong = batches(spoilt), list(BAD) if spoilt else []
        largest = largest_by_batch(model, data)
        answer = find(largest.copy())
        if answer is None or np.ndim(answer) != 1 or not all(float(i).is_integer() for i in np.asarray(answer)):
            raise NotSolved("suspects(largest) returns a list of batch numbers, an empty one where all are fine.")
        named = sorted({int(i) for i in answer})
        show(
            lesson07.suspects(largest[:, 0], wrong, named), "The largest input of each batch, and those that you named."
        )
        if missed := [i for i in wrong if i not in named]:
            raise NotSolved(f"Batch {missed[0]} is {SPOILT} times too large, and you did not name it. Wrong batches "
                            "raise the mean and the standard deviation themselves; the median stays.")  # fmt: skip
        if DARK in named:
            raise NotSolved(
                f"Batch {DARK} is dark, and you named it. Small values widen no range: look for large ones."
            )
        if innocent := [i for i in named if i not in wrong]:
            raise NotSolved(f"Batch {innocent[0]} is fine, and you named it. Batches differ by a factor of two now and "
                            "then; what is wrong here is hundreds of times as large.")  # fmt: skip
    bad = batches(True)
    good = [batch for i, batch in enumerate(bad) if i not in BAD]
    before, after = (evaluate(task, trtkit.quantize(model, data).run) for data in (bad, good))
    print(f"Right: accuracy {before:.1%} with the two batches, {after:.1%} without them.")
