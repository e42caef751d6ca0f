"""The benchmark of post-training quantisation: it measures what it says, and its verdicts can be bad ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtkit.bench import record
from trtkit.bench.measure import Measurement

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import ptq, ptq_child
from benchmarks.children import Child, Failed, take_turns


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTKIT_RECORDS", str(tmp_path))
    return tmp_path


def test_batches_come_from_files_as_often_as_asked(tmp_path: Path) -> None:
    batches = [{"x": np.full((size, 2), size, np.float32)} for size in (3, 3, 1)]
    folder = ptq.write_batches(batches, tmp_path / "c")
    files = ptq_child.Files(folder, 4)
    assert len(files) == 8 and [len(batch["x"]) for batch in files] == [3] * 8  # the short one is left out
    assert [batch["x"][0, 0] for batch in files] == [3] * 8  # and once more from the start


def test_a_network_is_quantised_scored_and_built(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ptq.network("digits", ["trtkit-max", "trtkit-bf16"], 2, sys.executable, tmp_path)
    found = record.load("ptq-digits")
    int8, bf16 = found["trtkit-max"], found["trtkit-bf16"]
    assert int8.count == 2 and int8.unit == "s" and 0 < int8.median < 30
    assert abs(int8.extra["score"] - int8.extra["fp32"]) < 0.02 and int8.extra["samples"] == 797
    assert 30 < int8.extra["sqnr_db"] < 60 and int8.extra["peak_mb"] > 0
    assert int8.extra["engine"] == {"built": True, "products": [["Conv", "Int8", 2, 2], ["Gemm", "Int8", 2, 2]]}
    assert bf16.extra["engine"] == {"built": True, "products": []} and 40 < bf16.extra["sqnr_db"] < 60
    assert "Int8 Conv 2/2" in capsys.readouterr().out


def test_a_point_of_memory_is_the_median_of_processes(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptq, "TIMES", (1, 2))
    ptq.growth("digits", ["trtkit-max"], sys.executable, tmp_path)
    found = record.load("ptq-memory-digits")
    assert list(found) == ["trtkit-max-1", "trtkit-max-2"]
    for times, one in zip((1, 2), found.values(), strict=True):
        assert len(one.extra["peaks_mb"]) == one.count == 3 and one.extra["samples"] == 32 * times
        assert one.extra["peak_mb"] == min(one.extra["peaks_mb"]) > 0


def test_who_fails_loses_the_old_record(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep("digits", "modelopt-max")
    keep("digits", "trtkit-max")
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    ptq.network("digits", ["modelopt-max"], 1, str(nothing(tmp_path)), tmp_path)
    assert list(record.load("ptq-digits")) == ["trtkit-max"]


def nothing(folder: Path) -> Path:
    """A Python without ModelOpt, or anything."""
    python = folder / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'modelopt'\" >&2\nexit 1\n")
    python.chmod(0o755)
    return python


def test_a_child_says_why_it_failed(tmp_path: Path) -> None:
    child = Child("benchmarks.ptq_child", "modelopt-max", "a", "b", "c", python=str(nothing(tmp_path)))
    with pytest.raises(Failed, match="exit code 1: ModuleNotFoundError: No module named 'modelopt'"):
        child.answer(60)
    child.stop()
    children = {"gone": Child("benchmarks.ptq_child", "modelopt-max", python=str(nothing(tmp_path)))}
    assert "No module named 'modelopt'" in take_turns(children, 2, 60, 1.0)["gone"]["failed"]


def keep(name: str, contender: str, **other: Any) -> None:
    extra = {
        "score": 0.9, "fp32": 0.91, "metric": "accuracy", "samples": 100, "sqnr_db": 30.0,
        "cpu_s": 1.0, "peak_mb": 10.0,
        "engine": {"built": True, "products": [["Conv", "Int8", 2, 2]]},
    } | other  # fmt: skip
    record.save(f"ptq-{name}/{contender}", Measurement.from_samples([1.0]), command="test", extra=extra, unit="s")


def test_targets_are_held(records: Path) -> None:
    keep("digits", "trtkit-max", score=0.905)
    keep("digits", "trtkit-entropy", cpu_s=1.0)
    keep("digits", "onnxruntime-entropy", cpu_s=3.0, score=0.906)
    for times, peak in ((1, 10.0), (4, 10.5), (16, 10.9)):
        for contender in ("trtkit-percentile", "trtkit-entropy"):
            keep("memory-digits", f"{contender}-{times}", peak_mb=peak)
    said = ptq.verdicts()
    assert "missed" not in said and "FP8, ours against ModelOpt's, at most 0.2 points lower: not measured" in said
    assert "holds on all 1 networks (-0.10 to -0.10 points)" in said
    assert "3.0 to 3.0 times faster" in said
    assert "mean of all networks: max 30.0 dB, entropy 30.0 dB, ORT entropy 30.0 dB" in said
    assert "| digits | accuracy, 100 | 91.00 |" in ptq.scores() and "3.00 s, 10 MB" in ptq.costs()
    assert "2 of 2" in ptq.engines() and "10.0 → 10.5 → 10.9" in ptq.memories()


def test_targets_are_missed(records: Path) -> None:
    keep("digits", "trtkit-max", score=0.5, engine={"built": False, "why": "no"})
    keep("digits", "trtkit-entropy", cpu_s=1.0, score=0.5, engine={"built": True, "products": [["Conv", "Int8", 3, 2]]})
    keep("digits", "onnxruntime-entropy", cpu_s=1.5)
    keep("digits", "trtkit-fp8", score=0.6)
    keep("digits", "modelopt-fp8", score=0.9)
    for times, peak in ((1, 10.0), (16, 60.0)):
        for contender in ("trtkit-percentile", "trtkit-entropy"):
            keep("memory-digits", f"{contender}-{times}", peak_mb=peak)
    said = ptq.verdicts().splitlines()
    assert ["missed" in line for line in said] == [True] * 5 + [False]
    assert "digits -40.00" in said[0] and "digits -30.00" in said[1] and "digits 1.5x" in said[2]
    assert "10 to 60 MB" in said[3] and "digits max (refused)" in said[4] and "digits entropy (2 of 3)" in said[4]


def test_readme_needs_its_marks() -> None:
    text = f"before\n{ptq.MARKS[0]}\nold\n{ptq.MARKS[1]}\nafter"
    assert ptq.into_readme(text, "new") == f"before\n{ptq.MARKS[0]}\n\nnew\n\n{ptq.MARKS[1]}\nafter"
    assert ptq.into_readme(ptq.into_readme(text, "1"), "2") == ptq.into_readme(text, "2")
    with pytest.raises(ValueError, match="lacks the marks"):
        ptq.into_readme("before", "new")
