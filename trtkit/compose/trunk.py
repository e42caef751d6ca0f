"""What several models compute alike, computed once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from trtkit.compose.align import named
from trtkit.compose.merge import Share, joined, merge
from trtkit.model import Model
from trtkit.passes.cse import ShareSubexpressions
from trtkit.passes.dead_code import RemoveDeadCode


def share_trunk(
    models: Mapping[str, Model] | Sequence[Model], *, share_inputs: Share = True, name: str | None = None
) -> Model:
    """Merge models and compute once what they compute alike: fine-tuned copies of one backbone get one trunk.

    This is common-subexpression elimination on the merged graph. A node that has the same operator, the same
    attributes and the same inputs as one seen before gives the same values, so its readers may read those; then its
    readers can turn out alike, and so on: the common trunk grows from the shared input to the first weights that
    differ. Weights count as the same when they are equal to the bit, which fine-tuning with a frozen backbone
    leaves them.

    Returns:
        One model; its last Step says how many nodes are shared. That may be none.

    Raises:
        ModelError: as `merge`.

    >>> import onnx
    >>> from trtkit.importers import load
    >>> text = ('<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) '
    ...         '{a = Abs(x) b = Exp(a) y = %s(b)}')
    >>> share_trunk({op: load(onnx.parser.parse_model(text % op)) for op in ("Neg", "Log")}).history[-1].detail
    'Neg, Log: 2 of 6 nodes shared'
    """
    start, parts = time.perf_counter(), named(models)
    whole = merge(parts, share_inputs=share_inputs, name=name)
    graph = whole.copy().ir
    ShareSubexpressions()(graph)
    RemoveDeadCode()(graph)
    shared = whole.node_count - sum(1 for _ in graph.graph.all_nodes())
    detail = f"{', '.join(parts)}: {shared} of {sum(part.node_count for part in parts.values())} nodes shared"
    return joined(list(parts.values()), graph, whole.name, "share trunk", detail, start, whole.origin)
