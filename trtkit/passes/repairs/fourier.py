"""The discrete Fourier transform as matrix products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import array, dims
from trtkit.passes.repairs.common import Formula, Repair


class DftByMatMul(Repair):
    """`X[k] = sum over n of x[n] exp(-2 pi i n k / N)`: one product with the cosines, one with the sines.

    *Requires* FP32; the length of the axis known, the axis and `dft_length` (if any) constant. *Rewrite*: the axis
    moved to the end, MatMul with two constant matrices (for complex input four products), and moved back. A shorter
    `dft_length` leaves rows out. *Ensures*: equal up to rounding; N² multiplications where an FFT has N log N. The
    inverse one-sided transform is left alone.
    """

    title = "DFT as matrix products"
    ops = frozenset({"DFT"})

    def rewrite(self, node: ir.Node) -> str | None:
        x, shape = node.inputs[0], dims(node.inputs[0])
        plan = self._plan(node, shape)
        if x is None or x.dtype != ir.DataType.FLOAT or shape is None or plan is None:
            return None
        axis, given, length, inverse, onesided = plan
        matrix = _matrix(given, length, inverse, length // 2 + 1 if onesided else length)
        formula, rank = Formula(self, node), len(shape)
        order = [*(place for place in range(rank - 1) if place != axis), axis, rank - 1]
        moved = formula("Transpose", x, perm=order)
        cosines, sines = formula.weight("cosines", matrix.real), formula.weight("sines", matrix.imag)
        last = formula.ints("last", -1)
        if shape[-1] == 1:
            signal = formula("Squeeze", moved, last)
            real, imaginary = formula("MatMul", signal, cosines), formula("MatMul", signal, sines)
        else:
            re, im = (formula("Gather", moved, formula.weight("part", np.array(part)), axis=-1) for part in (0, 1))
            real = formula("Sub", formula("MatMul", re, cosines), formula("MatMul", im, sines))
            imaginary = formula("Add", formula("MatMul", re, sines), formula("MatMul", im, cosines))
        both = formula("Concat", formula("Unsqueeze", real, last), formula("Unsqueeze", imaginary, last), axis=-1)
        back = [int(place) for place in np.argsort(order)]
        return "DFT made MatMul" if formula.becomes(formula("Transpose", both, perm=back)) else None

    def _plan(self, node: ir.Node, shape: tuple | None) -> tuple[int, int, int, bool, bool] | None:
        """Axis, length of the signal and of the transform, inverse, one-sided; None where the rule does not hold."""
        if shape is None or self.opset < 17 or shape[-1] not in (1, 2):
            return None
        inverse, onesided = (bool(node.attributes.get_int(name, 0)) for name in ("inverse", "onesided"))
        if onesided and (inverse or shape[-1] == 2):
            return None
        inputs = [*node.inputs, None, None]
        axis: int | None = node.attributes.get_int("axis", 1)
        if self.opset >= 20:
            stated = array(inputs[2])
            axis = -2 if inputs[2] is None else None if stated is None else int(stated)
        length = array(inputs[1])
        if axis is None or (inputs[1] is not None and length is None):
            return None
        axis %= len(shape)
        given = shape[axis]
        if not isinstance(given, int) or axis == len(shape) - 1:
            return None
        return axis, given, given if length is None else int(length), inverse, onesided


def _matrix(given: int, length: int, inverse: bool, outputs: int) -> np.ndarray:
    """The factors exp(∓2 pi i n k / length), (given, outputs) complex64, computed in double precision."""
    turns = np.outer(np.arange(given), np.arange(outputs)) % length / length
    matrix = np.exp((2j if inverse else -2j) * np.pi * turns) / (length if inverse else 1)
    matrix[length:] = 0  # what is longer than the transform is left out
    return matrix.astype(np.complex64)
