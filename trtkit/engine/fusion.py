"""The fusion map: for every ONNX node the kernel it went into, or what became of it instead."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx_ir as ir

from trtkit.engine.layers import Layer
from trtkit.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("kernel", "folded", "view", "shape", "absorbed", "unrolled", "unused", "unexplained")

# Operators that only say how the same bytes are read. Transpose moves data unless its reader takes the other order.
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Transpose", "Expand", "Slice", "Split"}
_ABSORBED = {
    "Cast": "the neighbouring kernel reads or writes that type",
    "CastLike": "the neighbouring kernel reads or writes that type",
    "QuantizeLinear": "the kernel before it writes INT8",
    "DequantizeLinear": "the kernel after it reads INT8 and carries the scale",
    "Pad": "the convolution after it carries the padding",
    "Concat": "the kernels before it write into parts of one buffer",
}
_UNROLLED = {"GRU", "LSTM", "RNN", "Loop", "Scan"}


class NodeAccount(NamedTuple):
    """What became of one ONNX node: `kernel` is the index of its engine layer, or None, and then `reason` says why."""

    name: str
    op_type: str
    kind: str  # one of KINDS
    kernel: int | None
    reason: str


class FusionMap(NamedTuple):
    """Every ONNX node in graph order, and every layer of the engine."""

    model_name: str
    nodes: tuple[NodeAccount, ...]
    kernels: tuple[Layer, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many nodes went which way."""
        found = Counter(node.kind for node in self.nodes)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    @property
    def unexplained(self) -> tuple[NodeAccount, ...]:
        return tuple(node for node in self.nodes if node.kind == "unexplained")

    @property
    def groups(self) -> dict[int, tuple[str, ...]]:
        """Kernel index -> operators of the ONNX nodes fused into it, e.g. {2: ("Conv", "Relu")}."""
        groups: dict[int, tuple[str, ...]] = {}
        for node in self.nodes:
            if node.kernel is not None:
                groups[node.kernel] = (*groups.get(node.kernel, ()), node.op_type)
        return groups

    def __str__(self) -> str:
        launched = sum(layer.launches for layer in self.kernels)
        ways = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        return f"{self.model_name}: {len(self.nodes)} ONNX nodes ({ways}) -> {launched} kernels"

    def plot(self, **options: Any) -> Figure:
        """The map as a picture: ONNX nodes on one side, kernels on the other."""
        from trtkit import plot

        return plot.fusion_map(self, **options)


def fusion_map(model: Model, layers: list[Layer]) -> FusionMap:
    """Account for every node of `model` in an engine made of `layers`.

    A node that a layer names is in that kernel. For the others TensorRT says nothing, and the graph tells what
    happened: computed while building (all inputs constant), a mere view, arithmetic on shapes, or unused. What is left
    counts as unexplained, and is shown as such.
    """
    layers = [layer for layer in layers if layer.profile == 0]  # the others compute the same for other shapes
    where = _named_kernels(model.ir.graph, layers)
    accounts = _Accounts(model.ir.graph)
    nodes = [accounts.of(node, where.get(node.name or "")) for node in model.ir.graph]
    return FusionMap(model.name, tuple(nodes), tuple(layers))


def _named_kernels(graph: ir.Graph, layers: list[Layer]) -> dict[str, int]:
    """Node name -> the layer that computes it; a kernel that only lays out data for it may name it too."""
    naming: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        for name in layer.onnx_nodes:
            naming.setdefault(name, []).append(index)
    ops = {node.name: node.op_type for node in graph}

    def best(name: str, found: list[int]) -> int:
        return max(found, key=lambda index: (_computes(layers[index], ops.get(name, "")), layers[index].kind != "kgen"))

    return {name: best(name, found) for name, found in naming.items()}


def _computes(layer: Layer, op_type: str) -> bool:
    return any(word in layer.ops for word in _WORDS.get(op_type, (op_type,)))


# What generated kernels call the operators that they do not call by ONNX's name.
_WORDS = {
    "Conv": ("Fc", "Corr", "correlation"),
    "Gemm": ("Fc",),
    "MatMul": ("Fc", "Gemm"),
    "Relu": ("Relu", "Max"),
    "Clip": ("MinMax", "MaxMin"),
}


class _Accounts:
    """Walks the graph once and remembers which values are constant and which only feed shapes."""

    def __init__(self, graph: ir.Graph) -> None:
        self.outputs = set(graph.outputs)
        self.constant = set(graph.initializers.values())
        self.shape: set[ir.Value] = set()
        for node in graph:
            given = [value for value in node.inputs if value is not None]
            if node.op_type == "Constant" or (given and all(value in self.constant for value in given)):
                self.constant.update(node.outputs)
            if node.op_type in ("Shape", "Size") or any(value in self.shape for value in given):
                # a tensor reshaped by a computed size is data again: only integers stay shape arithmetic
                self.shape.update(out for out in node.outputs if _is_integer(out))

    def of(self, node: ir.Node, kernel: int | None) -> NodeAccount:
        kind, reason = ("kernel", "") if kernel is not None else self._why(node)
        return NodeAccount(node.name or "", node.op_type, kind, kernel, reason)

    def _why(self, node: ir.Node) -> tuple[str, str]:
        if all(out in self.constant for out in node.outputs):
            return "folded", "computed while building, since all its inputs are constants"
        if not any(out.uses() or out in self.outputs for out in node.outputs):
            return "unused", "nothing reads its result"
        if any(out in self.shape for out in node.outputs):
            return "shape", "arithmetic on shapes, done on the host before the first kernel"
        if node.op_type in _VIEWS:
            return "view", "only says how the same bytes are read"
        if node.op_type == "Gather" and node.inputs[1] in self.constant and len(_shape(node.inputs[1])) == 0:
            return "view", "picks one known slice, which its reader addresses directly"
        if node.op_type in _UNROLLED:
            return "unrolled", "written out step by step as many small kernels, which TensorRT does not name after it"
        if node.op_type in _ABSORBED:
            return "absorbed", _ABSORBED[node.op_type]
        return "unexplained", "no layer of the engine names it"


def _is_integer(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_integer()


def _shape(value: ir.Value | None) -> tuple[object, ...]:
    return tuple(value.shape) if value is not None and value.shape is not None else (None,)
