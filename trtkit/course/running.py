"""What lesson 13 runs: a network that gains from batches even on a CPU, and the ways to serve it that it compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

import trtkit
from trtkit.bench.record import Records, load
from trtkit.bench.traffic import Load, poisson_load
from trtkit.engine.batcher import Batcher
from trtkit.engine.session import Session
from trtkit.errors import RecordError
from trtkit.model import Model

STEPS = ("stage", "upload", "compute", "download", "hand-out")  # of one call, NumPy in and out
# How requests are served: the settings of a Batcher.
WAYS: dict[str, dict[str, Any]] = {
    "one by one": {"max_batch": 1, "max_delay_ms": 0},
    "full batches of 32": {"max_batch": 32, "sizes": (32,), "max_delay_ms": 60_000},
    "dynamic, 2 ms": {"max_batch": 32, "max_delay_ms": 2},
}


def wide_net(width: int = 1024, layers: int = 3) -> Model:
    """Matrix products with square weights: at batch 1 reading the weights takes longer than all arithmetic.

    >>> wide_net(8, 2)
    Model('wide': 3 nodes, 2 weights in 512 bytes, opset 20; x float32 (n, 8) -> y float32 (n, 8))
    """
    rng = np.random.default_rng(0)
    names = ["x", *(f"h{i}" for i in range(1, layers)), "y"]
    steps = [f"{a} = MatMul({b}, w{i})" for i, (a, b) in enumerate(zip(names[1:], names, strict=False))]
    for i in range(layers - 1):  # a Relu behind all but the last
        steps[i] = steps[i].replace(names[i + 1], f"a{i}", 1) + f" {names[i + 1]} = Relu(a{i})"
    text = f'<ir_version: 10, opset_import: ["": 20]> wide (float[n, {width}] x) => (float[n, {width}] y)'
    proto = onnx.parser.parse_model(f"{text} {{{' '.join(steps)}}}")
    scale = (2 / width) ** 0.5
    weights = [rng.standard_normal((width, width), np.float32) * np.float32(scale) for _ in range(layers)]
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights))
    return trtkit.load(proto)


def serve(
    session: Session, samples: Sequence[Any], rates: Sequence[float], seconds: float = 0.6,
    ways: Mapping[str, Mapping[str, Any]] = WAYS,
) -> dict[str, list[Load]]:  # fmt: skip
    """Each way under Poisson loads of these rates; whole batches of requests, or the last static one never fills."""
    found: dict[str, list[Load]] = {}
    for way, settings in ways.items():
        found[way] = []
        for rate in rates:
            requests = max(1, round(rate * seconds / 32)) * 32
            with Batcher(session, max_waiting=1_000_000, **settings) as batcher:
                found[way].append(poisson_load(batcher.submit, samples, rate, requests, seed=round(rate)))
    return found


def recalled(part: str) -> Records:
    """A part of `python3 -m benchmarks.gpu_runtime` from its record, GPU or not. Raises RecordError without one."""
    return load(f"engine-room-{part}")


def recalled_loads(rates: Sequence[int] = (500, 1000, 2000, 4000, 8000)) -> dict[str, list[tuple[float, ...]]]:
    """(rate, p50 ms, p99 ms, answers a second) by way of serving ResNet-50 on a GPU.

    Raises RecordError when no rate was recorded.
    """
    found: dict[str, list[tuple[float, ...]]] = {}
    for rate in rates:
        try:
            records = recalled(f"poisson-{rate}")
        except RecordError:
            continue
        for way, one in records.items():
            found.setdefault(way, []).append((rate, one.median_ms, one.extra["p99_ms"], one.extra["per_s"]))
    if not found:
        raise RecordError("No load was recorded. python3 -m benchmarks.gpu_runtime --only poisson measures them.")
    return found
