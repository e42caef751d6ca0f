"""Write attention in one form, however an exporter wrote it: its `eager` and `sdpa` exports become the same graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, remove, replace, single_use
from trtkit.passes.match import made_by, put, with_scalar
from trtkit.passes.noop_shape import same_elements


class CanonicalAttention(Rewrite):
    """Attention (Vaswani et al. 2017, eq. 1) as `MatMul(Softmax(MatMul(Q, K^T) * scale + mask), V)`, and only so.

    PyTorch's scaled_dot_product_attention is exported as the root of the scale on Q and on K, K^T by way of a
    three-dimensional Transpose, and a guard that turns NaN into 0 behind the softmax.

    1. `MatMul(Q * r, K * s)` is `MatMul(Q, K) * (r s)` where its only reader leads to a Softmax at once or through Add.
       *Requires* numbers r and s; both products read by the MatMul alone, in the same graph.
    2. `Reshape(Transpose(Reshape(K, (-1, T, d)), (0, 2, 1)), (B, H, d, T))` is `Transpose(K, (0, 1, 3, 2))`.
       *Requires* K of shape (B, H, T, d) and a result of shape (B, H, d, T), T and d numbers, B and H
       numbers or names; one size of the result may be unknown if all others are numbers.
    3. `Where(IsNaN(p), 0, p)` is p for p = Softmax(s) or Softmax(s + mask), s a MatMul, or that times a number.
       *Requires* a mask, if any, of which every row (last axis) is known to have a number above minus infinity, and no
       NaN: constants, seen through Expand and Where. So no row is wholly masked; that leaves NaN or infinity that Q
       or K bring along, which the guard would hide and the result shows.
    4. `s + mask` behind which a Softmax stands is s. *Requires* a mask that is known to be 0 and as large as s at most.

    *Ensures*: equal up to rounding for finite scores; names of outputs stay.

    Not in the default level, because it can cost kernels. Level 3 against level 2, TensorRT-RTX 1.7.1, batch 1:
    ViT-B/16 has 101 kernels instead of 125 in FP16, but 197 instead of 185 in FP32; BERT-base and a Whisper-like
    encoder have as many as before in both.
    """

    title = "one form of attention"
    ops = frozenset({"MatMul", "Where", "Add", "Reshape"})

    def rewrite(self, node: ir.Node) -> str | None:
        rules = {"MatMul": self._scale, "Where": _guard, "Add": _zero_mask, "Reshape": self._transposed}
        return rules[node.op_type](node)

    def _scale(self, node: ir.Node) -> str | None:
        q, k = (made_by(value, "Mul") for value in node.inputs)
        of_q, of_k = with_scalar(q), with_scalar(k)
        if q is None or k is None or of_q is None or of_k is None or not _leads_to_softmax(node):
            return None
        if not all(single_use(each.outputs[0]) and each.graph is node.graph for each in (q, k)):
            return None
        (left, r), (right, s) = of_q, of_k
        if left.dtype is None or not np.isfinite(np.asarray(r * s, left.dtype.numpy()).astype(np.float64)):
            return None
        self._scaled_product(node, left, right, np.asarray(r * s, left.dtype.numpy()))
        remove((q, k))
        return "scales joined"

    def _scaled_product(self, node: ir.Node, left: ir.Value, right: ir.Value, number: np.ndarray) -> None:
        assert node.graph is not None
        label = node.name or node.outputs[0].name
        product = ir.Node("", "MatMul", [left, right], num_outputs=1, name=self.names.fresh(f"{label}_unscaled"))
        out = product.outputs[0]
        out.name, out.type = self.names.fresh(f"{node.outputs[0].name}_unscaled"), node.outputs[0].type
        out.shape = node.outputs[0].shape
        node.graph.insert_before(node, product)
        name = self.names.fresh(f"{label}_scale")
        scale = ir.Value(name=name, shape=ir.Shape(()), type=out.type, const_value=ir.Tensor(number, name=name))
        node.graph.register_initializer(scale)
        put(node, ir.Node("", "Mul", [out, scale], num_outputs=1, name=self.names.fresh(f"{label}_scaled")))

    def _transposed(self, node: ir.Node) -> str | None:
        turn = made_by(node.inputs[0], "Transpose")
        flat = made_by(turn.inputs[0], "Reshape") if turn is not None else None
        if turn is None or flat is None or list(turn.attributes.get_ints("perm", ())) != [0, 2, 1]:
            return None
        k, three, result = dims(flat.inputs[0]), dims(flat.outputs[0]), dims(node.outputs[0])
        if k is None or result is None or three is None or len(k) != 4 or None in k or len(three) != 3:
            return None
        if not all(isinstance(d, int) for d in k[2:]) or three[1:] != k[2:]:
            return None
        if not same_elements(result, (*k[:2], k[3], k[2])):
            return None
        perm = [ir.AttrInt64s("perm", [0, 1, 3, 2])]
        name = self.names.fresh(f"{node.name or node.outputs[0].name}_transpose")
        put(node, ir.Node("", "Transpose", [flat.inputs[0]], perm, num_outputs=1, name=name))
        return "K transposed at once"


def _leads_to_softmax(node: ir.Node) -> bool:
    """Whether the only reader is a Softmax, or an Add or Mul whose only reader is one; one Add and one Mul at most."""
    for _ in range(3):
        if not single_use(node.outputs[0]):
            return False
        node = next(iter(node.outputs[0].uses())).node
        if node.op_type == "Softmax":
            return True
        if node.op_type not in ("Add", "Mul"):
            return False
    return False


def _guard(node: ir.Node) -> str | None:
    test, zero, p = made_by(node.inputs[0], "IsNaN"), array(node.inputs[1]), node.inputs[2]
    softmax = made_by(p, "Softmax")
    if test is None or softmax is None or p is None or test.inputs[0] is not p or zero is None or zero.any():
        return None
    if zero.size != 1 or zero.ndim > len(dims(p) or ()) or not _rows_have_numbers(softmax):
        return None
    if not replace(node.outputs[0], p):
        return None
    remove(node)
    return "NaN guard removed"


def _rows_have_numbers(softmax: ir.Node) -> bool:
    """Whether no row that a Softmax over the last axis is given can be minus infinity throughout."""
    shape = dims(softmax.inputs[0])
    last = len(shape) - 1 if shape is not None else -1
    if softmax.attributes.get_int("axis", -1) not in (-1, last):
        return False
    add = made_by(softmax.inputs[0], "Add")
    if add is None:
        return _is_product(softmax.inputs[0])
    return any(_is_product(add.inputs[1 - i]) and _some_open(spread(add.inputs[i])) for i in (0, 1))


def _is_product(value: ir.Value | None) -> bool:
    scaled = with_scalar(made_by(value, "Mul"))
    return made_by(scaled[0] if scaled else value, "MatMul") is not None


def _some_open(mask: np.ndarray | None) -> bool:
    if mask is None or mask.ndim == 0 or not mask.size:
        return mask is not None and bool(np.isfinite(mask).all() and mask.size)
    return not np.isnan(mask).any() and not (mask == np.inf).any() and bool((mask > -np.inf).any(axis=-1).all())


def _zero_mask(node: ir.Node) -> str | None:
    if not single_use(node.outputs[0]) or next(iter(node.outputs[0].uses())).node.op_type != "Softmax":
        return None
    for place in (1, 0):
        scores, mask = node.inputs[1 - place], node.inputs[place]
        data = spread(mask)
        if data is None or scores is None or not data.size or data.any() or not _broadcasts_into(mask, scores):
            continue
        if replace(node.outputs[0], scores):
            remove(node)
            return "mask of zeros removed"
    return None


def _broadcasts_into(small: ir.Value | None, large: ir.Value) -> bool:
    a, b = dims(small), dims(large)
    if a is None or b is None or len(a) > len(b):
        return False
    return all(d == 1 or (d is not None and d == e) for d, e in zip(reversed(a), reversed(b), strict=False))


def spread(value: ir.Value | None) -> np.ndarray | None:
    """An array that broadcasts to the value: a constant, seen through Expand and through Where; None if unknown."""
    if (data := array(value)) is not None:
        return data
    if node := made_by(value, "Expand"):
        return spread(node.inputs[0])
    node = made_by(value, "Where")
    parts = [spread(each) for each in node.inputs] if node is not None else [None]
    if any(part is None for part in parts):
        return None
    condition, yes, no = (part for part in parts if part is not None)
    return np.where(condition, yes, no)
