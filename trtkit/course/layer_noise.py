"""Where rounding to whole numbers hurts in a network: weights alone, layer by layer, and in each layer's sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtkit.course.rounding import decibels
from trtkit.errors import ModelError
from trtkit.graph.taps import Batch, Taps
from trtkit.model import Model
from trtkit.passes.common import Names, array, constant, infer_shapes, initializer, working_copy
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.quant.calibrate import INT8_MAX
from trtkit.quant.formats import INT8
from trtkit.quant.qdq import Codes, channel_axis, quantize_weight, why_no_weights
from trtkit.reference import Reference


class LayerNoise(NamedTuple):
    """What INT8 does to one layer, its input being exact: signal to noise of its output in dB.

    Attributes:
        node: its name in the graph.
        products: how many products one output is the sum of.
        depthwise: whether each channel is convolved alone.
        input_db: only the input is rounded, with one scale for its largest |value|.
        weight_db: only the weight is, with one scale for each output channel.
        both_db: both are.
        shift: the share of the weight's noise energy that is the same in all of a channel's outputs, 0 to 1.
        largest_sum: the largest |sum| of products of codes.
    """

    node: str
    products: int
    depthwise: bool
    input_db: float
    weight_db: float
    both_db: float
    shift: float
    largest_sum: int


def layer_noise(model: Model, batch: Batch) -> list[LayerNoise]:
    """Each Conv and Gemm of a float32 model on its own, in order: its noise in INT8, its largest sum of codes.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1, 0.3, 0.01, 1}, float[2] b = {5, 5}>
    ...     {y = Gemm(x, w, b)}'''))
    >>> (layer,) = layer_noise(model, np.float32([[0.3, 1.0], [0.11, -0.7]]))
    >>> layer.products, layer.largest_sum, layer.both_db > 30
    (2, 17573, True)
    """
    nodes = list(_products(model))
    tensors = Taps(model, dict.fromkeys(node.inputs[0].name or "" for node in nodes if node.inputs[0])).run(batch)
    return [_alone(node, tensors[_input(node)]) for node in nodes]


def _alone(node: ir.Node, x: NDArray[np.float32]) -> LayerNoise:
    weight = _constant(node, 1)
    step = float(np.float32(max(float(np.abs(x).max()), 1e-12) / INT8_MAX))
    x_codes = INT8.encode(x, step).astype(np.float32)
    axis = channel_axis(node, weight.ndim)
    w_codes, scales = quantize_weight(weight, axis)
    w_rounded = w_codes * _along(scales, axis, weight.ndim)
    run = _runner(node)
    exact = run(x, weight)
    weight_noise = run(x, w_rounded) - exact
    places = tuple(a for a in range(exact.ndim) if a != 1)
    shift = np.square(weight_noise.mean(axis=places)).sum() * (exact.size / exact.shape[1])
    groups = node.attributes.get_int("group", 1)
    return LayerNoise(
        node=node.name or "",
        products=weight.size // weight.shape[axis],
        depthwise=groups > 1 and groups == weight.shape[0],
        input_db=decibels(exact, run(x_codes * np.float32(step), weight)),
        weight_db=decibels(exact, exact + weight_noise),
        both_db=decibels(exact, run(x_codes * np.float32(step), w_rounded)),
        shift=float(shift / max(float(np.square(weight_noise).sum()), 1e-30)),
        largest_sum=int(np.abs(run(x_codes, w_codes.astype(np.float32))).max()),  # exact up to 2**24
    )


def noise_behind(model: Model, other: Model, batch: Batch) -> list[float]:
    """Signal to noise in dB behind each Conv and Gemm of `model` in `other`, which has tensors of the same names."""
    names = [node.outputs[0].name or "" for node in _products(model)]
    want, have = (Taps(each, names).run(batch) for each in (model, other))
    return [decibels(want[name], have[name]) for name in names]


def round_weights(
    model: Model, bits: int, per_channel: bool = True, means: Mapping[str, NDArray] | None = None
) -> Model:
    """A copy of a float32 model whose Conv and Gemm weights are rounded to symmetric codes of a few bits, 2 to 8.

    Args:
        bits: of a code; the largest is 2 ** (bits - 1) - 1.
        per_channel: one scale for each output channel, or one for the whole weight.
        means: from `channel_means`: biases are moved by what the rounding of the weights moves a channel on average.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 1] y) <float[2, 1] w = {3.1, 1.4}, float[1] b = {0}> {y = Gemm(x, w, b)}'''))
    >>> for means in (None, {"x": np.float32([1, 1])}):
    ...     print(round(float(round_weights(model, 3, means=means).run(np.float32([[1, 1]]))["y"][0, 0]), 3))
    4.133
    4.5
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits has to be from 2 to 8, got {bits}.")
    kind = Codes(f"int{bits}", 2 ** (bits - 1) - 1, ir.DataType.INT8, "max")
    graph = working_copy(model)
    names = Names(graph.graph)
    for node in _products(model, graph):
        weight = _constant(node, 1)
        axis = channel_axis(node, weight.ndim)
        codes, scales = quantize_weight(weight, axis if per_channel else None, kind)
        rounded = codes * _along(scales, axis, weight.ndim)
        new = {1: rounded}
        if means is not None:
            new[2] = _constant(node, 2) - _mean_of(node, rounded - weight, means[_input(node)])
        for position, data in new.items():  # a value of its own: the old one may have other readers
            name = names.fresh(f"{node.inputs[position].name}_rounded")  # type: ignore[union-attr]
            node.replace_input_with(position, initializer(graph.graph, name, data.astype(np.float32)))
    RemoveDeadCode()(graph)
    return model.rewritten(graph, f"round weights to {bits} bits", "", 0.0)


def channel_means(model: Model, batch: Batch) -> dict[str, NDArray[np.float32]]:
    """The mean of each channel, (C,), of each tensor that a Conv or Gemm reads."""
    taps = Taps(model, dict.fromkeys(_input(node) for node in _products(model)))
    return {name: x.mean(axis=tuple(a for a in range(x.ndim) if a != 1)) for name, x in taps.run(batch).items()}


def _mean_of(node: ir.Node, weight: NDArray, means: NDArray) -> NDArray:
    """What a product gives out on average, (channels,), if its input's channels have these means (borders apart)."""
    if node.op_type == "Gemm":
        return means @ (weight.T if node.attributes.get_int("transB", 0) else weight)
    kernels = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
    groups = node.attributes.get_int("group", 1)
    each = kernels.reshape(groups, -1, kernels.shape[1]) @ means.reshape(groups, -1, 1)
    return np.asarray(each.reshape(-1))


def _products(model: Model, graph: ir.Model | None = None) -> Iterator[ir.Node]:
    """The nodes to look at, of a graph or of a copy of the model's own."""
    if graph is None:
        graph = working_copy(model)
    infer_shapes(graph)
    for node in graph.graph:
        if node.op_type in ("Conv", "Gemm"):
            if (reason := why_no_weights(node)) or len(node.inputs) < 3 or constant(node.inputs[2]) is None:
                raise ModelError(f"{node.name!r} in {model.name!r} needs a constant weight and a bias: "
                                 f"{reason or 'it has no constant bias'}.")  # fmt: skip
            yield node


def _input(node: ir.Node) -> str:
    return (node.inputs[0].name or "") if node.inputs[0] is not None else ""


def _constant(node: ir.Node, position: int) -> NDArray[np.float32]:
    data = array(node.inputs[position])
    assert data is not None
    return data


def _along(scales: NDArray[np.float32], axis: int, rank: int) -> NDArray[np.float32]:
    return scales if scales.ndim == 0 else scales.reshape([-1 if a == axis else 1 for a in range(rank)])


def _runner(node: ir.Node) -> Callable[[NDArray, NDArray], NDArray]:
    """One Conv or Gemm without its bias, as a function of input and weight."""
    values = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in ("x", "w")]
    alone = ir.Node("", node.op_type, values, attributes=node.attributes.values(), name="alone")
    alone.outputs[0].name, alone.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(values, alone.outputs, nodes=[alone], name="alone", opset_imports={"": 20})
    reference = Reference(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
    return lambda x, w: reference.run({"x": np.ascontiguousarray(x), "w": np.ascontiguousarray(w)})["y"]
