"""Lesson 09's pictures. Each takes plain arrays or numbers and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trtkit.plot.style import BLUE, GREEN, GREY, ORANGE, VERMILION

TINTS = (BLUE, ORANGE, GREEN, VERMILION, GREY)


def fewer_bits(curves: Mapping[str, Mapping[int, float]], whole: float) -> Figure:
    """Accuracy over the bits of a weight, curves[how][bits], below that of the network in float."""
    fig, axis = plt.subplots(figsize=(6.8, 3.2))
    for (name, values), tint in zip(curves.items(), TINTS, strict=False):
        axis.plot(list(values), [100 * v for v in values.values()], "o-", color=tint, label=name)
    axis.axhline(100 * whole, color="black", linewidth=1, linestyle="--")
    axis.text(max(max(v) for v in curves.values()), 100 * whole + 1.5, "float", ha="right", fontsize=8)
    axis.invert_xaxis()
    axis.set_xticks(list(next(iter(curves.values()))))
    axis.set(xlabel="bits of a weight", ylabel="accuracy in %", ylim=(0, 108))
    axis.legend(fontsize=8, loc="lower left")
    fig.tight_layout()
    return fig


def ladder(rows: Mapping[str, float], whole: float, highlight: Sequence[str] = ()) -> Figure:
    """Accuracies as bars from top to bottom, the float network's as a line."""
    fig, axis = plt.subplots(figsize=(7.8, 0.38 * len(rows) + 0.8))
    tints = [GREEN if name in highlight else BLUE for name in rows]
    drawn = axis.barh(list(rows), [100 * v for v in rows.values()], color=tints, height=0.6)
    for bar, value in zip(drawn, rows.values(), strict=True):
        inside = value > 0.15  # beside the bar, the line would run through it
        axis.text(100 * value + (-1 if inside else 1), bar.get_y() + 0.3, f"{100 * value:.1f}", va="center", fontsize=8,
                  ha="right" if inside else "left", color="white" if inside else "black")  # fmt: skip
    axis.axvline(100 * whole, color="black", linewidth=1, linestyle="--")
    axis.set(xlim=(0, 112), xlabel="accuracy in %, the line is the network in float")
    axis.grid(axis="y", visible=False)
    axis.invert_yaxis()
    fig.tight_layout()
    return fig


def staircase(x: NDArray[Any], curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> Figure:
    """Above a function, below its slope, a column for each: curves[title] = (values, slopes)."""
    fig, axes = plt.subplots(2, len(curves), figsize=(3.3 * len(curves), 3.9), sharex=True, sharey="row", squeeze=False,
                             height_ratios=(2, 1))  # fmt: skip
    for (title, (values, slopes)), (above, below), tint in zip(
        curves.items(), axes.T, (VERMILION, ORANGE, BLUE), strict=False
    ):
        above.plot(x, values, color=tint)
        above.set_title(title, fontsize=9)
        below.plot(x, slopes, color=tint)
        below.set(xlabel="x / s", ylim=(-0.2, 1.4))
    axes[0][0].set_ylabel("y / s")
    axes[1][0].set_ylabel("slope")
    fig.tight_layout()
    return fig


def walks(paths: Mapping[str, tuple[Sequence[float], Sequence[float]]], target: float) -> Figure:
    """A weight while it learns, and what it is rounded to: paths[how] = (weight, rounded), step by step."""
    fig, axes = plt.subplots(1, len(paths), figsize=(3.3 * len(paths), 2.9), sharey=True, squeeze=False)
    for axis, (title, (weight, coarse)) in zip(axes[0], paths.items(), strict=True):
        axis.axhline(target, color="black", linewidth=1, linestyle="--")
        axis.step(range(len(coarse)), coarse, where="mid", color=ORANGE, linewidth=1.2, label="rounded")
        axis.plot(weight, color=BLUE, label="weight")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("updates")
    axes[0][0].legend(fontsize=8)
    axes[0][0].set_ylabel("value; dashed: what is wanted")
    fig.tight_layout()
    return fig


def slopes(steps: NDArray[Any], loss: NDArray[Any], gradients: Mapping[str, NDArray[Any]]) -> Figure:
    """A loss over the step, and beside it its slope in several ways; the last of them is drawn as dots."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.1))
    left.plot(steps, loss, color=BLUE)
    best = int(loss.argmin())
    left.plot(steps[best], loss[best], "o", color=GREEN)
    place = {"xytext": (14, -4), "textcoords": "offset points"}
    left.annotate("the best step", (steps[best], loss[best]), fontsize=8, **place)
    left.set(xlabel="step s", ylabel="loss", ylim=(0, None))
    *lines, dots = gradients
    for name, tint in zip(lines, (ORANGE, VERMILION), strict=False):
        right.plot(steps, gradients[name], color=tint, label=name)
    right.plot(steps[::4], gradients[dots][::4], ".", color="black", label=dots)
    right.axhline(0, color="black", linewidth=0.8)
    right.axvline(steps[best], color=GREEN, linewidth=1, linestyle="--")
    right.set(xlabel="step s", ylabel="slope of the loss")
    right.legend(fontsize=8)
    fig.tight_layout()
    return fig


def places(rows: Sequence[tuple[str, str, str]]) -> Figure:
    """The layers of a network in order, (name, kind, type in the engine): rounded ones with their fake quantisers."""
    width = 7
    lines = -(-len(rows) // width)
    fig, axis = plt.subplots(figsize=(10, 0.9 * lines + 0.5))
    for i, (name, kind, note) in enumerate(rows):
        x, y = i % width, i // width
        tint = {"depthwise": ORANGE, "Linear": GREEN}.get(kind, BLUE)
        axis.add_patch(plt.Rectangle((x + 0.14, y - 0.28), 0.78, 0.56, facecolor=tint, alpha=0.3, linewidth=0))
        axis.text(x + 0.53, y - 0.1, name, ha="center", va="center", fontsize=7.5)
        axis.text(x + 0.53, y + 0.12, note, ha="center", va="center", fontsize=6.5, color="#3C4043")
        axis.plot(x + 0.07, y, "D", color=VERMILION, markersize=5)
        axis.plot(x + 0.53, y - 0.28, "v", color=VERMILION, markersize=6)
    axis.set(xlim=(0, width), ylim=(lines - 0.5, -0.55))
    axis.axis("off")
    handles = [plt.Line2D([], [], linestyle="", marker=mark, color=tint, label=what) for mark, tint, what in
               (("D", VERMILION, "rounds the input"), ("v", VERMILION, "rounds the weight"), ("s", BLUE, "convolution"),
                ("s", ORANGE, "depthwise"), ("s", GREEN, "linear"))]  # fmt: skip
    fig.legend(handles=handles, loc="lower center", ncols=5, fontsize=8, bbox_to_anchor=(0.5, -0.04))
    fig.tight_layout()
    return fig


def epochs(curves: Mapping[str, Sequence[float | None]], whole: float) -> Figure:
    """Accuracy before training and after each epoch (None: not known), a line for each way, and the float network's."""
    fig, axis = plt.subplots(figsize=(6.8, 3.2))
    for (name, values), tint in zip(curves.items(), TINTS, strict=False):
        known = [(i, 100 * v) for i, v in enumerate(values) if v is not None]
        axis.plot(*zip(*known, strict=True), "o-", color=tint, label=name)
    most = max(len(values) for values in curves.values()) - 1
    axis.axhline(100 * whole, color="black", linewidth=1, linestyle="--")
    axis.text(most, 100 * whole + 1.5, "float", ha="right", fontsize=8)
    axis.set_xticks(range(most + 1))
    axis.set(xlabel="epochs", ylabel="accuracy in %", ylim=(0, 108))
    axis.legend(fontsize=8, loc="center right")
    fig.tight_layout()
    return fig


def moved(weights: Mapping[str, tuple[NDArray[Any], float]], most: int = 30) -> Figure:
    """Weights of a layer, each (values in steps of the grid, highest code), as a histogram with the grid's codes."""
    fig, axes = plt.subplots(1, len(weights), figsize=(4.3 * len(weights), 2.7), sharey=True, squeeze=False)
    for axis, ((title, (ratio, highest)), tint) in zip(axes[0], zip(weights.items(), TINTS, strict=False), strict=True):
        axis.hist(np.clip(ratio, -highest - 0.5, highest + 0.5), bins=most * 3, color=tint, density=True)
        for code in range(-int(highest), int(highest) + 1):
            axis.axvline(code, color="black", linewidth=0.9)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("weight / step; lines are the codes")
        axis.grid(visible=False)
    axes[0][0].set_ylabel("how many (density)")
    fig.tight_layout()
    return fig


def growth(layers: Mapping[str, NDArray[Any]]) -> Figure:
    """By how many percent each layer's steps changed, given as factors: a dot for every step, a line at the median."""
    fig, axis = plt.subplots(figsize=(8.5, 3.0))
    for i, factors in enumerate(layers.values()):
        spread = np.linspace(-0.22, 0.22, factors.size) if factors.size > 1 else np.zeros(1)
        axis.plot(i + spread, 100 * (factors - 1), ".", color=BLUE, markersize=3)
        axis.plot([i - 0.3, i + 0.3], [100 * (np.median(factors) - 1)] * 2, color=ORANGE)
    axis.axhline(0, color="black", linewidth=0.9)
    axis.set_xticks(range(len(layers)), list(layers), rotation=60, ha="right", fontsize=7)
    axis.set(ylabel="change of the step in %")
    fig.tight_layout()
    return fig


def gradients(x: NDArray[Any], right: NDArray[Any], yours: NDArray[Any], ends: tuple[float, float]) -> Figure:
    """A gradient and yours as dots on it, the clipped parts shaded; wrong dots red."""
    fig, axis = plt.subplots(figsize=(7, 2.9))
    for low, high in ((x[0], ends[0]), (ends[1], x[-1])):
        axis.axvspan(low, high, color="#E4E6E9", linewidth=0)
    axis.plot(x, right, color="#b8bcc2", linewidth=4, label="right")
    good = np.isclose(yours, right)
    axis.plot(x[good], yours[good], ".", color=GREEN, label="yours")
    if not good.all():
        axis.plot(x[~good], yours[~good], "x", color=VERMILION, label="yours, wrong")
    axis.set(xlabel="x; clipped where it is grey", ylabel="gradient of x")
    axis.legend(fontsize=8)
    fig.tight_layout()
    return fig


def valleys(panels: Mapping[str, tuple[NDArray[Any], NDArray[Any], float, float]]) -> Figure:
    """Errors over steps, with yours as a dot: panels[data] = (steps, errors, your step, its error)."""
    fig, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 2.5), squeeze=False)
    for axis, (title, (steps, errors, step, value)) in zip(axes[0], panels.items(), strict=True):
        axis.plot(steps, errors, color="#b8bcc2", linewidth=3)
        axis.plot(step, value, "o", color=GREEN if value <= 1.05 * errors.min() else VERMILION)
        axis.set(xscale="log", yscale="log", xlabel="step")
        axis.set_title(title, fontsize=9)
        axis.set_xticks([steps.min(), steps[errors.argmin()]])  # powers of ten would be too few
        axis.set_yticks([errors.min(), errors.max()])
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter("{x:.2g}")
        axis.minorticks_off()
    axes[0][0].set_ylabel("mean squared error")
    fig.tight_layout()
    return fig


def channel_ranges(panels: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> Figure:
    """The largest |weight| of each hidden channel in the layer that writes it and the one that reads it."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.3 * len(panels), 2.7), sharey=True, squeeze=False)
    for axis, (title, (one, other)) in zip(axes[0], panels.items(), strict=True):
        axis.plot(one, "o", color=BLUE, label="row of w1")
        axis.plot(other, "o", color=ORANGE, label="column of w2", fillstyle="none", markersize=9)
        axis.set(yscale="log", xlabel="hidden channel")
        axis.set_title(title, fontsize=9)
    axes[0][0].set_ylabel("largest |weight|")
    axes[0][-1].legend(fontsize=8)
    fig.tight_layout()
    return fig
