"""Real architectures to optimise, to fuse and to count: small inputs, random weights from a seed, exported on the spot.

Which nodes a graph has does not depend on the values of its weights, nor (for these) on the number of pixels, so the
networks are made as small as the architecture allows: transformers of few and narrow layers, images of 64x64 pixels
where the network takes them. `model(name)` exports once and keeps the file under out/zoo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import trtkit
from benchmarks.networks import LastHiddenState
from trtkit.model import Model

FOLDER = Path(__file__).resolve().parents[1] / "out" / "zoo"


@dataclass(frozen=True)
class Entry:
    """An architecture: `make()` gives the module in eval mode and one set of example inputs of batch 1."""

    name: str
    kind: str  # "cnn", "transformer" or "recurrent"
    make: Callable[[], tuple[torch.nn.Module, Any]]


def _vision(name: str, kind: str = "cnn", size: int = 64, **options: Any) -> Entry:
    def make() -> tuple[torch.nn.Module, Any]:
        import torchvision

        return getattr(torchvision.models, name)(weights=None, **options), torch.randn(1, 3, size, size)

    return Entry(name, kind, make)


def _segmentation() -> tuple[torch.nn.Module, Any]:
    import torchvision

    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    return _Out(net), torch.randn(1, 3, 64, 64)


class _Out(torch.nn.Module):
    """torchvision's segmentation networks return a dict; this returns its "out"."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)["out"]


class UNet(torch.nn.Module):
    """A U-Net (Ronneberger et al. 2015) of three levels with batch norm: (N, 3, H, W) to (N, 2, H, W)."""

    def __init__(self, width: int = 16, levels: int = 3) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(levels + 1)]
        self.down = torch.nn.ModuleList(_twice(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = torch.nn.ModuleList(torch.nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merge = torch.nn.ModuleList(_twice(2 * w, w) for w in reversed(widths[:-1]))
        self.head = torch.nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else torch.nn.functional.max_pool2d(x, 2))
            seen.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(seen[:-1]), strict=True):
            x = merge(torch.cat([up(x), skip], dim=1))
        return self.head(x)


def _twice(channels_in: int, channels: int) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for c in (channels_in, channels):
        layers += [torch.nn.Conv2d(c, channels, 3, padding=1, bias=False), torch.nn.BatchNorm2d(channels)]
        layers.append(torch.nn.ReLU())
    return torch.nn.Sequential(*layers)


def _tokens(count: int = 32) -> torch.Tensor:
    return torch.randint(0, 200, (1, count))


def _bert(attention: str) -> Callable[[], tuple[torch.nn.Module, Any]]:
    def make() -> tuple[torch.nn.Module, Any]:
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=256, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
            attn_implementation=attention,
        )  # fmt: skip
        return LastHiddenState(BertModel(config, add_pooling_layer=False)), _tokens()

    return make


def _gpt2() -> tuple[torch.nn.Module, Any]:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=256,
        bos_token_id=None,
        eos_token_id=None,
        n_positions=64,
        n_embd=64,
        n_layer=3,
        n_head=4,
        use_cache=False,
        attn_implementation="eager",
    )
    return LastHiddenState(GPT2Model(config)), _tokens()


def _llama() -> tuple[torch.nn.Module, Any]:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    return LastHiddenState(LlamaModel(config)), _tokens()


class _SpeechEncoder(torch.nn.Module):
    """Mel spectrogram (N, 80, T) float32 to the encoder's last hidden state (N, T / 2, H)."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        return self.body(mel).last_hidden_state


def _whisper() -> tuple[torch.nn.Module, Any]:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=64, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=128, max_source_positions=64,
        attn_implementation="eager",
    )  # fmt: skip
    return _SpeechEncoder(WhisperEncoder(config)), torch.randn(1, 80, 128)


class _Tagger(torch.nn.Module):
    """Two LSTM layers and a classifier: (N, T, 16) to (N, T, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(16, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0])


def _lstm() -> tuple[torch.nn.Module, Any]:
    return _Tagger(), torch.randn(1, 12, 16)


_VIT = {"patch_size": 16, "num_layers": 3, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}


def _vit() -> tuple[torch.nn.Module, Any]:
    import torchvision

    return torchvision.models.VisionTransformer(image_size=64, **_VIT), torch.randn(1, 3, 64, 64)


NETWORKS = {
    entry.name: entry
    for entry in (
        _vision("resnet18"),
        _vision("resnet50"),
        _vision("mobilenet_v2"),
        _vision("mobilenet_v3_small"),
        _vision("efficientnet_b0"),
        _vision("vgg11_bn"),
        _vision("densenet121"),
        _vision("googlenet", aux_logits=False, init_weights=False),
        _vision("squeezenet1_1"),
        _vision("shufflenet_v2_x1_0"),
        _vision("regnet_y_400mf"),
        _vision("mnasnet1_0"),
        _vision("convnext_tiny"),
        Entry("unet", "cnn", lambda: (UNet(), torch.randn(1, 3, 64, 64))),
        Entry("lraspp_mobilenet_v3", "cnn", _segmentation),
        Entry("vit", "transformer", _vit),
        _vision("swin_t", kind="transformer", size=224),
        Entry("bert", "transformer", _bert("eager")),
        Entry("bert_sdpa", "transformer", _bert("sdpa")),
        Entry("gpt2", "transformer", _gpt2),
        Entry("llama", "transformer", _llama),
        Entry("whisper_encoder", "transformer", _whisper),
        Entry("lstm", "recurrent", _lstm),
    )
}


def model(name: str, *, dynamic_batch: bool = False, folder: Path = FOLDER) -> Model:
    """The network as PyTorch's exporter writes it, no optimiser run; from the file where an earlier call left one."""
    path = folder / f"{name}{'-dynamic' if dynamic_batch else ''}.onnx"
    if path.exists():
        return trtkit.load(path, name=name)
    torch.manual_seed(0)
    module, inputs = NETWORKS[name].make()
    exported = trtkit.load(module.eval(), inputs, name=name, dynamic_batch=dynamic_batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    trtkit.save(exported, path)
    return exported
