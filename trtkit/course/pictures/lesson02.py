"""Lesson 02's pictures. Each takes plain values, records or race results, and gives a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trtkit.plot.style import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION

if TYPE_CHECKING:
    from trtkit.bench.optimizers import Result
    from trtkit.bench.record import Record

PALE = "#D5D8DC"
_OURS: dict[str, Any] = {"color": GREEN, "marker": "o", "markersize": 5, "linewidth": 2.2, "zorder": 3}
_OTHERS: dict[str, Any] = {"color": GREY, "marker": "o", "markersize": 3.5, "linewidth": 1, "zorder": 2}


def operators(before: Mapping[str, int], after: Mapping[str, int], most: int = 16) -> Figure:
    """Nodes of each operator before and after, the most frequent first; the rest in one row."""
    names = sorted(before, key=lambda op: -before[op])[:most]
    others = "all others"
    rows = {op: (before[op], after.get(op, 0)) for op in names}
    rows[others] = (
        sum(before.values()) - sum(b for b, _ in rows.values()),
        sum(after.values()) - sum(a for _, a in rows.values()),
    )
    fig, axis = plt.subplots(figsize=(7.5, 0.27 * len(rows) + 0.8))
    places = np.arange(len(rows))
    for shift, column, tint, label in ((-0.2, 0, PALE, "as exported"), (0.2, 1, GREEN, "optimised")):
        values = [row[column] for row in rows.values()]
        drawn = axis.barh(places + shift, values, 0.4, color=tint, label=f"{label}: {sum(values)} nodes")
        axis.bar_label(drawn, padding=3, fontsize=7)
    axis.set_yticks(places, list(rows))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="nodes")
    axis.legend(fontsize=9, loc="lower right")
    fig.tight_layout()
    return fig


def folding_limit(made: Sequence[int], added: Sequence[int], limit: int) -> Figure:
    """Bytes that a constant node would make against bytes that the model grew by; the limit as a line."""
    fig, axis = plt.subplots(figsize=(7, 2.8))
    folded = [grown > 0 for grown in added]
    for flag, tint, label in ((True, GREEN, "folded"), (False, VERMILION, "left as a node")):
        x = [m for m, f in zip(made, folded, strict=True) if f == flag]
        y = [max(a, 1) for a, f in zip(added, folded, strict=True) if f == flag]
        axis.scatter(x, y, color=tint, s=45, label=label, zorder=3)
    axis.axvline(limit, color="black", linewidth=1, linestyle="--")
    axis.text(limit, max(added), f" the limit, {limit:,} bytes", va="top", fontsize=8)
    axis.set(xscale="log", yscale="symlog", xlabel="bytes of the result", ylabel="bytes added to the model")
    axis.set_yticks([1, 1e2, 1e4, 1e6], ["0", "100", "10,000", "1,000,000"])
    axis.set_ylim(-0.5, 1e7)
    axis.legend(fontsize=8, loc="center right")
    fig.tight_layout()
    return fig


def rounds(networks: Mapping[str, Mapping[str, Sequence[int]]], highlight: str) -> Figure:
    """Nodes after each round, a line an order of the passes, a panel a network; one order stands out."""
    fig, axes = plt.subplots(1, len(networks), figsize=(4.4 * len(networks), 3.1), squeeze=False)
    longest = max(len(curve) for curves in networks.values() for curve in curves.values())
    for axis, (name, curves) in zip(axes[0], networks.items(), strict=True):
        for order, curve in curves.items():
            look = _OURS | {"label": order} if order == highlight else _OTHERS
            axis.plot(range(len(curve)), curve, **look)
        axis.plot([], [], **_OTHERS, label="other orders")
        axis.set(title=name, xlabel="rounds over all passes", yscale="log", xlim=(-0.2, longest - 0.8))
        ticks = sorted({curve[0] for curve in curves.values()} | {curve[-1] for curve in curves.values()})
        axis.set_yticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_xticks(range(longest))
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("nodes")
    fig.tight_layout()
    return fig


def caught(rows: Mapping[str, tuple[int, int]], graphs: int) -> Figure:
    """On how many of some random graphs each wrong rewrite shows, tested in two ways."""
    fig, axis = plt.subplots(figsize=(7.5, 0.5 * len(rows) + 0.9))
    places = np.arange(len(rows))
    ways = ((-0.2, 0, ORANGE, "ordinary numbers, nearly equal"), (0.2, 1, BLUE, "NaN, infinities, ±0; to the bit"))
    for shift, column, tint, label in ways:
        values = [row[column] for row in rows.values()]
        drawn = axis.barh(places + shift, values, 0.4, color=tint, label=label)
        axis.bar_label(drawn, [str(value) if value else "never" for value in values], padding=3, fontsize=8)
    axis.set_yticks(places, list(rows))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=f"random graphs, of {graphs}, on which the rewrite shows to be wrong")
    axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)
    fig.tight_layout()
    return fig


def race(networks: Mapping[str, Mapping[str, Result]], before: Mapping[str, int], ours: str = "trtkit") -> Figure:
    """Nodes that each optimiser leaves, with its time, a panel a network; a grey line where the network began."""
    fig, axes = plt.subplots(1, len(networks), figsize=(3.3 * len(networks) + 0.6, 2.6), sharey=True, squeeze=False)
    for axis, (name, results) in zip(axes[0], networks.items(), strict=True):
        drawn = axis.barh(list(results), [result.nodes for result in results.values()],
                          color=[GREEN if who == ours else SKY for who in results])  # fmt: skip
        labels = [f"{r.nodes}   {1e3 * r.seconds:.0f} ms" if r.equal else r.why or "not equal"
                  for r in results.values()]  # fmt: skip
        axis.bar_label(drawn, labels, padding=3, fontsize=8)
        axis.set(title=f"{name}, {before[name]} nodes", xlim=(0, 1.75 * max(r.nodes for r in results.values())))
        axis.title.set_fontsize(9.5)
        axis.grid(visible=False)
        axis.set_xticks([])
    axes[0][0].invert_yaxis()
    fig.supxlabel("nodes left, and time from file to file", fontsize=9)
    fig.tight_layout()
    return fig


def engines(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """panels[what][network][graph]: bars for each network and graph, a panel for each thing that is counted."""
    fig, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels) + 0.6, 2.9), squeeze=False)
    for axis, (what, values) in zip(axes[0], panels.items(), strict=True):
        _grouped(axis, values)
        axis.set_title(what, fontsize=9.5)
    axes[0][-1].legend(fontsize=8)
    fig.tight_layout()
    return fig


def _grouped(axis: Axes, values: Mapping[str, Mapping[str, float]]) -> None:
    names = list(next(iter(values.values())))
    width = 0.8 / len(names)
    for number, (name, tint) in enumerate(zip(names, (PALE, GREEN, BLUE, ORANGE), strict=False)):
        heights = [row[name] for row in values.values()]
        places = [i + (number - (len(names) - 1) / 2) * width for i in range(len(values))]
        drawn = axis.bar(places, heights, width, color=tint, label=name)
        axis.bar_label(drawn, [f"{height:.{2 if height < 1 else 3}g}" for height in heights], padding=2, fontsize=8)
    axis.set_xticks(range(len(values)), list(values), fontsize=8)
    axis.grid(axis="x", visible=False)
    axis.set_ylim(top=1.25 * max(height for row in values.values() for height in row.values()))


def effect(rows: Mapping[str, tuple[Record, Record]], source: str) -> Figure:
    """Latency after over latency before, a row a network, with whiskers; the kernels of both engines beside it."""
    order = sorted(rows, key=lambda name: rows[name][1].median / rows[name][0].median)
    fig, axis = plt.subplots(figsize=(7.5, 0.3 * len(rows) + 1.1))
    for place, name in enumerate(order):
        a, b = rows[name]
        ratio, low, high = b.median / a.median, b.p10 / a.p90, b.p90 / a.p10
        tint = GREEN if high < 1 else VERMILION if low > 1 else GREY
        axis.plot([low, high], [place, place], color=tint, linewidth=1.5)
        axis.scatter([ratio], [place], color=tint, s=36, zorder=3)
        kernels = [record.extra["kernels"] for record in rows[name]]
        changed = f"{kernels[0]} kernels in both" if kernels[0] == kernels[1] else "{} → {} kernels".format(*kernels)
        axis.text(1.125, place, changed, fontsize=8, va="center")
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(range(len(order)), order)
    axis.invert_yaxis()
    axis.set_xticks([0.8, 0.9, 1.0, 1.1])
    axis.set(xlim=(0.75, 1.28), xlabel="latency with level 2 / latency without (left of 1 is faster; p10 to p90)")
    axis.grid(axis="y", visible=False)
    fig.tight_layout()
    fig.text(0.01, 0, source, fontsize=7.5, color="#5F6368", va="top")
    return fig


def trials(traps: Mapping[str, bool], graphs: Sequence[bool]) -> Figure:
    """An exercise's outcome: a line for each trap, and a square for each random graph; green is right."""
    fig, axis = plt.subplots(figsize=(7.5, 0.26 * len(traps) + 0.8))
    for row, (name, right) in enumerate(traps.items()):
        axis.scatter([0], [-row], color=GREEN if right else VERMILION, marker="o" if right else "X", s=55)
        axis.text(0.6, -row, name, fontsize=8.5, va="center")
    columns = 15
    for number, right in enumerate(graphs):
        x, y = 15 + number % columns, -(number // columns)
        axis.scatter([x], [y], color=GREEN if right else VERMILION, marker="s", s=70)
    if graphs:
        axis.text(14.6, 0.75, f"{len(graphs)} random graphs", fontsize=8.5)
    axis.set(xlim=(-0.7, 15 + columns), ylim=(-max(len(traps), 5) + 0.3, 1.3))
    axis.axis("off")
    return fig
