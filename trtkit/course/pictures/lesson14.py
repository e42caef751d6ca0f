"""Lesson 14's pictures. Each takes profiles, records or plain numbers and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trtkit.bench.kernels import Span
from trtkit.bench.record import Records
from trtkit.bench.roofline import Machine
from trtkit.course.inside import STARTS, STEPS
from trtkit.engine.profile import LayerCost, Profile
from trtkit.plot.operators import colour
from trtkit.plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION

_KINDS = (("convolution", "Conv", "o"), ("matrix product", "MatMul", "s"), ("other", "Add", "^"))


def _kind(layer: LayerCost) -> int:
    if "Conv" in layer.op_types:
        return 0
    return 1 if any(op in ("Gemm", "MatMul") for op in layer.op_types) else 2


def _roof(axis: Axes, machine: Machine, left: float, right: float) -> None:
    x = np.geomspace(left, right, 200)
    axis.plot(x, np.minimum(machine.flops, x * machine.bytes) / 1e12, color="black", linewidth=1.3)
    axis.axvline(machine.balance, color=GREY, linestyle="--", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="FLOPs for each byte moved", ylabel="TFLOP/s")


def work(costs: Sequence[LayerCost], machine: Machine, source: str) -> Figure:
    """What is to be done, before anything is timed: layers on the roof itself, sized by the least time they take."""
    figure, axis = plt.subplots(figsize=(8, 4))
    layers = [layer for layer in costs if layer.flops and layer.bytes]
    ratios = [layer.flops / layer.bytes for layer in layers]
    _roof(axis, machine, min(*ratios, machine.balance) / 2, max(*ratios, machine.balance) * 2)
    for kind, (what, op, marker) in enumerate(_KINDS):
        mine = [layer for layer in layers if _kind(layer) == kind]
        x = np.array([layer.flops / layer.bytes for layer in mine])
        size = [4 + 30e6 * machine.seconds(layer.flops, layer.bytes) for layer in mine]
        rates = np.minimum(machine.flops, x * machine.bytes) / 1e12
        axis.scatter(x, rates, s=size, marker=marker, color=colour(op), alpha=0.6, label=f"{what}: {len(mine)}")
    axis.set_title(f"Right of the dashed line arithmetic is the limit, left of it memory [{source}]", fontsize=9)
    axis.legend(fontsize=8)
    plt.close(figure)
    return figure


def against_the_roof(profiles: Mapping[str, Profile]) -> Figure:
    """Measured: each layer at the rate it reached, a panel for each profile, the roof above."""
    figure, axes = plt.subplots(1, len(profiles), figsize=(4.8 * len(profiles), 3.9), sharey=True, squeeze=False)
    for axis, (name, profile) in zip(axes[0], profiles.items(), strict=True):
        layers = [layer for layer in profile.layers if layer.cost.flops and layer.us]
        ratios = [layer.cost.flops / layer.cost.bytes for layer in layers]
        machine = Machine(profile.machine, profile.flops, profile.bytes)
        _roof(axis, machine, min(*ratios, machine.balance) / 2, max(*ratios, machine.balance) * 2)
        for kind, (what, op, marker) in enumerate(_KINDS):
            mine = [layer for layer in layers if _kind(layer.cost) == kind]
            axis.scatter([m.cost.flops / m.cost.bytes for m in mine], [m.tflops for m in mine],
                         s=[6 + 4 * m.us for m in mine], marker=marker, color=colour(op), alpha=0.6,
                         label=what)  # fmt: skip
        reached = sum(layer.cost.flops for layer in layers) / profile.sum_us / 1e6
        axis.set_title(f"{name}: {reached:.0f} TFLOP/s on average", fontsize=9.5)
        axis.set_ylim(1e-3, 2 * profile.flops / 1e12)
    axes[0][0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    plt.close(figure)
    return figure


def guessed(profile: Profile) -> Figure:
    """The least time of each layer against the time that it took; on the lower line the guess was right."""
    figure, axis = plt.subplots(figsize=(7, 4.6))
    layers = [layer for layer in profile.layers if layer.us and layer.bound_us]
    for kind, (what, op, marker) in enumerate(_KINDS):
        mine = [layer for layer in layers if _kind(layer.cost) == kind]
        axis.scatter([m.bound_us for m in mine], [m.us for m in mine], marker=marker, color=colour(op), s=26, alpha=0.7,
                     label=what)  # fmt: skip
    ends = np.array([min(m.bound_us for m in layers), max(m.us for m in layers)])
    axis.plot(ends, ends, color="black", linewidth=1.2)
    axis.plot(ends, 10 * ends, color=GREY, linewidth=0.8, linestyle="--")
    axis.set(xscale="log", yscale="log", xlabel="least time on this machine, µs", ylabel="measured, µs")
    for layer in profile.furthest(3):
        axis.annotate(layer.cost.label, (layer.bound_us, layer.us), xytext=(4, 5), textcoords="offset points",
                      fontsize=7.5)  # fmt: skip
    axis.set_title(f"Full line: as fast as possible; dashed: ten times that [{profile.source}]", fontsize=9)
    axis.legend(fontsize=8)
    plt.close(figure)
    return figure


def timeline(spans: Sequence[Span], charged: Sequence[float]) -> Figure:
    """Kernels as they ran, each on a line of its own, the part that it is charged with in a strong colour."""
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(spans) + 1.1))
    ended = spans[0].begin
    for row, (span, time) in enumerate(zip(spans, charged, strict=True)):
        axis.barh(row, span.end - span.begin, left=span.begin, color=BLUE, alpha=0.3, height=0.6)
        axis.barh(row, time, left=max(ended, span.end - time), color=BLUE, height=0.28)
        axis.text(span.end + 0.1, row, f"took {span.end - span.begin:g}, charged {time:g}", va="center", fontsize=8)
        ended = max(ended, span.end)
    axis.set_yticks(range(len(spans)), [span.name for span in spans])
    axis.set(xlabel="µs", xlim=(spans[0].begin, 1.3 * ended))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    plt.close(figure)
    return figure


def energies(found: Mapping[str, Mapping[str, float]], source: str) -> Figure:
    """Millijoules for one sample, and the watts drawn meanwhile."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.42 * len(found) + 1.2), sharey=True)
    names = [name.split(",")[0] + " " + name.rpartition("(")[2].split(",")[0] for name in found]
    for axis, key, what, tint in zip(axes, ("mj_per_sample", "watts"), ("mJ for one sample", "watts"), (GREEN, ORANGE),
                                     strict=True):  # fmt: skip
        values = [float(one[key]) for one in found.values()]
        axis.barh([name.replace(" ", ", batch ") for name in names], values, color=tint, height=0.6)
        for row, value in enumerate(values):
            axis.text(value, row, f" {value:.3g}", va="center", fontsize=8.5)
        axis.set(xlabel=what, xlim=(0, 1.2 * max(values)))
        axis.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    figure.suptitle(source, fontsize=8.5, x=0.02, ha="left")
    figure.tight_layout()
    plt.close(figure)
    return figure


def starts(found: Records) -> Figure:
    """From an engine file to the first result: the steps of each kind of start as a bar."""
    figure, axis = plt.subplots(figsize=(8.5, 0.45 * len(found) + 1.3))
    kinds = [kind for kind in STARTS if kind in found]
    left = np.zeros(len(kinds))
    for (step, said), tint in zip(STEPS.items(), (GREY, VERMILION, BLUE), strict=True):
        values = np.array([found[kind].extra["ms"][step] for kind in kinds])
        axis.barh([STARTS[kind] for kind in kinds], values, left=left, color=tint, height=0.6, label=said)
        left += values
    for row, value in enumerate(left):
        axis.text(value, row, f" {value:.0f} ms", va="center", fontsize=8.5)
    axis.set(xlabel="ms in a new process, imports not counted", xlim=(0, 1.15 * left.max()))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_title(found.source, fontsize=8.5)
    axis.legend(fontsize=8, loc="lower right")
    plt.close(figure)
    return figure


def sizes(found: Mapping[str, int], title: str) -> Figure:
    """Megabytes as bars."""
    figure, axis = plt.subplots(figsize=(7.5, 0.4 * len(found) + 0.9))
    axis.barh(list(found), [size / 1e6 for size in found.values()], color=PURPLE, height=0.6)
    for row, size in enumerate(found.values()):
        axis.text(size / 1e6, row, f" {size / 1e6:.2f} MB", va="center", fontsize=8.5)
    axis.set(xlim=(0, 1.2 * max(found.values()) / 1e6), xlabel="MB")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_title(title, fontsize=9.5)
    plt.close(figure)
    return figure


def widths(times: Mapping[str, Mapping[int, float]], source: str) -> Figure:
    """Microseconds of a call by the network's width, a line for each way of running it."""
    figure, axis = plt.subplots(figsize=(7.5, 3.6))
    for name, line in times.items():
        axis.plot(list(line), list(line.values()), marker="o", markersize=4, label=name)
    axis.set(xscale="log", yscale="log", xlabel="width of the hidden layer", ylabel="µs a call")
    axis.set_title(source, fontsize=8.5)
    axis.legend(fontsize=8)
    plt.close(figure)
    return figure
