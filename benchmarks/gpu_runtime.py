"""Running engines on a GPU: sessions, pools, overlapped copies, batching, cold starts and a long soak, in one run.

    python3 -m benchmarks.gpu_runtime --out out/gpu                    # everything, 4 minutes on one GPU
    python3 -m benchmarks.gpu_runtime --only overlap poisson           # some of it
    python3 -m benchmarks.gpu_runtime --quick --device cpu --out out/q # the same code on a CPU, as far as it goes there

Parts: `latency-*` a session against TensorRT's bare calls and PyTorch; `streams-*` one engine in 1, 2, 4 and 8
contexts; `overlap` NumPy batches of 32 pictures with copies beside computing and without; `poisson` batching under
load; `cold` the first answer of a new process with and without the runtime cache; `soak` 100,000 requests of random
shapes from 8 threads, every answer checked and memory watched; `memory` what contexts take with scratch memory of their
own and shared; `shapes` profiles and DLPack; `allocator` outputs whose shape depends on the data. Records are
`engine-room-PART/...`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import overhead
from benchmarks.contenders import relative_error, session_call
from benchmarks.gpu_step1 import guarded, open_log, say
from benchmarks.runtime_bench import Bench, host_time, per_call, threads_of
from benchmarks.runtime_service import cold, contexts, poisson, soak
from benchmarks.runtime_shapes import allocator, shapes
from trtkit.bench import record, torch_peers
from trtkit.bench.measure import Measurement, measure

ORDER = ("latency-resnet50", "latency-small", "shapes", "overlap", "streams-resnet50", "streams-small", "soak",
         "memory", "poisson", "cold", "allocator")  # fmt: skip
STREAMS = (1, 2, 4, 8)


# Latency


def latency(bench: Bench, name: str) -> None:
    """One call at batch 1, with CUDA events, and calls a second when they are queued without waiting."""
    network, engine = bench.networks[name], bench.engine(name, 1)
    inputs = bench.inputs(name, 1, 4, bench.device)
    want = bench.runner.module(network, "fp32", "nchw")(inputs[0].float()).detach()

    def take(contender: str, call: Callable[[torch.Tensor], Any], given: list[torch.Tensor], stream: Any = None,
             **extra: Any) -> Measurement:  # fmt: skip
        for tensor in given * 3:
            call(tensor)
        timed = measure(call, inputs=given, device=bench.device, stream=stream, **bench.runs)
        error = relative_error(call(given[0]), want.double())
        rate = throughput(bench, lambda: call(given[0]))
        bench.save(f"latency-{name}/{contender}", timed, per_s=rate, relative_error=error, **extra)
        return timed

    with engine.open(bench.device) as session:
        call = session_call(session, bench.device)
        take("session", call, inputs, getattr(session, "stream", None))
        if bench.cuda:
            bare(bench, name, engine, session, inputs[0])
    makers = {"eager": torch_peers.eager, "compile": lambda module: torch_peers.compiled(module, "reduce-overhead")}
    if bench.cuda:
        makers["eager-graph"] = lambda module: torch_peers.graphed(module, [given[0]])
    for contender, maker in makers.items():
        best: tuple[float, str] | None = None
        for variant in ("nhwc",) if contender == "compile" else network.variants:
            given = bench.inputs(name, 1, 4, bench.device, variant)
            call = maker(bench.runner.module(network, "fp16" if bench.cuda else "fp32", variant))
            given = given if bench.cuda else [tensor.float() for tensor in given]
            key = f"{contender}-{variant}"
            best = min(best or (np.inf, ""), (take(key, call, given, form=variant).median_ms, variant))
        keep_best(f"engine-room-latency-{name}", contender, best[1], network.variants)


def keep_best(key: str, contender: str, variant: str, variants: tuple[str, ...]) -> None:
    """The fastest form of a peer stands under the peer's name; the others go."""
    path = record.folder() / f"{key}.json"
    document = json.loads(path.read_text())
    document["contenders"][contender] = document["contenders"][f"{contender}-{variant}"]
    for other in variants:
        document["contenders"].pop(f"{contender}-{other}", None)
    path.write_text(json.dumps(document, indent=1) + "\n")


def bare(bench: Bench, name: str, engine: Any, session: Any, tensor: torch.Tensor) -> None:
    """TensorRT's own calls with nothing around them: execute_async_v3, and the replay of the session's graph."""
    feed = {session.inputs[0].name: tensor}
    loops = {
        "execute-async": overhead.bare_runtime(engine, tensor),
        "graph-replay": overhead.bare_replay(session, feed),
    }
    for contender, call in loops.items():
        for _ in range(20):
            call()
        samples = []
        for _ in range(200):  # not CUDA events: the bare loops have a stream of their own
            bench.sync()
            begin = time.perf_counter()
            call()
            bench.sync()
            samples.append((time.perf_counter() - begin) * 1e3)
        bench.save(f"latency-{name}/{contender}", Measurement.from_samples(samples, "cuda"),
                   per_s=throughput(bench, call), clock="host, waited")  # fmt: skip
    samples = [host_time(bench, lambda: session.run(feed)) for _ in range(200)]
    bench.save(f"latency-{name}/session-waited", Measurement.from_samples(samples, "cuda"), clock="host, waited")


def throughput(bench: Bench, call: Callable[[], Any], seconds: float = 0.3) -> float:
    """Calls a second when nobody waits for one before the next is queued."""
    calls = 0
    bench.sync()
    begin = time.perf_counter()
    while time.perf_counter() - begin < (0.02 if bench.quick else seconds):
        for _ in range(20):
            call()
        calls += 20
        bench.sync()
    return calls / (time.perf_counter() - begin)


# Streams


def streams(bench: Bench, name: str) -> None:
    """Batch 1 in n contexts: CUDA tensors queued round-robin by one thread, and NumPy arrays from n threads."""
    engine = bench.engine(name, 1)
    arrays = bench.arrays(name, 1, 4)
    for workers in STREAMS:
        with engine.open_pool(workers, bench.device) as pool:
            taken = per_call(partial(threads_of, bench, pool, workers, arrays), 3 if bench.quick else 50)
            bench.save(f"streams-{name}/pool-{workers}", taken, per_s=1e3 / taken.median_ms, workers=workers)
    if not bench.cuda:
        return
    from trtkit.engine.gpu import GpuSession
    from trtkit.engine.loaded import LoadedEngine

    for workers in STREAMS:
        with ExitStack() as stack:
            loaded = LoadedEngine(engine.plan, name)
            stack.callback(loaded.close)
            sessions = [stack.enter_context(GpuSession(loaded, name)) for _ in range(workers)]
            tensors = [bench.inputs(name, 1, 1, "cuda")[0] for _ in range(workers)]
            taken = per_call(partial(round_robin, bench, sessions, tensors), 50)
            bench.save(f"streams-{name}/streams-{workers}", taken, per_s=1e3 / taken.median_ms, workers=workers)


def round_robin(bench: Bench, sessions: list[Any], tensors: list[torch.Tensor]) -> float:
    calls = max(1, (20 if bench.quick else 200) // len(sessions))
    bench.sync()
    begin = time.perf_counter()
    for _ in range(calls):
        for session, tensor in zip(sessions, tensors, strict=True):
            session.run(tensor)
    bench.sync()
    return (time.perf_counter() - begin) * 1e3 / (calls * len(sessions))


# Copies


def overlap(bench: Bench) -> None:
    """Milliseconds a batch of 32 pictures, NumPy in and out."""
    batch = 2 if bench.quick else 32
    arrays = bench.arrays("resnet50", batch, 4)
    count, rounds = (4, 2) if bench.quick else (30, 50)
    stream_of = [arrays[i % len(arrays)] for i in range(count)]
    with bench.engine("resnet50", batch).open(bench.device) as session:
        for way in ("off", "on"):

            def go(way: str = way) -> float:
                begin = time.perf_counter()
                for _ in session.run_many(stream_of, overlap=way == "on"):
                    pass
                return (time.perf_counter() - begin) * 1e3 / count

            taken = per_call(go, rounds)
            bench.save(f"overlap/{way}", taken, batch=batch, pictures_per_s=batch * 1e3 / taken.median_ms)
        if bench.cuda:
            steps(bench, session, arrays[0])


def steps(bench: Bench, session: Any, array: np.ndarray) -> None:
    """The steps of one batch alone: into pinned memory, upload, compute, download."""
    bound = session.host_bound({session.inputs[0].name: array})
    name, stream = session.inputs[0].name, session.stream
    from trtkit.engine.cuda import as_bytes, cuda, stage

    calls = {
        "stage": lambda: stage(bound.pinned[name], array),
        "upload": lambda: cuda.memcpy_htod_async(bound.buffers[name], as_bytes(bound.pinned[name]), stream),
        "compute": lambda: bound.launch(stream.handle),
        "download": lambda: bound.download(stream),
        "hand-out": bound.results,
    }
    for step, call in calls.items():
        host_time(bench, call)
        samples = [host_time(bench, call) for _ in range(50)]
        bench.save(f"overlap/step-{step}", Measurement.from_samples(samples, "cuda"), bytes=int(array.nbytes))


def parts(bench: Bench) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in bench.networks:
        yield f"latency-{name}", partial(latency, bench, name)
        yield f"streams-{name}", partial(streams, bench, name)
    for part in (shapes, overlap, soak, poisson, cold, allocator):
        yield part.__name__, partial(part, bench)
    yield "memory", partial(contexts, bench)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu_runtime", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks, few samples: does the script work?")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=list(ORDER), metavar="PART")
    parser.add_argument("--budget", type=float, default=400, help="seconds after which no further part is begun")
    parser.add_argument("--out", type=Path, default=Path("out/gpu_runtime"), help="folder for the log and the rest")
    options = parser.parse_args(argv)
    open_log(options.out)
    words = ["python3 -m benchmarks.gpu_runtime", *(["--quick"] if options.quick else [])]
    words += ["--device cpu"] if options.device == "cpu" else []
    words += ["--only", *options.only] if len(options.only) < len(ORDER) else []
    torch_peers.best_footing()
    bench = Bench(options.device, options.quick, " ".join(words))
    todo, begin, failed = dict(parts(bench)), time.perf_counter(), []
    for name in options.only:
        if time.perf_counter() - begin > options.budget:
            say(f"SKIPPED {name}: the budget of {options.budget:.0f} s is spent")
        elif not guarded(name, todo[name], options.out):
            failed.append(name)
        say(f"-- {time.perf_counter() - begin:.0f} s")
    say(f"done in {time.perf_counter() - begin:.0f} s; failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
