"""Lesson 03: its blocks and networks, and checks that let right answers pass and meet wrong ones with a hint."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from matplotlib.figure import Figure

import trtkit
from trtkit.bench.operator_times import operator_times
from trtkit.course import nets
from trtkit.course.blocks import block, chain, kernels
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson03 as checks
from trtkit.course.pictures import lesson03 as pictures
from trtkit.errors import DataError, ModelError
from trtkit.passes import run_passes
from trtkit.passes.batch_norm import FoldBatchNorm


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's answers on exercise 4's chains, known from the next test, so that wrong answers cost nothing."""
    monkeypatch.setattr(checks, "kernels", lambda model: REAL[model.name])
    monkeypatch.setattr(checks, "block", lambda nodes: block(nodes, name=NAMES[nodes]))


NAMES = {chain(ops): f"chain{i}" for i, ops in enumerate(checks.CHAINS)}
REAL = {f"chain{i}": [tuple(part.split("+")) for part in parts.split(" | ")] for i, parts in enumerate((
    "Conv+Relu", "Conv | MaxPool | Relu", "Conv+Relu | Conv+Clip", "Conv+HardSwish | MaxPool", "Conv | Mish+Relu",
    "Conv+Abs | MaxPool | Exp+Neg",
))}  # fmt: skip


def test_tensorrt_builds_what_exercise_4_says() -> None:
    pytest.importorskip("tensorrt_rtx")
    assert [kernels(block(chain(ops))) for ops in checks.CHAINS] == list(REAL.values())


def fold(w: Any, b: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
    return checks.folded(w, b, gamma, beta, mean, var)


def pairs(graph: onnx.GraphProto, *, shared: bool = True, outputs: bool = True, constant: bool = True,
          conv: bool = True) -> list[tuple[str, str]]:  # fmt: skip
    """The right answer to exercise 3, or one that forgets a condition."""
    maker = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    ends = {output.name for output in graph.output} if outputs else set()
    known = {weight.name for weight in graph.initializer}
    return [
        (maker[norm.input[0]].name, norm.name)
        for norm in graph.node
        if norm.op_type == "BatchNormalization"
        and norm.input[0] not in ends
        and (not shared or readers[norm.input[0]] == 1)
        and (not constant or set(norm.input[1:]) <= known)
        and (not conv or maker[norm.input[0]].op_type == "Conv")
    ]


def predict(ops: list[str]) -> list[list[str]]:
    found: list[list[str]] = []
    for op in ops:
        last = found[-1] if found else ["MaxPool"]
        if op in ("Conv", "MaxPool") or last[0] == "MaxPool" or (op == "Mish" and last[0] == "Conv"):
            found.append([op])
        else:
            last.append(op)
    return found


def test_right_answers_pass(engines: None, capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_fold(fold)
    checks.check_saved(lambda n, elements: (n - 1, 8 * elements * (n - 1)))
    checks.check_pairs(pairs)
    checks.check_predicted(predict)
    assert capsys.readouterr().out.count("Right:") == 4


def scaled(w: Any, b: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
    return w * (gamma / np.sqrt(var + checks.EPSILON))[:, None, None, None]


def unscaled_bias(w: Any, b: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
    return b - mean * gamma / np.sqrt(var + checks.EPSILON) + beta


WRONG: list[tuple[Any, Any, str]] = [
    (checks.check_fold, lambda *a: None, "returns two arrays"),
    (checks.check_fold, lambda *a: (None, None), "returns two arrays"),
    (checks.check_fold, lambda w, b, *a: (w[0], b), "have the shapes"),
    (checks.check_fold, lambda w, b, g, *a: (w * (g / np.sqrt(a[2]))[:, None, None, None], b), "forget epsilon"),
    (checks.check_fold, lambda w, b, *a: (w, b), "axis 0"),
    (
        checks.check_fold,
        lambda *a: (scaled(*a), a[1] - a[4] * a[2] / np.sqrt(a[5] + checks.EPSILON) + a[3]),
        "old bias",
    ),
    (checks.check_fold, lambda *a: (scaled(*a), a[1]), "subtract the mean"),
    (checks.check_saved, lambda n, e: None, "returns two numbers"),
    (checks.check_saved, lambda n, e: (None, None), "nothing yet"),
    (checks.check_saved, lambda n, e: (n, 8 * e * (n - 1)), "0 saved"),
    (checks.check_saved, lambda n, e: (n - 1, 2 * e * (n - 1)), "4 bytes"),
    (checks.check_saved, lambda n, e: (n - 1, 4 * e * (n - 1)), "count both ways"),
    (checks.check_saved, lambda n, e: (n - 1, 8 * e * n), "first read and the last write"),
    (checks.check_saved, lambda n, e: (n - 1, 7 * e * (n - 1)), "written once and read once"),
    (checks.check_pairs, lambda g: None, "list of pairs"),
    (checks.check_pairs, lambda g: ["c1"], "list of pairs"),
    (checks.check_pairs, lambda g: [("c1", "nothing")], "no batch normalisations"),
    (checks.check_pairs, lambda g: pairs(g, shared=False), "b3 may not be folded.*off by"),
    (checks.check_pairs, lambda g: pairs(g, outputs=False), "b4 may not be folded.*off by"),
    (checks.check_pairs, lambda g: pairs(g, conv=False), "b5 may not be folded"),
    (checks.check_pairs, lambda g: pairs(g, constant=False), "b6 may not be folded"),
    (checks.check_pairs, lambda g: pairs(g)[:1], "b2 may be folded"),
    (checks.check_pairs, lambda g: [("c2", "b1"), ("c2", "b2")], "b1 reads c1"),
    (checks.check_predicted, lambda ops: None, "list of kernels"),
    (checks.check_predicted, lambda ops: "Conv", "list of kernels"),
    (checks.check_predicted, lambda ops: [ops[:1]], "comes once"),
    (checks.check_predicted, lambda ops: [ops], "A pool stands alone"),
    (checks.check_predicted, lambda ops: [[op] for op in ops], "joins the kernel before"),
    (checks.check_predicted, lambda ops: [ops] if "MaxPool" not in ops else predict(ops), "Two convolutions"),
    (checks.check_predicted, lambda ops: [ops] if "Mish" in ops else predict(ops), "Mish is none"),
]


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG, ids=[f"{c.__name__}-{hint}" for c, _, hint in WRONG])
def test_wrong_answers_get_a_hint(engines: None, check: Any, answer: Any, hint: str) -> None:
    with pytest.raises(NotSolved, match=hint):
        check(answer)


def test_the_pass_folds_what_exercise_3_calls_right() -> None:
    after = run_passes(trtkit.load(checks.trap_graph()), [FoldBatchNorm()])
    left = {node.name for node in after.ir.graph if node.op_type == "BatchNormalization"}
    assert left == {norm for norm, why in checks.TRAPS.items() if why}


def test_a_block_that_is_no_text_is_refused() -> None:
    with pytest.raises(ModelError, match="not in ONNX's text format"):
        block("y = = Relu(x)")


def test_both_ways_to_write_attention_compute_the_same() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
    one, other = (nets.encoder(form)(x) for form in ("eager", "sdpa"))
    assert torch.allclose(one, other, atol=1e-5) and not torch.allclose(one, nets.encoder("eager", seed=1)(x), atol=0.1)
    with pytest.raises(DataError, match="eager, sdpa"):
        nets.encoder("flash")


def test_operator_times_are_those_of_the_graph_or_of_what_the_runtime_makes_of_it() -> None:
    model = block(chain("Conv Relu Exp"))
    times = operator_times(model, model.random_inputs(), runs=3)
    assert set(times) == {"Conv", "Relu", "Exp"} and list(times.values()) == sorted(times.values(), reverse=True)
    assert "Relu" not in operator_times(model, model.random_inputs(), runs=3, fused=True)


def test_pictures_draw() -> None:
    drawn = [
        pictures.shares({"time": {"Conv": 2.0, "Relu": 1.0}, "bytes": {"Conv": 1.0, "Relu": 5.0, "Add": 1.0}}),
        pictures.ranges({"a": np.ones((4, 2)), "b": np.arange(1.0, 9.0).reshape(4, 2)}),
        pictures.maps({"zero": np.zeros((3, 3))}),
        pictures.tiles([256, 512], [2.0, 1.0], 1.5),
        pictures.kernel_rows({"a": [("Conv", "Relu"), ("MaxPool",)]}),
        pictures.before_after({"a": (1.0, 0.5), "b": (1.0, 1.2)}, {"a": (2, 1), "b": (3, 3)}, "recalled"),
    ]
    assert all(isinstance(fig, Figure) for fig in drawn)
    shown = [text.get_text() for text in drawn[-1].axes[0].texts]
    assert shown == ["0.50×   2 → 1 kernels", "1.20×   3 kernels"]
