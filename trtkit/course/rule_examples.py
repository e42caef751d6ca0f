"""For every rule of `autocast` the smallest graph on which it speaks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx

import trtkit
from trtkit.model import Model
from trtkit.quant.autocast import autocast_report
from trtkit.quant.precision_rules import Decision

_HEAD = '<ir_version: 10, opset_import: ["": 20]> {name} {signature}'


class Example(NamedTuple):
    """A graph, and how `autocast` has to be called so that the rule of this name decides."""

    rule: str
    graph: str
    options: dict[str, Any]

    def model(self) -> Model:
        return trtkit.load(onnx.parser.parse_model(_HEAD.format(name=self.rule, signature=self.graph)))

    def decision(self) -> Decision:
        """What autocast says of the node that the rule keeps in FP32."""
        report = autocast_report(trtkit.autocast(self.model(), **self.options))
        return next(decision for decision in report if decision.rule == self.rule)


_LARGE = {"x": np.full((1, 4), 300, np.float32)}
EXAMPLES = (
    Example("user", "(float[4] x) => (float[4] y) {y = Sigmoid(x)}", {"keep_fp32": ["Sigmoid"]}),
    Example(
        "type_system",
        "(float[1, 9, 4] x, float[1, 1, 9] s) => (int64[n, 3] y) {y = NonMaxSuppression(x, s)}",
        {},
    ),
    Example("no_kernel", "(float[4] x) => (float[4] y) {y = HardSwish(x)}", {"precision": "bf16"}),
    Example(
        "sum_of_codes",
        "(float[4] x) => (float[4] y) <float s = {0.1}, int8 z = {0}>"
        " {q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)}",
        {},
    ),
    Example(
        "index_arithmetic",
        "(float[4] x) => (int64[4] y) {a = Neg(x)  y = Cast <to = 7> (a)}",
        {},
    ),
    Example("wide_range", "(float[4] x) => (float[4] y) {y = Exp(x)}", {}),
    Example(
        "long_reduction",
        "(float[1, 8, 112, 112] x) => (float[1, 8, 1, 1] y) {y = GlobalAveragePool(x)}",
        {},
    ),
    Example("weights", "(float[4] x) => (float[4] y) <float[1] epsilon = {1e-12}> {y = Add(x, epsilon)}", {}),
    Example("activation_range", "(float[1, 4] x) => (float[1, 4] y) {y = Mul(x, x)}", {"data": [_LARGE]}),
    Example("island", "(float[4] x) => (float[4] y) {a = Exp(x)  b = Neg(a)  y = Exp(b)}", {}),
)
