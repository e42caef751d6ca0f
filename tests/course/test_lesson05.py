"""Lesson 05: rounding, its rules' examples, and checks that let right answers pass and meet wrong ones with a hint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import trtkit
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson05 as checks
from trtkit.course.pictures import lesson05 as pictures
from trtkit.course.rounding import decibels, int_blocks, with_one_scale
from trtkit.course.rule_examples import EXAMPLES, Example
from trtkit.quant.formats import FP8_E4M3, FP16, INT4
from trtkit.quant.overflow import overflowing
from trtkit.quant.precision_rules import RULES


def largest(e: int, m: int) -> float:
    return (2 - 2.0**-m) * 2.0 ** (2 ** (e - 1) - 1)


def encode_fp4(x: np.ndarray) -> np.ndarray:
    size = np.minimum(np.abs(x), 6)
    step = np.where(size < 2, 0.5, np.where(size < 4, 1, 2))
    return np.searchsorted([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.rint(size / step) * step) + 8 * np.signbit(x)


def choose(weight: np.ndarray, budget: float) -> tuple[int, int]:
    able = [(b, k) for b in checks.BITS for k in checks.BLOCKS if b + checks.SCALE_BITS / k <= budget]
    return max(able, key=lambda pair: checks.quality(weight, *pair))


def test_right_answers_pass(capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_largest(largest)
    checks.check_fp4(encode_fp4)
    checks.check_kept(checks.needed)
    checks.check_kept(checks.needed, *checks.ladder())
    checks.check_choice(choose)
    assert capsys.readouterr().out.count("Right:") == 5


def nearest_first(x: np.ndarray) -> np.ndarray:
    """Ties go down."""
    numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    return np.abs(np.abs(x)[:, None] - numbers).argmin(axis=1) + 8 * np.signbit(x)


def writers(sizes: Any, nodes: Any) -> list[str]:
    return [n.name for n in nodes if any(sizes.get(t, 0) > checks.LIMIT for t in n.outputs)]


def cautious(sizes: Any, nodes: Any) -> list[str]:
    return [n.name for n in nodes if any(sizes.get(t, 0) > checks.LIMIT / 2 for t in (*n.inputs, *n.outputs))]


WRONG: list[tuple[Any, Any, str]] = [
    (checks.check_largest, lambda e, m: None, "nothing yet"),
    (checks.check_largest, lambda e, m: 2 * largest(e, m), "taken by infinity"),
    (checks.check_largest, lambda e, m: 2.0 ** (2 ** (e - 1) - 1), "power of two alone"),
    (checks.check_largest, lambda e, m: 2.0 ** (2 ** (e - 1)), "a little less than 2"),
    (checks.check_largest, lambda e, m: 3.0, "it is"),
    (checks.check_largest, lambda e, m: 0.0, "it is"),
    (checks.check_fp4, lambda x: None, "nothing yet"),
    (checks.check_fp4, lambda x: np.zeros(3), "of shape"),
    (checks.check_fp4, lambda x: x, "from 0 to 15"),
    (checks.check_fp4, nearest_first, "even code wins"),
    (checks.check_fp4, lambda x: encode_fp4(np.abs(x)), "worth 8"),
    (checks.check_fp4, lambda x: np.where(np.abs(x) > 7, 0, encode_fp4(x)), "becomes the largest"),
    (checks.check_fp4, lambda x: np.zeros(x.shape), "the numbers are"),
    (checks.check_kept, lambda sizes, nodes: None, "list of names"),
    (checks.check_kept, lambda sizes, nodes: "square", "list of names"),
    (checks.check_kept, lambda sizes, nodes: nodes, "list of names|has no node"),
    (checks.check_kept, lambda sizes, nodes: ["s"], "not of tensors"),
    (checks.check_kept, lambda sizes, nodes: [], "still overflows .computed"),
    (checks.check_kept, writers, "a cast to FP16"),
    (checks.check_kept, cautious, "3 are enough"),
    (checks.check_kept, lambda sizes, nodes: [n.name for n in nodes], "3 are enough"),
    (checks.check_choice, lambda w, b: None, "two numbers"),
    (checks.check_choice, lambda w, b: (7, 16), "are among"),
    (checks.check_choice, lambda w, b: (int(b), 16), "costs 5 bits"),
    (checks.check_choice, lambda w, b: (3, 128), "can be had"),
    (checks.check_choice, lambda w, b: (4, 128), "with outliers: yours has"),
]


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG, ids=[f"{c.__name__}-{hint}" for c, _, hint in WRONG])
def test_wrong_answers_get_a_hint(check: Any, answer: Any, hint: str) -> None:
    with pytest.raises(NotSolved, match=hint):
        check(answer)


def test_autocast_with_data_is_more_careful_than_exercise_3_needs() -> None:
    model, samples = checks.ladder()
    careful = trtkit.autocast(model, data=samples)
    assert overflowing(careful, samples) == [] and checks._kept(careful) > 3
    assert overflowing(trtkit.autocast(model), samples) == ["s"]


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.rule for example in EXAMPLES])
def test_each_rule_speaks_on_its_example(example: Example) -> None:
    assert example.decision().precision == "fp32" and example.decision().reason


def test_every_rule_has_an_example() -> None:
    assert {example.rule for example in EXAMPLES} == {rule.__name__ for rule in RULES} | {"island"}


def test_blocks_of_whole_numbers_are_off_by_half_a_step_at_most() -> None:
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    x[0, :16] = 0
    for block in (16, 32, 64):
        half_step = np.abs(x.reshape(-1, block)).max(axis=1) / 7 / 2
        error = np.abs(int_blocks(x, INT4, block) - x).reshape(-1, block).max(axis=1)
        assert (error <= half_step * 1.02).all()  # the scale is rounded to FP16, and the largest number with it
    assert decibels(x, int_blocks(x, INT4, 16)) > decibels(x, int_blocks(x, INT4, 64))
    with_one = with_one_scale(x, FP8_E4M3)
    assert np.abs(with_one).max() == pytest.approx(np.abs(x).max()) and decibels(x, with_one) > 28


def test_a_rounded_network_rounds_weights_inputs_and_results() -> None:
    torch = pytest.importorskip("torch")
    from trtkit.course.rounding import outputs, rounded

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    x = torch.randn(8, 4)
    for dtype, kind in ((torch.float16, FP16), (torch.float8_e4m3fn, FP8_E4M3)):
        coarse = rounded(net, dtype)
        assert np.array_equal(coarse[0].weight.detach(), kind.round(net[0].weight.detach().numpy()).astype(np.float32))
        assert np.array_equal(coarse[0].bias.detach(), net[0].bias.detach())
        want = torch.nn.functional.linear(torch.from_numpy(kind.round(x.numpy()).astype(np.float32)), coarse[0].weight,
                                          net[0].bias)  # fmt: skip
        (have,) = outputs(coarse, x, torch.nn.Linear)
        assert np.array_equal(have, kind.round(want.detach().numpy()).astype(np.float32))
    huge = torch.full((1, 4), 1e9)
    assert torch.isfinite(rounded(net, torch.float8_e4m3fn)(huge)).all()


def test_texture_overflows_fp16_and_only_that() -> None:
    torch = pytest.importorskip("torch")
    from trtkit.course import nets, photos

    small = torch.from_numpy(photos.preprocess(photos.photos()["retina"]))
    x = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    net = nets.texture()
    with torch.inference_mode():
        want = net(x)
        assert torch.isfinite(net.bfloat16()(x.bfloat16())).all()
    assert float(want.norm()) == pytest.approx(1, abs=1e-4)
    model = trtkit.optimize(trtkit.load(nets.texture(), x, name="texture"))
    sample = [{model.inputs[0].name: x.numpy()}]
    assert overflowing(trtkit.autocast(model), sample) == ["matmul"]
    assert overflowing(trtkit.autocast(model, data=sample), sample) == []


def test_pictures_draw() -> None:
    x = np.linspace(0.1, 4, 20)
    table = np.arange(8.0).reshape(2, 4)
    drawn = [
        pictures.similarity({"a": np.eye(2), "b": np.full((2, 2), np.nan)}, ["p", "q"]),
        pictures.bit_fields({"FP4": ("0101", 2), "TF32": ("01" + "-" * 6, 3)}),
        pictures.number_lines({"toy": np.array([-1.0, 0, 0.25, 1])}, 0.5),
        pictures.ranges({"FP16": (2.0**-24, 2.0**-14, 65504.0, 10)}),
        pictures.sawtooth(x, {"FP16": x / 1000}),
        pictures.by_layer({"FP16": [60.0, 50.0]}),
        pictures.codes_on(x, {"INT4": np.arange(-7.0, 8)}),
        pictures.contest({"normal": {"INT8": 40.0, "E4M3": 31.0}}, [["INT8", "E4M3"]]),
        pictures.budget({"w": {"INT4": [(16, 5.0, 20.0), (32, 4.5, 18.0)]}}),
        pictures.largest({"a": 1.0, "b": 4e4, "c": 1e5}, 65504, ["c"], 0.5),
        pictures.kernel_types({"FP16": [("gemm", "Half", "Float")] * 14}),
        pictures.gains({"ResNet-50": {"batch 1": 1.2}}, "recalled"),
        pictures.rounded_values(x, x, x + 1),
        pictures.choices({"w": (table, (3, 4), (16, 32, 64, 128), table > 2, (1, 3), (0, 3))}),
    ]
    assert all(isinstance(fig, Figure) for fig in drawn)
    assert [text.get_text() for text in drawn[9].axes[0].texts][2] == "100,000   kept in FP32"
