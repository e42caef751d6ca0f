"""Records: written whole, read back labelled, refused when damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from trtkit.bench import machine, record
from trtkit.bench.measure import Measurement
from trtkit.errors import RecordError

KEY = "net-fp16-b1/trtkit"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTKIT_RECORDS", str(tmp_path))
    return tmp_path


def saved(key: str = KEY, samples: tuple[float, ...] = (1.0, 2.0, 3.0), **options: Any) -> Path:
    return record.save(key, Measurement.from_samples(samples), command="python3 mine.py", **options)


def test_what_is_saved_is_what_is_loaded() -> None:
    saved(extra={"relative_error": 0.001})
    found = record.load(KEY)
    assert (found.median_ms, found.count, found.extra) == (2.0, 3, {"relative_error": 0.001})
    assert found.p10_ms == pytest.approx(1.2)
    assert found.provenance["command"] == "python3 mine.py"
    assert found.provenance["cpu"] == machine.cpu()


def test_a_file_collects_contenders_in_order(folder: Path) -> None:
    saved()
    saved("net-fp16-b1/eager", (20.0, 20.0))
    saved(samples=(4.0, 4.0))  # measured again: replaced, and the other stays
    records = record.load("net-fp16-b1")
    assert list(records) == ["trtkit", "eager"]
    assert records.speedup("trtkit", "eager") == 5.0
    assert [p.name for p in folder.iterdir()] == ["net-fp16-b1.json"]  # and no temporary file


def test_a_recalled_number_says_so_everywhere() -> None:
    saved()
    found, many = record.load(KEY), record.load("net-fp16-b1")
    assert found.recalled
    assert found.source.startswith("recalled: ")
    for text in (repr(found), found._repr_html_(), many._repr_html_(), many.source):
        assert "recalled: " in text
        assert found.provenance["date"].split()[0] in text


def test_microseconds_come_back_as_milliseconds() -> None:
    saved(unit="us")
    found = record.load(KEY)
    assert (found.unit, found.median, found.median_ms) == ("us", 2000.0, 2.0)


def test_units_that_are_none() -> None:
    with pytest.raises(RecordError, match="'ns' is none of s, ms, us"):
        saved(unit="ns")


def test_a_contender_can_be_removed(folder: Path) -> None:
    saved()
    saved("net-fp16-b1/eager")
    record.remove(KEY)
    assert list(record.load("net-fp16-b1")) == ["eager"]
    record.remove(KEY)  # not there any more
    record.remove("net-fp16-b1/eager")
    record.remove("absent/eager")
    assert list(folder.iterdir()) == []
    with pytest.raises(RecordError, match="names a contender"):
        record.remove("net-fp16-b1")


def test_the_commit_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTKIT_COMMIT", "abc1234")
    machine.commit.cache_clear()
    saved()
    machine.commit.cache_clear()
    assert record.load(KEY).provenance["commit"] == "abc1234"


def test_measured_where_it_can_be_and_recalled_elsewhere() -> None:
    saved()
    mine = Measurement.from_samples([7.0])
    assert record.measure_or_recall(KEY, lambda: mine, needs="cpu") is mine
    assert record.measure_or_recall(KEY, lambda: mine, needs=lambda: False).median_ms == 2.0
    assert record.measure_or_recall(KEY, needs="cpu").recalled  # nothing to measure with
    if not machine.can_run("gpu"):
        assert record.measure_or_recall(KEY, lambda: mine).source.startswith("recalled")


def test_what_fails_while_measuring_is_not_hidden_by_a_record() -> None:
    saved()
    with pytest.raises(ZeroDivisionError):
        record.measure_or_recall(KEY, lambda: 1 / 0, needs="cpu")


def test_an_unknown_need_is_refused() -> None:
    with pytest.raises(ValueError, match="'cpu', 'gpu', 'tensorrt-gpu'"):
        record.measure_or_recall(KEY, lambda: None, needs="quantum")


def test_ratios_only_within_one_run(folder: Path) -> None:
    path = saved()
    saved("net-fp16-b1/eager", (20.0,))
    document = json.loads(path.read_text())
    document["contenders"]["eager"]["provenance"]["run"] = "another"
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match="different runs"):
        record.load("net-fp16-b1").speedup("trtkit", "eager")
    with pytest.raises(RecordError, match="no contender 'compile'; it has trtkit, eager"):
        record.load("net-fp16-b1").speedup("trtkit", "compile")


@pytest.mark.parametrize("key", ["", "UPPER", "../up", "a/b/c", "a b", "/trtkit", "net/"])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(RecordError, match="is no record key"):
        record.load(key)


def test_saving_needs_a_contender() -> None:
    with pytest.raises(RecordError, match=r"e\.g\. 'net/trtkit'"):
        saved("net")


def test_a_missing_record_names_the_nearest() -> None:
    saved()
    with pytest.raises(RecordError, match="Nearest: net-fp16-b1"):
        record.load("net-fp16-b2")
    with pytest.raises(RecordError, match="no contender 'eager'"):
        record.load("net-fp16-b1/eager")


def test_a_missing_folder_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRTKIT_RECORDS", str(tmp_path / "nowhere"))
    with pytest.raises(RecordError, match="Set TRTKIT_RECORDS"):
        record.load(KEY)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("median", None, "'median' should be a finite number"),
        ("median", True, "'median' should be a finite number"),
        ("p90", float("nan"), "'p90' should be a finite number"),
        ("p10", 99.0, "not in order"),
        ("count", 0, "'count' should be a positive integer"),
        ("unit", None, "'unit' is missing"),
        ("provenance", {}, "provenance lacks device, driver"),
    ],
)
def test_damaged_entries_are_named(field: str, value: Any, complaint: str) -> None:
    path = saved()
    document = json.loads(path.read_text())
    document["contenders"]["trtkit"][field] = value
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match=re.escape(complaint)) as caught:
        record.load(KEY)
    assert "net-fp16-b1.json" in str(caught.value)
    assert "measure it again" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"schema": 2}', b'{"schema": 1, "contenders": {}}', b"\xff\xfe"])
def test_damaged_files(folder: Path, data: bytes) -> None:
    (folder / "net-fp16-b1.json").write_bytes(data)
    with pytest.raises(RecordError, match=r"net-fp16-b1\.json"):
        record.load(KEY)
    with pytest.raises(RecordError):  # nor is a damaged file written over
        saved()


def test_nothing_half_written_when_a_value_is_not_json(folder: Path) -> None:
    with pytest.raises(TypeError):
        saved(extra={"what": object()})
    with pytest.raises(RecordError, match="finite"):
        record.save(KEY, Measurement(float("inf"), 1.0, 1.0, 50), command="python3 mine.py")
    assert list(folder.iterdir()) == []


def test_all_records_of_the_project_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRTKIT_RECORDS")
    try:
        keys = record.keys()
    except RecordError:
        pytest.skip("this is not a checkout with records")
    for key in keys:
        for found in record.load(key).values():
            least = 1 if found.unit == "s" else 50  # what takes seconds is done a few times, slow rivals of ours once
            assert found.count >= least, f"{found.key} has only {found.count} samples"
            assert not re.search(r"/(home|root|tmp|work)/", json.dumps(found.provenance)), "paths of some machine"
