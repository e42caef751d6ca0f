"""Move Transposes down, past operators that do not care how axes are ordered, to where they meet their inverse."""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir

from trtkit.passes.axis_order import Order, follows
from trtkit.passes.common import Rewrite, array, dims, is_used, remove, replace

_LARGEST = 2000  # nodes of a region; it keeps the time of one look at a graph linear


class SinkTransposes(Rewrite):
    """Take a region of operators out from between Transposes, if fewer of them are needed then.

        T(Relu(inverse T(x) + inverse T(y))) = Relu(x + y)

    A *region* grows from a Transpose by p: its readers, their readers, and so on, as long as all that a node computes
    with is in the region already, comes from a Transpose by p too, or is a constant. Where the region ends, a value
    needs the Transpose again, unless who reads it is a Transpose itself: then the two are one, or cancel.

    1. *Requires* operators for which `axis_order.follows` holds; one graph, opset 11 or later.
    2. *Requires* that it pays: the Transposes that go (those at the entry that nobody else reads, and those that
       cancel) are more than those put in where the region ends. So no node is added, and the pass comes to an end.
    3. *Rewrite*: the region reads what the Transposes read; its axes and constants are reordered. Values inside get
       names of their own, since they are laid out in another way than those that had the names before.
    4. *Ensures*: equal values; nodes, and outputs of graphs, keep their names.

    >>> import onnx, trtkit
    >>> from trtkit.passes import run_passes
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2, 3] x) => (float[n, 2, 3] y) <float[3, 1] c = {1, 2, 3}> {
    ...     a = Transpose<perm = [0, 2, 1]>(x)  b = Add(a, c)  y = Transpose<perm = [0, 2, 1]>(b)}'''))
    >>> run_passes(model, [SinkTransposes()]).op_counts
    {'Add': 1}
    """

    title = "sink transposes"
    ops = frozenset({"Transpose"})

    def _begin(self, model: ir.Model) -> None:
        super()._begin(model)
        self._refused: set[ir.Value] = set()

    def rewrite(self, node: ir.Node) -> str | None:
        perm, out = node.attributes.get_ints("perm", None), node.outputs[0]
        if perm is None or node.graph is None or self.opset < 11 or out in self._refused:
            return None
        region = _Region(node, Order(tuple(perm), self.opset))
        if not region.nodes or region.saved() < 1:
            self._refused.update(region.entries)  # a region is the same from whichever of its entries it grew
            return None
        saved = region.saved()
        self._move(region)
        return f"region with {saved} Transpose{'s' if saved > 1 else ''} fewer"

    def _move(self, region: _Region) -> None:
        ends = {value: region.end(value) for value in region.inside}
        ordered = {*region.inside, *region.entries.values()}
        for node in region.nodes:
            for place, value in enumerate(node.inputs):
                if value in region.entries:
                    node.replace_input_with(place, region.entries[value])
            region.order.rearrange(node, ordered, self.names)
        for value, end in ends.items():
            shape, name = value.shape, value.name
            value.name = self.names.fresh(f"{name}_untransposed")
            if (known := dims(value)) is not None:
                value.shape = ir.Shape([known[axis] for axis in region.order.inverse])
            for transpose in end.merged:
                perm = [region.order.perm[axis] for axis in transpose.attributes.get_ints("perm", [])]
                transpose.attributes["perm"] = ir.AttrInt64s("perm", perm)
            for transpose in end.cancelled:
                replace(transpose.outputs[0], value)  # never refused: see _End
                remove(transpose)
            if end.others or end.is_output:
                self._transpose_again(value, end, region, name, shape)
        for value in region.entries:
            producer = value.producer()
            if not is_used(value) and producer is not None:
                remove(producer)

    def _transpose_again(
        self, value: ir.Value, end: _End, region: _Region, name: str | None, shape: ir.Shape | None
    ) -> None:
        """Give those who are no part of the region what they read before, under the name that it had."""
        producer = value.producer()
        assert producer is not None
        label = self.names.fresh(f"{producer.name}_transpose")
        node = ir.node("Transpose", [value], {"perm": list(region.order.perm)}, name=label)
        out = node.outputs[0]
        out.name, out.type, out.shape = name, value.type, shape
        region.graph.insert_after(producer, node)
        for reader, place in end.others:
            reader.replace_input_with(place, out)
        for place, output in enumerate(region.graph.outputs):
            if end.is_output and output is value:
                region.graph.outputs[place] = out


class _End:
    """Who reads a value of a region without being in it."""

    def __init__(self, value: ir.Value, members: Container[ir.Node], order: Order) -> None:
        self.is_output = value.is_graph_output()
        self.cancelled: list[ir.Node] = []  # Transposes by the inverse
        self.merged: list[ir.Node] = []  # other Transposes
        self.others: list[tuple[ir.Node, int]] = []
        outputs = int(self.is_output)  # a value can have the name of one graph output alone
        for reader, place in value.uses():
            if reader in members:
                continue
            perm = reader.attributes.get_ints("perm", None) if reader.op_type == "Transpose" else None
            if perm is None or reader.domain != "":
                self.others.append((reader, place))
            elif tuple(perm) == order.inverse and not (reader.outputs[0].is_graph_output() and outputs):
                outputs += reader.outputs[0].is_graph_output()
                self.cancelled.append(reader)
            else:
                self.merged.append(reader)

    @property
    def saved(self) -> int:
        return len(self.cancelled) - bool(self.others or self.is_output)


class _Region:
    """The operators between Transposes, found by growing from one of them.

    Attributes:
        entries: the outputs of Transposes that the region reads, with what these transpose.
        nodes, inside: its operators, and the values that they compute.
    """

    def __init__(self, first: ir.Node, order: Order) -> None:
        assert first.graph is not None
        self.graph, self.order = first.graph, order
        self.entries: dict[ir.Value, ir.Value] = {}
        self.nodes: dict[ir.Node, None] = {}
        self.inside: dict[ir.Value, None] = {}
        waiting: list[ir.Value] = []
        self._enter(first.outputs[0], waiting)
        for value in waiting:  # it grows while it is walked through
            for reader, _ in value.uses():
                if reader not in self.nodes and len(self.nodes) < _LARGEST and self._fits(reader):
                    self._take(reader, waiting)

    def _enter(self, value: ir.Value, waiting: list[ir.Value]) -> None:
        producer = value.producer()
        assert producer is not None and producer.inputs[0] is not None
        self.entries[value] = producer.inputs[0]
        waiting.append(value)

    def _fits(self, node: ir.Node) -> bool:
        if node.graph is not self.graph or not follows(node, self._is_ordered, self.order):
            return False
        outputs = [value for value in node.outputs if value.is_graph_output()]
        return all(any(value is output for output in self.graph.outputs) for value in outputs)

    def _is_ordered(self, value: ir.Value | None) -> bool:
        """Whether a value is in the region or enters it by a Transpose of the same order."""
        if value is None or value in self.inside or value in self.entries:
            return value is not None
        node = value.producer()
        if node is None or node.op_type != "Transpose" or node.domain != "" or node.graph is not self.graph:
            return False
        return tuple(node.attributes.get_ints("perm", ())) == self.order.perm and node.inputs[0] is not None

    def _take(self, node: ir.Node, waiting: list[ir.Value]) -> None:
        self.nodes[node] = None
        for value in node.inputs:
            if value is not None and value not in self.inside and value not in self.entries and array(value) is None:
                self._enter(value, waiting)
        if not self.order.absorbed_by(node):  # else there the region ends, and nothing has to be transposed again
            self.inside.update(dict.fromkeys(node.outputs))
            waiting += node.outputs

    def end(self, value: ir.Value) -> _End:
        return _End(value, self.nodes, self.order)

    def saved(self) -> int:
        """How many Transposes fewer there are when the region is moved."""
        gone = [v for v in self.entries if not v.is_graph_output() and all(r in self.nodes for r, _ in v.uses())]
        return len(gone) + sum(self.end(value).saved for value in self.inside)
