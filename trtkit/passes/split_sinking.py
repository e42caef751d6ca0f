"""What is done to every part of a tensor is done to the whole of it, before it is cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, initializer, remove, replace, single_use
from trtkit.passes.noop_shape import numbers
from trtkit.passes.pointwise import is_unary

_WITH_CONSTANT = frozenset({"Add", "Sub", "Mul", "Div"})


class SinkSplits(Rewrite):
    """Move a Split down past what all of its parts go through alike.

    1. `Relu(part)` of every part is a Split of `Relu(whole)`; the same for any operator that maps each element by
       itself, with equal attributes and the same constants behind it.
    2. `part + c` of every part, each with a constant of its own, is a Split of `whole + [c1 | c2 | ...]`; likewise
       `-`, `*` and `/`. *Requires* constants of one row that tell apart, at most, the places along the axis.
    3. `Concat(part 1, part 2, ...)` of all parts, in their order and along the same axis, is the whole.

    *Requires* for 1 and 2 that each part has one reader, in the same graph, and is no graph output; opset 7.
    *Rewrite*: one node where there were as many as parts. *Ensures*: equal values; outputs keep their names.
    """

    title = "sink splits"
    ops = frozenset({"Split"})

    def rewrite(self, node: ir.Node) -> str | None:
        if node.inputs[0] is None or self.opset < 7:
            return None
        if (joined := _joined(node)) is not None and replace(joined.outputs[0], node.inputs[0]):
            remove(joined)
            return "Split and Concat cancelled"
        readers = _one_reader_each(node)
        if readers is None:
            return None
        if is_unary(readers[0]) and all(_alike(readers[0], each) for each in readers):
            self._move(node, readers, [*readers[0].inputs[1:]])
        elif (data := _side_by_side(node, readers)) is not None and node.graph is not None:
            name = self.names.fresh(f"{readers[0].name}_constants")
            self._move(node, readers, [initializer(node.graph, name, data)])
        else:
            return None
        return f"Split after {readers[0].op_type}"

    def _move(self, split: ir.Node, readers: Sequence[ir.Node], others: Sequence[ir.Value | None]) -> None:
        """Put one node of the readers' kind before the Split, which then gives what they gave."""
        first, whole, graph = readers[0], split.inputs[0], split.graph
        assert whole is not None and graph is not None
        name = self.names.fresh(f"{first.name}_whole")
        inputs = [whole if value is split.outputs[0] else others[0] for value in first.inputs[:2]]
        mapped = ir.Node("", first.op_type, [*inputs, *others[1:]], first.attributes.values(), name=name)
        mapped.metadata_props.update(first.metadata_props)
        out = mapped.outputs[0]
        out.name, out.type, out.shape = self.names.fresh(f"{whole.name}_{name}"), first.outputs[0].type, whole.shape
        graph.insert_before(split, mapped)
        split.replace_input_with(0, out)
        for part, reader in zip(split.outputs, readers, strict=True):
            old = reader.outputs[0]
            part.type = old.type
            replace(old, part)  # never refused: the part is computed in this graph, and is no output yet
            remove(reader)


def _joined(split: ir.Node) -> ir.Node | None:
    """The Concat in the same graph that puts all parts together again."""
    for reader, _ in split.outputs[0].uses():
        if reader.op_type != "Concat" or reader.domain != "" or reader.graph is not split.graph:
            continue
        shape, axes = dims(split.inputs[0]), [each.attributes.get_int("axis", 0) for each in (split, reader)]
        axes = axes if shape is None else [axis % len(shape) for axis in axes]
        if tuple(reader.inputs) == tuple(split.outputs) and axes[0] == axes[1]:
            return reader
    return None


def _one_reader_each(split: ir.Node) -> list[ir.Node] | None:
    """The only reader of each part, all of them one kind of operator in the same graph, each another node."""
    if not all(part.name and single_use(part) for part in split.outputs):
        return None
    readers = [next(iter(part.uses())) for part in split.outputs]
    first = readers[0]
    same = all((use.idx, use.node.op_type) == (first.idx, first.node.op_type) for use in readers)
    apart = len({use.node for use in readers}) == len(readers) > 1
    here = all(use.node.graph is split.graph and use.node.domain == "" for use in readers)
    return [use.node for use in readers] if same and apart and here else None


def _alike(one: ir.Node, other: ir.Node) -> bool:
    """Whether two unary nodes do the same: equal attributes, and constants of one element that are equal."""
    if len(one.inputs) != len(other.inputs) or set(one.attributes) != set(other.attributes):
        return False
    if any(repr(one.attributes[name].value) != repr(other.attributes[name].value) for name in one.attributes):
        return False
    pairs = [(array(a), array(b)) for a, b in zip(one.inputs[1:], other.inputs[1:], strict=True)]
    return all((a is None and b is None) or _same_number(a, b) for a, b in pairs)


def _same_number(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is not None and b is not None and a.size == b.size == 1 and a.dtype == b.dtype and bool(np.all(a == b))


def _side_by_side(split: ir.Node, readers: Sequence[ir.Node]) -> np.ndarray | None:
    """The constants of `part + c` along the Split's axis, None where they are not of one row or not constant."""
    shape, sizes = dims(split.inputs[0]), numbers(split, "split", 1)
    if readers[0].op_type not in _WITH_CONSTANT or shape is None or sizes is None:
        return None
    behind = len(shape) - 1 - split.attributes.get_int("axis", 0) % len(shape)  # how many axes follow the Split's
    rows = []
    for part, reader, size in zip(split.outputs, readers, sizes, strict=True):
        data = array(reader.inputs[1 if reader.inputs[0] is part else 0])
        if data is None or data.ndim > len(shape) or data.size not in (1, size):
            return None
        if data.size > 1 and (data.ndim <= behind or data.shape[data.ndim - 1 - behind] != size):
            return None
        rows.append(np.broadcast_to(data.reshape(-1), size))
    return np.concatenate(rows).reshape(-1, *[1] * behind)
