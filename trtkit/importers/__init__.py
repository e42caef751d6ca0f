"""From whatever a network comes as to a Model."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import InlinePass

from trtkit import onnx_file, onnx_graph
from trtkit.errors import ModelError
from trtkit.importers.caffe2 import from_caffe2, is_caffe2
from trtkit.importers.keras import SUFFIXES as KERAS_FILES
from trtkit.importers.keras import from_keras, from_keras_file, is_keras
from trtkit.importers.sklearn import from_sklearn, is_estimator
from trtkit.model import Model, collection_paused, every_node

_TOO_OLD = 13  # explicit per-channel Q/DQ came with opset 13; older files are lifted by ONNX's own converter


def load(source: Any, example_inputs: Any = None, *, name: str | None = None, dynamic_batch: bool = True) -> Model:
    """Load a network.

    Args:
        source: the path of an ONNX file, its bytes, an `onnx.ModelProto`, an `onnx_ir.Model`, a `torch.nn.Module`, a
            Keras 3 model or the path of a .keras or .h5 file, a folder with Caffe2's init_net.pb and predict_net.pb,
            or a fitted estimator of scikit-learn.
        example_inputs: for a torch module: the tensors it is called with, a tuple, or a dict by argument name. For
            Keras only where the model does not say its input shapes; for Caffe2, whose files never do.
        name: what to call it; by default the file's or the class's name.
        dynamic_batch: let the first dimension of every input change (not for ONNX, whose file says that).

    Raises:
        ModelError: the file is missing, is not ONNX or is truncated, or uses an operator that ONNX does not have.
        MissingError: a torch module or Keras model was given and what exports it is not installed.

    >>> text = '<ir_version: 10, opset_import: ["": 20]> tiny (float[n] x) => (float[n] y) {y = Abs(x)}'
    >>> load(onnx.parser.parse_model(text)).op_counts
    {'Abs': 1}
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_file() and path.suffix in KERAS_FILES:
            return from_keras_file(path, example_inputs, name=name, dynamic_batch=dynamic_batch)
        if is_caffe2(path):
            return from_caffe2(path, example_inputs, name=name, dynamic_batch=dynamic_batch)
        return _from_file(path, name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), name, f"{len(source):,} bytes")
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source, {}, name, "the ModelProto", base_dir=None)
    if isinstance(source, ir.Model):
        return Model(source.clone(), name)
    if is_keras(source):  # before torch: on its torch backend a Keras model is a torch module, too
        return from_keras(source, example_inputs, name=name, dynamic_batch=dynamic_batch)
    if is_estimator(source):
        return from_sklearn(source, name=name)
    torch = sys.modules.get("torch")  # whoever holds a torch module has imported torch
    if torch is not None and isinstance(source, torch.nn.Module):
        from trtkit.importers.torch import from_torch

        return from_torch(source, example_inputs, name=name, dynamic_batch=dynamic_batch)
    raise ModelError(
        f"Cannot load a {type(source).__module__}.{type(source).__name__}. Give the path of an ONNX file, "
        "its bytes, an onnx.ModelProto, an onnx_ir.Model, a torch.nn.Module with example inputs, a Keras model or a "
        "fitted estimator."
    )


def _from_file(path: Path, name: str | None) -> Model:
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the path of the .onnx file in it.")
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.onnx")) if path.parent.is_dir() else []
        hint = f" ONNX files in that folder: {', '.join(near[:5])}." if near else ""
        raise ModelError(f"No such file: {path}.{hint}")
    data = np.fromfile(path, np.uint8)  # NumPy asks for large pages of memory, which halves the time of a large read
    data.setflags(write=False)
    return _from_bytes(data.data, name or path.stem, str(path), base_dir=path.parent)


@collection_paused()
def _from_bytes(data: onnx_file.Chunk, name: str | None, what: str, base_dir: Path | None = None) -> Model:
    light, where = onnx_file.split(data)

    def read() -> tuple[onnx.ModelProto, dict[str, ir.Tensor]]:
        proto = _parse(light, what)
        try:
            return proto, _stored_weights(proto, data, where)
        except ModelError as error:
            raise ModelError(f"{what}: {error}") from error

    return _from_proto(*read(), name, what, base_dir, read)


def _stored_weights(
    proto: onnx.ModelProto, data: onnx_file.Chunk, where: Mapping[int, tuple[int, int]]
) -> dict[str, ir.Tensor]:
    """Tensors that look at a file's bytes, by name; those of odd types are put back into the message."""
    found = {}
    for place, (start, end) in where.items():
        info = proto.graph.initializer[place]
        if info.data_type not in ir.DataType._value2member_map_ or not onnx_file.whole_bytes(info.data_type):
            info.raw_data = bytes(data[start:end])
        else:
            _check_length(info, end - start)
            found[info.name] = onnx_file.tensor(info, data, start, end)
    return found


def _parse(data: onnx_file.Chunk, what: str) -> onnx.ModelProto:
    """Bytes to ModelProto. An empty message is valid protobuf, so emptiness is asked for as well."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        looks = " It looks like a zip archive (a PyTorch checkpoint?)." if data[:2] == b"PK" else ""
        raise ModelError(
            f"{what} is not an ONNX model, or is cut off: protobuf cannot read it.{looks} Export or download it again."
        ) from error
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(f"{what} is not an ONNX model: it holds no graph. Was the export or download interrupted?")
    return proto


def _from_proto(
    proto: onnx.ModelProto,
    weights: Mapping[str, ir.Tensor],
    name: str | None,
    what: str,
    base_dir: Path | None,
    read: Callable[[], tuple[onnx.ModelProto, Mapping[str, ir.Tensor]]] | None = None,
) -> Model:
    """A model from its message; `weights` are the values of initialisers that the message itself lacks.

    `read` gives both once more: from them the model can make its graph again, see `Model.working_graph`.
    """
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=_TOO_OLD)
    try:
        if opset < _TOO_OLD:
            _check_liftable(proto, opset)
            proto, read = onnx.version_converter.convert_version(proto, _TOO_OLD), None
        _check(proto)
        _check_lengths(proto, weights)
        graph = _deserialized(proto, weights)
    except ModelError as error:
        raise ModelError(f"{what}: {error}") from error
    except Exception as error:  # the checker, the converter and onnx_ir each raise errors of their own
        raise ModelError(f"{what} is ONNX, but not valid: {error}") from error
    elsewhere = _resolve_external_data(graph, base_dir, what)
    if read is None or elsewhere:  # other files may be gone when they are wanted again
        return Model(_inlined(graph), name)
    return Model(_inlined(graph), name, remake=lambda: _inlined(_deserialized(*read())))


@collection_paused()
def _deserialized(proto: onnx.ModelProto, weights: Mapping[str, ir.Tensor]) -> ir.Model:
    """The graph in a message, with the values that the message lacks, in the spelling that everything here asks for."""
    model = onnx_graph.read(proto)
    for key, tensor in weights.items():
        model.graph.initializers[key].const_value = tensor
    _normalise_domain(model)
    return model


def _check_liftable(proto: onnx.ModelProto, opset: int) -> None:
    """Refuse what ONNX's converter lets pass unchanged although its meaning changed."""
    for node in proto.graph.node:
        if node.op_type == "Scan" and opset < 9:
            raise ModelError(
                f"node {node.name!r} is a Scan of opset {opset}, which runs over a batch, unlike those of opset 9 and "
                "later. Export the model again with opset 13 or later."
            )


def _check(proto: onnx.ModelProto) -> None:
    """ONNX's checker on a copy without weights: it then costs milliseconds, and no copy of the weights."""
    standard = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type):
            raise ModelError(
                f"node {node.name!r} uses the operator {node.op_type!r}, which ONNX (opset {standard}) does "
                "not have. If it is a custom operator, its domain must say so."
            )
    onnx.checker.check_model(_without_weights(proto))


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with weights turned into inputs, made field by field so that no weight is copied."""
    bare = onnx.ModelProto(ir_version=proto.ir_version, functions=proto.functions, opset_import=proto.opset_import)
    graph = bare.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    onnx_file.drop_metadata(bare)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    given = {value.name for value in proto.graph.input}
    for weight in proto.graph.initializer:
        if weight.name not in given:
            onnx_file.declare_input(graph, weight.name, weight.data_type, weight.dims)
    return bare


def _check_lengths(proto: onnx.ModelProto, elsewhere: Container[str]) -> None:
    """Weights must hold as much as their shape says; nothing else would notice until they are read."""
    for weight in proto.graph.initializer:
        if weight.name in elsewhere:
            continue
        if weight.HasField("raw_data"):
            _check_length(weight, len(weight.raw_data))
        elif weight.data_location != onnx.TensorProto.EXTERNAL:
            _check_count(weight)


def _check_count(weight: onnx.TensorProto) -> None:
    """The same for values that are kept as numbers: complex ones are two, and several of 4 bits or fewer share one."""
    kind = ir.DataType(weight.data_type)
    given = len(getattr(weight, onnx.helper.tensor_dtype_to_field(weight.data_type)))
    needed = math.prod(weight.dims)
    if kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        needed *= 2
    elif kind != ir.DataType.STRING and kind.bitwidth < 8:
        needed = (needed * kind.bitwidth + 7) // 8
    if given != needed or min(weight.dims, default=0) < 0:
        raise ModelError(
            f"weight {weight.name!r} of shape {tuple(weight.dims)} and type {kind.name} has {given:,} values, and "
            f"needs {needed:,}. The file is damaged; export it again."
        )


def _check_length(weight: onnx.TensorProto, length: int) -> None:
    needed = (math.prod(weight.dims) * ir.DataType(weight.data_type).bitwidth + 7) // 8
    if length != needed:
        raise ModelError(
            f"weight {weight.name!r} of shape {tuple(weight.dims)} has {length:,} bytes, and needs "
            f"{needed:,}. The file is damaged; export it again."
        )


def _normalise_domain(model: ir.Model) -> None:
    """ONNX's own operators have two spellings of their domain, "" and "ai.onnx"; everything here asks for the first."""
    if "ai.onnx" in model.opset_imports:
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    for node in every_node(model.graph):
        if node.domain == "ai.onnx":
            node.domain = ""


def _resolve_external_data(model: ir.Model, base_dir: Path | None, what: str) -> bool:
    """Load weights kept beside the file; refuse a path that leads out of the model's folder. Whether there are any."""
    found = False
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if base_dir is None:
            raise ModelError(
                f"{what}: weight {value.name!r} lies in another file ({tensor.location}), which only a model "
                "loaded from a path can find. Give the path of the .onnx file."
            )
        file = (base_dir / tensor.location).resolve()
        if not file.is_relative_to(base_dir.resolve()):
            raise ModelError(
                f"{what}: weight {value.name!r} points to {tensor.location}, outside the model's folder. "
                "That is refused, since it could read any file of yours."
            )
        if not file.is_file():
            raise ModelError(
                f"{what}: the file {tensor.location} with its weights is missing beside it. Copy it there."
            )
        needed = (tensor.offset or 0) + tensor.nbytes
        if file.stat().st_size < needed:
            raise ModelError(
                f"{what}: {tensor.location} has {file.stat().st_size:,} bytes, and weight {value.name!r} ends "
                f"at byte {needed:,}. It is cut off: copy it again."
            )
        tensor.base_dir = str(base_dir)
        value.const_value = ir.Tensor(tensor.numpy().copy(), name=value.name)
        found = True
    return found


def _inlined(model: ir.Model) -> ir.Model:
    """Model-local functions replaced by their bodies, so that passes and the fusion map see one flat graph."""
    if model.functions:
        InlinePass()(model)
    return model
