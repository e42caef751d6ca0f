"""Alternating parts: as few as any division has, in an order that runs, and equal to the whole."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from tests.passes.graphs import parse
from trtkit.compose.parts import group, parts
from trtkit.compose.split import with_shapes
from trtkit.errors import ModelError
from trtkit.model import Model


def random_model(seed: int, nodes: int = 6) -> tuple[Model, set[str], list[tuple[int, int]]]:
    """A graph of Add and Neg, some nodes outside, and its edges by the numbers of nodes."""
    rng, lines, edges = random.Random(seed), [], []
    for number in range(nodes):
        before = [rng.randrange(-1, number) for _ in range(2)]
        edges += [(one, number) for one in before if one >= 0]
        lines.append(f"v{number} = Add({', '.join('x' if one < 0 else f'v{one}' for one in before)})")
    last = f"y = Sum({', '.join(f'v{number}' for number in range(nodes))})"
    model = parse("  ".join([*lines, last]), "float[2] x", "float[2] y")
    names = [node.name or "" for node in model.ir.graph]
    outside = {name for name in names[:-1] if rng.random() < 0.4} | {names[-1]}
    return model, outside, [*edges, *((number, nodes) for number in range(nodes))]


@pytest.mark.parametrize("seed", range(12))
def test_as_few_as_can_be_and_equal(seed: int) -> None:
    model, outside, edges = random_model(seed)
    divided = parts(model, outside)
    inside = [node.name not in outside for node in model.ir.graph]
    assert len(divided) == fewest(inside, edges)
    for side, part in divided:
        assert all((node.name not in outside) == side for node in part.ir.graph)
    values = {"x": np.array([1, -2], np.float32)}
    wanted = model.run(values)
    for _, part in divided:
        values |= part.run({info.name: values[info.name] for info in part.inputs})
    np.testing.assert_array_equal(values["y"], wanted["y"])


def fewest(inside: list[bool], edges: list[tuple[int, int]]) -> int:
    """Tried out: the least number of parts in a row, each of one side, with no edge backwards."""
    for count in range(1, len(inside) + 1):
        for first in (True, False):
            sides = [(number % 2 == 0) == first for number in range(count)]
            choices = [[place for place in range(count) if sides[place] == side] for side in inside]
            if any(all(where[a] <= where[b] for a, b in edges) for where in itertools.product(*choices)):
                return count
    raise AssertionError


def test_small_parts_stay_outside() -> None:
    model = parse(
        "a = Exp(x) b = Det(a) c = Neg(b) d = Cast<to = 1>(c) y = Add(d, a)", "float[4, 4] x", "float[4, 4] y"
    )
    graph = with_shapes(model).graph
    assert [one.inside for one in group(graph, {"Det_1"}, 1)] == [True, False, True]
    assert [one.inside for one in group(graph, {"Det_1"}, 2)] == [False, True]  # Neg and Add; a Cast is nothing
    assert [one.inside for one in group(graph, {"Det_1"}, 3)] == [False]


def test_sizes_that_depend_on_data_stay_outside_until_they_are_known_again() -> None:
    model = parse(
        "int64[1] k = {1} | a = NonZero(x)  b = Cast<to = 1>(a)  c = Exp(b)  v = ReduceMax(c, k)  d = Sin(v)  "
        "y = Neg(d)",
        "float[4, 4] x",
        "float[2, 1] y",
    )
    assert [(side, list(part.op_counts)) for side, part in parts(model, {"NonZero_0"})] == [
        (False, ["NonZero", "Cast", "Exp", "ReduceMax"]),
        (True, ["Sin", "Neg"]),
    ]


def test_nodes_of_a_body_and_constant_outputs() -> None:
    model = parse(
        "float zero = {0}, float[4] w = {1, 2, 3, 4} | s = ReduceSum<keepdims = 0>(x)  c = Greater(s, zero)  "
        "v = Neg(w)  z = Identity(v)  y = If(c) <then_branch = t () => (float[4, 4] t1) {t1 = Add(x, v)}, "
        "else_branch = e () => (float[4, 4] e1) {d = Det(x) e1 = Add(x, d)}>",
        "float[4, 4] x",
        "float[4, 4] y, float[4] z",
    )
    name = next(node.name for node in model.ir.graph.all_nodes() if node.op_type == "Det")
    divided = parts(model, {name or ""})
    assert [side for side, _ in divided] == [True, False] and "If" in divided[1][1].op_counts
    values = model.random_inputs()
    wanted = model.run(values)
    for _, part in divided:
        values |= part.run({info.name: values[info.name] for info in part.inputs})
    for output in ("y", "z"):
        np.testing.assert_allclose(values[output], wanted[output], rtol=1e-6)


def test_what_is_no_tensor_cannot_be_handed_over() -> None:
    model = parse(
        "s = SequenceConstruct(x, x)  a = Exp(x)  d = Det(a)  e = Neg(d)  i = Cast<to = 7>(e)  y = SequenceAt(s, i)",
        "float[4, 4] x",
        "float[4, 4] y",
    )
    with pytest.raises(ModelError, match="no tensor of known type"):
        parts(model, {"SequenceConstruct_0", "Det_2", "SequenceAt_5"})
