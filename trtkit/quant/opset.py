"""The opset that number formats younger than INT8 need."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.onnx_file import declare_input, drop_metadata, without_weights

MIN_OPSET = 21  # int4 and scales for blocks came to DequantizeLinear with it, FP8 came with 19


def lift_opset(graph: ir.Model, name: str) -> None:
    """Make a graph's opset 21 if no node of it means anything else there.

    ONNX's own converter is asked, on a copy without weights; where it would rewrite a node, that is left to the caller.

    Raises:
        ModelError: it has to be rewritten, or the converter does not know how.
    """
    opset = graph.opset_imports.get("", 0)
    if opset >= MIN_OPSET:
        return
    proto, large = without_weights(graph)
    drop_metadata(proto)
    for value in large:
        assert value.const_value is not None
        declare_input(proto.graph, value.name or "", value.const_value.dtype, value.const_value.shape.numpy())
    try:
        lifted = onnx.version_converter.convert_version(proto, MIN_OPSET)
        same = [_plain(n) for n in lifted.graph.node] == [_plain(n) for n in proto.graph.node]
    except Exception as error:
        raise ModelError(
            f"{name!r} has opset {opset}, FP8 and INT4 need {MIN_OPSET}, and ONNX's converter "
            f"cannot lift it: {error}. Export it with a later opset."
        ) from error
    if not same:
        raise ModelError(
            f"{name!r} has opset {opset}, FP8 and INT4 need {MIN_OPSET}, and some of its operators changed "
            f"in between. Convert it first: onnx.version_converter.convert_version(model, {MIN_OPSET})."
        )
    graph.opset_imports[""] = MIN_OPSET


def _plain(node: onnx.NodeProto) -> tuple[object, ...]:
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return node.op_type, list(node.input), list(node.output), attributes
