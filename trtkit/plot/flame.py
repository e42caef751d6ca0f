"""A profile as nested bars: the network on top, its modules below, the engine's layers at the bottom, all to scale."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from trtkit.plot.operators import abbreviated, clipped, colour, families, ink

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trtkit.engine.profile import LayerTime, Profile

_GROUND = ("#DADCE0", "#E8EAED")  # of modules, in turns, so that neighbours can be told apart
_CHARACTER = 0.0062  # of the figure's width, for each character of a label


def flame(profile: Profile, *, depth: int = 3, title: str | None = None) -> Figure:
    """The time of one call from left to right, as it runs; below each module what it is made of.

    Args:
        depth: so many levels of modules; a layer's own box is below them.

    Raises ValueError for a profile without layers.
    """
    if not profile.layers:
        raise ValueError("flame has nothing to draw: the profile has no layers.")
    depth = min(depth, max(len(_parts(layer)) for layer in profile.layers))
    figure, axis = plt.subplots(figsize=(11, 0.42 * (depth + 2) + 1.3))
    total = profile.sum_us
    _box(axis, 0, total, 0, "#BDC1C6", f"{profile.name}: {total:.0f} µs", total)
    levels = [_parts(layer)[:depth] for layer in profile.layers]
    for level in range(depth):
        _draw_level(axis, profile.layers, levels, level, total)
    begin = 0.0
    for layer in profile.layers:
        operator = _leading(layer)
        _box(axis, begin, layer.us, depth + 1, colour(operator), abbreviated(operator), total, edge="white")
        begin += layer.us
    axis.set(xlim=(0, total), ylim=(depth + 2.05, -0.05), xlabel=f"µs of one call, charged in running order "
             f"[{profile.source}]")  # fmt: skip
    axis.yaxis.set_visible(False)
    axis.grid(visible=False)
    axis.set_title(title if title is not None else str(profile), fontsize=9.5)
    present = {colour(_leading(layer)) for layer in profile.layers}
    handles = [plt.Rectangle((0, 0), 1, 1, color=tint, label=what) for tint, what in families(present)]
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.22), ncols=4, fontsize=7.5, handlelength=1)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.3)
    plt.close(figure)
    return figure


def _parts(layer: LayerTime) -> list[str]:
    """The dotted module, number and name before it together: "encoder.layer.0.output" -> encoder, layer.0, output."""
    parts: list[str] = []
    for part in layer.cost.module.split("."):
        if part.isdigit() and parts:
            parts[-1] = f"{parts[-1]}.{part}"
        elif part:
            parts.append(part)
    return parts


def _draw_level(axis: Axes, layers: tuple[LayerTime, ...], levels: list[list[str]], level: int, total: float) -> None:
    """One row of boxes: neighbours in the same module share one."""
    begin, turn = 0.0, 0
    for path, group in groupby(zip(levels, layers, strict=True), key=lambda pair: tuple(pair[0][: level + 1])):
        width = sum(layer.us for _, layer in group)
        if len(path) > level:
            _box(axis, begin, width, level + 1, _GROUND[turn % 2], path[level], total)
            turn += 1
        begin += width


def _leading(layer: LayerTime) -> str:
    """The operator that most of a layer's time goes into: its product, if it has one."""
    ops = layer.cost.op_types or (layer.cost.ops,)
    products = [op for op in ops if op in ("Conv", "MatMul", "Gemm", "ConvTranspose", "Attention")]
    return (products or [max(ops, key=lambda op: "Norm" in op)])[0]


def _box(
    axis: Axes, begin: float, width: float, row: int, fill: str, text: str, total: float, edge: str = "#80868B"
) -> None:
    axis.add_patch(Rectangle((begin, row + 0.04), width, 0.92, facecolor=fill, edgecolor=edge, linewidth=0.4))
    room = int(width / total / _CHARACTER)
    if room >= 3:
        axis.text(
            begin + width / 2, row + 0.5, clipped(text, room), ha="center", va="center", fontsize=7, color=ink(fill)
        )
