"""AffineGrid, the first half of a spatial transformer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import array
from trtkit.passes.repairs.common import Formula, Repair


class AffineGridByMatMul(Repair):
    """`grid = [x, y, 1] · thetaᵀ` for every place of the image, in two dimensions or three.

    *Requires* a constant size, theta in FP32. *Rewrite*: the places are a constant matrix (h * w, 3), times theta
    transposed, reshaped to (n, h, w, 2). *Ensures*: equal up to rounding.
    """

    title = "AffineGrid as a matrix product"
    ops = frozenset({"AffineGrid"})

    def rewrite(self, node: ir.Node) -> str | None:
        theta, size = node.inputs[0], array(node.inputs[1])
        if size is None or theta is None or theta.dtype != ir.DataType.FLOAT:
            return None
        edges, aligned = [int(d) for d in size[2:]], bool(node.attributes.get_int("align_corners", 0))
        formula = Formula(self, node)
        turned = formula("Transpose", theta, perm=[0, 2, 1])
        grid = formula("MatMul", formula.weight("places", _places(edges, aligned)), turned)
        shaped = formula("Reshape", grid, formula.ints("shape", int(size[0]), *edges, len(edges)))
        return "AffineGrid made MatMul" if formula.becomes(shaped) else None


def _places(edges: list[int], aligned: bool) -> np.ndarray:
    """Coordinates of all pixels, -1 to 1, the last axis first, and a 1: (pixels, len(edges) + 1) float32."""
    lines = []
    for edge in edges:
        steps = np.arange(edge, dtype=np.float64)
        lines.append(2 * steps / max(edge - 1, 1) - 1 if aligned else (2 * steps + 1) / edge - 1)
    axes = np.meshgrid(*lines, indexing="ij")
    return np.stack([*(axis.ravel() for axis in reversed(axes)), np.ones(axes[0].size)], axis=1).astype(np.float32)
