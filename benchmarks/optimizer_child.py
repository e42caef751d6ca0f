"""One graph optimiser on one file, in a process of its own: seconds, memory, and what is left of the graph.

`python3 -m benchmarks.optimizer_child CONTENDER IN OUT`, for `benchmarks.optimizers`: when it is ready, for each line
that it is given, and at the end of its input it prints one JSON object. So several can take turns.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.resident import forget_peak, memory
from trtkit.bench.optimizers import OPTIMIZERS, TINY, Optimizer, trtkit_at

CONTENDERS: dict[str, Callable[[], Optimizer]] = OPTIMIZERS | {
    "trtkit-1": lambda: trtkit_at(1),
    "trtkit-2": lambda: trtkit_at(2),
}


def graph_nodes(file: str | Path) -> Iterator[Any]:
    """Every node of an ONNX file, those of bodies and functions included."""
    import onnx

    def walk(nodes: Any) -> Iterator[Any]:
        for node in nodes:
            yield node
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    yield from walk(graph.node)

    proto = onnx.load(file, load_external_data=False)
    yield from walk(proto.graph.node)
    for function in proto.functions:
        yield from walk(function.node)


def op_counts(file: str | Path) -> dict[str, int]:
    """How many nodes of each operator, `domain::Name` for those that are not ONNX's own."""
    counts = Counter(
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        for node in graph_nodes(file)
    )
    return dict(sorted(counts.items()))


def ready(contender: str) -> Optimizer:
    """The optimiser, its imports done, also those that it makes on first use: a graph of four nodes went through."""
    import onnx

    optimize = CONTENDERS[contender]()
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.onnx"
        onnx.save(onnx.parser.parse_model(TINY), tiny)
        optimize(str(tiny), str(Path(folder) / "out.onnx"))
    gc.collect()
    return optimize


def turn(optimize: Optimizer, source: str, target: str) -> dict[str, Any]:
    """File to a new file, once: seconds, seconds of the processor, and bytes resident at most above those before."""
    Path(target).unlink(missing_ok=True)
    gc.collect()
    forget_peak()
    before = memory("VmRSS")
    begin, busy = time.perf_counter(), time.process_time()
    optimize(source, target)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - busy
    return {"seconds": seconds, "cpu": cpu, "peak_bytes": memory("VmHWM") - before}


def main(contender: str, source: str, target: str) -> None:
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print, from C++ too, shall not come between the answers
        optimize = ready(contender)
        print("{}", file=answers, flush=True)
        for _ in sys.stdin:
            print(json.dumps(turn(optimize, source, target)), file=answers, flush=True)
        print(json.dumps({"ops": op_counts(target)}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
