"""The core of attention: two products with a softmax between them."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.graph.shapes import VIEWS
from trtkit.passes.groups.common import POINTWISE, Grouping, GroupRule, is_a
from trtkit.passes.match import with_scalar

_BETWEEN = POINTWISE | VIEWS


class AttentionCore(GroupRule):
    """`softmax(Q K^T * scale + mask) V` is one kernel that never writes the T x T matrix of scores.

    1. *Requires* a Softmax over the last axis; above it a chain of pointwise operators and views (scale, mask), each
       read by the next alone, down from a MatMul; below it pointwise operators and views that end in one MatMul.
    2. *Group*: all of these, and a product with a number right before Q or K, where exporters scale.
    3. The only group with two heavy operators that depend on each other.

    Source: Dao et al., "FlashAttention", 2022, arXiv:2205.14135, for why this is possible in one kernel.
    """

    title = "attention"

    def match(self, node: ir.Node, grouping: Grouping) -> list[ir.Node]:
        if not is_a(node, ("Softmax",)):
            return []
        above, below = _above(node, grouping), _below(node, grouping)
        if not above or not below:
            return []
        return [*_scales(above[-1], grouping), *above, node, *below]


def _above(softmax: ir.Node, grouping: Grouping) -> list[ir.Node]:
    """From the node before the softmax up to the MatMul of the scores."""
    chain: list[ir.Node] = []
    at = softmax
    while len(chain) < 8:
        found = next((m for v in at.inputs if _between(m := grouping.made(v), at, grouping)), None)
        if found is None:
            return []
        chain.append(found)
        if found.op_type == "MatMul":
            return chain
        at = found
    return []


def _between(node: ir.Node | None, reader: ir.Node, grouping: Grouping) -> bool:
    return is_a(node, _BETWEEN | {"MatMul"}) and node is not None and grouping.next(node) is reader


def _below(softmax: ir.Node, grouping: Grouping) -> list[ir.Node]:
    """From the nodes behind the softmax (one, or IsNaN and Where) to the MatMul with V."""
    found: list[ir.Node] = []
    edge = [softmax]
    while edge and len(found) < 6:
        readers = list(dict.fromkeys(r for n in edge for r in grouping.wiring.after[n] if r not in found))
        if any(grouping.wiring.is_output(n) for n in edge) or not all(map(grouping.free, readers)):
            return []
        if len(readers) == 1 and is_a(readers[0], ("MatMul",)):
            return [*found, readers[0]]
        if not all(is_a(r, _BETWEEN) for r in readers):
            return []
        found += readers
        edge = readers
    return []


def _scales(product: ir.Node, grouping: Grouping) -> list[ir.Node]:
    makers = [grouping.made(value) for value in product.inputs]
    return [m for m in makers if m is not None and is_a(m, ("Mul", "Div")) and with_scalar(m)
            and grouping.next(m) is product]  # fmt: skip
