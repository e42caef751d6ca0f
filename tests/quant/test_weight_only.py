"""Weights in blocks of 4 bits: against NumPy and ONNX's QuantizeLinear, activation-aware or not; TensorRT's engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from trtkit.engine.build import build
from trtkit.errors import DataError, ModelError
from trtkit.importers import load
from trtkit.model import Model, save
from trtkit.quant.formats import INT4, INT8
from trtkit.quant.qdq import quantize, quantize_report
from trtkit.quant.weight_only import encode_blocks, quantize_weights, round_blocks, sample

K, N = 256, 64


def weights(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((K, N)).astype(np.float32) / 16 for _ in range(count)]


def model(arrays: dict[str, np.ndarray], nodes: list[onnx.NodeProto], outputs: list[str], opset: int = 21) -> Model:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", K])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])
    return load(onnx.shape_inference.infer_shapes(proto))


def product(weight: np.ndarray, opset: int = 21) -> Model:
    return model({"w": weight}, [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], ["y"], opset)


def salient(rows: int, seed: int = 1) -> np.ndarray:
    """Activations of which few channels are far larger than the others, as transformers have them."""
    x = np.random.default_rng(seed).standard_normal((rows, K)).astype(np.float32)
    x[:, ::37] *= 40
    return x


@pytest.mark.parametrize("bits, kind", [(4, INT4), (8, INT8)])
@pytest.mark.parametrize("block", [32, 128])
def test_rounded_weights_compute_what_numpy_computes(bits: int, kind: object, block: int) -> None:
    (weight,) = weights(1)
    small = quantize_weights(product(weight), bits=bits, block=block)
    x = np.random.default_rng(2).standard_normal((5, K)).astype(np.float32)
    np.testing.assert_allclose(
        small.run(x)["y"], x @ round_blocks(weight, INT4 if bits == 4 else INT8, block), atol=2e-5
    )
    assert small.op_counts == {"DequantizeLinear": 1, "MatMul": 1}
    assert [each.quantized for each in quantize_report(small)] == [True]


def test_codes_are_those_of_onnx() -> None:
    (weight,) = weights(1)
    codes, scales = encode_blocks(weight, INT4, 64)
    node = helper.make_node("QuantizeLinear", ["w", "s"], ["q"], axis=0, block_size=64, output_dtype=TensorProto.INT4)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, weight.shape),
         helper.make_tensor_value_info("s", TensorProto.FLOAT, scales.shape)],
        [helper.make_tensor_value_info("q", TensorProto.INT4, weight.shape)],
    )  # fmt: skip
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    (want,) = ReferenceEvaluator(proto).run(None, {"w": weight, "s": scales})
    np.testing.assert_array_equal(codes, want.astype(np.int8))
    assert np.abs(codes).max() == 7


def test_a_file_is_a_seventh_of_what_it_was(tmp_path: Path) -> None:
    before = product(np.random.default_rng(0).standard_normal((K, 4096)).astype(np.float32))
    files = [save(each, tmp_path / name) for each, name in ((before, "a"), (quantize_weights(before), "b"))]
    assert files[0].stat().st_size > 7 * files[1].stat().st_size
    assert load(files[1]).op_counts == {"DequantizeLinear": 1, "MatMul": 1}


def test_a_transposed_gemm_is_turned_round() -> None:
    (weight,) = weights(1)
    bias = np.arange(N, dtype=np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="product", transB=1)
    before = model({"w": np.ascontiguousarray(weight.T), "b": bias}, [node], ["y"])
    x = np.random.default_rng(2).standard_normal((5, K)).astype(np.float32)
    want = x @ round_blocks(weight, INT4, 128) + bias
    np.testing.assert_allclose(quantize_weights(before).run(x)["y"], want, atol=2e-5)


def test_activation_aware_scales_cut_the_error_of_salient_channels() -> None:
    """One division for three products of the same input, as Q, K and V are."""
    arrays = dict(zip("qkv", weights(3), strict=True))
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}_out"], name=name) for name in arrays]
    before = model(arrays, nodes, [f"{name}_out" for name in arrays])
    data = [salient(64, seed) for seed in range(4)]
    nearest, aware = quantize_weights(before), quantize_weights(before, data)
    assert aware.op_counts == {"DequantizeLinear": 3, "MatMul": 3, "Mul": 1}
    x = salient(200, seed=99)
    want = before.run(x)
    errors = {
        name: np.sqrt(sum(((each.run(x)[key] - want[key]) ** 2).sum() for key in want))
        for name, each in (("nearest", nearest), ("aware", aware))
    }
    assert errors["aware"] < 0.6 * errors["nearest"], errors
    assert "1 of 1 inputs scaled" in aware.history[-1].detail


def test_scales_that_do_not_help_are_not_put_in() -> None:
    (weight,) = weights(1)
    data = [np.sign(np.random.default_rng(3).standard_normal((64, K))).astype(np.float32)]  # all channels alike
    assert "Mul" not in quantize_weights(product(weight), data).op_counts


def test_memory_of_a_sample_does_not_grow_and_the_same_data_gives_the_same() -> None:
    (weight,) = weights(1)
    before = product(weight)
    short, long = (sample(before, (salient(64, seed) for seed in range(n)), ["x"])["x"] for n in (1, 40))
    assert (short.rows.shape, long.rows.shape) == ((64, K), (256, K))
    everything = np.concatenate([salient(64, seed) for seed in range(40)])
    np.testing.assert_allclose(long.size, np.abs(everything).mean(axis=0), rtol=1e-5)
    again = sample(before, [salient(64, seed) for seed in range(40)], ["x"])["x"]
    np.testing.assert_array_equal(long.rows, again.rows)
    late = sum((everything[1280:] == row).all(axis=1).any() for row in long.rows)
    assert 90 < late < 166  # rows of the second half stay as likely as those of the first


def test_an_older_opset_is_lifted_where_nothing_changes() -> None:
    (weight,) = weights(1)
    small = quantize_weights(product(weight, opset=17))
    assert small.opset == 21
    onnx.checker.check_model(small.to_proto(), full_check=True)
    old = model({"w": weight}, [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("ReduceMean", ["a"], ["y"], name="mean", axes=[1]),
    ], ["y"], opset=17)  # fmt: skip
    with pytest.raises(ModelError, match="some of its operators changed"):
        quantize_weights(old)


def test_what_cannot_be_done_is_said() -> None:
    (weight,) = weights(1)
    before = product(weight)
    with pytest.raises(ModelError, match="do not divide into blocks of 100"):
        quantize_weights(before, block=100)
    with pytest.raises(ModelError, match="quantised already"):
        quantize_weights(quantize(before, [salient(4)]))
    with pytest.raises(ModelError, match="quantised already"):
        quantize_weights(quantize_weights(before))
    with pytest.raises(ModelError, match="no node 'nobody'"):
        quantize_weights(before, skip=["nobody"])
    with pytest.raises(ModelError, match="the caller skips it"):
        quantize_weights(before, skip=["product"])
    with pytest.raises(ValueError, match="4 or 8"):
        quantize_weights(before, bits=3)
    with pytest.raises(DataError, match="no calibration data"):
        quantize_weights(before, [])
    with pytest.raises(DataError, match="holds NaN"):
        quantize_weights(before, [np.full((2, K), np.nan, np.float32)])
    assert before.op_counts == {"MatMul": 1}


def test_zeros_stay_zeros() -> None:
    weight = np.zeros((K, N), np.float32)
    x = salient(3)
    assert not quantize_weights(product(weight), [x]).run(x)["y"].any()


def test_tensorrt_reads_the_weights_where_it_multiplies() -> None:
    pytest.importorskip("tensorrt_rtx")
    (weight,) = weights(1)
    small = quantize_weights(product(weight), block=128)
    engine = build(small, shapes={"x": (4, K)})
    assert engine.verification is not None and engine.verification.passed
    assert len(engine.layers) == 1  # the dequantisation is no kernel of its own
