"""overflowing: what counts as an overflow, and what only looks like one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.graphs import parse, reference
from trtkit.model import Model
from trtkit.quant import overflow
from trtkit.quant.autocast import autocast
from trtkit.quant.overflow import overflowing

HALVES = ("float16[n, 4] x", "float16[n, 4] y")


def half(*rows: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"x": np.array([row], np.float16)} for row in rows]


def ladder() -> Model:
    """Up by 300 twice and down again: 1.5, 450, 135000, 450, 1.5."""
    factors = {"up": 300, "down": 1 / 300}
    weights = [f"float[4, 4] {name} = {{{', '.join(map(str, (np.eye(4) * by).ravel()))}}}"
               for name, by in factors.items()]
    nodes = "a = MatMul(x, up) b = MatMul(a, up) c = MatMul(b, down) y = MatMul(c, down)"
    return parse(f"{', '.join(weights)} | {nodes}")


@pytest.mark.parametrize("at_once", [1, 64])
def test_an_overflow_that_onnx_runtime_hides(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "_AT_ONCE", at_once)
    model = autocast(ladder())
    small, large = ({"x": np.full((1, 4), size, np.float32)} for size in (0.5, 1.5))
    with np.errstate(all="ignore"):
        assert np.isnan(reference(model, large)[0]).all()
    np.testing.assert_allclose(model.run(large)["y"], 1.5, rtol=1e-2)
    assert overflowing(model, [small, large]) == ["b"]
    assert overflowing(model, [small]) == []
    assert overflowing(ladder(), [large]) == []


def test_casts_and_the_result_overflow_as_well() -> None:
    model = autocast(parse("a = Exp(x) y = Neg(a)"), io="low")
    assert overflowing(model, half([12, 0, 0, 0])) == ["y"]  # the last cast
    assert overflowing(parse("y = Mul(x, x)", *HALVES), half([1, 2, 3, 4], [1, 300, 3, 4])) == ["y"]


def test_a_mask_is_no_overflow() -> None:
    """Where most negative numbers of float32 became those of float16, adding a score gives minus infinity."""
    model = parse("float[1] low = {-3.4e38}, float[1] zero = {0.0} | k = Greater(x, zero) m = Where(k, zero, low)"
                  "s = Add(x, m) y = Softmax(s)")
    sample = {"x": np.array([[-100, 1, 2, 3]], np.float32)}
    assert overflowing(autocast(model), [sample]) == []
    infinite = parse("float[1] low = {-3.4e38}, float16[1] zero = {0} | l = Cast <to = 10> (low) k = Greater(x, zero)"
                     "m = Where(k, zero, l) s = Add(x, m) y = Softmax(s)", *HALVES)
    assert overflowing(infinite, half([-100, 1, 2, 3])) == []


def test_nan_out_of_infinity_counts() -> None:
    model = parse("float[1] low = {-3.4e38} | l = Cast <to = 10> (low) m = Add(x, l) y = Softmax(m)", *HALVES)
    assert overflowing(model, half([1, 2, 3, 4])) == ["y"]


def test_what_was_not_finite_before_does_not_count() -> None:
    model = parse("float[1] zero = {0} | a = Div(x, zero) y = Relu(a)")
    sample = {"x": np.array([[1, 2, 3, 4]], np.float32)}
    low = autocast(model)
    assert overflowing(low, [sample]) == []
    assert overflowing(Model(low.ir), [sample]) == ["a"]
