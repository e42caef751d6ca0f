"""merge: the outputs of the whole are those of the parts, whatever the parts have in common."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

import trtkit
from trtkit.compose.merge import merge
from trtkit.errors import ModelError
from trtkit.importers import load
from trtkit.model import Model

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4), np.float32)


def model(
    nodes: str, name: str = "g", inputs: str = "float[n, 4] x", outputs: str = "float[n, 4] y", **more: Any
) -> Model:
    weights, _, nodes = nodes.rpartition("|")
    weights = f"<{weights}>" if weights else ""
    opset = more.get("opset", '"": 20')
    return load(
        onnx.parser.parse_model(
            f"<ir_version: 10, opset_import: [{opset}]> {name} ({inputs}) => ({outputs}) {weights} {{{nodes}}}"
        )
    )


def run(whole: Model, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs, after ONNX's checker, its reference and ONNX Runtime agreed on them."""
    onnx.checker.check_model(whole.to_proto(), full_check=True)
    got = whole.run(inputs)
    for want, have in zip(ReferenceEvaluator(whole.to_proto()).run(None, inputs), got.values(), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
    return got


def test_same_inputs_become_one_and_clashing_names_get_their_models_in_front() -> None:
    cats, dogs = model("h = Abs(x) y = Neg(h)", "cats"), model("h = Exp(x) y = Relu(h)", "dogs")
    whole = merge([cats, dogs])
    assert [str(i) for i in whole.inputs] == ["x float32 (n, 4)"]
    got = run(whole, x=X)
    assert list(got) == ["cats/y", "dogs/y"]
    np.testing.assert_array_equal(got["cats/y"], -np.abs(X))
    np.testing.assert_allclose(got["dogs/y"], np.exp(X), rtol=1e-6)
    names = [node.name for node in whole.ir.graph]
    assert len(set(names)) == 4
    assert [i.name for i in cats.inputs] == ["x"] and cats.ir.graph.outputs[0].name == "y"  # the parts are untouched
    assert whole.history[-1].name == "merge" and whole.name == "cats+dogs"


def test_inputs_that_do_not_fit_stay_apart() -> None:
    other = model("y = Neg(x)", "b", inputs="float[n, 7] x", outputs="float[n, 7] y")
    whole = merge({"a": model("y = Abs(x)"), "b": other})
    assert [i.name for i in whole.inputs] == ["a/x", "b/x"]
    assert [i.shape for i in whole.inputs] == [("a/n", 4), ("b/n", 7)]
    apart = merge({"a": model("y = Abs(x)"), "b": model("y = Neg(x)")}, share_inputs=False)
    got = run(apart, **{"a/x": X, "b/x": X[:2]})  # the batches may differ, too
    np.testing.assert_array_equal(got["b/y"], -X[:2])


def test_inputs_are_shared_by_a_mapping_and_their_dimensions_become_one() -> None:
    a = model("y = Abs(x)", "a")
    b = model("z = Neg(data)", "b", inputs="float[rows, 4] data", outputs="float[rows, 4] z")
    whole = merge([a, b], share_inputs={"table": {"a": "x", "b": "data"}})
    assert [str(i) for i in whole.inputs] == ["table float32 (n, 4)"]
    assert [o.shape for o in whole.outputs] == [("n", 4), ("n", 4)]
    assert [o.name for o in whole.outputs] == ["y", "z"]
    run(whole, table=X)
    with pytest.raises(ModelError, match=r"'b' has no input 'x'; its inputs are \['data'\]"):
        merge([a, b], share_inputs={"table": {"a": "x", "b": "x"}})
    with pytest.raises(ModelError, match="no model 'c' among those to merge"):
        merge([a, b], share_inputs={"table": {"a": "x", "c": "x"}})
    wide = model("y = Neg(x)", "wide", inputs="float[n, 5] x", outputs="float[n, 5] y")
    with pytest.raises(ModelError, match=r"cannot both be the input 't': they do not fit"):
        merge([a, wide], share_inputs={"t": {"a": "x", "wide": "x"}})


def test_a_fixed_and_a_changeable_batch_make_a_fixed_one() -> None:
    fixed = model("y = Neg(x)", "b", inputs="float[3, 4] x", outputs="float[3, 4] y")
    whole = merge({"a": model("y = Abs(x)"), "b": fixed})
    assert whole.inputs[0].shape == (3, 4)
    run(whole, x=X)


def test_batch_means_one_size_everywhere_unless_told_otherwise() -> None:
    a = model("y = Abs(x)", "a", inputs="float[batch, 4] x", outputs="float[batch, 4] y")
    b = model("z = Abs(w)", "b", inputs="float[batch, 2] w", outputs="float[batch, 2] z")
    assert [i.shape[0] for i in merge([a, b]).inputs] == ["batch", "batch"]
    assert [i.shape[0] for i in merge([a, b], share_dims=()).inputs] == ["a/batch", "b/batch"]


def test_dimensions_that_bear_each_others_names_are_not_mixed_up() -> None:
    a = model("y = Abs(x)", "a", inputs="float[p, q] x", outputs="float[p, q] y")
    b = model("z = Abs(x)", "b", inputs="float[q, p] x", outputs="float[q, p] z")
    assert [o.shape for o in merge([a, b]).outputs] == [("p", "q"), ("p", "q")]
    c = model("z = Abs(x) w = Neg(v)", "c", "float[n, 4] x, float[p, 4] v", "float[n, 4] z, float[p, 4] w")
    d = model("y = Abs(x)", "d", inputs="float[p, 4] x", outputs="float[p, 4] y")
    assert [o.shape[0] for o in merge([d, c]).outputs] == ["p", "p", "c/p"]


def test_equal_weights_are_kept_once() -> None:
    weight = "float[4, 4] w = {" + ", ".join("1.5" for _ in range(16)) + "}"
    parts = {k: model(f"{weight}|h = MatMul(x, w) y = {op}(h)") for k, op in (("a", "Abs"), ("b", "Neg"))}
    whole = merge(parts)
    assert len(whole.ir.graph.initializers) == 1 and whole.size_bytes == parts["a"].size_bytes
    run(whole, x=X)


def test_outputs_feed_inputs() -> None:
    first, second = model("y = Abs(x)", "first"), model("y = Sqrt(x)", "second")
    whole = merge([first, second], connect={("second", "x"): ("first", "y")})
    assert [i.name for i in whole.inputs] == ["x"] and len(whole.outputs) == 1
    np.testing.assert_allclose(run(whole, x=X)[whole.outputs[0].name], np.sqrt(np.abs(X)), rtol=1e-6)
    backwards = merge([second, first], connect={("second", "x"): ("first", "y")}, keep_connected=True)
    assert len(run(backwards, x=X)) == 2
    with pytest.raises(ModelError, match="in a circle"):
        merge(
            [first, second],
            connect={("second", "x"): ("first", "y"), ("first", "x"): ("second", "y")},
            keep_connected=True,
        )
    with pytest.raises(ModelError, match="Nothing is left to give out"):
        merge([first, second], connect={("second", "x"): ("first", "y"), ("first", "x"): ("second", "y")})
    with pytest.raises(ModelError, match=r"'first' has no output 'z'; its outputs are \['y'\]"):
        merge([first, second], connect={("second", "x"): ("first", "z")})
    wide = model("y = Neg(x)", "wide", inputs="float[n, 5] x", outputs="float[n, 5] y")
    with pytest.raises(ModelError, match=r"'x' of 'wide', float \(n, 5\) cannot be fed"):
        merge([first, wide], connect={("wide", "x"): ("first", "y")})


def test_bodies_keep_reading_what_they_read() -> None:
    branch = "then_branch = t () => (float[n, 4] p) {p = Relu(h)}, else_branch = e () => (float[n, 4] p) {p = Neg(h)}"
    part = model(f"h = Abs(x) y = If <{branch}> (c)", inputs="float[n, 4] x, bool c")
    whole = merge({"a": part, "b": model("h = Exp(x) y = Neg(h)")})
    for c in (True, False):
        got = run(whole, x=X, c=np.array(c))
        np.testing.assert_array_equal(got["a/y"], part.run({"x": X, "c": np.array(c)})["y"])


def test_opsets_are_lifted_to_the_newest() -> None:
    old = model("y = ReduceSum<axes = [1], keepdims = 1>(x)", "old", outputs="float[n, 1] y", opset='"": 11')
    clip = model("float one = {1.0}|h = Clip(x, one) y = Neg(h)", "new", opset='"": 20')
    whole = merge([old, clip])
    assert whole.opset == 20
    got = run(whole, x=X)
    np.testing.assert_allclose(got["old/y"], X.sum(1, keepdims=True), rtol=1e-5)


def test_what_cannot_be_lifted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        raise RuntimeError("no adapter for Frob")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fails)
    parts = [model("y = Abs(x)", "old", opset='"": 17'), model("y = Abs(x)", "new")]
    with pytest.raises(
        ModelError, match=r"'old' has opset 17 and the others need 20.*no adapter for Frob.*Export it again"
    ):
        merge(parts)


def test_other_domains_stay_and_must_agree_on_their_version() -> None:
    def custom(version: int, name: str) -> Model:
        return model("y = mine.Op(x)", name, opset=f'"": 20, "mine": {version}')

    whole = merge([custom(1, "a"), custom(1, "b")])
    assert whole.ir.opset_imports == {"": 20, "mine": 1}
    assert [node.domain for node in whole.ir.graph] == ["mine", "mine"]
    with pytest.raises(ModelError, match=r"'a' uses version 1 of the operators of 'mine' and 'b' uses 2"):
        merge([custom(1, "a"), custom(2, "b")])


def with_function(op: str, name: str) -> Model:
    """A model that calls a function of its own, `local.F`, which is loaded without being written out."""
    import onnx_ir as ir

    function = helper.make_function(
        "local", "F", ["a"], ["b"], [helper.make_node(op, ["a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    ends = [helper.make_tensor_value_info(k, 1, ["n", 4]) for k in ("x", "y")]
    graph = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="local")], name, ends[:1], ends[1:])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    return load(ir.from_proto(helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)))


def test_functions_stay_and_two_of_one_name_do_not_mix() -> None:
    whole = merge([with_function("Abs", "a"), with_function("Neg", "b")])
    assert len(whole.ir.functions) == 1
    got = run(whole, x=X)
    np.testing.assert_array_equal(got["a/y"], np.abs(X))
    np.testing.assert_array_equal(got["b/y"], -X)


def test_the_origin_is_the_merger_of_the_origins() -> None:
    a = model("h = Identity(x) y = Abs(h)", "a")
    small = trtkit.optimize(a)
    whole = merge({"a": small, "b": model("y = Neg(x)")})
    assert whole.origin.op_counts == {"Identity": 1, "Abs": 1, "Neg": 1}
    assert whole.op_counts == {"Abs": 1, "Neg": 1}
    assert [step.name for step in whole.history] == ["remove identities", "merge"]
    plain = merge([a, a])
    assert plain.origin is plain
    engine = trtkit.build(whole)
    assert engine.verification is not None and len(engine.verification.checks) == 2


def test_half_precision_parts_make_half_precision_tolerance() -> None:
    weight = "float[4, 4] w = {" + ", ".join(str(v) for v in RNG.normal(size=16).round(2)) + "}"
    part = model(f"{weight}|y = MatMul(x, w)")
    whole = merge({"half": trtkit.autocast(part, "fp16"), "full": part})
    assert whole.precision == "fp16"
    assert trtkit.build(whole).verification.passed


def test_nothing_to_merge() -> None:
    with pytest.raises(ModelError, match="at least one model"):
        merge([])
    alone = model("y = Abs(x)")
    assert merge([alone]).outputs == alone.outputs


OPS = ["Abs", "Neg", "Relu", "Sigmoid", "Tanh"]


@st.composite
def chains(draw: st.DrawFn) -> Model:
    ops = draw(st.lists(st.sampled_from(OPS), min_size=1, max_size=4))
    names = ["x", *draw(st.permutations(["h", "y", "k", "z"]))[: len(ops)]]
    nodes = " ".join(f"{b} = {op}({a})" for op, (a, b) in zip(ops, itertools.pairwise(names), strict=True))
    return model(nodes, draw(st.sampled_from(["g", "k"])), outputs=f"float[n, 4] {names[-1]}")


@settings(max_examples=60, deadline=None)
@given(st.lists(chains(), min_size=1, max_size=4), st.booleans())
def test_any_chains_merge_into_what_they_compute(parts: list[Model], share: bool) -> None:
    whole = merge(parts, share_inputs=share)
    onnx.checker.check_model(whole.to_proto(), full_check=True)
    got = list(whole.run({info.name: X for info in whole.inputs}).values())
    for part, have in zip(parts, got, strict=True):
        np.testing.assert_array_equal(have, next(iter(part.run(X).values())))
