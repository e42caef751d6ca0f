"""Products of one input with several weights: one larger product."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.groups.common import Grouping, GroupRule, constant, dims, is_a


class Siblings(GroupRule):
    """`x W1, x W2, x W3` is `x [W1 W2 W3]`: the queries, keys and values of attention, or the two halves of a GLU.

    1. *Requires* two or more MatMuls, or Gemms with equal attributes, that read the same x first and whose second
       inputs are constant matrices with equally many rows. None can depend on another, since x is all they read.
    2. *Group*: all of them. What follows each (a bias, say) is left to other groups.
    """

    title = "siblings"

    def match(self, node: ir.Node, grouping: Grouping) -> list[ir.Node]:
        if not is_a(node, ("MatMul", "Gemm")) or not _weighted(node) or node.inputs[0] is None:
            return []
        readers = grouping.wiring.readers.get(node.inputs[0], [])
        return [r for r in readers if grouping.free(r) and r.op_type == node.op_type and _alike(r, node)]


def _weighted(node: ir.Node) -> bool:
    shape = dims(node.inputs[1])
    return constant(node.inputs[1]) is not None and shape is not None and len(shape) == 2


def _alike(one: ir.Node, other: ir.Node) -> bool:
    if one.inputs[0] is not other.inputs[0] or not _weighted(one):
        return False
    rows, others = dims(one.inputs[1]), dims(other.inputs[1])
    by = 1 if one.attributes.get_int("transB", 0) else 0
    same = all(one.attributes.get_float(k, 1.0) == other.attributes.get_float(k, 1.0) for k in ("alpha", "beta"))
    same &= all(one.attributes.get_int(k, 0) == other.attributes.get_int(k, 0) for k in ("transA", "transB"))
    return same and rows is not None and others is not None and rows[by] == others[by]
