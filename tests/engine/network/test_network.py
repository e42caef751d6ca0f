"""Network and Evaluator: whole models, what is found when a definition is wrong, and the engine that comes of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from tests.engine.network.nets import same
from trtkit.course import nets
from trtkit.engine.engine import open_engine
from trtkit.engine.network import Network, from_keras, from_torch
from trtkit.engine.network import layers as rules
from trtkit.engine.network.evaluate import Evaluator
from trtkit.engine.network.writer import Writer
from trtkit.engine.trt import trt
from trtkit.errors import BuildError, EngineError, ModelError, VerificationError

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported
import keras


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))


@pytest.fixture(scope="module")
def network(net: nn.Module) -> Network:
    return from_torch(net, torch.randn(1, 3, 8, 8), name="small")


# Whole models


@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50", "MobileNetV3Small"])
def test_keras_applications(name: str) -> None:
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=20)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if "moving" in variable.path or "gamma" in variable.path:
            least = 0.5 if "mean" not in variable.path else -0.5
            variable.assign(rng.uniform(least, least + 1, variable.shape).astype(np.float32))
    network = from_keras(model)
    assert network.check().passed


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x1_0"])
def test_torchvision(name: str) -> None:
    import torchvision

    net = getattr(torchvision.models, name)(weights=None)
    nets._randomise_batch_norms(net)
    same(from_torch(net, torch.randn(1, 3, 64, 64)), tolerance=1e-5)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_classifier_of_words(kind: type) -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.read, self.head = nn.Embedding(20, 8), kind(8, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, text: torch.Tensor) -> torch.Tensor:
            return self.head(self.read(self.words(text))[0][:, -1])

    network = same(from_torch(Classifier(), torch.zeros(1, 7, dtype=torch.int64)))
    engine = network.build({"text": [(1, 7), (2, 7), (4, 7)]})
    assert {"read"} <= {name for layer in engine.layers for name in layer.onnx_nodes}


# What a network shows


def test_layers_carry_the_names_of_the_frameworks(network: Network) -> None:
    assert [(layer.name, layer.kind, layer.source) for layer in network.layers[:4]] == [
        ("0", "CONVOLUTION", "0"), ("1", "SCALE", "1"), ("2", "ACTIVATION", "2"), ("3", "SHUFFLE", "3"),
    ]  # fmt: skip
    assert network.layers[0].outputs == ((-1, 4, 8, 8),)
    assert repr(network).startswith("Network('small', from torch: 8 layers of TensorRT; input float32 (batch, 3, 8, 8)")
    console = Console(record=True, width=100)
    console.print(network.table())
    assert "CONVOLUTION" in console.export_text()


def test_any_tensor_can_be_looked_at(network: Network, net: nn.Module) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    found = network.reference.run({"input": x}, ["2_output"])["2_output"]
    np.testing.assert_allclose(found, net[:3].eval()(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-5)


def test_inputs_are_checked(network: Network) -> None:
    with pytest.raises(ModelError, match="input"):
        network.run(np.zeros((2, 3, 9, 8), np.float32))
    with pytest.raises(ModelError, match="Nothing computes"):
        network.reference.run(network.random_inputs(), ["no such tensor"])


# What is found when a definition is wrong


def wrong_by(change: str, net: nn.Module) -> Network:
    """The network of a convolution, with a mistake in TensorRT's definition that raises nothing."""
    network = from_torch(net, torch.randn(1, 3, 8, 8))
    layer = network.definition.get_layer(0)
    layer.__class__ = trt.IConvolutionLayer
    if change == "padding":
        layer.pre_padding, layer.post_padding = (0, 0), (2, 2)
    else:
        array = np.ascontiguousarray(net[0].weight.detach().numpy().transpose(0, 1, 3, 2))
        network._writer.arrays.append(array)
        layer.kernel = trt.Weights(array.reshape(-1))
    return network


@pytest.mark.parametrize("change", ["padding", "kernel"])
def test_a_wrong_definition_is_found_without_a_gpu(change: str, net: nn.Module) -> None:
    network = wrong_by(change, net)
    verification = network.check()
    assert not verification.passed and verification.checks[0].error > 0.1
    with pytest.raises(VerificationError, match="is not what was asked for"):
        network.build()


def test_a_layer_that_the_evaluator_does_not_know() -> None:
    w = Writer("test")
    with w.layer("strange"):
        x = w.input("x", (2, 3), np.float32)
        w.done(w.network.add_topk(x, trt.TopKOperation.MAX, 1, 2))
    with pytest.raises(ModelError, match="'strange', TOPK"):
        Evaluator(w.network)


@pytest.mark.parametrize(("size", "window", "stride"), [(9, 3, 2), (8, 3, 2), (7, 2, 3), (6, 4, 1)])
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "EXPLICIT_ROUND_UP", "EXPLICIT_ROUND_DOWN"])
def test_the_evaluator_gives_the_shapes_that_tensorrt_says(mode: str, size: int, window: int, stride: int) -> None:
    w = Writer("test")
    with w.layer("pool"):
        layer = w.network.add_pooling_nd(w.input("x", (1, 1, size, 8), np.float32), trt.PoolingType.AVERAGE,
                                         trt.Dims([window, 2]))  # fmt: skip
        layer.stride_nd, layer.padding_mode = trt.Dims([stride, 1]), getattr(trt.PaddingMode, mode)
        y = w.done(layer)
    w.network.mark_output(y)
    computed = Evaluator(w.network).run({"x": np.ones((1, 1, size, 8), np.float32)})
    assert computed[y.name].shape == tuple(y.shape)
    np.testing.assert_allclose(computed[y.name], 1)  # the average of ones, for padding is not counted


def test_a_refused_layer_is_named() -> None:
    w = Writer("Keras")
    with w.layer("sum"), pytest.raises(BuildError, match=r"TensorRT refuses elementwise of the Keras layer 'sum'"):
        x, y = w.input("x", (2, 3), np.float32), w.input("y", (2, 4), np.float32)
        rules.elementwise(w, "SUM", x, y)


# The engine


def test_an_engine_is_built_verified_and_runs_on_the_cpu(network: Network, net: nn.Module) -> None:
    told: list[str] = []
    engine = network.build({"input": (2, 3, 8, 8)}, progress=lambda phase, step, steps: told.append(phase))
    assert told
    assert engine.model is network
    assert engine.verification is not None and engine.verification.passed
    assert "the evaluator of networks" in str(engine.verification) or engine.verification.engine_ran
    assert engine.manifest["precision"] == "fp32" and engine.manifest["model"] == "small"
    fused = next(layer.onnx_nodes for layer in engine.layers if "0" in layer.onnx_nodes and "2" in layer.onnx_nodes)
    assert set(fused) >= {"0", "1", "2"}  # convolution, batch normalisation and ReLU in one kernel
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    with engine.open("cpu") as session:
        found = session.run({"input": x})["output"]
    np.testing.assert_allclose(found, net.eval()(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-5)


def test_several_networks_and_builds_of_one_do_not_disturb_each_other(network: Network) -> None:
    other = from_torch(nn.Linear(4, 2), torch.randn(1, 4))
    first, second = network.build(), network.build()
    assert first.layers == second.layers
    assert {name for layer in other.build().layers for name in layer.onnx_nodes} == {"Linear"}


def test_the_engines_file_knows_its_network(network: Network, net: nn.Module, tmp_path: Path) -> None:
    path = network.build(verify=False).save(tmp_path / "small.engine")
    assert open_engine(path, network).model is network
    same_again = from_torch(net, torch.randn(1, 3, 8, 8), name="small")
    assert open_engine(path, same_again).model is same_again
    with pytest.raises(EngineError, match="another model"):
        open_engine(path, from_torch(nn.Conv2d(3, 4, 3, padding=1), torch.randn(1, 3, 8, 8)))


def test_maps_need_an_onnx_graph(network: Network) -> None:
    engine = network.build(verify=False)
    with pytest.raises(EngineError, match="written layer by layer"):
        engine.fusion_map()


def test_what_tensorrt_refuses_at_the_build() -> None:
    network = from_torch(nn.Linear(4, 2), torch.randn(1, 4))
    with pytest.raises(BuildError, match=r"compute capability 1\.0"):
        network.build(compute_capabilities=[(1, 0)])
