"""The profile: costs that add up to the graph's, kernels laid over layers, and a record that reads back the same."""

from __future__ import annotations

import json

import pytest

from tests.passes.graphs import parse
from trtkit.engine.alignment import lay_over
from trtkit.engine.build import build
from trtkit.engine.engine import Engine
from trtkit.engine.profile import KernelTime, LayerCost, Profile, layer_costs
from trtkit.errors import EngineError
from trtkit.graph.cost import cost
from trtkit.model import Model
from trtkit.passes import optimize
from trtkit.quant.autocast import autocast

MLP = "float[64, 256] w, float[256, 10] v"


@pytest.fixture(scope="module")
def mlp() -> Engine:
    model = parse(
        "[fc] a = MatMul(x, w) [act] b = Relu(a) [out] y = MatMul(b, v)", f"float[n, 64] x, {MLP}", "float[n, 10] y"
    )
    return build(model, shapes={"w": (64, 256), "v": (256, 10)})


# Costs


def test_costs_add_up_to_the_graph_s(conv: Model) -> None:
    small = autocast(optimize(conv), "fp16")
    costs = layer_costs(build(small, verify=False), batch=4)
    assert sum(layer.flops for layer in costs) == cost(small, batch=4).flops
    first = next(layer for layer in costs if "Conv" in layer.op_types)
    assert first.tiles == 4 * 16 * 16 // 128  # 8 channels are one column of tiles
    assert all(layer.bytes > 0 for layer in costs)


def test_a_layer_reads_its_ends_once(mlp: Engine) -> None:
    first, second = layer_costs(mlp, batch=200)
    assert (first.label, second.label) == ("MatMul+Relu", "MatMul")
    assert first.bytes == 4 * (200 * 64 + 64 * 256 + 200 * 256)
    assert (first.tiles, second.tiles) == (2 * 2, 2)


def test_without_its_model() -> None:
    with pytest.raises(EngineError, match="their graph is needed"):
        layer_costs(Engine(b"", {"model": "lost"}, [], None))


# Kernels over layers


def layer(ops: str, kind: str = "", flops: int = 0, moved: int = 1000, tiles: int = 0) -> LayerCost:
    return LayerCost(
        f"{ops}_layer", kind or ("gemm" if ops == "gemm" else "kgen"), ops, (ops,), (ops,), flops, moved, tiles, ""
    )


def placed(names: list[str], layers: list[LayerCost]) -> list[list[str]]:
    kernels = [KernelTime(name, 2.0, 3.0) for name in names]
    return [list(found.kernels) for found in lay_over(kernels, layers, 1e12, 1e9)]


def test_one_kernel_a_layer() -> None:
    layers = [layer("Add"), layer("gemm"), layer("Relu")]
    names = ["__myl_Add_0x1", "sm90_gemm", "__myl_Relu_0x2"]
    assert placed(names, layers) == [[name] for name in names]


def test_a_product_in_two_kernels_and_a_layer_without_any() -> None:
    layers = [layer("gemm"), layer("Add"), layer("Move"), layer("gemm"), layer("Relu")]
    names = ["sm90_gemm", "splitKreduce_kernel", "__myl_Add_0x1", "sm90_gemm", "__myl_Relu_0x2"]
    assert placed(names, layers) == [names[:2], [names[2]], [], [names[3]], [names[4]]]


def test_helpers_stay_with_their_product_in_a_row_of_products() -> None:
    names = ["fprop_1", "splitKreduce", "fprop_2", "fprop_3", "splitKreduce"]
    assert placed(names, [layer("gemm")] * 3) == [names[:2], [names[2]], names[3:]]


def test_a_tactic_names_its_kernel() -> None:
    """As attention's does, which is a generated kernel without generated kernels' usual name."""
    attention = layer("kgen", kind="kgen")._replace(tactic="_gemm_mha_v2_0x6")
    names = ["sm90_gemm", "_gemm_mha_v2_0x6", "sm90_gemm"]
    assert placed(names, [layer("gemm"), attention, layer("gemm")]) == [[name] for name in names]


def test_a_kernel_for_older_gpus() -> None:
    layers = [layer("gemm", flops=4_000_000, tiles=200), layer("gemm", flops=4_000_000, tiles=200)]
    times = lay_over([KernelTime("sm80_conv", 40, 40), KernelTime("sm90_conv", 5, 5)], layers, 1e12, 1e9)
    found = Profile("net", tuple(times), 50, "a GPU", 1e12, 1e9, 132)
    assert found.why(found.layers[0]) == "its kernel is one for older GPUs (sm80, others here are sm90)"
    assert found.why(found.layers[1]) == "limited by arithmetic, reaches 1 of 1 TFLOP/s"


def test_times_and_bounds() -> None:
    (found,) = lay_over([KernelTime("sm90_gemm", 4.0, 5.0)], [layer("gemm", flops=2_000_000, moved=1000)], 1e12, 1e9)
    assert (found.us, found.busy_us, found.bound_us) == (4.0, 5.0, 2.0)
    assert (found.tflops, found.gb_s, found.of_roofline) == (0.5, 0.25, 0.5)


# The profile


def profile_of(*layers: tuple[LayerCost, float]) -> Profile:
    times = lay_over([KernelTime(f"__myl_{c.ops}_0x", us, us) for c, us in layers], [c for c, _ in layers], 1e12, 1e9)
    return Profile("net", tuple(times), 100.0, "a GPU", 1e12, 1e9, 132, {"power": {"watts": 300}})


def test_the_layers_that_lose_most() -> None:
    found = profile_of(
        (layer("Big", flops=30_000_000), 40.0),  # 30 us at best
        (layer("Few", flops=5_000_000, tiles=16), 25.0),
        (layer("Move", moved=10_000), 20.0),
        (layer("Tiny", moved=10), 5.0),
    )
    assert [x.cost.ops for x in found.top(2)] == ["Big", "Few"]
    assert [x.cost.ops for x in found.furthest(3)] == ["Few", "Big", "Move"]
    assert found.sum_us == 90.0 and found.coverage == 0.9
    reasons = [found.why(x) for x in found.layers]
    assert reasons[0] == "limited by arithmetic, reaches 1 of 1 TFLOP/s"
    assert reasons[1] == "only 16 tiles of 128×128 to share out among 132 processors"
    assert reasons[2] == "limited by memory, reaches 0 of 1 GB/s"
    assert "0.01 µs of work" in reasons[3]
    assert "net on a GPU: 4 layers, 90.0 us in all, 90% of a call's 100.0 us [measured here]" in found.table(2)


def test_a_record_reads_back_the_same() -> None:
    found = profile_of((layer("Big", flops=30_000_000), 40.125), (layer("Few", tiles=16), 25.0))
    again = Profile.from_facts(json.loads(json.dumps(found.as_facts())), "recalled: a GPU")
    assert again.layers == found.layers and again.facts == found.facts and again.source == "recalled: a GPU"
    assert (again.sum_us, again.latency_us, again.processors) == (found.sum_us, 100.0, 132)
    for damaged in ({}, {**found.as_facts(), "layers": [[1, 2]]}, {**found.as_facts(), "layers": 3}):
        with pytest.raises(EngineError, match="no profile that trtkit wrote"):
            Profile.from_facts(damaged, "")
