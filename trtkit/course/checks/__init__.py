"""Instant checks of the exercises, a module for each lesson.

Each check draws what the answer does, and raises `NotSolved` with a hint when it is not right.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trtkit.errors import TrtkitError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NotSolved(TrtkitError):
    """The answer to an exercise is missing or not right yet; the message is a hint."""


def number(answer: Any, what: str) -> float:
    """The answer as a finite number; NotSolved with a hint where it is none. `what` says whose answer it is."""
    if answer is None:
        raise NotSolved(f"{what} returned nothing yet. Write its body above; the text tells what it should compute.")
    try:
        number = float(answer)
    except (TypeError, ValueError) as error:
        raise NotSolved(f"{what} should return one number, and returned {answer!r}.") from error
    if not math.isfinite(number):
        raise NotSolved(f"{what} should return a finite number, and returned {number}. Is something divided by zero?")
    return number


def show(fig: Figure, alt: str) -> None:
    """Draw in the notebook, whether the answer is right or not; outside of one the figure is dropped."""
    from IPython.display import display

    from trtkit.course.notebook import figure

    display(figure(fig, alt=alt))
