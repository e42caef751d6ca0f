"""Types and shapes: of a whole graph by ONNX's inference in one go, and of single nodes as they change."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir

from trtkit.graph.shapes import WITH_BODY, has_body
from trtkit.onnx_file import without_weights

log = logging.getLogger(__name__)

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
    if all(_is_static(value) for node in model.graph for value in node.outputs if value.name):
        return
    proto, large = without_weights(model)
    given = {value.name for value in proto.graph.input}
    for value in large:
        if value.name not in given and (weight := value.const_value) is not None:
            info = onnx.helper.make_tensor_value_info(value.name or "", weight.dtype, list(weight.shape.numpy()))
            proto.graph.input.append(info)
    try:
        found = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        log.debug("no shapes inferred: %s", error)
        return
    _learn(model.graph, found.graph)


def _is_static(value: ir.Value) -> bool:
    """Numbers for all dimensions, and no body whose insides may still be unknown."""
    node = value.producer()
    static = value.type is not None and value.shape is not None and all(type(d) is int for d in value.shape)
    return static and not (node is not None and node.op_type in WITH_BODY)


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
    before = (value.type, None if value.shape is None else tuple(value.shape))
    value.type = value.type or ir.serde.deserialize_type_proto_for_type(found)
    try:
        value.merge_shapes(ir.serde.deserialize_type_proto_for_shape(found))
    except ValueError as error:
        log.debug("%s is stated and inferred with different shapes: %s", value.name, error)
    return before != (value.type, None if value.shape is None else tuple(value.shape))


def infer_node(node: ir.Node, opset: int) -> bool:
    """Infer the outputs of one node from what its inputs are stated to be; whether that told anything new.

    For nodes that a pass made, or one of whose inputs has become constant. Nodes with a body stay as they are.
    """
    if node.domain != "" or has_body(node) or all(is_known(value) for value in node.outputs if value.name):
        return False
    found = output_types(node, opset)
    told = [_merge(value, found[value.name]) for value in node.outputs if value.name and value.name in found]
    return any(told)


def infer_onwards(nodes: Iterable[ir.Node], opset: int) -> None:
    """Infer these nodes, then the readers of what was new, and so on, until nothing new is found."""
    waiting = deque(nodes)
    while waiting:
        node = waiting.popleft()
        if node.graph is not None and infer_node(node, opset):
            waiting.extend(reader for value in node.outputs for reader, _ in value.uses())


def output_types(node: ir.Node, opset: int) -> dict[str, onnx.TypeProto]:
    """ONNX's inference for one node: the types of its outputs by name, nothing where it has nothing to say."""
    types: dict[str, onnx.TypeProto] = {}
    small: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or not value.name:
            continue
        data = _data(value)
        if data is not None:
            code = onnx.helper.np_dtype_to_tensor_dtype(data.dtype)
            types[value.name] = onnx.helper.make_tensor_type_proto(code, data.shape)
            if data.size <= _SMALL:
                small[value.name] = onnx.numpy_helper.from_array(data, value.name)
        elif value.type is not None:
            types[value.name] = ir.serde.serialize_type(value.type)
            if value.shape is not None:
                ir.serde.serialize_shape_into(types[value.name], value.shape)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        imports = [onnx.helper.make_opsetid("", opset)]
        return onnx.shape_inference.infer_node_outputs(schema, ir.to_proto(node), types, small, opset_imports=imports)
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, KeyError, ValueError) as error:
        log.debug("%s (%s): %s", node.name, node.op_type, error)
        return {}


def _data(value: ir.Value) -> np.ndarray | None:
    """The array behind an initialiser that nobody can override."""
    if value.is_graph_input() or value.const_value is None or value.const_value.dtype == ir.DataType.STRING:
        return None
    return value.const_value.numpy() if value.is_initializer() else None
