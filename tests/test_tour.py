"""The tour, and the GPU figures of the course: measured or recalled, never mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from trtkit.bench import Measurement, record
from trtkit.bench.compare import Comparison, row_of
from trtkit.course import gpu, tour
from trtkit.errors import RecordError, TrtkitError

OUTPUTS = [{"y": np.ones((1, 2), np.float32)}]
TIMES = {"trtkit": 0.4, "eager": 6.0, "eager-graph": 0.9, "compile": 0.8}


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one made-up record, far from the repository's own."""
    folder = tmp_path / "records"
    folder.mkdir()
    monkeypatch.setenv("TRTKIT_RECORDS", str(folder))
    for name, time in TIMES.items():
        samples = Measurement.from_samples(np.full(50, time))
        record.save(f"resnet50-fp16-b1/{name}", samples, command="made up for a test")
    return folder


def test_recalled_figures_say_so(records: Path) -> None:
    figures = gpu.recalled("fp16", 1)
    assert figures.source.startswith("recalled: ")
    assert figures.best_peer() == "compile"
    assert figures.factors() == pytest.approx({"eager": 15.0, "eager-graph": 2.25, "compile": 2.0})
    with pytest.raises(RecordError, match="fp16-b7"):
        gpu.recalled("fp16", 7)


def test_figures_of_different_runs_are_not_divided(records: Path) -> None:
    path = records / "resnet50-fp16-b1.json"
    path.write_text(path.read_text().replace('"run": "', '"run": "other-', 1))
    with pytest.raises(RecordError, match="different runs"):
        gpu.recalled("fp16", 1)


def test_a_gpu_is_measured_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    live = gpu.Figures(TIMES, "measured here: a GPU")
    monkeypatch.setattr(gpu, "measure_or_recall", lambda key, fn, needs: fn())
    monkeypatch.setattr(gpu, "_measured", lambda precision, batch: live)
    assert gpu.resnet50("fp16", 1) is live


def test_a_comparison_becomes_figures() -> None:
    rows = [
        row_of(
            form.format("fp16"), "fp16", None, OUTPUTS, OUTPUTS, (Measurement.from_samples([TIMES[name]]), "some GPU")
        )
        for name, form in gpu.CONTENDERS.items()
    ]
    figures = gpu._from_comparison(Comparison(rows, rows[0]["name"]), "fp16")
    assert dict(figures) == TIMES and figures.source == "measured here: some GPU"


def test_a_refused_engine_has_no_figures() -> None:
    row = row_of("PyTorch eager fp16, GPU", "fp16", None, OUTPUTS, OUTPUTS, (Measurement.from_samples([1.0]), "a GPU"))
    notes = ["engine fp16, GPU is left out: it computes something else"]
    with pytest.raises(RecordError, match=r"only the peers were measured here\. engine fp16, GPU is left out"):
        gpu._from_comparison(Comparison([row], row["name"], notes=notes), "fp16")


def test_the_tour_names_missing_records(records: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=100)
    files = tour.gpu_figures(tmp_path, console)
    text = " ".join(console.export_text().split())
    assert [path.name for path, _ in files] == ["resnet50_gpu_speedups.png"]
    assert "2.00x" in text and "15.00x" in text and "recalled" in text
    assert "No GPU figures for ResNet-50 in fp32 b1, fp32 b32, fp32 b128" in text


@pytest.mark.parametrize(("error", "status", "word"), [
    (TrtkitError("no engine today"), 1, "no engine today"), (KeyboardInterrupt(), 130, "Stopped"),
])  # fmt: skip
def test_the_tour_ends_well(
    error: BaseException, status: int, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(tour, "run", fail)
    assert tour.main([]) == status
    assert word in capsys.readouterr().out


@pytest.mark.slow
def test_the_tour_leaves_whole_files(records: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    out = tmp_path / "out"
    console = Console(record=True, width=80)
    files = tour.run(out, console)
    assert all(path.is_file() and path.stat().st_size > 1000 for path, _ in files)
    assert {path.name for path in out.glob("*.engine")} == {
        "mobilenet_v2_fp16.engine", "mobilenet_v2_int8.engine", "resnet50_fp32.engine"
    }  # fmt: skip
    before = sorted(path.name for path in out.iterdir())
    tour.gpu_figures(out, console)
    assert sorted(path.name for path in out.iterdir()) == before
    assert "Measured here" in console.export_text()


def test_a_sweep_says_what_it_leaves_out(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "resnet50", gpu.recalled)  # on a machine with a GPU as well
    found, missing = gpu.sweep(("fp16",), (1, 32))
    assert list(found) == ["fp16, batch 1"]
    assert len(missing) == 1 and missing[0].startswith("fp16, batch 32 is left out: ")
