"""Measuring: how long a call takes, what was measured where, and models side by side."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trtkit.bench.measure import Measurement, measure
from trtkit.bench.record import Record, Records, load, measure_or_recall, save

if TYPE_CHECKING:
    from trtkit.bench.compare import Comparison, compare
    from trtkit.bench.peers import bench_model

__all__ = [
    "Comparison",
    "Measurement",
    "Record",
    "Records",
    "bench_model",
    "compare",
    "load",
    "measure",
    "measure_or_recall",
    "save",
]

_LATER = {"Comparison": "trtkit.bench.compare", "bench_model": "trtkit.bench.peers"}


def __getattr__(name: str) -> Any:
    # `compare` is a module here as well as a function: the function is trtkit.compare or bench.compare.compare.
    if name not in _LATER:
        raise AttributeError(f"module 'trtkit.bench' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
