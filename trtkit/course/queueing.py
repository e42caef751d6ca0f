"""A batching rule on paper: requests that arrive at given times, a rule, and how long a batch of each size takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Rule = Callable[[int, float], bool]  # of how many wait and how long the oldest has (ms): start now?


@dataclass(frozen=True)
class Batch:
    """Which requests (by number) were computed together, from when to when, in ms."""

    requests: tuple[int, ...]
    start: float
    end: float


def simulate(
    arrivals_ms: Sequence[float], rule: Rule, batch_ms: Callable[[int], float], max_batch: int, step_ms: float = 0.05
) -> list[Batch]:
    """Serve requests on one machine that asks the rule every `step_ms` whenever it is free and somebody waits.

    A rule that has not started a batch one second after the last arrival is overruled: nobody waits for ever.

    >>> simulate([0.0, 1.0], lambda waiting, oldest_ms: waiting >= 2, lambda n: 3.0, max_batch=4)
    [Batch(requests=(0, 1), start=1.0, end=4.0)]
    """
    batches: list[Batch] = []
    now, first, give_up = 0.0, 0, arrivals_ms[-1] + 1000
    while first < len(arrivals_ms):
        waiting = sum(1 for when in arrivals_ms[first : first + max_batch] if when <= now)
        if not waiting:
            now = arrivals_ms[first]
        elif rule(waiting, now - arrivals_ms[first]) or now > give_up:
            taken = tuple(range(first, first + waiting))
            batches.append(Batch(taken, now, now + batch_ms(waiting)))
            now, first = batches[-1].end, first + waiting
        else:
            coming = [when for when in arrivals_ms[first + waiting : first + waiting + 1] if when > now]
            now = min([now + step_ms, *coming])
    return batches


def latencies_ms(arrivals_ms: Sequence[float], batches: Sequence[Batch]) -> list[float]:
    """How long each request took, from its arrival until its batch was done."""
    return [batch.end - arrivals_ms[number] for batch in batches for number in batch.requests]
