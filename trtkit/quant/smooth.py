"""SmoothQuant: the outliers of activations moved into the weights, where a scale for each channel waits for them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

import numpy as np

from trtkit.errors import ModelError
from trtkit.graph.taps import Batch, Taps
from trtkit.model import Model
from trtkit.passes.common import Names, infer_shapes, working_copy
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.quant.channels import divide, matrix, products, replace
from trtkit.quant.data import CalibrationProgress, stream
from trtkit.quant.qdq import check_float

OPERATORS = ("MatMul", "Gemm")
_LEAST = 1e-5  # of a scale, as the authors have it


def smooth(
    model: Model,
    data: Iterable[Batch],
    strength: float = 0.5,
    *,
    ops: Collection[str] = OPERATORS,
    skip: Collection[str] = (),
    progress: CalibrationProgress | None = None,
) -> Model:
    """Make the channels of activations alike, so that one INT8 scale fits them all; to be quantised afterwards.

    In transformers a few channels of an activation are tens of times larger than the others, always the same ones, and
    TensorRT gives an activation one scale. Weights have one for each output channel, and room (Xiao et al. 2022,
    SmoothQuant, eq. 4):

        s_k = max |x_k| ** strength / max |W_k| ** (1 - strength)        x / s,  s W

    Args:
        model: a float32 model, optimised first.
        data: batches, read once; one is in memory at a time.
        strength: 0 leaves the activations to it, 1 moves all that differs into the weights.
        ops: operators to treat.
        skip: names of nodes to leave; they go on reading what they read.
        progress: called after every batch with the number of batches done and, if known, in all.

    Returns:
        A new float32 model that computes the same up to rounding. Products of one activation share its scales and the
        one Mul that divides by them.

    Raises:
        ModelError: the model is quantised or in low precision already, a name in `skip` is unknown, or no product has
            constant weights.
        DataError: no data, data that does not fit, or NaN or infinity in a tensor.
        ValueError: strength is not from 0 to 1.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1, 1, 1, 1}> {y = MatMul(x, w)}'''))
    >>> even = smooth(model, [np.float32([[100.0, 1.0]])])
    >>> [value.const_value.numpy().tolist() for value in even.ir.graph.initializers.values()]
    [[0.10000000149011612, 1.0], [[10.0, 10.0], [1.0, 1.0]]]
    """
    start = time.perf_counter()
    if not 0 <= strength <= 1:
        raise ValueError(f"strength has to lie in [0, 1], got {strength}.")
    check_float(model, skip)
    graph = working_copy(model)
    infer_shapes(graph)
    groups, left = products(graph.graph, ops, skip)
    if not groups:
        reasons = "; ".join(sorted(set(left.values()))) or f"it has no {', '.join(ops)}"
        raise ModelError(f"Nothing to smooth in {model.name!r}: {reasons}.")
    largest = channel_amax(model, data, [x.name or "" for x in groups], progress)
    names = Names(graph.graph)
    for x, nodes in groups.items():
        weights = [matrix(node) for node in nodes]
        scales = smooth_scales(largest[x.name or ""], weights, strength)
        divided = divide(graph.graph, names, x, scales, "smooth")
        for node, weight in zip(nodes, weights, strict=True):
            replace(graph.graph, names, node, divided, weight * scales[:, None], "smooth")
    RemoveDeadCode()(graph)
    count = sum(map(len, groups.values()))
    detail = f"{count} products, {len(groups)} activations, strength {strength:g}"
    return model.rewritten(graph, "smooth activations", detail, time.perf_counter() - start)


def smooth_scales(largest: np.ndarray, weights: list[np.ndarray], strength: float) -> np.ndarray:
    """What each channel is divided by, (K,) float32; 1 for a channel that is zero on one of the two sides.

    Args:
        largest: max |x_k|, (K,).
        weights: all that are multiplied with this activation, (K, N) each.
    """
    row = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = largest**strength / row ** (1 - strength)
    scales = np.where((largest > 0) & (row > 0), np.maximum(scales, _LEAST), 1.0)
    return scales.astype(np.float32)


def channel_amax(
    model: Model, data: Iterable[Batch], tensors: list[str], progress: CalibrationProgress | None = None
) -> dict[str, np.ndarray]:
    """max |x_k| of each channel, the last axis, of the named tensors: (K,) float64 each, over all the data."""
    found: dict[str, np.ndarray] = {}
    for arrays in stream(Taps(model, tensors), data, progress):
        for name in tensors:
            amax = np.abs(arrays[name]).reshape(-1, arrays[name].shape[-1]).max(axis=0).astype(np.float64)
            found[name] = np.maximum(found[name], amax) if name in found else amax
    return found
