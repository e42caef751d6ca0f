"""Lesson 05's pictures. Each takes plain arrays or numbers and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from trtkit.plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW

TINTS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY)
TYPES = {"Float": (BLUE, "FP32"), "Half": (ORANGE, "FP16"), "BFloat16": (GREEN, "BF16"), "Int8": (PURPLE, "INT8"),
         "FP8": (VERMILION, "FP8"), "mixed": (GREY, "both")}  # fmt: skip


def similarity(matrices: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Figure:
    """How near views (rows) are to photographs (columns), a panel for each matrix; a dot marks each row's nearest."""
    fig, axes = plt.subplots(1, len(matrices), figsize=(3.3 * len(matrices), 3.4), sharey=True, squeeze=False)
    low = min(float(np.nanmin(m)) for m in matrices.values() if np.isfinite(m).any())
    for axis, (what, matrix) in zip(axes[0], matrices.items(), strict=True):
        axis.imshow(matrix, cmap="YlGnBu", vmin=low, vmax=1)
        for row, values in enumerate(matrix):
            for column in np.flatnonzero(~np.isfinite(values)):
                axis.text(column, row, "NaN", ha="center", va="center", fontsize=5.5, color=VERMILION)
            if np.isfinite(values).any():
                axis.plot(np.nanargmax(values), row, "o", color=ORANGE, markersize=4)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(matrix)), names, fontsize=7)
        axis.set_title(what, fontsize=9)
        axis.grid(visible=False)
    axes[0][0].set_ylabel("a view of ...")
    fig.tight_layout()
    return fig


def bit_fields(rows: Mapping[str, tuple[str, int]]) -> Figure:
    """Numbers bit by bit, rows[name] = (bits, how many are the exponent): sign, exponent, mantissa in colours."""
    widest = max(len(bits) for bits, _ in rows.values())
    fig, axis = plt.subplots(figsize=(9, 0.36 * len(rows) + 0.6))
    for y, (name, (bits, exponent)) in enumerate(rows.items()):
        axis.text(-0.4, y, name, ha="right", va="center", fontsize=9)
        for i, bit in enumerate(bits):
            tint = VERMILION if i == 0 else SKY if i <= exponent else YELLOW if bit in "01" else "#E4E6E9"
            axis.add_patch(plt.Rectangle((i + 0.04, y - 0.4), 0.92, 0.8, facecolor=tint, linewidth=0))
            axis.text(i + 0.5, y, bit, ha="center", va="center_baseline", fontsize=8, family="monospace",
                      color="white" if i == 0 else "black")  # fmt: skip
    axis.set(xlim=(-4, widest + 0.2), ylim=(len(rows) - 0.4, -0.6))
    axis.axis("off")
    handles = [Patch(color=tint, label=what) for tint, what in
               ((VERMILION, "sign"), (SKY, "exponent"), (YELLOW, "mantissa"))]  # fmt: skip
    fig.legend(handles=handles, loc="lower right", fontsize=8, ncols=3, bbox_to_anchor=(0.98, 0.02))
    fig.tight_layout()
    return fig


def number_lines(
    rows: Mapping[str, NDArray[Any]], normal_from: float, labels: Sequence[float] = (), zoom: float = 1.1
) -> Figure:
    """Numbers as strokes on lines, above all of them, below those around zero; subnormal ones in another colour.

    Subnormal are those nearer to zero than `normal_from`.
    """
    fig, axes = plt.subplots(2, 1, figsize=(9.5, 1.2 * len(rows) + 0.8))
    for axis in axes:
        for y, numbers in enumerate(rows.values()):
            axis.plot([numbers.min(), numbers.max()], [y, y], color=GREY, linewidth=0.8, zorder=1)
            for part, tint in ((np.abs(numbers) >= normal_from, BLUE), (np.abs(numbers) < normal_from, VERMILION)):
                axis.vlines(numbers[part], y - 0.28, y + 0.28, color=tint, linewidth=1.3)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set(ylim=(len(rows) - 0.45, -0.55))
        axis.grid(visible=False)
    axes[0].set_xticks(list(labels) or axes[0].get_xticks())
    axes[1].set_xlim(-zoom, zoom)
    handles = [plt.Line2D([], [], color=tint, label=what) for tint, what in
               ((BLUE, "normal"), (VERMILION, "subnormal, zero"))]  # fmt: skip
    fig.legend(handles=handles, loc="upper right", ncols=2, fontsize=8, bbox_to_anchor=(0.98, 1.04))
    fig.tight_layout()
    return fig


def ranges(rows: Mapping[str, tuple[float, float, float, int]]) -> Figure:
    """Range against precision: rows[name] = (smallest, smallest normal, largest, bits of mantissa)."""
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, 0.42 * len(rows) + 1.0), sharey=True, width_ratios=[2.4, 1], squeeze=True
    )
    for y, (least, normal, most, mantissa) in enumerate(rows.values()):
        left.barh(y, np.log2(most / normal), left=np.log2(normal), color=BLUE, height=0.6)
        left.barh(y, np.log2(normal / least), left=np.log2(least), color=SKY, height=0.6)
        left.text(np.log2(most) + 3, y, f"{most:,.0f}" if most < 1e6 else f"{most:.3g}", va="center", fontsize=8)
        left.text(np.log2(least) - 3, y, f"{least:.2g}", va="center", ha="right", fontsize=8)
        right.barh(y, mantissa + 1, color=YELLOW, height=0.6)
        right.text(mantissa + 1.4, y, f"step {2.0**-mantissa:.3g} at 1", va="center", fontsize=8)
    left.set_yticks(range(len(rows)), list(rows))
    left.set(xlim=(-195, 170), xlabel="range, as powers of two")
    left.invert_yaxis()
    right.set(xlim=(0, 41), xlabel="precision, bits with the leading 1")
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
    handles = [Patch(color=BLUE, label="normal"), Patch(color=SKY, label="subnormal")]
    left.legend(handles=handles, fontsize=8, loc="lower right")
    fig.tight_layout()
    return fig


def sawtooth(x: NDArray[Any], errors: Mapping[str, NDArray[Any]]) -> Figure:
    """Relative rounding error against magnitude: the largest at each x, for each format."""
    fig, axis = plt.subplots(figsize=(9, 3.6))
    for (name, error), tint in zip(errors.items(), TINTS, strict=False):
        axis.loglog(x, np.maximum(error, 1e-6), color=tint, linewidth=1.1, label=name)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="|x|", ylabel="relative error", ylim=(4e-5, 2))
    axis.axhline(1, color=GREY, linestyle="--", linewidth=0.9)
    axis.text(x[0], 1.12, " all is lost: rounded to zero, or far beyond the largest", fontsize=8, color="#5F6368")
    fig.legend(*axis.get_legend_handles_labels(), fontsize=8, loc="outside right center")
    fig.tight_layout(rect=(0, 0, 0.9, 1))
    return fig


def by_layer(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Signal to noise behind every layer of a network, dB; each curve named at its end."""
    fig, axis = plt.subplots(figsize=(8.5, 3.8))
    for (name, values), tint in zip(curves.items(), TINTS, strict=False):
        axis.plot(range(1, len(values) + 1), values, color=tint, marker=".", markersize=4, linewidth=1.2)
        axis.text(len(values) + 0.8, values[-1], name, color=tint, va="center", fontsize=8)
    last = max(len(values) for values in curves.values())
    axis.set(xlim=(0, last * 1.22), xlabel="convolution, in order", ylabel="signal to noise, dB")
    fig.tight_layout()
    return fig


def codes_on(values: NDArray[Any], grids: Mapping[str, NDArray[Any]], what: str = "weights") -> Figure:
    """A histogram of numbers, and below it the grids that formats lay over them."""
    fig, (upper, lower) = plt.subplots(2, 1, figsize=(9, 1.6 + 0.42 * len(grids)), sharex=True,
                                       height_ratios=[1.3, 0.38 * len(grids)])  # fmt: skip
    upper.hist(values.ravel(), bins=201, color=GREY)
    upper.set_yscale("log")
    upper.set_ylabel(what)
    for y, numbers in enumerate(grids.values()):
        lower.vlines(
            numbers, y - 0.35, y + 0.35, color=TINTS[y % len(TINTS)], linewidth=0.6 if numbers.size > 40 else 1.3
        )
    lower.set_yticks(range(len(grids)), list(grids))
    lower.set(ylim=(len(grids) - 0.4, -0.6), xlabel="value")
    lower.grid(visible=False)
    fig.tight_layout()
    return fig


def contest(values: Mapping[str, Mapping[str, float]], groups: Sequence[Sequence[str]]) -> Figure:
    """dB as a table with colours, values[row][column]; in each group of columns the best of a row is framed."""
    columns = [name for group in groups for name in group]
    table = np.array([[row[name] for name in columns] for row in values.values()])
    fig, axis = plt.subplots(figsize=(1.15 * len(columns) + 2.2, 0.5 * len(values) + 0.7))
    axis.imshow(table, cmap="YlGnBu", aspect="auto", vmin=0, vmax=max(60.0, float(table.max())))
    for y, row in enumerate(values.values()):
        for x, name in enumerate(columns):
            axis.text(x, y, f"{row[name]:.1f}", ha="center", va="center", fontsize=9,
                      color="white" if row[name] > 36 else "black")  # fmt: skip
        for group in groups:
            best = columns.index(max(group, key=row.__getitem__))
            axis.add_patch(
                plt.Rectangle((best - 0.47, y - 0.45), 0.94, 0.9, fill=False, edgecolor=VERMILION, linewidth=2)
            )
    for group in groups[:-1]:
        axis.axvline(columns.index(group[-1]) + 0.5, color="white", linewidth=4)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(values)), list(values))
    axis.xaxis.tick_top()
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)
    fig.tight_layout()
    return fig


def budget(panels: Mapping[str, Mapping[str, Sequence[tuple[int, float, float]]]]) -> Figure:
    """Signal to noise over bits per number; each point (block, bits, dB) carries its block size."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.9 * len(panels), 3.8), sharey=True, squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for (name, points), tint in zip(curves.items(), TINTS, strict=False):
            blocks, bits, quality = zip(*points, strict=True)
            axis.plot(bits, quality, ".-", color=tint, label=name, linewidth=1.2)
            for block, x, y in zip(blocks, bits, quality, strict=True):
                if block in (8, 16, 32):
                    axis.annotate(
                        str(block), (x, y), textcoords="offset points", xytext=(4, -9), fontsize=7, color=tint
                    )
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("bits per number, scales included")
    axes[0][0].set_ylabel("signal to noise, dB")
    axes[0][0].legend(fontsize=8, loc="lower right")
    fig.tight_layout()
    return fig


def largest(values: Mapping[str, float], limit: float, kept: Sequence[str] = (), headroom: float = 0.0) -> Figure:
    """The largest |value| behind each node, the end of the range, and which nodes are kept in FP32."""
    names, sizes = list(values), [max(value, 1e-6) for value in values.values()]
    fig, axis = plt.subplots(figsize=(8.5, 0.3 * len(names) + 1.0))
    tints = [VERMILION if size > limit else ORANGE if headroom and size > headroom * limit else BLUE for size in sizes]
    axis.barh(names, sizes, color=tints, height=0.55)
    for y, (name, size) in enumerate(zip(names, sizes, strict=True)):
        words = f"{size:,.0f}" if size >= 100 else f"{size:.2g}"
        axis.text(size * 1.2, y, words + ("   kept in FP32" if name in kept else ""), va="center", fontsize=8,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
    axis.axvline(limit, color="black", linewidth=1)
    axis.text(limit, -0.75, f" {limit:,.0f}: the end", fontsize=8, va="bottom")
    if headroom:
        axis.axvline(headroom * limit, color=GREY, linewidth=1, linestyle="--")
    axis.set_xscale("log")
    axis.set(xlim=(min([*sizes, 0.5]) / 2, max([*sizes, limit]) * 60), xlabel="largest |value| on the samples")
    axis.grid(axis="y", visible=False)
    axis.invert_yaxis()
    fig.tight_layout()
    return fig


def kernel_types(
    engines: Mapping[str, Sequence[tuple[str, str, str]]], width: int = 7, left: float = 1.0, letters: int = 21
) -> Figure:
    """Kernels of engines in order, each (name, type read, type written); left half: what it reads.

    `left` is the room for the engines' titles in boxes, `letters` how many of a kernel's name fit into its box.
    """
    rows = sum(-(-len(kernels) // width) for kernels in engines.values())
    fig, axis = plt.subplots(figsize=(10, 0.62 * rows + 0.7))
    y = 0.0
    for title, kernels in engines.items():
        axis.text(-0.12, y, title, ha="right", va="center", fontsize=8.5)
        for i, (name, read, written) in enumerate(kernels):
            x, row = i % width, y + i // width
            for half, dtype in ((0.0, read), (0.5, written)):
                axis.add_patch(plt.Rectangle((x + 0.03 + half * 0.94, row - 0.36), 0.47, 0.72, linewidth=0,
                                             facecolor=TYPES.get(dtype, ("#E4E6E9",))[0], alpha=0.45))  # fmt: skip
            words = name if len(name) <= letters else f"{name[: letters - 1]}…"
            axis.text(x + 0.5, row, words, ha="center", va="center", fontsize=6.3)
        y += -(-len(kernels) // width) + 0.15
    axis.set(xlim=(-left, width + 0.05), ylim=(y - 0.5, -0.5))
    axis.axis("off")
    drawn = {dtype for kernels in engines.values() for kernel in kernels for dtype in kernel[1:]}
    handles = [Patch(color=tint, alpha=0.45, label=what) for dtype, (tint, what) in TYPES.items() if dtype in drawn]
    fig.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=8, bbox_to_anchor=(0.5, -0.08))
    fig.tight_layout()
    return fig


def gains(factors: Mapping[str, Mapping[str, float]], note: str) -> Figure:
    """How many times faster FP16 is than FP32, factors[network][setting], with the promised 2 marked."""
    settings = list(next(iter(factors.values())))
    fig, axis = plt.subplots(figsize=(7.5, 3.2))
    width = 0.8 / len(factors)
    for i, ((network, values), tint) in enumerate(zip(factors.items(), TINTS, strict=False)):
        places = [x + (i - (len(factors) - 1) / 2) * width for x in range(len(settings))]
        drawn = axis.bar(places, [values[setting] for setting in settings], width * 0.94, color=tint, label=network)
        axis.bar_label(drawn, fmt="%.2f×", fontsize=8, padding=2)
    axis.axhline(1, color="black", linewidth=0.9)
    axis.axhline(2, color=GREY, linestyle="--", linewidth=1)
    axis.text(-0.62, 2.03, "half the bytes", fontsize=8, color="#5F6368")
    axis.set_xticks(range(len(settings)), settings)
    top = max(value for values in factors.values() for value in values.values())
    axis.set(ylabel="times as fast as FP32", ylim=(0, max(2.4, 1.35 * top)), xlim=(-0.65, len(settings) - 0.4))
    axis.set_title(note, fontsize=8, loc="left", color=GREY, fontweight="normal")
    axis.grid(axis="x", visible=False)
    axis.legend(fontsize=8, loc="upper left", ncols=2)
    fig.tight_layout()
    return fig


def rounded_values(x: NDArray[Any], right: NDArray[Any], yours: NDArray[Any]) -> Figure:
    """A staircase of right values, and yours as dots on it; wrong ones red."""
    fig, axis = plt.subplots(figsize=(7, 3.2))
    axis.plot(x, right, color="#d5d8dc", linewidth=4, drawstyle="steps-mid", label="right")
    good = np.isclose(yours, right)
    axis.scatter(x[good], yours[good], s=6, color=GREEN, zorder=3, label="yours")
    if not good.all():
        axis.scatter(x[~good], yours[~good], s=14, color=VERMILION, marker="x", zorder=3, label="yours, wrong")
    axis.set(xlabel="x", ylabel="the number that the code stands for")
    axis.legend(fontsize=8, loc="upper left")
    fig.tight_layout()
    return fig


def choices(panels: Mapping[str, tuple[NDArray[Any], Sequence[int], Sequence[int], NDArray[np.bool_], tuple[int, int],
            tuple[int, int]]]) -> Figure:  # fmt: skip
    """dB over bits (rows) and blocks (columns); what is over the budget pale, a frame for the best, a cross for yours.

    panels[title] = (dB, bits, blocks, affordable, row and column of the best, of yours).
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(4.1 * len(panels), 3.0), squeeze=False)
    for axis, (title, (quality, bits, blocks, allowed, best, yours)) in zip(axes[0], panels.items(), strict=True):
        axis.imshow(np.where(allowed, quality, np.nan), cmap="YlGnBu", aspect="auto")
        middle = float(quality[allowed].min() + 2 * quality[allowed].max()) / 3
        for (y, x), value in np.ndenumerate(quality):
            tint = GREY if not allowed[y, x] else "white" if value > middle else "black"
            axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color=tint)
        axis.add_patch(
            plt.Rectangle((best[1] - 0.46, best[0] - 0.46), 0.92, 0.92, fill=False, edgecolor=GREEN, linewidth=2.5)
        )
        axis.plot(yours[1] + 0.33, yours[0] - 0.28, "D", markersize=5, color=GREEN if yours == best else VERMILION)
        axis.set_xticks(range(len(blocks)), [str(block) for block in blocks])
        axis.set_yticks(range(len(bits)), [str(bit) for bit in bits])
        axis.set(xlabel="block", ylabel="bits of a code")
        axis.set_title(title, fontsize=9)
        axis.grid(visible=False)
    fig.tight_layout()
    return fig
