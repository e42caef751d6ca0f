"""The two limits of a machine, operations a second and bytes a second, and their ratio, its balance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trtkit.bench.measure import measure


@dataclass(frozen=True)
class Machine:
    """Peak rates of a machine: FLOPs and bytes per second."""

    name: str
    flops: float
    bytes: float

    @property
    def balance(self) -> float:
        """FLOPs per byte at which arithmetic and memory take the same time: the ridge of the roofline."""
        return self.flops / self.bytes

    def seconds(self, flops: float, moved: float) -> float:
        """The least time that so many FLOPs and bytes can take, both going on at once.

        >>> Machine("example", flops=100.0, bytes=10.0).seconds(flops=50, moved=20)
        2.0
        """
        return max(flops / self.flops, moved / self.bytes)


def measure_cpu(size: int = 768, copied: int = 1 << 26) -> Machine:
    """Measure this CPU through NumPy: a float32 matrix product of `size`, and a copy of `copied` bytes.

    The copy reads and writes, so it moves twice its size. Rates are medians: a NumPy without a good BLAS, or other
    programs, make them lower than what the data sheet says.
    """
    from trtkit.bench.machine import cpu

    a = np.random.default_rng(0).random((size, size), np.float32)
    product = measure(lambda: a @ a, warmup=2, min_runs=10, min_seconds=0.1)
    source = np.ones(copied // 4, np.float32)
    target = np.empty_like(source)
    copy = measure(lambda: np.copyto(target, source), warmup=2, min_runs=10, min_seconds=0.1)
    return Machine(cpu(), 2 * size**3 / product.median_ms * 1e3, 2 * copied / copy.median_ms * 1e3)
