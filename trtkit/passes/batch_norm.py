"""Fold batch normalisation into the convolution or matrix product before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, is_used, remove, replace
from trtkit.passes.linear import linear_before, scaled, set_weights

ScaleAndShift = tuple[np.ndarray, np.ndarray]


class FoldBatchNorm(Rewrite):
    """`BatchNormalization(Conv(x, W, b))` is one convolution with other weights.

    At inference time batch normalisation is, per channel c, a multiplication and an addition with constants
    (Ioffe & Szegedy 2015, Algorithm 2); folding them is Jacob et al. 2018, section 3.2, eq. 14:

        s = gamma / sqrt(variance + epsilon)
        W'[c] = W[c] * s[c]            b'[c] = (b[c] - mean[c]) * s[c] + beta[c]

    1. *Requires* BatchNormalization in inference mode, opset 7 or later, whose input comes from a Conv, ConvTranspose
       or Gemm that nobody else reads and that is no graph output, in the same graph; W, b (if any) and the four
       statistics constant; finite W' and b' of the type of W.
    2. *Rewrite*: W becomes W', b becomes b' (a missing b counts as 0), and readers of the normalisation read the
       Conv. Channels lie on axis 0 of W for Conv, group by group on axis 1 for ConvTranspose, on the output axis of B
       for Gemm, whose beta is worked into b'. Weights that others read too are not touched, a copy is made.
    3. *Ensures*: equal up to rounding; computed in float64 and rounded once, so often closer to the exact result than
       the two operators were.
    """

    title = "fold batch norm"
    ops = frozenset({"BatchNormalization"})

    def rewrite(self, node: ir.Node) -> str | None:
        affine = scale_and_shift(node, self.opset)
        linear = linear_before(node.inputs[0], node)
        if affine is None or linear is None:
            return None
        weights = scaled(linear, *affine)
        if weights is None or not replace(node.outputs[0], linear.outputs[0]):
            return None
        remove(node)
        set_weights(linear, weights, self.names)
        return f"BatchNormalization into {linear.op_type}"


def scale_and_shift(norm: ir.Node, opset: int) -> ScaleAndShift | None:
    """What a BatchNormalization does to channel c in inference, `s[c] * x + t[c]`, float64; None if that may change."""
    extra = any(is_used(value) for value in norm.outputs[1:])
    training = norm.attributes.get_int("training_mode", 0) if opset >= 14 else len(norm.outputs) > 1
    if opset < 7 or training or extra or norm.attributes.get_int("spatial", 1) != 1:
        return None
    statistics = [array(value) for value in norm.inputs[1:5]]
    if any(values is None for values in statistics):
        return None
    gamma, beta, mean, variance = (values.astype(np.float64) for values in statistics if values is not None)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
        return scale, beta - mean * scale
