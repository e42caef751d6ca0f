"""Rewriting: each pass is one rule in one file, and `optimize` runs them until nothing changes.

| pass | rule |
|---|---|
| `identity.RemoveIdentities` | Identity, Dropout, Cast to the same type |
| `constant_folding.FoldConstants` | compute what does not depend on the inputs |
| `static_reshape.StaticReshape` | shape arithmetic before a Reshape |
| `noop_shape.RemoveNoOpShapes` | Reshape, Expand, Transpose that change nothing |
| `batch_norm.FoldBatchNorm` | batch normalisation into the Conv or Gemm before it |
| `dedup.ShareInitializers` | one of several equal weights |
| `dead_code.RemoveDeadCode` | what no output depends on |
"""

from __future__ import annotations

import time

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from trtkit.model import Model, Step
from trtkit.passes.batch_norm import FoldBatchNorm
from trtkit.passes.common import Rewrite, infer_shapes, working_copy
from trtkit.passes.constant_folding import FoldConstants
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.passes.dedup import ShareInitializers
from trtkit.passes.identity import RemoveIdentities
from trtkit.passes.noop_shape import RemoveNoOpShapes
from trtkit.passes.static_reshape import StaticReshape

__all__ = ["LEVELS", "MAX_ROUNDS", "optimize", "passes_of"]

_CLEAN_UP = (RemoveNoOpShapes, ShareInitializers, RemoveDeadCode)
LEVELS: dict[int, tuple[type[Rewrite], ...]] = {
    0: (),
    1: (RemoveIdentities, *_CLEAN_UP),
    2: (RemoveIdentities, FoldConstants, StaticReshape, FoldBatchNorm, *_CLEAN_UP),
}
MAX_ROUNDS = 10  # every pass shrinks the graph or makes it simpler, so this is a guard, not a tuning knob


def passes_of(level: int) -> tuple[Rewrite, ...]:
    """The passes of an optimisation level, in the order in which they run.

    Raises:
        ValueError: there is no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"There is no optimisation level {level!r}; choose one of {sorted(LEVELS)}.")
    return tuple(rule() for rule in LEVELS[level])


def optimize(model: Model, level: int = 2) -> Model:
    """Make the graph smaller without changing what it computes.

    Args:
        model: stays as it is; the result shares its weights.
        level: 0 nothing; 1 clean-up (identities, no-op shapes, duplicates, dead code), all weights untouched;
            2 also folds constants and batch normalisation, which computes new weights.

    Returns:
        A new model. Its history has one Step for each pass that changed something, in the order of the doing.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x) => (float[n, 4] y) {a = Identity(x)  y = Relu(a)}'''))
    >>> small = trtkit.optimize(model)
    >>> [(step.name, step.detail, step.nodes_before, step.nodes_after) for step in small.history[-1:]]
    [('remove identities', '1 Identity removed', 2, 1)]
    """
    passes = passes_of(level)
    graph = working_copy(model)
    steps: list[Step] = []
    if passes and graph.functions:
        steps.append(_run(graph, InlinePass(), "inline functions", "ONNX functions written out"))
    for _ in range(MAX_ROUNDS if passes else 0):
        before = len(steps)
        for rule in passes:
            if isinstance(rule, StaticReshape | RemoveNoOpShapes):
                infer_shapes(graph)
            step = _run(graph, rule, rule.title)
            if rule.done:
                steps.append(step)
        if len(steps) == before:
            break
    return Model(graph, model.name, history=(*model.history, *steps), origin=model.origin, precision=model.precision)


def _run(graph: ir.Model, rule: ir.passes.InPlacePass, title: str, detail: str = "") -> Step:
    """Run one pass and clear away what it made dead, so that a Step tells all that the pass was good for."""
    before, start = _count(graph), time.perf_counter()
    if rule(graph).modified:
        RemoveDeadCode()(graph)
    detail = detail or (rule.detail if isinstance(rule, Rewrite) else "")
    return Step(title, detail, before, _count(graph), time.perf_counter() - start)


def _count(graph: ir.Model) -> int:
    return sum(1 for _ in graph.graph.all_nodes())
