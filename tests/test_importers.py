"""load: every kind of source, and every way in which a file or a module can be wrong."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from trtkit.course import nets, photos
from trtkit.errors import ModelError
from trtkit.importers import load
from trtkit.model import Model

X = np.array([[-1, 0, 1, 2]], np.float32)


def proto(nodes: str = "y = Relu(x)", inputs: str = "float[n, 4] x", opset: str = '"": 20') -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"<ir_version: 10, opset_import: [{opset}]> g ({inputs}) => (float[n, 4] y) {{ {nodes} }}"
    )


def refused(source: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(source, *arguments, **options)
    return str(caught.value)


# Kinds of source


def test_path_bytes_proto_and_ir_give_the_same_model(tmp_path: Path) -> None:
    original = proto("a = Relu(x) y = Neg(a)")
    data = original.SerializeToString()
    file = tmp_path / "net.onnx"
    file.write_bytes(data)
    sources = [file, str(file), data, bytearray(data), memoryview(data), original, ir.from_proto(original)]
    models = [load(source) for source in sources]
    assert [m.name for m in models] == ["net", "net", "g", "g", "g", "g", "g"]
    for model in models:
        assert model.op_counts == {"Relu": 1, "Neg": 1}
        assert model.inputs == models[0].inputs and model.inputs[0].shape == ("n", 4)
        np.testing.assert_array_equal(model.run(X)["y"], [[0, 0, -1, -2]])
    assert load(file, name="mine").name == "mine"


def test_an_ir_model_given_is_not_changed() -> None:
    given = ir.from_proto(proto())
    model = load(given)
    next(iter(model.ir.graph)).name = "renamed"
    assert next(iter(given.graph)).name == ""


def test_every_node_gets_a_name_of_its_own() -> None:
    model = load(proto("[same] a = Relu(x) [same] b = Neg(a) c = Abs(b) d = Abs(c) [Abs_2] y = Neg(d)"))
    names = [node.name for node in model.ir.graph]
    assert names == ["same", "same_2", "Abs_2", "Abs_3", "Abs_2_2"]


def test_nodes_inside_a_body_are_named_too() -> None:
    body = "then_branch = t () => (float[n, 4] p) {p = Relu(x)}, else_branch = e () => (float[n, 4] q) {q = Neg(x)}"
    model = load(proto(f"y = If <{body}> (c)", "float[n, 4] x, bool c"))
    names = [node.name for node in model.ir.graph.all_nodes()]
    assert len(names) == 3 and len(set(names)) == 3 and all(names)
    assert model.op_counts == {"If": 1, "Relu": 1, "Neg": 1}


def test_an_old_opset_is_lifted() -> None:
    model = load(proto("y = Clip <min = 0.0, max = 1.0> (x)", opset='"": 9'))
    assert model.opset == 13
    np.testing.assert_array_equal(model.run(X)["y"], [[0, 0, 1, 1]])


def test_functions_of_the_file_are_inlined() -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "own": 1]>
        g (float[n, 4] x) => (float[n, 4] y) { a = own.twice(x) y = own.twice(a) }
        <domain: "own", opset_import: ["": 20]> twice (v) => (w) { w = Add(v, v) }"""
    model = load(onnx.parser.parse_model(text))
    assert model.op_counts == {"Add": 2} and not model.ir.functions
    assert len({node.name for node in model.ir.graph}) == 2
    np.testing.assert_array_equal(model.run(X)["y"], 4 * X)


def test_initialisers_that_are_also_inputs_are_weights() -> None:
    model = load(proto("y = Add(x, w)", "float[n, 4] x, float[4] w"))
    assert [info.name for info in model.inputs] == ["x", "w"]
    old = proto("y = Add(x, w)", "float[n, 4] x, float[4] w")
    old.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    model = load(old)
    assert [info.name for info in model.inputs] == ["x"]
    np.testing.assert_array_equal(model.run(X)["y"], X + 1)


# Files that are none


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "resnet50.onnx").write_bytes(b"")
    assert "ONNX files in that folder: resnet50.onnx" in refused(tmp_path / "resnet.onnx")
    assert refused(tmp_path / "nowhere" / "net.onnx").startswith("No such file")
    assert "is a folder; give the path" in refused(tmp_path)


def test_what_is_not_onnx(tmp_path: Path) -> None:
    archive = tmp_path / "net.pt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", b"x" * 100)
    assert "looks like a zip archive (a PyTorch checkpoint?)" in refused(archive)
    for data in (b"", b"\x08\x0a", b"hello, this is no model", b"\xff" * 64, b'{"a": 1}', b"\x89PNG\r\n\x1a\n"):
        assert "is not an ONNX model" in refused(data)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_truncated(tmp_path: Path, share: float) -> None:
    model = proto("y = Add(x, w)")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1000, 4), np.float32)[:1], "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1000, np.float32), "unused"))
    data = model.SerializeToString()
    file = tmp_path / "net.onnx"
    file.write_bytes(data[: int(len(data) * share)])
    assert str(file) in refused(file)


def test_broken_graphs_are_named() -> None:
    message = refused(proto("[bad] y = Nonsense(x)"))
    assert "node 'bad' uses the operator 'Nonsense', which ONNX (opset 20) does not have" in message
    missing = proto("a = Relu(x) y = Neg(a)")
    del missing.graph.node[0]
    assert "not valid" in refused(missing)
    two = proto("y = Relu(x)")
    two.graph.node[0].input.append("x")
    assert "not valid" in refused(two)


def test_a_custom_operator_in_a_domain_of_its_own_is_loaded() -> None:
    model = load(proto("y = own.Mine(x)", opset='"": 20, "own": 1'))
    assert model.op_counts == {"Mine": 1}
    with pytest.raises(ModelError, match="ONNX Runtime cannot load this graph"):
        model.run(X)


def test_an_operator_newer_than_the_opset_is_refused() -> None:
    assert "not valid" in refused(proto("y = Gelu(x)", opset='"": 17'))  # Gelu came with opset 20


@pytest.mark.parametrize("source", [None, 3, [1, 2], object(), np.ones(3), nn.ReLU])
def test_what_cannot_be_a_model(source: Any) -> None:
    assert "Give the path of an ONNX file" in refused(source)


# Weights in a second file


def external(folder: Path, location: str = "weights.bin", **entries: int) -> Path:
    """A model in `folder` whose weight `w` lies in another file."""
    model = proto("y = Add(x, w)")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=str(value))
    model.graph.initializer.append(weight)
    file = folder / "net.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def test_weights_beside_the_file(tmp_path: Path) -> None:
    file = external(tmp_path, offset=8, length=16)
    (tmp_path / "weights.bin").write_bytes(bytes(8) + np.arange(4, dtype=np.float32).tobytes() + b"rest")
    model = load(file)
    (tmp_path / "weights.bin").unlink()  # the model stands on its own from here on
    np.testing.assert_array_equal(model.run(X)["y"], X + np.arange(4))
    assert load(model.to_bytes()).size_bytes == 16


def test_weights_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
    np.testing.assert_array_equal(load(external(tmp_path, "data/w.bin")).run(X)["y"], X + 1)


def test_weights_missing_or_cut_off(tmp_path: Path) -> None:
    file = external(tmp_path)
    message = refused(file)
    assert str(file) in message and "weights.bin with its weights is missing" in message
    (tmp_path / "weights.bin").write_bytes(bytes(15))
    assert "has 15 bytes, and weight 'w' ends at byte 16. It is cut off" in refused(file)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "data/../../secret.bin"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "models" / "data").mkdir(parents=True)
    assert "outside the model's folder" in refused(external(tmp_path / "models", location))


def test_a_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights.bin").symlink_to(tmp_path / "secret.bin")
    assert "outside the model's folder" in refused(external(tmp_path / "models"))


def test_weights_in_another_file_need_a_path(tmp_path: Path) -> None:
    data = external(tmp_path).read_bytes()
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    assert "Give the path of the .onnx file" in refused(data)
    assert "Give the path of the .onnx file" in refused(onnx.ModelProto.FromString(data))


@pytest.mark.parametrize("place", ["constant", "body"])
def test_weights_outside_are_refused_wherever_the_tensor_is(tmp_path: Path, place: str) -> None:
    """A tensor in a node's attribute, or in the body of an If, is read no more freely than an initialiser."""
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "models").mkdir()
    file = external(tmp_path / "models", "../secret.bin")
    model = onnx.ModelProto.FromString(file.read_bytes())
    weight = model.graph.initializer.pop()
    if place == "constant":
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    else:
        then, other = "t () => (float[n, 4] p) {p = Add(x, w)}", "e () => (float[n, 4] q) {q = Neg(x)}"
        model = proto(f"y = If <then_branch = {then}, else_branch = {other}> (c)", "float[n, 4] x, bool c")
        body = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
        body.initializer.append(weight)
    file.write_bytes(model.SerializeToString())
    message = refused(file)
    assert str(file) in message and "outside the" in message


# Torch modules


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.drop(self.linear(left)) + right


@pytest.fixture(scope="module")
def two() -> TwoInputs:
    return TwoInputs()


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_a_module_with_two_inputs(two: TwoInputs, kind: str) -> None:
    left, right = torch.rand(2, 4), torch.rand(2, 3)
    examples = {"tuple": (left, right), "list": [left, right], "dict": {"right": right, "left": left}}[kind]
    two.train()
    model = load(two, examples)
    assert two.training  # as it was, though the graph is one for inference
    assert {info.name: info.shape for info in model.inputs} == {"left": ("batch", 4), "right": ("batch", 3)}
    assert model.outputs[0].shape == ("batch", 3)
    assert model.name == "TwoInputs" and model.origin is model and model.history == ()
    left, right = torch.rand(5, 4), torch.rand(5, 3)
    (got,) = model.run({"left": left.numpy(), "right": right.numpy()}).values()
    with torch.no_grad():
        np.testing.assert_allclose(got, two.eval()(left, right).numpy(), atol=1e-6)


def test_every_submodule_is_in_its_own_mode_again(two: TwoInputs) -> None:
    two.train()
    two.linear.eval()  # as somebody does who freezes a part
    load(two, (torch.rand(2, 4), torch.rand(2, 3)))
    assert (two.training, two.linear.training, two.drop.training) == (True, False, True)


def test_one_tensor_static_or_with_a_changing_batch() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    example = torch.rand(1, 3, 4)
    assert load(net, example).inputs[0].shape == ("batch", 3, 4)  # from an example of one
    assert load(net, example, dynamic_batch=False, name="fixed").inputs[0].shape == (1, 3, 4)


def test_half_precision_of_the_module_is_the_models() -> None:
    model = load(nn.Linear(4, 2).half(), torch.rand(2, 4).half())
    assert model.precision == "fp16" and model.inputs[0].dtype == np.float16
    assert load(nn.Linear(4, 2).bfloat16(), torch.rand(2, 4).bfloat16()).precision == "bf16"


def test_a_module_without_examples_or_that_cannot_be_traced(two: TwoInputs) -> None:
    assert "give example inputs as well" in refused(two)

    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if float(x.sum()) > 0 else x - 1

    module = Branching().train()
    assert refused(module, torch.rand(2, 4)).startswith("PyTorch could not export Branching: ")
    assert module.training


def test_a_wrong_number_of_examples_is_an_error(two: TwoInputs) -> None:
    assert "TwoInputs" in refused(two, torch.rand(2, 4))  # `right` is missing
    assert "TwoInputs" in refused(two, (torch.rand(2, 4), torch.rand(2, 3), torch.rand(2, 3)))


def test_mobilenet_v2_answers_as_in_torch() -> None:
    net = nets.mobilenet_v2()
    model: Model = load(net, torch.rand(1, 3, 224, 224))
    assert model.inputs[0].shape == ("batch", 3, 224, 224)
    assert model.op_counts["Conv"] == 52 and model.op_counts["BatchNormalization"] == 52
    batch = photos.views(3, seed=0)
    (got,) = model.run(batch).values()
    with torch.no_grad():
        np.testing.assert_allclose(got, net(torch.from_numpy(batch)).numpy(), atol=2e-4)
