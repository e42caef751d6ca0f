"""How many rounds passes need to a fixpoint, in one order or in many."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

from trtkit.model import Model
from trtkit.passes import run_passes
from trtkit.passes.common import Rewrite


def rounds(model: Model, passes: Sequence[Rewrite]) -> list[int]:
    """Nodes at the start and after each round in which something changed, read off the history of `run_passes`.

    A round ends where the history names a pass that does not come after the one before. (A pass may stand in the
    order twice.) Here no rule has a turn before the first round, as some have in `run_passes`: the order alone decides.

    >>> import onnx, trtkit
    >>> from trtkit.passes.arithmetic import RemoveNeutralArithmetic
    >>> from trtkit.passes.identity import RemoveIdentities
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]> g (float[n] x)
    ...     => (float[n] y) <float one = {1.0}> {a = Identity(x)  b = Mul(a, one)  y = Relu(b)}'''))
    >>> rounds(model, [RemoveIdentities(), RemoveNeutralArithmetic()])
    [3, 1]
    """
    titles = [rule.title for rule in passes]
    after = run_passes(model, _without_early_turns(passes))
    counts, place = [model.node_count], len(titles)
    for step in after.history[len(model.history) :]:
        if step.name not in titles[place:]:
            counts.append(step.nodes_after)
            place = 0
        counts[-1] = step.nodes_after
        place = titles.index(step.name, place) + 1
    return counts


def _without_early_turns(passes: Sequence[Rewrite]) -> list[Rewrite]:
    twins = {rule: copy.copy(rule) for rule in passes}
    for twin in twins.values():
        vars(twin)["early"] = None
    return [twins[rule] for rule in passes]


def shuffled(passes: Sequence[Rewrite], seed: int) -> list[Rewrite]:
    """The same passes in an order drawn from a seed."""
    order = list(passes)
    random.Random(seed).shuffle(order)
    return order
