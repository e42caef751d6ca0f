"""Every rule for Keras' layers, alone and with odd settings: the network equals what Keras computes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from tests.engine.network.nets import same
from trtkit.engine.network import Network, from_keras
from trtkit.errors import BuildError, ModelError

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported
import keras
from keras import layers as L

IMAGE, SEQUENCE = (9, 8, 4), (5, 6)


def randomised(model: keras.Model, seed: int = 0) -> keras.Model:
    """Biases and statistics that are not the zeros and ones they begin with, which would hide mistakes."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        name = variable.path.rsplit("/", 1)[-1]
        if "variance" in name or "gamma" in name:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
        elif len(variable.shape) == 1 or "bias" in name:
            variable.assign(rng.normal(0, 0.2, variable.shape).astype(np.float32))
    return model


def one(*layers: Any, shape: tuple[int, ...] = IMAGE, dtype: str = "float32") -> Network:
    return from_keras(randomised(keras.Sequential([keras.Input(shape, dtype=dtype), *layers])))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (7, 10)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [(3, 1, 1), (3, 2, 1), ((2, 5), (3, 2), 1), (4, 2, 1), (3, 1, 2), (1, 2, 1)],
)
def test_convolutions(padding: str, size: tuple[int, int], kernel: Any, stride: Any, dilation: int) -> None:
    same(one(L.Conv2D(6, kernel, stride, padding, dilation_rate=dilation), shape=(*size, 4)))


@pytest.mark.parametrize(
    "layer",
    [
        L.Conv2D(6, 3, groups=2, use_bias=False),
        L.Conv2D(6, 3, activation="softmax"),
        L.DepthwiseConv2D(3, 2, "same"),
        L.DepthwiseConv2D(3, depth_multiplier=3, activation="relu6"),
        L.SeparableConv2D(5, 3, 2, "same", depth_multiplier=2, activation="gelu"),
        L.MaxPooling2D(3, 2, "same"),
        L.MaxPooling2D((2, 3), (1, 2)),
        L.AveragePooling2D((3, 2), 2, "same"),
        L.AveragePooling2D(2),
        L.GlobalAveragePooling2D(),
        L.GlobalAveragePooling2D(keepdims=True),
        L.GlobalMaxPooling2D(),
        L.ZeroPadding2D(((1, 0), (2, 3))),
        L.BatchNormalization(),
        L.BatchNormalization(axis=1, scale=False, center=False),
        L.LayerNormalization(),
        L.LayerNormalization(axis=(1, 2, 3)),
        L.Dense(5, "tanh"),
        L.Flatten(),
        L.Reshape((4, -1, 3)),
        L.Permute((3, 1, 2)),
        L.Softmax(axis=1),
        L.Rescaling([1.0, 2.0, 3.0, 4.0], -1.0),
        L.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[1.0, 2.0, 3.0, 4.0]),
        L.ReLU(6.0),
        L.ReLU(negative_slope=0.3),
        L.LeakyReLU(0.1),
        L.ELU(0.7),
    ],
    ids=lambda layer: layer.name,
)
def test_a_layer_alone_and_behind_a_convolution(layer: keras.Layer) -> None:
    """Behind a convolution the image is held channels first, alone it is as Keras has it."""
    same(one(layer))
    same(one(L.Conv2D(4, 1), type(layer).from_config(layer.get_config())))


ACTIVATIONS = ["relu", "relu6", "sigmoid", "tanh", "gelu", "silu", "hard_silu", "hard_sigmoid", "elu", "selu",
               "softmax", "softplus", "softsign", "leaky_relu", "linear"]  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    same(one(L.Activation(name)))
    same(one(L.Conv2D(3, 2), L.Activation(name)))


def test_flatten_turns_the_image_back_before_a_dense_layer() -> None:
    network = same(one(L.Conv2D(6, 3), L.ReLU(), L.MaxPooling2D(), L.Flatten(), L.Dense(7)))
    kinds = [layer.kind for layer in network.layers]
    assert kinds[:4] == ["SHUFFLE", "CONVOLUTION", "ACTIVATION", "POOLING"]  # turned once, then left so
    assert kinds[4:6] == ["SHUFFLE", "SHUFFLE"]  # turned back, and made flat


def test_several_inputs_and_outputs_shared_layers_and_arithmetic() -> None:
    a, b = keras.Input((9, 7, 3), name="a"), keras.Input((9, 7, 3), name="b")
    shared = L.Conv2D(4, 3, padding="same", strides=2)
    left, right = shared(a), shared(b)
    outputs = [L.Concatenate()([left, right]), L.Flatten()(left - right), L.Average()([left, right, right]), 2 * right]
    network = same(from_keras(randomised(keras.Model({"b": b, "a": a}, outputs))))
    assert sorted(info.name for info in network.inputs) == ["a", "b"]
    assert len(network.outputs) == 4


@pytest.mark.parametrize("merge", [L.Add, L.Multiply, L.Maximum, L.Minimum, L.Subtract])
def test_merging_a_turned_image_with_one_that_is_not(merge: type) -> None:
    x = keras.Input(IMAGE)
    scale = L.Reshape((1, 1, 4))(L.Dense(4)(L.GlobalAveragePooling2D()(x)))
    same(from_keras(randomised(keras.Model(x, merge()([L.Conv2D(4, 3)(x), scale])))))


def test_an_output_that_is_an_input_and_one_that_is_given_twice() -> None:
    x = keras.Input((4,))
    y = L.ReLU()(x)
    same(from_keras(keras.Model(x, [x, y, y])))


def test_models_inside_models() -> None:
    inner = keras.Sequential([keras.Input(IMAGE), L.Conv2D(5, 3), L.BatchNormalization()], name="inner")
    network = same(one(inner, L.Flatten(), L.Dense(4)))
    assert any(layer.source.startswith("inner/conv2d") for layer in network.layers)


# Sequences


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(L.LSTM, {}), (L.LSTM, {"use_bias": False}), (L.GRU, {}), (L.GRU, {"reset_after": False}),
     (L.GRU, {"use_bias": False})],
)  # fmt: skip
def test_recurrent_layers(kind: type, options: dict[str, Any], sequences: bool, backwards: bool) -> None:
    same(one(kind(3, return_sequences=sequences, go_backwards=backwards, **options), shape=SEQUENCE))


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("sequences", [False, True])
def test_two_directions(merge: str, sequences: bool) -> None:
    same(one(L.Bidirectional(L.GRU(3, return_sequences=sequences), merge_mode=merge), shape=SEQUENCE))


def test_states_out_of_one_layer_into_the_next() -> None:
    x = keras.Input(SEQUENCE)
    _, h, c = L.LSTM(3, return_state=True)(x)
    y = L.LSTM(3, return_sequences=True)(x, initial_state=[h, c])
    same(from_keras(randomised(keras.Model(x, [y, c]))))


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    x, memory = keras.Input((5, 8)), keras.Input((7, 12))
    y = L.MultiHeadAttention(2, 3)(x, x, use_causal_mask=causal)
    z = L.MultiHeadAttention(2, 3, value_dim=4, use_bias=False)(y, memory)
    same(from_keras(randomised(keras.Model([x, memory], z))))


def test_embeddings_get_indices_that_exist() -> None:
    network = same(one(L.Embedding(5, 4), L.GlobalAveragePooling1D(), shape=(6,), dtype="int32"))
    assert network.random_inputs(50)["".join(info.name for info in network.inputs)].max() == 4


# What is refused


def test_a_layer_without_a_rule() -> None:
    with pytest.raises(ModelError, match=r"No rule for the layer 'up', a UpSampling2D .*trtkit\.load\(model\)"):
        one(L.UpSampling2D(name="up"))


def test_a_class_of_the_users_with_a_known_name_is_not_taken_for_keras_own() -> None:
    class Dense(L.Dense):
        def call(self, x: Any) -> Any:
            return 2 * super().call(x)

    with pytest.raises(ModelError, match="No rule for the layer"):
        one(Dense(3))


@pytest.mark.parametrize(
    ("layer", "shape", "why"),
    [
        (L.Embedding(5, 4, mask_zero=True), (3,), "mask_zero"),
        (L.GRU(3, activation="relu"), SEQUENCE, "'relu', 'sigmoid'"),
        (L.Dense(3, activation="log_softmax"), (3,), "log_softmax"),
        (L.ReLU(threshold=1.0), (3,), "threshold"),
        (L.AveragePooling2D(2, 2, "same"), (5, 5, 1), "repeats the edge"),
    ],
)
def test_settings_without_a_rule(layer: keras.Layer, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        one(layer, shape=shape)


def test_a_model_that_leaves_sizes_open() -> None:
    with pytest.raises(ModelError, match="leaves dimensions of"):
        one(L.Conv2D(3, 3), shape=(None, None, 3))


def test_a_type_without_a_rule() -> None:
    with pytest.raises(BuildError, match=r"An input of type float16.*trtkit\.autocast"):
        one(L.ReLU(), shape=(3,), dtype="float16")
