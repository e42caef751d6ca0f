"""Fusion groups: rules that mark which nodes one kernel shall compute, in the order in which they run.

| rule | group |
|---|---|
| `attention.AttentionCore` | MatMul, scale, mask, Softmax, MatMul |
| `siblings.Siblings` | products of one input with several weights |
| `normalisation.ResidualNorm` | the residual sum and the normalisation after it |
| `reduction.ActivationReduction` | an activation and the global average after it |
| `epilogue.Epilogue` | Conv, ConvTranspose, Gemm, MatMul with bias, residual, activation |
| `chunks.Chunks` | the Slices that take one tensor apart |
| `pointwise.LightChains` | what is left: chains of pointwise operators, moves of data, reductions |

The rules follow what TensorRT-RTX was seen to do, as far as that follows from the graph alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from trtkit.graph.groups import mark, unmark
from trtkit.graph.shapes import is_view
from trtkit.model import Model
from trtkit.passes.common import infer_shapes, working_copy
from trtkit.passes.groups.attention import AttentionCore
from trtkit.passes.groups.chunks import Chunks
from trtkit.passes.groups.common import Grouping, GroupRule
from trtkit.passes.groups.epilogue import Epilogue
from trtkit.passes.groups.normalisation import ResidualNorm
from trtkit.passes.groups.pointwise import LightChains
from trtkit.passes.groups.reduction import ActivationReduction
from trtkit.passes.groups.siblings import Siblings

__all__ = ["RULES", "GroupRule", "fuse_groups"]

RULES: tuple[type[GroupRule], ...] = (
    AttentionCore, Siblings, ResidualNorm, ActivationReduction, Epilogue, Chunks, LightChains,
)  # fmt: skip


def fuse_groups(model: Model, rules: Sequence[type[GroupRule]] = RULES) -> Model:
    """Mark on a model which nodes one kernel shall compute; what it computes stays as it is.

    Only the main graph is grouped. Marks of an earlier call are replaced. Every group is legal
    (`trtkit.graph.legality`); `trtkit.graph.groups.groups_of` reads them.

    >>> import onnx, trtkit
    >>> from trtkit.graph.groups import groups_of
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[1, 4, 8, 8] x, float[4, 4, 1, 1] w) => (float[1, 4, 8, 8] y)
    ...     {a = Conv(x, w)  b = Add(a, x)  y = Relu(b)}'''))
    >>> fused = fuse_groups(model)
    >>> [(group.rule, group.label) for group in groups_of(fused)]
    [('epilogue', 'Conv+Add+Relu')]
    >>> fused.history[-1].detail
    '1 epilogue'
    """
    start = time.perf_counter()
    graph = working_copy(model)
    infer_shapes(graph)
    unmark(graph.graph)
    grouping = Grouping(graph.graph)
    for rule in rules:
        rule().apply(grouping)
    found = _kernels(grouping)
    for number, (title, nodes) in enumerate(found):
        mark(nodes, number, title)
    detail = ", ".join(f"{count} {title}" for title, count in Counter(t for t, _ in found).most_common())
    return model.rewritten(graph, "fuse groups", detail, time.perf_counter() - start)


def _kernels(grouping: Grouping) -> list[tuple[str, list[ir.Node]]]:
    """The groups in graph order; one that is all views is no kernel."""
    found: dict[int, tuple[str, list[ir.Node]]] = {}
    for node in grouping.nodes:
        if node in grouping.rule:
            found.setdefault(id(grouping.members(node)), (grouping.rule[node], []))[1].append(node)
    return [(title, nodes) for title, nodes in found.values() if not all(map(is_view, nodes))]
