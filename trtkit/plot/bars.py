"""Measurements and compared models as bars, each with where its numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from trtkit.plot.style import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def latency_bars(
    times: Mapping[str, Any], *, title: str = "", source: str = "", highlight: Sequence[str] = ()
) -> Figure:
    """One horizontal bar for each latency in milliseconds, with whiskers from p10 to p90 where they are known.

    Args:
        times: by name: a number, or anything with median_ms, p10_ms and p90_ms (a Measurement, a Record).
        source: where the numbers come from; by default what the measurements say of themselves.
        highlight: names whose bars stand out.

    Raises ValueError when there is nothing to draw.
    """
    if not times:
        raise ValueError("latency_bars has nothing to draw: give at least one name with its latency.")
    values = [float(getattr(t, "median_ms", t)) for t in times.values()]
    lows = [v - float(getattr(t, "p10_ms", v)) for t, v in zip(times.values(), values, strict=True)]
    highs = [float(getattr(t, "p90_ms", v)) - v for t, v in zip(times.values(), values, strict=True)]
    said = dict.fromkeys(str(t.source) for t in times.values() if hasattr(t, "source"))
    axis = _axis(len(times))
    colours = [ORANGE if name in highlight else BLUE for name in times]
    whiskers = {"elinewidth": 1, "ecolor": "#3C4043", "capsize": 2}
    axis.barh(list(times), values, xerr=[lows, highs], color=colours, height=0.62, error_kw=whiskers)
    _label_bars(axis, [f"{v:.3g}" for v in values], [v + h for v, h in zip(values, highs, strict=True)])
    _finish(axis, f"latency of one call, ms{' (whiskers: p10 to p90)' if any(highs) else ''}", title)
    return _sourced(axis, source or "; ".join(said))


def comparison(rows: Sequence[Mapping[str, Any]], peer: str = "", *, title: str = "") -> Figure:
    """Rows of a `Comparison` as bars side by side: latency, size, error; what no row has is left out.

    Raises ValueError when there are no rows.
    """
    if not rows:
        raise ValueError("comparison has no rows to draw.")
    names = [f"{row['name']}, batch {row['batch']}" if row.get("batch") else str(row["name"]) for row in rows]
    panels = [panel for panel in _PANELS if any(row.get(panel[0]) is not None for row in rows)]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.4 * len(panels) + 1.2, 0.36 * len(rows) + 1.5), sharey=True, squeeze=False
    )
    for axis, (key, heading, factor, form) in zip(axes[0], panels, strict=True):
        _panel(axis, [row.get(key) for row in rows], names, factor, form, names.index(peer) if peer in names else 0)
        _finish(axis, "", heading)
        axis.title.set_fontsize(9.5)
    where = dict.fromkeys(str(row["measured"]) for row in rows if row.get("measured"))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return _sourced(axes[0][0], f"latency measured on: {'; '.join(where)}" if where else "")


_PANELS = (  # key, heading, factor, format of the labels
    ("median_ms", "latency of one call, ms", 1.0, "{:.3g}"),
    ("size_bytes", "size, MB", 1e-6, "{:.3g}"),
    ("error", "relative error", 1.0, "{:.0e}"),
)


def _panel(axis: Axes, values: list[float | None], names: list[str], factor: float, form: str, first: int) -> None:
    lengths = [0.0 if value is None else value * factor for value in values]
    colours = [GREY if i == first else BLUE for i in range(len(names))]
    axis.barh(range(len(names)), lengths, color=colours, height=0.62)
    axis.set_yticks(range(len(names)), names)
    labels = ["" if value is None else ("0" if value == 0 else form.format(value * factor)) for value in values]
    _label_bars(axis, labels, lengths)


def _axis(bars: int) -> Axes:
    return plt.subplots(figsize=(7.2, 0.38 * bars + 1.3))[1]


def _label_bars(axis: Axes, labels: Sequence[str], ends: Sequence[float]) -> None:
    """A number at the end of each bar, and room for it."""
    ground: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # so that lines pass behind it
    for position, (text, end) in enumerate(zip(labels, ends, strict=True)):
        axis.annotate(
            text, (end, position), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5, bbox=ground
        )
    axis.set_xlim(0, (max(ends, default=0) or 1) * 1.2)


def _finish(axis: Axes, label: str, title: str) -> None:
    axis.set_xlabel(label)
    axis.set_title(title)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    if not axis.yaxis_inverted():  # panels share their y axis, which must be turned only once
        axis.invert_yaxis()


def _sourced(axis: Axes, source: str) -> Figure:
    """Lay the figure out, with where its numbers come from in its last line."""
    figure = axis.figure
    assert isinstance(figure, Figure)
    figure.tight_layout()
    if source:
        figure.text(0.01, -0.01, source, ha="left", va="top", fontsize=7.5, color="#5F6368")
    plt.close(figure)  # whoever asked for it shows or saves it; a notebook would otherwise show it twice
    return figure
