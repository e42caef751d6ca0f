"""Shape arithmetic with dimensions that have names instead of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Dims, Learner, constant, dims, initializer, remove, replace
from trtkit.passes.inference import curious_readers, is_known, learn_shape
from trtkit.passes.noop_shape import numbers

_LONGEST = 64  # elements; nothing with more is a shape
_WHOLE = (ir.DataType.INT64, ir.DataType.INT32)

# Operators that pick and arrange numbers of a shape, and those that calculate with them.
_ARRANGE = frozenset({"Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Cast", "Identity", "Reshape"})
_CALCULATE = frozenset({"Add", "Sub", "Mul", "Div"})


class FoldShapes(Learner):
    """Replace the outcome of shape arithmetic by a constant where all that is picked are numbers.

    `Shape(x)[1]` with x of shape (batch, 197, 768) is 197, although `Shape(x)` is no constant; so is the slice
    `Shape(x)[1:]` = (197, 768), and `197 * 768 // 64`. For each small integer tensor the numbers in it are noted, or a
    name where one is a dimension that may change; one walk in topological order tells all.

    1. *Requires* that a tensor with no name among its at most 64 numbers comes from Shape nodes and constants through
       Gather, Slice, Concat, Squeeze, Unsqueeze, Cast to int32 or int64, Reshape, Add, Sub, Mul and Div.
       *Rewrite*: it becomes an initialiser; the chain is dead if nobody else reads it.
    2. *Requires* a Reshape or Expand whose target is noted, and whose output has unknown dimensions. *Rewrite*: they
       are written into its output's shape, and from there onwards. That helps other rules; no node changes.

    *Ensures*: same type, same shape, same numbers.
    """

    title = "fold shapes"
    ops = frozenset({"Shape", "Expand"}) | _ARRANGE | _CALCULATE

    def _begin(self, model: ir.Model) -> None:
        super()._begin(model)
        self._noted: dict[ir.Value, Dims] = {}

    def rewrite(self, node: ir.Node) -> str | None:
        out = node.outputs[0]
        if out.dtype not in _WHOLE or node.op_type == "Expand":
            if node.op_type in ("Reshape", "Expand"):
                self._note_target(node, out)
            return None
        shape = dims(out)
        found = self._outcome(node) if shape is not None and len(shape) <= 1 else None
        if found is None or len(found) > _LONGEST:
            return None
        self._noted[out] = found
        numbers_only = all(isinstance(d, int) and abs(d) < 1 << 31 for d in found)
        if not numbers_only or out.is_graph_output() or node.graph is None or (not shape and len(found) != 1):
            return None
        self._fold(node, np.array(found, out.dtype.numpy()).reshape(() if not shape else -1))
        return f"{node.op_type} of a shape folded"

    def _fold(self, node: ir.Node, data: np.ndarray) -> None:
        out, graph = node.outputs[0], node.graph
        assert graph is not None
        name, out.name = out.name or f"{node.name}_constant", f"{out.name}_folded"
        weight = initializer(graph, name, data)
        replace(out, weight)
        remove(node)
        self.tell(curious_readers(weight))

    def value_of(self, value: ir.Value | None) -> Dims | None:
        """The numbers in a small integer tensor, or what is noted of them; a scalar counts as one number."""
        if value is None or value in self._noted:
            return None if value is None else self._noted[value]
        tensor = constant(value)
        if tensor is None or tensor.size > _LONGEST or len(tensor.shape) > 1 or tensor.dtype not in _WHOLE:
            return None
        return tuple(int(d) for d in tensor.numpy().reshape(-1))

    def _outcome(self, node: ir.Node) -> Dims | None:
        if node.op_type == "Shape":
            shape = dims(node.inputs[0])
            end = node.attributes.get_int("end", len(shape or ()))
            return None if shape is None else shape[node.attributes.get_int("start", 0) : end]
        values = [self.value_of(value) for value in node.inputs[: 2 if node.op_type in _CALCULATE else 1]]
        if node.op_type == "Concat":
            values = [self.value_of(value) for value in node.inputs]
        if None in values:
            return None
        parts = [value for value in values if value is not None]
        if node.op_type in _CALCULATE:
            return _calculated(node.op_type, *parts)
        if node.op_type == "Gather":
            return _gathered(node, parts[0])
        return _sliced(node, parts[0]) if node.op_type == "Slice" else tuple(d for part in parts for d in part)

    def _note_target(self, node: ir.Node, out: ir.Value) -> None:
        before, target = dims(node.inputs[0]), self.value_of(node.inputs[1]) if len(node.inputs) > 1 else None
        if before is None or target is None or is_known(out):
            return
        after = _reshaped(node, before, target) if node.op_type == "Reshape" else _expanded(before, target)
        if after is None:
            return
        if learn_shape(out, after):
            self.tell(reader for reader, _ in out.uses())


def _reshaped(node: ir.Node, before: Dims, target: Dims) -> list[int | str | None] | None:
    if 0 in target and ("allowzero" in node.attributes or len(before) < len(target)):
        return None
    after = [before[i] if d == 0 else d for i, d in enumerate(target)]
    return [_left_over(before, after) if d == -1 else d for d in after]


def _left_over(before: Dims, after: Sequence[int | str | None]) -> int | str | None:
    """What -1 stands for: the one dimension left when those that both shapes have are struck out, or a quotient."""
    rest, others = list(before), [d for d in after if d != -1]
    for d in tuple(others):
        if d in rest and d is not None and d != 0:
            rest.remove(d)
            others.remove(d)
    if not others and len(rest) == 1:
        return rest[0]
    if any(not isinstance(d, int) or d < 1 for d in (*rest, *others)):
        return None
    have, need = (math.prod(d for d in part if isinstance(d, int)) for part in (rest, others))
    return have // need if have % need == 0 else None


def _expanded(before: Dims, target: Dims) -> list[int | str | None] | None:
    """Of two numbers broadcasting takes the one that is not 1; a 1 leaves the other, whatever it is."""
    if len(before) != len(target):
        return None
    pairs = zip(before, target, strict=True)
    return [a if b == 1 else b if a == 1 else None for a, b in pairs]


def _gathered(node: ir.Node, source: Dims) -> Dims | None:
    places = numbers(node, "indices", 1)
    if places is None or any(not -len(source) <= place < len(source) for place in places):
        return None
    return tuple(source[place] for place in places)


def _sliced(node: ir.Node, source: Dims) -> Dims | None:
    start, end = numbers(node, "starts", 1), numbers(node, "ends", 2)
    step = numbers(node, "steps", 4) if len(node.inputs) > 4 else [1]
    if start is None or end is None or step is None or not len(start) == len(end) == len(step) == 1 or step[0] < 1:
        return None
    return source[start[0] : end[0] : step[0]]


def _calculated(op: str, a: Dims, b: Dims) -> Dims | None:
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        return None
    length = max(len(a), len(b)) if a and b else 0
    pairs = zip(a * (length // max(len(a), 1)), b * (length // max(len(b), 1)), strict=True)
    return tuple(_result(op, x, y) for x, y in pairs)


def _result(op: str, x: int | str | None, y: int | str | None) -> int | str | None:
    """x op y for numbers; a name stays where the other is neutral; else nothing is known."""
    if isinstance(x, int) and isinstance(y, int):
        if op == "Div":  # ONNX rounds towards zero; shapes are not negative, so the two ways agree
            return x // y if y > 0 and x >= 0 else None
        return {"Add": x + y, "Sub": x - y, "Mul": x * y}[op]
    if y == (1 if op in ("Mul", "Div") else 0):
        return x
    if x == (1 if op == "Mul" else 0) and op in ("Mul", "Add"):
        return y
    return None
