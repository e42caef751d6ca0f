"""Fusing passes: each rule where it holds, where it must not be applied, on generated shapes and on real exports."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.graphs import assert_same, ops, parse, reference
from trtkit.model import Model
from trtkit.passes import optimize
from trtkit.passes.affine import FoldAffine
from trtkit.passes.attention import CanonicalAttention
from trtkit.passes.batch_norm_before import FoldBatchNormBefore
from trtkit.passes.common import Rewrite, infer_shapes
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.passes.gelu import FuseGelu
from trtkit.passes.layer_norm import FuseNormalization
from trtkit.passes.matmul_bias import FuseMatMulBias

IMAGE = {"inputs": "float[2, 4, 6, 6] x", "outputs": "float[a, b, c, d] y"}
BN = ("float[4] g = {1, 2, 0.5, -1}, float[4] o = {0.1, -1, 2, 0}, float[4] m = {0, 1, -1, 0.5},"
      "float[4] v = {1, 2, 0.5, 4}")


def numbers(name: str, *shape: int, seed: int = 0) -> str:
    values = np.random.default_rng(seed).standard_normal(math.prod(shape)).round(3)
    return f"float[{','.join(map(str, shape))}] {name} = {{{','.join(map(str, values))}}}"


def fused(model: Model, rule: type[Rewrite]) -> Model:
    """One pass and what `optimize` does behind it; the shapes are those that inference finds."""
    after = model.copy()
    infer_shapes(after.ir)
    rule()(after.ir)
    RemoveDeadCode()(after.ir)
    return Model(after.ir)


def check(model: Model, rule: type[Rewrite], expected: list[str], rtol: float = 2e-5) -> None:
    after = fused(model, rule)
    assert ops(after) == expected
    assert_same(model, after, rtol=rtol)


class TestAffine:
    @pytest.mark.parametrize("body", ["Mul(a, c)", "Mul(c, a)", "Add(a, c)", "Sub(a, c)", "Sub(c, a)", "Div(a, c)"])
    @pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1), (), (1,)])
    def test_conv(self, body: str, shape: tuple[int, ...]) -> None:
        weights = f"{numbers('w', 3, 4, 3, 3)}, {numbers('c', *shape, seed=1)}"
        if not shape:
            weights = f"{numbers('w', 3, 4, 3, 3)}, float c = {{0.5}}"
        check(parse(f"{weights} | a = Conv(x, w) y = {body}", **IMAGE), FoldAffine, ["Conv"])

    @pytest.mark.parametrize("op", ["Mul", "Add"])
    def test_conv_transpose_with_groups(self, op: str) -> None:
        weights = f"{numbers('w', 4, 3, 2, 2)}, {numbers('b', 6, seed=2)}, {numbers('c', 6, 1, 1, seed=1)}"
        body = f"{weights} | a = ConvTranspose <group = 2> (x, w, b) y = {op}(a, c)"
        check(parse(body, **IMAGE), FoldAffine, ["ConvTranspose"])

    def test_gemm_with_alpha_and_beta(self) -> None:
        weights = f"{numbers('w', 3, 4)}, {numbers('b', 3, seed=2)}, {numbers('c', 3, seed=1)}"
        body = f"{weights} | a = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, w, b) s = Mul(a, c) y = Add(s, c)"
        check(parse(body, outputs="float[n, 3] y"), FoldAffine, ["Gemm"])

    @pytest.mark.parametrize("tail", [
        "y = Add(a, c)",  # along the last axis
        "y = Div(s, a)",
        "z2 = Relu(a) b = Add(a, s) y = Add(b, z2)",  # two readers
        "y = Add(a, t)",  # makes the result larger
        "y = Div(a, z)",
    ])  # fmt: skip
    def test_stays(self, tail: str) -> None:
        weights = (f"{numbers('w', 3, 4, 3, 3)}, {numbers('c', 4)}, float s = {{2}}, float z = {{0}},"
                   f"{numbers('t', 2, 1, 1, 1)}")
        model = parse(f"{weights} | a = Conv(x, w) {tail}", **IMAGE)
        assert ops(fused(model, FoldAffine)) == ops(model)

    def test_shared_weights_are_copied(self) -> None:
        body = (f"{numbers('w', 4, 4, 1, 1)}, float s = {{2}} |"
                "a = Conv(x, w) b = Conv(x, w) c = Mul(a, s) y = Add(b, c)")
        check(parse(body, **IMAGE), FoldAffine, ["Conv", "Conv", "Add"])

    def test_in_a_branch(self) -> None:
        body = (f"{numbers('w', 4, 4, 1, 1)}, float s = {{2}}, bool k = {{1}} | z = Neg(x) y = If (k) <"
                "then_branch = t () => (float[2, 4, 6, 6] p) { a = Conv(z, w) p = Mul(a, s) },"
                "else_branch = e () => (float[2, 4, 6, 6] q) { q = Conv(z, w) }>")
        model = parse(body, **IMAGE)
        after = fused(model, FoldAffine)
        assert sorted(after.op_counts.items()) == [("Conv", 2), ("If", 1), ("Neg", 1)] or ops(after) == ["Neg", "If"]
        assert_same(model, after)


class TestBatchNormBefore:
    @pytest.mark.parametrize("conv", ["Conv(n, w)", "Conv <strides = [2, 2]> (n, w, b)"])
    def test_conv(self, conv: str) -> None:
        weights = f"{BN}, {numbers('w', 4, 4, 3, 3)}, {numbers('b', 4, seed=3)}"
        body = f"{weights} | n = BatchNormalization(x, g, o, m, v) y = {conv}"
        check(parse(body, **IMAGE), FoldBatchNormBefore, ["Conv"])

    def test_groups_and_several_readers(self) -> None:
        body = (f"{BN}, {numbers('w', 6, 2, 3, 3)}, {numbers('u', 6, 4, 3, 3, seed=4)} |"
                "n = BatchNormalization(x, g, o, m, v) a = Conv <group = 2> (n, w) b = Conv(n, u) y = Add(a, b)")
        check(parse(body, **IMAGE), FoldBatchNormBefore, ["Conv", "Conv", "Add"])

    def test_gemm(self) -> None:
        body = (f"{BN}, {numbers('w', 3, 4)}, {numbers('b', 3, seed=2)} | n = BatchNormalization(x, g, o, m, v)"
                "y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (n, w, b)")
        check(parse(body, outputs="float[n, 3] y"), FoldBatchNormBefore, ["Gemm"])

    def test_padding_only_without_shift(self) -> None:
        body = (f"STATISTICS, {numbers('w', 4, 4, 3, 3)} | n = BatchNormalization(x, g, o, m, v)"
                "y = Conv <pads = [1, 1, 1, 1]> (n, w)")
        shifted = parse(body.replace("STATISTICS", BN), **IMAGE)
        assert "BatchNormalization" in ops(fused(shifted, FoldBatchNormBefore))
        centred = "float[4] g = {1, 2, 0.5, -1}, float[4] o = {0,0,0,0}, float[4] m = {0,0,0,0}, float[4] v = {1,2,3,4}"
        check(parse(body.replace("STATISTICS", centred), **IMAGE), FoldBatchNormBefore, ["Conv"])

    def test_a_reader_that_cannot_keeps_it(self) -> None:
        body = (f"{BN}, {numbers('w', 4, 4, 1, 1)} | n = BatchNormalization(x, g, o, m, v)"
                "a = Conv(n, w) y = Add(a, n)")
        assert "BatchNormalization" in ops(fused(parse(body, **IMAGE), FoldBatchNormBefore))


class TestMatMulBias:
    @pytest.mark.parametrize("shape", [(3,), (1, 3), (1,)])
    @pytest.mark.parametrize("order", ["a, b", "b, a"])
    def test_becomes_gemm(self, shape: tuple[int, ...], order: str) -> None:
        body = f"{numbers('w', 4, 3)}, {numbers('b', *shape, seed=1)} | a = MatMul(x, w) y = Add({order})"
        check(parse(body, outputs="float[n, 3] y"), FuseMatMulBias, ["Gemm"])

    def test_batch_norm_behind_is_folded(self) -> None:
        body = f"{BN}, {numbers('w', 4, 4)} | a = MatMul(x, w) y = BatchNormalization(a, g, o, m, v)"
        model = parse(body)
        after = optimize(model, level=3)
        assert ops(after) == ["Gemm"]
        assert_same(model, after)

    @pytest.mark.parametrize("inputs", ["float[n, 2, 4] x", "float[4] x"])
    def test_only_matrices(self, inputs: str) -> None:
        body = f"{numbers('w', 4, 3)}, {numbers('b', 3)} | a = MatMul(x, w) y = Add(a, b)"
        model = parse(body, inputs=inputs, outputs="float[n, m, k] y" if "n" in inputs else "float[k] y")
        assert ops(fused(model, FuseMatMulBias)) == ["MatMul", "Add"]


ERF = ["h = Mul(x, half) d = Div(x, root) e = Erf(d) s = Add(e, one) y = Mul(h, s)",
       "d = Mul(x, unroot) e = Erf(d) s = Add(one, e) p = Mul(x, s) y = Mul(p, half)",
       "d = Div(x, root) e = Erf(d) s = Add(e, one) p = Mul(s, half) y = Mul(x, p)"]  # fmt: skip
TANH = ["q = Pow(x, three) c = Mul(q, cubic) s = Add(x, c) z = Mul(s, k) t = Tanh(z) u = Add(t, one) h = Mul(x, half)"
        "y = Mul(h, u)",
        "q = Mul(x, x) r = Mul(q, x) c = Mul(cubic, r) s = Add(x, c) z = Mul(k, s) t = Tanh(z) u = Add(one, t)"
        "p = Mul(x, u) y = Mul(half, p)",
        "a = Mul(x, k) q = Mul(x, x) c = Mul(q, cubic) s = Add(c, one) z = Mul(a, s) t = Tanh(z) u = Add(t, one)"
        "h = Mul(half, x) y = Mul(h, u)"]  # fmt: skip
CONSTANTS = ("float half = {0.5}, float root = {1.41421356}, float unroot = {0.70710678}, float one = {1},"
             "float three = {3}, float cubic = {0.044715}, float k = {0.7978846} |")


class TestGelu:
    @pytest.mark.parametrize("body", ERF + TANH)
    def test_every_form(self, body: str) -> None:
        model = parse(CONSTANTS + body)
        check(model, FuseGelu, ["Gelu"])
        kind = next(iter(fused(model, FuseGelu).ir.graph)).attributes.get_string("approximate", "")
        assert kind == ("tanh" if "Tanh" in body else "none")

    @pytest.mark.parametrize("body", [
        ERF[0].replace("half", "one", 1),  # twice GELU
        ERF[0].replace("Div(x, root)", "Mul(x, root)"),
        ERF[0].replace("y = Mul(h, s)", "p = Mul(h, s) y = Add(p, e)"),  # erf is wanted elsewhere
        ERF[0].replace("Mul(h, s)", "Mul(s, s)"),
        TANH[0].replace("Add(x, c)", "Sub(x, c)"),
        TANH[0].replace("Pow(x, three)", "Pow(x, half)"),
    ])  # fmt: skip
    def test_stays(self, body: str) -> None:
        assert "Gelu" not in ops(fused(parse(CONSTANTS + body), FuseGelu))

    def test_needs_opset_20(self) -> None:
        assert "Gelu" not in ops(fused(parse(CONSTANTS + ERF[0], opset=19), FuseGelu))


def layer_norm(square: str = "Mul(d, d)", quotient: str = "r = Sqrt(w) n = Div(d, r)", axes: str = "-1") -> str:
    return (f"int64[1] ax = {{{axes}}}, float eps = {{0.01}}, float two = {{2}}, float half = {{0.5}},"
            "float minus = {-0.5}, float one = {1}, float[5] g = {1, 2, 3, 4, 5}, float[5] b = {5, 4, 3, 2, 1} |"
            f"m = ReduceMean(x, ax) d = Sub(x, m) q = {square} v = ReduceMean(q, ax) w = Add(v, eps) {quotient}")


CUBE = {"inputs": "float[n, 3, 5] x", "outputs": "float[n, 3, 5] y"}


class TestNormalization:
    @pytest.mark.parametrize("square", ["Mul(d, d)", "Pow(d, two)"])
    @pytest.mark.parametrize("quotient", [
        "r = Sqrt(w) n = Div(d, r)", "r = Pow(w, half) n = Div(d, r)", "r = Sqrt(w) i = Reciprocal(r) n = Mul(d, i)",
        "r = Sqrt(w) i = Div(one, r) n = Mul(i, d)", "i = Pow(w, minus) n = Mul(d, i)",
    ])  # fmt: skip
    @pytest.mark.parametrize("tail", ["p = Mul(n, g) y = Add(p, b)", "p = Mul(g, n) y = Neg(p)", "y = Neg(n)"])
    def test_layer_norm(self, square: str, quotient: str, tail: str) -> None:
        model = parse(f"{layer_norm(square, quotient)} {tail}", **CUBE)
        check(model, FuseNormalization, ["LayerNormalization", *(["Neg"] if "Neg" in tail else [])])

    def test_axes_as_attribute_before_opset_18(self) -> None:
        body = layer_norm().replace("(x, ax)", "<axes = [2]> (x)").replace("(q, ax)", "<axes = [-1]> (q)")
        check(parse(f"{body} y = Mul(n, g)", opset=17, **CUBE), FuseNormalization, ["LayerNormalization"])

    @pytest.mark.parametrize("body", [
        layer_norm(axes="1") + "y = Mul(n, g)",
        layer_norm(square="Mul(d, x)") + "y = Mul(n, g)",
        layer_norm() + "p = Mul(n, g) y = Add(p, v)",  # the variance is wanted elsewhere
        layer_norm().replace("= {0.01}", "= {-0.01}") + "y = Mul(n, g)",
        layer_norm(quotient="n = Div(d, w)") + "y = Mul(n, g)",
    ])  # fmt: skip
    def test_stays(self, body: str) -> None:
        assert "LayerNormalization" not in ops(fused(parse(body, **CUBE), FuseNormalization))

    def test_not_before_opset_17(self) -> None:
        body = layer_norm().replace("(x, ax)", "<axes = [2]> (x)").replace("(q, ax)", "<axes = [2]> (q)")
        assert "Sub" in ops(fused(parse(f"{body} y = Mul(n, g)", opset=16, **CUBE), FuseNormalization))

    @pytest.mark.parametrize("opset, expected", [(23, ["RMSNormalization"]), (22, None)])
    def test_rms_norm(self, opset: int, expected: list[str] | None) -> None:
        body = ("int64[1] ax = {-1}, float eps = {0.01}, float two = {2}, float[5] g = {1, 2, 3, 4, 5} |"
                "q = Pow(x, two) v = ReduceMean(q, ax) w = Add(v, eps) r = Sqrt(w) i = Reciprocal(r) n = Mul(x, i)"
                "y = Mul(g, n)")
        model = parse(body, opset=opset, **CUBE)
        after = fused(model, FuseNormalization)
        assert ops(after) == (expected or ops(model))
        x = model.random_inputs(batch=3)
        np.testing.assert_allclose(reference(after, x)[0], reference(model, x)[0], rtol=1e-5)

    @settings(max_examples=20, deadline=None)
    @given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4), count=st.integers(1, 4))
    def test_any_shape(self, shape: list[int], count: int) -> None:
        axes = list(range(len(shape)))[-min(count, len(shape)):]  # fmt: skip
        text = ", ".join(map(str, shape))
        body = (f"int64[{len(axes)}] ax = {{{','.join(map(str, axes))}}}, float eps = {{0.01}} | m = ReduceMean(x, ax)"
                "d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, ax) w = Add(v, eps) r = Sqrt(w) y = Div(d, r)")
        model = parse(body, inputs=f"float[{text}] x", outputs=f"float[{text}] y")
        check(model, FuseNormalization, ["LayerNormalization"], rtol=1e-4)


QKV = {"inputs": "float[n, 2, 3, 4] q, float[n, 2, 3, 4] k, float[n, 2, 3, 4] v", "outputs": "float[n, 2, 3, 4] y"}
SDPA = ("int64[3] flat = {-1, 3, 4}, int64[4] back = {0, 2, 4, 3}, float r = {0.5}, float zero = {0}, MASK |"
        "f = Reshape(k, flat) t = Transpose <perm = [0, 2, 1]> (f) kt = Reshape(t, back) a = Mul(q, r) b = Mul(kt, r)"
        "s = MatMul(a, b) z = Add(s, mask) p = Softmax(z) nan = IsNaN(p) w = Where(nan, zero, p) y = MatMul(w, v)")
SDPA = SDPA.replace("int64[4] back = {0, 2, 4, 3}", "int64[4] back = {-1, 2, 4, 3}")
CLOSED = "-3.4e38"


def sdpa(mask: str) -> Model:
    return parse(SDPA.replace("MASK", f"float[3, 3] mask = {{{mask}}}"), **QKV)


class TestAttention:
    def test_sdpa_takes_the_form_of_eager(self) -> None:
        model = sdpa("0, 0, 0, 0, 0, 0, 0, 0, 0")
        check(model, CanonicalAttention, ["Transpose", "MatMul", "Mul", "Softmax", "MatMul"])

    def test_a_mask_with_open_rows_stays_and_its_guard_goes(self) -> None:
        model = sdpa(f"0, {CLOSED}, {CLOSED}, 0, 0, {CLOSED}, 0, 0, 0")
        check(model, CanonicalAttention, ["Transpose", "MatMul", "Mul", "Add", "Softmax", "MatMul"])

    @pytest.mark.parametrize("mask, guarded", [([0, -np.inf, -np.inf], False), ([-np.inf] * 3, True)])
    def test_the_guard_stays_where_a_row_is_masked(self, mask: list[float], guarded: bool) -> None:
        model = sdpa("1, 1, 1, 1, 1, 1, 1, 1, 1").copy()
        rows = np.zeros((3, 3), np.float32)
        rows[1] = mask
        model.ir.graph.initializers["mask"].const_value = ir.Tensor(rows, name="mask")
        after = fused(model, CanonicalAttention)
        assert ("IsNaN" in ops(after)) == guarded
        assert_same(model, after)

    def test_an_unknown_mask_keeps_guard_and_sum(self) -> None:
        model = parse(SDPA.replace(", MASK", ""), QKV["inputs"] + ", float[3, 3] mask", QKV["outputs"])
        check(model, CanonicalAttention, ["Transpose", "MatMul", "Mul", "Add", "Softmax", "IsNaN", "Where", "MatMul"])

    def test_scales_outside_attention_stay(self) -> None:
        body = "float r = {0.5} | a = Mul(q, r) b = Mul(k, r) c = Transpose <perm = [0, 1, 3, 2]> (b) y = MatMul(a, c)"
        model = parse(body, QKV["inputs"], "float[n, 2, 3, 3] y")
        assert ops(fused(model, CanonicalAttention)) == ops(model)
