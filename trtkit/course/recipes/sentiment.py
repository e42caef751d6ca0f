"""The network and data of datasets/sentiment: `python -m trtkit.course.recipes.sentiment FILE`.

The file is movieReviewSnippets_GroundTruth.txt of additional_resources/hutto_ICWSM_2014.tar.gz in the source package
vaderSentiment 3.3.2.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trtkit.course.recipes.export import report, ship, write
from trtkit.course.recipes.training import fit
from trtkit.course.recipes.transformer import EncoderLayer
from trtkit.course.words import LENGTH, PAD, SPECIAL, UNKNOWN, encode, words

TEST = 2000
AT_LEAST = 3  # times that a word has to be in the training sentences to be in the vocabulary
WIDTH, HEADS, LAYERS = 64, 4, 2


class Sentiment(nn.Module):
    """A small transformer encoder: word ids (N, 40) int64, 0 behind the end, to logits (N, 2) of no and yes."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(vocabulary, WIDTH, padding_idx=PAD), nn.Embedding(LENGTH, WIDTH)
        nn.init.normal_(self.word.weight, std=0.1)
        nn.init.normal_(self.place.weight, std=0.02)  # which word it is matters more than where it stands
        self.norm, self.dropout = nn.LayerNorm(WIDTH), nn.Dropout(0.4)
        self.layers = nn.ModuleList(EncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.2) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        real = (ids != PAD).float()
        x = self.dropout(self.norm(self.word(ids) + self.place.weight))
        hide = (1 - real)[:, None, None, :] * -1e4
        for layer in self.layers:
            x = layer(x, hide)
        mean = (x * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
        logits: torch.Tensor = self.head(self.dropout(mean))
        return logits


def network(vocabulary: int = 6207) -> nn.Module:
    """The classifier for as many words; weights at random."""
    return Sentiment(vocabulary)


def data(path: str) -> dict[str, np.ndarray]:
    """Ids and answers of 8,605 sentences to learn from and up to 2,000 others to be judged by, and the vocabulary."""
    table = [line.split("\t") for line in Path(path).read_text("utf-8", "replace").splitlines()]
    order = np.random.default_rng(0).permutation(len(table))
    texts, answers = [table[i][2] for i in order], np.array([float(table[i][1]) > 0 for i in order], np.int64)
    counts = Counter(word for text in texts[TEST:] for word in words(text))
    vocabulary = [*SPECIAL, *sorted(word for word, count in counts.items() if count >= AT_LEAST)]
    ids = encode(texts, vocabulary).astype(np.uint16)
    learnt = {row.tobytes() for row in ids[TEST:]}
    fresh = [i for i in np.unique(ids[:TEST], axis=0, return_index=True)[1] if ids[i].tobytes() not in learnt]
    return {
        "train_x": ids[TEST:], "train_y": answers[TEST:], "test_x": ids[fresh], "test_y": answers[fresh],
        "vocabulary": np.array(vocabulary),
    }  # fmt: skip


def train(arrays: dict[str, np.ndarray]) -> nn.Module:
    """8 epochs in which one word in ten is hidden, so that no single word decides."""
    torch.manual_seed(0)
    x, y = torch.from_numpy(arrays["train_x"].astype(np.int64)), torch.from_numpy(arrays["train_y"])

    def hide(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.where((torch.rand(x.shape) < 0.1) & (x != PAD), UNKNOWN, x), y

    net = network(len(arrays["vocabulary"]))
    return fit(net, (x,), y, loss=nn.functional.cross_entropy, epochs=8, rate=1e-3, augment=hide)


if __name__ == "__main__":
    torch.set_num_threads(1)
    arrays = write("sentiment", data(sys.argv[1]))
    ship(train(arrays), {"ids": torch.ones(2, LENGTH, dtype=torch.long)}, "sentiment")
    report("sentiment")
