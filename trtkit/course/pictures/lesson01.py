"""Lesson 01's pictures. Each takes plain values or what `trtkit.graph` returns, and gives a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trtkit.plot.operators import OTHER, colour, families
from trtkit.plot.style import BLUE, GREEN, GREY, ORANGE, VERMILION

if TYPE_CHECKING:
    from trtkit.bench.roofline import Machine
    from trtkit.graph.cost import Cost
    from trtkit.graph.memory import Memory


def shares(cost: Cost, most: int = 6) -> Figure:
    """Each operator's share of the FLOPs and of the bytes moved, side by side."""
    flops, moved = cost.flops, cost.bytes_read + cost.bytes_written
    sums = sorted(cost.by_operator.items(), key=lambda item: -(item[1].bytes_read + item[1].bytes_written))[:most]
    fig, axes = plt.subplots(1, 2, figsize=(8.5, 0.4 * len(sums) + 0.9), sharey=True)
    rows = [op for op, _ in sums]
    arithmetic = [total.flops / flops for _, total in sums]
    traffic = [(total.bytes_read + total.bytes_written) / moved for _, total in sums]
    for axis, values, what in zip(axes, (arithmetic, traffic), ("FLOPs", "bytes moved"), strict=True):
        drawn = axis.barh(rows, values, color=[colour(op) for op in rows])
        axis.bar_label(drawn, [f"{value:.1%}" for value in values], padding=3, fontsize=8)
        axis.set(title=f"share of the {what}", xlim=(0, 1.15))
        axis.set_xticks([])
        axis.grid(visible=False)
    axes[0].invert_yaxis()
    fig.tight_layout()
    return fig


def roofline(machine: Machine, costs: Mapping[str, Cost]) -> Figure:
    """Every node under the roof of a machine: intensity against the rate that it can reach at most."""
    fig, axes = plt.subplots(1, len(costs), figsize=(4.6 * len(costs), 3.6), sharey=True, squeeze=False)
    x = np.geomspace(0.05, 300, 200)
    for axis, (name, cost) in zip(axes[0], costs.items(), strict=True):
        axis.loglog(x, np.minimum(machine.flops, machine.bytes * x) / 1e9, color="black", linewidth=1.2)
        axis.axvline(machine.balance, color=GREY, linestyle="--", linewidth=1)
        nodes = [node for node in cost.nodes if node.flops and node.intensity > 0.05]
        rates = [min(machine.flops, machine.bytes * node.intensity) / 1e9 for node in nodes]
        sizes = [8 + 400 * (node.flops or 0) / max(cost.flops, 1) * 4 for node in nodes]
        tints = [colour(node.op_type) for node in nodes]
        axis.scatter([node.intensity for node in nodes], rates, s=sizes, c=tints, alpha=0.6, linewidths=0.4,
                     edgecolors="black", zorder=3)  # fmt: skip
        axis.set(title=name, xlabel="FLOPs per byte")
        axis.text(machine.balance, axis.get_ylim()[0] * 1.3, f" balance {machine.balance:.1f}", fontsize=8)
    axes[0][0].set_ylabel("GFLOP/s at most")
    present = families({colour(node.op_type) for cost in costs.values() for node in cost.nodes if node.flops})
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=tint, label=what) for tint, what in present
               if tint != OTHER[0]]  # fmt: skip
    fig.legend(handles=handles, loc="lower center", ncols=4, fontsize=8, bbox_to_anchor=(0.5, -0.09))
    fig.tight_layout()
    return fig


def arena(memory: Memory, title: str = "") -> Figure:
    """The plan: a rectangle per buffer, from the node that writes it to the last that reads it, at its offset."""
    fig, axis = plt.subplots(figsize=(8.5, 3.4))
    tints = {"input": GREY, "output": GREEN, "intermediate": BLUE}
    for buffer in memory.buffers:
        axis.add_patch(plt.Rectangle(
            (buffer.first - 0.5, buffer.offset / 1e6), buffer.last - buffer.first + 1, buffer.size_bytes / 1e6,
            facecolor=tints[buffer.kind], alpha=0.55, edgecolor="white", linewidth=1,
        ))  # fmt: skip
    steps = np.arange(len(memory.nodes))
    axis.step(steps, np.array(memory.live_bytes) / 1e6, where="mid", color=ORANGE, label="alive at this node")
    axis.axhline(memory.arena_bytes / 1e6, color="black", linewidth=1, label="the arena")
    axis.set(xlim=(-0.5, len(memory.nodes) - 0.5), ylim=(0, memory.arena_bytes / 1e6 * 1.3), xlabel="node, in order",
             ylabel="offset, MB", title=title)  # fmt: skip
    axis.grid(visible=False)
    axis.legend(loc="upper right", fontsize=8, ncols=2)
    fig.tight_layout()
    return fig


def reuse(plans: Mapping[str, Memory]) -> Figure:
    """What each network's activations take without reuse, in one arena, and at least."""
    fig, axis = plt.subplots(figsize=(8, 0.75 * len(plans) + 0.9))
    kinds = (("every tensor its own buffer", "naive_bytes", GREY), ("one arena", "arena_bytes", BLUE),
             ("most alive at once", "peak_bytes", ORANGE))  # fmt: skip
    for i, (label, key, tint) in enumerate(kinds):
        values = [getattr(plan, key) / 1e6 for plan in plans.values()]
        drawn = axis.barh(np.arange(len(plans)) + (i - 1) * 0.27, values, 0.25, color=tint, label=label)
        axis.bar_label(drawn, [f"{value:.1f}" for value in values], padding=3, fontsize=8)
    axis.set_yticks(range(len(plans)), list(plans))
    axis.invert_yaxis()
    axis.set(xlabel="MB of activations, batch 1")
    axis.grid(axis="y", visible=False)
    axis.legend(fontsize=8, loc="lower right")
    fig.tight_layout()
    return fig


def activations(photo: NDArray[np.uint8], tensors: Mapping[str, NDArray[Any]], channels: int = 5) -> Figure:
    """The photograph, and below it the most active channels (C, H, W) of each tensor."""
    fig, axes = plt.subplots(len(tensors), channels + 1, figsize=(8.5, 1.55 * len(tensors)), squeeze=False)
    for row, (name, tensor) in zip(axes, tensors.items(), strict=True):
        order = np.argsort(-tensor.reshape(len(tensor), -1).var(axis=1))[:channels]
        row[0].imshow(photo)
        row[0].set_title(f"{name}\n{'×'.join(map(str, tensor.shape))}", fontsize=7.5)
        for axis, channel in zip(row[1:], order, strict=True):
            axis.imshow(tensor[channel], cmap="viridis")
            axis.set_title(f"channel {channel}", fontsize=7, fontweight="normal")
        for axis in row:
            axis.axis("off")
    fig.tight_layout()
    return fig


def side_by_side(figures: Mapping[str, Figure]) -> Figure:
    """Several drawings beside each other, at the same scale."""
    pictures = {name: _pixels(figure) for name, figure in figures.items()}
    widths = [picture.shape[1] for picture in pictures.values()]
    height = max(picture.shape[0] for picture in pictures.values())
    fig, axes = plt.subplots(
        1, len(pictures), figsize=(sum(widths) / 100, height / 100), width_ratios=widths, squeeze=False
    )
    for axis, (name, picture) in zip(axes[0], pictures.items(), strict=True):
        axis.imshow(picture)
        axis.set(ylim=(height, 0), xlim=(0, picture.shape[1]))
        axis.set_title(name, fontsize=9)
        axis.axis("off")
    fig.subplots_adjust(left=0, right=1, bottom=0, top=0.93, wspace=0)
    return fig


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def against(labels: Sequence[str], right: Sequence[float], yours: Sequence[float], what: str) -> Figure:
    """Right values as bars, yours as marks on them."""
    fig, axis = plt.subplots(figsize=(6.5, 0.42 * len(labels) + 0.9))
    axis.barh(labels, right, color="#d5d8dc", label="right")
    good = [abs(a - b) <= 1e-6 * abs(b) for a, b in zip(yours, right, strict=True)]
    axis.scatter(yours, labels, color=[GREEN if ok else VERMILION for ok in good], marker="D", zorder=3, label="yours")
    axis.set(xlabel=what)
    axis.invert_yaxis()
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    fig.tight_layout()
    return fig


def order(names: Sequence[str], reads: Mapping[str, Sequence[str]]) -> Figure:
    """Nodes on a line in the given order, an arc for every read: above where it goes forward, below where back."""
    fig, axis = plt.subplots(figsize=(7.5, 2.6))
    place = {name: i for i, name in enumerate(names)}
    for name in names:
        for source in reads.get(name, ()):
            if source in place:
                a, b = place[source], place[name]
                t = np.linspace(0, np.pi, 40)
                axis.plot((a + b) / 2 + (b - a) / 2 * -np.cos(t), 0.3 * (b - a) * np.sin(t),
                          color=BLUE if b > a else VERMILION, linewidth=1.2)  # fmt: skip
    axis.scatter(range(len(names)), [0] * len(names), s=240, color="white", edgecolor="black", zorder=3)
    for name, i in place.items():
        axis.text(i, 0, name, ha="center", va="center", fontsize=8, zorder=4)
    axis.axis("off")
    axis.margins(0.06, 0.15)
    axis.set_title("above the line: read after it was computed; below: read too early", fontsize=9, fontweight="normal")
    return fig


def peak(live: Sequence[float], yours: float) -> Figure:
    """What is alive at each node, and your peak as a line."""
    fig, axis = plt.subplots(figsize=(6.5, 2.4))
    axis.bar(range(len(live)), live, color=BLUE, width=0.9)
    axis.axhline(yours, color=GREEN if yours == max(live) else VERMILION, label=f"your peak: {yours:g}")
    axis.set(xlabel="node, in order", ylabel="bytes alive")
    axis.legend(fontsize=8)
    fig.tight_layout()
    return fig
