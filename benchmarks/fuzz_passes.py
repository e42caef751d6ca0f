"""Random graphs through all passes, and damaged ONNX files through load, optimize, cost and save.

    python3 -m benchmarks.fuzz_passes                                # 10,000 graphs and 3,000 files (15 minutes)
    python3 -m benchmarks.fuzz_passes --part graphs --count 500 --seed 7

A graph must compute the same before and after, in ONNX Runtime with its optimisations off, for two batch sizes at every
level, and a second `optimize` must find nothing to do. A damaged file must give one of trtkit's own errors or a model
that can be optimised and saved; each lot of files is a child process with a limit of time and memory, so that a crash
or a hang is seen and counted.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, given, reject, seed, settings

import trtkit
from benchmarks import fuzz_files
from benchmarks.backend_models import difference, run
from benchmarks.random_graphs import graphs
from trtkit.model import Model
from trtkit.passes import LEVELS, run_passes
from trtkit.passes.horizontal import MergeSiblings
from trtkit.passes.split_sinking import SinkSplits

SIBLINGS = (MergeSiblings(), SinkSplits())  # in no level
TOLERANCE = 2e-3  # of the largest number of an output: a fused or reordered sum rounds differently


def inputs(batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    return {name: rng.standard_normal((batch, 4, 6)).astype(np.float32) for name in ("x", "z")}


def check(proto: onnx.ModelProto) -> None:
    """Raises AssertionError, with what differs, where `optimize` changes what a graph computes."""
    model = trtkit.load(proto)
    original = model.to_proto()
    try:
        wanted = {batch: run(original, inputs(batch)) for batch in (2, 3)}
    except Exception:  # noqa: BLE001 - ONNX Runtime loses a Cast to the same type that only a body reads
        reject()
    for level in (*LEVELS, "siblings"):
        small = _rewritten(model, level)
        after = small.to_proto()
        onnx.checker.check_model(after, full_check=True)
        for batch, before in wanted.items():
            for a, b in zip(before, run(after, inputs(batch)), strict=True):
                _same(a, b, level)
        assert _rewritten(small, level).history == small.history, f"level {level}: a second run changes more"


def _rewritten(model: Model, level: int | str) -> Model:
    """By the passes of a level, or by those that are in none."""
    return trtkit.optimize(model, level) if isinstance(level, int) else run_passes(model, SIBLINGS)


def _same(a: Any, b: Any, level: int | str) -> None:
    """Equal up to rounding; a number that is not finite must be the same on both sides."""
    assert a.shape == b.shape and a.dtype == b.dtype, f"level {level}: {b.dtype} {b.shape} for {a.dtype} {a.shape}"
    finite = np.isfinite(a)
    scale = max(1.0, float(np.abs(a[finite]).max(initial=0)))
    far = np.abs(np.where(finite, a, 0) / scale - np.where(finite, b, 0) / scale) > TOLERANCE
    assert (np.isfinite(b) == finite).all() and not far.any(), f"level {level}: {difference([a], [b])}"


def random_graphs(count: int, number: int) -> tuple[Counter[str], Exception | None]:
    """Run `count` graphs from a seed; the first failure, made as small as it gets, is returned."""
    ops: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(graphs())
    def each(proto: onnx.ModelProto) -> None:
        last[0] = proto
        check(proto)
        ops.update({"graphs": 1, **Counter(node.op_type for node in proto.graph.node)})

    last: list[onnx.ModelProto] = [onnx.ModelProto()]
    try:
        each()
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        print(f"seed {number}: {type(error).__name__}: {str(error)[:600]}\n{onnx.printer.to_text(last[0])[:3000]}")
        return ops, error
    return ops, None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.fuzz_passes", description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("graphs", "files", "all"), default="all")
    parser.add_argument("--count", type=int, default=10_000, help="graphs; of files it is three tenths")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    begin, failures = time.perf_counter(), 0
    if options.part != "files":
        lot, ops = 500, Counter[str]()
        for number in range(-(-options.count // lot)):
            found, error = random_graphs(min(lot, options.count), options.seed + number)
            ops += found
            failures += error is not None
            print(f"seed {options.seed + number}: {ops['graphs']} graphs, {failures} failures, "
                  f"{time.perf_counter() - begin:.0f} s", flush=True)  # fmt: skip
        print(dict(ops.most_common()))
    if options.part != "graphs":
        failures += fuzz_files.report(3 * options.count // 10, options.seed)
    print(f"{failures} failures in {time.perf_counter() - begin:.0f} s")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
