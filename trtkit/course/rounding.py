"""Rounding to a number format: arrays with one scale or one for each block, and whole PyTorch networks."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trtkit.engine.verify import sqnr_db
from trtkit.quant.formats import UINT8, FloatFormat, IntFormat

if TYPE_CHECKING:
    import torch


def with_one_scale(x: NDArray[Any], kind: IntFormat | FloatFormat) -> NDArray[Any]:
    """x as a format holds it, scaled so that the largest |x| meets the largest number of the format.

    >>> from trtkit.quant.formats import FP4_E2M1, INT4
    >>> x = np.array([0.9, 2.0, 7.0])
    >>> with_one_scale(x, INT4).tolist(), with_one_scale(x, FP4_E2M1).round(3).tolist()
    ([1.0, 2.0, 7.0], [1.167, 1.75, 7.0])
    """
    if isinstance(kind, IntFormat):
        return kind.round(x, np.abs(x).max() / kind.highest)
    scale = np.abs(x).max() / kind.max
    return kind.round(x / scale) * scale


def int_blocks(x: NDArray[Any], kind: IntFormat, block: int) -> NDArray[Any]:
    """x (..., K) in whole numbers, with an FP16 scale for each `block` neighbours along the last axis; float32.

    >>> from trtkit.quant.formats import INT4
    >>> int_blocks(np.array([0.875, 0.13, 700, 90]), INT4, block=2).tolist()
    [0.875, 0.125, 700.0, 100.0]
    """
    blocks = x.astype(np.float32).reshape(-1, block)
    scale = (np.abs(blocks).max(axis=1, keepdims=True) / kind.highest).astype(np.float16).astype(np.float32)
    scale[scale == 0] = 1  # nothing but zeros, which any scale holds
    return kind.round(blocks, scale).reshape(x.shape)


def affine_codes(x: NDArray[Any], kind: IntFormat = UINT8) -> tuple[NDArray[Any], float, int]:
    """Codes, scale and zero point such that all codes are used and the number 0 is met exactly.

    The range is that of x, widened to include 0. `kind.decode(*affine_codes(x))` is x as these codes hold it.

    >>> codes, scale, zero = affine_codes(np.array([-1.0, 0.0, 3.1]))
    >>> codes.tolist(), round(scale, 6), zero
    ([0, 62, 255], 0.016078, 62)
    """
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = float(np.float32((high - low) / (kind.highest - kind.lowest) or 1.0))
    zero = int(kind.lowest + np.rint(-low / scale))
    return kind.encode(x, scale, zero), scale, zero


def decibels(x: NDArray[Any], rounded: NDArray[Any]) -> float:
    """Signal to noise: 20 dB if the error is a tenth of the numbers, 40 dB if a hundredth.

    >>> round(decibels(np.array([1.0, 1.0]), np.array([1.1, 0.9])), 6)
    20.0
    """
    return sqnr_db(rounded, x)


def added(levels: Iterable[float]) -> float:
    """What noises that know nothing of each other come to together: signal to noise in dB, from that of each alone.

    Each is a share 10 ** (-dB / 10) of the signal's energy, and shares add. None at all is infinitely good.

    >>> round(added([20.0, 20.0]), 1)  # twice the energy
    17.0
    """
    share = sum(10 ** (-level / 10) for level in levels)
    return float(-10 * np.log10(share)) if share else float("inf")


def rounded(net: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A copy of a float32 network whose weights, and what every layer reads and writes, are rounded to `dtype`.

    Sums inside a layer stay in float32, as in tensor cores. Too large numbers become the largest of the type.

    >>> import torch
    >>> net = rounded(torch.nn.Linear(1, 1, bias=False), torch.float8_e4m3fn)
    >>> float(net.weight.detach().fill_(1)), float(net(torch.tensor([1.06])).detach())
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
