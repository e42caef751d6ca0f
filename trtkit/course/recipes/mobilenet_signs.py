"""The network of datasets/mobilenet_signs: `python -m trtkit.course.recipes.mobilenet_signs`.

Transfer learning: what MobileNetV2 learnt from ImageNet stays as it is, a new last layer learns the traffic signs.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from trtkit.course import nets
from trtkit.course.paths import root
from trtkit.course.recipes.export import report
from trtkit.course.recipes.training import fit
from trtkit.course.signs import NAMES
from trtkit.course.trained import large_signs

TRAIN, SEED = 3400, 1
FEATURES = 1280


def network() -> nn.Module:
    """ImageNet's MobileNetV2 with a last layer for signs, at random: (N, 3, 96, 96) float32 to logits (N, 34)."""
    net: Any = nets.mobilenet_v2()
    net.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(FEATURES, len(NAMES)))
    return net


def train() -> nn.Module:
    """40 epochs of the last layer alone, on the features of 3,400 pictures."""
    torch.manual_seed(0)
    net: Any = network()
    inputs, answers = large_signs(TRAIN, SEED)
    with torch.no_grad():
        parts = torch.from_numpy(inputs["x"]).split(34)
        features = torch.cat([net.eval().features(part).mean((2, 3)) for part in parts])
    fit(net.classifier, (features,), torch.from_numpy(answers), loss=nn.functional.cross_entropy, epochs=40, rate=2e-3)
    return net


if __name__ == "__main__":
    torch.set_num_threads(1)
    head = {key: tensor.contiguous() for key, tensor in train().state_dict().items() if key.startswith("classifier")}
    folder = root() / "datasets" / "mobilenet_signs"
    folder.mkdir(exist_ok=True)
    save_file(head, folder / "head.safetensors")
    (folder / "head.safetensors").chmod(0o644)
    report("mobilenet_signs")
