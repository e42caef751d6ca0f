"""What the recipes share: one training loop."""

from __future__ import annotations

from collections.abc import Callable

import torch

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def fit(
    net: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    answers: torch.Tensor,
    *,
    loss: Loss,
    epochs: int,
    rate: float = 3e-3,
    size: int = 64,
    decay: float = 0.01,
    augment: Callable[..., tuple[torch.Tensor, ...]] | None = None,
) -> torch.nn.Module:
    """Train on batches of `size` with AdamW, the learning rate up to `rate` and down to zero again; then eval mode.

    `augment` gets a batch's inputs and answers and returns others in their place. It and the order of the batches draw
    from torch's generator, so that `torch.manual_seed` before makes two runs on one machine equal.
    """
    rounds = -(-len(answers) // size) * epochs
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=rounds)
    net.train()
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(answers)).split(size):
            *x, y = (*(part[batch] for part in inputs), answers[batch])
            if augment is not None:
                *x, y = augment(*x, y)
            optimizer.zero_grad()
            error = loss(net(*x), y)
            error.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += error.item() * len(batch)
        print(f"epoch {epoch + 1:3}: loss {total / len(answers):.4f}", flush=True)
    return net.eval()


def moved(x: torch.Tensor, turn: float, scale: float, shift: float) -> torch.Tensor:
    """Images (N, C, H, W), each turned by up to `turn` radians, scaled and shifted by up to these parts of its size."""
    count = len(x)
    angle, size = (torch.empty(count).uniform_(-turn, turn), 1 + torch.empty(count).uniform_(-scale, scale))
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle) / size
    theta[:, 0, 1], theta[:, 1, 0] = -torch.sin(angle) / size, torch.sin(angle) / size
    theta[:, :, 2] = torch.empty(count, 2).uniform_(-2 * shift, 2 * shift)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
