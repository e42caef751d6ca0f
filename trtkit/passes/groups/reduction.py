"""An activation computed by the kernel that takes its mean."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import dims
from trtkit.passes.groups.activation import NATIVE, activation, gated
from trtkit.passes.groups.common import Grouping, GroupRule, is_a, is_global


class ActivationReduction(GroupRule):
    """Global average pooling computes the activation before it, and hands it on where others read it too.

    1. *Requires* a reduction over whole images (GlobalAveragePool, ReduceMean over height and width) whose input is
       an activation: one operator, x * sigmoid(x), or GELU.
    2. An activation that the convolution before can apply itself (ReLU, Clip, Sigmoid, Tanh) stays with that
       convolution, unless it is a grouped one that is not depthwise.
    3. *Group*: activation and reduction. In squeeze-and-excitation blocks the activation is read by the gate's Mul as
       well, so the group has two outputs.

    Rule 2 was found by building 28 such blocks with TensorRT-RTX 1.7.1.
    """

    title = "activation+reduction"

    def match(self, node: ir.Node, grouping: Grouping) -> list[ir.Node]:
        if not is_a(node, ("GlobalAveragePool", "ReduceMean")) or not is_global(node):
            return []
        last = grouping.made(node.inputs[0])
        nodes = _activation_that_ends(last, grouping)
        source = grouping.made(nodes[0].inputs[0]) if nodes else None
        if not nodes or source is None:
            return []
        if len(nodes) == 1 and nodes[0].op_type in NATIVE and not _grouped(_behind_sum(source, grouping)):
            return []
        return [*nodes, node]


def _activation_that_ends(last: ir.Node | None, grouping: Grouping) -> list[ir.Node]:
    if last is None:
        return []
    if last.op_type == "Mul":
        gates = (gated(value, grouping) for value in last.inputs if value is not None)
        gate = next((g for g in gates if g is not None), None)
        return [gate, last] if gate is not None and grouping.wiring.after[gate] == [last] else []
    found = activation(last, grouping)
    return found if found == [last] else []


def _behind_sum(node: ir.Node, grouping: Grouping) -> ir.Node:
    makers = [m for v in node.inputs if is_a(m := grouping.made(v), ("Conv",))] if node.op_type == "Add" else []
    return makers[-1] if makers and makers[-1] is not None else node


def _grouped(node: ir.Node) -> bool:
    """A convolution in groups of several channels."""
    shape = dims(node.inputs[1]) if is_a(node, ("Conv",)) else None
    return shape is not None and node.attributes.get_int("group", 1) > 1 and shape[1] != 1
