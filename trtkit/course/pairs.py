"""Graphs with Q/DQ pairs written by hand, to see what TensorRT makes of a pair at a place, right or wrong."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import trtkit
from trtkit.engine.engine import Engine
from trtkit.errors import ModelError
from trtkit.model import Model, save
from trtkit.passes.common import Names, infer_shapes, working_copy
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.quant.channels import divide, matrix, products, replace

SHAPES = {"x": (2, 32, 8, 8)}
_X, _Y = "float[2, 32, 8, 8] x", "float[2, 32, h, v] y"


def pair(value: str, name: str, scale: str = "s", zero: str = "z") -> str:
    """A Q/DQ pair in ONNX's text format that reads `value` and gives out `name`.

    >>> print(pair("r", "a"))
    [Q_a] a_q = QuantizeLinear(r, s, z) [DQ_a] a = DequantizeLinear(a_q, s, z)
    """
    return f"[Q_{name}] {name}_q = QuantizeLinear({value}, {scale}, {zero}) " \
           f"[DQ_{name}] {name} = DequantizeLinear({name}_q, {scale}, {zero}) "  # fmt: skip


def weight(name: str, scale: str = "sw", zero: str = "zw", axis: int = 0) -> str:
    """A DequantizeLinear in ONNX's text format that gives out `name` from the 8-bit weight `name`_codes.

    >>> print(weight("w"))
    [DQ_w] w = DequantizeLinear <axis = 0> (w_codes, sw, zw)
    """
    return f"[DQ_{name}] {name} = DequantizeLinear <axis = {axis}> ({name}_codes, {scale}, {zero}) "


def network(nodes: str, x: str = _X, y: str = _Y, **more: np.ndarray) -> Model:
    """Nodes in ONNX's text format, from `x` (2, 32, 8, 8) float32 to `y`, as a model named g.

    They may name these constants, made from a seed: `s` and `other`, two scales; `z`, their zero point; `w_codes` and
    `v_codes`, int8 kernels (32, 32, 3, 3) with `sw`, a scale for each of 32 channels, and `zw`, their zero points;
    `f`, a float kernel of the same shape; `b`, a float bias; `b_codes` and `zb`, an int32 one.

    Args:
        nodes: for instance "y = Relu(x)".
        x, y: the input and the output with their types.
        more: further constants by name.

    Raises:
        ModelError: the text cannot be read as nodes.

    >>> network("r = Relu(x) " + pair("r", "a") + weight("w") + "y = Conv <pads = [1, 1, 1, 1]> (a, w)").op_counts
    {'DequantizeLinear': 2, 'Relu': 1, 'QuantizeLinear': 1, 'Conv': 1}
    """
    try:
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g ({x}) => ({y}) {{{nodes}}}')
    except onnx.parser.ParseError as error:
        raise ModelError(f"These nodes are not in ONNX's text format: {nodes!r}. {error}") from error
    given = {**_constants(), **more}
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in given.items() if name in read)
    return trtkit.load(proto)


def engine_of(model: Model, shapes: Mapping[str, Sequence[int]] = SHAPES) -> Engine:
    """The model's engine for these shapes, built in this process and not verified: to look at its kernels, quickly.

    Args:
        model: one that is known to build, since what TensorRT crashes on ends this process, too.
        shapes: by input; as they are, those of a `network`.

    Raises:
        BuildError: TensorRT refuses the model.

    >>> [layer.ops for layer in engine_of(network("y = Relu(x)")).layers]
    ['Relu']
    """
    return trtkit.build(model, shapes, verify=False, isolate=False)


def _constants() -> dict[str, np.ndarray]:
    rng, shape = np.random.default_rng(0), (32, 32, 3, 3)
    return {
        "s": np.array(0.05, np.float32), "other": np.array(0.07, np.float32), "z": np.array(0, np.int8),
        "sw": np.full(32, 0.01, np.float32), "zw": np.zeros(32, np.int8),
        "b": np.ones(32, np.float32), "b_codes": np.arange(32, dtype=np.int32), "zb": np.zeros(32, np.int32),
        "f": rng.normal(size=shape).astype(np.float32),
        "w_codes": rng.integers(-127, 127, shape).astype(np.int8),
        "v_codes": rng.integers(-127, 127, shape).astype(np.int8),
    }  # fmt: skip


def by_onnxruntime(model: Model, data: Sequence[Mapping[str, np.ndarray]], **options: Any) -> Model:
    """The model as ONNX Runtime's `quantize_static` quantises it in its QDQ format, with max calibration.

    Args:
        data: calibration batches.
        options: of `quantize_static`; what is not given is as ONNX Runtime has it.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(data)

        def get_next(self) -> Any:
            return next(self.batches, None)

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises to optimise first, which has been done
    try:
        with tempfile.TemporaryDirectory() as folder:
            before, after = (Path(folder) / f"{name}.onnx" for name in ("before", "after"))
            quantize_static(save(model, before), after, Reader(), quant_format=QuantFormat.QDQ, **options)
            return trtkit.load(onnx.load(after), name=model.name)
    finally:
        root.setLevel(level)


def with_outliers(model: Model, channels: int = 4, factor: float = 40.0, seed: int = 0) -> Model:
    """The same function with a few channels of each product's activation `factor` times as large, and weights smaller.

    Trained language models have such channels (Dettmers et al. 2022, LLM.int8(), section 4), ours with random weights
    have not. This is SmoothQuant's identity backwards: x W = (x / s) (s W), with s = 1 / factor for some channels.

    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {8, 8, 8, 8}> {y = MatMul(x, w)}'''))
    >>> wild = with_outliers(model, channels=1, factor=4)
    >>> [value.const_value.numpy().tolist() for value in wild.ir.graph.initializers.values()]
    [[1.0, 4.0], [[8.0, 8.0], [2.0, 2.0]]]
    """
    graph, rng = working_copy(model), np.random.default_rng(seed)
    infer_shapes(graph)
    names = Names(graph.graph)
    groups, _ = products(graph.graph, ("MatMul",))
    for x, nodes in groups.items():
        weights = [matrix(node) for node in nodes]
        scales = np.ones(len(weights[0]), np.float32)
        scales[rng.choice(len(scales), channels, replace=False)] = 1 / factor
        divided = divide(graph.graph, names, x, scales, "outlier")
        for node, data in zip(nodes, weights, strict=True):
            replace(graph.graph, names, node, divided, data * scales[:, None], "outlier")
    RemoveDeadCode()(graph)
    return model.rewritten(graph, "outliers", f"{channels} channels of {len(groups)} activations times {factor:g}", 0.0)
