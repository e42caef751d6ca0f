"""One transformer, exported with its attention written in two ways: the same graph, and the same engine."""

from __future__ import annotations

import pytest

import trtkit

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def exports() -> dict[str, trtkit.Model]:
    from benchmarks import networks

    net = networks.bert(quick=True)
    (x,) = net.inputs(1, 1, "fp32", "", "cpu")
    return {form: trtkit.load(net.make(form), x) for form in ("eager", "sdpa")}


def test_both_exports_become_the_same_graph(exports: dict[str, trtkit.Model]) -> None:
    eager, sdpa = (trtkit.optimize(exports[form], level=3) for form in ("eager", "sdpa"))
    assert eager.op_counts == sdpa.op_counts and "IsNaN" not in sdpa.op_counts
    assert exports["eager"].op_counts != exports["sdpa"].op_counts


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_both_exports_become_the_same_engine(exports: dict[str, trtkit.Model], precision: str) -> None:
    layers = []
    for model in exports.values():
        small = trtkit.optimize(model, level=3)
        small = small if precision == "fp32" else trtkit.autocast(small, precision)
        engine = trtkit.build(small, shapes={small.inputs[0].name: (1, 16)})
        layers.append([(layer.kind, layer.ops, [t.shape for t in layer.outputs]) for layer in engine.layers])
    assert layers[0] == layers[1]
