"""A BF16 graph in float32, for processors that have no BF16 arithmetic."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.model import Model
from trtkit.passes.common import infer_shapes

_FROM, _TO = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def in_float32(model: Model, *, rounded: bool = False) -> Model:
    """The same graph with every bfloat16 tensor as float32: weights keep their BF16 values, arithmetic is exact.

    ONNX Runtime's CPU has no BF16 kernels for most operators. What this shows of a BF16 model is its graph and its
    rounded weights; with `rounded` also the rounding of its activations.

    Args:
        rounded: pass whatever a node gives out in BF16 through a Cast to BF16 and back, so that each operator computes
            in float32 on numbers of BF16, as tensor cores do. Of the main graph, not of bodies inside it.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[1] x) => (float[1] y) {a = Cast <to = 16> (x)  b = Neg(a)  y = Cast <to = 1> (b)}'''))
    >>> in_float32(model).run({"x": np.array([1.5], np.float32)})["y"].tolist()
    [-1.5]
    >>> in_float32(model).run({"x": np.array([1.001], np.float32)})["y"].round(3) == -np.float32(1.001)
    array([ True])
    >>> in_float32(model, rounded=True).run({"x": np.array([1.001], np.float32)})["y"].tolist()
    [-1.0]
    """
    graph = model.ir.clone()
    if rounded:
        infer_shapes(graph)  # a file need not say which of its tensors are BF16
    low = [value for node in graph.graph for value in node.outputs if value.dtype == _FROM] if rounded else []
    for value in graph.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == _FROM:
            value.const_value = _widened(value.const_value)
            _retype(value)
    for value in graph.graph.inputs:
        _retype(value)
    for node in graph.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if node.op_type == "Cast" and name == "to" and attribute.as_int() == _FROM:
                node.attributes[name] = ir.AttrInt64(name, int(_TO))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FROM:
                node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
        for value in node.outputs:
            _retype(value)
    for value in low:
        _round(graph.graph, value)
    return Model(graph, model.name, precision="fp32")


def _round(graph: ir.Graph, value: ir.Value) -> None:
    """Let whoever reads a value read it rounded to BF16."""
    to_low = ir.node("Cast", [value], {"to": int(_FROM)})
    back = ir.node("Cast", to_low.outputs, {"to": int(_TO)})
    to_low.outputs[0].type, back.outputs[0].type, back.outputs[0].shape = ir.TensorType(_FROM), value.type, value.shape
    producer = value.producer()
    assert producer is not None
    ir.convenience.replace_all_uses_with(value, back.outputs[0])
    to_low.replace_input_with(0, value)
    graph.insert_after(producer, [to_low, back])


def _widened(tensor: ir.TensorProtocol) -> ir.Tensor:
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _retype(value: ir.Value) -> None:
    if value.dtype == _FROM:
        value.type = ir.TensorType(_TO)  # a new one: a clone shares its types with the original
