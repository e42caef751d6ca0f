"""The fusion map: every ONNX node is accounted for, and the account agrees with what can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.passes.graphs import parse
from trtkit.engine.build import build
from trtkit.engine.fusion import KINDS, FusionMap, NodeAccount, fusion_map
from trtkit.engine.layers import Layer
from trtkit.importers import load
from trtkit.model import Model
from trtkit.quant.autocast import autocast

PHOTO = {"x": (1, 3, 224, 224)}
Drawn = dict[tuple[str, str], tuple[Model, FusionMap]]


@pytest.fixture(scope="module")
def drawn(resnet50: Model, mobilenet: Model) -> Callable[[str, str], tuple[Model, FusionMap]]:
    """The fusion map of a network in a precision, built once."""
    models, maps = {"resnet50": resnet50, "mobilenet": mobilenet}, {}

    def of(name: str, precision: str) -> tuple[Model, FusionMap]:
        if (name, precision) not in maps:
            model = models[name] if precision == "fp32" else autocast(models[name], precision)
            maps[name, precision] = model, build(model, PHOTO, verify=False).fusion_map()
        return maps[name, precision]

    return of


EVERY = [(name, precision) for name in ("resnet50", "mobilenet") for precision in ("fp32", "fp16")]


def account(found: FusionMap, name: str) -> NodeAccount:
    (node,) = [node for node in found.nodes if node.name == name]
    return node


def built(body: str, inputs: str = "float[n, 4] x", outputs: str = "float[n, 4] y") -> dict[str, NodeAccount]:
    return {node.name: node for node in build(parse(body, inputs, outputs)).fusion_map().nodes}


# Real networks


@pytest.mark.parametrize(("name", "precision"), EVERY)
def test_every_node_is_accounted_for(drawn: Callable[..., tuple[Model, FusionMap]], name: str, precision: str) -> None:
    model, found = drawn(name, precision)
    assert [node.name for node in found.nodes] == [node.name for node in model.ir.graph]
    assert found.unexplained == ()
    assert sum(found.counts.values()) == len(found.nodes) == model.node_count
    assert set(found.counts) <= set(KINDS)
    for node in found.nodes:
        assert (node.kind == "kernel") == (node.kernel is not None)
        assert node.kind == "kernel" or node.reason
        if node.op_type in ("Conv", "Gemm", "MaxPool", "ReduceMean", "GlobalAveragePool"):
            assert node.kind == "kernel"
    launched = sum(layer.launches for layer in found.kernels)
    assert str(found).endswith(f"-> {launched} kernels") and launched < model.node_count


@pytest.mark.parametrize(("name", "precision"), EVERY)
def test_every_convolution_is_in_a_kernel_that_convolves(
    drawn: Callable[..., tuple[Model, FusionMap]], name: str, precision: str
) -> None:
    """A kernel that only reorders its input carries the convolution's name too, but is not where it is computed."""
    _, found = drawn(name, precision)
    for node in found.nodes:
        if node.op_type == "Conv" and node.kernel is not None:
            layer = found.kernels[node.kernel]
            assert layer.kind == "correlation" or "Fc" in layer.ops or "Corr" in layer.ops, (node.name, layer.name)


@pytest.mark.parametrize(("name", "precision"), EVERY)
def test_no_kernel_that_names_nodes_is_left_without_any(
    drawn: Callable[..., tuple[Model, FusionMap]], name: str, precision: str
) -> None:
    """But for those that only move data in front of another kernel which computes the same nodes."""
    _, found = drawn(name, precision)
    working = {i for i, layer in enumerate(found.kernels) if layer.onnx_nodes and layer.kind != "kgen"}
    assert working <= set(found.groups)


def consumer(node: ir.Node) -> ir.Node:
    (reader, *others) = [use.node for use in node.outputs[0].uses()]
    assert not others
    return reader


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_first_convolution_and_its_relu_are_one_kernel(
    drawn: Callable[..., tuple[Model, FusionMap]], precision: str
) -> None:
    model, found = drawn("resnet50", precision)
    conv = next(node for node in model.ir.graph if node.op_type == "Conv")
    relu = consumer(conv)
    assert relu.op_type == "Relu"
    kernel = account(found, conv.name).kernel
    assert kernel is not None and account(found, relu.name).kernel == kernel
    assert found.kernels[kernel].kind == "correlation"
    assert set(found.groups[kernel]) == {"Conv", "Relu"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_residual_block_ends_in_one_kernel(drawn: Callable[..., tuple[Model, FusionMap]], precision: str) -> None:
    """Convolution, the addition of the shortcut, and ReLU: in all of ResNet-50's 16 blocks."""
    model, found = drawn("resnet50", precision)
    adds = [node for node in model.ir.graph if node.op_type == "Add"]
    assert len(adds) == 16
    for add in adds:
        kernel = account(found, add.name).kernel
        assert kernel is not None
        assert account(found, consumer(add).name).kernel == kernel
        assert kernel in {
            account(found, before.name).kernel for before in add.predecessors() if before.op_type == "Conv"
        }
        assert sorted(found.groups[kernel]) == ["Add", "Conv", "Relu"]


def test_mobilenets_clips_go_into_their_convolutions(drawn: Callable[..., tuple[Model, FusionMap]]) -> None:
    model, found = drawn("mobilenet", "fp32")
    clips = [node for node in model.ir.graph if node.op_type == "Clip"]
    assert len(clips) == 35
    for clip in clips:
        (conv,) = clip.predecessors()
        assert account(found, clip.name).kernel == account(found, conv.name).kernel is not None


def test_names_that_tensorrt_gives_are_not_said_to_be_missing(
    drawn: Callable[..., tuple[Model, FusionMap]],
) -> None:
    """In FP16 many 1x1 convolutions become matrix products; their layers name the nodes all the same."""
    _, found = drawn("resnet50", "fp16")
    products = [layer for layer in found.kernels if layer.ops.startswith("Fc")]
    assert products and all(layer.onnx_nodes for layer in products)
    assert not [node for node in found.nodes if "not named by the layer" in node.reason]


def test_a_change_of_precision_shows_as_casts(drawn: Callable[..., tuple[Model, FusionMap]]) -> None:
    _, found = drawn("resnet50", "fp16")
    casts = [node for node in found.nodes if node.op_type == "Cast"]
    assert casts and all(node.kind in ("kernel", "absorbed") for node in casts)


def test_kernels_of_the_first_profile_only(conv: Model) -> None:
    one = build(conv, {"x": (1, 3, 16, 16)}).fusion_map()
    two = build(conv, [{"x": (1, 3, 16, 16)}, {"x": (8, 3, 16, 16)}]).fusion_map()
    assert [node.kind for node in two.nodes] == ["kernel"] * 4
    assert two.nodes == one.nodes


# What becomes of the others


def test_convolution_norm_relu_and_pooling(conv: Model) -> None:
    found = build(conv).fusion_map()
    assert found.counts == {"kernel": 4}
    assert sorted(found.groups.values()) == [("BatchNormalization", "Relu", "GlobalAveragePool"), ("Conv",)]
    assert str(found) == f"stem: 4 ONNX nodes (4 kernel) -> {sum(layer.launches for layer in found.kernels)} kernels"


def test_views() -> None:
    nodes = built("int64[2] k = {-1, 2} | a = Relu(x) [view] b = Reshape(a, k) [same] c = Identity(b) y = Neg(c)",
                  outputs="float[m, 2] y")  # fmt: skip
    assert nodes["view"].kind in ("view", "kernel") and nodes["same"].kind in ("view", "kernel")
    assert nodes["view"].kind == "kernel" or nodes["view"].reason == "only says how the same bytes are read"


def test_arithmetic_on_shapes() -> None:
    nodes = built(
        "int64[1] zero = {0}, int64[2] two = {2, 2} | [size] s = Shape(x) [pick] b = Gather(s, zero) "
        "[join] k = Concat <axis = 0> (b, two) [view] r = Reshape(x, k) [soft] y = Softmax(r)",
        outputs="float[n, 2, 2] y",
    )
    assert [nodes[name].kind for name in ("size", "pick", "join")] == ["shape"] * 3
    assert "on the host" in nodes["size"].reason
    assert nodes["soft"].kind == "kernel"


def test_constants_and_what_nobody_reads() -> None:
    found = fusion_map(
        parse("float[4] one = {1, 1, 1, 1} | [sum] c = Add(one, one) [used] y = Mul(x, c) [loose] u = Neg(x)"),
        [Layer("k", "kgen", (), (), "", ("used",))],
    )
    assert [(node.name, node.kind) for node in found.nodes] == [
        ("sum", "folded"),
        ("used", "kernel"),
        ("loose", "unused"),
    ]
    assert "all its inputs are constants" in found.nodes[0].reason
    assert found.counts == {"kernel": 1, "folded": 1, "unused": 1}
    assert found.groups == {0: ("Mul",)}


def test_real_builds_fold_and_drop() -> None:
    nodes = built("float[4] one = {1, 1, 1, 1} | [sum] c = Add(one, one) [used] y = Mul(x, c) [loose] u = Neg(x)")
    assert nodes["used"].kind == "kernel" and nodes["loose"].kind == "unused"
    assert nodes["sum"].kind in ("folded", "kernel")  # TensorRT may name a folded node in the kernel that reads it


def test_a_gru_is_unrolled() -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((1, 24, 4)), "r": rng.standard_normal((1, 24, 8))}
    graph = helper.make_graph(
        [helper.make_node("GRU", ["x", "w", "r"], ["y"], "cell", hidden_size=8)],
        "speech",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 1, 2, 8])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    engine = build(load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)))
    found = engine.fusion_map()
    assert found.counts == {"unrolled": 1}
    assert "step by step" in found.nodes[0].reason and found.nodes[0].kernel is None
    assert sum(layer.launches for layer in found.kernels) > 5


def test_what_nobody_can_explain_is_shown_as_such() -> None:
    found = fusion_map(parse("[lost] a = Exp(x) [there] y = Neg(a)"), [Layer("k", "kgen", (), (), "", ("there",))])
    assert [node.name for node in found.unexplained] == ["lost"]
    assert found.unexplained[0].kernel is None and found.counts == {"kernel": 1, "unexplained": 1}


def test_quantised_nodes_are_absorbed() -> None:
    pair = "[q] a = QuantizeLinear(x, s, z) [d] b = DequantizeLinear(a, s, z)"
    model = parse(f"float s = {{0.1}}, int8 z = {{0}} | {pair} [act] y = Relu(b)")
    found = fusion_map(model, [Layer("k", "kgen", (), (), "", ("act",))])
    assert [node.kind for node in found.nodes] == ["absorbed", "absorbed", "kernel"]


def test_the_picture(conv: Model) -> None:
    import matplotlib.pyplot as plt

    figure = build(conv).fusion_map().plot()
    texts = " ".join(text.get_text() for text in figure.findobj(plt.Text))
    assert "Conv" in texts
    plt.close(figure)
