"""Split instead of a sequence of parts, from which each part is then taken."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, initializer, remove, replace


class SplitSequences(Rewrite):
    """`SequenceAt(SplitToSequence(x, sizes), i)` is the i-th output of `Split(x, sizes)`.

    PyTorch's exporter writes `torch.split` and `chunk` as sequences, which TensorRT does not have.

    *Requires* opset 13 or later; sizes that are constant (or one size, and the length of the axis known), all readers
    of the sequence SequenceAt with constant places in range. *Rewrite*: one Split in the place of the SplitToSequence;
    readers of each part read its output. *Ensures*: same parts; where one is a graph output whose name is taken over
    by nobody (it is taken twice), nothing is done.
    """

    title = "split sequences"
    ops = frozenset({"SplitToSequence"})

    def rewrite(self, node: ir.Node) -> str | None:
        sequence, graph = node.outputs[0], node.graph
        sizes = self._sizes(node) if graph is not None and self.opset >= 13 else None
        if sizes is None or sequence.is_graph_output() or not sequence.uses():
            return None
        taken = [(reader, self._place(reader, len(sizes))) for reader, _ in sequence.uses()]
        places = [place for _, place in taken]
        if None in places or (len(set(places)) < len(places) and any(r.outputs[0].is_graph_output() for r, _ in taken)):
            return None
        split = self._split(node, sizes)
        for reader, place in taken:
            part = split.outputs[place or 0]
            part.type, part.shape = part.type or reader.outputs[0].type, part.shape or reader.outputs[0].shape
            if not replace(reader.outputs[0], part):  # it is an output of another graph, a body
                reader.op_type = "Identity"
                reader.resize_inputs(1)
                reader.replace_input_with(0, part)
            else:
                remove(reader)
        remove(node)
        return "SplitToSequence made Split"

    @staticmethod
    def _sizes(node: ir.Node) -> list[int] | None:
        sizes = array(node.inputs[1]) if len(node.inputs) > 1 else None
        if sizes is None or (sizes <= 0).any():
            return None
        if sizes.ndim:
            return [int(size) for size in sizes]
        shape, size = dims(node.inputs[0]), int(sizes)
        length = None if shape is None else shape[node.attributes.get_int("axis", 0)]
        if not isinstance(length, int):
            return None
        return [min(size, length - start) for start in range(0, length, size)]

    @staticmethod
    def _place(reader: ir.Node, count: int) -> int | None:
        where = array(reader.inputs[1]) if reader.op_type == "SequenceAt" and reader.domain == "" else None
        if where is None or not -count <= int(where) < count:
            return None
        return int(where) % count

    def _split(self, node: ir.Node, sizes: list[int]) -> ir.Node:
        graph, axis = node.graph, node.attributes.get_int("axis", 0)
        assert graph is not None
        lengths = initializer(graph, self.names.fresh(f"{node.name}_sizes"), np.array(sizes, np.int64))
        attributes = [ir.AttrInt64("axis", axis)]
        split = ir.Node("", "Split", [node.inputs[0], lengths], attributes, num_outputs=len(sizes), name=node.name)
        split.metadata_props.update(node.metadata_props)
        shape = dims(node.inputs[0])
        for i, part in enumerate(split.outputs):
            part.name = self.names.fresh(f"{node.outputs[0].name}_{i}")
            part.type = node.inputs[0].type if node.inputs[0] is not None else None
            if shape is not None:
                part.shape = ir.Shape([sizes[i] if a == axis % len(shape) else d for a, d in enumerate(shape)])
        graph.insert_before(node, split)
        return split
