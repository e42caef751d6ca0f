"""Moments of a product's inputs, and weight scales that lose the least of its output.

An 8-bit float rounds by a share of each number, so that a finer scale does not help it as it helps INT8. But moving the
scale by a fraction of a power of two moves the grid of codes between the weights, and of the places that it can take
some suit the weights of a channel better. What suits is told by the output: for one output channel with weights w and
their rounding errors e

    E[(sum_i e_i x_i)^2]  =  e' E[x x'] e  ~  (sum_i e_i E[x_i])^2 + sum_i e_i^2 Var[x_i]

where the inputs are taken to vary independently around their means. E[x x'] is the Hessian of layer-wise quantisation
(Nagel et al. 2020, Up or Down?, eq. 13; Frantar et al. 2022, GPTQ, section 3), of which this keeps the diagonal and the
means. The means matter: what follows a ReLU is never negative, and a sum of errors of one sign shifts the whole channel
(Nagel et al. 2021, A White Paper on Neural Network Quantization, section 3.3, corrects the bias for it). Choosing a
range by its squared error is section 3.1 there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

STEPS = 16  # scales that are tried to an octave
Place = tuple[str, int]
"""A tensor, and which of its axes holds the channels that a product sums over."""


class ChannelMean:
    """The mean of a function of a tensor's entries for each channel, over all the data; keeps one sum for each.

    Args:
        axis: where the channels lie.
        of: a function of NumPy such as np.abs; by default the entries themselves.

    >>> mean = ChannelMean(1, np.square)
    >>> mean.observe(np.array([[1.0, 2.0], [3.0, 0.0]]))
    >>> mean.mean().tolist()
    [5.0, 2.0]
    """

    def __init__(self, axis: int, of: Callable[..., np.ndarray] = np.positive) -> None:
        self.axis, self.of = axis, of
        self._sum: np.ndarray | float = 0.0
        self._count = 0

    def observe(self, tensor: np.ndarray) -> None:
        """Take in the tensor of one batch, any float type."""
        others = tuple(axis for axis in range(tensor.ndim) if axis != self.axis % tensor.ndim)
        self._sum = self._sum + self.of(tensor, dtype=np.float64).sum(axis=others)
        self._count += tensor.size // max(tensor.shape[self.axis], 1)

    def mean(self) -> np.ndarray:
        """(C,) float64."""
        return np.asarray(self._sum) / max(self._count, 1)


class Moments(NamedTuple):
    """First and second moment of each channel of an input: E[x] and E[x^2], as many numbers each as channels."""

    mean: tuple[float, ...]
    mean_square: tuple[float, ...]


class MomentsObserver:
    """Gathers `Moments` of a tensor whose channels lie along `axis`.

    >>> observer = MomentsObserver(-1)
    >>> observer.observe(np.array([[1.0, 2.0], [3.0, -2.0]]))
    >>> observer.moments()
    Moments(mean=(2.0, 0.0), mean_square=(5.0, 4.0))
    """

    def __init__(self, axis: int) -> None:
        self._mean, self._square = ChannelMean(axis), ChannelMean(axis, np.square)

    def observe(self, tensor: np.ndarray) -> None:
        """Take in the tensor of one batch, any float type."""
        self._mean.observe(tensor)
        self._square.observe(tensor)

    def moments(self) -> Moments:
        return Moments(tuple(self._mean.mean().tolist()), tuple(self._square.mean().tolist()))


def place(node: ir.Node, tensor: str) -> Place:
    """Where the channels lie that a product sums over: axis 1 of a convolution's (N, C, ...), else the last."""
    return tensor, 1 if node.op_type.startswith("Conv") else -1


def along_weight(node: ir.Node, weight: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """One number for each input channel laid beside the weight that it is multiplied with, to broadcast with it.

    Args:
        channels: (C,) for a convolution's C inputs, (K,) for a matrix product's.
    """
    if node.op_type == "Conv":  # (M, C / groups, ...): neighbouring outputs are a group, and read their own inputs
        groups = node.attributes.get_int("group", 1)
        rows = np.repeat(channels.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))
    if node.op_type == "ConvTranspose":
        return channels.reshape(-1, *[1] * (weight.ndim - 1))
    return channels[None] if node.attributes.get_int("transB", 0) else channels[:, None]


def expected_error(errors: np.ndarray, mean: np.ndarray, variance: np.ndarray, axis: int | None) -> np.ndarray:
    """Expected square of what rounding a weight adds to each output channel, the equation at the top; float64.

    Args:
        errors: of the weight, its shape.
        mean, variance: of the inputs, broadcasting with it.
        axis: the weight's axis of output channels; None sums over all of them.

    Returns:
        As the weight with 1 for every axis but `axis`.

    >>> expected_error(np.array([[0.1, 0.1], [0.1, -0.1]]), np.ones((1, 2)), np.ones((1, 2)), axis=0).round(3).tolist()
    [[0.06], [0.02]]
    """
    others = tuple(a for a in range(errors.ndim) if a != axis)
    wide = errors.astype(np.float64)
    shift: np.ndarray = (wide * mean).sum(axis=others, keepdims=True) ** 2
    return shift + (wide**2 * variance).sum(axis=others, keepdims=True)


def best_scales(
    weight: np.ndarray,
    scales: np.ndarray,
    axis: int | None,
    encode: Callable[[np.ndarray], np.ndarray],
    readers: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """The scale of each output channel with the smallest `expected_error`, within an octave from the one given on.

    An octave is all there is to try: at twice the scale the grid is the same again, as far as the smallest numbers of
    the format are not reached. No scale is smaller than the one given, so nothing is clipped; among equals that wins.

    Args:
        weight: float32.
        scales: the smallest to try, (channels,), or () with axis None, float32: those of the largest |w|.
        axis: the weight's axis of output channels.
        encode: to codes of the nearest numbers, which `astype(float32)` gives.
        readers: mean and variance of the inputs, laid along the weight, for each product with this weight.

    Returns:
        float32, of the shape of `scales`.
    """
    shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
    start = scales.reshape(shape)
    best, least = start, np.full(start.shape, np.inf)
    for step in range(STEPS):
        tried = start * np.float32(2 ** (step / STEPS))
        errors = encode(weight / tried).astype(np.float32) * tried - weight
        error = np.sum([expected_error(errors, *reader, axis) for reader in readers], axis=0)
        best, least = np.where(error < least, tried, best), np.minimum(error, least)
    return best.reshape(scales.shape)
