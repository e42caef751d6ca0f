"""Where the nodes of each operator are, so that not every rule has to look for them in the whole graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator

import onnx_ir as ir

from trtkit.graph.shapes import WITH_BODY, bodies, has_body


class Index:
    """The nodes of a model as they stand now, by operator; nodes that a pass makes later are not in it.

    An outer graph comes before the bodies in it, each in topological order.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n] x) => (float[n] y) {a = Relu(x) b = Abs(a) y = Relu(b)}'''))
    >>> index = Index(model.ir)
    >>> [node.outputs[0].name for node in index.of({"Relu"})], index.has({"Exp"}), len(index)
    (['a', 'y'], False, 3)
    """

    def __init__(self, model: ir.Model) -> None:
        self.graphs = [model.graph]
        self.nodes: list[ir.Node] = []
        self._places: dict[str, list[int]] = defaultdict(list)  # of ONNX's own operators
        for graph in self.graphs:  # which grows on the way
            nodes = list(graph)
            for place, node in enumerate(nodes, len(self.nodes)):
                name = node.op_type
                if node.domain == "":
                    self._places[name].append(place)
                    if name not in WITH_BODY:
                        continue
                if has_body(node):
                    self.graphs += bodies(node)
            self.nodes += nodes

    def __len__(self) -> int:
        return len(self.nodes)

    def has(self, operators: Collection[str]) -> bool:
        """Whether there are nodes for a rule about these operators; one about none in particular is about all."""
        return not operators or not self._places.keys().isdisjoint(operators)

    def of(self, operators: Collection[str]) -> Iterator[ir.Node]:
        """The nodes with these operators, or with any of ONNX's own, that are still in a graph when they are due."""
        lists = [self._places[name] for name in operators or self._places if name in self._places]
        places = lists[0] if len(lists) == 1 else sorted(place for found in lists for place in found)
        for place in places:
            if self.nodes[place].graph is not None:
                yield self.nodes[place]
