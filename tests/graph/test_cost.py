"""FLOPs and bytes: by hand on small graphs, against PyTorch's counter on whole networks."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

import trtkit
from trtkit.errors import ModelError
from trtkit.graph.cost import NodeCost, cost
from trtkit.model import Model


def parse(nodes: str, inputs: str, outputs: str = "float y", opset: int = 20) -> Model:
    text = f'<ir_version: 10, opset_import: ["": {opset}, "other": 1]> g ({inputs}) => ({outputs}) {{ {nodes} }}'
    return trtkit.load(onnx.parser.parse_model(text))


def only(nodes: str, inputs: str, outputs: str, **sizes: int) -> NodeCost:
    (node,) = cost(parse(nodes, inputs, outputs), **sizes).nodes
    return node


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11"])
def test_flops_match_pytorchs_counter(name: str) -> None:
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    module, x = getattr(torchvision.models, name)(weights=None).eval(), torch.rand(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    result = cost(trtkit.optimize(trtkit.load(module, x)))
    ops = result.by_operator
    have = sum(ops[op].flops for op in ("Conv", "Gemm", "MatMul") if op in ops)
    assert not result.unknown
    assert have == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert have < result.flops < 1.1 * have  # the rest is counted too, and small
    assert ops["Conv"].bytes_read > 4 * 64 * 3


@pytest.mark.parametrize("flat", [False, True])
def test_attention_as_pytorch_counts_it(flat: bool) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    q, k, v = torch.rand(2, 3, 5, 4), torch.rand(2, 3, 7, 4), torch.rand(2, 3, 7, 6)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
    heads = "<q_num_heads=3, kv_num_heads=3>" if flat else ""
    shapes = ("2,5,12", "2,7,12", "2,7,18", "2,5,18") if flat else ("2,3,5,4", "2,3,7,4", "2,3,7,6", "2,3,5,6")
    q_shape, k_shape, v_shape, y_shape = (f"float[{shape}]" for shape in shapes)
    inputs = f"{q_shape} q, {k_shape} k, {v_shape} v"
    (node,) = cost(parse(f"y = Attention{heads}(q, k, v)", inputs, f"{y_shape} y", opset=23)).nodes
    assert node.flops == counter.get_total_flops()


@pytest.mark.parametrize("equation", ["bhid,bhjd->bhij", "bhid, bhjd -> bijh", "bhid,bhjd->b"])
def test_einsum_as_pytorch_counts_it(equation: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        torch.einsum(equation, torch.rand(2, 3, 5, 4), torch.rand(2, 3, 7, 4))
    axes = ", ".join(equation.partition("->")[2].strip())
    nodes = f'y = Einsum<equation="{equation}">(a, b)'
    node = only(nodes, "float[2, 3, 5, 4] a, float[2, 3, 7, 4] b", f"float[{axes}] y")
    assert node.flops == counter.get_total_flops()


def test_einsum_with_an_ellipsis_has_no_rule() -> None:
    node = only('y = Einsum<equation="...ij,...jk->...ik">(a, b)', "float[2,3,4] a, float[2,4,5] b", "float[2,3,5] y")
    assert node.flops is None and "Einsum" in node.why


def test_grouped_convolution_with_bias() -> None:
    node = only(
        "y = Conv<group=2, pads=[1,1,1,1], strides=[2,2]>(x, w, b)",
        "float[n,4,8,8] x, float[6,2,3,3] w, float[6] b",
        "float[n,6,4,4] y",
        batch=3,
    )
    assert node.flops == 2 * (3 * 6 * 4 * 4) * (2 * 3 * 3)
    assert node.bytes_read == 4 * (3 * 4 * 8 * 8 + 6 * 2 * 3 * 3 + 6)
    assert node.bytes_written == 4 * 3 * 6 * 4 * 4
    assert node.intensity == node.flops / (node.bytes_read + node.bytes_written)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_as_pytorch_counts_it(groups: int) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.conv_transpose2d(
            torch.rand(2, 4, 5, 5), torch.rand(4, 6 // groups, 3, 3), stride=2, groups=groups
        )
    node = only(
        f"y = ConvTranspose<group={groups}, strides=[2,2]>(x, w)",
        f"float[n,4,5,5] x, float[4,{6 // groups},3,3] w",
        "float[n,6,11,11] y",
        batch=2,
    )
    assert node.flops == counter.get_total_flops()


@pytest.mark.parametrize(
    ("nodes", "inputs", "output", "flops"),
    [
        ("y = Gemm<transA=1>(x, w, b)", "float[5,2] x, float[5,3] w, float[3] b", "float[2,3] y", 2 * 2 * 3 * 5),
        ("y = Gemm<transB=1>(x, w)", "float[2,5] x, float[3,5] w", "float[2,3] y", 2 * 2 * 3 * 5),
        ("y = MatMul(x, w)", "float[7,1,2,5] x, float[4,5,3] w", "float[7,4,2,3] y", 2 * 7 * 4 * 2 * 3 * 5),
        ("y = Add(x, w)", "float[2,1] x, float[3] w", "float[2,3] y", 6),
        ("y = Sum(x, w, w)", "float[2,3] x, float[3] w", "float[2,3] y", 12),
        ("y = Softmax(x)", "float[2,3] x", "float[2,3] y", 30),
        ("y = ReduceMean<keepdims=0>(x)", "float[2,3] x", "float y", 6),
        ("y = MaxPool<kernel_shape=[3,3]>(x)", "float[1,2,5,5] x", "float[1,2,3,3] y", 18 * 9),
        ("y = GlobalAveragePool(x)", "float[1,2,5,5] x", "float[1,2,1,1] y", 50),
        ("y = Transpose(x)", "float[2,3] x", "float[3,2] y", 0),
        ("y, , = LSTM<hidden_size=4>(x, w, r)", "float[6,2,3] x, float[1,16,3] w, float[1,16,4] r",
         "float[6,1,2,4] y", 2 * 6 * 2 * (16 * 3 + 16 * 4)),
    ],
)  # fmt: skip
def test_flops_by_hand(nodes: str, inputs: str, output: str, flops: int) -> None:
    assert only(nodes, inputs, output).flops == flops


def test_views_move_nothing_and_an_operand_is_read_once() -> None:
    result = cost(parse("a = Mul(x, x)  y = Flatten(a)", "float16[n,2,3] x", "float16[n,6] y"), batch=5)
    square, flat = result.nodes
    assert (square.bytes_read, square.bytes_written) == (60, 60)
    assert (flat.flops, flat.bytes_read, flat.bytes_written, flat.intensity) == (0, 0, 0, 0.0)


def test_batch_and_dims_scale_the_cost() -> None:
    model = parse("a = Neg(x)  y = Exp(a)", "float[batch, sequence, 4] x", "float[batch, sequence, 4] y")
    assert cost(model, 2, {"sequence": 8}).flops == 2 * (2 * 8 * 4)
    with pytest.raises(ModelError, match="'sequence'"):
        cost(model, 2)
    with pytest.raises(ModelError, match="1 or more"):
        cost(model, 0, {"sequence": 8})


def test_shapes_that_do_not_fit_together_are_an_error() -> None:
    model = parse("y = MatMul(x, w)", "float[n, k] x, float[4, 2] w", "float[n, 2] y")
    with pytest.raises(ModelError, match="do not fit together"):
        cost(model, 1, {"k": 5})


def test_what_is_unknown_is_reported_not_counted_as_nothing() -> None:
    model = parse("a = NonZero(x)  b = Cast<to=1>(a)  y = Relu(b)", "float[2, 3] x", "float[2, m] y")
    result = cost(model)
    assert [node.op_type for node in result.unknown] == ["NonZero", "Cast", "Relu"]
    assert all(node.flops is None and "not known" in node.why for node in result.unknown)
    assert math.isnan(result.intensity) and "unknown" in str(result)


def test_a_foreign_operator_has_bytes_but_no_flops() -> None:
    result = cost(parse("y = other.Thing(x)", "float[2, 3] x", "float[2, 3] y"))
    assert result.nodes[0][2:5] == (None, 24, 24)
    assert "other" in result.unknown[0].why


def test_large_weights_do_not_hide_shapes_and_the_model_stays_as_it_was() -> None:
    weight = onnx.numpy_helper.from_array(np.ones((4, 1000), np.float32), "w")
    proto = parse("a = MatMul(x, w)  y = Relu(a)", "float[n,4] x, float[4,1000] w", "float[n,1000] y").to_proto()
    del proto.graph.input[1]
    proto.graph.initializer.append(weight)
    model = trtkit.load(proto)
    before = model.to_bytes()
    assert cost(model, batch=2).flops == 2 * 2 * 4 * 1000 + 2 * 1000
    assert model.to_bytes() == before


def test_a_gather_reads_the_rows_it_takes_and_not_its_table() -> None:
    table = "<float[1000, 8] w = {" + ",".join(["0"] * 8000) + "}>"
    text = f"g (int64[n] x) => (float[n, 8] y) {table} {{ y = Gather(w, x) }}"
    model = trtkit.load(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}'))
    (node,) = cost(model, batch=3).nodes
    assert (node.bytes_read, node.bytes_written) == (3 * 8 + 3 * 32, 3 * 32)
    (node,) = cost(model, batch=5000).nodes  # rows taken again and again are read once
    assert node.bytes_read == 5000 * 8 + 1000 * 32
