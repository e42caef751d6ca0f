"""Concrete shapes: what every tensor of a graph measures once the changeable dimensions have sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import onnx
import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.model import WITH_BODY, Model, bodies, has_body

# Nodes that only look at their first input in another shape: no runtime has to copy anything for them.
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})

_SMALL = 1000  # bytes; smaller constants may be shapes, whose values the inference needs to see


class Tensor(NamedTuple):
    """A tensor's shape and the bytes it takes, without any padding."""

    shape: tuple[int, ...]
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def concrete_tensors(model: Model, batch: int = 1, dims: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    """Shape and size of every tensor of the main graph by name, weights included; unknown ones are absent.

    Args:
        batch: the size of every changeable first dimension, and of every one called "batch".
        dims: sizes of changeable dimensions by name, e.g. {"sequence": 128}.

    Raises:
        ModelError: a changeable dimension has no size or one below 1, or the graph does not work with these sizes.

    >>> import trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x) => (float[n, 4] y) {a = Neg(x)  y = Relu(a)}'''))
    >>> concrete_tensors(model, batch=3)["a"]
    Tensor(shape=(3, 4), size_bytes=48)
    """
    light = model.ir.clone()
    sizes = _fix_inputs(model, light.graph, batch, dims or {})
    for value in (*_computed(light.graph), *light.graph.outputs):
        if value.shape is not None:  # a name that means nothing among the inputs is for inference to find out
            value.shape = ir.Shape([d if isinstance(d, int) else sizes.get(d.value or "") for d in value.shape])
    drop_large_weights(light.graph)
    try:
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(light), strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"The shapes in {model.name!r} do not fit together for batch {batch} and dims {dict(dims or {})}: {error}"
        ) from error
    graph = ir.from_proto(proto).graph
    found = {v.name: _measure(v) for v in (*graph.inputs, *graph.initializers.values(), *_computed(graph))}
    return {name: tensor for name, tensor in found.items() if name and tensor is not None}


def operands(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs that a node was given, each once: optional ones may be left out, and x * x reads x once."""
    yield from dict.fromkeys(value for value in node.inputs if value is not None)


def results(node: ir.Node) -> Iterator[ir.Value]:
    """The outputs that a node is asked for; one left out has no name."""
    yield from (value for value in node.outputs if value.name)


def graphs_of(graph: ir.Graph) -> list[ir.Graph]:
    """A graph and all bodies inside it, an outer one before those in it.

    It asks for an operator's name first, which is several times quicker than a look at all attributes of all nodes.
    """
    found, position = [graph], 0
    while position < len(found):
        for node in found[position]:
            if (node.op_type in WITH_BODY or node.domain) and has_body(node):
                found += bodies(node)
        position += 1
    return found


def is_view(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in VIEWS


def _computed(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from results(node)


def _fix_inputs(model: Model, graph: ir.Graph, batch: int, dims: Mapping[str, int]) -> dict[str, int]:
    """Give the inputs of `graph` their sizes, by the rule of `Model.random_inputs`; returns the sizes by name."""
    given = {"batch": batch, **dims}
    if wrong := {name: size for name, size in given.items() if size < 1}:
        raise ModelError(f"Sizes of dimensions of {model.name!r} must be 1 or more, and these are not: {wrong}.")
    values = {value.name: value for value in graph.inputs}
    sizes = dict(given)
    for info in model.inputs:
        first = {info.shape[0]: batch} if info.shape else {}
        shape = []
        for dim in info.shape:
            size = dim if isinstance(dim, int) else given.get(dim, first.get(dim))
            if size is None:
                raise ModelError(
                    f"Input {info} of {model.name!r} has a changeable dimension {dim!r}: say how long it shall be, "
                    f"e.g. dims={{{dim!r}: 128}}."
                )
            shape.append(size)
            if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                raise ModelError(f"{dim!r} is both {sizes[dim]} and {size} in the inputs of {model.name!r}.")
        values[info.name].shape = ir.Shape(shape)
    return sizes


def drop_large_weights(graph: ir.Graph) -> None:
    """Make inputs of large weights: inference takes one protobuf message, and that must stay below 2 GB."""
    for name, value in tuple(graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > _SMALL:
            value.shape, value.dtype = ir.Shape(value.const_value.shape.numpy()), value.const_value.dtype
            del graph.initializers[name]
            if not value.is_graph_input():
                graph.inputs.append(value)
            value.const_value = None


def _measure(value: ir.Value) -> Tensor | None:
    shape, dtype = value.shape, value.dtype
    if value.const_value is not None:
        shape, dtype = ir.Shape(value.const_value.shape.numpy()), value.const_value.dtype
    if shape is None or not shape.is_static() or dtype is None or dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    numbers = shape.numpy()
    return Tensor(numbers, math.ceil(math.prod(numbers) * dtype.itemsize))  # two int4 share a byte
