"""Give a Reshape a constant shape, so that the arithmetic that computed it falls away."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Dims, Rewrite, constant, dims, initializer


class StaticReshape(Rewrite):
    """Write a Reshape's target as a constant where its result is known well enough.

    Exporters compute `x.view(n, -1)` as Shape -> Gather -> Concat -> Reshape. *Requires* that every dimension of the
    output is

    1. a non-zero number, which is written as it is;
    2. or the dimension of the same symbolic name in the same place of the input, written as 0 ("copy");
    3. or, at most once, anything else, written as -1 ("what is left over").

    With a single dimension of kind 2 or 3, -1 is taken for it. *Rewrite*: the shape input becomes that constant and
    `allowzero` goes (it would turn the 0 of rule 2 into an empty dimension). *Ensures*: same result; the nodes that
    computed the shape are dead if nobody else reads them.
    """

    title = "static reshape"
    ops = frozenset({"Reshape"})

    def rewrite(self, node: ir.Node) -> str | None:
        if self.opset < 5 or constant(node.inputs[1]) is not None:
            return None
        target = self._target(dims(node.inputs[0]), dims(node.outputs[0]))
        if target is None or node.graph is None:
            return None
        name = self.names.fresh(f"{node.name}_shape")
        node.replace_input_with(1, initializer(node.graph, name, np.array(target, np.int64)))
        node.attributes.pop("allowzero", None)
        return "Reshape made static"

    @staticmethod
    def _target(before: Dims | None, after: Dims | None) -> list[int] | None:
        if after is None or 0 in after:
            return None
        unknown = [axis for axis, d in enumerate(after) if not isinstance(d, int)]
        copied: list[int] = []
        if len(unknown) > 1 and before is not None:
            copied = [a for a in unknown if after[a] is not None and a < len(before) and before[a] == after[a]]
        left_over = [axis for axis in unknown if axis not in copied]
        if len(left_over) > 1:
            return None
        return [d if isinstance(d, int) else 0 if axis in copied else -1 for axis, d in enumerate(after)]
