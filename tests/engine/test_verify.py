"""Verified or refused: nothing that computes something else is handed out unasked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tests.passes.graphs import parse
from trtkit.course import photos
from trtkit.engine import verify
from trtkit.engine.build import build
from trtkit.engine.engine import Engine
from trtkit.engine.session import Session
from trtkit.engine.verify import Check, compare_outputs, relative_error, samples_for, sqnr_db, verify_engine
from trtkit.errors import DataError, ModelError, VerificationError
from trtkit.model import Model
from trtkit.quant.autocast import autocast


def became(model: Model, body: str, outputs: str = "float[n, 4] y", precision: str | None = None) -> Model:
    """`model` after a pass that put another graph in its place."""
    return model.rewritten(parse(body, outputs=outputs).ir, "pass", "", 0.0, precision=precision)


def refused(model: Model, **options: Any) -> str:
    with pytest.raises(VerificationError) as caught:
        build(model, **options)
    return str(caught.value)


# What is refused


def test_a_graph_that_computes_something_else(relu: Model) -> None:
    wrong = became(relu, "y = Neg(x)")
    message = refused(wrong)
    assert "The engine of 'g' (fp32) is refused" in message
    assert "y: fp32 graph against the model as loaded: relative error" in message
    assert "tolerance 1e-03" in message and "verify=False" in message
    engine = build(wrong, verify=False)  # asked for, so handed out, and it says that nobody looked
    assert engine.verification is None
    with pytest.raises(VerificationError):
        verify_engine(engine)


def test_an_error_that_only_shows_on_some_inputs(relu: Model) -> None:
    """Random inputs lie near 0, so only real data finds that this graph clips at 6."""
    clips = became(relu, "float lo = {0}, float hi = {6} | y = Clip(x, lo, hi)")
    assert build(clips).verification.passed  # type: ignore[union-attr]
    assert "1 sample" in refused(clips, data=[np.array([[100, 1, 2, 3]], np.float32)])


def test_nan_never_passes(relu: Model) -> None:
    assert "nan" in refused(became(relu, "a = Sqrt(x) y = Relu(a)"))
    assert "nan" in refused(became(relu, "a = Sqrt(x) y = Relu(a)"), tolerance=1e9)
    for error in (math.nan, math.inf):
        assert not Check("y", "", error, math.nan, 1.0, 1).passed
    assert "inf" in refused(became(relu, "float[1] z = {0} | a = Div(x, z) y = Abs(a)"), tolerance=1e9)


@pytest.mark.parametrize("dtype", ["float", "bfloat16"])
def test_a_fresh_model_that_gives_nan_is_refused_too(dtype: str) -> None:
    """Nothing was rewritten, so without a GPU there is nothing to compare; but NaN on every input is no result."""
    cast = f"a = Sqrt(x) y = Cast <to = {1 if dtype == 'float' else 16}> (a)"
    model = parse(cast, outputs=f"{dtype}[n, 4] y")
    assert "NaN" in refused(model) or "nan" in refused(model)
    assert build(model, data=[np.ones((2, 4), np.float32)]).verification.passed  # type: ignore[union-attr]


def test_infinities_are_right_where_they_are_expected(relu: Model) -> None:
    same = parse("y = Log(x)").rewritten(parse("y = Log(x)").ir, "pass", "", 0.0)
    assert build(same, data=[np.array([[0, 1, 2, 3]], np.float32)]).verification.passed  # type: ignore[union-attr]
    expected = np.array([-np.inf, 1.0])
    assert relative_error(expected, expected) == 0
    for wrong in (np.array([np.inf, 1.0]), np.array([1.0, 1.0]), np.array([np.nan, 1.0])):
        assert not relative_error(wrong, expected) < 1e9


def test_a_tolerance_of_ones_own(relu: Model) -> None:
    nearly = became(relu, "float[1] s = {1.01} | a = Relu(x) y = Mul(a, s)")
    assert "relative error 1.00e-02" in refused(nearly)
    verification = build(nearly, tolerance=0.02).verification
    assert verification is not None and verification.passed
    assert verification.checks[0].error == pytest.approx(0.01, rel=1e-3)
    assert verification.checks[0].tolerance == 0.02
    assert verification.checks[0].sqnr_db == pytest.approx(40, abs=0.01)


def test_a_tolerance_of_zero_means_zero(relu: Model) -> None:
    hair = became(relu, "float[1] s = {1.000001} | a = Relu(x) y = Mul(a, s)")
    assert build(hair).verification.passed  # type: ignore[union-attr]
    refused(hair, tolerance=0.0)
    assert build(became(relu, "y = Relu(x)"), tolerance=0.0).verification.passed  # type: ignore[union-attr]


def test_integers_are_compared_one_by_one() -> None:
    model = parse("a = Relu(x) y = ArgMax <axis = 1> (a)", outputs="int64[n, 1] y")
    right = became(model, "a = Relu(x) y = ArgMax <axis = 1> (a)", "int64[n, 1] y")
    wrong = became(model, "y = ArgMin <axis = 1> (x)", "int64[n, 1] y")
    assert build(right).verification.checks[0].error == 0  # type: ignore[union-attr]
    assert "y: fp32 graph" in refused(wrong)
    numbers = np.arange(8)
    (check,) = compare_outputs([{"y": numbers}], [{"y": np.where(numbers < 6, numbers, 0)}], "", 0.2)
    assert check.error == 0.25 and not check.passed


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("int64[3] k = {-1, 2, 2} | a = Relu(x) y = Reshape(a, k)", "float[n, 2, 2] y"),  # the same numbers
        ("a = Relu(x) y = Concat <axis = 0> (a, a)", "float[m, 4] y"),
        ("z = Relu(x)", "float[n, 4] z"),
    ],
    ids=["shape", "size", "name"],
)
def test_outputs_of_another_shape_or_name_are_refused(relu: Model, body: str, outputs: str) -> None:
    assert "'g'" in refused(became(relu, body, outputs))


def test_each_output_is_checked_for_itself() -> None:
    both = "float[n, 4] y, float[n, 4] z"
    model = parse("y = Relu(x) z = Neg(x)", outputs=both)
    message = refused(became(model, "y = Relu(x) z = Abs(x)", both))
    assert "  z: " in message and "  y: " not in message


# What it is verified on


def test_empty_data_is_an_error_and_wrong_data_too(relu: Model) -> None:
    with pytest.raises(DataError, match="Leave it out to verify on random inputs"):
        build(relu, data=[])
    with pytest.raises(ModelError, match=r"got float32 \(2, 5\)"):
        build(relu, data=[np.zeros((2, 5), np.float32)])
    with pytest.raises(ModelError, match="has no input 'X'"):
        build(relu, data=[{"X": np.zeros((2, 4), np.float32)}])


def test_random_samples_of_each_profile() -> None:
    model = parse("y = Relu(x)", "float[n, m] x", "float[n, m] y")
    profiles = [{"x": [[1, 8], [4, 16], [8, 32]]}, {"x": [[3, 5]] * 3}]
    samples = samples_for(model, profiles, None)
    assert [sample["x"].shape for sample in samples] == [(1, 8), (2, 16), (3, 5), (3, 5)]
    again = samples_for(model, profiles, None)
    for one, other in zip(samples, again, strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
    assert not np.array_equal(samples[2]["x"], samples[3]["x"])  # inputs vary


def test_without_a_gpu_it_says_what_was_not_run(relu: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtkit.engine.engine.gpu", lambda: None)
    verification = build(relu).verification
    assert verification is not None and "The engine itself was not run: there is no GPU here" in str(verification)
    assert not verification.engine_ran


def test_an_engine_without_its_model_cannot_be_verified(relu_engine: Engine) -> None:
    alone = Engine(relu_engine.plan, relu_engine.manifest, relu_engine.layers, None)
    with pytest.raises(VerificationError, match="open_engine"):
        verify_engine(alone)


class Pretended(Session):
    """An engine on a GPU: what it gives out is up to the test, run by run."""

    device = "NVIDIA Pretence"

    def __init__(self, model: Model, change: Callable[[int, np.ndarray], np.ndarray]) -> None:
        self.model, self.change, self.runs = model, change, 0

    def run(self, inputs: Any) -> dict[str, Any]:
        self.runs += 1
        return {name: self.change(self.runs, array) for name, array in self.model.run(inputs).items()}


@pytest.fixture
def on_gpu(relu_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Verify the engine as on a GPU where it gives `change(run, right outputs)`."""

    def verified(change: Callable[[int, np.ndarray], np.ndarray], **options: Any) -> Any:
        session = Pretended(relu_engine.model, change)  # type: ignore[arg-type]
        monkeypatch.setattr(Engine, "why_not_here", "")
        monkeypatch.setattr(Engine, "open", lambda self, device: session)
        return verify_engine(relu_engine, **options)

    return verified


def test_on_a_gpu_the_engine_is_held_against_its_graph(on_gpu: Callable[..., Any]) -> None:
    verification = on_gpu(lambda run, right: right * (1 + 1e-4))
    (check,) = verification.checks
    assert check.what.startswith("engine on NVIDIA Pretence against its graph") and check.passed
    assert check.error == pytest.approx(1e-4, rel=0.01)
    assert check.tolerance == verify.ENGINE_TOLERANCE["fp32"]
    assert "not run" not in verification.note


@pytest.mark.parametrize("bad_run", [1, 2, 10])
def test_an_engine_that_is_wrong_once_is_refused(on_gpu: Callable[..., Any], bad_run: int) -> None:
    for wrong in (lambda right: -right, lambda right: right * np.nan, lambda right: right * 0):
        with pytest.raises(VerificationError, match="NVIDIA Pretence"):
            on_gpu(lambda run, right, wrong=wrong: wrong(right) if run == bad_run else right)


# The numbers


def test_relative_error_and_sqnr_by_hand() -> None:
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 5.0])) == pytest.approx(1 / math.sqrt(34))
    assert sqnr_db(np.array([11.0]), np.array([10.0])) == pytest.approx(20)
    assert relative_error(np.array([1.0]), np.array([1.0])) == 0 and sqnr_db(np.ones(3), np.ones(3)) == math.inf
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.ones(3), np.zeros(3)) == math.inf
    assert math.isnan(relative_error(np.array([np.nan, 1]), np.ones(2)))
    huge = np.full(4, 60000, np.float16)  # whose squares no float16 holds
    assert relative_error(huge, huge - np.float16(32)) == pytest.approx(32 / 59968)


@settings(deadline=None)
@given(arrays(np.float32, array_shapes(max_dims=2), elements=st.floats(-1e3, 1e3, width=32)), st.floats(-2, 2))
def test_scaling_by_a_factor_is_that_error(expected: np.ndarray, by: float) -> None:
    got = expected.astype(np.float64) * (1 + by)
    if np.linalg.norm(expected.astype(np.float64)) > 1e-20:
        assert relative_error(got, expected) == pytest.approx(abs(by), abs=1e-9)


# Real networks


def test_mobilenet_v2_in_fp16_on_photographs(mobilenet: Model) -> None:
    engine = build(autocast(mobilenet, "fp16"), {"x": (1, 3, 224, 224)}, data=list(photos.views(4, seed=1)[:, None]))
    assert engine.verification is not None
    (check, *_) = engine.verification.checks
    assert 1e-5 < check.error < 2e-2 and 34 < check.sqnr_db < 100
    assert check.what == "fp16 graph against the model as loaded"


def test_a_network_spoilt_in_one_layer_is_refused(mobilenet: Model) -> None:
    import onnx_ir as ir

    spoilt = mobilenet.copy()
    weights = spoilt.ir.graph.initializers
    name = next(name for name, value in weights.items() if value.const_value.shape.numpy() == (32, 1, 3, 3))
    array = weights[name].const_value.numpy().copy()
    array[3] = -array[3]  # one of 32 channels of one depthwise convolution
    weights[name].const_value = ir.Tensor(array, name=name)
    wrong = mobilenet.rewritten(spoilt.ir, "pass", "", 0.0)
    refused(wrong, shapes={"x": (1, 3, 224, 224)}, data=list(photos.views(2, seed=1)[:, None]))


def test_an_overflow_that_the_cpu_hides_is_found() -> None:
    """ONNX Runtime computes FP16 in FP32 on the CPU: 1.5 * 300 * 300 / 300 / 300 is right there, and inf on a GPU."""
    up, down = ", ".join(["300"] * 4), ", ".join([str(1 / 300)] * 4)
    body = f"float[4] u = {{{up}}}, float[4] d = {{{down}}} | a = Mul(x, u) b = Mul(a, u) c = Mul(b, d) y = Mul(c, d)"
    half = autocast(parse(body), "fp16")
    x = np.full((1, 4), 1.5, np.float32)
    np.testing.assert_allclose(half.run(x)["y"], x, rtol=1e-2)
    with pytest.raises(VerificationError, match=r"tensor 'b.*leaves the range of its type"):
        build(half, data=[x])
    assert build(autocast(parse(body), "fp16", data=[x]), data=[x]).verification.passed  # type: ignore[union-attr]


def test_data_outside_the_profile_is_refused_as_a_gpu_would(relu: Model) -> None:
    with pytest.raises(ModelError, match=r"\(40, 4\) is outside the engine's profile, \(1, 4\) to \(32, 4\)"):
        build(relu, data=[np.zeros((40, 4), np.float32)])
    with build(relu).open("cpu") as session, pytest.raises(ModelError, match="outside the engine's profile"):
        session.run(np.zeros((33, 4), np.float32))
