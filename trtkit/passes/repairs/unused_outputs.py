"""Second and third outputs that nobody reads."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import is_used
from trtkit.passes.repairs.common import Repair


class DropUnusedResults(Repair):
    """Exporters list all outputs of LayerNormalization, MaxPool, Attention ...; TensorRT computes the first alone.

    *Requires* outputs after the first, at the end of the list, that nobody reads. *Rewrite*: the node without them.
    *Ensures*: all that anybody reads stays.
    """

    title = "drop unused results"

    def rewrite(self, node: ir.Node) -> str | None:
        kept = max((place for place, value in enumerate(node.outputs) if is_used(value)), default=0) + 1
        if kept == len(node.outputs):
            return None
        node.resize_outputs(kept)
        return f"results of {node.op_type} that nobody reads dropped"
