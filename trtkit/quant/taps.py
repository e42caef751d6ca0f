"""Look at tensors inside a graph while it runs: every tap is an extra output of a copy of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from trtkit.errors import DataError, ModelError
from trtkit.model import Model

Batch = Mapping[str, Any] | np.ndarray


class Taps:
    """A model that also gives out the named intermediate tensors.

    Only tensors of the main graph can be tapped: those inside If, Loop and Scan bodies exist once per iteration.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 2] y) {a = Neg(x)  y = Relu(a)}'''))
    >>> Taps(model, ["a"]).run(np.array([[1, -2]], np.float32))["a"].tolist()
    [[-1.0, 2.0]]
    """

    def __init__(self, model: Model, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._expected = model.inputs
        tapped = model.copy()
        graph = tapped.ir.graph
        values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
        given = {value.name for value in (*graph.inputs, *graph.outputs)}
        for name in self.names:
            if name not in values:
                raise ModelError(f"{model.name!r} has no tensor {name!r} to look at.")
            if name not in given:
                graph.outputs.append(values[name])
        self._model = tapped

    def run(self, batch: Batch, only: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The tapped tensors (or `only` some of them) for one batch of inputs."""
        inputs = self._model.check_inputs(batch)
        names = self.names if only is None else only
        taken = {name: inputs[name] for name in names if name in inputs}
        wanted = [name for name in names if name not in taken]
        return {**taken, **(self._model.reference.run(inputs, wanted) if wanted else {})}

    def stream(self, data: Iterable[Batch]) -> Iterator[dict[str, np.ndarray]]:
        """The tapped tensors batch after batch, one batch in memory at a time.

        Raises:
            DataError: there is no batch, or one does not fit the model, or a tensor holds NaN or infinity.
        """
        if isinstance(data, np.ndarray | Mapping):
            raise DataError("Calibration data is an iterable of batches, and this is a single one: "
                            "put it into a list, or split it into several batches.")
        count = 0
        for batch in data:
            try:
                tensors = self.run(batch)
            except ModelError as error:
                raise DataError(f"Batch {count} does not fit the model: {error}") from error
            for name, tensor in tensors.items():
                check_finite(name, tensor, count)
            count += 1
            yield tensors
        if not count:
            raise DataError("There is no calibration data: the iterable gave no batch. "
                            "A generator that was used before is empty; make a new one, or pass a list.")


def check_finite(name: str, tensor: np.ndarray, batch: int) -> None:
    """Raise DataError if a tensor holds NaN or infinity, naming it."""
    if tensor.dtype.kind == "f" and not np.isfinite(tensor.max(initial=0) - tensor.min(initial=0)):
        wrong = "NaN" if np.isnan(tensor).any() else "infinity"
        raise DataError(f"Tensor {name!r} holds {wrong} in batch {batch}: no range can be drawn from it. "
                        "Check the input data of this batch, and whether the FP32 model itself is right on it.")
