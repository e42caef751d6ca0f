"""A PyTorch network that rounds as a processor of some number format would, computed on any machine."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def rounded(net: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A copy of a float32 network whose weights, and what every layer reads and writes, are rounded to `dtype`.

    Sums inside a layer stay in float32, as in tensor cores. Too large numbers become the largest of the type.

    >>> import torch
    >>> net = rounded(torch.nn.Linear(1, 1, bias=False), torch.float8_e4m3fn)
    >>> float(net.weight.detach().fill_(1)), float(net(torch.tensor([1.06])))
    (1.0, 1.0)
    """
    import torch

    most = torch.finfo(dtype).max

    def round_to(x: Any) -> Any:
        return x.clamp(-most, most).to(dtype).to(torch.float32)

    net = copy.deepcopy(net)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.dim() > 1:
                weight.copy_(round_to(weight))
    for layer in net.modules():
        if not list(layer.children()):
            layer.register_forward_pre_hook(lambda _, inputs: tuple(round_to(x) for x in inputs))
            layer.register_forward_hook(lambda _, __, result: round_to(result))
    return net


def outputs(net: torch.nn.Module, x: torch.Tensor, kind: type | tuple[type, ...]) -> list[torch.Tensor]:
    """What the layers of a kind give out on `x`, in the order in which they run.

    >>> import torch
    >>> [y.tolist() for y in outputs(torch.nn.Sequential(torch.nn.ReLU()), torch.tensor([-1.0, 2.0]), torch.nn.ReLU)]
    [[0.0, 2.0]]
    """
    import torch

    seen: list[torch.Tensor] = []
    layers = [layer for layer in net.modules() if isinstance(layer, kind)]
    hooks = [layer.register_forward_hook(lambda _, __, result: seen.append(result.clone())) for layer in layers]
    with torch.inference_mode():
        net(x)
    for hook in hooks:
        hook.remove()
    return seen
