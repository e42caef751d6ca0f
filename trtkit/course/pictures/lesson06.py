"""Lesson 06's pictures. Each takes plain arrays or numbers and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from trtkit.course.layer_noise import LayerNoise
from trtkit.plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

TINTS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)


def few_bits(
    bits: Sequence[int], decibels: Mapping[str, Sequence[float]], found: Mapping[str, Sequence[int]], views: int
) -> Figure:
    """Two curves over bits of a code: signal to noise of the outputs, and answers that stay as they were."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.3))
    for (name, values), tint in zip(decibels.items(), TINTS, strict=False):
        left.plot(bits, values, ".-", color=tint, label=name)
        right.plot(bits, found[name], ".-", color=tint, label=name)
    left.set(xlabel="bits of a weight", ylabel="signal to noise of the outputs, dB")
    right.set(xlabel="bits of a weight", ylabel=f"answers unchanged, of {views}", ylim=(-1, views + 1))
    for axis in (left, right):
        axis.set_xticks(list(bits))
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(fontsize=8)
    fig.tight_layout()
    return fig


def errors(x: NDArray[Any], error: NDArray[Any], step: float, sample: NDArray[Any]) -> Figure:
    """The error of rounding in steps: over x (a sawtooth), and how often each occurs among `sample` errors."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 2.7), width_ratios=[1.6, 1])
    left.plot(x, error / step, color=BLUE, linewidth=1.2)
    left.axhspan(-0.5, 0.5, color=GREEN, alpha=0.1)
    left.set(xlabel="x", ylabel="error, in steps", ylim=(min(-0.9, float((error / step).min()) * 1.1), 0.9))
    right.hist(np.clip(sample.ravel() / step, -0.6, 0.6), bins=48, range=(-0.6, 0.6), color=GREY, density=True)
    right.plot([-0.5, -0.5, 0.5, 0.5], [0, 1, 1, 0], color=VERMILION, linewidth=1.4, label="uniform")
    right.set(xlabel="error of real weights, in steps", ylabel="density")
    right.set_ylim(0, 1.25)  # room for the legend
    right.legend(fontsize=8, loc="upper center")
    fig.tight_layout()
    return fig


def formula(
    by_bits: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    bits: Sequence[int],
    by_range: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    ranges: Sequence[float],
) -> Figure:
    """Signal to noise as the formula says (lines) and as measured (dots): over bits, and over where it is clipped."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=False)
    for axis, x, curves in ((left, bits, by_bits), (right, ranges, by_range)):
        for (name, (said, measured)), tint in zip(curves.items(), TINTS, strict=False):
            axis.plot(x, said, color=tint, linewidth=1.1)
            axis.plot(x, measured, "o", color=tint, markersize=4, label=name)
        axis.legend(fontsize=8, loc="best")
    left.set(xlabel="bits", ylabel="signal to noise, dB")
    right.set(xlabel="largest code stands for so many standard deviations")
    left.set_title("lines: formula, dots: measured", fontsize=9)
    fig.tight_layout()
    return fig


def channel_ranges(panels: Mapping[str, Mapping[str, NDArray[Any]]]) -> Figure:
    """The largest |weight| of each channel, sorted, on a log scale: a panel for each layer, a curve for each state."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.7 * len(panels), 3.2), squeeze=False)
    for axis, (title, states) in zip(axes[0], panels.items(), strict=True):
        for (name, ranges), tint in zip(states.items(), TINTS, strict=False):
            place = np.linspace(0, 1, len(ranges))
            axis.semilogy(place, np.sort(ranges), ".-", color=tint, markersize=4, linewidth=1, label=name)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="channels, sorted")
        axis.set_xticks([])
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("largest |weight|")
    fig.tight_layout()
    return fig


def maps(panels: Mapping[str, NDArray[Any]]) -> Figure:
    """Small matrices of whole numbers, each number written into its place."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.9), squeeze=False)
    low, high = (pick(int(pick(matrix.ravel())) for matrix in panels.values()) for pick in (min, max))
    for axis, (title, matrix) in zip(axes[0], panels.items(), strict=True):
        axis.imshow(matrix, cmap="YlOrRd_r", vmin=low, vmax=high)
        for (y, x), value in np.ndenumerate(matrix):
            tint = "white" if value < (low + high) / 2 else "black"
            axis.text(x, y, str(int(value)), ha="center", va="center", fontsize=8, color=tint)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    fig.tight_layout()
    return fig


def largest_sums(layers: Sequence[LayerNoise], largest: int = 127) -> Figure:
    """By layer the largest sum of products found, and the largest there could be; where 16 and 32 bits end."""
    fig, axis = plt.subplots(figsize=(9, 3.3))
    place = np.arange(1, len(layers) + 1)
    axis.plot(
        place, [np.log2(layer.products * largest**2) for layer in layers], color=GREY, label="if every code were 127"
    )
    for depthwise, tint, name in ((False, BLUE, "found"), (True, SKY, "found, depthwise")):
        mine = [(x, np.log2(max(layer.largest_sum, 1))) for x, layer in zip(place, layers, strict=True)
                if layer.depthwise == depthwise]  # fmt: skip
        if mine:
            axis.plot(*zip(*mine, strict=True), "o", color=tint, markersize=5, label=name)
    for bits in (16, 32):
        axis.axhline(bits - 1, color=VERMILION, linestyle="--", linewidth=1)
        axis.text(place[-1] + 1.2, bits - 0.9, f"int{bits} ends", fontsize=8, color=VERMILION, va="bottom")
    axis.set(xlabel="layer, in order", ylabel="size of a sum, as a power of two", ylim=(12, 34))
    axis.set_xlim(-1, place[-1] + 7)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.45, 0.84), ncols=3)
    fig.tight_layout()
    return fig


def layer_by_layer(layers: Sequence[LayerNoise], through: Mapping[str, Sequence[float]]) -> Figure:
    """Left: the noise of each layer alone, from its input and its weight; right: noise behind each in the network."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    place = range(1, len(layers) + 1)
    left.plot(place, [layer.weight_db for layer in layers], ".", color=ORANGE, label="weight rounded")
    left.plot(place, [layer.input_db for layer in layers], ".", color=BLUE, label="input rounded")
    predicted = [-10 * np.log10(10 ** (-each.input_db / 10) + 10 ** (-each.weight_db / 10)) for each in layers]
    left.plot(place, predicted, color=GREY, linewidth=1, label="their noise added")
    left.plot(place, [layer.both_db for layer in layers], "x", color="black", markersize=4, label="both rounded")
    left.set_title("each layer alone", fontsize=9)
    left.set(xlabel="layer, in order", ylabel="signal to noise, dB", ylim=(0, 75))
    left.legend(fontsize=8, ncols=2, loc="upper left")
    for (name, values), tint in zip(through.items(), (GREEN, VERMILION), strict=False):
        right.plot(place, values, ".-", color=tint, markersize=4, linewidth=1, label=name)
    right.set_title("the whole network", fontsize=9)
    right.set(xlabel="layer, in order")
    right.legend(fontsize=8)
    fig.tight_layout()
    return fig


def stacked(parts: Mapping[str, float], whole: float) -> Figure:
    """Noise power, as a share of the signal's: each part measured alone, end to end, above what all together make."""
    fig, axis = plt.subplots(figsize=(9, 1.9))
    start = 0.0
    for (name, value), tint in zip(parts.items(), (*TINTS, GREY), strict=False):
        axis.barh(0, value, left=start, color=tint, height=0.62, label=name)
        start += value
    axis.barh(1, whole, color=GREY, height=0.62)
    axis.set_yticks([0, 1], ["one part after another", "all at once"])
    axis.invert_yaxis()
    axis.set(xlabel="noise power at the outputs, as a share of the signal's")
    axis.grid(axis="y", visible=False)
    axis.legend(fontsize=8, ncols=len(parts), loc="lower center", bbox_to_anchor=(0.45, 1.0), columnspacing=1.0)
    fig.tight_layout()
    return fig


def against_engine(mine: NDArray[Any], theirs: NDArray[Any], exact: NDArray[Any], names: tuple[str, str]) -> Figure:
    """Outputs of my integer arithmetic over another's, and how far each is from float32: two scatter plots."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    low, high = float(theirs.min()), float(theirs.max())
    left.plot([low, high], [low, high], color=GREY, linewidth=1)
    left.plot(theirs.ravel(), mine.ravel(), ".", color=BLUE, markersize=2, rasterized=True)
    left.set(xlabel=f"logits of {names[1]}", ylabel=f"logits of {names[0]}")
    limit = float(np.abs([mine - exact, theirs - exact]).max()) * 1.05
    right.plot([-limit, limit], [-limit, limit], color=GREY, linewidth=1)
    right.plot((theirs - exact).ravel(), (mine - exact).ravel(), ".", color=VERMILION, markersize=2, rasterized=True)
    right.set(xlabel=f"{names[1]}, minus float32", ylabel=f"{names[0]}, minus float32")
    fig.tight_layout()
    return fig


def price(engines: Mapping[str, tuple[int, int]], times: Mapping[str, Mapping[int, float]]) -> Figure:
    """Left: megabytes that an engine's kernels read and write, and how many kernels; right: times of products.

    engines[name] = (bytes, kernels); times[name][n] = ms of a product of two (n, n) matrices.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.0))
    names = list(engines)
    left.barh(
        names, [engines[name][0] / 1e6 for name in names], color=[BLUE, ORANGE, VERMILION][: len(names)], height=0.6
    )
    for y, (moved, kernels) in enumerate(engines.values()):
        left.text(moved / 1e6, y, f" {moved / 1e6:.0f} MB, {kernels} kernels", va="center", fontsize=8)
    left.set(
        xlabel="MB read and written between kernels", xlim=(0, 1.5 * max(moved for moved, _ in engines.values()) / 1e6)
    )
    left.invert_yaxis()
    left.grid(axis="y", visible=False)
    base = next(iter(times.values()))
    for (name, each), tint in zip(times.items(), (GREY, GREEN, VERMILION), strict=False):
        right.plot(range(len(each)), [base[n] / ms for n, ms in each.items()], "o-", color=tint, label=name)
    right.set_xticks(range(len(base)), [f"{n} × {n}" for n in base])
    right.set_yscale("log", base=2)
    right.set_yticks([0.25, 0.5, 1, 2, 4, 8], ["¼", "½", "1", "2", "4", "8"])
    right.set(xlabel="matrices", ylabel="times as fast as float32")
    right.legend(fontsize=8, loc="upper left")
    fig.tight_layout()
    return fig


def intervals(ranges: Mapping[str, tuple[float, float]], yours: Mapping[str, tuple[float, float]]) -> Figure:
    """Ranges that have to be covered (grey) and those that 256 codes cover, with zero marked."""
    fig, axis = plt.subplots(figsize=(7.5, 0.45 * len(ranges) + 0.9))
    for y, (name, (low, high)) in enumerate(ranges.items()):
        axis.plot([low, high], [y, y], color="#d5d8dc", linewidth=9, solid_capstyle="butt")
        first, last = yours[name]
        good = first <= min(low, 0) + 0.02 * (high - low) and last >= max(high, 0) - 0.02 * (high - low)
        axis.plot([first, last], [y, y], color=GREEN if good else VERMILION, linewidth=2, marker="|", markersize=10)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(ranges)), list(ranges))
    axis.set(xlabel="grey: the data; line: from code 0 to code 255", ylim=(len(ranges) - 0.4, -0.6))
    axis.grid(axis="y", visible=False)
    fig.tight_layout()
    return fig
