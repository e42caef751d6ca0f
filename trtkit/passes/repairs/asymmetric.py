"""QuantizeLinear and DequantizeLinear that TensorRT does not take: UINT8, zero points, scales computed on the way."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import dims
from trtkit.passes.repairs.common import Formula, Repair
from trtkit.passes.repairs.quantized_operators import less, rounded

_CODES = (ir.DataType.INT8, ir.DataType.UINT8)


class AsymmetricCodes(Repair):
    """Q and DQ as arithmetic: `clip(round(x / scale) + zero point)` and `(code - zero point) * scale`.

    *Requires* 8-bit codes with a stated zero point, an FP32 scale of one number, or one for each place along an axis
    of a tensor whose rank is known; no blocks. *Rewrite*: those operators in FP32. *Ensures*: equal to the bit.
    TensorRT then sees no quantisation there and computes in float.
    """

    title = "asymmetric codes"
    ops = frozenset({"QuantizeLinear", "DequantizeLinear"})

    def rewrite(self, node: ir.Node) -> str | None:
        x, scale, zero = [*node.inputs, None][:3]
        if x is None or scale is None or zero is None or zero.dtype not in _CODES:
            return None
        float_type, blocks = ir.DataType.FLOAT, node.attributes.get_int("block_size", 0)
        if scale.dtype != float_type or blocks or (node.op_type == "QuantizeLinear" and x.dtype != float_type):
            return None
        formula = Formula(self, node)
        along = self._along(node, x, scale)
        if along is None:
            return None
        if along:
            shape = formula.ints("shape", *along)
            scale, zero_point = formula("Reshape", scale, shape), formula("Reshape", zero, shape)
            zero_point.dtype = zero.dtype
        else:
            zero_point = zero
        if node.op_type == "QuantizeLinear":
            result = rounded(formula, formula("Div", x, scale), zero_point)
        else:
            result = formula("Mul", less(formula, x, zero_point), scale)
        return f"{node.op_type} as arithmetic" if formula.becomes(result) else None

    @staticmethod
    def _along(node: ir.Node, x: ir.Value, scale: ir.Value) -> tuple[int, ...] | None:
        """The shape that lays a vector of scales along the node's axis; () for one scale, None where it is unknown."""
        shape, own = dims(x), dims(scale)
        if own is None or len(own) > 1:
            return None
        if own in ((), (1,)):
            return ()
        if shape is None:
            return None
        axis = node.attributes.get_int("axis", 1) % len(shape)
        return tuple(-1 if place == axis else 1 for place in range(len(shape)))
