"""Look at tensors inside a graph while it runs: every tap is an extra output of a copy of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.graph.shapes import concrete_tensors, results
from trtkit.model import Model

Batch = Mapping[str, Any] | np.ndarray

CHUNK_BYTES = 256 << 20  # of tensors that `each` holds at a time


class Taps:
    """A model that also gives out its intermediate tensors.

    Only tensors of the main graph can be tapped: those inside If, Loop and Scan bodies exist once per iteration.

    Args:
        names: which tensors, of inputs, weights and whatever a node computes; by default everything that a node of
            the main graph computes, in the graph's order.

    Raises:
        ModelError: the main graph has no tensor of such a name; the message lists near ones.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 2] y) {a = Neg(x)  y = Relu(a)}'''))
    >>> taps = Taps(model)
    >>> taps.names
    ('a', 'y')
    >>> taps.run(np.array([[1, -2]], np.float32))["a"].tolist()
    [[-1.0, 2.0]]
    """

    def __init__(self, model: Model, names: Iterable[str] | None = None) -> None:
        tapped = model.copy()
        graph = tapped.ir.graph
        self.names = tuple(v.name or "" for node in graph for v in results(node)) if names is None else tuple(names)
        values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
        given = {value.name for value in (*graph.inputs, *graph.outputs)}
        for name in self.names:
            if name not in values:
                near = get_close_matches(name, values, 3)
                hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else " Taps(model).names lists them."
                raise ModelError(f"{model.name!r} has no tensor {name!r} to look at.{hint}")
            if name not in given:
                graph.outputs.append(values[name])
                given.add(name)
        self._model, self._origin = tapped, model

    def run(self, batch: Batch, only: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The tapped tensors (or `only` some of them) for one batch of inputs, all in memory at once.

        Raises:
            ModelError: the batch does not fit the model's inputs.
        """
        inputs = self._model.check_inputs(batch)
        names = self.names if only is None else only
        taken = {name: inputs[name] for name in names if name in inputs}
        wanted = [name for name in names if name not in taken]
        return {**taken, **(self._model.reference.run(inputs, wanted) if wanted else {})}

    def each(self, batch: Batch, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[str, np.ndarray]]:
        """Name and values of one tapped tensor after the other, in the order of `names`.

        The tensors come in chunks of at most `chunk_bytes` (or one tensor, if that is larger), and the graph is opened
        and run again for each: ONNX Runtime keeps every output of a graph to the end of a run, fetched or not.

        Raises:
            ModelError: the batch does not fit the model's inputs.
        """
        inputs = self._model.check_inputs(batch)
        for chunk in self._chunks(inputs, chunk_bytes):
            tensors = Taps(self._origin, dict.fromkeys(chunk)).run(inputs)
            for name in chunk:
                yield name, tensors.pop(name)

    def _chunks(self, inputs: Mapping[str, np.ndarray], chunk_bytes: int) -> Iterator[list[str]]:
        """Names in runs whose tensors fit into `chunk_bytes`; a tensor of unknown size is alone."""
        sizes = self._sizes(inputs)
        chunk: list[str] = []
        held = 0
        for name in self.names:
            size = sizes.get(name, chunk_bytes)
            if chunk and held + size > chunk_bytes:
                yield chunk
                chunk, held = [], 0
            chunk.append(name)
            held += size
        if chunk:
            yield chunk

    def _sizes(self, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for info in self._origin.inputs:
            for dim, size in zip(info.shape, inputs[info.name].shape, strict=True):
                if isinstance(dim, str) and size > 0:
                    sizes[dim] = size
        return {name: tensor.size_bytes for name, tensor in concrete_tensors(self._origin, dims=sizes).items()}
