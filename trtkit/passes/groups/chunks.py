"""Slices that take one tensor apart: they are copied by one kernel."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.groups.common import Grouping, GroupRule, is_a


class Chunks(GroupRule):
    """`Slice(x, 0, n), Slice(x, n, 2 n)` reads x once: exporters write `torch.chunk` and `torch.split` so.

    1. *Requires* a value whose readers are Slices and nothing else, two or more. None can depend on another.
    2. *Group*: all of them. What computes x, such as ShuffleNet's Concat and Transpose, joins them as a light chain.
    """

    title = "chunks"

    def match(self, node: ir.Node, grouping: Grouping) -> list[ir.Node]:
        if not is_a(node, ("Slice",)) or node.inputs[0] is None:
            return []
        readers = grouping.wiring.readers.get(node.inputs[0], [])
        return list(readers) if all(is_a(r, ("Slice",)) and grouping.free(r) for r in readers) else []
