"""Rewriting: each pass is one rule in one file, and `optimize` runs them until nothing changes.

| pass | rule |
|---|---|
| `identity.RemoveIdentities` | Identity, Dropout, Cast to the same type |
| `branches.InlineBranches` | If with a constant condition, Loop that never turns |
| `branches.DropUnusedOutputs` | outputs of If and Loop that nobody reads |
| `constant_folding.FoldConstants` | compute what does not depend on the inputs |
| `shape_folding.FoldShapes` | numbers picked from shapes that have names, too |
| `static_reshape.StaticReshape` | shape arithmetic before a Reshape |
| `batch_norm.FoldBatchNorm` | batch normalisation into the Conv or Gemm before it |
| `batch_norm_before.FoldBatchNormBefore` | batch normalisation into the Conv or Gemm behind it |
| `affine.FoldAffine` | a factor or bias for each channel into the Conv or Gemm before it |
| `zero_states.DropZeroStates` | initial states of LSTM, GRU and RNN that are zeros |
| `matmul_bias.FuseMatMulBias` | MatMul and Add of matrices into Gemm |
| `gelu.FuseGelu` | GELU by erf or by tanh |
| `layer_norm.FuseNormalization` | layer and RMS normalisation |
| `attention.CanonicalAttention` | the forms in which exporters write attention into one |
| `noop_shape.RemoveNoOpShapes` | Reshape, Expand, Transpose, Pad, Slice, Split, Concat, Resize that change nothing |
| `arithmetic.RemoveNeutralArithmetic` | x + 0, x * 1, x / 1, x ** 1 |
| `sequences.SplitSequences` | parts taken from a sequence made by splitting |
| `transpose_sinking.SinkTransposes` | operators from between Transposes, where fewer of these are left |
| `consecutive.MergeConsecutive` | two Transposes, Reshapes, Squeezes or Casts in a row |
| `dedup.ShareInitializers` | one of several equal weights |
| `cse.ShareSubexpressions` | one of several nodes that compute the same |
| `dead_code.RemoveDeadCode` | what no output depends on |

`low_latency.low_latency` is for batch 1 on a large GPU, and is asked for by name: it makes more nodes, not fewer.

| pass | rule |
|---|---|
| `stem.SpaceToDepthStem` | the first convolution on 2x2 phases of the image |
| `summed_convs.MergeSummedConvs` | the sum of two 1x1 convolutions as one |
| `split_reduction.SplitReduction` | a long sum over channels in parts |
| `heads_as_batch.HeadsAsBatch` | self-attention of batch 1 with the heads where the batch would stand |
| `slice_mlp.SliceMlp` | the two products of a transformer's MLP in slices |

`run_passes` runs a choice of one's own. Three passes are for that, since what they gain depends on the machine and on
what comes next; `low_latency` has the first among its rules, too:

| pass | rule |
|---|---|
| `absorb_bias.AbsorbBias` | biases of products behind a LayerNormalization in their weights |
| `horizontal.MergeSiblings` | Conv, MatMul or Gemm of one input side by side in one |
| `split_sinking.SinkSplits` | what all parts of a Split go through, before the Split |

`repairs` are for what TensorRT refuses, see there.

`fix_shapes.fix_shapes` makes a model for inputs of one shape alone; the last two ask for that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from trtkit.model import Model, Step, collection_paused
from trtkit.passes.affine import FoldAffine
from trtkit.passes.arithmetic import RemoveNeutralArithmetic
from trtkit.passes.attention import CanonicalAttention
from trtkit.passes.batch_norm import FoldBatchNorm
from trtkit.passes.batch_norm_before import FoldBatchNormBefore
from trtkit.passes.branches import DropUnusedOutputs, InlineBranches
from trtkit.passes.common import Rewrite, working_copy
from trtkit.passes.consecutive import MergeConsecutive
from trtkit.passes.constant_folding import FoldConstants
from trtkit.passes.cse import ShareSubexpressions
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.passes.dedup import ShareInitializers
from trtkit.passes.gelu import FuseGelu
from trtkit.passes.identity import RemoveIdentities
from trtkit.passes.index import Index
from trtkit.passes.inference import infer_missing, infer_unknown
from trtkit.passes.layer_norm import FuseNormalization
from trtkit.passes.matmul_bias import FuseMatMulBias
from trtkit.passes.noop_shape import RemoveNoOpShapes
from trtkit.passes.sequences import SplitSequences
from trtkit.passes.shape_folding import FoldShapes
from trtkit.passes.static_reshape import StaticReshape
from trtkit.passes.transpose_sinking import SinkTransposes
from trtkit.passes.zero_states import DropZeroStates

__all__ = ["LEVELS", "MAX_ROUNDS", "optimize", "passes_of", "run_passes"]

_CLEAN_UP = (
    RemoveNoOpShapes, RemoveNeutralArithmetic, SplitSequences, MergeConsecutive, ShareInitializers, ShareSubexpressions,
    DropUnusedOutputs, RemoveDeadCode,
)  # fmt: skip
_FOLD = (
    RemoveIdentities, InlineBranches, FoldConstants, FoldShapes, StaticReshape, FoldBatchNorm,
    FoldBatchNormBefore, FoldAffine, DropZeroStates,
)  # fmt: skip
_FUSE = (FuseMatMulBias, FuseGelu, FuseNormalization, CanonicalAttention)
LEVELS: dict[int, tuple[type[Rewrite], ...]] = {
    0: (),
    1: (RemoveIdentities, InlineBranches, *_CLEAN_UP),
    2: (*_FOLD, *_CLEAN_UP, SinkTransposes),
    3: (*_FOLD, *_FUSE, *_CLEAN_UP, SinkTransposes),
}
MAX_ROUNDS = 10  # every pass shrinks the graph or makes it simpler, so this is a guard, not a tuning knob


def passes_of(level: int) -> tuple[Rewrite, ...]:
    """The passes of an optimisation level, in the order in which they run; one that comes twice is one object.

    Raises:
        ValueError: there is no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"There is no optimisation level {level!r}; choose one of {sorted(LEVELS)}.")
    rules = {kind: kind() for kind in LEVELS[level]}
    return tuple(rules[kind] for kind in LEVELS[level])


def optimize(model: Model, level: int = 2) -> Model:
    """Make the graph smaller without changing what it computes.

    Args:
        model: stays as it is; the result shares its weights.
        level: 0 nothing; 1 clean-up (identities, no-op shapes, duplicates, dead code), all weights untouched;
            2 also folds constants and batch normalisation, which computes new weights; 3 also fuses operators into
            larger ones and writes attention in one form.

    Returns:
        A new model. Its history has one Step for each pass that changed something, in the order of the doing.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x) => (float[n, 4] y) {a = Identity(x)  y = Relu(a)}'''))
    >>> small = trtkit.optimize(model)
    >>> [(step.name, step.detail, step.nodes_before, step.nodes_after) for step in small.history[-1:]]
    [('remove identities', '1 Identity removed', 2, 1)]
    """
    return run_passes(model, passes_of(level))


@collection_paused()
def run_passes(model: Model, passes: Sequence[Rewrite]) -> Model:
    """Run just these passes, in turn, until none finds anything to do: `optimize` with a choice of one's own.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x) => (float[n, 4] y) {a = Identity(x)  b = Relu(a)  y = Identity(b)}'''))
    >>> run_passes(model, [RemoveIdentities()]).op_counts
    {'Relu': 1}
    """
    graph = working_copy(model)
    steps: list[Step] = []
    if passes and graph.functions:
        nodes, start = len(Index(graph)), time.perf_counter()
        InlinePass()(graph)
        RemoveDeadCode()(graph)
        after, seconds = len(Index(graph)), time.perf_counter() - start
        steps.append(Step("inline functions", "ONNX functions written out", nodes, after, seconds))
    if passes:
        steps += _to_fixpoint(graph, passes)
    return Model(graph, model.name, history=(*model.history, *steps), origin=model.origin, precision=model.precision)


def _to_fixpoint(graph: ir.Model, passes: Sequence[Rewrite]) -> list[Step]:
    """Run the passes in turn until each has found nothing to do in the graph as it is."""
    steps: list[Step] = []
    idle: dict[Rewrite, int] = {}  # at how many steps a pass last found nothing to do
    index = Index(graph)
    early = [(rule.early, place) for place, rule in enumerate(passes) if rule.early is not None]
    for rule in dict.fromkeys(passes[place] for _, place in sorted(early)):
        index = _run(graph, rule, index, steps)  # inference then has less to do, often by half, or none
    infer_unknown(graph)
    for _ in range(MAX_ROUNDS):
        before = len(steps)
        for rule in passes:
            if idle.get(rule) == len(steps) or not index.has(rule.ops):
                continue
            index = _run(graph, rule, index, steps)
            if not rule.done:
                idle[rule] = len(steps)
        if len(steps) == before:
            break
        if infer_missing(index.graphs, graph.opset_imports.get("", 0)):
            idle.clear()  # whoever found nothing to do did not know these shapes
    return steps


def _run(graph: ir.Model, rule: Rewrite, index: Index, steps: list[Step]) -> Index:
    """Run one pass and clear away what it made dead, so that a Step tells all that the pass was good for.

    Takes the index of the graph before, gives the one after.
    """
    start = time.perf_counter()
    rule.index = index
    try:
        rule(graph)
    finally:
        rule.index = None
    if not rule.done:
        return index
    clear = RemoveDeadCode()
    clear.index = index  # what is new is there because somebody reads it
    clear(graph)
    after = Index(graph)
    steps.append(Step(rule.title, rule.detail, len(index), len(after), time.perf_counter() - start))
    return after
