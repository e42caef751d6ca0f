"""A BF16 graph computed in float32: same weights, same answer up to BF16's rounding, for verification on the CPU."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from trtkit.course import nets, photos
from trtkit.engine.build import build
from trtkit.errors import VerificationError
from trtkit.importers import load
from trtkit.model import Model
from trtkit.passes import optimize
from trtkit.quant.autocast import autocast
from trtkit.quant.widen import in_float32

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def mobilenet() -> Model:
    return optimize(load(nets.mobilenet_v2(), torch.rand(1, 3, 224, 224)))


def test_weights_keep_their_bf16_values_and_nothing_is_bf16_any_more(mobilenet: Model) -> None:
    low = autocast(mobilenet, "bf16")
    before = low.to_bytes()
    wide = in_float32(low)
    assert low.to_bytes() == before  # a clone shares more than one would think
    assert low.precision == "bf16" and wide.precision == "fp32"
    values = [v for node in wide.ir.graph for v in node.outputs] + list(wide.ir.graph.initializers.values())
    assert not [v.name for v in values if v.dtype is not None and v.dtype.name == "BFLOAT16"]
    for name, value in low.ir.graph.initializers.items():
        if value.dtype is not None and value.dtype.name == "BFLOAT16":
            kept = wide.ir.graph.initializers[name].const_value.numpy()
            np.testing.assert_array_equal(kept, value.const_value.numpy().astype(np.float32))


def test_activations_are_rounded_if_asked_for() -> None:
    """Each operator on numbers of BF16, its sums in float32, its result rounded; of a file that names no types, too."""
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[4, 8] x) => (float[4, 8] y)
        { c = Cast <to = 16> (x)  a = Mul(c, c)  b = Exp(a)  d = Add(b, a)  y = Cast <to = 1> (d) }"""
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)

    def low(numbers: np.ndarray) -> np.ndarray:
        return numbers.astype(ml_dtypes.bfloat16).astype(np.float32)

    a = low(low(x) ** 2)
    model = load(onnx.parser.parse_model(text))
    have = in_float32(model, rounded=True).open_reference(exact=True).run({"x": x})["y"]
    np.testing.assert_array_equal(have, low(low(np.exp(a)) + a))
    assert not np.array_equal(have, in_float32(model).run({"x": x})["y"])


def test_a_bf16_engine_is_verified_without_bf16_kernels(mobilenet: Model) -> None:
    engine = build(autocast(mobilenet, "bf16"), data=[photos.views(2, seed=1)])
    assert engine.verification is not None and engine.verification.checks[0].passed
    assert 1e-4 < engine.verification.checks[0].error < 8e-2  # rounded weights show
    with pytest.raises(VerificationError):
        build(autocast(mobilenet, "bf16"), data=[photos.views(2, seed=1)], tolerance=1e-5)
