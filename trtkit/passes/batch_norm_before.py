"""Fold batch normalisation into the convolutions and matrix products that read it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from trtkit.passes.batch_norm import ScaleAndShift, scale_and_shift
from trtkit.passes.common import Rewrite, array, remove
from trtkit.passes.linear import Weights, bias_of, is_finite, is_float, set_weights


class FoldBatchNormBefore(Rewrite):
    """`Conv(BatchNormalization(x), W, b)` is one convolution of x with other weights.

    With s and t as batch normalisation's factor and shift for each input channel c:

        W'[m, c] = W[m, c] * s[c]            b'[m] = b[m] + sum over c and the kernel of W[m, c] * t[c]

    1. *Requires* BatchNormalization in inference mode with constant statistics, no graph output, whose every reader
       is the data input of a Conv or of a Gemm (transA = 0) in the same graph with constant W and b; finite W', b'.
       A Conv that pads needs t = 0: it pads the *normalised* image with zeros, which would be -t / s before it, so the
       border would change.
    2. *Rewrite*: W and b of every reader become W' and b' and the readers read x. Gemm's alpha counts for the shift.
       If one reader cannot be folded, nothing is done, as the normalisation would have to stay.
    3. *Ensures*: equal up to rounding; computed in float64 and rounded once.
    """

    title = "fold batch norm into what follows"
    ops = frozenset({"BatchNormalization"})

    def rewrite(self, node: ir.Node) -> str | None:
        result, affine = node.outputs[0], scale_and_shift(node, self.opset)
        uses = tuple(result.uses())
        if affine is None or not uses or result.is_graph_output() or any(index != 0 for _, index in uses):
            return None
        readers = [reader for reader, _ in uses]
        found = [self._fold(reader, affine) if reader.graph is node.graph else None for reader in readers]
        weights = [each for each in found if each is not None]
        if len(weights) < len(readers):
            return None
        for reader, each in zip(readers, weights, strict=True):
            set_weights(reader, each, self.names)
            reader.replace_input_with(0, node.inputs[0])
        remove(node)
        return f"BatchNormalization into {' and '.join(sorted(reader.op_type for reader in readers))}"

    @staticmethod
    def _fold(linear: ir.Node, affine: ScaleAndShift) -> Weights | None:
        if linear.op_type not in ("Conv", "Gemm") or linear.domain != "" or linear.attributes.get_int("transA", 0) != 0:
            return None
        weight, bias, (scale, shift) = array(linear.inputs[1]), bias_of(linear), affine
        if weight is None or bias is None or not is_float(weight) or (shift.any() and _pads(linear)):
            return None
        wide = weight.astype(np.float64)
        with np.errstate(all="ignore"):
            alpha = linear.attributes.get_float("alpha", 1.0)
            new_bias = bias + alpha * _along_inputs(linear, wide, shift, total=True)
            new_weight = _along_inputs(linear, wide, scale, total=False).astype(weight.dtype)
            new_bias = new_bias.astype(weight.dtype)
        return (new_weight, new_bias) if is_finite(new_weight) and is_finite(new_bias) else None


def _pads(linear: ir.Node) -> bool:
    if linear.op_type == "Gemm":
        return False
    automatic = linear.attributes.get_string("auto_pad", "NOTSET")
    return automatic not in ("NOTSET", "VALID") or any(linear.attributes.get_ints("pads", ()))


def _along_inputs(linear: ir.Node, weight: np.ndarray, values: np.ndarray, *, total: bool) -> np.ndarray:
    """The weight times one value for each input channel; with `total` summed up for each output channel."""
    if linear.op_type == "Gemm":
        out = 0 if linear.attributes.get_int("transB", 0) else 1
        product = weight * (values[None, :] if out == 0 else values[:, None])
        return product.sum(axis=1 - out) if total else product
    groups = linear.attributes.get_int("group", 1)  # W is (M, C / groups, ...); outputs of group g read inputs of g
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], math.prod(weight.shape[2:]))
    product = grouped * values.reshape(groups, 1, weight.shape[1], 1)
    return product.sum(axis=(2, 3)).reshape(-1) if total else product.reshape(weight.shape)
