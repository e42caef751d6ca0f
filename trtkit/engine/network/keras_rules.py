"""The rules for Keras' layers: which layers of TensorRT each becomes, and how its weights must be turned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtkit.engine.network import layers
from trtkit.engine.network.writer import Writer
from trtkit.engine.trt import trt
from trtkit.errors import ModelError

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}

_WAY_OUT = "Take the way through ONNX instead, trtkit.build(trtkit.load(model))"


@dataclass
class Held:
    """A tensor of Keras' as TensorRT holds it: in Keras' order, or turned, (N, C, H, W) for Keras' (N, H, W, C)."""

    tensor: trt.ITensor
    turned: bool = False
    _other: Held | None = None  # the same in the other order, once it was asked for

    def in_keras_order(self, w: Writer) -> trt.ITensor:
        return self._other_way(w, (0, 2, 3, 1)) if self.turned else self.tensor

    def image(self, w: Writer, data_format: str = "channels_last") -> trt.ITensor:
        """(N, C, H, W), whatever the order in Keras."""
        if data_format == "channels_first":
            return self.in_keras_order(w)
        return self.tensor if self.turned else self._other_way(w, (0, 3, 1, 2))

    def _other_way(self, w: Writer, order: Sequence[int]) -> trt.ITensor:
        if self._other is None:
            self._other = Held(layers.transpose(w, self.tensor, order), not self.turned, self)
        return self._other.tensor

    def axis(self, axis: int) -> int:
        """Where an axis of Keras' is in the tensor that is held."""
        axis %= len(self.tensor.shape)
        return (0, 2, 3, 1)[axis] if self.turned else axis


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    """Mark a function as the rule for Keras' layers of these classes."""

    def mark(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return mark


def write(w: Writer, layer: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Add the layers of one call of a Keras layer.

    Raises:
        ModelError: there is no rule for it.
    """
    import keras

    if isinstance(layer, keras.Model):
        from trtkit.engine.network.from_keras import walk

        found = walk(w, layer, keras.tree.flatten(args))
        return found[0] if len(found) == 1 else found
    kind = type(layer).__name__
    ours = type(layer).__module__.startswith("keras.")  # a class of the user's with that name computes something else
    if kind not in RULES or not ours:
        raise ModelError(
            f"No rule for the layer {w.owner!r}, a {kind} ({type(layer).__module__}). {_WAY_OUT}, or "
            f"write it with layers that have a rule: {', '.join(sorted(RULES))}."
        )
    options = {key: value for key, value in kwargs.items() if key not in ("training",) and value is not None}
    try:
        return RULES[kind](w, layer, *args, **options)
    except TypeError as error:
        raise ModelError(f"The layer {w.owner!r}, a {kind}, is called in a way without a rule ({error}).") from error


def refuse_if(w: Writer, wrong: bool, what: str) -> None:
    if wrong:
        raise ModelError(f"The layer {w.owner!r}: {what} has no rule. {_WAY_OUT}.")


def weight(variable: Any) -> Any:
    """A variable of Keras' as an array, on any backend; None stays None."""
    import keras

    return None if variable is None else np.asarray(keras.ops.convert_to_numpy(variable))


# Activations, which most layers can carry with them

_KINDS = {"relu": ("RELU",), "sigmoid": ("SIGMOID",), "tanh": ("TANH",), "elu": ("ELU", 1.0), "softsign": ("SOFTSIGN",),
          "softplus": ("SOFTPLUS", 1.0, 1.0), "relu6": ("CLIP", 0.0, 6.0), "hard_sigmoid": ("HARD_SIGMOID", 1 / 6, 0.5),
          "leaky_relu": ("LEAKY_RELU", 0.2), "selu": layers.SELU}  # fmt: skip


def activate(w: Writer, function: Any, x: trt.ITensor, axis: int = -1) -> trt.ITensor:
    """One of Keras' activation functions; `axis` is the last of Keras' order, for softmax."""
    name = "linear" if function is None else getattr(function, "__name__", type(function).__name__)
    if name == "linear":
        return x
    if name == "softmax":
        return layers.softmax(w, x, axis)
    if name in ("silu", "swish"):
        return layers.silu(w, x)
    if name in ("hard_silu", "hard_swish"):
        return layers.hard_swish(w, x)
    if name == "gelu":
        return layers.activation(w, x, "GELU_ERF")
    refuse_if(w, name not in _KINDS, f"the activation {name}")
    return layers.activation(w, x, *_KINDS[name])  # type: ignore[arg-type]


def activated(w: Writer, layer: Any, x: trt.ITensor, turned: bool) -> Held:
    """The end of a layer: its own activation, and the order in which its output is held."""
    return Held(activate(w, layer.activation, x, axis=1 if turned else -1), turned)


@rule("Activation")
def _activation(w: Writer, layer: Any, x: Held) -> Held:
    return Held(activate(w, layer.activation, x.tensor, x.axis(-1)), x.turned)


@rule("ReLU")
def _relu(w: Writer, layer: Any, x: Held) -> Held:
    slope, most = layer.negative_slope, layer.max_value
    refuse_if(w, bool(layer.threshold or (slope and most)), "a ReLU with a threshold, or with a slope and a maximum")
    if most is not None:
        return Held(layers.activation(w, x.tensor, "CLIP", 0, most), x.turned)
    return Held(layers.activation(w, x.tensor, "LEAKY_RELU" if slope else "RELU", slope), x.turned)


@rule("LeakyReLU")
def _leaky(w: Writer, layer: Any, x: Held) -> Held:
    return Held(layers.activation(w, x.tensor, "LEAKY_RELU", layer.negative_slope), x.turned)


@rule("ELU")
def _elu(w: Writer, layer: Any, x: Held) -> Held:
    return Held(layers.activation(w, x.tensor, "ELU", layer.alpha), x.turned)


@rule("Softmax")
def _softmax(w: Writer, layer: Any, x: Held) -> Held:
    refuse_if(w, not isinstance(layer.axis, int), "a softmax over several axes")
    return Held(layers.softmax(w, x.tensor, x.axis(layer.axis)), x.turned)


# Convolutions: Keras keeps (height, width, inputs, outputs), TensorRT wants (outputs, inputs, height, width)


def _convolution(w: Writer, layer: Any, x: Held, kernel: np.ndarray, bias: Any, groups: int, **options: Any) -> Held:
    refuse_if(w, layer.padding not in ("same", "valid"), f"padding={layer.padding!r}")
    y = layers.convolution(
        w, x.image(w, layer.data_format), kernel, bias, groups=groups, padding=layer.padding,
        stride=layer.strides, dilation=layer.dilation_rate, **options,
    )  # fmt: skip
    return Held(y, turned=layer.data_format == "channels_last")


@rule("Conv2D")
def _conv(w: Writer, layer: Any, x: Held) -> Held:
    y = _convolution(w, layer, x, weight(layer.kernel).transpose(3, 2, 0, 1), weight(layer.bias), layer.groups)
    return activated_image(w, layer, y)


def activated_image(w: Writer, layer: Any, y: Held) -> Held:
    return Held(activate(w, layer.activation, y.tensor, y.axis(-1)), y.turned)


@rule("DepthwiseConv2D")
def _depthwise(w: Writer, layer: Any, x: Held) -> Held:
    return activated_image(w, layer, _by_channel(w, layer, x, layer.kernel, weight(layer.bias)))


def _by_channel(w: Writer, layer: Any, x: Held, kernel: Any, bias: Any) -> Held:
    """One group a channel: Keras' (height, width, channels, many) becomes (channels * many, 1, height, width)."""
    array = weight(kernel)
    height, width, channels, multiplier = array.shape
    grouped = array.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    return _convolution(w, layer, x, grouped, bias, channels)


@rule("SeparableConv2D")
def _separable(w: Writer, layer: Any, x: Held) -> Held:
    y = _by_channel(w, layer, x, layer.depthwise_kernel, None)
    mixed = layers.convolution(w, y.tensor, weight(layer.pointwise_kernel).transpose(3, 2, 0, 1), weight(layer.bias))
    return activated_image(w, layer, Held(mixed, y.turned))


# Pooling and padding


@rule("MaxPooling2D", "AveragePooling2D")
def _pool(w: Writer, layer: Any, x: Held) -> Held:
    kind = "MAX" if type(layer).__name__.startswith("Max") else "AVERAGE"
    image = x.image(w, layer.data_format)
    if kind == "AVERAGE" and layer.padding == "same":
        _refuse_odd_averages(w, layer, tuple(image.shape)[2:])
    y = layers.pool(w, image, kind, layer.pool_size, stride=layer.strides, padding=layer.padding)
    return Held(y, turned=layer.data_format == "channels_last")


def _refuse_odd_averages(w: Writer, layer: Any, sizes: tuple[int, ...]) -> None:
    """Where "same" needs an odd amount of padding, Keras' backends disagree: the torch one repeats the edge and counts
    it, the others leave the padding out, as all of them do for even amounts."""
    import keras

    steps = zip(sizes, layer.pool_size, layer.strides, strict=True)
    odd = any(max((-(-size // stride) - 1) * stride + window - size, 0) % 2 for size, window, stride in steps)
    what = f"padding='same' of {sizes}, for which Keras' torch backend repeats the edge as no other backend does,"
    refuse_if(w, odd and keras.backend.backend() == "torch", what)


@rule("GlobalAveragePooling2D", "GlobalMaxPooling2D")
def _global_pool(w: Writer, layer: Any, x: Held) -> Held:
    kind = "AVG" if "Average" in type(layer).__name__ else "MAX"
    y = layers.reduce(w, kind, x.image(w, layer.data_format), (2, 3), keep=layer.keepdims)
    return Held(y, turned=layer.keepdims and layer.data_format == "channels_last")


@rule("GlobalAveragePooling1D", "GlobalMaxPooling1D")
def _global_pool_1d(w: Writer, layer: Any, x: Held) -> Held:
    kind = "AVG" if "Average" in type(layer).__name__ else "MAX"
    axis = 1 if layer.data_format == "channels_last" else 2
    return Held(layers.reduce(w, kind, x.in_keras_order(w), (axis,), keep=layer.keepdims))


@rule("ZeroPadding2D")
def _zero_pad(w: Writer, layer: Any, x: Held) -> Held:
    (top, bottom), (left, right) = layer.padding
    y = layers.pad(w, x.image(w, layer.data_format), (top, left), (bottom, right))
    return Held(y, turned=layer.data_format == "channels_last")


# Products, norms, tables


@rule("Dense")
def _dense(w: Writer, layer: Any, x: Held) -> Held:
    """Keras keeps (inputs, outputs) and multiplies the last axis of its own order."""
    y = layers.linear(w, x.in_keras_order(w), weight(layer.kernel).T, weight(layer.bias))
    return activated(w, layer, y, turned=False)


@rule("BatchNormalization")
def _batch_norm(w: Writer, layer: Any, x: Held) -> Held:
    gamma, beta = weight(layer.gamma if layer.scale else None), weight(layer.beta if layer.center else None)
    mean, variance = weight(layer.moving_mean), weight(layer.moving_variance)
    y = layers.batch_norm(w, x.tensor, mean, variance, gamma, beta, layer.epsilon, x.axis(layer.axis))
    return Held(y, x.turned)


@rule("LayerNormalization")
def _layer_norm(w: Writer, layer: Any, x: Held) -> Held:
    y = x.in_keras_order(w)
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    axes = sorted(axis % len(y.shape) for axis in axes)
    gamma, beta = weight(layer.gamma if layer.scale else None), weight(layer.beta if layer.center else None)
    return Held(layers.layer_norm(w, y, gamma, beta, layer.epsilon, axes))


@rule("Rescaling")
def _rescale(w: Writer, layer: Any, x: Held) -> Held:
    return _by_last_axis(w, x, np.asarray(layer.scale), np.asarray(layer.offset))


@rule("Normalization")
def _normalize(w: Writer, layer: Any, x: Held) -> Held:
    mean, variance = weight(layer.mean), weight(layer.variance)
    last = all(size == 1 for size in mean.shape[:-1]) and np.size(mean) in (1, x.tensor.shape[x.axis(-1)])
    refuse_if(w, layer.invert or not last, "a normalisation over another axis than the last, or inverted,")
    scale = 1 / np.maximum(np.sqrt(variance.ravel()), 1e-7)  # Keras' epsilon
    return _by_last_axis(w, x, scale, -mean.ravel() * scale)


def _by_last_axis(w: Writer, x: Held, scale: np.ndarray, shift: np.ndarray) -> Held:
    """x * scale + shift, one number for all or one for each index of Keras' last axis."""
    axis = x.axis(-1)
    full = np.ones(x.tensor.shape[axis])
    return Held(layers.affine(w, x.tensor, scale * full, shift * full, axis), x.turned)


@rule("Embedding")
def _embedding(w: Writer, layer: Any, x: Held) -> Held:
    refuse_if(w, layer.mask_zero, "mask_zero (later layers leave masked steps out)")
    return Held(layers.embedding(w, x.in_keras_order(w), weight(layer.embeddings)))


# Several tensors

_MERGES = {"Add": "SUM", "Multiply": "PROD", "Maximum": "MAX", "Minimum": "MIN", "Subtract": "SUB", "Average": "SUM"}


@rule(*_MERGES)
def _merge(w: Writer, layer: Any, *parts: Any) -> Held:
    """Layers take a list; keras.ops takes two, of which one may be a number."""
    given = parts[0] if isinstance(parts[0], (list, tuple)) else parts
    held = [one if isinstance(one, Held) else Held(w.constant(np.float32(np.atleast_1d(one)))) for one in given]
    ranks = {len(one.tensor.shape) for one in held}
    turned = any(one.turned for one in held) and ranks == {4}
    tensors = [one.image(w) if turned else one.in_keras_order(w) for one in held]
    kind = type(layer).__name__
    y = tensors[0]
    for other in tensors[1:]:
        y = layers.elementwise(w, _MERGES[kind], y, other)
    if kind == "Average":
        y = layers.elementwise(w, "PROD", y, w.constant([1 / len(tensors)]))
    return Held(y, turned)


@rule("Concatenate")
def _concatenate(w: Writer, layer: Any, parts: Sequence[Held]) -> Held:
    turned = any(one.turned for one in parts)
    tensors = [one.image(w) if turned else one.in_keras_order(w) for one in parts]
    return Held(layers.concatenate(w, tensors, Held(tensors[0], turned).axis(layer.axis)), turned)


# Shapes: all in Keras' order


@rule("Flatten")
def _flatten(w: Writer, layer: Any, x: Held) -> Held:
    y = x.in_keras_order(w) if layer.data_format == "channels_last" else x.image(w, "channels_first")
    refuse_if(w, layer.data_format != "channels_last" and len(y.shape) > 2, "a Flatten of channels_first")
    return Held(layers.reshape(w, y, (0, -1)) if len(y.shape) > 1 else layers.unsqueeze(w, y, [1]))


@rule("Reshape")
def _reshape(w: Writer, layer: Any, x: Held) -> Held:
    return Held(layers.reshape(w, x.in_keras_order(w), (0, *_known_sizes(layer, x))))


def _known_sizes(layer: Any, x: Held) -> list[int]:
    """The target with its -1 worked out, so that the batch alone may change."""
    total, known = int(np.prod(tuple(x.tensor.shape)[1:])), int(np.prod([n for n in layer.target_shape if n != -1]))
    return [total // known if n == -1 else n for n in layer.target_shape]


@rule("Permute")
def _permute(w: Writer, layer: Any, x: Held) -> Held:
    return Held(layers.transpose(w, x.in_keras_order(w), (0, *layer.dims)))


@rule("Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "Identity",
      "ActivityRegularization")  # fmt: skip
def _identity(w: Writer, layer: Any, x: Held) -> Held:
    return x
