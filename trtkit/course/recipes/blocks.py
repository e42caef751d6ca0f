"""Blocks of small vision networks: MobileNetV2's, and EfficientNet's, which is it with two things more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter each channel by itself, narrow again; add what came in (Sandler et al. 2018).

    `squeeze`, if any, makes a module that weighs so many filtered channels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        widen: int = 4,
        activation: type[nn.Module] = nn.ReLU6,
        squeeze: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        wide = inputs * widen
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), activation(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), activation(),
            *([squeeze(wide)] if squeeze else []), nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return x + y if self.residual else y


class Squeeze(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018): each channel times a factor that depends on all channels' means."""

    def __init__(self, channels: int, few: int) -> None:
        super().__init__()
        self.factors = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, few, 1), nn.SiLU(), nn.Conv2d(few, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x * self.factors(x)
        return y
