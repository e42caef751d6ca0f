"""Sensitivity: which layers lose, found by doing it; and a mixed model that reaches its target with few in float."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import helper

from tests.quant.test_qdq import data, net
from tests.quant.test_weight_only import model as products
from trtkit.errors import DataError, ModelError
from trtkit.model import Model
from trtkit.quant.qdq import quantize
from trtkit.quant.sensitivity import Outputs, Sensitivities, sqnr_db

K = 256


def chain() -> Model:
    """Three products; the second has a column a thousand times larger than its neighbours, before it an outlier."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((K, K)).astype(np.float32) / 16 for name in ("a", "b", "c")}
    arrays["wide"] = np.ones(K, np.float32)
    arrays["wide"][7] = 300
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Mul", ["h", "wide"], ["o"], name="outlier"),
        helper.make_node("MatMul", ["o", "b"], ["g"], name="second"),
        helper.make_node("MatMul", ["g", "c"], ["y"], name="third"),
    ]
    arrays["b"][7] /= 300
    return products(arrays, nodes, ["y"])


def batches(count: int, seed: int = 0) -> list[np.ndarray]:
    return [np.random.default_rng(seed + i).standard_normal((16, K)).astype(np.float32) for i in range(count)]


def test_the_layer_behind_an_outlier_comes_first() -> None:
    layers = Sensitivities(chain(), batches(2), batches(1, 9), method="max").each_alone()
    assert layers[0].node == "second"
    assert layers[0].sqnr_db < layers[1].sqnr_db - 15
    assert layers[0].score is None


def test_each_figure_is_that_of_the_model_with_one_layer_quantised() -> None:
    model, held_out = chain(), batches(2, 9)
    tool = Sensitivities(model, batches(2), held_out, method="max")
    for layer in tool.each_alone():
        alone = quantize(model, batches(2), "max", skip=[n for n in ("first", "second", "third") if n != layer.node])
        reference = alone.open_reference(exact=True)
        got = [reference.run({"x": x}) for x in held_out]
        want = [model.run(x) for x in held_out]
        assert layer.sqnr_db == pytest.approx(sqnr_db(want, got), abs=0.01)


def test_a_search_keeps_the_one_layer_that_it_takes() -> None:
    tool = Sensitivities(chain(), batches(2), batches(2, 9), method="max")
    everything = tool.compare([tool.quantized(())])[0][0]
    mixed = tool.search(target_db=everything + 10)
    assert mixed.kept == ("second",)
    assert mixed.sqnr_db >= everything + 10
    assert mixed.model.precision == "int8" and mixed.tried < 12
    assert tool.search(target_db=everything).kept == ()
    assert tool.search(target_db=1000).model is tool.model


def test_a_metric_is_asked_as_well() -> None:
    model, held_out = chain(), batches(2, 9)
    want = [model.run(x)["y"].argmax(axis=1) for x in held_out]

    def agreement(outputs: Outputs) -> float:
        return float(np.mean([(o["y"].argmax(axis=1) == w).mean() for o, w in zip(outputs, want, strict=True)]))

    tool = Sensitivities(model, batches(2), held_out, method="max", metric=agreement)
    mixed = tool.search(target_score=0.9)
    assert mixed.score is not None and mixed.score >= 0.9 and mixed.kept
    with pytest.raises(ModelError, match="itself scores 1, below 2"):
        tool.search(target_score=2)


def test_an_executor_gives_the_same() -> None:
    model = chain()
    alone = Sensitivities(model, batches(2)).each_alone()
    with ThreadPoolExecutor(2) as pool:
        assert Sensitivities(model, batches(2), executor=pool).each_alone() == alone


def test_branches_that_change_sides_have_their_ranges() -> None:
    """Which branch of an addition is quantised depends on which convolutions are: all may be asked for."""
    model = net("a = Conv(x, w) b = Conv(x, v) y = Add(a, b)", {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)})
    assert len(Sensitivities(model, data()).each_alone()) == 2


def test_fp8_and_errors() -> None:
    layers = Sensitivities(chain(), batches(1), dtype="fp8").each_alone()
    assert all(20 < layer.sqnr_db < 60 for layer in layers)
    with pytest.raises(DataError, match="held_out gave no batch"):
        Sensitivities(chain(), batches(1), [])
    with pytest.raises(ValueError, match="one of int8, fp8"):
        Sensitivities(chain(), batches(1), dtype="int3")
    with pytest.raises(ModelError, match="no quantised node 'nobody'"):
        Sensitivities(chain(), batches(1)).quantized(["nobody"])
