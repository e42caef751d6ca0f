"""How a network's time on the CPU divides among its operators: ONNX Runtime's profiler, summed up."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trtkit.model import Model


def operator_times(
    model: Model, inputs: Mapping[str, Any] | np.ndarray, *, runs: int = 10, fused: bool = False, threads: int = 1
) -> dict[str, float]:
    """Milliseconds of one run on the CPU by operator, the longest first; the median of `runs` after a warm-up.

    Args:
        inputs: one set, as for `Model.run`.
        fused: let ONNX Runtime rewrite and fuse the graph first, which makes other operators (FusedConv, say). By
            default each node of the graph runs as it stands.
        threads: CPU threads for one operator; 0 takes all cores.

    Raises:
        ModelError: the inputs do not fit, or ONNX Runtime cannot run the graph.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x) => (float[n, 4] y) {a = Exp(x)  b = Exp(a)  y = Relu(b)}'''))
    >>> times = operator_times(model, np.ones((1, 4), np.float32))
    >>> sorted(times), min(times.values()) > 0
    (['Exp', 'Relu'], True)
    """
    arrays = model.check_inputs(inputs)
    with tempfile.TemporaryDirectory(prefix="trtkit-profile-") as folder:
        trace = _profile(model, arrays, Path(folder), runs + 1, fused, threads)
    samples: dict[str, list[list[float]]] = defaultdict(list)  # operator -> for each of its nodes, every run
    nodes: dict[str, list[float]] = {}
    for event in trace:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            if event["name"] not in nodes:
                nodes[event["name"]] = []
                samples[event["args"]["op_name"]].append(nodes[event["name"]])
            nodes[event["name"]].append(event["dur"] / 1e3)
    times = {op: float(sum(np.median(each[1:]) for each in lists)) for op, lists in samples.items()}
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def _profile(
    model: Model, arrays: Mapping[str, np.ndarray], folder: Path, runs: int, fused: bool, threads: int
) -> list[dict[str, Any]]:
    """The events that ONNX Runtime's profiler writes while the graph runs so many times."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if fused else level.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trace")
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, dict(arrays))
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events
