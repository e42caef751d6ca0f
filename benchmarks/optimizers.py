"""Our `optimize` against other graph optimisers on the zoo: nodes left, seconds, memory, equality; and how time grows.

    python3 -m benchmarks.optimizers                          # everything, records and table (25 minutes on two cores)
    python3 -m benchmarks.optimizers --only resnet18 bert     # some networks
    python3 -m benchmarks.optimizers --contenders trtkit --only swin_t --keep out/swin   # one contender, files kept
    python3 -m benchmarks.optimizers --budget 1200            # begin no network or graph after 20 minutes; say which
    python3 -m benchmarks.optimizers --part scaling           # 1,000 to 100,000 nodes
    python3 -m benchmarks.optimizers --part table             # the table from the records, nothing is run

Every contender gets the same file and writes another, in a process of its own. They take turns, so that a slow moment
of the machine meets all of them, and write new files into memory (/dev/shm, if there is one), since a disk's pace
varies more than what is compared. What is counted, alike for all: nodes of the graph and of all bodies inside it;
`Constant` nodes are counted apart, since they and initialisers are two spellings of one thing. Seconds: median, from
file to file; starting Python, importing, and a first call on a graph of four nodes come before. So with the seconds of
the processor, which mean more on a busy machine. Memory: the most that was resident above what was so before the first
call. Error: the largest difference of any output in ONNX Runtime without its optimisations, relative to the largest
number of that output.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import synthetic, zoo
from benchmarks.children import Child, Failed, in_memory, take_turns
from benchmarks.optimizer_child import CONTENDERS, op_counts
from trtkit.bench import record
from trtkit.bench.measure import Measurement
from trtkit.bench.optimizers import TOLERANCE, error, plain_outputs

PEERS = ("onnxslim", "onnxsim", "onnxscript", "onnxruntime")
TIMEOUT = 900  # seconds a contender may take for one network
SCALING_TIMEOUT = 120  # seconds; whoever takes longer for one size is not asked for the next
ENOUGH = 6.0  # seconds; whoever took so long altogether gets no further turn: there is no noise to average over
NEAR = 1.5  # times the fastest: what still counts as fast
COMMAND = "python3 -m benchmarks.optimizers"


def race(source: Path, targets: dict[str, Path], turns: int, timeout: float = TIMEOUT) -> dict[str, dict[str, Any]]:
    """Contenders that take turns on one file: their samples and what is left, or {"failed": why}."""
    children = {name: Child("benchmarks.optimizer_child", name, source, target) for name, target in targets.items()}
    return take_turns(children, turns, timeout, ENOUGH)


def compare(original: Path, *optimised: Path) -> list[dict[str, Any]]:
    """For each file: relative error on seeded inputs of a batch of 2, and whether ONNX's checker accepts it."""
    import trtkit

    inputs = trtkit.load(original).random_inputs(batch=2, seed=1)
    wanted = plain_outputs(original, inputs)
    return [_compare_one(file, inputs, wanted) for file in optimised]


def _compare_one(file: Path, inputs: dict[str, np.ndarray], wanted: list[np.ndarray]) -> dict[str, Any]:
    import onnx

    result: dict[str, Any] = {"valid": True}
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except Exception as failure:  # noqa: BLE001 - whatever the checker says is the result
        result |= {"valid": False, "why": str(failure).strip().splitlines()[0][:200]}
    try:
        result["error"] = error(wanted, plain_outputs(file, inputs))
    except Exception as failure:  # noqa: BLE001
        result |= {"error": None, "why": str(failure).strip().splitlines()[0][:200]}
    return result


def run(name: str, contenders: list[str], original: Path, repeats: int, keep: Path) -> None:
    """All contenders on one network: measure, compare, write the records, print a line for each."""
    targets = {contender: keep / f"{name}.{contender}.onnx" for contender in contenders}
    results = race(original, targets, repeats)
    done = [contender for contender in contenders if "failed" not in results[contender]]
    for contender, found in zip(done, compare_apart(original, [targets[c] for c in done]), strict=True):
        results[contender] |= found
    before = nodes(op_counts(original))
    for contender, result in results.items():
        report(name, contender, result, before, targets[contender])


def compare_apart(original: Path, files: list[Path]) -> list[dict[str, Any]]:
    """`compare` in another process; in one for each file, if a file makes that process crash."""
    child = Child("benchmarks.optimizers", "--part", "compare", "--files", original, *files)
    try:
        return list(child.answer(TIMEOUT)["files"])
    except Failed as why:
        if len(files) == 1:
            return [{"failed": str(why)}]
        return [result for file in files for result in compare_apart(original, [file])]
    finally:
        child.stop()


def report(name: str, contender: str, result: dict[str, Any], before: int, target: Path) -> None:
    """Write one contender's record and print its line."""
    key = f"optimizers-{name}/{contender}"
    if "failed" in result:
        print(f"{name:18s} {contender:12s} FAILED {result['failed']}", flush=True)
        record.remove(key)
        return
    ops = result["ops"]
    extra = {
        "before": before, "nodes": nodes(ops), "constants": ops.get("Constant", 0),
        "cpu_s": round(median(result["cpu"]), 4), "peak_mb": round(result["peak_bytes"] / 1e6, 1),
        "file_mb": round(target.stat().st_size / 1e6, 1),
        "error": result["error"], "valid": result["valid"], "why": result.get("why", ""), "ops": ops,
    }  # fmt: skip
    times = Measurement.from_samples([1e3 * s for s in result["seconds"]])
    record.save(key, times, command=COMMAND, extra=extra, unit="s")
    good = "equal" if is_good(extra) else f"error {extra['error']} valid {extra['valid']} {extra['why']}"
    print(f"{name:18s} {contender:12s} {extra['nodes']:6d} nodes {extra['constants']:5d} constants "
          f"{times.median_ms / 1e3:7.2f} s (cpu {extra['cpu_s']:.2f} s) {extra['peak_mb']:7.0f} MB  {good}",
          flush=True)  # fmt: skip


def nodes(ops: dict[str, int]) -> int:
    return sum(ops.values()) - ops.get("Constant", 0)


def is_good(extra: dict[str, Any]) -> bool:
    """Whether the optimised graph is valid and computes the same."""
    return bool(extra["valid"] and extra["error"] is not None and extra["error"] <= TOLERANCE)


def networks(names: list[str], contenders: list[str], repeats: int, keep: Path | None, until: float) -> None:
    """Every network that can be begun before `until`; files go to `keep`, or are thrown away network by network."""
    for number, name in enumerate(names):
        if time.perf_counter() > until:
            print(f"the time is up; left out: {' '.join(names[number:])}", flush=True)
            return
        with tempfile.TemporaryDirectory(dir=in_memory()) as folder:
            run(name, contenders, zoo.path(name), repeats, keep or Path(folder))


def scaling(contenders: list[str], sizes: list[int], kinds: list[str], keep: Path, until: float) -> None:
    """Seconds against nodes on made-up graphs, and the slope of the line through them on logarithmic axes."""
    for kind, contender in itertools.product(kinds, contenders):
        if time.perf_counter() > until:
            print(f"{kind:10s} {contender:12s} left out: the time is up", flush=True)
            continue
        wall, busy = grow(kind, contender, sizes, keep)
        if len(wall) > 1:
            print(f"{kind:10s} {contender:12s} slope {slope(wall):.2f} (cpu {slope(busy):.2f})  "
                  + "  ".join(f"{size}: {s:.2f} s" for size, s in wall.items()), flush=True)  # fmt: skip


def grow(kind: str, contender: str, sizes: list[int], keep: Path) -> tuple[dict[int, float], dict[int, float]]:
    """One contender on graphs of growing size, until it takes too long: seconds by size, and processor seconds."""
    wall, busy = {}, {}
    for size in sizes:
        file = synthetic.path(kind, size, keep)
        repeats = 3 if size < 30_000 else 1
        result = race(file, {contender: keep / "out.onnx"}, repeats, SCALING_TIMEOUT)[contender]
        if "failed" in result:
            print(f"{kind:10s} {contender:12s} {size:7d} {result['failed']}", flush=True)
            break
        times, busy[size] = Measurement.from_samples([1e3 * s for s in result["seconds"]]), median(result["cpu"])
        extra = {"size": size, "nodes": nodes(result["ops"]), "cpu_s": round(busy[size], 4),
                 "peak_mb": round(result["peak_bytes"] / 1e6, 1)}  # fmt: skip
        record.save(f"optimizers-scaling-{kind}/{contender}-{size}", times, command=COMMAND, extra=extra, unit="s")
        wall[size] = times.median_ms / 1e3
    return wall, busy


def slope(seconds: dict[int, float]) -> float:
    """The exponent b of seconds = a * nodes ** b, by least squares on the logarithms; 1 is linear."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def table(names: list[str], ours: str = "trtkit") -> bool:
    """Print one line per network from the records, and totals.

    True where everywhere the result is right, we leave no more nodes than anybody else and take at most NEAR times the
    time of the fastest.
    """
    print(f"{'network':18s} {'before':>7s} {ours:>7s} " + " ".join(f"{p:>11s}" for p in PEERS)
          + f" {'nodes-best':>10s} {'s':>6s} {'/fastest':>8s} {'cpu':>6s} {'MB':>5s} {'/least':>6s} {'error':>8s}"
          )  # fmt: skip
    rows = [row for name in names if (row := verdict(name, ours)) is not None]
    print("! not valid, or not equal to the original; such a result is not counted as the best. /fastest, cpu and "
          "/least: ours to the best peer's seconds, processor seconds and memory")  # fmt: skip
    for what, key in (("right", "right"), ("nodes <= best", "few"), (f"time <= {NEAR} x fastest", "fast"),
                      ("memory <= least", "lean")):  # fmt: skip
        wrong = [row["name"] for row in rows if row[key] is False]
        print(f"{what:22s} {sum(row[key] is True for row in rows):3d} of {len(rows)}"
              + (f"; not: {' '.join(wrong)}" if wrong else ""))  # fmt: skip
    return all(row["right"] and row["few"] and row["fast"] for row in rows)


def verdict(name: str, ours: str) -> dict[str, Any] | None:
    """Print a network's line; its name and what is true of it (None where the peers were not measured with us)."""
    try:
        found = record.load(f"optimizers-{name}")
    except record.RecordError:
        return None
    if ours not in found:
        return None
    mine = found[ours]
    peers = {p: found[p] for p in PEERS if p in found}
    good = {p: peer for p, peer in peers.items() if is_good(peer.extra)}
    together = [peer for peer in good.values() if peer.provenance["run"] == mine.provenance["run"]]
    best = min((peer.extra["nodes"] for peer in good.values()), default=mine.extra["nodes"])
    near = busy = lean = float("nan")
    if together:
        near = mine.median / min(peer.median for peer in together)
        busy = mine.extra["cpu_s"] / min(peer.extra["cpu_s"] for peer in together)
        lean = mine.extra["peak_mb"] / max(min(peer.extra["peak_mb"] for peer in together), 1)
    row = {"name": name, "right": is_good(mine.extra), "few": mine.extra["nodes"] <= best,
           "fast": near <= NEAR if together else None, "lean": lean <= 1 if together else None}  # fmt: skip
    shown = [f"{peers[p].extra['nodes']}{'' if p in good else '!'}" if p in peers else "failed" for p in PEERS]
    off = mine.extra["error"]
    print(f"{name:18s} {mine.extra['before']:7d} {mine.extra['nodes']:7d} " + " ".join(f"{p:>11s}" for p in shown)
          + f" {mine.extra['nodes'] - best:+10d} {mine.median:6.2f} {near:7.2f}x {busy:5.2f}x "
          + f"{mine.extra['peak_mb']:5.0f} {lean:5.2f}x " + (f"{off:8.1e}" if off is not None else "   fails")
          + ("  ok" if row["right"] and row["few"] and row["fast"] else "  <--"))  # fmt: skip
    return row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("networks", "scaling", "table", "compare", "all"), default="all")
    parser.add_argument("--only", nargs="+", default=list(zoo.ZOO), metavar="NETWORK")
    parser.add_argument("--contenders", nargs="+", default=["trtkit", *PEERS], choices=sorted(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 3_000, 10_000, 30_000, 100_000])
    parser.add_argument("--kinds", nargs="+", default=list(synthetic.KINDS), choices=synthetic.KINDS)
    parser.add_argument("--keep", type=Path, help="folder for the optimised files; by default they are thrown away")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS",
                        help="begin nothing new when so much time has gone by")  # fmt: skip
    parser.add_argument("--files", nargs="+", type=Path, help="for --part compare: original and optimised ones")
    options = parser.parse_args(argv)
    if options.part == "compare":
        print(json.dumps({"files": compare(*options.files)}))
        return 0
    begin = time.perf_counter()
    until = begin + options.budget
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    if options.part in ("networks", "all"):
        networks(options.only, options.contenders, options.repeats, options.keep, until)
    if options.part in ("scaling", "all"):
        with tempfile.TemporaryDirectory(dir=in_memory()) as folder:
            scaling(options.contenders, options.sizes, options.kinds, options.keep or Path(folder), until)
    if options.part != "scaling":
        table(options.only)
    print(f"done in {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
