"""Which operators compute the same on transposed inputs, and what changes in them: axes and constants."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Names, array, initializer
from trtkit.passes.noop_shape import is_given, numbers
from trtkit.passes.pointwise import BROADCAST, is_unary

_DEFAULT_AXIS = {"Concat": 0, "Split": 0, "Softmax": -1, "LogSoftmax": -1}
_REDUCE = frozenset({f"Reduce{kind}" for kind in ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")})
_SINCE = {"Softmax": 13, "LogSoftmax": 13, "Pad": 11, "Slice": 10}  # before, they were other operators


@dataclass(frozen=True)
class Order:
    """An order of axes: of a transposed value, axis i is axis perm[i] of the value before.

    >>> Order((0, 2, 3, 1), 20).inverse
    (0, 3, 1, 2)
    """

    perm: tuple[int, ...]
    opset: int

    @property
    def inverse(self) -> tuple[int, ...]:
        return tuple(sorted(range(len(self.perm)), key=self.perm.__getitem__))

    def axis(self, axis: int) -> int:
        return self.perm[axis % len(self.perm)]

    def absorbed_by(self, node: ir.Node) -> bool:
        """Whether a reduction drops axes in such a way that those left are in the order that they had before."""
        drops = node.op_type in _REDUCE and node.attributes.get_int("keepdims", 1) == 0
        axes = numbers(node, "axes", 1) if drops else None
        gone = {axis % len(self.perm) for axis in axes or ()}
        left = [axis for place, axis in enumerate(self.perm) if place not in gone]
        return bool(axes) and left == sorted(left)

    def rearrange(self, node: ir.Node, ordered: Container[ir.Value | None], names: Names) -> None:
        """Make a node, for which `follows` holds, compute on values that are not transposed any more."""
        if node.op_type in _DEFAULT_AXIS:
            axis = node.attributes.get_int("axis", _DEFAULT_AXIS[node.op_type])
            node.attributes["axis"] = ir.AttrInt64("axis", self.axis(axis))
        elif node.op_type in _REDUCE or node.op_type == "Slice":
            self._axes(node, 3 if node.op_type == "Slice" else 1, names)
        elif node.op_type == "Pad":
            pads = numbers(node, "pads", 1) or []
            begin, end = pads[: len(self.perm)], pads[len(self.perm) :]
            moved = [part[axis] for part in (begin, end) for axis in self.inverse]
            self._put(node, 1, np.array(moved, np.int64), "pads", names)
        if node.op_type == "Concat" or node.op_type in BROADCAST:
            for place, value in enumerate(node.inputs):
                data = array(value)
                if value not in ordered and data is not None and not _is_number(data):
                    whole = data.reshape((1,) * (len(self.perm) - data.ndim) + data.shape)
                    self._put(node, place, np.ascontiguousarray(whole.transpose(self.inverse)), "transposed", names)

    def _axes(self, node: ir.Node, place: int, names: Names) -> None:
        axes = [self.axis(axis) for axis in numbers(node, "axes", place) or []]
        if "axes" in node.attributes:
            node.attributes["axes"] = ir.AttrInt64s("axes", axes)
        elif axes:
            self._put(node, place, np.array(axes, np.int64), "axes", names)

    @staticmethod
    def _put(node: ir.Node, place: int, data: np.ndarray, what: str, names: Names) -> None:
        old = node.inputs[place]
        assert node.graph is not None and old is not None
        name = names.fresh(f"{old.name or node.name}_{what}")
        node.replace_input_with(place, initializer(node.graph, name, data, old.dtype if what == "transposed" else None))


def follows(node: ir.Node, is_ordered: Callable[[ir.Value | None], bool], order: Order) -> bool:
    """Whether `node` of transposed inputs is the transposed result of a like node, with axes and constants changed.

    1. Operators that map each element by itself, of one input or of several that broadcast.
    2. Concat, Split, Softmax and LogSoftmax (opset 13 on) along an axis.
    3. Reductions that keep the axes they reduce, or drop them and leave the others in order (`Order.absorbed_by`).
    4. Pad by known numbers on all axes; Slice along known axes.

    Args:
        is_ordered: whether a value is transposed in that order (or is computed from such ones).
    """
    rank = len(order.perm)
    if node.domain != "" or order.opset < _SINCE.get(node.op_type, 7) or not node.inputs:
        return False
    if node.op_type == "Concat" or (node.op_type in BROADCAST and node.op_type != "PRelu"):
        least = rank if node.op_type == "Concat" else 0
        able = all(is_ordered(value) or _is_constant(value, least, rank) for value in node.inputs)
        return able and any(map(is_ordered, node.inputs))
    if not is_ordered(node.inputs[0]) or not all(value.name for value in node.outputs):
        return False
    if node.op_type == "PRelu":
        return _is_constant(node.inputs[1], 0, rank)
    if node.op_type in _REDUCE:
        known = not is_given(node, "axes", 1) or numbers(node, "axes", 1) is not None
        return known and (node.attributes.get_int("keepdims", 1) == 1 or order.absorbed_by(node))
    if node.op_type == "Pad":
        return len(numbers(node, "pads", 1) or []) == 2 * rank and not is_given(node, "axes", 3)
    if node.op_type == "Slice":
        return numbers(node, "axes", 3) is not None
    return is_unary(node) or node.op_type in _DEFAULT_AXIS


def _is_number(data: np.ndarray) -> bool:
    return data.size == 1 and data.ndim <= 1


def _is_constant(value: ir.Value | None, least: int, most: int) -> bool:
    data = array(value)
    return data is not None and least <= data.ndim <= most
