"""A model for inputs of exactly these shapes: what is known of sizes can be folded, and rules for batch 1 apply."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.graph.shapes import bodies, graphs_of, results
from trtkit.model import Model
from trtkit.passes.common import infer_shapes, working_copy


def fix_shapes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """Give inputs fixed shapes: a dimension with a name becomes a number, everywhere it stands.

    Args:
        model: stays as it is; the result shares its weights.
        shapes: input name to its shape; an input that is not named keeps its sizes, except for names that another
            input settles.

    Returns:
        A new model, which takes these shapes only; `optimize` may fold more of it than of the old one.

    Raises:
        ModelError: no such input, a shape that does not fit it, or two sizes for one name.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 4] x) => (float[n, 4] y) {y = Relu(x)}'''))
    >>> fix_shapes(model, {"x": (1, 4)}).inputs[0].shape
    (1, 4)
    """
    sizes = _sizes(model, shapes)
    graph = working_copy(model)
    for value in graph.graph.inputs:
        if value.name is not None and value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])  # a dimension may have no name
        elif value.shape is not None:
            value.shape = _with_sizes(value.shape, sizes)
    for each in graphs_of(graph.graph):
        for node in each:
            for value in (*results(node), *(inner for body in bodies(node) for inner in body.inputs)):
                if value.shape is not None:
                    value.shape = _with_sizes(value.shape, sizes)
    infer_shapes(graph)
    return Model(graph, model.name, history=model.history, origin=model.origin, precision=model.precision)


def _sizes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The size of each named dimension."""
    known = {info.name: info for info in model.inputs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in known:
            raise ModelError(f"{model.name!r} has no input {name!r}; it has {', '.join(map(str, model.inputs))}.")
        want = known[name].shape
        if len(want) != len(shape) or any(isinstance(w, int) and w != s for w, s in zip(want, shape, strict=True)):
            raise ModelError(f"Input {known[name]} of {model.name!r} cannot have the shape {tuple(shape)}.")
        for dim, size in zip(want, shape, strict=True):
            if size < 1:
                raise ModelError(f"Input {name!r} of {model.name!r} would be empty with the shape {tuple(shape)}.")
            if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                raise ModelError(f"{dim!r} is both {sizes[dim]} and {size} in the inputs of {model.name!r}.")
    return sizes


def _with_sizes(shape: ir.Shape, sizes: Mapping[str, int]) -> ir.Shape:
    return ir.Shape([dim if isinstance(dim, int) else sizes.get(dim.value or "", dim) for dim in shape])
