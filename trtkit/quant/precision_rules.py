"""The rules by which `autocast` decides which nodes stay in float32; each has a name that its decisions carry.

Sources: Micikevicius et al. 2018 (Mixed Precision Training) for what needs float32; ONNX operator schemas for what may
be typed low at all; and engines built with TensorRT for what it fuses or refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from trtkit.graph.shapes import has_body
from trtkit.passes.common import Dims, array, constant, dims

FLOAT = ir.DataType.FLOAT
LOW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
STANDS_FOR_INFINITY = 1e30  # no trained weight is this large; masks write "minus infinity" as -3.4e38
WEIGHT_ERROR_LIMIT = 1e-2  # relative; rounding alone gives 3e-4 (FP16) and 2e-3 (BF16)
REDUCTION_LIMIT = 4096  # elements summed into one; a 64 x 64 feature map
_SURELY_FINE = 2.0**-17  # root mean square above which FP16's smallest step, 2^-24, is less than 1 % of it
_CODES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)
HEADROOM = 0.5  # data seen in calibration may be exceeded twofold

# Results span more powers of two than FP16 has, whatever the input.
_WIDE_RANGE = {"Exp", "Pow", "Log", "Reciprocal", "CumSum", "ReduceSumSquare", "ReduceL2", "ReduceLogSum", "ReduceProd",
               "ReduceLogSumExp", "LpNormalization", "LRN", "MeanVarianceNormalization"}
_REDUCTIONS = {"ReduceSum", "ReduceMean", "ReduceL1", "GlobalAveragePool", "GlobalLpPool"}
_TYPE_IN_ATTRIBUTE = {"ConstantOfShape", "EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform",
                      "RandomUniformLike", "Bernoulli", "Multinomial", "Constant"}
_NO_BF16_KERNEL = {"HardSwish", "ConvTranspose", "GRU"}  # seen: TensorRT-RTX builds none of these in BF16


class Decision(NamedTuple):
    """Why a node is computed in a precision; `rule` is the name of the rule that decided."""

    node: str
    op_type: str
    precision: str
    rule: str
    reason: str


@dataclass(frozen=True)
class Setting:
    """What the rules need to know besides the node."""

    precision: str
    opset: int
    keep_fp32: Collection[str] = ()
    amax: Mapping[str, float] = field(default_factory=dict)  # tensor name -> largest |value| seen in the data

    @property
    def low(self) -> ir.DataType:
        return LOW[self.precision]

    @property
    def largest(self) -> float:
        return 65504.0 if self.precision == "fp16" else 3.3895313892515355e38


def user(node: ir.Node, setting: Setting) -> str | None:
    """The caller named this node, or its operator, in `keep_fp32`; `*` stands for anything."""
    hit = next((p for p in setting.keep_fp32 if fnmatchcase(node.name or "", p) or p == node.op_type), None)
    return f"keep_fp32 names {hit!r}" if hit else None


def type_system(node: ir.Node, setting: Setting) -> str | None:
    """ONNX does not let this operator work in the low type, or its type is not ours to choose."""
    if has_body(node) or node.domain != "":
        return "has a body, or is no standard operator"
    if node.op_type in _TYPE_IN_ATTRIBUTE:
        return "its output type is an attribute"
    allowed = [may_be_low(node, i, inputs=True, setting=setting) for i in _floats(node.inputs)]
    allowed += [may_be_low(node, i, inputs=False, setting=setting) for i in _floats(node.outputs)]
    return None if any(allowed) or not allowed else f"ONNX has no {setting.precision} {node.op_type}"


def no_kernel(node: ir.Node, setting: Setting) -> str | None:
    """TensorRT has no kernel for this operator in the low type."""
    if setting.precision == "bf16" and node.op_type in _NO_BF16_KERNEL:
        return f"TensorRT has no BF16 kernel for {node.op_type}"
    return None


def sum_of_codes(node: ir.Node, setting: Setting) -> str | None:
    """A scale of 8-bit codes: TensorRT multiplies codes, writes the sum in the scale's type, and scales it after that.

    Five products of INT8 codes, or one of FP8's, can pass FP16's end. With scales in FP16, matrix products gave out
    infinities (TensorRT-RTX 1.6 on an H100); engines of 1.7 write such sums, too. Weights in blocks are decoded before.
    """
    pairs = ("QuantizeLinear", "DequantizeLinear")
    if setting.precision != "fp16" or node.op_type not in pairs or "block_size" in node.attributes:
        return None
    codes = [*node.inputs[:1], *node.inputs[2:], *node.outputs]
    if any(value is not None and value_type(value) in _CODES for value in codes):
        return "sums of products of codes, not yet scaled, overflow FP16"
    return None


def index_arithmetic(node: ir.Node, setting: Setting) -> str | None:
    """Numbers on their way to become integers: FP16 counts only to 2048 without gaps, BF16 to 256."""
    target = node.attributes.get_int("to", 0) if node.op_type == "Cast" else 0
    to_integer = target != 0 and ir.DataType(target).is_integer()
    return "becomes an index or a count" if to_integer and node.inputs[0] and node.inputs[0].dtype == FLOAT else None


def wide_range(node: ir.Node, setting: Setting) -> str | None:
    """The operator spreads values over more powers of two than FP16 holds (BF16 has float32's range)."""
    if setting.precision == "fp16" and node.op_type in _WIDE_RANGE:
        return f"{node.op_type} over- or underflows FP16 easily"
    return None


def long_reduction(node: ir.Node, setting: Setting) -> str | None:
    """A sum over many elements loses the small ones, and may overflow."""
    if node.op_type not in _REDUCTIONS:
        return None
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None or _unknown(before) > _unknown(after):
        return "sums an unknown number of elements"
    count = _product(before) / max(_product(after), 1)
    return f"sums {count:.0f} elements, more than {REDUCTION_LIMIT}" if count > REDUCTION_LIMIT else None


def weights(node: ir.Node, setting: Setting) -> str | None:
    """A constant input does not survive the conversion: it overflows, or vanishes into zero."""
    for position in _floats(node.inputs):
        value = node.inputs[position]
        data = array(value)
        if data is None or value is None or not data.size:
            continue
        if may_be_low(node, position, inputs=True, setting=setting) and (loss := _loss(data.ravel(), setting)):
            return f"constant {value.name!r} {loss}"
    return None


def _loss(data: np.ndarray, setting: Setting) -> str | None:
    """What a constant (1-D float32) would lose, or None if no more than rounding."""
    largest = max(float(data.max()), -float(data.min()))
    if not largest < STANDS_FOR_INFINITY:  # written so that NaN goes this way, too
        data = data[np.isfinite(data) & (np.abs(data) < STANDS_FOR_INFINITY)]
        largest = float(np.abs(data).max(initial=0))
    if largest > setting.largest:
        return f"reaches {largest:.3g}, {setting.precision} ends at {setting.largest:.5g}"
    norm = float(np.sqrt(np.dot(data, data)))
    if norm > _SURELY_FINE * np.sqrt(data.size):
        return None
    error = float(np.linalg.norm(data - data.astype(setting.low.numpy()).astype(data.dtype)))
    norm = float(np.linalg.norm(data.astype(np.float64)))
    return f"(up to {largest:.3g}) would be off by {error / norm:.0%}" if error > WEIGHT_ERROR_LIMIT * norm else None


def activation_range(node: ir.Node, setting: Setting) -> str | None:
    """On the given data a tensor of this node comes close to the end of the low type's range."""
    for value in (*node.inputs, *node.outputs):
        seen = setting.amax.get(value.name or "", 0.0) if value is not None else 0.0
        if seen > HEADROOM * setting.largest:
            assert value is not None
            return f"{value.name!r} reaches {seen:.3g} on the data, {setting.precision} ends at {setting.largest:.5g}"
    return None


Rule = Callable[[ir.Node, Setting], str | None]
RULES: tuple[Rule, ...] = (
    user, type_system, no_kernel, sum_of_codes, index_arithmetic, wide_range, long_reduction, weights, activation_range,
)


def decide(node: ir.Node, setting: Setting) -> Decision:
    """The first rule that speaks decides; without one the node goes low."""
    for rule in RULES:
        if reason := rule(node, setting):
            return Decision(node.name or "", node.op_type, "fp32", rule.__name__, reason)
    return Decision(node.name or "", node.op_type, setting.precision, "default", "nothing speaks against it")


def may_be_low(node: ir.Node, position: int, *, inputs: bool, setting: Setting) -> bool:
    """Whether ONNX's schema allows the low type for an input or output of a node.

    Operators whose schema lists float16 are taken to allow bfloat16 too: ONNX added it to most of them as late as
    opset 22, TensorRT accepts it at any opset.
    """
    schema = onnx.defs.get_schema(node.op_type, setting.opset, node.domain)
    formal = schema.inputs if inputs else schema.outputs
    if not formal:
        return False
    return "tensor(float16)" in formal[min(position, len(formal) - 1)].types


def _floats(values: Sequence[ir.Value | None]) -> list[int]:
    return [i for i, value in enumerate(values) if value is not None and value_type(value) == FLOAT]


def value_type(value: ir.Value) -> ir.DataType | None:
    tensor = constant(value) if value.dtype is None else None
    return tensor.dtype if tensor is not None else value.dtype


def _unknown(shape: Dims) -> int:
    """How many dimensions have no number; fewer behind a reduction than before: it goes over one of them."""
    return sum(not isinstance(d, int) for d in shape)


def _product(shape: Dims) -> float:
    """Elements without the symbolic dimensions, which are the same before and behind the reduction."""
    return float(np.prod([d for d in shape if isinstance(d, int)], dtype=np.float64))
