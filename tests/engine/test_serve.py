"""The repository for Triton, read with Triton's own protobuf messages."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format

import trtkit
from tests.passes.graphs import parse
from trtkit.engine import serve
from trtkit.engine.engine import Engine
from trtkit.engine.serve import Batching, Instances, write_repository
from trtkit.errors import EngineError, ModelError
from trtkit.model import Model


@pytest.fixture(scope="session")
def triton() -> ModuleType:
    """tritonclient's module of messages alone: its package would want gRPC, which nothing here needs."""
    try:
        file = next(f for f in files("tritonclient") or () if f.name == "model_config_pb2.py")
    except PackageNotFoundError:
        pytest.skip("needs tritonclient")
    spec = importlib.util.spec_from_file_location("triton_model_config_pb2", str(file.locate()))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def read(triton: ModuleType) -> Any:
    return lambda folder, name: text_format.Parse((folder / name / "config.pbtxt").read_text(), triton.ModelConfig())


def pipeline() -> dict[str, Model]:
    return {
        "pre": parse(
            "float scale = {255} | f = Cast<to = 1>(raw)  image = Div(f, scale)",
            "uint8[n, 3, h, w] raw",
            "float[n, 3, h, w] image",
        ),
        "net": parse(
            "int64[2] axes = {2, 3} | y = ReduceMean<keepdims = 0>(image, axes)",
            "float[n, 3, 8, 8] image",
            "float[n, 3] y",
        ),
        "post": parse("best = Softmax(scores)", "float[n, 3] scores", "float[n, 3] best"),
    }


def test_models_alone(tmp_path: Path, read: Any) -> None:
    models = pipeline()
    written = write_repository(
        tmp_path / "repository",
        models,
        max_batch=16,
        batching=Batching((4, 16), 250),
        instances=Instances(2, "KIND_GPU", (0, 1)),
        labels={"net": ["red", "green", "blue"]},
    )
    assert sorted(file.name for file in written.iterdir()) == ["net", "post", "pre"]
    pre, net = read(written, "pre"), read(written, "net")
    assert (pre.name, pre.platform, pre.backend, pre.max_batch_size) == ("pre", "onnxruntime_onnx", "onnxruntime", 16)
    assert (pre.input[0].name, pre.input[0].data_type, list(pre.input[0].dims)) == ("raw", 2, [3, -1, -1])  # UINT8
    assert list(net.input[0].dims) == [3, 8, 8] and list(net.output[0].dims) == [3]
    assert list(net.dynamic_batching.preferred_batch_size) == [4, 16]
    assert net.dynamic_batching.max_queue_delay_microseconds == 250
    (group,) = net.instance_group
    assert (group.count, list(group.gpus)) == (2, [0, 1])
    assert (written / "net" / net.output[0].label_filename).read_text().split() == ["red", "green", "blue"]
    again = trtkit.load(written / "net" / "1" / net.default_model_filename)
    x = models["net"].random_inputs()
    np.testing.assert_array_equal(again.run(x)["y"], models["net"].run(x)["y"])
    assert onnx.load(written / "pre" / "1" / "model.onnx").graph.input[0].name == "raw"


def test_engines(tmp_path: Path, relu_engine: Engine, read: Any) -> None:
    """RTX's plans have no backend in Triton, the full library's have."""
    if relu_engine.manifest["tensorrt"] == "TensorRT-RTX":
        written = write_repository(tmp_path, {"rtx": relu_engine})
        config = read(written, "rtx")
        assert config.backend == "onnxruntime" and config.max_batch_size == 32 and list(config.output[0].dims) == [4]
        assert not list(written.rglob("model.plan")) and (written / "rtx" / "1" / "model.onnx").is_file()
    shapes = {"x": [[1, 4], [8, 4], [16, 4]]}
    full = {**relu_engine.manifest, "tensorrt": "TensorRT", "profiles": [{"x": [[1, 4]] * 3}, shapes]}
    engine = Engine(b"plan", full, [], relu_engine.model)
    config = read(write_repository(tmp_path, {"full": engine}, instances=Instances(3)), "full")
    assert (config.platform, config.backend, config.max_batch_size) == ("tensorrt_plan", "tensorrt", 16)
    assert list(config.instance_group[0].profile) == ["0", "1"] and config.instance_group[0].count == 3
    assert (tmp_path / "full" / "1" / "model.plan").read_bytes() == b"plan"
    with pytest.raises(ModelError, match="up to 16, so max_batch=64 is too much"):
        write_repository(tmp_path, {"more": engine}, max_batch=64)
    with pytest.raises(ModelError, match="no CPU runs"):
        write_repository(tmp_path, {"cpu": engine}, instances=Instances(kind="KIND_CPU"))
    with pytest.raises(EngineError, match="came without the graph"):
        write_repository(tmp_path, {"alone": Engine(b"plan", full, [], None)})


def test_without_a_batch_and_single_numbers(tmp_path: Path, read: Any) -> None:
    model = parse("y = ReduceSum<keepdims = 0>(x)  z = Neg(x)", "float[4, n] x", "float y, float[4, n] z")
    config = read(write_repository(tmp_path, {"sum": model}), "sum")
    assert config.max_batch_size == 0 and list(config.input[0].dims) == [4, -1]
    y = config.output[0]
    assert list(y.dims) == [1] and y.HasField("reshape") and list(y.reshape.shape) == []


def test_an_ensemble(tmp_path: Path, read: Any) -> None:
    """By name from pre to net, from the one output of net to the one input of post."""
    written = write_repository(tmp_path / "r", pipeline(), max_batch=4, ensemble=["pre", "net", "post"])
    config = read(written, "ensemble")
    assert config.platform == "ensemble" and config.max_batch_size == 4 and (written / "ensemble" / "1").is_dir()
    assert [t.name for t in config.input] == ["raw"] and [t.name for t in config.output] == ["best"]
    steps = config.ensemble_scheduling.step
    assert [(s.model_name, dict(s.input_map), dict(s.output_map)) for s in steps] == [
        ("pre", {"raw": "raw"}, {"image": "pre/image"}),
        ("net", {"image": "pre/image"}, {"y": "net/y"}),
        ("post", {"scores": "net/y"}, {"best": "best"}),
    ]


@pytest.mark.parametrize(
    ("change", "options", "error", "match"),
    [
        ({}, {"ensemble": ["pre", "nett"]}, ModelError, "names .'nett'., which is not among"),
        ({}, {"ensemble": ["net", "pre"]}, ModelError, r"'pre' takes 'raw' TYPE_UINT8.*would get is 'y' TYPE_FP32"),
        ({}, {"ensemble": ["pre", "net"], "ensemble_name": "net"}, ModelError, "Two models are called 'net'"),
        ({"net": parse("y = Neg(image)", "float[n, 4] image", "float[n, 4] y")}, {"ensemble": ["pre", "net"]},
         ModelError, r"takes 'image' TYPE_FP32 \[4\], and what it would get is 'image' TYPE_FP32 \[3, -1, -1\]"),
        ({"net": parse("y = Neg(image)", "float[3, 8, 8] image", "float[3, 8, 8] y")}, {"ensemble": ["pre", "net"]},
         ModelError, "have a batch, and .'net'. have none"),
        ({"a/b": parse("y = Neg(x)")}, {}, ModelError, "'a/b' cannot be a folder"),
        ({"one": parse("y = Neg(x)", "float[2, 4] x", "float[2, 4] y")}, {"max_batch": 8}, ModelError,
         "'one' cannot be batched: x float32"),
        ({"one": parse("y = Neg(x)", "float[2, 4] x", "float[2, 4] y")}, {"batching": Batching()}, ModelError,
         "has no batch"),
        ({}, {"batching": Batching((64,)), "max_batch": 8}, ModelError, "does not fit batches of 1 to 8"),
        ({}, {"max_batch": -1}, ModelError, "max_batch=-1"),
        ({}, {"instances": Instances(0)}, ModelError, "no instance group"),
        ({}, {"labels": {("net", "z"): ["a"]}}, ModelError, "whose outputs are .'y'."),
        ({}, {"labels": {"net": ["a\nb"]}}, ModelError, "line break"),
    ],
)  # fmt: skip
def test_refused(change: dict, options: dict, error: type[Exception], match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        write_repository(tmp_path / "r", pipeline() | change, **options)
    assert list(tmp_path.iterdir()) == []


def test_two_of_one_name_and_one_that_is_there(tmp_path: Path) -> None:
    model = parse("y = Neg(x)")
    with pytest.raises(ModelError, match="Two models are called 'net'"):
        write_repository(tmp_path, [("net", model), ("net", model)])
    write_repository(tmp_path, {"net": model})
    with pytest.raises(EngineError, match="is there already"):
        write_repository(tmp_path, {"other": model, "net": model})
    assert [file.name for file in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("there", [False, True])
def test_nothing_half_written(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "r"
    if there:
        write_repository(folder, {"old": parse("y = Neg(x)")})

    def full(model: Model, path: Path) -> Path:
        if "net" in path.parts:
            raise OSError(28, "No space left on device")
        return trtkit.save(model, path)

    monkeypatch.setattr(serve, "save", full)
    with pytest.raises(EngineError, match="No space left"):
        write_repository(folder, pipeline())
    assert [file.name for file in folder.iterdir()] == ["old"] if there else not folder.exists()
