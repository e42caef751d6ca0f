"""The fusion map as a picture: ONNX nodes on the left, the engine's kernels on the right."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch, Polygon

from trtkit.plot.operators import abbreviated, clipped, colour, families, ink
from trtkit.plot.repeats import collapsed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trtkit.engine.fusion import FusionMap, NodeAccount
    from trtkit.engine.layers import Layer

_CHAIN = 8  # node boxes in one row of the picture
_PITCH = 1.36  # from one node box to the next
_RIGHT = _CHAIN * _PITCH + 0.6  # where the kernels begin


class _Row(NamedTuple):
    """What one line of the picture shows: ONNX nodes on the left, and what became of them on the right."""

    ops: tuple[str, ...]
    kernel: str  # "" when the nodes are in no kernel
    note: str  # why not, then; or why a kernel has no nodes

    @property
    def lines(self) -> int:
        return max(1, -(-len(self.ops) // _CHAIN))


def fusion_map(
    fusion: FusionMap, *, first: int | None = None, collapse: bool = True, title: str | None = None
) -> Figure:
    """ONNX nodes on the left, the engine's kernels on the right, a ribbon from the nodes to the kernel they went into.

    Args:
        first: draw only so many kernels from the start.
        collapse: draw a run of equal blocks once, with how often it comes.
    """
    rows = _rows(fusion)
    if first is not None:
        rows = rows[:first]
    blocks = collapsed(rows) if collapse else [(rows, 1)]
    height = sum(row.lines for block, _ in blocks for row in block) + 0.35 * len(blocks)
    figure, axis = plt.subplots(figsize=(9.5, 0.3 * height + 1.35))
    y = 0.0
    for block, times in blocks:
        top = y
        for row in block:
            _draw_row(axis, row, y)
            y += row.lines
        if times > 1:
            _draw_bracket(axis, top, y, times)
        y += 0.35
    _dress(axis, fusion, y, title if title is not None else str(fusion), {op for row in rows for op in row.ops})
    plt.close(figure)
    return figure


def _rows(fusion: FusionMap) -> list[_Row]:
    """One row a kernel, in the order of its first node; neighbouring nodes that are in no kernel share a row."""
    inside: dict[int, list[str]] = {}
    place: dict[int, float] = {}
    keyed: list[tuple[float, _Row]] = []
    loose = [(i, node) for i, node in enumerate(fusion.nodes) if node.kernel is None]
    for i, node in enumerate(fusion.nodes):
        if node.kernel is not None:
            inside.setdefault(node.kernel, []).append(node.op_type)
            place.setdefault(node.kernel, i)
    before = -1.0
    for index, layer in enumerate(fusion.kernels):  # a kernel without nodes stands behind the one before it
        before = place.get(index, before + 1e-3)
        shared = "(shares the nodes of another)" if layer.onnx_nodes else "(TensorRT's own)"
        keyed.append((before, _Row(tuple(inside.get(index, ())), _kernel_name(layer), shared)))
    for _, group in groupby(enumerate(loose), key=lambda item: (item[1][0] - item[0], item[1][1].kind)):
        members = [pair for _, pair in group]
        keyed.append((members[0][0], _loose_row([node for _, node in members])))
    return [row for _, row in sorted(keyed, key=lambda pair: pair[0])]


def _loose_row(nodes: list[NodeAccount]) -> _Row:
    ops = tuple(f"{op} ×{count}" if count > 1 else op for op, count in _counted([node.op_type for node in nodes]))
    return _Row(ops, "", f"{nodes[0].kind}: {nodes[0].reason}")


def _counted(ops: list[str]) -> list[tuple[str, int]]:
    return [(op, len(list(group))) for op, group in groupby(ops)]


def _kernel_name(layer: Layer) -> str:
    return layer.kind if layer.ops == layer.kind else f"{layer.kind}: {layer.ops}"


def _draw_row(axis: Axes, row: _Row, y: float) -> None:
    """Node boxes in a chain, a ribbon, and the kernel's box (or, in italics, why there is none)."""
    middle, last = y + row.lines / 2, 0.0
    for i, op in enumerate(row.ops):
        line, column = divmod(i, _CHAIN)
        _box(axis, column * _PITCH, y + line + 0.12, _PITCH - 0.08, 0.76, _colour(op), abbreviated(op), 6.2)
        last = max(last, (column + 1) * _PITCH - 0.08)
    if not row.kernel:
        note = textwrap.fill(row.note, 58, max_lines=2, placeholder=" …")
        axis.text(_RIGHT, middle, note, va="center", fontsize=6.4, style="italic", color="#5F6368", linespacing=0.95)
        return
    if row.ops:
        tall = row.lines / 2 - 0.12
        corners = [(last, middle - tall), (_RIGHT, middle - 0.38), (_RIGHT, middle + 0.38), (last, middle + tall)]
        axis.add_patch(Polygon(corners, closed=True, color=_colour(row.ops[0]), alpha=0.22, linewidth=0))
    else:
        axis.text(_RIGHT - 0.1, middle, row.note, va="center", ha="right", fontsize=6.4, color="#5F6368")
    _box(axis, _RIGHT, middle - 0.38, 6.6, 0.76, "#F1F3F4", clipped(row.kernel, 52), 6.6, edge="#5F6368")


def _box(
    axis: Axes, x: float, y: float, width: float, height: float, fill: str, text: str, size: float, edge: str = "none"
) -> None:
    shape = "round,pad=0,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=fill, edgecolor=edge, linewidth=0.7))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center_baseline", fontsize=size, color=ink(fill))


def _draw_bracket(axis: Axes, top: float, bottom: float, times: int) -> None:
    ends = [top + 0.1, top + 0.1, bottom - 0.1, bottom - 0.1]
    axis.plot([-0.15, -0.32, -0.32, -0.15], ends, color="#3C4043", linewidth=1)
    axis.text(-0.45, (top + bottom) / 2, f"{times}×", ha="right", va="center", fontsize=10, fontweight="bold")


def _dress(axis: Axes, fusion: FusionMap, bottom: float, title: str, ops: set[str]) -> None:
    axis.set(xlim=(-1.3, _RIGHT + 6.7), ylim=(bottom, -1.4))
    axis.axis("off")
    axis.text(0, -0.55, f"ONNX: {len(fusion.nodes)} nodes", fontweight="bold", va="center")
    launches = sum(layer.launches for layer in fusion.kernels)
    axis.text(_RIGHT, -0.55, f"engine: {launches} kernels", fontweight="bold", va="center")
    axis.set_title(title, x=0.0)
    present = {_colour(op) for op in ops}
    handles = [plt.Rectangle((0, 0), 1, 1, color=tint, label=what) for tint, what in families(present)]
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), ncols=3, fontsize=8, handlelength=1)
    axis.figure.subplots_adjust(left=0.02, right=0.99)


def _colour(op: str) -> str:
    return colour(op.split(" ×")[0])
