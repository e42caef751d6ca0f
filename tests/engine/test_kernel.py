"""Kernels between engines: names and dtypes that must fit, the CPU's chain, and the GPU's on the pretended one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.engine import device
from tests.engine.pretended import batch
from tests.passes.graphs import parse
from trtkit.course import deform
from trtkit.engine.engine import Engine
from trtkit.engine.kernel import Chain, Kernel
from trtkit.errors import BuildError, EngineError, ModelError, VerificationError
from trtkit.model import TensorInfo

FLOAT = np.dtype(np.float32)


def plus_one(takes: str, gives: str, **changes: Any) -> Kernel:
    options = {"shape": lambda x: x, "reference": lambda x: x + np.float32(1), **changes}
    return Kernel("source", "plus_one", (TensorInfo(takes, ("n", 4), FLOAT),), gives, **options)


@pytest.fixture
def doubler() -> Engine:
    """What the pretended GPU's engine computes, with the graph that says so."""
    profile = {"x": [[1, 4], [2, 4], [32, 4]]}
    built = {"tensorrt": "TensorRT-RTX", "version": "9.9", "compute_capabilities": []}
    manifest = {"model": "g", "precision": "fp32", "profiles": [profile], **built}
    return Engine(b"plan", manifest, [], parse("y = Add(x, x)"))


# What must fit


def test_what_a_chain_takes_and_gives(doubler: Engine) -> None:
    chain = Chain([plus_one("a", "x"), doubler, plus_one("y", "z")])
    assert [info.name for info in chain.inputs] == ["a"] and [info.name for info in chain.outputs] == ["z"]


def test_stages_that_do_not_fit(doubler: Engine) -> None:
    with pytest.raises(EngineError, match=r"'g' takes x float32 \(n, 4\), and what comes is float16"):
        Chain([plus_one("a", "x", dtype=np.float16), doubler])
    with pytest.raises(EngineError, match="'plus_one' gives 'x', which is there already"):
        Chain([doubler, plus_one("y", "x")])
    with pytest.raises(EngineError, match="came without its model"):
        Chain([Engine(b"", {"model": "lost"}, [], None)])


def test_a_reference_that_contradicts_its_rule() -> None:
    for wrong in ({"shape": lambda x: (1, 4)}, {"dtype": np.int32}, {"reference": lambda x: x.astype(np.float64)}):
        with pytest.raises(EngineError, match="One of the two is wrong"):
            plus_one("x", "y", **wrong).run({"x": batch(3)})


# The CPU


def test_the_chain_on_the_cpu(doubler: Engine) -> None:
    with Chain([plus_one("a", "x"), doubler, plus_one("y", "z")]).open("cpu") as session:
        np.testing.assert_array_equal(session.run({"a": batch(3, 5)})["z"], batch(3, 13))
        with pytest.raises(ModelError, match=r"\.astype\('float32'\)"):
            session.run(np.zeros((3, 4)))
    with pytest.raises(EngineError, match="is closed"):
        session.run(batch(3))


def test_deformable_convolution_is_a_gather_and_a_1x1_convolution() -> None:
    """Against ONNX Runtime's own DeformConv."""
    whole, (front, rest) = deform.whole(8, 9), deform.halves(8, 9)
    x = {"x": np.random.default_rng(3).standard_normal((2, 3, 9, 9)).astype(np.float32)}
    between = front.run(x)
    assert np.abs(between["offset"]).max() > 0.5  # or it would be an ordinary convolution
    columns = deform.gather_kernel(8).run(between)
    np.testing.assert_allclose(rest.run({"columns": columns})["y"], whole.run(x)["y"], atol=1e-5)


def test_deformable_convolution_in_engines() -> None:
    from trtkit.engine.build import build

    with pytest.raises(BuildError, match="DeformConv"):
        build(deform.whole(8, 9))
    with deform.chain(8, 9, batch=2).open("cpu") as session:
        x = np.random.default_rng(3).standard_normal((2, 3, 9, 9)).astype(np.float32)
        np.testing.assert_allclose(session.run(x)["y"], deform.whole(8, 9).run({"x": x})["y"], atol=1e-5)


# The GPU


@pytest.fixture
def chain(
    gpu: device.Gpu, tensor: Callable[..., device.Tensor], monkeypatch: pytest.MonkeyPatch, doubler: Engine
) -> Callable[..., Any]:
    def plus(x: int, y: int, count: int) -> None:
        gpu.memory[y][: 4 * count] = (gpu.memory[x][: 4 * count].view(np.float32) + np.float32(1)).view(np.uint8)

    gpu.functions["plus_one"] = plus
    monkeypatch.setattr(Engine, "why_not_here", property(lambda engine: ""))
    monkeypatch.setattr(importlib.import_module("trtkit.engine.kernel_gpu"), "_compiled", lambda kernel: b"cubin")
    return lambda stages=None, **options: Chain(stages or [doubler, plus_one("y", "z")]).open("cuda", **options)


def test_arrays_through_one_graph(gpu: device.Gpu, chain: Callable[..., Any]) -> None:
    with chain(verify=False) as session:
        for value, size in enumerate((2, 3, 2, 3, 2)):
            np.testing.assert_array_equal(session.run(batch(size, value))["z"], batch(size, 2 * value + 1))
        assert session.recorded and (gpu.count("capture"), gpu.count("replay")) == (2, 5)
        assert gpu.count("start plus_one 1x256") == 4  # each shape once plainly, once to be recorded
    assert gpu.graphs == {}


def test_a_kernel_in_front(chain: Callable[..., Any], doubler: Engine) -> None:
    with chain([plus_one("a", "x"), doubler]) as session:
        np.testing.assert_array_equal(session.run({"a": batch(2, 3)})["y"], batch(2, 8))


def test_tensors_are_read_where_they_lie(
    gpu: device.Gpu, chain: Callable[..., Any], tensor: Callable[..., device.Tensor]
) -> None:
    x, other = tensor(batch(2, 1)), tensor(batch(2, 10))
    with chain(verify=False) as session:
        z = session.run({"x": x})["z"]
        np.testing.assert_array_equal(z.numpy(), batch(2, 3))
        x.write(batch(2, 4))
        assert session.run(x)["z"] is z
        np.testing.assert_array_equal(z.numpy(), batch(2, 9))
        np.testing.assert_array_equal(session.run(other)["z"].numpy(), batch(2, 21))
        assert gpu.count("capture") == 2


def test_only_so_many_shapes_are_kept(gpu: device.Gpu, chain: Callable[..., Any]) -> None:
    with chain(verify=False) as session:
        for size in [*range(1, 13), 1]:
            np.testing.assert_array_equal(session.run(batch(size))["z"], batch(size, 3))
        assert len(gpu.graphs) == 8


def test_what_cannot_be_recorded_runs_stage_by_stage(gpu: device.Gpu, chain: Callable[..., Any]) -> None:
    gpu.capturable = False
    with chain() as session:
        np.testing.assert_array_equal(session.run(batch(2, 4))["z"], batch(2, 9))
        assert not session.recorded and gpu.count("replay") == 0


def test_a_kernel_that_is_wrong_is_refused(gpu: device.Gpu, chain: Callable[..., Any]) -> None:
    gpu.functions["plus_one"] = lambda x, y, count: None
    with pytest.raises(VerificationError, match=r"'chain' is refused: z: chain on .* against the CPU"):
        chain()
    assert gpu.graphs == {}
