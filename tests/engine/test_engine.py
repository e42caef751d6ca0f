"""Engine files and sessions: written whole, read back the same, refused when anything about them is off."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtkit
from tests.passes.graphs import parse
from trtkit.engine import engine as engine_module
from trtkit.engine.build import build
from trtkit.engine.device import Gpu
from trtkit.engine.engine import Engine, open_engine
from trtkit.engine.session import CpuSession
from trtkit.engine.trt import Library
from trtkit.errors import EngineError, ModelError
from trtkit.model import Model
from trtkit.passes import optimize

X = np.array([[-1, 0, 1, 2]], np.float32)
A100 = Gpu("NVIDIA A100", (8, 0), 80 * 2**30, "580.65.06", "13.0")
H200 = Gpu("NVIDIA H200", (9, 0), 140 * 2**30, "580.65.06", "13.0")


@pytest.fixture(scope="module")
def conv_engine(conv: Model) -> Engine:
    return build(optimize(conv), [{"x": (1, 3, 16, 16)}, {"x": (4, 3, 16, 16)}])


@pytest.fixture
def saved(conv_engine: Engine, tmp_path: Path) -> Path:
    return conv_engine.save(tmp_path / "net.engine")


def refused(path: Path, *arguments: Any, **options: Any) -> str:
    with pytest.raises(EngineError) as caught:
        open_engine(path, *arguments, **options)
    return str(caught.value)


def manifest_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    facts = json.loads(manifest_of(path).read_text())
    change(facts)
    facts["sha256"] = engine_module._checksum(facts)
    manifest_of(path).write_text(json.dumps(facts))


# Saving and reading


def test_read_back_the_same(conv_engine: Engine, saved: Path) -> None:
    again = open_engine(saved, model=conv_engine.model)
    assert again.plan == conv_engine.plan == saved.read_bytes()
    assert again.manifest == conv_engine.manifest
    assert again.layers == conv_engine.layers
    assert all(isinstance(layer.onnx_nodes, tuple) for layer in again.layers)
    assert again.fusion_map() == conv_engine.fusion_map()
    assert again.size_bytes == conv_engine.size_bytes and again.build_seconds == conv_engine.build_seconds
    assert again.verification is None
    assert sorted(p.name for p in saved.parent.iterdir()) == ["net.engine", "net.engine.json"]
    assert trtkit.open_engine is open_engine


def test_read_without_its_model(conv_engine: Engine, saved: Path) -> None:
    alone = open_engine(str(saved))
    assert alone.layers == conv_engine.layers and alone.model is None
    with pytest.raises(EngineError, match=r"To draw its fusion map.*open_engine\(path, model="):
        alone.fusion_map()
    with pytest.raises(EngineError, match="To run on the CPU"):
        alone.open("cpu")


def test_a_missing_file_or_folder(conv_engine: Engine, tmp_path: Path) -> None:
    assert refused(tmp_path / "no.engine").startswith("No such engine")
    assert refused(tmp_path).startswith("No such engine")
    with pytest.raises(EngineError, match=r"the folder .* does not exist\. Make it first"):
        conv_engine.save(tmp_path / "nowhere" / "net.engine")


def test_plans_that_are_not_what_was_saved(saved: Path, relu_engine: Engine) -> None:
    whole = saved.read_bytes()
    for other in (whole[: len(whole) // 2], b"", whole + b"\0", relu_engine.plan):
        saved.write_bytes(other)
        message = refused(saved)
        assert "is not what was saved" in message and "build it again" in message
    saved.write_bytes(whole)
    open_engine(saved)


def test_two_files_of_two_engines(saved: Path, relu_engine: Engine, tmp_path: Path) -> None:
    other = relu_engine.save(tmp_path / "other.engine")
    os.replace(manifest_of(other), manifest_of(saved))
    assert "does not match its manifest" in refused(saved)


def test_a_missing_or_damaged_manifest(saved: Path) -> None:
    text = manifest_of(saved).read_text()
    for damaged in (
        "",
        "{",
        text[: len(text) // 2],
        "[]",
        "{}",
        "null",
        '{"manifest": {}}',
        '{"manifest": 3, "layers": []}',
    ):
        manifest_of(saved).write_text(damaged)
        assert "net.engine.json is damaged" in refused(saved)
    manifest_of(saved).write_bytes(b"\xff\xfe\x00")
    assert "is damaged" in refused(saved)
    manifest_of(saved).unlink()
    assert "has no manifest beside it (net.engine.json)" in refused(saved)


@pytest.mark.parametrize("field", ["tensorrt", "version", "model", "precision", "profiles", "build_seconds"])
def test_a_manifest_with_a_field_missing(saved: Path, field: str) -> None:
    edit(saved, lambda facts: facts["manifest"].pop(field))
    assert "net.engine.json is damaged" in refused(saved)


@pytest.mark.parametrize(
    "damage",
    [
        lambda layers: layers[0].pop("name"),
        lambda layers: layers[0].update(inputs=3),
        lambda layers: layers[0].update(extra=1),
        lambda layers: layers.append("a string"),
        lambda layers: layers[-1].update(outputs=[["y", [1]]]),
    ],
)
def test_a_manifest_with_damaged_layers(saved: Path, damage: Callable[[Any], Any]) -> None:
    edit(saved, lambda facts: damage(facts["layers"]))
    assert "net.engine.json is damaged" in refused(saved)


def test_another_version_built_it(saved: Path) -> None:
    edit(saved, lambda facts: facts["manifest"].update(version="1.2.3"))
    message = refused(saved)
    assert "was built by" in message and "1.2.3" in message and "build it again from its model" in message


def test_another_model_is_given(saved: Path, relu: Model) -> None:
    assert "was built from another model than 'g'" in refused(saved, relu)


def test_a_newer_format_and_an_older_one(conv_engine: Engine, saved: Path) -> None:
    edit(saved, lambda facts: facts.update(format=engine_module.FORMAT + 1, manifest={"unknown": "words"}))
    assert "a newer trtkit wrote it. Update trtkit" in refused(saved)
    facts = json.loads(engine_module._manifest_bytes(conv_engine))
    del facts["format"], facts["sha256"]  # as the first format was
    manifest_of(saved).write_text(json.dumps(facts))
    assert open_engine(saved).manifest == conv_engine.manifest


def test_a_manifest_that_somebody_changed(saved: Path) -> None:
    text = manifest_of(saved).read_text()
    for old, new in (("correlation", "gemm"), ('"tf32": true', '"tf32": false'), ('"precision": "fp32"', '"p": ""')):
        assert old in text
        manifest_of(saved).write_text(text.replace(old, new, 1))
        assert "is damaged" in refused(saved)


def test_a_manifest_without_its_checksum(saved: Path) -> None:
    facts = json.loads(manifest_of(saved).read_text())
    del facts["sha256"]
    manifest_of(saved).write_text(json.dumps(facts))
    assert "is damaged" in refused(saved)


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_killed_while_saving(
    conv_engine: Engine, saved: Path, relu_engine: Engine, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Killed before any of the three renames, with nothing tidied up: an engine lies there, the old or the new one."""
    renames, replace, unlink = [], os.replace, os.unlink

    def killed(old: Path, new: Path) -> None:
        renames.append(new)
        if len(renames) == killed_at:
            raise KeyboardInterrupt  # the process is gone: its last acts below change nothing
        replace(old, new)

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(os, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        relu_engine.save(saved)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "unlink", unlink)
    expected = conv_engine if killed_at < 3 else relu_engine
    found = open_engine(saved)
    assert (found.plan, found.manifest, found.layers) == (expected.plan, expected.manifest, expected.layers)
    relu_engine.save(saved)  # and saving again makes good
    assert open_engine(saved).manifest == relu_engine.manifest
    assert not engine_module._staged_path(saved).exists()


@pytest.mark.parametrize("failing", [1, 2])
def test_nothing_half_written(saved: Path, relu_engine: Engine, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """The disk is full at the first or second file: the engine that was there stays."""
    before, write, calls = saved.read_bytes(), engine_module.write_atomically, []

    def full(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(engine_module, "write_atomically", full)
    with pytest.raises(EngineError, match=r"No space left.*untouched"):
        relu_engine.save(saved)
    monkeypatch.undo()
    assert sorted(p.name for p in saved.parent.iterdir()) == ["net.engine", "net.engine.json"]
    assert open_engine(saved).plan == before


# Where it runs


def test_without_a_gpu_it_runs_on_the_cpu(relu_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "gpu", lambda: None)
    assert not relu_engine.runs_here and relu_engine.why_not_here == "there is no GPU here"
    for device in (None, "cpu"):
        with relu_engine.open(device) as session:
            assert isinstance(session, CpuSession) and session.device == "cpu"
            np.testing.assert_array_equal(session.run({"x": X})["y"], [[0, 0, 1, 2]])
            np.testing.assert_array_equal(session.run(X)["y"], [[0, 0, 1, 2]])
    with pytest.raises(EngineError, match=r"'g' cannot run here: there is no GPU here\. open\('cpu'\)"):
        relu_engine.open("cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "", 0])
def test_a_device_that_there_is_not(relu_engine: Engine, device: Any) -> None:
    with pytest.raises(EngineError, match="it is 'cuda', 'cpu', or None"):
        relu_engine.open(device)


def test_why_a_gpu_cannot_run_it(relu_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    built = (relu_engine.manifest["tensorrt"], relu_engine.manifest["version"])

    def why(device: Gpu, library: Library | None) -> str:
        monkeypatch.setattr(engine_module, "gpu", lambda: device)
        monkeypatch.setattr(engine_module, "find", lambda: library)
        return relu_engine.why_not_here

    assert "PyCUDA and cuda-bindings are not installed (pip install" in why(A100, Library(np, *built))
    monkeypatch.setattr(engine_module, "has_runtime_packages", lambda: True)
    assert why(A100, None) == "no TensorRT is installed here"
    assert why(A100, Library(np, *built)) == ""
    assert "a plan runs only on the version that built it" in why(A100, Library(np, built[0], "1.2.3"))
    if built == ("TensorRT-RTX", "1.7.1.116"):
        assert "does not run on the NVIDIA H200 (compute capability 9.0" in why(H200, Library(np, *built))


def test_an_engine_for_other_gpus_says_so(relu: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(relu, compute_capabilities=[(8, 9)])
    monkeypatch.setattr(engine_module, "gpu", lambda: A100)
    monkeypatch.setattr(engine_module, "has_runtime_packages", lambda: True)
    if engine.manifest["tensorrt"] == "TensorRT-RTX":
        assert "8.9" in engine.why_not_here


def test_the_full_library_s_engines_are_for_the_gpu_they_were_built_on(
    relu_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "gpu", lambda: A100)
    monkeypatch.setattr(engine_module, "find", lambda: Library(np, "TensorRT", "10.9"))
    monkeypatch.setattr(engine_module, "has_runtime_packages", lambda: True)
    facts = {**relu_engine.manifest, "tensorrt": "TensorRT", "version": "10.9"}
    for built_on, said in (([9, 0], "compute capability 9.0 only, and here is the NVIDIA A100"), ([8, 0], "")):
        why = Engine(b"", {**facts, "built_on": built_on}, [], None).why_not_here
        assert said in why and bool(said) == bool(why)
    assert "refit(model) puts them back" in Engine(b"", {**facts, "stripped": True}, [], None).why_not_here


# Sessions


def test_a_session_says_what_it_takes_and_checks_it(conv_engine: Engine) -> None:
    with conv_engine.open("cpu") as session:
        assert session.inputs == conv_engine.model.inputs  # type: ignore[union-attr]
        assert [info.name for info in session.outputs] == ["y"]
        with pytest.raises(ModelError, match="Its channels come last"):
            session.run(np.zeros((1, 16, 16, 3), np.float32))
        with pytest.raises(ModelError, match="has no input 'X'"):
            session.run({"X": np.zeros((1, 3, 16, 16), np.float32)})


def test_the_cpu_refuses_what_the_engine_would(conv_engine: Engine) -> None:
    """Both profiles are for one batch each, so that code which works here works on a GPU as well."""
    with conv_engine.open("cpu") as session:
        for batch in (1, 4):
            assert session.run(np.zeros((batch, 3, 16, 16), np.float32))["y"].shape[0] == batch
        with pytest.raises(ModelError, match=r"\(2, 3, 16, 16\) is outside the engine's profile.*Build with `shapes`"):
            session.run(np.zeros((2, 3, 16, 16), np.float32))


def test_a_closed_session(relu_engine: Engine) -> None:
    session = relu_engine.open("cpu")
    with session as same:
        assert same is session
    session.close()  # a second time does nothing
    for use in (lambda: session.run(X), session.__enter__):
        with pytest.raises(EngineError, match=r"session of 'g' is closed\. Open another"):
            use()


def test_an_error_inside_closes_too(relu_engine: Engine) -> None:
    session = relu_engine.open("cpu")
    with pytest.raises(ZeroDivisionError), session:
        _ = 1 / 0
    with pytest.raises(EngineError, match="is closed"):
        session.run(X)


def test_two_sessions_of_one_engine(relu_engine: Engine) -> None:
    with relu_engine.open("cpu") as one, relu_engine.open("cpu") as other:
        one.close()
        np.testing.assert_array_equal(other.run(X)["y"], [[0, 0, 1, 2]])


def test_bfloat16_inputs_and_outputs() -> None:
    import ml_dtypes

    model = parse("y = Identity(x)", "bfloat16[n, 4] x", "bfloat16[n, 4] y")
    with build(model).open("cpu") as session:
        x = X.astype(ml_dtypes.bfloat16)
        assert session.run(x)["y"].dtype == x.dtype
        with pytest.raises(ModelError, match=r"\.astype\('bfloat16'\)"):
            session.run(X)
