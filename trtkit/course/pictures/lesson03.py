"""Lesson 03's pictures. Each takes plain arrays or numbers and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

from trtkit.plot.operators import abbreviated, colour, ink
from trtkit.plot.style import BLUE, GREEN, GREY, ORANGE, VERMILION

Kernels = Sequence[Sequence[str]]  # operators by kernel, in order


def shares(panels: Mapping[str, Mapping[str, float]], most: int = 5) -> Figure:
    """Each operator's share of several quantities, a panel each; the operators in the order of the last panel."""
    last = list(panels.values())[-1]
    rows = sorted(last, key=lambda op: -last[op])[:most]
    fig, axes = plt.subplots(1, len(panels), figsize=(9.5, 0.4 * len(rows) + 0.9), sharey=True)
    for axis, (what, values) in zip(axes, panels.items(), strict=True):
        total = sum(values.values())
        parts = [values.get(op, 0.0) / total for op in rows]
        drawn = axis.barh(rows, parts, color=[colour(op) for op in rows])
        axis.bar_label(drawn, [f"{part:.0%}" for part in parts], padding=3, fontsize=8)
        axis.set(xlim=(0, 1.2))
        axis.set_title(what, fontsize=9)
        axis.set_xticks([])
        axis.grid(visible=False)
    axes[0].invert_yaxis()
    fig.tight_layout()
    return fig


def ranges(layers: Mapping[str, NDArray[Any]], what: str = "output channel") -> Figure:
    """For every output channel of a weight (M, ...) its largest absolute value, sorted, on a logarithmic axis."""
    fig, axis = plt.subplots(figsize=(7.5, 3.0))
    for (name, weight), tint in zip(layers.items(), (BLUE, VERMILION), strict=False):
        largest = np.sort(np.abs(weight).reshape(len(weight), -1).max(axis=1))
        axis.semilogy(largest, ".-", color=tint, label=f"{name}: factor {largest[-1] / largest[0]:,.0f}")
    axis.set(xlabel=f"{what}, smallest range first", ylabel="largest |weight|")
    axis.legend(fontsize=8, title="widest range by narrowest", title_fontsize=8)
    fig.tight_layout()
    return fig


def maps(images: Mapping[str, NDArray[Any]]) -> Figure:
    """Small matrices (H, W) as colours, each with its numbers' range."""
    fig, axes = plt.subplots(1, len(images), figsize=(3.1 * len(images), 2.9), squeeze=False)
    top = max(float(np.abs(image).max()) for image in images.values()) or 1.0
    for axis, (name, image) in zip(axes[0], images.items(), strict=True):
        shown = axis.imshow(image, cmap="YlOrRd", vmin=0, vmax=top)
        axis.set_title(name, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(visible=False)
        fig.colorbar(shown, ax=axis, shrink=0.8)
    fig.tight_layout()
    return fig


def tiles(sizes: Sequence[int], times_ms: Sequence[float], whole_ms: float, element: int = 4) -> Figure:
    """How long a chain takes in tiles of so many elements, and node by node over the whole array."""
    fig, axis = plt.subplots(figsize=(7.5, 3.2))
    axis.loglog([element * size / 1024 for size in sizes], times_ms, "o-", color=BLUE, label="tile by tile")
    axis.axhline(whole_ms, color=GREY, linestyle="--", linewidth=1.2, label="node by node, whole array")
    axis.set(xlabel="size of a tile, KiB", ylabel="ms for the whole array")
    axis.text(0.03, 0.62, "calls\ncost", transform=axis.transAxes, fontsize=9, color=VERMILION)
    axis.text(0.97, 0.45, "memory\ncosts", transform=axis.transAxes, fontsize=9, color=VERMILION, ha="right")
    axis.legend(fontsize=8, loc="upper right")
    fig.tight_layout()
    return fig


def kernel_rows(rows: Mapping[str, Kernels], notes: Mapping[str, str] | None = None) -> Figure:
    """Chains of operators, a row each, on a common ground where they are one kernel; a row's name and count beside."""
    left = max(len(name) for name in rows) * 0.082 + 0.2
    widest = max(sum(map(len, kernels)) for kernels in rows.values())
    fig, axis = plt.subplots(figsize=(9.5, 0.36 * len(rows) + 0.3))
    for y, (name, kernels) in enumerate(rows.items()):
        axis.text(0, y, name, va="center", fontsize=8)
        _row(axis, kernels, left, y)
        count = f"{len(kernels)} kernel{'' if len(kernels) == 1 else 's'}"
        note = (notes or {}).get(name, "")
        axis.text(left + widest * 1.0 + 0.25, y, f"{count}   {note}", va="center", fontsize=8)
    axis.set(xlim=(-0.05, left + widest + 3.4), ylim=(len(rows) - 0.4, -0.6))
    axis.axis("off")
    fig.tight_layout()
    return fig


def _row(axis: Axes, kernels: Kernels, x: float, y: float) -> None:
    for kernel in kernels:
        hull = FancyBboxPatch((x + 0.02, y - 0.42), len(kernel) - 0.04, 0.84, boxstyle="round,pad=0,rounding_size=0.1",
                              facecolor="#E3F2EA", edgecolor=GREEN, linewidth=1.2)  # fmt: skip
        axis.add_patch(hull)
        for op in kernel:
            axis.add_patch(FancyBboxPatch((x + 0.08, y - 0.28), 0.84, 0.56, boxstyle="round,pad=0,rounding_size=0.08",
                                          facecolor=colour(op), linewidth=0))  # fmt: skip
            axis.text(x + 0.5, y, abbreviated(op, 10), ha="center", va="center_baseline", fontsize=6.6,
                      color=ink(colour(op)))  # fmt: skip
            x += 1


def before_after(
    times: Mapping[str, tuple[float, float]], kernels: Mapping[str, tuple[int, int]], source: str
) -> Figure:
    """For each network its latency after by before; green where kernels became fewer, red where more."""
    names = sorted(times, key=lambda name: times[name][1] / times[name][0])
    ratios = [times[name][1] / times[name][0] for name in names]
    fig, axis = plt.subplots(figsize=(8, 0.33 * len(names) + 1.2))
    changes = [kernels[name][1] - kernels[name][0] for name in names]
    tints = [GREEN if change < 0 else VERMILION if change > 0 else GREY for change in changes]
    axis.barh(names, [ratio - 1 for ratio in ratios], left=1, color=tints, height=0.6)
    axis.axvline(1, color="black", linewidth=0.9)
    for y, (name, ratio) in enumerate(zip(names, ratios, strict=True)):
        before, after = kernels[name]
        words = f"{before} kernels" if before == after else f"{before} → {after} kernels"
        axis.text(1.16, y, f"{ratio:.2f}×   {words}", va="center", fontsize=8)
    axis.set(xlim=(0.74, 1.38), xlabel="latency with our fusions by latency without")
    axis.set_xticks([0.8, 0.9, 1.0, 1.1], ["0.8", "0.9", "1", "1.1"])
    axis.set_title(source, fontsize=8, loc="left", color=GREY, fontweight="normal")
    axis.grid(axis="y", visible=False)
    axis.invert_yaxis()
    fig.tight_layout()
    return fig


def predicted(rows: Mapping[str, tuple[Kernels, Kernels]]) -> Figure:
    """The reader's kernels above TensorRT's, chain by chain; wrong ones are named in red."""
    fig, axis = plt.subplots(figsize=(8.5, 0.72 * len(rows) + 0.3))
    for i, (yours, real) in enumerate(rows.values()):
        right = [tuple(kernel) for kernel in yours] == [tuple(kernel) for kernel in real]
        for dy, kernels, who in ((0.0, yours, "yours"), (0.92, real, "TensorRT")):
            tint = "black" if right else ORANGE if who == "TensorRT" else VERMILION
            axis.text(0, 2.25 * i + dy, who, fontsize=8, va="center", color=tint)
            _row(axis, kernels, 1.2, 2.25 * i + dy)
    axis.set(xlim=(-0.05, 8), ylim=(2.25 * len(rows) - 0.6, -0.6))
    axis.axis("off")
    fig.tight_layout()
    return fig
