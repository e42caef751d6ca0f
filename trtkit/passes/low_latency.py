"""Rewriting for one input at a time: more nodes, the same arithmetic, and a GPU that is busier with it."""

from __future__ import annotations

import time

from trtkit.model import Model, Step
from trtkit.passes.absorb_bias import AbsorbBias
from trtkit.passes.common import Rewrite, infer_shapes, working_copy
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.passes.heads_as_batch import HeadsAsBatch
from trtkit.passes.slice_mlp import SliceMlp
from trtkit.passes.split_reduction import SplitReduction
from trtkit.passes.stem import SpaceToDepthStem
from trtkit.passes.summed_convs import MergeSummedConvs

_RULES: tuple[type[Rewrite], ...] = (
    SpaceToDepthStem, MergeSummedConvs, SplitReduction, AbsorbBias, HeadsAsBatch, SliceMlp,
)  # fmt: skip


def low_latency(model: Model) -> Model:
    """Rewrite a network that shall answer single requests quickly: batch 1, one GPU.

    Fewer nodes are not always faster. At batch 1 a large GPU idles: a convolution on 7x7 pixels has too few outputs for
    its multiprocessors, and the first convolution's three channels leave most of a tensor core empty. The rules of
    `stem`, `summed_convs`, `split_reduction`, `heads_as_batch` and `slice_mlp` make more work for it at a time, and
    `absorb_bias` spares it kernels. For larger batches only the last gains anything (`run_passes` runs it alone);
    measure both (`trtkit.bench.compare`), and keep what `optimize` gives where it is as fast. Behind `absorb_bias` the
    result of a LayerNormalization has no mean of 0 any more, which costs INT8 codes: quantise what `optimize` gives.

    Args:
        model: as `optimize` leaves it; stays as it is. The rules for transformers apply to one whose input has a fixed
            shape with batch 1 and that was optimised at level 3: `optimize(fix_shapes(model, shapes), level=3)`.

    Returns:
        A new model that computes the same, sums in another order; a Step in its history for each rule that fired.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2, 8, 8] x) => (float[n, 1, 4, 4] y) <float[1, 2, 2, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
    ...     y = Conv <strides = [2, 2]> (x, w)}'''))
    >>> fast = low_latency(model)
    >>> fast.op_counts, fast.history[-1].detail
    ({'SpaceToDepth': 1, 'Conv': 1}, '1 Conv of stride 2')
    """
    graph = working_copy(model)
    infer_shapes(graph)
    steps: list[Step] = []
    nodes = model.node_count
    for rule in (kind() for kind in _RULES):
        start = time.perf_counter()
        if rule(graph).modified:
            after = sum(1 for _ in graph.graph.all_nodes())
            steps.append(Step(rule.title, rule.detail, nodes, after, time.perf_counter() - start))
            nodes = after
    RemoveDeadCode()(graph)
    infer_shapes(graph)
    return Model(graph, model.name, history=(*model.history, *steps), origin=model.origin, precision=model.precision)
