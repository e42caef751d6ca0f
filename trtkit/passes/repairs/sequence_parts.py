"""Sequences made of tensors that are known one by one."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import array
from trtkit.passes.match import made_by
from trtkit.passes.repairs.common import Formula, Repair


class SequenceParts(Repair):
    """What is taken from `SequenceConstruct(a, b, ...)` is one of its tensors, or all of them joined.

    1. *Requires* SequenceAt with a constant place in range. *Rewrite*: that tensor.
    2. ConcatFromSequence becomes Concat; with new_axis = 1, of the tensors with one more dimension (opset 13 or later,
       where Unsqueeze takes its axes as an input).
    3. SequenceLength becomes its number.

    *Ensures*: equal; the SequenceConstruct is dead when nobody else reads it.
    """

    title = "sequences of known tensors"
    ops = frozenset({"SequenceAt", "ConcatFromSequence", "SequenceLength"})
    by_name = False  # the refused node is the SequenceConstruct

    def rewrite(self, node: ir.Node) -> str | None:
        made = made_by(node.inputs[0], "SequenceConstruct")
        if made is None or made.graph is not node.graph:
            return None
        formula, parts = Formula(self, node), list(made.inputs)
        if node.op_type == "SequenceAt":
            place = array(node.inputs[1])
            if place is None or not -len(parts) <= int(place) < len(parts):
                return None
            result = formula("Identity", parts[int(place)])
        elif node.op_type == "SequenceLength":
            result = formula("Squeeze", formula.ints("length", len(parts)), formula.ints("axis", 0))
        else:
            axis = node.attributes["axis"].as_int()
            if node.attributes.get_int("new_axis", 0):
                if self.opset < 13:
                    return None
                parts = [formula("Unsqueeze", part, formula.ints("axis", axis)) for part in parts]
            result = formula("Concat", *parts, axis=axis)
        return f"{node.op_type} of known tensors" if formula.becomes(result) else None
