"""Repairs: the same computation in operators that TensorRT takes. Each is one rule in one file.

| repair | rule |
|---|---|
| `unused_outputs.DropUnusedResults` | second and third outputs that nobody reads |
| `sequence_parts.SequenceParts` | what is taken from a sequence of known tensors |
| `compress.CompressByGather` | Compress by a known mask |
| `bool_reductions.BoolReductions` | ReduceMax and ReduceMin of truth values |
| `quantized_operators.QLinear` | QLinearMatMul and QLinearConv as Q/DQ, or in FP32 |
| `quantized_operators.IntegerProducts` | MatMulInteger and ConvInteger in FP32 |
| `asymmetric.AsymmetricCodes` | UINT8 and zero points in Q and DQ |
| `uint8_codes.FloatCodes` | UINT8 between nodes |
| `fourier.DftByMatMul` | DFT of a known length |
| `col2im.Col2ImByConvTranspose` | Col2Im (PyTorch's fold) |
| `affine_grid.AffineGridByMatMul` | AffineGrid of a known size |
| `resize.ResizeByMatMul` | Resize with antialias, or that keeps the aspect ratio |
| `written_out.WriteOut` | operators that ONNX defines by simpler ones |

`trtkit.engine.repair.repair` asks TensorRT what it refuses and runs them on that.
"""

from __future__ import annotations

from trtkit.passes.repairs.affine_grid import AffineGridByMatMul
from trtkit.passes.repairs.asymmetric import AsymmetricCodes
from trtkit.passes.repairs.bool_reductions import BoolReductions
from trtkit.passes.repairs.col2im import Col2ImByConvTranspose
from trtkit.passes.repairs.common import Repair
from trtkit.passes.repairs.compress import CompressByGather
from trtkit.passes.repairs.fourier import DftByMatMul
from trtkit.passes.repairs.quantized_operators import IntegerProducts, QLinear
from trtkit.passes.repairs.resize import ResizeByMatMul
from trtkit.passes.repairs.sequence_parts import SequenceParts
from trtkit.passes.repairs.uint8_codes import FloatCodes
from trtkit.passes.repairs.unused_outputs import DropUnusedResults
from trtkit.passes.repairs.written_out import WriteOut

__all__ = ["REPAIRS", "Repair"]

# The particular before the general: what no rule of its own takes is written out by ONNX's definition.
REPAIRS: tuple[type[Repair], ...] = (
    DropUnusedResults, SequenceParts, CompressByGather, BoolReductions, QLinear, IntegerProducts, AsymmetricCodes,
    FloatCodes, DftByMatMul, Col2ImByConvTranspose, AffineGridByMatMul, ResizeByMatMul, WriteOut,
)  # fmt: skip
