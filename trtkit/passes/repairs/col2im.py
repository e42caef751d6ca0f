"""Col2Im, which PyTorch's fold is exported as."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import array, dims
from trtkit.passes.repairs.common import Formula, Repair


class Col2ImByConvTranspose(Repair):
    """Overlapping blocks added up are a transposed convolution that puts each column where it belongs.

    *Requires* constant image and block shapes, FP32, the number of columns' rows known; not both strides and dilations,
    which TensorRT's transposed convolutions do not have. *Rewrite*: the columns (n, c * block, positions) as images of
    c * block channels, ConvTranspose in c groups with a kernel that is 1 in one place of the block for each. *Ensures*:
    equal up to the order of summation.
    """

    title = "Col2Im by ConvTranspose"
    ops = frozenset({"Col2Im"})

    def rewrite(self, node: ir.Node) -> str | None:
        x, shape = node.inputs[0], dims(node.inputs[0])
        image, block = array(node.inputs[1]), array(node.inputs[2])
        if image is None or block is None or shape is None or not isinstance(shape[1], int) or x is None:
            return None
        rank, size = len(image), math.prod(map(int, block))
        if x.dtype != ir.DataType.FLOAT or shape[1] % size:
            return None
        steps, gaps = (node.attributes.get_ints(name, [1] * rank) for name in ("strides", "dilations"))
        pads = node.attributes.get_ints("pads", [0] * 2 * rank)
        assert steps is not None and gaps is not None and pads is not None
        if max(steps) > 1 and max(gaps) > 1:
            return None
        reach = [gap * (int(edge) - 1) + 1 for gap, edge in zip(gaps, block, strict=True)]
        room = [int(image[i]) + pads[i] + pads[i + rank] - reach[i] for i in range(rank)]
        places = [space // step + 1 for space, step in zip(room, steps, strict=True)]
        kernel = np.eye(size, dtype=np.float32).reshape(size, 1, *map(int, block))
        formula, groups = Formula(self, node), shape[1] // size
        blocks = formula("Reshape", x, formula.ints("positions", 0, shape[1], *places))
        weight = formula.weight("places", np.tile(kernel, (groups, *[1] * (rank + 1))))
        options = {"strides": list(steps), "dilations": list(gaps), "pads": list(pads), "group": groups}
        rest = [space % step for space, step in zip(room, steps, strict=True)]
        summed = formula("ConvTranspose", blocks, weight, **options, **({"output_padding": rest} if any(rest) else {}))
        return "Col2Im made ConvTranspose" if formula.becomes(summed) else None
