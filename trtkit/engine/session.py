"""Session: a network ready to run, the same on the CPU and on the GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from trtkit.engine.computable import Computable, Runner
from trtkit.engine.shapes import Profile, check_within
from trtkit.errors import EngineError
from trtkit.model import TensorInfo, check_inputs


class Session(ABC):
    """Runs a network. Use it as a context manager, or call `close` when done.

    `device` says where it runs ("cpu", or the GPU's name); `inputs` and `outputs` what it takes and gives.
    """

    device: str = ""
    name: str = ""
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    _kind = "session"
    _closed = False

    @abstractmethod
    def run(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        """Compute the outputs, by name.

        Raises:
            ModelError: an input's name, shape or dtype does not fit, or the batch is empty.
            EngineError: the session is closed, or the engine failed while running.
        """

    def run_apart(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        """Like `run`; the outputs are ready and belong to the caller, wherever they lie: no later call changes them."""
        return self.run(inputs)

    def run_many(self, batches: Iterable[Any], overlap: bool = True) -> Iterator[dict[str, Any]]:
        """The outputs of many batches, in order, computed as the iterator is read.

        On a GPU a few batches are under way at once, and copies overlap with computing unless `overlap` is False.

        >>> import onnx, trtkit, numpy as np
        >>> model = trtkit.load(onnx.parser.parse_model(
        ...     '<ir_version: 10, opset_import: ["": 20]> g (float[n, 2] x) => (float[n, 2] y) {y = Relu(x)}'))
        >>> with trtkit.build(model).open("cpu") as session:
        ...     [float(outputs["y"].sum()) for outputs in session.run_many(np.full((1, 2), i, "f4") for i in range(3))]
        [0.0, 2.0, 4.0]
        """
        for batch in batches:
            yield self.run_apart(batch)

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:  # noqa: B027  (without profiles all fit)
        """Raise ModelError unless inputs of these shapes (by name) are inside one of the engine's profiles."""

    def close(self) -> None:
        """Free what the session holds; a second call does nothing."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise self._is_closed()

    def _is_closed(self) -> EngineError:
        return EngineError(f"This {self._kind} of {self.name!r} is closed. Open another: engine.open().")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CpuSession(Session):
    """The engine's graph on the CPU, an ONNX one in ONNX Runtime: the fallback where no GPU can run the engine.

    Several threads may use one.

    Args:
        reference: the graph in ONNX Runtime; by default the one that the model keeps, which takes all cores.
    """

    def __init__(self, model: Computable, profiles: list[Profile], reference: Runner | None = None) -> None:
        self.device = "cpu"
        self._profiles = profiles
        self.name = model.name
        self.inputs, self.outputs = model.inputs, model.outputs
        self._reference = reference or model.reference

    def run(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        self._check_open()
        arrays = check_inputs(self.inputs, inputs, self.name)
        self.check_shapes({name: array.shape for name, array in arrays.items()})
        return self._reference.run(arrays)

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        check_within(self._profiles, shapes, self.name)
