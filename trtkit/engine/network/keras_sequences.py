"""The rules for Keras' layers over sequences: attention, GRU and LSTM."""

from __future__ import annotations

from typing import Any

import numpy as np

from trtkit.engine.network import layers, recurrent
from trtkit.engine.network.keras_rules import Held, refuse_if, rule, weight
from trtkit.engine.network.writer import Writer
from trtkit.engine.trt import trt


@rule("MultiHeadAttention")
def _attention(w: Writer, layer: Any, query: Held, value: Held, key: Held | None = None, *,
               use_causal_mask: bool = False) -> Held:  # fmt: skip
    """Keras keeps a matrix for each head, (width, heads, size), and the one at the end as (heads, size, width)."""
    given = [one.in_keras_order(w) for one in (query, key or value, value)]
    refuse_if(w, any(len(x.shape) != 3 for x in given), "attention over more than one axis")
    special = [one for one in ("_use_gate", "_sliding_window") if getattr(layer, one, None)]
    refuse_if(w, bool(special), f"attention with {' and '.join(special)}")
    parts = (layer._query_dense, layer._key_dense, layer._value_dense)
    heads = [_project(w, dense, x) for dense, x in zip(parts, given, strict=True)]
    seen = w.constant(layers.causal(given[0].shape[1])) if use_causal_mask else None
    y = layers.join_heads(w, layers.attention(w, *heads, added=seen))
    kernel = weight(layer._output_dense.kernel)
    return Held(layers.linear(w, y, kernel.reshape(-1, kernel.shape[-1]).T, weight(layer._output_dense.bias)))


def _project(w: Writer, dense: Any, x: trt.ITensor) -> trt.ITensor:
    """(N, T, width) -> (N, heads, T, size)"""
    kernel, bias = weight(dense.kernel), weight(dense.bias)
    width, heads, _ = kernel.shape
    y = layers.linear(w, x, kernel.reshape(width, -1).T, None if bias is None else bias.ravel())
    return layers.split_heads(w, y, heads)


@rule("GRU", "LSTM")
def _recurrent(w: Writer, layer: Any, x: Held, *states: Any, initial_state: Any = None) -> Any:
    """The outputs, or the last one, and the last states if the layer returns them."""
    given = initial_state or states
    first = [one.in_keras_order(w) for one in (given if isinstance(given, (list, tuple)) else [given])]
    backwards = layer.go_backwards
    every, last = recurrent.run(w, _cell(w, layer), x.in_keras_order(w), first or None, reverse=backwards)
    if backwards:  # Keras leaves the outputs in the order in which they came about
        every = _reversed(w, every)
    y = every if layer.return_sequences else last[0]
    return [Held(y), *map(Held, last)] if layer.return_state else Held(y)


def _reversed(w: Writer, x: trt.ITensor) -> trt.ITensor:
    """x (N, T, units) from its end in time to its beginning."""
    steps = x.shape[1]
    return layers.crop(w, x, (0, steps - 1, 0), (x.shape[0], steps, x.shape[2]), (1, -1, 1))


def _cell(w: Writer, layer: Any) -> recurrent.Cell:
    """Keras keeps (inputs, gates * units), and a GRU's gates as z, r, n where torch and `Cell` have r, z, n."""
    names = [getattr(f, "__name__", "") for f in (layer.activation, layer.recurrent_activation)]
    refuse_if(w, names != ["tanh", "sigmoid"], f"a recurrent layer with the activations {names}")
    refuse_if(w, layer.stateful, "a stateful layer")
    kind, cell = type(layer).__name__.lower(), layer.cell
    inputs, states = weight(cell.kernel).T, weight(cell.recurrent_kernel).T
    bias = weight(cell.bias) if layer.use_bias else np.zeros(len(inputs), np.float32)
    one, other = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))  # of a GRU one for inputs, one for states
    if kind == "lstm":
        return recurrent.Cell(kind, inputs, states, one, other)
    inputs, states, one, other = (_swapped(array, layer.units) for array in (inputs, states, one, other))
    return recurrent.Cell(kind, inputs, states, one, other, layer.reset_after)


def _swapped(array: np.ndarray, units: int) -> np.ndarray:
    z, r, n = np.split(array, [units, 2 * units])
    return np.concatenate([r, z, n])


@rule("Bidirectional")
def _bidirectional(w: Writer, layer: Any, x: Held) -> Held:
    refuse_if(w, layer.return_state or layer.merge_mode is None, "return_state or merge_mode=None of two directions")
    refuse_if(w, type(layer.forward_layer).__name__ not in ("GRU", "LSTM"), "two directions of such a layer")
    there, back = (_one_way(w, one, x) for one in (layer.forward_layer, layer.backward_layer))
    if layer.merge_mode == "concat":
        return Held(layers.concatenate(w, [there, back], -1))
    kind = "PROD" if layer.merge_mode == "mul" else "SUM"
    y = layers.elementwise(w, kind, there, back)
    return Held(layers.elementwise(w, "PROD", y, w.constant([0.5])) if layer.merge_mode == "ave" else y)


def _one_way(w: Writer, layer: Any, x: Held) -> trt.ITensor:
    """One direction, its outputs in the order of time."""
    with w.layer(f"{w.owner}/{layer.name}"):
        every, last = recurrent.run(w, _cell(w, layer), x.in_keras_order(w), reverse=layer.go_backwards)
    return every if layer.return_sequences else last[0]
