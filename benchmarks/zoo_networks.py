"""The networks of the zoo: real architectures with random weights, each in full size or small, with example inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Made = tuple["torch.nn.Module", "dict[str, torch.Tensor]"]  # a network and example inputs by argument name


def _image(size: int) -> dict[str, torch.Tensor]:
    import torch

    return {"x": torch.randn(1, 3, size, size)}


def fill_zero_biases(module: torch.nn.Module) -> None:
    """Transformers start with biases of zero, and adding nothing is no work; trained ones are not zero."""
    import torch

    for parameter in module.parameters():
        if parameter.dim() == 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)


def _settle(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> Made:
    """Random scales and shifts, and the statistics of real activations, for every batch norm.

    Fresh ones would be the identity, so that a wrong folding would not be noticed. Residual branches end in a fifth of
    that, as training does it: with all at full strength a random network amplifies rounding from block to block, until
    FP16 is off by 3 % in every framework alike.
    """
    import torch

    ends = {norm for part in module.modules() if (norm := _end_of_branch(part)) is not None}
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d) and part.affine:
            part.momentum = None  # a plain average
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.uniform_(part.bias, -0.2, 0.2)
            if part in ends:
                part.weight.data *= 0.2
    module.train()
    with torch.no_grad():
        module(*(torch.randn(4, *x.shape[1:]) for x in inputs.values()))
    return module.eval(), inputs


def _end_of_branch(block: torch.nn.Module) -> torch.nn.Module | None:
    """The last batch norm of a residual block's branch, by the names torchvision gives; None for other modules."""
    import torch

    if hasattr(block, "bn2"):
        return getattr(block, "bn3", block.bn2)
    residual = getattr(block, "use_res_connect", getattr(block, "apply_residual", hasattr(block, "proj")))
    norms = [part for part in block.modules() if isinstance(part, torch.nn.BatchNorm2d)] if residual else []
    return norms[-1] if norms else None


def vision(name: str, **options: Any) -> Callable[[bool], Made]:
    """A classifier of torchvision for images of 224 x 224 pixels; the small one sees 64 x 64."""

    def make(small: bool) -> Made:
        import torchvision

        return _settle(getattr(torchvision.models, name)(weights=None, **options), _image(64 if small else 224))

    return make


def vit(small: bool) -> Made:
    """ViT-B/16."""
    import torchvision

    less = {"num_layers": 3, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128, "patch_size": 16}
    size = 64 if small else 224
    kind = torchvision.models.VisionTransformer if small else torchvision.models.vit_b_16
    return kind(image_size=size, **(less if small else {})), _image(size)


def segmenter(name: str) -> Callable[[bool], Made]:
    def make(small: bool) -> Made:
        import torchvision

        net = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None)
        return _settle(_only(net, "out"), _image(64 if small else 256))

    return make


def _only(net: torch.nn.Module, key: str) -> torch.nn.Module:
    """A network that gives a dict or an object, as one that gives one tensor of it."""
    import torch

    class Only(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result = self.net(x)
            return result[key] if isinstance(result, dict) else getattr(result, key)

    return Only()


def detector(small: bool) -> Made:
    """RetinaNet's backbone, feature pyramid and heads: what an engine holds. Boxes and suppression come after."""
    import torch
    import torchvision

    net = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, trainable_backbone_layers=5
    )

    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = net.backbone, net.head

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.head(list(self.backbone(x).values()))
            return found["cls_logits"], found["bbox_regression"]

    return Heads(), _image(64 if small else 320)


def ssdlite(small: bool) -> Made:
    """SSDLite with its boxes and non-maximum suppression, one image at a time."""
    import torch
    import torchvision

    net = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)

    class OneImage(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = self.net([x[0]])[0]
            return found["boxes"], found["scores"], found["labels"]

    return OneImage().eval(), _image(320)


def _tokens(length: int, vocabulary: int = 1000) -> dict[str, torch.Tensor]:
    import torch

    return {"x": torch.randint(0, vocabulary, (1, length))}


def _hidden(body: torch.nn.Module, argument: str, field: str = "last_hidden_state") -> torch.nn.Module:
    import torch

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return getattr(self.body(**{argument: x}), field)

    return Hidden()


def bert(attention: str) -> Callable[[bool], Made]:
    def make(small: bool) -> Made:
        from transformers import BertConfig, BertModel

        less = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
        config = BertConfig(**(less if small else {}), attn_implementation=attention)
        tokens = _tokens(16 if small else 128, 30_000)
        return _hidden(BertModel(config, add_pooling_layer=False), "input_ids"), tokens

    return make


def gpt(small: bool) -> Made:
    """GPT-2's smallest size: 12 layers of width 768, logits of 64 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    less = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 1000, "bos_token_id": None, "eos_token_id": None}
    config = GPT2Config(**(less if small else {}), attn_implementation="eager", use_cache=False)
    return _hidden(GPT2LMHeadModel(config), "input_ids", "logits"), _tokens(16 if small else 64)


def llama(small: bool) -> Made:
    """A Llama of 4 layers and width 512: rotary positions, RMS norm, gated MLP, two query heads for each key head."""
    from transformers import LlamaConfig, LlamaModel

    layers, width = (3, 64) if small else (4, 512)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, use_cache=False,
        attn_implementation="eager",
    )  # fmt: skip
    return _hidden(LlamaModel(config), "input_ids"), _tokens(16 if small else 64)


def whisper(small: bool) -> Made:
    """The encoder of Whisper's smallest size on 30 s of audio: two convolutions, four transformer layers."""
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    layers, width, heads, frames = (3, 64, 4, 64) if small else (4, 384, 6, 1500)
    config = WhisperConfig(
        encoder_layers=layers, d_model=width, encoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        max_source_positions=frames,
    )  # fmt: skip
    x = torch.randn(1, config.num_mel_bins, 2 * frames)
    return _hidden(WhisperEncoder(config), "input_features"), {"x": x}


def lstm(small: bool) -> Made:
    """Two bidirectional LSTM layers between an embedding and a classifier of every token."""
    import torch

    width = 32 if small else 256

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(1000, width)
            self.lstm = torch.nn.LSTM(width, width, num_layers=2, bidirectional=True, batch_first=True)
            self.tags = torch.nn.Linear(2 * width, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tags(self.lstm(self.embedding(x))[0])

    return Tagger(), _tokens(16 if small else 50)


def unet(small: bool) -> Made:
    """U-Net (Ronneberger et al. 2015) with batch norm, padded convolutions and three levels."""
    import torch
    from torch import nn

    def double(channels: int, width: int) -> nn.Sequential:
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    class UNet(nn.Module):
        def __init__(self, widths: tuple[int, ...]) -> None:
            super().__init__()
            below = list(itertools.pairwise(widths))
            self.down = nn.ModuleList([double(3, widths[0]), *(double(a, b) for a, b in below)])
            self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(below))
            self.join = nn.ModuleList(double(2 * a, a) for a, _ in reversed(below))
            self.last = nn.Conv2d(widths[0], 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skips = []
            for block in self.down:
                x = block(nn.functional.max_pool2d(x, 2) if skips else x)
                skips.append(x)
            for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
                x = join(torch.cat([up(x), skip], 1))
            return self.last(x)

    return _settle(UNet((8, 16) if small else (32, 64, 128, 256)), _image(64 if small else 128))
