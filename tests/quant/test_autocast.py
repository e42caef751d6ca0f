"""autocast: where casts stand, what stays in float32 and why, and that results stay close."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import trtkit
from tests.passes.graphs import parse
from trtkit.course.pairs import network
from trtkit.errors import DataError, ModelError
from trtkit.importers import load
from trtkit.model import Model, save
from trtkit.passes import optimize
from trtkit.quant.autocast import autocast, autocast_report

HALF = ir.DataType.FLOAT16
FOUR, OUT = "float[4, 4] x", "float[4, 4] y"
SQUARE = "float[4, 4] w = {" + ", ".join(str(i / 20) for i in range(16)) + "}"


def rules(model: Model) -> dict[str, str]:
    return {d.op_type: d.rule for d in autocast_report(model)}


def casts(model: Model) -> int:
    return model.op_counts.get("Cast", 0)


def assert_close(before: Model, after: Model, tolerance: float = 2e-3, **inputs: np.ndarray) -> None:
    onnx.checker.check_model(after.to_proto(), full_check=True)
    feed = {**before.random_inputs(batch=3), **inputs}
    for name, want in before.run(feed).items():
        have = after.run({n: a.astype(i.dtype) for i in after.inputs for n, a in feed.items() if i.name == n})[name]
        np.testing.assert_allclose(have.astype(np.float32), want, rtol=tolerance, atol=tolerance)


def test_casts_stand_only_at_the_ends() -> None:
    model = parse(f"{SQUARE} | a = MatMul(x, w) b = Relu(a) c = Softmax(b) y = Tanh(c)")
    half = autocast(model)
    assert casts(half) == 2 and half.precision == "fp16"
    assert half.ir.graph.initializers["w_fp16"].dtype == HALF and len(half.ir.graph.initializers) == 1
    assert half.inputs == model.inputs and half.outputs == model.outputs
    assert model.history == () and half.history[-1].name == "autocast fp16"
    assert "4 of 4 nodes converted, 2 casts" in half.history[-1].detail
    assert_close(model, half)


def test_low_inputs_and_outputs() -> None:
    model = parse("a = Relu(x) y = Neg(a)")
    half = autocast(model, io="low")
    assert casts(half) == 0 and half.inputs[0].dtype == np.float16 and half.outputs[0].dtype == np.float16
    assert_close(model, half)


def test_kept_nodes_get_their_casts_and_weights_both_types() -> None:
    model = parse(f"{SQUARE} | a = MatMul(x, w) b = Exp(a) c = Mul(b, w) d = Neg(c) y = MatMul(d, w)", FOUR, OUT)
    half = autocast(model)
    assert rules(half)["Exp"] == "wide_range" and casts(half) == 4
    assert [d.precision for d in autocast_report(half)] == ["fp16", "fp32", "fp16", "fp16", "fp16"]
    assert_close(model, half)
    mixed = autocast(model, keep_fp32=["Neg"])
    assert {d.rule for d in autocast_report(mixed) if d.op_type == "Neg"} == {"user"}
    assert_close(model, mixed)


def test_a_value_read_in_both_types_is_cast_once() -> None:
    nodes = "a = MatMul(x, w) b = Exp(a) c = Exp(a) d = MatMul(a, w) e = Add(b, c) y = Add(e, d)"
    model = parse(f"{SQUARE} | {nodes}", FOUR, OUT)
    half = autocast(model)
    assert sum(n.op_type == "Cast" and n.inputs[0].name == "a" for n in half.ir.graph) == 1
    assert_close(model, half)


def test_cheap_nodes_between_kept_ones_join_them() -> None:
    model = parse("int64[2] s = {-1, 4} | a = Exp(x) b = Neg(a) c = Reshape(b, s) y = Exp(c)")
    half = autocast(model)
    assert casts(half) == 0 and rules(half) == {"Exp": "wide_range", "Neg": "island", "Reshape": "island"}
    assert_close(model, half)


def test_user_patterns() -> None:
    model = parse("a = Relu(x) b = Neg(a) y = Relu(b)")
    half = autocast(model, keep_fp32=["Relu_*"])
    assert [d.rule for d in autocast_report(half)] == ["user", "island", "user"]
    with pytest.raises(ModelError, match="no node or operator 'Conv'"):
        autocast(model, keep_fp32=["Conv"])
    with pytest.raises(ModelError, match="knows the precisions"):
        autocast(model, "fp8")


def test_constants_that_do_not_fit_keep_their_node() -> None:
    model = parse("float[1] big = {100000.0}, float[1] tiny = {1e-12} |"
                  "a = Mul(x, big) b = Div(a, big) y = Add(b, tiny)")
    half = autocast(model)
    reasons = {d.op_type: d.reason for d in autocast_report(half)}
    assert "reaches 1e+05, fp16 ends at 65504" in reasons["Mul"] and "would be off by 100%" in reasons["Add"]
    assert_close(model, half)
    assert {d.precision for d in autocast_report(autocast(model, "bf16"))} == {"bf16"}


def test_masks_that_stand_for_infinity_are_clipped() -> None:
    model = parse("float[1] low = {-3.4e38}, float[1] zero = {0.0} | k = Greater(x, zero) m = Where(k, zero, low)"
                  "s = Add(x, m) y = Softmax(s)")
    half = autocast(model)
    assert half.ir.graph.initializers["low_fp16"].const_value.numpy().tolist() == [-65504.0]
    x = np.array([[-1, -2, 1, -3], [-1, -1, -1, -1]], np.float32)
    assert np.isfinite(half.run(x)["y"]).all()
    np.testing.assert_allclose(half.run(x)["y"][0], model.run(x)["y"][0], atol=1e-3)


def test_index_arithmetic_stays_exact() -> None:
    model = parse("f = Cast <to = 1> (i) h = Add(f, f) j = Cast <to = 7> (h) y = Gather <axis = 0> (x, j)",
                  "float[10000, 4] x, int64[1] i", "float[1, 4] y")
    half = autocast(model)
    assert rules(half)["Add"] == "island"
    x = np.arange(40000, dtype=np.float32).reshape(10000, 4) / 40000
    assert_close(model, half, x=x, i=np.array([2049]))


def test_reductions_over_many_elements() -> None:
    text = "y = ReduceSum <keepdims = 1> (x, axes)"
    for size, rule in ((64, "default"), (100_000, "long_reduction")):
        model = parse(f"int64[1] axes = {{1}} | {text}", f"float[n, {size}] x", "float[n, 1] y")
        assert rules(autocast(model))["ReduceSum"] == rule


@pytest.mark.parametrize(("text", "inputs", "output", "rule"), [
    ("int64[1] axes = {1} | y = ReduceSum (x, axes)", "float[n, s] x", "float[n, 1] y", "long_reduction"),
    ("int64[1] axes = {1} | y = ReduceMean <keepdims = 0> (x, axes)", "float[n, s] x", "float[n] y", "long_reduction"),
    ("y = GlobalAveragePool(x)", "float[n, 8, h, w] x", "float[n, 8, 1, 1] y", "long_reduction"),
    ("y = GlobalAveragePool(x)", "float[n, 8, 7, 7] x", "float[n, 8, 1, 1] y", "default"),
    ("int64[1] axes = {-1} | y = ReduceMean(x, axes)", "float[n, s, 768] x", "float[n, s, 1] y", "default"),
    ("y = Softmax(x)", "float[n, s] x", "float[n, s] y", "default"),
])  # fmt: skip
def test_reductions_over_a_dimension_of_unknown_size(text: str, inputs: str, output: str, rule: str) -> None:
    (decision,) = autocast_report(autocast(parse(text, inputs, output)))
    assert decision.rule == rule
    assert rule == "default" or decision.reason == "sums an unknown number of elements"


@pytest.mark.parametrize("io", ["fp32", "low"])
@pytest.mark.parametrize("taken", ["w_fp16", "x_fp16", "a_fp32", "y_fp16", "y_fp32"])
def test_names_that_are_taken(taken: str, io: str) -> None:
    model = parse(f"{SQUARE} | {taken} = MatMul(x, w) a = Relu({taken}) b = Exp(a) y = MatMul(b, w)", FOUR, OUT)
    assert_close(model, autocast(model, io=io))


def test_a_node_that_has_the_name_of_a_new_cast() -> None:
    model = parse("a = Relu(x) y = Neg(a)")
    model.ir.graph.node("Relu_0").name = "x_to_fp16"
    names = [node.name for node in autocast(model).ir.graph]
    assert len(set(names)) == len(names) and "x_to_fp16_2" in names


def test_a_name_that_is_taken_inside_a_body() -> None:
    model = parse(SQUARE + """, bool c = {1} |
        b = If (c) <then_branch = t () => (float[n, 4] x_fp16) { x_fp16 = Neg(x) },
                    else_branch = e () => (float[n, 4] ey) { ey = Abs(x) }>
        a = MatMul(x, w) y = Add(a, b)""")
    half = autocast(model)
    assert next(node for node in half.ir.graph if node.op_type == "MatMul").inputs[0].name == "x_fp16_2"
    assert_close(model, half)


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_scales_of_codes_stay_in_float32_and_products_go_low(dtype: str) -> None:
    model = network("y = MatMul(x, w)", "float[2, 4] x", "float[2, 4] y", w=np.eye(4, dtype=np.float32))
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    quantised = trtkit.quantize(model, [x], dtype=dtype)
    half = autocast(quantised)
    assert half.precision == quantised.precision == dtype
    kept = {d.op_type: d.rule for d in autocast_report(half) if d.precision == "fp32"}
    assert kept == {"QuantizeLinear": "sum_of_codes", "DequantizeLinear": "sum_of_codes"}
    scales = [node.inputs[1] for node in half.ir.graph if "uantizeLinear" in node.op_type]
    assert {scale.dtype.name for scale in scales if scale is not None and scale.dtype is not None} == {"FLOAT"}
    np.testing.assert_allclose(half.run(x)["y"], quantised.run(x)["y"], rtol=2e-3)
    assert not [d for d in autocast_report(autocast(quantised, "bf16")) if d.rule == "sum_of_codes"]


def test_weights_in_blocks_are_decoded_in_fp16() -> None:
    w = np.random.default_rng(0).standard_normal((128, 8)).astype(np.float32)
    model = network("y = MatMul(x, w)", "float[2, 128] x", "float[2, 8] y", w=w)
    half = autocast(trtkit.quantize_weights(model))
    (scale,) = [node.inputs[1] for node in half.ir.graph if node.op_type == "DequantizeLinear"]
    assert scale is not None and scale.dtype is not None and scale.dtype.name == "FLOAT16"


def test_range_from_data() -> None:
    model = parse(f"float[1] k = {{300.0}}, {SQUARE} |"
                  "a = Mul(x, k) b = Relu(a) c = Div(b, k) d = MatMul(c, w) y = Neg(d)")
    data = [np.full((2, 4), 200, np.float32), np.full((1, 4), 1, np.float32)]
    half = autocast(model, data=data)
    assert [d.rule for d in autocast_report(half)] == [*["activation_range"] * 3, "default", "default"]
    assert_close(model, half, tolerance=0.2, x=data[0])
    assert rules(autocast(model))["Mul"] == "default"
    with pytest.raises(DataError, match="no calibration data"):
        autocast(model, data=[])


def test_bodies_stay_in_float32_and_read_through_casts() -> None:
    model = parse("""bool c = {1} | a = Relu(x)
        b = If (c) <then_branch = t () => (float[n, 4] ty) { ty = Neg(a) },
                    else_branch = e () => (float[n, 4] ey) { ey = Abs(a) }>
        y = Tanh(b)""")
    half = autocast(model)
    assert rules(half)["If"] == "type_system"
    assert_close(model, half)


def test_a_graph_that_was_not_optimised() -> None:
    model = parse("k = Constant <value = float {2.0}> () i = Constant <value_int = 3> () l = CastLike(i, x)"
                  "a = Mul(x, k) b = Add(a, l) y = Relu(b)")
    half = autocast(model)
    assert_close(model, half)
    assert casts(optimize(half)) == 2


def test_layer_normalization_scale_and_bias_follow_its_input() -> None:
    model = parse("float[4] g = {1, 2, 3, 4}, float[4] b = {0.1, 0.2, 0.3, 0.4} | y = LayerNormalization(x, g, b)")
    half = autocast(model)
    node = next(n for n in half.ir.graph if n.op_type == "LayerNormalization")
    assert {value.dtype for value in node.inputs} == {HALF}
    assert_close(model, half, tolerance=5e-3)


def test_decisions_survive_saving(tmp_path: Path) -> None:
    half = autocast(parse("a = Relu(x) y = Exp(a)"))
    assert autocast_report(load(save(half, tmp_path / "half.onnx"))) == autocast_report(half)


def test_embedding_tables_and_integer_inputs() -> None:
    table = ", ".join(str(i / 10) for i in range(20))
    model = parse(f"float[5, 4] t = {{{table}}} | e = Gather(t, i) y = Relu(e)", "int64[n, 3] i", "float[n, 3, 4] y")
    half = autocast(model)
    assert casts(half) == 1
    assert_close(model, half)
