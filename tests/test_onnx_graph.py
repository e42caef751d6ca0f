"""Graphs read from messages and written to them: the same as onnx_ir's own serde gives."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from trtkit import onnx_graph

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FILES = sorted(DATA.glob("*/*/model.onnx"))[::4]
BODIES = """<ir_version: 10, opset_import: ["": 20, "own": 1]> g (float[n, 4] x, bool c) => (float[n, 4] y)
    <float[4] w = {1.0, 2.0, 3.0, 4.0}> {
    a = Mul(x, w)
    b = If (c) <then_branch = t () => (float[n, 4] p) {p = Relu(a)}, else_branch = e () => (float[n, 4] q) {q = Neg(x)}>
    d, _ = Dropout(b)
    k = Constant <value = float {2.0}> ()
    e = own.Thing <alpha = 0.5, name = "z", axes = [1, 2]> (d, k)
    f = own.Thing <alpha = 0.5, name = "z", axes = [1, 2]> (e, , k)
    y = Add(f, k) }"""


def noted() -> onnx.ModelProto:
    """A model with all that people note down: documentation, metadata, denotations, types of more than tensors."""
    model = onnx.parser.parse_model(BODIES)
    model.producer_name, model.doc_string, model.graph.doc_string = "tests", "a model", "a graph"
    for each in (model, model.graph, model.graph.node[0], model.graph.input[0]):
        each.metadata_props.add(key="from", value="a test")
        each.metadata_props.add(key="by", value="hand")
    model.graph.node[1].doc_string = "two ways"
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    model.graph.input[0].type.denotation = "IMAGE"
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [None, "m"])
    model.graph.input.append(sequence)
    return model


def check(proto: onnx.ModelProto) -> None:
    want = ir.to_proto(ir.from_proto(proto))
    model = onnx_graph.read(proto)
    assert ir.to_proto(model) == want
    assert onnx_graph.write(model, model.graph.initializers) == want


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_models_of_onnx(path: Path) -> None:
    check(onnx.load(path))


def test_notes_and_bodies() -> None:
    check(noted())


def test_a_bare_one_is_without_notes_about_nodes() -> None:
    model = onnx_graph.read(noted())
    proto = onnx_graph.write(model, model.graph.initializers, noted=False)
    assert proto is not None and not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert [len(node.output) for node in proto.graph.node] == [len(node.output) for node in noted().graph.node]


def test_what_is_rare_is_left_to_serde() -> None:
    proto = noted()
    proto.graph.quantization_annotation.add(tensor_name="x").quant_parameter_tensor_names.add(key="SCALE", value="w")
    want = ir.to_proto(ir.from_proto(proto))
    model = onnx_graph.read(proto)
    assert ir.to_proto(model) == want and onnx_graph.write(model, model.graph.initializers) is None


def test_an_annotation_of_a_value_without_a_type_is_left_to_serde() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) {a = Abs(x) y = Neg(a)}'
    )
    proto.graph.quantization_annotation.add(tensor_name="a").quant_parameter_tensor_names.add(key="SCALE", value="x")
    model = onnx_graph.read(proto)
    assert onnx_graph.write(model, {}) is None
    assert ir.to_proto(model).graph.quantization_annotation == proto.graph.quantization_annotation


def test_a_name_that_a_body_takes_again_means_what_it_means_to_serde() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]> g (float[n] x, bool c) => (float[n] y) {
        a = Relu(x)
        y = If (c) <then_branch = t () => (float[n] p) {p = Neg(a) a = Abs(x)},
                    else_branch = e () => (float[n] q) {q = Abs(x)}> }""")
    model = onnx_graph.read(proto)
    negated, inner = model.graph[1].attributes["then_branch"].as_graph()
    assert negated.inputs[0] is inner.outputs[0]


def test_a_weight_of_which_nothing_is_stated() -> None:
    weight = ir.Value(name="w", const_value=ir.tensor([1.0], name="w"))
    x = ir.val("x", ir.DataType.FLOAT, [1])
    node = ir.node("Add", [x, weight])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    assert onnx_graph.write(model, graph.initializers) == ir.to_proto(model)


def test_values_have_types_of_their_own() -> None:
    text = "g (float[n] x) => (float[n] y) <float[n] a> {a = Abs(x) y = Neg(a)}"
    model = onnx_graph.read(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}'))
    a, y = (node.outputs[0] for node in model.graph)
    a.dtype = ir.DataType.FLOAT16
    assert y.dtype == ir.DataType.FLOAT and a.shape == y.shape
