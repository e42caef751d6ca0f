"""The networks of the lessons: one trained on ImageNet and shipped, one with random weights for graphs and latency."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trtkit.course import photos
from trtkit.course.paths import dataset
from trtkit.errors import DataError, MissingError

if TYPE_CHECKING:
    import torch

WEIGHTS = "mobilenet_v2/model.safetensors"
WEIGHTS_SHA256 = "0b41445091a1241ac20c58c29198ee7dfbfa4cb4e17bd5e1c0811a748ce5f115"
INSTALL = "Install them with: pip install torch torchvision safetensors"


def mobilenet_v2() -> torch.nn.Module:
    """MobileNetV2 with torchvision's ImageNet weights, in eval mode: (N, 3, 224, 224) float32 to (N, 1000) logits.

    Card: datasets/mobilenet_v2/README.md. Raises DataError when the weights file is missing or not the original.

    >>> sum(p.numel() for p in mobilenet_v2().parameters())
    3504872
    """
    models, load = _torchvision_models(), _safetensors_load()
    net = models.mobilenet_v2()
    net.load_state_dict(load(_checked_weights()))
    return net.eval()


def resnet50(seed: int = 0) -> torch.nn.Module:
    """ResNet-50 (torchvision's architecture) with seeded random weights, in eval mode; logits (N, 1000) float32.

    Its answers mean nothing: it is for graphs, engines, latency and numerics. Freshly initialised, every BatchNorm
    would be the identity and folding it would show nothing; so each one first takes the mean and variance that it sees
    on a batch of photographs, and gets a random scale and shift. Activations then look like a trained network's.

    >>> sum(p.numel() for p in resnet50().parameters())
    25557032
    """
    torch, models = _torch(), _torchvision_models()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = models.resnet50()
        _randomise_batch_norms(net)
        _settle(net, torch.from_numpy(photos.views(9, seed=seed)))
    return net.eval()


def projections(width: int = 256, seed: int = 0) -> torch.nn.Module:
    """Three linear layers that read one input, as queries, keys and values do: (..., width) to three times that.

    >>> projections()
    Siblings(
      (layers): ModuleList(
        (0-2): 3 x Linear(in_features=256, out_features=256, bias=False)
      )
    )
    """
    torch = _torch()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _siblings([torch.nn.Linear(width, width, bias=False) for _ in range(3)])


def sibling_convolutions(widths: tuple[int, ...] = (32, 48, 16), seed: int = 0) -> torch.nn.Module:
    """1x1 convolutions on one input (N, 64, H, W), each followed by a ReLU, their results joined: an Inception block.

    >>> len(sibling_convolutions().layers)
    3
    """
    torch = _torch()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        convolutions = [torch.nn.Conv2d(64, width, 1) for width in widths]
    return _siblings(convolutions, lambda parts: torch.cat([torch.relu(part) for part in parts], 1))


def _siblings(layers: list[torch.nn.Module], join: Callable[[list[Any]], Any] = tuple) -> torch.nn.Module:
    """A module that gives one input to several layers, and joins what they make of it."""
    torch = _torch()

    class Siblings(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(layers)

        def forward(self, x: Any) -> Any:
            return join([layer(x) for layer in self.layers])

    return Siblings().eval()


def _randomise_batch_norms(net: torch.nn.Module) -> None:
    """Scales and shifts a little off their initial 1 and 0."""
    torch = _torch()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)


def _settle(net: torch.nn.Module, batch: torch.Tensor) -> None:
    """One pass in train mode that sets every BatchNorm's running statistics to the batch's own (momentum 1)."""
    torch = _torch()
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(batch)
    for norm in norms:
        norm.momentum = 0.1
        norm.num_batches_tracked.zero_()


def _checked_weights() -> bytes:
    data = dataset(WEIGHTS).read_bytes()
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise DataError(f"datasets/{WEIGHTS} is damaged: its SHA-256 is not the card's. "
                        "Restore it with 'git checkout -- datasets' in the trtkit folder.")  # fmt: skip
    return data


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingError(f"The course's networks need PyTorch, which is not installed. {INSTALL}") from error
    return torch


def _torchvision_models() -> Any:
    _torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision warns about image codecs that nobody here uses
            from torchvision import models
    except ImportError as error:
        raise MissingError(f"The course's networks need torchvision, which is not installed. {INSTALL}") from error
    return models


def _safetensors_load() -> Any:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise MissingError(f"The shipped weights need safetensors, which is not installed. {INSTALL}") from error
    return load
