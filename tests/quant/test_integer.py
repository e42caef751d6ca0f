"""Products and convolutions in whole numbers, bit for bit against ONNX's reference; what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from trtkit.quant.formats import INT8
from trtkit.quant.integer import integer_conv, integer_matmul, quantized_conv, quantized_matmul, requantize
from trtkit.quant.qdq import quantize_weight

CODES = st.sampled_from([np.int8, np.uint8])


def reference(op: str, out: type, inputs: dict[str, np.ndarray], **attributes: Any) -> np.ndarray:
    """One operator in ONNX's own evaluator."""
    kind = helper.np_dtype_to_tensor_dtype
    takes = [helper.make_tensor_value_info(n, kind(a.dtype), a.shape) for n, a in inputs.items()]
    gives = helper.make_tensor_value_info("y", kind(np.dtype(out)), None)
    node = helper.make_node(op, list(inputs), ["y"], **attributes)
    model = helper.make_model(
        helper.make_graph([node], "g", takes, [gives]), opset_imports=[helper.make_opsetid("", 21)]
    )
    (y,) = ReferenceEvaluator(model).run(None, inputs)
    return np.asarray(y)


def codes(rng: np.random.Generator, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Any code, the ends of the range more often than the others."""
    limits = np.iinfo(dtype)
    ends = rng.choice([limits.min, limits.max], shape)
    return np.where(rng.random(shape) < 0.3, ends, rng.integers(limits.min, limits.max + 1, shape)).astype(dtype)


def zero(rng: np.random.Generator, dtype: type, size: int | None = None) -> np.ndarray:
    return codes(rng, dtype, () if size is None else (size,))


def scale(rng: np.random.Generator, size: int | None = None, halves: bool = False) -> np.ndarray:
    """Scales of every size; with `halves` powers of two, so that sums often lie halfway between codes."""
    exponent = rng.uniform(-9, -1, size)
    return np.asarray(2.0 ** (np.rint(exponent) if halves else exponent), np.float32)


def suitable(sums: np.ndarray, x_scale: np.ndarray, w_scale: np.ndarray, halves: bool) -> np.ndarray:
    """A scale of the result in which some sums saturate and most do not."""
    wanted = max(float(np.abs(sums).mean() * x_scale * w_scale.mean()), 1e-6) / 60
    return np.asarray(2.0 ** np.rint(np.log2(wanted)) if halves else wanted, np.float32)


@given(st.integers(0, 2**32 - 1), CODES, CODES, st.booleans(), st.booleans(), st.integers(1, 40))
def test_matmul_is_the_reference_to_the_bit(
    seed: int, x_type: type, w_type: type, per_column: bool, halves: bool, k: int
) -> None:
    rng = np.random.default_rng(seed)
    x, w = codes(rng, x_type, (2, 3, k)), codes(rng, w_type, (k, 5))
    x_zero, w_zero = zero(rng, x_type), zero(rng, w_type, 5 if per_column else None)
    sums = integer_matmul(x, w, int(x_zero), w_zero)
    want = reference("MatMulInteger", np.int32, {"x": x, "w": w, "x_zero": x_zero, "w_zero": w_zero})
    np.testing.assert_array_equal(sums, want)
    assert sums.dtype == np.int32

    x_scale, w_scale = scale(rng, halves=halves), scale(rng, 5 if per_column else None, halves)
    y_scale, y_zero = suitable(sums, x_scale, w_scale, halves), zero(rng, x_type)
    inputs = {"x": x, "xs": x_scale, "xz": x_zero, "w": w, "ws": w_scale, "wz": w_zero, "ys": y_scale, "yz": y_zero}
    y = quantized_matmul(x, x_scale, w, w_scale, y_scale, x_zero=int(x_zero), w_zero=w_zero, y_zero=int(y_zero))
    np.testing.assert_array_equal(y, reference("QLinearMatMul", x_type, inputs))
    assert y.dtype == x_type


@given(
    st.integers(0, 2**32 - 1), CODES, CODES, st.booleans(), st.booleans(), st.sampled_from([1, 2, 4]),
    st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.booleans(),
)  # fmt: skip
def test_conv_is_the_reference_to_the_bit(
    seed: int, x_type: type, w_type: type, per_channel: bool, halves: bool, group: int,
    stride: int, dilation: int, pad: int, biased: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    x, w = codes(rng, x_type, (2, 4, 7, 6)), codes(rng, w_type, (8, 4 // group, 3, 2))
    shape = {"strides": [stride, 1], "pads": [pad, 1, 1, 0], "dilations": [1, dilation], "group": group}
    x_zero, w_zero = zero(rng, x_type), zero(rng, w_type, 8 if per_channel else None)
    sums = integer_conv(x, w, int(x_zero), w_zero, **shape)
    inputs = {"x": x, "w": w, "x_zero": x_zero, "w_zero": w_zero}
    np.testing.assert_array_equal(sums, reference("ConvInteger", np.int32, inputs, **shape))
    assert sums.dtype == np.int32

    x_scale, w_scale = scale(rng, halves=halves), scale(rng, 8 if per_channel else None, halves)
    bias = rng.integers(-5000, 5000, 8).astype(np.int32) if biased else None
    y_scale, y_zero = suitable(sums, x_scale, w_scale, halves), zero(rng, x_type)
    inputs = {"x": x, "xs": x_scale, "xz": x_zero, "w": w, "ws": w_scale, "wz": w_zero, "ys": y_scale, "yz": y_zero}
    inputs |= {} if bias is None else {"b": bias}
    y = quantized_conv(
        x, x_scale, w, w_scale, y_scale, bias, x_zero=int(x_zero), w_zero=w_zero, y_zero=int(y_zero), **shape
    )  # fmt: skip
    np.testing.assert_array_equal(y, reference("QLinearConv", x_type, inputs, **shape))


def test_conv_along_one_axis_and_three() -> None:
    rng = np.random.default_rng(0)
    for sizes, kernel in (((9,), (3,)), ((4, 5, 6), (2, 3, 1))):
        x, w = codes(rng, np.int8, (2, 3, *sizes)), codes(rng, np.int8, (4, 3, *kernel))
        want = reference("ConvInteger", np.int32, {"x": x, "w": w, "xz": np.array(3, np.int8)})
        np.testing.assert_array_equal(integer_conv(x, w, 3), want)


def test_half_goes_to_even_and_the_rest_saturates() -> None:
    sums = np.array([-1000, -3, -1, 0, 1, 3, 5, 1000], np.int32)
    assert requantize(sums, 0.5).tolist() == [-128, -2, 0, 0, 0, 2, 2, 127]
    assert requantize(sums, 0.5, 1, np.uint8).tolist() == [0, 0, 0, 1, 2, 2, 4, 255]  # the zero point comes first
    per_channel = requantize(np.full((2, 2), 10, np.int32), np.array([[1.0], [0.1]]))
    assert per_channel.tolist() == [[10, 10], [1, 1]]


def test_the_scales_are_multiplied_in_the_order_of_the_reference() -> None:
    """Exactly halfway with one order of float32 operations, beside it with another."""
    rng, one = np.random.default_rng(0), np.ones((1, 1), np.int8)
    zero_point, others = np.zeros((), np.int8), 0
    for _ in range(200):
        x_scale, w_scale = scale(rng), scale(rng)
        y_scale = np.asarray(2 * x_scale * w_scale)
        inputs = {"x": one, "xs": x_scale, "xz": zero_point, "w": one, "ws": w_scale, "wz": zero_point}
        y = quantized_matmul(one, x_scale, one, w_scale, y_scale)
        assert y == reference("QLinearMatMul", np.int8, inputs | {"ys": y_scale, "yz": zero_point}) == 0
        others += bool(x_scale * (w_scale / y_scale) > 0.5)
    assert others > 1


def test_sums_that_int32_does_not_hold_wrap_around_as_in_the_reference() -> None:
    x, w = np.full((1, 131_073), -128, np.int8), np.full((131_073, 1), -128, np.int8)
    assert integer_matmul(x[:, :131_071], w[:131_071]).item() == 131_071 * 2**14
    assert integer_matmul(x, w).item() == 131_073 * 2**14 - 2**32
    np.testing.assert_array_equal(integer_matmul(x, w), reference("MatMulInteger", np.int32, {"x": x, "w": w}))


def test_a_product_of_codes_is_the_product_of_the_numbers_but_for_rounding() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((32, 64)).astype(np.float32), rng.standard_normal((64, 16)).astype(np.float32)
    want = x @ w
    x_scale, y_scale = np.abs(x).max() / 127, np.abs(want).max() / 127
    w_codes, w_scale = quantize_weight(w, axis=1)
    have = quantized_matmul(INT8.encode(x, x_scale), x_scale, w_codes, w_scale, y_scale) * y_scale
    assert np.sqrt(((want - have) ** 2).mean() / (want**2).mean()) < 0.03


@pytest.mark.parametrize(("call", "says"), [
    (lambda: integer_matmul(np.zeros((1, 2)), np.zeros((2, 1), np.int8)), "int8 or uint8, got float64"),
    (lambda: integer_matmul(np.zeros((1, 2), np.int8), np.zeros((3, 1), np.int8)), "share K"),
    (lambda: integer_matmul(np.zeros((1, 2), np.int8), np.zeros((2, 1), np.int8), 128), "-128 to 127, got 128"),
    (lambda: integer_conv(np.zeros((1, 4, 5), np.int8), np.zeros((4, 4, 1, 1), np.int8)), "as many axes"),
    (lambda: integer_conv(np.zeros((1, 4, 5, 5), np.int8), np.zeros((4, 4, 1, 1), np.int8), group=2), "In 2 groups"),
    (lambda: integer_conv(np.zeros((1, 4, 5), np.int8), np.zeros((4, 4, 1), np.int8), pads=(1,)), "pads 2"),
    (lambda: requantize(np.zeros(1, np.int32), 1.0, dtype=np.int16), "int8 or uint8, got int16"),
    (lambda: quantized_matmul(np.zeros((1, 2), np.int8), 0.0, np.zeros((2, 1), np.int8), 1.0, 1.0), "positive"),
    (lambda: quantized_conv(np.zeros((1, 1, 2), np.int8), 1.0, np.zeros((1, 1, 1), np.int8), 1.0, 1.0, np.zeros(1)),
     "has to be int32, got float64"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
