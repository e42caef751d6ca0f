"""Lesson 00's pictures. Each takes plain arrays or records and returns a matplotlib figure.

General plots (fusion map, comparison) are in trtkit.plot; here is what only makes sense inside the course.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trtkit.course.photos import Guess
    from trtkit.model import Step

GREEN, BLUE, ORANGE, GREY, RED = "#5b8c00", "#2f6fb0", "#d97706", "#8a8f98", "#c0392b"


def gallery(images: Sequence[NDArray[np.uint8]], titles: Sequence[str], columns: int = 5, size: float = 1.9) -> Figure:
    """Images (H, W, 3) uint8 in rows, each with its title below it."""
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.35) * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image)
        axis.set_title(title, fontsize=8)
    fig.tight_layout()
    return fig


def answers(
    images: Sequence[NDArray[np.uint8]], guesses: Sequence[Sequence[Guess]], right: Sequence[bool | None]
) -> Figure:
    """Images beside the likeliest labels; the first bar is green (right), red (wrong) or grey (no right answer)."""
    rows = -(-len(images) // 3)
    fig, axes = plt.subplots(rows, 6, figsize=(11, 1.55 * rows), width_ratios=[1, 1.5] * 3, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    pairs = axes.reshape(-1, 2)
    for (photo, bars), image, guess, verdict in zip(pairs, images, guesses, right, strict=False):
        photo.imshow(image)
        colour = GREY if verdict is None else GREEN if verdict else RED
        chances = [g.probability for g in guess]
        bars.barh(range(len(guess)), chances, color=[colour] + ["#d5d8dc"] * (len(guess) - 1), height=0.85)
        for row, g in enumerate(guess):
            bars.text(0.02, row, f"{g.label}  {g.probability:.0%}", va="center", fontsize=8)
        bars.set(xlim=(0, 1), ylim=(len(guess) - 0.4, -0.6))
    fig.tight_layout()
    return fig


def operators(counts: Mapping[str, int], arithmetic: Sequence[str]) -> Figure:
    """How many nodes of each operator, those that multiply a lot in another colour."""
    fig, axis = plt.subplots(figsize=(7, 0.28 * len(counts) + 0.9))
    names = list(counts)
    drawn = axis.barh(names, list(counts.values()), color=[BLUE if name in arithmetic else GREY for name in names])
    axis.bar_label(drawn, padding=3, fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="nodes", xlim=(0, 1.1 * max(counts.values())))
    axis.set_title("blue: the nodes that do the multiplying", fontsize=9, loc="left", fontweight="normal")
    return fig


def steps(history: Sequence[Step]) -> Figure:
    """How many nodes are left after each step of a model's history."""
    labels = ["as loaded"] + [step.name for step in history]
    left = [history[0].nodes_before] + [step.nodes_after for step in history]
    fig, axis = plt.subplots(figsize=(7, 0.36 * len(left) + 0.7))
    drawn = axis.barh(range(len(left)), left, color=[GREY] + [GREEN] * len(history))
    axis.bar_label(drawn, padding=3, fontsize=8)
    axis.set_yticks(range(len(left)), labels)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="nodes in the graph", xlim=(0, 1.1 * max(left)))
    return fig


def staircase(x: NDArray[Any], rounded: NDArray[Any], scale: float) -> Figure:
    """Quantisation as a staircase, and the rounding error below it with its bounds of half a step."""
    fig, (upper, lower) = plt.subplots(2, 1, figsize=(7, 4.2), sharex=True, height_ratios=[2, 1])
    upper.plot(x, x, color=GREY, linewidth=1, label="the value itself")
    upper.step(x, rounded, where="mid", color=GREEN, label="after rounding")
    upper.legend(fontsize=8, loc="upper left")
    upper.set_ylabel("value")
    lower.plot(x, rounded - x, color=ORANGE, linewidth=1)
    for bound in (-scale / 2, scale / 2):
        lower.axhline(bound, color=GREY, linestyle="--", linewidth=0.8)
    lower.set(xlabel="x", ylabel="error")
    lower.text(x.min(), 0.62 * scale, "half a step", fontsize=8, color=GREY)
    lower.set_ylim(-0.9 * scale, 0.9 * scale)
    return fig


def margins(margin: NDArray[Any], same: Mapping[str, NDArray[np.bool_]]) -> Figure:
    """Per precision a strip of views by how sure the reference was; the views whose label changed stand out."""
    fig, axis = plt.subplots(figsize=(7.5, 0.75 * len(same) + 1.1))
    jitter = np.random.default_rng(0).uniform(-0.22, 0.22, margin.size)
    for row, agree in enumerate(same.values()):
        axis.scatter(margin[agree], row + jitter[agree], s=16, color=GREEN, alpha=0.45, linewidths=0)
        axis.scatter(margin[~agree], row + jitter[~agree], s=42, color=RED, marker="x")
    labels = [f"{name}: {int(agree.sum())} of {agree.size} keep their label" for name, agree in same.items()]
    axis.set_yticks(range(len(same)), labels)
    axis.set(ylim=(len(same) - 0.5, -0.5), xlabel="FP32's lead: probability of its first answer minus its second")
    axis.set_title("red cross: this view got another label", fontsize=9, loc="left", fontweight="normal")
    return fig


def bars(values: Mapping[str, float], unit: str, note: str = "", highlight: Sequence[str] = ()) -> Figure:
    """Horizontal bars with their numbers; ``note`` says where the numbers come from."""
    fig, axis = plt.subplots(figsize=(7, 0.38 * len(values) + 0.9))
    drawn = axis.barh(
        list(values), list(values.values()), color=[GREEN if name in highlight else GREY for name in values]
    )
    axis.bar_label(drawn, fmt="%.3g", padding=3, fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=unit, xlim=(0, 1.15 * max(values.values())))
    if note:
        axis.set_title(note, fontsize=8, loc="left", color=GREY, fontweight="normal")
    return fig


def speedups(factors: Mapping[str, Mapping[str, float]], note: str) -> Figure:
    """How many times faster the engine is than each peer (``factors[setting][peer]``), with the promised 2 marked.

    The axis is logarithmic and bars start at 1: upwards is faster, downwards is slower.
    """
    settings = list(factors)
    peers = list(dict.fromkeys(peer for row in factors.values() for peer in row))
    fig, axis = plt.subplots(figsize=(8.5, 3.8))
    width = 0.8 / len(peers)
    for number, peer in enumerate(peers):
        places = [i + (number - (len(peers) - 1) / 2) * width for i in range(len(settings))]
        heights = [factors[setting].get(peer, np.nan) - 1 for setting in settings]
        axis.bar(places, heights, width, bottom=1, label=f"than {peer}", color=[GREY, BLUE, ORANGE, GREEN][number % 4])
        for place, height in zip(places, heights, strict=True):
            axis.annotate(f"{height + 1:.1f}", (place, height + 1), xytext=(0, 2 if height >= 0 else -9), fontsize=7,
                          textcoords="offset points", ha="center")  # fmt: skip
    axis.axhline(1, color="black", linewidth=0.8)
    axis.axhline(2, color=RED, linewidth=0.8, linestyle="--", label="the promise: 2x")
    ticks = (0.5, 1, 2, 4, 8, 16, 32)
    axis.set_yscale("log", base=2)
    axis.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    largest = max(max(row.values()) for row in factors.values())
    axis.set(ylim=(0.45, 1.6 * largest), ylabel="times faster")
    axis.set_xticks(range(len(settings)), settings, fontsize=8)
    axis.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    axis.grid(axis="x", visible=False)
    axis.set_title(note, fontsize=8, loc="left", color=GREY, fontweight="normal")
    return fig


def scale_check(x: NDArray[Any], scale: float) -> Figure:
    """What INT8 with ``scale`` adds to each value; beyond half a step (dashed) a value was cut off."""
    fig, axis = plt.subplots(figsize=(5.5, 2.6))
    error = np.clip(np.rint(x / scale), -127, 127) * scale - x
    axis.scatter(x, error, s=8, color=[RED if abs(e) > scale / 2 + 1e-6 else GREEN for e in error])
    for bound in (-scale / 2, scale / 2):
        axis.axhline(bound, color=GREY, linestyle="--", linewidth=0.8)
    axis.set(xlabel="x", ylabel="error")
    axis.set_title("dashed: half a step; red: cut off", fontsize=8, loc="left", color=GREY, fontweight="normal")
    return fig


def overall_check(shares: NDArray[Any], yours: NDArray[Any]) -> Figure:
    """The reader's overall speed-up over the share of time made 4 times faster."""
    fig, axis = plt.subplots(figsize=(4.2, 2.8))
    axis.plot(100 * shares, yours, color=GREEN, marker=".")
    axis.axhline(4, color=GREY, linestyle="--", linewidth=0.8)
    axis.set(xlabel="share of the time made 4x faster, %", ylabel="overall speed-up")
    return fig


def fold_check(right: NDArray[Any], yours: NDArray[Any]) -> Figure:
    """Both results (channel 0) and their difference as images."""
    fig, axes = plt.subplots(1, 3, figsize=(6.6, 2.4))
    limit = float(np.abs(right).max())
    for axis, image, title in zip(axes, (right[0], yours[0], yours[0] - right[0]),
                                  ("conv, then BN", "your convolution", "difference"), strict=True):  # fmt: skip
        axis.imshow(image, cmap="RdBu", vmin=-limit, vmax=limit)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    return fig


def patterns_check(counts: Mapping[str, int]) -> Figure:
    """Fused groups and how often each occurs."""
    return bars({name: float(count) for name, count in sorted(counts.items(), key=lambda p: -p[1])}, "kernels")
