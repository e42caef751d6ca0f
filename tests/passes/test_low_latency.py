"""Rewriting for batch 1: the same values from more parallel work, and nothing touched where a rule does not hold."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.passes.graphs import assert_same
from trtkit.importers import load
from trtkit.model import Model
from trtkit.passes import optimize
from trtkit.passes.low_latency import low_latency


def conv(
    shape: tuple[object, ...], weight: tuple[int, ...], *, bias: bool = True, opset: int = 20, **attributes: object
) -> Model:
    """One convolution with random weights from a seed and, behind it, a Relu."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal(weight) / np.sqrt(np.prod(weight[1:])), "b": rng.standard_normal(weight[0])}
    initializers = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items() if n == "w" or bias]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"] if bias else ["x", "w"], ["c"], name="conv", **attributes),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )  # fmt: skip
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])
    return load(onnx.shape_inference.infer_shapes(proto))


@settings(max_examples=40, deadline=None)
@given(
    taps=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    half=st.tuples(st.integers(4, 7), st.integers(4, 7)),
    channels=st.integers(1, 4),
    bias=st.booleans(),
)
def test_a_stem_computes_the_same_on_phases(
    taps: tuple[int, int], pads: tuple[int, ...], half: tuple[int, int], channels: int, bias: bool
) -> None:
    before = conv(("n", channels, 2 * half[0], 2 * half[1]), (5, channels, *taps), bias=bias, strides=[2, 2], pads=pads)
    assert_same(before, low_latency(before), rtol=2e-5)


def test_the_stem_of_a_resnet_becomes_4x4_on_16_channels() -> None:
    after = low_latency(conv(("n", 3, 32, 32), (8, 3, 7, 7), strides=[2, 2], pads=[3] * 4))
    assert after.op_counts == {"Pad": 1, "SpaceToDepth": 1, "Conv": 1, "Relu": 1}
    (weight,) = [value for value in after.ir.graph.initializers.values() if len(value.shape or ()) == 4]
    assert tuple(weight.shape or ()) == (8, 16, 4, 4)
    assert after.history[-1].detail == "1 Conv of stride 2"


def test_a_stem_of_two_or_four_colours_needs_no_more_of_them() -> None:
    for channels in (2, 4):
        after = low_latency(conv(("n", channels, 8, 8), (5, channels, 3, 3), strides=[2, 2], pads=[1] * 4))
        assert after.op_counts == {"SpaceToDepth": 1, "Conv": 1, "Relu": 1}


@pytest.mark.parametrize("channels", [768, 1024])
def test_a_1x1_convolution_of_many_channels_is_cut_as_well(channels: int) -> None:
    before = conv(("n", channels, 4, 4), (6, channels, 1, 1))
    after = low_latency(before)
    assert after.history[-1].detail == "1 Conv into 4 parts"
    assert_same(before, after, before.random_inputs(batch=2), rtol=2e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strides", [[1, 1], [2, 2]])
def test_a_long_sum_is_cut_into_parts(bias: bool, strides: list[int]) -> None:
    before = conv(("n", 256, 8, 8), (6, 256, 3, 3), bias=bias, strides=strides, pads=[1] * 4)
    after = low_latency(before)
    assert after.op_counts == {"Conv": 1, "Reshape": 1, "ReduceSum": 1, **({"Add": 1} if bias else {}), "Relu": 1}
    assert after.history[-1].detail == "1 Conv into 4 parts"
    assert_same(before, after, before.random_inputs(batch=2), rtol=2e-5)


@pytest.mark.parametrize(
    ("shape", "weight", "attributes"),
    [
        (("n", 256, 19, 19), (6, 256, 3, 3), {}),  # enough pixels to keep a GPU busy
        (("n", 84, 7, 7), (6, 84, 3, 3), {}),  # a short sum
        (("n", 512, 7, 7), (6, 256, 3, 3), {"group": 2}),  # groups already
        (("n", 254, 7, 7), (6, 254, 3, 3), {}),  # channels do not divide
        (("n", 256, "h", "w"), (6, 256, 3, 3), {}),  # pixels unknown
        (("n", 3, 31, 32), (6, 3, 7, 7), {"strides": [2, 2]}),  # an odd height has no phases
        (("n", 3, 32, 32), (6, 3, 7, 7), {"strides": [4, 4]}),
        (("n", 3, 32, 32), (6, 3, 7, 7), {"strides": [2, 2], "dilations": [2, 2]}),
        (("n", 8, 32, 32), (6, 8, 7, 7), {"strides": [2, 2]}),  # channels enough
        (("n", 3, 32, 32), (6, 3, 7, 7), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        (("n", 3, 32, 32), (6, 3, 1, 1), {"strides": [2, 2]}),  # nothing to pair
    ],
)
def test_nothing_happens_where_a_rule_does_not_hold(
    shape: tuple[object, ...], weight: tuple[int, ...], attributes: dict[str, object]
) -> None:
    before = conv(shape, weight, **attributes)
    after = low_latency(before)
    assert after.op_counts == before.op_counts
    assert after.history == before.history


def test_before_opset_13_nothing_happens() -> None:
    before = conv(("n", 256, 8, 8), (6, 256, 3, 3), opset=13)
    before.ir.opset_imports[""] = 12
    assert low_latency(before).op_counts == before.op_counts


def test_weights_that_are_inputs_are_left_alone() -> None:
    proto = conv(("n", 256, 8, 8), (6, 256, 3, 3)).to_proto()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (6, 256, 3, 3)))
    before = load(proto)
    assert low_latency(before).op_counts == before.op_counts


def test_a_convolution_that_is_the_output_keeps_the_output_s_name() -> None:
    proto = conv(("n", 256, 8, 8), (6, 256, 3, 3)).to_proto()
    del proto.graph.node[1]
    proto.graph.node[0].output[0] = "y"
    before = load(proto)
    after = low_latency(before)
    assert after.op_counts["ReduceSum"] == 1
    assert_same(before, after, before.random_inputs(batch=2), rtol=2e-5)


def summed(a: str, b: str, *, bias: bool = True, opset: int = 20, more: str = "y = Relu(s)") -> Model:
    """Two convolutions of x and z with the given attributes, added, and what reads the sum."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": {opset}]>
        g (float[n, 3, 5, 5] x, float[n, 4, 9, 9] z) => (float[n, 6, h, w] y)
        {{ p = Conv{a}(x, v{", c" if bias else ""})  q = Conv{b}(z, w)  s = Add(p, q)  {more} }}""")
    taps = 3 if "3, 3" in b else 1
    shapes = {"v": (6, 3, 1, 1), "w": (6, 4, taps, taps), "c": (6,)}
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return load(model)


@pytest.mark.parametrize("bias", [True, False])
def test_the_sum_of_two_1x1_convolutions_is_one(bias: bool) -> None:
    before = summed("", "<strides = [2, 2]>", bias=bias)
    after = low_latency(before)
    assert after.op_counts == {"Slice": 1, "Concat": 1, "Conv": 1, "Relu": 1}
    assert after.history[-1].detail == "1 Add of two Conv into one"
    assert_same(before, after, before.random_inputs(batch=2), rtol=2e-5)


def test_a_sum_that_is_the_output_keeps_its_name() -> None:
    before = summed("", "<strides = [2, 2]>", more="u = Relu(s) y = Identity(s)")
    before = optimize(before)
    after = low_latency(before)
    assert after.op_counts["Conv"] == 1
    assert_same(before, after, before.random_inputs(batch=2), rtol=2e-5)


@pytest.mark.parametrize(
    ("b", "opset", "more"),
    [
        ("<strides = [2, 2], kernel_shape = [3, 3], pads = [1, 1, 1, 1]>", 20, "y = Relu(s)"),  # not a 1x1 kernel
        ("<strides = [2, 2]>", 12, "y = Relu(s)"),  # an opset that says some of it in another way
        ("<strides = [2, 2]>", 20, "y = Mul(s, q)"),  # somebody else reads one of them
    ],
)
def test_other_sums_of_convolutions_stay(b: str, opset: int, more: str) -> None:
    before = summed("", b, opset=opset, more=more)
    before.ir.opset_imports[""] = opset
    assert low_latency(before).op_counts["Conv"] == 2


def test_a_residual_network_has_one_convolution_less_for_each_change_of_width() -> None:
    import torch
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    net = ResNet(Bottleneck, [1, 2, 1, 1], num_classes=5).eval()
    before = optimize(load(net, torch.randn(2, 3, 64, 64)))
    after = low_latency(before)
    assert "4 Add of two Conv into one" in [step.detail for step in after.history]
    assert after.op_counts["Conv"] == before.op_counts["Conv"] - 4
    assert_same(before, after, before.random_inputs(batch=2), rtol=1e-4)
