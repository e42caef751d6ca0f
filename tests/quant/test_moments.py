"""Moments of inputs, and FP8's weight scales that are chosen by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.quant.nets import net, peak_bytes
from trtkit.model import Model
from trtkit.quant.calibrate import Calibration, calibrate
from trtkit.quant.moments import MomentsObserver, along_weight, best_scales, expected_error
from trtkit.quant.qdq import FP8_CODES, QUANTIZABLE, channel_axis, moments_of, quantize, quantize_weight
from trtkit.quant.sensitivity import Sensitivities

SHAPE = (8, 4, 6, 6)


def weight_of(model: Model, name: str = "w") -> np.ndarray:
    found = model.ir.graph.initializers[name].const_value
    assert found is not None
    return found.numpy()


def with_weight(model: Model, weight: np.ndarray) -> Model:
    other = model.copy()
    other.ir.graph.initializers["w"].const_value = ir.Tensor(weight, name="w")
    return other


def batch(seed: int) -> np.ndarray:
    """As after a ReLU, each channel (axis 1 and the last) of another size."""
    sizes = np.geomspace(0.1, 4, SHAPE[1])[:, None, None] * np.geomspace(0.2, 2, SHAPE[3])
    return np.maximum(np.random.default_rng(seed).standard_normal(SHAPE) * sizes, 0).astype(np.float32)


DATA = [batch(seed) for seed in range(3)]
PRODUCTS = [
    ("y = Conv <pads = [1, 1, 1, 1]> (x, w)", (6, 4, 3, 3), "float[n, 6, 6, 6] y"),
    ("y = Conv <group = 2> (x, w)", (6, 2, 3, 3), "float[n, 6, 4, 4] y"),
    ("y = Conv <group = 4> (x, w)", (8, 1, 3, 3), "float[n, 8, 4, 4] y"),  # depthwise, two outputs for each input
    ("y = ConvTranspose(x, w)", (4, 5, 2, 2), "float[n, 5, 7, 7] y"),
    ("f = Flatten(x) y = Gemm(f, w)", (144, 7), "float[n, 7] y"),
    ("f = Flatten(x) y = Gemm <transB = 1> (f, w)", (7, 144), "float[n, 7] y"),
    ("y = MatMul(x, w)", (6, 9), "float[n, 4, 6, 9] y"),
    ("y = MatMul(x, w)", (4, 6, 9), "float[n, 4, 6, 9] y"),  # a weight for each entry of a batch dimension
]


@pytest.mark.parametrize("axis", [1, -1])
def test_moments_are_those_of_all_the_data(axis: int) -> None:
    observer = MomentsObserver(axis)
    for each in DATA:
        observer.observe(each)
    whole = np.moveaxis(np.concatenate(DATA).astype(np.float64), axis, 0).reshape(SHAPE[axis], -1)
    found = observer.moments()
    np.testing.assert_allclose(found.mean, whole.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.mean_square, (whole**2).mean(axis=1), rtol=1e-12)


def test_large_numbers_do_not_overflow() -> None:
    observer = MomentsObserver(-1)
    observer.observe(np.full((2, 1), 1e30, np.float32))
    np.testing.assert_allclose(observer.moments().mean_square, [1e60], rtol=1e-6)


def error_of(node: ir.Node, weight: np.ndarray, scale: np.ndarray, axis: int, calibration: Calibration) -> np.ndarray:
    step = scale.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
    errors = FP8_CODES.encode(weight / step).astype(np.float32) * step - weight
    (moments,) = calibration.moments.values()
    mean, square = (along_weight(node, weight, np.array(each)) for each in moments)
    return expected_error(errors, mean, square - mean**2, axis).ravel()


@pytest.mark.parametrize(("nodes", "shape", "outputs"), PRODUCTS)
def test_no_channel_is_expected_to_err_more_than_by_its_largest_weight(
    nodes: str, shape: tuple[int, ...], outputs: str
) -> None:
    model = net(nodes, {"w": shape}, outputs)
    node = list(model.ir.graph)[-1]
    fp8 = quantize(model, DATA, dtype="fp8", depthwise=True, ops=QUANTIZABLE)
    calibration = calibrate(model, DATA, [], "max", moments=moments_of(model, [node.name or ""]))
    weight = weight_of(model)
    chosen = weight_of(fp8, "w_scale")
    axis = channel_axis(node, weight.ndim)
    _, largest = quantize_weight(weight, axis, FP8_CODES)
    assert chosen.dtype == np.float32 and chosen.shape == (shape[axis],)
    assert (chosen >= largest).all() and (chosen < 2 * largest).all()
    ours, before = (error_of(node, weight, scale, axis, calibration) for scale in (chosen, largest))
    assert (ours <= before).all() and ours.sum() < 0.8 * before.sum()


@pytest.mark.parametrize(("nodes", "shape", "outputs"), PRODUCTS)
def test_channels_stand_beside_their_weights(nodes: str, shape: tuple[int, ...], outputs: str) -> None:
    """A weight that is larger by a factor for each input channel computes what an input larger by it does."""
    model = net(nodes, {"w": shape}, outputs)
    node, axis = list(model.ir.graph)[-1], 1 if "Conv" in nodes else -1
    x = DATA[0]
    if "Gemm" in nodes:
        x = x.reshape(len(x), -1)
    factors = np.linspace(1, 2, x.shape[axis]).astype(np.float32)
    weight = weight_of(model)
    larger = with_weight(model, weight * along_weight(node, weight, factors))
    wanted = x * factors.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])
    np.testing.assert_allclose(larger.run(DATA[0])["y"], model.run(wanted.reshape(SHAPE))["y"], rtol=1e-4, atol=1e-4)


def test_expected_error_is_what_independent_inputs_give() -> None:
    rng = np.random.default_rng(0)
    errors, mean, spread = rng.standard_normal((3, 5)), rng.standard_normal(5), rng.random(5)
    x = mean + spread * rng.standard_normal((400_000, 5))
    found = expected_error(errors, mean[None], spread[None] ** 2, axis=0).ravel()
    np.testing.assert_allclose(found, ((x @ errors.T) ** 2).mean(axis=0), rtol=0.02)
    np.testing.assert_allclose(
        expected_error(errors[:1], mean[None], spread[None] ** 2, axis=None), found[:1].reshape(1, 1), rtol=1e-12
    )


def test_fp8_comes_closer_to_float_than_with_scales_of_the_largest_weight() -> None:
    model = net("y = Conv <pads = [1, 1, 1, 1]> (x, w)", {"w": (32, 4, 3, 3)}, "float[n, 32, 6, 6] y")
    exact = model.run(batch(9))["y"]
    weight = weight_of(model)
    moments = calibrate(model, DATA, [], moments=[("x", 1)]).moments[("x", 1)]
    node = next(iter(model.ir.graph))
    mean, square = (along_weight(node, weight, np.array(each)) for each in moments)
    _, largest = quantize_weight(weight, 0, FP8_CODES)
    chosen = best_scales(weight, largest, 0, FP8_CODES.encode, [(mean, square - mean**2)])
    noise = []
    for scale in (largest, chosen):
        step = scale[:, None, None, None]
        rounded = with_weight(model, FP8_CODES.encode(weight / step).astype(np.float32) * step)
        noise.append(((rounded.run(batch(9))["y"] - exact) ** 2).sum())
    assert noise[1] < 0.7 * noise[0]


def test_channels_that_are_never_used_keep_the_scale_of_the_largest_weight() -> None:
    weight = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    _, largest = quantize_weight(weight, 0, FP8_CODES)
    zero = np.zeros((1, 4))
    np.testing.assert_array_equal(best_scales(weight, largest, 0, FP8_CODES.encode, [(zero, zero)]), largest)


def scales(model: Model) -> dict[str, list[float]]:
    found = model.ir.graph.initializers.items()
    return {name: value.const_value.numpy().tolist() for name, value in found if "scale" in name}  # type: ignore[union-attr]


def test_a_weight_of_two_products_serves_both() -> None:
    shared = net("f = Flatten(x) g = Neg(f) a = MatMul(f, w) b = MatMul(g, w) y = Add(a, b)", {"w": (144, 20)},
                 "float[n, 20] y")  # fmt: skip
    alone = net("f = Flatten(x) y = MatMul(f, w)", {"w": (144, 20)}, "float[n, 20] y")
    both = quantize(shared, DATA, dtype="fp8")
    assert both.op_counts["DequantizeLinear"] == 3  # two inputs and one weight
    # the mean of one input is the other's with another sign: both errors are alike, and the best scale is that of one
    assert scales(both)["w_scale"] == scales(quantize(alone, DATA, dtype="fp8"))["w_scale"]


def test_one_scale_for_the_whole_weight() -> None:
    model = net("y = MatMul(x, w)", {"w": (6, 9)}, "float[n, 4, 6, 9] y")
    whole = quantize(model, DATA, dtype="fp8", per_channel=False)
    largest = np.abs(weight_of(model)).max() / 448
    assert 1 <= scales(whole)["w_scale"] / largest < 2  # type: ignore[operator]


def test_it_is_the_same_every_time_and_through_a_file(tmp_path: Path) -> None:
    model = net("y = MatMul(x, w)", {"w": (6, 9)}, "float[n, 4, 6, 9] y")
    first = quantize(model, iter(DATA), dtype="fp8")
    calibration = calibrate(model, DATA, ["x"], "max", moments=moments_of(model, ["MatMul_0"]))
    calibration.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == calibration and list(calibration.moments) == [("x", -1)]
    again = quantize(model, None, dtype="fp8", calibration=Calibration.load(tmp_path / "c.json"))
    assert first.to_bytes() == quantize(model, DATA, dtype="fp8").to_bytes()
    assert scales(first) == scales(again)
    without = Calibration(calibration.ranges, "max", 3)
    assert scales(quantize(model, None, dtype="fp8", calibration=without)) != scales(first)


def test_sensitivities_quantise_as_quantize_does() -> None:
    model = net("y = MatMul(x, w)", {"w": (6, 9)}, "float[n, 4, 6, 9] y")
    found = Sensitivities(model, DATA, dtype="fp8").quantized(())
    assert scales(found) == scales(quantize(model, DATA, dtype="fp8"))


def test_int8_gathers_none() -> None:
    model = net("y = MatMul(x, w)", {"w": (6, 9)}, "float[n, 4, 6, 9] y")
    weight = weight_of(model)
    assert scales(quantize(model, DATA))["w_scale"] == quantize_weight(weight, 1)[1].tolist()
    assert not Sensitivities(model, DATA).calibration.moments


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    def work(model: Model, batches: Iterator[np.ndarray]) -> None:
        calibrate(model, batches, ["x"], "max", moments=[("x", -1), ("a", 1)])

    peak_bytes(work, 2)
    assert peak_bytes(work, 40) < 1.1 * peak_bytes(work, 4)
