"""Make one Gemm of a matrix product and the bias behind it."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, remove, replace, single_use
from trtkit.passes.linear import is_float


class FuseMatMulBias(Rewrite):
    """`MatMul(x, W) + b` with matrices x and W is `Gemm(x, W, b)`.

    1. *Requires* x of rank 2 and a constant matrix W (K, N); the product in the same graph, read by the Add alone and
       no graph output; b constant of N elements or 1, shaped (N), (1, N), (1), (1, 1) or (), of the type of W; opset
       11 or later, where Gemm takes b of any such shape. For x of rank 3 or more ONNX has no operator.
    2. A MatMul of that kind whose only reader is a BatchNormalization becomes a Gemm without b, which the folding
       of batch normalisation takes further.

    *Rewrite*: Gemm in the place of the MatMul. *Ensures*: equal up to the order of summation; names of outputs stay.
    """

    title = "fuse MatMul and bias"
    ops = frozenset({"MatMul"})

    def rewrite(self, node: ir.Node) -> str | None:
        weight, shape = array(node.inputs[1]), dims(node.inputs[0])
        if weight is None or weight.ndim != 2 or not is_float(weight) or shape is None or len(shape) != 2:
            return None
        if self.opset < 11:
            return None
        after = next(iter(node.outputs[0].uses())).node if single_use(node.outputs[0]) else None
        if after is None or after.graph is not node.graph or after.domain != "":
            return None
        if after.op_type == "BatchNormalization" and after.inputs[0] is node.outputs[0]:
            self._make_gemm(node, None, after)
            return "MatMul to Gemm"
        if after.op_type != "Add":
            return None
        bias = after.inputs[1] if after.inputs[0] is node.outputs[0] else after.inputs[0]
        data, allowed = array(bias), {(), (1,), (1, 1), weight.shape[1:], (1, *weight.shape[1:])}
        if data is None or data.shape not in allowed or data.dtype != weight.dtype:
            return None
        gemm = self._make_gemm(node, bias, after)
        replace(after.outputs[0], gemm.outputs[0])  # never refused: the Gemm is in this graph, and no output of it
        remove(after)
        return "MatMul and Add to Gemm"

    def _make_gemm(self, node: ir.Node, bias: ir.Value | None, before: ir.Node) -> ir.Node:
        inputs = [*node.inputs, *([] if bias is None else [bias])]
        gemm = ir.Node("", "Gemm", inputs, num_outputs=1, name=self.names.fresh(f"{node.name or 'MatMul'}_gemm"))
        old, new = node.outputs[0], gemm.outputs[0]
        new.name, new.type, new.shape = self.names.fresh(f"{old.name}_gemm"), old.type, old.shape
        assert node.graph is not None
        node.graph.insert_before(before, gemm)
        old.replace_all_uses_with(new)
        remove(node)
        return gemm
