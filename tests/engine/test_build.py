"""build: what it hands out, what it says when TensorRT refuses, and that nothing is left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import trtkit
from tests.engine import libraries
from tests.passes.graphs import parse
from trtkit.engine import trt
from trtkit.engine.build import build
from trtkit.engine.engine import Engine
from trtkit.engine.trt import require
from trtkit.errors import BuildError, MissingError
from trtkit.model import Model


def refused(model: Model, *arguments: Any, **options: Any) -> str:
    with pytest.raises(BuildError) as caught:
        build(model, *arguments, **options)
    assert "cudaError" not in str(caught.value)  # said without a GPU after most errors, and explains none
    return str(caught.value)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture(autouse=True)
def nothing_left_behind(temporary: Path) -> Any:
    """No test here may leave a process or a temporary file."""
    before = {child.pid for child in children()}
    yield
    assert {child.pid for child in children()} <= before
    assert list(temporary.iterdir()) == []


@pytest.fixture
def fresh_library() -> Any:
    yield
    trt._find.cache_clear()


# What it hands out


def test_an_engine_and_its_manifest(relu: Model) -> None:
    engine = build(relu)
    assert isinstance(engine, Engine) and engine.model is relu
    manifest = engine.manifest
    assert (manifest["tensorrt"], manifest["version"]) == (require().name, require().version)
    assert manifest["trtkit"] == trtkit.__version__
    assert (manifest["model"], manifest["precision"], manifest["tf32"]) == ("g", "fp32", True)
    assert manifest["profiles"] == [{"x": [[1, 4], [8, 4], [32, 4]]}]
    assert manifest["model_sha256"] == hashlib.sha256(relu.to_bytes()).hexdigest()
    assert manifest["plan_sha256"] == hashlib.sha256(engine.plan).hexdigest()
    assert engine.size_bytes == len(engine.plan) > 1000
    assert 0 < engine.build_seconds < 60
    assert engine.verification is not None and engine.verification.passed
    assert [layer.onnx_nodes for layer in engine.layers if layer.onnx_nodes] == [("act",)]
    assert repr(engine).startswith("Engine('g', fp32: 1 kernels, ")


def test_static_shapes_show_in_the_layers(relu: Model) -> None:
    engine = build(relu, {"x": (3, 4)})
    assert engine.manifest["profiles"] == [{"x": [[3, 4]] * 3}]
    assert {tensor.shape for layer in engine.layers for tensor in layer.outputs} == {(3, 4)}


def test_the_verb_is_this_function() -> None:
    assert trtkit.build is build


@pytest.mark.parametrize("isolate", [True, False])
def test_building_here_or_in_a_child_gives_the_same(relu: Model, relu_engine: Engine, isolate: bool) -> None:
    engine = build(relu, isolate=isolate)
    assert engine.layers == relu_engine.layers
    assert engine.manifest["profiles"] == relu_engine.manifest["profiles"]
    if require().is_rtx:  # which builds the same bytes every time
        assert engine.plan == relu_engine.plan


def test_building_here_goes_on_after_a_failure(relu: Model) -> None:
    broken = parse("[bad] y = Compress <axis = 1> (x, k)", "float[n, 4] x, bool[4] k", "float[n, m] y")
    assert "bad" in refused(broken, isolate=False)
    assert build(relu, isolate=True).verification.passed  # type: ignore[union-attr]


@pytest.mark.parametrize("isolate", [True, False])
def test_progress_is_told_in_phases(relu: Model, isolate: bool) -> None:
    told: list[tuple[str, int, int]] = []
    build(relu, progress=lambda *step: told.append(step), isolate=isolate)
    assert len({phase for phase, _, _ in told}) >= 2
    assert all(0 <= step <= steps for _, step, steps in told)
    phase, _, steps = told[0]  # the outermost, which lasts until the end
    assert told[0][1] == 0 and told[-1] == (phase, steps, steps)
    own = [step for name, step, _ in told if name == phase]
    assert own == sorted(own)


def test_workspace_and_tf32_reach_tensorrt() -> None:
    weight = ", ".join(["0.5"] * 64 * 64)
    model = parse(f"float[64, 64] w = {{{weight}}} | y = MatMul(x, w)", "float[n, 64] x", "float[n, 64] y")
    assert build(model, workspace_bytes=1 << 28, tf32=False).manifest["tf32"] is False


def test_targets(relu: Model) -> None:
    if not require().is_rtx:
        pytest.skip("only TensorRT-RTX builds for GPUs that are not here")
    narrow, wide = build(relu, compute_capabilities=[(8, 9)]), build(relu)
    assert narrow.manifest["compute_capabilities"] == [[8, 9]]
    assert narrow.layers == wide.layers


@pytest.mark.parametrize("isolate", [True, False])
def test_a_target_that_does_not_exist(relu: Model, isolate: bool) -> None:
    """Refused by name, be it as SM30, 3.0 or (3, 0), and not as a crash."""
    message = refused(relu, compute_capabilities=[(3, 0)], isolate=isolate)
    assert any(written in message for written in ("SM30", "3.0", "(3, 0)")) and "crashed" not in message


def test_real_data_to_verify_on(relu: Model) -> None:
    x = np.array([[1, -1, 2, -2]], np.float32)
    engine = build(relu.rewritten(relu.ir.clone(), "same", "", 0.0), data=[x, {"x": 2 * x}])
    assert engine.verification is not None
    assert engine.verification.checks[0].samples == 2


# What TensorRT refuses


def test_an_operator_without_support_in_tensorrts_words() -> None:
    message = refused(parse("[head] y = NonZero(x)", outputs="int64[2, k] y"))
    assert f"{require()} cannot" in message and "'g' (fp32). In its own words:" in message
    assert "head" in message and "NonZero" in message


def test_a_custom_operator_in_tensorrts_words() -> None:
    import onnx

    text = """<ir_version: 10, opset_import: ["": 20, "own": 1]>
        g (float[n, 4] x) => (float[n, 4] y) { [first] a = Relu(x) [second] y = own.Mine(a) }"""
    message = refused(trtkit.load(onnx.parser.parse_model(text)))
    assert "cannot parse 'g'" in message and "'second' (Mine)" in message
    assert "first" not in message.splitlines()[1]


@pytest.mark.parametrize(
    ("body", "inputs", "outputs"),
    [
        ("[node_here] y = Det(x)", "float[n, 4, 4] x", "float[n] y"),
        ("[node_here] y, i, v, c = Unique(x)", "float[8] x", "float[k] y"),
        ("[node_here] y = BitwiseNot(x)", "int32[n, 4] x", "int32[n, 4] y"),
    ],
)
def test_operators_without_support_are_named_with_their_node(body: str, inputs: str, outputs: str) -> None:
    assert "node_here" in refused(parse(body, inputs, outputs))


def test_shapes_that_contradict_each_other() -> None:
    model = parse("[sum] y = Add(x, z)", "float[n, 4] x, float[m, 4] z", "float[k, 4] y")
    message = refused(model, {"x": (2, 4), "z": (3, 4)}, verify=False)
    assert "sum" in message and "cannot build 'g'" in message


def test_a_reshape_that_cannot_be() -> None:
    model = parse("int64[2] k = {2, 3} | [fold] y = Reshape(x, k)", outputs="float[2, 3] y")
    message = refused(model, {"x": (1, 4)}, verify=False)
    assert "reshape" in message.lower() and "fold" in message


def test_no_tensorrt(relu: Model, monkeypatch: pytest.MonkeyPatch, fresh_library: None) -> None:
    monkeypatch.setenv(trt.SETTING, "nonsense")
    with pytest.raises(MissingError, match="pip install tensorrt-rtx-cu13"):
        build(relu)


# What can happen to the child


def test_an_abort_inside_tensorrt_is_an_error_here(
    relu: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> None:
    libraries.misbehaving(tmp_path, monkeypatch, libraries.ABORTS)
    message = refused(relu)
    assert "crashed on 'g'" in message and "(SIGABRT)" in message and "yours is unharmed" in message
    assert "terminate called after throwing an instance of 'nvinfer1'" in message


def test_a_process_that_just_ends(
    relu: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> None:
    libraries.misbehaving(tmp_path, monkeypatch, libraries.EXITS)
    assert "stopped with exit code 3" in refused(relu)


def test_a_python_error_in_the_child_comes_with_its_last_line(
    relu: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> None:
    broken = "class Builder:\n    def __init__(self, log):\n        raise RuntimeError('the reason')\n"
    libraries.misbehaving(tmp_path, monkeypatch, broken)
    assert "RuntimeError: the reason" in refused(relu)


def test_the_time_limit_kills(
    relu: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_library: None
) -> None:
    libraries.misbehaving(tmp_path, monkeypatch, libraries.HANGS)
    start = time.monotonic()
    assert "limit of 1.5 s (timeout_s)" in refused(relu, timeout_s=1.5)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_progress_function_that_raises_stops_the_build(
    relu: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_library: None, error: type[BaseException]
) -> None:
    pid_file = libraries.misbehaving(tmp_path, monkeypatch, libraries.HANGS)

    def stop(phase: str, step: int, steps: int) -> None:
        raise error("enough")

    start = time.monotonic()
    with pytest.raises(error, match="enough"):
        build(relu, progress=stop)
    assert time.monotonic() - start < 20
    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_ctrl_c_while_the_builder_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_library: None, repository: Path
) -> None:
    pid_file = libraries.misbehaving(tmp_path, monkeypatch, libraries.HANGS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), os.environ["PYTHONPATH"]]))
    code = """import trtkit, onnx
text = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {y = Relu(x)}'
trtkit.build(trtkit.load(onnx.parser.parse_model(text)))"""
    temporary = tmp_path / "theirs"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    ) as process:
        stop = time.monotonic() + 30
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < stop:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    assert not psutil.pid_exists(int(pid_file.read_text()))
    assert list(temporary.iterdir()) == []


def test_a_progress_function_that_raises_in_this_process(repository: Path) -> None:
    """In a process of its own, since an error that crosses TensorRT's C++ might end it."""
    code = """import trtkit, onnx
text = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {y = Relu(x)}'
def stop(*step): raise ZeroDivisionError("enough")
try:
    trtkit.build(trtkit.load(onnx.parser.parse_model(text)), isolate=False, progress=stop)
except Exception as error:
    print(type(error).__name__, error)"""
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (ran.returncode, ran.stdout) == (0, "ZeroDivisionError enough\n"), ran.stderr[-2000:]
