"""Products of square matrices in ONNX Runtime, in float32 and in two kinds of 8-bit integers, to be timed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from trtkit.reference import Reference

KINDS = {
    "float32": ("float", "float", "float", "MatMul"),
    "uint8 × int8": ("uint8", "int8", "int32", "MatMulInteger"),
    "int8 × int8": ("int8", "int8", "int32", "MatMulInteger"),
}


def product(kind: str, n: int) -> Callable[[], np.ndarray]:
    """A function that multiplies two (n, n) matrices on one thread; the second one is a constant, as a weight is.

    Args:
        kind: one of `KINDS`. The codes in the matrices are the same in all of them, 0 to 126.

    >>> results = [product(kind, 4)() for kind in KINDS]
    >>> results[0].dtype, results[1].dtype, bool((results[0] == results[1]).all() and (results[1] == results[2]).all())
    (dtype('float32'), dtype('int32'), True)
    """
    first, second, result, operator = KINDS[kind]
    codes = np.random.default_rng(0).integers(0, 127, (2, n, n))
    x, w = (array.astype(name.replace("float", "float32")) for array, name in zip(codes, (first, second), strict=True))
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]> product ({first}[n, {n}] x) => ({result}[n, {n}] y)
        {{ y = {operator}(x, w) }}"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    reference = Reference(proto.SerializeToString(), threads=1)
    return lambda: reference.run({"x": x})["y"]
