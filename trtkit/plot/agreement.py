"""Our fusion groups beside TensorRT's kernels for the same nodes: what agrees, and every place where it does not."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import networkx as nx
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

from trtkit.plot.operators import abbreviated, colour, ink
from trtkit.plot.repeats import collapsed
from trtkit.plot.style import BLUE, GREEN, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trtkit.engine.agreement import Agreement
    from trtkit.engine.fusion import NodeAccount

_CHAIN = 8  # node boxes in one line of the picture
_PITCH = 1.36  # from one node box to the next
_WIDE = _CHAIN * _PITCH + 4.9
_TALL = 1.15  # of one line: a bar, the boxes, a bar
_SAME, _DIFFERENT = "#E3F2EA", "#FCE8DC"
_INK = "#3C4043"


class _Row(NamedTuple):
    """Nodes that we or TensorRT fuse: for each its operator, our kernel and TensorRT's, counted from 0; -1 is none."""

    ops: tuple[str, ...]
    ours: tuple[int, ...]
    theirs: tuple[int, ...]

    @property
    def same(self) -> bool:
        pairs = {pair for pair in zip(self.ours, self.theirs, strict=True) if pair[1] >= 0}
        return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})

    @property
    def lines(self) -> int:
        return -(-len(self.ops) // _CHAIN)

    def __str__(self) -> str:
        return f"ours {self._parts(self.ours)}  |  TensorRT {self._parts(self.theirs)}"

    def _parts(self, kernels: Sequence[int]) -> str:
        found: dict[int, list[str]] = {}
        for op, kernel, theirs in zip(self.ops, kernels, self.theirs, strict=True):
            if theirs >= 0:  # what TensorRT does not name in a kernel is not compared
                found.setdefault(kernel, []).append(op)
        return ", ".join("+".join(ops) for ops in found.values())


_Column: TypeAlias = list[tuple[list[_Row], int]]  # blocks of rows, and how often each comes


def agreement(
    found: Agreement, *, collapse: bool = True, alone: bool = True, first: int | None = None, title: str | None = None
) -> Figure:
    """ONNX nodes in rows: a bar above for each kernel that our groups make, a bar below for each that TensorRT made.

    Green rows agree. Orange ones do not; they are numbered, and written out below the picture. Nodes that TensorRT
    names in no kernel (views, folded constants) have no bar below and are not compared; kernels of TensorRT's own,
    which change a layout, are not drawn.

    Args:
        collapse: draw a run of equal blocks once, with how often it comes.
        alone: also draw nodes that are a kernel of their own for both.
        first: draw only so many rows from the start.
    """
    rows = [row for row in _rows(found) if alone or len(row.ops) > 1][:first]
    blocks = collapsed(rows) if collapse else [(rows, 1)]
    odd = list(dict.fromkeys(row for row in rows if not row.same))
    listed = [textwrap.wrap(f"{i}: {rows.count(row)}× {row}", 125) for i, row in enumerate(odd, 1)]
    columns = _columns(blocks, max((len(row.ops) for row in rows), default=0))
    height = max(map(_height, columns))
    below = 0.62 * sum(map(len, listed)) + 1.0
    figure, axis = plt.subplots(figsize=(9.5, 0.3 * (height + below) + 0.75))
    for number, column in enumerate(columns):
        _draw_column(axis, column, number * _WIDE / len(columns), odd)
    _dress(axis, height, listed, title if title is not None else _title(found, rows))
    axis.set(xlim=(-1.0, _WIDE), ylim=(height + below, -0.4))
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.3 / figure.get_figheight(), bottom=0.01)
    plt.close(figure)
    return figure


def _height(column: _Column) -> float:
    return sum(row.lines * _TALL for block, _ in column for row in block) + 0.3 * len(column)


def _columns(blocks: _Column, widest: int) -> list[_Column]:
    """The blocks in two columns if there are many and all rows are short, else in one."""
    if widest > _CHAIN // 2 or _height(blocks) < 12:
        return [blocks]
    cut = min(range(len(blocks) + 1), key=lambda i: max(_height(blocks[:i]), _height(blocks[i:])))
    return [blocks[:cut], blocks[cut:]]


def _draw_column(axis: Axes, blocks: _Column, left: float, odd: Sequence[_Row]) -> None:
    y, widest = 0.0, max((len(row.ops) for block, _ in blocks for row in block), default=0)
    right = left + min(_CHAIN, widest) * _PITCH + 0.4
    for block, times in blocks:
        top = y
        for row in block:
            _draw_row(axis, row, (left, right, y), odd.index(row) + 1 if row in odd else 0)
            y += row.lines * _TALL
        if times > 1:
            _draw_bracket(axis, left, (top, y), times)
        y += 0.3


def _title(found: Agreement, rows: Sequence[_Row]) -> str:
    fused = [row for row in rows if len(row.ops) > 1]
    same = sum(row.same for row in fused)
    pairs = f"pairs of nodes agree to {found.pair_jaccard:.0%}"
    return f"{found.model_name}: {same} of {len(fused)} fusions the same; {pairs}"


def _rows(found: Agreement) -> Iterator[_Row]:
    """The connected parts of "we or TensorRT put them into one kernel", in graph order."""
    nodes = {node.name: node for node in found.fusion.nodes}
    ours = {name: verdict.group.id for verdict in found.groups for name in verdict.group.nodes}
    graph = nx.Graph()
    for name, node in nodes.items():
        if node.kernel is not None or name in ours:
            graph.add_edge(name, ("theirs", node.kernel) if node.kernel is not None else ("ours", ours[name]))
            graph.add_edge(name, ("ours", ours[name]) if name in ours else ("alone", name))
    place = {name: i for i, name in enumerate(nodes)}
    for part in nx.connected_components(graph):
        names = sorted((name for name in part if isinstance(name, str)), key=place.__getitem__)
        yield _row([nodes[name] for name in names], ours)


def _row(nodes: Sequence[NodeAccount], ours: dict[str, int]) -> _Row:
    mine = _counted([ours.get(node.name, node.name) for node in nodes])
    theirs = _counted([node.kernel for node in nodes])
    return _Row(tuple(node.op_type for node in nodes), mine, theirs)


def _counted(keys: Sequence[object]) -> tuple[int, ...]:
    """Kernels by the order in which they come, so that equal blocks look equal; -1 for None."""
    numbers = {key: i for i, key in enumerate(dict.fromkeys(key for key in keys if key is not None))}
    return tuple(-1 if key is None else numbers[key] for key in keys)


def _draw_row(axis: Axes, row: _Row, place: tuple[float, float, float], number: int) -> None:
    left, right, y = place
    ground = _DIFFERENT if number else _SAME if len(row.ops) > 1 else "white"
    for line in range(row.lines):
        top = y + line * _TALL
        part = slice(line * _CHAIN, (line + 1) * _CHAIN)
        wide = len(row.ops[part]) * _PITCH
        axis.add_patch(Rectangle((left - 0.05, top + 0.02), wide, _TALL - 0.04, facecolor=ground, linewidth=0))
        for i, op in enumerate(row.ops[part]):
            _box(axis, left + i * _PITCH, top + 0.24, op)
        _bars(axis, row.ours[part], (left, top + 0.12), BLUE)
        _bars(axis, row.theirs[part], (left, top + _TALL - 0.13), VERMILION if number else GREEN)
    words, tint = _words(row, number), VERMILION if number else _INK
    axis.text(right, y + row.lines * _TALL / 2, words, va="center", fontsize=6.8, color=tint,
              fontweight="bold" if number else "normal")  # fmt: skip


def _words(row: _Row, number: int) -> str:
    theirs = len({kernel for kernel in row.theirs if kernel >= 0})
    ours = len({a for a, b in zip(row.ours, row.theirs, strict=True) if b >= 0})
    if number:
        return f"{number}: ours {ours}, TensorRT {theirs} kernel{'' if theirs == 1 else 's'}"
    return "the same kernel" if len(row.ops) > 1 else "alone in both"


def _bars(axis: Axes, kernels: Sequence[int], place: tuple[float, float], tint: str) -> None:
    """A bar for each run of nodes in one kernel; runs of the same kernel that others interrupt are joined by dots."""
    (x, y), start, before = place, 0, dict[int, float]()
    for kernel, run in groupby(kernels):
        length = len(list(run))
        left, right = x + start * _PITCH, x + (start + length) * _PITCH - 0.1
        if kernel >= 0:
            axis.plot([left + 0.03, right - 0.03], [y, y], color=tint, linewidth=2.6, solid_capstyle="butt")
            if kernel in before:
                axis.plot([before[kernel], left], [y, y], color=tint, linewidth=1, linestyle=":")
            before[kernel] = right
        start += length


def _box(axis: Axes, x: float, y: float, op: str) -> None:
    fill = colour(op)
    axis.add_patch(FancyBboxPatch((x, y), _PITCH - 0.1, 0.64, boxstyle="round,pad=0,rounding_size=0.1",
                                  facecolor=fill, linewidth=0))  # fmt: skip
    axis.text(x + _PITCH / 2 - 0.05, y + 0.32, abbreviated(op), ha="center", va="center_baseline", fontsize=6.2,
              color=ink(fill))  # fmt: skip


def _draw_bracket(axis: Axes, left: float, span: tuple[float, float], times: int) -> None:
    top, bottom = span
    x = [left - 0.15, left - 0.28, left - 0.28, left - 0.15]
    axis.plot(x, [top + 0.1, top + 0.1, bottom - 0.1, bottom - 0.1], color=_INK, linewidth=1)
    axis.text(left - 0.36, (top + bottom) / 2, f"{times}×", ha="right", va="center", fontsize=9, fontweight="bold")


def _dress(axis: Axes, bottom: float, listed: Sequence[Sequence[str]], title: str) -> None:
    axis.axis("off")
    axis.set_title(title, x=0.0, fontsize=10)
    y = bottom + 0.45
    legend = ((BLUE, "bar above: a kernel by our groups"), (GREEN, "bar below: a kernel of TensorRT's"),
              (VERMILION, "below, where it is another one"))  # fmt: skip
    for i, (tint, words) in enumerate(legend):
        x = 4.8 * i
        axis.plot([x, x + 0.6], [y, y], color=tint, linewidth=2.6)
        axis.text(x + 0.75, y, words, va="center", fontsize=7, color=_INK)
    y += 0.75
    for lines in listed:
        for line in lines:
            axis.text(0.0, y, line, va="center", fontsize=6.4, color=_INK)
            y += 0.62
