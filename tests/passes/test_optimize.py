"""optimize: levels, history, fixpoint, real networks, random graphs, and ONNX's own test models."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.passes.graphs import assert_same, parse
from trtkit.errors import TrtkitError
from trtkit.importers import load
from trtkit.passes import LEVELS, optimize, run_passes
from trtkit.passes.identity import RemoveIdentities

STEPS = (
    "relu", "identity", "dropout", "cast", "twice", "view", "same", "scale", "conv_bn", "depthwise_bn", "residual",
    "branch", "neutral", "cropped", "views", "shared", "wide", "shape",
)  # fmt: skip


class Network:
    """Grows step by step; every step reads a tensor of shape (n, 4, 5, 5) and makes a new one of that shape."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.tensors = ["x"]

    def node(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n_{name}", **attributes))
        return name

    def weight(self, name: str, data: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(data, name))
        return name

    def grow(self, step: str, source: int) -> None:
        x, y = self.tensors[source % len(self.tensors)], f"t{len(self.tensors) - 1}"
        if step in ("relu", "identity", "dropout"):
            self.node(step.capitalize(), [x], y)
        elif step == "residual":
            self.node("Add", [x, self.tensors[-1]], y)
        else:
            getattr(self, step)(x, y)
        self.tensors.append(y)

    def cast(self, x: str, y: str) -> None:
        self.node("CastLike", [x, "x"], y)

    def twice(self, x: str, y: str) -> None:
        self.node("Transpose", [self.node("Transpose", [x], f"{y}_a", perm=[0, 2, 3, 1])], y, perm=[0, 3, 1, 2])

    def view(self, x: str, y: str) -> None:
        batch = self.node("Shape", [x], f"{y}_batch", start=0, end=1)
        rest = self.node("Constant", [], f"{y}_rest", value_ints=[4, 25])
        flat = self.node("Reshape", [x, self.node("Concat", [batch, rest], f"{y}_shape", axis=0)], f"{y}_flat")
        self.node("Reshape", [flat, self.node("Shape", [x], f"{y}_back")], y)

    def same(self, x: str, y: str) -> None:
        self.node("Reshape", [x, self.weight(f"{y}_s", np.array([-1, 4, 5, 5]))], y)

    def scale(self, x: str, y: str) -> None:
        half = self.node("Constant", [], f"{y}_half", value_float=0.5)
        size = self.node("Constant", [], f"{y}_size", value_ints=[4, 1, 1])
        self.node("Mul", [x, self.node("Expand", [half, size], f"{y}_factor")], y)

    def conv_bn(self, x: str, y: str, group: int = 1) -> None:
        w = self.weight(f"{y}_w", self.rng.standard_normal((4, 4 // group, 3, 3)).astype(np.float32) / 4)
        conv = self.node("Conv", [x, w], f"{y}_conv", pads=[1, 1, 1, 1], group=group)
        norm = [self.weight(f"{y}_{k}", self.rng.uniform(0.5, 1.5, 4).astype(np.float32)) for k in "gbmv"]
        self.node("BatchNormalization", [conv, *norm], y)

    def neutral(self, x: str, y: str) -> None:
        one, nil = (self.node("Constant", [], f"{y}_{v}", value_float=float(v)) for v in (1, 0))
        op = ("Sub", "Add")[len(self.tensors) % 2]
        self.node(op, [self.node("Mul", [one, x], f"{y}_m"), nil], y)

    def cropped(self, x: str, y: str) -> None:
        """Padded by nothing, cut from end to end, in one part: the tensor itself."""
        padded = self.node("Pad", [x, self.weight(f"{y}_p", np.zeros(8, np.int64))], f"{y}_a")
        bounds = [self.weight(f"{y}_{k}", np.array([v])) for k, v in (("b", 0), ("e", 2**63 - 1), ("x", 1))]
        self.node("Concat", [self.node("Slice", [padded, *bounds], f"{y}_c")], y, axis=1)

    def views(self, x: str, y: str) -> None:
        """To (1, n, 4, 25), turned, and back."""
        axes, shape = self.weight(f"{y}_x", np.array([0])), self.weight(f"{y}_s", np.array([1, -1, 4, 25]))
        flat = self.node("Reshape", [self.node("Unsqueeze", [x, axes], f"{y}_a"), shape], f"{y}_b")
        turned = self.node("Transpose", [flat], f"{y}_c", perm=[0, 1, 3, 2])
        back = self.node("Transpose", [turned], f"{y}_d", perm=[0, 1, 3, 2])
        self.node("Reshape", [back, self.weight(f"{y}_t", np.array([-1, 4, 5, 5]))], y)

    def shared(self, x: str, y: str) -> None:
        """The same thing twice, once with the inputs the other way round."""
        a, b = self.node("Sigmoid", [x], f"{y}_a"), self.node("Sigmoid", [x], f"{y}_b")
        self.node("Sub", [self.node("Mul", [a, x], f"{y}_c"), self.node("Mul", [x, b], f"{y}_d")], f"{y}_e")
        self.node("Add", [f"{y}_e", a], y)

    def wide(self, x: str, y: str) -> None:
        double = self.node("Cast", [x], f"{y}_a", to=TensorProto.DOUBLE)
        self.node("Cast", [self.node("Cast", [double], f"{y}_b", to=TensorProto.DOUBLE)], y, to=TensorProto.FLOAT)

    def shape(self, x: str, y: str) -> None:
        """x times its number of channels over 4, read off its shape."""
        one = self.weight(f"{y}_i", np.array(1))
        channels = self.node("Gather", [self.node("Shape", [x], f"{y}_a"), one], f"{y}_b")
        number = self.node("Cast", [channels], f"{y}_c", to=TensorProto.FLOAT)
        self.node("Mul", [x, self.node("Div", [number, self.weight(f"{y}_4", np.array(4, np.float32))], f"{y}_d")], y)

    def depthwise_bn(self, x: str, y: str) -> None:
        self.conv_bn(x, y, group=4)

    def branch(self, x: str, y: str) -> None:
        def body(op: str) -> onnx.GraphProto:
            out = helper.make_tensor_value_info(f"{y}_{op}", TensorProto.FLOAT, ["n", 4, 5, 5])
            node = helper.make_node(op, [x], [out.name], name=f"n_{y}_{op}")
            return helper.make_graph([node], f"{y}_{op}", [], [out])

        condition = self.weight(f"{y}_condition", np.array(len(self.tensors) % 2 == 0))
        self.node("If", [condition], y, then_branch=body("Identity"), else_branch=body("Neg"))


def build(steps: list[tuple[str, int]], outputs: list[int], opset: int) -> onnx.ModelProto:
    network = Network(len(steps))
    for step, source in steps:
        network.grow(step, source)
    names = list(dict.fromkeys(network.tensors[1 + i % len(steps)] for i in outputs))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 5, 5]) for name in ["x", *names]]
    graph = helper.make_graph(network.nodes, "random", info[:1], info[1:], network.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9)), min_size=1, max_size=9),
    st.lists(st.integers(0, 8), min_size=1, max_size=3),
    st.sampled_from([15, 17, 20]),
    st.sampled_from(sorted(LEVELS)),
)
def test_random_graphs_compute_the_same(
    steps: list[tuple[str, int]], outputs: list[int], opset: int, level: int
) -> None:
    before = load(build(steps, outputs, opset))
    after = optimize(before, level)
    assert_same(before, after, rtol=1e-4)
    assert after.node_count <= before.node_count
    assert optimize(after, level).history == after.history, "a second run must find nothing to do"


def test_history_and_the_original() -> None:
    before = parse("k = Constant <value = float {2.0}> () a = Identity(x) b = Mul(a, k) y = Relu(b)")
    after = optimize(before)
    assert [step.name for step in after.history] == ["remove identities", "fold constants"]
    assert [(s.nodes_before, s.nodes_after) for s in after.history] == [(4, 3), (3, 2)]
    assert all(step.seconds >= 0 and step.detail for step in after.history)
    assert after.origin is before and before.node_count == 4 and not before.history


def test_levels() -> None:
    model = parse("k = Constant <value = float {2.0}> () a = Identity(x) y = Mul(a, k)")
    assert [optimize(model, level).node_count for level in (0, 1, 2, 3)] == [3, 2, 1, 1]
    with pytest.raises(ValueError, match=r"no optimisation level 4; choose one of \[0, 1, 2, 3\]"):
        optimize(model, 4)


def test_functions_are_written_out() -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "my": 1]> g (float[n, 4] x) => (float[n, 4] y) { y = my.twice(x) }
        <domain: "my", opset_import: ["": 20]> twice (a) => (c) { b = Identity(a)  c = Add(b, b) }"""
    before = load(onnx.parser.parse_model(text))
    after = optimize(before)
    assert after.op_counts == {"Add": 1}
    assert_same(before, after)


def test_a_loop_body_is_optimised_and_equal() -> None:
    before = parse("""int64 trips = {3}, bool go = {1} | y = Loop (trips, go, x) <body = b
        (int64 i, bool c, float[n, 4] s) => (bool c2, float[n, 4] s2) {
        c2 = Identity(c)  k = Constant <value = float {2.0}> ()  h = Sqrt(k)  d = Identity(s)  s2 = Mul(d, h) }>""")
    after = optimize(before)
    assert_same(before, after)
    assert after.node_count == 3, after.op_counts


BACKEND = Path(onnx.__file__).parent / "backend" / "test" / "data"
KINDS = ("simple", "pytorch-converted", "pytorch-operator")
MODELS = [path for kind in KINDS for path in sorted((BACKEND / kind).glob("*"))]


@pytest.mark.parametrize("folder", [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in MODELS])
def test_onnx_models_of_networks(folder: Path) -> None:
    """On the data that ONNX ships with its test models, outputs before and after agree."""
    proto = onnx.load(folder / "model.onnx")
    data = folder / "test_data_set_0"
    files = {value: data / f"input_{number}.pb" for number, value in enumerate(v.name for v in proto.graph.input)}
    check(proto, {name: numpy_helper.to_array(onnx.load_tensor(path)) for name, path in files.items() if path.exists()})


def test_onnx_models_of_operators() -> None:
    """Every fifth of ONNX's own tests of single operators.

    Left out is affine_grid: its expansion feeds Range a tensor that is no scalar, which ONNX forbids.
    """
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX computes overflows on purpose
        cases = [case for case in collect_testcases(None)[::5] if case.data_sets and "affine_grid" not in case.name]
        checked = 0
        for case in cases:
            names = [value.name for value in case.model.graph.input]
            checked += check(case.model, dict(zip(names, case.data_sets[0][0], strict=False)))
    assert checked > 200


def check(proto: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> bool:
    """Whether the model runs at all; if it does, it must do so after `optimize`, too, with the same results."""
    if any(value.type.WhichOneof("value") != "tensor_type" for value in proto.graph.input):
        return False
    try:
        before = load(proto)
        want = before.reference.run(inputs)
    except TrtkitError:
        return False
    after = optimize(before)
    onnx.checker.check_model(after.to_proto())
    have = after.reference.run(inputs)
    for name, expected in want.items():
        assert_equal(have[name], expected)
    return True


def assert_equal(have: object, want: object) -> None:
    if isinstance(want, list):
        assert isinstance(have, list) and len(have) == len(want)
        for one, other in zip(have, want, strict=True):
            assert_equal(one, other)
    elif isinstance(want, np.ndarray) and want.dtype.kind in "fc":
        assert isinstance(have, np.ndarray) and have.dtype == want.dtype
        np.testing.assert_allclose(have, want, rtol=1e-2 if want.dtype.itemsize == 2 else 1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(have, want)


def test_what_becomes_an_output_before_inference_has_the_outputs_type(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise onnx_ir warns, and leaves it out of what it writes."""
    model = parse("a = Relu(x) y = Identity(a)")
    after = run_passes(model, [RemoveIdentities()])
    assert (after.op_counts, after.outputs) == ({"Relu": 1}, model.outputs)
    assert not caplog.records
