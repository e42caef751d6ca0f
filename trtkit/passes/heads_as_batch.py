"""Self-attention at batch 1: the heads where the batch would stand, and one product for Q, K and V where it pays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, initializer, single_use
from trtkit.passes.match import made_by, put, scalar, with_scalar


class Projection(NamedTuple):
    """One of Q, K and V: `Transpose(Reshape(x @ weight + bias, (1, T, heads, width)))`."""

    x: ir.Value
    weight: np.ndarray  # (D, heads * width)
    bias: np.ndarray | None  # (heads * width,)
    heads: int
    width: int


class Scores(NamedTuple):
    """What a Softmax is given: `product * scale + mask`."""

    product: ir.Node
    scale: float
    mask: ir.Value | None


class HeadsAsBatch(Rewrite):
    """`Softmax(Q K^T * scale + mask) V` with Q, K and V from one x: in three dimensions instead of four.

    At batch 1 the first of (1, H, T, d) says nothing. Without it, the heads are the batch of every product. With
    biases, the way from x to Q, K and V is one product and one transposition of all three:

        x (1, T, D) @ W (D, 3 H d)  ->  (T, 3 H, d)  ->  (3 H, T, d)  ->  Q, K, V (H, T, d)

    Without (`absorb_bias` sees to that) each has its own: TensorRT makes them one product, and attention reads its
    thirds where they lie, so that no kernel turns anything.

    1. *Requires* x of shape (1, T, D), numbers all (see `fix_shapes`); attention in the form that
       `attention.CanonicalAttention` writes; Q, K and V each a MatMul of the same x with a constant weight, all with a
       constant bias or none, cut into the same number of heads of the same width; scores that nobody else reads; a
       mask, if any, whose first dimension of four is 1.
    2. *Rewrite*: the scale in the weights of Q; with biases, the weights side by side: one MatMul and one Add, Reshape,
       Transpose, Split, else MatMul, Reshape and Transpose for each; scores, Softmax and weighted sum as before, with
       the heads in front; Unsqueeze.
    3. *Ensures*: equal up to rounding; the result keeps its name.

    TensorRT-RTX 1.7.1 makes 8 kernels of such a block of BERT-base in FP16 instead of 10, and 7 without biases. With
    ONNX's own Attention it makes 9 of it, and it refuses that in FP32.
    """

    title = "heads as batch"
    ops = frozenset({"Softmax"})

    def rewrite(self, node: ir.Node) -> str | None:
        scores, last, shape = _scores(node), _only_reader(node.outputs[0]), dims(node.outputs[0])
        if scores is None or last is None or last.inputs[0] is not node.outputs[0] or shape is None or len(shape) != 4:
            return None
        if node.attributes.get_int("axis", -1) not in (-1, 3) or not _fits(scores.mask):
            return None
        product = scores.product
        sides = ((product.inputs[0], [0, 2, 1, 3]), (product.inputs[1], [0, 2, 3, 1]), (last.inputs[1], [0, 2, 1, 3]))
        parts = [part for value, perm in sides if (part := _projection(value, perm)) is not None]
        if len(parts) < 3 or not _alike(parts):
            return None
        put(last, self._attention(last, parts, scores))
        return "self-attention"

    def _attention(self, at: ir.Node, parts: list[Projection], scores: Scores) -> ir.Node:
        """The new nodes but the last, put before `at`; and the last, which takes its place."""
        graph, stem, kind = at.graph, at.name or at.outputs[0].name, at.outputs[0].type
        assert graph is not None

        def constant(what: str, data: np.ndarray) -> ir.Value:
            return initializer(graph, self.names.fresh(f"{stem}.{what}"), data)

        def add(op: str, *inputs: ir.Value, outputs: int = 1, **attributes: int | list[int]) -> list[ir.Value]:
            node = ir.node(op, inputs, attributes, num_outputs=outputs, name=self.names.fresh(f"{stem}.{op.lower()}"))
            for result in node.outputs:
                result.name, result.type = self.names.fresh(f"{node.name}.out"), kind
            graph.insert_before(at, node)
            return list(node.outputs)

        x, heads, width, tokens = parts[0].x, parts[0].heads, parts[0].width, (dims(parts[0].x) or ())[1]

        def turned(y: ir.Value, count: int) -> ir.Value:  # (1, T, count * d) -> (count, T, d)
            (y,) = add("Reshape", y, constant("heads", np.array([tokens, count, width], np.int64)))
            return add("Transpose", y, perm=[1, 0, 2])[0]

        weights, biases = _scaled_parts(parts, scores.scale)
        if biases:
            (y,) = add("MatMul", x, constant("qkv", np.concatenate(weights, axis=1)))
            (y,) = add("Add", y, constant("qkv_bias", np.concatenate(biases)))
            thirds = constant("thirds", np.array([heads] * 3, np.int64))
            q, k, v = add("Split", turned(y, 3 * heads), thirds, outputs=3, axis=0)
        else:
            q, k, v = (turned(add("MatMul", x, constant("projection", weight))[0], heads) for weight in weights)
        (y,) = add("MatMul", q, *add("Transpose", k, perm=[0, 2, 1]))
        first = constant("first", np.array([0], np.int64))
        if scores.mask is not None:
            mask = add("Squeeze", scores.mask, first)[0] if len(dims(scores.mask) or ()) == 4 else scores.mask
            (y,) = add("Add", y, mask)
        (y,) = add("MatMul", *add("Softmax", y, axis=-1), v)
        return ir.node("Unsqueeze", [y, first], name=self.names.fresh(f"{stem}.batch"))


def _scaled_parts(parts: list[Projection], scale: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights (D, H d) and biases (H d) of Q, K and V, those of Q times the scale; no biases where there are none."""
    factors = [np.asarray(factor, parts[0].weight.dtype) for factor in (scale, 1, 1)]
    weights = [part.weight * factor for part, factor in zip(parts, factors, strict=True)]
    return weights, [part.bias * factor for part, factor in zip(parts, factors, strict=True) if part.bias is not None]


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The MatMul that reads the value, if nobody else does."""
    if not single_use(value):
        return None
    (use,) = value.uses()
    return use.node if use.node.op_type == "MatMul" and use.node.domain == "" else None


def _scores(softmax: ir.Node) -> Scores | None:
    """What stands before a Softmax, read backwards, if nobody else reads any of it."""
    value = softmax.inputs[0]
    plain = _scaled(value)
    if plain is not None:
        return Scores(*plain, None)
    add = made_by(value, "Add")
    if value is None or add is None or not single_use(value):
        return None
    both = [(_scaled(add.inputs[place]), add.inputs[1 - place]) for place in (0, 1)]
    return next((Scores(*plain, mask) for plain, mask in both if plain is not None), None)


def _scaled(value: ir.Value | None) -> tuple[ir.Node, float] | None:
    """A value as product and number: `MatMul(...)`, or that times or over a number."""
    if value is None or not single_use(value):
        return None
    if (product := made_by(value, "MatMul")) is not None:
        return product, 1.0
    scale = made_by(value, "Mul", "Div")
    found = with_scalar(scale)
    product = made_by(found[0], "MatMul") if found is not None else None
    if scale is None or found is None or product is None or not single_use(found[0]):
        return None
    if scale.op_type == "Mul":
        return product, found[1]
    return (product, 1 / found[1]) if scalar(scale.inputs[1]) else None


def _fits(mask: ir.Value | None) -> bool:
    """Whether a mask can be added to scores (H, T, T): without a first dimension, or with one of 1."""
    shape = dims(mask)
    return mask is None or (shape is not None and (len(shape) < 4 or (len(shape) == 4 and shape[0] == 1)))


def _projection(value: ir.Value | None, perm: list[int]) -> Projection | None:
    """A value read backwards as `Transpose(Reshape(x @ weight + bias))`; None where it is something else."""
    turn = made_by(value, "Transpose")
    apart = made_by(turn.inputs[0], "Reshape") if turn is not None else None
    if turn is None or apart is None or list(turn.attributes.get_ints("perm", ())) != perm:
        return None
    add = made_by(apart.inputs[0], "Add")
    bias = next((data for each in add.inputs if (data := array(each)) is not None), None) if add is not None else None
    source = apart.inputs[0] if add is None else next((each for each in add.inputs if array(each) is None), None)
    product = made_by(source, "MatMul")
    weight = array(product.inputs[1]) if product is not None else None
    if product is None or product.inputs[0] is None or weight is None or weight.ndim != 2:
        return None
    if (add is not None and bias is None) or (bias is not None and bias.shape != weight.shape[1:]):
        return None
    shape, x = dims(apart.outputs[0]), dims(product.inputs[0])
    if shape is None or x is None or len(shape) != 4 or len(x) != 3 or x[0] != 1 or shape[:2] != x[:2]:
        return None
    heads, width = shape[2:]
    if not (isinstance(x[1], int) and isinstance(heads, int) and isinstance(width, int)):
        return None
    return Projection(product.inputs[0], weight, bias, heads, width)


def _alike(parts: list[Projection]) -> bool:
    """Whether the three read one x and have one form."""
    first = parts[0]
    return all(
        part.x is first.x
        and (part.weight.shape, part.weight.dtype) == (first.weight.shape, first.weight.dtype)
        and (part.heads, part.width, part.bias is None) == (first.heads, first.width, first.bias is None)
        for part in parts
    )
