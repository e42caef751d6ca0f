"""Keras 3 on its torch backend: outputs equal to Keras's own, and clear errors for what cannot come over."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtkit
from trtkit.errors import ModelError
from trtkit.model import Model

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported
import keras
from keras import layers

RNG = np.random.default_rng(0)


def check(net: keras.Model, *inputs: np.ndarray, model: Model | None = None) -> Model:
    """Load a Keras model (or take the one given) and hold its outputs against Keras's, on another batch size."""
    model = model or trtkit.load(net)
    got = model.run(dict(zip([info.name for info in model.inputs], inputs, strict=True)))
    want = net(inputs[0] if len(inputs) == 1 else list(inputs), training=False)
    for mine, theirs in zip(got.values(), keras.tree.flatten(want), strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
    return model


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def test_an_architecture_of_keras_applications() -> None:
    keras.utils.set_random_seed(0)
    net = keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), classes=10, alpha=0.25)
    model = check(net, normal(3, 32, 32, 3))
    assert [str(i).split(" ", 1)[1] for i in model.inputs] == ["float32 (batch, 32, 32, 3)"]  # Keras's layout
    assert [o.shape for o in model.outputs] == [("batch", 10)]
    check(net, normal(3, 32, 32, 3), model=trtkit.optimize(model))


def test_image_layers() -> None:
    net = keras.Sequential([
        keras.Input((20, 20, 3), name="photo"), layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
        layers.DepthwiseConv2D(3, depth_multiplier=2), layers.BatchNormalization(),
        layers.AveragePooling2D(2, padding="same"),
        layers.SeparableConv2D(6, 2, activation="gelu"), layers.MaxPooling2D(2), layers.PReLU(), layers.Flatten(),
        layers.Dropout(0.5), layers.Dense(5, activation="softmax", name="chances"),
    ])  # fmt: skip
    model = check(net, normal(3, 20, 20, 3))
    assert [i.name for i in model.inputs] == ["photo"] and [o.name for o in model.outputs] == ["chances"]
    assert model.history == () and model.origin is model


def test_sequence_layers() -> None:
    net = keras.Sequential([
        keras.Input((7,), dtype="int32"), layers.Embedding(50, 8),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.GRU(4), layers.LayerNormalization(), layers.Dense(2),
    ])  # fmt: skip
    model = check(net, RNG.integers(0, 50, (3, 7)).astype(np.int32))
    assert model.inputs[0].dtype == np.int32


def test_attention_with_two_inputs_and_two_outputs() -> None:
    a, b = keras.Input((6, 8), name="query"), keras.Input((4, 8), name="memory")
    attended = layers.MultiHeadAttention(2, 4)(a, b)
    net = keras.Model(
        [a, b], [layers.Dense(3, name="first")(attended), layers.GlobalAveragePooling1D(name="second")(attended)]
    )
    model = check(net, normal(3, 6, 8), normal(3, 4, 8))
    assert [i.name for i in model.inputs] == ["query", "memory"]
    assert [o.name for o in model.outputs] == ["first", "second"]


def test_inputs_in_a_dict_keep_their_names() -> None:
    a, b = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    net = keras.Model({"left": a, "right": b}, layers.Subtract(name="out")([a, b]))
    model = trtkit.load(net)
    got = model.run({"left": np.full((3, 4), 5, np.float32), "right": np.ones((3, 4), np.float32)})
    np.testing.assert_array_equal(got["out"], np.full((3, 4), 4))


class Doubling(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.dense(x) * (1 if training else 2)


def test_a_subclassed_model_needs_example_inputs() -> None:
    net = Doubling()
    with pytest.raises(ModelError, match=r"'doubling.*' does not say what it takes: give example inputs"):
        trtkit.load(net)
    x = normal(2, 5)
    net(x)
    check(net, normal(4, 5), model=trtkit.load(net, x))
    with pytest.raises(ModelError, match="does not say what it takes"):
        trtkit.load(keras.Sequential([layers.Dense(3)]))


def test_open_dimensions_need_example_inputs() -> None:
    net = keras.Sequential([keras.Input((None, 4), name="x"), layers.GRU(3)])
    with pytest.raises(ModelError, match=r"leaves dimensions of \['x'\] open"):
        trtkit.load(net)
    check(net, normal(3, 5, 4), model=trtkit.load(net, normal(2, 5, 4)))
    with pytest.raises(ModelError, match=r"takes \['x'\], and examples came for \['y'\]"):
        trtkit.load(net, {"y": normal(2, 5, 4)})
    with pytest.raises(ModelError, match=r"takes 1 inputs, \['x'\]; got 2"):
        trtkit.load(net, (normal(2, 5, 4), normal(2, 5, 4)))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files_load_in_safe_mode(tmp_path: Path, suffix: str) -> None:
    net = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu")])
    file = tmp_path / f"net{suffix}"
    net.save(file)
    model = check(net, normal(2, 4), model=trtkit.load(file))
    assert model.name == "net"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"cut off|cannot load"):
        trtkit.load(file)
    file.write_bytes(b"")
    with pytest.raises(ModelError, match=r"cut off|cannot load"):
        trtkit.load(file)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_with_code_in_it_is_refused(tmp_path: Path, suffix: str) -> None:
    net = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x + 1)])
    net.save(tmp_path / f"net{suffix}")
    with pytest.raises(ModelError, match=r"cannot load .*"):
        trtkit.load(tmp_path / f"net{suffix}")


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtkit.importers.keras._MAX_UNPACKED", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", " " * 2000)
    with pytest.raises(ModelError, match="would unpack to 2,000 bytes"):
        trtkit.load(tmp_path / "bomb.keras")


def test_another_backend_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    net = keras.Sequential([keras.Input((4,)), layers.Flatten()])
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(ModelError, match=r"runs on its tensorflow backend here.*KERAS_BACKEND=torch"):
        trtkit.load(net)


def test_a_backend_that_cannot_even_be_imported_is_named(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((4,)), layers.Flatten()]).save(tmp_path / "net.keras")
    code = "import trtkit\ntry:\n    trtkit.load('net.keras')\nexcept trtkit.errors.MissingError as e:\n    print(e)"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("KERAS_BACKEND is 'tensorflow'; trtkit loads"), done.stderr


def test_a_keras_file_chooses_the_backend_itself(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((4,)), layers.ReLU()]).save(tmp_path / "net.keras")
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    code = "import trtkit; print(trtkit.load('net.keras').op_counts)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "{'Relu': 1}", done.stderr
