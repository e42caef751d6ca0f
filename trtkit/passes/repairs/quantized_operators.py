"""ONNX's integer operators: what onnxruntime.quantization writes in QOperator format, and dynamically."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import array, dims
from trtkit.passes.repairs.common import Formula, Repair

_FLOAT, _INT32 = ir.DataType.FLOAT, ir.DataType.INT32
_LIMITS = {ir.DataType.INT8: (-128.0, 127.0), ir.DataType.UINT8: (0.0, 255.0)}


class IntegerProducts(Repair):
    """MatMulInteger and ConvInteger multiply codes less their zero points.

    *Requires* codes of 8 bits. *Rewrite*: the codes cast to FP32, less their zero points, a MatMul or Conv, and a cast
    to INT32. *Ensures*: equal to the bit while a sum stays below 2^24, that is with up to 258 products of largest
    codes; longer sums of such size are rounded to 24 bits.
    """

    title = "integer products"
    ops = frozenset({"MatMulInteger", "ConvInteger"})

    def rewrite(self, node: ir.Node) -> str | None:
        formula = Formula(self, node)
        zero_a, zero_b = ([*node.inputs[2:], None, None])[:2]
        if node.op_type == "MatMulInteger":
            a = less(formula, node.inputs[0], zero_a, column=True)
            product = formula("MatMul", a, less(formula, node.inputs[1], zero_b))
        else:
            rank = len(dims(node.inputs[1]) or ())
            if not rank:
                return None
            a, b = less(formula, node.inputs[0], zero_a), less(formula, node.inputs[1], zero_b, rank)
            product = formula("Conv", a, b, **_attributes(node))
        done = formula.becomes(formula.cast(product, _INT32))
        return f"{node.op_type} made {node.op_type.removesuffix('Integer')}" if done else None


class QLinear(Repair):
    """QLinearMatMul and QLinearConv multiply codes, rescale and round.

    1. *Requires* all codes INT8 with zero points that are 0, constant scales (no bias, whose codes are INT32).
       *Rewrite*: DequantizeLinear of both, MatMul or Conv, QuantizeLinear: the form in which TensorRT has 8-bit
       kernels. *Ensures*: equal but for ties between two codes, which may fall to either.
    2. Else *rewrite*: the codes in FP32 less their zero points, the product, times the scales, Round, plus the zero
       point, Clip. *Ensures*: equal while the integer sums stay below 2^24. It is computed in FP32: a model with
       asymmetric codes has no 8-bit kernels in TensorRT; `trtkit.quantize` makes one that has, from the float model.
    """

    title = "QLinear operators"
    ops = frozenset({"QLinearMatMul", "QLinearConv"})

    def rewrite(self, node: ir.Node) -> str | None:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *rest = node.inputs
        shape = dims(w)
        if shape is None or y_zero is None or y_zero.dtype not in _LIMITS or not _one(x_scale) or not _one(y_scale):
            return None
        formula, bias = Formula(self, node), (rest[0] if rest else None)
        conv = node.op_type == "QLinearConv"
        if bias is None and all(_symmetric(zero) for zero in (x_zero, w_zero, y_zero)):
            w_axis = (0 if conv else len(shape) - 1) if len(dims(w_scale) or ()) else None
            a, b = formula("DequantizeLinear", x, x_scale, x_zero), _dequantized(formula, w, w_scale, w_zero, w_axis)
            product = formula("Conv", a, b, **_attributes(node)) if conv else formula("MatMul", a, b)
            done = formula.becomes(formula("QuantizeLinear", product, y_scale, y_zero))
            return f"{node.op_type} made Q/DQ" if done else None
        a, b = less(formula, x, x_zero), less(formula, w, w_zero, len(shape) if conv else 0)
        inputs = [a, b, *([] if bias is None else [formula.cast(bias, _FLOAT)])]
        product = formula("Conv", *inputs, **_attributes(node)) if conv else formula("MatMul", a, b)
        scales = formula("Mul", x_scale, w_scale)
        if conv and len(dims(w_scale) or ()):
            scales = formula("Reshape", scales, formula.ints("shape", -1, *[1] * (len(shape) - 2)))
        codes = formula("Mul", product, formula("Div", scales, y_scale))
        done = formula.becomes(rounded(formula, codes, y_zero))
        return f"{node.op_type} by FP32 codes" if done else None


def less(
    formula: Formula, codes: ir.Value | None, zero: ir.Value | None, rank: int = 0, column: bool = False
) -> ir.Value:
    """Codes less their zero point, in FP32; a vector of zero points is one for each output channel of a Conv weight of
    that rank, for each row (`column`), or for each column."""
    numbers = formula.cast(codes, _FLOAT)
    if zero is None:
        return numbers
    point = formula.cast(zero, _FLOAT)
    if len(dims(zero) or ()) == 1 and (rank or column):
        point = formula("Reshape", point, formula.ints("shape", -1, *[1] * ((rank or 2) - 1)))
    return formula("Sub", numbers, point)


def rounded(formula: Formula, scaled: ir.Value, zero: ir.Value) -> ir.Value:
    """What QuantizeLinear does after the division: round half to even, add the zero point, saturate."""
    assert zero.dtype is not None
    low, high = _LIMITS[zero.dtype]
    moved = formula("Add", formula("Round", scaled), formula.cast(zero, _FLOAT))
    limits = [formula.weight(name, np.array(bound, np.float32)) for name, bound in (("low", low), ("high", high))]
    kept = formula("Clip", moved, *limits)
    return formula.cast(kept, zero.dtype)


def _dequantized(
    formula: Formula, codes: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None, axis: int | None
) -> ir.Value:
    return formula("DequantizeLinear", codes, scale, zero, **({} if axis is None else {"axis": axis}))


def _symmetric(zero: ir.Value | None) -> bool:
    data = array(zero)
    return data is not None and data.dtype == np.int8 and not data.any()


def _one(scale: ir.Value | None) -> bool:
    shape = dims(scale)
    return shape is not None and shape in ((), (1,))


def _attributes(node: ir.Node) -> dict[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items()}
