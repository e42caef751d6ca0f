"""Made-up graphs of any size, for seeing how an optimiser's time grows: `path("chain", 10_000, folder)` writes one.

About a third of the nodes can go, so that there is something to do at every size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_SHAPE = ["n", 16]


def _chain(count: int) -> tuple[list[onnx.NodeProto], str]:
    """One node after the other: Relu, Identity, Mul with a Constant, Reshape to the same shape, Add."""
    nodes: list[onnx.NodeProto] = []
    last = "x"
    while len(nodes) < count:
        i = len(nodes)
        nodes += [
            helper.make_node("Relu", [last], [f"r{i}"]),
            helper.make_node("Identity", [f"r{i}"], [f"i{i}"]),
            helper.make_node("Constant", [], [f"c{i}"], value_float=0.5 + i % 7),
            helper.make_node("Mul", [f"i{i}", f"c{i}"], [f"m{i}"]),
            helper.make_node("Reshape", [f"m{i}", "shape"], [f"s{i}"]),
            helper.make_node("Add", [f"s{i}", "w"], [f"a{i}"]),
        ]
        last = f"a{i}"
    return nodes, last


def _wide(count: int) -> tuple[list[onnx.NodeProto], str]:
    """Many short branches from one input, added in a balanced tree; every fourth pair of branches is equal."""
    nodes: list[onnx.NodeProto] = []
    ends = []
    while len(nodes) < 2 * count / 3:
        i = len(nodes)
        op = ("Relu", "Sigmoid", "Tanh", "Sigmoid")[len(ends) % 4]
        nodes += [
            helper.make_node("Cast", ["x"], [f"c{i}"], to=TensorProto.FLOAT),
            helper.make_node(op, [f"c{i}"], [f"o{i}"]),
        ]
        ends.append(f"o{i}")
    while len(ends) > 1:
        pairs = list(zip(ends[::2], ends[1::2], strict=False))
        names = [f"t{len(nodes) + k}" for k in range(len(pairs))]
        nodes += [helper.make_node("Add", list(pair), [name]) for pair, name in zip(pairs, names, strict=True)]
        ends = names + ends[2 * len(pairs) :]
    return nodes, ends[0]


def _residual(count: int) -> tuple[list[onnx.NodeProto], str]:
    """Blocks of x + scale * Relu(x + w) as exporters write them, with shapes computed at run time."""
    nodes: list[onnx.NodeProto] = []
    last = "x"
    while len(nodes) < count:
        i = len(nodes)
        nodes += [
            helper.make_node("Add", [last, "w"], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], [f"r{i}"]),
            helper.make_node("Shape", [last], [f"s{i}"]),
            helper.make_node("Gather", [f"s{i}", "zero"], [f"g{i}"]),
            helper.make_node("Concat", [f"g{i}", "rest"], [f"k{i}"], axis=0),
            helper.make_node("Reshape", [f"r{i}", f"k{i}"], [f"v{i}"]),
            helper.make_node("Mul", [f"v{i}", "half"], [f"m{i}"]),
            helper.make_node("Add", [last, f"m{i}"], [f"o{i}"]),
        ]
        last = f"o{i}"
    return nodes, last


KINDS: dict[str, Callable[[int], tuple[list[onnx.NodeProto], str]]] = {
    "chain": _chain, "wide": _wide, "residual": _residual,
}  # fmt: skip


def model(kind: str, count: int) -> onnx.ModelProto:
    """A graph of about `count` nodes of one of the KINDS."""
    nodes, last = KINDS[kind](count)
    nodes.append(helper.make_node("Relu", [last], ["y"]))
    weights = {
        "w": np.linspace(-1, 1, 16, dtype=np.float32), "shape": np.array([-1, 16]), "zero": np.array([0]),
        "rest": np.array([16]), "half": np.array(0.5, np.float32),
    }  # fmt: skip
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, _SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, _SHAPE)],
        [numpy_helper.from_array(data, name) for name, data in weights.items() if name in used],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def path(kind: str, count: int, folder: Path) -> Path:
    """The ONNX file of `model(kind, count)` in a folder; written if it is not there."""
    file = folder / f"{kind}-{count}.onnx"
    if not file.exists():
        onnx.save(model(kind, count), file)
    return file
