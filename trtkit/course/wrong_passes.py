"""Rewrites that look right, each with one thing forgotten. Lesson 02 catches them; run them on nothing you need."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, initializer, remove, replace
from trtkit.passes.index import Index


class ForgetsTheSignOfZero(Rewrite):
    """`x + 0.0` becomes x. But -0.0 + 0.0 is 0.0."""

    title = "x + 0.0 becomes x"
    ops = frozenset({"Add"})

    def rewrite(self, node: ir.Node) -> str | None:
        x, other = node.inputs[0], array(node.inputs[1])
        if x is None or other is None or (other != 0).any() or not replace(node.outputs[0], x):
            return None
        remove(node)
        return "Add removed"


class ForgetsNotANumber(Rewrite):
    """`x * 0` becomes zeros. But infinity * 0 is NaN, and -1 * 0 is -0.0."""

    title = "x * 0 becomes 0"
    ops = frozenset({"Mul"})

    def rewrite(self, node: ir.Node) -> str | None:
        other, shape = array(node.inputs[1]), node.outputs[0].shape
        if other is None or (other != 0).any() or shape is None or node.graph is None or not shape.is_static():
            return None
        if node.outputs[0].is_graph_output():
            return None
        zeros = initializer(node.graph, self.names.fresh("zeros"), np.zeros(shape.numpy(), np.float32))
        replace(node.outputs[0], zeros)
        remove(node)
        return "Mul removed"


class ForgetsAttributes(Rewrite):
    """Nodes with the same operator and inputs are one. But LeakyRelu has an alpha, and Transpose a perm."""

    title = "same operator, same inputs"

    def walk(self, index: Index) -> None:
        self._seen: dict[object, ir.Node] = {}
        super().walk(index)

    def rewrite(self, node: ir.Node) -> str | None:
        twin = self._seen.setdefault((node.op_type, tuple(node.inputs)), node)
        if twin is node or not replace(node.outputs[0], twin.outputs[0]):
            return None
        remove(node)
        return "shared"


class ForgetsOutputs(Rewrite):
    """Whoever reads an Identity reads its input. But the world outside reads outputs, by their names."""

    title = "Identity removed, whoever reads it"
    ops = frozenset({"Identity"})

    def rewrite(self, node: ir.Node) -> str | None:
        assert node.inputs[0] is not None
        node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)
        remove(node)
        return "Identity removed"


class ForgetsOtherReaders(Rewrite):
    """Of two Transposes in a row the first one does both. But others may read the first one, too."""

    title = "first Transpose does both"
    ops = frozenset({"Transpose"})

    def rewrite(self, node: ir.Node) -> str | None:
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        if first is None or first.op_type != "Transpose" or node.outputs[0].is_graph_output():
            return None
        p, q = first.attributes.get_ints("perm", []), node.attributes.get_ints("perm", [])
        first.attributes["perm"] = ir.AttrInt64s("perm", [p[axis] for axis in q])
        replace(node.outputs[0], first.outputs[0])
        remove(node)
        return "merged"


class ComposesBackwards(Rewrite):
    """Transpose by p, then by q, is one Transpose. But its axes are p[q[i]], not q[p[i]]."""

    title = "perm q[p] instead of p[q]"
    ops = frozenset({"Transpose"})

    def rewrite(self, node: ir.Node) -> str | None:
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        if first is None or first.op_type != "Transpose":
            return None
        p, q = first.attributes.get_ints("perm", []), node.attributes.get_ints("perm", [])
        node.replace_input_with(0, first.inputs[0])
        node.attributes["perm"] = ir.AttrInt64s("perm", [q[axis] for axis in p])
        return "merged"


WRONG: tuple[type[Rewrite], ...] = (
    ForgetsAttributes, ForgetsOutputs, ForgetsOtherReaders, ComposesBackwards, ForgetsTheSignOfZero, ForgetsNotANumber,
)  # fmt: skip
