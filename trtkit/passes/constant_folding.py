"""Compute at optimisation time what does not depend on the inputs."""

from __future__ import annotations

import logging
import math

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from trtkit.graph.shapes import has_body
from trtkit.passes.common import Rewrite, array, constant, initializer, remove, replace

log = logging.getLogger(__name__)

GROWTH_LIMIT = 1 << 20  # bytes a single folded node may add to the model
_RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout",
}
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}  # int8 weights shall stay int8
_DISPUTED = {"Resize", "DFT", "STFT", "Attention"}  # ONNX's reference and ONNX Runtime were seen to differ
_NEVER = _RANDOM | _QUANTIZED | _DISPUTED


class FoldConstants(Rewrite):
    """Replace a node by the tensor it always computes.

    1. A node all of whose inputs are constants is evaluated, with ONNX's reference implementation of the operator, and
       becomes an initialiser. One walk in topological order folds a whole constant sub-graph.
    2. `Shape` and `Size` of a tensor whose (picked) dimensions are numbers are constants even if the tensor is not.
    3. A `Constant` node becomes an initialiser.

    *Requires*: a deterministic operator without a body; no Q/DQ, which state a precision on purpose; none of the few
    operators on whose values implementations disagree; tensors whose size is known before anything is computed (ONNX's
    type inference on the real inputs) and adds at most `GROWTH_LIMIT` bytes to the model: an `Expand` of a zero to a
    gigabyte stays what it is. Weights that die with the node count in its favour: a transposed weight is always folded.
    *Ensures*: outputs of graphs are still computed by nodes.
    """

    title = "fold constants"

    def rewrite(self, node: ir.Node) -> str | None:
        if any(value.is_graph_output() for value in node.outputs) or not self._is_constant(node):
            return None
        results = self._evaluate(node)
        if results is None:
            return None
        assert node.graph is not None
        for old, data in zip(node.outputs, results, strict=True):
            name, old.name = old.name or f"{node.name}_constant", f"{old.name}_folded"
            replace(old, initializer(node.graph, name, data, old.dtype))
        remove(node)
        return "Constant made weights" if node.op_type == "Constant" else f"{node.op_type} folded"

    @staticmethod
    def _is_constant(node: ir.Node) -> bool:
        if node.op_type in _NEVER or has_body(node):
            return False
        if node.op_type in ("Shape", "Size") and _known_shape(node) is not None:
            return True
        inputs = [constant(value) for value in node.inputs if value is not None]
        return all(tensor is not None and tensor.dtype != ir.DataType.STRING for tensor in inputs)

    def _evaluate(self, node: ir.Node) -> list[np.ndarray] | None:
        """The values of all outputs, or None where they cannot be computed or are too large."""
        if node.op_type == "Constant":
            tensor = constant(node.outputs[0])
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                return None
            node.outputs[0].dtype = tensor.dtype
            return [tensor.numpy()]
        if (shape := _known_shape(node)) is not None:
            node.outputs[0].dtype = ir.DataType.INT64
            return [np.array(shape if node.op_type == "Shape" else np.prod(shape, dtype=np.int64), np.int64)]
        inputs = {v.name or "": data for v in node.inputs if v is not None and (data := array(v)) is not None}
        if not self._fits(node, inputs) or _divides_by_zero(node, inputs):
            return None
        return self._compute(node, inputs)

    def _compute(self, node: ir.Node, inputs: dict[str, np.ndarray]) -> list[np.ndarray] | None:
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(ir.to_proto(node), opsets={"": self.opset}).run(None, inputs)
        except Exception as error:  # noqa: BLE001  an operator may refuse in any way; then it stays in the graph
            log.debug("%s (%s) is constant but cannot be evaluated: %s", node.name, node.op_type, error)
            return None
        arrays = [np.asarray(result) for result in results]
        types = [value.dtype and value.dtype.numpy() for value in node.outputs]
        return arrays if [result.dtype for result in arrays] == types else None

    def _fits(self, node: ir.Node, inputs: dict[str, np.ndarray]) -> bool:
        """Whether the outputs' sizes are known and small; writes the types found into the outputs."""
        types = self._output_types(node, inputs)
        dying = {v for v in node.inputs if v and set(v.consumers()) == {node} and not v.is_graph_output()}
        growth = -sum(tensor.nbytes for value in dying if (tensor := constant(value)) is not None)
        for value in node.outputs:
            found = types.get(value.name or "")
            if found is None or not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
                return False
            if not all(d.HasField("dim_value") for d in found.tensor_type.shape.dim):
                return False
            dtype = value.dtype = ir.DataType(found.tensor_type.elem_type)
            growth += int(dtype.itemsize * math.prod(d.dim_value for d in found.tensor_type.shape.dim))
        return growth <= GROWTH_LIMIT

    def _output_types(self, node: ir.Node, inputs: dict[str, np.ndarray]) -> dict[str, onnx.TypeProto]:
        tensors = {name: onnx.numpy_helper.from_array(data, name) for name, data in inputs.items() if data.size <= 64}
        types = {
            name: onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(data.dtype), data.shape)
            for name, data in inputs.items()
        }
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
            return onnx.shape_inference.infer_node_outputs(
                schema, ir.to_proto(node), types, tensors, opset_imports=[onnx.helper.make_opsetid("", self.opset)]
            )
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError) as error:
            log.debug("%s (%s): %s", node.name, node.op_type, error)
            return {}


def _known_shape(node: ir.Node) -> list[int] | None:
    """What a Shape or Size node sees, if all numbers: `Shape(x, start=1)` of (batch, 3, 8, 8) is [3, 8, 8]."""
    if node.op_type not in ("Shape", "Size") or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    shape = list(node.inputs[0].shape)
    picked = shape[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(shape))]
    return [d for d in picked if isinstance(d, int)] if all(isinstance(d, int) for d in picked) else None


def _divides_by_zero(node: ir.Node, inputs: dict[str, np.ndarray]) -> bool:
    """Integers divided by zero have no value: the error is the runtime's to raise, not ours to hide."""
    if node.op_type not in ("Div", "Mod") or node.inputs[1] is None:
        return False
    divisor = inputs[node.inputs[1].name or ""]
    return divisor.dtype.kind in "iu" and not divisor.all()
