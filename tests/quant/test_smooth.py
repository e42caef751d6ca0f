"""SmoothQuant: the same function, other numbers inside; and what it is for, INT8 with outliers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tests.quant.test_weight_only import K, model, product, salient, weights
from trtkit.errors import DataError, ModelError
from trtkit.model import Model
from trtkit.quant.qdq import quantize
from trtkit.quant.smooth import channel_amax, smooth, smooth_scales


def three() -> Model:
    arrays = dict(zip("qkv", weights(3), strict=True))
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}_out"], name=name) for name in arrays]
    return model(arrays, nodes, [f"{name}_out" for name in arrays])


def error(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(((got[name] - want[name]) ** 2).sum() for name in want)))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_it_computes_the_same(strength: float) -> None:
    before, x = three(), salient(50, seed=5)
    after = smooth(before, [salient(64)], strength)
    assert after.op_counts == {"MatMul": 3, "Mul": 1}
    want = before.run(x)
    for name, got in after.run(x).items():
        np.testing.assert_allclose(got, want[name], rtol=1e-4, atol=1e-4 * np.abs(want[name]).max())


def test_a_transposed_gemm_computes_the_same() -> None:
    (weight,) = weights(1)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="product", transB=1)
    before = model({"w": np.ascontiguousarray(weight.T)}, [node], ["y"])
    x = salient(20)
    want = before.run(x)["y"]
    np.testing.assert_allclose(smooth(before, [x]).run(x)["y"], want, atol=1e-4 * np.abs(want).max())


def test_int8_keeps_what_outliers_took() -> None:
    before, data, x = three(), [salient(64, seed) for seed in range(4)], salient(200, seed=9)
    want = before.run(x)
    plain = error(quantize(before, data, "max").run(x), want)
    even = error(quantize(smooth(before, data), data, "max").run(x), want)
    assert even < plain / 3, (plain, even)


def test_scales_are_those_of_the_paper() -> None:
    """Xiao et al. 2022, figure 5: with strength 0.5 activations and weights of a channel become equally large."""
    before, data = product(weights(1)[0]), [salient(64)]
    amax = channel_amax(before, data, ["x"])["x"]
    np.testing.assert_array_equal(amax, np.abs(data[0]).max(axis=0))
    (weight,) = weights(1)
    scales = smooth_scales(amax, [weight], 0.5)
    np.testing.assert_allclose(amax / scales, np.abs(weight).max(axis=1) * scales, rtol=1e-5)


def test_channels_of_zeros_stay() -> None:
    (weight,) = weights(1)
    weight[3] = 0
    x = salient(20)
    x[:, 5] = 0
    before = product(weight)
    scales = smooth_scales(channel_amax(before, [x], ["x"])["x"], [weight], 0.5)
    assert scales[3] == scales[5] == 1 and np.isfinite(scales).all()
    assert np.isfinite(smooth(before, [x]).run(x)["y"]).all()


def test_what_is_skipped_reads_what_it_read() -> None:
    after = smooth(three(), [salient(8)], skip=["k"])
    assert [node.inputs[0].name for node in after.ir.graph if node.name == "k"] == ["x"]


def test_what_cannot_be_done_is_said() -> None:
    before = product(weights(1)[0])
    with pytest.raises(ValueError, match="strength has to lie in"):
        smooth(before, [salient(2)], 1.5)
    with pytest.raises(ModelError, match="no node"):
        smooth(before, [salient(2)], skip=["nobody"])
    with pytest.raises(ModelError, match="Nothing to smooth"):
        smooth(before, [salient(2)], ops=["Gemm"])
    with pytest.raises(DataError, match="no calibration data"):
        smooth(before, [])
    with pytest.raises(DataError, match="holds infinity"):
        smooth(before, [np.full((2, K), np.inf, np.float32)])
