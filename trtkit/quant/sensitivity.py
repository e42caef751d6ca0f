"""Which layers lose when they are quantised, and which to leave in float so that the answer stays good enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple

import numpy as np

from trtkit.errors import DataError, ModelError
from trtkit.graph.taps import Batch
from trtkit.model import Model
from trtkit.quant.calibrate import Calibration, Calibrator, calibrate
from trtkit.quant.qdq import codes_of, moments_of, observable, quantize
from trtkit.reference import Reference

Outputs = Sequence[Mapping[str, np.ndarray]]
Metric = Callable[[Outputs], float]
"""Outputs batch after batch to a number, the larger the better: accuracy, for one."""


class Sensitivity(NamedTuple):
    """What it costs to quantise one node and nothing else.

    Attributes:
        sqnr_db: signal to quantisation noise of the model's outputs, decibel: 10 more is a tenth of the noise.
        score: the metric's, None without a metric.
    """

    node: str
    op_type: str
    sqnr_db: float
    score: float | None


class Mixed(NamedTuple):
    """A model of which some nodes stay in float.

    Attributes:
        model: quantised but for `kept`.
        kept: names of the nodes in float, the most sensitive first.
        sqnr_db: of the model's outputs.
        score: the metric's, None without a metric.
        tried: how many models were run to find it.
    """

    model: Model
    kept: tuple[str, ...]
    sqnr_db: float
    score: float | None
    tried: int


def sqnr_db(want: Outputs, got: Outputs) -> float:
    """10 log10 of the energy of what is wanted to that of what is off, over all outputs and batches; inf for no error.

    >>> sqnr_db([{"y": np.array([10.0, 0.0])}], [{"y": np.array([10.0, 1.0])}])
    20.0
    """
    signal = noise = 0.0
    for a, b in zip(want, got, strict=True):
        for name, expected in a.items():
            wide = expected.astype(np.float64)
            signal += float((wide**2).sum())
            noise += float(((wide - b[name]) ** 2).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


class Sensitivities:
    """Quantises a model in parts and compares what comes out; calibrated once.

    Args:
        model: a float32 model, optimised first.
        data: calibration batches.
        held_out: batches to compare on; by default the calibration data.
        dtype: "int8" or "fp8".
        method: see `quantize`.
        metric: a measure of the task beside the SQNR, larger is better.
        executor: where the models run; by default one after another in this process.

    Raises:
        ModelError, DataError: as `quantize`.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] a = {1, 0, 0, 1}, float[2, 2] b = {1, 0.3, 0.01, 1}>
    ...     {h = MatMul(x, a)  y = MatMul(h, b)}'''))
    >>> each = Sensitivities(model, [np.float32([[0.3, 1.0], [0.11, -0.7]])]).each_alone()
    >>> [(layer.node, layer.sqnr_db > 30) for layer in each]
    [('MatMul_1', True), ('MatMul_0', True)]
    """

    def __init__(
        self,
        model: Model,
        data: Iterable[Batch],
        held_out: Iterable[Batch] | None = None,
        *,
        dtype: str = "int8",
        method: str | Callable[[], Calibrator] | None = None,
        metric: Metric | None = None,
        executor: Executor | None = None,
    ) -> None:
        batches = [model.check_inputs(batch) for batch in data]
        self.held_out = batches if held_out is None else [model.check_inputs(batch) for batch in held_out]
        if not self.held_out:
            raise DataError("There is no data to compare on: held_out gave no batch.")
        self.model, self.dtype, self.metric, self.executor = model, dtype, metric, executor
        found = observable(model, dtype=dtype)
        operators = {node.name: node.op_type for node in model.ir.graph}
        self.nodes = {name: operators[name] for name in found["nodes"]}
        codes = codes_of(dtype)
        moments = moments_of(model, found["nodes"]) if codes.fitted else ()
        self.calibration: Calibration = calibrate(
            model, batches, found["tensors"], method or codes.method, moments=moments
        )
        self.want = _run(model.to_bytes(), self.held_out)
        self._alone: list[Sensitivity] = []

    def quantized(self, keep: Iterable[str]) -> Model:
        """The model with all nodes quantised but for those to keep in float; itself if that is all of them."""
        kept = set(keep)
        if unknown := sorted(kept - set(self.nodes)):
            raise ModelError(f"{self.model.name!r} has no quantised node {unknown[0]!r}.")
        if len(kept) == len(self.nodes):
            return self.model
        return quantize(self.model, None, skip=kept, dtype=self.dtype, calibration=self.calibration)

    def compare(self, models: Iterable[Model]) -> list[tuple[float, float | None]]:
        """SQNR and score of each model on the held-out data."""
        plans = [model.to_bytes() for model in models]
        run = partial(_run, batches=self.held_out)
        outputs = list(map(run, plans)) if self.executor is None else list(self.executor.map(run, plans))
        return [(sqnr_db(self.want, each), self.metric(each) if self.metric else None) for each in outputs]

    def each_alone(self) -> list[Sensitivity]:
        """Every node quantised alone, the one that costs most first; run once, searches for other targets read it."""
        if self._alone:
            return list(self._alone)
        names = list(self.nodes)
        models = [self.quantized(name for name in names if name != alone) for alone in names]
        found = [
            Sensitivity(name, self.nodes[name], *result)
            for name, result in zip(names, self.compare(models), strict=True)
        ]
        self._alone = sorted(found, key=lambda layer: (layer.sqnr_db, layer.node))
        return list(self._alone)

    def search(self, target_db: float = float("-inf"), target_score: float = float("-inf")) -> Mixed:
        """Keep as few nodes in float as it takes to reach both targets.

        1. Nodes are kept in the order of `each_alone`; the shortest beginning of that order that does is found by
           halving.
        2. Each kept node, the least sensitive first, is quantised after all if the targets are still reached.

        Raises:
            ModelError: even the float32 model misses the target.
        """
        order = [layer.node for layer in self.each_alone()]
        tried = len(order)

        def good(keep: Sequence[str]) -> tuple[bool, Model, float, float | None]:
            model = self.quantized(keep)
            ((decibel, score),) = self.compare([model])
            enough = decibel >= target_db and (score is None or score >= target_score)
            return enough, model, decibel, score

        if self.metric is not None and self.metric(self.want) < target_score:
            raise ModelError(f"{self.model.name!r} itself scores {self.metric(self.want):g}, below {target_score:g}.")
        low, high = 0, len(order)  # with `high` nodes in float it is good
        while low < high:
            middle, tried = (low + high) // 2, tried + 1
            low, high = (low, middle) if good(order[:middle])[0] else (middle + 1, high)
        keep = order[:high]
        for name in reversed(order[:high]):
            fewer, tried = [other for other in keep if other != name], tried + 1
            keep = fewer if good(fewer)[0] else keep
        _, model, decibel, score = good(keep)
        return Mixed(model, tuple(keep), decibel, score, tried + 1)


def _run(model: bytes, batches: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Outputs batch after batch, Q/DQ computed as written; a function of plain data, for other processes."""
    reference = Reference(model, exact=True)
    return [reference.run(batch) for batch in batches]
