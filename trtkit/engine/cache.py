"""What TensorRT compiled or measured for this GPU, kept on disk for the next time."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

from trtkit.engine.device import gpu
from trtkit.engine.trt import require, trt
from trtkit.model import write_atomically


class RuntimeCache:
    """TensorRT-RTX compiles its kernels when a context is made; this keeps them in a file for the next time."""

    def __init__(self, cache: Any, config: Any, file: Path) -> None:
        self.cache, self.config, self.file = cache, config, file

    @classmethod
    def open(cls, engine: Any, plan: bytes, folder: str | Path | None) -> RuntimeCache | None:
        """The cache of this plan, GPU and version, set in `config`; None for a TensorRT without runtime caches."""
        if not hasattr(engine, "create_runtime_config"):
            return None
        config = engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return None
        library, device = require(), gpu()
        identity = f"{library}|{device}|".encode() + hashlib.sha256(plan).digest()
        folder = Path(folder or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtkit"
        file = folder / f"{hashlib.sha256(identity).hexdigest()[:24]}.runtime-cache"
        cache = config.create_runtime_cache()
        if file.is_file():
            cache.deserialize(file.read_bytes())  # False for a stale one, which is then filled anew
        config.set_runtime_cache(cache)
        eager = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if (
            eager is not None
        ):  # compile for the shape before its first run, so that a captured graph holds the fast kernels
            config.dynamic_shapes_kernel_specialization_strategy = eager.EAGER
        return cls(cache, config, file)

    def save(self) -> None:
        data = bytes(self.cache.serialize())
        if data and (not self.file.is_file() or self.file.stat().st_size != len(data)):
            with contextlib.suppress(OSError):  # a folder that cannot be written costs a second next time, no more
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.file, data)
