"""Recognise layer normalisation and RMS normalisation in what exporters write for them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, initializer, is_used, single_use
from trtkit.passes.match import Product, made_by, private, put, with_scalar


class FuseNormalization(Rewrite):
    """Layer normalisation (Ba et al. 2016) and RMS normalisation (Zhang & Sennrich 2019) are operators of ONNX.

    1. With d = x - mean(x), `d / sqrt(mean(d^2) + epsilon)` is `LayerNormalization`, from opset 17 on.
    2. `x / sqrt(mean(x^2) + epsilon)` is `RMSNormalization`, from opset 23 on.

    *Requires* ReduceMean over the last axes, the same in both means, keeping dimensions, of a float tensor whose
    sizes along them are known; the square as Pow or Mul; the root as Sqrt or Pow 0.5; the quotient as Div, or as Mul by
    Reciprocal, by 1 / root or by Pow -0.5; epsilon one positive number; no intermediate value read elsewhere. Casts
    around it stay, so that the operator runs in the type in which the formula did.
    *Rewrite*: the operator in the place of the quotient. A product with a constant weight shaped like the normalised
    axes behind it becomes its scale, a sum with such a constant its bias (LayerNormalization only); without one, the
    scale is ones. *Ensures*: equal up to rounding; names of outputs stay.
    """

    title = "fuse normalisation"
    ops = frozenset({"Div", "Mul"})

    def rewrite(self, node: ir.Node) -> str | None:
        quotient = _quotient(node) if self.opset >= 17 else None
        if quotient is None:
            return None
        d, epsilon, mean, inner = quotient
        x, before = d, made_by(d, "Sub")
        average = made_by(before.inputs[1], "ReduceMean") if before is not None else None
        if before is not None and average is not None and average.inputs[0] is before.inputs[0]:
            assert before.inputs[0] is not None
            x, inner = before.inputs[0], [*inner, before, average]
        elif self.opset < 23:
            return None
        op = "RMSNormalization" if x is d else "LayerNormalization"
        axis, shape = _last_axes(mean, x, self.opset), dims(x)
        if axis is None or shape is None or x.dtype is None or not private(inner, node):
            return None
        if x is not d and (average is None or _last_axes(average, x, self.opset) != axis):
            return None
        sizes = [d for d in shape[axis:] if isinstance(d, int)]
        return self._put(node, op, x, axis - len(shape), epsilon, sizes) if len(sizes) == len(shape) - axis else None

    def _put(self, last: ir.Node, op: str, x: ir.Value, axis: int, epsilon: float, sizes: list[int]) -> str:
        assert last.graph is not None and x.dtype is not None
        scale = bias = None
        if after := _constant_after(last, "Mul", x, sizes):
            last, scale = after
            if op == "LayerNormalization" and (after := _constant_after(last, "Add", x, sizes)):
                last, bias = after
        assert last.graph is not None
        if scale is None:
            ones = np.ones(sizes, x.dtype.numpy())
            scale = initializer(last.graph, self.names.fresh(f"{last.outputs[0].name}_ones"), ones, x.dtype)
        attributes = [ir.AttrInt64("axis", axis), ir.AttrFloat32("epsilon", epsilon)]
        inputs = [x, scale, *([] if bias is None else [bias])]
        name = self.names.fresh(f"{last.name or last.outputs[0].name}_norm")
        put(last, ir.Node("", op, inputs, attributes, num_outputs=1, name=name))
        return op


def _quotient(node: ir.Node) -> tuple[ir.Value, float, ir.Node, list[ir.Node]] | None:
    """d, epsilon, the mean of d^2, and all nodes within, if the node is d / sqrt(mean(d^2) + epsilon)."""
    for place in (1, 0) if node.op_type == "Mul" else (1,):
        d, below = node.inputs[1 - place], node.inputs[place]
        root, nodes = _root(below, inverse=node.op_type == "Mul")
        add = made_by(root, "Add")
        pair = with_scalar(add)
        mean = made_by(pair[0], "ReduceMean") if pair and pair[1] > 0 else None
        if d is None or add is None or pair is None or mean is None:
            continue
        square = Product(mean.inputs[0])
        if square.number == 1 and square.is_power(d, 2):
            return d, pair[1], mean, [*nodes, add, mean, *square.nodes]
    return None


def _root(value: ir.Value | None, *, inverse: bool) -> tuple[ir.Value | None, list[ir.Node]]:
    """What the square root (or with `inverse`, one over it) is taken of, and by which nodes."""
    if inverse and (power := made_by(value, "Pow")):
        pair = with_scalar(power)
        return (power.inputs[0], [power]) if pair and power.inputs[0] is pair[0] and pair[1] == -0.5 else (None, [])
    nodes = []
    if inverse:
        over = made_by(value, "Reciprocal", "Div")
        pair = with_scalar(over) if over is not None and over.op_type == "Div" else None
        if over is None or (over.op_type == "Div" and not (pair and pair[1] == 1 and over.inputs[1] is pair[0])):
            return None, []
        value, nodes = over.inputs[-1], [over]
    root = made_by(value, "Sqrt", "Pow")
    pair = with_scalar(root) if root is not None and root.op_type == "Pow" else None
    if root is None or (root.op_type == "Pow" and not (pair and pair[1] == 0.5 and root.inputs[0] is pair[0])):
        return None, []
    return root.inputs[0], [*nodes, root]


def _last_axes(mean: ir.Node, x: ir.Value, opset: int) -> int | None:
    """The first of the axes that a ReduceMean goes over if these are the last ones of x, else None."""
    shape = dims(x)
    if shape is None or not shape or mean.attributes.get_int("keepdims", 1) != 1:
        return None
    given = array(mean.inputs[1]) if len(mean.inputs) > 1 else None
    listed = given.tolist() if opset >= 18 and given is not None else mean.attributes.get_ints("axes", None)
    if listed is None:
        return None
    axes = sorted({axis % len(shape) for axis in listed})
    return axes[0] if axes == list(range(axes[0], len(shape))) else None


def _constant_after(node: ir.Node, op: str, x: ir.Value, sizes: list[int]) -> tuple[ir.Node, ir.Value] | None:
    """The only reader of a node and its constant operand, if it is this operator and the constant fits."""
    result = node.outputs[0]
    reader = next(iter(result.uses())).node if is_used(result) and single_use(result) else None
    if reader is None or reader.domain != "" or reader.op_type != op or reader.graph is not node.graph:
        return None
    other = reader.inputs[1] if reader.inputs[0] is result else reader.inputs[0]
    data = array(other)
    fits = data is not None and list(data.shape) == sizes and x.dtype is not None and data.dtype == x.dtype.numpy()
    return (reader, other) if fits and other is not None else None
