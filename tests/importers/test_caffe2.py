"""Caffe2: nets written in its format with torchvision's weights, against PyTorch; and every way a file can be wrong."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torchvision import models

import trtkit
from trtkit.errors import ModelError
from trtkit.importers.caffe2 import from_caffe2
from trtkit.importers.caffe2_proto import arguments_of, fill, messages, operator
from trtkit.model import Model


class Writer:
    """Writes a torch module, layer by layer, as a Caffe2 net; blobs are overwritten in place as Caffe2's nets do."""

    def __init__(self) -> None:
        self.init, self.predict = messages()["NetDef"](name="init"), messages()["NetDef"](name="net")
        self.predict.external_input.append("data")
        self.count = 0

    def op(self, kind: str, inputs: list[str], output: str = "", more: tuple[str, ...] = (), **arguments: Any) -> str:
        self.count += 1
        output = output or f"blob_{self.count}"
        self.predict.op.append(operator(kind, inputs, [output, *more], **arguments))
        return output

    def weight(self, values: torch.Tensor) -> str:
        name = f"w_{len(self.init.op)}"
        self.init.op.append(fill(name, values.detach().numpy()))
        self.predict.external_input.append(name)
        return name

    def layer(self, x: str, layer: nn.Module) -> str:
        match layer:
            case nn.Sequential():
                for one in layer:
                    x = self.layer(x, one)
                return x
            case nn.Conv2d():
                weights = [self.weight(w) for w in (layer.weight, layer.bias) if w is not None]
                return self.op("Conv", [x, *weights], kernel=layer.kernel_size[0], stride=layer.stride[0],
                               pad=layer.padding[0], group=layer.groups, order="NCHW")  # fmt: skip
            case nn.BatchNorm2d():
                names = [self.weight(w) for w in (layer.weight, layer.bias, layer.running_mean, layer.running_var)]
                return self.op("SpatialBN", [x, *names], x, is_test=1, epsilon=layer.eps, order="NCHW")
            case nn.Linear():
                return self.op("FC", [x, self.weight(layer.weight), self.weight(layer.bias)])
            case nn.ReLU():
                return self.op("Relu", [x], x)
            case nn.Dropout():
                return self.op("Dropout", [x], x, more=(f"mask_{self.count}",), is_test=1, ratio=0.5)
            case nn.MaxPool2d():
                legacy = {"legacy_pad": 3} if layer.ceil_mode else {}
                return self.op(
                    "MaxPool", [x], kernel=layer.kernel_size, stride=layer.stride, pad=layer.padding, **legacy
                )
            case nn.AdaptiveAvgPool2d():
                return self.op("AveragePool", [x], global_pooling=1)
            case nn.LocalResponseNorm():
                return self.op(
                    "LRN", [x], more=("scale",), size=layer.size, alpha=layer.alpha, beta=layer.beta, bias=layer.k
                )
        raise AssertionError(f"the writer knows no {layer}")

    def finish(self, *outputs: str) -> tuple[bytes, bytes]:
        self.predict.external_output.extend(outputs)
        return self.init.SerializeToString(), self.predict.SerializeToString()


def squeezenet(w: Writer, net: models.SqueezeNet) -> str:
    x = "data"
    for layer in (*net.features, *net.classifier):
        if type(layer).__name__ == "Fire":
            s = w.layer(w.layer(x, layer.squeeze), nn.ReLU())
            both = [w.layer(w.layer(s, e), nn.ReLU()) for e in (layer.expand1x1, layer.expand3x3)]
            x = w.op("Concat", both, more=("dims",), order="NCHW")
        else:
            x = w.layer(x, layer)
    return w.op("Softmax", [x])  # of (N, 1000, 1, 1), as the SqueezeNet of Caffe2's zoo ends


def resnet(w: Writer, net: models.ResNet) -> str:
    x = w.layer("data", nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool))
    for block in (*net.layer1, *net.layer2, *net.layer3, *net.layer4):
        y = w.layer(x, nn.Sequential(block.conv1, block.bn1, block.relu, block.conv2, block.bn2))
        side = w.layer(x, block.downsample) if block.downsample else x
        x = w.layer(w.op("Sum", [y, side], y), nn.ReLU())
    return w.layer(w.layer(x, net.avgpool), net.fc)


class AlexNet(nn.Sequential):
    """AlexNet as it was: local response normalisation, and convolutions in two groups."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 11, 4, 2), nn.ReLU(), nn.LocalResponseNorm(5, alpha=1e-2, beta=0.75, k=2.0),
            nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(16, 32, 5, 1, 2, groups=2), nn.ReLU(),
            nn.LocalResponseNorm(3, alpha=0.1), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(32 * 3 * 3, 50), nn.ReLU(),
            nn.Dropout(), nn.Linear(50, 10),
        )  # fmt: skip


def alexnet(w: Writer, net: AlexNet) -> str:
    return w.layer("data", nn.Sequential(*(layer for layer in net if not isinstance(layer, nn.Flatten))))


@pytest.mark.parametrize(
    ("make", "write", "size"),
    [(models.squeezenet1_1, squeezenet, 96), (models.resnet18, resnet, 64), (AlexNet, alexnet, 63)],
)
def test_networks_compute_what_they_do_in_pytorch(make: Any, write: Any, size: int) -> None:
    torch.manual_seed(0)
    net = make().eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    writer = Writer()
    output = write(writer, net)
    x = torch.randn(2, 3, size, size)
    model = from_caffe2(writer.finish(output), x.numpy())
    assert [str(i) for i in model.inputs] == [f"data float32 (batch, 3, {size}, {size})"]
    assert [o.name for o in model.outputs] == [output]
    want = net(x).detach()
    if write is squeezenet:
        want = want.softmax(1)[:, :, None, None]
    got = model.run(x.numpy())[output]
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)
    slim = trtkit.optimize(model)
    np.testing.assert_allclose(slim.run(x.numpy())[output], want.numpy(), rtol=1e-4, atol=1e-5)


def one(kind: str, *inputs: np.ndarray, x: np.ndarray | None = None, **arguments: Any) -> np.ndarray:
    """What a net of a single operator gives for the input x; further inputs are weights."""
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 5)).astype(np.float32) if x is None else x
    w = Writer()
    names = [w.weight(torch.from_numpy(np.asarray(v))) for v in inputs]
    model = from_caffe2(w.finish(w.op(kind, ["data", *names], **arguments)), x)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    (got,) = model.run(x).values()
    np.testing.assert_allclose(
        ReferenceEvaluator(model.to_proto()).run(None, {"data": x})[0], got, rtol=1e-5, atol=1e-6
    )
    return got


X = np.random.default_rng(0).normal(size=(2, 4, 5, 5)).astype(np.float32)
T = torch.from_numpy(X)
F = nn.functional


@pytest.mark.parametrize(
    ("kind", "arguments", "want"),
    [
        ("LeakyRelu", {"alpha": 0.2}, F.leaky_relu(T, 0.2)),
        ("LeakyRelu", {}, F.leaky_relu(T, 0.01)),
        ("Elu", {"alpha": 0.5}, F.elu(T, 0.5)),
        ("Sigmoid", {}, T.sigmoid()),
        ("Tanh", {}, T.tanh()),
        ("Softplus", {}, F.softplus(T)),
        ("Abs", {}, T.abs()),
        ("Negative", {}, -T),
        ("AveragePool", {"kernel": 3, "stride": 2, "pad": 1}, F.avg_pool2d(T, 3, 2, 1, count_include_pad=False)),
        ("AveragePool", {"kernel": 3, "pad": 1, "count_include_pad": 1}, F.avg_pool2d(T, 3, 1, 1)),
        ("MaxPool", {"kernel_h": 2, "kernel_w": 3, "stride": 2}, F.max_pool2d(T, (2, 3), 2)),
        ("MaxPool", {"kernels": [2, 2], "strides": [2, 2], "legacy_pad": 3}, F.max_pool2d(T, 2, 2, ceil_mode=True)),
        ("MaxPool", {"kernel": 2, "pad_t": 1, "pad_l": 0}, F.max_pool2d(F.pad(T, (0, 0, 1, 0), value=-9e9), 2, 1)),
        ("MaxPool", {"global_pooling": 1}, T.amax((2, 3), keepdim=True)),
        ("Softmax", {}, T.flatten(1).softmax(1).reshape(T.shape)),
        ("Softmax", {"axis": 3}, T.softmax(3)),
        ("Flatten", {}, T.flatten(1)),
        ("Flatten", {"axis": 2}, T.flatten(0, 1).flatten(1)),
        ("Transpose", {"axes": [0, 2, 3, 1]}, T.permute(0, 2, 3, 1)),
        ("Transpose", {}, T.permute(3, 2, 1, 0)),
        ("Reshape", {"shape": [0, -1]}, T.flatten(1)),
        ("Copy", {}, T),
    ],
)
def test_operators_compute_what_pytorch_does(kind: str, arguments: dict[str, Any], want: torch.Tensor) -> None:
    np.testing.assert_allclose(one(kind, x=X, **arguments), want.numpy(), rtol=1e-5, atol=1e-6)


def test_operators_with_weights() -> None:
    slope = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    np.testing.assert_allclose(one("PRelu", slope, x=X), F.prelu(T, torch.from_numpy(slope)).numpy(), rtol=1e-6)
    np.testing.assert_allclose(one("PRelu", slope[:1], x=X), F.leaky_relu(T, 0.1).numpy(), rtol=1e-6)
    along_channels = one("Mul", slope, x=X, broadcast=1, axis=1)
    np.testing.assert_allclose(along_channels, X * slope[:, None, None], rtol=1e-6)
    np.testing.assert_allclose(
        one("Add", np.arange(5, dtype=np.float32), x=X, broadcast=1), X + np.arange(5), rtol=1e-6
    )
    np.testing.assert_array_equal(one("Reshape", np.array([2, 100]), x=X), X.reshape(2, 100))
    weight = np.random.default_rng(1).normal(size=(100, 3)).astype(np.float32)
    bias = np.ones(3, np.float32)
    np.testing.assert_allclose(
        one("FCTransposed", weight, bias, x=X), X.reshape(2, 100) @ weight + 1, rtol=1e-4, atol=1e-5
    )


def test_a_folder_with_its_value_info_or_examples_loads(tmp_path: Path) -> None:
    w = Writer()
    init, predict = w.finish(w.layer("data", nn.Conv2d(3, 4, 3)))
    (tmp_path / "init_net.pb").write_bytes(init)
    (tmp_path / "predict_net.pb").write_bytes(predict)
    example = np.zeros((1, 3, 8, 8), np.float32)
    for source in (tmp_path, tmp_path / "predict_net.pb", str(tmp_path / "init_net.pb")):
        assert trtkit.load(source, {"data": example}).inputs[0].shape == ("batch", 3, 8, 8)
    assert trtkit.load(tmp_path, example, dynamic_batch=False, name="mine").inputs[0].shape == (1, 3, 8, 8)
    with pytest.raises(ModelError, match=r"shapes of its inputs, here \['data'\]: give example inputs"):
        trtkit.load(tmp_path)
    (tmp_path / "value_info.json").write_text(json.dumps({"data": [1, [1, 3, 9, 9]]}))
    assert trtkit.load(tmp_path).inputs[0].shape == ("batch", 3, 9, 9)
    (tmp_path / "value_info.json").write_text("[1, 2]")
    with pytest.raises(ModelError, match="should read like"):
        trtkit.load(tmp_path)
    (tmp_path / "init_net.pb").unlink()
    with pytest.raises(ModelError, match=r"no file whose name ends in init_net\.pb"):
        trtkit.load(tmp_path, example)


def test_a_placeholder_for_the_input_in_the_init_net_gives_way() -> None:
    w = Writer()
    w.init.op.append(operator("ConstantFill", [], ["data"], shape=[1]))
    nets = w.finish(w.op("Relu", ["data"]))
    assert from_caffe2(nets, {"data": X}).inputs[0].name == "data"


def test_a_blob_written_twice_and_an_input_given_out_keep_their_names() -> None:
    w = Writer()
    w.op("Relu", ["data"], "y")
    w.op("Negative", ["y"], "y")
    w.op("Abs", ["y"], "z")
    model = from_caffe2(w.finish("y", "z", "data"), X)
    assert [o.name for o in model.outputs][:2] == ["y", "z"]
    got = model.run(X)
    np.testing.assert_array_equal(got["y"], -np.maximum(X, 0))
    np.testing.assert_array_equal(got["z"], np.maximum(X, 0))


def refused(*ops: Any, init: list[Any] | None = None, example: Any = X, outputs: tuple[str, ...] = ("y",)) -> str:
    net = messages()["NetDef"]
    predict = net(op=ops, external_input=["data"], external_output=outputs)
    with pytest.raises(ModelError) as caught:
        from_caffe2((net(op=init or []).SerializeToString(), predict.SerializeToString()), example)
    return str(caught.value)


def test_what_is_not_known_is_refused_with_its_place() -> None:
    relu = operator("Relu", ["data"], ["a"])
    said = refused(relu, operator("WarpDrive", ["a"], ["y"]))
    assert said.startswith("operator 1 of the predict net (WarpDrive -> y) is none of the operators")
    pooled = operator("MaxPool", ["data"], ["a", "mask"], kernel=2)
    assert "reads the blob 'mask', which neither" in refused(pooled, operator("Abs", ["mask"], ["y"]))
    assert "order NHWC; only NCHW" in refused(operator("MaxPool", ["data"], ["y"], kernel=2, order="NHWC"))
    assert "is_test=0" in refused(operator("Dropout", ["data"], ["y"]))
    assert "names no kernel size" in refused(operator("MaxPool", ["data"], ["y"]))
    assert "legacy_pad 2" in refused(operator("MaxPool", ["data"], ["y"], kernel=2, legacy_pad=2))
    assert "size 4; it must be odd" in refused(operator("LRN", ["data"], ["y"], size=4))
    assert "gives out ['y']" in refused(relu)
    wide = [fill("w", np.ones((3, 7), np.float32)), fill("b", np.ones(3, np.float32))]
    assert "do not fit together" in refused(operator("FC", ["data", "w", "b"], ["y"]), init=wide)
    assert "holds no operator" in refused()
    assert "arguments or inputs that do not fit" in refused(operator("MaxPool", ["data"], ["y"], kernel="wide"))


def test_hostile_init_nets_are_refused() -> None:
    relu = operator("Relu", ["data"], ["y"])
    for kind in ("XavierFill", "GaussianFill"):
        assert "never trained" in refused(relu, init=[operator(kind, [], ["w"], shape=[2])])
    huge = operator("ConstantFill", [], ["w"], shape=[10**9, 10**9], value=1.0)
    assert "at most 500,000,000 numbers" in refused(relu, init=[huge])
    assert "at most" in refused(relu, init=[operator("ConstantFill", [], ["w"], shape=[-1, 4])])
    short = operator("GivenTensorFill", [], ["w"], shape=[3], values=[1.0, 2.0])
    assert "gives 2 values for the shape (3,)" in refused(relu, init=[short])
    assert "no fill operator" in refused(relu, init=[operator("LoadFile", [], ["w"])])


def test_inputs_that_do_not_match_are_refused() -> None:
    add = operator("Add", ["data", "other"], ["y"])
    assert "are ['data', 'other'], so give example inputs by name" in refused(add)
    assert "examples came for ['data', 'wrong']" in refused(add, example={"data": X, "wrong": X})


def test_damaged_bytes_give_an_error_of_ours_or_a_model() -> None:
    w = Writer()
    nets = w.finish(w.layer("data", nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())))
    rng = random.Random(0)
    for _ in range(150):
        damaged = [bytearray(net) for net in nets]
        for data in damaged:
            for _ in range(rng.randrange(3)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        cut = rng.randrange(len(nets[1])) if rng.random() < 0.2 else None
        with contextlib.suppress(ModelError):
            assert isinstance(from_caffe2((bytes(damaged[0]), bytes(damaged[1][:cut])), X), Model)


def test_arguments_survive_writing_and_reading() -> None:
    op = operator("Any", [], [], number=3, real=0.5, text="NCHW", many=[1, 2], reals=np.array([0.5, 1.5], np.float32))
    back = arguments_of(messages()["OperatorDef"].FromString(op.SerializeToString()))
    assert back["reals"].tolist() == [0.5, 1.5]
    del back["reals"]
    assert back == {"number": 3, "real": 0.5, "text": "NCHW", "many": [1, 2]}
