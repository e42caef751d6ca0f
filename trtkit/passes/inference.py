"""Types and shapes: of a whole graph by ONNX's inference in one go, and of single nodes as they change."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache

import onnx
import onnx_ir as ir

from trtkit.graph.shapes import WITH_BODY, has_body
from trtkit.onnx_file import declare_input, drop_metadata, without_weights
from trtkit.onnx_graph import type_message

log = logging.getLogger(__name__)

_SCALED = {"Resize", "Upsample"}  # whose sizes follow from floating-point numbers
_ONE_BY_ONE = 8  # inferring a node alone takes about as long as this many of a graph
Answers = dict[Hashable, list[onnx.TypeProto | None]]  # types of a node's outputs, by all that inference asks of a node
_RARE_FACT = "no plain tensor"
_SMALL = 64  # elements; larger constants are no shapes, and inference is given their type alone


def is_known(value: ir.Value) -> bool:
    """Whether type and shape are stated, every dimension a number or a name that means something.

    ONNX's inference calls dimensions it knows nothing about `unk__0`, `unk__1` ...
    """
    shape = value.shape
    if shape is None or value.type is None:
        return False
    return all(type(d) is int or (d.value is not None and not d.value.startswith("unk__")) for d in shape)  # type: ignore[union-attr]


def infer_shapes(model: ir.Model) -> None:
    """Add the types and shapes that ONNX's inference finds out to those that the graph states already.

    Nothing is asked where numbers are stated for all. Otherwise the graph goes through protobuf once, large weights
    left out: inference needs their types only, and one message has to stay below 2 GB.
    """
    if not all(_is_static(value) for node in model.graph for value in node.outputs if value.name):
        _infer(model)


def infer_unknown(model: ir.Model) -> None:
    """The same, but names will do for numbers: what is stated of dimensions is taken to be all that there is to know.

    A graph with shapes from its exporter is then left alone, and where they lack of a few nodes these are inferred one
    by one. A graph whose inputs were changed since wants `infer_shapes`.
    """
    unknown = [node for node in model.graph if not all(_is_settled(value) for value in node.outputs if value.name)]
    if len(unknown) * _ONE_BY_ONE > len(model.graph) or any(has_body(node) for node in unknown):
        _infer(model)
    else:
        infer_onwards(unknown, model.opset_imports.get("", 0))


def _infer(model: ir.Model) -> None:
    proto, large = without_weights(model, noted=False)
    drop_metadata(proto)
    given = {value.name for value in proto.graph.input}
    for value in large:
        if value.name not in given and (weight := value.const_value) is not None:
            declare_input(proto.graph, value.name or "", weight.dtype, weight.shape.numpy())
    try:
        found = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        log.debug("no shapes inferred: %s", error)
        return
    _learn(model.graph, found.graph)


def _is_static(value: ir.Value) -> bool:
    """Settled, with numbers for all dimensions."""
    return _is_settled(value) and value.shape is not None and all(type(d) is int for d in value.shape)


def _is_settled(value: ir.Value) -> bool:
    """Known, and no body whose insides may still be unknown."""
    node = value.producer()
    return is_known(value) and not (node is not None and node.op_type in WITH_BODY)


def _learn(graph: ir.Graph, found: onnx.GraphProto) -> None:
    """Take over what `found`, the same graph after inference, says of the outputs of nodes; bodies included."""
    known = {info.name: info.type for info in (*found.value_info, *found.output)}
    inner = []
    for place, node in enumerate(graph):
        for value in node.outputs:
            if value.name in known and not is_known(value):
                _merge(value, known[value.name or ""])
        if node.op_type in WITH_BODY and has_body(node):
            inner.append((place, node))
    for place, node in inner:
        attributes = {attribute.name: attribute for attribute in found.node[place].attribute}
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH:
                _learn(attribute.as_graph(), attributes[name].g)


def _merge(value: ir.Value, found: onnx.TypeProto) -> bool:
    """Add a type and a shape to what is stated of a value; whether that told anything new."""
    new = value.type is None
    if new:
        value.type = ir.serde.deserialize_type_proto_for_type(found)
    return learn_shape(value, _told(found.SerializeToString())) or new


@lru_cache(maxsize=1000)
def _told(found: bytes) -> tuple[int | str | None, ...] | None:
    """The dimensions in a type's message; many values of a network are of the same type."""
    shape = ir.serde.deserialize_type_proto_for_shape(onnx.TypeProto.FromString(found))
    return None if shape is None else tuple(d if isinstance(d, int) else d.value or None for d in shape)


@lru_cache(maxsize=1000)
def frozen_shape(dims: tuple[int | str | None, ...]) -> ir.Shape:
    """One object for all values of this shape; it is frozen, so that whoever changes one makes another."""
    return ir.Shape(dims, frozen=True)


def learn_shape(value: ir.Value, told: Sequence[int | str | None] | None) -> bool:
    """Add to what is stated of a value's shape; whether that told anything new.

    A number is better than a name, a name better than one that inference made up, and that better than nothing. What is
    stated and contradicts stays as it is: whoever runs the graph will complain.
    """
    if told is None:
        return False
    if value.shape is None:
        value.shape = frozen_shape(tuple(told))
        return True
    have = [_plain(d) for d in value.shape]
    if len(have) != len(told) or any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(have, told, strict=True)
    ):
        log.debug("%s is stated as %s and inferred as %s", value.name, have, told)
        return False
    best = [b if _rank(b) > _rank(a) else a for a, b in zip(have, told, strict=True)]
    if best != have:
        value.shape = frozen_shape(tuple(best))
    return best != have


def _plain(dim: int | ir.SymbolicDim) -> int | str | None:
    return dim if isinstance(dim, int) else dim.value


def _rank(dim: int | str | None) -> int:
    """How much is known of a dimension."""
    if dim is None:
        return 0
    return 3 if isinstance(dim, int) else 1 if dim.startswith("unk__") else 2


def infer_node(node: ir.Node, opset: int, answers: Answers | None = None) -> bool:
    """Infer the outputs of one node from what its inputs are stated to be; whether that told anything new.

    For nodes that a pass made, or one of whose inputs has become constant. Nodes with a body stay as they are.

    Args:
        answers: what was inferred for other nodes before, and will be added to: a network repeats its blocks.
    """
    if node.domain != "" or has_body(node) or all(is_known(value) for value in node.outputs if value.name):
        return False
    question = None if answers is None else _question(node)
    found = None if answers is None or question is None else answers.get(question)
    if found is None:
        types = output_types(node, opset)
        found = [types.get(value.name) if value.name else None for value in node.outputs]
        if answers is not None and question is not None:
            answers[question] = found
    told = [_merge(value, kind) for value, kind in zip(node.outputs, found, strict=True) if kind is not None]
    return any(told)


def _question(node: ir.Node) -> Hashable | None:
    """All that inference is told of a node but for names; None where there is more to it than plain tensors."""
    inputs = [None if value is None or not value.name else _fact(value) for value in node.inputs]
    attributes = [(each.name, each.type, each.value) for each in node.attributes.data.values()]
    if _RARE_FACT in inputs or any(kind not in _PLAIN for _, kind, _ in attributes):
        return None
    return node.op_type, tuple(inputs), tuple(attributes), tuple(bool(value.name) for value in node.outputs)


def _fact(value: ir.Value) -> Hashable:
    tensor = _constant(value)
    if tensor is not None:
        return tensor.dtype, tensor.shape.numpy(), tensor.tobytes() if tensor.size <= _SMALL else None
    if type(value.type) is not ir.TensorType:
        return _RARE_FACT
    return value.dtype, None if value.shape is None else tuple(map(_plain, value.shape))


def curious_readers(value: ir.Value) -> Iterator[ir.Node]:
    """Readers of a value that has become a constant, where its numbers may say something about shapes."""
    if value.const_value is not None and value.const_value.size <= _SMALL:
        whole = value.dtype in (ir.DataType.INT64, ir.DataType.INT32)
        yield from dict.fromkeys(reader for reader, _ in value.uses() if whole or reader.op_type in _SCALED)


def infer_missing(graphs: Iterable[ir.Graph], opset: int) -> bool:
    """Infer nodes of whose outputs type or rank is missing: those that passes made. Returns whether anything is new."""
    new = False
    for graph in graphs:
        lacking = [n for n in graph if any(v.name and (v.shape is None or v.type is None) for v in n.outputs)]
        new |= infer_onwards(lacking, opset)
    return new


def infer_onwards(nodes: Iterable[ir.Node], opset: int) -> bool:
    """Infer these nodes, then the readers of what was new, and so on; returns whether anything was."""
    waiting, new = deque(nodes), False
    while waiting:
        node = waiting.popleft()
        if node.graph is not None and infer_node(node, opset):
            new = True
            waiting.extend(reader for value in node.outputs for reader, _ in value.uses())
    return new


_UNKNOWN = (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError)


def bare_node(node: ir.Node) -> onnx.NodeProto:
    """A node as protobuf message without what an exporter noted down about it, which is longer than the node."""
    if any(attribute.is_ref() for attribute in node.attributes.data.values()):
        return ir.serde.serialize_node(node)
    return onnx.NodeProto(
        op_type=node.op_type,
        name=node.name,
        input=["" if value is None else value.name or "" for value in node.inputs],
        output=[value.name or "" for value in node.outputs],
        attribute=[_attribute(attribute) for attribute in node.attributes.data.values()],
    )


def _attribute(attribute: ir.Attr) -> onnx.AttributeProto:
    """Its message; the same one for equal whole numbers and texts, which are most of all attributes."""
    if attribute.type in _REPEATED:
        return _repeated(attribute.name, attribute.type, attribute.value)
    return ir.serde.serialize_attribute(attribute)


_REPEATED = frozenset({ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING})
_PLAIN = _REPEATED | {ir.AttributeType.FLOAT}


@lru_cache(maxsize=1000)
def _repeated(name: str, kind: ir.AttributeType, value: int | str | tuple[int, ...]) -> onnx.AttributeProto:
    return ir.serde.serialize_attribute(ir.Attr(name, kind, value))


@lru_cache(maxsize=1000)
def _stated_type(dtype: ir.DataType, dims: tuple[int | str | None, ...] | None) -> onnx.TypeProto:
    return type_message(ir.TensorType(dtype), None if dims is None else frozen_shape(dims))


@lru_cache(maxsize=1000)
def _schema(op_type: str, opset: int) -> tuple[onnx.defs.OpSchema, list[onnx.OperatorSetIdProto]]:
    return onnx.defs.get_schema(op_type, opset, ""), [onnx.helper.make_opsetid("", opset)]


def output_types(node: ir.Node, opset: int) -> dict[str, onnx.TypeProto]:
    """ONNX's inference for one node: the types of its outputs by name, nothing where it has nothing to say."""
    types: dict[str, onnx.TypeProto] = {}
    small: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or not value.name:
            continue
        tensor = _constant(value)
        if tensor is not None:
            types[value.name] = _stated_type(tensor.dtype, tensor.shape.numpy())
            if tensor.size <= _SMALL:
                small[value.name] = ir.serde.serialize_tensor(tensor)
        elif type(value.type) is ir.TensorType:
            shape = None if value.shape is None else tuple(_plain(d) for d in value.shape)
            types[value.name] = _stated_type(value.type.dtype, shape)
        elif value.type is not None:
            types[value.name] = type_message(value.type, value.shape)
    try:
        schema, imports = _schema(node.op_type, opset)
        return onnx.shape_inference.infer_node_outputs(schema, bare_node(node), types, small, opset_imports=imports)
    except (*_UNKNOWN, KeyError, ValueError) as error:
        log.debug("%s (%s): %s", node.name, node.op_type, error)
        return {}


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor behind an initialiser that nobody can override, or behind a Constant."""
    node = value.producer()
    if value.is_graph_input() or (
        node is not None and (node.op_type != "Constant" or "sparse_value" in node.attributes)
    ):
        return None
    tensor = value.const_value if node is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.dtype == ir.DataType.STRING else tensor
