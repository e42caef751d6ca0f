"""The index of a graph's nodes by operator."""

from __future__ import annotations

import onnx
import pytest

import trtkit
from trtkit.errors import TrtkitError
from trtkit.passes import run_passes
from trtkit.passes.common import Rewrite
from trtkit.passes.identity import RemoveIdentities
from trtkit.passes.index import Index

TEXT = """<ir_version: 10, opset_import: ["": 20, "own": 1]>
    g (float[2] x, bool c) => (float[2] y) {
        a = Relu(x)
        b = If (c) <then_branch = t () => (float[2] t1) {t0 = Abs(a) t1 = Relu(t0)},
                    else_branch = e () => (float[2] e1) {e1 = Identity(a)}>
        d = own.Relu(b)
        y = Abs(d)
    }"""


def names(nodes: object) -> list[str]:
    return [node.outputs[0].name for node in nodes]  # type: ignore[attr-defined]


def test_outer_graphs_come_first_and_foreign_operators_are_not_offered() -> None:
    index = Index(trtkit.load(onnx.parser.parse_model(TEXT)).ir)
    assert len(index.graphs) == 3 and len(index) == 7
    assert names(index.of({"Relu"})) == ["a", "t1"]
    assert names(index.of({"Relu", "Abs"})) == ["a", "y", "t0", "t1"]
    assert names(index.of(())) == ["a", "b", "y", "t0", "t1", "e1"]
    assert index.has({"If"}) and index.has(()) and not index.has({"Gemm"})


def test_a_node_that_is_gone_when_its_turn_comes_is_left_out() -> None:
    graph = trtkit.load(onnx.parser.parse_model(TEXT)).ir
    index = Index(graph)
    seen = []
    for node in index.of({"Abs", "Relu"}):
        seen += names([node])
        if node.outputs[0].name == "a":
            last = next(n for n in index.of({"Abs"}))
            last.outputs[0].replace_all_uses_with(graph.graph.inputs[0], replace_graph_outputs=True)
            graph.graph.remove(last, safe=True)
    assert seen == ["a", "t0", "t1"]


def test_a_pass_that_breaks_off_keeps_no_index() -> None:
    class Broken(Rewrite):
        title = "broken"

        def rewrite(self, node: object) -> str | None:
            raise TrtkitError("no")

    rule, model = Broken(), trtkit.load(onnx.parser.parse_model(TEXT))
    with pytest.raises(Exception, match="no"):
        run_passes(model, [rule])
    assert rule.index is None


def test_a_pass_object_serves_one_model_after_another() -> None:
    rule = RemoveIdentities()
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) {a = Identity(x) y = Relu(a)}'
    for _ in range(2):
        assert run_passes(trtkit.load(onnx.parser.parse_model(text)), [rule]).op_counts == {"Relu": 1}
