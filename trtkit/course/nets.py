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


def texture(layers: int = 1) -> torch.nn.Module:
    """The texture of a photograph as one vector: which channels of MobileNetV2's first layers light up together.

    (N, 3, H, W) float32 to (N, C * C), each row of length 1: the Gram matrix F F' / P of the C channels over all P
    places, as Gatys, Ecker and Bethge 2016 (Image Style Transfer) describe style, with MobileNetV2's trained weights.

    >>> [tuple(texture(k)(_torch().rand(2, 3, 224, 224)).shape) for k in (1, 2)]
    [(2, 1024), (2, 256)]
    """
    torch = _torch()
    whole: Any = mobilenet_v2()
    first = whole.features[:layers]

    class Texture(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.features: Any = first

        def forward(self, x: Any) -> Any:
            f = self.features(x).flatten(2)
            gram = f @ f.transpose(1, 2) / f.shape[-1]
            return torch.nn.functional.normalize(gram.flatten(1))

    return Texture().eval()


def resnet50(seed: int = 0) -> torch.nn.Module:
    """ResNet-50 (torchvision's architecture) with seeded random weights, in eval mode; logits (N, 1000) float32.

    Its answers mean nothing: it is for graphs, engines, latency and numerics. Freshly initialised, every BatchNorm
    would be the identity and folding it would show nothing; so each one first takes the mean and variance that it sees
    on a batch of photographs, and gets a random scale and shift. Activations then look like a trained network's.

    >>> sum(p.numel() for p in resnet50().parameters())
    25557032
    """
    return classifier("resnet50", seed)


def classifier(name: str, seed: int = 0) -> torch.nn.Module:
    """One of torchvision's image classifiers by name, with seeded random weights as `resnet50` has them, in eval mode.

    >>> sum(p.numel() for p in classifier("shufflenet_v2_x1_0").parameters())
    2278604
    """
    torch, models = _torch(), _torchvision_models()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = getattr(models, name)()
        _randomise_batch_norms(net)
        _settle(net, torch.from_numpy(photos.views(9, seed=seed)))
    return net.eval()


def swin(stages: int = 2, seed: int = 0) -> torch.nn.Module:
    """The first stages of Swin-T (windows of 7 x 7 patches, every other one shifted) and a classifier behind them.

    Each stage has two blocks, as Swin-T's first two. Random weights, (N, 3, 224, 224) to (N, 1000) float32.

    >>> len(swin(1).features)
    2
    """
    torch, models = _torch(), _torchvision_models()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = models.SwinTransformer(
            [4, 4], 96, [2] * stages, [3 * 2**stage for stage in range(stages)], [7, 7], stochastic_depth_prob=0.0
        )
    return net.eval()


def attention(width: int = 64, heads: int = 8, seed: int = 0) -> torch.nn.Module:
    """Multi-head self-attention written out, (N, tokens, width) float32 to the same; random weights."""
    torch = _torch()
    nn = torch.nn

    class Attention(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

        def forward(self, x: Any) -> Any:
            q, k, v = (layer(x).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            weights = torch.softmax(q @ k.transpose(-2, -1) / (width // heads) ** 0.5, -1)
            return self.out((weights @ v).transpose(1, 2).flatten(-2))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Attention().eval()


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


def encoder(
    attention: str = "eager", layers: int = 2, width: int = 64, heads: int = 4, seed: int = 0
) -> torch.nn.Module:
    """A small transformer encoder like BERT's, (N, T, width) to the same shape; random weights, biases not zero.

    `attention` says how the same attention is written: "eager" as two products with a softmax between them, "sdpa"
    as one call of PyTorch's scaled_dot_product_attention. Equal seeds give equal weights.

    >>> len(encoder("sdpa", layers=3))
    3
    """
    torch = _torch()
    functions: dict[str, Callable[..., Any]] = {
        "eager": _written_out, "sdpa": torch.nn.functional.scaled_dot_product_attention,
    }  # fmt: skip
    if attention not in functions:
        raise DataError(f"encoder(attention={attention!r}): choose one of {', '.join(functions)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = [_block(functions[attention], width, heads) for _ in range(layers)]
    return torch.nn.Sequential(*blocks).eval()


def residual_block(seed: int = 0) -> torch.nn.Module:
    """A small residual network, (N, 3, H, W) float32 to 10 logits: a pooled stem, one block, a linear layer.

    >>> tuple(residual_block()(_torch().zeros(2, 3, 16, 16)).shape)
    (2, 10)
    """
    torch = _torch()
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.second = (nn.Conv2d(c, 32, 3, padding=1) for c in (3, 32, 32))
            self.last = nn.Linear(32, 10)

        def forward(self, x: Any) -> Any:
            x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
            return self.last(torch.relu(self.second(torch.relu(self.first(x))) + x).mean((2, 3)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Block().eval()


def _written_out(query: Any, key: Any, value: Any) -> Any:
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(-1) @ value


def _block(attend: Callable[..., Any], width: int, heads: int) -> torch.nn.Module:
    torch = _torch()
    linear, norm = torch.nn.Linear, torch.nn.LayerNorm

    class Block(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))
            self.wide, self.narrow = linear(width, 4 * width), linear(4 * width, width)
            self.norms = torch.nn.ModuleList(norm(width) for _ in range(2))
            for part in self.norms:
                torch.nn.init.normal_(part.bias, std=0.02)

        def forward(self, x: Any) -> Any:
            def split(y: Any) -> Any:
                return y.view(*y.shape[:2], heads, width // heads).transpose(1, 2)

            mixed = attend(split(self.query(x)), split(self.key(x)), split(self.value(x)))
            x = self.norms[0](x + self.out(mixed.transpose(1, 2).flatten(2)))
            return self.norms[1](x + self.narrow(torch.nn.functional.gelu(self.wide(x))))

    return Block()


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
