"""A hypothesis strategy for ONNX graphs: many operators, broadcasting, a changeable batch, bodies, old opsets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int | str, ...]
OPSETS = (9, 11, 12, 13, 15, 17, 18, 20, 21)
BATCH = "n"
UNARY = ("Relu", "Neg", "Abs", "Sigmoid", "Tanh", "Identity", "Dropout", "Erf", "Softplus", "Floor", "Sign")
BINARY = ("Add", "Sub", "Mul", "Max", "Min")


class Grower:
    """Adds operators one by one, as `draw` decides; `pool` holds the float32 tensors so far with their shapes."""

    def __init__(self, draw: Callable[[Any], Any], opset: int) -> None:
        self.draw, self.opset = draw, opset
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.pool: list[tuple[str, Shape]] = [("x", (BATCH, 4, 6)), ("z", (BATCH, 4, 6))]
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        out = self.name()
        self.nodes.append(helper.make_node(op, inputs, [out], name=f"{op}_{out}", **attributes))
        return out

    def constant(self, data: Any, dtype: Any = np.float32) -> str:
        """As an initialiser or as a Constant node."""
        array = np.asarray(data, dtype)
        if self.draw(st.booleans()):
            out = self.name()
            self.weights.append(numpy_helper.from_array(array, out))
            return out
        return self.node("Constant", [], value=numpy_helper.from_array(array))

    def pick(self, *shapes: Shape) -> tuple[str, Shape]:
        able = [each for each in self.pool if not shapes or each[1] in shapes]
        return self.draw(st.sampled_from(able[-6:]))

    def add(self, name: str, shape: Shape) -> None:
        self.pool.append((name, shape))

    # One method for a kind of step

    def unary(self) -> None:
        x, shape = self.pick()
        self.add(self.node(self.draw(st.sampled_from(UNARY[:7] if self.opset < 13 else UNARY)), [x]), shape)

    def casts(self) -> None:
        x, shape = self.pick()
        for to in self.draw(
            st.lists(st.sampled_from([TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32]), max_size=2)
        ):
            x = self.node("Cast", [x], to=to)
        self.add(self.node("Cast", [x], to=TensorProto.FLOAT), shape)

    def binary(self) -> None:
        x, shape = self.pick()
        y, _ = self.pick(shape)
        self.add(self.node(self.draw(st.sampled_from(BINARY)), [x, y]), shape)

    def with_constant(self) -> None:
        x, shape = self.pick()
        like = [1 if isinstance(d, str) or self.draw(st.booleans()) else d for d in shape]
        like = like[self.draw(st.integers(0, len(like))) :]
        kind = self.draw(st.sampled_from(["zeros", "ones", "random", "half"]))
        data = {"zeros": np.zeros, "ones": np.ones}.get(kind, lambda s: np.full(s, 0.5))(like)
        data = self.rng.uniform(0.5, 2, like) if kind == "random" else data
        op = self.draw(st.sampled_from(BINARY if kind == "zeros" else (*BINARY, "Div")))
        c = self.constant(data)
        first = op in BINARY and self.draw(st.booleans())
        self.add(self.node(op, [c, x] if first else [x, c]), shape)

    def transpose(self) -> None:
        x, shape = self.pick()
        perm = list(self.draw(st.permutations(range(len(shape)))))
        self.add(self.node("Transpose", [x], perm=perm), tuple(shape[i] for i in perm))

    def between_transposes(self) -> None:
        """Two tensors transposed alike, a few operators on them, and back or on to another order."""
        x, shape = self.pick((BATCH, 4, 6))
        perm = list(self.draw(st.permutations(range(3))))
        a, b = (self.node("Transpose", [t], perm=perm) for t in (x, self.pick((BATCH, 4, 6))[0]))
        for kind in self.draw(st.lists(st.sampled_from(["Relu", "Add", "bias", "join", "mean"]), max_size=4)):
            last = [1 if isinstance(d, str) else d for d in (shape[axis] for axis in perm)][-1]
            if kind == "bias":
                a = self.node("Mul", [a, self.constant(self.rng.uniform(0.5, 2, last))])
            elif kind == "mean":
                axes = {"axes": [perm.index(2)]} if self.opset < 18 else {}
                more = [self.constant([perm.index(2)], np.int64)] if self.opset >= 18 else []
                a = self.node("Sub", [a, self.node("ReduceMean", [a, *more], keepdims=1, **axes)])
            elif kind == "join":
                axis = perm.index(2)
                a = self.slice(self.node("Concat", [a, b], axis=axis), 3, 9, axis)
            else:
                a = self.node(kind, [a, b] if kind == "Add" else [a])
        if self.draw(st.booleans()):
            self.add(self.node("Neg", [a]), tuple(shape[axis] for axis in perm))
        if self.opset >= 18 and self.draw(st.booleans()):
            axis = self.draw(st.sampled_from([i for i in range(3) if perm[i]]))
            less = self.node("ReduceMax", [a, self.constant([axis], np.int64)], keepdims=0)
            kept = tuple(shape[p] for i, p in enumerate(perm) if i != axis)
            self.add(self.node("Relu", [less]), kept)
        self.add(self.node("Transpose", [a], perm=[perm.index(axis) for axis in range(3)]), shape)

    def reshape(self) -> None:
        """(n, 4, 6) to another view and back, the way an exporter writes it, or by a constant."""
        x, _ = self.pick((BATCH, 4, 6))
        rest = self.draw(st.sampled_from([[24], [6, 4], [4, 6], [2, 2, 6]]))
        if self.draw(st.booleans()):
            first = self.node("Gather", [self.node("Shape", [x]), self.constant([0], np.int64)], axis=0)
            to = self.node("Concat", [first, self.constant(rest, np.int64)], axis=0)
        else:
            to = self.constant([self.draw(st.sampled_from([0, -1])), *rest], np.int64)
        self.add(self.node("Reshape", [x, to]), (BATCH, *rest))

    def no_op(self) -> None:
        x, shape = self.pick()
        rank, kind = len(shape), self.draw(st.sampled_from(["tile", "pad", "slice", "expand", "unsqueeze"]))
        if kind == "tile":
            y = self.node("Tile", [x, self.constant([1] * rank, np.int64)])
        elif kind == "pad":
            pads = [0] * (2 * rank)
            y = (
                self.node("Pad", [x], pads=pads)
                if self.opset < 11
                else self.node("Pad", [x, self.constant(pads, np.int64)])
            )
        elif kind == "slice":
            y = self.slice(x, 0, 2**31 - 1, rank - 1)
        elif kind == "expand":
            y = self.node("Expand", [x, self.constant([1], np.int64)])
        else:
            y = self.axes("Squeeze", self.axes("Unsqueeze", x, [1]), [1])
        self.add(y, shape)

    def axes(self, op: str, x: str, axes: list[int]) -> str:
        return self.node(op, [x], axes=axes) if self.opset < 13 else self.node(op, [x, self.constant(axes, np.int64)])

    def slice(self, x: str, start: int, end: int, axis: int) -> str:
        if self.opset < 10:
            return self.node("Slice", [x], starts=[start], ends=[end], axes=[axis])
        return self.node("Slice", [x, *(self.constant([v], np.int64) for v in (start, end, axis))])

    def halves(self) -> None:
        """Slice the last axis in two, and put the parts together again in either order."""
        x, shape = self.pick((BATCH, 4, 6))
        parts = [self.slice(x, 0, 3, 2), self.slice(x, 3, 2**31 - 1, 2)]
        order = self.draw(st.permutations(parts))
        self.add(self.node("Concat", list(order), axis=2), shape)

    def matmul(self) -> None:
        x, shape = self.pick((BATCH, 4, 6), (BATCH, 24))
        width = int(shape[-1])
        y = self.node("MatMul", [x, self.constant(self.rng.standard_normal((width, width)) / width)])
        if self.draw(st.booleans()):
            y = self.node("Add", [y, self.constant(self.rng.standard_normal(width))])
        self.add(y, shape)

    def conv_bn(self) -> None:
        x, shape = self.pick((BATCH, 4, 6))
        y = self.node("Conv", [x, self.constant(self.rng.standard_normal((4, 4, 3)) / 4)], pads=[1, 1])
        if self.draw(st.booleans()):
            statistics = [self.constant(self.rng.uniform(0.5, 1.5, 4)) for _ in range(4)]
            y = self.node("BatchNormalization", [y, *statistics])
        self.add(y, shape)

    def siblings(self) -> None:
        """Two or three products or convolutions of one tensor, each part then treated alike or not, and joined."""
        x, shape = self.pick((BATCH, 4, 6))
        conv = self.draw(st.booleans())
        widths = self.draw(st.permutations([2, 2] if conv else [2, 3, 1]))
        parts = [self.sibling(x, width, conv) for width in widths]
        tail = self.draw(st.sampled_from(["", "Relu", "Neg", "scale"]))
        for i, width in enumerate(widths):
            if tail == "scale":
                scale = self.rng.uniform(0.5, 2, (width, 1) if conv else (width,))
                parts[i] = self.node("Mul", [parts[i], self.constant(scale)])
            elif tail and (i == 0 or self.draw(st.booleans())):
                parts[i] = self.node(tail, [parts[i]])
        self.add(self.node("Concat", parts, axis=1 if conv else 2), shape)

    def sibling(self, x: str, width: int, conv: bool) -> str:
        if not conv:
            return self.node("MatMul", [x, self.constant(self.rng.standard_normal((6, width)) / 6)])
        bias = [self.constant(self.rng.standard_normal(width))] if self.draw(st.booleans()) else []
        weight = self.constant(self.rng.standard_normal((width, 4, 3)) / 4)
        return self.node("Conv", [x, weight, *bias], pads=[1, 1])

    def recurrent(self) -> None:
        """An RNN over the first axis, whose initial state is zeros made on the spot, a constant, or computed."""
        x, shape = self.pick((BATCH, 4, 6))
        w, r = (self.constant(self.rng.standard_normal((1, 6, 6)) / 6) for _ in range(2))
        kind = self.draw(st.sampled_from(["made", "constant", "computed"]))
        state = self.constant(np.zeros((1, 4, 6)) if self.draw(st.booleans()) else np.ones((1, 4, 6)))
        if kind == "made":
            like = self.slice(self.node("Shape", [x]), 1, 3, 0)
            state = self.node("ConstantOfShape", [self.node("Concat", [self.constant([1], np.int64), like], axis=0)])
        elif kind == "computed":
            state = self.node("Exp", [self.node("Expand", [state, self.constant([1, 1, 6], np.int64)])])
        y = self.node("RNN", [x, w, r, "", "", state], hidden_size=6)
        self.add(self.axes("Squeeze", y, [1]), shape)

    def gelu(self) -> None:
        x, shape = self.pick()
        e = self.node("Erf", [self.node("Div", [x, self.constant(1.4142135)])])
        e = self.node("Mul", [x, self.node("Add", [e, self.constant(1.0)])])
        self.add(self.node("Mul", [e, self.constant(0.5)]), shape)

    def layer_norm(self) -> None:
        x, shape = self.pick((BATCH, 4, 6))
        d = self.node("Sub", [x, self.mean(x)])
        variance = self.mean(self.node("Mul", [d, d]))
        y = self.node("Div", [d, self.node("Sqrt", [self.node("Add", [variance, self.constant(1e-3)])])])
        y = self.node("Mul", [y, self.constant(self.rng.uniform(0.5, 1.5, 6))])
        self.add(self.node("Add", [y, self.constant(self.rng.standard_normal(6))]), shape)

    def mean(self, x: str) -> str:
        if self.opset < 18:
            return self.node("ReduceMean", [x], axes=[-1] if self.opset >= 11 else [2], keepdims=1)
        return self.node("ReduceMean", [x, self.constant([-1], np.int64)], keepdims=1)

    def where(self) -> None:
        x, shape = self.pick()
        y, _ = self.pick(shape)
        test = (
            self.constant(self.draw(st.booleans()), np.bool_) if self.draw(st.booleans()) else self.node("Less", [x, y])
        )
        self.add(self.node("Where", [test, x, y]), shape)

    def branch(self) -> None:
        """If, with a constant or a computed condition; both bodies read a tensor of the graph around them."""
        x, shape = self.pick()
        test = self.constant(self.draw(st.booleans()), np.bool_)
        if self.draw(st.booleans()):
            size = self.node("Size", [x])
            test = self.node("Less", [size, self.constant(60, np.int64)])
        bodies = [self.body([(op, x)], shape) for op in self.draw(st.permutations(["Identity", "Neg", "Relu"]))[:2]]
        self.add(self.node("If", [test], then_branch=bodies[0], else_branch=bodies[1]), shape)

    def body(self, ops: list[tuple[str, str]], shape: Shape) -> onnx.GraphProto:
        inner = [helper.make_node(op, [x], [self.name()]) for op, x in ops]
        nodes = [inner[0], helper.make_node("Identity", [inner[0].output[0]], [self.name()])]
        return helper.make_graph(nodes, self.name(), [], [_info(nodes[-1].output[0], shape)])

    def loop(self) -> None:
        """Loop: s = s * (x read from outside) + a Constant of its own, a fixed number of times."""
        x, shape = self.pick()
        i, c, s, c2, t, k, s2 = (self.name() for _ in range(7))
        nodes = [
            helper.make_node("Identity", [c], [c2]), helper.make_node("Mul", [s, x], [t]),
            helper.make_node("Constant", [], [k], value=numpy_helper.from_array(np.array(0.5, np.float32))),
            helper.make_node("Add", [t, k], [s2]),
        ]  # fmt: skip
        inputs = [
            helper.make_tensor_value_info(i, TensorProto.INT64, []),
            helper.make_tensor_value_info(c, TensorProto.BOOL, []),
            _info(s, shape),
        ]  # fmt: skip
        outputs = [helper.make_tensor_value_info(c2, TensorProto.BOOL, []), _info(s2, shape)]
        body = helper.make_graph(nodes, self.name(), inputs, outputs)
        trips = self.constant(self.draw(st.integers(0, 2)), np.int64)
        self.add(self.node("Loop", [trips, self.constant(True, np.bool_), self.node("Tanh", [x])], body=body), shape)

    def scan(self) -> None:
        """Scan over the batch: the running sum of x."""
        x, shape = self.pick((BATCH, 4, 6))
        s, e, s2, o = (self.name() for _ in range(4))
        nodes = [helper.make_node("Add", [s, e], [s2]), helper.make_node("Identity", [s2], [o])]
        body = helper.make_graph(
            nodes, self.name(), [_info(s, (4, 6)), _info(e, (4, 6))], [_info(s2, (4, 6)), _info(o, (4, 6))]
        )
        start, total, out = self.constant(np.zeros((4, 6))), self.name(), self.name()
        self.nodes.append(
            helper.make_node("Scan", [start, x], [total, out], name=f"Scan_{out}", body=body, num_scan_inputs=1)
        )
        self.add(out, shape)


def _info(name: str, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


STEPS = (
    "unary", "casts", "binary", "with_constant", "transpose", "reshape", "no_op", "halves", "matmul", "conv_bn",
    "between_transposes", "siblings", "recurrent", "gelu", "layer_norm", "where", "branch", "loop", "scan",
)  # fmt: skip


@st.composite
def graphs(draw: Callable[[Any], Any], most: int = 14) -> onnx.ModelProto:
    """A valid model from x and z, float32 (n, 4, 6), with up to `most` steps and one to three outputs."""
    grower = Grower(draw, draw(st.sampled_from(OPSETS)))
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=most)):
        getattr(grower, step)()
    able = grower.pool[2:]
    chosen = draw(st.lists(st.sampled_from(able), min_size=1, max_size=3, unique=True))
    if able[-1] not in chosen:
        chosen.append(able[-1])
    inputs, outputs = [_info(*each) for each in grower.pool[:2]], [_info(*each) for each in chosen]
    graph = helper.make_graph(grower.nodes, "random", inputs, outputs, grower.weights)
    ir_version = 8 if grower.opset < 20 else 10
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", grower.opset)], ir_version=ir_version)
