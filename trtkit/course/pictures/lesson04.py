"""Lesson 04's pictures. Each takes plain arrays or numbers and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trtkit.course.pictures.lesson00 import BLUE, GREEN, GREY, ORANGE, RED
from trtkit.importers.sklearn_trees import Matrices, Tree

_COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)


def concatenation(rows: int, inner: int, widths: Mapping[str, int]) -> Figure:
    """x (rows, inner) times weights side by side, and the result in the same colours."""
    fig, axis = plt.subplots(figsize=(7.5, 2.6))
    unit = 1.0 / max(inner, rows)
    _block(axis, 0, inner * unit, rows * unit, GREY, f"x\n{rows}×{inner}")
    left = inner * unit
    for height, sign, form in ((inner, "×", "$W_{{{}}}$"), (rows, "=", "{}")):
        axis.text(left + 0.1, 0, sign, ha="center", va="center", fontsize=14)
        left += 0.2
        names = widths if sign == "×" else {name.upper(): width for name, width in widths.items()}
        for (name, width), colour in zip(names.items(), _COLOURS, strict=False):
            _block(axis, left, width * unit, height * unit, colour, f"{form.format(name)}\n{height}×{width}")
            left += width * unit
    axis.set(xlim=(-0.05, left + 0.05), ylim=(-0.6, 0.6), aspect="equal")
    axis.axis("off")
    return fig


def _block(axis: Axes, left: float, width: float, height: float, colour: str, text: str) -> None:
    axis.add_patch(plt.Rectangle((left, -height / 2), width, height, facecolor=colour, alpha=0.35, edgecolor=colour))
    axis.text(left + width / 2, 0, text, ha="center", va="center", fontsize=8)


def lines(
    x: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    *,
    log: bool = False,
    one: bool = False,
) -> Figure:
    """Curves over one axis; `one` marks the value 1, where nothing is gained."""
    fig, axis = plt.subplots(figsize=(7, 3.2))
    for (name, values), colour in zip(curves.items(), _COLOURS, strict=False):
        axis.plot(x, values, marker="o", color=colour, label=name)
    if one:
        axis.axhline(1, color="black", linewidth=0.8, linestyle="--", label="no gain")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if log:
        axis.set_xscale("log", base=2)
        axis.set_xticks(x, [f"{value:g}" for value in x])
    else:
        axis.set_xticks(x)
    axis.set_ylim(0, 1.15 * max(value for values in curves.values() for value in values))
    axis.legend(fontsize=8)
    return fig


def columns(values: Mapping[str, Mapping[str, float]], ylabel: str, note: str = "", form: str = "{:.3g}") -> Figure:
    """Groups of bars: values[group][bar]; all groups have the same bars."""
    fig, axis = plt.subplots(figsize=(7.5, 3.2))
    groups, names = list(values), list(next(iter(values.values())))
    width = 0.8 / len(names)
    for number, (name, colour) in enumerate(zip(names, _COLOURS, strict=False)):
        places = [i + (number - (len(names) - 1) / 2) * width for i in range(len(groups))]
        drawn = axis.bar(places, [values[group][name] for group in groups], width, color=colour, alpha=0.85, label=name)
        axis.bar_label(drawn, labels=[form.format(values[g][name]) for g in groups], fontsize=8, padding=2)
    axis.set_xticks(range(len(groups)), groups)
    axis.grid(axis="x", visible=False)
    axis.set_ylabel(ylabel)
    axis.set_ylim(top=1.25 * max(max(row.values()) for row in values.values()))
    axis.legend(fontsize=8, ncols=len(names), loc="upper right")
    if note:
        axis.set_title(note, fontsize=8, loc="left", color=GREY, fontweight="normal")
    return fig


def tree(decisions: Tree, m: Matrices) -> Figure:
    """A small tree with its questions, and the matrix that says which answers lead to which leaf."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=[1.5, 1])
    places, inner, leaves = _places(decisions), iter("abcdefgh"), iter(range(1, 99))
    for node, (x, y) in places.items():
        for child, answer in ((decisions.left[node], "yes"), (decisions.right[node], "no")):
            if child >= 0:
                cx, cy = places[int(child)]
                left.plot((x, cx), (y, cy), color=GREY, linewidth=1, zorder=1)
                left.text((x + cx) / 2, (y + cy) / 2, answer, fontsize=7, color=GREY, ha="center")
    for node in sorted(places):
        x, y = places[node]
        leaf = decisions.left[node] < 0
        text = f"leaf {next(leaves)}" if leaf else (
            f"{next(inner)}: x[{decisions.feature[node]}] ≤ {decisions.threshold[node]:.2g}?")  # fmt: skip
        box = {"boxstyle": "round", "facecolor": "#eef4e2" if leaf else "white", "edgecolor": GREEN}
        left.text(x, y, text, ha="center", va="center", fontsize=8, zorder=2, bbox=box)
    left.axis("off")
    left.margins(0.12)
    path_matrix(right, m.path, m.lefts)
    return fig


def path_matrix(axis: Axes, path: NDArray[Any], lefts: NDArray[Any]) -> None:
    """The matrix of left (+1) and right (-1) turns, and below it how many left turns lead to each leaf."""
    axis.imshow(path, cmap="coolwarm", vmin=-1.6, vmax=1.6, aspect="auto")
    for (row, column), value in np.ndenumerate(path):
        axis.text(column, row, f"{value:+g}" if value else "0", ha="center", va="center", fontsize=9)
    axis.set_yticks(range(len(path)), list("abcdefgh")[: len(path)])
    axis.set_xticks(range(path.shape[1]), [f"leaf {i + 1}\nneeds {int(n)}" for i, n in enumerate(lefts)], fontsize=7)
    axis.grid(visible=False)
    axis.set_title("path: +1 left of the question, -1 right", fontsize=8, loc="left", fontweight="normal")


def _places(decisions: Tree) -> dict[int, tuple[float, float]]:
    """Where to draw each node: leaves evenly from left to right, parents in the middle above their children."""
    found: dict[int, tuple[float, float]] = {}
    count = 0

    def place(node: int, depth: int) -> float:
        nonlocal count
        if decisions.left[node] < 0:
            x = float(count)
            count += 1
        else:
            x = (place(int(decisions.left[node]), depth + 1) + place(int(decisions.right[node]), depth + 1)) / 2
        found[node] = (x, -float(depth))
        return x

    place(0, 0)
    return found


def renamed(rows: Sequence[tuple[str, str, str, bool]]) -> Figure:
    """A table of (model, name, what the answer makes of it, whether that is right)."""
    fig, axis = plt.subplots(figsize=(6, 0.3 * len(rows) + 0.5))
    axis.axis("off")
    for y, (model, name, new, right) in enumerate(rows):
        for x, text, colour in (
            (0, model, GREY),
            (0.25, name, "black"),
            (0.45, "→", GREY),
            (0.55, new, GREEN if right else RED),
        ):
            axis.text(x, -y, text, fontsize=9, color=colour, family="monospace")
    axis.set(xlim=(0, 1), ylim=(-len(rows) + 0.4, 0.8))
    return fig


def check_paths(path: NDArray[Any], right: NDArray[Any], lefts: NDArray[Any]) -> Figure:
    """The reader's path matrix beside the right one."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 2.8))
    path_matrix(axes[0], path, lefts)
    axes[0].set_title("yours", fontsize=9, loc="left")
    path_matrix(axes[1], right, lefts)
    axes[1].set_title("the tree's", fontsize=9, loc="left")
    return fig
