"""Remove operators that only move data about, where they move nothing."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from trtkit.passes.common import Dims, Rewrite, array, dims, remove, replace

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})  # same elements in the same order, another shape
_REPEAT = frozenset({"Expand", "Tile"})  # may repeat elements, and repeat none when the shape stays
_OF_ONE = frozenset({"Concat", "Sum", "Max", "Min", "Mean"})  # of a single input, they are that input
_TO_THE_END = (2**31 - 1, 2**63 - 1)  # how exporters say "all that follows"


class RemoveNoOpShapes(Rewrite):
    """Remove nodes that only move data about, where input and output are provably the same.

    1. Reshape, Flatten, Squeeze, Unsqueeze whose output has the shape of the input.
    2. Expand and Tile whose output has the shape of the input; Expand to ones of no higher rank, Tile once each.
    3. Transpose whose `perm` leaves every axis in its place.
    4. Pad by nothing (`pads` an attribute up to opset 10, an input from 11 on).
    5. Slice with steps of 1 whose output has the shape of the input, or that goes from 0 to the end on every axis
       (attributes up to opset 9, inputs from 10 on).
    6. Concat, Sum, Max, Min, Mean of one input; Split into one output.
    7. Resize with scales of 1, or to the sizes that the input has. Not with `tf_crop_and_resize`, which crops. (A
       scale of 1.1 may leave the shape, and moves pixels all the same; so rule 7 does not look at shapes.)

    *Requires* equal shapes: equal numbers, or the same symbolic name in the same place. In rule 1 one dimension may be
    unknown if all others are equal, non-zero numbers, since the number of elements is the same on both sides.
    *Rewrite*: readers of the output read the input. *Ensures*: outputs of graphs keep their names. (Rule 7: at finite
    values; an interpolation that weighs an infinite neighbour by 0 would have made it NaN.)
    """

    title = "remove no-op shapes"
    ops = frozenset({"Transpose", "Pad", "Slice", "Split", "Resize", *VIEWS, *_REPEAT, *_OF_ONE})

    def rewrite(self, node: ir.Node) -> str | None:
        if not node.inputs or node.inputs[0] is None or not _changes_nothing(node):
            return None
        if not replace(node.outputs[0], node.inputs[0]):
            return None
        remove(node)
        return f"{node.op_type} removed"


def _changes_nothing(node: ir.Node) -> bool:
    op, before, after = node.op_type, dims(node.inputs[0]), dims(node.outputs[0])
    if op in VIEWS:
        return same_elements(before, after)
    if op in _REPEAT:
        return _same(before, after) or _repeats_nothing(node, before)
    if op in _OF_ONE:
        return len(node.inputs) == 1
    if op == "Split":
        return len(node.outputs) == 1
    if op == "Transpose":
        perm = node.attributes.get_ints("perm", None)
        return perm is not None and list(perm) == sorted(perm)
    if op == "Pad":
        pads = numbers(node, "pads", 1)
        return pads is not None and not any(pads)
    return _slices_nothing(node, before, after) if op == "Slice" else _resizes_nothing(node, before)


def numbers(node: ir.Node, attribute: str, place: int) -> list[int] | None:
    """Numbers that are an attribute in early opsets and an input later; None where they are absent or not constant.

    >>> node = ir.Node("", "Squeeze", [ir.Value(name="x")], [ir.AttrInt64s("axes", [0, 2])])
    >>> numbers(node, "axes", 1)
    [0, 2]
    """
    if attribute in node.attributes:
        return list(node.attributes.get_ints(attribute, []))
    data = array(node.inputs[place]) if len(node.inputs) > place else None
    return None if data is None else [int(d) for d in data.reshape(-1)]


def is_given(node: ir.Node, attribute: str, place: int) -> bool:
    """Whether such numbers are there at all, constant or not."""
    return attribute in node.attributes or (len(node.inputs) > place and node.inputs[place] is not None)


def same_elements(before: Dims | None, after: Dims | None) -> bool:
    """Whether two shapes of the same elements are equal; one dimension that is not known then follows."""
    if before is None or after is None or len(before) != len(after):
        return False
    different = [a for a, b in zip(before, after, strict=True) if a is None or a != b]
    same = [a for a, b in zip(before, after, strict=True) if a is not None and a == b]
    return not different or (len(different) == 1 and all(isinstance(d, int) and d > 0 for d in same))


def _same(before: Dims | None, after: Dims | None) -> bool:
    return before is not None and None not in before and before == after


def _repeats_nothing(node: ir.Node, before: Dims | None) -> bool:
    wanted = numbers(node, "repeats", 1)
    ones = wanted is not None and all(d == 1 for d in wanted)
    return ones and (node.op_type == "Tile" or (before is not None and len(wanted or ()) <= len(before)))


def _slices_nothing(node: ir.Node, before: Dims | None, after: Dims | None) -> bool:
    if is_given(node, "steps", 4) and any(step != 1 for step in numbers(node, "steps", 4) or (0,)):
        return False
    if _same(before, after):
        return True
    starts, ends = numbers(node, "starts", 1), numbers(node, "ends", 2)
    if starts is None or ends is None or any(starts):
        return False
    axes = numbers(node, "axes", 3) if is_given(node, "axes", 3) else list(range(len(ends)))
    lengths = [0] * len(ends) if before is None or axes is None else [before[axis] for axis in axes]
    return all(
        end in _TO_THE_END or (isinstance(length, int) and 0 < length <= end)
        for end, length in zip(ends, lengths, strict=True)
    )


def _resizes_nothing(node: ir.Node, before: Dims | None) -> bool:
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return False
    scales = array(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is not None and scales.size:
        return bool((scales == 1).all())
    sizes = numbers(node, "sizes", 3)
    return sizes is not None and before is not None and sizes == _picked(node, before)


def _picked(node: ir.Node, shape: Dims) -> Sequence[int | str | None]:
    """The dimensions that a Resize is about: all, or from opset 18 on those in `axes`."""
    axes = node.attributes.get_ints("axes", None)
    return list(shape) if axes is None else [shape[axis] for axis in axes]
