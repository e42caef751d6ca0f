"""One graph optimiser on one file, in a process of its own: seconds, memory, and what is left of the graph.

`python3 -m benchmarks.optimizer_child CONTENDER IN OUT REPEATS` prints one JSON object, for `benchmarks.optimizers`.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trtkit.bench.optimizers import OPTIMIZERS, TINY, Optimizer, trtkit_at

ENOUGH = 20.0  # seconds; whoever took so long altogether is not asked once more, as it cannot matter any longer

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


def memory(field: str) -> int:
    """Bytes of resident memory of this process: VmRSS now, VmHWM the most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(contender: str, source: str, target: str, repeats: int) -> dict[str, Any]:
    """File to file, `repeats` times or until `ENOUGH` seconds went by.

    Imports, also those made on first use, happen before, on a graph of four nodes.
    """
    import onnx

    optimize = CONTENDERS[contender]()
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.onnx"
        onnx.save(onnx.parser.parse_model(TINY), tiny)
        optimize(str(tiny), str(Path(folder) / "out.onnx"))
    gc.collect()
    forget_peak()
    before = memory("VmRSS")
    seconds, cpu, peak = [], [], 0
    for number in range(repeats):
        begin, busy = time.perf_counter(), time.process_time()
        optimize(source, target)
        seconds.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - busy)
        peak = peak if number else memory("VmHWM") - before
        gc.collect()
        if sum(seconds) > ENOUGH:
            break
    return {"seconds": seconds, "cpu": cpu, "peak_bytes": peak, "ops": op_counts(target)}


def main(contender: str, source: str, target: str, repeats: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        result = measure(contender, source, target, int(repeats))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
