"""Right or not, for gpu_runtime: profiles chosen by shape, DLPack, outputs whose shape depends on the data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch

import trtkit
from benchmarks.runtime_bench import Bench
from trtkit.bench.measure import measure


def shapes(bench: Bench) -> None:
    """Profiles chosen by shape, and tensors of other libraries: right or not."""
    relu = trtkit.load(onnx.parser.parse_model(HEAD + "(float[n, 64] y) {y = Relu(x)}"))
    low, high = ({"x": [(a, 64), (b, 64), (c, 64)]} for a, b, c in ((1, 2, 4), (5, 16, 32)))
    engine = trtkit.build(relu, [low, high], verify=False)
    inputs = [np.random.default_rng(n).standard_normal((n, 64)).astype(np.float32) for n in (3, 20, 1, 16, 4, 5, 32)]
    check_all(bench, "profiles", engine, inputs, relu)
    if bench.cuda:
        dlpack(bench, engine)


def allocator(bench: Bench) -> None:
    """Outputs of as many rows, columns or numbers as the largest value of the input says."""
    for name, (outputs, body) in GROWING.items():
        model = trtkit.load(onnx.parser.parse_model(
            f"{HEAD}{outputs} <int64[1] zero = {{0}}, int64[1] one = {{1}}, float from = {{0}}, float step = {{1}}> "
            f"{{a = ReduceMax<keepdims = 0>(x) k = Cast<to = 7>(a) end = Reshape(k, one) {body}}}"))  # fmt: skip
        engine = trtkit.build(model, {"x": [(1, 64), (16, 64), (32, 64)]}, verify=False)
        rng = np.random.default_rng(0)
        inputs = [rng.uniform(0.5, n, (n, 64)).astype(np.float32) for n in (3, 20, 1, 16, 3, 32)]
        inputs.append(np.full((4, 64), 0.25, np.float32))  # no rows at all
        check_all(bench, f"allocator-{name}", engine, inputs, model)


def check_all(bench: Bench, name: str, engine: Any, inputs: list[np.ndarray], model: Any) -> None:
    with engine.open(bench.device) as session:
        wrong = 0
        for _ in range(3):
            for x, got in zip(inputs, session.run_many(inputs), strict=True):
                for y in (got["y"], session.run(x)["y"]):
                    want = model.run(x)["y"]
                    wrong += y.shape != want.shape or not np.allclose(y, want, atol=1e-6)
        # the host's clock, from array to array, whoever computed
        taken = replace(measure(lambda x: session.run(x), inputs=inputs, **bench.runs), device=bench.device)
        bench.save(f"shapes/{name}", taken, wrong=int(wrong), of=6 * len(inputs))


HEAD = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 64] x) => '
GROWING = {
    "slice": ("(float[m, 64] y)", "y = Slice(x, zero, end, zero)"),
    "topk": ("(float[n, m] y)", "y, i = TopK(x, end)"),
    "range": ("(float[m] y)", "y = Range(from, a, step)"),
}


class Foreign:
    """A CUDA array of which nothing but DLPack is known, as of another library."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


def dlpack(bench: Bench, engine: Any) -> None:
    x = torch.rand(16, 64, device="cuda") - 0.5
    with engine.open("cuda") as session:
        given, wrong = Foreign(x), 0
        for i in range(20):
            x.copy_(torch.rand(16, 64, device="cuda") - 0.5 + i / 40)
            wrong += not torch.equal(torch.from_dlpack(session.run(given)["y"]), x.relu())
        taken = measure(lambda: session.run(given), device="cuda", stream=session.stream, **bench.runs)
        bench.save("shapes/dlpack", taken, wrong=wrong, of=20, graphs=len(session.graphs))
