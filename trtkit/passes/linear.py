"""A scale and a shift for each channel, worked into the weights of the operator before: what several passes share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Names, array, initializer, single_use

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm"})
Weights = tuple[np.ndarray, np.ndarray]


def linear_before(value: ir.Value | None, node: ir.Node) -> ir.Node | None:
    """The Conv, ConvTranspose or Gemm that computes `value` for `node` alone, in the same graph; else None."""
    linear = value.producer() if value is not None else None
    if linear is None or linear.op_type not in LINEAR or linear.domain != "" or linear.graph is not node.graph:
        return None
    return linear if single_use(linear.outputs[0]) else None


def channels_of(linear: ir.Node) -> int | None:
    """How many output channels the operator has, None if its weight is not constant."""
    weight = array(linear.inputs[1])
    if weight is None:
        return None
    if linear.op_type == "Gemm":
        return int(weight.shape[0 if linear.attributes.get_int("transB", 0) else 1])
    if linear.op_type == "Conv":
        return int(weight.shape[0])
    return int(weight.shape[1]) * linear.attributes.get_int("group", 1)


def bias_of(linear: ir.Node) -> np.ndarray | None:
    """The bias as (channels,) or (1,) float64, zero if there is none; None if it is not constant or varies by row."""
    if len(linear.inputs) < 3 or linear.inputs[2] is None:
        return np.zeros(1)
    given = array(linear.inputs[2])
    if given is None or (given.ndim > 1 and given.shape[:-1] != (1,) * (given.ndim - 1)):
        return None
    beta = linear.attributes.get_float("beta", 1.0) if linear.op_type == "Gemm" else 1.0
    return given.astype(np.float64).reshape(-1) * beta


def scaled(linear: ir.Node, scale: np.ndarray, shift: np.ndarray) -> Weights | None:
    """W' and b' of `scale * linear(x) + shift`, computed in float64 and rounded once; None where they do not exist.

    Args:
        scale: one factor for each output channel, (channels,) or (1,) float64.
        shift: what is added after that, of the same kind.
    """
    weight, bias, channels = array(linear.inputs[1]), bias_of(linear), channels_of(linear)
    if weight is None or bias is None or channels is None or not is_float(weight):
        return None
    with np.errstate(all="ignore"):
        scale = scale * np.ones(channels)  # one factor for each channel, where all had one in common
        new_bias = (bias * scale + shift).astype(weight.dtype)
        unscaled = bool((scale == 1).all())
        new_weight = weight
        if not unscaled:  # computed in float64 piece by piece: no second copy of the weights
            new_weight = np.empty_like(weight)
            np.multiply(weight, _along_channels(linear, weight, scale), out=new_weight, casting="unsafe")
    return (new_weight, new_bias) if (unscaled or is_finite(new_weight)) and is_finite(new_bias) else None


def is_float(data: np.ndarray) -> bool:
    return data.dtype.kind == "f" or data.dtype.name == "bfloat16"


def is_finite(data: np.ndarray) -> bool:
    return bool(np.isfinite(data).all())


def set_weights(linear: ir.Node, weights: Weights, names: Names) -> None:
    """Give the operator other weights; where others read the old ones, a copy is made."""
    old_weight, old_bias = linear.inputs[1], linear.inputs[2] if len(linear.inputs) > 2 else None
    linear.resize_inputs(3)
    if array(old_weight) is not weights[0]:
        _set_input(linear, 1, weights[0], old_weight, names)
    _set_input(linear, 2, weights[1], old_bias, names)
    if linear.op_type == "Gemm":
        linear.attributes.pop("beta", None)


def _along_channels(linear: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """One factor per output channel, shaped so that it multiplies the weight where these channels lie."""
    if linear.op_type == "Gemm":
        return scale[:, None] if linear.attributes.get_int("transB", 0) else scale[None, :]
    ones = (1,) * (weight.ndim - 2)
    if linear.op_type == "Conv":
        return scale.reshape(-1, 1, *ones)
    groups = linear.attributes.get_int("group", 1)  # ConvTranspose: W is (C, M / groups, ...), M counted group by group
    return np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0).reshape(weight.shape[0], -1, *ones)


def _set_input(linear: ir.Node, position: int, data: np.ndarray, old: ir.Value | None, names: Names) -> None:
    """Write a weight in place if this node alone reads it (the name stays), else beside it."""
    if old is not None and old.is_initializer() and single_use(old) and old.graph is linear.graph:
        old.const_value = ir.Tensor(data, name=old.name)
        old.shape = ir.Shape(data.shape)
        return
    assert linear.graph is not None
    name = names.fresh(f"{linear.name}.{'bias' if position == 2 else 'weight'}")
    linear.replace_input_with(position, initializer(linear.graph, name, data))
