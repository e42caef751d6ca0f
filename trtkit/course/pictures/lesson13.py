"""Lesson 13's pictures. Each takes plain numbers, timelines or loads and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from trtkit.bench.traffic import Load
from trtkit.course.queueing import Batch
from trtkit.course.timeline import COMPUTE, DOWN, HOST, UNITS, UP, Timeline
from trtkit.plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

TINTS = {HOST: GREY, UP: SKY, COMPUTE: GREEN, DOWN: ORANGE}
LINES = (VERMILION, ORANGE, BLUE, GREEN, PURPLE)


def timelines(panels: Mapping[str, Timeline], end: float | None = None) -> Figure:
    """Who worked when, a panel each on one time axis; what was done in the wrong order is red."""
    fig, axes = plt.subplots(len(panels), figsize=(9.5, 1.5 * len(panels) + 0.4), sharex=True, squeeze=False)
    for axis, (title, timeline) in zip(axes[:, 0], panels.items(), strict=True):
        wrong = {id(span) for pair in timeline.races() for span in pair}
        for span in timeline.spans:
            tint = VERMILION if id(span) in wrong else TINTS[span.unit]
            took = span.end - span.start
            edge = "white" if took > 0.01 * timeline.total else tint  # or nothing would be left of it
            axis.barh(UNITS.index(span.unit), took, left=span.start, color=tint, edgecolor=edge)
            if span.unit == COMPUTE:
                middle = (span.start + span.end) / 2
                axis.text(middle, UNITS.index(COMPUTE), span.name.split()[-1], ha="center", va="center", fontsize=7)
        races = f", {len(timeline.races())} pairs in the wrong order" if wrong else ""
        axis.set_title(f"{title}: {timeline.total:.3g} ms{races}", fontsize=9)
        axis.set_yticks(range(len(UNITS)), UNITS)
        axis.set_ylim(len(UNITS) - 0.4, -0.6)
        axis.grid(visible=False)
    axes[-1, 0].set(xlabel="ms", xlim=(0, end or max(t.total for t in panels.values())))
    fig.tight_layout()
    return fig


def loads(found: Mapping[str, Sequence[Load]], note: str = "") -> Figure:
    """Median and 99th percentile of latency, and answers a second, over the rate of arrival."""
    points = {
        way: [(one.rate_per_s, one.percentile_ms(50), one.percentile_ms(99), one.throughput_per_s) for one in ones]
        for way, ones in found.items()
    }
    return load_points(points, note)


def load_points(found: Mapping[str, Sequence[tuple[float, float, float, float]]], note: str = "") -> Figure:
    """The same from (rate, p50 ms, p99 ms, answers a second)."""
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.1))
    rates = sorted({point[0] for points in found.values() for point in points})
    for (way, points), tint in zip(found.items(), LINES, strict=False):
        table = np.array(points)
        for axis, column in zip(axes, (1, 2, 3), strict=True):
            axis.plot(table[:, 0], table[:, column], "o-", color=tint, label=way, markersize=4)
    axes[2].plot(rates, rates, ":", color=GREY, label="all that arrive")
    names = ("latency, median (ms)", "latency, 99th percentile (ms)", "answers a second")
    for axis, name in zip(axes, names, strict=True):
        axis.set(xscale="log", yscale="log", xlabel="requests a second")
        axis.set_title(name, fontsize=9)
        _plain_ticks(axis, rates)
    axes[2].legend(fontsize=7)
    if note:
        fig.text(0.01, -0.02, note, fontsize=7, color="#5F6368")
    fig.tight_layout()
    return fig


def _plain_ticks(axis: Axes, rates: Sequence[float]) -> None:
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates], fontsize=7)
    axis.xaxis.set_minor_locator(plt.NullLocator())
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="y", labelsize=7)


def scaling(curves: Mapping[str, Mapping[int, float]], what: str, note: str = "") -> Figure:
    """Something over the number of workers, relative to one of them, with the line of perfect scaling."""
    fig, axis = plt.subplots(figsize=(6.5, 3.0))
    for (name, values), tint in zip(curves.items(), LINES[::-1], strict=False):
        first = values[min(values)]
        axis.plot(list(values), [value / first for value in values.values()], "o-", color=tint,
                  label=f"{name} (1: {first:,.0f}/s)")  # fmt: skip
    workers = sorted({w for values in curves.values() for w in values})
    axis.plot(workers, workers, ":", color=GREY, label="each as fast as the first")
    axis.set(xscale="log", yscale="log", xlabel="workers", ylabel=what)
    _plain_ticks(axis, workers)
    axis.set_yticks(workers, [f"{n}×" for n in workers])
    axis.legend(fontsize=7)
    if note:
        axis.set_title(note, fontsize=8)
    fig.tight_layout()
    return fig


def queue(found: Mapping[str, Load]) -> Figure:
    """Every request's latency in the order of arrival: a queue that grows is a line that climbs."""
    fig, axis = plt.subplots(figsize=(8, 2.8))
    for (way, load), tint in zip(found.items(), LINES[::2], strict=False):
        axis.plot(load.latencies_ms, ".", markersize=2.5, color=tint, label=way)
    axis.set(yscale="log", xlabel="request, in the order of arrival", ylabel="latency (ms)")
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.legend(fontsize=8, markerscale=4)
    fig.tight_layout()
    return fig


def growth(asked: Sequence[int], held: Sequence[int]) -> Figure:
    """Bytes that TensorRT asked for in each run, and what the allocator held afterwards."""
    fig, axis = plt.subplots(figsize=(6.5, 2.4))
    axis.bar(range(len(asked)), asked, color=SKY, label="asked for")
    axis.step(range(len(held)), held, where="mid", color=VERMILION, label="held")
    axis.set(xlabel="run", ylabel="bytes")
    axis.legend(fontsize=8)
    fig.tight_layout()
    return fig


def profiles(tuned: Mapping[str, tuple[int, int, int]], chosen: Mapping[int, str]) -> Figure:
    """Profiles as ranges of the batch with what each is tuned for, and for every batch the one that is chosen."""
    fig, axis = plt.subplots(figsize=(8, 0.5 * len(tuned) + 1.0))
    for row, (name, (least, best, most)) in enumerate(tuned.items()):
        axis.plot((least, most), (row, row), color="#C8CCD0", linewidth=9, solid_capstyle="butt", zorder=1)
        axis.plot(best, row, "D", color=VERMILION, markersize=6, zorder=3)
        mine = [size for size, owner in chosen.items() if owner == name]
        axis.plot(mine, [row] * len(mine), "|", color=GREEN, markersize=11, zorder=2)
    axis.set_yticks(range(len(tuned)), list(tuned))
    axis.set(xlabel="batch: grey the range, diamond what it is tuned for, green what is sent there")
    axis.set(ylim=(-0.6, len(tuned) - 0.4))
    axis.grid(visible=False)
    fig.tight_layout()
    return fig


def served(arrivals: Sequence[float], batches: Sequence[Batch]) -> Figure:
    """Requests as dots where they arrive, each joined to its batch."""
    fig, axis = plt.subplots(figsize=(9.5, 2.2))
    for number, batch in enumerate(batches):
        tint = (BLUE, ORANGE)[number % 2]
        axis.barh(0, batch.end - batch.start, left=batch.start, height=0.4, color=tint)
        axis.text((batch.start + batch.end) / 2, 0, str(len(batch.requests)), ha="center", va="center", fontsize=7)
        for request in batch.requests:
            axis.plot((arrivals[request], batch.start), (1, 0.2), color=tint, linewidth=0.6)
    axis.plot(arrivals, np.ones(len(arrivals)), ".", color="black", markersize=4)
    axis.set_yticks([0, 1], ["batches", "arrivals"])
    axis.set(xlabel="ms", ylim=(-0.4, 1.3))
    axis.grid(visible=False)
    fig.tight_layout()
    return fig


def padding(counts: Mapping[int, int], yours: Sequence[int], best: Sequence[int]) -> Figure:
    """How often each batch size comes, and up to which size it is filled: by yours, and by the best choice."""
    fig, axis = plt.subplots(figsize=(8, 2.8))
    axis.bar(list(counts), list(counts.values()), color="#C8CCD0", label="how often it comes")
    for sizes, tint, name in ((best, GREEN, "best"), (yours, BLUE, "yours")):
        for size in sizes:
            axis.axvline(size, color=tint, linestyle="-" if name == "yours" else ":", linewidth=1.6)
        axis.plot([], [], color=tint, linestyle="-" if name == "yours" else ":", label=f"{name}: {sorted(sizes)}")
    axis.set(xlabel="rows in a batch")
    axis.legend(fontsize=8)
    fig.tight_layout()
    return fig
