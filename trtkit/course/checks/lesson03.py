"""Instant checks of lesson 03's exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

import trtkit
from trtkit.course.blocks import block, chain, kernels
from trtkit.course.checks import NotSolved, number, show
from trtkit.course.pictures import lesson01, lesson03
from trtkit.model import Model

EPSILON = 1e-5
Fold = Callable[..., Any]

# Exercise 3: which of these pairs may be folded? Names say what stands in the way; the reader sees only c1, b1, ...
TRAPS = {
    "b1": "", "b2": "", "b3": "the result of c3 is also read by r3, which would get scaled numbers",
    "b4": "the result of c4 is also an output of the graph, which has to stay",
    "b5": "b5 reads a Relu, not a convolution: relu(s x) is not s relu(x) when s is negative, and the shift is lost",
    "b6": "the scale of b6 is an input of the graph, so nobody knows it before the call",
}  # fmt: skip
CHAINS = (
    "Conv Relu", "Conv MaxPool Relu", "Conv Relu Conv Clip", "Conv HardSwish MaxPool", "Conv Mish Relu",
    "Conv Abs MaxPool Exp Neg",
)  # fmt: skip


def check_fold(fold: Fold) -> None:
    """Lesson 03, exercise 1: weights and bias of one convolution that does what Conv and BatchNormalization did."""
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(3, 2, 1, 1)), rng.normal(size=3)
    gamma, beta, mean, var = rng.normal(size=3), rng.normal(size=3), rng.normal(size=3), rng.uniform(0.001, 0.02, 3)
    right_w, right_b = folded(w, b, gamma, beta, mean, var)
    yours_w, yours_b = _pair(fold(w.copy(), b.copy(), gamma, beta, mean, var), (w.shape, b.shape))
    labels = [f"W[{c}, {i}]" for c in range(3) for i in range(2)] + [f"b[{c}]" for c in range(3)]
    right, yours = (np.concatenate([one.ravel(), two]) for one, two in ((right_w, right_b), (yours_w, yours_b)))
    show(lesson01.against(labels, right.tolist(), yours.tolist(), "value"), "Your weights on the right ones.")
    if not np.allclose(yours_w, right_w):
        hint = "did you forget epsilon? It stands inside the root" if np.allclose(
            yours_w, w * (gamma / np.sqrt(var))[:, None, None, None]) else (
            "the factor gamma / sqrt(var + epsilon) belongs to axis 0 of W, the output channels")  # fmt: skip
        raise NotSolved(f"The weights are not right: {hint}.")
    if not np.allclose(yours_b, right_b):
        s = gamma / np.sqrt(var + EPSILON)
        hint = "the old bias b passes through the scale, too: (b - mean) * s + beta" if np.allclose(
            yours_b, b - mean * s + beta) or np.allclose(yours_b, beta - mean * s) else (
            "subtract the mean first, then scale, then add beta")  # fmt: skip
        raise NotSolved(f"The weights are right and the bias is not: {hint}.")
    print("Right: two nodes' arithmetic in the weights of one.")


def folded(w: NDArray[Any], b: NDArray[Any], gamma: NDArray[Any], beta: NDArray[Any], mean: NDArray[Any],
           var: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:  # fmt: skip
    """Exercise 1's answer, for checking others: (M, C, h, w) weight and (M,) bias."""
    s = gamma / np.sqrt(var + EPSILON)
    return w * s[:, None, None, None], (b - mean) * s + beta


def _pair(answer: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[NDArray[Any], NDArray[Any]]:
    if not isinstance(answer, (tuple, list)) or len(answer) != 2 or any(part is None for part in answer):
        raise NotSolved("fold(w, b, gamma, beta, mean, var) returns two arrays: the new weight and the new bias.")
    w, b = (np.asarray(part, np.float64) for part in answer)
    if (w.shape, b.shape) != shapes:
        raise NotSolved(f"Your results have the shapes {w.shape} and {b.shape}; weight and bias keep theirs, "
                        f"{shapes[0]} and {shapes[1]}. Give the factor axes of length 1.")  # fmt: skip
    return w, b


def check_saved(saved: Callable[[int, int], Any]) -> None:
    """Lesson 03, exercise 2: launches and bytes that fusing a chain of unary float32 operators saves."""
    cases = [(1, 1000), (2, 1000), (3, 1000), (5, 802816), (8, 1)]
    right = [(n - 1, 8 * elements * (n - 1)) for n, elements in cases]
    yours = []
    for case in cases:
        answer = saved(*case)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise NotSolved("saved(n, elements) returns two numbers: launches saved, bytes saved.")
        yours.append(tuple(number(part, "saved(n, elements)") for part in answer))
    names = [f"{n} nodes" for n, _ in cases]
    share = [[b / max(r, 1) for b, r in zip(column, truth, strict=True)]
             for column, truth in zip(zip(*yours, strict=True), zip(*right, strict=True), strict=True)]  # fmt: skip
    show(lesson01.against(names, [1.0 if r else 0.0 for _, r in right], share[1], "bytes, yours by the right ones"),
         "Your bytes saved, divided by the right ones.")  # fmt: skip
    for (n, elements), want, have in zip(cases, right, yours, strict=True):
        if have[0] != want[0]:
            raise NotSolved(f"A chain of {n} nodes needs {n} launches, and one when fused: {want[0]} saved, not "
                            f"{have[0]:g}.")  # fmt: skip
        if have[1] != want[1]:
            hint = {want[1] / 4: "a float32 has 4 bytes", want[1] / 2: "what stays inside is neither written nor read "
                    "again: count both ways", 8 * elements * n: "the first read and the last write stay"}.get(
                    have[1], "each of the n - 1 tensors between two nodes is written once and read once")  # fmt: skip
            raise NotSolved(f"{n} nodes on {elements:,} float32: {want[1]:,} bytes saved, and you get {have[1]:,.0f}; "
                            f"{hint}.")  # fmt: skip
    print("Right: one node alone saves nothing, and five on a ResNet's first activation save 25.7 MB.")


def trap_graph() -> onnx.ModelProto:
    """Exercise 3's graph: six batch normalisations, two of which may be folded into a convolution."""
    norm = "BatchNormalization({0}, {1}, be, me, va)"
    text = f"""<ir_version: 10, opset_import: ["": 20]>
        traps (float[1, 4, 6, 6] x, float[4] given) => (float[1, 4, 6, 6] y, float[1, 4, 6, 6] t4)
        {{ [c1] t1 = Conv<pads=[1,1,1,1]>(x, w)           [b1] u1 = {norm.format("t1", "ga")}
           [c2] t2 = Conv<group=2>(u1, g)                 [b2] u2 = {norm.format("t2", "ga")}
           [c3] t3 = Conv(u2, p)                          [b3] u3 = {norm.format("t3", "ga")}
           [r3] v3 = Relu(t3)                             [a3] s3 = Add(u3, v3)
           [c4] t4 = Conv(s3, p)                          [b4] u4 = {norm.format("t4", "ga")}
           [c5] t5 = Conv(u4, p)   [r5] v5 = Relu(t5)     [b5] u5 = {norm.format("v5", "ga")}
           [c6] t6 = Conv(u5, p)                          [b6] y = {norm.format("t6", "given")} }}"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(3)
    arrays = {"w": rng.normal(0, 0.3, (4, 4, 3, 3)), "g": rng.normal(size=(4, 2, 1, 1)),
              "p": rng.normal(size=(4, 4, 1, 1)), "ga": np.array([1.5, -0.7, 0.4, 2.0]), "be": rng.normal(size=4),
              "me": rng.normal(size=4), "va": rng.uniform(0.5, 2, 4)}  # fmt: skip
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    return proto


def check_pairs(foldable: Callable[[onnx.GraphProto], Any]) -> None:
    """Lesson 03, exercise 3: the pairs of Conv and BatchNormalization that may be folded, and no others."""
    proto = trap_graph()
    answer = foldable(proto.graph)
    if answer is None or isinstance(answer, str) or not all(
            isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in answer):  # fmt: skip
        raise NotSolved("foldable(graph) returns a list of pairs of names: [('c1', 'b1'), ...].")
    pairs = {str(norm): str(conv) for conv, norm in answer}
    if unknown := [norm for norm in pairs if norm not in TRAPS]:
        raise NotSolved(f"{unknown} are no batch normalisations of this graph; the second name of a pair is one.")
    errors = _errors_after_folding(proto, pairs)
    show(lesson01.against(list(TRAPS), [1.0 if not why else 0.0 for why in TRAPS.values()],
                          [1.0 if name in pairs else 0.0 for name in TRAPS], "folded (1) or not (0)"),
         "Which normalisations you fold, on those that may be folded.")  # fmt: skip
    for norm, why in TRAPS.items():
        if why and norm in pairs:
            shown = f" Folded all the same, the outputs are off by {errors[norm]:.2g}." if norm in errors else ""
            raise NotSolved(f"{norm} may not be folded: {why}.{shown}")
    for norm, why in TRAPS.items():
        if not why and norm not in pairs:
            raise NotSolved(f"{norm} may be folded and is not in your list. Groups of channels are no obstacle.")
        if not why and pairs[norm] != norm.replace("b", "c"):
            raise NotSolved(f"{norm} reads {norm.replace('b', 'c')}, and you fold it into {pairs[norm]!r}.")
    print(f"Right: two of six, and the outputs change by {max(errors.values()):.0e} at most.")


def _errors_after_folding(proto: onnx.ModelProto, pairs: dict[str, str]) -> dict[str, float]:
    """How far the outputs are off when one pair is folded, for each pair; none where folding cannot be done."""
    before = trtkit.load(proto)
    inputs = before.random_inputs(seed=1)
    want = before.run(inputs)
    found = {}
    for norm, conv in pairs.items():
        after = _fold_one(proto, conv, norm)
        if after is not None:
            have = after.run(inputs)
            found[norm] = max(float(np.abs(have[name] - want[name]).max()) for name in want)
    return found


def _fold_one(proto: onnx.ModelProto, conv: str, norm: str) -> Model | None:
    """The graph with one normalisation folded, whether that is right or not; None where it cannot be computed."""
    after = onnx.ModelProto()
    after.CopyFrom(proto)
    graph = after.graph
    nodes = {node.name: node for node in graph.node}
    arrays = {init.name: numpy_helper.to_array(init) for init in graph.initializer}
    linear, node = nodes.get(conv), nodes[norm]
    if linear is None or linear.op_type != "Conv" or node.input[1] not in arrays:
        return None
    w = arrays[linear.input[1]]
    gamma, beta, mean, var = (arrays[name] for name in node.input[1:5])
    new = folded(w, np.zeros(len(w)), gamma, beta, mean, var)
    for name, data in zip((f"{conv}_w", f"{conv}_b"), new, strict=True):
        graph.initializer.append(numpy_helper.from_array(data.astype(np.float32), name))
    linear.input[1:] = [f"{conv}_w", f"{conv}_b"]
    source = node.input[0]  # readers of the normalisation read what it read
    for other in graph.node:
        other.input[:] = [source if value == node.output[0] else value for value in other.input]
    graph.node.remove(node)
    return trtkit.load(after)


def check_predicted(predict: Callable[[list[str]], Any]) -> None:
    """Lesson 03, exercise 4: into which kernels TensorRT puts a chain, against engines built here and now."""
    rows: dict[str, tuple[list[tuple[str, ...]], list[tuple[str, ...]]]] = {}
    for ops in CHAINS:
        answer = predict(ops.split())
        if not answer or isinstance(answer, str) or not all(isinstance(each, (tuple, list)) for each in answer):
            raise NotSolved(
                "predict(ops) returns a list of kernels, each a list of operators: [['Conv', 'Relu'], ['MaxPool']]."
            )
        rows[ops] = [tuple(each) for each in answer], kernels(block(chain(ops)))
    show(lesson03.predicted(rows), "Your kernels above TensorRT's, chain by chain.")
    for ops, (yours, real) in rows.items():
        if [op for each in yours for op in each] != ops.split():
            raise NotSolved(f"Your kernels of {ops!r} hold {yours}: every operator comes once, in its order.")
        if yours != real:
            raise NotSolved(
                f"{ops}: you predict {_words(yours)}, and TensorRT built {_words(real)}. {_hint(yours, real)}"
            )
    print(
        f"Right: {len(rows)} chains, {sum(len(real) for _, real in rows.values())} kernels, all as TensorRT built them."
    )


def _words(parts: Sequence[Sequence[str]]) -> str:
    return " | ".join("+".join(part) for part in parts)


def _hint(yours: Sequence[Sequence[str]], real: Sequence[Sequence[str]]) -> str:
    if any("MaxPool" in kernel and len(kernel) > 1 for kernel in yours):
        return "A pool stands alone."
    if any(kernel.count("Conv") > 1 for kernel in yours):
        return "Two convolutions are two kernels: each pixel of the second needs many of the first."
    if any("Conv" in kernel and "Mish" in kernel for kernel in yours):
        return "Mish is none of the functions that a convolution's kernel takes in (section 6)."
    if len(yours) > len(real):
        return "What works element by element joins the kernel before it, unless that is a pool."
    return "Where does TensorRT begin a new kernel?"
