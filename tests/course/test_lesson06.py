"""Lesson 06: what it measures is what it says, and checks let right answers pass and meet wrong ones with a hint."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from matplotlib.figure import Figure
from onnx import numpy_helper

import trtkit
from trtkit.course.blocks import CHANNELS, block, traffic
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson06 as checks
from trtkit.course.layer_noise import LayerNoise, channel_means, layer_noise, noise_behind, round_weights
from trtkit.course.pictures import lesson06 as pictures
from trtkit.course.products import KINDS, product
from trtkit.course.rounding import affine_codes, decibels
from trtkit.errors import ModelError
from trtkit.model import Model
from trtkit.quant.formats import INT8, UINT8, IntFormat
from trtkit.quant.integer import integer_conv
from trtkit.quant.qdq import quantize_weight


def affine(low: float, high: float) -> tuple[float, int]:
    low, high = min(low, 0), max(high, 0)
    scale = (high - low) / 255
    return scale, round(-low / scale)


def longest(x: int, w: int, bits: int) -> int:
    return (2 ** (bits - 1) - 1) // (x * w)


def requantize(sums: np.ndarray, m: int, shift: int) -> np.ndarray:
    return np.clip(sums.astype(np.int64) * m + (1 << (shift - 1)) >> shift, -128, 127)


def equalise(w1: np.ndarray, w2: np.ndarray) -> np.ndarray:
    first, second = np.abs(w1).max(axis=1), np.abs(w2).max(axis=0)
    return np.sqrt(np.maximum(first, 1e-6) / second)


def test_right_answers_pass(capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_affine(affine)
    checks.check_longest(longest)
    checks.check_requantize(requantize)
    checks.check_requantize(lambda s, m, k: np.array([int(np.clip(round(int(v) * m / 2**k), -128, 127)) for v in s]))
    checks.check_equalise(equalise)
    checks.check_equalise(lambda w1, w2: np.abs(w1).max(axis=1) + 1e-9)  # evens out the first, and does as well here
    assert capsys.readouterr().out.count("Right:") == 6


def raw(low: float, high: float) -> tuple[float, int]:
    return (high - low) / 255, round(-low / ((high - low) / 255))


WRONG: list[tuple[Any, Any, str]] = [
    (checks.check_affine, lambda low, high: None, "two numbers"),
    (checks.check_affine, lambda low, high: (affine(low, high)[0], -min(low, 0) / affine(low, high)[0]), "round it"),
    (checks.check_affine, raw, "widened first"),
    (checks.check_affine, lambda low, high: (affine(low, high)[0] * 255 / 256, affine(low, high)[1]), "255 steps"),
    (checks.check_affine, lambda low, high: (1.0, affine(low, high)[1]), "width of the range"),
    (checks.check_affine, lambda low, high: (affine(low, high)[0], 128), "-low / scale"),
    (checks.check_longest, lambda x, w, bits: None, "nothing yet"),
    (checks.check_longest, lambda x, w, bits: 2**bits // (x * w), "is the sign"),
    (checks.check_longest, lambda x, w, bits: (2 ** (bits - 1) - 1) / (x * w), "round down"),
    (checks.check_longest, lambda x, w, bits: (2 ** (bits - 1) - 1) // (x + w), "not added"),
    (checks.check_longest, lambda x, w, bits: 7, "divide the largest"),
    (checks.check_requantize, lambda s, m, k: None, "nothing yet"),
    (checks.check_requantize, lambda s, m, k: s * (m / 2**k), "whole numbers of shape"),
    (checks.check_requantize, lambda s, m, k: (s.astype(np.int64) * m >> k).clip(-128, 127), "a half before"),
    (checks.check_requantize, lambda s, m, k: (s * (m / 2**k)).clip(-128, 127).astype(int), "is wanted|a half before"),
    (checks.check_requantize, lambda s, m, k: (s * np.int32(m) >> 11).clip(-128, 127), "widen the sums"),
    (checks.check_requantize, lambda s, m, k: s.astype(np.int64) * m + (1 << (k - 1)) >> k, "becomes the largest"),
    (checks.check_equalise, lambda w1, w2: None, "nothing yet"),
    (checks.check_equalise, lambda w1, w2: np.ones(24), "one factor for each"),
    (checks.check_equalise, lambda w1, w2: np.abs(w1).max(axis=1), "channel 7 is 0"),
    (checks.check_equalise, lambda w1, w2: np.ones(48), "all the same"),
    (checks.check_equalise, lambda w1, w2: 1 / equalise(w1, w2), "other way round"),
    (checks.check_equalise, lambda w1, w2: np.where(w1.any(axis=1), equalise(w1, w2), 1), "switched off"),
    (checks.check_equalise, lambda w1, w2: np.sqrt(equalise(w1, w2)), "row i of the first"),
]


@pytest.mark.parametrize(("check", "answer", "hint"), WRONG, ids=[f"{c.__name__}-{hint}" for c, _, hint in WRONG])
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_wrong_answers_get_a_hint(check: Any, answer: Any, hint: str) -> None:
    with pytest.raises(NotSolved, match=hint):
        check(answer)


def network() -> tuple[Model, np.ndarray]:
    """An ordinary, a depthwise and a grouped convolution and a Gemm, with inputs."""
    rng = np.random.default_rng(0)
    text = """<ir_version: 10, opset_import: ["": 20]> four (float[n, 3, 9, 9] x) => (float[n, 5] y) {
        [one] a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)    [r1] r = Relu(a)
        [deep] d = Conv<group=8>(r, w2, b2)                         [r2] s = Relu(d)
        [grouped] g = Conv<group=2>(s, w3, b3)                      [flat] f = Flatten(g)
        [gemm] y = Gemm<transB=1>(f, w4, b4) }"""
    proto = onnx.parser.parse_model(text)
    shapes = {"1": (8, 3, 3, 3), "2": (8, 1, 3, 3), "3": (4, 4, 1, 1), "4": (5, 36)}
    arrays = {f"w{k}": rng.normal(size=shape) for k, shape in shapes.items()}
    arrays |= {f"b{k}": rng.normal(size=shape[0]) for k, shape in shapes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), k) for k, a in arrays.items())
    return trtkit.load(proto), rng.normal(size=(40, 3, 9, 9)).astype(np.float32)


def test_noise_of_a_layer_is_that_of_codes() -> None:
    model, x = network()
    found = layer_noise(model, x)
    assert [(each.node, each.products, each.depthwise) for each in found] == [
        ("one", 27, False), ("deep", 9, True), ("grouped", 4, False), ("gemm", 36, False)
    ]  # fmt: skip
    weight = numpy_helper.to_array(next(i for i in model.to_proto().graph.initializer if i.name == "w1"))
    codes, scale = quantize_weight(weight, 0)
    step = np.float32(np.abs(x).max() / 127)
    how = {"pads": [1, 1, 1, 1], "strides": [2, 2]}
    sums = integer_conv(INT8.encode(x, step), codes, **how)  # type: ignore[arg-type]
    assert found[0].largest_sum == np.abs(sums).max()
    bias = numpy_helper.to_array(next(i for i in model.to_proto().graph.initializer if i.name == "b1"))
    exact = trtkit.graph.Taps(model, ["a"]).run(x)["a"] - bias.reshape(1, -1, 1, 1)
    mine = sums * (scale * step).reshape(1, -1, 1, 1)
    assert found[0].both_db == pytest.approx(decibels(exact, mine), abs=0.01)
    for each in found:
        added = -10 * np.log10(10 ** (-each.input_db / 10) + 10 ** (-each.weight_db / 10))
        assert added == pytest.approx(each.both_db, abs=0.7)
    assert found[0].shift < 0.2 < found[1].shift  # the input is centred; behind a ReLU it is not


def test_biases_take_away_what_rounded_weights_shift() -> None:
    model, x = network()
    want = model.run(x)["y"]
    means = channel_means(model, x)
    assert {name: mean.shape for name, mean in means.items()} == {"x": (3,), "r": (8,), "s": (8,), "f": (36,)}
    db = {}
    for bits in (4, 6, 8):
        for name, given in (("plain", None), ("corrected", means)):
            rounded = round_weights(model, bits, means=given)
            db[bits, name] = decibels(want, rounded.run(x)["y"])
            assert rounded.precision == "fp32" and rounded.history[-1].name == f"round weights to {bits} bits"
    assert db[4, "plain"] + 8 < db[6, "plain"] < db[8, "plain"] - 8
    assert sum(db[bits, "corrected"] - db[bits, "plain"] for bits in (4, 6, 8)) > 1
    off = round_weights(model, 4, means=means)
    shifts = trtkit.graph.Taps(off, ["d"]).run(x)["d"] - trtkit.graph.Taps(model, ["d"]).run(x)["d"]
    plain = trtkit.graph.Taps(round_weights(model, 4), ["d"]).run(x)["d"] - trtkit.graph.Taps(model, ["d"]).run(x)["d"]
    assert np.abs(shifts.mean(axis=(0, 2, 3))).max() < 0.5 * np.abs(plain.mean(axis=(0, 2, 3))).max()
    assert noise_behind(model, model, x) == [float("inf")] * 4
    assert noise_behind(model, round_weights(model, 8), x)[-1] == pytest.approx(db[8, "plain"], abs=0.01)


@pytest.mark.parametrize(
    "node", ["Conv<group=2>(x, w, b)", "Conv(x, v, b)", "Gemm(f, u, b)", "Gemm<transB=1>(f, t, b)"]
)
def test_corrected_biases_leave_no_shift_on_average(node: str) -> None:
    """Exactly so, where every output is a sum over the same channels: without borders and windows."""
    rng = np.random.default_rng(1)
    shapes = {"w": (4, 3, 1, 1), "v": (4, 6, 1, 1), "u": (6, 4), "t": (4, 6), "b": (4,)}
    gemm = node.startswith("Gemm")
    ends = "(float[n, 6] f) => (float[n, 4] y)" if gemm else "(float[n, 6, 5, 5] x) => (float[n, 4, 5, 5] y)"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> one {ends} {{ y = {node} }}')
    proto.graph.initializer.extend(
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items() if f" {name}," in node or name == "b"
    )  # fmt: skip
    model = trtkit.load(proto)
    x = np.maximum(rng.normal(size=(50, 6) if gemm else (50, 6, 5, 5)), 0).astype(np.float32)
    want, places = model.run(x)["y"], (0,) if gemm else (0, 2, 3)
    plain, corrected = (
        np.abs((round_weights(model, 4, means=means).run(x)["y"] - want).mean(axis=places)).max()
        for means in (None, channel_means(model, x))
    )
    assert corrected < 1e-5 and plain > 0.01


def test_rounded_weights_have_few_values_for_each_channel() -> None:
    model, _ = network()
    for per_channel in (True, False):
        weights = {
            i.name: numpy_helper.to_array(i) for i in round_weights(model, 3, per_channel).to_proto().graph.initializer
        }
        w = next(weight for name, weight in weights.items() if name.startswith("w2"))
        rows = w.reshape(8, -1) if per_channel else w.reshape(1, -1)
        assert all(len(np.unique(row)) <= 7 for row in rows)
    with pytest.raises(ValueError, match="2 to 8"):
        round_weights(model, 9)


def test_what_has_no_weights_or_bias_is_named() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[n, 2] x) => (float[n, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}> { [lonely] y = Gemm(x, w) }"""
    with pytest.raises(ModelError, match="'lonely' in 'g' needs a constant weight and a bias"):
        round_weights(trtkit.load(onnx.parser.parse_model(text)), 8)


@pytest.mark.parametrize("kind", [UINT8, INT8, IntFormat("UINT4", 0, 15)], ids=lambda kind: kind.name)
@pytest.mark.parametrize("ends", [(-1.0, 3.0), (2.0, 5.0), (-4.0, -1.0), (0.0, 0.0)])
def test_affine_codes_meet_zero_and_cover_the_range(kind: IntFormat, ends: tuple[float, float]) -> None:
    x = np.linspace(*ends, 1001)
    codes, scale, zero = affine_codes(x, kind)
    assert kind.lowest <= zero <= kind.highest and kind.decode(kind.encode(np.zeros(1), scale, zero), scale, zero) == 0
    assert np.abs(kind.decode(codes, scale, zero) - x).max() <= scale * 1.001  # the zero point itself is rounded


def test_traffic_is_the_bytes_between_kernels() -> None:
    model = block("y = Relu(x)")
    numbers = CHANNELS * 28 * 28
    wide, half = (traffic(trtkit.build(graph, verify=False)) for graph in (model, trtkit.autocast(model)))
    assert wide == (8 * numbers * 4, 4)  # two convolutions, and a change of layout before and after them
    assert half == (2 * numbers * 4 + 6 * numbers * 2, 4)  # the ends stay FP32


def test_products_of_all_kinds_are_alike() -> None:
    results = [product(kind, 32)() for kind in KINDS]
    assert all(np.array_equal(results[0], each) for each in results) and results[0].max() > 32 * 32 * 32


def test_pictures_draw() -> None:
    x = np.linspace(-1, 1, 50)
    layers = [
        LayerNoise("a", 27, False, 40.0, 42.0, 38.0, 0.1, 5000),
        LayerNoise("b", 9, True, 30.0, 50.0, 30.0, 0.6, 90),
    ]
    table = np.arange(9).reshape(3, 3)
    drawn = [
        pictures.few_bits((8, 4), {"tensor": [20.0, 1.0]}, {"tensor": [18, 3]}, 18),
        pictures.errors(x, x / 100, 0.02, np.stack([x, x]) / 100),
        pictures.formula({"u": ([48.0, 42.0], [48.0, 42.0])}, (8, 7), {"4 bits": ([20.0, 10.0], [5.0, 10.0])}, (1, 4)),
        pictures.channel_ranges({"layer": {"before": np.arange(1, 5), "after": np.arange(2, 9)}}),
        pictures.maps({"a": table, "b": -table}),
        pictures.largest_sums(layers),
        pictures.layer_by_layer(layers, {"network": [40.0, 30.0]}),
        pictures.stacked({"first": 0.1, "rest": 0.3}, 0.42),
        pictures.against_engine(x, x, x + 0.1, ("mine", "theirs")),
        pictures.price(
            {"FP32": (56_000_000, 55), "INT8": (90_000_000, 107)},
            {"float": {16: 1.0, 64: 2.0}, "int8": {16: 1.0, 64: 1.0}},
        ),
        pictures.intervals({"a": (-1.0, 3.0)}, {"a": (-1.0, 1.0)}),
    ]
    assert all(isinstance(fig, Figure) for fig in drawn)
    added = drawn[6].axes[0].lines[2].get_ydata()
    assert np.allclose(added, [-10 * np.log10(1e-4 + 10**-4.2), -10 * np.log10(1e-3 + 1e-5)])
    assert sum(patch.get_width() for patch in drawn[7].axes[0].patches[:2]) == pytest.approx(0.4)
    assert drawn[9].axes[1].lines[1].get_ydata().tolist() == [1.0, 2.0]
