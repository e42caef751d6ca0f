"""Number formats, bit for bit against ml_dtypes, NumPy and ONNX's reference, on every code and on hard numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from trtkit.quant.formats import (
    BF16,
    FLOATS,
    FP4_E2M1,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    INT4,
    INT8,
    INTS,
    MXFP4,
    MXFP8,
    NVFP4,
    UINT4,
    UINT8,
    BlockFormat,
    FloatFormat,
    IntFormat,
    pack,
    round_tf32,
    unpack,
)

OTHERS = {
    "FP16": np.float16, "BF16": ml_dtypes.bfloat16, "E4M3": ml_dtypes.float8_e4m3fn, "E5M2": ml_dtypes.float8_e5m2,
    "E2M1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip
ONNX_TYPES = {"E4M3": TensorProto.FLOAT8E4M3FN, "E5M2": TensorProto.FLOAT8E5M2, "E2M1": TensorProto.FLOAT4E2M1}
every_float = pytest.mark.parametrize("kind", FLOATS.values(), ids=FLOATS)


def same_bits(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_array_equal(got, want.view(got.dtype))


def hard_numbers(kind: FloatFormat) -> np.ndarray:
    """Every number of the format, what lies half way between neighbours, and the float32s just beside; and specials."""
    numbers = kind.numbers
    ties = (numbers[1:] + numbers[:-1]) / 2
    exact = np.concatenate([numbers, ties, [kind.max * 1.01, kind.max * 4, 0.0, -0.0]])
    exact = exact[np.abs(exact) <= np.finfo(np.float32).max].astype(np.float32)
    beside = np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))
    rng = np.random.default_rng(0)
    random = rng.standard_normal(20_000) * 2.0 ** rng.integers(-40, 40, 20_000)
    specials = np.float32([np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45, np.finfo(np.float32).max])
    return np.concatenate([exact, *beside, random.astype(np.float32), specials])


# Floating point


@every_float
def test_every_code_decodes_as_elsewhere(kind: FloatFormat) -> None:
    codes = np.arange(1 << kind.bits, dtype=kind.dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        want = codes.view(OTHERS[kind.name]).astype(np.float64)
    np.testing.assert_array_equal(kind.decode(codes), want)
    assert np.array_equal(np.signbit(kind.decode(codes)[:1]), [False])


@every_float
def test_hard_numbers_encode_as_elsewhere(kind: FloatFormat) -> None:
    x = hard_numbers(kind)
    with np.errstate(all="ignore"):
        same_bits(kind.encode(x, saturate=False), x.astype(OTHERS[kind.name]))


@pytest.mark.parametrize("name", ONNX_TYPES)
@pytest.mark.parametrize("saturate", [True, False])
def test_cast_of_onnx_saturates_alike(name: str, saturate: bool) -> None:
    kind, x = FLOATS[name], hard_numbers(FLOATS[name])
    if name == "E2M1":
        node = helper.make_node("Cast", ["x"], ["y"], to=ONNX_TYPES[name])
    else:
        node = helper.make_node("Cast", ["x"], ["y"], to=ONNX_TYPES[name], saturate=int(saturate))
    (want,) = reference(node, {"x": x}, ONNX_TYPES[name])
    same_bits(kind.encode(x, saturate), want)


@every_float
def test_each_number_is_its_own_nearest(kind: FloatFormat) -> None:
    codes = np.arange(1 << kind.bits, dtype=kind.dtype)
    finite = codes[np.isfinite(kind.decode(codes))]
    np.testing.assert_array_equal(kind.encode(kind.decode(finite)), finite)


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(list(FLOATS.values())))
def test_no_number_of_the_format_is_nearer(x: float, kind: FloatFormat) -> None:
    got = float(kind.round(x))
    inside = min(max(x, -kind.max), kind.max)
    nearest = kind.numbers[np.argmin(np.abs(kind.numbers - inside))]
    assert abs(got - inside) == abs(nearest - inside)


def test_what_is_said_of_the_formats() -> None:
    """Largest and smallest numbers as their authors state them."""
    stated = {FP16: (65504, 2**-24), FP8_E4M3: (448, 2**-9), FP8_E5M2: (57344, 2**-16), FP4_E2M1: (6, 0.5)}
    for kind, (most, least) in stated.items():
        assert (kind.max, kind.smallest) == (most, least)
    assert BF16.max == pytest.approx(3.39e38, rel=1e-3)
    assert FP4_E2M1.numbers.tolist() == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_tf32_has_the_digits_of_fp16_and_the_range_of_fp32() -> None:
    x = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    np.testing.assert_array_equal(round_tf32(x), FP16.round(x).astype(np.float32)[...] * (np.abs(x) >= 2**-14)
                                  + round_tf32(x) * (np.abs(x) < 2**-14))  # fmt: skip
    tie = np.float32([1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-11)])
    assert round_tf32(tie).tolist() == [1, 1 + 2**-9, -1]
    assert np.isinf(round_tf32(np.float32([np.finfo(np.float32).max])))
    assert round_tf32(np.float32([np.inf, -np.inf])).tolist() == [np.inf, -np.inf]
    assert np.isnan(round_tf32(np.float32([np.nan])))
    np.testing.assert_array_equal(round_tf32(round_tf32(x)), round_tf32(x))


# Whole numbers


def reference(node: onnx.NodeProto, feed: dict[str, np.ndarray], kind: int) -> list[np.ndarray]:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feed.items()
    ]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", kind, None)])
    model = helper.make_model(graph, ir_version=11, opset_imports=[helper.make_opsetid("", 23)])
    return list(ReferenceEvaluator(model).run(None, feed))


ZERO_POINTS = {"INT8": np.int8(3), "UINT8": np.uint8(130), "INT4": ml_dtypes.int4(1), "UINT4": ml_dtypes.uint4(9)}


@pytest.mark.parametrize("kind", INTS.values(), ids=INTS)
@pytest.mark.parametrize("zero", [True, False])
def test_whole_numbers_are_those_of_quantizelinear(kind: IntFormat, zero: bool) -> None:
    rng = np.random.default_rng(2)
    scale = np.float32(0.1)
    steps = np.arange(-300, 300) + 0.5
    x = np.concatenate([steps * scale, rng.standard_normal(5000) * 20, [1e8, -1e8, 0.0]]).astype(np.float32)
    zero_point = np.asarray(ZERO_POINTS[kind.name] if zero else ZERO_POINTS[kind.name] * 0)
    zero_point = zero_point.astype(type(ZERO_POINTS[kind.name]))
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
    feed = {"x": x, "scale": np.asarray(scale), "zero": zero_point}
    (want,) = reference(node, feed, helper.np_dtype_to_tensor_dtype(zero_point.dtype))
    codes = kind.encode(x, scale, int(zero_point))
    np.testing.assert_array_equal(codes, want.astype(kind.dtype))
    back = helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"])
    (numbers,) = reference(back, {"q": want, "scale": np.asarray(scale), "zero": zero_point}, TensorProto.FLOAT)
    np.testing.assert_array_equal(kind.decode(codes, scale, int(zero_point)), numbers)


def test_codes_of_more_than_8_bits_have_room() -> None:
    x = np.linspace(-1, 1, 1001)
    for bits in (9, 12, 16):
        kind = IntFormat(f"INT{bits}", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        step = 1 / kind.highest
        assert kind.dtype == np.int16 and np.abs(kind.round(x, step) - x).max() <= step / 2 * 1.001
    assert (
        IntFormat("UINT12", 0, 4095).dtype == np.uint16
        and IntFormat("INT24", -(2**23), 2**23 - 1).encode(x, 2.0**-23).max() == 2**23 - 1
    )
    assert (INT8.dtype, INT4.dtype, UINT4.dtype) == (np.int8, np.int8, np.uint8)


def test_a_scale_for_each_channel() -> None:
    x = np.random.default_rng(3).standard_normal((4, 3, 5)).astype(np.float32)
    scale = np.float32([0.1, 0.2, 0.4]).reshape(3, 1)
    node = helper.make_node("QuantizeLinear", ["x", "scale"], ["y"], axis=1, output_dtype=TensorProto.INT8)
    (want,) = reference(node, {"x": x, "scale": scale.ravel()}, TensorProto.INT8)
    np.testing.assert_array_equal(INT8.encode(x, scale), want)


def test_blocks_of_int4_are_those_of_quantizelinear() -> None:
    x = np.random.default_rng(4).standard_normal((8, 64)).astype(np.float32)
    scale = np.abs(x.reshape(8, 4, 16)).max(axis=-1) / np.float32(7)
    node = helper.make_node(
        "QuantizeLinear", ["x", "scale"], ["y"], axis=1, block_size=16, output_dtype=TensorProto.INT4
    )
    (want,) = reference(node, {"x": x, "scale": scale}, TensorProto.INT4)
    np.testing.assert_array_equal(INT4.encode(x, scale.repeat(16, axis=1)), want.astype(np.int8))


def test_what_cannot_be_a_whole_number() -> None:
    with pytest.raises(ValueError, match="NaN has no INT8 code"):
        INT8.encode(np.float32([1, np.nan]), 0.1)
    for scale in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="scale has to be positive"):
            UINT8.encode(np.float32([1]), scale)
    large = np.float32([np.inf, -np.inf, 1e30, -1e30])  # ONNX's reference goes through int32, where 1e30 wraps round
    assert INT8.encode(large, 0.1).tolist() == [127, -128] * 2


@pytest.mark.parametrize("kind", [INT4, UINT4], ids=["INT4", "UINT4"])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_packing_is_onnxs(kind: IntFormat, count: int) -> None:
    codes = np.random.default_rng(5).integers(kind.lowest, kind.highest + 1, count).astype(kind.dtype)
    onnx_type = TensorProto.INT4 if kind is INT4 else TensorProto.UINT4
    tensor = helper.make_tensor(
        "t", onnx_type, [count], codes.astype(ml_dtypes.int4 if kind is INT4 else ml_dtypes.uint4)
    )
    stored = np.frombuffer(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data, np.uint8)
    np.testing.assert_array_equal(pack(codes), stored)
    np.testing.assert_array_equal(unpack(pack(codes), count, signed=kind is INT4), codes)


# Blocks


@pytest.mark.parametrize("kind", [MXFP8, MXFP4], ids=["MXFP8", "MXFP4"])
def test_mx_is_what_the_standard_writes(kind: BlockFormat) -> None:
    """OCP MX 1.0, section 6.3: the shared scale is 2 ** (floor(log2(amax)) - emax); elements are cast, saturated."""
    x = np.random.default_rng(6).standard_normal((5, 128)).astype(np.float32) * np.float32(3.0)
    x[0, :32] = 0
    x[1, 0] = 2.0**60
    emax = 8 if kind is MXFP8 else 2
    element = OTHERS[kind.element.name]
    for row, got_codes, got_scales in zip(x, *kind.encode(x)[:2], strict=True):
        for block, codes, scale in zip(row.reshape(-1, 32), got_codes.reshape(-1, 32), got_scales, strict=True):
            amax = np.abs(block).max()
            if amax == 0:
                assert not codes.any()
                continue
            power = int(np.floor(np.log2(amax))) - emax
            assert scale == power + 127
            want = np.clip(block / np.float32(2.0) ** power, -kind.element.max, kind.element.max)
            same_bits(codes, want.astype(element))
            assert np.array_equal(np.uint8(scale).view(ml_dtypes.float8_e8m0fnu).astype(np.float64), 2.0**power)


def test_nvfp4_scales_its_blocks_with_e4m3() -> None:
    x = np.random.default_rng(7).standard_normal((6, 64)) * np.logspace(-3, 3, 6)[:, None]
    blocks = NVFP4.encode(x)
    assert blocks.tensor_scale == pytest.approx(np.abs(x).max() / (448 * 6))
    amax = np.abs(x.reshape(6, 4, 16)).max(axis=-1)
    want = (amax / 6 / blocks.tensor_scale).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    same_bits(blocks.scales, want)
    step = (want.astype(np.float64) * blocks.tensor_scale)[..., None]
    assert (step == 0).any()  # blocks a million times smaller than the largest: even their scale is zero
    scaled = np.divide(x.reshape(6, 4, 16), step, out=np.zeros((6, 4, 16)), where=step > 0)
    same_bits(blocks.codes.reshape(6, 4, 16), scaled.astype(np.float32).astype(OTHERS["E2M1"]))


@pytest.mark.parametrize("kind", [MXFP8, MXFP4, NVFP4], ids=lambda kind: kind.name)
def test_blocks_come_back_close_and_zeros_as_zeros(kind: BlockFormat) -> None:
    x = np.random.default_rng(8).standard_normal((3, 4, 96)) * 10
    error = np.abs(kind.round(x) - x).reshape(3, 4, -1, kind.block)
    amax = np.abs(x).reshape(error.shape).max(axis=-1, keepdims=True)
    assert (error <= amax * (0.13 if kind is MXFP8 else 0.34)).all()
    assert not kind.round(np.zeros((2, kind.block))).any()
    with pytest.raises(ValueError, match="does not divide"):
        kind.encode(np.ones((2, kind.block + 1)))
    with pytest.raises(ValueError, match="whole blocks"):
        kind.encode(np.full(kind.block, np.inf))
