"""How much memory the activations of a graph need: when each is alive, and where each can lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.graph.shapes import Tensor, concrete_tensors, has_body, is_view, operands, results
from trtkit.model import Model


class Buffer(NamedTuple):
    """A piece of memory that holds a tensor from node number `first` to node number `last`, both included.

    `kind` is "input", "output" or "intermediate"; `views` names the other tensors that are this one in another shape.
    """

    name: str
    kind: str
    size_bytes: int
    first: int
    last: int
    views: tuple[str, ...] = ()
    offset: int = 0

    def meets(self, other: Buffer) -> bool:
        """Whether both are alive at some node."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Memory:
    """When each buffer is alive and where it lies in one arena.

    `live_bytes` has one number per node: what is alive while it runs. `peak_bytes` is the largest of them, which no
    plan can go below; `naive_bytes` is what buffers that are never reused take, `arena_bytes` what the plan takes.
    """

    nodes: tuple[str, ...]
    buffers: tuple[Buffer, ...]
    live_bytes: tuple[int, ...]
    arena_bytes: int

    @property
    def peak_bytes(self) -> int:
        return max(self.live_bytes, default=0)

    @property
    def peak_node(self) -> str:
        """The first node at which `peak_bytes` are alive; empty for a graph without nodes."""
        return self.nodes[self.live_bytes.index(self.peak_bytes)] if self.nodes else ""

    @property
    def naive_bytes(self) -> int:
        return sum(buffer.size_bytes for buffer in self.buffers)

    def __str__(self) -> str:
        return (
            f"{self.naive_bytes:,} bytes without reuse, {self.arena_bytes:,} in one arena; "
            f"at most {self.peak_bytes:,} alive, at {self.peak_node!r}"
        )


def memory(model: Model, batch: int = 1, dims: Mapping[str, int] | None = None, *, align: int = 1) -> Memory:
    """Find out when each activation is alive, and plan where it lies so that memory is used again.

    Nodes run in the graph's order. A tensor is alive from the node that writes it to the last one that reads it;
    inputs of the graph are there from the first node on, outputs stay to the last. A node's inputs and outputs are
    alive together: nothing is computed in place. Views (Reshape, Flatten, Squeeze, Unsqueeze, Identity) share the
    buffer of their source. Weights, constants and views of them are not counted, nor is a kernel's workspace.

    Args:
        batch: the size of every changeable first dimension, and of every one called "batch".
        dims: sizes of changeable dimensions by name, e.g. {"sequence": 128}.
        align: every buffer starts at a multiple of so many bytes; CUDA's allocators align to at least 256. The
            `arena_bytes` grow with it; `live_bytes` and `naive_bytes` count the tensors alone.

    Raises:
        ModelError: `align` is below 1, a changeable dimension has no size, a tensor's size stays unknown, or a node
            (If, Loop, Scan) runs a graph of its own.

    Source: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020, arXiv:2001.03288,
    "Greedy by Size for Offset Calculation".

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x) => (float[n, 4] y) {a = Neg(x)  b = Exp(a)  y = Relu(b)}'''))
    >>> print(memory(model))
    64 bytes without reuse, 32 in one arena; at most 32 alive, at 'Neg_0'
    """
    if align < 1:
        raise ModelError(f"Buffers cannot be aligned to {align} bytes: align is 1 or more, e.g. 256.")
    nodes = tuple(model.ir.graph)
    if bodies := [node.name for node in nodes if has_body(node)]:
        raise ModelError(
            f"{model.name!r} has nodes that run graphs of their own: {bodies}. The memory of these is known only at "
            "run time; trtkit.optimize removes an If whose condition is constant."
        )
    buffers = place(_buffers(model, nodes, concrete_tensors(model, batch, dims)), align)
    live = [sum(b.size_bytes for b in buffers if b.first <= i <= b.last) for i in range(len(nodes))]
    arena = max((b.offset + _rounded(b.size_bytes, align) for b in buffers), default=0)
    return Memory(tuple(node.name or node.op_type for node in nodes), buffers, tuple(live), arena)


def place(buffers: Sequence[Buffer], align: int = 1) -> tuple[Buffer, ...]:
    """Give each buffer an offset so that no two that are alive at once overlap; the order stays.

    Offsets are multiples of `align` bytes.

    The largest goes first. Each goes into the smallest gap that it fits in between those placed before that it meets
    in time, else behind the last of these.

    >>> lives = [("a", 8, 0, 1), ("b", 4, 1, 2), ("c", 6, 2, 2)]
    >>> plan = place([Buffer(name, "intermediate", size, first, last) for name, size, first, last in lives])
    >>> [(buffer.name, buffer.offset) for buffer in plan]
    [('a', 0), ('b', 8), ('c', 0)]
    """
    placed: dict[str, Buffer] = {}
    for buffer in sorted(buffers, key=lambda b: -b.size_bytes):
        others = sorted((b for b in placed.values() if b.meets(buffer)), key=lambda b: b.offset)
        placed[buffer.name] = buffer._replace(offset=_best_gap(_rounded(buffer.size_bytes, align), others, align))
    return tuple(placed[buffer.name] for buffer in buffers)


def _rounded(size: int, align: int) -> int:
    """The next multiple of `align`."""
    return -(-size // align) * align


def _best_gap(size: int, others: Sequence[Buffer], align: int) -> int:
    """Where `size` bytes fit best between `others`, which come by offset."""
    end, best, smallest = 0, None, 0
    for other in others:
        gap = other.offset - end
        if gap >= size and (best is None or gap < smallest):
            best, smallest = end, gap
        end = max(end, other.offset + _rounded(other.size_bytes, align))
    return end if best is None else best


def _buffers(model: Model, nodes: Sequence[ir.Node], tensors: Mapping[str, Tensor]) -> list[Buffer]:
    """All buffers in the order in which they come alive, not placed yet."""
    graph = model.ir.graph
    found = {v: _new(model, v, "input", 0, tensors) for v in graph.inputs if not v.is_initializer()}
    source = {value: value for value in found}  # whose buffer a value lies in; weights are in nobody's
    for number, node in enumerate(nodes):
        for value in operands(node):
            if (root := source.get(value)) is not None:
                found[root] = found[root]._replace(last=number)
        for value in results(node):
            if is_view(node):
                root = source.get(node.inputs[0]) if node.inputs[0] is not None else None
                if root is not None:
                    source[value] = root
                    found[root] = found[root]._replace(views=(*found[root].views, value.name or ""))
            elif node.domain != "" or node.op_type != "Constant":
                source[value] = value
                found[value] = _new(model, value, "intermediate", number, tensors)
    for value in graph.outputs:
        if (root := source.get(value)) is not None:
            kind = found[root].kind  # an input that is given out again is the caller's, and stays an input
            found[root] = found[root]._replace(
                kind="input" if kind == "input" else "output", last=max(len(nodes) - 1, 0)
            )
    return list(found.values())


def _new(model: Model, value: ir.Value, kind: str, number: int, tensors: Mapping[str, Tensor]) -> Buffer:
    name = value.name or ""
    if name not in tensors:
        raise ModelError(
            f"The size of {name!r} in {model.name!r} is not known: it depends on data, or no rule says what shape its "
            "operator gives. Try trtkit.optimize first, which folds computed shapes, or state this one in the file."
        )
    return Buffer(name, kind, tensors[name].size_bytes, number, number)
