"""GRU and LSTM as a loop of TensorRT's: an iterator over time, a recurrence for the state, and what comes out.

Weights are taken as torch keeps them: (gates * units, inputs) with the gates r, z, n of a GRU and i, f, g, o of an
LSTM. The product with the inputs is done once for all time steps, before the loop; only that with the state is inside.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trtkit.engine.network import layers
from trtkit.engine.network.writer import Writer
from trtkit.engine.trt import trt
from trtkit.errors import ModelError


class Cell(NamedTuple):
    """The weights of one direction of one layer."""

    kind: str  # "gru" or "lstm"
    inputs: np.ndarray  # (gates * units, inputs)
    states: np.ndarray  # (gates * units, units)
    input_bias: np.ndarray  # (gates * units,)
    state_bias: np.ndarray  # (gates * units,)
    reset_after: bool = True  # GRU: the reset gate acts on the product with the state (torch, cuDNN), or on the state

    @property
    def units(self) -> int:
        return self.states.shape[1]


def run(
    w: Writer, cell: Cell, x: trt.ITensor, states: list[trt.ITensor] | None = None, *, reverse: bool = False
) -> tuple[trt.ITensor, list[trt.ITensor]]:
    """Run a cell over x (N, T, inputs): all outputs (N, T, units) in the order of time, and the last states (N, units).

    Args:
        states: the first states, [h] or for an LSTM [h, c]; zeros by default.
        reverse: begin at the last time step.
    """
    steps = x.shape[1]
    if steps < 0:
        raise ModelError(
            f"{w.owner!r}: how many time steps will there be? TensorRT-RTX unrolls loops: their number must be fixed."
        )
    projected = layers.linear(w, x, cell.inputs, _input_bias(cell))
    zeros = np.zeros((1, cell.units), np.float32)
    states = states or [layers.repeat(w, zeros, x) for _ in range(2 if cell.kind == "lstm" else 1)]
    count = w.constant(np.int32(steps))
    loop = w.network.add_loop()
    loop.name = count.name  # one of its own: the evaluator knows by it what belongs together
    w.name(loop.add_trip_limit(count, trt.TripLimit.COUNT))
    now = w.done(loop.add_iterator(projected, 1, reverse))
    recurrences = [loop.add_recurrence(state) for state in states]
    held = [w.done(recurrence) for recurrence in recurrences]
    new = (_lstm if cell.kind == "lstm" else _gru)(w, cell, now, held)
    for recurrence, state in zip(recurrences, new, strict=True):
        recurrence.set_input(1, state)
    every = loop.add_loop_output(new[0], trt.LoopOutput.REVERSE if reverse else trt.LoopOutput.CONCATENATE, 1)
    every.set_input(1, count)
    last = [w.done(loop.add_loop_output(state, trt.LoopOutput.LAST_VALUE)) for state in held]
    return w.done(every), last


def _input_bias(cell: Cell) -> np.ndarray:
    """The bias that can be added before the loop: all of it, but for the part of a GRU that the reset gate acts on."""
    if cell.kind == "lstm":
        return cell.input_bias + cell.state_bias
    inside = cell.state_bias.copy()
    inside[2 * cell.units :] = 0
    return cell.input_bias + inside


def _gate(w: Writer, x: trt.ITensor, number: int, units: int) -> trt.ITensor:
    """Columns of one gate out of (N, gates * units)."""
    return layers.crop(w, x, (0, number * units), (x.shape[0], units))


def _gru(w: Writer, cell: Cell, x: trt.ITensor, states: list[trt.ITensor]) -> list[trt.ITensor]:
    """r, z = σ(x + W h);  n = tanh(x + r (W h + b)), or with the reset gate before it tanh(x + W (r h) + b);
    h' = n + z (h - n)"""
    (h,), units = states, cell.units
    gates = 2 * units
    product = layers.linear(w, h, cell.states[:gates])
    both = layers.activation(w, layers.elementwise(w, "SUM", layers.crop(w, x, (0, 0), (x.shape[0], gates)), product),
                             "SIGMOID")  # fmt: skip
    r, z = _gate(w, both, 0, units), _gate(w, both, 1, units)
    own, bias = cell.states[gates:], cell.state_bias[gates:]
    if cell.reset_after:
        reset = layers.elementwise(w, "PROD", r, layers.linear(w, h, own, bias))
    else:
        reset = layers.linear(w, layers.elementwise(w, "PROD", r, h), own, bias)
    n = layers.activation(w, layers.elementwise(w, "SUM", _gate(w, x, 2, units), reset), "TANH")
    kept = layers.elementwise(w, "PROD", z, layers.elementwise(w, "SUB", h, n))
    return [layers.elementwise(w, "SUM", n, kept)]


def _lstm(w: Writer, cell: Cell, x: trt.ITensor, states: list[trt.ITensor]) -> list[trt.ITensor]:
    """i, f, o = σ(x + W h);  g = tanh(x + W h);  c' = f c + i g;  h' = o tanh(c')"""
    (h, c), units = states, cell.units
    product = layers.elementwise(w, "SUM", x, layers.linear(w, h, cell.states))
    i, f, g, o = (
        layers.activation(w, _gate(w, product, number, units), "TANH" if number == 2 else "SIGMOID")
        for number in range(4)
    )
    c = layers.elementwise(w, "SUM", layers.elementwise(w, "PROD", f, c), layers.elementwise(w, "PROD", i, g))
    return [layers.elementwise(w, "PROD", o, layers.activation(w, c, "TANH")), c]
