"""INT8, FP8 and INT4 against FP16 on a GPU, for networks that are mostly matrix products, each engine verified.

    python3 -m benchmarks.gpu_quant --out out/gpu                      # everything, 8 minutes on one GPU
    python3 -m benchmarks.gpu_quant --only bert-base-b1 llama-mlp-b1   # some of it
    python3 -m benchmarks.gpu_quant --quick --device cpu --out out/q   # the same code on a CPU, smallest shapes
    python3 -m benchmarks.gpu_quant --table                            # the tables from the records, nothing is run

Each form of a network comes from one FP32 graph: optimised, then quantised, then what is left in FP16 by `autocast`.
An engine's outputs are held against its own graph, which ONNX Runtime computes on the CPU; who is further off than
`TOLERANCE`, or than what quantising itself did to the outputs, is wrong, and has no time. What quantising did is the
signal-to-noise ratio of the quantised graph against FP32. Where the time goes: the kernels, by CUPTI, in two heaps.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import trtkit
from benchmarks import networks
from benchmarks.contenders import session_call
from benchmarks.gpu_step1 import guarded, open_log, say
from benchmarks.ptq import markdown, products_of
from trtkit.bench import record
from trtkit.bench.kernels import trace
from trtkit.bench.measure import measure
from trtkit.engine.verify import relative_error
from trtkit.passes.fix_shapes import fix_shapes
from trtkit.passes.low_latency import low_latency
from trtkit.quant.qdq import QUANTIZED

log = logging.getLogger("gpu_quant")

TOLERANCE = 2e-2  # relative error, of an engine against its own graph
CALIBRATION = 8  # samples, in batches of one
ORDER = ("bert-base-b1", "llama-mlp-b1", "bert-base-b32", "vit-b16-b1", "vit-b16-b32", "llama-mlp-b64", "resnet50-b1")
MAKE = {"bert-base": networks.bert, "vit-b16": networks.vit, "llama-mlp": networks.llama_mlp,
        "resnet50": networks.resnet}  # fmt: skip
Batches = list[dict[str, np.ndarray]]


def quantized(model: trtkit.Model, data: Batches, dtype: str = "int8") -> trtkit.Model:
    """Matrix products in 8 bits; of a network that has them, its convolutions stay as they are.

    That is ViT's one, which cuts the picture into patches: TensorRT-RTX 1.6.1 builds no INT8 convolution on an H100.
    """
    products = {"Gemm", "MatMul"} & model.op_counts.keys()
    return trtkit.quantize(model, data, ops=products if "LayerNormalization" in model.op_counts else QUANTIZED,
                           dtype=dtype)  # fmt: skip


def int8_smooth(model: trtkit.Model, data: Batches) -> trtkit.Model:
    return quantized(trtkit.smooth(model, data), data)


def fp8(model: trtkit.Model, data: Batches) -> trtkit.Model:
    return quantized(model, data, "fp8")


def int4(model: trtkit.Model, data: Batches) -> trtkit.Model:
    """Weights alone, rounded to the nearest: the time does not depend on which codes they become."""
    return trtkit.quantize_weights(model, block=64)


FORMS: dict[str, Callable[[trtkit.Model, Batches], trtkit.Model]] = {
    "fp16": lambda model, data: model, "int8": quantized, "int8-smooth": int8_smooth, "fp8": fp8, "int4": int4,
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One network at one batch size; `key` names it, and `quant-KEY` its record."""

    key: str
    device: str
    quick: bool

    @property
    def network(self) -> networks.Network:
        return made(self.key.rpartition("-b")[0], self.quick)

    @property
    def batch(self) -> int:
        return int(self.key.rpartition("-b")[2])

    @property
    def graph(self) -> trtkit.Model:
        """FP32, for this batch alone, fused; at batch 1 rewritten for a GPU that idles, like `gpu_step1`'s fastest."""
        module = self.network.make(self.network.export_variant)
        model = trtkit.load(module, self.network.inputs(2, 1, "fp32", "", "cpu")[0], name=self.network.name)
        fixed = fix_shapes(model, {model.inputs[0].name: tuple(self.inputs(1, "cpu")[0].shape)})
        small = trtkit.optimize(fixed, level=3)
        return low_latency(small) if self.batch == 1 else small

    def inputs(self, count: int, device: str, precision: str = "fp32") -> list[torch.Tensor]:
        return self.network.inputs(self.batch, count, precision, "", device)


@cache
def made(name: str, quick: bool) -> networks.Network:
    return MAKE[name](quick)


class Ready(NamedTuple):
    """An engine on disk, and what its outputs are held against; `extra` goes into the record."""

    engine: Path
    graph: Path
    wanted: np.ndarray
    precision: str  # of its inputs
    limit: float  # relative error over which it is wrong
    extra: dict[str, Any]


def prepare(part: Part, forms: list[str], folder: Path) -> dict[str, Ready | str]:
    """What needs the CPU alone, in a process of its own: graphs, ONNX Runtime's outputs, engines, or why there is none.

    So the parts share the processors, and nothing else runs when the GPU's turn has come.
    """
    graph = part.graph
    name = graph.inputs[0].name
    draw = part.network.inputs(part.batch, 1 + max(1, CALIBRATION // part.batch), "fp32", "", "cpu")
    sample, data = {name: draw[0].numpy()}, [{name: tensor.numpy()} for tensor in draw[1:]]
    plain = graph.run(sample)
    ready: dict[str, Ready | str] = {}
    for form in forms:
        try:
            ready[form] = one_form(folder / f"{part.key}-{form}", form, graph, sample, data, plain)
        except Exception as error:  # TensorRT refuses some: that is a finding, and others must go on
            log.exception("%s %s", part.key, form)
            ready[form] = f"refused: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return ready


def one_form(path: Path, form: str, graph: trtkit.Model, sample: dict[str, np.ndarray], data: Batches,
             plain: dict[str, np.ndarray]) -> Ready:  # fmt: skip
    begin = time.perf_counter()
    small = FORMS[form](graph, data)
    model = trtkit.autocast(small, "fp16", io="low")
    wanted = wide(model.run({k: v.astype(model.inputs[0].dtype) for k, v in sample.items()}))
    noise = snr(wide(small.run(sample)), wide(plain)) if form != "fp16" else None
    quantised = time.perf_counter() - begin
    engine = trtkit.build(model, shapes={i.name: tuple(i.shape) for i in model.inputs}, verify=False)
    return Ready(
        engine.save(f"{path}.engine"), trtkit.save(model, f"{path}.onnx"), wanted,
        "fp32" if model.inputs[0].dtype.name == "float32" else "fp16",
        # FP16's rounding moves numbers to the neighbouring code, which is as much as quantising moved them
        max(TOLERANCE, 10 ** (-noise / 20)) if noise else TOLERANCE,
        {
            "snr_db": noise and round(noise, 1),
            "engine_bytes": engine.size_bytes, "kernels": sum(layer.launches for layer in engine.layers),
            "products": products_of(model, engine) if form != "fp16" else [],
            "build_seconds": round(engine.build_seconds, 2), "quantise_seconds": round(quantised, 1),
        },
    )  # fmt: skip


def measured(part: Part, form: str, ready: Ready, command: str) -> str:
    """The engine held against its graph, and its time in a record if it is right; the outcome in a line."""
    tensors = part.inputs(4, part.device, ready.precision)
    engine = trtkit.open_engine(ready.engine, trtkit.load(ready.graph) if part.device == "cpu" else None)
    with engine.open(part.device) as session:
        call = session_call(session, part.device)
        error = max(relative_error(call(tensors[0]).float().cpu().numpy(), ready.wanted) for _ in range(5))
        extra = {"relative_error": float(f"{error:.3g}"), **ready.extra}
        if not error <= ready.limit:
            record.remove(f"quant-{part.key}/{form}")
            return f"WRONG: relative error {error:.2e} over {ready.limit:.2e}, {extra}"
        runs = {"min_runs": 5, "min_seconds": 0.0} if part.quick else {"min_runs": 50, "min_seconds": 0.4}
        time_of = measure(call, inputs=tensors, device=part.device, stream=getattr(session, "stream", None), **runs)
        if part.device == "cuda":
            extra["kernel_us"] = heaps(part, form, lambda: call(tensors[0]))
    record.save(f"quant-{part.key}/{form}", time_of, command=command, extra=extra)
    return f"{time_of.median_ms:9.4f} ms  {json.dumps(extra)}"


def run(part: Part, prepared: Future[dict[str, Ready | str]], command: str) -> None:
    """All forms of one part, each recorded as soon as it is known."""
    for form, ready in prepared.result().items():
        if isinstance(ready, str):
            record.remove(f"quant-{part.key}/{form}")
        say(f"{part.key:16s} {form:12s} {ready if isinstance(ready, str) else measured(part, form, ready, command)}")


def heaps(part: Part, form: str, call: Callable[[], Any]) -> dict[str, float]:
    """Microseconds of a call in kernels of matrix products and in all others, and in pauses between them; CUPTI's."""
    kernels = trace(call)
    for kernel in kernels:
        log.info("%s %s kernel %7.2f %7.2f %s", part.key, form, kernel.charged, kernel.duration, kernel.name)
    product = [k for k in kernels if is_product(k.name)]
    total = sum(k.duration for k in kernels)
    inside = sum(k.duration for k in product)
    return {"products": round(inside, 1), "others": round(total - inside, 1), "number_of_products": len(product),
            "pauses": round(sum(k.charged for k in kernels) - total, 1)}  # fmt: skip


def is_product(name: str) -> bool:
    """Whether a kernel's name is one of TensorRT's for matrix products, convolutions and attention."""
    return any(word in name.lower() for word in ("gemm", "xmma", "mha", "gemv", "cutlass", "conv", "matmul", "__mm"))


def wide(outputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(next(iter(outputs.values())), np.float32)


def snr(got: np.ndarray, want: np.ndarray) -> float:
    """Signal to noise in decibels."""
    noise = np.sum((got.astype(np.float64) - want) ** 2)
    return float(10 * np.log10(np.sum(want.astype(np.float64) ** 2) / noise))


def tables() -> str:
    """Of each form that ran right: milliseconds with speed-up over FP16 and noise; microseconds in its kernels."""
    return f"{_table(_time)}\n\n{_table(_heaps)}"


def _table(cell: Callable[[record.Records, str], str]) -> str:
    kept = [key for key in ORDER if f"quant-{key}" in set(record.keys())]
    found = {key: record.load(f"quant-{key}") for key in kept}
    rows = [[key, *(cell(one, form) if form in one else "–" for form in FORMS)] for key, one in found.items()]
    return markdown(["network, batch", *(form.upper() for form in FORMS)], rows)


def _time(found: record.Records, form: str) -> str:
    one = found[form]
    noise = one.extra["snr_db"]
    speed = f" ({found.speedup(form, 'fp16'):.2f}×, {noise:.0f} dB)" if noise is not None else ""
    return f"{one.median_ms:.3f}{speed}"


def _heaps(found: record.Records, form: str) -> str:
    """Microseconds in products + in others, and how many kernels there are; without CUPTI's times on a CPU."""
    extra = found[form].extra
    us = extra.get("kernel_us")
    return (f"{us['products']:.0f} + {us['others']:.0f} " if us else "") + f"in {extra['kernels']}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu_quant", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks, few samples: does the script work?")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=list(ORDER), metavar="PART")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), metavar="FORM")
    parser.add_argument("--budget", type=float, default=520, help="seconds after which no further part is begun")
    parser.add_argument("--out", type=Path, default=Path("out/gpu_quant"), help="folder for the log and the rest")
    parser.add_argument("--table", action="store_true", help="print the tables from the records, run nothing")
    options = parser.parse_args(argv)
    if options.table:
        print(tables())
        return 0
    open_log(options.out)
    words = ["python3 -m benchmarks.gpu_quant", *(["--quick"] if options.quick else [])]
    words += ["--device cpu"] if options.device == "cpu" else []
    command = " ".join([*words, "--only", *options.only])
    begin = time.perf_counter()
    failed = []
    parts = [Part(key, options.device, options.quick) for key in options.only]
    with tempfile.TemporaryDirectory() as folder:
        workers = max(1, len(os.sched_getaffinity(0)) // 4)  # ONNX Runtime's threads want some, too
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            largest_first = sorted(parts, key=lambda part: -part.batch)
            prepared = {part: pool.submit(prepare, part, options.forms, Path(folder)) for part in largest_first}
        say(f"prepared in {time.perf_counter() - begin:.0f} s")
        for part in parts:
            if time.perf_counter() - begin > options.budget:
                say(f"SKIPPED {part.key}: the budget of {options.budget:.0f} s is spent")
            elif not guarded(part.key, partial(run, part, prepared[part], command), options.out):
                failed.append(part.key)
    say(f"done in {time.perf_counter() - begin:.0f} s; failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
