"""Is an engine right every time? Run one many times on the same inputs and count the wrong answers.

    python3 -m benchmarks.repeatability                # ResNet-50 and BERT-base, FP32 and FP16, batch 1

Why: on an H200, which TensorRT-RTX 1.5 and 1.6 do not support, ResNet-50's FP32 engine for batch 1 was right in some
runs and wrong in most; README.md has the counts. Engines are built with `verify=False`: `build` refuses them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import trtkit
from benchmarks import networks
from benchmarks.contenders import relative_error
from trtkit.bench.torch_peers import best_footing, in_precision
from trtkit.engine.trt import require

WRONG = 0.02  # relative error; TF32 and FP16 stay below 0.004 on these networks


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=120)
    runs = options.parse_args().runs
    best_footing()
    print(require())
    for network in (networks.resnet(quick=False), networks.bert(quick=False)):
        for precision in ("fp32", "fp16"):
            count(network, precision, runs)


def count(network: networks.Network, precision: str, runs: int) -> None:
    """Print in how many of `runs` runs the engine of this network was wrong, plainly and as a CUDA graph."""
    module = in_precision(network.make(network.export_variant), "fp32", "cpu")
    model = trtkit.optimize(trtkit.load(module, network.inputs(2, 1, "fp32", "", "cpu")[0], name=network.name))
    if precision != "fp32":
        model = trtkit.autocast(model, precision, io="low")
    inputs = network.inputs(1, 4, precision, "", "cuda")
    double = in_precision(network.make(network.export_variant), "fp64", "cuda")
    with torch.inference_mode():
        expected = [double(x.double() if x.is_floating_point() else x).clone() for x in inputs]
    name = model.inputs[0].name
    engine = trtkit.build(model, shapes={name: tuple(inputs[0].shape)}, verify=False)
    for graph in (False, True):
        with engine.open("cuda", cuda_graph=graph) as session:
            errors = np.array([error(session.run({name: inputs[i % 4]}), expected[i % 4]) for i in range(runs)])
            took = mean_us(lambda session=session: session.run({name: inputs[0]}))
        wrong = int((~(errors < WRONG)).sum())
        way = "CUDA graph" if graph else "plain"
        told = f"wrong {wrong}/{runs}, median error {np.median(errors):.5f}, largest {errors.max():.4f}"
        print(f"{network.name} {precision} batch 1, {way}: {told}, {took:.0f} us", flush=True)


def error(outputs: dict[str, torch.Tensor], expected: torch.Tensor) -> float:
    return relative_error(next(iter(outputs.values())), expected)


def mean_us(call: Callable[[], Any], calls: int = 100) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / calls * 1e6


if __name__ == "__main__":
    main()
