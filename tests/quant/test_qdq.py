"""quantize: where Q/DQ stand, what the numbers are, refusals, and a trained network on photographs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.quant.nets import net
from trtkit.errors import DataError, ModelError
from trtkit.importers import load
from trtkit.model import Model
from trtkit.quant.autocast import autocast
from trtkit.quant.calibrate import Calibration
from trtkit.quant.qdq import QUANTIZABLE, observable, quantize, quantize_report, quantize_weight


def data(count: int = 2) -> list[np.ndarray]:
    return [np.random.default_rng(i).standard_normal((4, 4, 6, 6)).astype(np.float32) for i in range(count)]


def sqnr(want: np.ndarray, have: np.ndarray) -> float:
    return float(10 * np.log10((want**2).sum() / ((want - have) ** 2).sum()))


def source(node: ir.Node, position: int) -> str:
    producer = node.inputs[position].producer()
    return producer.op_type if producer is not None else "-"


@pytest.mark.parametrize(("nodes", "weights", "scales", "outputs"), [
    ("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", {"w": (5, 4, 3, 3), "b": (5,)}, (5,), "float[n, 5, 6, 6] y"),
    ("y = ConvTranspose(x, w)", {"w": (4, 5, 1, 1)}, (5,), "float[n, 5, 6, 6] y"),
    ("f = Flatten(x) y = Gemm <transB = 1> (f, w)", {"w": (7, 144)}, (7,), "float[n, 7] y"),
    ("f = Flatten(x) y = Gemm(f, w)", {"w": (144, 7)}, (7,), "float[n, 7] y"),
    ("y = MatMul(x, w)", {"w": (6, 3)}, (3,), "float[n, 4, 6, 3] y"),
])  # fmt: skip
def test_each_operator(nodes: str, weights: dict[str, tuple[int, ...]], scales: tuple[int, ...], outputs: str) -> None:
    model = net(nodes, weights, outputs)
    int8 = quantize(model, data(), "max", ops=QUANTIZABLE)
    onnx.checker.check_model(int8.to_proto(), full_check=True)
    graph = int8.ir.graph
    assert graph.initializers["w_int8"].dtype == ir.DataType.INT8 and graph.initializers["w_scale"].shape == scales
    assert "w" not in graph.initializers
    assert "b" not in weights or graph.initializers["b"].dtype == ir.DataType.FLOAT
    assert sqnr(model.run(data()[0])["y"], int8.run(data()[0])["y"]) > 30
    assert int8.precision == "int8" and int8.history[-1].name == "quantize int8"
    assert int8.inputs == model.inputs and int8.outputs == model.outputs
    whole = quantize(model, data(), "max", per_channel=False, ops=QUANTIZABLE)
    assert whole.ir.graph.initializers["w_scale"].shape == ()
    assert sqnr(model.run(data()[0])["y"], whole.run(data()[0])["y"]) > 25


@pytest.mark.parametrize(("nodes", "weights", "outputs"), [
    ("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", {"w": (5, 4, 3, 3), "b": (5,)}, "float[n, 5, 6, 6] y"),
    ("f = Flatten(x) y = Gemm <transB = 1> (f, w)", {"w": (7, 144)}, "float[n, 7] y"),
    ("y = MatMul(x, w)", {"w": (6, 3)}, "float[n, 4, 6, 3] y"),
])  # fmt: skip
def test_each_operator_in_fp8(nodes: str, weights: dict[str, tuple[int, ...]], outputs: str) -> None:
    """What comes out is the operator on numbers of E4M3, as ml_dtypes rounds them."""
    model = net(nodes, weights, outputs)
    fp8 = quantize(model, data(), dtype="fp8", depthwise=True)  # few channels, which would stay float
    onnx.checker.check_model(fp8.to_proto(), full_check=True)
    graph = fp8.ir.graph
    assert graph.initializers["w_fp8"].dtype == ir.DataType.FLOAT8E4M3FN
    assert (fp8.precision, fp8.opset, fp8.history[-1].name) == ("fp8", 21, "quantize fp8")
    assert "by max from 2 batches" in fp8.history[-1].detail
    x, scale = data()[0], np.float32(max(np.abs(batch).max() for batch in data()) / 448)
    rounded = (x / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    exact, weight = model.copy(), graph.initializers["w_fp8"].const_value.numpy().astype(np.float32)
    axes = [1 if axis == (1 if nodes.startswith("y = MatMul") else 0) else 0 for axis in range(weight.ndim)]
    factors = graph.initializers["w_scale"].const_value.numpy()
    shape = [-1 if axis else 1 for axis in axes]
    exact.ir.graph.initializers["w"].const_value = ir.Tensor(weight * factors.reshape(shape), name="w")
    np.testing.assert_allclose(fp8.run(x)["y"], Model(exact.ir).run(rounded)["y"], atol=2e-5)
    assert 20 < sqnr(model.run(x)["y"], fp8.run(x)["y"]) < 45


def test_tensorrt_computes_in_fp8_what_is_written_so() -> None:
    pytest.importorskip("tensorrt_rtx")
    from trtkit.engine.build import build

    model = net("a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)", {"w": (6, 16), "v": (16, 6)})
    engine = build(quantize(model, data(), dtype="fp8"), shapes={"x": (4, 4, 6, 6)})
    assert engine.verification is not None and engine.verification.passed
    read = [tensor.dtype for layer in engine.layers if layer.kind == "gemm" for tensor in layer.inputs]
    assert read and set(read) == {"FP8"}


def test_one_pair_for_all_readers_of_a_tensor() -> None:
    model = net("a = Conv(x, w) b = Conv(x, v) y = Add(a, b)", {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)})
    int8 = quantize(model, data(), "max")
    assert int8.op_counts["QuantizeLinear"] == 2  # x, and one branch of the addition
    assert {node.name for node in int8.ir.graph} >= {"x_quantize", "x_dequantize", "w_dequantize", "v_dequantize"}


def test_residual_add_gets_int8_on_the_branch_that_is_no_convolution() -> None:
    model = net("r = Relu(x) a = Conv(r, w) y = Add(a, r)", {"w": (4, 4, 1, 1)})
    add = next(node for node in quantize(model, data(), "max").ir.graph if node.op_type == "Add")
    assert (source(add, 0), source(add, 1)) == ("Conv", "DequantizeLinear")
    swapped = net("r = Relu(x) a = Conv(r, w) y = Add(r, a)", {"w": (4, 4, 1, 1)})
    add = next(node for node in quantize(swapped, data(), "max").ir.graph if node.op_type == "Add")
    assert (source(add, 0), source(add, 1)) == ("DequantizeLinear", "Conv")


def test_of_two_convolutions_the_last_takes_the_addition() -> None:
    model = net("s = Conv(x, v) a = Conv(x, w) y = Add(s, a)", {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)})
    add = next(node for node in quantize(model, data(), "max").ir.graph if node.op_type == "Add")
    assert (source(add, 0), source(add, 1)) == ("DequantizeLinear", "Conv")


def test_additions_of_a_constant_or_of_float_tensors_are_left_alone() -> None:
    model = net("a = Conv(x, w) b = Add(a, k) c = Relu(b) y = Add(c, x)", {"w": (4, 4, 1, 1), "k": (4, 1, 1)})
    assert quantize(model, data(), "max").op_counts["QuantizeLinear"] == 1


def test_choices_are_explained() -> None:
    model = net("d = Conv <group = 4> (x, w) a = Conv(d, v) y = MatMul(a, a)", {"w": (4, 1, 1, 1), "v": (4, 4, 1, 1)})
    report = {choice.node: choice for choice in quantize_report(quantize(model, data(), "max"))}
    assert [choice.quantized for choice in report.values()] == [False, True, False]
    assert "depthwise" in report["Conv_0"].reason and "no weights" in report["MatMul_2"].reason
    assert quantize(model, data(), "max", depthwise=True).op_counts["QuantizeLinear"] == 2
    with pytest.raises(ModelError, match="Nothing to quantise"):
        quantize(model, data(), skip=["Conv_1"])


def test_a_relu_in_front_of_fp8_is_computed() -> None:
    """ONNX Runtime by itself leaves it out, as if the codes were UINT8."""
    batches = data()
    model = net("a = Relu(x) y = Conv(a, w)", {"w": (4, 4, 1, 1)})
    small = quantize(model, batches, dtype="fp8", depthwise=True)
    x = np.where(batches[0] < 0, 1000 * batches[0], batches[0])  # what is negative must not matter
    assert sqnr(model.run(x)["y"], small.run(x)["y"]) > 25


def test_a_weight_of_zeros_has_a_scale_that_fp16_can_hold() -> None:
    """Such as the head of a vision transformer before its training."""
    model = net("a = Conv(x, w) b = Conv(a, v) y = Relu(b)", {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)})
    values = model.ir.graph.initializers
    values["v"].const_value = ir.tensor(np.zeros((4, 4, 1, 1), np.float32))
    int8 = quantize(load(model.to_proto()), data())
    scales = [node.inputs[1].const_value.numpy() for node in int8.ir.graph if node.op_type == "DequantizeLinear"]
    assert len(scales) == 4 and all((scale.astype(np.float16) > 0).all() for scale in scales)
    assert not autocast(int8, "fp16").run(data()[0])["y"].any()


def test_what_tensorrt_would_dequantise_stays_float() -> None:
    model = net("a = ConvTranspose(x, w) y = Conv(a, v)", {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)})
    assert quantize(model, data(), "max").op_counts["QuantizeLinear"] == 1
    assert quantize(model, data(), "max", ops=QUANTIZABLE).op_counts["QuantizeLinear"] == 2
    large = net("a = Conv <pads = [3, 3, 3, 3]> (x, w) y = Conv(a, v)", {"w": (4, 4, 7, 7), "v": (4, 4, 4, 1)})
    assert [choice.quantized for choice in quantize_report(quantize(large, data(), "max"))] == [True, True]
    first, second = quantize_report(quantize(large, data(), dtype="fp8", depthwise=True))
    assert "49 positions" in first.reason and second.quantized
    assert observable(large)["nodes"] == ["Conv_0", "Conv_1"]
    assert observable(large, dtype="fp8", depthwise=True)["nodes"] == ["Conv_1"]


def test_few_channels_stay_float_in_fp8_alone() -> None:
    model = net("a = Conv(x, w) b = Conv(a, v) y = Conv(b, u)",
                {"w": (17, 4, 1, 1), "v": (17, 17, 1, 1), "u": (16, 17, 1, 1)}, "float[n, 16, 6, 6] y")  # fmt: skip
    assert [choice.quantized for choice in quantize_report(quantize(model, data(), "max"))] == [True] * 3
    report = quantize_report(quantize(model, data(), dtype="fp8"))
    assert [choice.quantized for choice in report] == [False, True, False]
    assert "it has 16 channels or fewer on one side" in report[0].reason
    all_of_it = quantize_report(quantize(model, data(), dtype="fp8", depthwise=True))
    assert [choice.quantized for choice in all_of_it] == [True] * 3


def test_refusals() -> None:
    model = net("y = Conv(x, w)", {"w": (4, 4, 1, 1)})
    int8 = quantize(model, data(), "max")
    with pytest.raises(ModelError, match=r"is quantised already: it has .*QuantizeLinear"):
        quantize(int8, data())
    with pytest.raises(ModelError, match="has no node 'Conv_9'"):
        quantize(model, data(), skip=["Conv_9"])
    with pytest.raises(ModelError, match="has no Gemm"):
        quantize(model, data(), ops=["Gemm"])
    with pytest.raises(DataError, match="no calibration data"):
        quantize(model, None)
    with pytest.raises(DataError, match="'x' holds NaN in batch 0"):
        quantize(model, [np.full((1, 4, 6, 6), np.nan, np.float32)])
    with pytest.raises(ModelError, match="is in fp16"):
        quantize(Model(model.ir, precision="fp16"), data())
    old = model.copy()
    old.ir.opset_imports[""] = 12
    with pytest.raises(ModelError, match="has opset 12"):
        quantize(old, data())
    with pytest.raises(ValueError, match="one of int8, fp8"):
        quantize(model, data(), dtype="int3")
    with pytest.raises(ModelError, match="no range for 'x'"):
        quantize(model, None, calibration=Calibration({}, "max", 0))


@pytest.mark.parametrize("taken", ["x_scale", "x_quantized", "x_dequantized", "w_int8", "w_scale", "int8_zero_point"])
def test_names_that_are_taken(taken: str) -> None:
    model = net(f"{taken} = Conv(x, w) y = Relu({taken})", {"w": (4, 4, 1, 1)})
    model.ir.graph.node("Relu_1").name = "x_quantize"
    int8 = quantize(model, data())
    onnx.checker.check_model(int8.to_proto(), full_check=True)
    assert sqnr(model.run(data()[0])["y"], int8.run(data()[0])["y"]) > 30
    names = [node.name for node in int8.ir.graph]
    assert len(set(names)) == len(names) and "x_quantize_2" in names


def test_what_lies_between_int8_can_go_low() -> None:
    model = net("r = Relu(x) a = Conv(r, w) y = Add(a, r)", {"w": (4, 4, 1, 1)})
    mixed = autocast(quantize(model, data(), "max"), "fp16")
    assert mixed.precision == "int8" and [step.name for step in mixed.history] == ["quantize int8", "autocast fp16"]
    types = {node.op_type: node.outputs[0].dtype for node in mixed.ir.graph if node.op_type != "Cast"}
    half, full = ir.DataType.FLOAT16, ir.DataType.FLOAT  # Relu only feeds codes, so it need not go low
    assert types == {
        "DequantizeLinear": full, "Relu": full, "QuantizeLinear": ir.DataType.INT8, "Conv": half, "Add": half
    }  # fmt: skip
    assert sqnr(model.run(data()[0])["y"], mixed.run(data()[0])["y"]) > 30


def test_a_calibration_made_elsewhere() -> None:
    model = net("y = Conv(x, w)", {"w": (4, 4, 1, 1)})
    int8 = quantize(model, None, calibration=Calibration({"x": 12.7}, "max", 5))
    assert int8.ir.graph.initializers["x_scale"].const_value.numpy() == np.float32(0.1)


SHAPES = hnp.array_shapes(min_dims=2, max_dims=4, max_side=4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-1e4, 1e4, width=32)), st.integers(-1, 1))
def test_weights_are_off_by_at_most_half_a_step(weight: np.ndarray, axis: int) -> None:
    codes, scale = quantize_weight(weight, None if axis < 0 else axis)
    assert codes.dtype == np.int8 and scale.dtype == np.float32 and (scale > 0).all() and codes.min(initial=0) >= -127
    shape = [1] * weight.ndim
    if axis >= 0:
        shape[axis] = -1
    step = scale.reshape(shape) if axis >= 0 else scale
    assert (np.abs(codes * step.astype(np.float64) - weight) <= 0.5001 * step + 1e-30).all()


def test_a_trained_network_keeps_its_answers_on_photographs() -> None:
    """MobileNetV2: small, and known to be hard to quantise."""
    pytest.importorskip("torchvision")
    torch = pytest.importorskip("torch")
    from trtkit.course.nets import mobilenet_v2
    from trtkit.course.photos import photos, preprocess, views
    from trtkit.passes import optimize

    model = optimize(load(mobilenet_v2(), (torch.zeros(2, 3, 224, 224),)))
    int8 = quantize(model, np.array_split(views(32), 8))
    images = np.concatenate([preprocess(image) for image in photos().values()])
    (name,) = (output.name for output in model.outputs)
    want, have = model.run(images)[name], int8.run(images)[name]
    assert (want.argmax(axis=1) == have.argmax(axis=1)).mean() >= 0.75
    assert sqnr(want, have) > 14
    assert int8.size_bytes < 0.3 * model.size_bytes
    assert "35 Conv, 1 Gemm in int8, 10 residual branches" in int8.history[-1].detail
