"""Instant checks of lesson 00's exercises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trtkit.course.checks import NotSolved, number, show
from trtkit.course.pictures import lesson00 as pictures

if TYPE_CHECKING:
    from trtkit.engine.fusion import FusionMap


def check_scale(int8_scale: Callable[[NDArray[np.float32]], float]) -> None:
    """Lesson 00, exercise 1: the scale of symmetric INT8 quantisation from the largest absolute value."""
    x = np.random.default_rng(0).normal(0, 0.4, 400).astype(np.float32)
    x[7] = -1.9  # the largest value is negative, so that max(x) instead of max(|x|) is noticed
    scale = number(int8_scale(x.copy()), "int8_scale(x)")
    if scale <= 0:
        raise NotSolved(f"Your scale is {scale:g}. A scale is the width of a step, so it is positive.")
    right = float(np.abs(x).max() / 127)
    show(pictures.scale_check(x, scale), "Rounding error of each value with your scale.")
    if scale < 0.99 * right:
        raise NotSolved(f"Your steps are {scale:.5f} wide. 127 of them reach to {127 * scale:.3f}, but |x| reaches "
                        f"{np.abs(x).max():.3f}: the rest is cut off. Is the largest value negative?")  # fmt: skip
    if scale > 1.01 * right:
        raise NotSolved(f"Your steps are {scale:.5f} wide, wider than they need to be: the largest |x| becomes "
                        f"{np.abs(x).max() / scale:.1f}, and INT8 goes up to 127.")  # fmt: skip
    print("Right: 255 values to choose from, and the largest |x| gets the last one.")


def check_overall(overall_speedup: Callable[[float, float], float]) -> None:
    """Lesson 00, exercise 2: Amdahl's law."""
    shares = np.linspace(0, 1, 21)
    yours = np.array([number(overall_speedup(float(s), 4.0), "overall_speedup(share, factor)") for s in shares])
    show(
        pictures.overall_check(shares, yours), "Your overall speed-up against the share of the time that became faster."
    )
    for share, factor, right in ((0.0, 4.0, 1.0), (1.0, 4.0, 4.0), (0.5, 4.0, 1.6), (0.9, 2.0, 1 / 0.55)):
        got = number(overall_speedup(share, factor), "overall_speedup(share, factor)")
        if abs(got - right) > 1e-6:
            raise NotSolved(f"With {share:.0%} of the time made {factor:g} times faster you get {got:.3f}x overall; "
                            f"it is {right:.3f}x. Take 10 ms and write down what is left of each part.")  # fmt: skip
    print("Right: half of the time made 4 times faster gives 1.6x, and no factor at all gives more than 2x.")


def check_fold(fold: Callable[..., Any]) -> None:
    """Lesson 00, exercise 3: batch normalisation folded into the convolution before it."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(2, 3, 3, 3))
    gamma, beta, mean = rng.uniform(0.5, 2, 2), rng.normal(size=2), rng.normal(size=2)
    var, eps, x = rng.uniform(0.5, 3, 2), 1e-5, rng.normal(size=(3, 7, 7))
    answer = fold(weight.copy(), gamma, beta, mean, var, eps)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise NotSolved("fold() returns two arrays, the new weight and the new bias: return new_weight, new_bias")
    new_weight, new_bias = (np.asarray(part, np.float64) for part in answer)
    if new_weight.shape != weight.shape or new_bias.shape != beta.shape:
        raise NotSolved(f"The weight has shape {new_weight.shape}, the bias {new_bias.shape}; not "
                        f"{weight.shape}, {beta.shape}. There is one factor per output channel, axis 0.")  # fmt: skip
    normalised = (convolve(x, weight) - mean[:, None, None]) / np.sqrt(var + eps)[:, None, None]
    right = normalised * gamma[:, None, None] + beta[:, None, None]
    yours = convolve(x, new_weight) + new_bias[:, None, None]
    show(
        pictures.fold_check(right, yours),
        "Convolution with batch normalisation, your folded convolution, their difference.",
    )
    if not np.allclose(yours, right, atol=1e-9):
        shift = np.ptp(yours - right, axis=(1, 2)).max() < 1e-9
        where = "the bias: off by a constant" if shift else "the weight: the difference depends on the input"
        raise NotSolved(f"The two differ by up to {np.abs(yours - right).max():.2g}. The error is in {where}.")
    print("Right: one convolution now does the work of two nodes, to the last digit.")


def check_patterns(patterns: Callable[[FusionMap], Mapping[str, int]], fusion: FusionMap) -> None:
    """Lesson 00, exercise 4: what was fused with what, counted."""
    right = Counter("+".join(ops) for ops in fusion.groups.values() if len(ops) > 1)
    yours = patterns(fusion)
    if not isinstance(yours, Mapping) or not yours or not all(_is_count(*item) for item in yours.items()):
        raise NotSolved("patterns(fusion) returns a Counter such as {'Conv+Relu': 7}. fusion.groups.values() has the "
                        "operators of every kernel as tuples; '+'.join(ops) makes a name of one.")  # fmt: skip
    show(pictures.patterns_check(yours), "How often each group of operators became one kernel, by your count.")
    if dict(yours) != dict(right):
        wrong = sorted(set(yours.items()) ^ set(right.items()))
        alone = " A kernel of a single node is not a fusion." if any("+" not in name for name in yours) else ""
        raise NotSolved(f"Not quite: look at {wrong[0][0]!r}.{alone} A kernel counts once, whatever its size.")
    nodes = sum(len(name.split("+")) * count for name, count in right.items())
    print(f"Right: {sum(right.values())} kernels do the work of {nodes} nodes.")


def convolve(x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """A plain convolution, (C, H, W) with (M, C, k, k) to (M, H-k+1, W-k+1): no padding, stride 1.

    >>> convolve(np.ones((1, 3, 3)), np.ones((2, 1, 3, 3))).ravel()
    array([9., 9.])
    """
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))
    return np.einsum("chwij,mcij->mhw", windows, weight)


def _is_count(name: Any, count: Any) -> bool:
    return isinstance(name, str) and isinstance(count, (int, np.integer))
