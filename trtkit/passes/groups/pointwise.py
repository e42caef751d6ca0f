"""Chains of light operators, as long as they are, with at most one reduction over images in them."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.groups.common import LIGHT, REDUCES, Grouping, GroupRule, is_a, is_global
from trtkit.passes.groups.epilogue import Epilogue
from trtkit.passes.groups.siblings import Siblings

_CLOSED = {Epilogue.title, Siblings.title, "attention"}


class LightChains(GroupRule):
    """Pointwise operators, moves of data and reductions become one kernel with the kernel that reads them.

    1. *Requires* a light node (pointwise, Transpose, Concat, Slice, Gather, views ...) or a reduction all of whose
       readers are in one group without heavy operators; its result is no output of the graph.
    2. *Group*: the node joins that group. This is always legal: a path that leaves the node ends in the group.
    3. Reductions over rows (softmax, normalisation) may follow each other, as one block of threads holds a row;
       of reductions over whole images a group has one, and no other beside it.
    4. Views alone are no kernel: they stay free.
    """

    title = "pointwise"

    def apply(self, grouping: Grouping) -> None:
        """From the last node to the first, so that readers come before what they read."""
        for node in reversed(grouping.nodes):
            if is_a(node, LIGHT | REDUCES) and not grouping.wiring.is_output(node):
                self._join_readers(node, grouping)

    def _join_readers(self, node: ir.Node, grouping: Grouping) -> None:
        readers = grouping.wiring.after[node]
        if not readers or grouping.rule.get(node) in _CLOSED:
            return
        group = grouping.members(readers[0])
        if not all(reader in group for reader in readers) or node in group or not _light(group, grouping):
            return
        whole = [*grouping.members(node), *group]
        if _reductions_fit(whole):
            grouping.claim([node, readers[0]], _title(whole))


def _light(group: list[ir.Node], grouping: Grouping) -> bool:
    return all(is_a(n, LIGHT | REDUCES) and grouping.rule.get(n) not in _CLOSED for n in group)


def _reductions_fit(nodes: list[ir.Node]) -> bool:
    reductions = [node for node in nodes if is_a(node, REDUCES)]
    return len(reductions) < 2 or not any(map(is_global, reductions))


def _title(nodes: list[ir.Node]) -> str:
    ops = {node.op_type for node in nodes}
    if ops & {"LayerNormalization", "RMSNormalization"}:
        return "normalisation"
    return "softmax" if "Softmax" in ops else "reduction" if ops & REDUCES else LightChains.title
