"""The figure style of the kit: light, few lines, Okabe and Ito's colours, which colour-blind people can tell apart."""

from __future__ import annotations

from typing import Any

from matplotlib import pyplot as plt

BLUE, ORANGE, GREEN, SKY, PURPLE, VERMILION, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#D55E00", "#F0E442", "#9AA0A6",
)  # fmt: skip

_STYLE: Any = {
    "figure.dpi": 100, "savefig.dpi": 150, "figure.facecolor": "white", "savefig.facecolor": "white",
    "font.size": 9, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#5F6368", "axes.linewidth": 0.8,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E4E6E9", "grid.linewidth": 0.8,
    "xtick.color": "#3C4043", "ytick.color": "#3C4043", "legend.frameon": False, "lines.linewidth": 1.8,
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY]),
}  # fmt: skip


def style() -> None:
    """Set the kit's figure style for this process: light, few lines, colours that everybody can tell apart."""
    plt.rcParams.update(_STYLE)
