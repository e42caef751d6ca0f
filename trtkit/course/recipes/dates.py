"""The network and data of datasets/dates: `python -m trtkit.course.recipes.dates`. Needs the package babel."""

from __future__ import annotations

import datetime

import numpy as np
import torch
from torch import nn

from trtkit.course.dates import ALPHABET, READ, WRITE, WRITTEN, numbers, shifted
from trtkit.course.recipes.export import report, ship, write
from trtkit.course.recipes.training import fit
from trtkit.course.recipes.transformer import DecoderLayer, EncoderLayer

LOCALES = ("en_GB", "en_US", "de_DE", "fr_FR", "es_ES", "it_IT", "pl_PL")
# "short" is not clear: it may put the month first, and has two digits of the year
FORMATS = ("medium", "long", "full")
WIDTH, HEADS = 64, 4


class Dates(nn.Module):
    """An encoder reads the characters of a date, a decoder writes it as 2026-11-27, one character after the other.

    `read` (N, 36) int64 are the characters, `written` (N, 10) int64 those of the answer so far, one place to the right
    of where they belong, behind a start mark. Gives logits (N, 10, 12) of the next character at each of ten places.
    """

    def __init__(self, alphabet: int = len(ALPHABET)) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(alphabet, WIDTH, padding_idx=0), nn.Embedding(READ, WIDTH)
        self.digit, self.position = nn.Embedding(len(WRITTEN), WIDTH), nn.Embedding(WRITE, WIDTH)
        self.encoder = nn.ModuleList(EncoderLayer(WIDTH, HEADS, 2 * WIDTH) for _ in range(2))
        self.decoder = nn.ModuleList(DecoderLayer(WIDTH, HEADS, 2 * WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, len(WRITTEN))
        self.register_buffer("later", torch.full((WRITE, WRITE), -1e4).triu(1), persistent=False)

    def forward(self, read: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        hide = (read == 0).float()[:, None, None, :] * -1e4
        memory = self.letter(read) + self.place.weight
        for layer in self.encoder:
            memory = layer(memory, hide)
        x = self.digit(written) + self.position.weight
        for layer in self.decoder:
            x = layer(x, memory, self.later, hide)
        logits: torch.Tensor = self.head(x)
        return logits


def network() -> nn.Module:
    """The translator; weights at random."""
    return Dates()


def data(count: int = 14_000, test: int = 1000) -> dict[str, np.ndarray]:
    """Different days from 1970 to 2069, each as one of seven languages writes it, and as ISO does, in numbers."""
    from babel.dates import format_date

    rng = np.random.default_rng(0)
    first = datetime.date(1970, 1, 1)
    days = [first + datetime.timedelta(days=int(day)) for day in rng.choice(36_500, count, replace=False)]
    texts = [format_date(day, str(rng.choice(FORMATS)), locale=str(rng.choice(LOCALES))) for day in days]
    x = numbers(texts, ALPHABET, READ).astype(np.uint8)
    y = numbers([day.isoformat() for day in days], WRITTEN, WRITE).astype(np.uint8)
    return {"train_x": x[test:], "train_y": y[test:], "test_x": x[:test], "test_y": y[:test]}


def train(arrays: dict[str, np.ndarray]) -> nn.Module:
    """The decoder is given the right characters so far, and learns the next."""
    torch.manual_seed(0)
    x, y = (torch.from_numpy(arrays[part].astype(np.int64)) for part in ("train_x", "train_y"))
    written = torch.from_numpy(shifted(arrays["train_y"]))

    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    return fit(network(), (x, written), y, loss=loss, epochs=15, rate=3e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    arrays = write("dates", data())
    example = {"read": torch.ones(2, READ, dtype=torch.long), "written": torch.ones(2, WRITE, dtype=torch.long)}
    ship(train(arrays), example, "dates")
    report("dates")
