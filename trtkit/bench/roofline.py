"""The two limits of a machine, operations a second and bytes a second, and their ratio, its balance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trtkit.bench.measure import measure
from trtkit.bench.torch_peers import best_footing
from trtkit.errors import MissingError


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


def measure_gpu(precision: str = "fp16", size: int = 8192, copied: int = 1 << 30) -> Machine:
    """Measure the GPU through PyTorch: a matrix product of `size` in "fp16", "bf16" or "fp32" (TF32), and a copy.

    Rates of the fastest runs, since a roof is what can be reached. The data sheet promises more: a GPU that multiplies
    at full power lowers its clock.

    Raises MissingError when there is no GPU to measure.
    """
    import torch

    from trtkit.engine.device import gpu

    card = gpu()
    if card is None or not torch.cuda.is_available():
        raise MissingError("measure_gpu() needs a GPU that PyTorch can use; measure_cpu() measures this processor.")
    best_footing()  # TF32, as TensorRT has it
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = measure(lambda: torch.mm(a, b, out=out), warmup=5, min_runs=20, min_seconds=0.2, device="cuda")
    source = torch.empty(copied // 4, device="cuda")
    target = torch.empty_like(source)
    copy = measure(lambda: target.copy_(source), warmup=5, min_runs=20, min_seconds=0.1, device="cuda")
    name = f"{card.name}, measured, {precision.upper()}"
    fastest = [1e-3 * float(found.samples_ms.min()) for found in (product, copy)]
    return Machine(name, 2 * size**3 / fastest[0], 2 * copied / fastest[1])
