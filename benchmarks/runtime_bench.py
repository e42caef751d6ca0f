"""What the parts of gpu_runtime share: networks, engines, inputs, records and clocks."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import psutil
import torch

import trtkit
from benchmarks import networks
from benchmarks.contenders import Runner, Setting
from benchmarks.gpu_step1 import say
from trtkit.bench import record
from trtkit.bench.measure import Measurement


class SmallNet(torch.nn.Module):
    """Three small convolutions and a classifier for 32x32 pictures: a GPU is nearly idle with one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 3, stride=2, padding=1), torch.nn.ReLU(),
            torch.nn.Conv2d(64, 64, 3, stride=2, padding=1), torch.nn.ReLU(),
        )  # fmt: skip
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def small(quick: bool) -> networks.Network:
    def make(variant: str) -> torch.nn.Module:
        torch.manual_seed(0)
        net = SmallNet().eval()
        return net.to(memory_format=torch.channels_last) if variant == "nhwc" else net

    draw = lambda batch, generator: torch.randn(batch, 3, 32, 32, generator=generator)  # noqa: E731
    return networks.Network("small", ("nchw", "nhwc"), "nchw", make, draw)


class Bench:
    """What the parts share: the options, networks and engines, each made when first asked for."""

    def __init__(self, device: str, quick: bool, command: str) -> None:
        self.device, self.quick, self.command = device, quick, command
        self.cuda = device == "cuda"
        self.runner = Runner(device, command, say, quick=quick)
        self.runs = {"min_runs": 5, "min_seconds": 0.0} if quick else {"min_runs": 50, "min_seconds": 0.4}

    @cached_property
    def networks(self) -> dict[str, networks.Network]:
        return {"resnet50": networks.resnet(self.quick), "small": small(self.quick)}

    def setting(self, name: str, batch: int) -> Setting:
        return Setting(f"engine-room-{name}", self.networks[name], "fp16", batch)

    def engine(self, name: str, batch: int) -> Any:
        """FP16 in and out, for one batch; at batch 1 in the form for single requests."""
        return self.runner.build(self.setting(name, batch), "low-latency" if batch == 1 else "autocast")

    @cached_property
    def any_batch(self) -> Any:
        """ResNet-50 for batches from 1 to 32."""
        graph = self.runner.graph(self.networks["resnet50"], "autocast")
        size = self.inputs("resnet50", 1, 1)[0].shape[1:]
        shapes = {graph.inputs[0].name: [(1, *size), (8, *size), (32, *size)]}
        return trtkit.build(graph, shapes=shapes, verify=False)

    def inputs(self, name: str, batch: int, count: int, device: str = "cpu", variant: str = "") -> list[torch.Tensor]:
        return self.networks[name].inputs(batch, count, "fp16", variant, device)

    def arrays(self, name: str, batch: int, count: int) -> list[np.ndarray]:
        return [tensor.numpy() for tensor in self.inputs(name, batch, count)]

    def save(self, key: str, measurement: Measurement, unit: str = "ms", **extra: Any) -> None:
        """Write a record; `unit="s"` for what takes so long that it is done a few times only."""
        rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in extra.items()}
        record.save(f"engine-room-{key}", measurement, command=self.command, extra=rounded, unit=unit)
        say(f"{key:34s} {measurement.median_ms:9.4f} ms  {json.dumps(rounded)}")

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def per_call(round_of: Callable[[], float], rounds: int) -> Measurement:
    """Milliseconds a call in rounds of many; the first round warms up."""
    return Measurement.from_samples([round_of() for _ in range(rounds + 1)][1:], "cuda")


def threads_of(bench: Bench, pool: Any, workers: int, arrays: list[np.ndarray]) -> float:
    calls = 5 if bench.quick else 20

    def work(number: int) -> None:
        for i in range(calls):
            pool.run(arrays[(number + i) % len(arrays)])

    with ThreadPoolExecutor(workers) as executor:
        begin = time.perf_counter()
        list(executor.map(work, range(workers)))
        return (time.perf_counter() - begin) * 1e3 / (calls * workers)


def host_time(bench: Bench, call: Callable[[], Any]) -> float:
    bench.sync()
    begin = time.perf_counter()
    call()
    bench.sync()
    return (time.perf_counter() - begin) * 1e3


def memory(bench: Bench) -> tuple[int, int]:
    """Bytes in use on the GPU (all processes) and of this process on the host."""
    used = 0
    gc.collect()
    if bench.cuda:
        free, total = torch.cuda.mem_get_info()
        used = total - free
    return used, psutil.Process().memory_info().rss
