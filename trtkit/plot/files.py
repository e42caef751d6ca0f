"""Pictures as files: whole, and with all that belongs to them."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

DPI = 120


def suffixes() -> list[str]:
    """The kinds of files that a figure can be saved as.

    >>> ".png" in suffixes() and ".svg" in suffixes()
    True
    """
    return [f".{kind}" for kind in sorted(Figure().canvas.get_supported_filetypes())]


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure with all its titles and legends, whole or not at all; the suffix says as what. Closes the figure.

    Raises:
        ValueError: the suffix is none of `suffixes()`.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format=path.suffix[1:], dpi=DPI, bbox_inches="tight")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        plt.close(figure)
    return path
