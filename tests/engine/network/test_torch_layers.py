"""Every rule for torch's modules and functions, alone and with odd settings: the network equals what torch computes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.engine.network.nets import same
from trtkit.engine.network import from_torch
from trtkit.errors import BuildError, ModelError

IMAGE, SEQUENCE, VECTOR = (2, 4, 9, 8), (2, 5, 6), (2, 6)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def randomised(module: nn.Module) -> nn.Module:
    """Statistics, scales and shifts that are not the zeros and ones they begin with, which would hide mistakes."""
    for part in module.modules():
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if tensor.ndim == 1 and tensor.is_floating_point():
                nn.init.uniform_(tensor.detach(), *((0.5, 1.5) if name in ("running_var", "weight") else (-0.5, 0.5)))
    return module


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], **parameters: torch.Tensor) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(4, 6, 3), IMAGE),
        (nn.Conv2d(4, 6, (2, 5), (3, 2), (1, 2), groups=2, bias=False), IMAGE),
        (nn.Conv2d(4, 6, 3, dilation=2, padding="same"), IMAGE),
        (nn.Conv2d(4, 8, (2, 4), padding="same", groups=4), IMAGE),
        (nn.Conv1d(6, 4, 3, 2, 1), (2, 6, 9)),
        (nn.Conv1d(6, 4, 4, padding="same", dilation=2), (2, 6, 9)),
        (nn.ConvTranspose2d(4, 6, 3, 2, 1), IMAGE),
        (nn.ConvTranspose2d(4, 6, (2, 3), (2, 1), groups=2, bias=False), IMAGE),
        (nn.MaxPool2d(3, 2, 1), IMAGE),
        (nn.MaxPool2d((3, 2), ceil_mode=True), IMAGE),
        (nn.AvgPool2d(3, 2, 1), IMAGE),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
        (nn.AdaptiveAvgPool2d(1), IMAGE),
        (nn.AdaptiveAvgPool2d((3, None)), IMAGE),
        (nn.ZeroPad2d((1, 2, 0, 3)), IMAGE),
        (nn.BatchNorm2d(4), IMAGE),
        (nn.BatchNorm2d(4, affine=False), IMAGE),
        (nn.BatchNorm1d(6), VECTOR),
        (nn.LayerNorm(6), SEQUENCE),
        (nn.LayerNorm((5, 6), elementwise_affine=False), SEQUENCE),
        (nn.Linear(6, 3), VECTOR),
        (nn.Linear(8, 3, bias=False), IMAGE),
        (nn.Flatten(), IMAGE),
        (nn.Flatten(2), IMAGE),
        (nn.Softmax(1), IMAGE),
        (nn.Dropout(), VECTOR),
        *((kind(), IMAGE) for kind in (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Hardswish, nn.ELU,
                                       nn.Hardsigmoid, nn.SELU, nn.Softsign, nn.Hardtanh)),
        (nn.LeakyReLU(0.3), IMAGE),
        (nn.GELU("tanh"), IMAGE),
    ],
    ids=str,
)  # fmt: skip
def test_modules(module: nn.Module, shape: tuple[int, ...]) -> None:
    same(from_torch(randomised(module), torch.randn(shape)))


def two_halves(x: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = x.size()
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2)


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "x + 1": (lambda x: x + 1, VECTOR),
    "1 - x": (lambda x: 1 - x, VECTOR),
    "x += x": (lambda x: operator.iadd(x, x), VECTOR),
    "x / 3 * x": (lambda x: x / 3 * x, VECTOR),
    "x ** 2": (lambda x: x**2, VECTOR),
    "-abs(x)": (lambda x: -torch.abs(x), VECTOR),
    "sqrt exp": (lambda x: torch.sqrt(torch.exp(x)), VECTOR),
    "relu_": (lambda x: x.relu_(), VECTOR),
    "F.relu inplace": (lambda x: F.relu(x + 0, inplace=True), VECTOR),
    "F.relu6": (lambda x: F.relu6(3 * x), VECTOR),
    "F.hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.7), VECTOR),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.2), VECTOR),
    "F.gelu": (lambda x: F.gelu(x, approximate="tanh"), VECTOR),
    "F.silu": (lambda x: F.silu(x) + F.hardswish(x) + F.hardsigmoid(x), VECTOR),
    "sigmoid tanh": (lambda x: torch.sigmoid(x) * x.tanh(), VECTOR),
    "softmax": (lambda x: F.softmax(x, dim=1) + x.softmax(-1), SEQUENCE),
    "mean": (lambda x: x.mean([2, 3]) + x.mean((-2, -1), keepdim=True).flatten(1), IMAGE),
    "sum": (lambda x: x.sum(-1), IMAGE),
    "pools": (lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 1), IMAGE),
    "view": (lambda x: x.view(x.size(0), -1), IMAGE),
    "reshape": (lambda x: x.reshape(x.shape[0], 2, -1, 4), IMAGE),
    "flatten": (lambda x: torch.flatten(x, 1), IMAGE),
    "permute": (lambda x: x.permute(0, -1, 1, 2).contiguous(), IMAGE),
    "transpose": (lambda x: x.transpose(1, -1) + x.mT.transpose(-1, -2).transpose(1, 3), IMAGE),
    "unsqueeze": (lambda x: x.unsqueeze(1) + x.unsqueeze(-1).squeeze(-1)[:, None], SEQUENCE),
    "squeeze": (lambda x: x[:, :1].squeeze(1).squeeze((1, -1)), (2, 3, 1, 4)),
    "cat": (lambda x: torch.cat([x, 2 * x], dim=-1), SEQUENCE),
    "chunk": (lambda x: torch.cat(x.chunk(2, dim=1)[::-1], 1), IMAGE),
    "split": (lambda x: torch.split(x, [1, 4], 1)[1] + x.split(4, dim=1)[0], SEQUENCE),
    "getitem": (lambda x: x[:, 1:, ::2], SEQUENCE),
    "getitem last": (lambda x: x[:, -1], SEQUENCE),
    "getitem ...": (lambda x: x[..., 0] * x[..., -2:].sum(-1), IMAGE),
    "getitem None": (lambda x: x[:, None, 1] + x[:, :, None].squeeze(2)[:, :3], (2, 3, 3)),
    "matmul": (lambda x: x @ x.transpose(1, 2), SEQUENCE),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), (2, 3, 5, 4)),
    "tuple": (lambda x: (x, x * 2, x), VECTOR),
    "unpacked shape": (two_halves, IMAGE),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, shape = FUNCTIONS[name]
    same(from_torch(Function(function), torch.randn(shape)))


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)), window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)), dilation=st.integers(1, 2), pad=st.integers(0, 2),
    groups=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_convolutions_of_any_settings(
    size: Any, window: Any, stride: Any, dilation: int, pad: int, groups: int
) -> None:
    conv = nn.Conv2d(4, 4, window, stride, pad, dilation, groups)
    if all((w - 1) * dilation + 1 <= s + 2 * pad for w, s in zip(window, size, strict=True)):
        network = from_torch(conv, torch.randn(1, 4, *size))
        assert network.check(tolerance=1e-5).passed


# Recurrent layers and attention


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True, "bidirectional": True, "num_layers": 2}, {"bias": False}]
)
def test_recurrent_modules(kind: type, options: dict[str, Any]) -> None:
    batch_first = options.get("batch_first", False)
    same(from_torch(kind(6, 3, **options), torch.randn(SEQUENCE), dynamic_batch=batch_first))


def test_a_recurrent_layer_without_a_number_of_steps() -> None:
    with pytest.raises(ModelError, match="how many time steps"):
        from_torch(nn.GRU(6, 3), torch.randn(SEQUENCE))  # its first axis is time, and not the batch


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention(batch_first: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = randomised(nn.MultiheadAttention(6, 2, kdim=4, vdim=5, batch_first=batch_first))

        def forward(self, query: Any, key: Any, value: Any) -> Any:
            return self.attend(query, key, value)[0]

    same(from_torch(Net(), (torch.randn(2, 5, 6), torch.randn(2, 5, 4), torch.randn(2, 5, 5)), dynamic_batch=False))


@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu", "batch_first": True}])
def test_transformer_layers(options: dict[str, Any]) -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 9, **options)
    net = nn.TransformerEncoder(layer, 2, nn.LayerNorm(6), enable_nested_tensor=False)
    same(from_torch(randomised(net), torch.randn(SEQUENCE), dynamic_batch=options.get("batch_first", False)))


def test_embeddings_get_indices_that_exist() -> None:
    network = same(from_torch(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)), torch.tensor([[1, 2], [3, 4]])))
    assert network.random_inputs(50)["input"].max() == 4


# How the batch and the module are treated


def test_a_fixed_batch_and_the_state_of_the_module() -> None:
    net = nn.Sequential(nn.Linear(6, 3), nn.Dropout())
    net.train()
    network = from_torch(net, torch.randn(3, 6), dynamic_batch=False)
    assert network.inputs[0].shape == (3, 6) and network.check().passed
    assert net.training and net[1].training


def test_reckoning_with_a_batch_that_may_change() -> None:
    net = Function(lambda x: x.reshape(x.shape[0] * 5, 6))
    with pytest.raises(ModelError, match="dynamic_batch=False"):
        from_torch(net, torch.randn(SEQUENCE))
    same(from_torch(net, torch.randn(SEQUENCE), dynamic_batch=False))


def test_a_row_of_weights_for_each_in_the_batch() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)

    same(from_torch(Net(), torch.randn(SEQUENCE)))


# What is refused


def test_a_module_without_a_rule() -> None:
    with pytest.raises(ModelError, match=r"No rule for the layer '1', a PReLU.*trtkit\.load\(module, example\)"):
        from_torch(nn.Sequential(nn.ReLU(), nn.PReLU()), torch.randn(VECTOR))


@pytest.mark.parametrize(
    ("function", "name"), [(torch.fft.fft, "fft"), (lambda x: torch.cumsum(x, 1), "cumsum"), (lambda x: x.sin(), "sin")]
)
def test_a_function_without_a_rule(function: Any, name: str) -> None:
    with pytest.raises(ModelError, match=f"No rule for the function .*{name}"):
        from_torch(Function(function), torch.randn(VECTOR))


@pytest.mark.parametrize(
    ("module", "shape", "why"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), IMAGE, "padding_mode='reflect'"),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE, "ceil_mode"),
        (nn.AdaptiveAvgPool2d(4), IMAGE, "windows of several sizes"),
        (nn.BatchNorm2d(4, track_running_stats=False), IMAGE, "stored statistics"),
        (nn.LSTM(6, 4, proj_size=2), SEQUENCE, "proj_size"),
    ],
)
def test_settings_without_a_rule(module: nn.Module, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        from_torch(module, torch.randn(shape))


def test_a_forward_that_decides_by_values() -> None:
    with pytest.raises(ModelError, match=r"torch\.fx cannot follow the forward of Function"):
        from_torch(Function(lambda x: x if x.sum() > 0 else -x), torch.randn(VECTOR))


def test_examples_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="cannot be called with 2 example inputs"):
        from_torch(nn.Linear(6, 3), (torch.randn(VECTOR), torch.randn(VECTOR)))


def test_half_precision_goes_another_way() -> None:
    with pytest.raises(BuildError, match=r"An input of type float16.*trtkit\.autocast"):
        from_torch(nn.Linear(6, 3).half(), torch.randn(VECTOR).half())


def test_shapes_that_do_not_fit_are_refused_at_their_layer_in_tensorrts_words() -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(5, 6, 3))
    words = r"of the torch layer '1'. In its own words:\n.*kernel weights has count"
    with pytest.raises(BuildError, match=words) as caught:
        from_torch(net, torch.randn(IMAGE))
    assert caught.value.stage == "network" and "cudaError" not in str(caught.value)
