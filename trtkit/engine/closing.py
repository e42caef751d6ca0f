"""What is still open when the interpreter ends is closed then, the newest first, while all it needs is still there."""

from __future__ import annotations

import atexit
import contextlib
import itertools
from typing import Protocol
from weakref import WeakValueDictionary


class Closable(Protocol):
    def close(self) -> None: ...


_open: WeakValueDictionary[int, Closable] = WeakValueDictionary()
_numbers = itertools.count()


def close_at_exit(thing: Closable) -> None:
    """Have `thing.close()` called when the interpreter ends, should it live that long; it is not kept alive.

    >>> class Door:
    ...     def close(self):
    ...         print("closed")
    >>> door = Door()
    >>> close_at_exit(door)
    """
    _open[next(_numbers)] = thing


def close_all() -> None:
    """Close what is open, the newest first, for it may stand on older things; errors must not stop the others."""
    for thing in reversed(list(_open.values())):
        with contextlib.suppress(Exception):
            thing.close()


atexit.register(close_all)
