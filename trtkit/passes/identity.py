"""Remove nodes that hand on their input unchanged."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, remove, replace, type_of


class RemoveIdentities(Rewrite):
    """Remove nodes that are the identity at inference time.

    1. `y = Identity(x)`.
    2. `y = Dropout(x)` when not training: opset 7 to 11 always; from opset 12 on, if `training_mode` is absent or a
       constant false. *Requires* that nobody reads the mask.
    3. `y = Cast(x, to=T)` and `y = CastLike(x, t)`, when x is known to have the wanted type already.
    4. `y = CastLike(x, t)` otherwise becomes `Cast(x, to=type of t)`: the value of t never mattered, so that a
       constant x can now be folded.

    *Rewrite* (1 to 3): readers of y read x. *Ensures*: outputs of graphs keep their names; where y is an output and
    x cannot take its name (x is an input, a weight, another output, or from outside a subgraph), the node stays.
    """

    title = "remove identities"
    early = 1
    ops = frozenset({"Identity", "Dropout", "Cast", "CastLike"})

    def rewrite(self, node: ir.Node) -> str | None:
        if node.op_type == "CastLike" and not self._is_identity(node):
            return self._cast_like(node)
        if not self._is_identity(node) or node.inputs[0] is None:
            return None
        if not replace(node.outputs[0], node.inputs[0]):
            return None
        remove(node)
        return f"{node.op_type} removed"

    def _is_identity(self, node: ir.Node) -> bool:
        if node.op_type == "Identity":
            return True
        if node.op_type == "Dropout":
            return self._inactive_dropout(node)
        source = type_of(node.inputs[0]) if node.inputs else None
        if node.op_type == "Cast":
            return source is not None and source == node.attributes.get_int("to", 0)
        if node.op_type == "CastLike":
            like = node.inputs[1]
            return source is not None and source == type_of(like)
        return False

    def _inactive_dropout(self, node: ir.Node) -> bool:
        if self.opset < 7 or any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
            return False
        training = node.inputs[2] if len(node.inputs) > 2 else None
        if training is None:
            return True
        value = array(training)
        return value is not None and not value.any()

    @staticmethod
    def _cast_like(node: ir.Node) -> str | None:
        like = type_of(node.inputs[1])
        if like is None:
            return None
        node.resize_inputs(1)
        node.op_type = "Cast"
        node.attributes["to"] = ir.AttrInt64("to", like.value)
        return "CastLike made Cast"
