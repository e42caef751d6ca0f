"""Instant checks of lesson 08's exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtkit.course.checks import NotSolved, number, show
from trtkit.course.pictures import lesson01, lesson08
from trtkit.quant.sensitivity import Sensitivities

Array = NDArray[Any]


def codes(x: Array, scale: float = 0.05) -> Array:
    """x rounded to INT8 codes and back, as a Q/DQ pair does it, float64."""
    return np.clip(np.rint(np.asarray(x, np.float64) / scale), -127, 127) * scale


def _pooled(x: Array) -> Array:
    return x.reshape(*x.shape[:-1], -1, 2)


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "MaxPool": lambda x: _pooled(x).max(-1),
    "AveragePool": lambda x: _pooled(x).mean(-1),
    "Transpose": lambda x: x.T,
    "Relu": lambda x: np.maximum(x, 0),
    "Neg": lambda x: -x,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Add of itself": lambda x: x + x,
}
PASSES = ("MaxPool", "Transpose", "Relu", "Neg")


def _values() -> Array:
    """Numbers of which half round up and half down, none on a tie."""
    return np.random.default_rng(8).normal(size=(16, 16))


def check_passes(passes: Callable[[Callable[[Array], Array], Array, Callable[[Array], Array]], Any]) -> None:
    """Lesson 08, exercise 1: whether rounding before an operator and behind it give the same numbers."""
    x = _values()
    shown = {name: (f(codes(x)), codes(f(x))) for name, f in FUNCTIONS.items()}
    show(lesson08.rounding_order(shown), "Rounded before and behind seven operators; four stay on the line.")
    for name, function in FUNCTIONS.items():
        answer = passes(function, x.copy(), codes)
        if not isinstance(answer, (bool, np.bool_)):
            raise NotSolved(f"passes(f, x, q) returns True or False, and returned {answer!r} for {name}.")
        before, after = shown[name]
        if bool(answer) != (name in PASSES):
            differ = np.mean(before != after)
            hint = (f"f(q(x)) and q(f(x)) differ in {differ:.0%} of the numbers: near is not equal" if answer else
                    "f(q(x)) and q(f(x)) are equal, number by number; did you compare with f(x) itself?")  # fmt: skip
            raise NotSolved(f"{name}: {hint}.")
    print(f"Right: a Q may move past {', '.join(PASSES)}, and past none of the others.")


def check_joined(joined: Callable[[list[Array]], Any]) -> None:
    """Lesson 08, exercise 2: the one scale with which all inputs of a Concat become INT8 codes."""
    rng = np.random.default_rng(2)
    inputs = [rng.uniform(-1, 1, 400) * amax for amax in (0.5, 3.0, 1.2)]
    inputs[1][0] = -3.0
    answer = joined([x.copy() for x in inputs])
    if np.size(answer) > 1:
        raise NotSolved("One number for all inputs: codes can only stand side by side if they mean the same numbers.")
    scale = number(answer, "joined(inputs)")
    if scale <= 0:
        raise NotSolved(f"A scale is greater than 0, and yours is {scale:g}.")
    best = 3.0 / 127
    right, yours = ([float(np.abs(codes(x, s) - x).max()) for x in inputs] for s in (best, scale))
    show(lesson01.against(["narrow", "wide", "middle"], right, yours, "largest error"), "Largest error of each input.")
    if not np.isclose(scale, best, rtol=1e-6):
        hint = ("the wide input is cut off: take the largest |value| of all inputs, negative ones, too" if scale < best
                else "steps are wider than they need be: the largest |value| of all becomes code 127")  # fmt: skip
        raise NotSolved(f"Your scale is {scale:.5f}, and {best:.5f} is right: {hint}.")
    print("Right: the widest input decides. What the narrow one loses is the price of a shared scale.")


class Node(NamedTuple):
    """What exercise 3 gets to know: a node's name, its operator, the tensors that it reads (no weights), its result."""

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str


def _nodes(text: str) -> list[Node]:
    """`c1 = Conv(x) ...`: a node for each word, named after its result."""
    found = []
    for word in text.split():
        output, call = word.split("=")
        op, inputs = call.rstrip(")").split("(")
        found.append(Node(f"node_{output}", op, tuple(inputs.split(",")), output))
    return found


GRAPHS = {
    "a chain": "c1=Conv(x) r1=Relu(c1) p=MaxPool(r1) c2=Conv(p) s=Softmax(c2)",
    "a residual block": "c1=Conv(x) r1=Relu(c1) c2=Conv(r1) r2=Relu(c2) c3=Conv(r2) t=Add(c3,r1) r3=Relu(t) y=Gemm(r3)",
    "a projection": "r=Relu(x) p=Conv(r) c1=Conv(r) r1=Relu(c1) c2=Conv(r1) t=Add(p,c2) y=Relu(t)",
    "a sum without one": "a=Relu(x) b=Sigmoid(x) t=Add(a,b) y=Conv(t)",
}


def needed(nodes: Sequence[Node]) -> set[tuple[str, int]]:
    """Exercise 3's answer, the rules of `quantize`."""
    order = {node.output: i for i, node in enumerate(nodes) if node.op == "Conv"}
    reads = [tensor for node in nodes for tensor in node.inputs]
    found = {(node.name, 0) for node in nodes if node.op in ("Conv", "Gemm")}
    for node in nodes:
        fusable = [(order[t], i) for i, t in enumerate(node.inputs) if t in order and reads.count(t) == 1]
        if node.op == "Add" and fusable:
            found.add((node.name, 1 - max(fusable)[1]))
    return found


def check_places(places: Callable[[list[Node]], Any]) -> None:
    """Lesson 08, exercise 3: which inputs of which nodes get a Q/DQ pair."""
    found: dict[str, set[tuple[str, int]]] = {}
    for name, text in GRAPHS.items():
        answer = places(_nodes(text))
        try:
            found[name] = {(str(node), int(position)) for node, position in answer}
        except (TypeError, ValueError) as error:
            raise NotSolved(
                "places(nodes) returns pairs of a node's name and a position: [('node_c1', 0), ...]."
            ) from error
    right = {name: needed(_nodes(text)) for name, text in GRAPHS.items()}
    show(
        lesson01.against(list(GRAPHS), [len(right[n]) for n in GRAPHS], [len(found[n]) for n in GRAPHS], "pairs"),
        "How many pairs you place in each graph, on how many there should be.",
    )
    for name, want in right.items():
        if missing := sorted(want - found[name]):
            raise NotSolved(
                f"In {name} input {missing[0][1]} of {missing[0][0]} has no pair: {_rule(name, missing[0])}."
            )
        if extra := sorted(found[name] - want):
            raise NotSolved(f"In {name} input {extra[0][1]} of {extra[0][0]} needs no pair: {_rule(name, extra[0])}")
    print("Right: pairs in front of products, and on one branch of each sum that a convolution ends in.")


def _rule(graph: str, place: tuple[str, int]) -> str:
    node = next(node for node in _nodes(GRAPHS[graph]) if node.name == place[0])
    if node.op in ("Conv", "Gemm"):
        return "a Conv or Gemm multiplies codes, so its input 0 has one."
    if node.op == "Add":
        return ("the branch that comes straight from a Conv stays float, the other gets the pair; of two Convs the "
                "later one takes the addition, and a sum without one gets no pair.")  # fmt: skip
    return f"{node.op} computes in float, or only hands codes on."


def check_keep(
    keep: Callable[[list[tuple[str, float]], float], Any], each: Sensitivities | None = None, target_db: float = 22.0
) -> None:
    """Lesson 08, exercise 4: the fewest layers in float with which the summed noise reaches a target.

    Args:
        keep: the answer, from (layer, SQNR in dB of it alone) and the target to names of layers.
        each: sensitivities of a network to try it on, beside made-up ones.
        target_db: for that network.
    """
    rng = np.random.default_rng(4)
    made = [(f"layer_{i}", float(db)) for i, db in enumerate(rng.uniform(20, 50, 12))]
    cases: list[tuple[list[tuple[str, float]], float]] = [(made, 18.0), (made, 30.0), (made, 5.0)]
    if each is not None:
        cases.append(([(layer.node, layer.sqnr_db) for layer in each.each_alone()], target_db))
    for layers, target in cases:
        answer = keep(list(layers), target)
        if answer is None or isinstance(answer, str) or not set(answer) <= {name for name, _ in layers}:
            raise NotSolved("keep(layers, target_db) returns a list of names of layers, which may be empty.")
        _judge(layers, target, list(answer))
    names, noise = [name.removeprefix("node_") for name, _ in layers], [10 ** (-db / 10) for _, db in layers]
    kept = [name.removeprefix("node_") for name in answer]
    show(
        lesson08.noise_sums(names, noise, kept, 10 ** (-target / 10)),
        "Noise of each layer, and the sum of what is INT8.",
    )
    if each is not None:
        ((measured, _),) = each.compare([each.quantized(answer)])
        print(
            f"Right: {len(kept)} of {len(names)} layers in float; wanted {target:.1f} dB, measured {measured:.1f} dB."
        )
    else:
        print("Right: the worst first, until the rest is quiet enough.")


def _judge(layers: Sequence[tuple[str, float]], target: float, kept: Sequence[str]) -> None:
    allowed = 10 ** (-target / 10)
    left = sum(10 ** (-db / 10) for name, db in layers if name not in kept)
    if left > allowed:
        raise NotSolved(f"For {target:g} dB the layers left in INT8 sum up to {-10 * np.log10(left):.1f} dB. Noise "
                        "adds, decibels do not: a layer's is 10 ** (-dB / 10), and their sum counts.")  # fmt: skip
    noise = sorted((10 ** (-db / 10) for _, db in layers), reverse=True)
    fewest = next(n for n in range(len(noise) + 1) if sum(noise[n:]) <= allowed)
    if len(set(kept)) > fewest:
        raise NotSolved(f"{target:g} dB is reached, but with {len(set(kept))} layers in float, and {fewest} "
                        "are enough: keep the noisiest first, and stop as soon as the rest fits.")  # fmt: skip
