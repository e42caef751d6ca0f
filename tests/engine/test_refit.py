"""Refitting: what is refused before TensorRT is asked, and what it is asked, on a pretended TensorRT."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.passes.graphs import parse
from trtkit.engine import build as build_module
from trtkit.engine import refit as refit_module
from trtkit.engine.build import build
from trtkit.engine.engine import Engine
from trtkit.engine.trt import require
from trtkit.errors import EngineError, MissingError
from trtkit.model import Model


def linear(seed: int = 0, size: int = 3, op: str = "Relu") -> Model:
    numbers = np.random.default_rng(seed).random(4 * size, np.float32)
    weight = f"float[4, {size}] w = {{{', '.join(map(str, numbers))}}}"
    return parse(f"{weight} | [fc] a = MatMul(x, w) [act] y = {op}(a)", outputs=f"float[n, {size}] y")


def engine_of(model: Model | None, **facts: Any) -> Engine:
    digest = hashlib.sha256(linear().to_bytes()).hexdigest()
    manifest = {"model": "g", "model_sha256": digest, "refittable": True, "precision": "fp32", **facts}
    return Engine(b"old plan", manifest, [], model)


def refused(engine: Engine, weights: Any) -> str:
    with pytest.raises(EngineError) as caught:
        engine.refit(weights)
    return str(caught.value)


def test_an_engine_that_was_not_built_for_it() -> None:
    assert "trtkit.build(model, refittable=True)" in refused(engine_of(linear(), refittable=False), linear(1))


def test_weights_that_do_not_fit() -> None:
    engine = engine_of(linear())
    assert "no weight 'v'" in refused(engine, {"v": np.zeros(3)})
    assert "Nearest: w" in refused(engine, {"w_": np.zeros((4, 3), np.float32)})
    assert "has float32 (4, 3), got float32 (3, 4)" in refused(engine, {"w": np.zeros((3, 4), np.float32)})
    assert "has float32 (4, 3), got float64 (4, 3)" in refused(engine, {"w": np.zeros((4, 3))})
    assert "came without its model" in refused(engine_of(None), {"w": np.zeros((4, 3), np.float32)})


def test_models_that_do_not_fit(relu: Model) -> None:
    engine = engine_of(linear())
    assert "has 1 nodes and the engine's model 2" in refused(engine, relu)
    assert "where that has Relu of ['a'], it has Tanh of ['a']" in refused(engine, linear(op="Tanh"))
    assert "'w': the engine has float32 (4, 3), got float32 (4, 5)" in refused(engine, linear(size=5))


def test_a_stripped_engine_takes_its_own_weights_only() -> None:
    engine = engine_of(linear(), refittable=False, stripped=True)
    assert "and these are others" in refused(engine, linear(1))
    with pytest.raises(MissingError, match="there is no GPU here"):
        engine.refit(linear())


def test_without_a_gpu_it_says_so() -> None:
    if refit_module.gpu() is not None:
        pytest.skip("there is a GPU")
    with pytest.raises(MissingError, match="Refit it where it runs"):
        engine_of(linear()).refit(linear(1))
    for options in ({"refittable": True}, {"strip": True}, {"compute_capabilities": "current"}):
        with pytest.raises(MissingError, match="only where a GPU is"):
            build(linear(), **options)


class Library:
    """A TensorRT that writes into the plan what it was refitted with."""

    class SerializationFlag:
        EXCLUDE_WEIGHTS, INCLUDE_REFIT = "exclude", "include"

    def __init__(self, **faults: Any) -> None:
        self.faults, self.flags, self.file = faults, {"exclude"}, b""
        self.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: self.opened(plan))
        self.Refitter = lambda engine, log: SimpleNamespace(
            get_missing_weights=lambda: faults.get("missing", []),
            refit_cuda_engine=lambda: not faults.get("refuses"),
        )
        self.OnnxParserRefitter = lambda refitter, log: SimpleNamespace(
            refit_from_file=self.read,
            num_errors=1,
            get_error=lambda i: SimpleNamespace(desc=lambda: "no such weight"),
        )

    def opened(self, plan: bytes) -> Any:
        config = SimpleNamespace(clear_flag=self.flags.discard, set_flag=self.flags.add)
        return None if self.faults.get("closed") else SimpleNamespace(
            create_serialization_config=lambda: config,
            serialize_with_config=lambda c: None if self.faults.get("mute") else plan + b" with " + self.file,
        )  # fmt: skip

    def read(self, file: str) -> bool:
        self.file = Path(file).read_bytes()
        return not self.faults.get("alien")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(**faults: Any) -> Library:
        library = Library(**faults)
        from trtkit.engine import child, trt

        child.log()  # the logger is the real library's
        monkeypatch.setattr(trt, "trt", library, raising=False)
        monkeypatch.setattr(refit_module, "gpu", lambda: "a GPU")
        return library

    return use


def test_new_weights_go_into_a_new_plan(pretended: Any) -> None:
    library, engine, new = pretended(), engine_of(linear()), np.ones((4, 3), np.float32)
    refitted = engine.refit({"w": new}, verify=False)
    assert refitted.model is not None and refitted.model is not engine.model
    np.testing.assert_array_equal(refitted.model.run(np.ones((1, 4), np.float32))["y"], [[4, 4, 4]])
    assert engine.model is not None and not np.array_equal(
        engine.model.run(np.ones((1, 4), np.float32))["y"], [[4] * 3]
    )
    assert refitted.plan == b"old plan with " + refitted.model.to_bytes() and engine.plan == b"old plan"
    assert refitted.manifest["model_sha256"] == hashlib.sha256(refitted.model.to_bytes()).hexdigest()
    assert refitted.manifest["plan_sha256"] == hashlib.sha256(refitted.plan).hexdigest()
    assert library.flags == {"include"}  # it can be refitted once more
    assert refitted.refit(linear(2), verify=False).model is not None


def test_a_stripped_plan_is_filled(pretended: Any) -> None:
    library, model = pretended(), linear()
    engine = engine_of(model, refittable=False, stripped=True)
    filled = engine.refit(model, verify=False)
    assert not filled.manifest["stripped"] and engine.manifest["stripped"]
    assert library.flags == set()


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"closed": True}, "it cannot open it"),
        ({"alien": True}, "the model does not fit: no such weight"),
        ({"missing": ["w2"]}, "1 weights are missing, such as 'w2'"),
        ({"refuses": True}, "it does not take the weights"),
        ({"mute": True}, "it cannot write the engine"),
    ],
)
def test_what_tensorrt_refuses(pretended: Any, faults: dict[str, Any], said: str) -> None:
    pretended(**faults)
    assert said in refused(engine_of(linear()), linear(1))


def test_what_a_build_asks_for(monkeypatch: pytest.MonkeyPatch, relu: Model) -> None:
    asked = []
    monkeypatch.setattr(build_module, "gpu", lambda: SimpleNamespace(compute_capability=(9, 0)))

    def build_nothing(folder: Path, request: dict[str, Any], *_: Any) -> Any:
        asked.append((request["refittable"], request["stripped"]))
        return b"plan", {"seconds": 0.0, "network_layers": 1, "layers_from": "log", "layers": ["Layers:\n"]}

    monkeypatch.setattr(build_module, "_in_child", build_nothing)
    manifest = build(relu, strip=True, verify=False).manifest
    assert asked == [(False, True)] and (manifest["stripped"], manifest["refittable"]) == (True, False)
    assert manifest["built_on"] == [9, 0] and manifest["compute_capabilities"] == []
    assert build(relu, verify=False, compute_capabilities="current").manifest["compute_capabilities"] == [[9, 0]]


def test_the_builder_s_flags() -> None:
    pytest.importorskip(require().module.__name__)
    from trtkit.engine.child import _set_refitting, trt

    for options, wanted in (((True, False), {"REFIT"}), ((True, True), {"REFIT", "STRIP_PLAN"}),
                            ((False, True), {"STRIP_PLAN", "REFIT_IDENTICAL"}), ((False, False), set())):  # fmt: skip
        flags: set[Any] = set()
        _set_refitting(SimpleNamespace(set_flag=flags.add), *options)  # type: ignore[arg-type]
        assert flags == {getattr(trt.BuilderFlag, name) for name in wanted}


def test_the_builder_s_target() -> None:
    from trtkit.engine.child import _set_targets, trt

    named: list[Any] = []
    config = SimpleNamespace(set_compute_capability=lambda target, place: named.append(target))
    assert _set_targets(config, "current") == "" and named == [vars(trt)["ComputeCapability"].CURRENT]
