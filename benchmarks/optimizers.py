"""Our `optimize` against other graph optimisers on the zoo: nodes left, seconds, memory, equality; and how time grows.

    python3 -m benchmarks.optimizers                          # everything, records and table (30 minutes on two cores)
    python3 -m benchmarks.optimizers --only resnet18 bert     # some networks
    python3 -m benchmarks.optimizers --contenders trtkit --only swin_t --keep out/swin   # one contender, files kept
    python3 -m benchmarks.optimizers --part scaling           # 1,000 to 100,000 nodes
    python3 -m benchmarks.optimizers --part table             # the table from the records, nothing is run

Every contender gets the same file and writes another, in a process of its own. What is counted, alike for all: nodes
of the graph and of all bodies inside it; `Constant` nodes are counted apart, since they and initialisers are two
spellings of one thing. Seconds: median, from file to file; starting Python, importing, and a first call on a graph of
four nodes come before. Memory: the most that was resident above what was so before the call. Error: the largest
difference of any output in ONNX Runtime without its optimisations, relative to the largest number of that output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import synthetic, zoo
from benchmarks.optimizer_child import CONTENDERS, op_counts
from trtkit.bench import record
from trtkit.bench.measure import Measurement
from trtkit.bench.optimizers import TOLERANCE, error, plain_outputs

PEERS = ("onnxslim", "onnxsim", "onnxscript", "onnxruntime")
TIMEOUT = 900  # seconds a contender may take for one network
COMMAND = "python3 -m benchmarks.optimizers"


def child(module: str, *arguments: object, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Run a module in a new process and read the JSON object it prints last; {"failed": why} if it does not."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {timeout:.0f} s"}
    if done.returncode:
        last = [line for line in done.stderr.strip().splitlines() if line.strip()][-1:]
        return {"failed": f"exit code {done.returncode}: {''.join(last)[:300]}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def compare(original: Path, optimised: Path) -> dict[str, Any]:
    """Relative error on seeded inputs of a batch of 2, and whether ONNX's checker accepts the optimised file."""
    import onnx

    import trtkit

    inputs = trtkit.load(original).random_inputs(batch=2, seed=1)
    result: dict[str, Any] = {"valid": True}
    try:
        onnx.checker.check_model(str(optimised), full_check=True)
    except Exception as failure:  # noqa: BLE001 - whatever the checker says is the result
        result |= {"valid": False, "why": str(failure).strip().splitlines()[0][:200]}
    try:
        result["error"] = error(plain_outputs(original, inputs), plain_outputs(optimised, inputs))
    except Exception as failure:  # noqa: BLE001
        result |= {"error": None, "why": str(failure).strip().splitlines()[0][:200]}
    return result


def run(name: str, contender: str, original: Path, repeats: int, keep: Path) -> None:
    """One contender on one network: measure, compare, write the record, print a line."""
    target = keep / f"{name}.{contender}.onnx"
    result = child("benchmarks.optimizer_child", contender, original, target, repeats)
    key = f"optimizers-{name}/{contender}"
    if "failed" not in result:
        result |= child("benchmarks.optimizers", "--part", "compare", "--files", original, target)
    if "failed" in result:
        print(f"{name:18s} {contender:12s} FAILED {result['failed']}", flush=True)
        record.remove(key)
        return
    ops = result["ops"]
    extra = {
        "before": nodes(op_counts(original)), "nodes": nodes(ops), "constants": ops.get("Constant", 0),
        "peak_mb": round(result["peak_bytes"] / 1e6, 1), "file_mb": round(target.stat().st_size / 1e6, 1),
        "error": result["error"], "valid": result["valid"], "why": result.get("why", ""), "ops": ops,
    }  # fmt: skip
    times = Measurement.from_samples([1e3 * s for s in result["seconds"]])
    record.save(key, times, command=COMMAND, extra=extra, unit="s")
    good = "equal" if is_good(extra) else f"error {extra['error']} valid {extra['valid']} {extra['why']}"
    print(f"{name:18s} {contender:12s} {extra['nodes']:6d} nodes {extra['constants']:5d} constants "
          f"{times.median_ms / 1e3:7.2f} s {extra['peak_mb']:7.0f} MB  {good}", flush=True)  # fmt: skip


def nodes(ops: dict[str, int]) -> int:
    return sum(ops.values()) - ops.get("Constant", 0)


def is_good(extra: dict[str, Any]) -> bool:
    """Whether the optimised graph is valid and computes the same."""
    return bool(extra["valid"] and extra["error"] is not None and extra["error"] <= TOLERANCE)


def networks(names: list[str], contenders: list[str], repeats: int, keep: Path) -> None:
    for name in names:
        original = zoo.path(name)
        for contender in contenders:
            run(name, contender, original, repeats, keep)


def scaling(contenders: list[str], sizes: list[int], kinds: list[str], keep: Path) -> None:
    """Seconds against nodes on made-up graphs, and the slope of the line through them on logarithmic axes."""
    for kind in kinds:
        for contender in contenders:
            seconds = {}
            for size in sizes:
                file = synthetic.path(kind, size, keep)
                repeats = 3 if size < 30_000 else 1
                result = child("benchmarks.optimizer_child", contender, file, keep / "out.onnx", repeats, timeout=300)
                if "failed" in result:
                    print(f"{kind:10s} {contender:12s} {size:7d} {result['failed']}", flush=True)
                    break
                times = Measurement.from_samples([1e3 * s for s in result["seconds"]])
                extra = {"size": size, "nodes": nodes(result["ops"]), "peak_mb": round(result["peak_bytes"] / 1e6, 1)}
                record.save(
                    f"optimizers-scaling-{kind}/{contender}-{size}", times, command=COMMAND, extra=extra, unit="s"
                )
                seconds[size] = times.median_ms / 1e3
            if len(seconds) > 1:
                print(f"{kind:10s} {contender:12s} slope {slope(seconds):.2f}  "
                      + "  ".join(f"{size}: {s:.2f} s" for size, s in seconds.items()), flush=True)  # fmt: skip


def slope(seconds: dict[int, float]) -> float:
    """The exponent b of seconds = a * nodes ** b, by least squares on the logarithms; 1 is linear."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def table(names: list[str], ours: str = "trtkit") -> bool:
    """Print one line per network from the records; True where we leave no more nodes than anybody else, everywhere."""
    print(f"{'network':18s} {'before':>7s} {ours:>9s} " + " ".join(f"{p:>12s}" for p in PEERS)
          + f" {'nodes/best':>11s} {'s':>6s} {'/fastest':>9s} {'MB':>5s} {'error':>8s}")  # fmt: skip
    never_more = True
    for name in names:
        try:
            found = record.load(f"optimizers-{name}")
        except record.RecordError:
            continue
        if ours not in found:
            continue
        mine, good = found[ours], {p: found[p] for p in PEERS if p in found and is_good(found[p].extra)}
        best = min((r.extra["nodes"] for r in good.values()), default=mine.extra["nodes"])
        fastest = min(good, key=lambda p: good[p].median, default=ours)
        same_run = found[fastest].provenance["run"] == mine.provenance["run"]
        ratio = f"{mine.median / found[fastest].median:8.2f}x" if same_run else "     –   "
        peers = [(f"{found[p].extra['nodes']}{'' if p in good else '!'}" if p in found else "failed") for p in PEERS]
        error = mine.extra["error"]
        print(f"{name:18s} {mine.extra['before']:7d} {mine.extra['nodes']:9d} " + " ".join(f"{p:>12s}" for p in peers)
              + f" {mine.extra['nodes'] - best:+11d} {mine.median:6.2f} {ratio} {mine.extra['peak_mb']:5.0f} "
              + (f"{error:8.1e}" if error is not None else "fails"))  # fmt: skip
        never_more &= mine.extra["nodes"] <= best
    print("! not valid, or not equal to the original; such a result is not counted as the best")
    return never_more


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("networks", "scaling", "table", "compare", "all"), default="all")
    parser.add_argument("--only", nargs="+", default=list(zoo.ZOO), metavar="NETWORK")
    parser.add_argument("--contenders", nargs="+", default=["trtkit", *PEERS], choices=sorted(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 3_000, 10_000, 30_000, 100_000])
    parser.add_argument("--kinds", nargs="+", default=list(synthetic.KINDS), choices=synthetic.KINDS)
    parser.add_argument("--keep", type=Path, help="folder for the optimised files; by default they are thrown away")
    parser.add_argument("--files", nargs=2, type=Path, help="for --part compare: original and optimised")
    options = parser.parse_args(argv)
    if options.part == "compare":
        print(json.dumps(compare(*options.files)))
        return 0
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        keep = options.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        if options.part in ("networks", "all"):
            networks(options.only, options.contenders, options.repeats, keep)
        if options.part in ("scaling", "all"):
            scaling(options.contenders, options.sizes, options.kinds, keep)
    if options.part != "scaling":
        table(options.only)
    print(f"done in {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
