"""An engine's layers from the build log and from the engine inspector: the same structure from both."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.passes.graphs import parse
from trtkit.engine.build import build
from trtkit.engine.layers import Layer, LayerTensor, from_inspector, from_log
from trtkit.engine.trt import require
from trtkit.errors import EngineError
from trtkit.model import Model
from trtkit.passes import optimize

EXCERPT = json.loads((Path(__file__).parent / "data" / "resnet50_fp16_excerpt.json").read_text())
LINE = (
    "Name: {name}, LayerType: kgen, Inputs: [ {{ Name: x, Dimensions: [-1,4], Strides: [4,1], StrideOrder: [1,0], "
    "Datatype: Float, Format: (Linear) Row major linear format }}], Constants: [], Outputs: [ {{ Name: y, "
    "Dimensions: [], Strides: [], StrideOrder: [], Datatype: Int64, Format: (Linear) Row major linear format }}], "
    "TacticName: __myl_Relu_0x12ab, StreamId: 0, Metadata: {metadata}"
)


def line(*nodes: str, name: str = "layer", between: str = "\x1e") -> str:
    return LINE.format(name=name, metadata=between.join(f"[ONNX Layer: {node}]" for node in nodes))


def one(text: str) -> Layer:
    (layer,) = from_log([f"Layers:\n{text}\n"])
    return layer


# What real builds say


def described(layers: list[Layer]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(layer.kind, layer.ops, layer.onnx_nodes) for layer in layers]


def test_convolution_batch_norm_relu_and_pooling(conv: Model) -> None:
    """Unfolded, the normalisation goes into the pooling's kernel; folded, the convolution takes the ReLU too."""
    plain = described(build(conv, {"x": (4, 3, 16, 16)}).layers)
    folded = described(build(optimize(conv), {"x": (4, 3, 16, 16)}).layers)
    assert ("correlation", "correlation", ("/stem/conv [3x3]",)) in plain
    assert plain[-1][2] == ("/stem/bn", "/stem/act/Relu", "pool")
    assert ("correlation", "correlation", ("/stem/conv [3x3]", "/stem/act/Relu")) in folded
    if require().version.startswith("1.7.1"):  # word for word where the version is known
        assert plain == [
            ("kgen", "Move", ()),
            ("correlation", "correlation", ("/stem/conv [3x3]",)),
            ("kgen", "MulAddMoveReluMean", ("/stem/bn", "/stem/act/Relu", "pool")),
        ]


def test_tensors_carry_shape_type_and_format(conv: Model) -> None:
    layers = build(conv).layers
    tensors = {tensor.name: tensor for layer in layers for tensor in (*layer.inputs, *layer.outputs)}
    assert tensors["x"] == LayerTensor("x", (-1, 3, 16, 16), "Float", "Linear")
    assert tensors["y"].shape == (-1, 8, 1, 1)
    (correlation,) = [layer for layer in layers if layer.kind == "correlation"]
    assert correlation.inputs[0].format == "NHWC"
    assert [layer.launches for layer in layers].count(False) == 1  # the size of the batch is worked out on the host


def test_layers_of_several_profiles_are_told_apart(conv: Model) -> None:
    engine = build(conv, [{"x": (1, 3, 16, 16)}, {"x": (8, 3, 16, 16)}])
    first, second = ([layer for layer in engine.layers if layer.profile == number] for number in (0, 1))
    assert len(first) == len(second) == len(engine.layers) // 2
    assert [layer.onnx_nodes for layer in first] == [layer.onnx_nodes for layer in second]
    assert {tensor.shape[0] for layer in first for tensor in layer.outputs} == {1}
    assert {tensor.shape[0] for layer in second for tensor in layer.outputs} == {8}


def test_names_as_exporters_write_them_come_back(relu: Model) -> None:
    names = ["/blocks.0/attn/MatMul", "layer 1", "conv[3]", "model/stem:0", "(head)", "a,b", "é", "tail]"]
    model = parse(
        "a = Relu(x) b = Neg(a) c = Tanh(b) d = Exp(c) e = Neg(d) f = Sigmoid(e) h = Neg(f) y = Abs(h)"
    ).copy()
    for node, name in zip(model.ir.graph, names, strict=True):
        node.name = name
    found = {name for layer in build(model).layers for name in layer.onnx_nodes}
    assert found == set(names)


# Log and inspector


def test_log_and_inspector_agree() -> None:
    """Four layers as TensorRT-RTX 1.6.1 wrote them on an H200, see `provenance` in the file."""
    layers = from_log([EXCERPT["log"]])
    assert layers == from_inspector(json.dumps(EXCERPT["inspector"]))
    correlation, pool, product, mean = layers
    assert correlation.name == "node_conv2d_myl0_1"
    assert (correlation.kind, correlation.onnx_nodes) == ("correlation", ("node_conv2d", "node_relu"))
    assert correlation.inputs == (LayerTensor("relu.1_2_myl0", (1, 4, 224, 224), "Half", "NHWC"),)
    assert correlation.outputs == (LayerTensor("max_pool2d.1_3_myl0", (1, 64, 112, 112), "Half", "NHWC"),)
    assert (pool.kind, pool.onnx_nodes, pool.ops) == ("maxpool", ("node_max_pool2d",), "maxpool")
    assert (product.kind, product.ops) == ("runtime_fusion", "FcAddRelu")
    assert (mean.ops, mean.onnx_nodes) == ("Mean", ("node_mean",))
    assert all(layer.launches and layer.profile == 0 for layer in layers)


def test_a_convolution_that_became_a_matrix_product_keeps_its_names() -> None:
    """TensorRT then writes `[ONNX Layer: conv]\\x1f[ONNX Layer: relu]__gemm_from_conv1x1`."""
    product = from_log([EXCERPT["log"]])[2]
    assert product.onnx_nodes == ("node_conv2d_24", "node_relu_22")
    assert one(line("conv") + "__gemm_from_conv1x1").onnx_nodes == ("conv",)


def test_a_log_without_layers() -> None:
    for messages in ([], ["nothing of that kind"], ["Total Layers: 3"]):
        with pytest.raises(EngineError, match="DETAILED and a VERBOSE logger"):
            from_log(messages)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "3"])
def test_what_no_inspector_wrote(text: str) -> None:
    with pytest.raises(EngineError, match="not what TensorRT's engine inspector writes"):
        from_inspector(text)


def test_an_engine_that_keeps_only_names() -> None:
    with pytest.raises(EngineError, match="without DETAILED verbosity"):
        from_inspector('{"Layers": ["conv", "relu"]}')


def test_the_full_librarys_inspector() -> None:
    """TensorRT 10 writes type and format into one field, and `Metadata` in the same way."""
    tensor = {"Name": "x", "Dimensions": [1, 3], "Format/Datatype": "Row major linear FP16 format"}
    entry = {"Name": "a", "LayerType": "kgen", "Inputs": [tensor], "Outputs": [], "Metadata": "[ONNX Layer: a]"}
    (layer,) = from_inspector(json.dumps({"Layers": [entry]}))
    assert layer.inputs == (LayerTensor("x", (1, 3), "Half", "Row major linear FP16 format"),)
    assert layer.onnx_nodes == ("a",)


# Lines of the log


def test_one_line() -> None:
    layer = one(line("a", "b", "a"))
    assert layer == Layer(
        "layer",
        "kgen",
        (LayerTensor("x", (-1, 4), "Float", "Linear"),),
        (LayerTensor("y", (), "Int64", "Linear"),),
        "__myl_Relu_0x12ab",
        ("a", "b"),  # each once
    )
    assert layer.ops == "Relu"
    assert one(line("a", name="n [profile 2]")).profile == 2


def test_only_lines_of_layers_count() -> None:
    text = f"Layers:\n{line('a')}\n\nBindings:\nx\ny\n"
    assert [layer.onnx_nodes for layer in from_log(["before", text, f"Layers:\n{line('b')}"])] == [("a",), ("b",)]


NAMES = st.text("abz019_/.:-+()[]{}<> @#éλ", min_size=1, max_size=20).filter(
    # what TensorRT itself puts between and behind names
    lambda name: name.strip() == name and not re.search(r"\]\s|\]\[|\]_", name)
)


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), st.sampled_from(["\x1e", "\x1f", ""]))
def test_odd_names_survive(names: list[str], between: str) -> None:
    assert one(line(*names, between=between)).onnx_nodes == tuple(names)


@given(NAMES.filter(lambda name: "Name: " not in name))
def test_odd_layer_names_survive(name: str) -> None:
    assert one(line("a", name=name)).name == name


@given(st.text(max_size=60) | st.sampled_from(["Name: a", "Name: , LayerType: ", line("a")[:90]]))
def test_no_text_makes_it_crash(text: str) -> None:
    layers: list[Any] = from_log([f"Layers:\n{text}"])
    assert all(isinstance(layer, Layer) for layer in layers)
