"""Rounding that can be trained through: what a tensor in INT8 would be, with gradients for it and for its step."""

from __future__ import annotations

from typing import Any

from trtkit.errors import MissingError, extra

try:
    import torch
    from torch import fx, nn
except ImportError as error:
    raise MissingError(f"Quantisation-aware training needs PyTorch: {extra('torch')}.") from error

__all__ = ["DOMAIN", "FakeQuant", "Left", "fx", "nn", "torch"]

DOMAIN = "trtkit.qat"  # of the nodes that show in an exported graph where fake quantisers stood


class FakeQuant(nn.Module):
    """Rounds to the numbers that codes of a few bits stand for, and still lets gradients through.

        y = round(clamp(x / s, lowest, highest)) * s

    Backwards, `round` counts as the identity (the straight-through estimator, Bengio et al. 2013): x gets y's gradient
    where it lies within the range and none where it was clipped. Autograd then gives the step s the gradient of LSQ
    (Esser et al. 2020, eq. 3): `round(x / s) - x / s` within the range, `lowest` or `highest` beyond it.

    What is learned is `growth`: s = calibrated * exp(growth), as Jain et al. 2020 (Trained Quantization Thresholds)
    train a logarithm. LSQ trains s itself, and multiplies its gradient by 1 / sqrt(N * highest) lest steps move faster,
    for their size, than weights; with the small steps of INT8 one update of SGD at a rate of 0.02 was still seen to
    change s by as much as s. The logarithm's gradient, s * dL/ds, does not depend on how large s is and needs no
    factor. And s stays positive; Adam, which moves every parameter by about its learning rate, changes s by that
    fraction of itself; weight decay pulls s to where calibration put it.

    Args:
        step: the step to start from, positive: one number, or (C,) for one for each entry of `axis`.
        bits: 2 to 8.
        axis: the axis of x along which steps differ, None for one step.
        weight: weights use the codes from -highest, as TensorRT wants them; activations one more, as QuantizeLinear.
        learn: train the step; otherwise it stays as calibrated.

    Attributes:
        enabled: False lets x pass as it is, to see what the float network would do.

    Raises:
        ValueError: a step that is not positive and finite, or bits out of range.

    >>> x = torch.tensor([-2.0, 0.26, 0.9], requires_grad=True)
    >>> y = FakeQuant(0.1, bits=4)(x)
    >>> y.sum().backward()
    >>> [round(value, 3) for value in y.tolist()], x.grad.tolist()
    ([-0.8, 0.3, 0.7], [0.0, 1.0, 0.0])
    """

    calibrated: torch.Tensor

    def __init__(
        self, step: Any, *, bits: int = 8, axis: int | None = None, weight: bool = False, learn: bool = True
    ) -> None:
        super().__init__()
        step = torch.as_tensor(step, dtype=torch.float32).clone()
        if not 2 <= bits <= 8 or not bool((torch.isfinite(step) & (step > 0)).all()):
            raise ValueError(f"bits has to be from 2 to 8 and a step positive and finite, got {bits} and {step}.")
        self.highest = 2 ** (bits - 1) - 1
        self.lowest = -self.highest - (not weight)
        self.axis, self.weight = axis, weight
        self.enabled = True
        self.mark = ""  # set while exporting: leave a node of this name instead
        self.register_buffer("calibrated", step)
        self.growth = nn.Parameter(torch.zeros_like(step), requires_grad=learn)

    @property
    def step(self) -> torch.Tensor:
        """The step as it is now, float32: what becomes the scale in Q/DQ."""
        return (self.calibrated * self.growth.exp()).detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mark:
            return _marked(x, self.mark)
        if not self.enabled:
            return x.clone()  # not x, which the network may change in place
        step = self.calibrated * self.growth.exp()
        if self.axis is not None:
            step = step.reshape([-1 if axis == self.axis else 1 for axis in range(x.ndim)])
        ratio = x / step
        inside = (ratio > self.lowest) & (ratio < self.highest)
        ratio = torch.where(inside, ratio, ratio.detach().clamp(self.lowest, self.highest))
        codes = ratio + (ratio.round() - ratio).detach()  # exactly round(ratio), with the gradient of ratio
        return codes * step

    def extra_repr(self) -> str:
        kind = "learned" if self.growth.requires_grad else "fixed"
        return f"codes {self.lowest} to {self.highest}, {self.growth.numel()} {kind} steps, axis={self.axis}"


class Left(nn.Module):
    """Stands at a weight that stays in float, so that the export knows that nothing was forgotten."""

    mark = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _marked(x, self.mark) if self.mark else x


def _marked(x: torch.Tensor, name: str) -> torch.Tensor:
    """x, by way of a node of that name in the exported graph."""
    return torch.onnx.ops.symbolic(f"{DOMAIN}::Mark", [x], {"mark": name}, dtype=x.dtype, shape=x.shape, version=1)
