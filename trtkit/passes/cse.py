"""Compute equal things once."""

from __future__ import annotations

from collections.abc import Hashable
from operator import itemgetter

import onnx_ir as ir

from trtkit.passes.common import Rewrite, bodies, remove, replace
from trtkit.passes.constant_folding import QUANTIZED, RANDOM

_COMMUTATIVE = {"Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}
_NEVER = RANDOM | QUANTIZED | {"If", "Loop", "Scan", "SequenceMap", "Optional"}
_LARGE = 1 << 16  # bytes; larger constants in attributes are not compared

_KIND = ir.AttributeType
_first = itemgetter(0)

Key = tuple[Hashable, ...]


class ShareSubexpressions(Rewrite):
    """Of several nodes that compute the same from the same, keep the first (Cocke 1970, "Global common
    subexpression elimination").

    *Requires* the same operator, the same input values in the same places (in any order for the few operators of two
    inputs that are exactly commutative), equal attributes, and the same outputs asked for. Never: random operators,
    nodes with a body, operators of other domains, and Q/DQ, which state the precision of each reader on its own.
    A node in a body may be equal to one outside that comes before the body's node: it then computes the same in every
    turn of a loop. Not the other way round, and not in sibling bodies, of which only one may run.
    *Rewrite*: readers of the later node read the first. *Ensures*: outputs of graphs keep their names; two equal
    outputs of one graph stay two nodes.
    """

    title = "share subexpressions"
    early = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self._begin(model)
        self._scope(model.graph, {})
        return ir.passes.PassResult(model, modified=bool(self.done))

    def _scope(self, graph: ir.Graph, first: dict[Key, ir.Node]) -> None:
        """`first` has the nodes that come before this graph; this graph's join them, in a copy those of its bodies."""
        for node in graph:
            if node.op_type in _NEVER or node.domain != "":
                for body in bodies(node):
                    self._scope(body, dict(first))
                continue
            key = _key(node)
            twin = node if key is None else first.setdefault(key, node)
            if twin is not node and _share(node, twin):
                self.done[f"{node.op_type} shared"] += 1


def _key(node: ir.Node) -> Key | None:
    """What two nodes must have in common; None where an attribute cannot be compared."""
    inputs = [0 if value is None else id(value) for value in node.inputs]
    while inputs and not inputs[-1]:
        inputs.pop()  # optional inputs at the end may be left out in two ways
    if len(inputs) == 2 and node.op_type in _COMMUTATIVE:
        inputs.sort()
    attributes = []
    for name, attribute in node.attributes.data.items():  # past its Mapping, which is slow
        value = comparable(attribute)
        if value is None:
            return None
        attributes.append((name, attribute.type, value))
    if len(attributes) > 1:
        attributes.sort(key=_first)
    asked = [bool(value.name) for value in node.outputs]
    return node.op_type, tuple(inputs), tuple(attributes), tuple(asked)


def comparable(attribute: ir.Attr) -> Hashable | None:
    """An attribute's value as something with a hash; floats by their digits, so that 0.0 is not -0.0."""
    if attribute.is_ref():
        return None
    kind, value = attribute.type, attribute.value
    if kind is _KIND.INT or kind is _KIND.STRING:
        return value
    if kind is _KIND.INTS or kind is _KIND.STRINGS:
        return tuple(value)
    if kind is _KIND.FLOAT or kind is _KIND.FLOATS:
        return repr(value)
    return _tensor(value) if kind is _KIND.TENSOR else None


def _tensor(value: ir.TensorProtocol) -> Hashable | None:
    """Type, shape and bytes; of a message with its bytes as they are, without the detour over other objects."""
    info = value.raw if isinstance(value, ir.serde.TensorProtoTensor) else None
    if info is not None and info.HasField("raw_data") and len(info.raw_data) <= _LARGE:
        return info.data_type, tuple(info.dims), info.raw_data
    if value.nbytes > _LARGE or value.dtype == ir.DataType.STRING:
        return None
    return value.dtype.value, tuple(value.shape.numpy()), value.tobytes()


def _share(node: ir.Node, twin: ir.Node) -> bool:
    pairs = [(old, new) for old, new in zip(node.outputs, twin.outputs, strict=True) if old.name]
    for old, new in pairs:
        if old.is_graph_output() and (new.is_graph_output() or new.graph is not old.graph):
            return False
    for old, new in pairs:
        new.type = new.type or old.type
        new.shape = new.shape if new.shape is not None else old.shape
        replace(old, new)
    remove(node)
    return True
