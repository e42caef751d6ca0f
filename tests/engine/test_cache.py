"""Caches on disk: kept, shared between processes, and never trusted when they are damaged, stale or half written."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trtkit.engine import cache
from trtkit.engine.cache import CacheFile, RuntimeCache, TimingCache
from trtkit.engine.device import Gpu
from trtkit.engine.trt import Library

KEY = {"library": "TensorRT-RTX 9.9", "gpu": "NVIDIA Pretence, 9.0", "driver": "580.1, CUDA 13.0"}
PRETENCE = Gpu("NVIDIA Pretence", (9, 0), 2**30, "580.1", "13.0")


@pytest.fixture
def file(tmp_path: Path) -> CacheFile:
    return CacheFile(tmp_path / "trtkit" / "a.runtime-cache", KEY)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "gpu", lambda: PRETENCE)
    monkeypatch.setattr(cache, "require", lambda: Library(np, "TensorRT-RTX", "9.9"))


# One file


def test_what_was_written_is_read(file: CacheFile) -> None:
    assert file.read() is None
    for data in (b"kernels", b"", b"\n\n\0", bytes(range(256)) * 1000):
        assert file.write(data) and file.read() == data
    assert not file.write(data)  # it is there already
    assert [entry.path for entry in cache.entries(file.path.parent.parent)] == [file.path]
    assert [path.name for path in file.path.parent.iterdir()] == ["a.runtime-cache"]


def test_every_damaged_byte_is_noticed(file: CacheFile, caplog: pytest.LogCaptureFixture) -> None:
    file.write(b"kernels")
    whole = file.path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.path.write_bytes(changed)
        assert file.read() is None and not file.path.exists(), place
    for length in range(len(whole)):
        file.path.write_bytes(whole[:length])
        assert file.read() is None and not file.path.exists(), length
    assert "thrown away and made anew" in caplog.text
    file.write(b"new kernels")
    assert file.read() == b"new kernels"


@pytest.mark.parametrize("part", KEY)
def test_a_stale_file_is_noticed(file: CacheFile, part: str, caplog: pytest.LogCaptureFixture) -> None:
    CacheFile(file.path, {**KEY, part: "older"}).write(b"stale")
    assert file.read() is None and not file.path.exists()
    assert f"is stale: {part} was 'older', is {KEY[part]!r}" in caplog.text


def test_a_folder_that_cannot_be_used_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "trtkit").write_text("a file where the folder should be")
    file = CacheFile(tmp_path / "trtkit" / "a.runtime-cache", KEY)
    assert file.read() is None and not file.write(b"kernels")
    assert caplog.text.count("It is done without") == 2


def test_a_full_disk_leaves_the_old_file(file: CacheFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(b"old")

    def full(path: Path, data: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_atomically", full)
    assert not file.write(b"new") and file.read() == b"old"


# The folder


def test_what_was_used_least_recently_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files = [CacheFile(tmp_path / "trtkit" / f"{name}.timing-cache", KEY) for name in "abcd"]
    for age, file in zip((40, 30, 20), files, strict=False):
        file.write(bytes(1000))
        os.utime(file.path, (time.time() - age,) * 2)
    assert files[0].read()  # a is used: now b is the oldest
    (tmp_path / "trtkit" / "notes.txt").write_text("not ours")
    monkeypatch.setenv(cache.LIMIT, str(3 * files[0].path.stat().st_size))
    files[3].write(bytes(1000))
    assert [file.path.exists() for file in files] == [True, False, True, True]
    assert "b.timing-cache goes" in caplog.text
    assert {entry.kind for entry in cache.entries(tmp_path)} == {"timing"}
    size = sum(entry.size_bytes for entry in cache.entries(tmp_path))
    assert cache.clear(tmp_path) == size and cache.entries(tmp_path) == []
    assert (tmp_path / "trtkit" / "notes.txt").exists()


def test_what_a_killed_writer_left_goes_after_a_while(file: CacheFile) -> None:
    file.write(b"kernels")
    young, old = (file.path.with_name(f"a.runtime-cache{name}.part") for name in ("young", "old"))
    for part in (young, old):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * cache._ABANDONED_S,) * 2)
    file.write(b"more kernels")
    assert young.exists() and not old.exists()
    assert [entry.path for entry in cache.entries(file.path.parent.parent)] == [file.path]


# Processes

WRITER = """
import sys
from pathlib import Path
from trtkit.engine.cache import CacheFile
file = CacheFile(Path(sys.argv[1]), {"gpu": "one"})
for number in range(int(sys.argv[3])):
    mine = f"{sys.argv[2]}{number},"
    file.write(mine.encode() * 5000, lambda theirs: theirs + mine.encode() * 5000)
print("done")
"""


def writer(path: Path, name: str, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_lose_nothing_of_each_other_s(tmp_path: Path) -> None:
    path = tmp_path / "trtkit" / "shared.timing-cache"
    writers = [writer(path, name, 10) for name in "ab"]
    file, seen = CacheFile(path, {"gpu": "one"}), 0
    while any(process.poll() is None for process in writers):
        raw = path.read_bytes() if path.exists() else b""
        assert not raw or file._unpack(raw)[1] == ""  # a reader never sees half a file
        seen += bool(raw)
    assert [process.communicate()[0] for process in writers] == ["done\n"] * 2
    kept = Counter((file.read() or b"").decode().rstrip(",").split(","))
    assert kept == {f"{name}{number}": 5000 for name in "ab" for number in range(10)}
    assert seen and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_writer_that_is_killed_leaves_a_whole_file_and_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "trtkit" / "shared.timing-cache"
    process = writer(path, "a", 10_000)
    while not path.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    file = CacheFile(path, {"gpu": "one"})
    assert file._unpack(path.read_bytes())[1] == ""
    assert file.write(b"alive") and file.read() == b"alive"


# TensorRT's two kinds


class Kernels:
    """A runtime cache that takes only what it wrote itself."""

    def __init__(self) -> None:
        self.data = b""

    def deserialize(self, data: bytes) -> bool:
        if data.startswith(b"compiled"):
            self.data = data
        return bool(self.data)

    def serialize(self) -> bytes:
        return self.data or b"compiled"


def engine() -> SimpleNamespace:
    config = SimpleNamespace(create_runtime_cache=Kernels)
    config.set_runtime_cache = lambda kept: setattr(config, "kept", kept)
    return SimpleNamespace(create_runtime_config=lambda: config)


def test_a_runtime_cache_that_tensorrt_refuses(library: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = RuntimeCache.open(engine(), b"plan", tmp_path)
    assert first is not None
    first.file.write(b"of another kind")
    opened = RuntimeCache.open(engine(), b"plan", tmp_path)
    assert opened is not None and "is refused by TensorRT" in caplog.text and cache.entries(tmp_path) == []
    assert opened.config.kept is opened.cache and opened.cache.data == b""
    opened.save()
    assert opened.file.read() == b"compiled"
    again = RuntimeCache.open(engine(), b"plan", tmp_path)
    assert again is not None and again.cache.data == b"compiled"


def test_the_runtime_cache_with_more_in_it_stays(library: None, tmp_path: Path) -> None:
    one, other = (RuntimeCache.open(engine(), b"plan", tmp_path) for _ in range(2))
    assert one is not None and other is not None
    one.cache.data, other.cache.data = b"compiled a, b and c", b"compiled d"
    one.save()
    other.save()
    assert one.file.read() == b"compiled a, b and c"


def test_another_driver_and_another_gpu(
    library: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def keep() -> CacheFile:
        opened = RuntimeCache.open(engine(), b"plan", tmp_path)
        assert opened is not None
        opened.save()
        return opened.file

    keep()
    monkeypatch.setattr(cache, "gpu", lambda: PRETENCE._replace(driver="590.2"))
    keep()
    assert "driver was '580.1, CUDA 13.0', is '590.2, CUDA 13.0'" in caplog.text and len(cache.entries(tmp_path)) == 1
    monkeypatch.setattr(cache, "gpu", lambda: PRETENCE._replace(name="NVIDIA Another"))
    keep()
    assert len(cache.entries(tmp_path)) == 2  # one home, two machines: each has its own


class Timings:
    def __init__(self, data: bytes) -> None:
        self.known = set(data.split())

    def combine(self, other: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.known |= other.known
        return True

    def serialize(self) -> bytes:
        return b" ".join(sorted(self.known))


class Config:
    """A builder's configuration, as far as timing caches go."""

    create_timing_cache = staticmethod(Timings)

    def set_timing_cache(self, timings: Timings, ignore_mismatch: bool) -> bool:
        return b"alien" not in timings.known


def test_timings_are_joined(library: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TimingCache.open(Config(), tmp_path) is None  # TensorRT-RTX times nothing
    monkeypatch.setattr(cache, "require", lambda: Library(np, "TensorRT", "10.9"))
    one, other = (TimingCache.open(Config(), tmp_path) for _ in range(2))
    assert one is not None and other is not None
    one.cache.known.add(b"conv")
    other.cache.known.add(b"gemm")
    one.save()
    other.save()
    third = TimingCache.open(Config(), tmp_path)
    assert third is not None and third.cache.known == {b"conv", b"gemm"}
    third.file.write(b"alien")
    fourth = TimingCache.open(Config(), tmp_path)
    assert fourth is not None and fourth.cache.known == set() and cache.entries(tmp_path) == []
