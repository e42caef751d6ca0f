"""Sentences as numbers: a vocabulary of whole words, as the sentiment network reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PAD, UNKNOWN = 0, 1
SPECIAL = ("<pad>", "<unknown>")
LENGTH = 40
_WORD = re.compile(r"[a-z]+|[0-9]+|[!?]")


def words(text: str) -> list[str]:
    """A text's words in lower case, numbers, and the marks ! and ?; "n't" becomes "not".

    >>> words("It isn't THAT bad!")
    ['it', 'is', 'not', 'that', 'bad', '!']
    """
    plain = text.lower().replace("’", "'").replace("won't", "will n't").replace("can't", "can n't")
    return _WORD.findall(plain.replace("n't", " not"))


def encode(texts: Sequence[str], vocabulary: Sequence[str], length: int = LENGTH) -> NDArray[np.int64]:
    """Texts as rows of word numbers, (N, length) int64: cut at `length`, filled up with 0; 1 is an unknown word.

    >>> encode(["good film", "a film"], ["<pad>", "<unknown>", "film", "good"], length=3)
    array([[3, 2, 0],
           [1, 2, 0]])
    """
    number = {word: i for i, word in enumerate(vocabulary)}
    ids = np.full((len(texts), length), PAD, np.int64)
    for row, text in zip(ids, texts, strict=True):
        found = [number.get(word, UNKNOWN) for word in words(text)[:length]] or [UNKNOWN]
        row[: len(found)] = found
    return ids
