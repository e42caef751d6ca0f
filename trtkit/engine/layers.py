"""What TensorRT made of a network: its layers, read from the build log or from the engine inspector.

Without a GPU an engine cannot be opened, but the builder at DETAILED verbosity writes its layers into the log. With a
GPU the engine inspector gives the same as JSON. Both become the same `Layer`.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from trtkit.errors import EngineError


class LayerTensor(NamedTuple):
    """A tensor between layers. A dimension of -1 changes at run time; `format` says how it lies in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # TensorRT's word: Float, Half, BFloat16, Int8, FP8, Int32, Int64, Bool
    format: str  # Linear, NHWC, ...


class Layer(NamedTuple):
    """One layer of an engine: usually one GPU kernel, into which one or many ONNX nodes were fused."""

    name: str
    kind: str  # TensorRT's word: correlation (convolution), gemm, kgen (a generated kernel), ...
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    tactic: str
    onnx_nodes: tuple[str, ...]  # names of the ONNX nodes (or the framework's layers) it computes, in TensorRT's order
    profile: int = 0

    @property
    def ops(self) -> str:
        """The readable part of a generated kernel's name: __myl_MulAddMoveReluMean_0x12ab -> MulAddMoveReluMean."""
        match = re.match(r"__myl_([A-Za-z0-9]+)_(0x|myl\d)", self.tactic or self.name)
        return match.group(1) if match else self.kind

    @property
    def launches(self) -> bool:
        """Whether it starts a kernel; a shape_call only computes sizes on the host."""
        return self.kind not in ("shape_call", "signal", "wait")


_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[-\d, ]*)\].*?Datatype: (?P<dtype>\w+), Format: (?P<format>.*?) \}"
)
_PROFILE = re.compile(r" \[profile (\d+)\]$|_myl(\d+)_\d+$")


def from_log(messages: list[str]) -> list[Layer]:
    """The layers in a build log: the message that starts with "Layers:" has one line for each.

    Raises:
        EngineError: no such message, so the build was not at DETAILED verbosity or TensorRT changed its words.
    """
    found = [message for message in messages if message.startswith("Layers:")]
    if not found:
        raise EngineError(
            "The build log lists no layers. Build with profiling_verbosity DETAILED and a VERBOSE logger."
        )
    # not splitlines(): it breaks at \x1e, which separates the ONNX nodes of one layer
    lines = [line for message in found for line in message.split("\n")[1:]]
    return [_from_line(line) for line in lines if line.startswith("Name: ")]


def _from_line(line: str) -> Layer:
    """One line of the log: `Name: a, LayerType: b, Inputs: [ {...} ], ... Metadata: [ONNX Layer: n]`."""
    fields: dict[str, str] = {}
    rest = line
    for key, following in zip(_KEYS, [*_KEYS[1:], None], strict=True):
        rest = rest.removeprefix(f"{key}: ")
        fields[key], _, rest = rest.partition(f", {following}: ") if following else (rest, "", "")
    return _layer(
        fields["Name"],
        fields["LayerType"],
        _tensors(fields["Inputs"]),
        _tensors(fields["Outputs"]),
        fields["TacticName"],
        fields["Metadata"],
    )


_KEYS = ("Name", "LayerType", "Inputs", "Constants", "Outputs", "TacticName", "StreamId", "Metadata")


def _tensors(text: str) -> tuple[LayerTensor, ...]:
    return tuple(
        LayerTensor(
            m["name"], tuple(int(d) for d in m["dims"].split(",") if d.strip()), m["dtype"], _short_format(m["format"])
        )
        for m in _TENSOR.finditer(text)
    )


def _short_format(text: str) -> str:
    """'(NHWC) Channel major format' -> 'NHWC'."""
    match = re.match(r"\((.*?)\)", text)
    return match.group(1) if match else text


def from_inspector(text: str) -> list[Layer]:
    """The layers in the JSON of `IEngineInspector.get_engine_information`.

    Raises:
        EngineError: the text is no such JSON, or the engine was built without DETAILED verbosity.
    """
    try:
        entries = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"This is not what TensorRT's engine inspector writes: {error!r}") from error
    if any(isinstance(entry, str) for entry in entries):
        raise EngineError("The engine keeps only the names of its layers: it was built without DETAILED verbosity.")
    return [
        _layer(
            e.get("Name", ""),
            e.get("LayerType", ""),
            _json_tensors(e.get("Inputs", [])),
            _json_tensors(e.get("Outputs", [])),
            e.get("TacticName", ""),
            e.get("Metadata", ""),
        )
        for e in entries
    ]


def _json_tensors(entries: list[dict[str, Any]]) -> tuple[LayerTensor, ...]:
    tensors = []
    for entry in entries:
        format_ = entry.get("Format", entry.get("Format/Datatype", ""))
        dtype = entry.get("Datatype") or _dtype_of(format_)
        tensors.append(
            LayerTensor(entry.get("Name", ""), tuple(entry.get("Dimensions", ())), dtype, _short_format(format_))
        )
    return tuple(tensors)


def _dtype_of(format_: str) -> str:
    """Full TensorRT writes both into one field: 'Row major linear FP16 format'."""
    names = {"FP32": "Float", "FP16": "Half", "BF16": "BFloat16", "INT8": "Int8", "INT32": "Int32", "INT64": "Int64"}
    return next((word for short, word in names.items() if short in format_ or word in format_), "")


def _layer(
    name: str, kind: str, inputs: tuple[LayerTensor, ...], outputs: tuple[LayerTensor, ...], tactic: str, metadata: str
) -> Layer:
    named = [_PROFILE.search(text) for text in (name, *(tensor.name for tensor in (*inputs, *outputs)))]
    profile = max((int(match[1] or match[2]) for match in named if match), default=0)
    return Layer(name, kind, inputs, outputs, tactic, _onnx_nodes(metadata), profile)


# The parser writes [ONNX Layer: ...] into a layer's metadata, `trtkit.engine.network` [Keras Layer: ...] and so on.
_MARK = re.compile(r"\[(?:ONNX|Keras|torch) Layer: ")


def _onnx_nodes(metadata: str) -> tuple[str, ...]:
    """The names in `[ONNX Layer: a]\\x1e[ONNX Layer: b]__gemm_from_conv1x1`, each once, in order.

    What stands between them differs (\\x1e, \\x1f, a suffix, nothing), and a name may hold brackets itself: so a name
    reaches from its opening mark to the last closing bracket before the next one.
    """
    parts = _MARK.split(metadata)[1:]
    return tuple(dict.fromkeys(part[: part.rindex("]")] for part in parts if "]" in part))
