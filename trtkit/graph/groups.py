"""Fusion groups: sets of nodes that one kernel shall compute, marked on the graph itself.

ONNX has no operator for "convolution, residual addition and ReLU in one kernel". So a group is a mark: every node of
it carries the group's number and rule in its `metadata_props`, which ONNX files keep and which other passes and tools
leave alone. What computes the graph may look at the marks or not; the result is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.graph.cost import NodeCost, cost
from trtkit.graph.legality import Schedule, Wiring, fault
from trtkit.graph.shapes import concrete_tensors, is_view, operands, results
from trtkit.model import Model

KEY = "trtkit.group"  # -> "12 epilogue": the number of the group and the rule that made it


class Group(NamedTuple):
    """A fusion group: the nodes by name in graph order, and the tensors that it reads from outside and hands on."""

    id: int
    rule: str
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    inputs: tuple[str, ...]  # weights included
    outputs: tuple[str, ...]

    @property
    def label(self) -> str:
        """The operators, e.g. "Conv+Add+Relu"."""
        return "+".join(self.op_types)


def mark(nodes: Iterable[ir.Node], id_: int, rule: str) -> None:
    """Write a group onto its nodes."""
    for node in nodes:
        node.metadata_props[KEY] = f"{id_} {rule}"


def unmark(graph: ir.Graph) -> None:
    """Take all marks off a graph."""
    for node in graph:
        node.metadata_props.pop(KEY, None)


def groups_of(model: Model) -> tuple[Group, ...]:
    """The groups that are marked on a model's main graph, in the order of their first nodes.

    Raises:
        ModelError: a mark is not as `mark` writes it.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x) => (float[n, 4] y) {[a] s = Exp(x) [b] t = Neg(s) [c] y = Relu(t)}'''))
    >>> mark(list(model.ir.graph)[:2], 0, "pointwise")
    >>> groups_of(model)
    (Group(id=0, rule='pointwise', nodes=('a', 'b'), op_types=('Exp', 'Neg'), inputs=('x',), outputs=('t',)),)
    """
    members: dict[tuple[int, str], list[ir.Node]] = {}
    for node in model.ir.graph:
        if (text := node.metadata_props.get(KEY)) is not None:
            members.setdefault(_parsed(text, node), []).append(node)
    wiring = Wiring(model.ir.graph) if members else None
    return tuple(_group(*key, nodes, wiring) for key, nodes in members.items() if wiring is not None)


def check_groups(model: Model) -> None:
    """Make sure that the marked groups are legal, each alone (`fault`) and all together (`Schedule`).

    Raises:
        ModelError: one is not; names the nodes and the reason.
    """
    wiring = Wiring(model.ir.graph)
    by_name = {node.name: node for node in wiring.nodes}
    schedule = Schedule(wiring)
    for group in groups_of(model):
        nodes = [by_name[name] for name in group.nodes]
        if why := fault(wiring, nodes):
            names = ", ".join(group.nodes)
            raise ModelError(f"Group {group.id} of {model.name!r}, {names}, cannot be one kernel: {why}.")
        if not schedule.join(nodes):
            raise ModelError(f"Group {group.id} of {model.name!r} and those before it would wait for each other: "
                             "no order exists in which they can be launched.")  # fmt: skip


def _parsed(text: str, node: ir.Node) -> tuple[int, str]:
    number, _, rule = text.partition(" ")
    if not number.isdigit():
        raise ModelError(f"Node {node.name!r} is marked {KEY}={text!r}, and a mark is a number and a rule, such as "
                         f"'3 epilogue'. Another tool wrote it? fuse_groups() marks the graph anew.")  # fmt: skip
    return int(number), rule


def _group(id_: int, rule: str, nodes: list[ir.Node], wiring: Wiring) -> Group:
    inside = {value for node in nodes for value in results(node)}
    own = set(nodes)
    inputs = dict.fromkeys(v.name or "" for node in nodes for v in operands(node) if v not in inside)
    outputs = [
        v.name or ""
        for node in nodes
        for v in results(node)
        if v in wiring.outputs or any(reader not in own for reader in wiring.readers.get(v, ()))
    ]
    names = tuple(node.name or "" for node in nodes)
    return Group(id_, rule, names, tuple(node.op_type for node in nodes), tuple(inputs), tuple(outputs))


class KernelCost(NamedTuple):
    """What one kernel computes and moves: a group, or a node that is in none. `bytes_apart` is node by node."""

    name: str
    nodes: int
    flops: int
    bytes_moved: int
    bytes_apart: int
    kernels_apart: int  # launches without the group; views take none

    @property
    def bytes_saved(self) -> int:
        return self.bytes_apart - self.bytes_moved


def kernel_costs(model: Model, batch: int = 1, dims: Mapping[str, int] | None = None) -> tuple[KernelCost, ...]:
    """The cost of a graph as its groups say: a group reads its inputs once and writes what leaves it once.

    A value that stays inside a group is never written to memory: that is what fusion saves. Views and constants are
    no kernels and do not appear. Args and errors as in `cost`, which counts one node at a time.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x) => (float[n, 4] y) {[a] s = Exp(x) [b] t = Neg(s) [c] y = Relu(t)}'''))
    >>> mark(model.ir.graph, 0, "pointwise")
    >>> kernel_costs(model)
    (KernelCost(name='Exp+Neg+Relu', nodes=3, flops=12, bytes_moved=32, bytes_apart=96, kernels_apart=3),)
    """
    tensors = concrete_tensors(model, batch, dims)
    nodes = {node.name or "": node for node in model.ir.graph}
    alone = {c.name: c for c in cost(model, batch, dims).nodes}
    grouped = {name: group for group in groups_of(model) for name in group.nodes}
    found: list[KernelCost] = []
    for name, node in nodes.items():
        group = grouped.get(name)
        if group is None:
            if _is_kernel(node):
                found.append(_single(alone[name]))
        elif group.nodes[0] == name and any(_is_kernel(nodes[n]) for n in group.nodes):
            ends = (*_read_from_outside(group, nodes), *group.outputs)
            parts = [alone[n] for n in group.nodes]
            moved = min(sum(tensors[v].size_bytes for v in ends if v in tensors), sum(map(_moved, parts)))
            found.append(
                KernelCost(
                    group.label,
                    len(parts),
                    sum(part.flops or 0 for part in parts),
                    moved,
                    sum(map(_moved, parts)),
                    sum(_is_kernel(nodes[n]) for n in group.nodes),
                )
            )
    return tuple(found)


def _read_from_outside(group: Group, nodes: Mapping[str, ir.Node]) -> list[str]:
    """The inputs whose data the group reads: not the numbers that only tell a view its shape."""
    members = [nodes[name] for name in group.nodes]
    read = {v.name for n in members for v in (n.inputs[:1] if is_view(n) else operands(n)) if v is not None}
    return [name for name in group.inputs if name in read]


def _is_kernel(node: ir.Node) -> bool:
    return not is_view(node) and node.op_type != "Constant"


def _moved(node: NodeCost) -> int:
    return (node.bytes_read or 0) + (node.bytes_written or 0)


def _single(node: NodeCost) -> KernelCost:
    return KernelCost(node.op_type, 1, node.flops or 0, _moved(node), _moved(node), 1)
