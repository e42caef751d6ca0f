"""Number formats: what a few bits can say, as short functions to read; bit for bit what ONNX and ml_dtypes compute.

A format turns real numbers into codes (`encode`) and codes into numbers (`decode`). Three kinds are in use on GPUs:

- `FloatFormat`: sign, exponent, mantissa. Steps grow with the number: a constant number of digits.
- `IntFormat`: equal steps, `scale` wide, which somebody has to choose: that is calibration.
- `BlockFormat`: small floats that share a scale in blocks of 16 or 32 neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format of at most 16 bits: `(-1) ** sign * 2 ** (exponent - bias) * 1.mantissa`.

    An exponent field of 0 means no leading 1 and the same power of two as 1 (subnormal numbers): the steps around zero
    are equal. Codes are given without the sign bit.

    Args:
        largest: the largest finite number.
        overflow: what a larger one becomes when it is not saturated to `largest`: infinity, or NaN where there is none.
        nan: what NaN becomes; with the other sign bit for a NaN whose sign is set.

    >>> FP8_E4M3
    FloatFormat('E4M3': 8 bits, up to 448, steps of 0.125 at 1, smallest 0.00195312)
    >>> FP8_E4M3.encode([1.0, 1.06, 1e9]).tolist(), FP8_E4M3.round([1.0, 1.06, 1e9]).tolist()
    ([56, 56, 126], [1.0, 1.0, 448.0])
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: int
    overflow: int
    nan: int

    def __repr__(self) -> str:
        return (
            f"FloatFormat({self.name!r}: {self.bits} bits, up to {self.max:g}, steps of {2.0**-self.mantissa_bits:g} "
            f"at 1, smallest {self.smallest:g})"
        )

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def dtype(self) -> np.dtype:
        """The unsigned integers that hold codes: uint8 or uint16."""
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16)

    @property
    def max(self) -> float:
        """The largest finite number."""
        return float(self.decode(self.largest))

    @property
    def smallest(self) -> float:
        """The smallest number above zero, which is the width of the steps around zero."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    @cached_property
    def numbers(self) -> np.ndarray:
        """All finite numbers in order, each once, float64."""
        values = self.decode(np.arange(1 << self.bits))
        return np.unique(values[np.isfinite(values)])

    def encode(self, x: np.ndarray | float | list[float], saturate: bool = True) -> np.ndarray:
        """The codes of the nearest numbers, of the one with an even mantissa where two are as near (IEEE 754).

        Args:
            x: any shape, float16, float32 or float64.
            saturate: numbers beyond the largest, infinities too, become the largest, as ONNX's Cast does it by itself;
                otherwise infinity, or NaN in a format without.

        Returns:
            Codes of the shape of x, uint8 or uint16.
        """
        x = np.asarray(x, np.float64)
        size = np.where(np.isfinite(x), np.abs(x), 0.0)
        exponent = np.maximum(_exponent(size), 1 - self.bias)  # no lower than that of the subnormal numbers
        steps = np.rint(np.ldexp(size, self.mantissa_bits - exponent)).astype(np.int64)  # rint: half to even
        # `steps` counts from the leading 1 on, so that the exponent field is one less; rounding up to the next power
        # of two carries into it by itself, and below the smallest normal number both are 0
        code = ((exponent + self.bias - 1) << self.mantissa_bits) + steps
        beyond = (code > self.largest) | np.isinf(x)
        code = np.where(beyond, self.largest if saturate else self.overflow, code)
        code = np.where(np.isnan(x), self.nan, code)
        return (code ^ (np.signbit(x).astype(np.int64) << (self.bits - 1))).astype(self.dtype)

    def decode(self, codes: np.ndarray | int) -> np.ndarray:
        """The numbers that codes stand for: float64, which holds them all exactly."""
        codes = np.asarray(codes, np.int64)
        magnitude = codes & ((1 << (self.bits - 1)) - 1)
        exponent, mantissa = magnitude >> self.mantissa_bits, magnitude & ((1 << self.mantissa_bits) - 1)
        leading = (exponent > 0).astype(np.int64) << self.mantissa_bits
        value = np.ldexp(
            (leading + mantissa).astype(np.float64), np.maximum(exponent, 1) - self.bias - self.mantissa_bits
        )
        value = np.where(magnitude > self.largest, np.nan, value)
        if self.overflow not in (self.largest, self.nan):
            value = np.where(magnitude == self.overflow, np.inf, value)
        return np.where(codes >> (self.bits - 1) & 1, -value, value)

    def round(self, x: np.ndarray | float | list[float], saturate: bool = True) -> np.ndarray:
        """x as this format holds it: `decode(encode(x))`."""
        return self.decode(self.encode(x, saturate))


# IEEE 754-2019; bfloat16 is the upper half of a float32.
FP16 = FloatFormat("FP16", 5, 10, 15, largest=0x7BFF, overflow=0x7C00, nan=0x7E00)
BF16 = FloatFormat("BF16", 8, 7, 127, largest=0x7F7F, overflow=0x7F80, nan=0x7FC0)
# Micikevicius et al. 2022, FP8 Formats for Deep Learning, table 1: for range E4M3 has no infinity, and only one NaN.
FP8_E4M3 = FloatFormat("E4M3", 4, 3, 7, largest=0x7E, overflow=0x7F, nan=0x7F)
FP8_E5M2 = FloatFormat("E5M2", 5, 2, 15, largest=0x7B, overflow=0x7C, nan=0x7E)
# OCP Microscaling Formats (MX) 1.0, 2023, section 5.3.3: neither infinity nor NaN. NaN becomes a zero, as in ml_dtypes.
FP4_E2M1 = FloatFormat("E2M1", 2, 1, 1, largest=0x7, overflow=0x7, nan=0x8)
FLOATS = {each.name: each for each in (FP16, BF16, FP8_E4M3, FP8_E5M2, FP4_E2M1)}


def round_tf32(x: np.ndarray) -> np.ndarray:
    """float32 as TF32 holds it: its 8 bits of exponent, and 10 bits of mantissa, those of FP16; float32.

    TF32 is no format to store: tensor cores read float32 like this (NVIDIA A100 Tensor Core GPU Architecture, 2020).
    Half goes to even here, as everywhere on this page; CUDA's `cvt.rna.tf32.f32` takes it away from zero.

    >>> round_tf32(np.float32([1 + 2**-11, 1 + 3 * 2**-11])).tolist() == [1.0, 1 + 2**-9]
    True
    """
    bits = np.asarray(x, np.float32).view(np.uint32)
    dropped = 13  # of the 23 bits of a float32's mantissa
    half = np.uint32((1 << (dropped - 1)) - 1) + (bits >> dropped & np.uint32(1))  # a carry moves on to the exponent
    rounded = (bits + half) & np.uint32(~((1 << dropped) - 1) & 0xFFFFFFFF)
    return np.where(np.isfinite(x), rounded, bits).astype(np.uint32).view(np.float32)


@dataclass(frozen=True)
class IntFormat:
    """Whole numbers of a few bits: `x ~ scale * (code - zero_point)`, as ONNX's QuantizeLinear and DequantizeLinear.

    >>> INT8.encode(np.float32([0.26, -1.0, 99.0]), scale=0.1).tolist()
    [3, -10, 127]
    >>> UINT8.encode(np.float32([0.26, -1.0]), scale=0.1, zero_point=10).tolist()
    [13, 0]
    """

    name: str
    lowest: int
    highest: int

    @property
    def bits(self) -> int:
        return (self.highest - self.lowest).bit_length()

    @property
    def dtype(self) -> np.dtype:
        """The whole bytes that hold a code."""
        bits = 8 if self.bits <= 8 else 16 if self.bits <= 16 else 32
        return np.dtype(f"int{bits}" if self.lowest < 0 else f"uint{bits}")

    def encode(self, x: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int = 0) -> np.ndarray:
        """`round(x / scale) + zero_point`, half to even, saturated; the division in the type of x.

        Args:
            x: any shape, float16, float32 or float64. NaN is not allowed, it has no code.
            scale: positive, of a shape that broadcasts with x: one number, (C, 1, 1) for one for each channel.

        Raises:
            ValueError: NaN in x, or a scale that is not a positive number.
        """
        x = np.asarray(x)
        scale = np.asarray(scale, x.dtype)
        if np.isnan(x).any():
            raise ValueError(f"NaN has no {self.name} code. Find out where it comes from before quantising.")
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"A scale has to be positive and finite, got {scale[~(scale > 0)].ravel()[:3]}.")
        with np.errstate(over="ignore"):
            steps = np.rint(x / scale)
        shifted = np.clip(steps.astype(np.float64) + zero_point, self.lowest, self.highest)
        return shifted.astype(self.dtype)

    def decode(self, codes: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int = 0) -> np.ndarray:
        """`(code - zero_point) * scale`, float32."""
        return ((codes.astype(np.int32) - zero_point) * np.asarray(scale, np.float32)).astype(np.float32)

    def round(self, x: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int = 0) -> np.ndarray:
        """x as these codes hold it, float32."""
        return self.decode(self.encode(x, scale, zero_point), scale, zero_point)


INT8 = IntFormat("INT8", -128, 127)
UINT8 = IntFormat("UINT8", 0, 255)
INT4 = IntFormat("INT4", -8, 7)
UINT4 = IntFormat("UINT4", 0, 15)
INTS = {each.name: each for each in (INT8, UINT8, INT4, UINT4)}


def pack(codes: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, two in a byte, the first in the lower half, as ONNX keeps them; an odd last one alone. uint8.

    >>> pack(np.array([1, -2, 3])).tolist()
    [225, 3]
    """
    low = np.asarray(codes).ravel().astype(np.uint8) & 0xF
    low = np.append(low, np.zeros(low.size % 2, np.uint8))
    return low[::2] | low[1::2] << 4


def unpack(packed: np.ndarray, count: int, signed: bool = True) -> np.ndarray:
    """What `pack` packed: `count` codes, int8, or uint8 where they are not signed.

    >>> unpack(np.array([225, 3], np.uint8), 3).tolist()
    [1, -2, 3]
    """
    codes = np.stack([packed & 0xF, packed >> 4], axis=-1).ravel()[:count]
    return np.where(codes > 7, codes.astype(np.int8) - 16, codes).astype(np.int8) if signed else codes


class Blocks(NamedTuple):
    """A tensor in a `BlockFormat`.

    Attributes:
        codes: of the elements, the shape of the tensor, uint8.
        scales: of the blocks, (..., n / block), uint8.
        tensor_scale: one more factor for the whole tensor; 1.0 in a format without.
    """

    codes: np.ndarray
    scales: np.ndarray
    tensor_scale: float


@dataclass(frozen=True)
class BlockFormat:
    """Small floats with a scale for each `block` neighbours along the last axis: range where it is wanted.

    MX formats (OCP Microscaling Formats 1.0, 2023, section 6.3) scale with powers of two, kept as 8 bits of exponent
    (E8M0). NVFP4 scales with E4M3, finer but of small range, so that the tensor needs a scale of its own beside them
    (NVIDIA, "Introducing NVFP4", 2025).

    >>> x = np.float32([[0.01] * 16 + [100.0] * 16])
    >>> NVFP4.round(x)[0, [0, 31]].round(4).tolist(), FP4_E2M1.round(x)[0, [0, 31]].tolist()
    ([0.0096, 100.0], [0.0, 6.0])
    >>> NVFP4.bits_per_number, MXFP8.bits_per_number
    (4.5, 8.25)
    """

    name: str
    element: FloatFormat
    block: int
    scale: FloatFormat | None = None  # None: powers of two

    @property
    def bits_per_number(self) -> float:
        """With the block's share of its scale; the one scale of the tensor is not counted."""
        return self.element.bits + 8 / self.block

    def encode(self, x: np.ndarray) -> Blocks:
        """The nearest codes.

        Args:
            x: (..., n) float, finite; n divides by the size of the block.

        Raises:
            ValueError: n does not divide, or x has NaN or infinity, which would spoil its whole block.
        """
        x = np.asarray(x, np.float64)
        if not x.ndim or x.shape[-1] % self.block:
            raise ValueError(f"{self.name} has blocks of {self.block} along the last axis; {x.shape} does not divide.")
        if not np.isfinite(x).all():
            raise ValueError(f"x has NaN or infinity, which would spoil whole blocks of {self.name}.")
        blocks = x.reshape(*x.shape[:-1], -1, self.block)
        amax = np.abs(blocks).max(axis=-1)
        if self.scale is None:
            tensor_scale = 1.0
            scales = np.clip(_exponent(amax) - _exponent(self.element.max) + _E8M0_BIAS, 0, 254).astype(np.uint8)
        else:
            tensor_scale = float(amax.max(initial=0)) / (self.scale.max * self.element.max) or 1.0
            scales = self.scale.encode(amax / self.element.max / tensor_scale)
        step = self._steps(scales, tensor_scale)[..., None]
        scaled = np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0)
        return Blocks(self.element.encode(scaled).reshape(x.shape), scales, tensor_scale)

    def decode(self, blocks: Blocks) -> np.ndarray:
        """The numbers, float64, of the shape of the codes."""
        values = self.element.decode(blocks.codes).reshape(*blocks.scales.shape, self.block)
        return (values * self._steps(blocks.scales, blocks.tensor_scale)[..., None]).reshape(blocks.codes.shape)

    def round(self, x: np.ndarray) -> np.ndarray:
        """x as this format holds it, float64."""
        return self.decode(self.encode(x))

    def _steps(self, scales: np.ndarray, tensor_scale: float) -> np.ndarray:
        if self.scale is None:
            return np.ldexp(1.0, scales.astype(np.int64) - _E8M0_BIAS)
        return self.scale.decode(scales) * tensor_scale


_E8M0_BIAS = 127


def _exponent(x: np.ndarray | float) -> np.ndarray:
    """floor(log2(x)), exactly; far below everything for 0."""
    return np.where(np.asarray(x) > 0, np.frexp(x)[1] - 1, -10_000)


MXFP8 = BlockFormat("MXFP8", FP8_E4M3, 32)
MXFP4 = BlockFormat("MXFP4", FP4_E2M1, 32)
NVFP4 = BlockFormat("NVFP4", FP4_E2M1, 16, scale=FP8_E4M3)
BLOCKS = {each.name: each for each in (MXFP8, MXFP4, NVFP4)}
