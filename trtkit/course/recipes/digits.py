"""The network of datasets/digits: `python -m trtkit.course.recipes.digits` (5 s)."""

from __future__ import annotations

import torch

from trtkit.course.digits import digit_network, digits
from trtkit.course.recipes.export import report, ship


def network() -> torch.nn.Module:
    """The digits' CNN; weights at random."""
    return digit_network(digits()[0], epochs=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    learn, judge = digits()
    ship(digit_network(learn), {"input": torch.from_numpy(judge.x[:2])}, "digits")
    report("digits")
