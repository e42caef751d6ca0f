"""Drawings that can be read: measured through the renderer's bounding boxes, on real networks and on random graphs."""

from __future__ import annotations

import itertools
import random
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import trtkit
from tests.passes.graphs import parse
from trtkit import graph
from trtkit.course import nets
from trtkit.errors import ModelError
from trtkit.graph.collapse import blocks, repeats
from trtkit.graph.layout import layout
from trtkit.model import Model

RESIDUAL = "a = Neg(x)  b = Exp(a)  c = Add(a, b)  y = Relu(c)"


def random_graph(seed: int, nodes: int = 60) -> Model:
    """Nodes that read one or two of the last few tensors, and now and then one from far back."""
    rng = random.Random(seed)
    names, lines = ["x"], []
    for number in range(nodes):
        near = rng.choice(names[-2:])
        far = rng.choice(names) if rng.random() < 0.1 else rng.choice(names[-4:])
        op = rng.choice(["Relu", "Sigmoid", "Neg", "Add", "Mul", "Max"])
        name = f"t{number}" if number + 1 < nodes else "y"
        lines.append(f"{name} = {op}({near})" if op in ("Relu", "Sigmoid", "Neg") else f"{name} = {op}({near}, {far})")
        names.append(name)
    return parse("  ".join(lines))


def extents(figure: Figure, gid: str) -> list[Any]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axis = figure.axes[0]
    return [a.get_window_extent(canvas.get_renderer()) for a in (*axis.patches, *axis.texts) if a.get_gid() == gid]


def apart(one: Any, other: Any) -> bool:
    return one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0


def check(figure: Figure) -> int:
    """No two boxes overlap, every text lies in its box, no edge runs through a box, all is on the page."""
    boxes, texts = extents(figure, "box"), extents(figure, "box text")
    assert all(apart(a, b) for a, b in itertools.combinations(boxes, 2))
    page = figure.bbox
    for text in texts:
        inside = [b for b in boxes if b.x0 <= text.x0 and text.x1 <= b.x1 and b.y0 <= text.y0 and text.y1 <= b.y1]
        assert len(inside) == 1
    assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in boxes)
    axis = figure.axes[0]
    for edge in (p for p in axis.patches if p.get_gid() == "edge"):
        points = axis.transData.transform(np.concatenate(edge.get_path().to_polygons(closed_only=False)))
        line = np.concatenate([np.linspace(a, b, 9) for a, b in itertools.pairwise(points)])
        for box in boxes:
            x, y = line.T
            assert not ((x > box.x0 + 1) & (x < box.x1 - 1) & (y > box.y0 + 1) & (y < box.y1 - 1)).any()
    return len(boxes)


@pytest.mark.parametrize("seed", range(3))
def test_sixty_nodes_can_be_read(seed: int) -> None:
    model = random_graph(seed)
    assert check(graph.draw(model)) == model.node_count + 2
    groups = {node.name or "": f"g{i // 4}" for i, node in enumerate(model.ir.graph)}
    check(graph.draw(model, groups, shapes=True))
    check(graph.draw(model, values={name: float(i) for i, name in enumerate(groups)}, values_label="FLOPs"))


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_random_layouts_keep_boxes_apart_and_edges_downwards(seed: int) -> None:
    rng = random.Random(seed)
    dag = nx.gnp_random_graph(rng.randint(1, 40), 0.08, seed=seed, directed=True)
    edges = [(f"b{a}", f"b{b}") for a, b in dag.edges if a < b]
    sizes = {f"b{n}": (rng.uniform(0.4, 1.5), rng.uniform(0.2, 0.5)) for n in dag.nodes}
    plan = layout(sizes, edges, columns=rng.randint(0, 3))
    for a, b in itertools.combinations(plan.spots.values(), 2):
        assert abs(a.x - b.x) >= (a.width + b.width) / 2 - 1e-9 or abs(a.y - b.y) >= (a.height + b.height) / 2 - 1e-9
    assert set(plan.routes) == set(edges)
    for spot in plan.spots.values():
        assert spot.width / 2 - 1e-9 <= spot.x <= plan.width - spot.width / 2 + 1e-9
        assert spot.height / 2 - 1e-9 <= spot.y <= plan.height - spot.height / 2 + 1e-9
    one = layout(sizes, edges, columns=1)
    assert all(one.spots[a].y < one.spots[b].y for a, b in edges)


def test_a_circle_is_refused() -> None:
    with pytest.raises(ModelError, match="circle"):
        layout({"a": (1, 1), "b": (1, 1)}, [("a", "b"), ("b", "a")])


@pytest.mark.slow
def test_resnet50_on_one_page() -> None:
    import torch

    model = trtkit.optimize(trtkit.load(nets.resnet50(seed=0), torch.rand(1, 3, 224, 224), name="resnet50"))
    parts = blocks(list(model.ir.graph))
    assert [n for part in parts for n in part.nodes] == list(model.ir.graph)
    assert [part.times for part in parts if part.times > 1] == [2, 3, 5, 2]  # the stages, each after its first block
    figure = graph.draw(model)
    assert check(figure) == len(parts) + 2
    width, height = figure.get_size_inches()
    assert width < 8 and height < 11
    assert check(graph.draw(model, collapse=False)) == model.node_count + 2


def test_repeats() -> None:
    assert repeats([]) == []
    assert repeats("aaaa") == [(1, 4)]
    assert repeats("xabababy") == [(1, 1), (2, 3), (1, 1)]
    assert sum(period * times for period, times in repeats("abcabdabcabd")) == 12


def test_values_and_groups_are_written_not_only_coloured() -> None:
    model = parse(RESIDUAL)
    names = [node.name or "" for node in model.ir.graph]
    figure = graph.draw(model, {names[0]: "kernel 1", names[1]: "kernel 1"}, values={names[0]: 1500.0})
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said.count("kernel 1") == 1 and "1.5k" in said
    assert len(extents(figure, "hull kernel 1")) == 2


def test_shapes_are_written_below_the_boxes() -> None:
    figure = graph.draw(parse(RESIDUAL), shapes=True, batch=7)
    assert [text.get_text() for text in figure.axes[0].texts].count("7×4") == 4


def test_constants_are_left_out_and_counted() -> None:
    figure = graph.draw(parse("c = Constant<value_float = 2.0>()  y = Mul(x, c)"))
    assert check(figure) == 3
    assert "1 constants not drawn" in figure.axes[0].texts[0].get_text()


def test_bodies_draw_what_they_read_from_outside() -> None:
    body = "c = Constant<value = bool {1}>()  a = Neg(x)  y = If(c) <then_branch = t () => (float[n, 4] p) {p = Exp(a)}"
    model = parse(body + ", else_branch = e () => (float[n, 4] q) {q = Abs(a)}>")
    edges = [p for p in graph.draw(model).axes[0].patches if p.get_gid() == "edge"]
    assert len(edges) == 3  # x to Neg, Neg to If, If to y


def test_wrong_names_get_a_hint() -> None:
    model = parse(RESIDUAL)
    for wrong in ({"groups": {"Neg_9": "g"}}, {"values": {"Neg_9": 1.0}}):
        with pytest.raises(ModelError, match=r"Did you mean.*Neg_0"):
            graph.draw(model, **wrong)


def test_too_many_boxes_are_refused_with_a_way_out() -> None:
    model = parse("  ".join(f"t{i} = Neg({f't{i - 1}' if i else 'x'})" for i in range(260)) + "  y = Relu(t259)")
    with pytest.raises(ModelError, match="Try collapse=True"):
        graph.draw(model, collapse=False)
    assert check(graph.draw(model)) <= 4


def test_names_are_text_and_not_mathematics() -> None:
    model = parse(RESIDUAL)
    first = next(iter(model.ir.graph)).name or ""
    figure = graph.draw(model, {first: "$x_{$"}, title="")
    assert check(figure) == 6
    assert "$x_{$" in [text.get_text() for text in figure.axes[0].texts]
