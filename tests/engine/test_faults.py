"""What goes wrong on purpose, as far as it needs no GPU: said clearly, nothing lost, nothing half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_faults


@pytest.mark.parametrize("fault", ["damaged-files", "killed-while-saving", "killed-while-caching", "disk-full", "nan"])
def test_every_try_is_handled(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_faults, "FLIPS", 12)
    monkeypatch.setattr(gpu_faults, "KILLS", 3)
    engines = {}
    build = gpu_faults.engine_of
    monkeypatch.setattr(
        gpu_faults, "engine_of", lambda seed=0: engines.setdefault(seed, engines.get(seed) or build(seed))
    )
    outcomes = list(gpu_faults.FILES[fault](tmp_path))
    assert outcomes and [one for one in outcomes if one[0] != gpu_faults.HANDLED] == []


def test_a_fault_that_is_not_handled_is_seen() -> None:
    assert gpu_faults.refused(lambda: None) == (gpu_faults.WRONG, "no error")
    assert gpu_faults.refused(lambda: 1 / 0)[0] == gpu_faults.WRONG  # an error, but none that says what to do
    x = gpu_faults.sample()
    right = gpu_faults.network().run(x)["y"]
    assert gpu_faults.is_right(right, x) and not gpu_faults.is_right(right * 1.1, x)
