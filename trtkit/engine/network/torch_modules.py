"""The rules for torch's modules: which layer of TensorRT each becomes, and where its weights go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from trtkit.engine.network import layers, recurrent
from trtkit.engine.network.writer import Writer
from trtkit.engine.trt import trt
from trtkit.errors import ModelError

Rule = Callable[..., Any]
RULES: dict[type, Rule] = {}


def rule(*kinds: type) -> Callable[[Rule], Rule]:
    """Mark a function as the rule for these types of modules."""

    def mark(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return mark


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of a module's type. A subclass may compute something else, so it has none, and is looked into."""
    return RULES.get(type(module))


def write(w: Writer, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Add the layers of a module.

    Raises:
        ModelError: there is no rule for its type.
    """
    found = rule_for(module)
    if found is None:
        raise ModelError(
            f"No rule for the layer {w.owner!r}, a {type(module).__name__}. Take the way through ONNX instead, "
            "trtkit.build(trtkit.load(module, example)), or write it with layers that have a rule: "
            f"{', '.join(sorted(kind.__name__ for kind in RULES))}."
        )
    return found(w, module, *args, **kwargs)


def refuse_if(w: Writer, wrong: bool, what: str) -> None:
    """For settings of a layer that its rule does not know: better none than a wrong one."""
    if wrong:
        raise ModelError(
            f"The layer {w.owner!r}: {what} has no rule. Take the way through ONNX instead, "
            "trtkit.build(trtkit.load(module, example))."
        )


def array(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().cpu().numpy()


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


# Convolution and pooling


@rule(nn.Conv2d)
def _conv(w: Writer, m: nn.Conv2d, x: trt.ITensor) -> trt.ITensor:
    refuse_if(w, m.padding_mode != "zeros", f"padding_mode={m.padding_mode!r}")
    return layers.convolution(  # padding="same" has torch put the larger part behind, as Keras does
        w, x, array(m.weight), array(m.bias),
        stride=m.stride, padding=m.padding, dilation=m.dilation, groups=m.groups,
    )  # fmt: skip


@rule(nn.Conv1d)
def _conv1d(w: Writer, m: nn.Conv1d, x: trt.ITensor) -> trt.ITensor:
    """As a convolution of images one pixel high, since TensorRT's convolutions have two or three axes."""
    refuse_if(w, m.padding_mode != "zeros", f"padding_mode={m.padding_mode!r}")
    padding = m.padding if isinstance(m.padding, str) else (0, *m.padding)
    y = layers.convolution(
        w, layers.unsqueeze(w, x, [2]), array(m.weight)[:, :, None], array(m.bias),
        stride=(1, *m.stride), padding=padding, dilation=(1, *m.dilation), groups=m.groups,
    )  # fmt: skip
    return layers.squeeze(w, y, [2])


@rule(nn.ConvTranspose2d)
def _deconv(w: Writer, m: nn.ConvTranspose2d, x: trt.ITensor) -> trt.ITensor:
    refuse_if(w, any(m.output_padding), "output_padding")
    refuse_if(w, any(d != 1 for d in m.dilation), "dilation of a transposed convolution")
    return layers.deconvolution(
        w, x, array(m.weight), array(m.bias), stride=m.stride, padding=m.padding, groups=m.groups
    )


@rule(nn.MaxPool2d)
def _max_pool(w: Writer, m: nn.MaxPool2d, x: trt.ITensor) -> trt.ITensor:
    return max_pool(w, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def max_pool(w: Writer, x: trt.ITensor, window: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
             ceil_mode: bool = False, return_indices: bool = False) -> trt.ITensor:  # fmt: skip
    refuse_if(w, return_indices, "return_indices")
    window, stride, padding = pair(window), pair(stride or window), pair(padding)
    refuse_if(w, pair(dilation) != (1, 1), "a dilated maximum")
    # torch leaves out a last window that would begin behind the image, TensorRT does not
    refuse_if(w, ceil_mode and (any(padding) or stride > window), "ceil_mode with padding or gaps")
    return layers.pool(w, x, "MAX", window, stride=stride, padding=padding, round_up=ceil_mode)


@rule(nn.AvgPool2d)
def _avg_pool(w: Writer, m: nn.AvgPool2d, x: trt.ITensor) -> trt.ITensor:
    return avg_pool(w, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)


def avg_pool(w: Writer, x: trt.ITensor, window: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
             count_include_pad: bool = True, divisor_override: int | None = None) -> trt.ITensor:  # fmt: skip
    refuse_if(w, ceil_mode or divisor_override is not None, "ceil_mode or divisor_override of an average")
    window, padding = pair(window), pair(padding)
    return layers.pool(w, x, "AVERAGE", window, stride=pair(stride or window), padding=padding,
                       count_padding=count_include_pad)  # fmt: skip


@rule(nn.AdaptiveAvgPool2d)
def _adaptive(w: Writer, m: nn.AdaptiveAvgPool2d, x: trt.ITensor) -> trt.ITensor:
    return adaptive_avg_pool(w, x, m.output_size)


def adaptive_avg_pool(w: Writer, x: trt.ITensor, size: Any) -> trt.ITensor:
    """Down to one pixel an average over both axes; else windows of one size, where they fit."""
    have, want = tuple(x.shape)[2:], pair(size)
    if want == (1, 1):
        return layers.reduce(w, "AVG", x, (2, 3), keep=True)
    fits = all(n is None or (n <= h and h % n == 0) for h, n in zip(have, want, strict=True))
    refuse_if(w, not fits, f"an adaptive average from {have} to {want}, which needs windows of several sizes,")
    window = tuple(1 if n is None else h // n for h, n in zip(have, want, strict=True))
    return layers.pool(w, x, "AVERAGE", window, stride=window)


@rule(nn.ZeroPad2d)
def _zero_pad(w: Writer, m: nn.ZeroPad2d, x: trt.ITensor) -> trt.ITensor:
    left, right, top, bottom = m.padding
    return layers.pad(w, x, (top, left), (bottom, right))


# Products, norms, tables


@rule(nn.Linear)
def _linear(w: Writer, m: nn.Linear, x: trt.ITensor) -> trt.ITensor:
    return layers.linear(w, x, array(m.weight), array(m.bias))


@rule(nn.BatchNorm1d, nn.BatchNorm2d)
def _batch_norm(w: Writer, m: nn.BatchNorm2d, x: trt.ITensor) -> trt.ITensor:
    refuse_if(w, m.running_mean is None, "a batch normalisation without stored statistics")
    mean, variance = array(m.running_mean), array(m.running_var)
    return layers.batch_norm(w, x, mean, variance, array(m.weight), array(m.bias), m.eps, axis=1)


@rule(nn.LayerNorm)
def _layer_norm(w: Writer, m: nn.LayerNorm, x: trt.ITensor) -> trt.ITensor:
    rank = len(x.shape)
    return layers.layer_norm(w, x, array(m.weight), array(m.bias), m.eps, range(rank - len(m.normalized_shape), rank))


@rule(nn.Embedding)
def _embedding(w: Writer, m: nn.Embedding, x: trt.ITensor) -> trt.ITensor:
    refuse_if(w, m.max_norm is not None, "an embedding with max_norm")
    return layers.embedding(w, x, array(m.weight))


# Activations

SIMPLE = {nn.ReLU: ("RELU",), nn.Sigmoid: ("SIGMOID",), nn.Tanh: ("TANH",), nn.SELU: layers.SELU,
          nn.Softsign: ("SOFTSIGN",), nn.Hardsigmoid: ("HARD_SIGMOID", 1 / 6, 0.5)}  # fmt: skip


@rule(*SIMPLE)
def _simple(w: Writer, m: nn.Module, x: trt.ITensor) -> trt.ITensor:
    return layers.activation(w, x, *SIMPLE[type(m)])  # type: ignore[arg-type]  # a kind and up to two numbers


@rule(nn.ReLU6, nn.Hardtanh)
def _clip(w: Writer, m: nn.Hardtanh, x: trt.ITensor) -> trt.ITensor:
    return layers.activation(w, x, "CLIP", m.min_val, m.max_val)


@rule(nn.LeakyReLU)
def _leaky(w: Writer, m: nn.LeakyReLU, x: trt.ITensor) -> trt.ITensor:
    return layers.activation(w, x, "LEAKY_RELU", m.negative_slope)


@rule(nn.ELU)
def _elu(w: Writer, m: nn.ELU, x: trt.ITensor) -> trt.ITensor:
    return layers.activation(w, x, "ELU", m.alpha)


@rule(nn.GELU)
def _gelu(w: Writer, m: nn.GELU, x: trt.ITensor) -> trt.ITensor:
    return layers.activation(w, x, "GELU_TANH" if m.approximate == "tanh" else "GELU_ERF")


@rule(nn.SiLU)
def _silu(w: Writer, m: nn.SiLU, x: trt.ITensor) -> trt.ITensor:
    return layers.silu(w, x)


@rule(nn.Hardswish)
def _hard_swish(w: Writer, m: nn.Hardswish, x: trt.ITensor) -> trt.ITensor:
    return layers.hard_swish(w, x)


@rule(nn.Softmax)
def _softmax(w: Writer, m: nn.Softmax, x: trt.ITensor) -> trt.ITensor:
    refuse_if(w, m.dim is None, "a softmax without its axis (dim=None)")
    return layers.softmax(w, x, int(m.dim or 0))


# What does nothing, or only says how bytes are read


@rule(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
def _identity(w: Writer, m: nn.Module, x: trt.ITensor) -> trt.ITensor:
    return x


@rule(nn.Flatten)
def _flatten(w: Writer, m: nn.Flatten, x: trt.ITensor) -> trt.ITensor:
    return flatten(w, x, m.start_dim, m.end_dim)


def flatten(w: Writer, x: trt.ITensor, start_dim: int = 0, end_dim: int = -1) -> trt.ITensor:
    shape = tuple(x.shape)
    first, last = start_dim % len(shape), end_dim % len(shape)
    middle = shape[first : last + 1]
    joined = -1 if -1 in middle else int(np.prod(middle))
    kept = [0 if n == -1 else n for n in shape[:first]]
    return layers.reshape(w, x, (*kept, joined, *shape[last + 1 :]))


# Attention


@rule(nn.MultiheadAttention)
def _attention(w: Writer, m: nn.MultiheadAttention, query: trt.ITensor, key: trt.ITensor, value: trt.ITensor,
               key_padding_mask: Any = None, need_weights: bool = True, attn_mask: Any = None,
               average_attn_weights: bool = True, is_causal: bool = False) -> Any:  # fmt: skip
    """Returns (output, None): who uses the attention weights gets an error from the layer that does."""
    refuse_if(w, key_padding_mask is not None or attn_mask is not None, "an attention mask")
    refuse_if(w, m.bias_k is not None or m.add_zero_attn, "bias_k or add_zero_attn")
    if not m.batch_first:
        query, key, value = (layers.transpose(w, x, (1, 0, 2)) for x in (query, key, value))
    matrices = np.split(array(m.in_proj_weight), 3) if m.in_proj_weight is not None else [
        array(part) for part in (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)]  # fmt: skip
    biases = [None] * 3 if m.in_proj_bias is None else np.split(array(m.in_proj_bias), 3)
    heads = [
        layers.split_heads(w, layers.linear(w, x, matrix, bias), m.num_heads)
        for x, matrix, bias in zip((query, key, value), matrices, biases, strict=True)
    ]
    y = layers.join_heads(w, layers.attention(w, *heads))
    y = layers.linear(w, y, array(m.out_proj.weight), array(m.out_proj.bias))
    return (y if m.batch_first else layers.transpose(w, y, (1, 0, 2))), None


@rule(nn.TransformerEncoderLayer)
def _encoder_layer(w: Writer, m: nn.TransformerEncoderLayer, x: trt.ITensor, src_mask: Any = None,
                   src_key_padding_mask: Any = None, is_causal: bool = False) -> trt.ITensor:  # fmt: skip
    refuse_if(w, src_mask is not None or src_key_padding_mask is not None, "an attention mask")

    def attend(y: trt.ITensor) -> trt.ITensor:
        return part(w, m, "self_attn", y, y, y)[0]

    def feed_forward(y: trt.ITensor) -> trt.ITensor:
        return part(w, m, "linear2", _activate(w, m, part(w, m, "linear1", y)))

    for inside, norm in ((attend, "norm1"), (feed_forward, "norm2")):
        if m.norm_first:
            x = layers.elementwise(w, "SUM", x, inside(part(w, m, norm, x)))
        else:
            x = part(w, m, norm, layers.elementwise(w, "SUM", x, inside(x)))
    return x


def _activate(w: Writer, m: nn.TransformerEncoderLayer, x: trt.ITensor) -> trt.ITensor:
    kinds = {"relu": "RELU", "gelu": "GELU_ERF"}
    name = getattr(m.activation, "__name__", type(m.activation).__name__).lower()
    refuse_if(w, name not in kinds, f"the activation {name}")
    return layers.activation(w, x, kinds[name])


@rule(nn.TransformerEncoder)
def _encoder(w: Writer, m: nn.TransformerEncoder, x: trt.ITensor, mask: Any = None, src_key_padding_mask: Any = None,
             is_causal: Any = None) -> trt.ITensor:  # fmt: skip
    refuse_if(w, mask is not None or src_key_padding_mask is not None, "an attention mask")
    for number in range(len(m.layers)):
        x = part(w, m, f"layers.{number}", x)
    return x if m.norm is None else part(w, m, "norm", x)


def part(w: Writer, m: nn.Module, path: str, *args: Any) -> Any:
    """A layer inside a module that is written whole, under its own name."""
    with w.layer(f"{w.owner}.{path}"):
        return write(w, m.get_submodule(path), *args)


# Recurrent layers


@rule(nn.GRU, nn.LSTM)
def _recurrent(w: Writer, m: nn.GRU, x: trt.ITensor, first: Any = None) -> Any:
    """Returns (outputs, last states) as torch does; the states of all layers and directions on the first axis."""
    kind = type(m).__name__.lower()
    refuse_if(w, m.proj_size > 0, "proj_size")
    refuse_if(w, first is not None, "a first state given from outside")
    x = x if m.batch_first else layers.transpose(w, x, (1, 0, 2))
    last: list[list[trt.ITensor]] = []
    for number in range(m.num_layers):
        outputs = []
        for reverse in (False, True)[: 1 + m.bidirectional]:
            every, states = recurrent.run(w, _cell(m, kind, f"_l{number}{'_reverse' * reverse}"), x, reverse=reverse)
            outputs.append(every)
            last.append([layers.unsqueeze(w, state, [0]) for state in states])
        x = outputs[0] if len(outputs) == 1 else layers.concatenate(w, outputs, 2)
    states = [one[0] if len(one) == 1 else layers.concatenate(w, one, 0) for one in map(list, zip(*last, strict=True))]
    x = x if m.batch_first else layers.transpose(w, x, (1, 0, 2))
    return x, (states[0] if kind == "gru" else tuple(states))


def _cell(m: nn.GRU, kind: str, end: str) -> recurrent.Cell:
    weights, states = array(getattr(m, f"weight_ih{end}")), array(getattr(m, f"weight_hh{end}"))
    none = np.zeros(len(weights), np.float32)
    one, other = (array(getattr(m, f"bias_{side}{end}")) if m.bias else none for side in ("ih", "hh"))
    return recurrent.Cell(kind, weights, states, one, other)
