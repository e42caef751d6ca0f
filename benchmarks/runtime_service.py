"""Engines in service, for gpu_runtime: batching under load, cold starts, a long soak, memory of contexts."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import trtkit
from benchmarks.gpu_step1 import say
from benchmarks.runtime_bench import Bench, memory, per_call, threads_of
from trtkit.bench.measure import Measurement
from trtkit.bench.traffic import poisson_load
from trtkit.engine.batcher import Batcher

RATES = (500, 1000, 2000, 4000, 8000)  # requests a second


# Load


def poisson(bench: Bench) -> None:
    """Latency and throughput of batch 1, of full batches and of dynamic ones at several rates of arrival."""
    samples = [array[0] for array in bench.arrays("resnet50", 1, 16)]
    rates, seconds = ((50,), 0.2) if bench.quick else (RATES, 1.5)
    ways: dict[str, tuple[int, dict[str, Any]]] = {
        "batch-1": (1, {"max_batch": 1, "max_delay_ms": 0}),
        "static-32": (1, {"sizes": (32,), "max_batch": 32, "max_delay_ms": 60_000}),
        "dynamic-2ms": (1, {"max_batch": 32, "max_delay_ms": 2}),
        "dynamic-2ms-pool-2": (2, {"max_batch": 32, "max_delay_ms": 2}),
    }
    gc.collect()
    gc.freeze()  # a full collection stops all threads for tenths of a second in a process with so many objects
    for way, (workers, options) in ways.items():
        with bench.any_batch.open_pool(workers, bench.device) as pool:
            with Batcher(pool, **options) as batcher:
                pool.warm_up(bench.arrays("resnet50", size, 1)[0] for size in batcher.sizes)
            for rate in rates:
                with Batcher(pool, max_waiting=1_000_000, **options) as batcher:
                    requests = int(rate * seconds) // 32 * 32 or 32  # or the last static batch would wait for ever
                    load = poisson_load(batcher.submit, samples, rate, requests, seed=rate)
                    batches = dict(sorted(batcher.batches.items()))
                bench.save(f"poisson-{rate}/{way}", load.measurement(bench.device), p99_ms=load.percentile_ms(99),
                           per_s=load.throughput_per_s, requests=requests, batches=json.dumps(batches))  # fmt: skip


# Cold starts


def cold(bench: Bench) -> None:
    """Until the first answer in a new process, with an empty cache folder and with what a run before left there."""
    with tempfile.TemporaryDirectory() as folder:
        engine = bench.engine("resnet50", 1)
        path = engine.save(Path(folder) / "net.engine")
        graph = trtkit.save(engine.model, Path(folder) / "net.onnx")
        times: dict[str, list[float]] = {"without-cache": [], "with-cache": []}
        for turn in range(1 if bench.quick else 4):
            cache = Path(folder) / f"cache-{turn}"
            for way in times:
                times[way].append(first_answer(bench, path, graph, cache))
        for way, taken in times.items():
            bench.save(f"cold/{way}", Measurement.from_samples(taken, bench.device), "s")
        ratio = np.median(times["without-cache"]) / np.median(times["with-cache"])
        say(f"cold start: {ratio:.1f}x faster with the cache")


def first_answer(bench: Bench, engine: Path, graph: Path, cache: Path) -> float:
    """Milliseconds from opening to the first answer, in a process whose driver keeps no kernels either."""
    program = f"""
import time, numpy as np, trtkit
engine = trtkit.open_engine({str(engine)!r}, {f"trtkit.load({str(graph)!r})" if not bench.cuda else None})
x = np.zeros({list(bench.inputs("resnet50", 1, 1)[0].shape)}, np.float16)
options = {{}}
if {bench.cuda}:
    import trtkit.engine.gpu
    options = {{"cache_dir": {str(cache)!r}}}
begin = time.perf_counter()
with engine.open({bench.device!r}, **options) as session:
    session.run(x)
    print((time.perf_counter() - begin) * 1e3)
"""
    environment = {**os.environ, "CUDA_CACHE_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120,
                          check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return float(done.stdout.split()[-1])


# Many requests


def soak(bench: Bench) -> None:
    """Random shapes from 8 threads through one engine; every answer held against ONNX Runtime's, memory watched."""
    requests, threads = (400, 4) if bench.quick else (100_000, 8)
    engine, bank = bank_of_answers()
    with engine.open_pool(threads, bench.device, **({"kept_shapes": 64} if bench.cuda else {})) as pool:
        pool.warm_up(x for x, _ in bank)
        send(pool, bank, requests // 10, threads, seed=1)
        before = memory(bench)
        begin = time.perf_counter()
        latencies, wrong = send(pool, bank, requests, threads, seed=2)
        seconds = time.perf_counter() - begin
        after = memory(bench)
    bench.save("soak/pool-8", Measurement.from_samples(latencies, bench.device), requests=requests, threads=threads,
               wrong=wrong, shapes=len({x.shape for x, _ in bank}), per_s=requests / seconds,
               gpu_growth_bytes=after[0] - before[0], host_growth_bytes=after[1] - before[1],
               host_bytes=before[1])  # fmt: skip


def bank_of_answers() -> tuple[Any, list[tuple[np.ndarray, np.ndarray]]]:
    """An engine of two changeable dimensions, and inputs of 24 shapes with their answers, computed on the CPU."""
    rng = np.random.default_rng(0)
    text = '<ir_version: 10, opset_import: ["": 20]> soak (float[n, t, 64] x) => (float[n, t, 64] y) ' \
           "{a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) y = Add(c, x)}"  # fmt: skip
    proto = onnx.parser.parse_model(text)
    weights = [rng.standard_normal((64, 64)).astype(np.float32) / 8 for _ in range(2)]
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights))
    model = trtkit.load(proto)
    engine = trtkit.build(model, {"x": [(1, 1, 64), (4, 16, 64), (8, 64, 64)]}, verify=False)
    shapes = [(n, t, 64) for n in (1, 2, 3, 5, 7, 8) for t in (1, 7, 16, 64)]
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes for _ in range(4)]
    return engine, [(x, model.run(x)["y"]) for x in inputs]


def send(pool: Any, bank: list[tuple[np.ndarray, np.ndarray]], requests: int, threads: int, seed: int
         ) -> tuple[list[float], int]:  # fmt: skip
    """Every thread its share, in an order of its own; latencies, and how many answers were wrong."""

    def work(number: int) -> tuple[list[float], int]:
        rng, taken, wrong = random.Random(seed * 100 + number), [], 0
        for _ in range(requests // threads):
            x, want = bank[rng.randrange(len(bank))]
            begin = time.perf_counter()
            got = pool.run(x)["y"]
            taken.append((time.perf_counter() - begin) * 1e3)
            # TF32 rounds factors to 10 bits; an answer of other inputs, or of another moment, is off by far more
            wrong += got.shape != want.shape or not float(np.abs(got - want).max()) < 0.05
        return taken, wrong

    with ThreadPoolExecutor(threads) as executor:
        shares = list(executor.map(work, range(threads)))
    return [t for taken, _ in shares for t in taken], int(sum(wrong for _, wrong in shares))


def contexts(bench: Bench) -> None:
    """Bytes on the GPU that 4 contexts of ResNet-50 at batch 32 take, each with scratch memory or all with one."""
    if not bench.cuda:
        return say("memory: needs a GPU")
    array = bench.arrays("resnet50", 32, 1)[0]
    engine = bench.engine("resnet50", 32)
    for name, workers, share in (("one", 1, False), ("one", 1, False), ("own", 4, False), ("shared", 4, True)):
        before = memory(bench)[0]  # the first of all loads kernels as well, so it is measured twice
        with engine.open_pool(workers, share_memory=share) as pool:
            opened = memory(bench)[0] - before
            taken = per_call(partial(threads_of, bench, pool, workers, [array]), 3)
        bench.save(f"memory/{name}", taken, "s", gpu_bytes=opened, engine_bytes=engine.size_bytes, workers=workers)
    return None
