"""Other graph optimisers, all run the same way, and a race on one network: nodes left, seconds, equality."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

import trtkit
from trtkit.model import Model

Optimizer = Callable[[str, str], None]  # reads one ONNX file, writes another

TINY = """<ir_version: 8, opset_import: ["": 17]> tiny (float[n, 4] x) => (float[n, 4] y)
    <float[4] w = {1.0, 2.0, 3.0, 4.0}> { a = Identity(x)  b = Mul(a, w)  s = Shape(b)  y = Reshape(b, s) }"""
TOLERANCE = 1e-3  # relative; sums in another order stay far below


def trtkit_at(level: int | None = None) -> Optimizer:
    """Ours, at one level or at the one that `optimize` takes by itself."""

    def run(source: str, target: str) -> None:
        model = trtkit.load(source)
        trtkit.save(trtkit.optimize(model) if level is None else trtkit.optimize(model, level), target)

    return run


def onnxslim() -> Optimizer:
    import onnxslim

    return lambda source, target: onnxslim.slim(source, target)


def onnxsim() -> Optimizer:
    import onnx
    import onnxsim

    return lambda source, target: onnx.save(onnxsim.simplify(source)[0], target)


def onnxscript() -> Optimizer:
    import onnx_ir as ir
    import onnxscript.optimizer

    return lambda source, target: ir.save(onnxscript.optimizer.optimize(ir.load(source)), target)


def onnxruntime() -> Optimizer:
    """The offline optimiser at its basic level, which keeps to ONNX's own operators. Making a session is part of it."""
    import onnxruntime as ort

    def run(source: str, target: str) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = target
        options.log_severity_level = 3
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return run


OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "trtkit": trtkit_at,
    "onnxslim": onnxslim,
    "onnxsim": onnxsim,
    "onnxscript": onnxscript,
    "onnxruntime": onnxruntime,
}


class Result(NamedTuple):
    """One optimiser on one network: `error` relative to the largest output, and in `why` what failed, if it did."""

    nodes: int
    seconds: float
    error: float
    model: Model | None
    why: str = ""

    @property
    def equal(self) -> bool:
        return not self.why and self.error <= TOLERANCE


def race(
    model: Model, optimizers: Mapping[str, Callable[[], Optimizer]] = OPTIMIZERS, batch: int = 2
) -> dict[str, Result]:
    """Every optimiser on one network, from file to file, and its outputs held against the original's.

    One that is not installed is left out; one that fails stays, with `why`. Imports and a first call on a graph of four
    nodes come before the clock starts. `Constant` nodes are not counted: they are initialisers by another name.

    >>> import onnx
    >>> found = race(trtkit.load(onnx.parser.parse_model(TINY)), {"trtkit": trtkit_at})
    >>> found["trtkit"].nodes, found["trtkit"].error
    (1, 0.0)
    """
    inputs, results = model.random_inputs(batch=batch, seed=1), {}
    with tempfile.TemporaryDirectory() as folder, silence():
        source, tiny = (str(Path(folder) / name) for name in ("original.onnx", "tiny.onnx"))
        trtkit.save(model, source)
        trtkit.save(_tiny(), tiny)
        wanted = plain_outputs(source, inputs)
        for name, make in optimizers.items():
            target = str(Path(folder) / f"{name}.onnx")
            try:
                optimizer = make()
            except ImportError:
                continue
            try:
                results[name] = _run(optimizer, tiny, source, target, inputs, wanted)
            except Exception as error:  # noqa: BLE001 - an optimiser may fail in any way; the others race on
                results[name] = Result(0, 0.0, float("inf"), None, f"{type(error).__name__}: {error}"[:200])
    return results


def _run(
    optimizer: Optimizer, tiny: str, source: str, target: str, inputs: dict[str, np.ndarray], wanted: list[np.ndarray]
) -> Result:
    optimizer(tiny, target)
    begin = time.perf_counter()
    optimizer(source, target)
    seconds = time.perf_counter() - begin
    model = trtkit.load(target)
    nodes = model.node_count - model.op_counts.get("Constant", 0)
    return Result(nodes, seconds, error(wanted, plain_outputs(target, inputs)), model)


def _tiny() -> Model:
    import onnx

    return trtkit.load(onnx.parser.parse_model(TINY))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Swallow what Python code prints and warns about; some optimisers report at length."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(action="ignore"),
    ):
        yield


def plain_outputs(file: str | Path, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime computes with all of its own optimisations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return list(ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]).run(None, dict(inputs)))


def error(wanted: Iterable[np.ndarray], given: Iterable[np.ndarray]) -> float:
    """The largest difference of any output, relative to the largest number of that output.

    >>> error([np.array([1.0, -4.0])], [np.array([1.0, -3.0])])
    0.25
    """
    return max((_error(a, b) for a, b in zip(wanted, given, strict=True)), default=0.0)


def _error(wanted: np.ndarray, given: np.ndarray) -> float:
    if wanted.shape != given.shape or wanted.dtype != given.dtype:
        return float("inf")
    difference = np.abs(wanted.astype(np.float64) - given.astype(np.float64)).max(initial=0)
    return float(difference / max(np.abs(wanted.astype(np.float64)).max(initial=0), 1e-30)) if difference else 0.0
