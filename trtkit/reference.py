"""ONNX Runtime on the CPU: the reference that every pass, precision and engine is held against."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trtkit.errors import ModelError

if TYPE_CHECKING:
    import onnxruntime

# ONNX Runtime names its element types; NumPy has no bfloat16 of its own and takes it from ml_dtypes.
_BFLOAT16 = "tensor(bfloat16)"
# Leaves a Relu out where a QuantizeLinear with zero point 0 follows. That is right for UINT8 alone, but it takes FP8's
# zero point for UINT8's, and negative values pass (seen in ONNX Runtime 1.32).
_WRONG_FOR_FP8 = "ReluQuantRewrite"


class Reference:
    """One ONNX graph, ready to run on the CPU.

    Args:
        model: the serialised ONNX model, or the path of one (needed above protobuf's 2 GB limit).
        exact: keep ONNX Runtime from replacing Q/DQ pairs by integer kernels, whose rounding differs in the last bit.
        threads: CPU threads for one operator; 0 takes all cores.
        keep_pairs: leave Q/DQ where they stand, as `exact` does, too. FP8 needs it: no kernels could take their place,
            and older versions of ONNX Runtime (seen in 1.30) move Q past operators that do not take FP8.

    Raises:
        ModelError: ONNX Runtime cannot run the graph (an operator or type without a CPU kernel), with its own words.
    """

    def __init__(self, model: bytes | str, *, exact: bool = False, threads: int = 0, keep_pairs: bool = False) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised below; a second copy on stderr helps nobody
        options.intra_op_num_threads = threads
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_BASIC if exact or keep_pairs else level.ORT_ENABLE_ALL
        # weights in blocks: by itself ONNX Runtime would round the activations to 8 bits as well (its level 4)
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        options.enable_cpu_mem_arena = not exact  # the arena is quicker, but keeps the largest activations for ever
        if exact or keep_pairs:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self.session = ort.InferenceSession(
                model, options, providers=["CPUExecutionProvider"], disabled_optimizers=[_WRONG_FOR_FP8]
            )
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise ModelError(f"ONNX Runtime cannot load this graph on the CPU: {error}") from error
        self.output_names = [output.name for output in self.session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Compute the named outputs (all by default) from a complete, checked set of inputs."""
        names = list(outputs or self.output_names)
        try:
            if any(array.dtype.name == "bfloat16" for array in inputs.values()) or self._has_bfloat16(names):
                return self._run_bfloat16(inputs, names)
            return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise ModelError(f"ONNX Runtime failed while running this graph: {error}") from error

    def _has_bfloat16(self, names: Sequence[str]) -> bool:
        return any(o.type == _BFLOAT16 and o.name in names for o in self.session.get_outputs())

    def _run_bfloat16(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
        """The same through OrtValues, the only door through which ONNX Runtime takes and gives bfloat16."""
        feed = {name: _to_ort(array) for name, array in inputs.items()}
        results = self.session.run_with_ort_values(names, feed)
        return {name: _from_ort(value) for name, value in zip(names, results, strict=True)}


def _to_ort(array: np.ndarray) -> onnxruntime.OrtValue:
    import onnxruntime as ort
    from onnx import TensorProto

    if array.dtype.name != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)


def _from_ort(value: onnxruntime.OrtValue) -> np.ndarray:
    """The value as an array; bfloat16 is read from its address, since OrtValue.numpy() refuses it."""
    if value.data_type() != _BFLOAT16:
        return np.asarray(value.numpy())
    import ml_dtypes

    shape = value.shape()
    bits = (ctypes.c_uint16 * int(np.prod(shape))).from_address(value.data_ptr())
    return np.ctypeslib.as_array(bits).reshape(shape).view(ml_dtypes.bfloat16).copy()
