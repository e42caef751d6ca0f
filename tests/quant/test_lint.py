"""The Q/DQ linter: each rule on a graph that breaks it and on the mended one; real networks and their engines."""

from __future__ import annotations

from collections import Counter
from functools import partial

import ml_dtypes
import numpy as np
import pytest

import trtkit
from trtkit.course import nets
from trtkit.course.pairs import SHAPES, network, pair, weight
from trtkit.engine.build import build
from trtkit.engine.engine import Engine
from trtkit.engine.layers import Layer, LayerTensor
from trtkit.engine.lint import Lint, lint
from trtkit.errors import BuildError, EngineError, ModelError
from trtkit.importers import load
from trtkit.model import Model
from trtkit.quant.lint import COSTLY, EXPLAINED, LEVELS, REFUSED, RULES, check

PADS = "<pads = [1, 1, 1, 1]>"
WEIGHT = (32, 32, 3, 3)


def fp8(*shape: int) -> np.ndarray:
    return np.ones(shape, ml_dtypes.float8_e4m3fn)


# what the cases name beside the constants of course.pairs
MORE: dict[str, np.ndarray] = {
    "minus": np.array(-0.05, np.float32), "three": np.array(3, np.int8), "unsigned": np.array(0, np.uint8),
    "eye": np.eye(32, dtype=np.float32), "m_codes": np.arange(-512, 512).reshape(32, 32).astype(np.int8),
    "s16": np.array(0.05, np.float16), "sw16": np.full(32, 0.01, np.float16),
    "w_fp8": fp8(32, 32, 7, 7), "v_fp8": fp8(*WEIGHT), "zw8": fp8(32) * 0, "z8": fp8() * 0,
}  # fmt: skip
net = partial(network, **MORE)


BEGIN = "[relu] r = Relu(x) " + pair("r", "a") + weight("w")  # 8-bit a and w
CONV = f"[conv] c = Conv {PADS} (a, w) "
BEGIN8 = "[relu] r = Relu(x) " + pair("r", "a", zero="z8") + "w = DequantizeLinear <axis = 0> (w_fp8, sw, zw8) "  # FP8
END = weight("v") + f"[last] y = Conv {PADS} (e, v)"  # of 8-bit e

HALF = "r = Relu(x) h = Cast <to = 10> (r) t = Transpose <perm = [0, 2, 3, 1]> (h) "  # FP16, channels last
WIDE = "w = DequantizeLinear <axis = 1> (m_codes, sw16, zw) [product] m = MatMul(a, w) "
BACK = "n = Cast <to = 1> (m) y = Transpose <perm = [0, 3, 1, 2]> (n)"

# rule -> the graph that breaks it, the node it is about, the graph mended
CASES: dict[str, tuple[str, str, str]] = {
    "integer-operator": ("[n] y_codes, y_scale, y_zero = DynamicQuantizeLinear(x) y = Relu(x)", "n",
                         BEGIN + f"y = Conv {PADS} (a, w)"),
    "zero-point": ("r = Relu(x) " + pair("r", "a", zero="three") + weight("w") + f"y = Conv {PADS} (a, w)", "Q_a",
                   BEGIN + f"y = Conv {PADS} (a, w)"),
    "scale": ("r = Relu(x) " + pair("r", "a", "minus") + weight("w") + f"y = Conv {PADS} (a, w)", "Q_a",
              BEGIN + f"y = Conv {PADS} (a, w)"),
    "quantized-bias": (BEGIN + "d = DequantizeLinear <axis = 0> (b_codes, sw, zb) "
                       f"[conv] y = Conv {PADS} (a, w, d)", "conv", BEGIN + f"y = Conv {PADS} (a, w, b)"),
    "activation-axis": ("r = Relu(x) [Q_a] q = QuantizeLinear <axis = 1> (r, sw, zw) "
                        "a = DequantizeLinear <axis = 1> (q, sw, zw) " + weight("w") + f"y = Conv {PADS} (a, w)",
                        "Q_a", BEGIN + f"y = Conv {PADS} (a, w)"),
    "one-sided": ("r = Relu(x) " + pair("r", "a") + f"[conv] y = Conv {PADS} (a, f)", "conv",
                  BEGIN + f"y = Conv {PADS} (a, w)"),
    "per-tensor-weight": ("r = Relu(x) " + pair("r", "a") + weight("w", "s", "z")
                          + f"[conv] y = Conv {PADS} (a, w)", "conv", BEGIN + f"y = Conv {PADS} (a, w)"),
    "weight-axis": ("r = Relu(x) " + pair("r", "a") + weight("w", axis=1) + f"[conv] y = Conv {PADS} (a, w)", "conv",
                    BEGIN + f"y = Conv {PADS} (a, w)"),
    "conv-transpose": ("r = Relu(x) " + pair("r", "a") + weight("w", axis=1) + "[conv] y = ConvTranspose(a, w)", "conv",
                       BEGIN + f"y = Conv {PADS} (a, w)"),
    "half-sum": (HALF + pair("t", "a", "s16") + WIDE + BACK, "product",
                 "[relu] r = Relu(x) t = Transpose <perm = [0, 2, 3, 1]> (r) " + pair("t", "a")
                 + WIDE.replace("sw16", "sw") + "y = Transpose <perm = [0, 3, 1, 2]> (m)"),
    "fp8-taps": (BEGIN8 + "[conv] y = Conv <pads = [3, 3, 3, 3]> (a, w)", "conv",
                 BEGIN8.replace("w_fp8", "v_fp8") + f"y = Conv {PADS} (a, w)"),
    "float-reader": (BEGIN + CONV + pair("c", "d") + "m = Softmax <axis = 1> (d) " + pair("m", "e") + END, "DQ_d",
                     BEGIN + CONV + "m = Softmax <axis = 1> (c) " + pair("m", "e") + END),
    "residual": (BEGIN + CONV + "[sum] t = Add(c, r) " + pair("t", "e") + END, "sum",
                 BEGIN + CONV + "[sum] t = Add(c, a) " + pair("t", "e") + END),
    "concat": (BEGIN + CONV + pair("c", "d") + "g = Sigmoid(x) " + pair("g", "h", "other")
               + "[join] e = Concat <axis = 2> (d, h) " + END, "join",
               BEGIN + CONV + "g = Sigmoid(x) j = Concat <axis = 2> (c, g) " + pair("j", "e") + END),
    "requantized": (BEGIN + CONV + pair("c", "d") + pair("d", "e", "other") + END, "Q_e",
                    BEGIN + CONV + pair("c", "e") + END),
    "quantized-twice": (BEGIN + CONV + pair("r", "e", "other") + weight("v")
                        + f"d = Conv {PADS} (e, v) y = Mul(c, d)", "Q_e",
                        BEGIN + CONV + weight("v") + f"d = Conv {PADS} (a, v) y = Mul(c, d)"),
    "graph-output": (BEGIN + CONV + pair("c", "y"), "DQ_y", BEGIN + f"y = Conv {PADS} (a, w)"),
    "graph-input": (pair("x", "a") + weight("w") + f"y = Conv {PADS} (a, w)", "Q_a",
                    BEGIN + f"y = Conv {PADS} (a, w)"),
    "float-island": (BEGIN + CONV + f"[island] d = Conv {PADS} (c, f) " + pair("d", "e") + END, "island",
                     BEGIN + CONV + "d = Relu(c) " + pair("d", "e") + END),
}  # fmt: skip


FLOAT_PRODUCTS = ("activation-axis", "concat", "weight-axis", "conv-transpose", "fp8-taps")


def found(nodes: str, rule: str) -> list[str]:
    return [finding.node for finding in check(net(nodes)) if finding.rule == rule]


def test_every_rule_has_a_case_and_its_words() -> None:
    assert set(CASES) == set(RULES)
    for rule in RULES.values():
        assert rule.level in LEVELS and all(text.endswith(".") for text in (rule.requires, rule.why))


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_finds_what_breaks_it_and_is_silent_once_it_is_mended(rule: str) -> None:
    broken, node, mended = CASES[rule]
    assert node in found(broken, rule)
    assert found(mended, rule) == []
    left = [finding for finding in check(net(mended)) if finding.level != EXPLAINED]
    assert left == []  # what mends one rule breaks no other


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.level == REFUSED])
def test_tensorrt_refuses_what_a_rule_says_it_refuses(rule: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BuildError):
        build(net(CASES[rule][0]), SHAPES, verify=False)


@pytest.mark.parametrize("rule", FLOAT_PRODUCTS)
def test_products_that_a_rule_says_are_float_are_float(rule: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    nodes, node, mended_nodes = CASES[rule]
    broken, mended = net(nodes), net(mended_nodes)
    bad = lint(broken, build(broken, SHAPES, verify=False))
    (lost,) = [finding for finding in bad if finding.rule == "not-8-bit"]
    assert bad.missing == (lost.node,) and f"{rule} at {node}" in lost.what
    good = lint(mended, build(mended, SHAPES, verify=False))
    assert good.ok and good.missing == () and len(good.products) == len(bad.products)


def test_pairs_on_the_input_alone_are_found_and_named() -> None:
    pytest.importorskip("tensorrt_rtx")
    model = net(pair("x", "a") + f"[first] c = Conv {PADS} (a, f) r = Relu(c) [second] y = Conv {PADS} (r, f)")
    found = lint(model, build(model, SHAPES, verify=False))
    assert not found.ok and found.quantized == 0 and found.products == ()
    assert [(finding.rule, finding.node) for finding in found if finding.level == COSTLY] == [
        ("one-sided", "first"), ("in-passing", "Q_a"), ("own-kernel", "DQ_a"),
    ]  # fmt: skip
    assert "one-sided at first" in next(finding.what for finding in found if finding.rule == "own-kernel")


def test_what_may_stand_between_two_products() -> None:
    """Views and pooling hand codes on; two pairs with one scale are one; a weight may be stored in float, or turned."""
    for between in ("MaxPool <kernel_shape = [1, 1]> (d)", "Transpose <perm = [0, 1, 3, 2]> (d)", "Identity(d)"):
        assert check(net(BEGIN + CONV + pair("c", "d") + f"e = {between} " + END)) == ()
    assert check(net(BEGIN + CONV + pair("c", "d") + pair("d", "e") + END)) == ()
    stored = "wq = QuantizeLinear <axis = 0> (f, sw, zw) w = DequantizeLinear <axis = 0> (wq, sw, zw) "
    assert check(net("r = Relu(x) " + pair("r", "a") + stored + f"y = Conv {PADS} (a, w)")) == ()
    turned = "k = DequantizeLinear <axis = 0> (m_codes, sw, zw) m = Transpose <perm = [1, 0]> (k) "
    channels_last = "t = Transpose <perm = [0, 2, 3, 1]> (a) y = MatMul(t, m)"
    assert check(net("r = Relu(x) " + pair("r", "a") + turned + channels_last)) == ()


@pytest.mark.parametrize(("branches", "what"), [
    ("t = Add(d, r)", "the convolution's branch is quantised, and the other is not"),
    ("t = Add(d, a)", "both branches are quantised"),
])  # fmt: skip
def test_a_pair_on_the_convolution_s_side_of_a_sum(branches: str, what: str) -> None:
    nodes = BEGIN + CONV + pair("c", "d") + f"[sum] {branches} " + pair("t", "e") + END
    (finding,) = [finding for finding in check(net(nodes)) if finding.rule == "residual"]
    assert finding.node == "sum" and what in finding.what


def test_other_faults_of_codes_and_scales() -> None:
    unsigned = "r = Relu(x) " + pair("r", "a", zero="unsigned") + weight("w") + f"y = Conv {PADS} (a, w)"
    assert {finding.rule for finding in check(net(unsigned))} == {"zero-point"}
    computed = "m = ReduceMax <keepdims = 0> (x) " + pair("x", "a", "m") + weight("w") + f"y = Conv {PADS} (a, w)"
    assert "is computed" in next(finding.what for finding in check(net(computed)) if finding.rule == "scale")
    untold = "q = QuantizeLinear(r, s) a = DequantizeLinear(q, s) "  # without a zero point codes are uint8
    assert "zero-point" in {
        f.rule for f in check(net("r = Relu(x) " + untold + weight("w") + f"y = Conv {PADS} (a, w)"))
    }
    alone = weight("w") + f"[conv] y = Conv {PADS} (x, w)"
    assert found(alone, "one-sided") == ["conv"]
    mixed = BEGIN + CONV + pair("c", "d") + "[join] e = Concat <axis = 2> (d, x) " + END
    assert found(mixed, "concat") == ["join"]


def test_weights_alone_are_no_fault() -> None:
    proto = net("y = MatMul(x, eye)", "float[n, 4, 8, 32] x", "float[n, 4, 8, 32] y").to_proto()
    assert check(trtkit.quantize_weights(load(proto), block=32)) == ()
    assert check(trtkit.quantize_weights(load(proto), block=32, bits=8)) == ()


# --- real networks ---------------------------------------------------------------------------------------------------


def quantised(name: str, dtype: str, per_channel: bool = True) -> tuple[Model, tuple[int, ...]]:
    """One of the course's networks, quantised on random data, and the shape of its input."""
    torch = pytest.importorskip("torch")
    if name == "encoder":
        shape: tuple[int, ...] = (2, 16, 64)
        net = nets.encoder(layers=1)
    else:
        pytest.importorskip("torchvision")
        shape = (2, 3, 224, 224)
        made = {"mobilenet_v2": nets.mobilenet_v2, "swin": partial(nets.swin, 1)}
        net = made.get(name, partial(nets.classifier, name))()
    model = trtkit.optimize(load(net, (torch.zeros(shape),)))
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return trtkit.quantize(model, [data], "max", per_channel, dtype=dtype), shape


@pytest.mark.parametrize(("name", "dtype", "expected", "explained"), [
    ("resnet18", "int8", [("Conv", "Int8", 20, 20), ("Gemm", "Int8", 1, 1)],
     {"graph-input": 1, "padded": 1, "float-result": 19, "in-passing": 3}),
    ("resnet18", "fp8", [("Conv", "FP8", 19, 19), ("Gemm", "FP8", 1, 1)],
     {"float-result": 18, "in-passing": 3, "own-kernel": 1}),
    ("mobilenet_v2", "int8", [("Conv", "Int8", 35, 35), ("Gemm", "Int8", 1, 1)],
     {"graph-input": 1, "padded": 1, "float-island": 17, "float-result": 17, "own-kernel": 17}),
    ("encoder", "int8", [("MatMul", "Int8", 6, 6)], {"graph-input": 1, "float-island": 2, "float-result": 1}),
    ("encoder", "fp8", [("MatMul", "FP8", 6, 6)],
     {"graph-input": 1, "float-island": 2, "float-result": 1, "reformat": 1}),
])  # fmt: skip
def test_all_that_quantize_writes_is_8_bit_in_the_engine(
    name: str, dtype: str, expected: list[tuple[str, str, int, int]], explained: dict[str, int]
) -> None:
    model, shape = quantised(name, dtype)
    assert lint(model).ok
    pytest.importorskip("tensorrt_rtx")
    found = lint(model, build(model, {model.inputs[0].name: shape}, verify=False))
    assert found.ok, str(found)
    assert found.counts() == expected and found.missing == ()
    pairs = [node.name for node in model.ir.graph if "uantizeLinear" in node.op_type]
    assert [account.node for account in found.accounts] == pairs
    assert {account.state for account in found.accounts if account.op_type == "DequantizeLinear"} == {"fused"}
    assert all(account.why for account in found.accounts if account.state != "fused")
    assert Counter(finding.rule for finding in found) == explained


def test_casts_between_float_types_hide_nothing() -> None:
    """With scales in FP32 and products in FP16, a Cast stands between each DQ and its product."""
    model, shape = quantised("encoder", "int8")
    half = trtkit.autocast(model, "fp16", keep_fp32=["QuantizeLinear", "DequantizeLinear"])
    assert half.op_counts["Cast"] > 6
    pytest.importorskip("tensorrt_rtx")
    found = lint(half, build(half, {model.inputs[0].name: shape}, verify=False))
    assert found.ok, str(found)
    assert found.counts() == [("MatMul", "Int8", 6, 6)] and found.missing == ()


def test_a_weight_that_tensorrt_reorders_is_found() -> None:
    """Swin's queries, keys and values are one product, taken apart behind it."""
    pytest.importorskip("tensorrt_rtx")
    model, shape = quantised("swin", "int8")
    found = lint(model, build(model, {"x": shape}, verify=False))
    assert len(found.missing) == 2 and ("MatMul", "Int8", 8, 6) in found.counts()
    assert {finding.rule for finding in found if finding.level != EXPLAINED} == {"not-8-bit"}
    assert all("dequantised in each run by" in finding.what for finding in found if finding.rule == "not-8-bit")
    model, shape = quantised("swin", "int8", per_channel=False)
    found = lint(model, build(model, {"x": shape}, verify=False))
    assert found.missing == () and {f.rule for f in found if f.level != EXPLAINED} == {"per-tensor-weight"}


# --- engines written by hand -----------------------------------------------------------------------------------------


def tensor(name: str, dtype: str = "Int8", channels: int = 32) -> LayerTensor:
    return LayerTensor(name, (2, channels, 8, 8), dtype, "NHWC")


def engine(model: Model, *layers: Layer) -> Engine:
    return Engine(b"", {"model": model.name, "model_sha256": ""}, list(layers), model)


def layer(name: str, kind: str, reads: LayerTensor, writes: LayerTensor, *nodes: str) -> Layer:
    return Layer(name, kind, (reads,), (writes,), name if kind == "kgen" else "", nodes)


TWO = BEGIN + CONV + pair("c", "e") + END
FIRST = layer("__myl_ReluMulCast_0x1", "kgen", tensor("x", "Float"), tensor("1"), "relu", "Q_a")
CONVS = (
    layer("one", "correlation", tensor("1"), tensor("2"), "conv", "DQ_a", "DQ_w", "Q_e"),
    layer("two", "correlation", tensor("3"), tensor("y", "Float"), "last", "DQ_e", "DQ_v"),
)


def test_a_reformat_that_nothing_asks_for() -> None:
    model = net(TWO)
    move = layer("__myl_MoveTran_0x2", "kgen", tensor("2"), tensor("3"))
    found = lint(model, engine(model, FIRST, CONVS[0], move, CONVS[1]))
    (finding,) = found
    assert (finding.rule, finding.level, finding.node) == ("reformat", COSTLY, move.name) and not found.ok
    assert "between one and two; nothing in the graph asks for it" in finding.what
    straight = CONVS[1]._replace(inputs=(tensor("2"),))
    assert lint(model, engine(model, FIRST, CONVS[0], straight)).findings == ()
    last = layer("__myl_Tran_0x2", "kgen", tensor("y", "Float"), tensor("z", "Float"))
    assert lint(model, engine(model, FIRST, CONVS[0], straight, last)).findings == ()


def test_channels_that_are_filled_up() -> None:
    model = net(TWO)
    straight = CONVS[1]._replace(inputs=(tensor("2", channels=128),))
    (finding,) = lint(model, engine(model, FIRST, CONVS[0], straight))
    assert (finding.rule, finding.level, finding.node) == ("padded", COSTLY, "last") and "reads 128" in finding.what


def test_a_pair_that_nothing_explains_and_a_product_that_is_nowhere() -> None:
    model = net(TWO)
    alone = layer("__myl_MulCast_0x2", "kgen", tensor("2", "Float"), tensor("3"), "Q_e")
    first = layer("__myl_Corr_0x3", "kgen", tensor("1"), tensor("2", "Float"), "conv", "DQ_a", "DQ_w")
    found = lint(model, engine(model, FIRST, first, alone))
    levels = {(finding.rule, finding.node): finding.level for finding in found}
    assert levels[("own-kernel", "Q_e")] == EXPLAINED  # a product writes float
    assert levels[("not-8-bit", "last")] == COSTLY and found.missing == ("last",)
    assert found.counts() == [("Conv", "Int8", 2, 1)]
    assert [account.state for account in found.accounts if account.node in ("DQ_e", "DQ_v")] == ["merged", "folded"]
    only = layer("__myl_MulCast_0x4", "kgen", tensor("x", "Float"), tensor("1"), "Q_a")
    relu = layer("__myl_Relu_0x5", "kgen", tensor("x", "Float"), tensor("x", "Float"), "relu")
    (finding,) = [f for f in lint(model, engine(model, relu, only, *CONVS)) if f.rule == "own-kernel"]
    assert finding.level == COSTLY and "nothing explains it" in finding.what


def test_how_it_reads() -> None:
    model = net(CASES["one-sided"][0])
    found = lint(model)
    assert isinstance(found, Lint) and len(found) == 1 and list(found) == list(found.findings)
    assert str(found).splitlines()[:2] == ["g: 0 quantised products; 1 costly", "costly: one-sided (1)"]
    page = found._repr_html_()
    assert "<td>one-sided</td><td>costly</td><td>conv</td>" in page and "<th>rule</th>" in page
    good = lint(net(CASES["one-sided"][2]))
    assert good.ok and str(good) == "g: 1 quantised products; nothing to say" and "<table>" not in good._repr_html_()
    many = "r = Relu(x) " + pair("r", "a") + "".join(f"c{i} = Conv {PADS} (a, f) " for i in range(6)) + "y = Neg(c5)"
    assert "and 2 more" in str(lint(net(many)))


def test_refusals() -> None:
    with pytest.raises(ModelError, match="has no QuantizeLinear and DequantizeLinear"):
        lint(net("y = Relu(x)"))
    model, other = net(TWO), net(BEGIN + f"y = Conv {PADS} (a, w)")
    with pytest.raises(EngineError, match="built from another model than 'g'"):
        lint(other, engine(model, FIRST))
