"""Write INT8 or FP8 into a graph: explicit QuantizeLinear and DequantizeLinear pairs, where TensorRT can fuse them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.graph.taps import Batch
from trtkit.model import Model
from trtkit.passes.common import Names, array, constant, infer_shapes, initializer, single_use, working_copy
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.quant.calibrate import (
    DEFAULT_METHOD,
    INT8_MAX,
    Calibration,
    CalibrationProgress,
    Calibrator,
    calibrate,
)
from trtkit.quant.formats import FP8_E4M3
from trtkit.quant.moments import Place, along_weight, best_scales, place
from trtkit.quant.opset import lift_opset
from trtkit.quant.precision_rules import FLOAT

QUANTIZABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
QUANTIZED = ("Conv", "Gemm", "MatMul")  # those that TensorRT-RTX computes in 8 bits; it dequantises a ConvTranspose
FP8_TAPS = 32  # kernel positions of a convolution that TensorRT-RTX computes in FP8; seen: 4 x 8 yes, 3 x 11 no
FP8_CHANNELS = 16  # a convolution with so many on one side, or fewer, gains little in FP8, and its rounding costs much
MIN_OPSET = 13  # the first with one scale per channel
_NOTE = "trtkit.quantize"
_SMALLEST_CHANNEL = 2.0**-24  # a channel this much smaller than the largest is zero in float32 arithmetic as well


class Codes(NamedTuple):
    """What numbers are stored as, once they are divided by a scale that takes the end of their range to `largest`.

    `method` is the calibration that suits them, see `quantize`; `fitted`, whether scales of weights are chosen by the
    moments of what they are multiplied with, see `trtkit.quant.moments`.
    """

    name: str
    largest: float
    dtype: ir.DataType
    method: str
    fitted: bool = False

    def encode(self, x: np.ndarray) -> np.ndarray:
        """The nearest codes; beyond the largest, that."""
        if self.dtype == ir.DataType.INT8:
            return np.clip(np.rint(x), -self.largest, self.largest).astype(np.int8)
        return np.clip(x, -self.largest, self.largest).astype(self.dtype.numpy())


INT8_CODES = Codes("int8", INT8_MAX, ir.DataType.INT8, DEFAULT_METHOD)
FP8_CODES = Codes("fp8", FP8_E4M3.max, ir.DataType.FLOAT8E4M3FN, "max", fitted=True)
CODES = {codes.name: codes for codes in (INT8_CODES, FP8_CODES)}


def codes_of(dtype: str) -> Codes:
    """The codes of a name; ValueError if there are none."""
    if dtype not in CODES:
        raise ValueError(f"dtype has to be one of {', '.join(CODES)}, got {dtype!r}.")
    return CODES[dtype]


class Choice(NamedTuple):
    """Whether a node is quantised, and why (not)."""

    node: str
    op_type: str
    quantized: bool
    reason: str


def quantize(
    model: Model,
    data: Iterable[Batch] | None,
    method: str | Callable[[], Calibrator] | None = None,
    per_channel: bool = True,
    ops: Collection[str] = QUANTIZED,
    skip: Collection[str] = (),
    progress: CalibrationProgress | None = None,
    *,
    dtype: str = "int8",
    depthwise: bool = False,
    calibration: Calibration | None = None,
) -> Model:
    """Post-training quantisation to INT8 or FP8, symmetric (zero point 0), as TensorRT wants it.

    1. Weights of the chosen nodes are stored in 8 bits with one scale per output channel and a DequantizeLinear: for
       INT8 that of the largest weight; for FP8, within an octave from there, that with the smallest expected error of
       the output, by the moments of the input on the calibration data (`trtkit.quant.moments`).
    2. Activations that enter these nodes pass a Q/DQ pair with one scale; all readers of a tensor share the pair.
    3. Where two branches are added, one comes straight from a quantised convolution and stays float, the other gets
       Q/DQ: then TensorRT fuses the addition into that convolution, which reads and writes 8 bits.
    4. Biases stay float32: TensorRT adds them to the accumulator itself.

    Args:
        model: a float32 model, optimised first, so that batch norm is folded. Opset 13 or later.
        data: calibration batches, read once; may be None if `calibration` is given.
        method: "max", "percentile", "mse" or "entropy", see `trtkit.quant.calibrate`. By default "percentile" for INT8
            and "max" for FP8: its steps shrink towards zero, so that a wide range costs small numbers little.
        per_channel: one scale per output channel of a weight, or one for all.
        ops: operators to quantise, of Conv, ConvTranspose, Gemm and MatMul. A ConvTranspose stays float by default:
            TensorRT-RTX would dequantise its weight in each run and compute in float.
        skip: names of nodes to leave in float32.
        progress: called after every batch with the number of batches done and, if known, in all.
        dtype: "int8", or "fp8" for E4M3, which lifts the model to opset 21. Convolutions with more than 32 kernel
            positions, such as 7 x 7, stay float in FP8: TensorRT-RTX would dequantise them and compute in float.
            So do those with 16 channels or fewer on one side, such as the first of a network on pictures: with FP8's
            three bits of fraction they cost the most (without three of MobileNetV2's 36, 15 dB instead of 12).
        depthwise: quantise convolutions with one input channel per group, too. They do little arithmetic, lose much
            accuracy, and TensorRT-RTX pads each channel to four: MobileNetV2's engine is twice as large with them. In
            FP8 also those with few channels.
        calibration: ranges found earlier, instead of `data`. For FP8 with moments (`moments_of`); without, all inputs
            of a product count alike.

    Raises:
        ModelError: the model is quantised or in low precision already, its opset is too old, a name in `skip` is
            unknown, or nothing can be quantised.
        DataError: no data, data that does not fit, or NaN or infinity in a tensor.
        ValueError: there is no such dtype.
    """
    start = time.perf_counter()
    codes = codes_of(dtype)
    check_float(model, skip)
    if model.opset < MIN_OPSET:
        raise ModelError(
            f"{model.name!r} has opset {model.opset}; one scale per channel came with {MIN_OPSET}. "
            "Convert it first: onnx.version_converter.convert_version(model, 17)."
        )
    graph = working_copy(model)
    infer_shapes(graph)
    if codes is not INT8_CODES:
        lift_opset(graph, model.name)
    choices = _choose(graph.graph, ops, skip, depthwise, dtype)
    chosen = {node for node, choice in choices.items() if choice.quantized}
    if not chosen:
        reasons = "; ".join(sorted({f"{c.op_type}: {c.reason}" for c in choices.values()}))
        raise ModelError(f"Nothing to quantise in {model.name!r}: {reasons or 'it has no ' + ', '.join(ops)}.")
    places = _activations(chosen) + _residual_branches(graph.graph, chosen)
    names = sorted({node.inputs[position].name or "" for node, position in places})  # type: ignore[union-attr]
    if calibration is None:
        batches, moments = data if data is not None else (), _moments(chosen) if codes.fitted else ()
        calibration = calibrate(model, batches, names, method or codes.method, progress, moments=moments)
    elif missing := [name for name in names if name not in calibration]:
        raise ModelError(f"The calibration given has no range for {missing[0]!r} and {len(missing) - 1} other tensors.")
    _Writer(graph.graph, calibration, per_channel, codes).write(chosen, places)
    RemoveDeadCode()(graph)
    detail = _summary(chosen, places, choices, calibration, dtype)
    return model.rewritten(graph, f"quantize {dtype}", detail, time.perf_counter() - start, precision=dtype)


def observable(
    model: Model, ops: Collection[str] = QUANTIZED, *, depthwise: bool = False, dtype: str = "int8"
) -> dict[str, list[str]]:
    """What could be quantised: the names of nodes, and of all tensors that would need a range whichever are chosen.

    Returns:
        {"nodes": [...], "tensors": [...]}, in the order of the graph.
    """
    graph = working_copy(model)
    infer_shapes(graph)
    chosen = {node for node, c in _choose(graph.graph, ops, (), depthwise, dtype).items() if c.quantized}
    nodes = [node for node in graph.graph if node in chosen]
    inputs = [node.inputs[0] for node in nodes]
    for node, _ in _residual_branches(graph.graph, chosen):
        inputs += node.inputs  # which of the two it is depends on what else is chosen
    tensors = dict.fromkeys(value.name or "" for value in inputs if value is not None)
    return {"nodes": [node.name or "" for node in nodes], "tensors": list(tensors)}


def moments_of(model: Model, nodes: Collection[str]) -> list[Place]:
    """The inputs of named nodes whose moments tell the scales of their weights: what `calibrate` wants as `moments`."""
    return _moments(node for node in model.ir.graph if node.name in nodes)


def _moments(nodes: Iterable[ir.Node]) -> list[Place]:
    return sorted({place(node, node.inputs[0].name or "") for node in nodes if node.inputs[0] is not None})


def quantize_report(model: Model) -> list[Choice]:
    """What `quantize` or `quantize_weights` chose for every node it could have quantised, and why."""
    told = [(node, node.metadata_props[_NOTE]) for node in model.ir.graph if _NOTE in node.metadata_props]
    return [Choice(node.name or "", node.op_type, not what.startswith("float: "), what) for node, what in told]


def note(node: ir.Node, what: str) -> None:
    """Write down at a node what became of it, for `quantize_report`."""
    node.metadata_props[_NOTE] = what


def check_float(model: Model, skip: Collection[str]) -> None:
    """Raise ModelError for a model that is not plainly float32, or lacks a node that is to be skipped."""
    done = [op for op in model.op_counts if "uantize" in op or op.startswith("QLinear") or op.endswith("Integer")]
    if done:
        raise ModelError(
            f"{model.name!r} is quantised already: it has {', '.join(done)}. Start from its float32 original."
        )
    if model.precision != "fp32":
        raise ModelError(f"{model.name!r} is in {model.precision}; quantise the float32 model instead.")
    unknown = sorted(set(skip) - {node.name for node in model.ir.graph})
    if unknown:
        raise ModelError(f"skip: {model.name!r} has no node {unknown[0]!r}.")


def _choose(
    graph: ir.Graph, ops: Collection[str], skip: Collection[str], depthwise: bool, dtype: str
) -> dict[ir.Node, Choice]:
    choices = {}
    for node in graph:
        if node.op_type not in ops or node.domain != "":
            continue
        obstacle = "the caller skips it" if node.name in skip else _obstacle(node, depthwise, dtype)
        note(node, f"float: {obstacle}" if obstacle else f"{dtype}: weights and input")
        choices[node] = Choice(node.name or "", node.op_type, not obstacle, obstacle or "")
    return choices


def why_no_weights(node: ir.Node) -> str | None:
    """Why a node is no float32 computation with an activation first and a constant weight second, or None if it is."""
    activation, weight = node.inputs[0], constant(node.inputs[1])
    if weight is None:
        return "both inputs are computed, it has no weights"
    if activation is None or constant(activation) is not None:
        return "its input is constant"
    return "it is not float32" if weight.dtype != FLOAT or activation.dtype != FLOAT else None


def _obstacle(node: ir.Node, depthwise: bool, dtype: str) -> str | None:
    """Why a node cannot be quantised, or None."""
    weight = constant(node.inputs[1])
    obstacle = why_no_weights(node)
    if obstacle or weight is None:
        return obstacle
    if len(weight.shape) < 2:
        return "its weight is a vector"
    if not depthwise and _is_depthwise(node, weight):
        return "it is depthwise: little arithmetic, much to lose"
    if dtype == FP8_CODES.name and not depthwise and node.op_type == "Conv" and _is_narrow(weight):
        return f"it has {FP8_CHANNELS} channels or fewer on one side: little to gain in FP8, much to lose"
    if dtype == FP8_CODES.name and (taps := taps_of(node, weight)) > FP8_TAPS:
        return f"its kernel has {taps} positions, and TensorRT-RTX computes FP8 with {FP8_TAPS} at most"
    return "its input is transposed (transA)" if node.attributes.get_int("transA", 0) else None


def _is_narrow(weight: ir.TensorProtocol) -> bool:
    return min(weight.shape.numpy()[:2]) <= FP8_CHANNELS


def taps_of(node: ir.Node, weight: ir.TensorProtocol) -> int:
    """How many positions the kernel of a convolution has; 1 for a matrix product."""
    return int(np.prod(weight.shape.numpy()[2:])) if node.op_type.startswith("Conv") else 1


def _is_depthwise(node: ir.Node, weight: ir.TensorProtocol) -> bool:
    """One input channel per group; of a ConvTranspose's weight (C, M / groups, ...) C counts them all."""
    groups = node.attributes.get_int("group", 1)
    channels_in, second = weight.shape.numpy()[:2]
    per_group = second if node.op_type == "Conv" else channels_in // groups
    return node.op_type.startswith("Conv") and groups > 1 and per_group == 1


def _activations(chosen: Collection[ir.Node]) -> list[tuple[ir.Node, int]]:
    return sorted(((node, 0) for node in chosen), key=lambda place: place[0].name or "")


def _residual_branches(graph: ir.Graph, chosen: Collection[ir.Node]) -> list[tuple[ir.Node, int]]:
    """For each Add of a quantised convolution's result and something else: where the something else comes in.

    When both come from convolutions (a projection shortcut), the one computed last takes the addition.
    """
    order = {node: i for i, node in enumerate(graph)}
    places = []
    for node in graph:
        if node.op_type != "Add" or any(v is None or constant(v) is not None or v.dtype != FLOAT for v in node.inputs):
            continue
        makers = [(order[maker], i) for i, v in enumerate(node.inputs) if (maker := _fusable(v, chosen)) is not None]
        if makers:
            note(node, "float: one branch is quantised, so that it fuses into the convolution")
            places.append((node, 1 - max(makers)[1]))
    return places


def _fusable(value: ir.Value | None, chosen: Collection[ir.Node]) -> ir.Node | None:
    """The quantised convolution that computes a value for nobody but the Add."""
    node = value.producer() if value is not None and single_use(value) else None
    return node if node in chosen and node is not None and node.op_type.startswith("Conv") else None


class _Writer:
    """Insert Q/DQ; each tensor and each weight is dequantised once, for all its readers."""

    def __init__(self, graph: ir.Graph, calibration: Calibration, per_channel: bool, codes: Codes) -> None:
        self.graph, self.calibration, self.per_channel, self.codes = graph, calibration, per_channel, codes
        self.names = Names(graph)
        self.zero = self._new(f"{codes.name}_zero_point", np.zeros((), codes.dtype.numpy()))
        self.pairs: dict[ir.Value, ir.Value] = {}
        self.weights: dict[tuple[ir.Value, int | None], ir.Value] = {}
        self.readers: dict[tuple[ir.Value, int | None], list[tuple[ir.Node, Place]]] = {}

    def write(self, chosen: Collection[ir.Node], places: Iterable[tuple[ir.Node, int]]) -> None:
        for node in sorted(chosen, key=lambda node: node.name or ""):  # before Q/DQ take the place of their inputs
            x, weight = node.inputs[0], node.inputs[1]
            assert x is not None and weight is not None
            self.readers.setdefault(self._key(node, weight), []).append((node, place(node, x.name or "")))
        for node, position in places:
            node.replace_input_with(position, self._activation(node.inputs[position]))
        for node in sorted(chosen, key=lambda node: node.name or ""):
            node.replace_input_with(1, self._weight(node, node.inputs[1]))

    def _activation(self, value: ir.Value | None) -> ir.Value:
        assert value is not None
        if value not in self.pairs:
            step = self.calibration.scale(value.name or "", self.codes.largest)
            scale = self._new(f"{value.name}_scale", np.array(step, np.float32))
            q = self._node("Quantize", [value, scale, self.zero], value, self.codes.dtype)
            dq = self._node("Dequantize", [q.outputs[0], scale, self.zero], value, FLOAT)
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], [q, dq])
            else:
                self.graph.insert_after(producer, [q, dq])
            self.pairs[value] = dq.outputs[0]
        return self.pairs[value]

    def _weight(self, node: ir.Node, value: ir.Value | None) -> ir.Value:
        data = array(value)
        assert value is not None and data is not None
        key = value, axis = self._key(node, value)
        if key not in self.weights:
            codes, scale = quantize_weight(data, axis, self.codes)
            if self.codes.fitted:
                readers = [self._mean_and_variance(*reader, data) for reader in self.readers[key]]
                scale = best_scales(data, scale, axis, self.codes.encode, readers)
                codes = self.codes.encode(data / scale.reshape([-1 if a == axis else 1 for a in range(data.ndim)]))
            inputs = [self._new(f"{value.name}_{self.codes.name}", codes), self._new(f"{value.name}_scale", scale)]
            dq = self._node("Dequantize", inputs, value, FLOAT)
            if axis is not None:
                dq.attributes["axis"] = ir.AttrInt64("axis", axis)
            self.graph.insert_before(self.graph[0], dq)
            self.weights[key] = dq.outputs[0]
        return self.weights[key]

    def _key(self, node: ir.Node, weight: ir.Value) -> tuple[ir.Value, int | None]:
        data = array(weight)
        assert data is not None
        return weight, channel_axis(node, data.ndim) if self.per_channel else None

    def _mean_and_variance(self, node: ir.Node, where: Place, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the inputs of a product, laid along its weight; 0 and 1 where nobody measured them."""
        if where not in self.calibration.moments:
            return np.zeros(()), np.ones(())
        mean, square = (along_weight(node, weight, np.array(each)) for each in self.calibration.moments[where])
        return mean, np.maximum(square - mean**2, 0)

    def _new(self, name: str, data: np.ndarray) -> ir.Value:
        return initializer(self.graph, self.names.fresh(name), data)

    def _node(self, what: str, inputs: list[ir.Value], like: ir.Value, dtype: ir.DataType) -> ir.Node:
        """`Quantize` or `Dequantize` of a tensor: x_quantize gives out x_quantized."""
        name = f"{like.name}_{what.lower()}"
        node = ir.Node("", f"{what}Linear", inputs, name=self.names.fresh(name))
        out = node.outputs[0]
        out.name, out.shape, out.type = self.names.fresh(f"{name}d"), like.shape, ir.TensorType(dtype)
        return node


def quantize_weight(weight: np.ndarray, axis: int | None, kind: Codes = INT8_CODES) -> tuple[np.ndarray, np.ndarray]:
    """Round a weight to codes: of INT8, those from -127 to 127.

    Args:
        weight: float32, any shape.
        axis: the axis with a scale for each entry, or None for one scale.
        kind: which codes.

    Returns:
        Codes of the same shape, and the float32 scales, (channels,) or (): weight is about codes * scale.

    >>> codes, scale = quantize_weight(np.array([[1.0, -0.5], [0.02, 0.005]], np.float32), axis=0)
    >>> codes.tolist()
    [[127, -64], [127, 32]]
    """
    others = None if axis is None else tuple(a for a in range(weight.ndim) if a != axis)
    amax = np.abs(weight).max(axis=others, keepdims=True).astype(np.float32)
    floor = max(float(amax.max()) * _SMALLEST_CHANNEL, float(np.finfo(np.float32).tiny) * kind.largest)
    if not amax.any():  # any scale will do, but it must not become 0 in FP16, which TensorRT refuses
        floor = 1.0
    scale = np.maximum(amax, np.float32(floor)) / np.float32(kind.largest)
    codes = kind.encode(weight / scale)
    return codes, scale.reshape(()) if axis is None else scale.reshape(-1)


def channel_axis(node: ir.Node, rank: int) -> int:
    """The axis of a weight along which output channels lie."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1):
        return 0
    return 1 if node.op_type in ("ConvTranspose", "Gemm") else rank - 1


def _summary(
    chosen: Collection[ir.Node],
    places: list[tuple[ir.Node, int]],
    choices: dict[ir.Node, Choice],
    calibration: Calibration,
    dtype: str,
) -> str:
    counts = Counter(node.op_type for node in chosen)
    what = ", ".join(f"{count} {op}" for op, count in counts.most_common())
    left = Counter(choice.reason for choice in choices.values() if not choice.quantized)
    why = "".join(f"; {count} left in float: {reason}" for reason, count in left.most_common())
    return (
        f"{what} in {dtype}, {len(places) - len(chosen)} residual branches, "
        f"{len(calibration)} ranges by {calibration.method} from {calibration.batches} batches{why}"
    )
