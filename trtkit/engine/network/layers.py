"""One short function an operator: what TensorRT's network API has for it, and in which layout it wants the weights.

Every function takes the `Writer` and TensorRT tensors and returns a tensor. Images are (N, C, H, W) here, always.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from trtkit.engine.network.writer import Writer, dims
from trtkit.engine.trt import trt

Padding: TypeAlias = "str | Sequence[int]"  # "same", "valid", or as much before as behind each axis


def convolution(
    w: Writer, x: trt.ITensor, kernel: np.ndarray, bias: Any = None, *,
    stride: Sequence[int] = (1, 1), padding: Padding = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
) -> trt.ITensor:  # fmt: skip
    """Convolution of (N, C, H, W) with a kernel (outputs, C / groups, kernel height, kernel width)."""
    outputs, window = kernel.shape[0], dims(kernel.shape[2:])
    layer = w.network.add_convolution_nd(x, outputs, window, w.weights(kernel), w.weights(bias))
    layer.stride_nd, layer.dilation_nd, layer.num_groups = dims(stride), dims(dilation), groups
    _set_padding(layer, padding)
    return w.done(layer)


def deconvolution(
    w: Writer, x: trt.ITensor, kernel: np.ndarray, bias: Any = None, *,
    stride: Sequence[int] = (1, 1), padding: Padding = (0, 0), groups: int = 1,
) -> trt.ITensor:  # fmt: skip
    """Transposed convolution with a kernel (C, outputs / groups, kernel height, kernel width)."""
    outputs, window = kernel.shape[1] * groups, dims(kernel.shape[2:])
    layer = w.network.add_deconvolution_nd(x, outputs, window, w.weights(kernel), w.weights(bias))
    layer.stride_nd, layer.num_groups = dims(stride), groups
    _set_padding(layer, padding)
    return w.done(layer)


def _set_padding(layer: Any, padding: Padding) -> None:
    """ "same" is Keras' rule: output = ceil(input / stride), and of an odd amount of padding the larger part behind."""
    if padding == "same":
        layer.padding_mode = trt.PaddingMode.SAME_UPPER
    elif padding != "valid":
        layer.pre_padding = layer.post_padding = tuple(padding)


def pool(
    w: Writer, x: trt.ITensor, kind: str, window: Sequence[int], *,
    stride: Sequence[int], padding: Padding = (0, 0), count_padding: bool = False, round_up: bool = False,
) -> trt.ITensor:  # fmt: skip
    """Pooling of (N, C, H, W); `kind` is "MAX" or "AVERAGE". Keras never counts padding into an average, torch does."""
    layer = w.network.add_pooling_nd(x, getattr(trt.PoolingType, kind), dims(window))
    layer.stride_nd, layer.average_count_excludes_padding = dims(stride), not count_padding
    if round_up:
        layer.padding_mode = trt.PaddingMode.EXPLICIT_ROUND_UP
    _set_padding(layer, padding)
    return w.done(layer)


def linear(w: Writer, x: trt.ITensor, weight: np.ndarray, bias: Any = None) -> trt.ITensor:
    """x (..., inputs) times a weight (outputs, inputs), as torch keeps it, plus a bias (outputs,)."""
    ones = (1,) * (len(x.shape) - 2)  # a matrix product wants as many dimensions on both sides
    matrix = w.constant(np.reshape(weight, (*ones, *weight.shape)))
    y = matmul(w, x, matrix, transpose=True)
    return y if bias is None else elementwise(w, "SUM", y, w.constant(np.reshape(bias, (1, *ones, -1))))


def matmul(w: Writer, a: trt.ITensor, b: trt.ITensor, *, transpose: bool = False) -> trt.ITensor:
    """a (..., m, k) times b (..., k, n), or with `transpose` times b (..., n, k)."""
    a, b = same_rank(w, a, b)
    kind = trt.MatrixOperation.TRANSPOSE if transpose else trt.MatrixOperation.NONE
    return w.done(w.network.add_matrix_multiply(a, trt.MatrixOperation.NONE, b, kind))


def affine(w: Writer, x: trt.ITensor, scale: np.ndarray, shift: np.ndarray, axis: int) -> trt.ITensor:
    """x * scale + shift, one number each for every index of `axis`: batch normalisation with stored statistics."""
    mode = trt.ScaleMode.CHANNEL
    return w.done(w.network.add_scale_nd(x, mode, w.weights(shift), w.weights(scale), trt.Weights(), axis))


def batch_norm(
    w: Writer, x: trt.ITensor, mean: Any, variance: Any, gamma: Any, beta: Any, epsilon: float, axis: int
) -> trt.ITensor:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta; `gamma` and `beta` may be None."""
    scale = 1 / np.sqrt(np.asarray(variance, np.float64) + epsilon)
    scale = scale if gamma is None else scale * gamma
    shift = -np.asarray(mean, np.float64) * scale
    return affine(w, x, scale, shift if beta is None else shift + beta, axis)


def layer_norm(w: Writer, x: trt.ITensor, gamma: Any, beta: Any, epsilon: float, axes: Sequence[int]) -> trt.ITensor:
    """Mean 0 and variance 1 over `axes`, then times gamma plus beta: arrays of the shape of these axes, or None."""
    rank = len(x.shape)
    shape = [x.shape[i] if i in axes else 1 for i in range(rank)]
    scale = np.ones(shape) if gamma is None else np.reshape(gamma, shape)
    shift = np.zeros(shape) if beta is None else np.reshape(beta, shape)
    layer = w.network.add_normalization(x, w.constant(scale), w.constant(shift), mask(axes))
    layer.epsilon = epsilon
    return w.done(layer)


def mask(axes: Sequence[int]) -> int:
    """TensorRT takes sets of axes as bits: (1, 2) is 0b110."""
    return sum(1 << axis for axis in axes)


def activation(w: Writer, x: trt.ITensor, kind: str, alpha: float = 0, beta: float = 0) -> trt.ITensor:
    """One of `trt.ActivationType`: "RELU", "SIGMOID", "TANH", "LEAKY_RELU", "CLIP", "GELU_ERF", ..."""
    layer = w.network.add_activation(x, getattr(trt.ActivationType, kind))
    layer.alpha, layer.beta = alpha, beta
    return w.done(layer)


SELU = ("SELU", 1.6732632423543772, 1.0507009873554805)  # its two numbers, from Klambauer et al. 2017, section 2


def silu(w: Writer, x: trt.ITensor) -> trt.ITensor:
    """x sigmoid(x), also called swish: no activation of TensorRT's own, but two layers that become one kernel."""
    return elementwise(w, "PROD", x, activation(w, x, "SIGMOID"))


def hard_swish(w: Writer, x: trt.ITensor) -> trt.ITensor:
    """x clip(x / 6 + 1/2, 0, 1)"""
    return elementwise(w, "PROD", x, activation(w, x, "HARD_SIGMOID", 1 / 6, 0.5))


def softmax(w: Writer, x: trt.ITensor, axis: int = -1) -> trt.ITensor:
    """By default over the last axis, as frameworks have it. Left alone, TensorRT would take another one."""
    layer = w.network.add_softmax(x)
    layer.axes = mask([axis % len(x.shape)])
    return w.done(layer)


def elementwise(w: Writer, kind: str, a: trt.ITensor, b: trt.ITensor) -> trt.ITensor:
    """One of `trt.ElementWiseOperation`: "SUM", "PROD", "SUB", "DIV", "MAX", ...; sizes of 1 are repeated."""
    a, b = same_rank(w, a, b)
    return w.done(w.network.add_elementwise(a, b, getattr(trt.ElementWiseOperation, kind)))


def unary(w: Writer, kind: str, x: trt.ITensor) -> trt.ITensor:
    """One of `trt.UnaryOperation`: "EXP", "SQRT", "NEG", ..."""
    return w.done(w.network.add_unary(x, getattr(trt.UnaryOperation, kind)))


def same_rank(w: Writer, a: trt.ITensor, b: trt.ITensor) -> tuple[trt.ITensor, trt.ITensor]:
    """Both with as many dimensions as the larger one, new ones of size 1 in front: TensorRT wants it written out."""
    rank = max(len(a.shape), len(b.shape))
    return lifted(w, a, rank), lifted(w, b, rank)


def lifted(w: Writer, x: trt.ITensor, rank: int) -> trt.ITensor:
    missing = rank - len(x.shape)
    return unsqueeze(w, x, range(missing)) if missing else x


def reduce(w: Writer, kind: str, x: trt.ITensor, axes: Sequence[int], keep: bool = False) -> trt.ITensor:
    """One of `trt.ReduceOperation` over some axes: "AVG", "SUM", "MAX", "MIN", "PROD"."""
    return w.done(w.network.add_reduce(x, getattr(trt.ReduceOperation, kind), mask(axes), keep))


def transpose(w: Writer, x: trt.ITensor, order: Sequence[int]) -> trt.ITensor:
    layer = w.network.add_shuffle(x)
    layer.first_transpose = trt.Permutation(list(order))
    return w.done(layer)


def reshape(w: Writer, x: trt.ITensor, shape: Sequence[int]) -> trt.ITensor:
    """TensorRT's rule: 0 is "as it was at this place", and one -1 "what is left"."""
    layer = w.network.add_shuffle(x)
    layer.reshape_dims = dims(shape)
    return w.done(layer)


def unsqueeze(w: Writer, x: trt.ITensor, axes: Sequence[int]) -> trt.ITensor:
    """New axes of size 1 at these places of the result."""
    rank = len(x.shape) + len(axes)
    old = iter(range(len(x.shape)))
    order = [None if place in axes else next(old) for place in range(rank)]
    sizes = [1 if source is None else x.shape[source] for source in order]
    if sizes.count(-1) <= 1:
        return reshape(w, x, sizes)
    known = shape_of(w, x)  # several sizes are known at run time only, so they are put together there
    parts = [w.constant([1]) if source is None else size_of(w, known, source) for source in order]
    shape = concatenate(w, parts, 0)
    layer = w.network.add_shuffle(x)
    layer.set_input(1, shape)
    return w.done(layer)


def squeeze(w: Writer, x: trt.ITensor, axes: Sequence[int]) -> trt.ITensor:
    """Without these axes, which have size 1."""
    return reduce(w, "SUM", x, axes)


def shape_of(w: Writer, x: trt.ITensor) -> trt.ITensor:
    return w.done(w.network.add_shape(x))


def size_of(w: Writer, shape: trt.ITensor, axis: int) -> trt.ITensor:
    """One entry of a shape, as a tensor of shape (1,)."""
    return w.done(w.network.add_slice(shape, dims([axis]), dims([1]), dims([1])))


def crop(
    w: Writer, x: trt.ITensor, start: Sequence[int], size: Sequence[int], step: Sequence[int] | None = None
) -> trt.ITensor:
    """A block of x, a number an axis; a size of -1 takes the whole of an axis whose size is known at run time only."""
    begin, steps = dims(start), dims(step or [1] * len(size))
    if -1 not in size:
        return w.done(w.network.add_slice(x, begin, dims(size), steps))
    known = shape_of(w, x)
    parts = [size_of(w, known, axis) if n == -1 else w.constant([n]) for axis, n in enumerate(size)]
    sizes = concatenate(w, parts, 0)
    layer = w.network.add_slice(x, begin, dims([1] * len(size)), steps)
    layer.set_input(2, sizes)
    return w.done(layer)


def repeat(w: Writer, array: np.ndarray, like: trt.ITensor) -> trt.ITensor:
    """An array (1, ...) once for every entry of a batch, whose size is that of `like`: a slice with step 0."""
    sizes = concatenate(w, [size_of(w, shape_of(w, like), 0), w.constant(array.shape[1:])], 0)
    begin, steps = dims([0] * array.ndim), dims([0] + [1] * (array.ndim - 1))
    layer = w.network.add_slice(w.constant(array), begin, dims(array.shape), steps)
    layer.set_input(2, sizes)
    return w.done(layer)


def pad(w: Writer, x: trt.ITensor, before: Sequence[int], after: Sequence[int]) -> trt.ITensor:
    """Zeros around the height and width of (N, C, H, W); negative numbers cut off instead."""
    return w.done(w.network.add_padding_nd(x, dims(before), dims(after)))


def concatenate(w: Writer, tensors: Sequence[trt.ITensor], axis: int) -> trt.ITensor:
    """Joined along an axis. Left alone, TensorRT would take the third axis from the end."""
    layer = w.network.add_concatenation(list(tensors))
    layer.axis = axis % len(tensors[0].shape)
    return w.done(layer)


def embedding(w: Writer, x: trt.ITensor, table: np.ndarray) -> trt.ITensor:
    """Rows of a table (words, width) for the whole numbers in x."""
    indices = x if x.dtype in (trt.int32, trt.int64) else cast(w, x, trt.int32)
    return w.done(w.network.add_gather(w.constant(table), indices, 0))


def cast(w: Writer, x: trt.ITensor, dtype: trt.DataType) -> trt.ITensor:
    return w.done(w.network.add_cast(x, dtype))


def split_heads(w: Writer, x: trt.ITensor, heads: int) -> trt.ITensor:
    """(N, T, heads * size) -> (N, heads, T, size)"""
    layer = w.network.add_shuffle(x)
    layer.reshape_dims = dims((0, 0, heads, x.shape[2] // heads))
    layer.second_transpose = trt.Permutation([0, 2, 1, 3])
    return w.done(layer)


def join_heads(w: Writer, x: trt.ITensor) -> trt.ITensor:
    """(N, heads, T, size) -> (N, T, heads * size)"""
    layer = w.network.add_shuffle(x)
    layer.first_transpose = trt.Permutation([0, 2, 1, 3])
    layer.reshape_dims = dims((0, 0, x.shape[1] * x.shape[3]))
    return w.done(layer)


def attention(
    w: Writer, query: trt.ITensor, key: trt.ITensor, value: trt.ITensor, *, scale: float | None = None,
    added: trt.ITensor | None = None,
) -> trt.ITensor:  # fmt: skip
    """Scaled dot product, softmax(query keyᵀ scale + added) value, on (N, heads, T, size); scale is 1/√size."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = matmul(w, elementwise(w, "PROD", query, w.constant([scale])), key, transpose=True)
    scores = scores if added is None else elementwise(w, "SUM", scores, added)
    return matmul(w, softmax(w, scores), value)


def causal(length: int) -> np.ndarray:
    """What to add to scores (T, T) so that no position sees a later one: a large negative number, for no infinity
    minus an infinity may come about."""
    return np.triu(np.full((length, length), -1e9, np.float32), 1)
