"""Kernels laid over the layers that started them: an alignment of two lists in running order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trtkit.engine.profile import KernelTime, LayerCost, LayerTime


def lay_over(kernels: Sequence[KernelTime], costs: Sequence[LayerCost], flops: float, moved: float) -> list[LayerTime]:
    """Give each kernel to the layer that started it, and each layer the least time at these rates a second.

    Both lists are in running order. A layer may start several kernels (a product in parts, then their sum) or none;
    generated kernels carry their layer's operators in the name, the others do not. So: the alignment with the fewest
    contradictions, found by dynamic programming as for two texts.
    """
    given: list[list[KernelTime]] = [[] for _ in costs]
    for kernel, place in zip(kernels, _aligned(kernels, costs), strict=True):
        given[place].append(kernel)
    return [
        LayerTime(
            layer,
            sum(k.charged for k in mine),
            sum(k.duration for k in mine),
            tuple(k.name for k in mine),
            1e6 * max(layer.flops / flops, layer.bytes / moved),
        )
        for layer, mine in zip(costs, given, strict=True)
    ]


_HELPERS = ("splitk", "split_k", "reduce", "memset", "memcpy")  # what a product starts besides its kernel
# Price of a kernel under a wrong name, of a second one, of a layer without any, of a helper that comes first.
_CLASH, _MORE, _NONE, _HELPER = 4.0, 1.0, 1.5, 0.5


def _second(clash: float) -> float:
    """The price of a second kernel in a layer, low for a helper."""
    return 0.2 if clash == _HELPER else clash + _MORE


def _aligned(kernels: Sequence[KernelTime], costs: Sequence[LayerCost]) -> list[int]:
    """For each kernel the index of its layer, never falling."""
    rows, columns = len(kernels), len(costs)
    best = [[math.inf] * (columns + 1) for _ in range(rows + 1)]
    step = [[""] * (columns + 1) for _ in range(rows + 1)]
    best[0][0] = 0.0
    for i in range(rows + 1):
        for j in range(columns + 1):
            ways = []
            if i and j:
                clash = _clash(kernels[i - 1], costs[j - 1])
                ways = [(best[i - 1][j - 1] + clash, "first"), (best[i - 1][j] + _second(clash), "more")]
            if j:
                ways.append((best[i][j - 1] + _NONE, "none"))
            if ways:
                best[i][j], step[i][j] = min(ways)
    places, i, j = [0] * rows, rows, columns
    while i:
        if step[i][j] != "none":
            places[i - 1] = j - 1
        i, j = i - (step[i][j] != "none"), j - (step[i][j] != "more")
    return places


def _clash(kernel: KernelTime, layer: LayerCost) -> float:
    """0 where the kernel's name is the layer's, a little where it says nothing, much where it says another's."""
    if layer.tactic and kernel.name.startswith(layer.tactic):
        return 0.0
    generated = "__myl_" in kernel.name
    if not generated and layer.kind != "kgen" and any(word in kernel.name.lower() for word in _HELPERS):
        return _HELPER
    if generated and f"__myl_{layer.ops}_" in kernel.name:
        return 0.0
    if generated == (layer.kind == "kgen"):
        return _CLASH if generated else 0.0
    return _CLASH if layer.kind == "kgen" else 0.4
