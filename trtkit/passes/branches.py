"""If with a constant condition, loops that never turn, and outputs of both that nobody reads."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, bodies, constant, graphs_of, is_used, remove, replace
from trtkit.passes.inference import infer_onwards


class InlineBranches(Rewrite):
    """Write the branch that always runs in the place of an If, and the start values in the place of a dead Loop.

    1. `If` whose condition is constant: the nodes and weights of the branch taken move in front of the If, under new
       names where their own are also used elsewhere (sibling branches may use one name twice), and readers of the
       If read the branch's results.
    2. `Loop` with a constant trip count of 0 or a constant false condition, and no scan outputs: its results are what
       the loop-carried values start with.

    *Requires* no more. *Rewrite*: a result that cannot take over a graph output's name (it is a weight, an input, from
    outside the graph, or an output already) is handed on by an Identity. *Ensures*: outputs of graphs keep their names.
    """

    title = "inline branches"
    ops = frozenset({"If", "Loop"})

    def _begin(self, model: ir.Model) -> None:
        super()._begin(model)
        self._counts: Counter[str] = Counter()
        for graph in graphs_of(model.graph):
            self._counts.update(value.name or "" for value in (*graph.inputs, *graph.initializers.values()))
            self._counts.update(value.name or "" for node in graph for value in node.outputs)

    def rewrite(self, node: ir.Node) -> str | None:
        if node.op_type == "If":
            condition = array(node.inputs[0])
            if condition is None or condition.size != 1:
                return None
            taken = bool(condition.reshape(-1)[0])
            self._inline(node, node.attributes["then_branch" if taken else "else_branch"].as_graph())
            return "If decided"
        return self._loop(node)

    def _inline(self, node: ir.Node, branch: ir.Graph) -> None:
        outer = node.graph
        assert outer is not None
        results = list(branch.outputs)
        branch.outputs.clear()
        for name, value in tuple(branch.initializers.items()):
            del branch.initializers[name]
            self._rename(value)
            outer.register_initializer(value)
        for inner in tuple(branch):
            branch.remove(inner)
            for value in inner.outputs:
                self._rename(value)
            outer.insert_before(node, inner)
        self._hand_over(node, results)

    def _rename(self, value: ir.Value) -> None:
        if value.name and self._counts[value.name] > 1:
            self._counts[value.name] -= 1
            value.name = self.names.fresh(value.name)

    def _loop(self, node: ir.Node) -> str | None:
        trips, go = (constant(value) for value in node.inputs[:2])
        never = any(tensor is not None and tensor.size == 1 and not tensor.numpy().any() for tensor in (trips, go))
        starts = list(node.inputs[2:])
        if not never or len(starts) != len(node.outputs) or None in starts:
            return None
        self._hand_over(node, [value for value in starts if value is not None])
        return "Loop without turns removed"

    def _hand_over(self, node: ir.Node, results: list[ir.Value]) -> None:
        """Let readers of the node read the results, whose shapes may be better known: that goes on to what follows."""
        assert node.graph is not None
        readers = dict.fromkeys(reader for old in node.outputs for reader, _ in old.uses())
        for old, new in zip(node.outputs, results, strict=True):
            if not replace(old, new):
                handed = ir.Node("", "Identity", [new], name=f"{node.name}_{old.name}")
                handed.outputs[0].type, handed.outputs[0].shape = old.type, old.shape
                handed.outputs[0].name = self.names.fresh(f"{old.name}_handed_on")
                node.graph.insert_before(node, handed)
                replace(old, handed.outputs[0])
        remove(node)
        infer_onwards(readers, self.opset)


class DropUnusedOutputs(Rewrite):
    """Take outputs that nobody reads off an If and, where they collect a value of each turn, off a Loop.

    *Requires* an output of an If, or a scan output of a Loop, that no node reads and no graph gives out, while another
    output is read (else the node is dead as a whole). *Rewrite*: the output goes, and in each body the value behind
    it is no output any more; what computed it there is then dead code. *Ensures*: the outputs left keep their names
    and their order.
    """

    title = "drop unused outputs"
    ops = frozenset({"If", "Loop"})

    def rewrite(self, node: ir.Node) -> str | None:
        carried = len(node.inputs) - 2 if node.op_type == "Loop" else 0
        unused = [i for i, value in enumerate(node.outputs) if i >= carried and not is_used(value)]
        if not unused or len(unused) == len(node.outputs) or node.graph is None:
            return None
        kept = [value for i, value in enumerate(node.outputs) if i not in unused]
        for body in bodies(node):
            for place in reversed(unused):
                body.outputs.pop(place + (node.op_type == "Loop"))  # the first output of a Loop's body: go on?
        attributes = list(node.attributes.values())
        new = ir.Node("", node.op_type, list(node.inputs), attributes, num_outputs=len(kept), name=node.name)
        new.metadata_props.update(node.metadata_props)
        node.graph.insert_before(node, new)
        _move_outputs(kept, list(new.outputs))
        node.attributes.clear()  # the bodies are the new node's now
        remove(node)
        return f"{len(unused)} outputs of {node.op_type} dropped"


def _move_outputs(old: list[ir.Value], new: list[ir.Value]) -> None:
    for before, after in zip(old, new, strict=True):
        name, after.type, after.shape = before.name, before.type, before.shape
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        before.name = f"{name}_replaced"
        after.name = name
