"""Horizontal merging: siblings become one wide operator and a Split, which then goes down as far as it can."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.passes.graphs import apply, assert_same, ops, parse
from trtkit.course import nets
from trtkit.importers import load
from trtkit.model import Model
from trtkit.passes import horizontal, optimize, run_passes
from trtkit.passes.horizontal import MergeSiblings
from trtkit.passes.split_sinking import SinkSplits

BOTH = (MergeSiblings(), SinkSplits())
TWO = "float[n, 2] y, float[n, 3] z"
WEIGHTS = "float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[4, 3] v = {1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 2, 2}"


def build(
    nodes: list[onnx.NodeProto], shape: tuple[object, ...], outs: list[str], opset: int, **arrays: np.ndarray
) -> Model:
    weights = [numpy_helper.from_array(data.astype(np.float32), name) for name, data in arrays.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outs]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], outputs, weights
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    return load(onnx.shape_inference.infer_shapes(proto))


@settings(max_examples=40, deadline=None)
@given(
    op=st.sampled_from(["Conv", "MatMul", "Gemm", "GemmT"]),
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    biased=st.lists(st.booleans(), min_size=4, max_size=4),
    tail=st.sampled_from(["", "Relu", "Add", "Concat", "ReluConcat"]),
    opset=st.sampled_from([9, 11, 13, 18]),
    seed=st.integers(0, 99),
)
def test_siblings_compute_the_same(
    op: str, widths: list[int], biased: list[bool], tail: str, opset: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    nodes, outs = [], []
    for i, width in enumerate(widths):
        shape = {"Conv": (width, 3, 2, 2), "GemmT": (width, 3)}.get(op, (3, width))
        arrays[f"w{i}"] = rng.standard_normal(shape)
        inputs, attributes = ["x", f"w{i}"], {"transB": 1, "alpha": 0.5, "beta": 2.0} if op == "GemmT" else {}
        if op != "MatMul" and (biased[i] or (op != "Conv" and opset < 11)):
            arrays[f"b{i}"] = rng.standard_normal(width)
            inputs.append(f"b{i}")
        outs.append(f"y{i}")
        nodes.append(helper.make_node(op[:4] if op == "GemmT" else op, inputs, outs[-1:], name=f"n{i}", **attributes))
        if tail.startswith("Relu") or tail == "Add":
            arrays |= {f"c{i}": rng.standard_normal((width, 1, 1) if op == "Conv" else width)} if tail == "Add" else {}
            more = [f"c{i}"] if tail == "Add" else []
            nodes.append(helper.make_node(tail[:4] if more == [] else tail, [outs[-1], *more], [f"r{i}"], name=f"t{i}"))
            outs[-1] = f"r{i}"
    if tail.endswith("Concat"):
        nodes.append(helper.make_node("Concat", outs, ["all"], axis=2 if op == "MatMul" else 1))
        outs = ["all"]
    shape = {"Conv": ("n", 3, 4, 4), "MatMul": ("n", 2, 3)}.get(op, ("n", 3))
    before = build(nodes, shape, outs, opset, **arrays)
    after = run_passes(before, BOTH)
    assert_same(before, after)
    wide = op[:4] if op == "GemmT" else op
    assert after.op_counts[wide] == 1
    assert after.node_count == 1 + (tail in ("Relu", "Add", "ReluConcat")) + ("Concat" not in tail)
    onnx.checker.check_model(after.to_proto(), full_check=True)
    assert all(value.shape is not None for node in after.ir.graph for value in node.outputs)


def test_names_and_metadata_stay() -> None:
    before = parse(f"{WEIGHTS} | y = MatMul(x, w) z = MatMul(x, v)", outputs=TWO)
    first = next(iter(before.ir.graph))
    first.metadata_props["layer"] = "q"
    name = first.name
    after = run_passes(before, BOTH[:1])
    assert_same(before, after)
    wide, split = after.ir.graph
    assert wide.name == f"{name}_wide" and wide.metadata_props["layer"] == "q"
    assert [value.name for value in split.outputs] == ["y", "z"]
    assert after.history[-1].detail == "1 MatMul for 2"
    assert sorted(after.ir.graph.initializers) == [f"{name}_split_sizes", f"{name}_wide.weight"], "the old weights went"


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul(x, w) a = Relu(x) z = MatMul(a, v)",  # another input
        "y = Gemm(x, w) z = Gemm <alpha = 2.0> (x, v)",  # other attributes
        "y = Gemm(x, w) z = MatMul(x, v)",  # another operator
        "d = Relu(w) y = MatMul(x, d) z = MatMul(x, v)",  # a weight that is computed
    ],
)
def test_others_stay_apart(body: str) -> None:
    assert "Split" not in ops(apply(parse(f"{WEIGHTS} | {body}", outputs=TWO), MergeSiblings))


def test_a_bias_that_differs_by_row_is_refused() -> None:
    rows = "float[2, 2] b = {1, 2, 3, 4}, "
    before = parse(
        f"{rows}{WEIGHTS} | y = Gemm(x, w, b) z = Gemm(x, v)", "float[2, 4] x", "float[2, 2] y, float[2, 3] z"
    )
    assert ops(apply(before, MergeSiblings)) == ["Gemm", "Gemm"]


def test_grouped_convolutions_are_refused() -> None:
    text = "float[2, 1, 1] w = {1, 2}, float[2, 1, 1] v = {3, 4} | a = Conv<group = 2>(x, w) b = Conv<group = 2>(x, v)"
    before = parse(f"{text} y = Add(a, b)", "float[n, 2, 4] x", "float[n, 2, 4] y")
    assert ops(apply(before, MergeSiblings)) == ["Conv", "Conv", "Add"]


def test_weights_that_others_read_are_kept_twice_only_if_small(monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"{WEIGHTS} | y = MatMul(x, w) z = MatMul(x, v) s = Add(w, w)"
    before = parse(body, outputs=f"{TWO}, float[4, 2] s")
    assert "Split" in ops(apply(before, MergeSiblings))
    monkeypatch.setattr(horizontal, "COPY_LIMIT", 31)  # w has 32 bytes
    assert "Split" not in ops(apply(before, MergeSiblings))


def test_siblings_in_a_body_read_what_is_outside() -> None:
    body = f"""{WEIGHTS}, bool c = {{1}} | i = Identity(c)
        y, z = If (i) <then_branch = t () => (float[n, 2] a, float[n, 3] b) {{ a = MatMul(x, w) b = MatMul(x, v) }},
                       else_branch = e () => (float[n, 2] d, float[n, 3] f) {{ d = MatMul(x, w) f = MatMul(x, v) }}>"""
    after = apply(parse(body, outputs=TWO), MergeSiblings)
    assert ops(after).count("MatMul") == 2 and ops(after).count("Split") == 2


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a, b = Split<axis = 1>(x, s) c = Relu(a) d = Relu(b) y = Add(c, d)", ["Relu", "Split", "Add"]),
        ("a, b = Split<axis = 1>(x, s) c = Relu(a) d = Neg(b) y = Add(c, d)", ["Split", "Relu", "Neg", "Add"]),
        ("a, b = Split<axis = 1>(x, s) c = Relu(a) d = Relu(b) e = Add(b, c) y = Add(e, d)", ["Split", "Relu", "Relu"]),
        ("a, b = Split<axis = 1>(x, s) c = LeakyRelu<alpha = 0.5>(a) d = LeakyRelu(b) y = Add(c, d)", ["Split"]),
        ("a, b = Split<axis = 1>(x, s) c = Sub(h, a) d = Sub(h, b) y = Add(c, d)", ["Sub", "Split", "Add"]),
        ("a, b = Split<axis = 1>(x, s) c = Sub(h, a) d = Sub(b, h) y = Add(c, d)", ["Split", "Sub", "Sub"]),
        ("a, b = Split<axis = 1>(x, s) c = Add(a, r) d = Add(b, r) y = Add(c, d)", ["Split", "Add"]),  # by row
    ],
)  # fmt: skip
def test_a_split_sinks_only_past_what_is_alike(body: str, left: list[str]) -> None:
    weights = "int64[2] s = {2, 2}, float[2] h = {1, 2}, float[4, 1] r = {1, 2, 3, 4}"
    after = apply(parse(f"{weights} | {body}", "float[4, 4] x", "float[4, 2] y"), SinkSplits)
    assert ops(after)[: len(left)] == left


def test_parts_joined_in_order_are_the_whole() -> None:
    text = "int64[2] s = {1, 3} | r = Relu(x) a, b = Split<axis = 1>(r, s) c = Concat<axis = -1>(%s) y = Neg(c)"
    assert ops(run_passes(parse(text % "a, b"), BOTH[1:])) == ["Relu", "Neg"]
    assert ops(run_passes(parse(text % "b, a"), BOTH[1:])) == ["Relu", "Split", "Concat", "Neg"]


def test_the_sibling_convolutions_of_the_lesson_become_one() -> None:
    photo = torch.rand(1, 64, 28, 28)
    before = optimize(load(nets.sibling_convolutions(), photo, name="three convolutions"))
    after = run_passes(before, BOTH)
    assert after.op_counts == {"Conv": 1, "Relu": 1}
    assert_same(before, after)
