"""Optimization profiles from what the caller gives, and errors for what cannot be one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.graphs import parse
from trtkit.engine.shapes import profiles_for
from trtkit.errors import BuildError
from trtkit.model import Model

MODEL = parse("y = Relu(x)", "float[n, 3, 8] x", "float[n, 3, 8] y")
OPEN = parse("y = Relu(x)", "float[n, length] x", "float[n, length] y")


def refused(model: Model, shapes: Any) -> str:
    with pytest.raises(BuildError) as caught:
        profiles_for(model, shapes)
    return str(caught.value)


@pytest.mark.parametrize("shapes", [None, {}, [], [{}]])
def test_the_batch_by_default(shapes: Any) -> None:
    assert profiles_for(MODEL, shapes) == [{"x": [[1, 3, 8], [8, 3, 8], [32, 3, 8]]}]


@pytest.mark.parametrize("shape", [(2, 3, 8), [2, 3, 8], np.zeros((2, 3, 8)).shape, np.array([2, 3, 8])])
def test_one_shape_alone(shape: Any) -> None:
    assert profiles_for(MODEL, {"x": shape}) == [{"x": [[2, 3, 8]] * 3}]


def test_least_best_and_largest() -> None:
    three = [(1, 3, 8), (4, 3, 8), (16, 3, 8)]
    assert profiles_for(MODEL, {"x": three}) == [{"x": [list(shape) for shape in three]}]
    assert profiles_for(MODEL, {"x": np.array(three)}) == [{"x": [list(shape) for shape in three]}]


def test_several_profiles() -> None:
    found = profiles_for(OPEN, [{"x": (1, 128)}, {"x": [(1, 1), (2, 64), (4, 256)]}])
    assert found == [{"x": [[1, 128]] * 3}, {"x": [[1, 1], [2, 64], [4, 256]]}]


def test_inputs_that_cannot_change_need_no_profile() -> None:
    fixed = parse("y = Relu(x)", "float[2, 4] x", "float[2, 4] y")
    assert profiles_for(fixed) == [{}]
    assert profiles_for(fixed, {"x": (2, 4)}) == [{"x": [[2, 4]] * 3}]
    mixed = parse("y = Add(x, z)", "float[n, 4] x, float[1, 4] z")
    assert profiles_for(mixed) == [{"x": [[1, 4], [8, 4], [32, 4]]}]


def test_what_is_refused() -> None:
    assert refused(MODEL, {"q": (1, 3, 8)}) == "'g' has no input 'q' to give a shape to; its inputs are ['x']."
    assert "the shape (1, 3) does not fit" in refused(MODEL, {"x": (1, 3)})
    assert "the shape (1, 3, 9) does not fit" in refused(MODEL, {"x": (1, 3, 9)})
    assert "the shape (0, 3, 8) does not fit" in refused(MODEL, {"x": (0, 3, 8)})
    assert "the shape (-1, 3, 8) does not fit" in refused(MODEL, {"x": [(-1, 3, 8), (1, 3, 8), (1, 3, 8)]})
    assert "three (least, best, largest), not 2" in refused(MODEL, {"x": [(1, 3, 8), (2, 3, 8)]})
    assert "must grow from least to best to largest" in refused(MODEL, {"x": [(4, 3, 8), (2, 3, 8), (8, 3, 8)]})
    message = refused(OPEN, None)
    assert "how long can 'length' be?" in message and "shapes={'x': (least, best, largest)}" in message


@pytest.mark.parametrize(
    "shape", [(), [], 5, None, "abc", (2.0, 3, 8), (2, 3, 8.5), {"min": 1}, [(1, 3, 8), 2, (3, 3, 8)]], ids=repr
)
def test_what_is_no_shape_is_refused_by_name(shape: Any) -> None:
    assert "Input x float32 (n, 3, 8)" in refused(MODEL, {"x": shape})


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(-1, 4), min_size=2, max_size=2), min_size=3, max_size=3))
def test_three_shapes_are_taken_exactly_when_they_grow(three: list[list[int]]) -> None:
    grow = all(a <= b <= c for a, b, c in zip(*three, strict=True)) and all(d > 0 for shape in three for d in shape)
    if grow:
        assert profiles_for(OPEN, {"x": three}) == [{"x": three}]
    else:
        assert refused(OPEN, {"x": three}).startswith("Input x float32 (n, length): ")
