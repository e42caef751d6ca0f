"""The network and drawings of datasets/signs: `python -m trtkit.course.recipes.signs FOLDER`. Needs rsvg-convert.

The folder is images/presets/vehicle/restriction of JOSM, with one SVG drawing for each of `trtkit.course.signs.NAMES`.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from trtkit.course.paths import root
from trtkit.course.recipes.blocks import InvertedResidual, Squeeze
from trtkit.course.recipes.export import report, ship
from trtkit.course.recipes.training import fit
from trtkit.course.signs import NAMES, SIZE, SPRITE, signs

TRAIN, SEED = 6000, 1


def network() -> nn.Module:
    """A small EfficientNet: pictures (N, 3, 48, 48) float32 from 0 to 1 to logits (N, 34); weights at random."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU(),
        _block(16, 24, 2, 2), _block(24, 24, 1, 4), _block(24, 40, 2, 4), _block(40, 40, 1, 4),
        nn.Conv2d(40, 160, 1, bias=False), nn.BatchNorm2d(160), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(160, len(NAMES)),
    )  # fmt: skip


def _block(inputs: int, outputs: int, stride: int, widen: int) -> nn.Module:
    """EfficientNet's block (Tan and Le 2019)."""
    return InvertedResidual(inputs, outputs, stride, widen, nn.SiLU, lambda wide: Squeeze(wide, inputs // 4))


def draw(folder: str) -> None:
    """All signs side by side in datasets/signs/signs.png, each as large as fits into 64 x 64 pixels."""
    sheet = Image.new("RGBA", (SPRITE * len(NAMES), SPRITE))
    size = ["-a", "-w", str(SPRITE), "-h", str(SPRITE)]
    for number, name in enumerate(NAMES):
        command = ["rsvg-convert", *size, str(Path(folder) / f"{name}.svg")]
        drawn = Image.open(io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout))
        sheet.paste(drawn, (number * SPRITE + (SPRITE - drawn.width) // 2, (SPRITE - drawn.height) // 2))
    path = root() / "datasets" / "signs"
    path.mkdir(exist_ok=True)
    sheet.save(path / "signs.png", optimize=True)


def train() -> nn.Module:
    """12 epochs on 6,000 pictures."""
    pictures, answers = signs(TRAIN, SEED)
    torch.manual_seed(0)
    x, y = torch.from_numpy(pictures).float() / 255, torch.from_numpy(answers)
    return fit(network(), (x,), y, loss=nn.functional.cross_entropy, epochs=12, rate=6e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    draw(sys.argv[1])
    ship(train(), {"input": torch.zeros(2, 3, SIZE, SIZE)}, "signs")
    report("signs")
