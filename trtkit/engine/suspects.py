"""Operators that TensorRT's parser takes and its builder then refuses.

Found by building all 1,876 models of ONNX 1.23.2's node tests with TensorRT-RTX 1.7.1.116, each alone, as it is and
with all inputs but the first as weights (`python3 -m benchmarks.refused_operators`). In none of them was
`supports_model_v2` of another opinion than parsing; in 114 the builder was, for want of a profile or by these. A node
of such an operator is built alone before anybody relies on it; what is said of it comes from the TensorRT at hand.
"""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import constant

# operator -> when, and the heart of what the builder said; NonZero is refused so by 1.6.1.120, by the parser of 1.7.1.
SUSPECTS = {
    "NonMaxSuppression": ("always", "has no runners that implement it"),
    "NonZero": ("always", "has no runners that implement it"),
    "Attention": ("with most masks, caches and types", "decompose_composite_ops.cpp:59: CHECK(composite_op->is_decom"),
    "ConvTranspose": ("with strides and dilations", "Strided & Dilated Deconv are currently not supported"),
    "QuantizeLinear": ("zero point not constant", "has `zero_point` which is not an initializer"),
    "Cast": ("from or to FP8, FP4, INT4", "but is not"),
    "CastLike": ("from or to FP8, FP4, INT4", "but is not"),
}
_NARROW = {ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1, ir.DataType.INT4, ir.DataType.UINT4}


def is_suspect(node: ir.Node) -> bool:
    """Whether the builder might refuse the node though the parser does not, by what was seen.

    >>> node = ir.Node("", "NonMaxSuppression", [ir.val("boxes"), ir.val("scores")])
    >>> is_suspect(node), is_suspect(ir.Node("", "Relu", [ir.val("x")]))
    (True, False)
    """
    if node.domain != "" or node.op_type not in SUSPECTS:
        return False
    if node.op_type == "QuantizeLinear":
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        return zero is not None and constant(zero) is None
    if node.op_type == "ConvTranspose":
        steps, gaps = (node.attributes.get_ints(name, [1]) or [1] for name in ("strides", "dilations"))
        return max(steps) > 1 and max(gaps) > 1
    if node.op_type in ("Cast", "CastLike"):
        return any(value is not None and value.dtype in _NARROW for value in (*node.inputs, *node.outputs))
    return True
