"""What a graph computes and what it moves: FLOPs and bytes, node by node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from trtkit.graph.shapes import Tensor, concrete_tensors, has_body, is_view, operands, results
from trtkit.model import Model

# One FLOP per output element, whatever the function: hardware evaluates exp or erf at other speeds than an addition,
# but no table of those holds for two GPUs.
ELEMENTWISE = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "CumSum", "Div", "Dropout",
    "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf",
    "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "PRelu",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Sub", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip
# FLOPs per element of the first input
_PER_INPUT = {
    "Softmax": 5,  # maximum, subtract, exp, sum, divide
    "LogSoftmax": 5,
    "BatchNormalization": 2,  # in inference its four vectors are one scale and one shift
    "LayerNormalization": 7,  # sum; subtract, square, sum; times 1/sigma; scale, shift
    "InstanceNormalization": 7,
    "GroupNormalization": 7,
    "RMSNormalization": 4,  # square, sum; times 1/rms; scale
    "LpNormalization": 3,  # power, sum; divide
    "QuantizeLinear": 2,  # scale, zero point
    "DequantizeLinear": 2,
    "GlobalAveragePool": 1,
    "GlobalMaxPool": 1,
    "ArgMax": 1,
    "ArgMin": 1,
    **{f"Reduce{kind}": 1 for kind in ("Max", "Min", "Sum", "Mean", "Prod")},
    **{f"Reduce{kind}": 2 for kind in ("L1", "L2", "SumSquare", "LogSumExp", "LogSum")},
}
# Operators that move numbers and compute none
_MOVES = frozenset({
    "Compress", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "EyeLike", "Gather",
    "GatherElements", "GatherND", "Pad", "Range", "ScatterElements", "ScatterND", "Shape", "Size", "Slice",
    "SpaceToDepth", "Split", "Tile", "Transpose", "Trilu",
})  # fmt: skip
# Operators that make something out of no data: a constant is read by the nodes that use it, a shape is known anyway
_READ_NOTHING = frozenset({"Constant", "Shape", "Size"})
# Operators that read only what they write of their first input
_READ_A_PART = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})

_Shapes = list[Tensor | None]  # of a node's inputs by position; None for one that was left out


class NodeCost(NamedTuple):
    """What one node computes and moves; None where that cannot be known, and then `why` says the reason."""

    name: str
    op_type: str
    flops: int | None
    bytes_read: int | None
    bytes_written: int | None
    why: str = ""

    @property
    def intensity(self) -> float:
        """FLOPs per byte moved, the x axis of a roofline; 0 for a view, NaN where the cost is unknown."""
        if self.flops is None or self.bytes_read is None or self.bytes_written is None:
            return math.nan
        return self.flops / max(self.bytes_read + self.bytes_written, 1)


class OperatorCost(NamedTuple):
    """The nodes of one operator together; `unknown` of them are not in the sums, or not wholly."""

    nodes: int
    flops: int
    bytes_read: int
    bytes_written: int
    unknown: int


@dataclass(frozen=True)
class Cost:
    """The cost of every node in order; the totals leave out what is unknown, which `unknown` lists."""

    nodes: tuple[NodeCost, ...]

    @property
    def flops(self) -> int:
        return sum(node.flops or 0 for node in self.nodes)

    @property
    def bytes_read(self) -> int:
        return sum(node.bytes_read or 0 for node in self.nodes)

    @property
    def bytes_written(self) -> int:
        return sum(node.bytes_written or 0 for node in self.nodes)

    @property
    def intensity(self) -> float:
        """FLOPs per byte of the graph run node by node; NaN where a node's cost is unknown."""
        return math.nan if self.unknown else self.flops / max(self.bytes_read + self.bytes_written, 1)

    @property
    def unknown(self) -> tuple[NodeCost, ...]:
        """The nodes whose FLOPs or bytes are unknown; with any here, the totals are lower bounds."""
        return tuple(node for node in self.nodes if node.why)

    @property
    def by_operator(self) -> dict[str, OperatorCost]:
        """The sums by operator, the one with the most FLOPs first."""
        groups: dict[str, list[NodeCost]] = {}
        for node in self.nodes:
            groups.setdefault(node.op_type, []).append(node)
        totals = {op: Cost(tuple(nodes)) for op, nodes in groups.items()}
        sums = {
            op: OperatorCost(len(c.nodes), c.flops, c.bytes_read, c.bytes_written, len(c.unknown))
            for op, c in totals.items()
        }
        return dict(sorted(sums.items(), key=lambda item: -item[1].flops))

    def __str__(self) -> str:
        moved = f"{self.bytes_read:,} bytes read, {self.bytes_written:,} written"
        missing = f"; at least: {len(self.unknown)} nodes are unknown" if self.unknown else ""
        return f"{self.flops:,} FLOPs, {moved}{missing}"


def cost(model: Model, batch: int = 1, dims: Mapping[str, int] | None = None) -> Cost:
    """Count the FLOPs of every node and the bytes it reads and writes.

    A multiply-add is 2 FLOPs, as in torch.utils.flop_counter. Convolutions and matrix products are exact, padding
    counted as if it were data; adding their bias is not counted, nor is scaling by Gemm's alpha and beta, as there.
    Elementwise operators count 1 per output element, the rest goes by the table in this file. A node reads every
    input and weight once and writes every output once, as if nothing stayed in a cache and nothing were fused; a Gather
    or Slice reads of its table what it takes. Views (Reshape, Flatten, Squeeze, Unsqueeze, Identity) move nothing.
    A graph that computes shapes as it runs should go through trtkit.optimize first, or some shapes stay unknown.

    Args:
        batch: the size of every changeable first dimension, and of every one called "batch".
        dims: sizes of changeable dimensions by name, e.g. {"sequence": 128}.

    Raises:
        ModelError: a changeable dimension has no size, or the graph does not work with these sizes.

    Source: Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009, for operational intensity.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x, float[4, 8] w) => (float[n, 8] y) {a = MatMul(x, w)  y = Relu(a)}'''))
    >>> for node in cost(model, batch=2).nodes:
    ...     print(node.op_type, node.flops, node.bytes_read, node.bytes_written)
    MatMul 128 160 64
    Relu 16 64 64
    """
    tensors = concrete_tensors(model, batch, dims)
    return Cost(tuple(_cost(node, tensors) for node in model.ir.graph))


def _cost(node: ir.Node, tensors: dict[str, Tensor]) -> NodeCost:
    name = node.name or node.op_type
    if has_body(node):
        return NodeCost(name, node.op_type, None, None, None, "it runs a graph of its own, how often is not known")
    if is_view(node):
        return NodeCost(name, node.op_type, 0, 0, 0)
    reads = () if node.domain == "" and node.op_type in _READ_NOTHING else tuple(operands(node))
    missing = [v.name for v in (*reads, *results(node)) if v.name not in tensors]
    if missing:
        return NodeCost(name, node.op_type, None, None, None, f"the shapes of {missing} are not known")
    read = _bytes_read(node, tensors, reads)
    constant = node.domain == "" and node.op_type == "Constant"
    written = 0 if constant else sum(tensors[v.name or ""].size_bytes for v in results(node))
    given: _Shapes = [None if v is None else tensors.get(v.name or "") for v in node.inputs]
    out = tensors.get(node.outputs[0].name or "")
    flops = None if out is None else _flops(node, given, out)
    why = f"no rule for the FLOPs of {node.domain or 'ONNX'}'s {node.op_type}" if flops is None else ""
    return NodeCost(name, node.op_type, flops, read, written, why)


def _bytes_read(node: ir.Node, tensors: dict[str, Tensor], reads: tuple[ir.Value, ...]) -> int:
    """The size of all inputs; of a table that only some rows are taken from, these rows, each once."""
    sizes = {value: tensors[value.name or ""].size_bytes for value in reads}
    if node.domain == "" and node.op_type in _READ_A_PART and reads:
        taken = sum(tensors[value.name or ""].size_bytes for value in results(node))
        sizes[reads[0]] = min(sizes[reads[0]], taken)
    return sum(sizes.values())


def _flops(node: ir.Node, given: _Shapes, out: Tensor) -> int | None:
    """FLOPs of one node with known shapes, None where there is no rule for its operator."""
    op = node.op_type
    if node.domain != "":
        return None
    if op in _MOVES:
        return 0
    if op in ELEMENTWISE:
        return out.elements
    if op in ("Sum", "Max", "Min", "Mean"):  # of any number of tensors
        return out.elements * max(len(given) - 1, 1)
    if op in ("MaxPool", "AveragePool", "LpPool"):
        return out.elements * math.prod(node.attributes.get_ints("kernel_shape", ()))
    if not given or given[0] is None:
        return None
    if op in _PER_INPUT:
        return given[0].elements * _PER_INPUT[op]
    if op == "Resize":
        return _resize(node, given[0], out)
    return _products(node, given, given[0], out)


def _products(node: ir.Node, given: _Shapes, first: Tensor, out: Tensor) -> int | None:
    """The operators made of multiply-adds: 2 FLOPs for each."""
    op = node.op_type
    second = given[3 if op in ("QLinearConv", "QLinearMatMul") else 1] if len(given) > 1 else None
    if second is None:
        return None
    if op in ("Conv", "ConvInteger", "QLinearConv"):  # weight (M, C/group, *kernel): each output element sums C/group*k
        return 2 * out.elements * math.prod(second.shape[1:])
    if op == "ConvTranspose":  # weight (C, M/group, *kernel): each input element is spread over M/group*k
        return 2 * first.elements * math.prod(second.shape[1:])
    if op == "Gemm":
        return 2 * out.elements * first.shape[0 if node.attributes.get_int("transA", 0) else 1]
    if op in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return 2 * out.elements * first.shape[-1]
    if op == "Attention":  # each query meets every key, then every value: T_k times the queries, T_k times the results
        past = given[4] if len(given) > 4 else None
        keys = second.shape[-2] + (past.shape[-2] if past is not None else 0)
        return 2 * (first.elements + out.elements) * keys
    if op == "Einsum":
        return _einsum(node.attributes.get_string("equation", "").replace(" ", ""), (first, second), len(given))
    third = given[2] if len(given) > 2 else None
    if op in ("LSTM", "GRU", "RNN") and third is not None:  # each step of each sequence multiplies by W and by R
        return 2 * first.shape[0] * first.shape[1] * (second.elements + third.elements)
    return None


def _einsum(equation: str, tensors: tuple[Tensor, Tensor], operands_given: int) -> int | None:
    """Of two tensors: a multiply-add for each combination of indices that both have, or the result; `...` has no rule.

    An index of one tensor alone that the result does not have is summed first, as torch.einsum does.
    """
    given, arrow, result = equation.partition("->")
    terms = given.split(",")
    if operands_given != 2 or not arrow or [len(term) for term in terms] != [len(t.shape) for t in tensors]:
        return None
    if "." in equation:
        return None
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for index, size in zip(term, tensor.shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))  # a size of 1 is repeated
    return 2 * math.prod(size for index, size in sizes.items() if index in result or all(index in t for t in terms))


def _resize(node: ir.Node, first: Tensor, out: Tensor) -> int | None:
    """Interpolation weighs 2 (linear) or 4 (cubic) neighbours along each axis that changes; nearest only copies."""
    mode = node.attributes.get_string("mode", "nearest")
    taps = {"nearest": 0, "linear": 2, "cubic": 4}.get(mode)
    if taps is None or len(first.shape) != len(out.shape):
        return None
    axes = sum(a != b for a, b in zip(first.shape, out.shape, strict=True))
    return 2 * out.elements * taps**axes if taps and axes else 0
