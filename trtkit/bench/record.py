"""Recorded measurements: numbers that say where they come from.

A record is one file, `KEY.json`, with one entry per contender; "resnet50-fp16-b1/trtkit" is the contender `trtkit`
of the file `resnet50-fp16-b1.json`. Every entry has its own provenance, and those measured in one run of one
script share its `run` mark: only such entries may be divided by each other. benchmarks/README.md has the format.
"""

from __future__ import annotations

import difflib
import html
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trtkit
from trtkit.bench import machine
from trtkit.bench.measure import Measurement
from trtkit.errors import RecordError
from trtkit.model import write_atomically

SCHEMA = 1
_IN_MS = {"s": 1e3, "ms": 1.0, "us": 1e-3}
_NUMBERS = ("median", "p10", "p90")
_PROVENANCE = ("device", "driver", "cuda", "tensorrt", "torch", "trtkit", "commit", "date", "command", "run")
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]*")
# One mark for all that this process measures, and the processes that a benchmark starts for its parts (TRTKIT_RUN).
RUN = os.environ.get("TRTKIT_RUN") or f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"


@dataclass(frozen=True)
class Record:
    """One recorded number with its spread and its provenance. Reads like a `Measurement` and always says so."""

    key: str
    median: float
    p10: float
    p90: float
    count: int
    unit: str
    provenance: dict[str, Any] = field(repr=False)
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    median_ms = property(lambda self: self._in_ms(self.median))
    p10_ms = property(lambda self: self._in_ms(self.p10))
    p90_ms = property(lambda self: self._in_ms(self.p90))
    recalled = property(lambda self: True)
    device = property(lambda self: self.provenance["device"])

    def _in_ms(self, value: float) -> float:
        if self.unit not in _IN_MS:
            raise RecordError(f"Record {self.key!r} is in {self.unit!r}, which is no time: use .median, .p10, .p90.")
        return value * _IN_MS[self.unit]

    @property
    def source(self) -> str:
        """Where the number was measured, e.g. "recalled: NVIDIA H200, TensorRT-RTX 1.6.1.120, 2026-11-22"."""
        with_what = [self.provenance["device"], self.provenance["tensorrt"], self.provenance["date"].split()[0]]
        return "recalled: " + ", ".join(part for part in with_what if part)

    def __repr__(self) -> str:
        spread = f"p10 {self.p10:.4g}, p90 {self.p90:.4g}, {self.count} samples"
        return f"Record({self.key!r}: {self.median:.4g} {self.unit}, {spread}; {self.source})"

    def _repr_html_(self) -> str:
        value = f"<b>{self.median:.4g} {html.escape(self.unit)}</b> (p10 {self.p10:.4g}, p90 {self.p90:.4g})"
        return f"<div>{html.escape(self.key)}: {value} <em>[{html.escape(self.source)}]</em></div>"


class Records(dict[str, Record]):
    """The contenders of one record file by name, in the order they were measured."""

    def __init__(self, key: str, records: Mapping[str, Record]) -> None:
        super().__init__(records)
        self.key = key

    @property
    def source(self) -> str:
        return "; ".join(dict.fromkeys(record.source for record in self.values()))

    def speedup(self, ours: str, peer: str) -> float:
        """How many times faster `ours` is than `peer`. Raises RecordError when they were not measured in one run."""
        a, b = self._entry(ours), self._entry(peer)
        if a.provenance["run"] != b.provenance["run"]:
            raise RecordError(f"{self.key}: {ours!r} and {peer!r} come from different runs ({a.provenance['run']} and "
                              f"{b.provenance['run']}), so their ratio says nothing. Measure both in one run.")
        return b.median_ms / a.median_ms

    def _entry(self, name: str) -> Record:
        if name not in self:
            raise RecordError(f"Record {self.key!r} has no contender {name!r}; it has {', '.join(self)}.")
        return self[name]

    def _repr_html_(self) -> str:
        return "".join(record._repr_html_() for record in self.values())


def folder() -> Path:
    """Where records live: TRTKIT_RECORDS, or benchmarks/records of the checkout that trtkit is imported from.

    Raises RecordError when there is no such folder (trtkit installed without its checkout).
    """
    chosen = os.environ.get("TRTKIT_RECORDS")
    path = Path(chosen) if chosen else Path(trtkit.__file__).resolve().parents[1] / "benchmarks" / "records"
    if not path.is_dir():
        where = "TRTKIT_RECORDS points to" if chosen else "records are looked for in"
        raise RecordError(f"There is no folder of records: {where} {path}. Set TRTKIT_RECORDS to a folder that exists, "
                          "e.g. benchmarks/records of a checkout of trtkit.")
    return path


def keys() -> list[str]:
    """The names of all record files, sorted, without ".json"."""
    return sorted(path.stem for path in folder().glob("*.json"))


def save(
    key: str,
    measurement: Measurement,
    *,
    command: str,
    extra: Mapping[str, Any] | None = None,
    unit: str = "ms",
) -> Path:
    """Write a measurement as the contender named after the slash of `key`; the others in its file stay as they are.

    `command` is what somebody types to measure it again. `extra` holds what else is worth keeping (error, sizes),
    as JSON can say it. `unit` other than "ms" stores the numbers converted (us, s). The file appears whole.

    Raises:
        RecordError: the key is not of the form FILE/CONTENDER, the unit is none of ms, us and s, a number is not
            finite, or there is no folder.
    """
    name, contender = _split(key)
    if contender is None:
        raise RecordError(f"save({key!r}): a key to save under names a contender too, e.g. '{key}/trtkit'.")
    if unit not in _IN_MS:
        raise RecordError(f"save({key!r}): unit={unit!r} is none of {', '.join(_IN_MS)}.")
    scale = 1 / _IN_MS[unit]
    entry = {
        "median": _rounded(measurement.median_ms * scale),
        "p10": _rounded(measurement.p10_ms * scale),
        "p90": _rounded(measurement.p90_ms * scale),
        "count": measurement.count,
        "unit": unit,
        "extra": dict(extra or {}),
        "provenance": machine.provenance(command, measurement.device) | {"run": RUN},
    }
    path = folder() / f"{name}.json"
    contenders = _read(path)["contenders"] if path.exists() else {}
    contenders[contender] = entry
    _check_entry(entry, key, path)
    _write(path, contenders)
    return path


def remove(key: str) -> None:
    """Delete the contender that `key` names, and its file with the last one; nothing happens where it is not.

    For a contender that failed when it was measured again: what an older run found would stand beside newer numbers.

    Raises:
        RecordError: the key names no contender, the file is damaged, or there is no folder.
    """
    name, contender = _split(key)
    if contender is None:
        raise RecordError(f"remove({key!r}): a key to remove names a contender too, e.g. '{key}/trtkit'.")
    path = folder() / f"{name}.json"
    contenders = _read(path)["contenders"] if path.exists() else {}
    if contender not in contenders:
        return
    del contenders[contender]
    if contenders:
        _write(path, contenders)
    else:
        path.unlink()


def _write(path: Path, contenders: Mapping[str, Any]) -> None:
    document = {"schema": SCHEMA, "key": path.stem, "contenders": contenders}
    write_atomically(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def load(key: str) -> Any:
    """Read records: "FILE/CONTENDER" gives one `Record`, "FILE" all its contenders as `Records`.

    Raises:
        RecordError: no such file or contender (with the nearest names), or the file is damaged.
    """
    name, contender = _split(key)
    path = folder() / f"{name}.json"
    if not path.exists():
        near = difflib.get_close_matches(name, keys(), n=3, cutoff=0.4)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise RecordError(f"There is no record {name!r} in {path.parent}.{hint} "
                          "benchmarks/README.md says how to make one.")
    document = _read(path)
    entries = {}
    for other, entry in document["contenders"].items():
        _check_entry(entry, f"{name}/{other}", path)
        numbers = (entry["median"], entry["p10"], entry["p90"], entry["count"], entry["unit"])
        entries[other] = Record(f"{name}/{other}", *numbers, entry["provenance"], entry.get("extra", {}))
    records = Records(name, entries)
    return records if contender is None else records._entry(contender)


def measure_or_recall(
    key: str, fn: Callable[[], Any] | None = None, needs: str | Callable[[], bool] = "gpu"
) -> Measurement | Record | Records | Any:
    """Run `fn` where this machine has what it takes; anywhere else return the record, labelled as recalled.

    `fn()` returns what it measured (a `Measurement`, or a dict of them for a key without a contender). `needs` is
    "gpu", "tensorrt-gpu" (a TensorRT and PyCUDA as well), "cpu", or a function that says whether `fn` can run here.

    Raises RecordError when it can be neither measured nor recalled; what `fn` raises goes through.
    """
    able = machine.can_run(needs) if isinstance(needs, str) else bool(needs())
    return fn() if fn is not None and able else load(key)


def _split(key: str) -> tuple[str, str | None]:
    name, slash, contender = key.partition("/")
    if not _KEY.fullmatch(name) or (slash and not _KEY.fullmatch(contender)):
        raise RecordError(f"{key!r} is no record key. A key is FILE or FILE/CONTENDER in lower-case letters, digits, "
                          "'.', '_' and '-', e.g. 'resnet50-fp16-b1/trtkit'.")
    return name, contender if slash else None


def _rounded(value: float) -> float:
    """Six significant digits: no clock gives more, and files stay readable."""
    return float(f"{value:.6g}")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RecordError(f"{path} cannot be read as JSON: {error}. {_WAY_OUT}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise RecordError(f"{path} is not a record of schema {SCHEMA} (found {found!r}). {_WAY_OUT}")
    if not isinstance(document.get("contenders"), dict) or not document["contenders"]:
        raise RecordError(f"{path} has no contenders. {_WAY_OUT}")
    return document


_WAY_OUT = "Restore it (git checkout -- FILE) or measure it again as benchmarks/README.md says."


def _check_entry(entry: Any, key: str, path: Path) -> None:
    def refuse(what: str) -> RecordError:
        return RecordError(f"Record {key!r} in {path}: {what}. {_WAY_OUT}")

    if not isinstance(entry, dict):
        raise refuse("the entry is not an object")
    for name in _NUMBERS:
        value = entry.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise refuse(f"{name!r} should be a finite number and is {value!r}")
    if not entry["p10"] <= entry["median"] <= entry["p90"]:
        raise refuse(f"p10 {entry['p10']}, median {entry['median']} and p90 {entry['p90']} are not in order")
    if not isinstance(entry.get("count"), int) or entry["count"] < 1:
        raise refuse(f"'count' should be a positive integer and is {entry.get('count')!r}")
    if not isinstance(entry.get("unit"), str):
        raise refuse("'unit' is missing")
    provenance = entry.get("provenance")
    missing = [name for name in _PROVENANCE if not isinstance(provenance, dict) or name not in provenance]
    if missing:
        raise refuse(f"its provenance lacks {', '.join(missing)}")
