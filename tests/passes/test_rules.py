"""Each rule: where it holds, where it must not be applied, and that outputs stay equal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.passes.graphs import apply, ops, parse
from trtkit.model import Model
from trtkit.passes.batch_norm import FoldBatchNorm
from trtkit.passes.constant_folding import FoldConstants
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.passes.dedup import ShareInitializers
from trtkit.passes.identity import RemoveIdentities
from trtkit.passes.noop_shape import RemoveNoOpShapes
from trtkit.passes.static_reshape import StaticReshape


class TestIdentities:
    def test_goes_in_the_middle(self) -> None:
        assert ops(apply(parse("a = Relu(x) b = Identity(a) y = Neg(b)"), RemoveIdentities)) == ["Relu", "Neg"]

    def test_gives_its_name_to_the_producer_at_the_end(self) -> None:
        after = apply(parse("a = Relu(x) y = Identity(a)"), RemoveIdentities)
        assert ops(after) == ["Relu"]

    def test_stays_between_input_and_output(self) -> None:
        assert ops(apply(parse("y = Identity(x)"), RemoveIdentities)) == ["Identity"]

    def test_stays_between_two_outputs(self) -> None:
        two = "float[n, 4] a, float[n, 4] y"
        assert ops(apply(parse("a = Relu(x) y = Identity(a)", outputs=two), RemoveIdentities)) == ["Relu", "Identity"]

    def test_dropout_goes_unless_its_mask_is_read(self) -> None:
        assert ops(apply(parse("a = Dropout(x) y = Neg(a)"), RemoveIdentities)) == ["Neg"]
        masked = parse("a, m = Dropout(x) y = Neg(a)", outputs="float[n, 4] y, bool[n, 4] m")
        assert ops(apply(masked, RemoveIdentities)) == ["Dropout", "Neg"]

    def test_dropout_that_trains_stays(self) -> None:
        model = parse("bool t = {1} | a = Dropout(x, , t) y = Neg(a)")
        RemoveIdentities()(model.ir)
        assert ops(model) == ["Dropout", "Neg"]

    def test_cast_to_the_same_type(self) -> None:
        assert ops(apply(parse("a = Cast <to = 1> (x) y = Neg(a)"), RemoveIdentities)) == ["Neg"]
        assert ops(apply(parse("a = Cast <to = 11> (x) b = Cast <to = 1> (a) y = Neg(b)"), RemoveIdentities)) == [
            "Cast", "Cast", "Neg"]

    def test_castlike_goes_or_becomes_cast(self) -> None:
        assert ops(apply(parse("r = Relu(x) a = CastLike(r, x) y = Neg(a)"), RemoveIdentities)) == ["Relu", "Neg"]
        after = apply(parse("int64[1] k = {3} | c = CastLike(k, x) y = Add(x, c)"), RemoveIdentities)
        assert ops(after) == ["Cast", "Add"]

    def test_output_of_a_body_that_comes_from_outside_stays(self) -> None:
        model = parse("""bool c = {1} | a = Relu(x)
            b = If (c) <then_branch = t () => (float[n, 4] ty) { ty = Identity(a) },
                        else_branch = e () => (float[n, 4] ey) { ey = Neg(a) }>
            y = Abs(b)""")
        assert ops(apply(model, RemoveIdentities)).count("Identity") == 1

    def test_other_domains_are_left_alone(self) -> None:
        model = parse("y = Neg(x)")
        node = ir.Node("custom", "Identity", [model.ir.graph.inputs[0]])
        model.ir.graph.append(node)
        assert not RemoveIdentities()(model.ir).modified


class TestNoOpShapes:
    @pytest.mark.parametrize("node", [
        "Reshape <allowzero = 0> (x, s)", "Transpose <perm = [0, 1]> (x)", "Flatten <axis = 1> (x)",
    ])  # fmt: skip
    def test_goes(self, node: str) -> None:
        assert ops(apply(parse(f"int64[2] s = {{-1, 4}} | a = {node} y = Neg(a)"), RemoveNoOpShapes)) == ["Neg"]

    def test_real_transposes_and_reshapes_stay(self) -> None:
        square = {"inputs": "float[4, 4] x", "outputs": "float[4, 4] y"}
        for node in ("Transpose <perm = [1, 0]> (x)", "Transpose(x)"):
            assert "Transpose" in ops(apply(parse(f"a = {node} y = Neg(a)", **square), RemoveNoOpShapes))
        model = parse("int64[2] s = {2, -1} | a = Reshape(x, s) y = Neg(a)", "float[4, 4] x", "float[2, 8] y")
        assert "Reshape" in ops(apply(model, RemoveNoOpShapes))

    def test_expand_stays_unless_shapes_are_known_to_agree(self) -> None:
        model = parse("int64[2] s = {3, 4} | a = Expand(x, s) y = Neg(a)", "float[1, 4] x", "float[3, 4] y")
        assert "Expand" in ops(apply(model, RemoveNoOpShapes))
        model = parse("int64[2] s = {1, 4} | a = Expand(x, s) y = Neg(a)", "float[3, 4] x", "float[3, 4] y")
        assert "Expand" not in ops(apply(model, RemoveNoOpShapes))

    def test_two_changeable_dimensions_with_different_names_stay(self) -> None:
        model = parse("a = Reshape(x, s) y = Neg(a)", "float[n, m] x, int64[2] s", "float[p, q] y")
        assert not RemoveNoOpShapes()(model.ir).modified


class TestDeadCode:
    def test_a_dead_chain_and_its_weights_go_in_one_walk(self) -> None:
        after = apply(parse("float[1] w = {2.0} | a = Mul(x, w) b = Relu(a) y = Neg(x)"), RemoveDeadCode)
        assert ops(after) == ["Neg"] and not after.ir.graph.initializers

    def test_what_a_body_reads_is_alive(self) -> None:
        model = parse("""bool c = {1} | a = Relu(x)  dead = Neg(a)
            y = If (c) <then_branch = t () => (float[n, 4] ty) { ty = Neg(a)  tdead = Abs(a) },
                        else_branch = e () => (float[n, 4] ey) { ey = Abs(a) }>""")
        assert sorted(ops(apply(model, RemoveDeadCode))) == ["Abs", "If", "Neg", "Relu"]

    def test_what_only_a_dead_body_reads_is_dead(self) -> None:
        model = parse("""bool c = {1} | a = Relu(x)  y = Neg(x)
            b = If (c) <then_branch = t () => (float[n, 4] ty) { ty = Neg(a) },
                        else_branch = e () => (float[n, 4] ey) { ey = Abs(a) }>  z = Abs(b)""")
        assert ops(apply(model, RemoveDeadCode)) == ["Neg"]

    def test_a_second_output_keeps_a_node(self) -> None:
        model = parse("a, b = Split <axis = 1, num_outputs = 2> (x) y = Neg(b)", outputs="float[n, 2] y")
        assert ops(apply(model, RemoveDeadCode)) == ["Split", "Neg"]


class TestConstantFolding:
    @pytest.mark.parametrize(("indices", "axis"), [
        ("int64[1, 4] i = {0, 2, 1, -1}", 1), ("int64[2, 4] i = {0, 2, 1, 1, -3, 0, 0, 2}", 1),
        ("int64[3, 2] i = {0, 1, 1, -2, 0, 0}", 0), ("int64[1, 3] i = {1, 0, 1}", 0), ("int64[1, 1] i = {1}", 0),
        ("int64[1, 2] i = {1, 2}", -1),
    ])  # fmt: skip
    def test_elements_picked_from_a_constant(self, indices: str, axis: int) -> None:
        model = parse(f"""float[2, 3] d = {{1, 2, 4, 8, 16, 32}}, {indices} |
            g = GatherElements <axis = {axis}> (d, i)  s = ReduceSum <keepdims = 0> (g)  y = Add(x, s)""")
        x = np.zeros((1, 4), np.float32)
        wanted = model.run(x)["y"]  # by ONNX Runtime: ONNX's reference refuses some of these
        FoldConstants()(model.ir)
        assert ops(model) == ["Add"]
        np.testing.assert_array_equal(Model(model.ir).run(x)["y"], wanted)

    @pytest.mark.parametrize("indices", [
        "int64[4, 2] i = {0, 0, 0, 2, 1, 1, -1, -3}", "int64[4, 1, 1] i = {1, 0, -1, 1}",
        "int64[2, 2, 1] i = {0, 1, 1, -2}",
    ])  # fmt: skip
    @pytest.mark.parametrize("batch_dims", ["", "<batch_dims = 0>"])
    def test_slices_picked_from_a_constant(self, indices: str, batch_dims: str) -> None:
        model = parse(f"""float[2, 3] d = {{1, 2, 4, 8, 16, 32}}, {indices} |
            g = GatherND {batch_dims} (d, i)  s = ReduceSum <keepdims = 0> (g)  y = Add(x, s)""")
        assert ops(apply(model, FoldConstants)) == ["Add"]

    def test_slices_picked_batch_by_batch(self) -> None:
        model = parse("""float[2, 3] d = {1, 2, 4, 8, 16, 32}, int64[2, 1] i = {2, 0} |
            g = GatherND <batch_dims = 1> (d, i)  s = ReduceSum <keepdims = 0> (g)  y = Add(x, s)""")
        assert ops(apply(model, FoldConstants)) == ["Add"]

    def test_a_whole_constant_subgraph_folds_in_one_walk(self) -> None:
        after = apply(parse("""c = Constant <value_ints = [4]> ()
            k = Constant <value = float {2.0}> ()  e = Expand(k, c)  s = Sqrt(e)  y = Mul(x, s)"""), FoldConstants)
        assert ops(after) == ["Mul"] and np.allclose(after.ir.graph.initializers["s"].const_value.numpy(), 2**0.5)

    def test_shape_of_a_tensor_with_known_dimensions(self) -> None:
        after = apply(parse("s = Shape <start = 1> (x) f = Cast <to = 1> (s) y = Add(x, f)"), FoldConstants)
        assert ops(after) == ["Add"]
        after = parse("s = Shape(x) t = Cast <to = 1> (s) u = ReduceSum <keepdims = 0> (t) y = Add(x, u)")
        assert "Shape" in ops(apply(after, FoldConstants))

    def test_random_numbers_are_never_frozen(self) -> None:
        model = parse("r = RandomNormal <shape = [1, 4]> () y = Add(x, r)")
        assert not FoldConstants()(model.ir).modified

    def test_quantised_weights_stay_quantised(self) -> None:
        model = parse("int8[4] q = {1, 2, 3, 4}, float s = {0.5} | w = DequantizeLinear(q, s) y = Mul(x, w)")
        assert not FoldConstants()(model.ir).modified

    def test_a_gigabyte_is_not_folded(self) -> None:
        model = parse("""int64[2] s = {16384, 16384}, float z = {0.0} |
            e = Expand(z, s)  m = ReduceMax <keepdims = 0> (e)  y = Add(x, m)""")
        FoldConstants()(model.ir)
        assert "Expand" in ops(model)

    def test_one_weight_many_times_over_is_not_even_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FoldConstants, "_compute", lambda *_: pytest.fail("computed"))
        numbers, many = ", ".join(["1.0"] * 256), ", ".join(["k"] * 2000)
        model = parse(f"""float[256] k = {{{numbers}}} | w = Concat <axis = 0> ({many})
            m = ReduceMax <keepdims = 0> (w)  y = Add(x, m)""")
        assert not FoldConstants()(model.ir).modified

    @pytest.mark.parametrize("arranged", [
        "Slice(d, two, three)", "Slice(d, two, three, rows)", "Slice(d, last, far, rows, last)",
        "Slice(d, last, far, last, last)", "Slice(d, zeros, three, , one_two)", "Slice(d, two, three, last)",
        "Transpose(d)", "Transpose <perm = [0, 1]> (d)", "Unsqueeze(d, zeros)", "Unsqueeze(d, ends)",
    ])  # fmt: skip
    def test_arranged_as_onnx_runtime_does(self, arranged: str) -> None:
        model = parse(f"""float[3, 3] d = {{1, 2, 4, 8, 16, 32, 64, 128, 256}}, int64[1] two = {{-2}},
            int64[1] three = {{9}}, int64[1] rows = {{0}}, int64[1] last = {{-1}}, int64[1] far = {{-9}},
            int64[1] zeros = {{0}}, int64[1] one_two = {{2}}, int64[2] ends = {{0, -1}}, int64 axis = {{0}} |
            p = {arranged}  s = Shape(p)  f = Cast <to = 1> (s)  r = Reshape(p, last)  u = CumSum(r, axis)
            a = ReduceSum <keepdims = 0> (u)  b = ReduceSum <keepdims = 0> (f)  c = Add(a, b)  y = Add(x, c)""")
        assert ops(apply(model, FoldConstants)) == ["Add"]

    @pytest.mark.parametrize("number", ["<value = float[1] {2.0}>", "<value = int32[1] {7}>", ""])
    def test_one_number_repeated(self, number: str) -> None:
        model = parse(f"""int64[2] s = {{2, 4}} | e = ConstantOfShape {number} (s)
            m = ReduceMax <keepdims = 0> (e)  f = Cast <to = 1> (m)  y = Add(x, f)""")
        assert ops(apply(model, FoldConstants)) == ["Add"]

    @pytest.mark.parametrize("numbers", ["float[0] {}", "float[2] {1.0, 2.0}"])
    def test_not_one_number_stays(self, numbers: str) -> None:
        model = parse(f"""int64[1] s = {{4}} | e = ConstantOfShape <value = {numbers}> (s)  y = Add(x, e)""")
        assert not FoldConstants()(model.ir).modified

    def test_overridable_initialisers_are_no_constants(self) -> None:
        model = parse("float[4] w = {1.0, 2.0, 3.0, 4.0} | s = Sqrt(w) y = Mul(x, s)")
        model.ir.graph.inputs.append(model.ir.graph.initializers["w"])
        assert not FoldConstants()(model.ir).modified

    def test_what_cannot_be_computed_stays(self) -> None:
        model = parse("int64[1] a = {1}, int64[1] b = {0} | c = Div(a, b) d = Cast <to = 1> (c) y = Add(x, d)")
        assert not FoldConstants()(model.ir).modified
        model = parse("float[1, 2] a = {1, 2} | c = MatMul(a, a) d = ReduceMax <keepdims = 0> (c) y = Add(x, d)")
        assert not FoldConstants()(model.ir).modified

    def test_constant_outputs_are_still_computed(self) -> None:
        two = "float[n, 4] y, float[1] z"
        model = parse("k = Constant <value = float[1] {2.0}> () z = Neg(k) y = Mul(x, k)", outputs=two)
        assert ops(apply(model, FoldConstants)) == ["Neg", "Mul"]

    def test_inside_a_body(self) -> None:
        model = parse("""bool c = {1} | y = If (c) <
            then_branch = t () => (float[n, 4] ty) { k = Constant <value = float {4.0}> () s = Sqrt(k) ty = Mul(x, s) },
            else_branch = e () => (float[n, 4] ey) { ey = Abs(x) }>""")
        assert sorted(ops(apply(model, FoldConstants))) == ["Abs", "If", "Mul"]


class TestStaticReshape:
    SHAPES = "s = Shape <start = 0, end = 1> (x)  c = Constant <value_ints = [2, 2]> ()  t = Concat <axis = 0> (s, c)"

    def test_one_unknown_dimension(self) -> None:
        model = parse(f"{self.SHAPES} a = Reshape <allowzero = 1> (x, t) y = Neg(a)", outputs="float[n, 2, 2] y")
        model.ir.graph.node("Reshape_3").outputs[0].shape = ir.Shape(["n", 2, 2])
        after = apply(model, StaticReshape, RemoveDeadCode)
        assert ops(after) == ["Reshape", "Neg"]
        assert after.ir.graph.initializers["Reshape_3_shape"].const_value.numpy().tolist() == [-1, 2, 2]

    def test_two_dimensions_of_the_input_are_copied(self) -> None:
        model = parse("a = Reshape(x, s) y = Neg(a)", "float[n, m, 4] x, int64[4] s", "float[n, m, 2, 2] y")
        model.ir.graph.node("Reshape_0").outputs[0].shape = ir.Shape(["n", "m", 2, 2])
        StaticReshape()(model.ir)
        assert model.ir.graph.initializers["Reshape_0_shape"].const_value.numpy().tolist() == [0, 0, 2, 2]

    def test_two_unknown_dimensions_stay(self) -> None:
        model = parse("a = Reshape(x, s) y = Neg(a)", "float[n, m, 4] x, int64[2] s", "float[p, q] y")
        model.ir.graph.node("Reshape_0").outputs[0].shape = ir.Shape(["p", "q"])
        assert not StaticReshape()(model.ir).modified


class TestShareInitializers:
    def test_equal_weights_are_shared_and_unequal_ones_are_not(self) -> None:
        model = parse("float[2] a = {1, 2}, float[2] b = {1, 2}, float[2] c = {2, 1}, float[1, 2] d = {1, 2} |"
                      "e = Add(x, a) f = Add(e, b) g = Add(f, c) y = Add(g, d)", "float[n, 2] x", "float[n, 2] y")
        assert sorted(apply(model, ShareInitializers).ir.graph.initializers) == ["a", "c", "d"]

    def test_zero_and_minus_zero_differ(self) -> None:
        model = parse("float[1] a = {0.0}, float[1] b = {-0.0} | c = Add(x, a) y = Add(c, b)")
        assert not ShareInitializers()(model.ir).modified


def norm_after(
    linear: str, weights: dict[str, np.ndarray], inputs: str, outputs: str, channels: int, more: str = ""
) -> Model:
    """`linear` computes a; a batch normalisation of it is y."""
    rng = np.random.default_rng(0)
    weights = weights | {name: rng.standard_normal(channels).astype(np.float32) for name in ("gamma", "beta", "mean")}
    weights["var"] = rng.uniform(0.5, 2, channels).astype(np.float32)
    given = "".join(f", float[{', '.join(map(str, data.shape))}] {name}" for name, data in weights.items())
    norm = "y = BatchNormalization <epsilon = 0.01> (a, gamma, beta, mean, var)"
    model = parse(f"{linear} {norm} {more}", inputs + given, outputs)
    graph = model.ir.graph
    for value in graph.inputs[1:]:
        value.const_value = ir.tensor(weights[value.name or ""], name=value.name)
    weight_values = graph.inputs[1:]
    del graph.inputs[1:]
    for value in weight_values:
        graph.register_initializer(value)
    return Model(model.ir)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


IMAGE = {"inputs": "float[n, 4, 5, 5] x", "outputs": "float[n, 6, 5, 5] y", "channels": 6}


class TestBatchNorm:
    @pytest.mark.parametrize(("linear", "weights"), [
        ("a = Conv(x, w)", {"w": random(6, 4, 1, 1)}),
        ("a = Conv <pads = [1, 1, 1, 1]> (x, w, b)", {"w": random(6, 4, 3, 3), "b": random(6)}),
        ("a = Conv <group = 2> (x, w, b)", {"w": random(6, 2, 1, 1), "b": random(6)}),
        ("a = ConvTranspose(x, w)", {"w": random(4, 6, 1, 1)}),
        ("a = ConvTranspose <group = 2> (x, w, b)", {"w": random(4, 3, 1, 1), "b": random(6)}),
    ])  # fmt: skip
    def test_folds_into_convolutions(self, linear: str, weights: dict[str, np.ndarray]) -> None:
        after = apply(norm_after(linear, weights, **IMAGE), FoldBatchNorm, RemoveDeadCode)
        assert "BatchNormalization" not in ops(after) and len(ops(after)) == 1

    @pytest.mark.parametrize(("linear", "weights"), [
        ("a = Gemm(x, w)", {"w": random(4, 6)}),
        ("a = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)", {"w": random(6, 4), "b": random(6)}),
        ("a = Gemm <beta = 2.0> (x, w, b)", {"w": random(4, 6), "b": random(1, 6)}),
        ("a = Gemm(x, w, b)", {"w": random(4, 6), "b": random(1)}),
    ])  # fmt: skip
    def test_folds_into_gemm(self, linear: str, weights: dict[str, np.ndarray]) -> None:
        model = norm_after(linear, weights, "float[n, 4] x", "float[n, 6] y", 6)
        assert ops(apply(model, FoldBatchNorm, RemoveDeadCode)) == ["Gemm"]

    def test_a_bias_for_every_row_cannot_be_folded(self) -> None:
        weights = {"w": random(4, 6), "b": random(3, 6)}
        model = norm_after("a = Gemm(x, w, b)", weights, "float[3, 4] x", "float[3, 6] y", 6)
        assert "BatchNormalization" in ops(apply(model, FoldBatchNorm))

    def test_a_convolution_with_another_reader_stays(self) -> None:
        model = norm_after("a = Conv(x, w)", {"w": random(6, 4, 1, 1)}, IMAGE["inputs"],
                           "float[n, 6, 5, 5] y, float[n, 6, 5, 5] z", 6, more="z = Relu(a)")
        assert "BatchNormalization" in ops(apply(model, FoldBatchNorm))
        model = norm_after("a = Conv(x, w)", {"w": random(6, 4, 1, 1)}, IMAGE["inputs"],
                           "float[n, 6, 5, 5] y, float[n, 6, 5, 5] a", 6)
        assert "BatchNormalization" in ops(apply(model, FoldBatchNorm))

    def test_shared_weights_are_copied(self) -> None:
        model = norm_after("a = Conv(x, w)", {"w": random(6, 4, 1, 1)}, IMAGE["inputs"],
                           "float[n, 6, 5, 5] y, float[n, 6, 5, 5] z", 6, more="z = Conv(x, w)")
        after = apply(model, FoldBatchNorm, RemoveDeadCode)
        assert ops(after) == ["Conv", "Conv"]

    def test_training_mode_stays(self) -> None:
        model = norm_after("a = Conv(x, w)", {"w": random(6, 4, 1, 1)}, **IMAGE)
        model.ir.graph.node("BatchNormalization_1").attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
        assert not FoldBatchNorm()(model.ir).modified

    def test_a_variance_that_gives_no_number_stays(self) -> None:
        model = norm_after("a = Conv(x, w)", {"w": random(6, 4, 1, 1)}, **IMAGE)
        model.ir.graph.initializers["var"].const_value = ir.tensor(np.full(6, -1, np.float32), name="var")
        assert not FoldBatchNorm()(model.ir).modified

    def test_the_model_it_started_from_keeps_its_weights(self) -> None:
        model = norm_after("a = Conv(x, w)", {"w": random(6, 4, 1, 1)}, **IMAGE)
        before = model.run(model.random_inputs(2))["y"]
        FoldBatchNorm()(model.copy().ir)
        np.testing.assert_array_equal(model.run(model.random_inputs(2))["y"], before)


@pytest.mark.parametrize("taken", ["Conv_1.weight", "Conv_1.bias"])
def test_new_weights_get_names_that_are_free(taken: str) -> None:
    """The names that folding likes to give belong to another tensor already."""
    nodes = f'"{taken}" = Relu(x) c = Conv("{taken}", w) b = BatchNormalization(c, s, s, s, s) y = Conv(b, w)'
    model = parse(f"float[1, 1, 1, 1] w = {{3}}, float[1] s = {{2}} | {nodes}", "float[n, 1, 3, 3] x",
                  "float[n, 1, 3, 3] y")
    assert ops(apply(model, FoldBatchNorm)) == ["Relu", "Conv", "Conv"]


def test_a_new_shape_gets_a_name_that_is_free() -> None:
    nodes = '"Reshape_2_shape" = Relu(x) s = Shape("Reshape_2_shape") y = Reshape("Reshape_2_shape", s)'
    after = apply(parse(nodes), StaticReshape, RemoveDeadCode)
    assert ops(after) == ["Relu", "Reshape"]
