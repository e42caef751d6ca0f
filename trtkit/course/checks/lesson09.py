"""Instant checks of lesson 09's exercises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtkit.course.checks import NotSolved, number, show
from trtkit.course.pictures import lesson01, lesson09
from trtkit.quant.formats import IntFormat

LOWEST, HIGHEST = -7, 7  # the codes of the exercises: 4 bits, as weights use them
CODES = IntFormat("INT4", LOWEST, HIGHEST)


def check_gradient(gradient: Callable[[NDArray[Any], float, NDArray[Any]], Any]) -> None:
    """Lesson 09, exercise 1: the straight-through gradient of x, clipped."""
    x, upstream = np.linspace(-1.5, 1.5, 61), np.cos(np.linspace(0, 5, 61)) + 1.5
    step = 0.125
    inside = (x / step > LOWEST) & (x / step < HIGHEST)
    right = np.where(inside, upstream, 0.0)
    yours = array(gradient(x.copy(), step, upstream.copy()), x.shape, "gradient(x, step, upstream)")
    show(lesson09.gradients(x, right, yours, (LOWEST * step, HIGHEST * step)), "Your gradient of x on the right one.")
    if not np.allclose(yours, right):
        raise NotSolved(_why(yours, right, upstream, inside))
    print("Right: through within the range, and nothing beyond it.")


def _why(yours: NDArray[Any], right: NDArray[Any], upstream: NDArray[Any], inside: NDArray[Any]) -> str:
    if np.allclose(yours, 0):
        return "Zero everywhere is the true gradient of rounding, which teaches nothing: let `upstream` through."
    if np.allclose(yours, upstream):
        return "Where x is clipped, moving it changes nothing: there, with x / step at -7 or 7 or beyond, it is 0."
    if np.allclose(yours, inside):
        return "Inside it is the upstream gradient, not 1: the chain rule multiplies by what comes from above."
    if np.allclose(yours[inside], right[inside]):
        return f"Within the range it is right, beyond it is not: {np.abs(yours[~inside]).max():g} should be 0."
    wrong = int(np.flatnonzero(~np.isclose(yours, right))[0])
    return f"At place {wrong} it should be {right[wrong]:.3g}; you have {yours[wrong]:.3g}. Is it upstream itself?"


def step_gradient(x: NDArray[Any], step: float, upstream: NDArray[Any]) -> float:
    """Exercise 2's answer: LSQ's gradient of the step (Esser et al. 2020, eq. 3), summed over all x."""
    ratio = x / step
    slope = np.where(ratio <= LOWEST, LOWEST, np.where(ratio >= HIGHEST, HIGHEST, np.rint(ratio) - ratio))
    return float((slope * upstream).sum())


def check_step_gradient(gradient: Callable[[NDArray[Any], float, NDArray[Any]], Any]) -> None:
    """Lesson 09, exercise 2: the gradient of the step, for single numbers and for a thousand."""
    single = {"0.26": 0.26, "-0.26": -0.26, "0.04": 0.04, "5": 5.0, "-5": -5.0}
    cases = {name: (np.array([value]), 0.1, np.array([1.0])) for name, value in single.items()}
    rng = np.random.default_rng(0)
    cases["1000 numbers"] = rng.normal(0, 0.4, 1000), 0.1, rng.normal(0, 0.02, 1000)
    right = {name: step_gradient(*case) for name, case in cases.items()}
    yours = {name: number(gradient(case[0].copy(), case[1], case[2].copy()), "step_gradient(x, step, upstream)")
             for name, case in cases.items()}  # fmt: skip
    show(
        lesson01.against([f"x = {name}" for name in cases], list(right.values()), list(yours.values()), "gradient"),
        "Your gradients of the step on the right ones.",
    )
    for name, want in right.items():
        if not np.isclose(yours[name], want, atol=1e-6):
            raise NotSolved(f"x = {name}, step 0.1: {want:.4g} is wanted, and you have {yours[name]:.4g}. "
                            + _why_step(name, yours, right))  # fmt: skip
    print("Right: rounding pulls the step both ways, clipping only outwards.")


def _why_step(name: str, yours: dict[str, float], right: dict[str, float]) -> str:
    if name in ("5", "-5"):
        return "Beyond the range y = 7 step or -7 step: its slope is the code at the end, 7 or -7."
    if name == "1000 numbers":
        return "Multiply each slope by its upstream gradient, and add up."
    if np.isclose(yours[name], -right[name]):
        return "The sign is the other way round: the code minus the ratio."
    if np.isclose(yours[name], round(yours[name])):
        return "The code alone is how y grows with the step if the code stays. It does not: take x / step away."
    return "Within the range it is round(x / step) - x / step."


def check_learned_step(learn: Callable[[NDArray[Any]], Any]) -> None:
    """Lesson 09, exercise 3: a step learned by gradient descent, as good as the best that a search finds."""
    rng = np.random.default_rng(0)
    heavy = rng.standard_t(4, 4000)
    data = {"normal": rng.standard_normal(4000), "small": 0.01 * rng.standard_normal(4000),
            "heavy tails": heavy, "uniform": rng.uniform(-3, 3, 4000)}  # fmt: skip
    panels, worse = {}, {}
    for name, x in data.items():
        tried = np.geomspace(0.05, 1.2, 300) * np.abs(x).max() / HIGHEST
        errors = np.array([error(x, step) for step in tried])
        yours = number(learn(x.copy()), "learn_step(x)")
        if yours <= 0:
            raise NotSolved(f"{name}: a step is positive, and yours is {yours:g}. Learn its logarithm, or go slower.")
        panels[name] = tried, errors, yours, error(x, yours)
        worse[name] = error(x, yours) / errors.min()
    show(lesson09.valleys(panels), "The error over the step for four kinds of data, and where your step lies.")
    for name, factor in worse.items():
        if factor > 1.05:
            tried, errors, yours, _ = panels[name]
            best = tried[errors.argmin()]
            where = "too long" if yours > best else "too short"
            raise NotSolved(f"{name}: your step, {yours:.3g}, is {where}; at {best:.3g} the error is {factor:.2f} "
                            "times smaller. Does it move by parts of itself, and often enough?")  # fmt: skip
    print(f"Right: within {max(worse.values()) - 1:.1%} of the best error, on each.")


def error(x: NDArray[Any], step: float) -> float:
    """Mean squared error of x in 4 bits with this step."""
    return float(((CODES.round(x, step) - x) ** 2).mean())


def two_layers() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Exercise 4's layers, y = w2 @ relu(w1 @ x + b1), whose hidden channels have ranges far apart."""
    rng = np.random.default_rng(3)
    spread = 10 ** rng.uniform(-1.2, 1.2, 12)
    w1, b1 = rng.standard_normal((12, 8)) * spread[:, None], rng.standard_normal(12) * spread
    return w1, b1, rng.standard_normal((5, 12)) / spread


def forward(w1: NDArray[Any], b1: NDArray[Any], w2: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """(8, N) to (5, N)."""
    return np.asarray(w2 @ np.maximum(w1 @ x + b1[:, None], 0))


def rounded(weight: NDArray[Any]) -> NDArray[Any]:
    """A weight in 4 bits with one step for all."""
    return CODES.round(weight, np.abs(weight).max() / HIGHEST)


def check_equalized(equalize: Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], Any]) -> None:
    """Lesson 09, exercise 4: two layers whose hidden channels have equal ranges, and that compute the same."""
    before = two_layers()
    answer = equalize(*(a.copy() for a in before))
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        raise NotSolved("equalize(w1, b1, w2) should return three arrays: w1, b1 and w2, changed.")
    w1, b1, w2 = (array(a, b.shape, what) for a, b, what in zip(answer, before, ("w1", "b1", "w2"), strict=True))
    ranges = {"before": _ranges(before[0], before[2]), "yours": _ranges(w1, w2)}
    show(lesson09.channel_ranges(ranges), "The largest weight of each hidden channel in both layers, before and after.")
    x = np.random.default_rng(4).standard_normal((8, 500))
    want, have = forward(*before, x), forward(w1, b1, w2, x)
    if not np.allclose(want, have, rtol=1e-4, atol=1e-4 * np.abs(want).max()):
        raise NotSolved("The two layers compute something else now. What row i of w1 and b1[i] are divided by, "
                        "column i of w2 is multiplied by; a positive number passes through a ReLU.")  # fmt: skip
    one, other = ranges["yours"]
    if not np.allclose(one, other, rtol=0.01):
        raise NotSolved("It computes the same, but the ranges differ still: channel "
                        f"{int(np.abs(np.log(one / other)).argmax())} reaches {one.max():.3g} in one of the layers. "
                        "The factor sqrt(r1 / r2) makes both sqrt(r1 * r2).")  # fmt: skip
    noise = [np.linalg.norm(forward(rounded(a), b, rounded(c), x) - want) / np.linalg.norm(want)
             for a, b, c in (before, (w1, b1, w2))]  # fmt: skip
    print(f"Right: with 4 bits and one step a layer, the outputs were off by {noise[0]:.0%}, now by {noise[1]:.0%}.")


def _ranges(w1: NDArray[Any], w2: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.abs(w1).max(axis=1), np.abs(w2).max(axis=0)


def array(answer: Any, shape: tuple[int, ...], what: str) -> NDArray[Any]:
    """The answer as a finite array of that shape; NotSolved with a hint where it is none."""
    if answer is None:
        raise NotSolved(f"{what} is nothing yet. Write the body above; the text tells what it should compute.")
    found = np.asarray(answer)
    if found.shape != shape or found.dtype.kind not in "biuf":
        raise NotSolved(
            f"{what} should be an array of numbers of shape {shape}, and is {found.dtype} of {found.shape}."
        )
    if not np.isfinite(found).all():
        raise NotSolved(f"{what} holds NaN or infinity. Is something divided by zero?")
    return found.astype(float)
