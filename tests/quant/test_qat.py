"""Quantisation-aware training: gradients, places and numbers as quantize has them, a network saved, and refusals."""

from __future__ import annotations

import copy
import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from torch import nn  # noqa: E402

from trtkit.errors import DataError, MissingError, ModelError, TrtkitError, VerificationError  # noqa: E402
from trtkit.importers import load  # noqa: E402
from trtkit.model import Model  # noqa: E402
from trtkit.passes import optimize  # noqa: E402
from trtkit.quant import qat  # noqa: E402
from trtkit.quant.qat import FakeQuant  # noqa: E402
from trtkit.quant.qdq import QUANTIZABLE, quantize  # noqa: E402


class Residual(nn.Module):
    """Two blocks, one with a projection shortcut; a classifier behind dropout. (N, 3, 12, 12) to (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1)
        self.norm_a, self.norm_b = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.c, self.shortcut = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(8, 16, 1, 2)
        self.dropout, self.head = nn.Dropout(), nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        x = torch.relu(self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))) + x)
        x = torch.relu(self.shortcut(x) + self.c(x))
        return self.head(self.dropout(x.mean((2, 3))))


class Tokens(nn.Module):
    """A transformer's feed-forward block, whose weights come transposed: (N, 7, 16) to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16, bias=False)

    def forward(self, x: Any) -> Any:
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm(x))))


def decoder() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1))


def separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(96, 3)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (3, 12, 12)),
    "tokens": (Tokens, (7, 16)),
    "decoder": (decoder, (4, 5, 5)),
    "separable": (separable, (4, 6, 6)),
}


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network whose batch norms have statistics that are not trivial."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make()
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 2)
                nn.init.uniform_(part.weight, 0.5, 2)
                nn.init.normal_(part.bias, 0, 0.3)
    return net.eval()


def batches(shape: tuple[int, ...], count: int = 2) -> list[np.ndarray]:
    return [np.random.default_rng(i).standard_normal((8, *shape)).astype(np.float32) for i in range(count)]


def edges(model: Model) -> list[tuple[str, list[str]]]:
    """Operators in order, and for each input what it comes from, through Q/DQ."""

    def source(value: ir.Value | None) -> str:
        node = value.producer() if value is not None else None
        if node is None:
            return "weight" if value is not None and value.const_value is not None else "input"
        inside = f" of {source(node.inputs[0])}" if "uantize" in node.op_type else ""
        return node.op_type + inside

    nodes = [node for node in model.ir.graph if "uantize" not in node.op_type]
    return [(node.op_type, [source(value) for value in node.inputs]) for node in nodes]


def scales(model: Model) -> list[np.ndarray]:
    """All scales in the order of the nodes that read them."""
    found = []
    for node in model.ir.graph:
        if "uantize" in node.op_type:
            continue
        for value in node.inputs:
            maker = value.producer() if value is not None else None
            if maker is not None and maker.op_type == "DequantizeLinear":
                found.append(maker.inputs[1].const_value.numpy())
    return found


def exact(model: Model, x: np.ndarray) -> np.ndarray:
    (output,) = model.open_reference(exact=True).run(model.check_inputs(x)).values()
    return output


def train(net: Any, x: Any, y: Any, epochs: int, make: Any) -> None:
    """The reader's own loop."""
    optimizer = make(net.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=order).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()


# FakeQuant


def test_gradients_pass_within_the_range_and_stop_beyond_it() -> None:
    x = torch.tensor([-50.0, -16.0, -0.26, 0.0, 15.875, 16.0], requires_grad=True)
    y = FakeQuant(0.125)(x)
    (y * torch.arange(6)).sum().backward()
    assert y.tolist() == [-16.0, -16.0, -0.25, 0.0, 15.875, 15.875]
    assert x.grad.tolist() == [0, 0, 2, 3, 0, 0]  # the edges count as beyond, as in LSQ


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("weight", [True, False])
def test_the_gradient_of_the_step_is_that_of_the_paper(axis: int | None, weight: bool) -> None:
    """Esser et al. 2020, eq. 3, by hand; `growth`, the logarithm of s, has s times that."""
    x, upstream = np.random.default_rng(0).normal(0, 0.6, (2, 2, 5, 3, 4)).astype(np.float32)
    step = np.array([0.04, 0.08, 0.2, 0.5, 1.1], np.float32) if axis else np.float32(0.11)
    fake = FakeQuant(step, bits=4, axis=axis, weight=weight)
    (fake(torch.from_numpy(x)) * torch.from_numpy(upstream)).sum().backward()
    low, high = -7 if weight else -8, 7
    ratio = x / (step.reshape(1, 5, 1, 1) if axis else step)
    slope = np.where(ratio <= low, low, np.where(ratio >= high, high, np.rint(ratio) - ratio))
    lsq = (slope * upstream).sum(axis=(0, 2, 3) if axis else None)
    np.testing.assert_allclose(fake.growth.grad.numpy(), lsq * step, rtol=1e-4, atol=1e-6)


def test_beyond_the_range_the_gradient_of_the_step_is_a_finite_difference() -> None:
    """Where x is clipped, y = +-7 s is a smooth function of the step, and no estimate is needed."""
    x = torch.tensor([[9.0, 30.0, 8.0, -8.5]])
    fake = FakeQuant(1.0, bits=4, weight=True)
    (fake(x) ** 3).sum().backward()
    with torch.no_grad():
        up, down = ((FakeQuant(1 + d, bits=4, weight=True)(x) ** 3).sum().item() for d in (1e-2, -1e-2))
    assert fake.growth.grad.item() == pytest.approx((up - down) / 2e-2, rel=1e-3)


def test_fixed_steps_stay_and_a_step_must_be_positive() -> None:
    fake = FakeQuant([0.5, 0.25], axis=0, learn=False)
    x = torch.tensor([[0.7], [0.7]], requires_grad=True)
    y = fake(x)
    y.sum().backward()
    assert y.tolist() == [[0.5], [0.75]] and fake.growth.grad is None and not fake.growth.requires_grad
    assert "codes -128 to 127, 2 fixed steps" in repr(fake)
    fake.enabled = False
    assert torch.equal(fake(x), x)
    for step, bits in ((0.0, 8), (float("nan"), 8), (1.0, 1), (1.0, 16)):
        with pytest.raises(ValueError, match="bits has to be from 2 to 8 and a step positive"):
            FakeQuant(step, bits=bits)


# prepare and export


@pytest.mark.parametrize(("which", "per_channel"), [*((name, True) for name in NETWORKS), ("residual", False)])
def test_untrained_it_is_what_quantize_makes(which: str, per_channel: bool) -> None:
    """The same nodes on the same edges, the same scales and codes; the batch norm's folding rounds in float32."""
    make, shape = NETWORKS[which]
    net, data = made(make), batches(shape)
    example = torch.from_numpy(data[0])
    options = {"per_channel": per_channel, "depthwise": which == "separable"}
    ptq = quantize(optimize(load(net, example)), data, ops=QUANTIZABLE, **options)
    state = copy.deepcopy(net.state_dict())
    prepared = qat.prepare(net, example, data, transposed=True, **options)
    int8 = qat.export(prepared, example)
    onnx.checker.check_model(int8.to_proto(), full_check=True)
    assert edges(int8) == edges(ptq)
    assert (int8.inputs, int8.precision, int8.name) == (ptq.inputs, "int8", type(net).__name__)
    for mine, theirs in zip(scales(int8), scales(ptq), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    assert {v.name for v in int8.ir.graph.initializers.values() if v.dtype == ir.DataType.INT8} >= {"int8_zero_point"}
    want = exact(ptq, data[0])
    assert np.abs(exact(int8, data[0]) - want).mean() < 0.005 * np.abs(want).max()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items()) and not net.training


@pytest.mark.parametrize(("which", "bits"), [("residual", 8), ("tokens", 4), ("decoder", 4), ("separable", 8)])
def test_trained_the_graph_computes_what_the_module_does(which: str, bits: int) -> None:
    make, shape = NETWORKS[which]
    net, data = made(make), batches(shape)
    example = torch.from_numpy(data[0])
    prepared = qat.prepare(net, example, data, weight_bits=bits, transposed=True)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        ((prepared(example) - 1) ** 2).mean().backward()
        optimizer.step()
    fakes = [part for part in prepared.modules() if isinstance(part, FakeQuant)]
    assert all(part.growth.grad is not None for part in fakes)
    assert all(part.growth.abs().max().item() > 0 for part in fakes)
    int8 = qat.export(prepared, example)
    assert prepared.training
    with torch.no_grad():
        want = prepared.eval()(example).numpy()
    have = exact(int8, data[0])
    off = np.abs(have - want) / np.abs(want).max()
    # most values are off by the last bits of a sum alone; where that tips one over an edge, by a step or so
    assert np.median(off) < 1e-5 and off.max() < 0.02, (np.median(off), off.max())
    codes = [v.const_value.numpy() for n, v in int8.ir.graph.initializers.items() if n.endswith("_int8")]
    assert max(int(np.abs(code.astype(int)).max()) for code in codes) <= 2 ** (bits - 1) - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18"])
def test_the_places_in_networks_of_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    net, data = made(getattr(models, name)), batches((3, 64, 64), 1)
    example = torch.from_numpy(data[0])
    int8 = qat.export(qat.prepare(net, example, data), example)
    ptq = quantize(optimize(load(net, example)), data)
    assert edges(int8) == edges(ptq)


def test_a_graph_that_is_not_what_was_trained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches((4,))
    example = torch.from_numpy(data[0])
    prepared = qat.prepare(made(lambda: nn.Sequential(nn.Linear(4, 3))), example, data)
    with torch.no_grad():
        prepared.get_submodule("0.parametrizations.weight.0").growth -= 1
    assert qat.export(prepared, example).run(data[0])
    monkeypatch.setattr(qat, "write_weight", lambda *_: None)
    with pytest.raises(VerificationError, match=r"'Sequential' is off by \d\d.\d% from the module"):
        qat.export(prepared, example)


def test_layers_to_skip_and_depthwise_ones_stay_in_float() -> None:
    net, data = made(separable), batches((4, 6, 6))
    example = torch.from_numpy(data[0])
    int8 = qat.export(qat.prepare(net, example, data, skip=["5"]), example)
    ptq = quantize(optimize(load(net, example)), data, skip=["node_linear"])
    assert edges(int8) == edges(ptq) and int8.op_counts["QuantizeLinear"] == 1


def test_a_tensor_with_two_names_has_one_step() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.a(x) + self.b(x.view(x.shape))

    data = batches((4,))
    prepared = qat.prepare(made(Views), torch.from_numpy(data[0]), data)
    assert len([part for part in prepared.modules() if isinstance(part, FakeQuant) and not part.weight]) == 1
    assert qat.export(prepared, torch.from_numpy(data[0])).op_counts["QuantizeLinear"] == 1


def test_tied_weights_have_one_step() -> None:
    net, data = made(Tokens), batches((7, 16))
    net.wide, net.narrow = nn.Linear(16, 16), nn.Linear(16, 16)
    net.narrow.weight = net.wide.weight
    example = torch.from_numpy(data[0])
    prepared = qat.prepare(net, example, data)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.02)
    (prepared(example) ** 2).mean().backward()
    optimizer.step()
    int8 = qat.export(prepared, example)
    assert len([part for part in prepared.modules() if isinstance(part, FakeQuant) and part.weight]) == 1
    assert int8.op_counts["DequantizeLinear"] == 3  # two activations and the weight
    assert np.abs(exact(int8, data[0]) - prepared.eval()(example).detach().numpy()).max() < 0.02


def test_a_layer_that_is_called_twice_has_one_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Any) -> Any:
            return self.conv(torch.relu(self.norm(self.conv(x))))

    data = batches((4, 5, 5))
    example = torch.from_numpy(data[0])
    prepared = qat.prepare(made(Twice), example, data).eval()
    int8 = qat.export(prepared, example)
    assert int8.op_counts["QuantizeLinear"] == 2 and int8.op_counts["BatchNormalization"] == 1
    want = prepared(example).detach().numpy()
    assert np.median(np.abs(exact(int8, data[0]) - want)) < 1e-5


def test_without_pytorch_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "trtkit.quant.fake_quant")
    with pytest.raises(MissingError, match="needs PyTorch: pip install"):
        importlib.import_module("trtkit.quant.fake_quant")


def test_tensorrt_convolves_in_int8_what_was_trained() -> None:
    pytest.importorskip("tensorrt_rtx")
    from trtkit.engine.build import build

    net, data = made(Residual), batches((3, 12, 12))
    example = torch.from_numpy(data[0])
    int8 = qat.export(qat.prepare(net, example, data), example)
    ptq = quantize(optimize(load(net, example)), data)
    mine, theirs = (build(model, {"x": (8, 3, 12, 12)}, isolate=False) for model in (int8, ptq))
    assert mine.verification is not None and mine.verification.passed and int8.origin is int8
    kinds = [[(layer.kind, [tensor.dtype for tensor in layer.inputs]) for layer in e.layers] for e in (mine, theirs)]
    assert kinds[0] == kinds[1]
    convolutions = [dtypes for kind, dtypes in kinds[0] if kind == "correlation"]
    assert len(convolutions) == 5 and all("Int8" in " ".join(dtypes) or "INT8" in dtypes for dtypes in convolutions)


# A network that post-training quantisation breaks


def accuracy(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    if isinstance(model, Model):
        scores = exact(model, x)
    else:
        with torch.no_grad():
            scores = model.eval()(torch.from_numpy(x)).numpy()
    return float((scores.argmax(axis=1) == y).mean())


def separable_digits() -> nn.Module:
    """A small MobileNet for (N, 1, 8, 8)."""

    def block(channels: int, out: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels),
            nn.ReLU(), nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
        ]  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *block(16, 32, 2), *block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def spread(net: Any, decades: float) -> None:
    """Give channels ranges of up to 10 ** decades without changing what the network computes.

    A positive factor passes a ReLU, so that what a batch norm multiplies the next layer's weight can divide by. Large
    networks with depthwise convolutions come out of training like this by themselves (Nagel et al. 2019, Data-Free
    Quantization Through Weight Equalization and Bias Correction, section 3); this one has to be helped.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for i, norm in enumerate(net):
            if not isinstance(norm, nn.BatchNorm2d) or not isinstance(net[i + 2], nn.Conv2d):
                continue
            factor = 10 ** (torch.rand(norm.num_features, generator=generator) * decades - decades / 2)
            norm.weight *= factor
            norm.bias *= factor
            weight = net[i + 2].weight
            weight /= factor.reshape((-1, 1, 1, 1) if net[i + 2].groups > 1 else (1, -1, 1, 1))


@pytest.fixture(scope="module")
def trained() -> Any:
    pytest.importorskip("sklearn")
    from trtkit.course.digits import digits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    learn, judge = digits()
    net = made(separable_digits).train()
    train(net, torch.from_numpy(learn.x), torch.from_numpy(learn.y), 60, partial(torch.optim.Adam, lr=1e-2))
    yield net.eval(), learn, judge
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("what", "bits", "decades", "optimizer"), [
    ("INT8", 8, 2.0, partial(torch.optim.Adam, lr=3e-3)),
    ("INT4 weights", 4, 1.0, partial(torch.optim.SGD, lr=1e-2, momentum=0.9)),
])  # fmt: skip
def test_training_gives_back_what_quantisation_broke(
    trained: Any, what: str, bits: int, decades: float, optimizer: Any
) -> None:
    """One scale per tensor, and channels of wildly different ranges."""
    net, learn, judge = trained
    net = copy.deepcopy(net)
    spread(net, decades)
    x, y = torch.from_numpy(learn.x), torch.from_numpy(learn.y)
    data, options = [learn.x[:256]], {"per_channel": False, "depthwise": True}
    before = accuracy(quantize(optimize(load(net, x[:2])), data, **options), judge.x, judge.y)
    start = time.perf_counter()
    prepared = qat.prepare(net, x[:2], data, weight_bits=bits, **options)
    if bits == 8:
        assert accuracy(prepared, judge.x, judge.y) == pytest.approx(before, abs=0.01)
    else:
        before = accuracy(prepared, judge.x, judge.y)
    train(prepared.train(), x, y, 40, optimizer)
    whole = accuracy(net, judge.x, judge.y)
    after = accuracy(qat.export(prepared, x[:2]), judge.x, judge.y)
    assert after == pytest.approx(accuracy(prepared, judge.x, judge.y), abs=0.003)
    recovered = (after - before) / (whole - before)
    print(f"\n{what}: float {whole:.3f}, quantised {before:.3f}, trained {after:.3f}: "
          f"{recovered:.0%} back in {time.perf_counter() - start:.1f} s")  # fmt: skip
    assert whole - before > 0.1, "nothing to rescue"
    assert recovered >= 0.8


# Refusals


def refused(error: type[TrtkitError], match: str, net: nn.Module, example: Any, data: Any, **options: Any) -> None:
    with pytest.raises(error, match=match):
        qat.prepare(net, example, data, **options)


def test_refusals_of_data() -> None:
    net, data, example = made(Residual), batches((3, 12, 12)), torch.zeros(2, 3, 12, 12)
    refused(DataError, "no calibration data", net, example, [])
    refused(DataError, "this is a single one", net, example, data[0])
    refused(DataError, r"Batch 0 does not fit.*got float32 \(8, 12, 12\)", net, example, [data[0][:, 0]])
    refused(DataError, "got float64", net, example, [data[0].astype(np.float64)])
    refused(DataError, "Unknown calibration method 'min'", net, example, data, method="min")
    refused(DataError, "'x' holds NaN in batch 1", net, example, [data[0], np.full_like(data[0], np.nan)])
    refused(DataError, "Tensor 'mean' holds infinity in batch 0", net, example, [np.full_like(data[0], 3e38)])
    refused(ModelError, "cannot be called with the example inputs", net, torch.zeros(2, 4, 12, 12), data)
    with pytest.raises(ModelError, match="cannot be called with the example inputs"):
        qat.prepare(net, None, data)


def test_refusals_of_modules() -> None:
    net, data, example = made(Residual), batches((3, 12, 12)), torch.zeros(2, 3, 12, 12)
    prepared = qat.prepare(net, example, data)
    refused(ModelError, "Residual is quantised already: .* is a FakeQuant", prepared, example, data)
    refused(ModelError, r"'stem.0.weight' of Residual is torch.float16", copy.deepcopy(net).half(), example, data)
    refused(ModelError, "skip: there is no layer 'stem.1' that", net, example, data, skip=["stem.1"])
    refused(ModelError, "Nothing to quantise in 'Sequential'", nn.Sequential(nn.ReLU()), example, data)
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
    refused(ModelError, "'0' of Sequential computes its weight", nn.Sequential(normed), example, data)
    refused(ModelError, "is on meta: prepare module.cpu", copy.deepcopy(net).to("meta"), example, data)
    broken = copy.deepcopy(net)
    broken.b.weight.data[0, 0, 0, 0] = float("nan")
    refused(ModelError, "'b.weight' of Residual holds NaN or infinity", broken, example, data)
    with pytest.raises(ValueError, match="weight_bits has to be from 2 to 8"):
        qat.prepare(net, example, data, weight_bits=1)
    with pytest.raises(ModelError, match="Residual has no FakeQuant"):
        qat.export(net, example)
    prepared.a.parametrizations.weight.original.data.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"'a.parametrizations.weight.original' holds NaN.*training diverged"):
        qat.export(prepared, example)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.layer(x) if x.sum() > 0 else x


class Functional(Branching):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Any) -> Any:
        return nn.functional.linear(self.layer(x), self.weight)


class Borrowed(Branching):
    def forward(self, x: Any) -> Any:
        return nn.functional.linear(self.layer(x), self.layer.weight)


class InPlace(Branching):
    def forward(self, x: Any) -> Any:
        y = self.layer(x)
        z = self.layer(torch.relu_(y))
        return z + self.layer(y)


class Attention(Branching):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Any) -> Any:
        x = self.layer(x)
        return self.attention(x, x, x, need_weights=False)[0]


def test_refusals_of_what_cannot_be_followed() -> None:
    data, example = batches((4,)), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    refused(ModelError, "torch.fx cannot trace Branching: .*control flow", made(Branching), example, data)
    refused(ModelError, "computes something else. Does it change a tensor in place", made(InPlace), example, data)
    refused(ModelError, r"weights of \['.*'\] are in no nn.Conv.*F.linear", made(Functional), example, data)
    refused(ModelError, r"quantize would treat \['linear'\] in another way", made(Borrowed), example, data)
    reflect = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    image = torch.rand(2, 3, 6, 6)
    refused(ModelError, "in another way than this module does", reflect, image, [image.numpy()])
    refused(ModelError, "are in no nn.Conv.*MultiheadAttention", made(Attention), example[:, None], batches((3, 4)))
