"""Lesson 08: graphs with pairs by hand, what engines move, the questions of the flowchart, and the checks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import trtkit
from trtkit.bench.record import Records
from trtkit.course import gpu, why_int8
from trtkit.course.blocks import by_product, bytes_moved, kernel_types, words
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson08 as checks
from trtkit.course.pairs import SHAPES, by_onnxruntime, network, pair, weight, with_outliers
from trtkit.course.pictures import lesson08 as pictures
from trtkit.engine.engine import Engine
from trtkit.engine.layers import Layer, LayerTensor
from trtkit.errors import BuildError, ModelError
from trtkit.quant.sensitivity import sqnr_db

CONV = "Conv <pads = [1, 1, 1, 1]>"
START = "[relu] r = Relu(x) " + pair("r", "a") + weight("w")


def passes(f: Any, x: np.ndarray, q: Any) -> bool:
    return np.array_equal(f(q(x)), q(f(x)))


def joined(inputs: list[np.ndarray]) -> float:
    return float(max(np.abs(x).max() for x in inputs) / 127)


def keep(layers: list[tuple[str, float]], target_db: float) -> list[str]:
    left, kept = sorted(layers, key=lambda layer: -layer[1]), []
    while left and sum(10 ** (-db / 10) for _, db in left) > 10 ** (-target_db / 10):
        kept.append(left.pop()[0])
    return kept


def test_right_answers_pass(capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_passes(passes)
    checks.check_joined(joined)
    checks.check_places(checks.needed)
    checks.check_keep(keep)
    assert capsys.readouterr().out.count("Right:") == 4


WRONG: list[tuple[Any, Any, str]] = [
    (checks.check_passes, lambda f, x, q: None, "True or False"),
    (checks.check_passes, lambda f, x, q: True, "near is not equal"),
    (checks.check_passes, lambda f, x, q: bool(np.allclose(f(q(x)), q(f(x)), atol=0.06)), "near is not equal"),
    (checks.check_passes, lambda f, x, q: np.array_equal(f(q(x)), f(x)), "compare with f"),
    (checks.check_joined, lambda inputs: [np.abs(x).max() / 127 for x in inputs], "One number"),
    (checks.check_joined, lambda inputs: None, "nothing yet"),
    (checks.check_joined, lambda inputs: -1.0, "greater than 0"),
    (checks.check_joined, lambda inputs: np.mean([np.abs(x).max() for x in inputs]) / 127, "cut off"),
    (checks.check_joined, lambda inputs: max(x.max() for x in inputs) / 127, "negative ones"),
    (checks.check_joined, lambda inputs: joined(inputs) * 2, "wider than"),
    (checks.check_places, lambda nodes: None, "pairs of"),
    (checks.check_places, lambda nodes: [], "multiplies codes"),
    (checks.check_places, lambda nodes: [(n.name, 0) for n in nodes if n.op in ("Conv", "Gemm")], "later one"),
    (checks.check_places, lambda nodes: [(n.name, 0) for n in nodes], "computes in float"),
    (checks.check_keep, lambda layers, db: None, "list of names"),
    (checks.check_keep, lambda layers, db: ["nobody"], "list of names"),
    (checks.check_keep, lambda layers, db: [], "Noise adds"),
    (checks.check_keep, lambda layers, db: [name for name, alone in layers if alone < db], "Noise adds"),
    (checks.check_keep, lambda layers, db: [name for name, _ in layers], "are enough"),
]


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG)
def test_wrong_answers_get_a_hint(check: Any, answer: Any, hint: str) -> None:
    with pytest.raises(NotSolved, match=hint):
        check(answer)


def test_places_are_where_quantize_puts_pairs() -> None:
    """Exercise 3's rules on a residual block are those of the package."""
    text = (f"[node_c1] c1 = {CONV} (x, f) [node_r1] r1 = Relu(c1) [node_c2] c2 = {CONV} (r1, f) "
            f"[node_t] t = Add(c2, r1) [node_y] y = {CONV} (t, f)")  # fmt: skip
    model = network(text)
    data = [{"x": np.random.default_rng(0).standard_normal(SHAPES["x"]).astype(np.float32)}]
    quantised = trtkit.quantize(model, data)
    found = {
        (node.name, i)
        for node in quantised.ir.graph
        if node.op_type in ("Conv", "Add")
        for i, v in enumerate(node.inputs[:2])
        if (q := v.producer()) is not None  # type: ignore[union-attr]
        and q.op_type == "DequantizeLinear"
        and q.inputs[0].producer() is not None
    }  # type: ignore[union-attr]
    nodes = checks._nodes("c1=Conv(x) r1=Relu(c1) c2=Conv(r1) t=Add(c2,r1) y=Conv(t)")
    assert found == checks.needed(nodes)


def test_outliers_change_no_answer_and_smooth_cures_them() -> None:
    rng = np.random.default_rng(0)
    eye = rng.normal(size=(32, 32)).astype(np.float32)
    model = network("y = MatMul(x, eye)", "float[2, 8, 32] x", "float[2, 8, 32] y", eye=eye)
    data = [{"x": rng.standard_normal((2, 8, 32)).astype(np.float32)}]
    want = [model.run(batch) for batch in data]
    wild = with_outliers(model)
    assert sqnr_db(want, [wild.run(batch) for batch in data]) > 100
    plain, hurt, cured = (sqnr_db(want, [trtkit.quantize(m, data, "max").run(b) for b in data])
                          for m in (model, wild, trtkit.smooth(wild, data)))  # fmt: skip
    assert hurt < plain - 10 and cured > hurt + 10


def test_onnx_runtime_s_defaults_are_refused_and_lint_says_why() -> None:
    model = network(f"[conv] c = {CONV} (x, f, b) y = Relu(c)")
    data = [{"x": np.random.default_rng(0).standard_normal(SHAPES["x"]).astype(np.float32)}]
    theirs = by_onnxruntime(model, data)
    assert {"quantized-bias", "zero-point"} <= {finding.rule for finding in trtkit.lint(theirs)}
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BuildError, match="Int32"):
        trtkit.build(theirs, SHAPES, verify=False)


def test_text_that_is_no_graph() -> None:
    with pytest.raises(ModelError, match="text format"):
        network("y = Relu(")


def tensor(dtype: str, *shape: int) -> LayerTensor:
    return LayerTensor("t", shape, dtype, "Linear")


def test_bytes_of_layers() -> None:
    one = Layer("a", "kgen", (tensor("Float", 2, 3),), (tensor("Int8", 2, 3),), "", ())
    host = Layer("b", "shape_call", (tensor("Int64", 9),), (), "", ())
    assert bytes_moved([one, host]) == 24 + 6
    for odd in (tensor("Float", -1, 3), tensor("Int3", 1)):
        with pytest.raises(ModelError, match="how many bytes"):
            bytes_moved([one._replace(inputs=(odd,))])
    assert kernel_types([one._replace(inputs=())]) == [("kgen", "nothing", "Int8")]
    assert words("MulAddReluMulMinMaxRounCast") == "MulAddRelu Q"


def test_the_questions_and_where_engines_stop() -> None:
    pytest.importorskip("tensorrt_rtx")

    def engine(model: Any) -> Engine:
        return trtkit.build(model, SHAPES, verify=False, isolate=False)

    plain = network(f"r = Relu(x) y = {CONV} (r, f)")
    rival = engine(trtkit.autocast(plain, "fp16"))
    keys = [question.key for question in why_int8.QUESTIONS]
    turned = START.replace("axis = 0", "axis = 1")
    for model, stop in ((plain, "pairs"), (network(turned + f"y = {CONV} (a, w)"), "products"),
                        (network(START + f"c = {CONV} (a, w) " + pair("c", "e") + weight("v") + f"y = {CONV} (e, v)"),
                         "kernels")):  # fmt: skip
        given = why_int8.answers(model, engine(model), rival)
        assert [answer.key for answer in given] == keys[: len(given)]
        assert given[-1].key == stop and not given[-1].yes and all(answer.yes for answer in given[:-1])
    right = network(START + f"[conv] y = {CONV} (a, w)")
    built = engine(right)
    assert why_int8.answers(right, built, rival)[-1].key == "bytes"
    (share,) = by_product(built.layers, trtkit.lint(right, built).products).values()
    assert share[0] == len(kernel_types(built.layers)) - 1  # all but the ReLU before it
    with pytest.raises(ModelError, match="rival"):
        why_int8.answers(right, built, Engine(b"", rival.manifest, rival.layers, None))


def test_sensitivities_run_each_layer_once() -> None:
    from trtkit.quant.sensitivity import Sensitivities

    model = network(f"c = {CONV} (x, f) y = {CONV} (c, f)")
    data = [{"x": np.random.default_rng(0).standard_normal(SHAPES["x"]).astype(np.float32)}]
    each, runs = Sensitivities(model, data), Counter[str]()
    real = each.compare
    each.compare = lambda models: (runs.update(["compare"]), real(models))[1]  # type: ignore[method-assign]
    first = each.each_alone()
    first.clear()  # a caller's list is the caller's
    assert len(each.each_alone()) == 2 and runs["compare"] == 1


def test_pictures_draw() -> None:
    x = np.linspace(0, 1, 8)
    drawn = [
        pictures.ribbons({"FP32": [[("Float", 4_000_000), ("Int8", 1_000_000)]], "INT8": [[("Int8", 10)]]}),
        pictures.rounding_order({"MaxPool": (x, x), "AveragePool": (x, x + 0.1)}),
        pictures.layers([("a", 20.0), ("b", 40.0)], {"a": (2, 10**6), "b": (1, 10**5)}, {"a": (1, 10**6)}),
        pictures.channels({"before": (x + 1, x + 2)}),
        pictures.budgets({"batch 1": {"FP16": (3.0, 1.0), "INT8": (1.5, 1.2)}}),
        pictures.flowchart([(q.asks, q.cause, q.cure) for q in why_int8.QUESTIONS], {0: "here"}),
        pictures.noise_sums(["a", "b"], [0.1, 0.01], ["a"], 0.05),
        pictures.kernel_time({"one": gpu.quantized()["llama-mlp-b1"]}),
    ]
    assert all(isinstance(fig, Figure) for fig in drawn)
    assert "5 MB in 1 kernels" in drawn[0].axes[0].texts[0].get_text()
    assert [axis.get_title() for axis in drawn[1].axes] == ["MaxPool: 0% differ", "AveragePool: 100% differ"]
    assert drawn[-1].axes[0].get_title() == "one" and not drawn[-1].axes[1].axison


def test_panels_stand_in_rows_of_four() -> None:
    x = np.linspace(0, 1, 8)
    fig = pictures.rounding_order({str(i): (x, x) for i in range(5)})
    assert [axis.axison for axis in fig.axes] == [True] * 5 + [False] * 3


def test_a_form_without_an_engine_is_refused_in_the_table() -> None:
    found = gpu.quantized()
    whole, without = found["llama-mlp-b1"], Records("less", {"fp16": found["llama-mlp-b1"]["fp16"]})
    first, last = gpu.table({"whole": whole, "less": without}).splitlines()[1:]
    assert f"{whole.speedup('int8', 'fp16'):.2f}×" in first and "refused" not in first
    assert last.count("refused") == len(whole) - 1 and "1.00×" in last


def test_kernels_that_overlap_have_no_pause() -> None:
    found = gpu.quantized()["bert-base-b1"]
    assert found["fp16"].extra["kernel_us"]["pauses"] < 0
    bars = pictures.kernel_time({"one": found}).axes[0].containers
    assert [round(bars[2][i].get_width(), 1) for i in (0, 1)] == [0, found["int8"].extra["kernel_us"]["pauses"]]
