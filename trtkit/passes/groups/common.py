"""What the group rules share: kinds of operators, and the grouping that they fill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from trtkit.graph.cost import ELEMENTWISE
from trtkit.graph.legality import HEAVY, Schedule, Wiring
from trtkit.graph.shapes import VIEWS, has_body
from trtkit.passes.common import array, constant, dims

# An output element depends on the elements at the same place of the inputs (broadcast), and on nothing else.
POINTWISE = (ELEMENTWISE - {"CumSum"}) | {"BatchNormalization", "Sum", "Max", "Min", "Mean"}
# An output element is a copy of one input element.
MOVES = VIEWS | {
    "Transpose", "Concat", "Slice", "Split", "Gather", "GatherElements", "GatherND", "Expand", "Tile", "Pad",
    "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
# An output element needs a whole row, or a whole channel, of the input.
REDUCES = {
    "Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "ReduceMean", "ReduceSum", "ReduceMax",
    "ReduceMin", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool", "GlobalMaxPool",
}  # fmt: skip
LIGHT = POINTWISE | MOVES
NORMS = {"LayerNormalization", "RMSNormalization"}


def is_a(node: ir.Node | None, ops: frozenset[str] | set[str] | tuple[str, ...]) -> bool:
    """Whether a node is one of these standard operators (and runs no graph of its own)."""
    return node is not None and node.domain == "" and node.op_type in ops and not has_body(node)


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that are not constants."""
    return [value for value in node.inputs if value is not None and constant(value) is None]


def adds_constant(node: ir.Node | None, ops: tuple[str, ...] = ("Add",)) -> bool:
    """Whether a node adds (or whatever `ops` say) a constant to one other input, as a bias does."""
    return is_a(node, ops) and node is not None and len(data_inputs(node)) == 1


def is_global(node: ir.Node) -> bool:
    """Whether a reduction is over whole images, not over rows: GlobalAveragePool, or a mean over axes 2 and 3."""
    if node.op_type.startswith("Global"):
        return True
    if not node.op_type.startswith("Reduce"):
        return False
    shape, axes = dims(node.inputs[0]), _axes(node)
    return axes is None or shape is None or {a % len(shape) for a in axes} != {len(shape) - 1}


def _axes(node: ir.Node) -> list[int] | None:
    if "axes" in node.attributes:
        return list(node.attributes.get_ints("axes", ()))
    values = array(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if values is None else [int(a) for a in values.reshape(-1)]


class Grouping:
    """The groups found so far. Only legal ones get in: see `trtkit.graph.legality`."""

    def __init__(self, graph: ir.Graph) -> None:
        self.wiring = Wiring(graph)
        self.schedule = Schedule(self.wiring)
        self.rule: dict[ir.Node, str] = {}

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        return self.wiring.nodes

    def free(self, node: ir.Node | None) -> bool:
        return node is not None and node not in self.rule

    def next(self, node: ir.Node) -> ir.Node | None:
        """The one node that reads this one, if it is in no group yet."""
        reader = self.wiring.sole_reader(node)
        return reader if self.free(reader) else None

    def made(self, value: ir.Value | None) -> ir.Node | None:
        """The node of the main graph that computes a value, if it is in no group yet."""
        node = value.producer() if value is not None else None
        return node if node is not None and node in self.wiring.after and self.free(node) else None

    def members(self, node: ir.Node) -> list[ir.Node]:
        return self.schedule.group.get(node, [node])

    def claim(self, nodes: Sequence[ir.Node], rule: str) -> bool:
        """Make one group of these nodes and of those they are grouped with; False where that is illegal."""
        if len(nodes) < 2 or not self.schedule.join(nodes):
            return False
        for node in self.members(nodes[0]):
            self.rule[node] = rule
        return True


class GroupRule:
    """A rule that offers every free node to `match`, in graph order, and claims the group that it proposes.

    A rule may propose what is illegal: `Grouping.claim` then refuses, and the nodes stay free for the next rule.
    """

    title: ClassVar[str]

    def apply(self, grouping: Grouping) -> None:
        for node in grouping.nodes:
            if grouping.free(node):
                grouping.claim(self.match(node, grouping), self.title)

    def match(self, node: ir.Node, grouping: Grouping) -> list[ir.Node]:
        """The group around one node; empty where the rule does not hold."""
        raise NotImplementedError


__all__ = [
    "HEAVY", "LIGHT", "MOVES", "NORMS", "POINTWISE", "REDUCES", "GroupRule", "Grouping", "adds_constant", "data_inputs",
    "is_a", "is_global",
]  # fmt: skip
