"""Looking at a graph without touching it: what it computes and moves (`cost`), what memory it needs (`memory`), the
values that flow in it (`Taps`), and what it looks like (`draw`, and `netron` for netron's own viewer)."""

from __future__ import annotations

from trtkit.graph.cost import cost
from trtkit.graph.draw import draw
from trtkit.graph.memory import memory
from trtkit.graph.netron import netron
from trtkit.graph.taps import Taps

__all__ = ["Taps", "cost", "draw", "memory", "netron"]
