"""Small blocks in the middle of a network, to see what TensorRT makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

import trtkit
from trtkit.engine.engine import Engine
from trtkit.engine.layers import Layer, LayerTensor
from trtkit.engine.lint import Product
from trtkit.errors import ModelError
from trtkit.model import Model

CHANNELS = 32
_ENDS = ("stem", "end")
_WEIGHTS = {"w": (CHANNELS, CHANNELS, 3, 3), "v": (CHANNELS, CHANNELS, 3, 3), "p": (CHANNELS, CHANNELS, 1, 1)}


def block(nodes: str, name: str = "block") -> Model:
    """A block from `x` to `y` in ONNX's text format, between two convolutions: (1, 32, 28, 28) float32 to the same.

    At the ends of a network TensorRT also changes layouts, which takes part in fusion. So the block reads what a
    convolution "stem" wrote, and a convolution "end" reads what it writes. Weights from a seed: `w` and `v` are
    3x3 kernels (use pads = [1, 1, 1, 1]), `p` is 1x1; `zero` and `six` are numbers, for Clip.

    Raises:
        ModelError: the text cannot be read as nodes.

    >>> block("y = Relu(x)").op_counts
    {'Conv': 2, 'Relu': 1}
    """
    text = f"""<ir_version: 10, opset_import: ["": 20]> {name}
        (float[1, {CHANNELS}, 28, 28] image) => (float[1, {CHANNELS}, 28, 28] out)
        {{ [stem] x = Conv(image, p)  {nodes}  [end] out = Conv(y, p) }}"""
    try:
        proto = onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        raise ModelError(f"These nodes are not in ONNX's text format: {nodes!r}. {error}") from error
    rng = np.random.default_rng(0)
    arrays = {key: rng.normal(0, 0.1, shape).astype(np.float32) for key, shape in _WEIGHTS.items()}
    arrays |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    read = {value for node in proto.graph.node for value in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(a, key) for key, a in arrays.items() if key in read)
    return trtkit.load(proto, name=name)


def kernels(model: Model) -> list[tuple[str, ...]]:
    """The operators in each kernel of a block's engine, in the order of the graph, without the two ends.

    >>> kernels(block("a = Abs(x)  y = Relu(a)"))
    [('Abs', 'Relu')]
    """
    fusion = trtkit.build(model, verify=False, isolate=False).fusion_map()
    inside: dict[int, list[str]] = {}
    for node in fusion.nodes:
        if node.kernel is not None and node.name not in _ENDS:
            inside.setdefault(node.kernel, []).append(node.op_type)
    return [tuple(ops) for ops in inside.values()]


def kernel_types(layers: Sequence[Layer]) -> list[tuple[str, str, str]]:
    """Of every kernel its operators and the types it reads and writes; "mixed" are several, "nothing" is weights alone.

    >>> kernel_types(trtkit.build(block("y = Relu(x)"), verify=False, isolate=False).layers)[1]
    ('correlation', 'Float', 'Float')
    """

    def of(tensors: Sequence[LayerTensor]) -> str:
        found = {tensor.dtype for tensor in tensors}
        return found.pop() if len(found) == 1 else "mixed" if found else "nothing"

    return [(layer.ops, of(layer.inputs), of(layer.outputs)) for layer in layers if layer.launches]


_BYTES = {"Float": 4, "Half": 2, "BFloat16": 2, "Int8": 1, "FP8": 1, "Int32": 4, "Int64": 8, "Bool": 1}


def bytes_moved(layers: Sequence[Layer]) -> int:
    """How many bytes the kernels of an engine read and write between them; weights, which stay inside, not counted.

    A tensor counts once for each kernel that reads it, and channels that TensorRT fills up count, too.

    Raises:
        ModelError: a dimension changes at run time, or a type is not known here.

    >>> engine = trtkit.build(block("y = Relu(x)"), verify=False, isolate=False)
    >>> bytes_moved(engine.layers) // (4 * 32 * 28 * 28)  # two convolutions read and write, and two ends turn layouts
    8
    """
    total = 0
    for layer in layers:
        for tensor in (*layer.inputs, *layer.outputs) if layer.launches else ():
            if tensor.dtype not in _BYTES or min(tensor.shape, default=1) < 0:
                raise ModelError(f"{layer.name}: how many bytes is {tensor.dtype} {tensor.shape}?")
            total += _BYTES[tensor.dtype] * math.prod(tensor.shape)
    return total


def traffic(engine: Engine) -> tuple[int, int]:
    """Bytes of tensors that an engine's kernels read and write (`bytes_moved`), and how many kernels there are.

    >>> traffic(trtkit.build(block("y = Relu(x)"), verify=False, isolate=False))
    (802816, 4)
    """
    return bytes_moved(engine.layers), sum(layer.launches for layer in engine.layers)


def by_product(layers: Sequence[Layer], products: Sequence[Product]) -> dict[str, tuple[int, int]]:
    """Of every product of a lint, in the engine's order: its kernel and those behind it up to the next product's.

    Returns:
        By the name of the node how many kernels these are, and how many bytes they move.
    """
    nodes = {product.kernel: product.node for product in products}
    found: dict[str, tuple[int, int]] = {}
    node = ""
    for layer in (layer for layer in layers if layer.launches):
        node = nodes.get(layer.name, node)
        if node:
            kernels, size = found.get(node, (0, 0))
            found[node] = kernels + 1, size + bytes_moved([layer])
    return found


def words(ops: str) -> str:
    """The operators of a generated kernel with Q for rounding to INT8 codes and DQ for the way back.

    >>> words("ReluMulMinMaxRounCast"), words("CastMulMulAddMulMinMaxRounCast"), words("correlation")
    ('Relu Q', 'DQ MulAdd Q', 'correlation')
    """
    for code, word in (("MulMinMaxRounCast", " Q "), ("CastMul", " DQ ")):
        ops = ops.replace(code, word)
    return " ".join(ops.split())


_CALLS = {
    "Conv": "Conv<pads=[1,1,1,1]>({}, w)",
    "MaxPool": "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({})",
    "Clip": "Clip({}, zero, six)",
    "Add": "Add({}, x)",
}


def chain(ops: str) -> str:
    """The nodes of a chain for `block`: operators with spaces between them, each reading the one before; Add adds x.

    >>> chain("Conv Relu")
    't0 = Conv<pads=[1,1,1,1]>(x, w)  y = Relu(t0)'
    """
    names = ops.split()
    values = ["x", *(f"t{i}" for i in range(len(names) - 1)), "y"]
    calls = (_CALLS.get(op, op + "({})").format(value) for op, value in zip(names, values, strict=False))
    return "  ".join(f"{value} = {call}" for value, call in zip(values[1:], calls, strict=True))
