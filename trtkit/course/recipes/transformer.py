"""Attention written out, and the layers of an encoder and a decoder made of it (norms last, as in BERT)."""

from __future__ import annotations

import torch
from torch import nn


class Attention(nn.Module):
    """Attention of several heads from `x` (N, Q, width) to `memory` (N, K, width); gives (N, Q, width).

    `hide` is added to the scores (N, heads, Q, K): a large negative number hides a place.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, memory: torch.Tensor, hide: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(part).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, part in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[3] ** 0.5 + hide, 3)
        mixed: torch.Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return mixed


class EncoderLayer(nn.Module):
    """Attention to itself and two linear layers with GELU, each with a residual and a norm behind it."""

    def __init__(self, width: int, heads: int, wide: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention, self.dropout = Attention(width, heads), nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, hide: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, x, hide)))
        y: torch.Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return y


class DecoderLayer(nn.Module):
    """Attention to what was written so far, attention to what was read, and an encoder layer's linear layers."""

    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.written, self.read = Attention(width, heads), Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: torch.Tensor, memory: torch.Tensor, later: torch.Tensor, hide: torch.Tensor) -> torch.Tensor:
        x = self.norms[0](x + self.written(x, x, later))
        x = self.norms[1](x + self.read(x, memory, hide))
        y: torch.Tensor = self.norms[2](x + self.mlp(x))
        return y
