"""Matrix products and convolutions of 8-bit codes in whole numbers, bit for bit what ONNX's reference computes.

A code q stands for the number `scale * (q - zero)`. So a sum of products of numbers is a sum of products of whole
numbers, times both scales; the sum is exact, in int32, and only its way back to 8 bits rounds:

    y = sum_k x_k w_k = x_scale * w_scale * sum_k (qx_k - x_zero) (qw_k - w_zero)
    qy = round(y / y_scale + y_zero)

(Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
section 2.2; ONNX's MatMulInteger, ConvInteger, QLinearMatMul and QLinearConv.) TensorRT has zero points of 0 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

_CODES = (np.dtype(np.int8), np.dtype(np.uint8))


def integer_matmul(
    x_codes: np.ndarray, w_codes: np.ndarray, x_zero: int = 0, w_zero: np.ndarray | int = 0
) -> np.ndarray:
    """`(x_codes - x_zero) @ (w_codes - w_zero)` in int32, as ONNX's MatMulInteger.

    Args:
        x_codes: (..., K) int8 or uint8.
        w_codes: (..., K, N) int8 or uint8.
        w_zero: one zero point, or (N,), one for each column.

    Returns:
        (..., N) int32. A product of two int8 codes is at most 2**14 in size, so 131,071 of them fit for certain; a sum
        beyond wraps around.

    Raises:
        ValueError: the codes are no 8-bit integers, a zero point is none of them, or shapes do not fit.

    >>> integer_matmul(np.int8([[100, -3]]), np.int8([[100], [100]])).tolist()
    [[9700]]
    """
    x, w = _shifted(x_codes, x_zero), _shifted(w_codes, w_zero)
    if not x.ndim or w.ndim < 2 or x.shape[-1] != w.shape[-2]:
        raise ValueError(f"x (..., K) and w (..., K, N) have to share K, got {x.shape} and {w.shape}.")
    return x @ w


def integer_conv(
    x_codes: np.ndarray,
    w_codes: np.ndarray,
    x_zero: int = 0,
    w_zero: np.ndarray | int = 0,
    *,
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    group: int = 1,
) -> np.ndarray:
    """A convolution of codes in int32, as ONNX's ConvInteger: a matrix product of windows and kernels.

    Args:
        x_codes: (N, C, H, W), or any number of axes to slide along, int8 or uint8.
        w_codes: (M, C / group, kH, kW) int8 or uint8.
        w_zero: one zero point, or (M,), one for each output channel.
        strides, dilations: one for each axis to slide along; 1 by default.
        pads: before each of these axes, then after each, as ONNX has it; 0 by default. A padded place is the number 0,
            so the code `x_zero`.
        group: groups of channels that do not mix.

    Returns:
        (N, M, H', W') int32.

    Raises:
        ValueError: the codes are no 8-bit integers, a zero point is none of them, or shapes do not fit.

    >>> ones = np.ones((1, 1, 3, 3), np.int8)
    >>> integer_conv(ones, ones, pads=(1, 1, 1, 1))[0, 0].tolist()
    [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    """
    axes = x_codes.ndim - 2
    if axes < 1 or w_codes.ndim != x_codes.ndim:
        raise ValueError(f"x (N, C, H, W) and w (M, C / group, kH, kW) need as many axes, three at least; got "
                         f"{x_codes.shape} and {w_codes.shape}.")  # fmt: skip
    steps, apart, pads = strides or (1,) * axes, dilations or (1,) * axes, pads or (0,) * 2 * axes
    if (len(steps), len(apart), len(pads)) != (axes, axes, 2 * axes):
        raise ValueError(f"With {axes} axes to slide along, strides and dilations have {axes} numbers and pads "
                         f"{2 * axes}; got {strides}, {dilations} and {pads}.")  # fmt: skip
    per_channel = np.reshape(w_zero, (-1, *(1,) * (axes + 1))) if np.ndim(w_zero) else w_zero
    x, w = _shifted(x_codes, x_zero), _shifted(w_codes, per_channel)
    (batch, channels), (kernels, per_group) = x.shape[:2], w.shape[:2]
    if channels != per_group * group or kernels % group:
        raise ValueError(f"In {group} groups {channels} channels of x do not fit a weight {w.shape}.")
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)])
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], apart, strict=True)]
    windows = sliding_window_view(x, reach, axis=tuple(range(2, x.ndim)))
    every: list[Any] = [slice(None, None, step) for step in (*steps, *apart)]
    windows = windows[(..., *every)]  # (N, C, H', W', kH, kW)
    out = windows.shape[2 : 2 + axes]
    windows = windows.reshape(batch, group, per_group, int(np.prod(out)), -1).swapaxes(2, 3)
    columns = windows.reshape(*windows.shape[:3], -1)  # (N, group, H' * W', C / group * kH * kW)
    sums = columns @ w.reshape(group, kernels // group, -1).swapaxes(1, 2)
    return sums.swapaxes(2, 3).reshape(batch, kernels, *out)


def requantize(
    sums: np.ndarray, multiplier: np.ndarray | float, zero_point: int = 0, dtype: type | np.dtype = np.int8
) -> np.ndarray:
    """int32 sums back to 8 bits: `round(sums * multiplier + zero_point)`, half to even, saturated.

    Args:
        sums: int32, any shape.
        multiplier: `x_scale * w_scale / y_scale`, rounded to float32; one, or of a shape that broadcasts with the sums.
            It is multiplied in float64, where an int32 times a float32 is exact.
        zero_point: of the result.
        dtype: of the result, int8 or uint8.

    Raises:
        ValueError: the dtype is none of these, or the zero point is no code.

    >>> requantize(np.int32([1, 3, 5, 1000, -1000]), 0.5).tolist()
    [0, 2, 2, 127, -128]
    """
    codes = np.dtype(dtype)
    _check_codes("The result", codes, zero_point)
    exact = sums * np.asarray(multiplier, np.float32).astype(np.float64) + zero_point
    limits = np.iinfo(codes)
    return np.clip(np.rint(exact), limits.min, limits.max).astype(codes)


def quantized_matmul(
    x_codes: np.ndarray,
    x_scale: float,
    w_codes: np.ndarray,
    w_scale: np.ndarray | float,
    y_scale: float,
    *,
    x_zero: int = 0,
    w_zero: np.ndarray | int = 0,
    y_zero: int = 0,
) -> np.ndarray:
    """A matrix product from codes to codes, as ONNX's QLinearMatMul: sums in int32, then one rounding.

    Args:
        x_codes: (..., K) int8 or uint8.
        w_codes: (..., K, N) int8 or uint8.
        w_scale: one scale, or (N,), one for each column; so with `w_zero`.

    Returns:
        (..., N) codes of the type of x_codes.

    Raises:
        ValueError: as `integer_matmul`, or a scale is not positive.

    >>> x, w = np.float32([[0.5, -0.25]]), np.float32([[1.0], [0.5]])
    >>> y = quantized_matmul(np.int8([[100, -50]]), 0.005, np.int8([[100], [50]]), 0.01, y_scale=0.005)
    >>> (y * 0.005).tolist(), (x @ w).tolist()
    ([[0.375]], [[0.375]])
    """
    sums = integer_matmul(x_codes, w_codes, x_zero, w_zero)
    return requantize(sums, _multiplier(x_scale, w_scale, y_scale), y_zero, x_codes.dtype)


def quantized_conv(
    x_codes: np.ndarray,
    x_scale: float,
    w_codes: np.ndarray,
    w_scale: np.ndarray | float,
    y_scale: float,
    bias: np.ndarray | None = None,
    *,
    x_zero: int = 0,
    w_zero: np.ndarray | int = 0,
    y_zero: int = 0,
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    group: int = 1,
) -> np.ndarray:
    """A convolution from codes to codes, as ONNX's QLinearConv: sums in int32, then one rounding.

    Args:
        x_codes, w_codes, strides, pads, dilations, group: as `integer_conv` takes them.
        w_scale: one scale, or (M,), one for each output channel; so with `w_zero`.
        bias: (M,) int32, in steps of `x_scale * w_scale`, or None.

    Returns:
        (N, M, H', W') codes of the type of x_codes.

    Raises:
        ValueError: as `integer_conv`, a scale is not positive, or the bias is not int32.

    >>> x = np.int8([[[[1, 2], [3, 4]]]])
    >>> quantized_conv(x, 1.0, np.int8([[[[10]]]]), 0.5, 1.0, np.int32([2]))[0, 0].tolist()
    [[6, 11], [16, 21]]
    """
    sums = integer_conv(
        x_codes, w_codes, x_zero, w_zero, strides=strides, pads=pads, dilations=dilations, group=group
    )  # fmt: skip
    channel = (-1, *(1,) * (sums.ndim - 2))
    if bias is not None:
        if bias.dtype != np.int32:
            raise ValueError(f"The bias is added to int32 sums, so it has to be int32, got {bias.dtype}: "
                             "np.rint(bias / (x_scale * w_scale)).astype(np.int32).")  # fmt: skip
        sums = sums + bias.reshape(channel)
    multiplier = _multiplier(x_scale, w_scale, y_scale)
    return requantize(sums, multiplier.reshape(channel) if multiplier.ndim else multiplier, y_zero, x_codes.dtype)


def _multiplier(x_scale: float, w_scale: np.ndarray | float, y_scale: float) -> np.ndarray:
    """`x_scale * w_scale / y_scale` in float32, in this order, which the last bit depends on."""
    scales = [np.asarray(scale, np.float32) for scale in (x_scale, w_scale, y_scale)]
    for scale in scales:
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"A scale has to be positive and finite, got {scale[~(scale > 0)].ravel()[:3]}.")
    return np.asarray(scales[0] * scales[1] / scales[2])


def _shifted(codes: np.ndarray, zero_point: np.ndarray | int) -> np.ndarray:
    """codes - zero_point, int32."""
    _check_codes("The input", codes.dtype, zero_point)
    return np.asarray(codes.astype(np.int32) - np.asarray(zero_point, np.int32))


def _check_codes(what: str, dtype: np.dtype, zero_point: np.ndarray | int) -> None:
    if dtype not in _CODES:
        raise ValueError(f"{what} has to be codes, int8 or uint8, got {dtype}. trtkit.quant.formats.INT8 encodes.")
    limits = np.iinfo(dtype)
    if np.min(zero_point) < limits.min or np.max(zero_point) > limits.max:
        raise ValueError(f"A zero point of {dtype} is one of its codes, {limits.min} to {limits.max}, "
                         f"got {np.asarray(zero_point).tolist()}.")  # fmt: skip
