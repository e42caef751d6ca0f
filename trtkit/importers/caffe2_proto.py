"""Caffe2's file format: the part of its protobuf schema that networks for inference use, to read and to write.

Caffe2 itself cannot be installed any more. Field numbers and types are those of `caffe2/proto/caffe2.proto` in the
PyTorch repository; they are put into descriptors here at run time, so that no generated file is needed. Messages keep
fields that are not named here as unknown ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# message -> field: (number, type); a * makes it repeated
_SCHEMA = {
    "Argument": {
        "name": (1, "string"), "f": (2, "float"), "i": (3, "int64"), "s": (4, "bytes"),
        "floats": (5, "float*"), "ints": (6, "int64*"), "strings": (7, "bytes*"),
    },
    "OperatorDef": {
        "input": (1, "string*"), "output": (2, "string*"), "name": (3, "string"), "type": (4, "string"),
        "arg": (5, "Argument*"), "engine": (7, "string"),
    },
    "NetDef": {
        "name": (1, "string"), "op": (2, "OperatorDef*"), "type": (3, "string"), "arg": (6, "Argument*"),
        "external_input": (7, "string*"), "external_output": (8, "string*"),
    },
}  # fmt: skip


@cache
def messages() -> dict[str, Any]:
    """The message classes by name: NetDef, OperatorDef and Argument.

    >>> net = messages()["NetDef"](name="tiny", external_output=["y"])
    >>> messages()["NetDef"].FromString(net.SerializeToString()).external_output
    ['y']
    """
    file = descriptor_pb2.FileDescriptorProto(name="trtkit/caffe2.proto", package="caffe2", syntax="proto2")
    for message, fields in _SCHEMA.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = described.field.add(name=name, number=number)
            repeated = kind.endswith("*")
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            base = kind.rstrip("*")
            if base in _SCHEMA:
                field.type, field.type_name = field.TYPE_MESSAGE, f".caffe2.{base}"
            else:
                field.type = getattr(field, f"TYPE_{base.upper()}")
    pool = descriptor_pool.DescriptorPool()  # of our own: the default one may hold another caffe2.proto
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe2.{name}")) for name in _SCHEMA}


def operator(kind: str, inputs: list[str], outputs: list[str], **arguments: Any) -> Any:
    """An OperatorDef; its arguments may be numbers, strings, or sequences of numbers.

    >>> conv = operator("Conv", ["x", "w"], ["y"], kernel=3, order="NCHW")
    >>> arguments_of(conv)
    {'kernel': 3, 'order': 'NCHW'}
    """
    op = messages()["OperatorDef"](type=kind, input=inputs, output=outputs)
    for name, value in arguments.items():
        argument = op.arg.add(name=name)
        if isinstance(value, str):
            argument.s = value.encode()
        elif isinstance(value, (bool, int, np.integer)):
            argument.i = int(value)
        elif isinstance(value, (float, np.floating)):
            argument.f = float(value)
        elif np.asarray(value).dtype.kind == "f":
            argument.floats.extend(np.asarray(value).ravel().tolist())
        else:
            argument.ints.extend(np.asarray(value).ravel().tolist())
    return op


def fill(name: str, values: np.ndarray) -> Any:
    """The operator of an init net that gives a blob its trained values, float32 or integers."""
    kind = {"f": "GivenTensorFill", "i": "GivenTensorInt64Fill"}[values.dtype.kind]
    op = operator(kind, [], [name], shape=list(values.shape), values=values.ravel())
    if not values.shape:
        op.arg[0].ClearField("ints")
    return op


def arguments_of(op: Any) -> dict[str, Any]:
    """The arguments of an operator as plain Python: int, float, str, list of these, or a float32 array."""
    return {arg.name: _value(arg) for arg in op.arg}


def _value(arg: Any) -> Any:
    if arg.floats:
        return np.array(arg.floats, np.float32)
    if arg.ints:
        return list(arg.ints)
    if arg.strings:
        return [text.decode(errors="replace") for text in arg.strings]
    for field in ("f", "i", "s"):
        if arg.HasField(field):
            value = getattr(arg, field)
            return value.decode(errors="replace") if isinstance(value, bytes) else value
    return []
