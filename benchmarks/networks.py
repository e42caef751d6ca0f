"""The networks that are measured: architecture, random weights from a seed, inputs, and the forms peers may choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

TOKENS = 128


@dataclass(frozen=True)
class Network:
    """One architecture. `variants` compute the same function in different forms; a peer runs whichever is fastest."""

    name: str
    variants: tuple[str, ...]
    export_variant: str  # the form that is exported to ONNX
    make: Callable[[str], torch.nn.Module]  # variant -> float32 module, the same weights for every variant
    draw: Callable[[int, torch.Generator], torch.Tensor]  # batch -> one input, float32 or int64

    def inputs(self, batch: int, count: int, precision: str, variant: str, device: str) -> list[torch.Tensor]:
        """`count` input sets, exactly representable in FP16, so that every precision is given the same numbers."""
        tensors = list(_drawn(self, batch, count))
        if tensors[0].is_floating_point():
            dtype = {"fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}[precision]
            tensors = [tensor.half().to(dtype) for tensor in tensors]
        tensors = [tensor.to(device) for tensor in tensors]
        return [tensor.to(memory_format=torch.channels_last) for tensor in tensors] if variant == "nhwc" else tensors


@lru_cache(maxsize=2)  # the largest batch takes half a second to draw, and every contender wants it
def _drawn(network: Network, batch: int, count: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    return tuple(network.draw(batch, generator) for _ in range(count))


class LastHiddenState(torch.nn.Module):
    """A transformer that takes token numbers (N, T) int64, none of them padding, to its last hidden state (N, T, H).

    It leaves out the mask, which would let every token see every other. transformers itself leaves it out when it runs
    eagerly, but makes one while a CUDA graph is captured, and attention with a mask is slower: up to 2.3 times at batch
    128. So here nobody has one.
    """

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.body.embeddings(input_ids=input_ids)
        return self.body.encoder(hidden, attention_mask=None).last_hidden_state


def resnet(quick: bool) -> Network:
    """torchvision's ResNet-50 at 224x224 pixels (quick: ResNet-18 at 64x64)."""
    import torchvision

    size = 64 if quick else 224

    def make(variant: str) -> torch.nn.Module:
        torch.manual_seed(0)
        model = torchvision.models.resnet18() if quick else torchvision.models.resnet50()
        _settle_batch_norm(model, size)
        return model.eval().to(memory_format=torch.channels_last) if variant == "nhwc" else model.eval()

    def draw(batch: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(batch, 3, size, size, generator=generator)

    return Network("resnet18-quick" if quick else "resnet50", ("nchw", "nhwc"), "nchw", make, draw)


def _settle_batch_norm(model: torch.nn.Module, size: int) -> None:
    """Give every batch norm the statistics of real activations; with those of initialisation, values would explode.

    Residual branches are scaled down as training does it (torchvision's `zero_init_residual` starts them at 0): with
    all branches at full strength a random residual network amplifies rounding tens of times, in every framework alike.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average over all batches seen
            if name.endswith("bn3" if hasattr(model.layer1[0], "bn3") else "bn2"):
                torch.nn.init.constant_(module.weight, 0.2)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 3, size, size))


def bert(quick: bool) -> Network:
    """BERT-base as transformers defines it, 128 tokens (quick: 2 layers of width 64, 16 tokens)."""
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    tokens = 16 if quick else TOKENS

    def make(variant: str) -> torch.nn.Module:
        torch.manual_seed(0)
        config = BertConfig(**(small if quick else {}), attn_implementation=variant)
        return LastHiddenState(BertModel(config, add_pooling_layer=False)).eval()

    def draw(batch: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(0, 30_000, (batch, tokens), generator=generator)

    # "eager" writes attention as plain operators, which TensorRT fuses into fewer kernels than "sdpa"'s form.
    return Network("bert-quick" if quick else "bert-base", ("sdpa", "eager"), "eager", make, draw)


def vit(quick: bool) -> Network:
    """torchvision's ViT-B/16 at 224x224 pixels (quick: 2 layers of width 64, 64x64 pixels)."""
    import torchvision

    size = 64 if quick else 224
    small = {"num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128, "patch_size": 16}

    def make(variant: str) -> torch.nn.Module:
        torch.manual_seed(0)
        kind = torchvision.models.VisionTransformer if quick else torchvision.models.vit_b_16
        net = kind(image_size=size, **(small if quick else {})).eval()
        torch.nn.init.trunc_normal_(net.heads.head.weight, std=0.02)  # torchvision's is zero: nothing to compare
        return net

    def draw(batch: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(batch, 3, size, size, generator=generator)

    return Network("vit-quick" if quick else "vit-b16", ("sdpa",), "sdpa", make, draw)


class GatedMlp(torch.nn.Module):
    """The feed-forward half of a Llama layer: x + down(silu(gate(n)) * up(n)), n the RMS norm of x."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(width, eps=1e-5)
        self.gate, self.up = (torch.nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = torch.nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norm(x)
        return x + self.down(torch.nn.functional.silu(self.gate(n)) * self.up(n))


def llama_mlp(quick: bool) -> Network:
    """Two feed-forward halves of Llama-2-7B, 4096 wide, 11008 inside, for one token of each sequence (quick: 256, 512).

    With one token nearly all time goes into reading the weights: what they take in memory decides.
    """
    width, inner = (256, 512) if quick else (4096, 11008)

    def make(variant: str) -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(*(GatedMlp(width, inner) for _ in range(2))).eval()

    def draw(batch: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(batch, width, generator=generator)

    return Network("llama-mlp-quick" if quick else "llama-mlp", ("plain",), "plain", make, draw)
