"""A graph as a picture: every node a box, or a large one in a few boxes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.graph.collapse import Block, blocks, summary
from trtkit.graph.layout import layout
from trtkit.graph.shapes import Tensor, concrete_tensors, operands, results
from trtkit.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trtkit.plot.graph import Box, Scale

LARGE = 60  # nodes; a graph with more is drawn collapsed unless asked otherwise
_MANY = 250  # boxes; more cannot be read on any page
_PLAIN = "#F1F3F4"


def draw(
    model: Model,
    groups: Mapping[str, str] | None = None,
    *,
    collapse: bool | None = None,
    values: Mapping[str, float] | None = None,
    values_label: str = "",
    shapes: bool = False,
    batch: int = 1,
    dims: Mapping[str, int] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the main graph: the operator in each box, its family as colour, arrows for tensors; weights are left out.

    `Constant` nodes are weights by another name and are left out too.

    Args:
        groups: node name -> label; nodes with the same label get a common ground and the label.
        collapse: True draws blocks between single tensors as one box each, and equal blocks in a row once, with how
            often they come. None does that when there are more than 60 nodes and no groups.
        values: node name -> a number of 0 or more, for the colour of the box and a line in it; boxes that stand for
            several nodes show the sum.
        values_label: what the numbers are, with their unit.
        shapes: write the shape of each node's first output below it, for `batch` and `dims` as in `trtkit.graph.cost`.

    Returns:
        A closed matplotlib figure, one inch of the layout to one inch of paper.

    Raises:
        ModelError: a name in `groups` or `values` is no node of the graph, there are too many boxes to be read, or
            `shapes` are wanted and a dimension has no size.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x) => (float[n, 4] y) {a = Neg(x)  y = Relu(a)}'''))
    >>> [text.get_text() for text in draw(model).axes[0].texts if text.get_gid() == "box text"]
    ['Neg', 'Relu', 'x', 'y']
    """
    from trtkit.plot import graph as plot

    nodes = [node for node in model.ir.graph if node.op_type != "Constant" or node.domain]
    _check_names(model, groups or {}, "groups")
    _check_names(model, values or {}, "values")
    if collapse is None:
        collapse = len(nodes) > LARGE and not groups
    parts = blocks(nodes) if collapse else [Block((node,), 1) for node in nodes]
    if len(parts) > _MANY:
        way = "Draw a part of it: trtkit.compose.split cuts one out" if collapse else "Try collapse=True"
        raise ModelError(f"{model.name!r} would be {len(parts)} boxes, which nobody can read. {way}.")
    scale = _scale(parts, values, values_label) if values is not None else None
    tensors = concrete_tensors(model, batch, dims) if shapes else {}
    boxes = {f"n{i}": _box(part, groups or {}, values, scale, tensors) for i, part in enumerate(parts)}
    edges = _edges(model, parts, boxes)
    sizes = {key: plot.box_size(box) for key, box in boxes.items()}
    plan = layout(sizes, edges, gap=0.24 + 0.14 * bool(groups) + 0.1 * shapes)
    name = title if title is not None else _title(model, nodes, collapse)
    return plot.paint(boxes, plan.spots, plan.routes, (plan.width, plan.height), name, scale)


def _title(model: Model, nodes: Sequence[ir.Node], collapsed: bool) -> str:
    constants = len(model.ir.graph) - len(nodes)
    hidden = f", {constants} constants not drawn" if constants else ""
    return f"{model.name}: {len(nodes)} nodes{hidden}{', collapsed' if collapsed else ''}"


def _check_names(model: Model, given: Mapping[str, object], what: str) -> None:
    known = {node.name or "" for node in model.ir.graph}
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 3)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ModelError(f"{what} names a node {name!r}, which the main graph of {model.name!r} has not.{hint}")


def _scale(parts: Sequence[Block], values: Mapping[str, float], what: str) -> Scale:
    from trtkit.plot.graph import Scale

    return Scale(max((_sum(part, values) or 0.0 for part in parts), default=0.0), what)


def _sum(part: Block, values: Mapping[str, float]) -> float | None:
    known = [values[node.name or ""] for node in part.nodes if node.name in values]
    return float(sum(known)) if known else None


def _box(
    part: Block,
    groups: Mapping[str, str],
    values: Mapping[str, float] | None,
    scale: Scale | None,
    tensors: Mapping[str, Tensor],
) -> Box:
    from trtkit.plot.graph import Box, short_number
    from trtkit.plot.operators import abbreviated, colour

    node, alone = part.nodes[0], len(part.nodes) == 1
    lines = (abbreviated(node.op_type, 20),) if alone else _text(part)
    fill = colour(node.op_type) if alone else _PLAIN
    if values is not None and scale is not None:
        number = _sum(part, values)
        fill = _PLAIN if number is None else scale.colour(number)
        lines += () if number is None else (short_number(number),)
    stripes = () if alone else tuple(colour(node.op_type) for node in part.first)
    out = tensors.get(part.nodes[-1].outputs[0].name or "") if part.nodes[-1].outputs else None
    label = "×".join(map(str, out.shape)) if out is not None else ""
    return Box(lines, fill, stripes, groups.get(node.name or "", "") if alone else "", label)


def _text(part: Block) -> tuple[str, ...]:
    count = len(part.first)
    head = f"{part.times} × ({count} nodes)" if part.times > 1 else f"{count} nodes"
    return (head, *textwrap.wrap(summary(part.first), 34, max_lines=4, placeholder=" …"))


def _edges(model: Model, parts: Sequence[Block], boxes: dict[str, Box]) -> list[tuple[str, str]]:
    """Edges between boxes; the graph's inputs and outputs get boxes of their own, which are added to `boxes`."""
    from trtkit.plot.graph import Box
    from trtkit.plot.operators import clipped

    graph = model.ir.graph
    source: dict[ir.Value, str] = {}
    for i, value in enumerate(v for v in graph.inputs if not v.is_initializer()):
        boxes[f"i{i}"] = Box((clipped(value.name or "", 24),), "white", rounded=True)
        source[value] = f"i{i}"
    for i, part in enumerate(parts):
        source.update((value, f"n{i}") for node in part.nodes for value in results(node))
    edges = [(source[v], f"n{i}") for i, part in enumerate(parts) for v in _read(part) if v in source]
    for i, value in enumerate(graph.outputs):
        boxes[f"o{i}"] = Box((clipped(value.name or "", 24),), "white", rounded=True)
        if value in source:
            edges.append((source[value], f"o{i}"))
    return [edge for edge in dict.fromkeys(edges) if edge[0] != edge[1]]


def _read(part: Block) -> Iterator[ir.Value]:
    """What a block reads, inside the bodies of its nodes as well."""
    for node in part.nodes:
        yield from operands(node)
        for attribute in node.attributes.values():
            inner = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
            for graph in inner:
                yield from (value for child in graph.all_nodes() for value in operands(child))
