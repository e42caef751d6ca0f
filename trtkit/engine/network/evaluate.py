"""Evaluator: computes a TensorRT network definition on the CPU, from what TensorRT itself says is in it.

It reads every layer back from the `INetworkDefinition`: kernels, strides, padding, axes. So a weight in a wrong layout
or a padding that was forgotten is found here, before any GPU is asked. It knows the layers that `layers` and
`recurrent` add, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from trtkit.engine.trt import trt
from trtkit.errors import MissingError, ModelError, extra

if TYPE_CHECKING:
    import torch

Values: TypeAlias = "dict[str, torch.Tensor]"  # by name of TensorRT's tensor


class Read(NamedTuple):
    """A layer read back from a definition, and what its type was called there."""

    kind: str
    layer: Any


class Evaluator:
    """A network definition that runs on the CPU, in PyTorch.

    Raises:
        ModelError: the definition has a layer that this evaluator does not know.
        MissingError: PyTorch is not installed.
    """

    def __init__(self, definition: trt.INetworkDefinition) -> None:
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise MissingError(f"Evaluating a network on the CPU needs PyTorch: {extra('torch')}.") from error
        from trtkit.engine.network.operators import CLASSES

        self.definition = definition
        self.layers: list[Read] = []
        for layer in (definition.get_layer(i) for i in range(definition.num_layers)):
            kind = layer.type.name
            if kind not in CLASSES:
                raise ModelError(f"The layer {layer.name!r}, {kind}, is none that the evaluator knows.")
            # get_layer gives a bare ILayer; as its own class it shows what it holds (and `type` may mean another thing)
            layer.__class__ = getattr(trt, CLASSES[kind])
            self.layers.append(Read(kind, layer))
        self.output_names = [definition.get_output(i).name for i in range(definition.num_outputs)]

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Compute the named outputs (all by default). Any tensor of the definition can be named."""
        import torch

        values: Values = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        with torch.no_grad():
            self._walk(values)
        missing = [name for name in outputs or self.output_names if name not in values]
        if missing:
            raise ModelError(f"Nothing computes {missing}: no such tensor, or a layer comes before what it needs.")
        return {name: values[name].contiguous().numpy() for name in outputs or self.output_names}

    def _walk(self, values: Values) -> None:
        """Layers in their order; those of a loop, which depend on its iterators and states, when one of its outputs
        is asked for."""
        waiting: list[Read] = []
        done: dict[str, list[Values]] = {}
        for read in self.layers:
            kind, layer = read
            if kind == "LOOP_OUTPUT":
                name = layer.loop.name
                if name not in done:
                    done[name] = _iterate(waiting, values, name)
                values[layer.get_output(0).name] = _collect(layer, done[name], values)
            elif kind in _OF_A_LOOP or not _known(layer, values):
                waiting.append(read)
            else:
                compute(read, values)


_OF_A_LOOP = ("TRIP_LIMIT", "ITERATOR", "RECURRENCE")


def inputs_of(layer: Any) -> list[Any]:
    """A layer's input tensors; an input that was left out is None."""
    return [layer.get_input(i) for i in range(layer.num_inputs)]


def _known(layer: Any, values: Values) -> bool:
    return all(tensor is None or tensor.name in values for tensor in inputs_of(layer))


def compute(read: Read, values: Values) -> None:
    """Put a layer's output among the values."""
    from trtkit.engine.network.operators import OPERATORS

    kind, layer = read
    operator: Callable[..., torch.Tensor] = OPERATORS[kind]
    given = [None if tensor is None else values[tensor.name] for tensor in inputs_of(layer)]
    try:
        values[layer.get_output(0).name] = operator(layer, *given)
    except (RuntimeError, IndexError) as error:
        shapes = [tuple(one.shape) for one in given if one is not None]
        raise ModelError(f"The layer {layer.name!r} cannot compute with shapes {shapes}: {error}") from error


def _iterate(waiting: list[Read], outer: Values, name: str) -> list[Values]:
    """All values inside a loop, for each of its iterations and once more after the last, where only states count."""
    mine = [read for read in waiting if read.kind in _OF_A_LOOP and read.layer.loop.name == name]
    (limit,), iterators, states = ([read.layer for read in mine if read.kind == kind] for kind in _OF_A_LOOP)
    now = {state.get_output(0).name: outer[state.get_input(0).name] for state in states}
    rounds: list[Values] = []
    for step in range(int(outer[limit.get_input(0).name])):
        inside = {**outer, **now}
        for layer in iterators:
            whole = outer[layer.get_input(0).name]
            at = whole.shape[layer.axis] - 1 - step if layer.reverse else step
            inside[layer.get_output(0).name] = whole.select(layer.axis, at)
        for read in waiting:
            if read.kind not in _OF_A_LOOP and _known(read.layer, inside):
                compute(read, inside)
        rounds.append(inside)
        now = {state.get_output(0).name: inside[state.get_input(1).name] for state in states}
    return [*rounds, now]


def _collect(layer: Any, rounds: list[Values], outer: Values) -> torch.Tensor:
    """What a loop gives: the last value of a state, or the values of all iterations along a new axis."""
    import torch

    name = layer.get_input(0).name
    if layer.kind == trt.LoopOutput.LAST_VALUE:
        return rounds[-1][name]
    every = [inside[name] for inside in rounds[:-1]]
    return torch.stack(every[::-1] if layer.kind == trt.LoopOutput.REVERSE else every, layer.axis)
