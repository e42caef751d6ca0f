"""Inside the engine on a GPU: time by layer, power, cold starts with caches, refit, and a kernel between engines.

    python3 -m benchmarks.gpu_profile --out out/gpu                     # everything, 4 minutes on one GPU
    python3 -m benchmarks.gpu_profile --only profile-resnet50-b1 cold   # some of it
    python3 -m benchmarks.gpu_profile --quick --device cpu --out out/q  # what of it a CPU can do, small networks

Records: `profile-NETWORK-PRECISION-bBATCH` (the profile is in its `extra`, `trtkit.engine.profile.Profile` reads it),
`peaks` (the roof), `cold-start`, `refit-NETWORK`, `kernel-chain`, `tiny-models`.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trtkit
from benchmarks import networks
from benchmarks.gpu_step1 import guarded, open_log, say
from trtkit.bench import record
from trtkit.bench.measure import Measurement, measure
from trtkit.bench.profiler import layer_events, profile
from trtkit.bench.roofline import Machine, measure_gpu
from trtkit.engine import cache as caches
from trtkit.engine.engine import Engine
from trtkit.engine.profile import Profile, layer_costs
from trtkit.engine.verify import relative_error
from trtkit.errors import BuildError
from trtkit.passes import run_passes
from trtkit.passes.absorb_bias import AbsorbBias
from trtkit.passes.fix_shapes import fix_shapes
from trtkit.passes.low_latency import low_latency

log = logging.getLogger("gpu_profile")

MAKE = {"resnet50": networks.resnet, "bert-base": networks.bert}
PROFILES = ("resnet50-b1", "bert-base-b1", "resnet50-b32", "bert-base-b32")
ORDER = ("peaks", *(f"profile-{key}" for key in PROFILES), "cold", "refit", "chain", "tiny")
STARTS = 3  # of each kind of cold start, each in a process of its own


class Bench:
    """Builds what several parts want, once."""

    def __init__(self, device: str, quick: bool, command: str) -> None:
        self.device, self.quick, self.command = device, quick, command
        self.engine = cache(self._engine)
        self.peaks = cache(lambda: measure_gpu("fp16"))

    def network(self, name: str) -> networks.Network:
        return MAKE[name](self.quick)

    def model(self, name: str, batch: int, seed: int | None = None) -> trtkit.Model:
        """The FP16 graph that `gpu_step1` finds fastest; `seed` draws other weights."""
        network = self.network(name)
        module = network.make(network.export_variant)
        if seed is not None:
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
        model = trtkit.load(module, network.inputs(2, 1, "fp32", "", "cpu")[0], name=network.name)
        shape = tuple(network.inputs(batch, 1, "fp32", "", "cpu")[0].shape)
        small = trtkit.optimize(fix_shapes(model, {model.inputs[0].name: shape}), level=3)
        if batch == 1:
            small = low_latency(small)
        elif "LayerNormalization" in small.op_counts:
            small = run_passes(small, [AbsorbBias()])
        return trtkit.autocast(small, "fp16", io="low")

    def _engine(self, name: str, batch: int) -> Engine:
        return trtkit.build(self.model(name, batch), verify=False)

    def inputs(self, engine: Engine, name: str, batch: int) -> dict[str, torch.Tensor]:
        assert engine.model is not None
        low = engine.model.inputs[0].dtype.name != "float32"
        (tensor,) = self.network(name).inputs(batch, 1, "fp16" if low else "fp32", "", self.device)
        return {engine.model.inputs[0].name: tensor}

    def save(self, key: str, found: Measurement, extra: dict[str, Any] | None = None, unit: str = "ms") -> None:
        record.save(key, found, command=self.command, extra=extra, unit=unit)  # "s": done a few times only


# The parts


def peaks(bench: Bench) -> None:
    """Both roofs, measured: matrix products in FP16 and in TF32, and a copy."""
    if bench.device != "cuda":
        return say("peaks: needs a GPU")
    for precision in ("fp16", "fp32"):
        machine = bench.peaks() if precision == "fp16" else measure_gpu(precision)
        say(f"peaks {precision}: {machine.flops / 1e12:.0f} TFLOP/s, {machine.bytes / 1e9:.0f} GB/s")
        found = Measurement.from_samples([2e3 * 8192**3 / machine.flops], "cuda")
        bench.save(f"peaks/{precision}", found, {"flops": machine.flops, "bytes": machine.bytes, "size": 8192}, "s")
    return None


def profiled(bench: Bench, key: str) -> None:
    """One network: where the time of a call goes, and what it draws."""
    name, _, batch = key.rpartition("-b")
    engine = bench.engine(name, int(batch))
    costs = layer_costs(engine, int(batch))
    say(f"{key}: {len(costs)} layers, {sum(c.flops for c in costs) / 1e9:.2f} GFLOP, {engine.size_bytes:,} bytes")
    if bench.device != "cuda":
        machine = Machine("this CPU pretends", 1e12, 1e11)
        bound = sum(machine.seconds(c.flops, c.bytes) for c in costs)
        return say(f"{key}: at least {1e6 * bound:.0f} us on a machine of 1 TFLOP/s and 100 GB/s")
    inputs = bench.inputs(engine, name, int(batch))
    found = profile(engine, inputs, bench.peaks())
    _check_numbers(engine, inputs, key)
    try:
        events = layer_events(engine, inputs)
        found.facts["iprofiler_us"] = round(sum(events.values()), 2)
        found.facts["iprofiler_names_known"] = sum(c.name in events for c in costs)
        log.info("%s IProfiler %s", key, json.dumps(events))
    except Exception as error:
        log.exception("IProfiler")
        say(f"{key}: IProfiler: {type(error).__name__}: {error}")
    _tell(key, found)
    scattered = Measurement(
        found.latency_us / 1e3, found.facts["p10_us"] / 1e3, found.facts["p90_us"] / 1e3, 50, "cuda"
    )
    bench.save(f"profile-{name}-fp16-b{batch}/trtkit", scattered, found.as_facts())
    return None


def _check_numbers(engine: Engine, inputs: dict[str, torch.Tensor], key: str) -> None:
    """A profile of an engine that computes something else would be worth nothing."""
    assert engine.model is not None
    with engine.open("cuda") as session:
        got = {name: value.float().cpu().numpy() for name, value in session.run(dict(inputs)).items()}
    wanted = engine.model.run({name: tensor.cpu().numpy() for name, tensor in inputs.items()})
    error = max(relative_error(got[name], wanted[name]) for name in wanted)
    say(f"{key}: relative error {error:.1e}")
    if not error <= 2e-2:
        raise RuntimeError(f"{key}: the engine is wrong, relative error {error:.2e}")


def _tell(key: str, found: Profile) -> None:
    log.info("%s\n%s", key, found.table(len(found.layers)))
    empty = sum(not layer.kernels for layer in found.layers)
    say(f"{key}: {found}; {empty} layers without a kernel")
    say(f"{key}: busy {found.facts['busy_us']} us, IProfiler {found.facts.get('iprofiler_us')} us")
    for layer in found.furthest(3):
        say(f"   {layer.us:7.2f} us, {layer.of_roofline:4.0%} of its roofline: {layer.cost.label} "
            f"({layer.cost.nodes[:1]}): {found.why(layer)}")  # fmt: skip
    say(f"   power: {json.dumps(found.facts.get('power'))}")
    for layer in found.layers:
        log.info("%s layer %s <- %s", key, layer.cost.name, list(layer.kernels))


# Cold start

_START = """
import json, sys, time
import numpy as np
begin = time.perf_counter()
from trtkit.engine.engine import open_engine
from trtkit.engine import gpu  # PyCUDA, and a context on the GPU
imported = time.perf_counter()
engine = open_engine(sys.argv[1])
read = time.perf_counter()
session = engine.open("cuda", cache_dir=sys.argv[2])
opened = time.perf_counter()
info = session.inputs[0]
x = np.zeros([1 if isinstance(d, str) else d for d in info.shape], info.dtype)
session.run({info.name: x})
first = time.perf_counter()
session.run({info.name: x})
second = time.perf_counter()
session.close()
print(json.dumps({"import": imported - begin, "read": read - imported, "open": opened - read,
                  "first_run": first - opened, "second_run": second - first, "to_first_result": first - imported}))
"""


def cold(bench: Bench) -> None:
    """A new process from the engine file to its first result: no cache, a good one, a stale one, a corrupt one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = bench.engine("resnet50", 1).save(folder / "net.engine")
        if bench.device != "cuda":
            return say(f"cold: {path.stat().st_size:,} bytes saved; starting it needs a GPU")
        for kind in ("without", "with", "stale", "corrupt"):
            samples, said = [], ""
            for _ in range(STARTS):
                _prepare_cache(folder / "cache", kind)
                facts, said = _started(path, folder / "cache")
                samples.append(facts)
            last = samples[-1]
            size = sum(entry.size_bytes for entry in caches.entries(folder / "cache"))
            rounded = json.dumps({k: round(1e3 * v, 1) for k, v in last.items()})
            say(f"cold {kind:8s} {rounded} ms, cache {size:,} bytes; {said}")
            times = Measurement.from_samples([1e3 * facts["to_first_result"] for facts in samples], "cuda")
            middle = {k: round(1e3 * float(np.median([facts[k] for facts in samples])), 2) for k in last}
            bench.save(f"cold-start/{kind}", times, {"ms": middle, "cache_bytes": size, "said": said}, "s")
    return None


def _prepare_cache(folder: Path, kind: str) -> None:
    """Leave the folder as this kind of start wants to find it; the process before left a good cache in it."""
    if kind == "without":
        caches.clear(folder)
    for entry in caches.entries(folder):
        raw = entry.path.read_bytes()
        if kind == "corrupt":
            entry.path.write_bytes(raw[: len(raw) // 2])
        elif kind == "stale":
            head, _, data = raw.partition(b"\n")
            entry.path.write_bytes(head.replace(b'"driver": "', b'"driver": "1.') + b"\n" + data)


def _started(path: Path, folder: Path) -> tuple[dict[str, float], str]:
    command = [sys.executable, "-c", _START, str(path), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"a start failed: {done.stderr[-400:]}")
    warned = [line for line in done.stderr.splitlines() if "cache" in line]
    return json.loads(done.stdout.splitlines()[-1]), (warned[-1].replace(str(folder), "CACHE") if warned else "")


# Refit


def refit(bench: Bench) -> None:
    """ResNet-50 built in four ways: sizes and seconds, then other weights put in, and held against their own graph."""
    old, new = bench.model("resnet50", 1), bench.model("resnet50", 1, seed=7)
    if bench.device != "cuda":
        return say(f"refit: {old.node_count} nodes; building refittable engines needs a GPU")
    ways = {"plain": {}, "refittable": {"refittable": True}, "stripped": {"strip": True},
            "stripped-refittable": {"strip": True, "refittable": True}}  # fmt: skip
    for way, options in ways.items():
        try:
            _refit_one(bench, way, options, old, new)
        except Exception as error:
            log.exception("refit %s", way)
            say(f"refit {way}: FAILED {type(error).__name__}: {str(error)[:300]}")
            record.remove(f"refit-resnet50/{way}")
    return None


def _refit_one(bench: Bench, way: str, options: dict[str, bool], old: trtkit.Model, new: trtkit.Model) -> None:
    begin = time.perf_counter()
    targets = "as it comes"
    try:
        engine = trtkit.build(old, verify=False, **options)
    except BuildError as error:
        say(f"refit {way}: {str(error)[:300]}; now for the current GPU alone")
        begin, targets = time.perf_counter(), "current"
        engine = trtkit.build(old, verify=False, compute_capabilities="current", **options)
    extra: dict[str, Any] = {"build_s": round(time.perf_counter() - begin, 3), "bytes": engine.size_bytes}
    extra["targets"] = targets
    whole = engine
    if options:
        weights = new if options.get("refittable") else old
        begin = time.perf_counter()
        whole = engine.refit(weights, verify=False)
        extra |= {"refit_s": round(time.perf_counter() - begin, 3), "refitted_bytes": whole.size_bytes}
    assert whole.model is not None
    inputs = bench.inputs(whole, "resnet50", 1)
    wanted = next(iter(whole.model.run({k: v.cpu().numpy() for k, v in inputs.items()}).values()))
    before = next(iter(old.run({k: v.cpu().numpy() for k, v in inputs.items()}).values()))
    with whole.open("cuda") as session:
        call = lambda: next(iter(session.run(inputs).values()))  # noqa: E731
        got = call().float().cpu().numpy()
        latency = measure(call, device="cuda", stream=session.stream)  # type: ignore[attr-defined]
    extra |= {"error": float(f"{relative_error(got, wanted):.2e}"),
              "far_from_old": float(f"{relative_error(got, before):.2e}")}  # fmt: skip
    say(f"refit {way:20s} {json.dumps(extra)}, {1e3 * latency.median_ms:.1f} us a call")
    if not extra["error"] <= 2e-2:
        raise RuntimeError(f"the refitted engine is wrong: {extra['error']}")
    bench.save(f"refit-resnet50/{way}", latency, extra)


# A kernel between engines


def chain(bench: Bench) -> None:
    """DeformConv three ways: our chain, the same through the host, and PyTorch where torchvision has the operator."""
    from trtkit.course import deform

    channels, size, batch = (8, 16, 1) if bench.quick else (64, 112, 4)
    made = deform.chain(channels, size, batch=batch)
    whole = deform.whole(channels, size)
    x = np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)
    wanted = whole.run({"x": x})["y"]
    with made.open("cpu" if bench.device != "cuda" else "cuda") as session:
        error = relative_error(session.run(x)["y"], wanted)
        say(f"chain on {session.device}: relative error {error:.1e} against ONNX Runtime's DeformConv")
        if bench.device != "cuda":
            return
        if not error <= 5e-3:
            raise RuntimeError(f"the chain is wrong: {error}")
        tensor = torch.from_numpy(x).cuda()
        ours = measure(lambda: session.run({"x": tensor}), device="cuda", stream=session.stream)  # type: ignore[attr-defined]
        same = relative_error(session.run({"x": tensor})["y"].cpu().numpy(), wanted)
        extra = {"error": error, "error_tensors": same, "one_graph": session.recorded, "shape": [batch, channels, size]}  # type: ignore[attr-defined]
    through = _through_the_host(made, x)
    say(f"chain: {1e3 * ours.median_ms:.1f} us on the GPU ({extra}), through the host {1e3 * through.median_ms:.1f} us")
    bench.save("kernel-chain/one-stream", ours, extra)
    bench.save("kernel-chain/through-the-host", through)
    eager, compiled = _torch_deform(channels, x, wanted)
    bench.save("kernel-chain/torchvision", eager)
    say(f"chain: torchvision {1e3 * eager.median_ms:.1f} us{compiled}")


def _through_the_host(made: Any, x: np.ndarray) -> Measurement:
    """Engine, copy, the kernel's reference on the CPU, copy, engine: what one does who has no kernel."""
    first, kernel, last = made.stages
    with first.open("cuda") as front, last.open("cuda") as rest:

        def call() -> Any:
            between = front.run({"x": x})
            return rest.run({"columns": kernel.run(between)})

        return measure(call, min_runs=10, min_seconds=0.5, warmup=2)


def _torch_deform(channels: int, x: np.ndarray, wanted: np.ndarray) -> tuple[Measurement, str]:
    """torchvision's deform_conv2d, eagerly and inside a CUDA graph would be; its own kernel, FP32."""
    from torchvision.ops import deform_conv2d

    from trtkit.course import deform
    from trtkit.engine.refit import _initializers

    weights = {k: torch.from_numpy(np.array(v.numpy())).cuda()
               for k, v in _initializers(deform.whole(channels, x.shape[-1])).items()}  # fmt: skip
    tensor = torch.from_numpy(x).cuda()

    def call() -> torch.Tensor:
        with torch.inference_mode():
            f = torch.relu(torch.conv2d(tensor, weights["stem"], padding=1))
            offset = torch.conv2d(f, weights["shift"], padding=1)
            return torch.relu(deform_conv2d(f, offset, weights["w"], padding=1))

    error = relative_error(call().cpu().numpy(), wanted)
    return measure(call, device="cuda"), f", relative error {error:.1e}"


# When TensorRT does not pay


def tiny(bench: Bench) -> None:
    """A small perceptron at batch 1: NumPy on the CPU, PyTorch on both, an engine on the GPU."""
    for width in (16, 128, 1024):
        module = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)).eval()
        example = torch.randn(1, width)
        model = trtkit.load(module, example, name=f"mlp-{width}")
        engine = trtkit.build(model, shapes={model.inputs[0].name: (1, width)}, verify=False)
        array = example.numpy()
        a, b = (
            (layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy()) for layer in (module[0], module[2])
        )
        found = {"numpy": measure(lambda: np.maximum(array @ a[0] + a[1], 0) @ b[0] + b[1])}  # noqa: B023
        with torch.inference_mode():
            found["torch-cpu"] = measure(lambda: module(example))  # noqa: B023
            if bench.device == "cuda":
                module.cuda()
                moved = example.cuda()
                found["torch-gpu"] = measure(lambda: module(moved), device="cuda")  # noqa: B023
        with engine.open(bench.device) as session:
            found["trtkit-arrays"] = measure(lambda: session.run(array))  # noqa: B023
            if bench.device == "cuda":
                name = session.inputs[0].name
                stream = session.stream  # type: ignore[attr-defined]
                found["trtkit"] = measure(lambda: session.run({name: moved}), device="cuda", stream=stream)  # noqa: B023
        for contender, one in found.items():
            bench.save(f"tiny-models/{contender}-{width}", one)
        say(f"tiny {width:5d}: " + ", ".join(f"{k} {1e3 * v.median_ms:.1f} us" for k, v in found.items()))


def parts_of(bench: Bench) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "peaks", partial(peaks, bench)
    for key in PROFILES:
        yield f"profile-{key}", partial(profiled, bench, key)
    for name, part in (("cold", cold), ("refit", refit), ("chain", chain), ("tiny", tiny)):
        yield name, partial(part, bench)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu_profile", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks: does the script work?")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=list(ORDER), metavar="PART")
    parser.add_argument("--budget", type=float, default=400, help="seconds after which no further part is begun")
    parser.add_argument("--out", type=Path, default=Path("out/gpu_profile"), help="folder for the log and the rest")
    options = parser.parse_args(argv)
    open_log(options.out)
    words = ["python3 -m benchmarks.gpu_profile", *(["--quick"] if options.quick else [])]
    words += ["--device cpu"] if options.device == "cpu" else []
    if options.only != list(ORDER):
        words += ["--only", *options.only]
    bench = Bench(options.device, options.quick, " ".join(words))
    begin, failed = time.perf_counter(), []
    for name, part in parts_of(bench):
        if name not in options.only:
            continue
        if time.perf_counter() - begin > options.budget:
            say(f"SKIPPED {name}: the budget of {options.budget:.0f} s is spent")
        elif not guarded(name, part, options.out):
            failed.append(name)
        log.info("%s ends at %.1f s", name, time.perf_counter() - begin)
    say(f"done in {time.perf_counter() - begin:.0f} s; failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
