"""The network and data of datasets/nuclei: `python -m trtkit.course.recipes.nuclei img2d.tif mask2d.tif`.

The files are in the package stardist 0.9.2, stardist/data/images/.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from PIL import Image
from torch import nn

from trtkit.course.nuclei import TILE, crops
from trtkit.course.recipes.export import report, ship, write
from trtkit.course.recipes.training import fit


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A small U-Net: (N, 1, H, W) float32 to one logit a pixel, (N, 1, H, W); H and W are multiples of 4."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _pair(1, width), _pair(width, 2 * width), _pair(2 * width, 4 * width)
        self.up2, self.up1 = (nn.ConvTranspose2d(2 * w, w, 2, 2) for w in (2 * width, width))
        self.join2, self.join1 = _pair(4 * width, 2 * width), _pair(2 * width, width)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pool = nn.functional.max_pool2d
        fine = self.down1(x)
        middle = self.down2(pool(fine, 2))
        y = self.up2(self.bottom(pool(middle, 2)))
        y = self.up1(self.join2(torch.cat([middle, y], 1)))
        logits: torch.Tensor = self.last(self.join1(torch.cat([fine, y], 1)))
        return logits


def network() -> nn.Module:
    """The U-Net with 16 channels at full size; weights at random."""
    return UNet()


def data(image: str, mask: str) -> dict[str, np.ndarray]:
    """The photograph (512, 512) uint8, and where a nucleus is, (512, 512) bool."""
    return {"image": np.asarray(Image.open(image)).astype(np.uint8), "mask": np.asarray(Image.open(mask)) > 0}


def _changed(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch mirrored or turned by right angles, brighter or darker, with a little noise."""
    turns = int(torch.randint(4, ()))
    x, y = (torch.rot90(part, turns, (2, 3)) for part in (x, y))
    if torch.rand(()) < 0.5:
        x, y = x.flip(3), y.flip(3)
    return x * torch.empty(len(x), 1, 1, 1).uniform_(0.7, 1.4) + 0.02 * torch.randn_like(x), y


def train(arrays: dict[str, np.ndarray]) -> nn.Module:
    """12 epochs on 480 tiles."""
    torch.manual_seed(0)
    x, y = (torch.from_numpy(part) for part in crops(arrays, 480, seed=0))
    return fit(
        network(), (x,), y, loss=nn.functional.binary_cross_entropy_with_logits, epochs=12, size=16, augment=_changed
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    arrays = write("nuclei", data(*sys.argv[1:]))
    ship(train(arrays), {"x": torch.zeros(2, 1, TILE, TILE)}, "nuclei")
    report("nuclei")
