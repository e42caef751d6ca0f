"""Compress with a mask that is known."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import array
from trtkit.passes.repairs.common import Formula, Repair


class CompressByGather(Repair):
    """`Compress(x, mask)` picks where the mask is true.

    *Requires* a constant mask with a true in it. *Rewrite*: Gather of those places; without an axis, of the flattened
    tensor. *Ensures*: equal.
    """

    title = "Compress by a known mask"
    ops = frozenset({"Compress"})

    def rewrite(self, node: ir.Node) -> str | None:
        mask = array(node.inputs[1])
        places = None if mask is None else np.flatnonzero(mask)
        if places is None or not places.size:
            return None
        formula, axis = Formula(self, node), node.attributes.get("axis")
        data = node.inputs[0] if axis else formula("Reshape", node.inputs[0], formula.ints("flat", -1))
        picked = formula("Gather", data, formula.ints("places", *map(int, places)), axis=axis.as_int() if axis else 0)
        return "Compress made Gather" if formula.becomes(picked) else None
