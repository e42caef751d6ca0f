"""Rules for Q/DQ: what TensorRT cannot take, what it cannot fuse, and what gains nothing, told from the graph alone.

Sources: NVIDIA, TensorRT documentation, "Working with Quantized Types" (explicit quantisation: Q/DQ placement and
limitations); and engines that TensorRT-RTX built from graphs that break each rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from trtkit.model import Model
from trtkit.passes.common import array, constant, is_used, single_use
from trtkit.passes.groups.common import LIGHT
from trtkit.quant.formats import FP8_E4M3
from trtkit.quant.qdq import FP8_TAPS, QUANTIZABLE, channel_axis, taps_of
from trtkit.quant.quantized_graph import (
    EIGHT_BITS,
    INTEGER_OPERATORS,
    QuantizedGraph,
    code_type,
    constant_of,
    hands_on,
    name_of,
    quantizer,
    same_scale,
)

HALF_MAX = 65504.0  # the largest number of FP16
REFUSED, COSTLY, EXPLAINED = "refused", "costly", "explained"
LEVELS = (REFUSED, COSTLY, EXPLAINED)

_AVERAGES = {"AveragePool", "GlobalAveragePool", "ReduceMean"}  # read a quarter of the bytes when they read 8 bits


class Finding(NamedTuple):
    """One place where a rule is broken, or where the graph must be as it is and costs something.

    Attributes:
        rule: its name, a key of `RULES`.
        level: "refused" (TensorRT does not build it, or not as it is meant), "costly" (it can be mended) or "explained"
            (it has to be so).
        node: the name of the node it is about.
        what: what is so at this place.
    """

    rule: str
    level: str
    node: str
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.rule}: {self.node}: {self.what}"


class Rule(NamedTuple):
    """What TensorRT requires of Q/DQ, why, and how to mend a graph that breaks it."""

    name: str
    level: str
    requires: str
    why: str
    mend: str
    find: Callable[[QuantizedGraph], Iterator[tuple[ir.Node, str]]]


RULES: dict[str, Rule] = {}


def _rule(name: str, level: str, requires: str, why: str, mend: str) -> Callable[..., None]:
    def add(find: Callable[[QuantizedGraph], Iterator[tuple[ir.Node, str]]]) -> None:
        RULES[name] = Rule(name, level, requires, why, mend, find)

    return add


def check(model: Model) -> tuple[Finding, ...]:
    """Look at a quantised graph with every rule of `RULES`; nodes inside bodies of If, Loop and Scan are not looked at.

    Raises:
        ModelError: the graph has no Q/DQ.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 2] y) <float s = {0.1}, int8 z = {0}, float[2, 2] w = {1, 2, 3, 4}> {
    ...     r = Relu(x)  q = QuantizeLinear(r, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(d, w)}'''))
    >>> for finding in check(model):
    ...     print(finding)
    costly: one-sided: MatMul_3: its activation is 8-bit codes, its weight is float
    """
    graph = QuantizedGraph(model)
    return tuple(
        Finding(rule.name, rule.level, node.name or "", what)
        for rule in RULES.values()
        for node, what in rule.find(graph)
    )


# --- what TensorRT refuses -------------------------------------------------------------------------------------------


@_rule(
    "integer-operator", REFUSED,
    "Quantisation is written as QuantizeLinear and DequantizeLinear around float operators.",
    "TensorRT's parser does not know ONNX's operators on integers.",
    "Export in QDQ format instead of QOperator format, or quantise the float model with trtkit.quantize.",
)  # fmt: skip
def _integer_operator(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in graph.nodes:
        if node.op_type in INTEGER_OPERATORS:
            yield node, f"it is a {node.op_type}"


@_rule(
    "zero-point", REFUSED,
    "Codes are symmetric: int8 or fp8 with zero point 0.",
    "TensorRT's kernels multiply codes as they are; a zero point would add a sum over the other factor to each result.",
    "Quantise symmetrically, to int8 from -127 to 127.",
)  # fmt: skip
def _zero_point(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in (*graph.q, *graph.dq):
        if code_type(node) == ir.DataType.INT32:
            continue  # a bias, which has a rule of its own
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        data = array(zero)
        if code_type(node) == ir.DataType.UINT8:
            yield node, "its codes are uint8, which TensorRT stores as int8"
        elif zero is not None and data is None:
            yield node, f"its zero point {name_of(zero)} is computed"
        elif data is not None and data.astype(np.float32).any():
            yield node, f"its zero point {name_of(zero)} is {data.reshape(-1)[np.argmax(data.reshape(-1) != 0)]}"


@_rule(
    "scale", REFUSED,
    "Scales are constants greater than 0.",
    "TensorRT puts them into its kernels while it builds; it has no dynamic scales for tensors of int8 or fp8.",
    "Calibrate, and store the scales as initialisers.",
)  # fmt: skip
def _scale(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in (*graph.q, *graph.dq):
        data = array(node.inputs[1])
        if data is None:
            yield node, f"its scale {name_of(node.inputs[1])} is computed, or an input of the graph"
        elif not (np.isfinite(data.astype(np.float32)) & (data > 0)).all():
            yield node, f"its scale {name_of(node.inputs[1])} is not greater than 0 everywhere"


@_rule(
    "quantized-bias", REFUSED,
    "The bias of a Conv or Gemm stays float.",
    "It is added to the accumulator, which has 32 bits: 8 bits would lose accuracy and save nothing.",
    "Take the DequantizeLinear off the bias and store the floats: codes * scale.",
)  # fmt: skip
def _bias(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in graph.products:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        maker = bias.producer() if bias is not None else None
        if maker is not None and maker.op_type == "DequantizeLinear":
            yield node, f"its bias comes from {maker.name}"


# --- what costs time, memory or accuracy -----------------------------------------------------------------------------


@_rule(
    "one-sided", COSTLY,
    "Both factors of a Conv, Gemm or MatMul are quantised, or neither.",
    "The kernels that multiply 8-bit codes take two of them. With one, it is dequantised and the product is float.",
    "Put the missing pair (activation) or DequantizeLinear (weight) in, or take the other one away.",
)  # fmt: skip
def _one_sided(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in graph.products:
        activation, weight = (graph.source(value) for value in node.inputs[:2])
        if activation is not None and weight is None:
            yield node, "its activation is 8-bit codes, its weight is float"
        elif weight is not None and activation is None and not weight.attributes.get_int("block_size", 0):
            yield node, "its weight is 8-bit codes, its activation is float"


@_rule(
    "activation-axis", COSTLY,
    "Activations have one scale each; only weights have one per channel.",
    "A scale per input channel stands inside the sum of a product and cannot be taken out of it: the product is float.",
    "Calibrate one range for the tensor. Channels that differ much can be evened out first: trtkit.smooth.",
)  # fmt: skip
def _activation_axis(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in graph.q:
        scale = array(node.inputs[1])
        if constant(node.inputs[0]) is None and scale is not None and scale.size > 1:
            yield node, f"{name_of(node.inputs[0])} has {scale.size} scales"


@_rule(
    "per-tensor-weight", COSTLY,
    "A weight has one scale for each output channel.",
    "One scale for all is as fast, and channels with small weights lose most of their bits.",
    "trtkit.quantize(..., per_channel=True), the default.",
)  # fmt: skip
def _per_tensor_weight(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node, shape, scales, _ in _weights(graph):
        channels = shape[channel_axis(node, len(shape))]
        if scales == 1 < channels:
            yield node, f"its {channels} output channels share one scale"


@_rule(
    "weight-axis", COSTLY,
    "The scales of a weight lie along its output channels: axis 0 of a Conv, the last of a MatMul.",
    "Any others stand inside the sum, so that the weight is dequantised in each run and the product is float.",
    "Set the DequantizeLinear's axis; trtkit.quantize does.",
)  # fmt: skip
def _weight_axis(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node, shape, scales, axis in _weights(graph):
        right = channel_axis(node, len(shape))
        if scales > 1 and axis % len(shape) != right:
            yield node, f"its scales lie along axis {axis}, its output channels along axis {right}"


def _weights(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, tuple[int, ...], int, int]]:
    """Products with the shape of their weight, how many scales it has, and along which axis."""
    for node in filter(graph.quantized, graph.products):
        dq = node.inputs[1].producer() if node.inputs[1] is not None else None
        if dq is None or dq.op_type != "DequantizeLinear":
            continue  # turned before the product reads it
        weight, scale = constant_of(dq), array(dq.inputs[1])
        if weight is not None and scale is not None and len(weight.shape) > 1:
            yield node, tuple(weight.shape.numpy()), scale.size, dq.attributes.get_int("axis", 1)


@_rule(
    "conv-transpose", COSTLY,
    "A ConvTranspose stays float.",
    "TensorRT-RTX has no 8-bit kernel for it: it dequantises the weight in each run, for a float one.",
    "Leave it in float, as trtkit.quantize does unless its ops name it.",
)  # fmt: skip
def _conv_transpose(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in filter(graph.quantized, graph.products):
        if node.op_type == "ConvTranspose":
            yield node, "both of its factors are quantised"


@_rule(
    "fp8-taps", COSTLY,
    f"A convolution in FP8 has {FP8_TAPS} kernel positions at most.",
    "TensorRT-RTX has no FP8 kernel for more, such as 7 x 7: it dequantises the weight in each run, for a float one.",
    "Leave it in float, as trtkit.quantize does, or quantise it to INT8.",
)  # fmt: skip
def _fp8_taps(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in filter(graph.quantized, graph.products):
        dq = graph.source(node.inputs[1])
        weight = constant_of(dq) if dq is not None else None
        is_fp8 = dq is not None and code_type(dq) in (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)
        if is_fp8 and weight is not None and (taps := taps_of(node, weight)) > FP8_TAPS:
            yield node, f"its kernel has {taps} positions"


@_rule(
    "half-sum", COSTLY,
    f"The scales of a matrix product are FP32, or its sums of codes stay below {HALF_MAX:.0f}.",
    "TensorRT multiplies codes, writes the sum in the scales' type, and scales it in the next kernel. FP16 becomes "
    "infinite there, INT8 and FP8 alike, as seen on a GPU. Convolutions write FP32 in any case.",
    "trtkit.autocast keeps such scales in FP32. Elsewhere put a Cast to FP32 before Q and one to FP16 behind DQ.",
)  # fmt: skip
def _half_sum(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in filter(graph.quantized, graph.products):
        dq = graph.source(node.inputs[1])
        weight, scale = (constant_of(dq), array(dq.inputs[1])) if dq is not None else (None, None)
        if dq is None or node.op_type not in ("MatMul", "Gemm") or weight is None or scale is None:
            continue
        codes = np.abs(weight.numpy().astype(np.float32))
        if scale.dtype == np.float16 and (most := largest_sum(node, codes, code_type(dq))) > HALF_MAX:
            yield node, f"its scales are FP16, and a sum of its codes can reach {most:.3g}"


def largest_sum(node: ir.Node, codes: np.ndarray, kind: ir.DataType | None) -> float:
    """What a product's sums reach at most: the largest code times all codes of an output channel's weight."""
    channel = channel_axis(node, codes.ndim)
    largest = FP8_E4M3.max if kind == ir.DataType.FLOAT8E4M3FN else 127
    return float(largest * codes.sum(tuple(axis for axis in range(codes.ndim) if axis != channel)).max())


@_rule(
    "float-reader", COSTLY,
    "A tensor is quantised for a reader that TensorRT runs on 8-bit codes: a product, a residual sum, a pooling.",
    "Softmax, normalisations and activations compute in float: a pair before them rounds, and saves no arithmetic.",
    "Take the pair away; trtkit.quantize puts pairs before products and residual sums only.",
)  # fmt: skip
def _float_reader(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for dq in graph.dq:
        if quantizer(dq) is None or constant_of(dq) is not None or code_type(dq) not in EIGHT_BITS:
            continue
        readers = [node for node, _ in graph.readers(dq.outputs[0])]
        names = [f"{node.op_type} {node.name}" for node in readers if node is not None]
        if readers and len(names) == len(readers) and not any(_reads_codes(graph, node) for node in readers):
            yield dq, f"{', '.join(dict.fromkeys(names))} computes in float"


def _reads_codes(graph: QuantizedGraph, node: ir.Node | None) -> bool:
    """Whether a reader makes something of codes, or has another rule that says why it does not."""
    if node is None or node.op_type in (*QUANTIZABLE, "QuantizeLinear", *_AVERAGES):
        return True
    others = [value for value in node.inputs if value is not None and constant(value) is None]
    makers = [value.producer() for value in others]
    return node.op_type == "Add" and len(others) == 2 and (
        any(graph.quantized(maker) for maker in makers) or all(graph.source(value) is not None for value in others)
    )  # fmt: skip


@_rule(
    "residual", COSTLY,
    "Where a quantised convolution's result is added to a tensor, that tensor is quantised and the result is not.",
    "The sum is computed in the convolution's kernel, or in the next one, before the result is rounded. It reads the "
    "other branch: 8 bits, or four times as much. A pair on the convolution's own result only rounds once more.",
    "Put the pair on the branch that is not the convolution's; trtkit.quantize does.",
)  # fmt: skip
def _residual(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in graph.nodes:
        if node.op_type != "Add" or any(value is None or constant(value) is not None for value in node.inputs):
            continue
        plain = [_is_conv(graph, value) for value in node.inputs]
        dqs = [graph.source(value) for value in node.inputs]
        rounded = [dq is not None and _only_for(graph, dq) for dq in dqs]
        if any(plain):
            if not any(dqs):
                yield node, "neither branch is quantised"
        elif any(rounded):
            yield node, ("both branches are quantised, the convolution's, too" if all(dqs) else
                         "the convolution's branch is quantised, and the other is not")  # fmt: skip


def _is_conv(graph: QuantizedGraph, value: ir.Value | None) -> bool:
    """Whether a value is a quantised convolution's, made for one reader."""
    maker = value.producer() if value is not None and single_use(value) else None
    return maker is not None and maker.op_type.startswith("Conv") and graph.quantized(maker)


def _only_for(graph: QuantizedGraph, dq: ir.Node) -> bool:
    """Whether a pair rounds what a quantised convolution made, and nobody but one reader wants it."""
    q = quantizer(dq)
    return q is not None and single_use(q.outputs[0]) and single_use(dq.outputs[0]) and _is_conv(graph, q.inputs[0])


@_rule(
    "concat", COSTLY,
    "The inputs of a Concat are all quantised with one scale, or none is.",
    "Codes can stand side by side only if they mean the same numbers. Else the product behind the Concat is float.",
    "Quantise behind the Concat instead: TensorRT moves that one Q to all of its inputs.",
)  # fmt: skip
def _concat(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in graph.nodes:
        dqs = [graph.source(value) for value in node.inputs if constant(value) is None]
        given = [dq for dq in dqs if dq is not None]
        if node.op_type != "Concat" or not given:
            continue
        if len(given) < len(dqs):
            yield node, f"{len(given)} of its {len(dqs)} inputs are quantised"
        elif not all(same_scale(given[0], dq) for dq in given):
            yield node, f"its {len(given)} inputs have different scales"


@_rule(
    "requantized", COSTLY,
    "What is dequantised is not quantised again, with another scale, before something was computed from it.",
    "The second rounding costs accuracy and, if no kernel takes it along, time. With the same scale it is left out.",
    "Let both readers share one pair.",
)  # fmt: skip
def _requantized(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for q in graph.q:
        dq = graph.source(q.inputs[0])
        if dq is not None and constant_of(dq) is None and not same_scale(q, dq):
            yield q, f"it rounds what {dq.name} gives out, with another scale"


@_rule(
    "quantized-twice", COSTLY,
    "A tensor has one pair for all of its readers.",
    "Every pair more with a scale of its own is a tensor more to write. Those with the same scale are merged.",
    "Let the readers share the pair.",
)  # fmt: skip
def _quantized_twice(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    first: dict[ir.Value, ir.Node] = {}
    for q in graph.q:
        value = q.inputs[0]
        if value is None or constant(value) is not None:
            continue
        other = first.setdefault(value, q)
        if not same_scale(q, other):
            yield q, f"{name_of(value)} is quantised by {other.name} as well, with another scale"


@_rule(
    "graph-output", COSTLY,
    "What the graph gives out has no pair of its own.",
    "A pair right before an output rounds the answer and leaves it as large as it was.",
    "Take the pair away, or end the graph at the QuantizeLinear if the caller wants codes.",
)  # fmt: skip
def _graph_output(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for dq in graph.dq:
        if quantizer(dq) is not None and any(node is None for node, _ in graph.readers(dq.outputs[0])):
            yield dq, "an output of the graph is rounded to 8 bits"


# --- what has to be so -----------------------------------------------------------------------------------------------


@_rule(
    "graph-input", EXPLAINED,
    "An input of the graph is quantised inside it, unless the caller gives codes.",
    "No kernel runs before this Q, so that none can take it along: it is one itself, or part of a reformat.",
    "Nothing, or give the engine int8: start the graph at the DequantizeLinear.",
)  # fmt: skip
def _graph_input(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for q in graph.q:
        if (value := q.inputs[0]) is not None and value.is_graph_input():
            yield q, f"it reads the graph's input {name_of(value)}"


@_rule(
    "float-island", EXPLAINED,
    "What stands between two quantised products can be computed in 8 bits or in the kernel of the first one.",
    "Depthwise convolutions that stay float, products of two activations, softmax and normalisations are kernels of "
    "their own that read and write float: the product before them writes four bytes a number, not one.",
    "Nothing for softmax and normalisations, which need the range. Run what stays float in FP16: trtkit.autocast.",
)  # fmt: skip
def _float_island(graph: QuantizedGraph) -> Iterator[tuple[ir.Node, str]]:
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant", "Shape") or graph.quantized(node):
            continue
        if node.op_type in LIGHT | _AVERAGES or hands_on(node) or not any(is_used(value) for value in node.outputs):
            continue
        before = [value for value in node.inputs if value is not None and constant(value) is None]
        if any(map(graph.follows_product, before)) and any(map(graph.precedes_q, node.outputs)):
            told = node.metadata_props.get("trtkit.quantize", "").removeprefix("float: ")
            yield node, f"this {node.op_type} runs in float between quantised products{f': {told}' if told else ''}"
