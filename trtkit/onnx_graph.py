"""ONNX messages to onnx_ir's graphs and back, for all that is common; what is rare is left to onnx_ir's own serde.

Reading and writing is a good quarter of `optimize`, from file to file, on a network of a few hundred nodes, since each
node and each value is a Python object. In onnx_ir's serde every shape, type, dimension and attribute goes through
functions of its own, each in a wrapper for errors. Here equal shapes and equal attributes are one object (both are
never changed, only replaced), and messages are filled field by field. What comes out is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir

_KIND = ir.AttributeType
_Values = dict[str, ir.Value | None]  # by name; "" is an input that is left out


class _Rare(Exception):
    """Something that serde is asked for."""


# Reading


def read(proto: onnx.ModelProto) -> ir.Model:
    """The model in a message, as `onnx_ir.from_proto` gives it.

    >>> model = read(onnx.parser.parse_model(
    ...     '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) {y = Relu(x)}'))
    >>> [node.op_type for node in model.graph]
    ['Relu']
    """
    if proto.functions or proto.configuration:
        return ir.from_proto(proto)
    try:
        graph = _Reader().graph(proto.graph, {"": None})
    except _Rare:
        return ir.from_proto(proto)
    graph.opset_imports.update({entry.domain: entry.version for entry in proto.opset_import})
    texts = ("producer_name", "producer_version", "domain", "model_version", "doc_string")
    told: dict[str, Any] = {name: getattr(proto, name) if proto.HasField(name) else None for name in texts}
    return ir.Model(graph, ir_version=proto.ir_version, metadata_props=_facts(proto), **told)


class _Reader:
    """Reads graphs of one model, and keeps the shapes and attributes that it met."""

    def __init__(self) -> None:
        self._types: dict[bytes, tuple[ir.DataType | None, ir.Shape | None]] = {}
        self._attributes: dict[bytes, ir.Attr] = {}
        self._shapes: dict[tuple[int, ...], ir.Shape] = {}

    def graph(self, proto: onnx.GraphProto, outer: _Values) -> ir.Graph:
        """A graph and its bodies; `outer` are the values of the graphs around it."""
        if proto.quantization_annotation or proto.sparse_initializer:
            raise _Rare
        infos = {info.name: info for info in proto.value_info}
        inputs = [self._value(info.name, info) for info in proto.input]
        own = {value.name or "": value for value in inputs}
        weights = [self._weight(tensor, own, infos) for tensor in proto.initializer]
        values: _Values = {**outer, **own}
        nodes = [self._node(node, values, infos) for node in proto.node]
        outputs = []
        for info in proto.output:
            value = values.get(info.name)
            if value is None or value is outer.get(info.name):
                raise _Rare
            outputs.append(self._describe(value, info))
        return ir.Graph(
            inputs, outputs, nodes=nodes, initializers=weights, doc_string=proto.doc_string or None,
            name=proto.name if proto.HasField("name") else None, metadata_props=_facts(proto),
        )  # fmt: skip

    def _value(self, name: str, info: onnx.ValueInfoProto | None) -> ir.Value:
        value = ir.Value(name=name)
        return value if info is None else self._describe(value, info)

    def _describe(self, value: ir.Value, info: onnx.ValueInfoProto) -> ir.Value:
        """Write into a value what is stated of it."""
        text = info.type.SerializeToString()
        found = self._types.get(text)
        if found is None:
            found = self._types[text] = self._type(info.type)
        dtype, value.shape = found
        # a type may be changed in place, so that each value has its own
        value.type = ir.serde.deserialize_type_proto_for_type(info.type) if dtype is None else ir.TensorType(dtype)
        if info.metadata_props:
            value.metadata_props.update(_facts(info) or {})
        value.doc_string = info.doc_string or None
        return value

    @staticmethod
    def _type(proto: onnx.TypeProto) -> tuple[ir.DataType | None, ir.Shape | None]:
        """The type of a tensor's numbers, None where it is more than that, and the shape."""
        plain = proto.HasField("tensor_type") and proto.tensor_type.HasField("elem_type") and not proto.denotation
        dtype = ir.DataType(proto.tensor_type.elem_type) if plain else None
        return dtype, ir.serde.deserialize_type_proto_for_shape(proto)

    def _weight(
        self, proto: onnx.TensorProto, values: dict[str, ir.Value], infos: Mapping[str, onnx.ValueInfoProto]
    ) -> ir.Value:
        name = proto.name
        if not name:
            raise _Rare
        tensor = ir.serde.deserialize_tensor(proto)
        if name in values:  # an input's default
            values[name].const_value = tensor
            return values[name]
        dims = tuple(proto.dims)
        shape = self._shapes.get(dims)
        if shape is None:
            shape = self._shapes[dims] = ir.Shape(dims, frozen=True)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        values[name] = value
        return self._describe(value, infos[name]) if name in infos else value

    def _node(self, proto: onnx.NodeProto, values: _Values, infos: Mapping[str, onnx.ValueInfoProto]) -> ir.Node:
        if proto.device_configurations:
            raise _Rare
        try:
            inputs = [values[name] for name in proto.input]
        except KeyError as error:  # out of order, or not there at all
            raise _Rare from error
        outputs = []
        for name in proto.output:
            value = self._value(name, infos.get(name) if name else None)
            if name:
                if name in values:
                    raise _Rare  # serde says what is wrong with it, or whose the name is
                values[name] = value
            outputs.append(value)
        return ir.Node(
            proto.domain, proto.op_type, inputs, [self._attribute(each, values) for each in proto.attribute],
            overload=proto.overload, outputs=outputs, name=proto.name, doc_string=proto.doc_string or None,
            metadata_props=_facts(proto),
        )  # fmt: skip

    def _attribute(self, proto: onnx.AttributeProto, values: _Values) -> ir.Attr:
        kind = int(proto.type)
        if kind == _KIND.TENSOR and not proto.ref_attr_name:  # each its own: tensors are renamed
            return ir.AttrTensor(proto.name, ir.serde.deserialize_tensor(proto.t), proto.doc_string or None)
        if kind == _KIND.GRAPH:
            if proto.ref_attr_name:
                raise _Rare
            return ir.AttrGraph(proto.name, self.graph(proto.g, values), doc_string=proto.doc_string or None)
        if kind in (_KIND.GRAPHS, _KIND.TENSORS):
            raise _Rare
        text = proto.SerializeToString()
        known = self._attributes.get(text)
        if known is None:
            known = self._attributes[text] = ir.serde.deserialize_attribute(proto)
        return known


def _facts(proto: Any) -> dict[str, str] | None:
    return {entry.key: entry.value for entry in proto.metadata_props} or None


# Writing


def write(model: ir.Model, initializers: Mapping[str, ir.Value], *, noted: bool = True) -> onnx.ModelProto | None:
    """A model's message with these initialisers of its graph alone, as onnx_ir's serde makes it.

    Args:
        noted: with what is noted down about each node, which shape inference does not ask for.

    Returns:
        None if there is something in the model that serde has to write.
    """
    if model.functions or getattr(model, "device_configurations", None):  # older releases of onnx_ir have none
        return None
    proto = onnx.ModelProto(
        ir_version=model.ir_version, producer_name=model.producer_name or None,
        producer_version=model.producer_version or None, domain=model.domain or None,
        model_version=model.model_version or None, doc_string=model.doc_string or None,
    )  # fmt: skip
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    _note(proto, model.metadata_props)
    try:
        _Writer(noted).graph(proto.graph, model.graph, initializers)
    except _Rare:
        return None
    return proto


class _Writer:
    """Writes graphs of one model, and keeps the messages of the shapes and attributes that it met."""

    def __init__(self, noted: bool) -> None:
        self._noted = noted
        self._types: dict[tuple[ir.DataType, int], onnx.TypeProto] = {}  # by type and the shape's id
        self._attributes: dict[int, onnx.AttributeProto] = {}

    def graph(self, proto: onnx.GraphProto, graph: ir.Graph, initializers: Mapping[str, ir.Value]) -> None:
        if graph.name:
            proto.name = graph.name
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        _note(proto, graph.metadata_props)
        for value in graph.inputs:
            self._describe(proto.input, value)
        given = {value.name for value in graph.inputs}
        for value in initializers.values():
            if value.const_value is None:
                raise _Rare
            if value.name not in given and _is_described(value):
                self._describe(proto.value_info, value)
            value.const_value.name = value.name
            ir.serde.serialize_tensor_into(proto.initializer.add(), from_=value.const_value)
        for node in graph:
            self._node(proto.node, node)
            for value in node.outputs:
                if not value.is_graph_output() and _is_described(value):
                    self._describe(proto.value_info, value)
        for value in graph.outputs:
            self._describe(proto.output, value)

    def _describe(self, infos: Any, value: ir.Value) -> None:
        """Add what is stated of a value to a list of such infos."""
        if value._metadata or not value.name:  # a quantisation annotation, or an output that nobody wants
            raise _Rare
        kind, shape = value.type, value.shape
        info = infos.add(name=value.name)
        if type(kind) is ir.TensorType and not kind.denotation:
            key = kind.dtype, id(shape)
            stated = self._types.get(key)
            if stated is None:
                stated = self._types[key] = type_message(kind, shape)
            info.type.CopyFrom(stated)
        elif kind is not None:
            info.type.CopyFrom(type_message(kind, shape))
        if value.doc_string:
            info.doc_string = value.doc_string
        if value._metadata_props:
            _note(info, value._metadata_props)

    def _node(self, nodes: Any, node: ir.Node) -> None:
        if getattr(node, "device_configurations", None):
            raise _Rare
        outputs = [value.name for value in node.outputs]
        while outputs and not outputs[-1]:
            outputs.pop()
        proto = nodes.add(op_type=node.op_type)
        proto.input.extend(["" if value is None else value.name for value in node.inputs])
        proto.output.extend(outputs)
        if node.name:
            proto.name = node.name
        if node.domain:
            proto.domain = node.domain
        if node.overload:
            proto.overload = node.overload
        if self._noted:
            if node.doc_string:
                proto.doc_string = node.doc_string
            if node._metadata_props:
                _note(proto, node._metadata_props)
        for attribute in node.attributes.data.values():
            self._attribute(proto, attribute)

    def _attribute(self, node: onnx.NodeProto, attribute: ir.Attr) -> None:
        if attribute.type is _KIND.GRAPH and not attribute.is_ref():
            body = attribute.as_graph()
            proto = node.attribute.add(name=attribute.name, type=onnx.AttributeProto.GRAPH)
            if attribute.doc_string:
                proto.doc_string = attribute.doc_string
            self.graph(proto.g, body, body.initializers)
            return
        if attribute.type is _KIND.GRAPHS:
            raise _Rare
        if attribute.type is _KIND.TENSOR and not attribute.is_ref():  # no two nodes have the same
            ir.serde.serialize_attribute_into(node.attribute.add(), attribute)
            return
        known = self._attributes.get(id(attribute))
        if known is None:
            make = ir.serde.serialize_reference_attribute if attribute.is_ref() else ir.serde.serialize_attribute
            known = self._attributes[id(attribute)] = make(attribute)
        node.attribute.append(known)


def _is_described(value: ir.Value) -> bool:
    """Whether there is anything to say of it; asking for `metadata_props` or `meta` would make a dictionary."""
    stated = value.shape is not None or value.type is not None
    return bool(stated or value.doc_string or value._metadata_props or value._metadata)


def type_message(kind: ir.TypeProtocol, shape: ir.Shape | None) -> onnx.TypeProto:
    """What is stated of a value.

    >>> type_message(ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 4])).tensor_type.shape.dim[1].dim_value
    4
    """
    proto = ir.serde.serialize_type(kind)
    if shape is not None:
        ir.serde.serialize_shape_into(proto, shape)
    return proto


def _note(proto: Any, facts: Mapping[str, str]) -> None:
    for key, value in sorted(facts.items()):
        proto.metadata_props.add(key=key, value=value)
