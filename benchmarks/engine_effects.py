"""What our optimisation changes in the engine that TensorRT builds: the graph as exported against each of our levels.

    python3 -m benchmarks.engine_effects --out out/effects               # on a GPU: latency as well, under 8 minutes
    python3 -m benchmarks.engine_effects --only bert_sdpa --levels 0 2   # some of it
    python3 -m benchmarks.engine_effects --quick --out out/q             # small networks: does the script work?
    python3 -m benchmarks.engine_effects --table                         # the table from the records, nothing is run

For every network of the zoo (batch 1) and every level: nodes of the graph, kernels and bytes of the engine, seconds of
the build; level 0 is the graph as PyTorch exported it. Where a GPU can run the engine, it is verified and its latency
measured, as a CUDA graph, in FP16 from `autocast`. Records are written after each network to OUT/records, and what
TensorRT refused, in its own words, to OUT/engine_effects.json and to the records of the other levels.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trtkit
from benchmarks import zoo
from trtkit.bench import machine, record
from trtkit.bench.measure import Measurement, measure
from trtkit.course import gpu
from trtkit.engine.engine import Engine
from trtkit.errors import TrtkitError
from trtkit.passes import LEVELS

ORDER = (  # the most telling first: the command may be killed, and --budget may cut the rest
    "bert_sdpa", "bert", "resnet50", "mobilenet_v2", "shufflenet_v2_x1_0-ts", "vit", "vit-ts", "efficientnet_b0",
    "swin_t", "whisper_encoder", "llama", "gpt2", "convnext_tiny", "densenet121", "unet", "resnet18", "retinanet",
    "lstm-ts", "googlenet", "squeezenet1_1", "shufflenet_v2_x1_0", "mobilenet_v3_small", "mnasnet1_0",
)  # fmt: skip
QUICK = ("resnet18", "bert_sdpa", "shufflenet_v2_x1_0-ts", "lstm-ts")
COMMAND = "python3 -m benchmarks.engine_effects"


@dataclass
class Outcome:
    """One level of one network in one precision; `latency` only where a GPU ran the engine."""

    nodes: int
    kernels: int
    engine_bytes: int
    builds: list[float]  # seconds
    ops: Counter[str]  # the kernels by what they compute
    latency: Measurement | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def build_seconds(self) -> float:
        """The median of the builds (of an even number, the later of the two in the middle)."""
        return sorted(self.builds)[len(self.builds) // 2]


def prepare(model: trtkit.Model, level: int, precision: str) -> trtkit.Model:
    graph = trtkit.optimize(model, level)
    return trtkit.autocast(graph, "fp16") if precision == "fp16" else graph


def build(graph: trtkit.Model, runs_on_gpu: bool, repeats: int) -> tuple[Engine, list[float]]:
    """An engine for batch 1, built several times for its time; verified where it is going to be measured."""
    shapes = {i.name: tuple(1 if isinstance(d, str) else d for d in i.shape) for i in graph.inputs}
    engine = trtkit.build(graph, shapes=shapes, verify=runs_on_gpu)
    seconds = [engine.build_seconds]
    seconds += [trtkit.build(graph, shapes=shapes, verify=False).build_seconds for _ in range(repeats - 1)]
    return engine, seconds


def latency(engine: Engine, quick: bool) -> Measurement:
    """Median of at least 50 calls with inputs that lie on the GPU already; four sets take turns."""
    import torch

    model = engine.model
    assert model is not None
    sets = [
        {name: torch.from_numpy(data).cuda() for name, data in model.random_inputs(batch=1, seed=seed).items()}
        for seed in range(4)
    ]
    with engine.open("cuda") as session:
        for inputs in sets:
            session.run(inputs)
        runs = {"min_runs": 5, "min_seconds": 0.0} if quick else {"min_runs": 50, "min_seconds": 0.4}
        return measure(session.run, inputs=sets, device="cuda", stream=getattr(session, "stream", None), **runs)


def outcome(model: trtkit.Model, level: int, precision: str, options: argparse.Namespace) -> Outcome:
    graph = prepare(model, level, precision)
    on_gpu = precision == "fp16" and machine.can_run("tensorrt-gpu")
    engine, seconds = build(graph, on_gpu, options.repeats)
    kernels = [layer for layer in engine.layers if layer.launches]
    result = Outcome(graph.node_count, len(kernels), engine.size_bytes, seconds, Counter(k.ops for k in kernels))
    if on_gpu:
        result.latency = latency(engine, options.quick)
        result.extra["verified"] = True
    return result


def network(name: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """All levels of one network: records, printed lines, and what was refused by level."""
    model = trtkit.load(zoo.path(name, options.quick))
    done: dict[int, Outcome] = {}
    refused: dict[str, str] = {}
    for level in options.levels:
        try:
            done[level] = outcome(model, level, precision, options)
        except TrtkitError as error:
            refused[f"level-{level}"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    first = min(done, default=0)
    for level, result in done.items():
        extra = {
            "network": name, "precision": precision, "nodes": result.nodes, "kernels": result.kernels,
            "engine_bytes": result.engine_bytes, "build_seconds": round(result.build_seconds, 2),
            "same_kernels_as_level": _same(done, level), "refused": refused,
            "kernels_changed": _changed(done[first].ops, result.ops), **result.extra,
        }  # fmt: skip
        key = f"{name}-{precision}/level-{level}".replace("_", "-")
        seconds = Measurement.from_samples([1e3 * s for s in result.builds])
        record.save(f"engine-build-{key}", seconds, command=COMMAND, extra=extra, unit="s")
        if result.latency is not None:
            record.save(f"engine-latency-{key}", result.latency, command=COMMAND, extra=extra)
        _say(name, precision, level, result, done[first])
    for level_name, why in refused.items():
        print(f"{name:22s} {precision} {level_name.replace('-', ' ')}: REFUSED {why[:200]}", flush=True)
    return {"network": name, "precision": precision, "refused": refused, "levels": {
        level: {"nodes": r.nodes, "kernels": r.kernels, "engine_bytes": r.engine_bytes, "builds": r.builds,
                "latency_ms": r.latency.median_ms if r.latency else None} for level, r in done.items()}}  # fmt: skip


def _same(done: dict[int, Outcome], level: int) -> int:
    """The lowest level whose engine has the same kernels: TensorRT does by itself what the levels between did."""
    return min(other for other, result in done.items() if result.ops == done[level].ops)


def _changed(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """How many kernels of each kind there are more (or fewer) than in the first engine; the 12 largest changes."""
    difference = {op: after[op] - before[op] for op in {*before, *after} if after[op] != before[op]}
    return dict(sorted(difference.items(), key=lambda item: (-abs(item[1]), item[0]))[:12])


def _say(name: str, precision: str, level: int, result: Outcome, first: Outcome) -> None:
    time_ms = f"{result.latency.median_ms:8.4f} ms" if result.latency else ""
    same = "  same kernels" if result is not first and result.ops == first.ops else ""
    print(f"{name:22s} {precision} level {level}: {result.nodes:5d} nodes {result.kernels:4d} kernels "
          f"{result.engine_bytes / 1e6:8.2f} MB  build {result.build_seconds:5.2f} s "
          f"{time_ms}{same}", flush=True)  # fmt: skip


def table() -> str:
    """A Markdown table of the latency records: what each level of a network has, the lowest first.

    A network whose file TensorRT refused at a level has none there; the records say why.
    """
    lines = ["| network | levels | graph nodes | kernels | engine MB | build s | ms |", "|---|---|---|---|---|---|---|"]
    for name, records in gpu.levels().items():
        levels = [(level, record.median_ms, record.extra) for level, record in sorted(records.items())]
        cells = [
            ", ".join(level.removeprefix("level-") for level, _, _ in levels),
            " → ".join(str(extra["nodes"]) for _, _, extra in levels),
            " → ".join(str(extra["kernels"]) for _, _, extra in levels),
            " → ".join(f"{extra['engine_bytes'] / 1e6:.1f}" for _, _, extra in levels),
            " → ".join(f"{extra['build_seconds']:.1f}" for _, _, extra in levels),
            " → ".join(f"{ms:.3f}" for _, ms, _ in levels),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NETWORK", help=f"some of: {' '.join(ORDER)}")
    parser.add_argument("--levels", nargs="+", type=int, default=sorted(LEVELS), choices=sorted(LEVELS))
    parser.add_argument("--precisions", nargs="+", default=["fp16"], choices=("fp16", "fp32"))
    parser.add_argument("--repeats", type=int, default=1, help="how often each engine is built, for the build time")
    parser.add_argument("--table", action="store_true", help="print the table from the records and run nothing")
    parser.add_argument("--quick", action="store_true", help="small networks, few samples: does the script work?")
    parser.add_argument("--budget", type=float, default=420, help="seconds after which no further network is begun")
    parser.add_argument("--out", type=Path, default=Path("out/engine_effects"), help="folder for records and summary")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.table:
        print(table())
        return 0
    (options.out / "records").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TRTKIT_RECORDS", str(options.out / "records"))
    begin, failed, summary = time.perf_counter(), 0, []
    for name in options.only or (QUICK if options.quick else ORDER):
        for precision in options.precisions:
            if time.perf_counter() - begin > options.budget:
                print(f"SKIPPED {name} {precision}: the budget of {options.budget:.0f} s is spent")
                continue
            try:
                summary.append(network(name, precision, options))
            except Exception:  # noqa: BLE001 - one network's failure must not cost the others
                failed += 1
                print(f"FAILED {name} {precision}\n{traceback.format_exc(limit=-2)}", flush=True)
            (options.out / "engine_effects.json").write_text(json.dumps(summary, indent=1))
    print(f"done in {time.perf_counter() - begin:.0f} s, {failed} failed")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
