"""DeformConv, an operator that TensorRT-RTX refuses, as our kernel between two engines.

A deformable convolution reads its nine neighbours where the network says, between the pixels. TensorRT has no layer
for it. But only the reading is new: once the values are gathered, what is left is a 1×1 convolution. So the network is
cut in three: an engine that computes features and offsets, our kernel that gathers, an engine that convolves.

Source: Dai et al., "Deformable Convolutional Networks", ICCV 2017, section 2.1; ONNX's DeformConv.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtkit.engine.kernel import Kernel
from trtkit.importers import load
from trtkit.model import Model, TensorInfo

if TYPE_CHECKING:
    from trtkit.engine.kernel import Chain

SOURCE = r"""
// One thread for each number of columns (n, c * k * k, h, w); x is (n, c, h, w), offset (n, 2 * k * k, h, w).
extern "C" __global__ void deform_gather(const float* x, const float* offset, float* columns,
                                         int n, int c, int h, int w, int k) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, taps = k * k, plane = h * w;
    if (i >= n * c * taps * plane) return;
    int column = i % w, row = i / w % h, tap = i / plane % taps, channel = i / (plane * taps) % c;
    int image = i / (plane * taps * c);
    const float* moved = offset + ((image * taps + tap) * 2) * plane + row * w + column;
    float py = row - k / 2 + tap / k + moved[0], px = column - k / 2 + tap % k + moved[plane];
    int top = (int)floorf(py), left = (int)floorf(px);
    float fy = py - top, fx = px - left, sum = 0;
    const float* image_plane = x + (image * c + channel) * plane;
    for (int dy = 0; dy < 2; ++dy)
        for (int dx = 0; dx < 2; ++dx) {
            int yy = top + dy, xx = left + dx;
            if (yy >= 0 && yy < h && xx >= 0 && xx < w)   // outside the picture is zero
                sum += (dy ? fy : 1 - fy) * (dx ? fx : 1 - fx) * image_plane[yy * w + xx];
        }
    columns[i] = sum;
}
"""


def gather(x: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The same in NumPy: (n, c, h, w) and (n, 2 k k, h, w) float32 -> (n, c k k, h, w), one plane for each tap.

    >>> x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    >>> offset = np.zeros((1, 2, 2, 2), np.float32)
    >>> offset[0, 1] = 0.5  # half a pixel to the right, where the last column meets zeros
    >>> gather(x, offset)[0, 0]
    array([[0.5, 0.5],
           [2.5, 1.5]], dtype=float32)
    """
    n, c, h, w = x.shape
    k = round((offset.shape[1] // 2) ** 0.5)
    rows, columns = np.mgrid[:h, :w].astype(np.float32)
    taken = np.zeros((n, c, k * k, h, w), np.float32)
    for tap in range(k * k):
        py = rows - k // 2 + tap // k + offset[:, 2 * tap]
        px = columns - k // 2 + tap % k + offset[:, 2 * tap + 1]
        top, left = np.floor(py).astype(int), np.floor(px).astype(int)
        for yy, wy in ((top, 1 - (py - top)), (top + 1, py - top)):
            for xx, wx in ((left, 1 - (px - left)), (left + 1, px - left)):
                inside = (yy >= 0) & (yy < h) & (xx >= 0) & (xx < w)
                safe = np.where(inside, yy, 0), np.where(inside, xx, 0)
                values = np.stack([x[i][:, safe[0][i], safe[1][i]] for i in range(n)])
                taken[:, :, tap] += (wy * wx * inside)[:, None] * values
    return taken.reshape(n, c * k * k, h, w)


def gather_kernel(channels: int, k: int = 3) -> Kernel:
    """The kernel: takes "x" and "offset", gives "columns"."""
    square: tuple[int | str, ...] = ("h", "w")
    return Kernel(
        SOURCE,
        "deform_gather",
        (
            TensorInfo("f", ("n", channels, *square), np.dtype(np.float32)),
            TensorInfo("offset", ("n", 2 * k * k, *square), np.dtype(np.float32)),
        ),
        "columns",
        shape=lambda x, offset: (x[0], x[1] * offset[1] // 2, *x[2:]),
        reference=gather,
        sizes=lambda x, offset: (*x, round((offset[1] // 2) ** 0.5)),
    )


def whole(channels: int = 32, size: int = 56, k: int = 3, seed: int = 0) -> Model:
    """A small network with a DeformConv, as a framework exports it: 3 -> channels, offsets, DeformConv, ReLU."""
    nodes, weights = _front(channels, k, seed)
    nodes.append(
        helper.make_node("DeformConv", ["f", "w", "offset"], ["d"], "deform", kernel_shape=[k, k], pads=[k // 2] * 4)
    )
    nodes.append(helper.make_node("Relu", ["d"], ["y"], "act"))
    weights["w"] = _weight(channels, k, seed)
    return _model("whole", nodes, weights, {"x": (3, size, size)}, {"y": (channels, size, size)})


def halves(channels: int = 32, size: int = 56, k: int = 3, seed: int = 0) -> tuple[Model, Model]:
    """The same network without its DeformConv: what comes before it, and the 1×1 convolution that is left of it."""
    nodes, weights = _front(channels, k, seed)
    shapes = {"f": (channels, size, size), "offset": (2 * k * k, size, size)}
    front = _model("front", nodes, weights, {"x": (3, size, size)}, shapes)
    rest = [helper.make_node("Conv", ["columns", "w"], ["d"], "mix"), helper.make_node("Relu", ["d"], ["y"], "act")]
    flat = {"w": _weight(channels, k, seed).reshape(channels, channels * k * k, 1, 1)}
    columns = {"columns": (channels * k * k, size, size)}
    return front, _model("rest", rest, flat, columns, {"y": (channels, size, size)})


def chain(channels: int = 32, size: int = 56, k: int = 3, batch: int = 1) -> Chain:
    """Both halves built, with the kernel between them."""
    from trtkit.engine.build import build
    from trtkit.engine.kernel import Chain

    front, rest = halves(channels, size, k)
    engines = [
        build(model, shapes={i.name: (batch, *map(int, i.shape[1:])) for i in model.inputs}, tf32=False)
        for model in (front, rest)
    ]
    return Chain([engines[0], gather_kernel(channels, k), engines[1]], "deformable")


def _front(channels: int, k: int, seed: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    weights = {
        "stem": rng.standard_normal((channels, 3, 3, 3)).astype(np.float32) / 5,
        "shift": rng.standard_normal((2 * k * k, channels, 3, 3)).astype(np.float32) / 15,
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["s"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["s"], ["f"], "stem_act"),
        helper.make_node("Conv", ["f", "shift"], ["offset"], "offsets", pads=[1, 1, 1, 1]),
    ]
    return nodes, weights


def _weight(channels: int, k: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed + 1)
    scale = (channels * k * k) ** 0.5
    return (rng.standard_normal((channels, channels, k, k)) / scale).astype(np.float32)


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, tuple[int, ...]],
) -> Model:
    takes, gives = (
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["n", *shape]) for tensor, shape in side.items()]
        for side in (inputs, outputs)
    )
    constants = [numpy_helper.from_array(array, tensor) for tensor, array in weights.items()]
    graph = helper.make_graph(nodes, name, takes, gives, constants)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10))
