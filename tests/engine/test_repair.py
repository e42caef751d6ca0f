"""What TensorRT says it refuses, and that it builds what `repair` made of that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.engine.libraries import ABORTS, misbehaving
from tests.passes.graphs import parse
from tests.passes.repair_cases import ATTENTION, CASES
from trtkit.compose.merge import merge
from trtkit.engine import parser_child
from trtkit.engine.build import build
from trtkit.engine.repair import Refusal, Refusals, refusals, repair
from trtkit.engine.suspects import SUSPECTS
from trtkit.errors import BuildError
from trtkit.model import Model, every_node
from trtkit.passes.common import infer_shapes


@pytest.fixture(scope="module")
def everything() -> Model:
    """The models of all repairs, side by side in one: TensorRT is asked, and builds, once for all of them."""
    parts = {name.replace(" ", "_"): case.model for name, case in CASES.items() if case.opset == 20}
    return merge(parts, share_inputs=False)


def test_every_repair_in_one_model(everything: Model) -> None:
    with pytest.raises(BuildError, match="cannot parse"):
        build(everything, verify=False)
    found = refusals(everything)
    expected = {name for case in CASES.values() if case.opset == 20 for name in case.refused}
    assert {one.operator for one in found} >= expected
    assert all(one.remedy.startswith("repair: ") for one in found), found
    assert [one.node for one in found] == [n.name for n in every_node(everything.ir.graph) if n.name in found.nodes]
    fixed = repair(everything)
    assert not refusals(fixed)
    engine = build(fixed)  # verified against the model before its repair
    assert engine.verification is not None and engine.verification.passed
    assert max(check.error for check in engine.verification.checks) < 1e-5
    told = " ".join(step.detail for step in fixed.history)
    assert "Compress made Gather" in told and "DynamicQuantizeLinear written out" in told


def test_forms_of_attention_that_the_builder_or_the_parser_refuses() -> None:
    """With a softcap the parser says no; without, the builder ends its process, though the parser says yes."""
    plain = parse("y = Attention<is_causal = 1>(x, x, x)", "float[2, 2, 4, 8] x", "float[2, 2, 4, 8] y", 23)
    both = merge({"softcap": ATTENTION.model, "causal": plain}, share_inputs=False)
    found = {one.node.split("/")[0]: one for one in refusals(both)}
    assert found["softcap"].said_by == "parser" and "softcap" in found["softcap"].reason
    assert found["causal"].said_by == "builder"
    assert not refusals(repair(both))


def test_what_has_no_equivalent() -> None:
    model = parse(
        "a = Relu(x) b = NonZero(a) c = Cast<to = 1>(b) d = Det(x) y = Add(c, d) z = Relu(x)",
        "float[4, 4] x",
        "float[2, k] y, float[4, 4] z",
    )
    found = refusals(model)
    assert [(one.operator, one.remedy.split(":")[0]) for one in found] == [("NonZero", "split"), ("Det", "split")]
    assert repair(model) is model
    assert "refuses 2 nodes of 'g'" in str(found) and "Det" in str(found)
    assert found._repr_html_().count("<tr>") == 3 and found.table().row_count == 2
    assert found[0].node in found.nodes and len(found[:1]) == 1


def test_a_table_escapes_names() -> None:
    page = Refusals([Refusal("<b>", "Op", "a < b", "parser", "split")], "m", "TensorRT")._repr_html_()
    assert "&lt;b&gt;" in page and "a &lt; b" in page


def test_a_node_in_a_body_and_an_input_without_type() -> None:
    """The If is not what is refused, the Det inside it is; and of INT16 inputs TensorRT does not say which it means."""
    model = parse(
        "float zero = {0} | s = ReduceSum<keepdims = 0>(x) c = Greater(s, zero) y = If(c) <then_branch = t () => "
        "(float[4, 4] t1) {t1 = Relu(x)}, else_branch = e () => (float[4, 4] e1) {d = Det(x) e1 = Add(x, d)}> "
        "z = Cast<to = 1>(i)",
        "float[4, 4] x, int16[3] i",
        "float[4, 4] y, float[3] z",
    )
    found = {one.operator: one for one in refusals(model)}
    assert set(found) == {"Det", "Cast"} and "data type" in found["Cast"].reason


def test_a_parser_that_aborts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    misbehaving(tmp_path, monkeypatch, ABORTS)
    (one,) = refusals(parse("y = Relu(x)"))
    assert one.operator == "Relu" and "ended its process (signal 6)" in one.reason


def test_suspects_are_still_refused() -> None:
    """What is kept of the probing of all of ONNX's node tests, asked again for a sample."""
    boxes = (
        "float[1, 6, 4] boxes, float[1, 1, 6] scores",
        "int64[k, 3] y",
        "int64 most = {3}, float overlap = {0.5} | y = NonMaxSuppression(boxes, scores, most, overlap)",
    )
    model = parse(boxes[2], boxes[0], boxes[1])
    (one,) = refusals(model)
    assert one.operator == "NonMaxSuppression" and one.said_by == "builder"
    assert SUSPECTS["NonMaxSuppression"][1] in one.reason


def test_nodes_like_one_before_are_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse("a = Relu(x) b = Relu(a) y = Neg(b)")
    infer_shapes(model.ir)
    asked: list[onnx.ModelProto] = []
    monkeypatch.setattr(parser_child, "_in_a_fork", lambda question: asked.append(question) or [])
    assert list(parser_child._builder_on(model.ir, thorough=True)) == [] and len(asked) == 2


def test_the_file_that_the_child_reads(tmp_path: Path) -> None:
    model = parse("a = Det(x) y = Neg(a)", "float[4, 4] x", "float y")
    (tmp_path / "m.onnx").write_bytes(model.to_bytes())
    (tmp_path / "request.json").write_text(json.dumps({"onnx_file": str(tmp_path / "m.onnx"), "thorough": False}))
    assert parser_child.main(tmp_path) == 0
    (found,) = json.loads((tmp_path / "result.json").read_text())
    assert found["node"] == "Det_0" and found["found_by"] == "parser"
    assert np.isfinite(model.run({"x": np.eye(4, dtype=np.float32)})["y"])
