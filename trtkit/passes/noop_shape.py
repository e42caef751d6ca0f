"""Remove Reshape, Transpose and their kind where they change nothing."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import Rewrite, dims, remove, replace

_KEEP_ORDER = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}  # same elements in the same order, only the shape differs
_REPEAT = {"Expand", "Tile"}  # may repeat elements, and repeat none when the shape stays


class RemoveNoOpShapes(Rewrite):
    """Remove nodes that only move data about, where input and output are provably the same.

    1. Reshape, Flatten, Squeeze, Unsqueeze whose output has the shape of the input.
    2. Expand and Tile whose output has the shape of the input.
    3. Transpose whose `perm` leaves every axis in its place.

    *Requires* equal shapes: equal numbers, or the same symbolic name in the same place. In rule 1 one dimension may be
    unknown if all others are equal, non-zero numbers, since the number of elements is the same on both sides.
    *Rewrite*: readers of the output read the input. *Ensures*: outputs of graphs keep their names.
    """

    title = "remove no-op shapes"

    def rewrite(self, node: ir.Node) -> str | None:
        if not node.inputs or node.inputs[0] is None or not self._changes_nothing(node):
            return None
        if not replace(node.outputs[0], node.inputs[0]):
            return None
        remove(node)
        return f"{node.op_type} removed"

    @staticmethod
    def _changes_nothing(node: ir.Node) -> bool:
        before, after = dims(node.inputs[0]), dims(node.outputs[0])
        if node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm", None)
            return perm is not None and list(perm) == sorted(perm)
        if before is None or after is None or len(before) != len(after):
            return False
        if node.op_type in _REPEAT:
            return None not in before and before == after
        if node.op_type not in _KEEP_ORDER:
            return False
        different = [a for a, b in zip(before, after, strict=True) if a is None or a != b]
        if not different:
            return True
        same = [a for a, b in zip(before, after, strict=True) if a is not None and a == b]
        return len(different) == 1 and all(isinstance(d, int) and d > 0 for d in same)
