"""Calibrators against slow, literal versions of their definitions; streaming; errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.graphs import parse
from tests.quant.nets import peak_bytes
from trtkit.errors import DataError, ModelError
from trtkit.graph.taps import Taps
from trtkit.model import Model
from trtkit.quant.calibrate import (
    DEFAULT_METHOD,
    METHODS,
    Calibration,
    EntropyCalibrator,
    Histogram,
    MaxCalibrator,
    MseCalibrator,
    PercentileCalibrator,
    calibrate,
)
from trtkit.quant.qdq import quantize

MODEL = parse("a = Relu(x)  b = Neg(a)  y = Abs(b)")


def batches(count: int = 4, seed: int = 0) -> list[np.ndarray]:
    return [np.random.default_rng(seed + i).standard_normal((8, 4)).astype(np.float32) for i in range(count)]


def literal_divergence(counts: np.ndarray, i: int, levels: int) -> float:
    """KL of the first i bins, written out as in Migacz 2017, bin by bin."""
    counts = counts.astype(np.float64)
    counts[0] = counts[1]
    p, q = counts[:i].copy(), np.zeros(i)
    p[-1] += counts[i:].sum()
    kept = counts[:i].copy()
    if kept[-1] == 0 and p[-1] > 0:
        kept[-1] = 1e-4  # smoothed
    width = i // levels
    for level in range(levels):
        span = slice(level * width, i if level == levels - 1 else (level + 1) * width)
        filled = p[span] > 0
        if filled.any():
            q[span][filled] = kept[span].sum() / filled.sum()
    p, q = p / p.sum(), q / kept.sum()
    used = p > 0
    with np.errstate(divide="ignore"):
        return float((p[used] * np.log(p[used] / q[used])).sum())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from(["normal", "exponential", "outlier", "relu"]))
def test_entropy_is_the_published_divergence(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    x = {"normal": rng.standard_normal(3000), "exponential": rng.exponential(size=3000),
         "outlier": np.append(rng.standard_normal(3000), 40.0), "relu": np.maximum(rng.standard_normal(3000), 0)}[kind]
    calibrator = EntropyCalibrator(512)
    calibrator.observe(x)
    divergence = calibrator.divergence()
    for i in rng.integers(128, 128 + len(divergence), 8):
        want = literal_divergence(calibrator.counts.copy(), int(i), 128)
        np.testing.assert_allclose(divergence[i - 128], want, rtol=1e-6, atol=1e-9)
    assert 0 < calibrator.amax() <= calibrator.top * (1 + 1e-9)


def test_entropy_clips_an_outlier_and_max_does_not() -> None:
    x = np.append(np.random.default_rng(0).standard_normal(100_000), 100.0)
    entropy, largest = EntropyCalibrator(), MaxCalibrator()
    entropy.observe(x)
    largest.observe(x)
    assert entropy.amax() < 20 and largest.amax() == 100.0


@pytest.mark.parametrize("shades", [2, 16, 100])
def test_entropy_keeps_all_of_a_few_values(shades: int) -> None:
    """With one value alone in the range nothing is merged either, and the divergence is 0: no reason to clip."""
    grey = np.random.default_rng(0).integers(0, shades, 100_000) / (shades - 1)
    calibrator = EntropyCalibrator()
    calibrator.observe(grey.astype(np.float32))
    assert calibrator.amax() == 1.0


def test_entropy_takes_the_narrowest_of_ranges_that_clip_the_same() -> None:
    """Between 1 and the outlier there is nothing: 128 bins, the fewest, hold all the rest."""
    calibrator = EntropyCalibrator()
    calibrator.observe(np.append(np.linspace(0, 1, 99_999) ** 2, 50.0))
    divergence = calibrator.divergence()
    assert divergence[0] == divergence[50] and calibrator.amax() == pytest.approx(50 * 128 / 2048)


@pytest.mark.parametrize("levels, best", [(7, 5.03), (127, 9.89)])
def test_mse_finds_the_minimum_known_for_laplace(levels: int, best: float) -> None:
    """Banner et al. 2019, section 3.1: clip Laplace numbers of scale 1 at 5.03 for 4 bits and at 9.89 for 8."""
    probability = (np.arange(1_000_000) + 0.5) / 1_000_000
    calibrator = MseCalibrator(levels)
    calibrator.observe(-np.log(probability) * np.where(np.arange(1_000_000) % 2, 1, -1))
    assert calibrator.amax() == pytest.approx(best, rel=0.08)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from(["normal", "exponential", "outlier"]))
def test_mse_is_no_worse_than_the_others_on_what_it_saw(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    x = rng.exponential(size=20_000) if kind == "exponential" else rng.standard_normal(20_000)
    x = np.append(x, 40.0) if kind == "outlier" else x
    errors = {}
    for method, make in METHODS.items():
        calibrator = make()
        calibrator.observe(x)
        scale = calibrator.amax() / 127
        errors[method] = float(((x - np.clip(np.rint(x / scale), -127, 127) * scale) ** 2).sum())
    assert errors["mse"] <= 1.02 * min(errors.values()), errors


def test_percentile_is_numpys() -> None:
    x = np.random.default_rng(0).standard_normal(200_000)
    calibrator = PercentileCalibrator(99.9)
    for part in np.array_split(x, 7):
        calibrator.observe(part)
    assert abs(calibrator.amax() - np.percentile(np.abs(x), 99.9)) < 2 * calibrator.bin_width
    with pytest.raises(ValueError, match="percent must lie"):
        PercentileCalibrator(0)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40))
def test_histogram_counts_everything_and_grows(values: list[float]) -> None:
    histogram = Histogram(64)
    for value in values:
        histogram.observe(np.array([value, -value], np.float32))
    assert histogram.counts.sum() == 2 * len(values)
    if max(values) < 1e-30:  # zeros, for all that INT8 can tell
        assert histogram.top == 0
        return
    assert histogram.top >= max(values)
    assert histogram.top < 2 * max(values) or histogram.top == values[0]


def test_order_of_batches_does_not_change_max_and_hardly_the_others() -> None:
    data = batches(6)
    for method in METHODS:
        forward, backward = (calibrate(MODEL, d, ["a", "b"], method) for d in (data, data[::-1]))
        assert forward["a"] == pytest.approx(backward["a"], rel=0 if method == "max" else 0.2)


@pytest.mark.parametrize("method", METHODS)
def test_same_data_same_result(method: str) -> None:
    assert calibrate(MODEL, batches(), ["a"], method) == calibrate(MODEL, batches(), ["a"], method)


def test_progress_and_a_generator() -> None:
    seen: list[tuple[int, int | None]] = []
    calibrate(MODEL, batches(3), ["a"], "max", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    seen.clear()
    calibrate(MODEL, iter(batches(2)), ["x", "y"], "max", lambda done, total: seen.append((done, total)))
    assert seen == [(1, None), (2, None)]


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    def work(model: Model, batches: Iterator[np.ndarray]) -> None:
        calibrate(model, batches, ["x", "a"], "entropy")

    peak_bytes(work, 2)
    assert peak_bytes(work, 40) < 1.2 * peak_bytes(work, 4)


def test_errors_name_the_tensor_and_the_batch() -> None:
    bad = batches(3)
    bad[1][0, 0] = np.inf
    with pytest.raises(DataError, match="'a' holds infinity in batch 1"):
        calibrate(MODEL, bad, ["a"])
    bad[1][0, 0] = np.nan
    with pytest.raises(DataError, match="'x' holds NaN in batch 1"):
        calibrate(MODEL, bad, ["x"])
    with pytest.raises(DataError, match="no calibration data"):
        calibrate(MODEL, [], ["a"])
    with pytest.raises(DataError, match=r"Batch 0 does not fit the model: .*got float32 \(2, 3\)"):
        calibrate(MODEL, [np.zeros((2, 3), np.float32)], ["a"])
    with pytest.raises(DataError, match="put it into a list"):
        calibrate(MODEL, np.zeros((2, 4), np.float32), ["a"])
    with pytest.raises(DataError, match="'minmax'; choose one of max, percentile, mse, entropy"):
        calibrate(MODEL, batches(), ["a"], "minmax")
    with pytest.raises(ModelError, match="no tensor 'q'"):
        Taps(MODEL, ["q"])


def test_save_and_load(tmp_path: Path) -> None:
    calibration = calibrate(MODEL, batches(), ["a", "b"], "percentile")
    calibration.save(tmp_path / "ranges.json")
    assert Calibration.load(tmp_path / "ranges.json") == calibration
    assert '"method": "percentile"' in (tmp_path / "ranges.json").read_text()
    (tmp_path / "broken.json").write_text("[1]")
    for name in ("broken.json", "missing.json"):
        with pytest.raises(DataError, match="is no calibration"):
            Calibration.load(tmp_path / name)


def test_a_tensor_of_zeros_gets_a_step_that_works() -> None:
    calibration = calibrate(MODEL, [np.zeros((2, 4), np.float32)], ["a"], "entropy")
    assert calibration["a"] == 0 and calibration.scale("a") == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_tiny_values_are_zeros(method: str) -> None:
    tiny, ordinary = (np.array([[0, 0, 0, top]] * 2, np.float32) for top in (1e-42, 1.0))
    assert calibrate(MODEL, [tiny], ["a"], method).scale("a") == 1.0
    assert calibrate(MODEL, [tiny, ordinary], ["a"], method)["a"] > 0.05


def test_one_default_method() -> None:
    assert calibrate(MODEL, batches(), ["a"]).method == DEFAULT_METHOD
    weighted = parse("float[4, 4] w = {" + ", ".join("1" * 16) + "} | y = MatMul(x, w)")
    for dtype, method in (("int8", DEFAULT_METHOD), ("fp8", "max")):
        assert f"by {method} from 4 batches" in quantize(weighted, batches(), dtype=dtype).history[-1].detail
