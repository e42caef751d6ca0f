"""What each of TensorRT's layers computes, in PyTorch: one short function a kind of layer, read back from the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trtkit.engine.trt import trt
from trtkit.errors import ModelError

Operator: TypeAlias = Callable[..., Tensor]
OPERATORS: dict[str, Operator] = {}
# The class whose attributes a layer of that type has.
CLASSES = {
    "CONVOLUTION": "IConvolutionLayer", "DECONVOLUTION": "IDeconvolutionLayer", "POOLING": "IPoolingLayer",
    "ACTIVATION": "IActivationLayer", "SCALE": "IScaleLayer", "SOFTMAX": "ISoftMaxLayer", "SLICE": "ISliceLayer",
    "CONCATENATION": "IConcatenationLayer", "ELEMENTWISE": "IElementWiseLayer", "UNARY": "IUnaryLayer",
    "MATRIX_MULTIPLY": "IMatrixMultiplyLayer", "CONSTANT": "IConstantLayer", "SHUFFLE": "IShuffleLayer",
    "REDUCE": "IReduceLayer", "NORMALIZATION": "INormalizationLayer", "GATHER": "IGatherLayer", "CAST": "ICastLayer",
    "SHAPE": "IShapeLayer", "PADDING": "IPaddingLayer", "IDENTITY": "IIdentityLayer", "TRIP_LIMIT": "ITripLimitLayer",
    "ITERATOR": "IIteratorLayer", "RECURRENCE": "IRecurrenceLayer", "LOOP_OUTPUT": "ILoopOutputLayer",
}  # fmt: skip


def operator(kind: str) -> Callable[[Operator], Operator]:
    def mark(function: Operator) -> Operator:
        OPERATORS[kind] = function
        return function

    return mark


def axes_of(mask: int) -> list[int]:
    """0b110 -> [1, 2]

    >>> axes_of(6)
    [1, 2]
    """
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]


def _weights(array: np.ndarray, *shape: int) -> Tensor | None:
    """Weights as TensorRT gives them back: flat, and empty where there are none."""
    return torch.from_numpy(np.array(array).reshape(shape)) if array.size else None


# Images


def _padding(layer: Any, x: Tensor, window: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    """Before and after each axis, last axis first, as F.pad takes it."""
    pads = []
    for axis in reversed(range(len(window))):
        size, stride = x.shape[2 + axis], layer.stride_nd[axis]
        reach = (window[axis] - 1) * dilation[axis] + 1
        before, after = layer.pre_padding[axis], layer.post_padding[axis]
        mode = layer.padding_mode
        if mode in (trt.PaddingMode.SAME_UPPER, trt.PaddingMode.SAME_LOWER):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            before, after = total // 2, total - total // 2
            before, after = (before, after) if mode == trt.PaddingMode.SAME_UPPER else (after, before)
        elif mode == trt.PaddingMode.EXPLICIT_ROUND_UP:
            after += -(size + before + after - reach) % stride
        pads += [before, after]
    return pads


@operator("CONVOLUTION")
def _convolution(layer: Any, x: Tensor) -> Tensor:
    window, dilation = tuple(layer.kernel_size_nd), tuple(layer.dilation_nd)
    kernel = _weights(layer.kernel, layer.num_output_maps, x.shape[1] // layer.num_groups, *window)
    x = F.pad(x, _padding(layer, x, window, dilation))
    bias = _weights(layer.bias, -1)
    return F.conv2d(x, kernel, bias, tuple(layer.stride_nd), 0, dilation, layer.num_groups)  # type: ignore[arg-type]


@operator("DECONVOLUTION")
def _deconvolution(layer: Any, x: Tensor) -> Tensor:
    groups = layer.num_groups
    kernel = _weights(layer.kernel, x.shape[1], layer.num_output_maps // groups, *layer.kernel_size_nd)
    y = F.conv_transpose2d(x, kernel, _weights(layer.bias, -1), tuple(layer.stride_nd), groups=groups)  # type: ignore[arg-type]
    (top, left), (bottom, right) = layer.pre_padding, layer.post_padding
    return F.pad(y, [-left, -right, -top, -bottom])


@operator("POOLING")
def _pooling(layer: Any, x: Tensor) -> Tensor:
    window, stride = tuple(layer.window_size_nd), tuple(layer.stride_nd)
    pads = _padding(layer, x, window, (1, 1))
    if layer.type == trt.PoolingType.MAX:
        return F.max_pool2d(F.pad(x, pads, value=float("-inf")), window, stride)
    total = F.avg_pool2d(F.pad(x, pads), window, stride, divisor_override=1)
    counted = torch.ones_like(x[:1, :1])
    inside = 0.0 if layer.average_count_excludes_padding else 1.0
    return total / F.avg_pool2d(F.pad(counted, pads, value=inside), window, stride, divisor_override=1)


@operator("PADDING")
def _pad(layer: Any, x: Tensor) -> Tensor:
    (top, left), (bottom, right) = layer.pre_padding_nd, layer.post_padding_nd
    return F.pad(x, [left, right, top, bottom])


# Numbers by themselves


@operator("ACTIVATION")
def _activation(layer: Any, x: Tensor) -> Tensor:
    kind, a, b = layer.type.name, layer.alpha, layer.beta
    functions: dict[str, Callable[[], Tensor]] = {
        "RELU": lambda: x.relu(), "SIGMOID": lambda: x.sigmoid(), "TANH": lambda: x.tanh(),
        "LEAKY_RELU": lambda: F.leaky_relu(x, a), "ELU": lambda: torch.where(x > 0, x, a * torch.expm1(x)),
        "SELU": lambda: b * torch.where(x > 0, x, a * torch.expm1(x)), "SOFTSIGN": lambda: F.softsign(x),
        "SOFTPLUS": lambda: a * F.softplus(b * x), "CLIP": lambda: x.clamp(a, b),
        "HARD_SIGMOID": lambda: (a * x + b).clamp(0, 1), "GELU_ERF": lambda: F.gelu(x),
        "GELU_TANH": lambda: F.gelu(x, approximate="tanh"),
    }  # fmt: skip
    return functions[kind]()


@operator("SCALE")
def _scale(layer: Any, x: Tensor) -> Tensor:
    if layer.mode != trt.ScaleMode.CHANNEL or layer.power.size:
        raise ModelError(f"{layer.name!r}: the evaluator knows scales by channel only, without a power.")
    shape = [-1 if axis == layer.channel_axis else 1 for axis in range(x.ndim)]
    return x * torch.from_numpy(np.array(layer.scale)).reshape(shape) + torch.from_numpy(np.array(layer.shift)).reshape(
        shape
    )


@operator("ELEMENTWISE")
def _elementwise(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    functions: dict[str, Operator] = {
        "SUM": torch.add, "PROD": torch.mul, "SUB": torch.sub, "DIV": torch.div, "MAX": torch.maximum,
        "MIN": torch.minimum, "POW": torch.pow,
    }  # fmt: skip
    return functions[layer.op.name](a, b)


@operator("UNARY")
def _unary(layer: Any, x: Tensor) -> Tensor:
    functions = {"EXP": torch.exp, "SQRT": torch.sqrt, "NEG": torch.neg, "ABS": torch.abs, "LOG": torch.log,
                 "ERF": torch.erf}  # fmt: skip
    return functions[layer.op.name](x)


@operator("CAST")
def _cast(layer: Any, x: Tensor) -> Tensor:
    return x.to(getattr(torch, np.dtype(trt.nptype(layer.to_type)).name))


@operator("IDENTITY")
def _identity(layer: Any, x: Tensor) -> Tensor:
    return x


# Sums of products, sums, norms


@operator("MATRIX_MULTIPLY")
def _matmul(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    turned = [x.mT if op == trt.MatrixOperation.TRANSPOSE else x for x, op in ((a, layer.op0), (b, layer.op1))]
    return turned[0] @ turned[1]


@operator("SOFTMAX")
def _softmax(layer: Any, x: Tensor) -> Tensor:
    (axis,) = axes_of(layer.axes)
    return x.softmax(axis)


@operator("REDUCE")
def _reduce(layer: Any, x: Tensor) -> Tensor:
    functions: dict[str, Operator] = {"SUM": torch.sum, "AVG": torch.mean, "MAX": torch.amax, "MIN": torch.amin}
    return functions[layer.op.name](x, dim=axes_of(layer.axes), keepdim=layer.keep_dims)


@operator("NORMALIZATION")
def _normalization(layer: Any, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    axes = axes_of(layer.axes)
    variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + layer.epsilon) * scale + bias


# Shapes and places


@operator("CONSTANT")
def _constant(layer: Any) -> Tensor:
    return torch.from_numpy(np.array(layer.weights)).reshape(tuple(layer.shape))


@operator("SHAPE")
def _shape(layer: Any, x: Tensor) -> Tensor:
    return torch.tensor(x.shape)


@operator("SHUFFLE")
def _shuffle(layer: Any, x: Tensor, shape: Tensor | None = None) -> Tensor:
    x = x.permute([int(axis) for axis in layer.first_transpose][: x.ndim])
    if shape is not None:
        x = x.reshape(shape.tolist())
    elif (dims := _dims(layer.reshape_dims)) is not None:
        x = x.reshape([x.shape[axis] if n == 0 else n for axis, n in enumerate(dims)])
    return x.permute([int(axis) for axis in layer.second_transpose][: x.ndim])


def _dims(dims: Any) -> list[int] | None:
    """A shuffle without a reshape holds an invalid shape, which has no length."""
    try:
        return [int(n) for n in dims]
    except (TypeError, ValueError, RuntimeError):
        return None


@operator("SLICE")
def _slice(layer: Any, x: Tensor, start: Tensor | None = None, size: Tensor | None = None,
           step: Tensor | None = None) -> Tensor:  # fmt: skip
    if layer.mode != trt.SampleMode.STRICT_BOUNDS:
        raise ModelError(f"{layer.name!r}: the evaluator knows slices inside their tensor only.")
    starts, steps = layer.start, layer.stride
    sizes = size.tolist() if size is not None else layer.shape
    for axis in range(x.ndim):
        x = x.index_select(axis, starts[axis] + steps[axis] * torch.arange(sizes[axis]))
    return x


@operator("CONCATENATION")
def _concatenation(layer: Any, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, layer.axis)


@operator("GATHER")
def _gather(layer: Any, table: Tensor, indices: Tensor) -> Tensor:
    if layer.axis != 0 or layer.mode != trt.GatherMode.DEFAULT:
        raise ModelError(f"{layer.name!r}: the evaluator knows tables that are read by rows only.")
    return table[indices.long()]
