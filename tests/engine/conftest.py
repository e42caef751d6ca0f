"""Models and engines that the tests of the engine side share, each made once."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.engine import device, pretended
from tests.passes.graphs import parse
from trtkit.course import nets
from trtkit.engine.build import build
from trtkit.engine.engine import Engine
from trtkit.importers import load
from trtkit.model import Model
from trtkit.passes import optimize


@pytest.fixture(scope="session")
def relu() -> Model:
    return parse("[act] y = Relu(x)")


@pytest.fixture(scope="session")
def relu_engine(relu: Model) -> Engine:
    return build(relu)


@pytest.fixture(scope="session")
def conv() -> Model:
    """Convolution, batch normalisation, ReLU and global average pooling, with names as exporters write them."""
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "scale": (8,), "shift": (8,), "mean": (8,), "var": (8,)}
    weights = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "/stem/conv [3x3]", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], "/stem/bn"),
        helper.make_node("Relu", ["b"], ["c"], "/stem/act/Relu"),
        helper.make_node("GlobalAveragePool", ["c"], ["y"], "pool"),
    ]
    graph = helper.make_graph(
        nodes,
        "stem",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 1, 1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.fixture(scope="session")
def resnet50() -> Model:
    import torch

    return optimize(load(nets.resnet50(), torch.rand(1, 3, 224, 224)))


@pytest.fixture(scope="session")
def mobilenet() -> Model:
    import torch

    return optimize(load(nets.mobilenet_v2(), torch.rand(1, 3, 224, 224)))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where temporary files go during this test, empty at first."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# The pretended GPU


@pytest.fixture
def forget() -> Iterator[None]:
    yield from pretended.forgotten()


@pytest.fixture
def gpu(forget: None, monkeypatch: pytest.MonkeyPatch) -> device.Gpu:
    gpu = device.Gpu()
    pretended.install(gpu, monkeypatch)
    return gpu


@pytest.fixture
def opened(gpu: device.Gpu, tmp_path: Path) -> Callable[..., Any]:
    return lambda plan=b"plan", **options: sys.modules[pretended.MODULE].GpuSession(
        plan, "net", **{"cache_dir": tmp_path, **options}
    )


@pytest.fixture
def tensor(gpu: device.Gpu, monkeypatch: pytest.MonkeyPatch) -> Callable[..., device.Tensor]:
    import torch

    def empty(shape: Any, dtype: Any = torch.float32, **_: Any) -> device.Tensor:
        return device.Tensor(gpu, np.zeros(shape, str(dtype).removeprefix("torch.")))

    monkeypatch.setattr(torch, "empty", empty)
    return lambda array, **options: device.Tensor(gpu, array, **options)
