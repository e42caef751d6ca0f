"""Lesson 01: its interpreter, and checks that let the right answers pass and meet wrong ones with a hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from tests.passes.graphs import parse
from trtkit.bench.roofline import Machine, measure_cpu
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson01 as checks
from trtkit.course.interpreter import interpret
from trtkit.errors import ModelError
from trtkit.graph.memory import memory

SMALL = "float[4] b = {1, -2, 3, 0}, float[4, 4] w = {1,2,3,4, 0,1,0,-1, 2,2,0,0, -3,1,1,1}"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["Neg", "Relu", "Sigmoid", "Add", "Mul", "Sub", "MatMul", "Gemm"]), max_size=8))
def test_the_interpreter_agrees_with_onnx(ops: list[str]) -> None:
    lines, last = [], "x"
    for i, op in enumerate(ops):
        call = {"MatMul": f"MatMul({last}, w)", "Gemm": f"Gemm<transB = 1, alpha = 0.5>({last}, w, b)"}.get(op)
        lines.append(f"t{i} = {call or (f'{op}({last}, b)' if op in ('Add', 'Mul', 'Sub') else f'{op}({last})')}")
        last = f"t{i}"
    model = parse(f"{SMALL} | {'  '.join(lines)}  y = Relu({last})")
    x = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
    (want,) = ReferenceEvaluator(model.to_proto()).run(None, {"x": x})
    np.testing.assert_allclose(interpret(model, {"x": x})["y"], want, rtol=1e-4, atol=1e-4)


def test_the_interpreter_names_what_it_does_not_know() -> None:
    with pytest.raises(ModelError, match="no function for Softplus"):
        interpret(parse("y = Softplus(x)"), {"x": np.zeros((1, 4), np.float32)})


def test_a_machine_is_limited_by_the_slower_of_two() -> None:
    machine = Machine("m", flops=100.0, bytes=10.0)
    assert machine.balance == 10 and machine.seconds(1000, 1) == 10 and machine.seconds(1, 1000) == 100
    here = measure_cpu(size=128, copied=1 << 20)
    assert here.name and here.flops > 1e6 and here.bytes > 1e6


def test_the_lessons_liveness_is_the_packages() -> None:
    """Exercise 4's block as a real graph: each tensor's size comes from its width."""
    model = parse("a = Concat<axis=1>(x, x)  b = Relu(a)  s = Neg(x)  c = Concat<axis=1>(s, s)  y = Add(b, c)",
                  outputs="float[n, 8] y")  # fmt: skip
    reads = {"a": ["x"], "b": ["a"], "s": ["x"], "c": ["s"], "y": ["b", "c"]}
    sizes = {"x": 16, "a": 32, "b": 32, "s": 16, "c": 32, "y": 32}
    assert tuple(checks.live_bytes(list(reads), reads, sizes)) == memory(model).live_bytes


def conv(out: Sequence[int], weight: Sequence[int]) -> int:
    return 2 * int(np.prod(out)) * int(np.prod(weight[1:]))


def topological(reads: Mapping[str, Sequence[str]]) -> list[str]:
    order: list[str] = []

    def visit(name: str) -> None:
        if name in reads and name not in order:
            for source in reads[name]:
                visit(source)
            order.append(name)

    for name in reads:
        visit(name)
    return order


def peak(order: Sequence[str], reads: Mapping[str, Sequence[str]], sizes: Mapping[str, int]) -> int:
    return max(checks.live_bytes(order, reads, sizes))


def without_input(order: Sequence[str], reads: Mapping[str, Sequence[str]], sizes: Mapping[str, int]) -> int:
    return max(checks.live_bytes(order, reads, {k: v for k, v in sizes.items() if k != "x"}))


def test_right_answers_pass(capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_conv_flops(conv)
    checks.check_intensity(lambda m, k, n: m * k * n / 2 / (m * k + k * n + m * n))
    checks.check_topological(topological)
    checks.check_peak(peak)
    assert capsys.readouterr().out.count("Right:") == 4


WRONG: list[tuple[Any, Any, str]] = [
    (checks.check_conv_flops, lambda out, weight: None, "nothing yet"),
    (checks.check_conv_flops, lambda out, weight: conv(out, weight) / 2, "exactly half"),
    (checks.check_conv_flops, lambda out, weight: conv(out, weight) * weight[0], "counted twice"),
    (checks.check_conv_flops, lambda out, weight: conv((1, *out[1:]), weight), "batch"),
    (checks.check_conv_flops, lambda out, weight: conv(out, weight[:2]), "each of the"),
    (checks.check_intensity, lambda m, k, n: None, "nothing yet"),
    (checks.check_intensity, lambda m, k, n: 2 * m * k * n / (m * k + k * n + m * n), "4 bytes"),
    (checks.check_intensity, lambda m, k, n: 2 * m * k * n / (4 * (m * k + k * n)), "three matrices"),
    (checks.check_intensity, lambda m, k, n: 1 / 0 if m < 0 else float("nan"), "finite"),
    (checks.check_topological, lambda reads: None, "returns a list"),
    (checks.check_topological, lambda reads: "c1", "returns a list"),
    (checks.check_topological, lambda reads: list(reads), "computes only later"),
    (checks.check_topological, lambda reads: sorted(reads), "computes only later"),
    (checks.check_topological, lambda reads: ["x", *topological(reads)], "input of the graph"),
    (checks.check_topological, lambda reads: topological(reads)[:-1], "missing"),
    (checks.check_topological, lambda reads: topological(reads) * 2, "twice"),
    (checks.check_peak, lambda order, reads, sizes: None, "nothing yet"),
    (checks.check_peak, lambda order, reads, sizes: sum(sizes.values()), "all tensors together"),
    (checks.check_peak, lambda order, reads, sizes: max(sizes.values()), "largest single tensor"),
    (checks.check_peak, without_input, "input x"),
    (checks.check_peak, lambda order, reads, sizes: 1500, "alive from the node"),
    (checks.check_peak, lambda order, reads, sizes: peak(list(checks.READS), reads, sizes), "s', 'c1'"),
]


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG, ids=[f"{c.__name__}-{hint}" for c, _, hint in WRONG])
def test_wrong_answers_get_a_hint(check: Any, answer: Any, hint: str) -> None:
    with pytest.raises(NotSolved, match=hint):
        check(answer)
