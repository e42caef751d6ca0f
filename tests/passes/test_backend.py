"""ONNX's own test models: those with bodies and a sample of the others, before and after `optimize`."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from benchmarks import backend_models
from trtkit.errors import ModelError
from trtkit.importers import load


@pytest.mark.parametrize(
    ("match", "every", "least"), [("", 17, 90), ("loop", 1, 3), ("test_if", 1, 2), ("scan", 1, 2)]
)
def test_outputs_stay(match: str, every: int, least: int) -> None:
    outcomes = [
        (case.name, where, outcome, why)
        for case in backend_models.cases(match, every)
        for where, (outcome, why) in backend_models.check(case).items()
    ]
    assert [each for each in outcomes if each[2] in backend_models.BAD] == []
    assert sum(outcome in backend_models.GOOD for _, where, outcome, _ in outcomes if where == "level 2") >= least


def test_a_difference_is_seen() -> None:
    """What the runner calls equal is equal: value, shape, type, number and emptiness are all looked at."""
    one = np.array([1.0, np.nan], np.float32)
    assert backend_models.difference([one, [one]], [one.copy(), [one.copy()]]) == ""
    assert "1 of 2 values differ" in backend_models.difference([one], [np.array([1.1, np.nan], np.float32)])
    assert "float64" in backend_models.difference([one], [one.astype(np.float64)])
    assert "(1,)" in backend_models.difference([one], [one[:1]])
    assert backend_models.difference([one], [one, one]) and backend_models.difference([None], [one])
    assert backend_models.difference([np.array(["a"])], [np.array(["b"])])
    assert backend_models.difference([one], [one + 1], values=False) == ""


def test_a_wrong_pass_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner itself can fail: a graph that computes something else, an invalid one, and a crash."""
    case = next(backend_models.cases("test_add_bcast"))
    wrong = onnx.ModelProto.FromString(case.model.SerializeToString())
    wrong.graph.node[0].op_type = "Sub"
    broken = onnx.ModelProto.FromString(case.model.SerializeToString())
    broken.graph.node[0].input[0] = "nowhere"
    for proto, outcome in ((wrong, "mismatch"), (broken, "invalid"), (None, "crash")):
        fake = type("Fake", (), {"to_proto": lambda self, proto=proto: proto if proto is not None else 1 / 0})()
        monkeypatch.setattr("trtkit.optimize", lambda model, level, fake=fake: fake)
        assert {found for found, _ in backend_models.check(case).values()} == {outcome}


def test_scan_of_opset_8_is_refused() -> None:
    """ONNX's converter lifts it unchanged, and it would compute something else."""
    case = next(backend_models.cases("scan_sum"))
    assert case.model.opset_import[0].version == 8
    with pytest.raises(ModelError, match="is a Scan of opset 8"):
        load(case.model)
