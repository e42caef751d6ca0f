"""Lesson 08's pictures. Each takes plain arrays or numbers and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch
from numpy.typing import NDArray

from trtkit.bench.record import Records
from trtkit.course.pictures.lesson05 import TYPES
from trtkit.plot.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION

Ribbon = Sequence[tuple[str, int]]  # of every kernel the type of a tensor and its bytes, in order


def ribbons(engines: Mapping[str, Sequence[Ribbon]]) -> Figure:
    """Engines as ribbons: a piece for each kernel, as long as the bytes it reads and writes, coloured by type."""
    fig, axis = plt.subplots(figsize=(10, 0.62 * len(engines) + 0.9))
    longest = 0.0
    for y, kernels in enumerate(engines.values()):
        x = 0.0
        for tensors in kernels:
            start = x
            for dtype, size in tensors:
                tint = TYPES.get(dtype, ("#E4E6E9",))[0]
                axis.barh(y, size / 1e6, left=x, color=tint, height=0.6, alpha=0.6, linewidth=0)
                x += size / 1e6
            axis.plot([start, start], [y - 0.3, y + 0.3], color="white", linewidth=0.7)
        axis.text(x, y, f"  {x:.0f} MB in {len(kernels)} kernels", va="center", fontsize=8.5)
        longest = max(longest, x)
    axis.set_yticks(range(len(engines)), list(engines))
    axis.set(xlabel="MB that kernels read and write", xlim=(0, 1.28 * longest))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    drawn = {dtype for kernels in engines.values() for tensors in kernels for dtype, _ in tensors}
    handles = [Patch(color=tint, alpha=0.6, label=what) for dtype, (tint, what) in TYPES.items() if dtype in drawn]
    fig.legend(handles=handles, fontsize=8, loc="upper center", ncols=len(handles), bbox_to_anchor=(0.5, 1.06))
    fig.tight_layout()
    return fig


def rounding_order(results: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Figure:
    """Rounded before an operator (across) against rounded behind it (up), four panels in a row; off the line is red."""
    across = min(4, len(results))
    down = -(-len(results) // across)
    fig, axes = plt.subplots(down, across, figsize=(2.6 * across, 2.7 * down), squeeze=False)
    for axis in axes.flat[len(results) :]:
        axis.axis("off")
    for axis, (name, (before, after)) in zip(axes.flat, results.items(), strict=False):
        before, after = np.ravel(before), np.ravel(after)
        same = before == after
        low, high = float(min(before.min(), after.min())), float(max(before.max(), after.max()))
        axis.plot([low, high], [low, high], color="#d5d8dc", linewidth=3)
        axis.plot(before[same], after[same], ".", color=GREEN, markersize=3)
        axis.plot(before[~same], after[~same], ".", color=VERMILION, markersize=3)
        axis.set_title(f"{name}: {np.mean(~same):.0%} differ", fontsize=9)
        axis.set_xlabel("rounded before", fontsize=8)
        axis.tick_params(labelsize=7)
    for row in axes:
        row[0].set_ylabel("rounded behind", fontsize=8)
    fig.tight_layout()
    return fig


def layers(
    noise: Sequence[tuple[str, float]], engine: Mapping[str, tuple[int, int]], rival: Mapping[str, tuple[int, int]]
) -> Figure:
    """What each layer alone costs in accuracy (left), and in the engine (right): MB it moves, quantised and not.

    Args:
        noise: layers in the order of the network, each with the SQNR of the output if it alone is quantised.
        engine, rival: by layer the kernels and bytes in the quantised engine, and in the other.
    """
    names, decibels = [name for name, _ in noise], [value for _, value in noise]
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 0.19 * len(names) + 1.0), sharey=True)
    worst = sorted(decibels)[: max(1, len(decibels) // 6)][-1]
    left.barh(range(len(names)), decibels, color=[VERMILION if value <= worst else BLUE for value in decibels])
    left.set(xlabel="SQNR of the output if this layer alone is INT8, dB (short is bad)")
    loudest = sum(value <= worst for value in decibels)
    handles = [Patch(color=VERMILION, label=f"the {loudest} worst"), Patch(color=BLUE, label="all others")]
    left.legend(handles=handles, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    left.set_yticks(range(len(names)), names, fontsize=6.5)
    for y, name in enumerate(names):
        kernels, size = engine.get(name, (0, 0))
        right.barh(y, size / 1e6, color=PURPLE, height=0.7, alpha=0.75, label="INT8" if y == 0 else None)
        moved = rival.get(name, (0, 0))[1] / 1e6
        right.plot([moved] * 2, [y - 0.4, y + 0.4], color="black", linewidth=1.6, label="FP16" if y == 0 else None)
        right.text(size / 1e6, y, f" {kernels}", va="center", fontsize=6.5)
    right.set(xlabel="MB moved by its kernels (number: how many there are in INT8)")
    right.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
    left.invert_yaxis()
    fig.tight_layout()
    return fig


def channels(panels: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Figure:
    """Largest |value| of each channel of an activation and of the weight's rows behind it, a panel each."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 2.8), sharey=True, squeeze=False)
    for axis, (title, (activation, weight)) in zip(axes[0], panels.items(), strict=True):
        axis.semilogy(activation, color=BLUE, linewidth=1, label="activation")
        axis.semilogy(weight, color=ORANGE, linewidth=1, label="row of the weight")
        axis.set(xlabel="channel")
        axis.set_title(title, fontsize=9)
    axes[0][0].set_ylabel("largest |value|")
    axes[0][0].legend(fontsize=8)
    fig.tight_layout()
    return fig


def budgets(panels: Mapping[str, Mapping[str, tuple[float, float]]]) -> Figure:
    """MB of weights and of activations by precision, a panel for each batch."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 2.7), squeeze=False)
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        weights, moved = ([values[i] for values in rows.values()] for i in (0, 1))
        axis.bar(list(rows), weights, color=ORANGE, label="weights")
        drawn = axis.bar(list(rows), moved, bottom=weights, color=BLUE, label="between kernels")
        axis.bar_label(drawn, [f"{a + b:.1f}" for a, b in zip(weights, moved, strict=True)], fontsize=8, padding=2)
        axis.set_title(title, fontsize=9)
        axis.set_ylim(0, 1.2 * max(a + b for a, b in rows.values()))
        axis.tick_params(axis="x", labelsize=7.5)
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("MB in one call")
    fig.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, loc="upper center", ncols=2,
               bbox_to_anchor=(0.5, 1.07))  # fmt: skip
    fig.tight_layout()
    return fig


_HEAPS = {"products": ORANGE, "others": BLUE, "pauses": "#C9CCD1"}


def kernel_time(records: Mapping[str, Records]) -> Figure:
    """A panel for each record of `benchmarks.gpu_quant`: of every form a bar, the µs of a call in its kernels' heaps.

    Forms that were measured without the kernels' own times (`extra["kernel_us"]`) have no bar. Kernels that overlap
    more than they wait for each other (less than no pause) have no pause in it.
    """
    down = -(-len(records) // 2)
    fig, axes = plt.subplots(down, 2, figsize=(10, 1.75 * down + 0.3), squeeze=False)
    for axis in axes.flat[len(records) :]:
        axis.axis("off")
    for axis, (name, found) in zip(axes.flat, records.items(), strict=False):
        heaps = {form: one.extra["kernel_us"] for form, one in found.items() if "kernel_us" in one.extra}
        left = np.zeros(len(heaps))
        for heap, color in _HEAPS.items():
            width = np.array([max(0.0, heaps[form][heap]) for form in heaps])
            axis.barh(list(heaps), width, left=left, color=color, label=heap)
            left += width
        axis.invert_yaxis()
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", visible=False)
    for axis in axes[-1]:
        axis.set_xlabel("µs of one call")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1))
    fig.tight_layout()
    return fig


def flowchart(
    steps: Sequence[tuple[str, str, str]], seen: Mapping[int, str] | None = None, end: str = "INT8 can win: measure it"
) -> Figure:
    """Questions from top to bottom: yes leads on, no leads to a cause and its cure; `seen[i]` is shown beside."""
    seen = seen or {}
    fig, axis = plt.subplots(figsize=(10, 0.92 * len(steps) + 0.7))
    for y, (asks, cause, cure) in enumerate(steps):
        _box(axis, 0, y, 3.5, asks, "#E8F0FA", BLUE)
        _box(axis, 4.5, y, 6.6, f"{cause}.\nHelps: {cure}.", "#FBEDE4", VERMILION)
        axis.annotate("", (4.5, y), (3.5, y), arrowprops={"arrowstyle": "->", "color": VERMILION})
        axis.text(4.0, y - 0.07, "no", ha="center", va="bottom", fontsize=8.5, color=VERMILION)
        axis.annotate("", (1.75, y + 0.64), (1.75, y + 0.36), arrowprops={"arrowstyle": "->", "color": GREEN})
        axis.text(1.85, y + 0.5, "yes", va="center", fontsize=8.5, color=GREEN)
        if y in seen:
            axis.text(11.25, y, f"seen here:\n{seen[y]}", va="center", fontsize=7.5, color="#5F6368")
    _box(axis, 0, len(steps), 3.5, end, "#E3F2EA", GREEN)
    axis.set(xlim=(-0.1, 14.6 if seen else 11.2), ylim=(len(steps) + 0.5, -0.5))
    axis.axis("off")
    fig.tight_layout()
    return fig


def _box(axis: Axes, x: float, y: float, width: float, text: str, ground: str, edge: str) -> None:
    axis.add_patch(FancyBboxPatch((x + 0.05, y - 0.34), width - 0.1, 0.68, boxstyle="round,pad=0,rounding_size=0.12",
                                  facecolor=ground, edgecolor=edge, linewidth=1.1))  # fmt: skip
    axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=8)


def noise_sums(names: Sequence[str], noise: Sequence[float], kept: Sequence[str], allowed: float) -> Figure:
    """Noise of each layer, those kept in float hollow, and the sum of the others against what is allowed."""
    fig, axis = plt.subplots(figsize=(8.5, 2.8))
    axis.bar(range(len(names)), noise, color=["white" if name in kept else BLUE for name in names], edgecolor=BLUE)
    total = sum(n for name, n in zip(names, noise, strict=True) if name not in kept)
    axis.bar(len(names) + 1, total, color=GREEN if total <= allowed else VERMILION)
    axis.axhline(allowed, color="black", linewidth=1)
    axis.text(0, allowed, "allowed for the sum", fontsize=8, va="bottom")
    axis.set_xticks([*range(len(names)), len(names) + 1], [*names, "sum"], rotation=90, fontsize=6.5)
    axis.set(ylabel="noise by signal")
    axis.set_yscale("log")
    fig.tight_layout()
    return fig
