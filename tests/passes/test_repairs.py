"""The repairs without TensorRT: the refused operator is gone, and all that is computed stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.passes.graphs import parse
from tests.passes.repair_cases import ATTENTION, CASES, Case
from trtkit.engine.repair import _rewritten
from trtkit.model import Model, every_node
from trtkit.passes.repairs import REPAIRS


def repaired(model: Model, operators: tuple[str, ...]) -> Model:
    """As `repair` does it, the refused nodes being those of some operators."""
    for _ in range(4):
        names = {node.name or "" for node in every_node(model.ir.graph) if node.op_type in operators}
        model, before = _rewritten(model, names), model
        if model is before:
            break
    return model


@pytest.mark.parametrize("case", [*CASES.values(), ATTENTION], ids=[*CASES, "attention"])
def test_same_results(case: Case) -> None:
    model = case.model
    kept = {"MaxPool", "LayerNormalization"} if len(case.refused) > 1 or "LayerNorm" in case.refused[0] else set()
    after = repaired(model, case.refused)
    gone = set(case.refused) - kept - {"Resize", "ReduceMax", "ReduceMin", "QuantizeLinear", "DequantizeLinear"}
    assert not gone & set(after.op_counts)
    assert after.history and after.origin is model
    assert (after.inputs, after.outputs) == (model.inputs, model.outputs)
    onnx.checker.check_model(after.to_proto(), full_check=True)
    for seed in range(3):
        inputs = inputs_of(model, seed)
        wanted, got = model.open_reference(exact=True).run(inputs), after.open_reference(exact=True).run(inputs)
        for name, want in wanted.items():
            assert got[name].dtype == want.dtype
            np.testing.assert_allclose(got[name], want, rtol=case.tolerance, atol=case.tolerance)


def inputs_of(model: Model, seed: int) -> dict[str, np.ndarray]:
    """Random inputs; bytes of the whole range, where a model's own take few."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 256, array.shape, np.uint8) if array.dtype == np.uint8 else array * (seed + 1)
        for name, array in model.random_inputs(seed=seed).items()
    }


@pytest.mark.parametrize(
    ("body", "inputs", "outputs"),
    [
        ("y = DFT(x, , a)", "float[2, 8, 1] x, int64 a", "float[2, 8, 2] y"),  # which axis?
        ("int64 a = {1} | y = DFT(x, , a)", "float[2, n, 1] x", "float[2, n, 2] y"),  # how long?
        ("a = Compress<axis = 1>(x, m) y = Neg(a)", "float[2, 4] x, bool[4] m", "float[2, k] y"),
        ("b = Cast<to = 9>(x) c = ReduceMax(b, a) y = Cast<to = 1>(c)", "float[2, 4] x, int64[1] a", "float[2, 1] y"),
        ("a = AffineGrid(t, s) y = Neg(a)", "float[1, 2, 3] t, int64[4] s", "float[1, h, w, 2] y"),
        ("s = SequenceConstruct(x, x) y = SequenceAt(s, i)", "float[2] x, int64 i", "float[2] y"),
        ("q = QuantizeLinear(x, s) y = Cast<to = 1>(q)", "float[2, 4] x, float s", "float[2, 4] y"),  # no zero point
        ("a = Cast<to = 2>(x) y = Cast<to = 1>(a)", "float[4] x", "float[4] y"),  # 300 and 0.5 are no codes
        (
            "int64[2] i = {6, 8}, int64[2] b = {3, 2} | y = Col2Im<strides = [2, 3], dilations = [1, 2]>(x, i, b)",
            "float[2, 6, 4] x",
            "float[2, 1, 6, 8] y",
        ),
        ("y = Det(x)", "float[4, 4] x", "float y"),
    ],
)
def test_where_a_rule_does_not_hold(body: str, inputs: str, outputs: str) -> None:
    model = parse(body, inputs, outputs)
    names = {node.name or "" for node in every_node(model.ir.graph)}
    graph = model.copy().ir
    assert [rule.title for rule in (kind(names) for kind in REPAIRS) if rule(graph).modified] == []


def test_nodes_that_are_not_refused_stay() -> None:
    case = CASES["dft"]
    model = case.model
    first = next(node.name for node in model.ir.graph if node.op_type == "DFT")
    assert _rewritten(model, {first or ""}).op_counts["DFT"] == 3
