"""Dates as people write them, and as ISO 8601 does, as numbers of letters for a network that translates them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trtkit.errors import DataError

READ, WRITE = 36, 10  # characters of the longest date in the data, and of ISO's form
# what the seven languages need; 0 stands for no character
ALPHABET = "\0 ,.0123456789ADFJMNOSTWabcdefghijklmnoprstuvwyzáäéìûąłśź"
WRITTEN = "0123456789-\0"
START = len(WRITTEN) - 1


def numbers(texts: Sequence[str], alphabet: str, length: int) -> NDArray[np.int64]:
    """Each character's place in an alphabet, (N, length) int64, filled up with 0.

    Raises DataError when a text is longer than `length` or has a character that is not in the alphabet.

    >>> numbers(["2026-11-27"], WRITTEN, WRITE)
    array([[ 2,  0,  2,  6, 10,  1,  1, 10,  2,  7]])
    """
    ids = np.zeros((len(texts), length), np.int64)
    for row, text in zip(ids, texts, strict=True):
        if len(text) > length or not set(text) <= set(alphabet):
            strange = "".join(sorted(set(text) - set(alphabet)))
            raise DataError(f"The date {text!r} cannot be read: it may have {length} characters of the alphabet"
                            f"{f', which {strange!r} are not' if strange else ''}.")  # fmt: skip
        row[: len(text)] = [alphabet.index(letter) for letter in text]
    return ids


def shifted(answers: NDArray[np.integer]) -> NDArray[np.int64]:
    """What a decoder is given while it writes `answers` (N, W): a start mark, and all characters but the last.

    >>> shifted(np.array([[2, 0, 2]]))
    array([[11,  2,  0]])
    """
    return np.concatenate([np.full((len(answers), 1), START), answers[:, :-1]], axis=1).astype(np.int64)
