"""Session: a network ready to run, the same on the CPU and on the GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from trtkit.engine.computable import Computable
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
    _closed = False

    @abstractmethod
    def run(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        """Compute the outputs, by name.

        Raises:
            ModelError: an input's name, shape or dtype does not fit, or the batch is empty.
            EngineError: the session is closed, or the engine failed while running.
        """

    def close(self) -> None:
        """Free what the session holds; a second call does nothing."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"This session of {self.name!r} is closed. Open another: engine.open().")

    def __enter__(self) -> Session:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CpuSession(Session):
    """The engine's graph on the CPU, an ONNX one in ONNX Runtime: the fallback where no GPU can run the engine."""

    def __init__(self, model: Computable, profiles: list[Profile]) -> None:
        self.device = "cpu"
        self._profiles = profiles
        self.name = model.name
        self.inputs, self.outputs = model.inputs, model.outputs
        self._reference = model.reference

    def run(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        self._check_open()
        arrays = check_inputs(self.inputs, inputs, self.name)
        check_within(self._profiles, {name: array.shape for name, array in arrays.items()}, self.name)
        return self._reference.run(arrays)
