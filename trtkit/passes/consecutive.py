"""Make one of two nodes in a row that move data about or convert it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, dims, initializer, remove, replace, single_use
from trtkit.passes.noop_shape import VIEWS, numbers, same_elements

_AXES = {"Squeeze", "Unsqueeze"}


class MergeConsecutive(Rewrite):
    """Two Transposes, two views (Reshape, Flatten, Squeeze, Unsqueeze) or two Casts in a row are one, or none.

    1. `Transpose(Transpose(x, p), q)` is `Transpose(x, r)` with r[i] = p[q[i]]; inverse ones cancel.
    2. Two views whose result has the shape of the first one's input cancel.
    3. `Reshape(view(x), s)` is `Reshape(x, s)` if s is constant and copies no dimension (has no 0).
    4. Any other view of a view is one Reshape to the known shape, if at most one of its dimensions is no number.
       `Squeeze` of a `Squeeze` and `Unsqueeze` of an `Unsqueeze` need only the rank.
    5. `Cast(Cast(x, A), B)` is `Cast(x, B)` if A holds every value of x's type exactly; from whole numbers to whole
       numbers by way of fractions only if B does, too (out of range, casting from fractions is undefined).

    6. `Reshape(Transpose(x, p), s)` is `Reshape(x, s)` if p leaves the dimensions in their order but for those of size
       1, and s is constant and copies no dimension: the elements lie as they lay.

    *Rewrite*: the second node reads what the first one read; the first stays if others read it, so that no rule adds a
    node. For rule 4 it must have no other reader, since Reshapes are not better than what they replace.
    *Ensures*: the same elements in the same places; outputs of graphs keep their names.
    """

    title = "merge consecutive"
    ops = frozenset({"Transpose", "Cast", *VIEWS})

    def rewrite(self, node: ir.Node) -> str | None:
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        if first is None or first.domain != "" or not first.inputs or first.inputs[0] is None:
            return None
        if node.op_type == first.op_type == "Transpose":
            return self._transposes(first, node)
        if node.op_type == first.op_type == "Cast":
            return self._casts(first, node)
        if node.op_type in VIEWS and first.op_type in VIEWS:
            return self._views(first, node)
        if node.op_type == "Reshape" and first.op_type == "Transpose":
            return self._moved_ones(first, node)
        return None

    def _transposes(self, first: ir.Node, second: ir.Node) -> str | None:
        p, q = first.attributes.get_ints("perm", None), second.attributes.get_ints("perm", None)
        if p is None or q is None:
            return None  # without perm, axes are reversed; how many there are is then not written down
        perm = [p[axis] for axis in q]
        if perm == sorted(perm) and (what := self._cancel(first, second)):
            return what
        second.replace_input_with(0, first.inputs[0])
        second.attributes["perm"] = ir.AttrInt64s("perm", perm)
        return "Transpose merged"

    @staticmethod
    def _moved_ones(first: ir.Node, second: ir.Node) -> str | None:
        before, perm = dims(first.inputs[0]), first.attributes.get_ints("perm", None)
        target = numbers(second, "shape", 1)
        if before is None or perm is None or target is None or 0 in target:
            return None
        longer = [axis for axis in perm if before[axis] != 1]
        if longer != sorted(longer):
            return None
        second.replace_input_with(0, first.inputs[0])
        return "Transpose merged into Reshape"

    @staticmethod
    def _cancel(first: ir.Node, second: ir.Node) -> str | None:
        assert first.inputs[0] is not None
        if not replace(second.outputs[0], first.inputs[0]):
            return None
        remove(second)
        return f"{first.op_type} and {second.op_type} cancelled"

    @staticmethod
    def _casts(first: ir.Node, second: ir.Node) -> str | None:
        source = first.inputs[0].dtype if first.inputs[0] is not None else None
        middle, target = (ir.DataType(node.attributes.get_int("to", 0)) for node in (first, second))
        if source is None or not is_lossless(source, middle):
            return None
        if _is_whole(source) and _is_whole(target) and not _is_whole(middle) and not is_lossless(source, target):
            return None
        second.replace_input_with(0, first.inputs[0])
        return "Cast merged"

    def _views(self, first: ir.Node, second: ir.Node) -> str | None:
        before, after = dims(first.inputs[0]), dims(second.outputs[0])
        if same_elements(before, after) and (what := self._cancel(first, second)):
            return what
        if second.op_type == "Reshape":
            target = numbers(second, "shape", 1)
            if target is None or 0 in target:
                return None
        elif not single_use(first.outputs[0]):
            return None
        elif first.op_type == second.op_type and second.op_type in _AXES and before is not None:
            return self._axes(first, second, len(before))
        elif after is None or 0 in after or sum(not isinstance(d, int) for d in after) > 1 or self.opset < 5:
            return None
        else:
            self._make_reshape(second, [d if isinstance(d, int) else -1 for d in after])
        second.replace_input_with(0, first.inputs[0])
        return f"{first.op_type} merged into Reshape"

    def _make_reshape(self, node: ir.Node, target: list[int]) -> None:
        node.op_type = "Reshape"
        for name in ("axis", "axes"):
            node.attributes.pop(name, None)
        node.resize_inputs(2)
        node.replace_input_with(1, self._constant(node, f"{node.name}_shape", target))

    def _constant(self, node: ir.Node, name: str, data: list[int]) -> ir.Value:
        assert node.graph is not None
        return initializer(node.graph, self.names.fresh(name), np.array(data, np.int64))

    def _axes(self, first: ir.Node, second: ir.Node, rank: int) -> str | None:
        """Squeeze of a Squeeze, or Unsqueeze of an Unsqueeze, of a tensor with `rank` axes."""
        a, b = numbers(first, "axes", 1), numbers(second, "axes", 1)
        if a is None or b is None:
            return None
        axes = merged_axes(a, b, rank) if first.op_type == "Unsqueeze" else _squeezed_axes(a, b, rank)
        if "axes" in second.attributes:
            second.attributes["axes"] = ir.AttrInt64s("axes", axes)
        else:
            second.replace_input_with(1, self._constant(second, f"{second.name}_axes", axes))
        second.replace_input_with(0, first.inputs[0])
        return f"{second.op_type} merged"


def merged_axes(a: list[int], b: list[int], rank: int) -> list[int]:
    """The axes of one Unsqueeze that stand for those of two: first `a`, then `b`, on a tensor with `rank` axes.

    >>> merged_axes([0], [0], 1)  # (5) to (1, 5) to (1, 1, 5)
    [0, 1]
    """
    middle = rank + len(a)
    a, b = [axis % middle for axis in a], [axis % (middle + len(b)) for axis in b]
    kept = [axis for axis in range(middle + len(b)) if axis not in b]  # where the axes of the first result end up
    return sorted([*b, *(kept[axis] for axis in a)])


def _squeezed_axes(a: list[int], b: list[int], rank: int) -> list[int]:
    a = [axis % rank for axis in a]
    kept = [axis for axis in range(rank) if axis not in a]
    return sorted([*a, *(kept[axis] for axis in b)])


_EXACT_BITS = {  # how long a whole number may be that a floating-point type still holds exactly
    ir.DataType.FLOAT16: 11, ir.DataType.BFLOAT16: 8, ir.DataType.FLOAT: 24, ir.DataType.DOUBLE: 53,
}  # fmt: skip
_WIDER = {
    ir.DataType.FLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.BFLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.FLOAT: {ir.DataType.DOUBLE},
}
_SIGNED = {ir.DataType.INT8: 8, ir.DataType.INT16: 16, ir.DataType.INT32: 32, ir.DataType.INT64: 64}
_UNSIGNED = {ir.DataType.UINT8: 8, ir.DataType.UINT16: 16, ir.DataType.UINT32: 32, ir.DataType.UINT64: 64}


def _is_whole(dtype: ir.DataType) -> bool:
    return dtype in _SIGNED or dtype in _UNSIGNED or dtype == ir.DataType.BOOL


def is_lossless(source: ir.DataType, target: ir.DataType) -> bool:
    """Whether every value of `source` is one of `target`.

    >>> is_lossless(ir.DataType.UINT8, ir.DataType.FLOAT16), is_lossless(ir.DataType.INT64, ir.DataType.DOUBLE)
    (True, False)
    """
    if source == target or target in _WIDER.get(source, ()):
        return True
    if source == ir.DataType.BOOL:
        return _is_whole(target) or target in _EXACT_BITS
    bits = _UNSIGNED.get(source) or _SIGNED.get(source, 0) - 1  # of the magnitude; -2 ** n takes no more digits
    if bits < 1:
        return False
    if target in _EXACT_BITS:
        return bits <= _EXACT_BITS[target]
    return bits < _SIGNED.get(target, 0) or (source in _UNSIGNED and bits <= _UNSIGNED.get(target, 0))
