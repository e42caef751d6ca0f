"""A graph seen through its Q/DQ: what is 8-bit codes, who makes them and who reads them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.graph.shapes import VIEWS
from trtkit.model import Model
from trtkit.passes.common import array, constant
from trtkit.passes.groups.common import LIGHT
from trtkit.quant.qdq import QUANTIZABLE

EIGHT_BITS = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)
# Operators that give out numbers of their input, so that TensorRT may move a Q or a DQ past them.
PASSING = VIEWS | {"Transpose", "MaxPool", "Slice", "Split", "Gather", "Expand", "Concat", "DepthToSpace"}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")


class QuantizedGraph:
    """A graph seen through its Q/DQ: which values are 8-bit codes behind a DequantizeLinear, and who reads them.

    Raises:
        ModelError: nothing in it is quantised.
    """

    def __init__(self, model: Model) -> None:
        self.nodes = tuple(node for node in model.ir.graph if node.domain == "")
        self.q = [node for node in self.nodes if node.op_type == "QuantizeLinear"]
        self.dq = [node for node in self.nodes if node.op_type == "DequantizeLinear"]
        if not self.dq and not any(node.op_type in INTEGER_OPERATORS for node in self.nodes):
            raise ModelError(f"{model.name!r} has no QuantizeLinear and DequantizeLinear to look at: it is in "
                             f"{model.precision}. Quantise it first: trtkit.quantize(model, data).")  # fmt: skip
        self._sources: dict[ir.Value, ir.Node | None] = {}
        self.products = [node for node in self.nodes if node.op_type in QUANTIZABLE]

    def quantized(self, node: ir.Node | None) -> bool:
        """Whether a node is a product of which both factors are 8-bit codes."""
        if node is None or node.domain != "" or node.op_type not in QUANTIZABLE:
            return False
        return all(self.source(value) is not None for value in node.inputs[:2])

    def source(self, value: ir.Value | None) -> ir.Node | None:
        """The DequantizeLinear of 8-bit codes that a value comes from, past operators that only hand numbers on."""
        node = value.producer() if value is not None else None
        if value is None or node is None or node.domain != "":
            return None
        if value not in self._sources:
            if hands_on(node):
                found = [self.source(each) for each in (node.inputs if node.op_type == "Concat" else node.inputs[:1])]
                self._sources[value] = found[0] if None not in found else None
            else:
                is_dq = node.op_type == "DequantizeLinear" and code_type(node) in EIGHT_BITS
                self._sources[value] = node if is_dq else None
        return self._sources[value]

    def readers(self, value: ir.Value) -> Iterator[tuple[ir.Node | None, int]]:
        """Who reads a value and where, past operators that only hand numbers on; None is whoever runs the graph."""
        if value.is_graph_output():
            yield None, 0
        for node, position in value.uses():
            if hands_on(node):
                for out in node.outputs:
                    yield from self.readers(out)
            else:
                yield node, position

    def follows_product(self, value: ir.Value) -> bool:
        """Whether light operators lead to a value from a quantised product."""
        return any(map(self.quantized, _behind(value, back=True)))

    def precedes_q(self, value: ir.Value) -> bool:
        """Whether light operators lead from a value to a QuantizeLinear."""
        return any(node.op_type == "QuantizeLinear" for node in _behind(value, back=False))


def hands_on(node: ir.Node) -> bool:
    """Whether a node gives out the numbers that it gets: elsewhere, in another order, or in another float type."""
    if node.domain != "":
        return False
    is_float_cast = node.op_type == "Cast" and _type(node.inputs[0]) in _FLOATS and _type(node.outputs[0]) in _FLOATS
    return node.op_type in PASSING or is_float_cast


def code_type(node: ir.Node) -> ir.DataType | None:
    """The type of the codes that a DequantizeLinear reads, or that a QuantizeLinear writes; None where nothing says."""
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    stated = _type(codes) or (_type(node.inputs[2]) if len(node.inputs) > 2 else None)
    if stated is not None:
        return stated
    if node.op_type == "QuantizeLinear":
        return ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
    return code_type(q) if (q := quantizer(node)) is not None else None


def _type(value: ir.Value | None) -> ir.DataType | None:
    tensor = constant(value)
    return tensor.dtype if tensor is not None else value.dtype if value is not None else None


def constant_of(node: ir.Node) -> ir.TensorProtocol | None:
    """The constant that a Q or DQ works on: its codes or, where a weight is stored in float with a pair, its floats."""
    codes, q = constant(node.inputs[0]), quantizer(node)
    return constant(q.inputs[0]) if codes is None and q is not None else codes


def quantizer(dq: ir.Node) -> ir.Node | None:
    """The QuantizeLinear right before a DequantizeLinear."""
    maker = dq.inputs[0].producer() if dq.inputs[0] is not None else None
    return maker if maker is not None and maker.op_type == "QuantizeLinear" else None


def origin(value: ir.Value | None) -> ir.Node | None:
    """The node that computed a value's numbers, past operators that only hand them on; None for the graph's inputs."""
    node = value.producer() if value is not None else None
    while node is not None and hands_on(node):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def same_scale(one: ir.Node, other: ir.Node) -> bool:
    """Whether two Q or DQ have the same scale."""
    first, second = array(one.inputs[1]), array(other.inputs[1])
    if first is None or second is None:
        return one.inputs[1] is other.inputs[1]
    return np.array_equal(first, second)


def name_of(value: ir.Value | None) -> str:
    """A value's name for a message."""
    return (value.name or "") if value is not None else ""


def _behind(value: ir.Value, back: bool) -> Iterator[ir.Node]:
    """The nodes that compute a value (`back`) or read it, and so on past light operators."""
    todo, seen = [value], {value}
    while todo:
        each = todo.pop()
        for node in [each.producer()] if back else [node for node, _ in each.uses()]:
            if node is None:
                continue
            yield node
            if node.op_type in LIGHT or hands_on(node):
                new = [v for v in (node.inputs if back else node.outputs) if v is not None and v not in seen]
                seen.update(new)
                todo += new
