"""The least time that a graph can take on a machine, kernel by kernel, and what fusing its groups saves of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtkit.bench.roofline import Machine
from trtkit.graph.groups import KernelCost, kernel_costs
from trtkit.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# NVIDIA's H100 data sheet, SXM: 989 TFLOPS of TF32 with sparsity, so half of that without, and 3.35 TB/s.
H100_TF32 = Machine("H100 SXM by its data sheet, TF32", 494.5e12, 3.35e12)


@dataclass(frozen=True)
class Roofline:
    """A graph on a machine: every kernel as its groups say, in order. `launch_s` is added for each launch."""

    machine: Machine
    kernels: tuple[KernelCost, ...]
    launch_s: float = 0.0

    def seconds_of(self, kernel: KernelCost, *, fused: bool = True) -> float:
        """The least time of one kernel, or of its nodes one after another."""
        moved, launches = (kernel.bytes_moved, 1) if fused else (kernel.bytes_apart, kernel.kernels_apart)
        return self.machine.seconds(kernel.flops, moved) + launches * self.launch_s

    @property
    def seconds(self) -> float:
        """Lower bound of the time as grouped."""
        return sum(self.seconds_of(kernel) for kernel in self.kernels)

    @property
    def seconds_apart(self) -> float:
        """The same with every node a kernel of its own."""
        return sum(self.seconds_of(kernel, fused=False) for kernel in self.kernels)

    @property
    def bytes_saved(self) -> int:
        return sum(kernel.bytes_saved for kernel in self.kernels)

    @property
    def kernels_saved(self) -> int:
        return sum(kernel.kernels_apart - 1 for kernel in self.kernels)

    def __str__(self) -> str:
        apart = sum(kernel.bytes_apart for kernel in self.kernels)
        count = len(self.kernels) + self.kernels_saved
        return (
            f"{self.machine.name}: {count} kernels -> {len(self.kernels)}, {apart:,} bytes -> "
            f"{apart - self.bytes_saved:,}, at least {1e6 * self.seconds_apart:.1f} µs -> {1e6 * self.seconds:.1f} µs"
        )

    def plot(self) -> Figure:
        """The roof, and every group of two nodes or more: a hollow dot node by node, a full one fused."""
        return _plot(self)


def group_roofline(
    model: Model, machine: Machine, launch_s: float = 0.0, batch: int = 1, dims: Mapping[str, int] | None = None
) -> Roofline:
    """Put the groups marked on a model onto a machine's roofline.

    A kernel takes at least as long as its arithmetic at the peak rate and as its bytes at full bandwidth, whichever is
    longer, and a launch. Node by node the same is taken for the sums over a group's nodes, which is lower than the
    truth, as one node's arithmetic does not hide another's traffic: what fusing gains is understated.

    Args:
        launch_s: from one kernel to the next when neither has anything to do; measured, or 0 to leave launches out.

    Raises:
        ModelError: as `trtkit.graph.cost.cost` does.

    Source: Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009.

    >>> import onnx, trtkit
    >>> from trtkit.passes.groups import fuse_groups
    >>> model = fuse_groups(trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 1000] x) => (float[n, 1000] y) {s = Exp(x)  t = Neg(s)  y = Relu(t)}''')))
    >>> print(group_roofline(model, Machine("toy", 1e9, 1e9), launch_s=1e-6))
    toy: 3 kernels -> 1, 24,000 bytes -> 8,000, at least 27.0 µs -> 9.0 µs
    """
    return Roofline(machine, kernel_costs(model, batch, dims), launch_s)


def measure_call(calls: int = 2000) -> float:
    """Seconds that a NumPy call on one number takes: the CPU's counterpart of a kernel launch, measured now."""
    one = np.ones(1, np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            np.negative(one, out=one)
        times.append((time.perf_counter() - start) / calls)
    return sorted(times)[2]


def _plot(found: Roofline) -> Figure:
    from matplotlib import pyplot as plt

    from trtkit.plot.style import BLUE, GREEN

    machine = found.machine
    groups = [k for k in found.kernels if k.nodes > 1 and k.flops and k.bytes_moved]
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    apart = [k.flops / k.bytes_apart for k in groups]
    fused = [k.flops / k.bytes_moved for k in groups]
    left = min([*apart, machine.balance]) / 3
    right = max([*fused, machine.balance]) * 3
    roof = np.geomspace(left, right, 100)
    axis.plot(roof, np.minimum(machine.flops, roof * machine.bytes), color="black", linewidth=1.2)
    for before, after, kernel in zip(apart, fused, groups, strict=True):
        rates = [kernel.flops / found.seconds_of(kernel, fused=f) for f in (False, True)]
        axis.plot([before, after], rates, color=BLUE, linewidth=0.6, alpha=0.5)
        axis.plot(before, rates[0], "o", markerfacecolor="none", color=BLUE, markersize=5)
        axis.plot(after, rates[1], "o", color=GREEN, markersize=5)
    axis.plot([], [], "o", markerfacecolor="none", color=BLUE, label="node by node")
    axis.plot([], [], "o", color=GREEN, label="as one kernel")
    axis.set(xscale="log", yscale="log", xlabel="FLOPs per byte moved", ylabel="FLOPs per second at most")
    axis.axvline(machine.balance, color="#8a8f98", linestyle="--", linewidth=0.8)
    axis.set_title(
        f"{machine.name}: the line is the roof; launches, if counted, keep dots below it", fontsize=9, loc="left"
    )
    axis.legend(fontsize=8)
    plt.close(figure)
    return figure
