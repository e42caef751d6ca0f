"""One model in alternating parts: those that run inside of something (TensorRT) and those that run outside of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

import onnx_ir as ir

from trtkit.compose.split import part_of, reads, varying, with_shapes
from trtkit.errors import ModelError
from trtkit.graph.shapes import VIEWS
from trtkit.model import Model
from trtkit.passes.common import dims

# Nodes that compute nothing by which a part would be worth having.
_NO_WORK = VIEWS | {"Shape", "Size", "Cast", "Constant", "ConstantOfShape", "Gather", "Concat", "Slice"}


class Group(NamedTuple):
    """A part in the making: where it runs, and its nodes in the order of the graph."""

    inside: bool
    nodes: tuple[ir.Node, ...]

    @property
    def work(self) -> int:
        """How many of the nodes compute something, rather than arrange it."""
        return sum(node.op_type not in _NO_WORK for node in self.nodes)


def parts(model: Model, outside: Collection[str], minimum: int = 1) -> list[tuple[bool, Model]]:
    """Cut a model so that the nodes named `outside` are in other parts than those that may run inside.

    Parts run one after the other, each on what the model is given and what parts before it computed. There are as few
    as can be: a node's stage is how often the side changes on the way to it, at most; nodes of one stage are one part.
    No path leaves a part and comes back, and a path with n changes needs n + 1 parts in any division. Of the two sides
    to begin with, that with fewer parts is taken.

    Nodes besides those named are kept outside, too,

    - where a tensor's size is known only when it is there, like the number of boxes found: what reads it, as long as
      its shape has such a dimension;
    - where a part inside would have fewer than `minimum` nodes that compute something.

    Returns:
        For each part in order: whether it is one that runs inside, and its Model. Its origin is the same part of the
        model's origin where that has these tensors.

    Raises:
        ModelError: something other than a tensor of known type and rank would have to be handed from part to part.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]> g (float[4, 4] x) => '
    ...     '(float y, float[4, 4] z) {a = Relu(x)  y = Det(a)  z = Neg(a)}'))
    >>> for inside, part in parts(model, {"Det_1"}):
    ...     print(inside, part)
    True Model('g_1': 2 nodes, ...; x float32 (4, 4) -> a float32 (4, 4), z float32 (4, 4))
    False Model('g_2': 1 node, ...; a float32 (4, 4) -> y float32 ())
    """
    start, whole = time.perf_counter(), with_shapes(model)
    groups = group(whole.graph, outside, minimum)
    home = {value: place for place, one in enumerate(groups) for node in one.nodes for value in node.outputs}
    wanted: dict[ir.Value, set[int | None]] = {
        value: {None} for value in whole.graph.outputs
    }  # by which parts; None is the caller
    for place, one in enumerate(groups):
        for value in (value for node in one.nodes for value in reads(node)):
            wanted.setdefault(value, set()).add(place)
    found = []
    for place, one in enumerate(groups):
        needed = _needs(one, place, home)
        given = [v for v in (*whole.graph.inputs, *home) if v in needed]
        made = [v for node in one.nodes for v in node.outputs if wanted.get(v, {place}) != {place}]
        if place == 0:  # what depends on no input can be anywhere
            made += [v for v in whole.graph.outputs if v not in home and not v.is_graph_input()]
        for value in (*given, *made):
            if not isinstance(value.type, ir.TensorType) or value.shape is None:
                raise ModelError(
                    f"{value.name!r} in {model.name!r} would have to be handed from one part to the next, and it is no "
                    "tensor of known type and rank."
                )
        names = [str(v.name) for v in given], [str(v.name) for v in made]
        found.append((one.inside, part_of(model, whole, *names, f"{model.name}_{place + 1}", start)))
    return found


def group(graph: ir.Graph, outside: Collection[str], minimum: int = 1) -> list[Group]:
    """The groups of nodes that `parts` makes models of."""
    changing = varying(graph)
    nodes = [node for node in graph if any(value in changing for value in node.outputs)]
    out = {node for node in nodes if node.name in outside or any(inner.name in outside for inner in _inside(node))}
    out |= _of_unknown_size(nodes, out, {d for v in graph.inputs for d in dims(v) or () if d is not None})
    while True:
        groups = min((_stages(nodes, out, first) for first in (True, False)), key=len)
        small = min((one for one in groups if one.inside and one.work < minimum), key=lambda g: g.work, default=None)
        if small is None:
            return groups
        out |= set(small.nodes)


def _stages(nodes: list[ir.Node], out: set[ir.Node], inside_first: bool) -> list[Group]:
    stage: dict[ir.Node, int] = {}
    for node in nodes:
        mine = node not in out
        least = 0 if mine == inside_first else 1
        before = (value.producer() for value in reads(node))
        stage[node] = max((stage[one] + ((one not in out) != mine) for one in before if one in stage), default=least)
        stage[node] = max(stage[node], least)
    return [
        Group((number % 2 == 0) == inside_first, tuple(node for node in nodes if stage[node] == number))
        for number in sorted(set(stage.values()))
    ]


def _of_unknown_size(nodes: list[ir.Node], out: set[ir.Node], known: set[int | str]) -> set[ir.Node]:
    """Nodes behind those outside that read a tensor with a dimension that no input has."""
    behind: set[ir.Value] = {value for node in out for value in node.outputs}
    found = set()
    for node in nodes:
        late = [value for value in reads(node) if value in behind]
        if late:
            behind.update(node.outputs)
        if any(_is_open(value, known) for value in late):
            found.add(node)
    return found


def _is_open(value: ir.Value, known: set[int | str]) -> bool:
    shape = dims(value)
    return shape is None or any(not isinstance(d, int) and d not in known for d in shape)


def _needs(one: Group, place: int, home: dict[ir.Value, int]) -> set[ir.Value]:
    """What a group reads of other groups and of the model's inputs, in part through nodes that depend on no input."""
    needed: set[ir.Value] = set()
    for node in one.nodes:
        for value in reads(node):
            if home.get(value, place) != place or (value.is_graph_input() and not value.is_initializer()):
                needed.add(value)
    return needed


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
