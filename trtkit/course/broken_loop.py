"""The Keras-to-TensorRT loop of the web: its lines tried one by one, its silent mistakes each on a switch.

Lesson 12 takes them apart. `trtkit.engine.network.from_keras` is what to use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

import numpy as np

from trtkit.course.digits import Digits
from trtkit.engine.child import log
from trtkit.engine.network import Network, layers
from trtkit.engine.network.network import Framework
from trtkit.engine.network.writer import Writer
from trtkit.engine.trt import trt
from trtkit.importers.keras import load_keras

# What the web has, in its order, for a model that takes (28, 28, 1); `weights` is a Keras kernel (3, 3, 1, 8).
LINES = (
    "builder.max_batch_size = 1",
    "builder.max_workspace_size = 1 << 30",
    "builder.fp16_mode = True",
    "x = network.add_input('x', trt.float32, (28, 28, 1))",
    "y = network.add_convolution(x, 8, (3, 3), weights, bias)",
    "y = network.add_convolution_nd(x, 8, (3, 3), weights, bias)",
    "y.get_output(0).shape",
    "y = network.add_pooling(x, trt.PoolingType.MAX, (2, 2))",
    "y = network.add_fully_connected(x, 10, weights, bias)",
    "engine = builder.build_cuda_engine(network)",
)
# Mistakes that raise nothing: the engine is built, and computes something else.
MISTAKES = {
    "kernel": "the bytes of Keras' (height, width, inputs, outputs) read as (outputs, inputs, height, width)",
    "padding": "padding 'same' replaced by kernel // 2 on every side",
    "activation": "activation='relu' inside Conv2D and Dense not looked at",
    "flatten": "Flatten straight from (N, C, H, W)",
    "dense": "Dense's (inputs, outputs) read as (outputs, inputs)",
    "softmax": "add_softmax without setting its axes",
}


class Tried(NamedTuple):
    """A line of code and what came of it."""

    code: str
    said: str  # the exception, else TensorRT's log, else ""

    def __str__(self) -> str:
        return f"{self.code}\n    {self.said or 'nothing is said'}"


def try_lines(lines: Collection[str] = LINES) -> list[Tried]:
    """Run the lines one after the other, each whatever came of those before, and note what is said."""
    logger = log()
    builder = trt.Builder(logger)
    names: dict[str, Any] = {"trt": trt, "builder": builder, "network": builder.create_network()}
    names |= {"weights": np.zeros((3, 3, 1, 8), np.float32), "bias": np.zeros(8, np.float32)}
    return [Tried(code, _said(code, names, logger)) for code in lines]


def _said(code: str, names: dict[str, Any], logger: Any) -> str:
    logger.clear()
    error = ""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            exec(code, names)  # a constant of this file or a line that the reader wrote
    except Exception as caught:  # noqa: BLE001 - whatever it is, it is what is to be shown
        error = f"{type(caught).__name__}: {_short(str(caught))}"
    words = [_short(word) for word in logger.errors[:1]]
    return " | ".join([error, *words] if error else words)


def _short(text: str, limit: int = 105) -> str:
    text = text.replace("tensorrt_rtx_bindings.tensorrt_rtx.", "").splitlines()[0]
    return text if len(text) <= limit else text[: limit - 1] + "…"


def digit_model(learn: Digits, epochs: int = 8) -> Any:
    """A small Keras CNN trained on the digits, (N, 8, 8, 1) to probabilities (N, 10). Takes about 4 s."""
    keras = load_keras()
    keras.utils.set_random_seed(0)
    kl = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            kl.Conv2D(16, 3, padding="same", activation="relu", name="conv1"),
            kl.Conv2D(32, 3, strides=2, padding="same", name="conv2"),
            kl.BatchNormalization(name="norm"),
            kl.ReLU(name="relu"),
            kl.Flatten(name="flatten"),
            kl.Dense(32, activation="relu", name="dense1"),
            kl.Dense(10, activation="softmax", name="dense2"),
        ],
        name="digits",
    )
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(as_keras(learn), learn.y, batch_size=64, epochs=epochs, verbose=0)
    return model


def as_keras(digits: Digits) -> np.ndarray:
    """(N, 1, 8, 8) as (N, 8, 8, 1)."""
    return np.ascontiguousarray(digits.x.transpose(0, 2, 3, 1))


def translate(model: Any, mistakes: Collection[str] = ()) -> Network:
    """The loop over `model.layers` as it can be written today, with some of `MISTAKES` in it, for `digit_model`."""
    keras = load_keras()
    w = Writer("Keras")
    x = layers_of(w, model, mistakes)

    def run(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(model(arrays["image"], training=False))]

    return Network(w, "+".join(mistakes) or "right", {"probabilities": x}, Framework("Keras", run))


def layers_of(w: Writer, model: Any, mistakes: Collection[str]) -> Any:
    """The loop itself."""
    with w.layer("image"):
        x = layers.transpose(w, w.input("image", (-1, 8, 8, 1), np.float32), (0, 3, 1, 2))
    for layer in model.layers:
        kind, weights = type(layer).__name__, [np.array(one) for one in layer.get_weights()]
        with w.layer(layer.name):
            if kind == "Conv2D":
                kernel, bias = weights
                x = _convolution(w, layer, x, kernel, bias, mistakes)
            elif kind == "BatchNormalization":
                gamma, beta, mean, variance = weights
                x = layers.batch_norm(w, x, mean, variance, gamma, beta, layer.epsilon, axis=1)
            elif kind == "ReLU":
                x = layers.activation(w, x, "RELU")
            elif kind == "Flatten":
                x = x if "flatten" in mistakes else layers.transpose(w, x, (0, 2, 3, 1))
                x = layers.reshape(w, x, (0, -1))
            elif kind == "Dense":
                kernel, bias = weights
                x = _dense(w, layer, x, kernel, bias, mistakes)
    return x


def _convolution(w: Writer, layer: Any, x: Any, kernel: Any, bias: Any, mistakes: Collection[str]) -> Any:
    height, width, inputs, outputs = kernel.shape
    right = kernel.transpose(3, 2, 0, 1)
    kernel = kernel.reshape(outputs, inputs, height, width) if "kernel" in mistakes else right
    padding = (height // 2, width // 2) if "padding" in mistakes else layer.padding
    x = layers.convolution(w, x, kernel, bias, stride=layer.strides, padding=padding)
    relu = layer.activation.__name__ == "relu" and "activation" not in mistakes
    return layers.activation(w, x, "RELU") if relu else x


def _dense(w: Writer, layer: Any, x: Any, kernel: Any, bias: Any, mistakes: Collection[str]) -> Any:
    x = layers.linear(w, x, kernel.reshape(kernel.shape[::-1]) if "dense" in mistakes else kernel.T, bias)
    if layer.activation.__name__ == "softmax":
        return w.done(w.network.add_softmax(x)) if "softmax" in mistakes else layers.softmax(w, x)
    return x if "activation" in mistakes else layers.activation(w, x, "RELU")


class Measured(NamedTuple):
    """What a translation computes, beside Keras: ‖got - expected‖ / ‖expected‖, and how many digits it gets right."""

    error: float
    accuracy: float


def measure_mistakes(model: Any, judge: Digits, batch: int = 0) -> dict[str, Measured]:
    """For the right loop and for each mistake alone: the error and the accuracy, in batches of `batch` (0: all)."""
    x = as_keras(judge)
    expected = Network.run(translate(model), x)["probabilities"]
    found = {}
    for name in ("right", *MISTAKES):
        network = translate(model, () if name == "right" else (name,))
        size = batch or len(x)
        got = np.concatenate([network.run(x[at : at + size])["probabilities"] for at in range(0, len(x), size)])
        keras = network.origin.run({"image": x})["probabilities"] if name == "right" else expected
        error = float(np.linalg.norm(got - keras) / np.linalg.norm(keras))
        found[name] = Measured(error, float((got.argmax(1) == judge.y).mean()))
    return found
