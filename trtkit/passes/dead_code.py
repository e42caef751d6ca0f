"""Remove what no output depends on."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import Rewrite, is_used, let_go
from trtkit.passes.index import Index


class RemoveDeadCode(Rewrite):
    """Remove nodes and initialisers that no output depends on.

    1. A node none of whose outputs is read by a node (in a subgraph or not) or given out by a graph.
    2. An initialiser that nobody reads, unless it is also an input or output of its graph: the interface stays.

    *Requires* nothing else: ONNX operators have no side effects. *Rewrite*: they go; from the last node to the first,
    so that one walk takes a whole dead chain. *Ensures*: every node left has a reader.
    """

    title = "remove dead code"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Bodies first, so that what only a dead body node read is dead in the outer graph too."""
        self.done.clear()
        index = self.index or Index(model)
        dead: dict[ir.Graph, list[ir.Node]] = {}
        for node in reversed(index.nodes):
            if node.graph is not None and not any(map(is_used, node.outputs)):
                let_go(node)  # so that what only this node read, or a body of it, is dead, too
                dead.setdefault(node.graph, []).append(node)
                self.done[f"{node.op_type} removed"] += 1
        for graph, nodes in dead.items():
            graph.remove(nodes)  # all at once: one removal takes time in proportion to the graph's outputs
        for graph in reversed(index.graphs):
            for name, value in tuple(graph.initializers.items()):
                if not is_used(value) and not value.is_graph_input():
                    del graph.initializers[name]
                    self.done["unused weights removed"] += 1
        return ir.passes.PassResult(model, modified=bool(self.done))
