"""Recognising an activation function that starts at a node, written as one operator or as a short formula."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.groups.common import Grouping, is_a

# What a convolution's own code can apply to its result before writing it.
NATIVE = {"Relu", "Clip", "Sigmoid", "Tanh"}
# What TensorRT-RTX compiles into a convolution or product when nothing better can take it.
COMPILED = {"HardSwish", "HardSigmoid", "Gelu", "LeakyRelu", "Elu", "Exp", "Abs", "Swish"}


def activation(node: ir.Node | None, grouping: Grouping) -> list[ir.Node]:
    """The nodes of the activation that begins with `node`: one operator, x * sigmoid(x), or GELU by erf; else none."""
    if not is_a(node, NATIVE | COMPILED | {"Mul", "Div"}) or not grouping.free(node):
        return []
    assert node is not None
    if node.op_type == "Sigmoid" and (product := _times_own_input(node, grouping)) is not None:
        return [node, product]
    if node.op_type in ("Mul", "Div"):
        return _gelu(node, grouping)
    return [node]


def gated(value: ir.Value, grouping: Grouping) -> ir.Node | None:
    """The Sigmoid of x * sigmoid(x) among the two readers of x."""
    readers = grouping.wiring.readers.get(value, [])
    if len(readers) != 2 or value in grouping.wiring.outputs:
        return None
    gate = next((r for r in readers if is_a(r, ("Sigmoid",)) and grouping.free(r)), None)
    return gate if gate is not None and _times_own_input(gate, grouping) in readers else None


def _times_own_input(gate: ir.Node, grouping: Grouping) -> ir.Node | None:
    product = grouping.next(gate)
    if is_a(product, ("Mul",)) and product is not None and gate.inputs[0] in product.inputs:
        return product
    return None


def _gelu(first: ir.Node, grouping: Grouping) -> list[ir.Node]:
    """x / sqrt(2), erf, + 1, * x, * 0.5 in the order in which exporters write it."""
    chain = [first]
    for ops in (("Erf",), ("Add",), ("Mul",), ("Mul",)):
        node = grouping.next(chain[-1])
        if not is_a(node, ops) or node is None:
            return []
        chain.append(node)
    return chain
