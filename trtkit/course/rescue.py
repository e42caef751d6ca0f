"""What lesson 09 trains: a small MobileNetV2 whose weights get few bits; and what may be tried before training."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtkit.course.paths import dataset
from trtkit.errors import DataError
from trtkit.importers import load
from trtkit.quant import qat
from trtkit.quant.calibrate import MseCalibrator
from trtkit.quant.fake_quant import FakeQuant, nn, torch
from trtkit.quant.qat_trace import trace, weight_quantizer


class Handwriting(NamedTuple):
    """Images (N, 1, 28, 28) float32 from 0 to 1, and the digits that they show, (N,) int64."""

    x: torch.Tensor
    y: torch.Tensor


def handwriting() -> tuple[Handwriting, Handwriting]:
    """MNIST's 5,000 digits of datasets/mnist: 4,000 to learn from, 1,000 to be judged by.

    >>> learn, judge = handwriting()
    >>> tuple(learn.x.shape), tuple(judge.y.shape)
    ((4000, 1, 28, 28), (1000,))
    """
    with np.load(dataset("mnist/data.npz"), allow_pickle=False) as data:
        arrays = {key: torch.from_numpy(data[key]) for key in data.files}
    return tuple(
        Handwriting(arrays[f"{part}_x"].float() / 255, arrays[f"{part}_y"].long()) for part in ("train", "test")
    )  # type: ignore[return-value]


def mobilenet() -> nn.Module:
    """The small MobileNetV2 of datasets/mnist with its trained weights, as a torch module in eval mode.

    (N, 1, 28, 28) float32 from 0 to 1 to logits (N, 10). The weights come out of the shipped ONNX file by name.

    Raises:
        DataError: the file lacks a weight, or has one of another shape.

    >>> sum(p.numel() for p in mobilenet().parameters())
    41530
    """
    from trtkit.course.recipes.mnist import network

    net = network()
    stored = load(dataset("mnist/model.onnx")).ir.graph.initializers
    state = net.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):  # of no use once trained, and not in the graph
            continue
        value = stored[name].const_value if name in stored else None
        if value is None or tuple(value.shape.numpy()) != tuple(tensor.shape):
            raise DataError(f"datasets/mnist/model.onnx has no weight {name!r} of shape {tuple(tensor.shape)}. "
                            "Fetch the file again, or run trtkit/course/recipes/mnist.py.")  # fmt: skip
        state[name] = torch.from_numpy(value.numpy().copy())
    net.load_state_dict(state)
    return net.eval()


def accuracy(net: nn.Module, data: Handwriting) -> float:
    """Part of the pictures that the network, in eval mode, names rightly."""
    training = net.training
    with torch.inference_mode():
        found = torch.cat([net.eval()(x).argmax(1) for x in data.x.split(250)])
    net.train(training)
    return float((found == data.y).float().mean())


def tune(
    net: nn.Module, data: Handwriting, epochs: int, rate: float, seed: int = 0,
    after: Callable[[int, nn.Module], Any] = lambda epoch, net: None,
) -> nn.Module:  # fmt: skip
    """Train further on `data`: Adam, batches of 64, the learning rate from `rate` down to zero along a cosine.

    Nothing in it knows of quantisation. `after(epoch, net)` is called at the end of each epoch, from 1.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    steps = epochs * -(-len(data.y) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(data.y), generator=order).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(data.x[batch]), data.y[batch]).backward()
            optimizer.step()
            schedule.step()
        after(epoch, net)
    return net


def few_bits(net: nn.Module, learn: Handwriting, bits: int, per_channel: bool = True, **options: Any) -> Any:
    """`qat.prepare` for the digits: every layer rounded, depthwise ones, too; calibrated on the first 512 pictures."""
    return qat.prepare(net, learn.x[:2], [learn.x[:512].numpy()], weight_bits=bits, per_channel=per_channel,
                       depthwise=True, **options)  # fmt: skip


def with_bits(prepared: nn.Module, bits: int, per_channel: bool = True, learn: bool = True) -> Any:
    """A copy whose weights are rounded to other bits, steps from the largest weight; quicker than to prepare again."""
    net = copy.deepcopy(prepared)
    for fake in net.modules():
        if isinstance(fake, FakeQuant):
            fake.growth.requires_grad_(learn)
    for layer in net.modules():
        if torch.nn.utils.parametrize.is_parametrized(layer, "weight"):
            parts: Any = layer.parametrizations.weight  # type: ignore[union-attr]
            parts[0].enabled = False  # so that the quantizer sees the weight as it is
            parts[0] = weight_quantizer(layer, bits, per_channel, learn)
    return net


def best_steps(prepared: nn.Module) -> nn.Module:
    """A copy whose weights are rounded with the steps of least squared error, instead of those that fit the largest."""
    net = copy.deepcopy(prepared)
    for layer in net.modules():
        if not torch.nn.utils.parametrize.is_parametrized(layer, "weight"):
            continue
        of_weight: Any = layer.parametrizations.weight  # type: ignore[union-attr]
        fake = of_weight[0]
        if isinstance(fake, FakeQuant):
            weight = of_weight.original.detach().numpy()
            parts = [weight] if fake.axis is None else np.moveaxis(weight, fake.axis, 0)
            steps = [_best_step(part, fake.highest) for part in parts]
            fake.calibrated.copy_(torch.tensor(steps).reshape(fake.calibrated.shape))
    return net


def _best_step(weight: NDArray[np.float32], highest: int) -> float:
    calibrator = MseCalibrator(levels=highest)
    calibrator.observe(weight)
    return max(calibrator.amax() / highest, float(np.finfo(np.float32).tiny))


def cross_layer_scaled(net: nn.Module, rounds: int = 10) -> nn.Module:
    """A folded copy of `mobilenet()` whose hidden channels have as large weights in one layer as in the next.

    Row i of a layer is divided by a number and what reads that channel multiplied by it (Nagel et al. 2019, Data-Free
    Quantization Through Weight Equalization and Bias Correction, section 4.1). A ReLU lets a factor pass, ReLU6 does
    not, so that it becomes a ReLU, as in the paper: channels that went beyond 6 are no longer cut off there.
    """
    folded = trace(net)
    for name, part in list(folded.named_modules()):
        if isinstance(part, nn.ReLU6):
            folded.set_submodule(name, nn.ReLU())
    bodies = sorted({name.rpartition(".")[0] for name, _ in folded.named_modules() if ".body." in name})
    with torch.no_grad():
        for _ in range(rounds):
            for body in bodies:
                parts: list[Any] = [folded.get_submodule(f"{body}.{i}") for i in (0, 3, 6)]
                _equalize(parts[0], parts[1].weight)
                _equalize(parts[1], parts[2].weight.transpose(0, 1))
    return folded


def _equalize(layer: Any, columns: torch.Tensor) -> None:
    """`columns`: the weight of the next layer, as a view with the shared channels first."""
    shape = (-1, 1, 1, 1)
    factor = (layer.weight.abs().amax((1, 2, 3)) / columns.abs().amax((1, 2, 3)).clamp_min(1e-8)).sqrt().clamp_min(1e-8)
    layer.weight /= factor.reshape(shape)
    layer.bias /= factor
    columns *= factor.reshape(shape)


class Rescue(NamedTuple):
    """Accuracies: of the float network, quantised as well as it goes without training, and trained; seconds of that."""

    whole: float
    quantized: float
    trained: float
    seconds: float

    @property
    def recovered(self) -> float:
        """The part of the lost accuracy that training gave back: 1 is all of it."""
        return (self.trained - self.quantized) / (self.whole - self.quantized)


def rescue(
    net: nn.Module, learn: Handwriting, judge: Handwriting, *, bits: int, per_channel: bool = True, epochs: int = 3,
    rate: float = 1e-3, seed: int = 0,
) -> Rescue:  # fmt: skip
    """Quantise with weights of a few bits, train, and say what came of it. Depthwise convolutions are rounded, too."""
    prepared = best_steps(few_bits(net, learn, bits, per_channel))
    before, start = accuracy(prepared, judge), time.perf_counter()
    tune(prepared, learn, epochs, rate, seed)
    return Rescue(accuracy(net, judge), before, accuracy(prepared, judge), time.perf_counter() - start)
