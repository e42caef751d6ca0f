"""scikit-learn's handwritten digits, and a small network trained on the spot that turns them into features."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtkit.course.nets import INSTALL
from trtkit.errors import MissingError

if TYPE_CHECKING:
    import torch


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) float32 from 0 to 1, and the digits that they show, (N,) int64."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


def digits(train: int = 1000) -> tuple[Digits, Digits]:
    """The 1797 digits in scikit-learn's order: the first `train` to learn from, the others to be judged by.

    >>> learn, judge = digits()
    >>> learn.x.shape, judge.x.shape
    ((1000, 1, 8, 8), (797, 1, 8, 8))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingError("The digits come with scikit-learn: pip install scikit-learn") from error
    data = load_digits()
    x = (data.images[:, None] / 16).astype(np.float32)
    y = data.target.astype(np.int64)
    return Digits(x[:train], y[:train]), Digits(x[train:], y[train:])


def digit_network(learn: Digits, classes: int = 10, epochs: int = 12, seed: int = 0) -> torch.nn.Module:
    """A small CNN trained on the digits below `classes`: (N, 1, 8, 8) float32 to logits (N, classes).

    Its last hidden layer has 32 numbers a picture: the features that other models may start from. Takes about 3 s.
    """
    try:
        import torch
        from torch import nn
    except ImportError as error:
        raise MissingError(f"The digit network needs PyTorch, which is not installed. {INSTALL}") from error
    known = learn.y < classes
    x, y = torch.from_numpy(learn.x[known]), torch.from_numpy(learn.y[known])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, classes),
        )  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
                optimizer.step()
    return net.eval()
