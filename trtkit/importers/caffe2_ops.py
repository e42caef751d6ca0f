"""What each Caffe2 operator is in ONNX: one small function an operator, found in `RULES` by the operator's type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkit.errors import ModelError

_LEGACY_CEIL = 3  # Caffe2's enum LegacyPadding: 0 none, 1 VALID, 2 SAME, 3 Caffe's pooling, which rounds sizes up


class Op(NamedTuple):
    """One operator of a predict net: its place, type, blobs and arguments."""

    position: int
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    args: dict[str, Any]

    def __str__(self) -> str:
        return f"operator {self.position} of the predict net ({self.kind} -> {self.outputs[0] if self.outputs else ''})"

    def refuse(self, why: str) -> NoReturn:
        raise ModelError(f"{self} {why}")

    def spatial(self, one: str, many: str, default: int) -> list[int]:
        """kernel, stride or dilation of height and width, in any of Caffe2's spellings: kernel, kernels, kernel_h."""
        if many in self.args:
            return [int(v) for v in self.args[many]]
        both = self.args.get(one, default)
        return [int(self.args.get(f"{one}_h", both)), int(self.args.get(f"{one}_w", both))]

    def pads(self) -> list[int]:
        """Padding as ONNX orders it: top, left, bottom, right."""
        if "pads" in self.args:
            return [int(v) for v in self.args["pads"]]
        both = self.args.get("pad", 0)
        return [int(self.args.get(f"pad_{side}", both)) for side in "tlbr"]


class Translation:
    """An ONNX graph under construction. Caffe2 writes in place; here every write of a blob gets a new name."""

    def __init__(self, weights: dict[str, np.ndarray], inputs: dict[str, int]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.current = {name: name for name in (*weights, *inputs)}  # blob -> the ONNX value it stands for just now
        self.ranks = {**{name: array.ndim for name, array in weights.items()}, **inputs}  # of ONNX values
        self.taken = set(self.current)

    def read(self, op: Op, place: int) -> str:
        """The ONNX value of an operator's input."""
        if place >= len(op.inputs):
            op.refuse(f"needs an input number {place + 1}, and has {len(op.inputs)}.")
        blob = op.inputs[place]
        if blob not in self.current:
            op.refuse(f"reads the blob {blob!r}, which neither the init net nor an operator before it gives.")
        return self.current[blob]

    def reads(self, op: Op) -> list[str]:
        return [self.read(op, place) for place in range(len(op.inputs))]

    def array(self, op: Op, place: int) -> np.ndarray:
        """The values of an input that has to be a weight."""
        name = self.read(op, place)
        if name not in self.weights:
            op.refuse(f"needs constant values for its input {op.inputs[place]!r}, and an operator computes them.")
        return self.weights[name]

    def fresh(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self.taken:
            number += 1
            candidate = f"{name}_{number}"
        self.taken.add(candidate)
        return candidate

    def constant(self, name: str, values: np.ndarray) -> str:
        name = self.fresh(name)
        self.weights[name] = values
        self.ranks[name] = values.ndim
        return name

    def between(self, op: Op, kind: str, inputs: list[str], rank: int, **attributes: Any) -> str:
        """Add a node whose output no blob stands for."""
        output = self.fresh(f"{op.outputs[0]}_{kind.lower()}")
        self._add(op, kind, inputs, output, rank, attributes)
        return output

    def write(self, op: Op, kind: str, inputs: list[str], rank: int | None = None, **attributes: Any) -> None:
        """Add a node that computes the operator's first output; by default of the rank of its first input."""
        if not op.outputs:
            op.refuse("has no output.")
        output = self.fresh(op.outputs[0])
        self._add(op, kind, inputs, output, self.ranks[inputs[0]] if rank is None else rank, attributes)
        self._stand_for(op, output)

    def alias(self, op: Op, value: str) -> None:
        """Let the operator's first output be a value that is there already."""
        self._stand_for(op, value)

    def _add(self, op: Op, kind: str, inputs: list[str], output: str, rank: int, attributes: dict[str, Any]) -> None:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        self.ranks[output] = rank

    def _stand_for(self, op: Op, value: str) -> None:
        for blob in op.outputs[1:]:  # masks, scales, old shapes: what only training reads
            self.current.pop(blob, None)
        self.current[op.outputs[0]] = value

    def give_out(self, blobs: list[str]) -> list[str]:
        """The names of the graph's outputs: the last value of each blob, and no earlier one, gets the blob's name.

        A blob that no operator computes (an input or a weight given out) needs an Identity, and a name of its own.
        """
        computed = {name for node in self.nodes for name in node.output}
        swapped: dict[str, str] = {}
        outputs = []
        for blob in blobs:
            value = self.current[blob]
            if value not in computed or value in swapped:
                output = self.fresh(blob)
                self.nodes.append(helper.make_node("Identity", [value], [output], name=f"Identity_{len(self.nodes)}"))
            else:
                output = blob
                swapped |= {value: blob, blob: value} if blob in computed or blob == value else {value: blob}
            outputs.append(output)
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [swapped.get(name, name) for name in names]
        return outputs

    def initializers(self) -> list[onnx.TensorProto]:
        used = {name for node in self.nodes for name in node.input}
        return [numpy_helper.from_array(array, name) for name, array in self.weights.items() if name in used]


def conv(t: Translation, op: Op) -> None:
    """Conv: X, W (M, C/group, kH, kW), and a bias or none."""
    if op.args.get("legacy_pad", 0) not in (0, 1):
        op.refuse(f"has legacy_pad {op.args['legacy_pad']}, which a convolution of trtkit does not know.")
    weight = t.array(op, 1)
    if weight.ndim != 4:
        op.refuse(f"has a weight of shape {weight.shape}; only two-dimensional convolution is known.")
    t.write(
        op, "Conv", t.reads(op), kernel_shape=list(weight.shape[2:]), strides=op.spatial("stride", "strides", 1),
        pads=op.pads(), dilations=op.spatial("dilation", "dilations", 1), group=int(op.args.get("group", 1)),
    )  # fmt: skip


def pool(t: Translation, op: Op) -> None:
    """MaxPool, AveragePool; the average leaves padding out of the count, as ONNX does by default."""
    if op.args.get("global_pooling"):
        t.write(op, f"Global{op.kind}", t.reads(op)[:1])
        return
    legacy = op.args.get("legacy_pad", 0)
    if legacy not in (0, 1, _LEGACY_CEIL):
        op.refuse(f"has legacy_pad {legacy}, which trtkit does not know.")
    more: dict[str, Any] = {"ceil_mode": int(legacy == _LEGACY_CEIL)}
    if op.kind == "AveragePool":
        more["count_include_pad"] = int(op.args.get("count_include_pad", 0))
    kernel = op.spatial("kernel", "kernels", 0)
    if min(kernel, default=0) < 1:
        op.refuse("names no kernel size.")
    strides = op.spatial("stride", "strides", 1)
    t.write(op, op.kind, t.reads(op)[:1], kernel_shape=kernel, strides=strides, pads=op.pads(), **more)


def fully_connected(t: Translation, op: Op) -> None:
    """FC: Y = X W^T + b with W (N, K); FCTransposed has W (K, N). X is flattened to (batch, K) first."""
    if int(op.args.get("axis", 1)) != 1 or int(op.args.get("axis_w", 1)) != 1:
        op.refuse("flattens at another axis than 1, which trtkit does not know.")
    x, weight, bias = t.reads(op)
    if t.ranks[weight] != 2:
        op.refuse(f"has a weight of {t.ranks[weight]} dimensions; it must have 2.")
    if t.ranks[x] != 2:
        x = t.between(op, "Flatten", [x], 2, axis=1)
    t.write(op, "Gemm", [x, weight, bias], rank=2, transB=int(op.kind == "FC"))


def softmax(t: Translation, op: Op) -> None:
    """Softmax over all dimensions from `axis` on, as one: ONNX's Softmax takes a single axis."""
    (x,), axis = t.reads(op), int(op.args.get("axis", 1))
    rank = t.ranks[x]
    if axis in (rank - 1, -1):
        t.write(op, "Softmax", [x], axis=-1)
        return
    flat = t.between(op, "Flatten", [x], 2, axis=axis)
    chances = t.between(op, "Softmax", [flat], 2, axis=-1)
    shape = t.between(op, "Shape", [x], 1)
    t.write(op, "Reshape", [chances, shape], rank=rank)


def batch_norm(t: Translation, op: Op) -> None:
    """SpatialBN with stored statistics: X, scale, bias, mean, variance."""
    if not op.args.get("is_test", 0):
        op.refuse("has is_test=0: it would normalise by its batch, as in training. Use the net made for prediction.")
    t.write(op, "BatchNormalization", t.reads(op)[:5], epsilon=float(op.args.get("epsilon", 1e-5)))


def dropout(t: Translation, op: Op) -> None:
    """Dropout does nothing at prediction."""
    if not op.args.get("is_test", 0):
        op.refuse("has is_test=0: it would drop values at random. Use the net made for prediction.")
    t.alias(op, t.read(op, 0))


def lrn(t: Translation, op: Op) -> None:
    """x / (bias + alpha/size * sum of squares over `size` channels)^beta, the same in both."""
    alpha, beta = float(op.args.get("alpha", 0.0)), float(op.args.get("beta", 0.0))
    size, bias = int(op.args.get("size", 0)), float(op.args.get("bias", 1.0))
    if size < 1 or size % 2 == 0:
        op.refuse(f"has size {size}; it must be odd and positive.")
    t.write(op, "LRN", t.reads(op)[:1], size=size, alpha=alpha, beta=beta, bias=bias)


def concat(t: Translation, op: Op) -> None:
    """Concat along `axis` (the channels by default); with add_axis the inputs get that axis first."""
    values, axis = t.reads(op), int(op.args.get("axis", 1))
    rank = t.ranks[values[0]]
    if op.args.get("add_axis"):
        axes = t.constant("axes", np.array([axis], np.int64))
        values, rank = [t.between(op, "Unsqueeze", [v, axes], rank + 1) for v in values], rank + 1
    t.write(op, "Concat", values, rank=rank, axis=axis)


def arithmetic(t: Translation, op: Op) -> None:
    """Add, Sub, Mul, Div. The old `broadcast` lays B along A from `axis` on; without `axis` along A's last dims."""
    a, b = t.reads(op)
    axis = int(op.args.get("axis", -1)) if op.args.get("broadcast") else -1
    if axis >= 0 and t.ranks[b] and (missing := t.ranks[a] - axis - t.ranks[b]) > 0:
        places = t.constant("axes", np.arange(t.ranks[b], t.ranks[b] + missing))
        b = t.between(op, "Unsqueeze", [b, places], t.ranks[b] + missing)
    t.write(op, op.kind, [a, b], rank=max(t.ranks[a], t.ranks[b]))


def total(t: Translation, op: Op) -> None:
    """Sum of any number of blobs of one shape."""
    t.write(op, "Sum", t.reads(op))


def reshape(t: Translation, op: Op) -> None:
    """Reshape to the argument `shape` or to a constant second input; 0 keeps a dimension, -1 is what is left."""
    shape = op.args["shape"] if "shape" in op.args else t.array(op, 1).tolist()
    target = t.constant("shape", np.asarray(shape, np.int64))
    t.write(op, "Reshape", [t.read(op, 0), target], rank=len(shape))


def flatten(t: Translation, op: Op) -> None:
    t.write(op, "Flatten", t.reads(op), rank=2, axis=int(op.args.get("axis", 1)))


def transpose(t: Translation, op: Op) -> None:
    axes = [int(a) for a in op.args.get("axes", [])] or list(range(t.ranks[t.read(op, 0)]))[::-1]
    t.write(op, "Transpose", t.reads(op), perm=axes)


def prelu(t: Translation, op: Op) -> None:
    """PRelu with one slope, or one a channel, which ONNX wants as (C, 1, 1)."""
    x, slope = t.read(op, 0), t.array(op, 1)
    if slope.size > 1:
        slope = slope.reshape(-1, *[1] * (t.ranks[x] - 2))
    t.write(op, "PRelu", [x, t.constant(f"{op.inputs[1]}_by_channel", slope)])


def alias(t: Translation, op: Op) -> None:
    t.alias(op, t.read(op, 0))


def _elementwise(kind: str, **defaults: float) -> Callable[[Translation, Op], None]:
    """An activation with arguments that ONNX calls the same."""

    def rule(t: Translation, op: Op) -> None:
        attributes: dict[str, Any] = {name: float(op.args.get(name, value)) for name, value in defaults.items()}
        t.write(op, kind, t.reads(op)[:1], **attributes)

    return rule


RULES: dict[str, Callable[[Translation, Op], None]] = {
    "Conv": conv,
    "FC": fully_connected,
    "FCTransposed": fully_connected,
    "MaxPool": pool,
    "AveragePool": pool,
    "Relu": _elementwise("Relu"),
    "LeakyRelu": _elementwise("LeakyRelu", alpha=0.01),
    "PRelu": prelu,
    "Sigmoid": _elementwise("Sigmoid"),
    "Tanh": _elementwise("Tanh"),
    "Elu": _elementwise("Elu", alpha=1.0),
    "Softplus": _elementwise("Softplus"),
    "Softsign": _elementwise("Softsign"),
    "Exp": _elementwise("Exp"),
    "Sqrt": _elementwise("Sqrt"),
    "Abs": _elementwise("Abs"),
    "Negative": _elementwise("Neg"),
    "Softmax": softmax,
    "SpatialBN": batch_norm,
    "LRN": lrn,
    "Dropout": dropout,
    "Concat": concat,
    "Sum": total,
    "Add": arithmetic,
    "Sub": arithmetic,
    "Mul": arithmetic,
    "Div": arithmetic,
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Copy": alias,
    "Alias": alias,
    "StopGradient": alias,
}
