"""What several tests of quantization need: networks with random weights, and the memory that calibration takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import onnx

from tests.passes.graphs import parse
from trtkit.importers import load
from trtkit.model import Model


def net(nodes: str, weights: dict[str, tuple[int, ...]], outputs: str = "float[n, 4, 6, 6] y") -> Model:
    """A network on x (n, 4, 6, 6) with random weights of the given shapes."""
    given = "".join(f", float[{','.join(map(str, shape))}] {name}" for name, shape in weights.items())
    proto = parse(nodes, f"float[n, 4, 6, 6] x{given}", outputs).to_proto()
    rng = np.random.default_rng(0)
    for value in list(proto.graph.input)[1:]:
        data = rng.standard_normal(weights[value.name]).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(data, value.name))
        proto.graph.input.remove(value)
    return load(proto)


def peak_bytes(calibrate: Callable[[Model, Iterator[np.ndarray]], object], count: int) -> int:
    """How many bytes Python and NumPy hold at most while so many batches go through a small network."""
    model = parse("a = Relu(x)  y = Neg(a)", "float[n, 1000] x", "float[n, 1000] y")
    tracemalloc.start()
    try:
        calibrate(model, (np.full((100, 1000), i % 3, np.float32) for i in range(count)))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
