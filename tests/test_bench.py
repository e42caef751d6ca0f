"""Measuring and comparing: sane numbers, honest labels, clear errors."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import trtkit
from trtkit import bench
from trtkit.bench import bench_model, machine, measure, peers
from trtkit.bench.compare import Comparison, compare, row_of, top1_agreement
from trtkit.bench.measure import Measurement
from trtkit.errors import DataError, MissingError, ModelError
from trtkit.model import Model


def perceptron(classes: int = 10) -> Model:
    """(n, 16) float32 -> (n, classes)."""
    rng = np.random.default_rng(0)
    text = f'<ir_version: 10, opset_import: ["": 20]> net (float[n, 16] x) => (float[n, {classes}] y) ' \
           "{h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)}"  # fmt: skip
    proto = onnx.parser.parse_model(text)
    for name, shape in (("a", (16, 32)), ("b", (32, classes))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape, np.float32) / 4, name))
    return trtkit.load(proto)


def batches(count: int = 3, size: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((size, 16), np.float32) for _ in range(count)]


# measure


def test_inputs_take_turns_and_warm_up_does_not_count() -> None:
    seen: list[int] = []
    result = measure(seen.append, inputs=[1, 2, 3], warmup=2, min_runs=50, min_seconds=0)
    assert result.count == 50
    assert seen == list(itertools.islice(itertools.cycle([1, 2, 3]), 52))


def test_it_goes_on_for_min_seconds_and_stops_at_max_runs() -> None:
    assert measure(lambda: None, warmup=0, min_runs=1, min_seconds=0.02).count > 50
    assert measure(lambda: None, warmup=0, min_runs=1, min_seconds=60, max_runs=70).count == 70


def test_percentiles_are_numpys() -> None:
    result = Measurement.from_samples(np.arange(1, 102, dtype=float))
    assert (result.p10_ms, result.median_ms, result.p90_ms, result.count) == (11.0, 51.0, 91.0, 101)
    assert result.samples_ms.shape == (101,)
    assert not result.recalled
    assert "measured here" in repr(result)


def test_sync_is_part_of_the_time() -> None:
    calls: list[str] = []
    measure(lambda: calls.append("call"), sync=lambda: calls.append("sync"), warmup=0, min_runs=2, min_seconds=0)
    assert calls == ["call", "sync", "call", "sync"]


def test_measure_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="at least one input set"):
        measure(len, inputs=[])
    with pytest.raises(ValueError, match="'cpu' or 'cuda'"):
        measure(lambda: None, device="tpu")
    with pytest.raises(ValueError, match="at least one sample"):
        Measurement.from_samples([])


@pytest.mark.skipif(machine.gpu() is not None, reason="there is a GPU")
def test_no_gpu_to_time_on() -> None:
    with pytest.raises(MissingError, match="needs a GPU"):
        measure(lambda: None, device="cuda")


def test_what_the_function_raises_goes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        measure(lambda: 1 / 0)


# compare


def test_a_model_equals_itself_and_fp16_nearly() -> None:
    model = perceptron()
    found = trtkit.compare(model, trtkit.autocast(model, "fp16"), data=batches(), measure_latency=False)
    first, half = found.rows
    assert (first["error"], first["sqnr_db"], first["top1_agreement"]) == (0.0, float("inf"), 1.0)
    assert 1e-5 < half["error"] < 1e-2
    assert half["sqnr_db"] == pytest.approx(-20 * np.log10(half["error"]))
    assert half["size_bytes"] == model.size_bytes // 2
    assert half["median_ms"] is None


def test_errors_are_those_of_the_definition() -> None:
    a, b = {"y": np.array([[3.0, 4.0]])}, {"y": np.array([[3.0, 3.0]])}
    row = row_of("b", "fp32", 0, [b], [a], None)
    assert row["error"] == pytest.approx(1 / 5)
    assert row["sqnr_db"] == pytest.approx(20 * np.log10(5))


def test_top1_agreement_counts_samples_and_knows_what_is_no_classifier() -> None:
    want = [{"y": np.eye(4)}]
    got = [{"y": np.eye(4)[[0, 1, 2, 0]]}]
    assert top1_agreement(got, want) == 0.75
    assert top1_agreement([{"y": np.zeros((2, 3, 4))}], [{"y": np.zeros((2, 3, 4))}]) is None
    assert top1_agreement([{"y": np.zeros((2, 1))}], [{"y": np.zeros((2, 1))}]) is None


def test_latency_says_where_it_was_measured() -> None:
    found = compare(perceptron(), data=batches())
    (row,) = found.rows
    assert row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
    assert row["count"] >= 50
    assert row["ratio"] == 1.0
    assert row["measured"] == f"ONNX Runtime, {machine.cpu()}"
    assert f"<p>measured on a: {row['measured']}</p>" in found._repr_html_()
    assert "<td>a</td>" in found._repr_html_()


def test_an_engine_without_a_gpu_is_labelled_as_its_graph() -> None:
    pytest.importorskip("tensorrt_rtx")
    model = perceptron()
    engine = trtkit.build(model)
    found = trtkit.compare(model, engine, data=batches(), names=["graph", "engine"])
    assert found["engine"]["error"] < 5e-3
    assert found["engine"]["size_bytes"] == engine.size_bytes
    if not engine.runs_here:
        assert found["engine"]["measured"].startswith("its graph in ONNX Runtime")


def test_inputs_are_converted_to_what_a_model_takes() -> None:
    model = perceptron()
    found = compare(model, trtkit.autocast(model, "fp16", io="low"), data=batches(), measure_latency=False)
    assert 0 < found.rows[1]["error"] < 1e-2


def test_random_data_and_names_of_ones_own() -> None:
    model = perceptron()
    found = compare(model, model, model, measure_latency=False)
    assert [row["name"] for row in found.rows] == ["net fp32", "net fp32 #2", "net fp32 #3"]
    with pytest.raises(KeyError, match="these were: net fp32"):
        found["other"]


def test_table_and_html_leave_out_empty_columns_and_escape() -> None:
    found = compare(perceptron(), names=["<b>"], measure_latency=False)
    assert [column.header for column in found.table().columns] == [
        "model", "precision", "size MB", "error", "SQNR dB", "same top-1",
    ]  # fmt: skip
    assert "&lt;b&gt;" in found._repr_html_()
    assert "<b>" not in found._repr_html_()


def test_ratios_are_to_the_peer_of_the_same_batch() -> None:
    def row(name: str, batch: int, median: float) -> dict[str, Any]:
        outputs = [{"y": np.ones((1, 2))}]
        return row_of(name, "fp32", 1, outputs, outputs, (Measurement.from_samples([median]), "here"), batch)

    found = Comparison([row("a", 1, 2.0), row("peer", 1, 4.0), row("a", 8, 8.0), row("peer", 8, 8.0)], "peer")
    assert [r["ratio"] for r in found.rows] == [2.0, 1.0, 1.0, 1.0]


def test_compare_refuses() -> None:
    model = perceptron()
    with pytest.raises(ModelError, match="nothing to compare"):
        compare(data=batches())
    with pytest.raises(DataError, match="no batch at all"):
        compare(model, data=[])
    with pytest.raises(ModelError, match="give every model one of its own"):
        compare(model, model, names=["a"])
    with pytest.raises(ModelError, match="give every model one of its own"):
        compare(model, model, names=["a", "a"])
    with pytest.raises(ModelError, match="no input 'z'"):
        compare(model, data=[{"z": batches()[0]}])
    with pytest.raises(ModelError, match="cannot be compared"):
        other = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 20]> o (float[n, 16] x) => (float[n, 16] z) {z = Relu(x)}'
        )
        compare(model, trtkit.load(other), data=batches(), measure_latency=False)


def test_other_sizes_of_output_are_refused() -> None:
    with pytest.raises(ModelError, match="shape"):
        compare(perceptron(10), perceptron(11), names=["a", "b"], data=batches(), measure_latency=False)


# bench_model


def test_bench_model_measures_variants_and_peer_in_one_run() -> None:
    found = bench_model(perceptron(), batches=(1, 4), data=batches())
    names = ["ONNX Runtime", "as loaded", "optimised", "fp16", "int8"]
    if not machine.can_run("gpu"):
        assert [row["name"] for row in found.rows] == names * 2
        assert [row["batch"] for row in found.rows] == [1] * 5 + [4] * 5
        assert found.peer == "ONNX Runtime"
    assert all(row["ratio"] > 0 and row["error"] < 0.3 for row in found.rows)


def test_bench_model_says_what_it_leaves_out() -> None:
    found = bench_model(perceptron(), precisions=("fp32", "int8"))
    assert "int8" not in [row["name"] for row in found.rows]
    assert any("calibration data" in note for note in found.notes)


def test_bench_model_with_its_torch_module() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = trtkit.load(module, torch.rand(2, 16))
    found = bench_model(model, example=batches(1)[0], torch_module=module, precisions=("fp32",))
    assert found["PyTorch eager fp32"]["error"] < 1e-5
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_bench_model_refuses() -> None:
    with pytest.raises(ModelError, match="precisions of fp32, fp16, int8"):
        bench_model(perceptron(), precisions=("fp4",))
    with pytest.raises(ModelError, match="at least one batch size"):
        bench_model(perceptron(), batches=())
    with pytest.raises(ModelError, match="holds nothing"):
        bench_model(perceptron(), batches=(0,))
    with pytest.raises(ModelError, match="places of cpu, gpu"):
        bench_model(perceptron(), places=("tpu",))
    with pytest.raises(DataError):
        bench_model(perceptron(), data=[])


def fixed(batch: int) -> Model:
    """(batch, 4) float32 -> (batch, 4), and no other batch."""
    graph = f"fixed (float[{batch}, 4] x) => (float[{batch}, 4] y) {{y = Exp(x)}}"
    return trtkit.load(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {graph}'))


def test_a_fixed_batch_is_neither_relabelled_nor_stretched() -> None:
    with pytest.raises(ModelError, match=r"takes batches of 1 only, so it cannot run at batch 8\. Leave the batch out"):
        bench_model(fixed(1), batches=[8])
    assert {row["batch"] for row in bench_model(fixed(3), precisions=("fp32",)).rows} == {3}
    assert compare(fixed(3), measure_latency=False).rows[0]["error"] == 0


def test_bench_model_runs_only_the_precisions_asked_for() -> None:
    found = bench_model(perceptron(), precisions=("fp16",))
    assert "optimised" not in [row["name"] for row in found.rows] and found["fp16"]["error"] > 0


@pytest.mark.skipif(machine.gpu() is not None, reason="there is a GPU")
def test_bench_model_on_the_gpu_alone() -> None:
    with pytest.raises(ModelError, match="could be measured on gpu"):
        bench_model(perceptron(), places=("gpu",))


def test_only_gpu_contenders_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "can_run", lambda needs: True)
    monkeypatch.setattr(peers, "_engine", lambda model: peers._graph(model, optimiser=True))
    found = bench_model(perceptron(), precisions=("fp16",), places=("gpu",))
    assert [row["name"] for row in found.rows] == ["engine fp16, GPU"]


def test_a_peer_that_fails_costs_its_row_alone() -> None:
    torch = pytest.importorskip("torch")

    class Broken(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            raise IndexError("out of luck")

    found = bench_model(perceptron(), torch_module=Broken(), precisions=("fp32",))
    assert "optimised" in [row["name"] for row in found.rows]
    assert "PyTorch eager fp32 is left out: it failed with IndexError: out of luck" in found.notes


# the benchmarks' own parts


def test_a_contender_that_fails_leaves_no_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    contenders = pytest.importorskip("benchmarks.contenders")
    networks = pytest.importorskip("benchmarks.networks")
    monkeypatch.setenv("TRTKIT_RECORDS", str(tmp_path))
    for name in ("trtkit", "eager", "old"):
        bench.save(f"net-fp32-b1/{name}", Measurement.from_samples([1.0]), command="an earlier run")
    said: list[str] = []
    runner = contenders.Runner("cpu", "now", said.append, quick=True, compile_peer=False)
    network = networks.resnet(quick=True)
    setting = contenders.Setting("net-fp32-b1", network, "fp32", 1)

    def time(broken: str, setting: Any, name: str, form: str) -> Any:
        if broken in (name, form):
            raise ZeroDivisionError(f"{form} of {name}")
        taken = Measurement.from_samples([{"nchw": 2.0, "nhwc": 3.0}.get(form, 1.0)])
        return contenders.Result(taken, {"relative_error": 0.0, "form": form})

    with pytest.raises(RuntimeError, match="trtkit failed"):
        runner.measure(setting, partial(time, "trtkit"))
    assert any("trtkit" in line and "FAILED" in line and "ZeroDivisionError" in line for line in said)
    records = bench.load("net-fp32-b1")
    assert list(records) == ["eager", "old"] and records["eager"].median_ms == 2.0
    found = runner.measure(setting, partial(time, "low-latency"))
    assert found["trtkit"].extra["form"] == "fp32" and "low-latency" in found["trtkit"].extra["failed_forms"]
    assert found["eager"].extra["forms_ms"] == {"nchw": 2.0, "nhwc": 3.0}
    assert "2.00x the best peer (eager)" in said[-1]  # "old", which is as fast, is of another run


def test_the_smoke_checks_of_the_gpu_benchmark_pass_on_this_machines_cpu(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("tensorrt_rtx")
    smoke = pytest.importorskip("benchmarks.smoke")
    lines: list[str] = []
    smoke.run("cpu", tmp_path / "smoke.json", lines.append)
    results = json.loads((tmp_path / "smoke.json").read_text())
    assert len(results) == len(smoke.CHECKS)
    assert all(text.startswith("ok") for text in results.values())


def test_benchmark_inputs_are_the_same_numbers_in_every_precision() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    networks = pytest.importorskip("benchmarks.networks")
    network = networks.resnet(quick=True)
    sets = {p: network.inputs(2, 3, p, "nchw", "cpu") for p in ("fp64", "fp32", "fp16")}
    assert len(sets["fp16"]) == 3
    assert not torch.equal(sets["fp64"][0], sets["fp64"][1])
    for precision in ("fp32", "fp16"):
        assert torch.equal(sets["fp64"][2], sets[precision][2].double())
    assert network.inputs(2, 1, "fp32", "nhwc", "cpu")[0].is_contiguous(memory_format=torch.channels_last)
    a, b = (network.make(variant) for variant in network.variants)
    with torch.inference_mode():
        x = sets["fp32"][0]
        assert torch.allclose(a(x), b(x), atol=1e-4)


def test_an_error_that_is_no_number_never_passes() -> None:
    torch = pytest.importorskip("torch")
    contenders = pytest.importorskip("benchmarks.contenders")
    one = torch.ones(2, 2, dtype=torch.float64)
    assert contenders.relative_error(one.float(), one) == 0.0
    assert contenders.relative_error(one * float("nan"), one) == float("inf")
    assert contenders.relative_error(one[:1], one) == float("inf")
