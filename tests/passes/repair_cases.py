"""Small models with what TensorRT refuses, one for each repair; for the rules alone and for TensorRT's word on them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.passes.graphs import parse
from trtkit.model import Model


class Case(NamedTuple):
    """The refused operators, and the model in ONNX's text format; `steps` is how far apart results may be."""

    refused: tuple[str, ...]
    body: str
    inputs: str
    outputs: str
    opset: int = 20
    tolerance: float = 2e-6

    @property
    def model(self) -> Model:
        return parse(self.body, self.inputs, self.outputs, self.opset)


def _numbers(values: np.ndarray) -> str:
    return "{" + ",".join(map(str, values.ravel())) + "}"


_RNG = np.random.default_rng(0)
_W8 = _numbers(_RNG.integers(-127, 128, (4, 3, 3, 3)))
_SCALES = _numbers(_RNG.uniform(0.01, 0.02, 4).round(4))
_ASYMMETRIC = (
    f"float sx={{0.03}}, uint8 zx={{131}}, float sy={{0.3}}, uint8 zy={{120}}, int8[4,3,3,3] w={_W8}, "
    f"float[4] sw={_SCALES}, int8[4] zw={{0,1,0,-2}}, int32[4] b={{10,-200,3000,0}}"
)
_SYMMETRIC = (
    f"float sx={{0.03}}, int8 zx={{0}}, float sy={{0.3}}, int8 zy={{0}}, "
    f"int8[8,5] w={_numbers(_RNG.integers(-127, 128, (8, 5)))}, float[5] sw={{0.01,0.02,0.03,0.01,0.05}}, "
    "int8[5] zw={0,0,0,0,0}"
)
_W88 = _numbers(_RNG.integers(0, 256, (6, 5)))

CASES = {
    "unused": Case(
        ("LayerNormalization",),
        "y, m, i = LayerNormalization(x, w)",
        "float[2, 4] x, float[4] w",
        "float[2, 4] y",
    ),
    "sequence": Case(
        ("SequenceConstruct", "ConcatFromSequence", "SequenceAt"),
        "int64 one = {1} | n = Neg(x)  s = SequenceConstruct(x, n)  a = ConcatFromSequence<axis = 1>(s)  "
        "b = ConcatFromSequence<axis = 0, new_axis = 1>(s)  c = SequenceAt(s, one)  y = Relu(a)  z = Relu(b)  "
        "v = Relu(c)",
        "float[2, 4] x",
        "float[2, 8] y, float[2, 2, 4] z, float[2, 4] v",
    ),
    "compress": Case(
        ("Compress",),
        "bool[4] m = {1, 0, 1, 1} | a = Compress<axis = 1>(x, m)  b = Compress(x, m)  y = Neg(a)  z = Neg(b)",
        "float[2, 4] x",
        "float[2, 3] y, float[3] z",
    ),
    "bool": Case(
        ("ReduceMax", "ReduceMin"),
        "int64[1] axis = {1}, float zero = {0} | b = Greater(x, zero)  c = ReduceMax<keepdims = 0>(b, axis)  "
        "d = ReduceMin(b)  y = Cast<to = 1>(c)  z = Cast<to = 1>(d)",
        "float[2, 4] x",
        "float[2] y, float[1, 1] z",
    ),
    "qlinear conv": Case(
        ("QuantizeLinear", "QLinearConv", "MaxPool", "DequantizeLinear"),
        f"{_ASYMMETRIC} | q = QuantizeLinear(x, sx, zx)  r = QLinearConv<pads = [1, 1, 1, 1]>(q, sx, zx, w, sw, zw, "
        "sy, zy, b)  t = MaxPool<kernel_shape = [2, 2]>(r)  y = DequantizeLinear(t, sy, zy)",
        "float[2, 3, 6, 6] x",
        "float[2, 4, 5, 5] y",
    ),
    "qlinear matmul": Case(
        ("QLinearMatMul",),
        f"{_SYMMETRIC} | q = QuantizeLinear(x, sx, zx)  r = QLinearMatMul(q, sx, zx, w, sw, zw, sy, zy)  "
        "y = DequantizeLinear(r, sy, zy)",
        "float[2, 8] x",
        "float[2, 5] y",
    ),
    "dynamic": Case(
        ("DynamicQuantizeLinear", "MatMulInteger"),
        f"uint8[6,5] w={_W88}, uint8[5] zw={{128,127,3,0,255}} | q, s, z = DynamicQuantizeLinear(x)  "
        "p = MatMulInteger(q, w, z, zw)  f = Cast<to = 1>(p)  y = Mul(f, s)",
        "float[2, 6] x",
        "float[2, 5] y",
    ),
    "conv integer": Case(
        ("ConvInteger",),
        f"int8[4,3,3,3] w={_W8}, uint8 z={{3}} | a = ConvInteger<strides = [2, 2], pads = [1, 0, 0, 1]>(x, w, z)  "
        "y = Cast<to = 1>(a)",
        "uint8[2, 3, 6, 6] x",
        "float[2, 4, 3, 3] y",
        tolerance=0,
    ),
    "along an axis": Case(
        ("DequantizeLinear",),
        "float[3] s = {0.1, 0.2, 0.3}, uint8[3] z = {0, 100, 255} | y = DequantizeLinear<axis = 1>(x, s, z)",
        "uint8[2, 3, 4] x",
        "float[2, 3, 4] y",
    ),
    "dft": Case(
        ("DFT",),
        "int64 axis = {1}, int64 long = {12}, int64 short = {5} | a = DFT<onesided = 1>(x, , axis)  "
        "b = DFT(x, long, axis)  c = DFT<inverse = 1>(b, , axis)  d = DFT(b, short, axis)  y = Neg(a)  z = Neg(c)  "
        "v = Neg(d)",
        "float[2, 9, 1] x",
        "float[2, 5, 2] y, float[2, 12, 2] z, float[2, 5, 2] v",
        tolerance=2e-5,
    ),
    "dft of opset 17": Case(
        ("DFT",), "a = DFT<axis = 2>(x)  y = Neg(a)", "float[2, 3, 8, 2] x", "float[2, 3, 8, 2] y", 17, 2e-5
    ),
    "col2im": Case(
        ("Col2Im",),
        "int64[2] image = {6, 7}, int64[2] block = {2, 3} | a = Col2Im<pads = [0, 1, 0, 1], strides = [2, 1]>(x, "
        "image, block)  y = Neg(a)",
        "float[2, 12, 21] x",
        "float[2, 2, 6, 7] y",
    ),
    "fold with a remainder": Case(
        ("Col2Im",),
        "int64[2] image = {6, 8}, int64[2] block = {3, 2} | a = Col2Im<strides = [2, 3]>(x, image, block)  "
        "b = Col2Im<dilations = [2, 1]>(u, image, block)  y = Neg(a)  z = Neg(b)",
        "float[2, 6, 6] x, float[2, 6, 14] u",
        "float[2, 1, 6, 8] y, float[2, 1, 6, 8] z",
    ),
    "affine grid": Case(
        ("AffineGrid",),
        "int64[4] size = {2, 3, 5, 7}, int64[5] cube = {2, 1, 3, 2, 4} | a = AffineGrid<align_corners = 1>(t, size)  "
        "b = AffineGrid(u, cube)  y = Neg(a)  z = Neg(b)",
        "float[2, 2, 3] t, float[2, 3, 4] u",
        "float[2, 5, 7, 2] y, float[2, 3, 2, 4, 3] z",
    ),
    "antialias": Case(
        ("Resize",),
        "int64[2] size = {4, 5}, float[4] scale = {1, 1, 0.5, 2} | "
        'a = Resize<mode = "cubic", antialias = 1, axes = [2, 3]>(x, , , size)  '
        'b = Resize<mode = "linear", antialias = 1>(x, , scale)  y = Neg(a)  z = Neg(b)',
        "float[2, 3, 9, 8] x",
        "float[2, 3, 4, 5] y, float[2, 3, 4, 16] z",
    ),
    "aspect ratio": Case(
        ("Resize",),
        'int64[2] size = {4, 6} | a = Resize<mode = "linear", axes = [2, 3], '
        'keep_aspect_ratio_policy = "not_larger">(x, , , size)  y = Neg(a)',
        "float[2, 3, 8, 8] x",
        "float[2, 3, 4, 4] y",
    ),
    "mel": Case(
        ("MelWeightMatrix",),
        "int64 n = {8}, int64 d = {64}, int64 r = {16000}, float lo = {0}, float hi = {8000} | "
        "w = MelWeightMatrix(n, d, r, lo, hi)  y = MatMul(x, w)",
        "float[2, 33] x",
        "float[2, 8] y",
    ),
    "three results": Case(
        ("LayerNormalization",),
        "y, m, i = LayerNormalization(x, w)  z = Add(m, i)",
        "float[2, 4] x, float[4] w",
        "float[2, 4] y, float[2, 1] z",
    ),
    "center crop": Case(
        ("CenterCropPad",),
        "int64[2] size = {3, 6} | a = CenterCropPad(x, size)  y = Neg(a)",
        "float[5, 4] x",
        "float[3, 6] y",
    ),
}
# Attention came with opset 23; its softcap TensorRT does not have.
ATTENTION = Case(
    ("Attention",),
    "y = Attention<is_causal = 1, softcap = 2.0>(x, x, x)",
    "float[2, 2, 4, 8] x",
    "float[2, 2, 4, 8] y",
    23,
)
