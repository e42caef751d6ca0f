"""Cut long sums into parts that a GPU adds up side by side: at batch 1 there are too few outputs to keep it busy."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, initializer
from trtkit.passes.stem import put_instead

PARTS = 4
# Where it pays was measured on an H100 (ResNet-50, batch 1, FP16): 3x3 convolutions of 512 channels on 7x7 pixels (sums
# of 4608 products) and of 256 on 14x14 (2304) became faster, and so did 1x1 convolutions of 1024 and 2048 channels
# there. So did the two of 512 and 256 channels that `summed_convs` makes one (768). Those on 28x28 pixels, and 8 parts
# instead of 4, made it slower; 2 parts are slower than 4.
_FEW_PIXELS = 256
_LONG_SUM = 768


class SplitReduction(Rewrite):
    """A convolution over C channels is the sum of `PARTS` convolutions over C / PARTS channels each.

    A GPU gives every thread block a tile of the output and lets it walk along the whole sum. On 7x7 pixels there are a
    few dozen tiles for over a hundred multiprocessors, and each walks 4608 products. Matrix-product libraries know this
    and call the remedy split-K; where a convolution's kernel does not do it, a grouped convolution writes it down:

        Conv(x, W) = sum over g of Conv(x[C_g], W[:, C_g])

    1. *Requires* Conv of group 1, constant weights and bias, output of known height and width with at most 256 pixels,
       sums of at least 768 products, channels that divide by the number of parts; opset 13 or later. The rule is for
       batch 1: with larger batches there is enough to do without it.
    2. *Rewrite*: a Conv of `PARTS` groups, each from its channels to all outputs; Reshape; ReduceSum; Add of the bias.
    3. *Ensures*: equal up to the order of summation. The work is the same, the parts are written and read once more.
    """

    title = "split reduction"
    ops = frozenset({"Conv"})

    def rewrite(self, node: ir.Node) -> str | None:
        weight, out = array(node.inputs[1]), dims(node.outputs[0])
        bias = array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if weight is None or out is None or self.opset < 13 or node.attributes.get_int("group", 1) != 1:
            return None
        if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
            return None
        pixels = [size for size in out[2:] if isinstance(size, int)]
        if len(pixels) != len(out) - 2 or not 0 < math.prod(pixels) <= _FEW_PIXELS:
            return None
        if math.prod(weight.shape[1:]) < _LONG_SUM or weight.shape[1] % PARTS:
            return None
        chain = self._chain(node, weight, bias, pixels)
        return f"Conv into {PARTS} parts" if put_instead(node, chain, self) else None

    def _chain(self, node: ir.Node, weight: np.ndarray, bias: np.ndarray | None, pixels: list[int]) -> list[ir.Node]:
        def name(what: str) -> str:
            return self.names.fresh(f"{node.name}.{what}")

        def constant(what: str, data: np.ndarray) -> ir.Value:
            assert node.graph is not None
            return initializer(node.graph, name(what), data)

        grouped = np.concatenate(np.split(weight, PARTS, axis=1))  # (PARTS * M, C / PARTS, ...)
        attributes = {**node.attributes, "group": ir.AttrInt64("group", PARTS)}
        conv = ir.Node(
            "", "Conv", [node.inputs[0], constant("parts", grouped)], attributes.values(), name=name("split")
        )
        shape = constant("shape", np.array([0, PARTS, weight.shape[0], *pixels], np.int64))
        apart = ir.node("Reshape", [conv.outputs[0], shape], name=name("apart"))
        axis = constant("axis", np.array([1], np.int64))
        chain = [conv, apart, ir.node("ReduceSum", [apart.outputs[0], axis], {"keepdims": 0}, name=name("sum"))]
        if bias is not None:
            shift = constant("shift", bias.reshape(-1, *[1] * len(pixels)))
            chain.append(ir.node("Add", [chain[-1].outputs[0], shift], name=name("bias")))
        return chain
