"""Instant checks of lesson 06's exercises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trtkit.course.checks import NotSolved, number, show
from trtkit.course.pictures import lesson01, lesson05, lesson06
from trtkit.course.rounding import decibels, with_one_scale
from trtkit.quant.formats import INT8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Layers = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def check_affine(affine: Callable[[float, float], Any]) -> None:
    """Lesson 06, exercise 1: scale and zero point of uint8 codes for a range, zero being one of the numbers."""
    cases = {"-1 to 3": (-1.0, 3.0), "0 to 6": (0.0, 6.0), "-0.3 to 0.77": (-0.3, 0.77), "2 to 5": (2.0, 5.0),
             "-4 to -1": (-4.0, -1.0)}  # fmt: skip
    found = {}
    for name, (low, high) in cases.items():
        answer = affine(low, high)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise NotSolved("affine(low, high) returns two numbers, (scale, zero_point).")
        found[name] = number(answer[0], "The scale of affine(low, high)"), number(answer[1], "Its zero point")
    covered = {name: ((0 - zero) * scale, (255 - zero) * scale) for name, (scale, zero) in found.items()}
    show(lesson06.intervals(cases, covered), "What your codes cover, over what they should.")
    for name, (low, high) in cases.items():
        scale, zero = found[name]
        if zero != round(zero):
            raise NotSolved(f"{name}: the zero point is {zero:g}. It is itself a code, so a whole number: round it. "
                            "Then the number 0 is met exactly.")  # fmt: skip
        if not 0 <= zero <= 255:
            raise NotSolved(f"{name}: the zero point {zero:g} is no code of uint8 (0 to 255). The range has to be "
                            "widened first until it includes the number 0.")  # fmt: skip
        want = (max(high, 0.0) - min(low, 0.0)) / 255
        if not np.isclose(scale, want, rtol=1e-6):
            near = np.isclose(scale, want * 255 / 256, rtol=1e-6)
            raise NotSolved(f"{name}: the scale is {scale:.5g}, and {want:.5g} would do: "
                            + ("256 codes have 255 steps between them." if near
                               else "the width of the range, 0 included, by the number of steps."))  # fmt: skip
        if zero != np.rint(-min(low, 0.0) / want):
            raise NotSolved(f"{name}: code {zero:g} stands for 0, so code 0 for {-zero * scale:.3g}; it should stand "
                            f"for {min(low, 0.0):g}. The zero point is -low / scale.")  # fmt: skip
    print("Right: 5 ranges, and the number 0 is met exactly in each.")


def check_longest(longest: Callable[[int, int, int], Any]) -> None:
    """Lesson 06, exercise 2: how many products of codes an accumulator holds for certain."""
    cases = {"int8, int8 in int32": (127, 127, 32), "uint8, int8 in int32": (255, 127, 32),
             "int8, int8 in int16": (127, 127, 16), "uint8, int8 in int16": (255, 127, 16),
             "int4, int4 in int16": (7, 7, 16)}  # fmt: skip
    right = {name: (2 ** (bits - 1) - 1) // (x * w) for name, (x, w, bits) in cases.items()}
    yours = {name: number(longest(*case), "longest(x_largest, w_largest, bits)") for name, case in cases.items()}
    drawn, dots = ([float(np.log10(max(v, 0.1))) for v in each.values()] for each in (right, yours))
    show(
        lesson01.against(list(cases), drawn, dots, "products that fit, as a power of ten"), "Your counts on the right."
    )
    for name, (x, w, bits) in cases.items():
        want, have = right[name], yours[name]
        if have == want:
            continue
        if have == (2**bits - 1) // (x * w) or have == 2**bits // (x * w):
            hint = "one of the bits is the sign, so a sum ends at 2 ** (bits - 1) - 1"
        elif want < have < want + 1 or have == want + 1:
            hint = "a part of a product does not help: round down"
        elif have == (2 ** (bits - 1) - 1) // (x + w):
            hint = "codes are multiplied, not added"
        else:
            hint = "divide the largest sum that fits by the largest product"
        raise NotSolved(f"{name}: {want:,} products fit for certain, and you say {have:,.5g}: {hint}.")
    print("Right: 133,144 products of int8 codes fit into 32 bits, two into 16.")


def sums_and_multipliers() -> tuple[NDArray[np.int32], list[tuple[int, int]]]:
    """Exercise 3's sums, small ones and large ones, and multipliers as (m, shift): m / 2 ** shift."""
    rng = np.random.default_rng(6)
    sums = np.concatenate([np.arange(-40, 41), rng.integers(-500_000, 500_000, 400), [2_000_000, -2_000_000]])
    return sums.astype(np.int32), [(1_503_238_554, 31 + 11), (1_073_741_824, 30 + 12), (2_040_109_465, 31 + 9)]


def check_requantize(requantize: Callable[[NDArray[np.int32], int, int], Any]) -> None:
    """Lesson 06, exercise 3: int32 sums to int8 codes with whole numbers alone."""
    sums, multipliers = sums_and_multipliers()
    drawn: list[tuple[NDArray[Any], NDArray[Any]]] = []
    wrong: list[tuple[bool, float, str]] = []  # what needs no saturating first, then the furthest off
    for m, shift in multipliers:
        answer = requantize(sums.copy(), m, shift)
        if answer is None:
            raise NotSolved("requantize(sums, m, shift) returned nothing yet. It returns codes, of the shape of sums.")
        codes = np.asarray(answer)
        if codes.shape != sums.shape or codes.dtype.kind not in "iu":
            raise NotSolved(f"requantize(sums, m, shift) gives {codes.dtype} of shape {codes.shape}; whole numbers of "
                            f"shape {sums.shape} are wanted. A shift (>>) or // keeps them whole.")  # fmt: skip
        exact = np.array([int(s) * m / 2**shift for s in sums])  # Python's own whole numbers do not end at 64 bits
        drawn.append((exact, codes.astype(float)))
        for total, code, value in zip(sums, codes, exact, strict=True):
            off = _off(int(code), float(value))
            if off > 0.5 + 1e-9:
                hint = _why_code(int(total), m, shift, int(code), float(value))
                wrong.append((-128 <= value <= 127, off, hint))
    show(_codes_over_values(*drawn[0]), "Your codes over the exact values.")
    if wrong:
        raise NotSolved(max(wrong)[2])
    print(f"Right: {len(sums)} sums, {len(multipliers)} multipliers, and not one floating-point number.")


def _codes_over_values(exact: NDArray[Any], codes: NDArray[Any]) -> Figure:
    order = np.argsort(exact)
    exact, codes = exact[order], codes[order]
    right = np.clip(np.rint(exact), -128, 127)
    tie = (exact % 1 == 0.5) & (np.abs(codes - exact) == 0.5)  # either neighbour will do
    return lesson05.rounded_values(exact.clip(-160, 160), np.where(tie, codes, right), codes)


def _off(code: int, value: float) -> float:
    """How far a code is from the value, which is saturated first: at most a half if the code is right."""
    return abs(code - min(max(value, -128.0), 127.0)) if -128 <= code <= 127 else float("inf")


def _why_code(total: int, m: int, shift: int, code: int, value: float) -> str:
    start = f"{total} * {m} / 2**{shift} is {value:.4g}, and you give {code}: "
    if not -128 <= value <= 127:
        return start + "what is beyond the largest code becomes the largest, and what is below -128 becomes that."
    if code == int(np.floor(value)):
        return start + "a shift rounds down. Add a half before, which is 1 << (shift - 1)."
    if abs(code - value) <= 1:
        return start + "the nearest is wanted. // and >> round down, a cast of a float to int rounds to zero."
    return start + "the product needs up to 52 bits: widen the sums to int64 before you multiply."


def two_layers(seed: int = 6) -> tuple[Layers, NDArray[np.float32]]:
    """Exercise 4's layers, (w1, b1, w2) of w2 @ relu(w1 @ x + b1), with channels of very unequal size, and inputs."""
    rng = np.random.default_rng(seed)
    sizes = 2.0 ** rng.uniform(-5, 5, 48)
    w1 = rng.normal(size=(48, 32)) * sizes[:, None]
    b1 = rng.normal(size=48) * 0.3 * sizes
    w2 = rng.normal(size=(24, 48)) * (2.0 ** rng.uniform(-1, 1, 48) / sizes)
    w1[7], b1[7] = 0, 0  # a channel that training has switched off
    return (w1, b1, w2), rng.normal(size=(400, 32)).astype(np.float32)


def equalisation(w1: NDArray[Any], w2: NDArray[Any]) -> NDArray[Any]:
    """Exercise 4's answer: both ranges of each channel become their geometric mean (Nagel et al. 2019, equation 11)."""
    first, second = np.abs(w1).max(axis=1), np.abs(w2).max(axis=0)
    return np.sqrt(np.maximum(first, 1e-6) / np.maximum(second, 1e-6))


def quality_in_int8(layers: Layers, scales: NDArray[Any], x: NDArray[Any]) -> float:
    """dB of the output of two layers, the first divided and the second multiplied, one INT8 scale for each weight."""
    w1, b1, w2 = layers

    def run(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> NDArray[Any]:
        return np.maximum(x @ a.T + b, 0) @ c.T

    small, large = (with_one_scale(w, INT8) for w in (w1 / scales[:, None], w2 * scales))
    return decibels(run(w1, b1, w2), run(small, b1 / scales, large))


def check_equalise(equalise: Callable[[NDArray[Any], NDArray[Any]], Any]) -> None:
    """Lesson 06, exercise 4: factors for the channels between two layers, so that one scale does for each weight."""
    layers, x = two_layers()
    w1, _, w2 = layers
    answer = equalise(w1.copy(), w2.copy())
    if answer is None:
        raise NotSolved("equalise(w1, w2) returned nothing yet. It returns a factor for each of the 48 channels.")
    scales = np.asarray(answer, dtype=np.float64)
    if scales.shape != (len(w1),):
        raise NotSolved(f"equalise(w1, w2) gives shape {scales.shape}; one factor for each channel is wanted, "
                        f"({len(w1)},): rows of w1, columns of w2.")  # fmt: skip
    if not (np.isfinite(scales) & (scales > 0)).all():
        channel = int(np.flatnonzero(~(np.isfinite(scales) & (scales > 0)))[0])
        raise NotSolved(
            f"The factor of channel {channel} is {scales[channel]:g}. Factors have to be positive and finite, or ReLU "
            "does not let them through. What of a channel with nothing but zeros?"
        )
    before, best, yours = (quality_in_int8(layers, s, x) for s in (np.ones(len(w1)), equalisation(w1, w2), scales))
    ranges = {f"{what}, {name}": np.maximum(np.abs(w).max(axis=axis), 1e-4) for what, w, v, axis in
              (("first weight", w1, w1 / scales[:, None], 1), ("second weight", w2, w2 * scales, 0))
              for name, w in (("before", w), ("yours", v))}  # fmt: skip
    halves = {f"{what} weight": {state: ranges[f"{what} weight, {state}"] for state in ("before", "yours")}
              for what in ("first", "second")}  # fmt: skip
    show(lesson06.channel_ranges(halves), "Ranges of the channels in both weights, before and after.")
    if yours < best - 2:
        raise NotSolved(f"Before: {before:.1f} dB, with your factors {yours:.1f} dB, and {best:.1f} dB can be had. "
                        + _why_factors(scales, w1, w2))  # fmt: skip
    print(f"Right: from {before:.1f} to {yours:.1f} dB, and in float32 nothing has changed.")


def _why_factors(scales: NDArray[Any], w1: NDArray[Any], w2: NDArray[Any]) -> str:
    first, second = np.abs(w1).max(axis=1), np.abs(w2).max(axis=0)
    alive = first > 0
    if np.ptp(scales[alive]) == 0:
        return "They are all the same, so that nothing is equalised."
    if np.corrcoef(np.log(scales[alive]), np.log((first / second)[alive]))[0, 1] < 0:
        return "The first weight is divided by them and the second multiplied: yours work the other way round."
    if (second * scales)[~alive].max() > 3 * (second * scales)[alive].max():
        return "A channel that is switched off still has weights behind it, which stretch the second scale for nobody."
    return "Choose them so that row i of the first and column i of the second have the same largest |weight|."
