"""Lesson 12: the loop's lines and mistakes, the pictures, and the checks with right and wrong answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from trtkit.course import broken_loop
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson12 as checks
from trtkit.course.digits import Digits, digits
from trtkit.course.pictures import lesson12 as pictures
from trtkit.engine.network import layers


def turned(kernel: Any) -> Any:
    h, w, channels, many = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(channels * many, 1, h, w)


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def dense(matrix: Any, height: int, width: int, channels: int) -> Any:
    return matrix.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(matrix.shape)


def mish(w: Any, x: Any) -> Any:
    return layers.elementwise(w, "PROD", x, layers.activation(w, checks.softplus(w, x), "TANH"))


def test_right_answers_pass(capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_depthwise(turned)
    checks.check_same(same)
    checks.check_dense(dense)
    checks.check_mish(mish)
    assert capsys.readouterr().out.count("Right:") == 4


@pytest.mark.parametrize(
    ("check", "answer", "hint"),
    [
        (checks.check_depthwise, lambda kernel: None, "nothing came back"),
        (checks.check_depthwise, lambda kernel: kernel, "should have the shape"),
        (checks.check_depthwise, lambda kernel: kernel.reshape(8, 1, 2, 3), "In which order"),
        (checks.check_depthwise, lambda k: k.transpose(3, 2, 0, 1).reshape(8, 1, 2, 3), "In which order"),
        (checks.check_same, lambda size, kernel, stride: None, "returns"),
        (checks.check_same, lambda size, kernel, stride: (kernel // 2,) * 2, "stride 2: not"),
        (checks.check_same, lambda *sizes: same(*sizes)[::-1], "stride 2: not"),
        (checks.check_dense, lambda matrix, *sizes: None, "keeps its shape"),
        (checks.check_dense, lambda matrix, *sizes: matrix, "numbers are wrong"),
        (checks.check_mish, lambda w, x: None, "returns a tensor"),
        (checks.check_mish, lambda w, x: layers.silu(w, x), "numbers are wrong"),
    ],
)
def test_wrong_answers_get_a_hint(check: Any, answer: Any, hint: str) -> None:
    with pytest.raises(NotSolved, match=hint):
        check(answer)


def test_the_lines_of_the_web_and_what_is_said() -> None:
    found = {tried.code: tried.said for tried in broken_loop.try_lines()}
    assert found["builder.max_workspace_size = 1 << 30"].startswith("AttributeError")
    assert found["y = network.add_convolution_nd(x, 8, (3, 3), weights, bias)"] == ""  # though it cannot be
    assert "kernel weights has count 72" in found["y.get_output(0).shape"]


@pytest.fixture(scope="module")
def judge() -> Digits:
    return digits()[1]


@pytest.fixture(scope="module")
def model() -> Any:
    return broken_loop.digit_model(digits()[0], epochs=3)


def test_every_mistake_is_silent_and_found(model: Any, judge: Digits) -> None:
    few = Digits(judge.x[:100], judge.y[:100])
    found = broken_loop.measure_mistakes(model, few)
    assert list(found) == ["right", *broken_loop.MISTAKES]
    assert found["right"].error < 1e-5
    assert all(found[name].error > 0.05 for name in broken_loop.MISTAKES)
    one_by_one = broken_loop.measure_mistakes(model, Digits(judge.x[:40], judge.y[:40]), batch=1)
    assert one_by_one["softmax"].accuracy < 0.3 < found["softmax"].accuracy
    assert not broken_loop.translate(model, ["flatten"]).check().passed
    assert broken_loop.translate(model).check().passed


def test_pictures() -> None:
    rows = {"a": {"definition": 1e-7, "FP32": 0.0, "TF32": 1e-4}}
    drawn = [
        pictures.mistakes({"right": (1e-7, 0.95), "kernel": (1.0, 0.1)}),
        pictures.numbered({"one": np.arange(4).reshape(1, 4)}),
        pictures.kernels([("CorrRelu", ("a", "b")), ("gemm", ("c",))], ["a", "b", "c"]),
        pictures.phases([(0.0, "all", 0, 2), (0.1, "part", 0, 1), (0.2, "all", 2, 2)]),
        pictures.errors(rows, {"FP32": 1e-4}),
        pictures.pads({"x": (1, 8, 1)}, {"x": (0, 1)}),
        pictures.against(np.float32([1, 2]), np.float32([1, 3]), "y"),
    ]
    assert all(isinstance(figure, Figure) for figure in drawn)
    assert "1 networks" in pictures.spoken(rows)
