"""Small graphs for the tests of passes, and the comparison that all of them use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from trtkit.importers import load
from trtkit.model import Model
from trtkit.passes.common import Rewrite, infer_shapes


def parse(body: str, inputs: str = "float[n, 4] x", outputs: str = "float[n, 4] y", opset: int = 20) -> Model:
    """A model from ONNX's text format; `body` holds the nodes (and, in front, nothing or `<initialisers>`)."""
    weights, _, nodes = body.rpartition("|")
    weights = f"<{weights}>" if weights else ""
    text = f'<ir_version: 10, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {weights} {{ {nodes} }}'
    return load(onnx.parser.parse_model(text))


def reference(model: Model, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return ReferenceEvaluator(model.to_proto()).run(None, dict(inputs))


def assert_same(
    before: Model, after: Model, inputs: Mapping[str, np.ndarray] | None = None, rtol: float = 1e-5
) -> None:
    """Same interface, a valid graph, and the same outputs by ONNX's reference evaluator and by ONNX Runtime.

    The evaluator of onnx 1.23 cannot do a ConvTranspose with groups; there ONNX Runtime must do alone.
    """
    assert before.inputs == after.inputs
    assert [o.name for o in before.outputs] == [o.name for o in after.outputs]
    onnx.checker.check_model(after.to_proto(), full_check=True)
    inputs = inputs or before.random_inputs(batch=3)
    if not any(node.op_type == "ConvTranspose" and "group" in node.attributes for node in before.ir.graph):
        for want, have in zip(reference(before, inputs), reference(after, inputs), strict=True):
            assert want.dtype == have.dtype
            np.testing.assert_allclose(have, want, rtol=rtol, atol=rtol)
    for name, want in before.run(inputs).items():
        np.testing.assert_allclose(after.run(inputs)[name], want, rtol=rtol, atol=rtol)


def apply(model: Model, *rules: type[Rewrite]) -> Model:
    """Run passes on a copy, in the order given, and check that nothing but the graph's size changed."""
    after = model.copy()
    for rule in rules:
        infer_shapes(after.ir)
        result = rule()(after.ir)
        assert isinstance(result, ir.passes.PassResult)
    after = Model(after.ir)
    assert_same(model, after)
    return after


def ops(model: Model) -> list[str]:
    return [node.op_type for node in model.ir.graph.all_nodes()]
