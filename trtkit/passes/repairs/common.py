"""What all repairs share: they touch only what TensorRT refuses, and write formulas in its place."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, initializer, remove, replace
from trtkit.passes.index import Index


class Repair(Rewrite):
    """A rule for nodes that TensorRT refuses; all others stay, since what it takes it may well have a kernel for.

    Args:
        refused: names of the refused nodes; None for every node of the rule's operators.

    `repaired` tells of each node that was rewritten, by its name, what became of it.
    """

    by_name: ClassVar[bool] = True  # False: a node is refused for the sake of its neighbours, so all are looked at

    def __init__(self, refused: Container[str] | None = None) -> None:
        super().__init__()
        self.refused = refused
        self.repaired: dict[str, str] = {}

    def walk(self, index: Index) -> None:
        self.repaired = {}
        for node in index.of(self.ops):
            name = node.name or ""
            wanted = self.refused is None or not self.by_name or name in self.refused
            if wanted and (what := self.rewrite(node)):
                self.done[what] += 1
                self.repaired[name] = what


class Formula:
    """Writes nodes in front of another, one a call, and lets the last of them take its place.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model(
    ...     '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) {y = Abs(x)}'))
    >>> class Positive(Repair):
    ...     title, ops = "absolute values", frozenset({"Abs"})
    ...     def rewrite(self, node):
    ...         formula, x = Formula(self, node), node.inputs[0]
    ...         return "Abs made Max" if formula.becomes(formula("Max", x, formula("Neg", x))) else None
    >>> rule = Positive()
    >>> [node.op_type for node in rule(model.ir).model.graph], rule.repaired
    (['Neg', 'Max'], {'Abs_0': 'Abs made Max'})
    """

    def __init__(self, rule: Rewrite, node: ir.Node) -> None:
        assert node.graph is not None
        self.rule, self.node, self.graph = rule, node, node.graph

    def __call__(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        name = self.rule.names.fresh(f"{self.node.name}/{operator}")
        made = ir.Node(
            "", operator, list(inputs), ir.convenience.convert_attributes(attributes), num_outputs=1, name=name
        )
        made.outputs[0].name = self.rule.names.fresh(f"{name}_out")
        made.metadata_props.update(self.node.metadata_props)
        self.graph.insert_before(self.node, made)
        return made.outputs[0]

    def weight(self, name: str, data: np.ndarray) -> ir.Value:
        return initializer(self.graph, self.rule.names.fresh(f"{self.node.name}/{name}"), data)

    def ints(self, name: str, *numbers: int) -> ir.Value:
        """The int64 vector that operators take as shape, axes or sizes."""
        return self.weight(name, np.array(numbers, np.int64))

    def cast(self, value: ir.Value | None, to: ir.DataType) -> ir.Value:
        return self("Cast", value, to=int(to))

    def becomes(self, result: ir.Value) -> bool:
        """Let `result` take the place of the node's first output, and the node go; False where that is not possible."""
        old = self.node.outputs[0]
        shape = old.shape
        if not replace(old, result):
            return False
        result.shape = shape if result.shape is None else result.shape
        remove(self.node)
        return True
