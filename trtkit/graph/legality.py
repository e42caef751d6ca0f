"""Which nodes of a graph may become one kernel: the rules that every fusion group obeys.

A kernel is launched when all its inputs are there and is done when all its outputs are. So a set of nodes can be one
kernel only if no path leaves it and comes back (it is *convex*), and a set of groups only if they can be launched one
after another. The second is more than the first: {a, d} and {c, b} with edges a->d, c->b, a->b, c->d are each convex,
yet each would have to wait for the other. `Schedule` keeps such an order and refuses whatever destroys it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from trtkit.graph.shapes import operands

# Operators whose work is multiply-adds: a kernel is built around one of them, and two of them are two kernels.
HEAVY = frozenset({
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv", "Gemm", "MatMul", "MatMulInteger",
    "QLinearMatMul", "Einsum", "Attention", "LSTM", "GRU", "RNN",
})  # fmt: skip


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values a node reads, those that only the bodies of If, Loop or Scan read included."""
    yield from operands(node)
    for attribute in node.attributes.values():
        bodies = (
            [attribute.value]
            if attribute.type == ir.AttributeType.GRAPH
            else attribute.value
            if attribute.type == ir.AttributeType.GRAPHS
            else []
        )
        for body in bodies:
            for inner in body.all_nodes():
                yield from (v for v in inner.inputs if v is not None and v.graph is node.graph)


class Wiring:
    """Who computes and who reads what in the main graph, looked up in constant time."""

    def __init__(self, graph: ir.Graph) -> None:
        self.nodes = tuple(graph)
        inside = set(self.nodes)
        self.outputs = set(graph.outputs)
        self.before: dict[ir.Node, list[ir.Node]] = {}
        self.after: dict[ir.Node, list[ir.Node]] = {node: [] for node in self.nodes}
        self.readers: dict[ir.Value, list[ir.Node]] = {}
        for node in self.nodes:
            values = list(dict.fromkeys(reads(node)))
            makers = (value.producer() for value in values)
            self.before[node] = list(dict.fromkeys(m for m in makers if m is not None and m in inside))
            for value in values:
                self.readers.setdefault(value, []).append(node)
            for maker in self.before[node]:
                self.after[maker].append(node)

    def is_output(self, node: ir.Node) -> bool:
        """Whether the graph gives out what this node computes."""
        return any(value in self.outputs for value in node.outputs)

    def sole_reader(self, node: ir.Node) -> ir.Node | None:
        """The one node that reads what this one computes; None where there are others, or the graph gives it out."""
        after = self.after[node]
        return after[0] if len(after) == 1 and not self.is_output(node) else None


def detour(wiring: Wiring, nodes: Iterable[ir.Node]) -> tuple[ir.Node, ...]:
    """A path that leaves a set of nodes and comes back, both ends in the set; empty when the set is convex.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[4] x) => (float[4] y) {[a] s = Exp(x) [b] t = Neg(s) [c] y = Add(s, t)}'''))
    >>> wiring = Wiring(model.ir.graph)
    >>> a, b, c = wiring.nodes
    >>> detour(wiring, [a, b, c])
    ()
    >>> [node.name for node in detour(wiring, [a, c])]
    ['a', 'b', 'c']
    """
    inside = set(nodes)
    came_from: dict[ir.Node, ir.Node] = {}
    queue: deque[ir.Node] = deque()
    for node in inside:
        for reader in wiring.after[node]:
            if reader not in inside and reader not in came_from:
                came_from[reader] = node
                queue.append(reader)
    while queue:
        node = queue.popleft()
        for reader in wiring.after[node]:
            if reader in inside:
                return _path_to(node, came_from, reader)
            if reader not in came_from:
                came_from[reader] = node
                queue.append(reader)
    return ()


def _path_to(node: ir.Node, came_from: dict[ir.Node, ir.Node], end: ir.Node) -> tuple[ir.Node, ...]:
    path = [end, node]
    while path[-1] in came_from:
        path.append(came_from[path[-1]])
    return tuple(reversed(path))


def fault(wiring: Wiring, nodes: Sequence[ir.Node]) -> str:
    """Why a set of nodes cannot be one kernel, in words; empty when it can.

    1. *Convex*: no path leaves and comes back.
    2. *One heavy operator* (`HEAVY`), with two exceptions: the two products of an attention core, with a Softmax
       between them; and siblings, products of the same input with different weights, which are one larger product.
    3. *Nothing inside is given out*: a value that is read inside is no output of the graph.
    4. *Connected*, through values computed inside or read together.
    """
    names = {node.name for node in nodes}
    if path := detour(wiring, nodes):
        return f"the path {' -> '.join(str(node.name) for node in path)} leaves the group and comes back"
    heavy = [node for node in nodes if node.op_type in HEAVY and node.domain == ""]
    if len(heavy) > 1 and not _is_attention(heavy, nodes) and not _are_siblings(heavy):
        return f"{' and '.join(str(node.name) for node in heavy)} are {len(heavy)} heavy operators"
    for node in nodes:
        if wiring.is_output(node) and any(reader.name in names for reader in wiring.after[node]):
            return f"{node.name} computes an output of the graph that the group also reads"
    return "" if _connected(wiring, nodes) else "it falls into parts that have nothing to do with each other"


def _is_attention(heavy: Sequence[ir.Node], nodes: Sequence[ir.Node]) -> bool:
    products = len(heavy) == 2 and all(node.op_type == "MatMul" for node in heavy)
    return products and sum(node.op_type == "Softmax" for node in nodes) == 1


def _are_siblings(heavy: Sequence[ir.Node]) -> bool:
    return all(node.op_type == heavy[0].op_type and node.inputs[0] is heavy[0].inputs[0] for node in heavy)


def _connected(wiring: Wiring, nodes: Sequence[ir.Node]) -> bool:
    touching: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        for value in (*reads(node), *node.outputs):
            touching.setdefault(value, []).append(node)
    todo, seen = [nodes[0]], {nodes[0]}
    while todo:
        node = todo.pop()
        for value in (*reads(node), *node.outputs):
            new = [other for other in touching[value] if other not in seen]
            seen.update(new)
            todo += new
    return len(seen) == len(set(nodes))


class Schedule:
    """An order in which all kernels of a graph can be launched, while nodes are joined into groups.

    *Invariant*: the order respects every edge, and the nodes of each group stand next to each other. So a path that
    leaves a set and comes back, through nodes or through whole groups, passes only nodes that stand between the
    first and the last of the set: only that window has to be looked at, and only it is put in a new order.
    """

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.order = list(wiring.nodes)
        self.place = {node: i for i, node in enumerate(self.order)}
        self.group: dict[ir.Node, list[ir.Node]] = {}

    def join(self, nodes: Iterable[ir.Node]) -> bool:
        """Make one group of `nodes` and of the groups they are in; False, and nothing changed, where that is illegal.

        Illegal is what could not be launched in any order, or is no kernel by `fault`.
        """
        members = sorted(self._whole(nodes), key=self.place.__getitem__)
        start, end = self.place[members[0]], self.place[members[-1]]
        inside = set(members)
        window = [node for node in self.order[start : end + 1] if node not in inside]
        behind = self._behind(members, window)
        if behind is None or fault(self.wiring, members):
            return False
        ahead = [node for node in window if node not in behind]
        self.order[start : end + 1] = [*ahead, *members, *(node for node in window if node in behind)]
        for i in range(start, end + 1):
            self.place[self.order[i]] = i
        for node in members:
            self.group[node] = members
        return True

    def _whole(self, nodes: Iterable[ir.Node]) -> set[ir.Node]:
        return {member for node in nodes for member in self.group.get(node, [node])}

    def _behind(self, members: Sequence[ir.Node], window: Sequence[ir.Node]) -> set[ir.Node] | None:
        """What of the window must come after the members; None when one of the members would have to as well."""
        late: set[ir.Node] = set()
        sources = set(members)
        for node in window:  # in order: whatever a node waits for was decided before
            if node not in late and any(b in sources or b in late for b in self.wiring.before[node]):
                late |= self._whole([node])
        needed = (b for member in members for b in self.wiring.before[member])
        return None if any(b in late for b in needed) else late
