"""What an engine asks of whatever it was built from: an ONNX `Model`, or a `Network` that was written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from trtkit.model import TensorInfo


class Runner(Protocol):
    """Something that computes outputs from a complete, checked set of inputs."""

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]: ...


class Original(Protocol):
    """What a computation is held against, with inputs of the same names."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def precision(self) -> str: ...

    def open_reference(self, *, exact: bool = False, threads: int = 0) -> Runner: ...


class Computable(Original, Protocol):
    """A computation that can be built into an engine, run on the CPU in its place, and held against where it came
    from."""

    name: str

    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def reference(self) -> Runner: ...

    @property
    def origin(self) -> Original: ...

    def check_inputs(self, inputs: Mapping[str, Any] | np.ndarray) -> dict[str, np.ndarray]: ...

    def random_inputs(
        self, batch: int = 1, seed: int = 0, dims: Mapping[str, int] | None = None
    ) -> dict[str, np.ndarray]: ...

    def to_bytes(self) -> bytes: ...
