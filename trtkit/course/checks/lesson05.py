"""Instant checks of lesson 05's exercises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

import trtkit
from trtkit.course.checks import NotSolved, number, show
from trtkit.course.pictures import lesson01, lesson05
from trtkit.course.rounding import decibels, int_blocks
from trtkit.graph.taps import Taps
from trtkit.model import Model
from trtkit.quant.autocast import autocast_report
from trtkit.quant.formats import FP4_E2M1, IntFormat
from trtkit.quant.overflow import overflowing

LIMIT = 65504.0  # FP16's largest number
BITS, BLOCKS, SCALE_BITS = (3, 4, 5, 6), (16, 32, 64, 128), 16


def check_largest(largest: Callable[[int, int], Any]) -> None:
    """Lesson 05, exercise 1: the largest number of a format with infinity and NaN, from its bits."""
    cases = {"6-bit toy": (3, 2), "E5M2": (5, 2), "FP16": (5, 10), "BF16": (8, 7), "FP32": (8, 23)}
    right = {name: (2 - 2.0**-m) * 2.0 ** (2 ** (e - 1) - 1) for name, (e, m) in cases.items()}
    yours = {name: number(largest(*bits), "largest(exponent_bits, mantissa_bits)") for name, bits in cases.items()}
    drawn, dots = ([float(np.log2(abs(x) or 2.0**-200)) for x in each.values()] for each in (right, yours))
    show(
        lesson01.against(list(cases), drawn, dots, "largest number, as a power of two"),
        "Your largest numbers on the right ones.",
    )
    for name, (e, _) in cases.items():
        want, have = right[name], yours[name]
        if have != want:
            hint = {
                want
                * 2: "the field that is all ones is taken by infinity and NaN, so the largest exponent is one less",
                2.0 ** (2 ** (e - 1) - 1): "that is the power of two alone; the mantissa may be all ones as well",
                2.0 ** (2 ** (e - 1)): "a mantissa of all ones is 2 - 2 ** -mantissa_bits, a little less than 2",
            }.get(have, "it is (2 - 2 ** -mantissa_bits) times the largest power of two, 2 ** bias")
            raise NotSolved(f"{name} ends at {want:g}, and you say {have:g}: {hint}.")
    print("Right: from 14 to 3.4e+38, with one formula.")


def check_fp4(encode: Callable[[NDArray[Any]], Any]) -> None:
    """Lesson 05, exercise 2: codes 0 to 15 of FP4 (E2M1), to nearest, ties to even, saturated."""
    x = np.concatenate([np.linspace(-7, 7, 281), [-100.0, 100.0]])
    right = FP4_E2M1.encode(x)
    answer = encode(x.copy())
    if answer is None:
        raise NotSolved("encode_fp4(x) returned nothing yet. It returns an array of codes, 0 to 15.")
    codes = np.asarray(answer)
    if codes.shape != x.shape or codes.dtype.kind not in "iuf":
        raise NotSolved(
            f"encode_fp4(x) gives {codes.dtype} of shape {codes.shape}; a whole number for each x is wanted."
        )
    if not (np.equal(codes, np.round(codes)) & (codes >= 0) & (codes <= 15)).all():
        raise NotSolved("Codes are whole numbers from 0 to 15: the sign is 8, the lower three bits say how large.")
    codes = codes.astype(np.int64)
    inside = np.abs(x) <= 7
    want, have = FP4_E2M1.decode(right), FP4_E2M1.decode(codes)
    show(
        lesson05.rounded_values(x[inside], want[inside], have[inside]), "What your codes stand for, on the right ones."
    )
    wrong = np.flatnonzero(want != have)
    if wrong.size:
        first = wrong[np.argmin(np.abs(x[wrong]))]
        raise NotSolved(f"{x[first]:g} is nearest to {want[first]:g}, and your code {codes[first]} stands for "
                        f"{have[first]:g}: {_why(x[first], want[first], have[first])}.")  # fmt: skip
    print("Right: 16 codes, and every tie goes to the even one.")


def _why(x: float, want: float, have: float) -> str:
    if have == -want:
        return "the sign is bit 3, worth 8"
    if abs(abs(x) - abs(want)) == abs(abs(have) - abs(x)):
        return "both are as near, and the one with the even code wins"
    if abs(x) > FP4_E2M1.max:
        return "what is beyond the largest number becomes the largest"
    return "the numbers are 0, 0.5, 1, 1.5, 2, 3, 4, 6"


class Node(NamedTuple):
    """What exercise 3 gets to know of a node: its name and the names of the tensors that it reads and writes."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def ladder() -> tuple[Model, list[dict[str, np.ndarray]]]:
    """Exercise 3's graph, with samples: one of them makes two tensors too large, another is nearly so."""
    text = """<ir_version: 10, opset_import: ["": 20]> ladder (float[n, 16] x) => (float[n, 16] y)
        { [project] h = MatMul(x, w)    [relu] a = Relu(h)     [square] s = Mul(a, a)
          [sum] t = ReduceSum(s, axes)  [root] r = Sqrt(t)     [divide] u = Div(a, r)
          [wide] v = Mul(a, most)       [back] b = Mul(v, least)
          [add] z = Add(u, b)           [last] y = MatMul(z, w) }"""
    proto = onnx.parser.parse_model(text)
    arrays = {"w": np.eye(16) * 4, "axes": np.array([1]), "most": np.array([150.0]), "least": np.array([1 / 150])}
    proto.graph.initializer.extend(
        numpy_helper.from_array(a.astype(np.int64 if name == "axes" else np.float32), name)
        for name, a in arrays.items()
    )
    x = np.linspace(0.5, 1, 16, dtype=np.float32)[None]
    return trtkit.load(proto), [{"x": x}, {"x": 10 * x}, {"x": 80 * x}]


def observed(model: Model, samples: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], list[Node]]:
    """The largest |value| of every float tensor over the samples, and the nodes of the graph."""
    taps = Taps(model)
    most: dict[str, float] = {}
    for sample in samples:
        for name, tensor in taps.run(sample).items():
            if tensor.dtype.kind == "f":
                most[name] = max(most.get(name, 0.0), float(np.abs(tensor).max(initial=0)))
    nodes = [Node(n.name or "", tuple(v.name or "" for v in n.inputs if v is not None),
                  tuple(v.name or "" for v in n.outputs)) for n in model.ir.graph]  # fmt: skip
    return most, nodes


def behind_nodes(model: Model, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By the name of each node the largest |value| over the samples of what it computes, where that is a float."""
    return _by_node(*observed(model, samples))


def _by_node(largest: Mapping[str, float], nodes: Sequence[Node]) -> dict[str, float]:
    return {node.name: largest[node.outputs[0]] for node in nodes if node.outputs[0] in largest}


def needed(largest: Mapping[str, float], nodes: Sequence[Node]) -> list[str]:
    """Exercise 3's answer: whatever writes or reads a tensor that FP16 cannot hold."""
    return [n.name for n in nodes if any(largest.get(t, 0) > LIMIT for t in (*n.inputs, *n.outputs))]


def check_kept(
    keep: Callable[[dict[str, float], list[Node]], Any],
    model: Model | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Lesson 05, exercise 3: the fewest nodes in FP32 such that nothing overflows, on a small graph and on `model`."""
    cases: list[tuple[Model, Sequence[Mapping[str, Any]]]] = [ladder()]
    if model is not None:
        cases.append((model, samples))
    counts = []
    for graph, batches in cases:
        largest, nodes = observed(graph, batches)
        answer = keep(dict(largest), list(nodes))
        if answer is None or isinstance(answer, str) or not all(isinstance(name, str) for name in answer):
            raise NotSolved("keep(largest, nodes) returns a list of names of nodes: ['square', ...].")
        names = list(answer)
        if unknown := sorted(set(names) - {node.name for node in nodes}):
            raise NotSolved(f"{graph.name!r} has no node {unknown[0]!r}. Names of nodes are wanted, not of tensors.")
        drawn = lesson05.largest(_by_node(largest, nodes), LIMIT, names)
        show(drawn, f"Largest values in {graph.name}, with the nodes that you keep.")
        best = trtkit.autocast(graph, keep_fp32=needed(largest, nodes))
        counts.append((_judge(graph, batches, names, _kept(best)), len(nodes)))
    print(
        "Right: " + ", ".join(f"{kept} of {all_} nodes in FP32" for kept, all_ in counts) + ", and nothing overflows."
    )


def _judge(graph: Model, batches: Sequence[Mapping[str, Any]], names: list[str], fewest: int) -> int:
    mixed = trtkit.autocast(graph, keep_fp32=names)
    if lost := overflowing(mixed, batches):
        what = "a cast to FP16 in front of its reader" if lost[0] not in Taps(graph).names else "computed in FP16"
        raise NotSolved(f"In {graph.name!r} tensor {lost[0]!r} still overflows ({what}). A kept node's result that a "
                        "node in FP16 reads is cast to FP16 on the way: keep the reader, too.")  # fmt: skip
    if _kept(mixed) > fewest:
        raise NotSolved(f"Nothing overflows in {graph.name!r}, but {_kept(mixed)} nodes stay in FP32, and {fewest} are "
                        f"enough. What fits ({LIMIT:g} and below) need not be kept.")  # fmt: skip
    return _kept(mixed)


def _kept(model: Model) -> int:
    return sum(decision.precision == "fp32" for decision in autocast_report(model))


def quality(weight: NDArray[Any], bits: int, block: int) -> float:
    """Signal to noise in dB of a weight (R, K) in whole numbers of so many bits, an FP16 scale for each block."""
    most = 2 ** (bits - 1) - 1
    return decibels(weight, int_blocks(weight, IntFormat(f"INT{bits}", -most, most), block))


def tensors() -> dict[str, tuple[NDArray[np.float32], float]]:
    """Exercise 4's weights, with a budget in bits for each."""
    rng = np.random.default_rng(5)
    normal = rng.normal(size=(64, 256)).astype(np.float32)
    spiky = normal * np.where(rng.random(normal.shape) < 0.02, 12, 1).astype(np.float32)
    return {"normal": (normal, 4.2), "with outliers": (spiky, 4.2), "with outliers, more room": (spiky, 5.3)}


def check_choice(choose: Callable[[NDArray[Any], float], Any]) -> None:
    """Lesson 05, exercise 4: bits of a code and size of a block with the least error within a budget."""
    panels, verdicts = {}, []
    for name, (weight, budget) in tensors().items():
        answer = choose(weight.copy(), budget)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise NotSolved("choose(weight, budget) returns two numbers: the bits of a code, and the size of a block.")
        if answer[0] not in BITS or answer[1] not in BLOCKS:
            raise NotSolved(f"Bits are among {BITS} and blocks among {BLOCKS}; you chose {tuple(answer)}.")
        table = np.array([[quality(weight, bits, block) for block in BLOCKS] for bits in BITS])
        cost = np.array([[bits + SCALE_BITS / block for block in BLOCKS] for bits in BITS])
        allowed = cost <= budget
        row, column = np.unravel_index(np.argmax(np.where(allowed, table, -np.inf)), table.shape)
        best, yours = (int(row), int(column)), (BITS.index(answer[0]), BLOCKS.index(answer[1]))
        panels[f"{name}, {budget:g} bits"] = (table, BITS, BLOCKS, allowed, best, yours)
        verdicts.append((name, budget, float(cost[yours]), float(table[yours]), float(table[best])))
    show(lesson05.choices(panels), "Signal to noise by bits and block: the best within the budget, and yours.")
    for name, budget, price, have, want in verdicts:
        if price > budget:
            raise NotSolved(
                f"{name}: yours costs {price:g} bits a number, and {budget:g} are allowed. A block shares a scale "
                f"of {SCALE_BITS} bits, which is {SCALE_BITS} / block more for each number."
            )
        if have < want:
            raise NotSolved(f"{name}: yours has {have:.1f} dB, and {want:.1f} dB can be had for {budget:g} bits. "
                            "More bits or smaller blocks: try all that you can pay for.")  # fmt: skip
    print("Right: where there are outliers, a small block may be worth more than a bit.")
