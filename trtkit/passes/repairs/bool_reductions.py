"""ReduceMax and ReduceMin of truth values."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import array, type_of
from trtkit.passes.repairs.common import Formula, Repair


class BoolReductions(Repair):
    """`any` and `all` as opset 20 writes them: the largest and the least of truth values.

    *Requires* ReduceMax or ReduceMin of a BOOL tensor, along constant axes. *Rewrite*: the same of INT32, cast there
    and back. *Ensures*: equal, for 0 and 1 are ordered as false and true.
    """

    title = "reductions of truth values"
    ops = frozenset({"ReduceMax", "ReduceMin"})

    def rewrite(self, node: ir.Node) -> str | None:
        axes = node.inputs[1] if len(node.inputs) > 1 else None
        if type_of(node.inputs[0]) != ir.DataType.BOOL or (axes is not None and array(axes) is None):
            return None
        formula = Formula(self, node)
        numbers = formula.cast(node.inputs[0], ir.DataType.INT32)
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        reduced = formula(node.op_type, numbers, *node.inputs[1:], **attributes)
        done = formula.becomes(formula.cast(reduced, ir.DataType.BOOL))
        return f"{node.op_type} of truth values by INT32" if done else None
