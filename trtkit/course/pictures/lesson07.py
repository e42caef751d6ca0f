"""Lesson 07's pictures. Each takes plain arrays or numbers and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trtkit.plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

TINTS = {"max": BLUE, "percentile": ORANGE, "mse": GREEN, "entropy": PURPLE}
STYLES = {"max": "-", "percentile": "--", "mse": "-.", "entropy": ":"}
MARKS = {"max": "o", "percentile": "s", "mse": "D", "entropy": "^"}
KINDS = {"Float": SKY, "Int8": ORANGE, "mixed": GREY}


def scores(found: Mapping[str, tuple[float, float]], what: str) -> Figure:
    """One bar for each way to calibrate, found[name] = (share, dB of the logits); good ones green, ruined ones red."""
    fig, axis = plt.subplots(figsize=(8, 0.42 * len(found) + 0.9))
    tints = [GREEN if share > 0.8 else ORANGE if share > 0.5 else VERMILION for share, _ in found.values()]
    drawn = axis.barh(list(found), [100 * share for share, _ in found.values()], color=tints, height=0.6)
    axis.bar_label(drawn, [f"{share:.0%}, logits {db:.1f} dB" for share, db in found.values()], fontsize=8.5, padding=3)
    axis.set(xlim=(0, 125), xticks=range(0, 101, 20), xlabel=f"{what}, %")
    axis.grid(axis="y", visible=False)
    axis.invert_yaxis()
    fig.tight_layout()
    return fig


def trade_off(amax: NDArray[Any], rounding: NDArray[Any], clipping: NDArray[Any], chosen: float) -> Figure:
    """Rounding error, clipping error and their sum over the end of the range, with the end that was chosen."""
    fig, axis = plt.subplots(figsize=(7.5, 3.2))
    axis.plot(amax, rounding, color=BLUE, label="rounding: wider steps")
    axis.plot(amax, clipping, color=VERMILION, label="clipping: what lies beyond")
    axis.plot(amax, rounding + clipping, color="black", linewidth=1.2, label="both")
    axis.axvline(chosen, color=GREEN, linestyle="--")
    total = rounding + clipping
    axis.set_yscale("log")
    axis.set(ylim=(max(float(rounding.min()), float(total.min()) / 100), float(total.max()) * 2))
    axis.text(chosen, axis.get_ylim()[1], f" {chosen:.2f}", color=GREEN, fontsize=9, va="top")
    axis.set(xlabel="end of the range, amax", ylabel="mean squared error")
    axis.legend(fontsize=8)
    fig.tight_layout()
    return fig


def cuts(panels: Mapping[str, tuple[NDArray[Any], float, Mapping[str, float]]]) -> Figure:
    """Histograms of |x| with the ends that calibrators chose; panels[title] = (counts, top, amax by method)."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.8 * len(panels), 3.2), squeeze=False)
    for axis, (title, (counts, top, ends)) in zip(axes[0], panels.items(), strict=True):
        bars = counts.reshape(64, -1).sum(axis=1)
        axis.bar((np.arange(64) + 0.5) * top / 64, np.maximum(bars, 0.1), top / 64, color="#C9CED6")
        for method, end in ends.items():
            axis.axvline(end, color=TINTS[method], linestyle=STYLES[method], label=f"{method} {end:.2f}")
        last = top * (np.flatnonzero(bars).max() + 1) / 64
        axis.set_yscale("log")
        axis.set(ylim=(0.5, bars.max() * 2), xlim=(0, last * 1.03), xlabel="|x|")
        axis.set_title(title, fontsize=9, pad=32)
        axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2)  # above: lines end at the right
    axes[0][0].set_ylabel("how many values")
    fig.tight_layout()
    return fig


def growth(steps: Sequence[tuple[str, NDArray[Any], float]]) -> Figure:
    """A histogram as it takes in one batch after the other; each step is a title, its counts and its top."""
    fig, axes = plt.subplots(1, len(steps), figsize=(3.1 * len(steps), 2.3), sharex=True, sharey=True, squeeze=False)
    for axis, (title, counts, top) in zip(axes[0], steps, strict=True):
        width = top / len(counts)
        axis.bar((np.arange(len(counts)) + 0.5) * width, counts, width * 0.94, color=SKY)
        for i in np.flatnonzero(counts):
            axis.text((i + 0.5) * width, counts[i], str(counts[i]), ha="center", va="bottom", fontsize=8)
        axis.axvline(top, color=VERMILION, linewidth=1, label="top of the histogram")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("|x|")
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylim(0, max(int(counts.max()) for _, counts, _ in steps) * 1.2)
    axes[0][0].set_ylabel("count")
    axes[0][0].legend(fontsize=8)
    fig.tight_layout()
    return fig


def p_and_q(panels: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], bins: int) -> Figure:
    """Reference P as bars and candidate Q as a line, bin by bin; a panel for each number of bins that are kept."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.6), sharex=True, sharey=True, squeeze=False)
    for axis, (title, (p, q)) in zip(axes[0], panels.items(), strict=True):
        axis.bar(np.arange(len(p)) + 0.5, p, 0.9, color="#C9CED6", label="P, the original")
        axis.stairs(q, np.arange(len(q) + 1), color=PURPLE, linewidth=2, label="Q, from few levels")
        axis.set_title(title, fontsize=9)
        axis.set(xlim=(0, bins), xlabel="bin")
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("share of the values")
    axes[0][-1].legend(fontsize=8)
    fig.tight_layout()
    return fig


def curves(panels: Mapping[str, tuple[NDArray[Any], NDArray[Any], float]], ylabel: str) -> Figure:
    """A measure over the end of the range, panels[title] = (ends, measure, chosen end); a dashed line where it ends."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 2.9), squeeze=False, sharey=True)
    for axis, (title, (ends, values, chosen)) in zip(axes[0], panels.items(), strict=True):
        finite = np.isfinite(values)
        axis.plot(ends[finite], values[finite], color=PURPLE, linewidth=1.3)
        axis.axvline(chosen, color=GREEN, linestyle="--", label=f"chosen: {chosen:.2f}")
        candidate = max(0, int(np.searchsorted(ends[finite], chosen, "right")) - 1)
        axis.plot(chosen, values[finite][candidate], "o", color=GREEN, markersize=5)
        axis.legend(fontsize=8)
        axis.set(xlabel="end of the range, amax", xlim=(0, None))
        axis.set_title(title, fontsize=9)
    axes[0][0].set_ylabel(ylabel)
    fig.tight_layout()
    return fig


def by_layer(gains: Mapping[str, Sequence[float]]) -> Figure:
    """How many dB better than max each method is, tensor by tensor in the order of the network."""
    fig, axis = plt.subplots(figsize=(10, 3.2))
    for method, values in gains.items():
        axis.plot(range(len(values)), values, MARKS[method], color=TINTS[method], markersize=4.5, label=method)
    axis.axhline(0, color=BLUE, linewidth=1.2, label="max")
    count = len(next(iter(gains.values())))
    axis.set(xlabel="tensor, from input to output", ylabel="dB better than max", xlim=(-1, count))
    axis.legend(fontsize=8, ncols=4, loc="lower right")
    fig.tight_layout()
    return fig


def grouped(table: Mapping[str, Mapping[str, float]], ylabel: str, fmt: str = "%.0f") -> Figure:
    """Bars by method in groups, table[group][method], in percent."""
    fig, axis = plt.subplots(figsize=(max(6.0, 2.1 * len(table)), 2.9))
    methods = list(next(iter(table.values())))
    width = 0.84 / len(methods)
    for i, method in enumerate(methods):
        places = [x + (i - (len(methods) - 1) / 2) * width for x in range(len(table))]
        heights = [100 * row[method] for row in table.values()]
        drawn = axis.bar(places, heights, width * 0.92, color=TINTS.get(method, GREY), label=method)
        axis.bar_label(drawn, fmt=fmt, fontsize=7.5, padding=1)
    axis.set_xticks(range(len(table)), list(table))
    axis.set(ylabel=ylabel, ylim=(0, 112))
    axis.grid(axis="x", visible=False)
    axis.legend(fontsize=8, ncols=len(methods), loc="upper center", bbox_to_anchor=(0.5, 1.17))
    fig.tight_layout()
    return fig


def with_count(counts: Sequence[int], panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Something by method over the number of pictures, panels[ylabel][method] = values."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 2.9), squeeze=False)
    for axis, (ylabel, lines) in zip(axes[0], panels.items(), strict=True):
        for method, values in lines.items():
            axis.plot(counts, values, MARKS[method] + STYLES[method], color=TINTS[method], markersize=4, label=method)
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set(xlabel="pictures", ylabel=ylabel)
    axes[0][0].legend(fontsize=8)
    fig.tight_layout()
    return fig


def against(panels: Mapping[str, tuple[Sequence[float], Sequence[float]]], ours: str, theirs: str) -> Figure:
    """Ranges of the same tensors, one dot each: panels[title] = (ours, theirs); on the line they are equal."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.2), squeeze=False)
    for axis, (title, (x, y)) in zip(axes[0], panels.items(), strict=True):
        low, high = 0.8 * min(*x, *y), 1.25 * max(*x, *y)
        axis.plot([low, high], [low, high], color=GREY, linewidth=1)
        axis.plot(x, y, "o", color=BLUE, markersize=4)
        axis.set(xscale="log", yscale="log", xlabel=ours, xlim=(low, high), ylim=(low, high))
        axis.set_title(title, fontsize=9)
        axis.minorticks_off()
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter("{x:g}")
    axes[0][0].set_ylabel(theirs)
    fig.tight_layout()
    return fig


def graph_and_engine(rows: Mapping[str, Sequence[tuple[str, str, str]]], width: int = 9) -> Figure:
    """Steps of graphs and of engines in order, each (name, type read, type written), in the colours of the types."""
    lines = sum(-(-len(steps) // width) for steps in rows.values())
    fig, axis = plt.subplots(figsize=(10, 0.6 * lines + 0.8))
    y = 0.0
    for title, steps in rows.items():
        axis.text(-0.1, y, title, ha="right", va="center", fontsize=8.5)
        for i, (name, read, written) in enumerate(steps):
            _two_halves(axis, i % width, y + i // width, KINDS.get(read, GREY), KINDS.get(written, GREY))
            words = name if len(name) <= 17 else f"{name[:16]}…"
            axis.text(i % width + 0.5, y + i // width, words, ha="center", va="center", fontsize=6)
        y += -(-len(steps) // width) + 0.2
    axis.set(xlim=(-1.3, width + 0.05), ylim=(y - 0.5, -0.6))
    axis.axis("off")
    used = {kind for steps in rows.values() for _, *kinds in steps for kind in kinds}
    for name, tint in ((name, tint) for name, tint in KINDS.items() if name in used):
        axis.plot([], [], "s", color=tint, alpha=0.5, label={"Float": "FP32", "Int8": "INT8"}.get(name, "both"))
    fig.legend(loc="lower center", ncols=len(KINDS), fontsize=8, bbox_to_anchor=(0.5, -0.06))
    fig.tight_layout()
    return fig


def _two_halves(axis: Axes, x: float, y: float, left: str, right: str) -> None:
    for start, tint in ((0.03, left), (0.5, right)):
        axis.add_patch(plt.Rectangle((x + start, y - 0.36), 0.47, 0.72, facecolor=tint, alpha=0.5, linewidth=0))


def suspects(largest: NDArray[Any], wrong: Sequence[int], named: Sequence[int]) -> Figure:
    """The largest |x| of the input of each batch; those that are wrong as crosses, those that were named ringed."""
    fig, axis = plt.subplots(figsize=(7.5, 2.6))
    bad = np.isin(np.arange(len(largest)), list(wrong))
    axis.plot(np.flatnonzero(~bad), largest[~bad], "o", color=GREEN, label="fine")
    inside = [i for i in named if 0 <= i < len(largest)]
    if bad.any():
        axis.plot(np.flatnonzero(bad), largest[bad], "X", color=VERMILION, markersize=8, label="wrong")
    if inside:
        axis.plot(inside, largest[inside], "o", color="none", markeredgecolor="black", markersize=13, label="you named")
    axis.set_yscale("log")
    axis.set_ylim(min(0.1, *largest), 2 * max(1.0, *largest))  # a power of ten on the axis at least
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.set(xlabel="batch", ylabel="largest |x| of the input")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    fig.tight_layout()
    return fig


def against_best(ends: NDArray[Any], panels: Mapping[str, tuple[NDArray[Any], float]]) -> Figure:
    """An error over the end of the range in each panel, panels[title] = (errors, your end)."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 2.8), squeeze=False)
    for axis, (title, (errors, yours)) in zip(axes[0], panels.items(), strict=True):
        axis.plot(ends, errors, color=GREY)
        axis.plot(ends[np.argmin(errors)], errors.min(), "o", color=GREEN, label="best")
        axis.axvline(yours, color=VERMILION, linestyle="--", label="yours")
        axis.set(xlabel="end of the range / largest |x|", xlim=(0, 1.03))
        axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
    axes[0][0].set_ylabel("error of the output")
    axes[0][0].legend(fontsize=8)
    fig.tight_layout()
    return fig


def two_counts(right: NDArray[Any], yours: NDArray[Any]) -> Figure:
    """Counts of bins: right ones as bars, yours as dots."""
    fig, axis = plt.subplots(figsize=(7, 2.5))
    axis.bar(range(len(right)), right, color="#C9CED6", label="right")
    good = right == yours if right.shape == yours.shape else np.zeros(len(yours), bool)
    axis.plot(np.flatnonzero(good), yours[good], "o", color=GREEN, markersize=5, label="yours")
    if not good.all():
        axis.plot(np.flatnonzero(~good), yours[~good], "X", color=VERMILION, markersize=7, label="yours, wrong")
    axis.set(xlabel="bin", ylabel="count")
    axis.legend(fontsize=8)
    fig.tight_layout()
    return fig
