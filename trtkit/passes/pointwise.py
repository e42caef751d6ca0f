"""Operators that compute each output element from the input elements in the same place, wherever that place is."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.graph.cost import ELEMENTWISE
from trtkit.passes.common import array

# Of several inputs that broadcast; all are in this form, without an `axis`, from opset 7 on.
BROADCAST = frozenset({
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
})  # fmt: skip
# Of one input; whatever else there is (the limits of a Clip) is one number for all elements.
UNARY = (ELEMENTWISE - BROADCAST - {"CumSum", "CastLike", "Dropout"}) | {"Identity"}


def is_unary(node: ir.Node) -> bool:
    """Whether a node maps every element of its first input by itself, and all its other inputs are constants.

    >>> is_unary(ir.node("Relu", [ir.Value(name="x")])), is_unary(ir.node("Softmax", [ir.Value(name="x")]))
    (True, False)
    """
    if node.domain != "" or node.op_type not in UNARY or len(node.outputs) != 1:
        return False
    return all(value is None or array(value) is not None for value in node.inputs[1:])
