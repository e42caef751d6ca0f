"""What TensorRT compiled or measured for this GPU, kept on disk for the next time, and trusted only when it fits.

TensorRT-RTX compiles kernels when an engine is opened (runtime cache, one file for each plan); the full TensorRT times
tactics while it builds (timing cache, one file for each GPU). A file begins with a line of JSON: what it was made by
and for, and the checksum of the bytes after it. A file that is damaged or stale is logged, thrown away and made anew.
Processes share the folder: files are replaced whole, by one writer at a time, who first takes in what others wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trtkit.engine.device import gpu
from trtkit.engine.trt import require
from trtkit.model import write_atomically

log = logging.getLogger(__name__)

LIMIT = "TRTKIT_CACHE_BYTES"  # the setting: how large the folder may grow, what was used least recently goes first
_LIMIT_BYTES = 4 << 30
_MAGIC = b"trtkit cache 1 "  # the number of this format
_KINDS = {".runtime-cache": "runtime", ".timing-cache": "timing"}
_ABANDONED_S = 3600  # a temporary file that is older belongs to a process that was killed while it wrote


class Entry(NamedTuple):
    """One file of the folder. `kind` is "runtime" or "timing", `used` the time of the last use, seconds since 1970."""

    path: Path
    kind: str
    size_bytes: int
    used: float


def folder(chosen: str | Path | None = None) -> Path:
    """Where the caches lie: "trtkit" in the folder given, else in XDG_CACHE_HOME, else in ~/.cache.

    >>> folder("/tmp").as_posix()
    '/tmp/trtkit'
    """
    return Path(chosen or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtkit"


def entries(chosen: str | Path | None = None) -> list[Entry]:
    """The cache files, the one used last first; an empty list where there is no folder yet.

    >>> entries("/no/such/folder")
    []
    """
    return _files(folder(chosen))


def clear(chosen: str | Path | None = None) -> int:
    """Remove all cache files; returns how many bytes that freed. Sessions that are open are not disturbed.

    >>> clear("/no/such/folder")
    0
    """
    freed = 0
    for entry in entries(chosen):
        with contextlib.suppress(OSError):
            entry.path.unlink()
            freed += entry.size_bytes
    return freed


def _files(place: Path) -> list[Entry]:
    found = []
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            with contextlib.suppress(OSError):  # another process just removed it
                if path.suffix in _KINDS:
                    stat = path.stat()
                    found.append(Entry(path, _KINDS[path.suffix], stat.st_size, stat.st_mtime))
    return sorted(found, key=lambda entry: -entry.used)


class CacheFile:
    """One file of bytes with what they are for.

    Args:
        path: where it lies.
        key: what the bytes depend on; they are handed out only when all of it is as it was.
    """

    def __init__(self, path: Path, key: dict[str, str]) -> None:
        self.path, self.key = path, key

    def read(self) -> bytes | None:
        """The bytes, or None where there are none to trust; a damaged or stale file is logged and removed."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("Cannot read the cache %s: %s. It is done without.", self.path, error)
            return None
        data, fault = self._unpack(raw)
        if fault:
            self.discard(fault)
            return None
        with contextlib.suppress(OSError):
            os.utime(self.path)  # used just now
        return data

    def _unpack(self, raw: bytes) -> tuple[bytes | None, str]:
        """The bytes, or None and what is wrong with the file."""
        head, _, data = raw.partition(b"\n")
        if not head.startswith(_MAGIC):
            return None, "is no cache of this format"
        try:
            told = json.loads(head[len(_MAGIC) :])
            kept, digest = dict(told["key"]), told["sha256"]
        except (ValueError, KeyError, TypeError):
            return None, "has a damaged first line"
        if hashlib.sha256(data).hexdigest() != digest:
            return None, "is damaged: its checksum does not match"
        changed = [name for name in self.key if kept.get(name) != self.key[name]]
        if changed:
            return None, "is stale: " + ", ".join(f"{n} was {kept.get(n)!r}, is {self.key[n]!r}" for n in changed)
        return data, ""

    def discard(self, why: str) -> None:
        """Remove the file and log the reason."""
        log.warning("The cache %s %s. It is thrown away and made anew.", self.path, why)
        with contextlib.suppress(OSError):
            self.path.unlink()

    def write(self, data: bytes, merge: Callable[[bytes], bytes] = lambda theirs: b"") -> bool:
        """Replace the file, unless it would stay the same; says whether it was written.

        A folder that cannot be written is logged and costs some seconds next time, no more.

        Args:
            merge: given what the file holds by now, written by another process perhaps, returns what to write instead
            of `data`; empty bytes for `data` itself.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.parent):
                theirs = self.read()
                if theirs is not None:
                    data = merge(theirs) or data
                    if data == theirs:
                        return False
                head = json.dumps({"key": self.key, "sha256": hashlib.sha256(data).hexdigest()}).encode()
                write_atomically(self.path, (_MAGIC, head, b"\n", data))
                _shrink(self.path.parent)
        except OSError as error:
            log.warning("Cannot write the cache %s: %s. It is done without.", self.path, error)
            return False
        return True


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock when its holder dies."""
    handle = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _shrink(place: Path) -> None:
    """Remove what was used least recently until the folder is small enough, and what killed writers left."""
    room = int(os.environ.get(LIMIT, _LIMIT_BYTES))
    for entry in _files(place):
        room -= entry.size_bytes
        if room < 0:
            log.info("The cache %s goes: the folder is over its limit (%s).", entry.path, LIMIT)
            entry.path.unlink(missing_ok=True)
    for left in place.glob("*-cache*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                left.unlink()


def _key() -> dict[str, str]:
    """What every cache depends on: the library and the GPU with its driver."""
    card = gpu()
    capability = ".".join(map(str, card.compute_capability)) if card else ""
    return {
        "library": str(require()),
        "gpu": f"{card.name}, {capability}" if card else "none",
        "driver": f"{card.driver}, CUDA {card.cuda}" if card else "none",
    }


def _file(chosen: str | Path | None, suffix: str, key: dict[str, str], *identity: str) -> CacheFile:
    """The file whose name says `identity`, parts of the key; a change of the others is noticed when it is read."""
    name = hashlib.sha256("|".join(key[part] for part in identity).encode()).hexdigest()[:24]
    return CacheFile(folder(chosen) / (name + suffix), key)


class RuntimeCache:
    """TensorRT-RTX compiles its kernels when a context is made; this keeps them in a file for the next time."""

    def __init__(self, cache: Any, config: Any, file: CacheFile) -> None:
        self.cache, self.config, self.file = cache, config, file

    @classmethod
    def open(cls, engine: Any, plan: bytes, chosen: str | Path | None) -> RuntimeCache | None:
        """The cache of this plan, GPU and version, set in `config`; None for a TensorRT without runtime caches."""
        if not hasattr(engine, "create_runtime_config"):
            return None
        config = engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return None
        key = {**_key(), "plan": hashlib.sha256(plan).hexdigest()}
        file = _file(chosen, ".runtime-cache", key, "gpu", "plan")
        cache = config.create_runtime_cache()
        data = file.read()
        if data and not cache.deserialize(data):
            file.discard("is refused by TensorRT")
            cache = config.create_runtime_cache()
        config.set_runtime_cache(cache)
        eager = getattr(require().module, "DynamicShapesKernelSpecializationStrategy", None)
        if eager is not None:
            # compile for the shape before its first run, so that a captured graph holds the fast kernels
            config.dynamic_shapes_kernel_specialization_strategy = eager.EAGER
        return cls(cache, config, file)

    def save(self) -> None:
        """Write what was compiled; of two processes' files the one with more in it stays, as they cannot be joined."""
        if data := bytes(self.cache.serialize()):
            self.file.write(data, lambda theirs: theirs if len(theirs) >= len(data) else data)


class TimingCache:
    """The full TensorRT times tactics while it builds; with this a later build of similar layers need not."""

    def __init__(self, config: Any, cache: Any, file: CacheFile) -> None:
        self.config, self.cache, self.file = config, cache, file

    @classmethod
    def open(cls, config: Any, chosen: str | Path | None = None) -> TimingCache | None:
        """The cache of this GPU and version, set in the builder's `config`; None for TensorRT-RTX, which times none."""
        library = require()
        if library.is_rtx or not hasattr(config, "create_timing_cache"):
            return None
        file = _file(chosen, ".timing-cache", _key(), "gpu")
        data = file.read()
        cache = config.create_timing_cache(data or b"")
        if not config.set_timing_cache(cache, False):  # False: timings of another GPU are refused
            file.discard("is refused by TensorRT")
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        return cls(config, cache, file)

    def save(self) -> None:
        """Write what was timed, joined with what other builds have written since."""

        def join(theirs: bytes) -> bytes:
            self.cache.combine(self.config.create_timing_cache(theirs), False)
            return bytes(self.cache.serialize())

        if data := bytes(self.cache.serialize()):
            self.file.write(data, join)
