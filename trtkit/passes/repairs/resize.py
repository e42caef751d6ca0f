"""Resize in the modes that TensorRT does not have."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from trtkit.passes.common import array, dims
from trtkit.passes.repairs.common import Formula, Repair
from trtkit.reference import Reference

_LARGEST = 4096  # rows or columns of an image; a matrix of more is slower than the resizing


class ResizeByMatMul(Repair):
    """Resizing is linear in the image and goes axis by axis: `rows · image · columns`.

    With antialias, with `keep_aspect_ratio_policy`, and whatever else ONNX Runtime computes. The two matrices are what
    the same operator makes of the identity, so nothing about the mode has to be known here.

    *Requires* FP32 of shape (n, c, h, w), h and w known, constant scales or sizes that leave n and c alone; not
    tf_crop_and_resize, which may put constants outside the image. *Rewrite*: two MatMuls with constant matrices; one
    where only one axis changes. *Ensures*: equal up to the order of summation.
    """

    title = "Resize as matrix products"
    ops = frozenset({"Resize"})

    def rewrite(self, node: ir.Node) -> str | None:
        x, shape = node.inputs[0], dims(node.inputs[0])
        if x is None or x.dtype != ir.DataType.FLOAT or shape is None or len(shape) != 4:
            return None
        mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
        targets = self._targets(node, shape)
        if targets is None or mode == "tf_crop_and_resize":
            return None
        matrices = [self._matrix(node, *target) for target in targets]
        formula, result = Formula(self, node), x
        if matrices[1] is not None:
            result = formula("MatMul", result, formula.weight("columns", matrices[1]))
        if matrices[0] is not None:
            result = formula("MatMul", formula.weight("rows", np.ascontiguousarray(matrices[0].T)), result)
        if result is x:
            return None
        return "Resize made MatMul" if formula.becomes(result) else None

    def _targets(self, node: ir.Node, shape: tuple) -> list[tuple[int, int, float | None]] | None:
        """For height and width: size before, size after, and the scale where one is stated."""
        scales, sizes = (array(value) for value in ([*node.inputs, None, None, None])[2:4])
        axes = list(node.attributes.get_ints("axes", range(4)) or range(4))
        stated = scales if scales is not None and scales.size else sizes
        if stated is None or len(stated) != len(axes) or not all(isinstance(d, int) for d in shape[2:]):
            return None
        wanted = {axis % 4: number for axis, number in zip(axes, stated.tolist(), strict=True)}
        if stated is scales:
            if any(wanted.get(axis, 1.0) != 1.0 for axis in (0, 1)):
                return None
            return [(shape[a], int(shape[a] * wanted.get(a, 1.0)), wanted.get(a, 1.0)) for a in (2, 3)]
        if any(axis in wanted and wanted[axis] != shape[axis] for axis in (0, 1)):
            return None
        policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
        if policy == "stretch":
            return [(shape[a], int(wanted.get(a, shape[a])), None) for a in (2, 3)]
        if set(wanted) != {2, 3}:
            return None
        ratios = [wanted[a] / shape[a] for a in (2, 3)]
        scale = min(ratios) if policy == "not_larger" else max(ratios)
        targets = [(shape[a], int(scale * shape[a] + 0.5), scale) for a in (2, 3)]
        # sizes are rounded here, and cut off where a scale is stated: only where that is the same can it be stated
        return targets if all(int(before * scale) == after for before, after, _ in targets) else None

    def _matrix(self, node: ir.Node, before: int, after: int, scale: float | None) -> np.ndarray | None:
        """What resizing does to rows of `before` numbers, (before, after) float32; None where that is nothing."""
        if before == after and scale in (None, 1.0):
            return None
        if max(before, after) > _LARGEST:
            return None
        dropped = ("axes", "keep_aspect_ratio_policy")
        attributes = {name: a.value for name, a in node.attributes.items() if name not in dropped}
        last = ["", "scales"] if scale is not None else ["", "", "sizes"]
        factors = np.array([1, 1, 1, scale or 0], np.float32)
        stated = factors if scale is not None else np.array([1, 1, before, after], np.int64)
        graph = helper.make_graph(
            [helper.make_node("Resize", ["x", *last], ["y"], **attributes)],
            "resize",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 1, before, before))],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(stated, last[-1])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        image = np.eye(before, dtype=np.float32)[None, None]
        return Reference(model.SerializeToString()).run({"x": image})["y"][0, 0]
