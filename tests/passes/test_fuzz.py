"""A small sample of the fuzz runs in benchmarks/, and that they can fail."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks import fuzz_files, fuzz_passes
from tests.passes.graphs import parse
from trtkit.errors import ModelError
from trtkit.importers import load
from trtkit.passes import optimize


def test_random_graphs_compute_the_same() -> None:
    ops, error = fuzz_passes.random_graphs(40, number=5)
    assert error is None and ops["graphs"] == 40
    assert {"If", "Loop", "Scan", "Conv", "Reshape", "Cast"} <= set(ops)


def test_shapes_learnt_between_rounds_give_every_pass_another_look() -> None:
    """What a Loop gives has no known shape; once the Loop is gone, the views after it cancel, in the same call."""
    model = parse(
        """int64[1] axes = {1} | trips = Constant <value = int64 {0}> ()  go = Constant <value = bool {1}> ()
        t = Tanh(x)  s = Loop(trips, go, t) <body = b (int64 i, bool c, float[n, 4] v) => (bool c2, float[n, 4] v2) {
            c2 = Identity(c)  v2 = Mul(v, v) }>
        a = Unsqueeze(s, axes)  b = Squeeze(a, axes)  y = Relu(b)"""
    )
    after = optimize(model, 1)
    assert after.op_counts == {"Tanh": 1, "Relu": 1}
    assert optimize(after, 1).history == after.history


def test_a_wrong_pass_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fuzz_passes.trtkit.optimize

    def wrong(model, level):  # type: ignore[no-untyped-def]
        after = real(model, level).copy()
        for node in after.ir.graph:
            if node.op_type == "Relu":
                node.op_type = "Abs"
        return after

    monkeypatch.setattr(fuzz_passes.trtkit, "optimize", wrong)
    inputs = "float[n, 4, 6] x, float[n, 4, 6] z"
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (float[n, 4, 6] y) {{y = Relu(x)}}'
    with pytest.raises(AssertionError, match="values differ"):
        fuzz_passes.check(onnx.parser.parse_model(text))


def test_damaged_files_give_an_error_of_ours_or_a_model(tmp_path: Path) -> None:
    outcomes = [(kind, *fuzz_files.attempt(data, tmp_path)) for kind, data in map(fuzz_files.damaged, range(90))]
    assert [each for each in outcomes if each[1] == "crash"] == []
    assert {kind for kind, *_ in outcomes} == {mutation.__name__ for mutation in fuzz_files.MUTATIONS}
    assert {outcome for _, outcome, _ in outcomes} == {"refused", "done"}


def test_a_crash_and_an_early_end_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("trtkit.optimize", lambda model: 1 / 0)
    whole = fuzz_files.seeds()[0].SerializeToString()
    outcome, why = fuzz_files.attempt(whole, tmp_path)
    assert outcome == "crash" and "ZeroDivisionError" in why
    monkeypatch.setattr(fuzz_files.sys, "executable", "false")
    assert fuzz_files.report(2) == 2, "a process that says nothing is a failure for each of its cases"


@pytest.mark.parametrize("dims", [[5], [-1, -4], [0]])
def test_a_weight_with_too_few_numbers_is_refused(dims: list[int]) -> None:
    proto = onnx.parser.parse_model(fuzz_files.BRANCH)
    assert proto.graph.initializer[0].float_data, "kept as numbers, not as bytes"
    load(proto)
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    with pytest.raises(ModelError, match="has 4 values, and needs"):
        load(proto)


def test_an_input_without_a_type_is_refused() -> None:
    proto = onnx.parser.parse_model(fuzz_files.BRANCH)
    proto.graph.input[0].type.tensor_type.elem_type = 0
    with pytest.raises(ModelError):
        load(proto).inputs  # noqa: B018 - asking is what raises
