"""Lesson 12's pictures. Each takes plain arrays or names and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trtkit.plot.style import BLUE, GREEN, GREY, ORANGE, VERMILION


def mistakes(found: Mapping[str, tuple[float, float]]) -> Figure:
    """Relative error (log scale) and accuracy of the loop with each mistake, "right" among them."""
    names = list(found)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 0.34 * len(names) + 0.9), sharey=True)
    tints = [GREEN if name == "right" else VERMILION for name in names]
    left.barh(names, [max(error, 1e-9) for error, _ in found.values()], color=tints, height=0.62)
    left.set(xscale="log", xlabel="relative error against Keras", xlim=(1e-9, 30))
    shares = right.barh(names, [100 * accuracy for _, accuracy in found.values()], color=tints, height=0.62)
    right.bar_label(shares, fmt="%.0f %%", fontsize=8, padding=3)
    right.axvline(10, color=GREY, linestyle="--", linewidth=1)
    right.set(xlabel="digits read right, % (dashed: guessing)", xlim=(0, 115))
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
    left.invert_yaxis()
    fig.tight_layout()
    return fig


def numbered(panels: Mapping[str, NDArray[np.int64]]) -> Figure:
    """Small matrices of whole numbers, written into coloured squares: which number lies where."""
    fig, axes = plt.subplots(1, len(panels), figsize=(sum(0.42 * p.shape[1] + 0.9 for p in panels.values()), 1.9),
                             squeeze=False, width_ratios=[p.shape[1] + 1 for p in panels.values()])  # fmt: skip
    top = max(int(panel.max()) for panel in panels.values()) or 1
    for axis, (title, panel) in zip(axes[0], panels.items(), strict=True):
        axis.imshow(panel, cmap="viridis", vmin=0, vmax=top, aspect="equal")
        for (row, column), value in np.ndenumerate(panel):
            tint = "white" if value < 0.6 * top else "black"
            axis.text(column, row, int(value), ha="center", va="center", fontsize=8, color=tint)
        axis.set_title(title, fontsize=9)
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    fig.tight_layout()
    return fig


def kernels(rows: Sequence[tuple[str, Sequence[str]]], order: Sequence[str]) -> Figure:
    """A dot where a layer of the framework (across, in `order`) went into a kernel (down), joined in each kernel."""
    place = {name: at for at, name in enumerate(order)}
    fig, axis = plt.subplots(figsize=(max(6, 0.62 * len(order)), 0.32 * len(rows) + 1.5))
    for y, (_, names) in enumerate(rows):
        xs = sorted(place[name] for name in names if name in place)
        tint = BLUE if len(xs) > 1 else GREY
        axis.plot(xs, [y] * len(xs), "o-", color=tint, markersize=8, linewidth=3)
    axis.set_yticks(range(len(rows)), [kernel for kernel, _ in rows], fontsize=8)
    axis.set_xticks(range(len(order)), order, rotation=35, ha="left", fontsize=8)
    axis.xaxis.tick_top()
    axis.set(xlim=(-0.6, len(order) - 0.4), ylim=(len(rows) - 0.5, -0.5))
    fig.tight_layout()
    return fig


def phases(told: Sequence[tuple[float, str, int, int]]) -> Figure:
    """What an IProgressMonitor heard, (seconds, phase, step, steps): a bar for each phase, a tick for each step."""
    names = list(dict.fromkeys(phase for _, phase, _, _ in told))
    fig, axis = plt.subplots(figsize=(9, 0.32 * len(names) + 0.9))
    for y, name in enumerate(names):
        heard = [(at, steps) for at, phase, _, steps in told if phase == name]
        begin, end = heard[0][0], heard[-1][0]
        axis.barh(y, 1e3 * max(end - begin, 0.0005), left=1e3 * begin, color=BLUE, alpha=0.35, height=0.6)
        axis.plot([1e3 * at for at, _ in heard], [y] * len(heard), "|", color=BLUE, markersize=9)
    axis.set_yticks(range(len(names)), [name if len(name) < 42 else name[:41] + "…" for name in names], fontsize=7.5)
    axis.set(xlabel="ms since the build began")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    fig.tight_layout()
    return fig


def errors(rows: Mapping[str, Mapping[str, float]], limits: Mapping[str, float]) -> Figure:
    """Relative errors of many networks by kind (definition, FP32, TF32) on a log scale, dashed lines for tolerances."""
    names = list(rows)
    fig, axis = plt.subplots(figsize=(9, 0.27 * len(names) + 1.1))
    kinds = list(next(iter(rows.values())))
    for kind, tint, marker in zip(kinds, (GREEN, BLUE, ORANGE), "os^", strict=False):
        axis.plot([max(row[kind], 1e-9) for row in rows.values()], range(len(names)), marker, color=tint, label=kind)
        if kind in limits:
            axis.axvline(limits[kind], color=tint, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xscale="log", xlabel="relative error against the framework in FP32 (dashed: tolerance)")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=len(kinds))
    axis.invert_yaxis()
    fig.tight_layout()
    return fig


def spoken(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The picture of `errors` in words, for those who cannot see it.

    >>> spoken({"a": {"definition": 1e-7, "TF32": 2e-4}, "b": {"definition": 2e-7, "TF32": 1e-3}})
    'Relative errors of 2 networks against their frameworks, the largest: definition 2e-07, TF32 1e-03.'
    """
    kinds = list(next(iter(rows.values()), {}))
    worst = ", ".join(f"{kind} {max(row[kind] for row in rows.values()):.0e}" for kind in kinds)
    return f"Relative errors of {len(rows)} networks against their frameworks, the largest: {worst}."


def pads(rows: Mapping[str, tuple[int, int, int]], expected: Mapping[str, tuple[int, int]]) -> Figure:
    """Images in one dimension, (before, size, after) a row: white padding, blue pixels; red where it is not right."""
    fig, axis = plt.subplots(figsize=(7, 0.36 * len(rows) + 0.6))
    for y, (name, (before, size, after)) in enumerate(rows.items()):
        tint = GREEN if (before, after) == expected[name] else VERMILION
        axis.barh(y, size, left=0, color=BLUE, alpha=0.5, height=0.6)
        axis.barh([y, y], [before, after], left=[-before, size], color="white", edgecolor=tint, linewidth=2, height=0.6)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.set(xlabel="pixel")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    fig.tight_layout()
    return fig


def against(got: NDArray[np.float32], want: NDArray[np.float32], what: str) -> Figure:
    """Numbers computed (up) over numbers expected (across); what is right lies on the line."""
    fig, axis = plt.subplots(figsize=(4, 3.2))
    low, high = float(want.min()), float(want.max())
    axis.plot([low, high], [low, high], color="#d5d8dc", linewidth=4)
    right = np.isclose(got, want, rtol=1e-3, atol=1e-4)
    axis.plot(want[right], got[right], ".", color=GREEN)
    axis.plot(want[~right], got[~right], ".", color=VERMILION)
    axis.set(xlabel=f"{what}, expected", ylabel="yours")
    fig.tight_layout()
    return fig
