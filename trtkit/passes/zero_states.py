"""Leave out the initial states of a recurrent network where they are zeros."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import Rewrite, array

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}  # which inputs are initial_h and initial_c
# Whatever these do with zeros, nothing but zeros comes out.
_MOVE = frozenset({
    "Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
})  # fmt: skip


class DropZeroStates(Rewrite):
    """LSTM, GRU and RNN start from zeros when no state is given, so zeros need not be given.

    PyTorch makes a tensor of zeros for the batch at hand: Shape, Gather, Concat, ConstantOfShape or Expand, and for
    each layer a Slice. None of that can be folded while the batch may change, although the numbers in it are known.

    *Requires* that an initial state is a constant of zeros, a ConstantOfShape of zero, or comes from one through
    operators that only move elements about. *Rewrite*: the input is left out; what computed it is dead if nobody else
    reads it. *Ensures*: same outputs (ONNX, operator LSTM, `initial_h`: "if not specified - assumed to be 0").

    >>> import onnx, trtkit
    >>> from trtkit.passes import run_passes
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[t, n, 1] x, int64[3] s) => (float[t, 1, n, 1] y) <float[1, 1, 1] w = {1}, float[1, 1, 1] r = {1}> {
    ...     h = ConstantOfShape(s)  y = RNN<hidden_size = 1>(x, w, r, , , h)}'''))
    >>> run_passes(model, [DropZeroStates()]).op_counts
    {'RNN': 1}
    """

    title = "drop zero states"
    ops = frozenset(_STATES)

    def rewrite(self, node: ir.Node) -> str | None:
        zeros = [place for place in _STATES[node.op_type] if place < len(node.inputs) and _is_zero(node.inputs[place])]
        for place in zeros:
            node.replace_input_with(place, None)
        return f"{node.op_type} without initial state" if zeros else None


def _is_zero(value: ir.Value | None) -> bool:
    while value is not None:
        if (data := array(value)) is not None:
            return not data.any()
        node = value.producer()
        if node is None or node.domain != "":
            return False
        if node.op_type == "ConstantOfShape":
            filling = node.attributes.get_tensor("value", None)
            return filling is None or not filling.numpy().any()
        if node.op_type not in _MOVE:
            return False
        value = node.inputs[0]
    return False
