"""Fold batch normalisation into the convolution or matrix product before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Names, Rewrite, array, initializer, remove, replace, single_use

_LINEAR = {"Conv", "ConvTranspose", "Gemm"}


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
        if not self._inference_mode(node):
            return None
        linear = node.inputs[0].producer() if node.inputs[0] is not None else None
        if linear is None or linear.op_type not in _LINEAR or linear.domain != "" or linear.graph is not node.graph:
            return None
        folded = self._fold(linear, node) if single_use(linear.outputs[0]) else None
        if folded is None or not replace(node.outputs[0], linear.outputs[0]):
            return None
        remove(node)
        _set_weights(linear, *folded, self.names)
        return f"BatchNormalization into {linear.op_type}"

    def _inference_mode(self, node: ir.Node) -> bool:
        extra = any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
        training = node.attributes.get_int("training_mode", 0) if self.opset >= 14 else len(node.outputs) > 1
        return self.opset >= 7 and not training and not extra and node.attributes.get_int("spatial", 1) == 1

    @staticmethod
    def _fold(linear: ir.Node, norm: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
        """W' and b', or None where the rule does not hold."""
        weight, bias = array(linear.inputs[1]), np.zeros(1, np.float64)
        if len(linear.inputs) > 2 and linear.inputs[2] is not None:
            given = array(linear.inputs[2])
            if given is None:
                return None
            bias = given.astype(np.float64)
        statistics = [array(value) for value in norm.inputs[1:5]]
        if weight is None or any(values is None for values in statistics):
            return None
        gamma, beta, mean, variance = (values.astype(np.float64) for values in statistics if values is not None)
        if linear.op_type == "Gemm":
            bias = bias * linear.attributes.get_float("beta", 1.0)
            if bias.ndim > 1 and bias.shape[:-1] != (1,) * (bias.ndim - 1):
                return None  # another bias for every row
        with np.errstate(all="ignore"):
            scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
            new_weight = np.empty_like(weight)  # computed in float64 piece by piece: no second copy of the weights
            np.multiply(weight, _along_channels(linear, weight, scale), out=new_weight, casting="same_kind")
            new_bias = ((bias.reshape(-1) - mean) * scale + beta).astype(weight.dtype)
        finite = np.isfinite(new_weight).all() and np.isfinite(new_bias).all()
        return (new_weight, new_bias) if finite else None


def _along_channels(linear: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """One factor per output channel, shaped so that it multiplies the weight where these channels lie."""
    if linear.op_type == "Gemm":
        return scale[:, None] if linear.attributes.get_int("transB", 0) else scale[None, :]
    ones = (1,) * (weight.ndim - 2)
    if linear.op_type == "Conv":
        return scale.reshape(-1, 1, *ones)
    groups = linear.attributes.get_int("group", 1)  # ConvTranspose: W is (C, M / groups, ...), M counted group by group
    return np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0).reshape(weight.shape[0], -1, *ones)


def _set_weights(linear: ir.Node, weight: np.ndarray, bias: np.ndarray, names: Names) -> None:
    graph = linear.graph
    assert graph is not None and linear.inputs[1] is not None
    old_bias = linear.inputs[2] if len(linear.inputs) > 2 else None
    linear.resize_inputs(3)
    _set_input(linear, 1, weight, linear.inputs[1], names)
    _set_input(linear, 2, bias, old_bias, names)
    if linear.op_type == "Gemm":
        linear.attributes.pop("beta", None)


def _set_input(linear: ir.Node, position: int, data: np.ndarray, old: ir.Value | None, names: Names) -> None:
    """Write a weight in place if this node alone reads it (the name stays), else beside it."""
    if old is not None and old.is_initializer() and single_use(old) and old.graph is linear.graph:
        old.const_value = ir.Tensor(data, name=old.name)
        old.shape = ir.Shape(data.shape)
        return
    assert linear.graph is not None
    name = names.fresh(f"{linear.name}.{'bias' if position == 2 else 'weight'}")
    linear.replace_input_with(position, initializer(linear.graph, name, data))
