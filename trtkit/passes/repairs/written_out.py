"""Operators that ONNX itself defines by simpler ones."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import inliner

from trtkit.graph.shapes import has_body
from trtkit.passes.common import remove, replace
from trtkit.passes.repairs.common import Repair


class WriteOut(Repair):
    """A node of an operator that the ONNX standard defines as a function becomes the nodes of that function.

    AffineGrid, DynamicQuantizeLinear, CenterCropPad, the losses, Attention in the forms that TensorRT does not take,
    LayerNormalization with all three outputs, Celu of FP16 and more.

    *Requires* an operator with a function in the standard at the model's opset, without bodies; types of the inputs
    known. *Rewrite*: its nodes, with the node's attributes put in. *Ensures*: equal by the definition of ONNX.
    """

    title = "write operators out"

    def rewrite(self, node: ir.Node) -> str | None:
        lone = None if has_body(node) or node.graph is None else lone_model(node, self.opset)
        if lone is None or not _has_function(node, self.opset):
            return None
        try:
            written = inliner.inline_selected_functions(lone, [("", node.op_type)], inline_schema_functions=True)
        except (RuntimeError, ValueError):  # the definition does not cover these types or attributes
            return None
        inner = ir.from_proto(written).graph
        if any(new.op_type == node.op_type or has_body(new) for new in inner):
            return None
        self._splice(node, inner)
        return f"{node.op_type} written out"

    def _splice(self, node: ir.Node, inner: ir.Graph) -> None:
        assert node.graph is not None
        given = [value for value in node.inputs if value is not None]
        there = dict(zip(_distinct(node), _unique(given), strict=True))
        for old in inner:
            inputs = [None if value is None else there[value.name or ""] for value in old.inputs]
            name = self.names.fresh(f"{node.name}/{old.op_type}")
            new = ir.Node("", old.op_type, inputs, old.attributes.values(), num_outputs=len(old.outputs), name=name)
            new.metadata_props.update(node.metadata_props)
            node.graph.insert_before(node, new)
            for made, was in zip(new.outputs, old.outputs, strict=True):
                made.name = self.names.fresh(f"{node.name}/{was.name}") if was.name else ""
                if was.name:
                    there[was.name] = made
        for output, result in zip((v for v in node.outputs if v.name), inner.outputs, strict=True):
            new_value = there[result.name or ""]
            if new_value in given:  # the definition hands an input on
                new_value = self._identity(node, new_value)
            replace(output, new_value)
        remove(node)

    def _identity(self, node: ir.Node, value: ir.Value) -> ir.Value:
        new = ir.Node("", "Identity", [value], num_outputs=1, name=self.names.fresh(f"{node.name}/Identity"))
        new.outputs[0].name = self.names.fresh(f"{new.name}_out")
        assert node.graph is not None
        node.graph.insert_before(node, new)
        return new.outputs[0]


def lone_model(node: ir.Node, opset: int) -> onnx.ModelProto | None:
    """A model of one node alone, whose inputs are the graph's; None where a type is not known.

    Constants among the inputs are inputs like the others: what is built from the node does not depend on them.
    """
    values = _unique([value for value in node.inputs if value is not None])
    if any(value.type is None for value in values):
        return None
    inputs = [
        ir.Value(name=name, type=value.type, shape=value.shape)
        for name, value in zip(_distinct(node), values, strict=True)
    ]
    by_value = dict(zip(values, inputs, strict=True))
    operands = [None if value is None else by_value[value] for value in node.inputs]
    copy = ir.Node(
        node.domain, node.op_type, operands, node.attributes.values(), num_outputs=len(node.outputs), name=node.name
    )
    for number, (new, old) in enumerate(zip(copy.outputs, node.outputs, strict=True)):
        new.name, new.type, new.shape = f"out{number}" if old.name else "", old.type, old.shape
    outputs = [value for value in copy.outputs if value.name]
    graph = ir.Graph(inputs, outputs, nodes=[copy], opset_imports={node.domain: opset, "": opset}, name="lone")
    return ir.to_proto(ir.Model(graph, ir_version=10))


def _unique(values: list[ir.Value]) -> list[ir.Value]:
    return list(dict.fromkeys(values))


def _distinct(node: ir.Node) -> list[str]:
    return [f"in{number}" for number in range(len(_unique([v for v in node.inputs if v is not None])))]


def _has_function(node: ir.Node, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]
