"""UINT8 between two nodes, which TensorRT allows at the ends of a network only."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import array, let_go, replace
from trtkit.passes.match import made_by
from trtkit.passes.repairs.common import Formula, Repair

# Operators that move codes or choose among them, by which inputs they read them.
_MOVERS = {
    "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
}  # fmt: skip


class FloatCodes(Repair):
    """Codes that were rounded and clipped to 0 ... 255 stay FP32 numbers until somebody outside sees them.

    *Requires* a Cast to UINT8 of `Clip(... , 0, 255)` of whole numbers, as the other repairs write it. *Rewrite*: a
    Cast behind it reads the numbers before it; an operator that only moves codes (Reshape, Transpose, MaxPool ...)
    moves the numbers, and the Cast to UINT8 goes behind that. *Ensures*: equal to the bit.
    """

    title = "codes as FP32 numbers"
    ops = frozenset({"Cast"})
    by_name = False  # the operators that move the codes are refused as well

    def rewrite(self, node: ir.Node) -> str | None:
        if node.attributes.get_int("to", 0) != ir.DataType.UINT8 or not _whole(node.inputs[0]):
            return None
        done, todo = 0, [(node, node.inputs[0])]
        while todo:
            cast, numbers = todo.pop()
            assert numbers is not None
            for reader, place in tuple(cast.outputs[0].uses()):
                if reader.op_type == "Cast" and reader.domain == "":
                    reader.replace_input_with(0, numbers)
                    done += 1
                elif reader.op_type in _MOVERS and place == 0 and len(reader.outputs) == 1:
                    todo.append(self._behind(reader, numbers))
                    done += 1
        return "Cast to UINT8 moved out" if done else None

    def _behind(self, mover: ir.Node, numbers: ir.Value) -> tuple[ir.Node, ir.Value]:
        """Let the mover move FP32 numbers, with a Cast to UINT8 behind it."""
        formula = Formula(self, mover)
        moved = formula(mover.op_type, numbers, *mover.inputs[1:], **{n: a.value for n, a in mover.attributes.items()})
        moved.dtype, moved.shape = ir.DataType.FLOAT, mover.outputs[0].shape
        codes = formula.cast(moved, ir.DataType.UINT8)
        replace(mover.outputs[0], codes)
        let_go(mover)
        formula.graph.remove(mover)
        producer = codes.producer()
        assert producer is not None
        return producer, moved


def _whole(value: ir.Value | None) -> bool:
    """Whether the value is certainly a whole number from 0 to 255: rounded and clipped, in either order."""
    last = made_by(value, "Clip", "Round")
    if last is None:
        return False
    if last.op_type == "Round":
        return _clipped(made_by(last.inputs[0], "Clip"))
    inner = made_by(last.inputs[0], "Add", "Round")
    if inner is None or not _clipped(last):
        return False
    if inner.op_type == "Round":
        return True
    zero = array(inner.inputs[1])
    whole = made_by(inner.inputs[1], "Cast") is not None or (zero is not None and not (zero % 1).any())
    return whole and made_by(inner.inputs[0], "Round") is not None


def _clipped(clip: ir.Node | None) -> bool:
    """Whether a Clip leaves what an unsigned byte can hold."""
    limits = [] if clip is None else [array(limit) for limit in clip.inputs[1:]]
    return len(limits) == 2 and limits[0] is not None and limits[1] is not None and limits[0] == 0 and limits[1] == 255
