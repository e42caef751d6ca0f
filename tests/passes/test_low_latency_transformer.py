"""Rewriting a transformer for batch 1: biases in weights, heads as batch, the MLP in slices; and fixing its shapes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import trtkit
from tests.passes.graphs import assert_same
from trtkit.errors import ModelError
from trtkit.importers import load
from trtkit.model import Model
from trtkit.passes.fix_shapes import fix_shapes
from trtkit.passes.low_latency import low_latency


def made(nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray], shape: tuple[object, ...]) -> Model:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(data, name) for name, data in arrays.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    return load(onnx.shape_inference.infer_shapes(proto))


def attention(
    tokens: int = 5, heads: int = 2, width: int = 3, *, depth: int = 4, bias: bool = True, scale: str = "Mul",
    mask: tuple[int, ...] | None = None, shape: tuple[object, ...] | None = None, other: str = "",
) -> Model:  # fmt: skip
    """One self-attention as `optimize` leaves it; `other` names a value that a second output reads, too."""
    rng = np.random.default_rng(tokens + heads + width)
    arrays = {"s": np.array([0, 0, heads, width]), "flat": np.array([0, 0, heads * width]), "r": np.array(0.6)}
    arrays["r"] = arrays["r"].astype(np.float32)
    nodes = []
    for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        arrays[f"w{part}"] = rng.standard_normal((depth, heads * width)).astype(np.float32)
        arrays[f"b{part}"] = rng.standard_normal(heads * width).astype(np.float32)
        nodes.append(helper.make_node("MatMul", ["x", f"w{part}"], [f"m{part}"]))
        if bias:
            nodes.append(helper.make_node("Add", [f"b{part}", f"m{part}"], [f"a{part}"]))
        nodes.append(helper.make_node("Reshape", [f"{'a' if bias else 'm'}{part}", "s"], [f"h{part}"]))
        nodes.append(helper.make_node("Transpose", [f"h{part}"], [part], perm=perm))
    nodes.append(helper.make_node("MatMul", ["q", "k"], ["qk"], name="scores"))
    last = "qk"
    if scale:
        nodes.append(helper.make_node(scale, [last, "r"], ["scaled"]))
        last = "scaled"
    if mask is not None:
        arrays["mask"] = np.where(rng.random(mask) < 0.3, -1e4, 0).astype(np.float32)
        nodes.append(helper.make_node("Add", [last, "mask"], ["masked"]))
        last = "masked"
    nodes += [
        helper.make_node("Softmax", [last], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["pv"], name="values"),
        helper.make_node("Transpose", ["pv"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "flat"], ["y"]),
    ]
    model = made(nodes, arrays, shape or (1, tokens, depth))
    if not other:
        return model
    proto = model.to_proto()
    proto.graph.output.append(helper.make_tensor_value_info(other, TensorProto.FLOAT, None))
    return load(onnx.shape_inference.infer_shapes(proto))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 6), heads=st.integers(1, 4), width=st.integers(1, 4), bias=st.booleans(),
    scale=st.sampled_from(["", "Mul", "Div"]), mask=st.sampled_from(["", "keys", "square", "heads", "three", "two"]),
)  # fmt: skip
def test_attention_with_its_heads_in_front_gives_the_same(
    tokens: int, heads: int, width: int, bias: bool, scale: str, mask: str
) -> None:
    shapes = {"keys": (1, 1, 1, tokens), "square": (1, 1, tokens, tokens), "heads": (1, heads, tokens, tokens),
              "three": (1, 1, tokens), "two": (tokens, tokens)}  # fmt: skip
    before = attention(tokens, heads, width, bias=bias, scale=scale, mask=shapes.get(mask))
    after = low_latency(before)
    assert after.history[-1].name == "heads as batch"
    assert after.op_counts["MatMul"] == (3 if bias else 5)
    assert after.op_counts.get("Split", 0) == bias
    assert_same(before, after, rtol=2e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": ("n", 5, 4)},  # any batch
        {"shape": (2, 5, 4)},  # two at a time
        {"shape": (1, "t", 4)},  # tokens unknown
        {"other": "qk"},  # somebody else reads the scores
        {"other": "p"},  # or the weights of attention
    ],
)
def test_attention_stays_where_the_rule_does_not_hold(arguments: dict[str, object]) -> None:
    before = attention(**arguments)  # type: ignore[arg-type]
    assert low_latency(before).op_counts == before.op_counts


def test_attention_between_two_inputs_stays() -> None:
    proto = attention().to_proto()
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 5, 4)))
    next(node for node in proto.graph.node if "wk" in node.input).input[0] = "z"
    before = load(proto)
    assert low_latency(before).op_counts == before.op_counts


def test_projections_that_others_read_are_kept_for_them() -> None:
    before = attention(other="hq")
    after = low_latency(before)
    assert after.op_counts["MatMul"] == 4
    assert_same(before, after, rtol=2e-5)


def normalized(
    *, tokens: int = 5, depth: int = 6, outputs: int = 3, biases: int = 3, shift: str = "random", residual: str = "add",
    smallest: float = 0.5, axis: int = -1, other: str = "", flip: bool = False,
) -> Model:  # fmt: skip
    """A LayerNormalization, `outputs` products of it, `biases` of them with a bias, and a residual connection."""
    rng = np.random.default_rng(depth)
    arrays = {"scale": rng.uniform(0.5, 2, depth), "shift": rng.standard_normal(depth), "last": np.ones(depth)}
    arrays["scale"][0] = smallest
    arrays["scale"][1:] *= np.where(rng.random(depth - 1) < 0.3, -1, 1)
    arrays["shift"] *= {"random": 1, "zero": 0, "none": 0, "negative": 1}[shift]
    if shift == "negative":
        arrays["shift"] = -np.abs(arrays["shift"]) * arrays["scale"]
    names = ["x0", "scale", *(["shift"] if shift != "none" else [])]
    nodes = [helper.make_node("LayerNormalization", names, ["x1"], axis=axis)]
    ends = []
    for number in range(outputs):
        arrays[f"w{number}"], arrays[f"b{number}"] = rng.standard_normal((depth, 4)), rng.standard_normal(4)
        nodes.append(helper.make_node("MatMul", ["x1", f"w{number}"], [f"m{number}"], name=f"product{number}"))
        if number < biases:
            pair = [f"b{number}", f"m{number}"]
            nodes.append(helper.make_node("Add", pair[::-1] if flip else pair, [f"a{number}"]))
        ends.append(f"a{number}" if number < biases else f"m{number}")
    arrays["wo"] = rng.standard_normal((4 * outputs, depth))
    nodes += [
        helper.make_node("Concat", ends, ["joined"], axis=-1),
        helper.make_node("MatMul", ["joined", "wo"], ["o"]),
    ]
    if residual == "add":  # x + (o + bias)
        arrays["bo"] = rng.standard_normal(depth)
        pair = ["o", "bo"]
        nodes.append(helper.make_node("Add", pair[::-1] if flip else pair, ["ob"]))
        nodes.append(helper.make_node("Add", ["x1", "ob"] if flip else ["ob", "x1"], ["y"]))
    elif residual == "plain":  # x + o: nothing that could take the shift back
        nodes.append(helper.make_node("Add", ["o", "x1"], ["y"]))
    elif residual == "relu":
        nodes += [helper.make_node("Relu", ["x1"], ["r"]), helper.make_node("Add", ["o", "r"], ["y"])]
    else:
        nodes.append(helper.make_node("Relu", ["o"], ["y"]))
    used = {name for node in nodes for name in node.input}
    kept = {name: data.astype(np.float32) for name, data in arrays.items() if name in used}
    for node in nodes:
        node.input[:] = ["x" if name == "x0" else name for name in node.input]
    proto = made(nodes, kept, (1, tokens, depth)).to_proto()
    if other:
        proto.graph.output.append(helper.make_tensor_value_info(other, TensorProto.FLOAT, None))
    return load(onnx.shape_inference.infer_shapes(proto))


@settings(max_examples=40, deadline=None)
@given(
    depth=st.integers(2, 9), outputs=st.integers(2, 4), extra=st.integers(0, 1), flip=st.booleans(),
    shift=st.sampled_from(["random", "zero", "none", "negative"]), residual=st.sampled_from(["add", ""]),
)  # fmt: skip
def test_biases_behind_a_layer_norm_go_into_weights_and_the_result_stays(
    depth: int, outputs: int, extra: int, flip: bool, shift: str, residual: str
) -> None:
    before = normalized(depth=depth, outputs=outputs + extra, biases=outputs, flip=flip, shift=shift, residual=residual)
    after = low_latency(before)
    assert after.history[-1].detail == f"1 LayerNormalization with {outputs} biases behind it"
    assert after.op_counts.get("Add", 0) == (2 if residual else 0)
    assert_same(before, after, rtol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"residual": "plain"},  # nobody takes the shift back
        {"residual": "relu"},
        {"other": "x1"},  # the result is an output
        {"other": "ob"},  # the sum that would take it back is read by others, too
        {"biases": 1},  # one bias is added by the product's own kernel
        {"smallest": 1e-3},  # a channel that the normalisation switches off
        {"smallest": 0.0},
        {"axis": 1},  # the mean of a token is not what is 0
    ],
)
def test_biases_stay_where_the_rule_does_not_hold(arguments: dict[str, object]) -> None:
    if arguments.get("axis") == 1:
        arguments = {**arguments, "tokens": 1}
    before = normalized(**arguments)  # type: ignore[arg-type]
    assert low_latency(before).op_counts == before.op_counts


def test_weights_that_take_in_a_bias_stay_as_large_as_they_were() -> None:
    before = normalized(depth=256)
    after = low_latency(before)

    def largest(model: Model) -> float:
        tensors = [value.const_value for value in model.ir.graph.initializers.values()]
        arrays = [tensor.numpy() for tensor in tensors if tensor is not None]
        return max(float(np.abs(data).max()) for data in arrays if data.shape == (256, 4))

    assert largest(after) < 1.1 * largest(before)


def mlp(act: str = "Gelu", width: int = 2048, shape: tuple[object, ...] = (1, 3, 8), other: str = "") -> Model:
    rng = np.random.default_rng(width)
    sizes = {"w1": (8, width), "b1": width, "w2": (width, 6), "b2": 6}
    arrays = {name: rng.standard_normal(size) / 4 for name, size in sizes.items()} | {"half": np.array(0.5)}
    middle = {
        "Gelu": [helper.make_node("Gelu", ["h"], ["g"])],
        "Relu": [helper.make_node("Relu", ["h"], ["g"])],
        "Softmax": [helper.make_node("Softmax", ["h"], ["g"], axis=-1)],
        "SiLU": [helper.make_node("Sigmoid", ["h"], ["s"]), helper.make_node("Mul", ["h", "s"], ["g"])],
        "half": [helper.make_node("Mul", ["h", "half"], ["g"])],
    }[act]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m"], name="up"),
        helper.make_node("Add", ["m", "b1"], ["h"]),
        *middle,
        helper.make_node("MatMul", ["g", "w2"], ["d"], name="down"),
        helper.make_node("Add", ["d", "b2"], ["y"]),
    ]
    model = made(nodes, {name: data.astype(np.float32) for name, data in arrays.items()}, shape)
    if not other:
        return model
    proto = model.to_proto()
    proto.graph.output.append(helper.make_tensor_value_info(other, TensorProto.FLOAT, None))
    return load(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize("act", ["Gelu", "Relu", "SiLU", "half"])
def test_an_mlp_in_slices_gives_the_same(act: str) -> None:
    before = mlp(act)
    after = low_latency(before)
    assert after.history[-1].detail == "1 MLP into 4 slices"
    assert after.op_counts == {**before.op_counts, "ReduceSum": 1}
    assert {tuple(v.shape or ()) for v in after.ir.graph.initializers.values()} >= {
        (4, 8, 512),
        (4, 1, 512),
        (4, 512, 6),
    }
    assert_same(before, after, rtol=2e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"act": "Softmax"},  # every result depends on all of the middle
        {"width": 2046},  # narrow, and no four slices
        {"shape": ("n", 3, 8)},  # any batch
        {"shape": (2, 3, 8)},
        {"other": "h"},  # somebody else reads the middle
    ],
)
def test_an_mlp_stays_where_the_rule_does_not_hold(arguments: dict[str, object]) -> None:
    before = mlp(**arguments)  # type: ignore[arg-type]
    assert low_latency(before).op_counts == before.op_counts


def test_a_transformer_of_transformers_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=2048, vocab_size=50,
        attn_implementation="sdpa",
    )  # fmt: skip
    from benchmarks.networks import LastHiddenState

    module = LastHiddenState(transformers.BertModel(config, add_pooling_layer=False).eval())
    with torch.no_grad():  # transformers starts with biases of 0 and scales of 1, which a trained network has not
        for name, parameter in module.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model = trtkit.load(module, torch.zeros(2, 8, dtype=torch.int64))
    name = model.inputs[0].name
    after = low_latency(trtkit.optimize(fix_shapes(model, {name: (1, 8)}), level=3))
    assert [step.detail for step in after.history[-3:]] == [
        "2 LayerNormalization with 3 biases behind it", "2 self-attention", "2 MLP into 4 slices",
    ]  # fmt: skip
    inputs = {name: np.arange(8, dtype=np.int64).reshape(1, 8)}
    want, got = model.run(inputs), after.run(inputs)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=2e-4, atol=2e-5)


def test_fixed_shapes_reach_every_tensor_and_let_shape_arithmetic_fold() -> None:
    model = load(onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 4] x, float[n, m] z) => (float[4, m] y, float[c] v) {
        a = Transpose(x)  b = Relu(z)  y = MatMul(a, b)
        s = Shape(z)  p = ReduceProd(s)  v = Reshape(z, p)}"""))  # fmt: skip
    fixed = fix_shapes(model, {"x": (3, 4)})
    assert [info.shape for info in fixed.inputs] == [(3, 4), (3, "m")]
    assert model.inputs[0].shape == ("n", 4)
    fixed = fix_shapes(model, {"x": (3, 4), "z": (3, 5)})
    assert fixed.outputs[0].shape == (4, 5)
    assert trtkit.optimize(fixed).op_counts == {"Transpose": 1, "Relu": 1, "MatMul": 1, "Reshape": 1}
    assert_same(fixed, trtkit.optimize(fixed))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"q": (1, 4)}, "has no input 'q'"),
        ({"x": (1, 5)}, "cannot have the shape"),
        ({"x": (1, 4, 1)}, "cannot have the shape"),
        ({"x": (0, 4)}, "would be empty"),
        ({"x": (1, 4), "z": (2, 5)}, "'n' is both 1 and 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: dict[str, tuple[int, ...]], says: str) -> None:
    model = load(onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 4] x, float[n, m] z) => (float[n, 4] y) {y = Relu(x)}"""))  # fmt: skip
    with pytest.raises(ModelError, match=says):
        fix_shapes(model, shapes)
