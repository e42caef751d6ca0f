"""Cut the two matrix products of a transformer's MLP into slices that do not need each other until the last sum."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, initializer, remove, replace, single_use
from trtkit.passes.match import added_constant

PARTS = 4
_POINTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "Pow", "Sqrt", "Exp", "Neg", "Clip",
    "HardSwish", "Swish", "Softplus", "Mish", "Elu", "LeakyRelu",
})  # fmt: skip
_WIDE = 2048  # the sum of the second product that is worth cutting; measured on BERT-base (3072), batch 1, on an H100


class SliceMlp(Rewrite):
    """`MatMul(act(MatMul(x, W1) + b1), W2)` is a sum over slices of the wide middle.

    The middle's columns do not mix: with W1 cut into columns and W2 into the same rows,

        act(x W1 + b1) W2 = sum over g of act(x W1[:, g] + b1[g]) W2[g, :]

    Tensor parallelism (Shoeybi et al. 2019, Megatron-LM, section 3) gives each slice a GPU of its own; here all run
    side by side on one, as a batched product. The second product, a sum of thousands of terms for few rows, is what
    gains: its sum is cut (split-K, as in `split_reduction`), and the slices are added up by the kernel behind it.

    1. *Requires* x of shape (1, T, D), the 1 a number (see `fix_shapes`); constant W1 of shape (D, F) and W2 (F, D2)
       with F of at least 2048 that divides by the number of slices; between them an Add of a constant (F,) and
       pointwise operators with scalar constants, whose results nobody else reads; opset 13 or later.
    2. *Rewrite*: W1 becomes (PARTS, D, F / PARTS), W2 (PARTS, F / PARTS, D2); ReduceSum over the slices, which stand
       where the batch of 1 stood, in the place of the second product.
    3. *Ensures*: equal up to the order of summation.

    A graph for any batch would need a dimension more, and there it does not pay: TensorRT-RTX 1.6.1 fuses GELU into a
    product of three dimensions and not into one of four (BERT-base, FP16, batch 1, on an H100: 0.48 ms against 0.44).
    """

    title = "slice MLP"
    ops = frozenset({"MatMul"})

    def rewrite(self, node: ir.Node) -> str | None:
        first = node
        weight, shape = array(first.inputs[1]), dims(first.inputs[0])
        if weight is None or weight.ndim != 2 or shape is None or len(shape) != 3 or shape[0] != 1 or self.opset < 13:
            return None
        if weight.shape[1] < _WIDE or weight.shape[1] % PARTS or not single_use(first.outputs[0]):
            return None
        (use,) = first.outputs[0].uses()
        add = use.node
        place, data = added_constant(add if add.op_type == "Add" and add.domain == "" else None)
        bias = place if data.shape == weight.shape[1:] else None
        region, second = _pointwise_region(add) if bias is not None else ([], None)
        second_weight = array(second.inputs[1]) if second is not None else None
        if second is None or second_weight is None or second_weight.ndim != 2:
            return None
        return self._slice(first, add, bias, region, second, weight, second_weight)

    def _slice(self, first: ir.Node, add: ir.Node, bias: int | None, region: list[ir.Node], second: ir.Node,
               w1: np.ndarray, w2: np.ndarray) -> str | None:  # fmt: skip
        graph, old, names = first.graph, second.outputs[0], self.names
        assert graph is not None and bias is not None
        depth, width = w1.shape[0], w1.shape[1] // PARTS

        def constant(node: ir.Node, what: str, data: np.ndarray) -> ir.Value:
            return initializer(graph, names.fresh(f"{node.name}.{what}"), data)

        product = ir.node("MatMul", [second.inputs[0], constant(second, "slices", w2.reshape(PARTS, width, -1))],
                          name=names.fresh(f"{second.name}.sliced"))  # fmt: skip
        total = ir.node("ReduceSum", [product.outputs[0], constant(second, "axis", np.array([0], np.int64))],
                        {"keepdims": 1}, name=names.fresh(f"{second.name}.sum"))  # fmt: skip
        for node in (product, total):
            node.outputs[0].name, node.outputs[0].type = names.fresh(f"{node.name}.out"), old.type
        graph.insert_before(second, [product, total])
        total.outputs[0].shape = old.shape
        if not replace(old, total.outputs[0]):
            graph.remove([total, product], safe=True)
            return None
        remove(second)
        slices = np.ascontiguousarray(w1.reshape(depth, PARTS, width).swapaxes(0, 1))
        first.replace_input_with(1, constant(first, "slices", slices))
        shift = array(add.inputs[bias])
        assert shift is not None
        add.replace_input_with(bias, constant(add, "slices", shift.reshape(PARTS, 1, width)))
        for node in (first, *region):
            node.outputs[0].shape = None  # PARTS in front now; inference knows how the rest goes on
        return f"MLP into {PARTS} slices"


def _pointwise_region(start: ir.Node) -> tuple[list[ir.Node], ir.Node | None]:
    """The pointwise nodes from `start` on that lead to one MatMul alone, and that MatMul; else ([], None)."""
    region, second, waiting = [start], None, [start]
    while waiting:
        value = waiting.pop().outputs[0]
        if value.is_graph_output():
            return [], None
        for node, position in value.uses():
            if node.op_type == "MatMul" and node.domain == "" and position == 0 and second in (None, node):
                second = node
            elif node.op_type in _POINTWISE and node.domain == "" and node.graph is start.graph:
                if node not in region:
                    region.append(node)
                    waiting.append(node)
            else:
                return [], None
    inside = {node.outputs[0] for node in region}
    others = [value for node in region[1:] for value in node.inputs if value is not None and value not in inside]
    if second is None or second.graph is not start.graph or any(_size(value) != 1 for value in others):
        return [], None
    return region, second


def _size(value: ir.Value | None) -> int:
    data = array(value)
    return -1 if data is None else data.size
