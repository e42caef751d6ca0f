"""Equal blocks of rows that follow each other, found so that a picture can draw them once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Row = TypeVar("Row")


def collapsed(rows: Sequence[Row]) -> list[tuple[list[Row], int]]:
    """Runs of equal blocks written once, with how often they come, in as few rows as can be.

    Shortest path from the last row to the first: a row costs 1, a bracket 1.5 more.

    >>> collapsed(list("abcbcbcd"))
    [(['a'], 1), (['b', 'c'], 3), (['d'], 1)]
    """
    cost: list[float] = [0.0] * (len(rows) + 1)
    step: list[tuple[int, int]] = [(1, 1)] * len(rows)  # period and times of the block that starts here
    for i in range(len(rows) - 1, -1, -1):
        cost[i] = cost[i + 1] + 1
        for period, times in _repeats(rows, i):
            price = cost[i + period * times] + period + 1.5
            if price < cost[i]:
                cost[i], step[i] = price, (period, times)
    blocks: list[tuple[list[Row], int]] = []
    i = 0
    while i < len(rows):
        period, times = step[i]
        if times == 1 and blocks and blocks[-1][1] == 1:
            blocks[-1][0].append(rows[i])
        else:
            blocks.append((list(rows[i : i + period]), times))
        i += period * times
    return blocks


def _repeats(rows: Sequence[Row], start: int) -> list[tuple[int, int]]:
    """(period, times) for every period at which the rows from `start` on repeat."""
    found = []
    for period in range(1, min(40, (len(rows) - start) // 2) + 1):
        block, times = rows[start : start + period], 1
        while rows[start + times * period : start + (times + 1) * period] == block:
            times += 1
        if times > 1:
            found.append((period, times))
    return found
