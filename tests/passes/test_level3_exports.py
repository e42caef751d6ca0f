"""Level 3 on real exports: what it fuses, how far its answers are from the graph as exported, and autocast after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import trtkit
from trtkit.quant.autocast import autocast, autocast_report

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("torchvision")

# What level 3 writes into each network; the numbers are those of the networks' own layers.
FUSED = {
    "vit": {"LayerNormalization": 5, "Gelu": 2},  # two a block and one at the end
    "gpt2": {"LayerNormalization": 7, "Gelu": 3},
    "convnext": {"LayerNormalization": 3, "Gelu": 2},
    "llama": {"RMSNormalization": 7},  # which ONNX has from opset 23 on
    "t5": {"RMSNormalization": 5},
}
NEW = ("llama", "t5")


def _vit() -> tuple[Any, dict[str, Any]]:
    from torchvision.models import VisionTransformer

    net = VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)
    torch.nn.init.normal_(net.heads.head.weight)  # zeros when new
    return net, {"x": torch.randn(1, 3, 32, 32)}


def _convnext() -> tuple[Any, dict[str, Any]]:
    from torchvision.models.convnext import CNBlock, LayerNorm2d

    layers = [torch.nn.Conv2d(3, 16, 4, 4), LayerNorm2d(16, eps=1e-6), CNBlock(16, 1.0, 0.0), CNBlock(16, 1.0, 0.0)]
    return torch.nn.Sequential(*layers), {"input": torch.randn(1, 3, 32, 32)}


def _t5() -> tuple[Any, dict[str, Any]]:
    """T5's encoder: RMS norms, attention without a scale, and a bias by relative position added to the scores."""
    from transformers import T5Config, T5EncoderModel

    sizes = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(**sizes, attn_implementation="eager")
    return _hidden(T5EncoderModel(config)), {"input_ids": torch.randint(0, 100, (1, 12))}


def _hidden(body: Any) -> Any:
    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, input_ids: Any) -> Any:
            return self.body(input_ids=input_ids)[0]

    return Hidden()


def _zoo(name: str) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def make() -> tuple[Any, dict[str, Any]]:
        from benchmarks import zoo_networks

        return getattr(zoo_networks, name)(True)

    return make


MAKERS = {"vit": _vit, "gpt2": _zoo("gpt"), "convnext": _convnext, "llama": _zoo("llama"), "t5": _t5}


@pytest.fixture(scope="module", params=list(MAKERS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[str, trtkit.Model, trtkit.Model]:
    """Name, the graph as exported (level 0), and at level 3."""
    torch.manual_seed(0)
    net, inputs = MAKERS[request.param]()
    if request.param not in NEW:
        model = trtkit.load(net.eval(), inputs, name=request.param)
    else:
        file = tmp_path_factory.mktemp("opset23") / "model.onnx"
        options = {"opset_version": 23, "optimize": False, "verbose": False, "external_data": False}
        torch.onnx.export(net.eval(), tuple(inputs.values()), str(file), dynamo=True, **options)
        model = trtkit.load(file, name=request.param)
    return request.param, model, trtkit.optimize(model, level=3)


def error(model: trtkit.Model, other: trtkit.Model) -> float:
    """The largest difference of any output, relative to the largest number in it, over three inputs."""
    worst = 0.0
    for seed in range(3):
        inputs = model.random_inputs(seed=seed)
        for name, want in model.run(inputs).items():
            worst = max(worst, float(np.abs(other.run(inputs)[name] - want).max() / np.abs(want).max()))
    return worst


def test_it_fuses_what_is_there(exported: tuple[str, trtkit.Model, trtkit.Model]) -> None:
    name, before, after = exported
    assert {op: after.op_counts.get(op, 0) for op in FUSED[name]} == FUSED[name]
    left = {"Erf", "Sqrt", "ReduceMean"} & set(after.op_counts)
    assert not left and after.node_count < before.node_count


def test_answers_stay(exported: tuple[str, trtkit.Model, trtkit.Model]) -> None:
    """Measured: 0 to 3e-7."""
    _, before, after = exported
    assert error(before, after) < 2e-6


def test_autocast_knows_what_level_3_writes(exported: tuple[str, trtkit.Model, trtkit.Model]) -> None:
    """What is fused goes low, weights and all, and the answers are those of FP16.

    Measured: 4e-4 to 1.1e-3.
    """
    name, before, after = exported
    half = autocast(after, "fp16")
    chosen = [d for d in autocast_report(half) if d.op_type in FUSED[name]]
    assert len(chosen) == sum(FUSED[name].values()) and {d.precision for d in chosen} == {"fp16"}
    types = [value.dtype for node in half.ir.graph if node.op_type in FUSED[name] for value in node.inputs if value]
    assert {str(dtype) for dtype in types} == {"FLOAT16"}, "weights and activations alike"
    assert 0 < error(before, half) < 4e-3
