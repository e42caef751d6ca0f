"""ONNX files without a copy of their weights: the graph goes through protobuf, the weights' bytes go past it.

A protobuf message is a row of fields: a key (the field's number and how it is coded), for texts, bytes and messages a
length, then the content (protobuf.dev, "Encoding"). That is all one needs to find where a weight's bytes lie in a
file, to leave them out of what protobuf parses, and to write them behind what it serialised. BERT's 437 MB then cost
one read and one write; otherwise each way makes two more copies.

Whatever is not plainly as expected is left to protobuf whole, so that it alone judges what is a valid message.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from trtkit import onnx_graph

LARGE = 1000  # bytes; what is smaller may be a shape or an axis, and stays where everybody can read its value

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers of ModelProto, GraphProto and TensorProto in onnx.proto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field is coded

_CACHE_LINE = 64  # bytes

Chunk = bytes | memoryview


class Field(NamedTuple):
    """Where a field lies: its key at `begin`, its content from `start` to `end`."""

    number: int
    coding: int
    begin: int
    start: int
    end: int


def fields(data: Chunk, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in `data[start:end]`.

    Raises:
        ValueError: these bytes are no message.

    >>> message = onnx.TensorProto(dims=[2], raw_data=b"ab")
    >>> [(field.number, field.end - field.start) for field in fields(message.SerializeToString(), 0, 6)]
    [(1, 1), (9, 2)]
    """
    position = start
    while position < end:
        begin = position
        key, position = _varint(data, position, end)
        number, coding = key >> 3, key & 7
        if coding == _BYTES:
            length, position = _varint(data, position, end)
        elif coding == _VARINT:
            length = _varint(data, position, end)[1] - position
        elif coding in (_FIXED64, _FIXED32):
            length = 8 if coding == _FIXED64 else 4
        else:
            raise ValueError(f"field {number} is coded in the unknown way {coding}")
        if position + length > end:
            raise ValueError(f"field {number} is cut off")
        yield Field(number, coding, begin, position, position + length)
        position += length


def _varint(data: Chunk, position: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, the top bit saying that more follow; and where it ends."""
    number = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
    raise ValueError("a number is cut off")


def _prefix(number: int, length: int) -> bytes:
    """Key and length of a field of bytes."""
    out = bytearray([number << 3 | _BYTES])
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


def split(data: Chunk) -> tuple[Chunk, dict[int, tuple[int, int]]]:
    """An ONNX file's bytes without the bytes of large weights, and where these are.

    Returns:
        The same model, its large weights without `raw_data`; and for each of them, by its place among the graph's
        initialisers, where in `data` its `raw_data` starts and ends. Nothing is left out of what is not one regular
        message: protobuf will say what is wrong with it.
    """
    try:
        graphs = [field for field in fields(data, 0, len(data)) if field.number == _GRAPH and field.coding == _BYTES]
        if len(graphs) != 1:  # protobuf merges a message that comes twice; nobody writes such files
            return data, {}
        return _split_graph(memoryview(data), graphs[0])
    except ValueError:
        return data, {}


def _split_graph(data: memoryview, graph: Field) -> tuple[bytes, dict[int, tuple[int, int]]]:
    kept: list[Chunk] = []
    where: dict[int, tuple[int, int]] = {}
    copied, count = graph.start, itertools.count()
    for field in fields(data, graph.start, graph.end):
        if field.number != _INITIALIZER or field.coding != _BYTES:
            continue
        place = next(count)
        raw = _raw_data(data, field) if field.end - field.start > LARGE else None
        if raw is not None:
            where[place] = (raw.start, raw.end)
            rest = field.end - field.start - (raw.end - raw.begin)
            kept += [data[copied : field.begin], _prefix(_INITIALIZER, rest)]
            kept += [data[field.start : raw.begin], data[raw.end : field.end]]
            copied = field.end
    kept.append(data[copied : graph.end])
    head = _prefix(_GRAPH, sum(map(len, kept)))
    return b"".join([data[: graph.begin], head, *kept, data[graph.end :]]), where


def _raw_data(data: memoryview, tensor: Field) -> Field | None:
    """The field with a tensor's bytes, if there is one and it is large."""
    found = [f for f in fields(data, tensor.start, tensor.end) if f.number == _RAW_DATA and f.coding == _BYTES]
    return found[0] if len(found) == 1 and found[0].end - found[0].start > LARGE else None


def tensor(info: onnx.TensorProto, data: Chunk, start: int, end: int) -> ir.Tensor:
    """The tensor that `info` describes, its values seen (not copied) in `data[start:end]`, little-endian as in ONNX.

    Raises:
        ValueError: the shape takes another number of bytes.
    """
    dtype = ir.DataType(info.data_type)
    flat = np.frombuffer(data, dtype.numpy().newbyteorder("<"), (end - start) // dtype.numpy().itemsize, start)
    facts = {entry.key: entry.value for entry in info.metadata_props}
    shaped = flat.reshape(tuple(info.dims))
    return ir.Tensor(shaped, dtype, name=info.name, doc_string=info.doc_string or None, metadata_props=facts)


def whole_bytes(data_type: int) -> bool:
    """Whether each element of this type is some number of whole bytes: not so for text and for two int4 in a byte."""
    dtype = ir.DataType(data_type)
    return dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING) and dtype.bitwidth % 8 == 0


class _Light:
    """A graph as onnx_ir's serialiser sees it, but for the initialisers that are written past protobuf."""

    def __init__(self, graph: ir.Graph, initializers: dict[str, ir.Value]) -> None:
        self.name, self.doc_string, self.metadata_props = graph.name, graph.doc_string, graph.metadata_props
        self.inputs, self.outputs, self.initializers = graph.inputs, graph.outputs, initializers
        self._nodes = graph

    def __iter__(self) -> Iterator[ir.Node]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


class _LightModel:
    """A model as onnx_ir's serialiser sees it, around a `_Light` graph."""

    def __init__(self, model: ir.Model, graph: _Light) -> None:
        self._model, self.graph = model, graph

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def without_weights(model: ir.Model, *, noted: bool = True) -> tuple[onnx.ModelProto, list[ir.Value]]:
    """A model as protobuf message without its large weights, and these; on request without notes about nodes."""
    values = model.graph.initializers
    large = [v for v in values.values() if v.const_value is not None and v.const_value.nbytes > LARGE]
    names = {value.name for value in large}
    small = {name: value for name, value in values.items() if name not in names}
    if (proto := onnx_graph.write(model, small, noted=noted)) is not None:
        return proto, large
    light = _Light(model.graph, small)
    return ir.serde.serialize_model(_LightModel(model, light)), large  # type: ignore[arg-type]


def declare_input(graph: onnx.GraphProto, name: str, dtype: int, dims: Iterable[int]) -> None:
    """Add an input to a graph's message: what a weight is to those who need not know its values.

    >>> graph = onnx.GraphProto()
    >>> declare_input(graph, "w", onnx.TensorProto.FLOAT, (2, 3))
    >>> [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    [2, 3]
    """
    kind = graph.input.add(name=name).type.tensor_type
    kind.elem_type = dtype
    kind.shape.SetInParent()  # a scalar has a shape, too: one of no dimensions
    for size in dims:
        kind.shape.dim.add(dim_value=size)


def drop_metadata(proto: onnx.ModelProto) -> None:
    """Leave out what exporters note down about each node: two thirds of a graph, and neither checker nor inference ask.

    >>> proto = onnx.parser.parse_model(
    ...     '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) {y = Abs(x)}')
    >>> proto.graph.node[0].metadata_props.extend([onnx.StringStringEntryProto(key="from", value="line 3 of net.py")])
    >>> drop_metadata(proto)
    >>> len(proto.graph.node[0].metadata_props)
    0
    """
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")


def chunks(model: ir.Model) -> Iterator[Chunk]:
    """The pieces which, one after the other, are the model as an ONNX file.

    A weight is made ready, which for a transposed one is a copy, when its turn comes: only one is held at a time.
    """
    proto, large = without_weights(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    sizes = [_raw_size(value) for value in large]
    heads = [_head(value, size) for value, size in zip(large, sizes, strict=True)]
    yield proto.SerializeToString()
    yield _prefix(_GRAPH, len(graph) + sum(map(len, heads)) + sum(sizes))
    yield graph
    for value, head, size in zip(large, heads, sizes, strict=True):
        yield head
        if size:
            yield _raw(value)


def _tensor_of(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _raw_size(value: ir.Value) -> int:
    """How many bytes of a weight are written past protobuf: all of them, or none of a type of odd size."""
    weight = _tensor_of(value)
    return math.prod(weight.shape.numpy()) * weight.dtype.bitwidth // 8 if whole_bytes(weight.dtype) else 0


def _head(value: ir.Value, size: int) -> bytes:
    """An initialiser's message up to its `size` bytes; the whole message where none are written past protobuf."""
    weight = _tensor_of(value)
    if not size:
        info = ir.serde.serialize_tensor(weight)
        info.name = value.name or ""
        text = info.SerializeToString()
        return _prefix(_INITIALIZER, len(text)) + text
    dims = list(weight.shape.numpy())
    info = onnx.TensorProto(name=value.name, dims=dims, data_type=weight.dtype, doc_string=weight.doc_string or None)
    for key, fact in weight.metadata_props.items():
        info.metadata_props.add(key=key, value=fact)
    text = info.SerializeToString() + _prefix(_RAW_DATA, size)
    return _prefix(_INITIALIZER, len(text) + size) + text


def _raw(value: ir.Value) -> memoryview:
    """A weight's bytes in the order of ONNX: the last axis fastest, little-endian."""
    array = in_order(_tensor_of(value).numpy())
    return array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data


def in_order(array: np.ndarray) -> np.ndarray:
    """The array with its last axis contiguous; the array itself if it is so.

    A transposed matrix is copied in strips as wide as a cache line: NumPy's own copy comes back to each line once for
    every number in it, when the line is long gone from the cache, and takes two to three times as long.

    >>> in_order(np.arange(6).reshape(2, 3).T).tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    if array.ndim != 2 or array.flags.c_contiguous or not array.flags.f_contiguous:
        return np.ascontiguousarray(array)
    copy, strip = np.empty(array.shape, array.dtype), max(1, _CACHE_LINE // array.itemsize)
    for start in range(0, array.shape[1], strip):
        copy[:, start : start + strip] = array[:, start : start + strip]
    return copy
