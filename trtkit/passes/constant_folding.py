"""Compute at optimisation time what does not depend on the inputs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op

from trtkit.graph.shapes import has_body
from trtkit.passes.common import Learner, array, constant, drop_unused, initializer, remove, replace, type_of
from trtkit.passes.inference import bare_node, curious_readers, output_types

log = logging.getLogger(__name__)

GROWTH_LIMIT = 1 << 20  # bytes a single folded node may add to the model
RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
}
QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}  # int8 weights shall stay int8
_DISPUTED = {"Resize", "DFT", "STFT", "Attention"}  # ONNX's reference and ONNX Runtime were seen to differ
# Operators whose outputs have no more elements than their inputs' numbers of elements multiplied: no value is a size.
_OF_FEW_FEW = {
    "Abs", "Add", "And", "ArgMax", "ArgMin", "Cast", "Ceil", "Clip", "Concat", "Cos", "CumSum", "Div", "Equal", "Erf",
    "Exp", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less",
    "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Round", "ScatterElements", "ScatterND",
    "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Trilu",
    "Unsqueeze", "Where", "Xor",
}  # fmt: skip
# Operators that only arrange what they are given: their output is of the first input's type.
_ARRANGE = frozenset({
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Reshape", "Slice", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
# Of these: no more elements than their first input, of which NumPy makes a view or at most one copy.
_NO_MORE = frozenset({"Flatten", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_FEW = 4096  # elements
_NEVER = RANDOM | QUANTIZED | _DISPUTED


class FoldConstants(Learner):
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
    early = 2

    def rewrite(self, node: ir.Node) -> str | None:
        foldable = self._is_constant(node) and not any(value.is_graph_output() for value in node.outputs)
        results = self._evaluate(node) if foldable else None
        if results is None:
            return None
        assert node.graph is not None
        read = [value for value in node.inputs if value is not None]
        for old, data in zip(node.outputs, results, strict=True):
            name, old.name = old.name or f"{node.name}_constant", f"{old.name}_folded"
            weight = initializer(node.graph, name, data, old.dtype)
            replace(old, weight)
            self.tell(curious_readers(weight))
        remove(node)
        for value in read:
            drop_unused(value)
        return "Constant made weights" if node.op_type == "Constant" else f"{node.op_type} folded"

    @staticmethod
    def _is_constant(node: ir.Node) -> bool:
        if node.op_type in _NEVER:
            return False
        if node.op_type in ("Shape", "Size") and _known_shape(node) is not None:
            return True
        for value in node.inputs:
            tensor = constant(value)
            if value is not None and (tensor is None or tensor.dtype == ir.DataType.STRING):
                return False
        return not has_body(node)

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
        arguments: list[Any] = [None if value is None else inputs[value.name or ""] for value in node.inputs]
        try:
            if node.op_type in _OWN and self.opset >= _OWN_OPSET and not node.attributes.get_int("batch_dims", 0):
                results = [_OWN[node.op_type](node, *arguments)]
            else:
                operator = _operator(node.op_type, self.opset)
                with np.errstate(all="ignore"):
                    results = operator(bare_node(node), {**_RUN, "opsets": {"": self.opset}}).run(*arguments)
        except Exception as error:  # noqa: BLE001  an operator may refuse in any way; then it stays in the graph
            log.debug("%s (%s) is constant but cannot be evaluated: %s", node.name, node.op_type, error)
            return None
        arrays = [np.asarray(result) for result in results]
        types = [value.dtype and value.dtype.numpy() for value in node.outputs]
        same = [result.dtype for result in arrays] == types
        return arrays if same and self._room(node, [result.nbytes for result in arrays]) else None

    def _fits(self, node: ir.Node, inputs: dict[str, np.ndarray]) -> bool:
        """Whether the outputs' sizes are known and small; writes the types found into the outputs.

        What is stated in the graph is not believed: it could be wrong, on purpose even, and the result enormous.
        """
        kind = type_of(node.inputs[0]) if node.op_type in _ARRANGE else _fill_type(node)
        if kind is not None and node.outputs[0].dtype is None:
            node.outputs[0].dtype = kind
        given = [inputs[value.name or ""] for value in node.inputs if value is not None]  # twice where it is read twice
        if self._small_anyway(node, given) or _expands_little(node, inputs):
            return True
        bounded = node.op_type in _NO_MORE or (
            node.op_type == "Concat" and self._room(node, [data.nbytes for data in given])
        )
        if bounded and node.outputs[0].dtype == kind is not None:
            return True  # without inference, which takes longer than a Slice of a weight; `_compute` asks for the size
        types = output_types(node, self.opset)
        return all(_take_type(value, types.get(value.name or "")) for value in node.outputs) and self._room(
            node, [_nbytes(value) for value in node.outputs]
        )

    @staticmethod
    def _small_anyway(node: ir.Node, inputs: list[np.ndarray]) -> bool:
        """A few numbers cannot make many, unless the operator takes some for sizes."""
        typed = all(type(value.type) is ir.TensorType for value in node.outputs)
        sizes = [max(data.size, 1) for data in inputs]
        return typed and node.op_type in _OF_FEW_FEW and sum(sizes) <= _FEW and math.prod(sizes) <= _FEW**2

    @staticmethod
    def _room(node: ir.Node, sizes: list[int]) -> bool:
        """Whether results of so many bytes do not grow the model too much; weights that die with the node count."""
        growth = sum(sizes)
        if growth <= GROWTH_LIMIT:
            return True
        dying = {v for v in node.inputs if v and not v.is_graph_output() and {n for n, _ in v.uses()} == {node}}
        return growth - sum(tensor.nbytes for v in dying if (tensor := constant(v)) is not None) <= GROWTH_LIMIT


_RUN = {"log": lambda *_: None, "verbose": 0, "new_ops": None, "evaluator_cls": ReferenceEvaluator}


@cache
def _operator(name: str, opset: int) -> Callable[..., OpRun]:
    """ONNX's reference implementation of an operator as of an opset."""
    operator: Callable[..., OpRun] = load_op("", name, opset, evaluator_cls=ReferenceEvaluator)
    return operator


def _expanded(_: ir.Node, data: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return data * np.ones(sizes.tolist(), data.dtype)  # as ONNX's reference; np.broadcast_to takes four times as long


def _fill_type(node: ir.Node) -> ir.DataType | None:
    """The type of the number that a ConstantOfShape repeats; None for another operator, or if it states no such."""
    if node.op_type != "ConstantOfShape":
        return None
    stated = node.attributes.get("value")
    return ir.DataType.FLOAT if stated is None else getattr(stated.value, "dtype", None)


def _filled(node: ir.Node, sizes: np.ndarray) -> np.ndarray:
    stated = node.attributes.get("value")
    number = np.float32(0) if stated is None else stated.value.numpy().reshape(())[()]  # an error if it is not one
    return np.full(tuple(sizes.tolist()), number)


def _gathered_elements(node: ir.Node, data: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Element i of the result is data's element at the same place, but for one axis: there it is at `indices[i]`."""
    axis = node.attributes.get_int("axis", 0)
    others = [slice(size) for size in indices.shape]  # indices may leave out what stands at the end of other axes
    others[axis] = slice(None)
    return np.take_along_axis(data[tuple(others)], indices, axis)


def _gathered_slices(_: ir.Node, data: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The last axis of `indices` says where in data's first axes a number, or a slice, is taken from."""
    return data[tuple(np.moveaxis(indices, -1, 0))]


def _sliced(
    _: ir.Node, data: np.ndarray, starts: np.ndarray, ends: np.ndarray, *more: np.ndarray | None
) -> np.ndarray:
    """A Slice, which counts and clips as Python does; `more` are axes and steps, both may be left out."""
    axes, steps = (*more, None, None)[:2]
    picked = [slice(None)] * data.ndim
    counts = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(counts, starts.tolist(), ends.tolist(), strides, strict=True):
        picked[axis] = slice(start, end, step)
    return data[tuple(picked)]


def _joined(node: ir.Node, *parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, node.attributes.get_int("axis"))


def _transposed(node: ir.Node, data: np.ndarray) -> np.ndarray:
    return np.transpose(data, node.attributes.get_ints("perm"))


def _unsqueezed(_: ir.Node, data: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return np.expand_dims(data, tuple(axes.reshape(-1).tolist()))


# Concat, Slice, Transpose, Unsqueeze: the most frequent; the reference does the same behind much that is slow.
# Expand: two for each batch norm of some exporters, and NumPy is quicker than ONNX's reference, which does the same.
# ConstantOfShape: the same; TorchScript writes 155 of them for Swin.
# GatherElements: the reference (onnx 1.23) raises where one axis has length 1, as transformers write it for BERT.
# GatherND: the reference takes a millisecond for 300 numbers, of which Swin's masks pick thousands.
_OWN: dict[str, Callable[..., np.ndarray]] = {
    "Concat": _joined, "ConstantOfShape": _filled, "Expand": _expanded, "GatherElements": _gathered_elements,
    "GatherND": _gathered_slices, "Slice": _sliced, "Transpose": _transposed, "Unsqueeze": _unsqueezed,
}  # fmt: skip
_OWN_OPSET = 13  # as of which these have the inputs that they have now


_SIZES = {"ConstantOfShape": 0, "Expand": 1}  # where these are told the shape of what they make


def _expands_little(node: ir.Node, inputs: dict[str, np.ndarray]) -> bool:
    """Whether an Expand, of which exporters write two for each batch norm, or a ConstantOfShape makes few numbers."""
    small = sum(map(np.size, inputs.values())) <= _FEW
    if node.op_type not in _SIZES or not small or type(node.outputs[0].type) is not ir.TensorType:
        return False
    given = node.inputs[_SIZES[node.op_type]]
    target = inputs[given.name or ""] if given is not None else np.zeros(0)
    sizes = [int(size) for size in target.reshape(-1)[:16]]
    return len(sizes) == target.size and min(sizes, default=0) >= 0 and math.prod(sizes) <= _FEW


def _nbytes(value: ir.Value) -> int:
    assert value.dtype is not None and value.shape is not None
    return math.ceil(value.dtype.itemsize * math.prod(value.shape.numpy()))


def _take_type(value: ir.Value, found: onnx.TypeProto | None) -> bool:
    """Write an inferred type into a value; False where it is no tensor of a known size."""
    if found is None or not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
        return False
    if not all(d.HasField("dim_value") for d in found.tensor_type.shape.dim):
        return False
    value.dtype = ir.DataType(found.tensor_type.elem_type)
    value.shape = ir.Shape([d.dim_value for d in found.tensor_type.shape.dim])
    return True


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
