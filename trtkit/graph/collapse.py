"""A large graph in a few boxes: cut where one tensor carries everything on, and count blocks that repeat."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple, TypeVar

import onnx_ir as ir

from trtkit.graph.shapes import operands, results

_LONG = 1 / 2  # a tensor alive for this share of the nodes is no obstacle to a cut: a mask that every block reads
_LARGEST = 120  # nodes; longer periods are not looked for
T = TypeVar("T", bound=Hashable)


class Block(NamedTuple):
    """Nodes that are drawn as one box; `times` equal ones come one after the other."""

    nodes: tuple[ir.Node, ...]
    times: int

    @property
    def first(self) -> tuple[ir.Node, ...]:
        """The nodes of the first of the equal blocks."""
        return self.nodes[: len(self.nodes) // self.times]


def blocks(nodes: Sequence[ir.Node]) -> list[Block]:
    """Cut a graph into blocks, in order; neighbours with the same operators, wired alike, become one.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x) => (float[n, 4] y) {
    ...     a = Sqrt(x)  b = Exp(a)  c = Add(a, b)  d = Exp(c)  e = Add(c, d)  f = Exp(e)  y = Add(e, f)}'''))
    >>> [([node.op_type for node in block.first], block.times) for block in blocks(list(model.ir.graph))]
    [(['Sqrt'], 1), (['Exp', 'Add'], 3)]
    """
    parts = _with_tails(_segments(nodes))
    found = []
    for period, times in repeats([_signature(part) for part in parts]):
        taken, parts = parts[: period * times], parts[period * times :]
        found.append(Block(tuple(node for part in taken for node in part), times))
    return found


def repeats(items: Sequence[T]) -> list[tuple[int, int]]:
    """(period, times) of runs of equal blocks that write the sequence shortest.

    Shortest path from the end to the start: an item costs 1, and half of one more where it stands in a run, so that
    2 × (a b a a a) does not win over its parts.

    >>> repeats("abcbcd")
    [(1, 1), (2, 2), (1, 1)]
    """
    price: list[float] = [0.0] * (len(items) + 1)
    step = [(1, 1)] * len(items)
    for start in range(len(items) - 1, -1, -1):
        price[start] = price[start + 1] + 1
        for period in range(1, min(_LARGEST, (len(items) - start) // 2) + 1):
            times = 1
            while items[start + times * period : start + (times + 1) * period] == items[start : start + period]:
                times += 1
            after = price[start + period * times] + 1.5 * period
            if times > 1 and after < price[start]:
                price[start], step[start] = after, (period, times)
    found, start = [], 0
    while start < len(items):
        found.append(step[start])
        start += step[start][0] * step[start][1]
    return found


def _segments(nodes: Sequence[ir.Node]) -> list[tuple[ir.Node, ...]]:
    """Runs of nodes between the places where at most one tensor is alive, those with a very long life left aside."""
    last: dict[ir.Value, int] = {}
    born: dict[ir.Value, int] = {}
    for number, node in enumerate(nodes):
        born.update((value, number) for value in results(node))
        last.update((value, number) for value in operands(node) if value in born)
    alive = [0] * (len(nodes) + 1)
    for value, end in last.items():
        if end - born[value] <= max(_LONG * len(nodes), 2):
            for number in range(born[value], end):
                alive[number] += 1
    cuts = [number + 1 for number in range(len(nodes)) if alive[number] <= 1]
    edges = [0, *cuts] if cuts and cuts[-1] == len(nodes) else [0, *cuts, len(nodes)]
    return [tuple(nodes[a:b]) for a, b in pairwise(edges) if b > a]


def _with_tails(segments: list[tuple[ir.Node, ...]]) -> list[tuple[ir.Node, ...]]:
    """An activation goes with what stands before it, and so do single nodes that move data only."""
    found: list[tuple[ir.Node, ...]] = []
    for segment in segments:
        alone = len(segment) == 1 and segment[0].op_type in _TAILS
        if alone and found:
            found[-1] += segment
        else:
            found.append(segment)
    return found


_TAILS = frozenset({"Relu", "Clip", "Sigmoid", "Tanh", "HardSwish", "Gelu", "Flatten", "Reshape", "Squeeze", "Cast",
                    "BatchNormalization", "Add", "Dropout", "Identity", "Transpose", "Unsqueeze"})  # fmt: skip


def _signature(part: tuple[ir.Node, ...]) -> tuple[Hashable, ...]:
    """The operators of a block and how they are wired; equal for blocks that differ in weights and sizes only."""
    place = {value: (i, j) for i, node in enumerate(part) for j, value in enumerate(node.outputs)}
    return tuple((node.op_type, tuple(place.get(v) for v in node.inputs if v is not None)) for node in part)


def summary(nodes: Sequence[ir.Node], words: int = 9) -> str:
    """The operators of a block: in order where there are few, else counted.

    >>> summary([ir.Node("", op, []) for op in ("Conv", "Relu", "Conv", "Relu", "Add")])
    'Conv, Relu, Conv, Relu, Add'
    """
    ops = [node.op_type for node in nodes]
    if len(ops) <= words:
        return ", ".join(ops)
    counts = {op: len(list(group)) for op, group in groupby(sorted(ops))}
    common = sorted(counts, key=lambda op: (-counts[op], op))
    more = f", {len(ops) - sum(counts[op] for op in common[:words])} more" if len(common) > words else ""
    return ", ".join(f"{counts[op]} {op}" for op in common[:words]) + more
