"""Fold a product or sum with constants into the convolution or matrix product before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, remove, replace
from trtkit.passes.linear import channels_of, linear_before, scaled, set_weights


class FoldAffine(Rewrite):
    """`Conv(x, W) * s + t` is one convolution with other weights, if s and t are one number for each channel.

    It is what batch normalisation looks like after an exporter has written it out, and how some frameworks write
    a bias.

    1. *Requires* Add, Sub, Mul or Div of a Conv, ConvTranspose or Gemm (which nobody else reads and which is no graph
       output, in the same graph, with constant W and b) and a constant that has one element, or one for each channel
       along the channel axis (axis 1; the last one for Gemm) and 1 along all others; division only by the constant;
       finite W' and b' of the type of W.
    2. *Rewrite*: W' = s W, b' = s b + t; readers of the result read the Conv. A sum leaves W alone.
    3. *Ensures*: equal up to rounding; computed in float64 and rounded once.
    """

    title = "fold scale and bias"
    ops = frozenset({"Add", "Sub", "Mul", "Div"})

    def rewrite(self, node: ir.Node) -> str | None:
        for place in (1, 0):
            given, linear = array(node.inputs[place]), linear_before(node.inputs[1 - place], node)
            if given is None or linear is None:
                continue
            data = _per_channel(given, linear)
            affine = None if data is None else _scale_and_shift(node.op_type, data, place)
            weights = None if affine is None else scaled(linear, *affine)
            if weights is None or not replace(node.outputs[0], linear.outputs[0]):
                return None
            remove(node)
            set_weights(linear, weights, self.names)
            return f"{node.op_type} into {linear.op_type}"
        return None


def _scale_and_shift(op: str, data: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray] | None:
    """s and t of `s * x + t`, where the constant is input `place` of the operator."""
    one, zero = np.ones(1), np.zeros(1)
    if op == "Add":
        return one, data
    if op == "Mul":
        return data, zero
    if op == "Sub":
        return (one, -data) if place == 1 else (-one, data)
    with np.errstate(divide="ignore"):
        return (1 / data, zero) if place == 1 else None


def _per_channel(data: np.ndarray, linear: ir.Node) -> np.ndarray | None:
    """The constant as (channels,) or (1,) float64; None if it varies otherwise or would make the result larger."""
    weight, channels = array(linear.inputs[1]), channels_of(linear)
    if weight is None or channels is None or data.dtype != weight.dtype:
        return None
    rank, axis = weight.ndim, 1  # Conv: N, M and the kernel's axes; Gemm: N, M
    if data.ndim > rank:
        return None
    padded = (1,) * (rank - data.ndim) + data.shape
    if any(d != 1 for i, d in enumerate(padded) if i != axis) or padded[axis] not in (1, channels):
        return None
    return data.astype(np.float64).reshape(-1)
