"""Remove sums with nothing and products with one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, remove, replace

# What leaves a number as it is, to its right; on its left as well where the order does not matter.
_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1}
_EITHER_SIDE = {"Add", "Mul"}


class RemoveNeutralArithmetic(Rewrite):
    """`x + 0`, `x - 0`, `x * 1`, `x / 1` and `x ** 1` are x, with 0 + x and 1 * x.

    *Requires* a constant all of whose elements are the neutral one, and that it does not broadcast x to a larger
    shape: it has one element and no more axes than x, or on each axis 1 element or as many as x is known to have.
    For floating-point numbers the sign of zero counts (IEEE 754-2019, section 6.3): -0.0 + 0.0 is 0.0, so that
    `x + 0.0` is not x for every x; `x + -0.0` and `x - 0.0` are. Products, quotients and powers with 1 are exact,
    NaN included.
    *Rewrite*: readers of the result read x. *Ensures*: the very same bits; outputs of graphs keep their names.
    """

    title = "remove neutral arithmetic"
    ops = frozenset(_NEUTRAL)

    def rewrite(self, node: ir.Node) -> str | None:
        for place in (1, 0) if node.op_type in _EITHER_SIDE else (1,):
            kept, other = node.inputs[1 - place], array(node.inputs[place])
            if kept is None or other is None or not _is_neutral(node.op_type, other) or not _fits_into(other, kept):
                continue
            if replace(node.outputs[0], kept):
                remove(node)
                return f"{node.op_type} with {_NEUTRAL[node.op_type]} removed"
        return None


def _is_neutral(op: str, data: np.ndarray) -> bool:
    neutral = _NEUTRAL[op]
    if data.size == 0 or data.dtype.kind not in "iufV" or data.flat[0] != neutral or (data != neutral).any():
        return False
    if op in ("Mul", "Div", "Pow") or data.dtype.kind in "iu":
        return True
    return bool((np.signbit(data.astype(np.float64)) == (op == "Add")).all())


def _fits_into(data: np.ndarray, value: ir.Value) -> bool:
    """Whether broadcasting with `data` leaves the shape of `value` alone."""
    shape = dims(value)
    if shape is None or data.ndim > len(shape):
        return False
    return all(d in (1, have) for d, have in zip(reversed(data.shape), reversed(shape), strict=False))
