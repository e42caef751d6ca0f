"""Caffe2 networks: an init net that fills the weights, and a predict net that computes with them.

Caffe2 can no longer be installed, so this was tested without it: nets with the weights of torchvision's SqueezeNet 1.1,
ResNet-18 and an AlexNet with LRN were written in Caffe2's format, imported, and their outputs compared with PyTorch's.
What the operators compute was taken from Caffe2's operator catalogue and source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import helper

from trtkit.errors import ModelError
from trtkit.importers.caffe2_ops import RULES, Op, Translation
from trtkit.importers.caffe2_proto import arguments_of, messages
from trtkit.model import Model

_OPSET, _IR_VERSION = 20, 10
_MAX_FILE = 2_000_000_000  # bytes; protobuf takes no more
_MAX_OPERATORS = 100_000
_MAX_ELEMENTS = 500_000_000  # of all weights together: a few bytes of a file can ask for any amount

_GIVEN = {"GivenTensorFill": np.float32, "GivenTensorIntFill": np.int32, "GivenTensorInt64Fill": np.int64,
          "GivenTensorBoolFill": np.bool_, "GivenTensorDoubleFill": np.float64}  # fmt: skip
_TYPES = {1: np.float32, 2: np.int32, 5: np.bool_, 10: np.int64, 13: np.float64}  # TensorProto.DataType
_RANDOM = ("XavierFill", "MSRAFill", "UniformFill", "GaussianFill", "UniformIntFill")

Shape = tuple[int | str, ...]


def from_caffe2(
    source: Path | tuple[bytes, bytes],
    example_inputs: Any = None,
    *,
    name: str | None = None,
    dynamic_batch: bool = True,
) -> Model:
    """Translate a Caffe2 network to ONNX.

    Args:
        source: a folder with init_net.pb and predict_net.pb, either of the two files, or (init, predict) as bytes.
        example_inputs: one array, or arrays by blob name; Caffe2's files do not say the shapes of inputs. Not needed
            where a value_info.json, `{"data": [1, [1, 3, 224, 224]]}`, lies beside them.
        dynamic_batch: let the first dimension of every input change.

    Raises:
        ModelError: a file is missing or damaged, holds random instead of trained weights, or uses an operator that
            trtkit does not know; names it and its position.

    >>> from trtkit.importers.caffe2_proto import fill, messages, operator
    >>> net = messages()["NetDef"]
    >>> init = net(op=[fill("w", np.ones((2, 3), np.float32)), fill("b", np.zeros(2, np.float32))])
    >>> predict = net(name="tiny", op=[operator("FC", ["x", "w", "b"], ["y"]), operator("Relu", ["y"], ["y"])],
    ...               external_input=["x", "w", "b"], external_output=["y"])
    >>> from_caffe2((init.SerializeToString(), predict.SerializeToString()), np.ones((1, 3), np.float32))
    Model('tiny': 2 nodes, 2 weights in 32 bytes, opset 20; x float32 (batch, 3) -> y float32 (batch, 2))
    """
    init_bytes, predict_bytes, info, folder = _read(source)
    weights = _weights(_parse(init_bytes, "the init net"))
    predict = _parse(predict_bytes, "the predict net")
    if not predict.op:
        raise ModelError("The predict net holds no operator. Were the init net and the predict net exchanged?")
    inputs = _inputs(predict, weights, _arrays(example_inputs) if example_inputs is not None else info, dynamic_batch)
    weights = {blob: array for blob, array in weights.items() if blob not in inputs}  # a placeholder in the init net
    translation = Translation(weights, {blob: len(shape) for blob, (shape, _) in inputs.items()})
    for position, op in enumerate(predict.op):
        _translate(translation, Op(position, op.type, tuple(op.input), tuple(op.output), arguments_of(op)))
    return _assemble(translation, predict, inputs, name or predict.name or folder or "caffe2")


def is_caffe2(path: Path) -> bool:
    """Whether a path looks like Caffe2's: a folder with its two files, or one of them."""
    if path.is_dir():
        return bool(_files(path, "predict_net.pb") or _files(path, "init_net.pb"))
    return path.name.endswith(("predict_net.pb", "init_net.pb"))


def _files(folder: Path, ending: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{ending}") if path.is_file())


def _read(source: Path | tuple[bytes, bytes]) -> tuple[bytes, bytes, dict[str, tuple[Shape, np.dtype]] | None, str]:
    """The two nets' bytes, what value_info.json says of the inputs, and the folder's name."""
    if isinstance(source, tuple):
        return *source, None, ""
    folder = source if source.is_dir() else source.parent
    data = []
    for ending in ("init_net.pb", "predict_net.pb"):
        found = _files(folder, ending)
        if len(found) != 1:
            what = "no file" if not found else f"{len(found)} files, {', '.join(p.name for p in found)},"
            raise ModelError(f"A Caffe2 network is two files, and {folder} has {what} whose name ends in {ending}.")
        if found[0].stat().st_size > _MAX_FILE:
            raise ModelError(f"{found[0]} has {found[0].stat().st_size:,} bytes; the limit is {_MAX_FILE:,}.")
        data.append(found[0].read_bytes())
    return data[0], data[1], _value_info(folder / "value_info.json"), folder.name


def _value_info(path: Path) -> dict[str, tuple[Shape, np.dtype]] | None:
    if not path.is_file():
        return None
    try:
        stated = json.loads(path.read_text())
        return {blob: (tuple(int(d) for d in shape), np.dtype(_TYPES[kind])) for blob, (kind, shape) in stated.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f'{path} should read like {{"data": [1, [1, 3, 224, 224]]}}: {error!r}') from error


def _parse(data: bytes, what: str) -> Any:
    try:
        net = messages()["NetDef"].FromString(data)
    except DecodeError as error:
        raise ModelError(f"{what.capitalize()} is no Caffe2 NetDef, or is cut off: protobuf cannot read it.") from error
    if len(net.op) > _MAX_OPERATORS:
        raise ModelError(f"{what.capitalize()} has {len(net.op):,} operators; the limit is {_MAX_OPERATORS:,}.")
    return net


def _weights(net: Any) -> dict[str, np.ndarray]:
    """Run the fill operators of an init net."""
    filled: dict[str, np.ndarray] = {}
    total = 0
    for position, op in enumerate(net.op):
        what = f"operator {position} of the init net ({op.type} -> {', '.join(op.output)})"
        if op.type in _RANDOM:
            raise ModelError(
                f"{what} fills with random numbers: this net was never trained. Give the trained init net."
            )
        if op.type != "ConstantFill" and op.type not in _GIVEN:
            raise ModelError(f"{what} is no fill operator that trtkit knows: {', '.join((*_GIVEN, 'ConstantFill'))}.")
        args = arguments_of(op)
        shape = [int(d) for d in args.get("shape", [])]
        total += math.prod(shape)
        if len(op.output) != 1 or any(d < 0 for d in shape) or total > _MAX_ELEMENTS:
            raise ModelError(
                f"{what} should fill one blob, and all of them together at most {_MAX_ELEMENTS:,} numbers; it asks for "
                f"the shape {tuple(shape)}."
            )
        filled[op.output[0]] = _filled(op.type, args, shape, what)
    return filled


def _filled(kind: str, args: dict[str, Any], shape: list[int], what: str) -> np.ndarray:
    if kind == "ConstantFill":
        code = args.get("dtype", 1)
        if code not in _TYPES:
            raise ModelError(f"{what} has the dtype {code}, which trtkit does not know.")
        return np.full(shape, args.get("value", 0), _TYPES[code])
    values: np.ndarray = np.atleast_1d(np.asarray(args.get("values", []), _GIVEN[kind]))
    if values.size != math.prod(shape):
        raise ModelError(f"{what} gives {values.size:,} values for the shape {tuple(shape)}. The file is damaged.")
    return values.reshape(shape)


def _arrays(given: Any) -> dict[str, tuple[Shape, np.dtype]]:
    """Shape and dtype of example inputs; one array alone gets the name ""."""
    named = given if isinstance(given, Mapping) else {"": given}
    arrays = {blob: np.asarray(value) for blob, value in named.items()}
    return {blob: (array.shape, array.dtype) for blob, array in arrays.items()}


def _inputs(
    net: Any, weights: dict[str, np.ndarray], given: dict[str, tuple[Shape, np.dtype]] | None, dynamic_batch: bool
) -> dict[str, tuple[Shape, np.dtype]]:
    """What a caller has to give the net: shapes by blob name, the first dimension "batch"."""
    written: set[str] = set()
    read: dict[str, None] = {}
    for op in net.op:
        read.update(dict.fromkeys(blob for blob in op.input if blob not in written))
        written.update(op.output)
    free = [blob for blob in read if blob not in weights]
    if given is None:
        raise ModelError(
            f"A Caffe2 file does not say the shapes of its inputs, here {free}: give example inputs, e.g. "
            "trtkit.load(folder, {'data': np.zeros((1, 3, 224, 224), np.float32)})."
        )
    if set(given) == {""}:
        if len(free) != 1:
            raise ModelError(f"The net's inputs are {free}, so give example inputs by name: a dict.")
        given = {free[0]: given[""]}
    unknown, missing = [b for b in given if b not in read], [b for b in free if b not in given]
    if unknown or missing:
        raise ModelError(f"The net's inputs are {free}; examples came for {sorted(given)}.")
    return {
        blob: (("batch", *shape[1:]) if dynamic_batch and shape else shape, dtype)
        for blob, (shape, dtype) in given.items()
    }


def _translate(translation: Translation, op: Op) -> None:
    if op.kind not in RULES:
        op.refuse(f"is none of the operators that trtkit knows: {', '.join(sorted(RULES))}.")
    if op.args.get("order", "NCHW") not in ("NCHW", b"NCHW"):
        op.refuse(f"wants the order {op.args['order']}; only NCHW is known.")
    try:
        RULES[op.kind](translation, op)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:  # arguments of the wrong kind
        op.refuse(f"has arguments or inputs that do not fit it: {error}")


def _assemble(t: Translation, net: Any, inputs: dict[str, tuple[Shape, np.dtype]], name: str) -> Model:
    outputs = list(net.external_output) or list(net.op[-1].output[:1])
    if lost := [blob for blob in outputs if blob not in t.current]:
        raise ModelError(f"The predict net says that it gives out {lost}, which no operator computes.")
    taken = [
        helper.make_tensor_value_info(blob, helper.np_dtype_to_tensor_dtype(dtype), shape)
        for blob, (shape, dtype) in inputs.items()
    ]
    given = [onnx.ValueInfoProto(name=output) for output in t.give_out(outputs)]
    graph = helper.make_graph(t.nodes, name, taken, given, t.initializers())
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    try:
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        onnx.checker.check_model(proto)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise ModelError(f"The shapes in the Caffe2 net {name!r} do not fit together: {error}") from error
    return Model(ir.from_proto(proto), name)
