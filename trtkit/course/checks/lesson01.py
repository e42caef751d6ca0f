"""Instant checks of lesson 01's exercises."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

from trtkit.course.checks import NotSolved, number, show
from trtkit.course.pictures import lesson01 as pictures

# of a residual block with a shortcut: what each tensor is computed from, and its size in bytes
READS: dict[str, list[str]] = {
    "c1": ["x"], "r1": ["c1"], "c2": ["r1"], "s": ["x"], "sum": ["c2", "s"], "y": ["sum"],
}  # fmt: skip
SIZES = {"x": 100, "c1": 400, "r1": 400, "c2": 200, "s": 200, "sum": 200, "y": 200}

_CONVOLUTIONS = (  # name, output, weight
    ("first layer", (1, 64, 112, 112), (64, 3, 7, 7)),
    ("3×3", (1, 64, 56, 56), (64, 64, 3, 3)),
    ("pointwise", (1, 256, 56, 56), (256, 64, 1, 1)),
    ("depthwise", (1, 32, 112, 112), (32, 1, 3, 3)),
    ("batch of 8", (8, 64, 56, 56), (64, 64, 3, 3)),
)


def check_conv_flops(conv_flops: Callable[[Sequence[int], Sequence[int]], float]) -> None:
    """Lesson 01, exercise 1: FLOPs of a convolution from the shapes of its output and its weight."""
    right = [2 * math.prod(out) * math.prod(weight[1:]) for _, out, weight in _CONVOLUTIONS]
    yours = [number(conv_flops(out, weight), "conv_flops(out, weight)") for _, out, weight in _CONVOLUTIONS]
    names = [name for name, _, _ in _CONVOLUTIONS]
    show(pictures.against(names, right, yours, "FLOPs"), "Your FLOPs of five convolutions on the right ones.")
    for (name, out, weight), want, have in zip(_CONVOLUTIONS, right, yours, strict=True):
        if abs(have - want) <= 1e-6 * want:
            continue
        if abs(have * 2 - want) <= 1e-6 * want:
            hint = "exactly half: a multiplication and an addition are two FLOPs"
        elif abs(have - want * weight[0]) <= 1e-6 * have:
            hint = "the output channels are counted twice: they are in the output's shape already"
        elif out[0] > 1 and abs(have * out[0] - want) <= 1e-6 * want:
            hint = "all images of the batch count"
        else:
            hint = f"each of the {math.prod(out):,} outputs sums {math.prod(weight[1:])} products"
        raise NotSolved(
            f"For {name}, output {out} and weight {weight}, you get {have:,.0f} instead of {want:,}: {hint}."
        )
    print("Right: every output element is a sum of C/group × k × k products.")


def check_intensity(intensity: Callable[[int, int, int], float]) -> None:
    """Lesson 01, exercise 2: FLOPs per byte of a float32 matrix product (m, k) times (k, n)."""
    cases = [(1, 1024, 1024), (8, 1024, 1024), (64, 1024, 1024), (1024, 1024, 1024), (512, 64, 512)]
    right = [2 * m * k * n / (4 * (m * k + k * n + m * n)) for m, k, n in cases]
    yours = [number(intensity(*case), "intensity(m, k, n)") for case in cases]
    names = ["×".join(map(str, case)) for case in cases]
    show(pictures.against(names, right, yours, "FLOPs per byte"), "Your intensity of five matrix products.")
    for case, want, have in zip(cases, right, yours, strict=True):
        if abs(have - want) > 1e-6 * want:
            hint = "a float32 has 4 bytes" if abs(have - 4 * want) < 1e-6 * have else (
                "three matrices travel: two are read, one is written"
            )  # fmt: skip
            raise NotSolved(f"(m, k, n) = {case} has {want:.3f} FLOPs per byte, and you get {have:.3f}: {hint}.")
    print("Right: one row (batch 1) gives half a FLOP per byte, however large the matrix.")


def check_topological(topological: Callable[[Mapping[str, Sequence[str]]], Sequence[str]]) -> None:
    """Lesson 01, exercise 3: an order in which every tensor comes after those it is computed from."""
    for seed in range(4):
        names = list(READS)
        random.Random(seed).shuffle(names)
        reads = {name: list(READS[name]) for name in names}
        answer = topological({name: list(sources) for name, sources in reads.items()})
        if answer is None or isinstance(answer, str) or not all(isinstance(name, str) for name in answer):
            raise NotSolved("topological(reads) returns a list of names, each after those that it is computed from.")
        order = list(answer)
        if seed == 0:
            show(
                pictures.order(order, reads),
                "Your order as nodes on a line, with an arc for every tensor that is read.",
            )
        _check_order(order, reads)
    print("Right: in this order an interpreter needs one pass.")


def _check_order(order: list[str], reads: Mapping[str, Sequence[str]]) -> None:
    if "x" in order:
        raise NotSolved("'x' is an input of the graph: nothing computes it, so it has no place in the order.")
    if missing := [name for name in reads if name not in order]:
        raise NotSolved(f"{missing} are missing in your order {order}.")
    if len(order) != len(reads):
        raise NotSolved(f"Your order {order} computes something twice, or something that is not in the graph.")
    for i, name in enumerate(order):
        for source in reads[name]:
            if source in reads and source not in order[:i]:
                raise NotSolved(f"{name!r} reads {source!r}, which your order computes only later: {order}. A node is "
                                "ready when everything that it reads is an input or was computed.")  # fmt: skip


def check_peak(peak_bytes: Callable[..., float]) -> None:
    """Lesson 01, exercise 4: the most bytes alive at once, for two orders of one graph."""
    answers = []
    for order in (list(READS), ["s", "c1", "r1", "c2", "sum", "y"]):
        live = live_bytes(order, READS, SIZES)
        yours = number(peak_bytes(list(order), dict(READS), dict(SIZES)), "peak_bytes(order, reads, sizes)")
        show(pictures.peak(live, yours), f"What is alive at each node in the order {', '.join(order)}, and your peak.")
        if yours != max(live):
            raise NotSolved(f"In the order {order} at most {max(live)} bytes are alive, and you find {yours:g}. "
                            f"{_peak_hint(yours, order, live)}")  # fmt: skip
        answers.append(max(live))
    print(f"Right: {answers[0]} bytes in one order, {answers[1]} in the other. Same graph, same answer.")


def _peak_hint(yours: float, order: Sequence[str], live: Sequence[int]) -> str:
    if yours == sum(SIZES.values()):
        return "That is all tensors together. A tensor dies after the last node that reads it."
    if yours == max(SIZES[name] for name in order):
        return "That is the largest single tensor. While a node runs, what it reads and what it writes are both alive."
    if yours < max(live):
        return "Does the input x stay until its last reader, and what a node reads until it has run?"
    return "A tensor is alive from the node that writes it to the last one that reads it."


def live_bytes(order: Sequence[str], reads: Mapping[str, Sequence[str]], sizes: Mapping[str, int]) -> list[int]:
    """What is alive while each node runs; inputs from the start on, what nobody reads to the end.

    >>> live_bytes(["a", "y"], {"a": ["x"], "y": ["a"]}, {"x": 1, "a": 10, "y": 100})
    [11, 110]
    """
    last: dict[str, int] = {source: i for i, name in enumerate(order) for source in reads[name]}
    first = {name: i for i, name in enumerate(order)}
    return [
        sum(size for name, size in sizes.items() if first.get(name, 0) <= i <= last.get(name, len(order)))
        for i in range(len(order))
    ]
