"""Liveness and the plan: by hand on small graphs, as properties on random ones."""

from __future__ import annotations

import itertools
import random

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trtkit
from trtkit.errors import ModelError
from trtkit.graph.memory import Buffer, Memory, memory, place
from trtkit.model import Model


def parse(nodes: str, inputs: str = "float[n, 4] x", outputs: str = "float[n, 4] y") -> Model:
    return trtkit.load(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> g ({inputs}) => ({outputs}) {{ {nodes} }}')
    )


def check_plan(buffers: tuple[Buffer, ...]) -> None:
    for a, b in itertools.combinations(buffers, 2):
        apart = a.offset + a.size_bytes <= b.offset or b.offset + b.size_bytes <= a.offset
        assert apart or a.last < b.first or b.last < a.first, (a, b)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 20), st.integers(0, 6)), max_size=25))
def test_aligned_buffers_start_at_multiples_and_do_not_overlap(lives: list[tuple[int, int, int]]) -> None:
    plan = place([Buffer(str(i), "intermediate", size, at, at + n) for i, (size, at, n) in enumerate(lives)], 256)
    check_plan(plan)
    assert all(buffer.offset % 256 == 0 for buffer in plan)


def test_alignment_costs_memory_only_where_sizes_are_odd() -> None:
    odd = parse("a = Neg(x)  b = Exp(a)  y = Relu(b)")
    assert (memory(odd).arena_bytes, memory(odd, align=256).arena_bytes) == (32, 512)
    assert memory(odd, batch=16, align=256).arena_bytes == memory(odd, batch=16).arena_bytes == 512
    assert memory(odd, align=256).peak_bytes == memory(odd).peak_bytes
    with pytest.raises(ModelError, match="aligned to 0"):
        memory(odd, align=0)


def check(result: Memory) -> None:
    check_plan(result.buffers)
    assert result.peak_bytes <= result.arena_bytes <= result.naive_bytes


def random_graph(seed: int) -> Model:
    """Up to 20 nodes: each reads tensors made before, some widen, some are views; every tensor is 4*2^k floats."""
    rng = random.Random(seed)
    width, nodes = {"x": 4}, []
    for number in range(rng.randint(1, 20)):
        source, name = rng.choice(list(width)), f"t{number}"
        kind = rng.choice(["Relu", "Identity", "Concat", "Add"])
        same = [t for t in width if width[t] == width[source]]
        other = rng.choice(same)
        if kind == "Concat" and width[source] < 64:
            nodes.append(f"{name} = Concat<axis=1>({source}, {other})")
            width[name] = 2 * width[source]
        else:
            unary = kind in ("Relu", "Identity")
            nodes.append(f"{name} = {kind}({source})" if unary else f"{name} = Add({source}, {other})")
            width[name] = width[source]
    return parse("  ".join(nodes), outputs=f"float[n, {width[name]}] {name}")


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    model = random_graph(seed)
    result = memory(model, batch=2)
    check(result)
    held = {name for b in result.buffers for name in (b.name, *b.views)}
    assert held == {"x", *(node.outputs[0].name for node in model.ir.graph)}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 6)), max_size=25))
def test_any_lifetimes_can_be_placed(lives: list[tuple[int, int, int]]) -> None:
    buffers = [Buffer(str(i), "intermediate", size, at, at + long) for i, (size, at, long) in enumerate(lives)]
    plan = place(buffers)
    check_plan(plan)
    assert [b._replace(offset=0) for b in plan] == buffers
    top = max((b.offset + b.size_bytes for b in plan), default=0)
    peak = max((sum(b.size_bytes for b in plan if b.first <= i <= b.last) for i in range(27)), default=0)
    assert peak <= top <= sum(b.size_bytes for b in plan)


def test_a_chain_needs_two_buffers_however_long() -> None:
    result = memory(parse("a = Neg(x)  b = Exp(a)  c = Abs(b)  y = Relu(c)"), batch=2)
    assert (result.peak_bytes, result.arena_bytes, result.naive_bytes) == (64, 64, 160)
    assert [(b.name, b.kind, b.first, b.last) for b in result.buffers] == [
        ("x", "input", 0, 0), ("a", "intermediate", 0, 1), ("b", "intermediate", 1, 2), ("c", "intermediate", 2, 3),
        ("y", "output", 3, 3),
    ]  # fmt: skip


def test_a_skip_connection_keeps_its_tensor_alive_and_makes_the_peak() -> None:
    result = memory(parse("a = Neg(x)  b = Exp(x)  y = Add(a, b)"))
    assert result.live_bytes == (32, 48, 48)
    assert (result.peak_bytes, result.peak_node) == (48, result.nodes[1])


def test_views_share_their_sources_buffer() -> None:
    result = memory(parse("a = Neg(x)  b = Flatten(a)  c = Identity(b)  d = Exp(x)  y = Add(c, d)"))
    buffers = {b.name: b for b in result.buffers}
    assert set(buffers) == {"x", "a", "d", "y"}
    assert buffers["a"].views == ("b", "c") and (buffers["a"].first, buffers["a"].last) == (0, 4)


def test_a_view_given_out_keeps_its_source() -> None:
    result = memory(parse("a = Neg(x)  y = Flatten(a)  b = Exp(x)  z = Abs(b)", outputs="float[n,4] y, float[n,4] z"))
    (buffer,) = (b for b in result.buffers if b.name == "a")
    assert (buffer.kind, buffer.views, buffer.last) == ("output", ("y",), 3)
    check(result)


def test_weights_constants_and_views_of_them_are_not_counted() -> None:
    result = memory(parse("w = Constant<value = float[4] {1,2,3,4}>()  v = Identity(w)  y = Add(x, v)"))
    assert {b.name for b in result.buffers} == {"x", "y"}


def test_sizes_that_stay_unknown_are_an_error() -> None:
    with pytest.raises(ModelError, match="size of 'a'"):
        memory(parse("a = NonZero(x)  b = Cast<to=1>(a)  y = Relu(b)", outputs="float[2, m] y"))
    with pytest.raises(ModelError, match="'m'"):
        memory(parse("y = Relu(x)", "float[n, m] x", "float[n, m] y"))


def test_nodes_with_bodies_are_an_error() -> None:
    body = "then_branch = t () => (float[n,4] p) {p = Neg(x)}, else_branch = e () => (float[n,4] q) {q = Exp(x)}"
    with pytest.raises(ModelError, match="graphs of their own"):
        memory(parse(f"y = If<{body}>(c)", "float[n,4] x, bool c"))
