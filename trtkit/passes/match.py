"""Recognising a formula in a graph: small questions that the fusing passes ask of a node's inputs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import array, single_use


def made_by(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The standard node that computes the value, if it is one of these operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in ops else None


def scalar(value: ir.Value | None) -> float | None:
    """The number behind a constant of one element that broadcasts to nothing larger: shaped () or (1)."""
    data = array(value)
    return float(data.reshape(-1)[0]) if data is not None and data.size == 1 and data.ndim <= 1 else None


def with_scalar(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """The other input and the number of a sum or product with a number, in either order."""
    if node is None or len(node.inputs) != 2:
        return None
    for place in (1, 0):
        number, other = scalar(node.inputs[place]), node.inputs[1 - place]
        if number is not None and other is not None:
            return other, number
    return None


def added_constant(add: ir.Node | None) -> tuple[int, np.ndarray]:
    """The constant that an Add adds and its place among the inputs; without either, a zero that fits everything."""
    for place, value in enumerate(add.inputs if add is not None else ()):
        if (data := array(value)) is not None:
            return place, data
    return 0, np.zeros(())


def near(number: float | None, target: float, tolerance: float = 1e-3) -> bool:
    """Whether a constant means `target`: exporters round it to FP16, or write 0.7978845608 for the root of 2 / pi."""
    return number is not None and abs(number - target) <= tolerance * abs(target)


def private(inner: Iterable[ir.Node], last: ir.Node) -> bool:
    """Whether all that these nodes compute is read by these nodes and `last` alone, in the same graph."""
    nodes = {*inner, last}
    return all(
        node.graph is last.graph
        and all(not v.is_graph_output() and all(use.node in nodes for use in v.uses()) for v in node.outputs)
        for node in nodes - {last}
    )


class Product:
    """A product written as any tree of Mul, Div by a number, and Pow to a whole number, taken apart.

    Attributes:
        number: all constant factors of one element, multiplied.
        factors: the other factors, each as often as it occurs.
        nodes: the nodes of the tree. A value that others read too is a factor and not looked into.
    """

    def __init__(self, value: ir.Value | None) -> None:
        self.number = 1.0
        self.factors: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        if value is not None:
            self._take(value, 1, top=True)

    def _take(self, value: ir.Value, times: int, top: bool = False) -> None:
        node = made_by(value, "Mul", "Div", "Pow")
        if (number := scalar(value)) is not None:
            self.number *= number**times
        elif node is None or not (top or single_use(value)) or not self._take_apart(node, times):
            self.factors += [value] * times

    def _take_apart(self, node: ir.Node, times: int) -> bool:
        left, right = node.inputs
        assert left is not None and right is not None
        number = scalar(right)
        if node.op_type == "Mul":
            self._take(left, times)
            self._take(right, times)
        elif node.op_type == "Div" and number:
            self.number /= number**times
            self._take(left, times)
        elif node.op_type == "Pow" and number in (2.0, 3.0):
            self._take(left, times * int(number))
        else:
            return False
        self.nodes.append(node)
        return True

    def is_power(self, value: ir.Value, exponent: int) -> bool:
        return len(self.factors) == exponent and all(factor is value for factor in self.factors)


def put(last: ir.Node, node: ir.Node) -> None:
    """Let `node` compute what `last` computed, under the same name; what only `last` needed is dead from then on."""
    graph, old, new = last.graph, last.outputs[0], node.outputs[0]
    assert graph is not None
    graph.insert_before(last, node)
    name = old.name
    new.type, new.shape = old.type, old.shape
    node.metadata_props.update(last.metadata_props)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(last, safe=True)
    new.name = name
