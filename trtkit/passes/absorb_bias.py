"""A LayerNormalization always knows a constant: the biases of the products behind it can live in their weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, initializer, remove, replace, single_use
from trtkit.passes.match import added_constant, made_by

# The weights grow by 1 / scale: a channel that the normalisation all but switches off would get huge ones.
_SMALLEST_SCALE = 1 / 16


class _Reader(NamedTuple):
    """A node that reads the normalised tensor x, and the Add of a constant with which it can be told of a shift of x.

    A product `x @ weight + bias` has no such Add where it has no bias; a residual sum `x + (y + bias)` must have one.
    """

    node: ir.Node
    add: ir.Node | None
    weight: np.ndarray | None  # None: a residual sum


class AbsorbBias(Rewrite):
    """The biases of several products of one LayerNormalization's result, put into their weights.

    LayerNormalization gives x = scale * z + shift, where the n numbers z of a token have mean 0. So for every token
    `sum(x / scale) = sum(shift / scale)`: x carries a constant, and a product can have weights that find it,

        x W + b = x (W + (1 / scale) u^T),    u = b / sum(shift / scale).

    The sum may be 0 (it is in a network that was never trained), so shift becomes shift + a * scale first, with a = 1
    or -1: then it is at least n. Who reads x gets more by a * scale, which his weights or his bias take back.

    Why: TensorRT makes one product of sibling products and lets attention read its thirds where they lie, but not when
    something is added to them; then kernels add and turn. BERT-base in FP16 on an H100 (TensorRT-RTX 1.6.1): 87 kernels
    instead of 122, at batch 128 7.8 ms instead of 8.3. Not for a graph that will be quantised: where the mean is not 0,
    the same codes are further apart.

    1. *Requires* LayerNormalization over the last axis with a constant scale, no |scale| below 1/16 of the largest;
       its result read only by MatMuls with constant weights, two or more of them with a bias, and by sums
       `x + (y + bias)`, the residual connection behind attention.
    2. *Rewrite*: new shift, weights and bias of the residual sum; the Adds behind the products go.
    3. *Ensures*: equal up to rounding. The weights added are of the size of bias / n / scale.

    >>> import onnx, trtkit
    >>> from trtkit.passes import run_passes
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 2] q, float[n, 2] k) <float[2] s = {1, 1}, float[2] t = {0, 0},
    ...     float[2, 2] wq = {1, 2, 3, 4}, float[2] bq = {5, 6}, float[2, 2] wk = {1, 0, 0, 1}, float[2] bk = {7, 8}> {
    ...     z = LayerNormalization(x, s, t)  mq = MatMul(z, wq)  aq = Add(mq, bq)  q = Relu(aq)
    ...     mk = MatMul(z, wk)  ak = Add(mk, bk)  k = Relu(ak)}'''))
    >>> run_passes(model, [AbsorbBias()]).op_counts
    {'MatMul': 2, 'Relu': 2, 'LayerNormalization': 1}
    """

    title = "bias into weights"
    ops = frozenset({"LayerNormalization"})

    def rewrite(self, node: ir.Node) -> str | None:
        x, shape, axis = node.outputs[0], dims(node.outputs[0]), node.attributes.get_int("axis", -1)
        scale, shift = (array(value) for value in (*node.inputs, None)[1:3])
        if scale is None or (shift is None and len(node.inputs) > 2 and node.inputs[2] is not None):
            return None
        if shape is None or axis not in (-1, len(shape) - 1) or scale.ndim != 1 or x.is_graph_output():
            return None
        if not np.abs(scale).min() >= _SMALLEST_SCALE * np.abs(scale).max() > 0:
            return None
        readers = [_reader(use.node, use.idx, x) for use in x.uses()]
        known = [reader for reader in readers if reader is not None and reader.node.graph is node.graph]
        biases = sum(reader.weight is not None and reader.add is not None for reader in known)
        if len(known) < len(readers) or biases < 2:
            return None
        self._absorb(node, scale, np.zeros_like(scale) if shift is None else shift, known)
        return f"LayerNormalization with {biases} biases behind it"

    def _absorb(self, node: ir.Node, scale: np.ndarray, shift: np.ndarray, readers: list[_Reader]) -> None:
        """Shift x, and let every reader know; computed in FP64."""
        inverse = 1 / scale.astype(np.float64)
        growth = scale.astype(np.float64) * (1 if shift @ inverse >= 0 else -1)
        constant = (shift + growth) @ inverse

        def put(user: ir.Node, place: int, data: np.ndarray) -> None:
            assert user.graph is not None
            name = self.names.fresh(f"{user.name or user.outputs[0].name}.absorbed")
            user.replace_input_with(place, initializer(user.graph, name, np.ascontiguousarray(data, scale.dtype)))

        node.resize_inputs(3)
        put(node, 2, shift + growth)
        for product, add, weight in readers:
            place, bias = added_constant(add)
            if weight is None:
                assert add is not None
                put(add, place, bias - growth)
                continue
            put(product, 1, weight + np.outer(inverse, (bias - growth @ weight) / constant))
            if add is not None:
                replace(add.outputs[0], product.outputs[0])
                remove(add)


def _reader(node: ir.Node, place: int, x: ir.Value) -> _Reader | None:
    """What a node that reads x is; None where it cannot be told of a shift."""
    if node.domain != "" or node.op_type not in ("MatMul", "Add"):
        return None
    if node.op_type == "MatMul":
        weight = array(node.inputs[1]) if place == 0 else None
        return None if weight is None or weight.ndim != 2 else _Reader(node, _added(node.outputs[0], weight), weight)
    other = node.inputs[1 - place]
    add = made_by(other, "Add")
    width = (dims(x) or ())[-1]
    if add is None or other is None or not single_use(other) or added_constant(add)[1].shape != (width,):
        return None
    return _Reader(node, add, None)


def _added(value: ir.Value, weight: np.ndarray) -> ir.Node | None:
    """The Add of a bias, one number for each column of `weight`, if that alone reads the value."""
    if not single_use(value):
        return None
    (use,) = value.uses()
    add = use.node
    if add.op_type != "Add" or add.domain != "" or add.graph is not value.graph or add.outputs[0].is_graph_output():
        return None
    return add if added_constant(add)[1].shape == weight.shape[1:] else None
