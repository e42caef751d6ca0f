"""Two convolutions that are added are one over the channels of both: one kernel for the end of a residual block."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, initializer, remove, single_use
from trtkit.passes.stem import put_instead

_END = np.iinfo(np.int64).max  # as far as the tensor goes


class MergeSummedConvs(Rewrite):
    """The sum of two 1x1 convolutions is one 1x1 convolution of both inputs.

    A residual block that changes the number of channels adds its last convolution to one of its input:

        A a + B b = [A | B] [a ; b]

    One long sum is accumulated where it is computed, so that the block's shortcut is neither written nor read again.

    1. *Requires* Add of two Conv with kernels of 1x1, group 1, no padding, constant weights and biases, that nobody
       else reads; outputs of the same known shape; opset 13 or later.
    2. *Rewrite*: a strided Slice of an input whose Conv has a stride; Concat of both inputs along the channels; Conv
       with the weights side by side and the sum of the biases.
    3. *Ensures*: equal up to the order of summation.

    TensorRT adds a convolution's result inside the kernel of the other. Its FP32 engine of ResNet-50 for batch 1 does
    that wrongly now and then (TensorRT-RTX 1.6.1 on an H100), and this form is not concerned.
    """

    title = "merge summed convolutions"
    ops = frozenset({"Add"})

    def rewrite(self, node: ir.Node) -> str | None:
        convs = [value.producer() for value in node.inputs if value is not None]
        first, second = convs if len(convs) == 2 else (None, None)
        if first is None or second is None or first is second or self.opset < 13:
            return None
        if not (_pointwise(first) and _pointwise(second)) or first.graph is not node.graph:
            return None
        out, other = dims(first.outputs[0]), dims(second.outputs[0])
        if out is None or out != other or None in out or second.graph is not node.graph:
            return None
        thinned = [self._thinned(conv) for conv in (first, second)]
        chain = [*thinned[0], *thinned[1], *self._merged(node, first, second, thinned)]
        if not put_instead(node, chain, self):
            return None
        remove((first, second))
        return "Add of two Conv into one"

    def _thinned(self, conv: ir.Node) -> list[ir.Node]:
        """The pixels that a convolution with a stride looks at, by a Slice; nothing for one without."""
        steps = conv.attributes.get_ints("strides", [1, 1])
        if max(steps) == 1:
            return []
        assert conv.graph is not None
        rows = {"starts": [0, 0], "ends": [_END, _END], "axes": [2, 3], "steps": steps}
        values = [
            initializer(conv.graph, self.names.fresh(f"{conv.name}.{what}"), np.array(row, np.int64))
            for what, row in rows.items()
        ]
        return [ir.node("Slice", [conv.inputs[0], *values], name=self.names.fresh(f"{conv.name}.pixels"))]

    def _merged(self, node: ir.Node, first: ir.Node, second: ir.Node, thinned: list[list[ir.Node]]) -> list[ir.Node]:
        """Concat of both inputs, and the Conv with the weights side by side."""
        assert node.graph is not None
        convs = (first, second)
        inputs = [made[0].outputs[0] if made else conv.inputs[0] for made, conv in zip(thinned, convs, strict=True)]
        weights = [weight for conv in convs if (weight := array(conv.inputs[1])) is not None]
        biases = [bias for conv in convs if (bias := array(_bias(conv))) is not None]
        arrays = {"weight": np.concatenate(weights, axis=1), **({"bias": np.sum(biases, axis=0)} if biases else {})}
        values = [
            initializer(node.graph, self.names.fresh(f"{node.name}.{what}"), data) for what, data in arrays.items()
        ]
        both = ir.node("Concat", inputs, {"axis": 1}, name=self.names.fresh(f"{node.name}.both"))
        name = self.names.fresh(f"{node.name}.conv")
        return [both, ir.node("Conv", [both.outputs[0], *values], {"kernel_shape": [1, 1]}, name=name)]


def _bias(conv: ir.Node) -> ir.Value | None:
    return conv.inputs[2] if len(conv.inputs) > 2 else None


def _pointwise(node: ir.Node) -> bool:
    """Whether a node is a 1x1 convolution of images that can be taken apart, read by one node alone."""
    if node.op_type != "Conv" or node.domain != "" or not single_use(node.outputs[0]):
        return False
    weight, bias = array(node.inputs[1]), _bias(node)
    return (
        weight is not None and weight.shape[2:] == (1, 1)
        and (bias is None or array(bias) is not None)
        and node.attributes.get_int("group", 1) == 1
        and not any(node.attributes.get_ints("pads", [0] * 4))
        and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )  # fmt: skip
