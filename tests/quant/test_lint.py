"""The Q/DQ linter: each rule on a graph that breaks it and on the mended one; real networks and their engines."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import trtkit
from trtkit.engine.build import build
from trtkit.engine.lint import Lint, lint
from trtkit.errors import EngineError, ModelError
from trtkit.importers import load
from trtkit.model import Model
from trtkit.quant.lint import COSTLY, EXPLAINED, LEVELS, REFUSED, RULES, check

PADS = "<pads = [1, 1, 1, 1]>"
WEIGHT = (32, 32, 3, 3)


def qdq(value: str, name: str, scale: str = "s", zero: str = "z") -> str:
    """A pair that reads `value` and gives out `name`."""
    q = f"{name}_q"
    return f"[Q_{name}] {q} = QuantizeLinear({value}, {scale}, {zero}) " \
           f"[DQ_{name}] {name} = DequantizeLinear({q}, {scale}, {zero}) "  # fmt: skip


def weight(name: str, scale: str = "sw", zero: str = "zw", axis: int = 0) -> str:
    """An 8-bit weight that gives out `name`."""
    return f"[DQ_{name}] {name} = DequantizeLinear <axis = {axis}> ({name}_codes, {scale}, {zero}) "


def net(nodes: str, x: str = "float[2, 32, 8, 8] x", y: str = "float[2, 32, h, 8] y") -> Model:
    """A network with the constants that the cases name: scales s, other, sw (per channel), codes and float weights."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> g ({x}) => ({y}) {{{nodes}}}')
    rng = np.random.default_rng(0)
    given: dict[str, np.ndarray] = {
        "s": np.array(0.05, np.float32), "other": np.array(0.07, np.float32), "minus": np.array(-0.05, np.float32),
        "sw": np.full(32, 0.01, np.float32), "zw": np.zeros(32, np.int8), "z": np.array(0, np.int8),
        "three": np.array(3, np.int8), "unsigned": np.array(0, np.uint8),
        "b_codes": np.arange(32, dtype=np.int32), "zb": np.zeros(32, np.int32), "b": np.ones(32, np.float32),
        "m_codes": rng.integers(-127, 127, (32, 32)).astype(np.int8), "f": rng.normal(size=WEIGHT).astype(np.float32),
        "w_codes": rng.integers(-127, 127, WEIGHT).astype(np.int8),
        "v_codes": rng.integers(-127, 127, WEIGHT).astype(np.int8),
    }  # fmt: skip
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in given.items() if name in read)
    return load(proto)


BEGIN = "[relu] r = Relu(x) " + qdq("r", "a") + weight("w")  # 8-bit a and w
CONV = f"[conv] c = Conv {PADS} (a, w) "
END = weight("v") + f"[last] y = Conv {PADS} (e, v)"  # of 8-bit e

# rule -> the graph that breaks it, the node it is about, the graph mended
CASES: dict[str, tuple[str, str, str]] = {
    "integer-operator": ("[n] y_codes, y_scale, y_zero = DynamicQuantizeLinear(x) y = Relu(x)", "n",
                         BEGIN + f"y = Conv {PADS} (a, w)"),
    "zero-point": ("r = Relu(x) " + qdq("r", "a", zero="three") + weight("w") + f"y = Conv {PADS} (a, w)", "Q_a",
                   BEGIN + f"y = Conv {PADS} (a, w)"),
    "scale": ("r = Relu(x) " + qdq("r", "a", "minus") + weight("w") + f"y = Conv {PADS} (a, w)", "Q_a",
              BEGIN + f"y = Conv {PADS} (a, w)"),
    "quantized-bias": (BEGIN + "d = DequantizeLinear <axis = 0> (b_codes, sw, zb) "
                       f"[conv] y = Conv {PADS} (a, w, d)", "conv", BEGIN + f"y = Conv {PADS} (a, w, b)"),
    "activation-axis": ("r = Relu(x) [Q_a] q = QuantizeLinear <axis = 1> (r, sw, zw) "
                        "a = DequantizeLinear <axis = 1> (q, sw, zw) " + weight("w") + f"y = Conv {PADS} (a, w)",
                        "Q_a", BEGIN + f"y = Conv {PADS} (a, w)"),
    "one-sided": ("r = Relu(x) " + qdq("r", "a") + f"[conv] y = Conv {PADS} (a, f)", "conv",
                  BEGIN + f"y = Conv {PADS} (a, w)"),
    "per-tensor-weight": ("r = Relu(x) " + qdq("r", "a") + weight("w", "s", "z")
                          + f"[conv] y = Conv {PADS} (a, w)", "conv", BEGIN + f"y = Conv {PADS} (a, w)"),
    "float-reader": (BEGIN + CONV + qdq("c", "d") + "m = Softmax <axis = 1> (d) " + qdq("m", "e") + END, "DQ_d",
                     BEGIN + CONV + "m = Softmax <axis = 1> (c) " + qdq("m", "e") + END),
    "residual": (BEGIN + CONV + "[sum] t = Add(c, r) " + qdq("t", "e") + END, "sum",
                 BEGIN + CONV + "[sum] t = Add(c, a) " + qdq("t", "e") + END),
    "concat": (BEGIN + CONV + qdq("c", "d") + "g = Sigmoid(x) " + qdq("g", "h", "other")
               + "[join] e = Concat <axis = 2> (d, h) " + END, "join",
               BEGIN + CONV + "g = Sigmoid(x) j = Concat <axis = 2> (c, g) " + qdq("j", "e") + END),
    "requantized": (BEGIN + CONV + qdq("c", "d") + qdq("d", "e", "other") + END, "Q_e",
                    BEGIN + CONV + qdq("c", "e") + END),
    "quantized-twice": (BEGIN + CONV + qdq("r", "e", "other") + weight("v")
                        + f"d = Conv {PADS} (e, v) y = Mul(c, d)", "Q_e",
                        BEGIN + CONV + weight("v") + f"d = Conv {PADS} (a, v) y = Mul(c, d)"),
    "graph-output": (BEGIN + CONV + qdq("c", "y"), "DQ_y", BEGIN + f"y = Conv {PADS} (a, w)"),
    "graph-input": (qdq("x", "a") + weight("w") + f"y = Conv {PADS} (a, w)", "Q_a",
                    BEGIN + f"y = Conv {PADS} (a, w)"),
    "float-island": (BEGIN + CONV + f"[island] d = Conv {PADS} (c, f) " + qdq("d", "e") + END, "island",
                     BEGIN + CONV + "d = Relu(c) " + qdq("d", "e") + END),
}  # fmt: skip


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
