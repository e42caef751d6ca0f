"""A kernel of our own between two engines: on the same stream, on the same memory, nothing copied.

What TensorRT lacks is a plugin with the full library (`IPluginV3`); TensorRT-RTX has no plugins. But an engine reads
and writes memory that we name, on a stream that we name: so a network can be cut at the operator, and our kernel put
there. All of it is recorded into one CUDA graph, and a call starts it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from trtkit.engine.engine import Engine
from trtkit.engine.session import Session
from trtkit.engine.verify import ENGINE_TOLERANCE, compare_outputs
from trtkit.errors import EngineError, VerificationError
from trtkit.model import TensorInfo, check_inputs

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """A CUDA kernel with one output, and the same in NumPy, without which nobody could say whether it is right.

    It is started with one thread for each number of its output, and with the arguments: the inputs' addresses in order,
    the output's, then `sizes` as `int`s.

    Attributes:
        source: CUDA C++ with `extern "C" __global__ void NAME(const T* a, ..., T* output, int ...)`.
        name: of the function.
        inputs: name, shape (words for dimensions that may change) and dtype of each input.
        output: name of the output.
        shape: the output's shape from the inputs' shapes.
        reference: the output from the inputs as NumPy arrays.
        dtype: of the output.
        sizes: the integer arguments from the inputs' shapes; by default the number of numbers in the output.
        threads: in a block.

    >>> info = TensorInfo("x", ("n", 4), np.dtype("float32"))
    >>> double = Kernel(
    ...     'extern "C" __global__ void twice(const float* x, float* y, int n)'
    ...     '{ int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) y[i] = 2 * x[i]; }',
    ...     "twice", (info,), "y", shape=lambda x: x, reference=lambda x: 2 * x)
    >>> double.run({"x": np.ones((1, 4), np.float32)})
    array([[2., 2., 2., 2.]], dtype=float32)
    """

    source: str
    name: str
    inputs: tuple[TensorInfo, ...]
    output: str
    shape: Callable[..., Shape]
    reference: Callable[..., np.ndarray]
    dtype: Any = np.float32
    sizes: Callable[..., Sequence[int]] | None = None
    threads: int = 256

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The output by the reference. Raises EngineError when it is not of the shape and dtype promised."""
        given = check_inputs(self.inputs, {info.name: arrays[info.name] for info in self.inputs}, self.name)
        found = np.asarray(self.reference(*given.values()))
        shape = self.shape(*(array.shape for array in given.values()))
        if found.shape != tuple(shape) or found.dtype != np.dtype(self.dtype):
            raise EngineError(
                f"The reference of kernel {self.name!r} gives {found.dtype} {found.shape}, and its rule says "
                f"{np.dtype(self.dtype)} {tuple(shape)}. One of the two is wrong."
            )
        return found

    def integers(self, shapes: Sequence[Shape]) -> list[int]:
        """The integer arguments for inputs of these shapes."""
        return list(self.sizes(*shapes)) if self.sizes else [int(np.prod(self.shape(*shapes)))]


Stage: TypeAlias = Engine | Kernel


class Chain:
    """Engines and kernels that run one after another; each takes by name what those before it, or the caller, gave.

    Args:
        stages: in running order; engines with their model.
        name: for messages.

    Raises:
        EngineError: a stage takes another dtype than comes, gives what is there already, or lacks its model.
    """

    def __init__(self, stages: Sequence[Stage], name: str = "chain") -> None:
        self.stages, self.name = tuple(stages), name
        made: dict[str, np.dtype] = {}
        taken: dict[str, TensorInfo] = {}
        for stage in self.stages:
            for info in _takes(stage):
                there = made.get(info.name) or (taken[info.name].dtype if info.name in taken else None)
                if there is None:
                    taken[info.name] = info
                elif there != info.dtype:
                    raise EngineError(f"{self.name!r}: {_name(stage)!r} takes {info}, and what comes is {there}.")
            for info in _gives(stage):
                if info.name in made or info.name in taken:
                    raise EngineError(f"{self.name!r}: {_name(stage)!r} gives {info.name!r}, which is there already.")
            made |= {info.name: info.dtype for info in _gives(stage)}
        self.inputs = tuple(taken.values())
        self.outputs = _gives(self.stages[-1])

    def open(self, device: str | None = None, *, data: Iterable[Any] | None = None, verify: bool = True) -> Session:
        """A session: on the GPU in one CUDA graph, or on the CPU with the engines' graphs and the kernels' references.

        Args:
            device: "cuda", "cpu", or None for the GPU where it can run all engines.
            data: inputs to verify on; by default random ones.
            verify: on a GPU, compare with what the CPU computes before handing the session out.

        Raises:
            EngineError: it cannot run there; says why.
            VerificationError: the GPU's outputs are further from the CPU's than the engines' precision allows.
        """
        engines = [stage for stage in self.stages if isinstance(stage, Engine)]
        reasons = [engine.why_not_here for engine in engines if engine.why_not_here]
        if device == "cuda" and reasons:
            raise EngineError(f"{self.name!r} cannot run on a GPU here: {reasons[0]}. open('cpu') runs it on the CPU.")
        if device == "cpu" or reasons:
            return _CpuChain(self)
        from trtkit.engine.kernel_gpu import GpuChain

        session = GpuChain(self)
        if verify:
            try:
                self._verify(session, data)
            except BaseException:
                session.close()
                raise
        return session

    def _random(self) -> dict[str, np.ndarray]:
        """Random inputs, changeable dimensions as small as the engines take them."""
        sizes: dict[str, int] = {}
        for stage in self.stages:
            if isinstance(stage, Engine):
                profile = stage.manifest["profiles"][0]
                for info in _takes(stage):
                    known = zip(info.shape, profile.get(info.name, [info.shape])[0], strict=True)
                    sizes |= {dim: size for dim, size in known if isinstance(dim, str)}
        rng = np.random.default_rng(0)
        return {
            info.name: rng.standard_normal([d if isinstance(d, int) else sizes.get(d, 2) for d in info.shape]).astype(
                info.dtype
            )
            for info in self.inputs
        }

    def _verify(self, session: Session, data: Iterable[Any] | None) -> None:
        samples = [check_inputs(self.inputs, one, self.name) for one in data] if data else [self._random()]
        tolerance = max(
            ENGINE_TOLERANCE[s.manifest["precision"]] if isinstance(s, Engine) else ENGINE_TOLERANCE["fp32"]
            for s in self.stages
        )
        with _CpuChain(self) as reference:
            expected = [reference.run(sample) for sample in samples]
        for _ in range(2):  # the second time a CUDA graph is replayed
            got = [session.run(sample) for sample in samples]
            checks = compare_outputs(got, expected, f"chain on {session.device} against the CPU", tolerance)
            if failed := [check for check in checks if not check.passed]:
                raise VerificationError(f"{self.name!r} is refused: " + "; ".join(map(str, failed)))


def _takes(stage: Stage) -> tuple[TensorInfo, ...]:
    return stage.inputs if isinstance(stage, Kernel) else _model_of(stage).inputs


def _gives(stage: Stage) -> tuple[TensorInfo, ...]:
    if isinstance(stage, Kernel):
        return (TensorInfo(stage.output, (), np.dtype(stage.dtype)),)
    return _model_of(stage).outputs


def _model_of(engine: Engine) -> Any:
    if engine.model is None:
        raise EngineError(
            f"The engine of {engine.manifest['model']!r} came without its model, which a chain is verified with: "
            "trtkit.open_engine(path, model=...)."
        )
    return engine.model


def _name(stage: Stage) -> str:
    return stage.name if isinstance(stage, Kernel) else str(stage.manifest["model"])


class _CpuChain(Session):
    """The chain without a GPU: what it is verified with."""

    def __init__(self, chain: Chain) -> None:
        self.device, self.name, self.inputs, self.outputs = "cpu", chain.name, chain.inputs, chain.outputs
        self._stages = [s if isinstance(s, Kernel) else s.open("cpu") for s in chain.stages]

    def run(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        self._check_open()
        there: dict[str, Any] = dict(check_inputs(self.inputs, inputs, self.name))
        for stage in self._stages:
            if isinstance(stage, Kernel):
                there[stage.output] = stage.run(there)
            else:
                there |= stage.run({info.name: there[info.name] for info in stage.inputs})
        return {info.name: there[info.name] for info in self.outputs}

    def close(self) -> None:
        for stage in self._stages:
            if isinstance(stage, Session):
                stage.close()
        super().close()
