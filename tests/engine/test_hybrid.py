"""Models that TensorRT takes in part: engines and ONNX Runtime by turns, verified as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.graphs import parse
from trtkit.engine.hybrid import HybridEngine, hybrid
from trtkit.errors import EngineError, ModelError, VerificationError
from trtkit.model import Model


def detector() -> Model:
    """Boxes and scores from a small convolutional network, NonMaxSuppression, and the boxes that it chose."""
    rng = np.random.default_rng(0)
    weights = ",".join(f"{w:.4f}" for w in rng.standard_normal(5 * 3 * 9) * 0.3)
    return parse(
        f"float[5, 3, 3, 3] w = {{{weights}}}, int64[3] flat = {{0, 5, 16}}, int64[2] parts = {{4, 1}}, "
        "int64 most = {5}, float overlap = {0.5}, int64 two = {2}, int64[1] zero = {0}, "
        "float[4] corner = {0, 0, 1, 1} | c = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w)  r = Sigmoid(c)  "
        "f = Reshape(r, flat)  "
        "b, s = Split<axis = 1>(f, parts)  t = Transpose<perm = [0, 2, 1]>(b)  boxes = Add(t, corner)  "
        "k = NonMaxSuppression(boxes, s, most, overlap)  i = Gather<axis = 1>(k, two)  "
        "one = Squeeze(boxes, zero)  y = Gather(one, i)",
        "float[1, 3, 8, 8] x",
        "float[k, 4] y",
    )


@pytest.fixture(scope="module")
def with_nms() -> HybridEngine:
    return hybrid(detector())


def test_a_detector(with_nms: HybridEngine) -> None:
    assert [part.runs_in for part in with_nms.parts] == ["TensorRT", "ONNX Runtime"]
    first, last = with_nms.parts
    assert first.engine is not None and first.engine.layers and "Conv" in first.model.op_counts
    assert last.model.op_counts["NonMaxSuppression"] == 1 and last.engine is None
    assert with_nms.verification is not None and with_nms.verification.passed
    inputs = with_nms.model.random_inputs(seed=7)
    with with_nms.open() as session:
        got = session.run(inputs)
        assert session.device == "cpu" or "and cpu" in session.device
    np.testing.assert_allclose(got["y"], detector().run(inputs)["y"], rtol=1e-4)
    assert "TensorRT" in repr(with_nms) and with_nms._repr_html_().count("<tr>") == 3


def test_a_session_like_any_other(with_nms: HybridEngine) -> None:
    session = with_nms.open("cpu")
    with pytest.raises(ModelError, match="has no input 'z'"):
        session.run({"z": np.zeros(3, np.float32)})
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run(with_nms.model.random_inputs())
    with pytest.raises(EngineError, match="No device"):
        with_nms.open("tpu")


def test_nothing_found_is_a_result() -> None:
    """NonZero in the middle, a changeable batch, and an engine behind it where sizes are known again."""
    model = parse(
        "int64[1] axis = {1}, int64[2] shape = {1, 4}, float low = {0.5} | a = Exp(x)  b = Sin(a)  c = Mul(a, b)  "
        "m = Greater(x, low)  i = NonZero(m)  f = Cast<to = 1>(i)  s = ReduceSum<keepdims = 0>(f, axis)  t = Exp(s)  "
        "u = Log(t)  v = Unsqueeze(u, axis)  w = ReduceSum<keepdims = 0>(v)  p = Add(c, w)  q = Tanh(p)  y = Mul(q, c)",
        "float[n, 4] x",
        "float[n, 4] y",
    )
    engine = hybrid(model, {"x": [(1, 4), (2, 4), (8, 4)]}, minimum=2)
    assert [part.runs_in for part in engine.parts] == ["TensorRT", "ONNX Runtime", "TensorRT"]
    with engine.open() as session:
        for x in (np.zeros((2, 4), np.float32), np.ones((3, 4), np.float32)):
            np.testing.assert_allclose(session.run({"x": x})["y"], model.run({"x": x})["y"], rtol=1e-5)
        with pytest.raises(ModelError, match="outside the engine's profile"):
            session.run({"x": np.zeros((9, 4), np.float32)})
    assert engine.parts[2].engine is not None
    assert engine.parts[2].engine.manifest["profiles"][0]["c"] == [[1, 4], [2, 4], [8, 4]]


def test_a_model_that_tensorrt_takes_is_one_engine_and_a_repair_needs_no_split() -> None:
    engine = hybrid(parse("int64 a = {1} | b = DFT(x, , a)  y = Exp(b)", "float[2, 8, 1] x", "float[2, 8, 2] y"))
    assert [part.runs_in for part in engine.parts] == ["TensorRT"]
    assert engine.model.history[-1].detail == "1 DFT made MatMul"


def test_wrong_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the session gives is compared, not what the parts should give."""
    from trtkit.engine.hybrid import HybridSession

    right = HybridSession.run
    monkeypatch.setattr(HybridSession, "run", lambda self, x: {k: v * 2 for k, v in right(self, x).items()})
    with pytest.raises(VerificationError, match="as a whole"):
        hybrid(parse("a = Det(x) y = Exp(a)", "float[4, 4] x", "float y"))
