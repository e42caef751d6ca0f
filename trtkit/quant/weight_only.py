"""Weights alone in 4 bits, with a scale for each block: for networks that mostly wait for their weights to arrive."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.graph.taps import Batch, Taps
from trtkit.model import Model
from trtkit.passes.common import Names, infer_shapes, initializer, working_copy
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.quant.channels import divide, matrix, products
from trtkit.quant.data import CalibrationProgress, stream
from trtkit.quant.formats import INT4, INT8, IntFormat
from trtkit.quant.moments import ChannelMean
from trtkit.quant.opset import lift_opset
from trtkit.quant.precision_rules import FLOAT
from trtkit.quant.qdq import check_float, note

OPERATORS = ("MatMul", "Gemm")
_ROWS = 256  # of each activation that are kept to measure errors with
_EXPONENTS = np.linspace(0, 1, 21)
_KINDS = {4: INT4, 8: INT8}


class Sample(NamedTuple):
    """What is kept of an activation (..., K), however much data there is.

    Attributes:
        size: mean |x| of each of the K channels, (K,) float64.
        rows: some of its rows, drawn evenly from all, (at most 256, K) float32.
    """

    size: np.ndarray
    rows: np.ndarray


def quantize_weights(
    model: Model,
    data: Iterable[Batch] | None = None,
    *,
    bits: int = 4,
    block: int = 128,
    ops: Collection[str] = OPERATORS,
    skip: Collection[str] = (),
    progress: CalibrationProgress | None = None,
) -> Model:
    """Store the weights of matrix products in 4 or 8 bits, one scale for `block` neighbours along the sum.

    1. Without data every weight is rounded to the nearest code, `scale = max |w| / 7` in its block.
    2. With data, activation-aware (Lin et al. 2023, AWQ, section 3.2): input channels with large activations matter
       more, so their weights are multiplied by `s_k = mean |x_k| ** e` before rounding, and x is divided by the same.
       The exponent e, from 0 (rule 1) to 1, is the one with the smallest error of the product on rows of the data.
       Products of one x share their s, and the division is one Mul, which TensorRT fuses with whatever made x.
    3. Activations and biases stay as they are. Weights of embeddings (Gather) and convolutions stay, too.

    Args:
        model: a float32 model; its opset becomes 21.
        data: batches, read once; one is in memory at a time.
        bits: 4 or 8.
        block: weights to a scale; TensorRT takes 64 and 128 for 4 bits.
        ops: operators whose weights are stored so.
        skip: names of nodes to leave.
        progress: called after every batch with the number of batches done and, if known, in all.

    Raises:
        ModelError: the model is quantised or in low precision already, it cannot be lifted to opset 21, a name in
            `skip` is unknown, or nothing can be quantised.
        DataError: data that does not fit, or NaN or infinity in a tensor.
        ValueError: bits or block are not among what there is.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 21]>
    ...     g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {0.7, 0.1, 0.35, 0.09}> {y = MatMul(x, w)}'''))
    >>> small = quantize_weights(model, block=2)
    >>> small.run(np.eye(2, dtype=np.float32))["y"].astype(float).round(3).tolist()
    [[0.7, 0.1], [0.4, 0.086]]
    """
    start = time.perf_counter()
    if bits not in _KINDS or block < 1:
        raise ValueError(f"bits has to be 4 or 8 and block positive, got {bits} and {block}.")
    check_float(model, skip)
    graph = working_copy(model)
    infer_shapes(graph)
    lift_opset(graph, model.name)
    groups, left = products(graph.graph, ops, skip, block)
    for node in graph.graph:
        if node.op_type in ops and node.domain == "":
            note(node, f"float: {left[node]}" if node in left else "weights in blocks")
    if not groups:
        reasons = "; ".join(sorted(set(left.values()))) or f"it has no {', '.join(ops)}"
        raise ModelError(f"No weights to quantise in {model.name!r}: {reasons}.")
    samples = {} if data is None else sample(model, data, [x.name or "" for x in groups], progress)
    writer = _Writer(graph.graph, _KINDS[bits], block)
    for x, nodes in groups.items():
        writer.write(x, nodes, samples.get(x.name or ""))
    RemoveDeadCode()(graph)
    counts = ", ".join(f"{count} {op}" for op, count in Counter(n.op_type for g in groups.values() for n in g).items())
    how = "to the nearest" if data is None else f"activation-aware, {writer.scaled} of {len(groups)} inputs scaled"
    kept = "".join(f"; {count} left: {reason}" for reason, count in Counter(left.values()).items())
    detail = f"weights of {counts} in int{bits}, blocks of {block}, {how}{kept}"
    seconds = time.perf_counter() - start
    return model.rewritten(graph, f"quantize weights int{bits}", detail, seconds, precision=f"int{bits}")


def sample(
    model: Model, data: Iterable[Batch], tensors: list[str], progress: CalibrationProgress | None = None
) -> dict[str, Sample]:
    """Channel sizes and rows of activations; memory does not grow with the number of batches.

    Rows are a reservoir (Vitter 1985, algorithm R): each row that passes stays with the same probability, by a seed.
    """
    sizes = {name: ChannelMean(-1, np.abs) for name in tensors}
    seen = dict.fromkeys(tensors, 0)
    rows: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    for arrays in stream(Taps(model, tensors), data, progress):
        for name in tensors:
            x = arrays[name].reshape(-1, arrays[name].shape[-1])
            sizes[name].observe(x)
            kept = rows.setdefault(name, np.empty((0, x.shape[1]), np.float32))
            rows[name] = _reservoir(kept, x, seen[name], rng)
            seen[name] += len(x)
    return {name: Sample(sizes[name].mean(), rows[name]) for name in tensors}


def _reservoir(kept: np.ndarray, x: np.ndarray, seen: int, rng: np.random.Generator) -> np.ndarray:
    room = min(_ROWS - len(kept), len(x))
    kept = np.concatenate([kept, x[:room]])
    places = rng.integers(0, np.arange(seen + room, seen + len(x)) + 1) if len(x) > room else np.zeros(0, np.int64)
    for place, row in zip(places, x[room:], strict=True):
        if place < _ROWS:
            kept[place] = row
    return kept


def best_scales(found: Sample, weights: list[np.ndarray], kind: IntFormat, block: int) -> np.ndarray | None:
    """AWQ's factor for each input channel, (K,) float32; None where rounding as it is has the smallest error.

    Args:
        weights: all that are multiplied with this activation, (K, N) each.
    """
    size = np.maximum(found.size, found.size.max(initial=0) * 1e-4)  # a channel that is never used needs no room
    if not size.all():
        return None
    errors = [_error(found.rows, weights, _centred(size**exponent), kind, block) for exponent in _EXPONENTS]
    best = int(np.argmin(errors))
    return _centred(size ** _EXPONENTS[best]) if best else None


def _error(rows: np.ndarray, weights: list[np.ndarray], scales: np.ndarray, kind: IntFormat, block: int) -> float:
    """Sum of squared errors of `rows @ weight` for weights that are rounded after a multiplication by `scales`."""
    error = 0.0
    for weight in weights:
        rounded = round_blocks(weight * scales[:, None], kind, block) / scales[:, None]
        error += float(((rows @ (rounded - weight)) ** 2).sum())
    return error


def _centred(scales: np.ndarray) -> np.ndarray:
    """The same factors around 1, so that neither weights nor activations drift."""
    return (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)


def encode_blocks(weight: np.ndarray, kind: IntFormat, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of a weight, rounded to the nearest.

    Args:
        weight: (K, N) float32, K a multiple of block.

    Returns:
        (K, N) int8 codes from -7 to 7 (-127 to 127), and (K / block, N) float32 scales.
    """
    blocks = weight.reshape(-1, block, weight.shape[1])
    scales = np.abs(blocks).max(axis=1).astype(np.float32) / np.float32(kind.highest)
    scales[scales == 0] = 1.0  # a block of zeros, which any scale represents
    codes = np.maximum(kind.encode(blocks, scales[:, None]), -kind.highest)
    return codes.reshape(weight.shape), scales


def round_blocks(weight: np.ndarray, kind: IntFormat, block: int) -> np.ndarray:
    """A weight (K, N) as its codes hold it, float32."""
    codes, scales = encode_blocks(weight, kind, block)
    return kind.decode(codes, np.repeat(scales, block, axis=0))


class _Writer:
    """Put DequantizeLinear before the products of each group."""

    def __init__(self, graph: ir.Graph, kind: IntFormat, block: int) -> None:
        self.graph, self.kind, self.block = graph, kind, block
        self.names = Names(graph)
        self.scaled = 0
        self.done: dict[tuple[ir.Value, ir.Value | None, bool], ir.Value] = {}

    def write(self, x: ir.Value, nodes: list[ir.Node], found: Sample | None) -> None:
        weights = [matrix(node) for node in nodes]
        scales = None if found is None else best_scales(found, weights, self.kind, self.block)
        divided = None
        if scales is not None:
            self.scaled += 1
            divided = divide(self.graph, self.names, x, scales, "awq")
            weights = [weight * scales[:, None] for weight in weights]
        for node, weight in zip(nodes, weights, strict=True):
            old = node.inputs[1]
            assert old is not None
            key = (old, divided, "transB" in node.attributes)
            if key not in self.done:
                self.done[key] = self._dequantized(old.name or "", weight)
            node.replace_input_with(1, self.done[key])
            node.attributes.pop("transB", None)
            if divided is not None:
                node.replace_input_with(0, divided)

    def _dequantized(self, name: str, weight: np.ndarray) -> ir.Value:
        codes, scales = encode_blocks(weight, self.kind, self.block)
        dtype = ir.DataType.INT4 if self.kind is INT4 else ir.DataType.INT8
        q = initializer(self.graph, self.names.fresh(f"{name}_int{self.kind.bits}"), codes.astype(dtype.numpy()), dtype)
        dq = ir.node(
            "DequantizeLinear", [q, self._new(f"{name}_scale", scales)],
            {"axis": 0, "block_size": self.block}, name=self.names.fresh(f"{name}_dequantize"),
        )  # fmt: skip
        out = dq.outputs[0]
        out.name, out.shape, out.type = self.names.fresh(f"{name}_dequantized"), q.shape, ir.TensorType(FLOAT)
        self.graph.insert_before(self.graph[0], dq)
        return out

    def _new(self, name: str, data: np.ndarray) -> ir.Value:
        return initializer(self.graph, self.names.fresh(name), data)
