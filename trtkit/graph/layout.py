"""Where the boxes of a drawing go: layers from top to bottom, folded into columns so that a deep graph fits a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import networkx as nx

from trtkit.errors import ModelError

LANE = 0.1  # inches that an edge takes where it passes beside boxes
_GAP = 0.24  # between neighbours in a layer
_GUTTER = 0.35  # between columns, without the edges that go through it
_SWEEPS = 12
_PAGE = (10.0, 8.5)  # inches to aim at

Point = tuple[float, float]


class Spot(NamedTuple):
    """Centre and size of a box in inches, y downwards."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Where every box lies, the points every edge goes through, and the size of the whole; inches, y downwards."""

    spots: Mapping[str, Spot]
    routes: Mapping[tuple[str, str], tuple[Point, ...]]
    width: float
    height: float


class _Item(NamedTuple):
    """What stands in a layer: a box, or the place where the edges of one source pass by."""

    key: str
    width: float
    height: float = 0.0
    passing: bool = False


_Layers = list[list[_Item]]
_Links = dict[str, tuple[list[str], list[str]]]  # of each item, those in the layer above and in the layer below


def layout(
    sizes: Mapping[str, tuple[float, float]], edges: Sequence[tuple[str, str]], gap: float = 0.24, columns: int = 0
) -> Layout:
    """Place boxes of the given (width, height) so that edges point downwards and pass no box that they do not touch.

    Every box stands one layer below the lowest box it depends on (longest path). Edges that skip layers get a lane in
    each of them, one for all edges from one box. Neighbours are ordered by the mean position of what they are connected
    to (barycentre), swept down and up; then each goes as near to its neighbours as the sizes allow.

    Args:
        gap: inches between two layers.
        columns: how many columns to fold the layers into; 0 chooses what fits a page best.

    Raises:
        ModelError: the edges form a circle.

    Source: Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical System Structures", 1981.

    >>> plan = layout({"a": (1, 0.3), "b": (1, 0.3)}, [("a", "b")])
    >>> plan.spots["a"].y < plan.spots["b"].y
    True
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(sizes)
    graph.add_edges_from(dict.fromkeys(edges))
    if not nx.is_directed_acyclic_graph(graph):
        raise ModelError(f"What shall be drawn goes round in a circle: {nx.find_cycle(graph)}.")
    layers, links = _layers(graph, sizes)
    _order(layers, links)
    across = _across(layers, links)
    folds = [_fold(layers, links, across, gap, n) for n in ((columns,) if columns else range(1, 9))]
    return min((fold.plan(graph, links) for fold in folds), key=_misfit)


def _misfit(plan: Layout) -> float:
    """How many times the plan is larger than a page; below one page, the narrower the better."""
    return max(plan.width / _PAGE[0], plan.height / _PAGE[1], 0.6) + 0.01 * plan.width


def _layers(graph: nx.DiGraph, sizes: Mapping[str, tuple[float, float]]) -> tuple[_Layers, _Links]:
    """Items by layer, and for each item those it is linked to in the layer above and in the layer below."""
    depth: dict[str, int] = {}
    for key in nx.topological_sort(graph):
        depth[key] = max((depth[before] + 1 for before in graph.predecessors(key)), default=0)
    for key in reversed(list(nx.topological_sort(graph))):  # a source stands right above its first reader
        if graph.in_degree(key) == 0 and graph.out_degree(key):
            depth[key] = min(depth[after] for after in graph.successors(key)) - 1
    layers: _Layers = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    links: _Links = {}
    for key in sizes:
        layers[depth[key]].append(_Item(key, *sizes[key]))
        links[key] = ([], [])
    for source, target in graph.edges:
        above = source
        for level in range(depth[source] + 1, depth[target] + 1):
            below = target if level == depth[target] else lane(source, level)
            if below not in links:
                layers[level].append(_Item(below, LANE, passing=True))
                links[below] = ([], [])
            if below not in links[above][1]:
                links[above][1].append(below)
                links[below][0].append(above)
            above = below
    return layers, links


def lane(source: str, level: int) -> str:
    """The item that keeps a place in a layer for what comes from `source` and goes on below."""
    return f"{source}\0{level}"


def _order(layers: _Layers, links: _Links) -> None:
    """Sort every layer by the mean position of its neighbours above, then below, and so on; keep the best order."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers, links)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        side = sweep % 2
        for layer, beside in _pairs(layers, side):
            place = {item.key: i for i, item in enumerate(beside)}
            own = {item.key: i for i, item in enumerate(layer)}
            means = {key: _mean([place[k] for k in links[key][side]], own[key]) for key in own}
            layer.sort(key=lambda item: means[item.key])
        if (now := _crossings(layers, links)) < fewest:
            best, fewest = [list(layer) for layer in layers], now
    layers[:] = best


def _pairs(layers: list[list[_Item]], side: int) -> list[tuple[list[_Item], list[_Item]]]:
    """Each layer with the one before it, going down (side 0) or up (side 1)."""
    run = layers if side == 0 else layers[::-1]
    return [(run[i], run[i - 1]) for i in range(1, len(run))]


def _mean(places: Sequence[float], otherwise: float) -> float:
    return sum(places) / len(places) if places else otherwise


def _crossings(layers: _Layers, links: _Links) -> int:
    count = 0
    for upper, lower in pairwise(layers):
        place = {item.key: i for i, item in enumerate(lower)}
        ends = [sorted(place[k] for k in links[item.key][1]) for item in upper]
        seen: list[int] = []
        for row in ends:
            count += sum(a > b for a in seen for b in row)
            seen += row
    return count


def _across(layers: _Layers, links: _Links) -> dict[str, float]:
    """The x of every item: swept down and up, as near to the mean of its neighbours as those beside it allow."""
    x: dict[str, float] = {}
    for layer in layers:
        x.update(zip((i.key for i in layer), _apart(layer, [0.0] * len(layer)), strict=True))
    for sweep in range(_SWEEPS):
        for layer, _ in _pairs(layers, sweep % 2):
            wish = [_mean([x[k] for k in links[i.key][sweep % 2]], x[i.key]) for i in layer]
            x.update(zip((i.key for i in layer), _apart(layer, wish), strict=True))
    return x


def _apart(layer: Sequence[_Item], wish: Sequence[float]) -> list[float]:
    """The positions nearest to `wish` (least squares) at which nothing overlaps and the order stays.

    With the room that everything to the left needs taken off, the positions only must not decrease: an isotonic
    regression, solved by pooling adjacent violators.
    """
    room = [0.0]
    for left, right in pairwise(layer):
        between = LANE if left.passing and right.passing else _GAP
        room.append(room[-1] + (left.width + right.width) / 2 + between)
    pools: list[tuple[float, int]] = []  # mean and number of members
    for want, taken in zip(wish, room, strict=True):
        pools.append((want - taken, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    flat = [mean for mean, count in pools for _ in range(count)]
    return [mean + taken for mean, taken in zip(flat, room, strict=True)]


@dataclass
class _Fold:
    """Layers cut into columns side by side. Where an edge goes on in the next column it runs through the gutter."""

    gap: float
    spots: dict[str, Spot]  # of boxes and lanes
    column: dict[str, int]
    through: dict[str, tuple[float, float]]  # x in the gutter, and how far from the column's end to turn, by item above
    height: float
    width: float = 0.0

    def plan(self, graph: nx.DiGraph, links: _Links) -> Layout:
        boxes = {key: self.spots[key] for key in graph.nodes}
        routes = {edge: tuple(self._route(edge[0], edge[1], links)) for edge in graph.edges}
        return Layout(boxes, routes, self.width, self.height)

    def _route(self, source: str, target: str, links: _Links) -> list[Point]:
        stops = [source]
        while stops[-1] != target:
            below = links[stops[-1]][1]
            stops.append(target if target in below else next(k for k in below if k.startswith(f"{source}\0")))
        points: list[Point] = []
        for above, below_ in pairwise(stops):
            a, b = self.spots[above], self.spots[below_]
            points.append((a.x, a.y + a.height / 2))
            if self.column[above] != self.column[below_]:
                x, turn = self.through[above]
                points += [(a.x, self.height - turn), (x, self.height - turn), (x, turn), (b.x, turn)]
            points.append((b.x, b.y - b.height / 2))
        return points


def _fold(layers: _Layers, links: _Links, across: Mapping[str, float], gap: float, columns: int) -> _Fold:
    heights = [max((item.height for item in layer), default=0.0) + gap for layer in layers]
    parts = _cut(heights, columns)
    leaving = {end: [i.key for i in layers[end - 1] if links[i.key][1]] for _, end in parts[:-1]}
    margin = LANE * (2 + max((len(keys) for keys in leaving.values()), default=0)) if leaving else 0.0
    tallest = max((sum(heights[a:b]) - gap for a, b in parts), default=0.0)
    fold = _Fold(gap, {}, {}, {}, tallest + 2 * margin)
    left = 0.0
    for number, (first, end) in enumerate(parts):
        members = [item for layer in layers[first:end] for item in layer]
        shift = left - min(across[i.key] - i.width / 2 for i in members)
        y = margin
        for level in range(first, end):
            for item in layers[level]:
                tall = heights[level] - gap if item.passing else item.height
                fold.spots[item.key] = Spot(across[item.key] + shift, y + (heights[level] - gap) / 2, item.width, tall)
                fold.column[item.key] = number
            y += heights[level]
        left = fold.width = max(across[i.key] + i.width / 2 for i in members) + shift
        for lane_number, key in enumerate(leaving.get(end, ())):
            fold.through[key] = (left + _GUTTER / 2 + LANE * lane_number, LANE * (1 + lane_number))
        left += _GUTTER + LANE * len(leaving.get(end, ()))
    return fold


def _cut(heights: Sequence[float], columns: int) -> list[tuple[int, int]]:
    """(first, end) of the layers of each column, all columns about as high."""
    parts: list[tuple[int, int]] = []
    first, total, done = 0, sum(heights), 0.0
    for level, height in enumerate(heights):
        done += height
        if done >= total * (len(parts) + 1) / columns - 1e-9 or level + 1 == len(heights):
            parts.append((first, level + 1))
            first = level + 1
    return parts
