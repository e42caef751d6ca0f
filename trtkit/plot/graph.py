"""Graphs as boxes and arrows: paints what `trtkit.graph.draw` has laid out. One unit of the axes is one inch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from trtkit.plot.operators import families, ink
from trtkit.plot.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE, SMALL = 7.5, 6.0  # points, of a box's first line and of the others
_PAD = 0.06  # inches between a box's edge and its text
_STRIPE = 0.08  # inches, of the row of coloured squares in a box that stands for many nodes
_HULLS = (GREEN, ORANGE, PURPLE, SKY, VERMILION, BLUE, YELLOW)
_EDGE, _INK = "#5F6368", "#202124"
_LEGEND = 0.2  # inches a line

Point = tuple[float, float]


class Box(NamedTuple):
    """A box with its text, the first line larger. `stripes` are the colours of the nodes that a box stands for."""

    lines: tuple[str, ...]
    fill: str
    stripes: tuple[str, ...] = ()
    group: str = ""
    label: str = ""  # written below the box: the shape of what comes out of it
    rounded: bool = False


class Scale(NamedTuple):
    """Colours for numbers from 0 to `largest`."""

    largest: float
    what: str

    def colour(self, value: float) -> str:
        return to_hex(colormaps["YlOrRd"](0.75 * min(max(value / self.largest, 0.0), 1.0) if self.largest else 0.0))


@lru_cache(maxsize=4096)
def text_width(text: str, size: float) -> float:
    """The width of a line of text in inches."""
    if not text.strip():
        return 0.0
    plain = text.replace("$", "S")  # two of them would be read as mathematics
    return float(TextPath((0, 0), plain, size=size, prop=FontProperties()).get_extents().x1) / 72


def box_size(box: Box) -> tuple[float, float]:
    """Width and height in inches that a box's text needs."""
    widths = [text_width(line, SIZE if i == 0 else SMALL) for i, line in enumerate(box.lines)]
    height = (SIZE * 1.25 + SMALL * 1.3 * (len(box.lines) - 1)) / 72 + (_STRIPE + 0.04 if box.stripes else 0.0)
    return max(*widths, 0.5) + 2 * _PAD, height + _PAD


def paint(
    boxes: Mapping[str, Box],
    spots: Mapping[str, tuple[float, float, float, float]],
    routes: Mapping[tuple[str, str], Sequence[Point]],
    size: tuple[float, float],
    title: str,
    scale: Scale | None = None,
) -> Figure:
    """Paint boxes at their spots (centre x, y, width, height; inches, y downwards) and edges through their points."""
    width = max(size[0], 3.0, text_width(title, 10) * 1.1)
    legend = [] if scale else families({c for box in boxes.values() for c in (box.stripes or (box.fill,))})
    rows = -(-len(legend) // max(1, int(width // 2.1))) if legend else 1
    bottom, top = size[1] + 0.2 + _LEGEND * rows, -0.4
    figure = plt.figure(figsize=(width + 0.3, bottom - top))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-0.15, width + 0.15), ylim=(bottom, top))
    axis.axis("off")
    axis.text(0, -0.22, title, fontsize=10, fontweight="bold", va="center", color=_INK, parse_math=False)
    _hulls(axis, boxes, spots, routes)
    for points in routes.values():
        _arrow(axis, points)
    for key, box in boxes.items():
        _box(axis, box, *spots[key])
    if scale:
        _colour_bar(axis, scale, size[1] + 0.15)
    else:
        _legend(axis, legend, size[1] + 0.15, max(1, int(width // 2.1)))
    plt.close(figure)
    return figure


def _box(axis: Axes, box: Box, x: float, y: float, width: float, height: float) -> None:
    shape = f"round,pad=0,rounding_size={height / 2 if box.rounded else 0.04}"
    corner = (x - width / 2, y - height / 2)
    edge = _EDGE if box.fill in ("white", "#F1F3F4") else "none"
    patch = FancyBboxPatch(
        corner, width, height, boxstyle=shape, facecolor=box.fill, edgecolor=edge, linewidth=0.7, zorder=3, gid="box"
    )
    axis.add_patch(patch)
    stripe = _STRIPE + 0.04 if box.stripes else 0.0
    heights = [SIZE * 1.25 / 72] + [SMALL * 1.3 / 72] * (len(box.lines) - 1)
    line_y = y - stripe / 2 - sum(heights) / 2
    for i, (line, tall) in enumerate(zip(box.lines, heights, strict=True)):
        weight = "bold" if box.stripes and i == 0 else "normal"
        axis.text(
            x, line_y + tall / 2, line, fontsize=SIZE if i == 0 else SMALL, ha="center", va="center_baseline",
            color=ink(box.fill), zorder=4, fontweight=weight, gid="box text", parse_math=False,
        )  # fmt: skip
        line_y += tall
    if box.stripes:
        one = (width - 2 * _PAD) / len(box.stripes)
        for i, colour in enumerate(box.stripes):
            place = (corner[0] + _PAD + i * one, corner[1] + height - _STRIPE - 0.04)
            axis.add_patch(Rectangle(place, one * 0.9, _STRIPE, facecolor=colour, linewidth=0, zorder=4))
    if box.label:
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axis.text(x, y + height / 2 + 0.04, box.label, fontsize=5.5, ha="center", va="top", color=_EDGE, bbox=ground,
                  zorder=2.5)  # fmt: skip


def _path(points: Sequence[Point]) -> Path:
    """A line through the points that enters and leaves each of them vertically; straight where they turn a corner."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 == x1 or y0 == y1:
            vertices.append((x1, y1))
            codes.append(Path.LINETO)
        else:
            middle = (y0 + y1) / 2
            vertices += [(x0, middle), (x1, middle), (x1, y1)]
            codes += [Path.CURVE4] * 3
    return Path(vertices, codes)


def _turns(points: Sequence[Point]) -> bool:
    """Whether an edge goes on in the next column."""
    return any(y1 < y0 for (_, y0), (_, y1) in pairwise(points))


def _arrow(axis: Axes, points: Sequence[Point]) -> None:
    axis.add_patch(PathPatch(_path(points), facecolor="none", edgecolor=_EDGE, linewidth=0.9, zorder=2, gid="edge"))
    x, y = points[-1]
    head = Path([(x - 0.035, y - 0.07), (x, y), (x + 0.035, y - 0.07), (0, 0)],
                [Path.MOVETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY])  # fmt: skip
    axis.add_patch(PathPatch(head, facecolor=_EDGE, linewidth=0, zorder=2))


def _hulls(
    axis: Axes,
    boxes: Mapping[str, Box],
    spots: Mapping[str, tuple[float, float, float, float]],
    routes: Mapping[tuple[str, str], Sequence[Point]],
) -> None:
    """A light ground behind the boxes of a group and along the edges inside it, with the group's name at its top."""
    groups = dict.fromkeys(box.group for box in boxes.values() if box.group)
    for number, group in enumerate(groups):
        colour = _HULLS[number % len(_HULLS)]
        members = [key for key, box in boxes.items() if box.group == group]
        for (a, b), points in routes.items():
            if a in members and b in members:
                axis.add_patch(PathPatch(_path(points), facecolor="none", edgecolor=_light(colour), zorder=1,
                                         linewidth=5 if _turns(points) else 14, capstyle="butt"))  # fmt: skip
        for key in members:
            x, y, width, height = spots[key]
            axis.add_patch(FancyBboxPatch(
                (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.07,rounding_size=0.08",
                facecolor=_light(colour), linewidth=0, zorder=1.1, gid=f"hull {group}",
            ))  # fmt: skip
        x, y, width, height = min((spots[key] for key in members), key=lambda spot: spot[1])
        ground = {"facecolor": _light(colour), "edgecolor": "none", "pad": 0.6}
        axis.text(x - width / 2 - 0.07, y - height / 2 - 0.07, group, fontsize=5.5, va="bottom", ha="left", color=_INK,
                  bbox=ground, zorder=5, gid="group label", parse_math=False)  # fmt: skip


def _light(colour: str) -> tuple[float, float, float]:
    """The colour on white at 35 %, opaque, so that overlapping parts of a hull do not show."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(1 - 0.35 * (1 - part) for part in (red, green, blue))  # type: ignore[return-value]


def _legend(axis: Axes, entries: Sequence[tuple[str, str]], y: float, columns: int) -> None:
    for i, (colour, what) in enumerate(entries):
        x, line = (i % columns) * 2.1, y + _LEGEND * (i // columns)
        axis.add_patch(Rectangle((x, line), 0.12, 0.12, facecolor=colour, linewidth=0))
        axis.text(x + 0.18, line + 0.06, what, fontsize=7, va="center", color=_INK)


def _colour_bar(axis: Axes, scale: Scale, y: float) -> None:
    steps = 24
    for i in range(steps):
        colour = scale.colour(scale.largest * i / (steps - 1))
        axis.add_patch(Rectangle((i * 0.05, y), 0.05, 0.12, facecolor=colour, linewidth=0))
    text = f"{scale.what}: 0 to {short_number(scale.largest)}" if scale.what else f"0 to {short_number(scale.largest)}"
    axis.text(steps * 0.05 + 0.08, y + 0.06, text, fontsize=7, va="center", color=_INK)


def short_number(value: float) -> str:
    """A number in a few characters.

    >>> short_number(4_089_000_000), short_number(0.000123), short_number(0)
    ('4.09G', '0.000123', '0')
    """
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"
