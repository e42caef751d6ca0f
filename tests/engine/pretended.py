"""Opens sessions on the pretended GPU of `device`: the modules that need a GPU are imported anew, with its parts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import trtkit.engine.child  # now: its logger is one of the real TensorRT
from tests.engine import device
from trtkit.engine import cache
from trtkit.engine import trt as which
from trtkit.engine.trt import Library

MODULE = "trtkit.engine.gpu"
# what imports PyCUDA or TensorRT
ON_GPU = ("cuda", "allocator", "loaded", "bound", "tensors", "overlap", "gpu", "kernel_gpu")


def batch(size: int, value: float = 1.0) -> np.ndarray:
    return np.full((size, 4), value, np.float32)


def forgotten() -> Iterator[None]:
    """Import the modules anew, and let nobody else find these copies."""
    names = [f"{trtkit.engine.__name__}.{name}" for name in ON_GPU]
    before = {name: sys.modules.pop(name, None) for name in names}
    yield
    for name, module in before.items():
        sys.modules.pop(name, None)
        vars(trtkit.engine).pop(name.rpartition(".")[2], None)
        if module is not None:
            sys.modules[name] = module
            setattr(trtkit.engine, name.rpartition(".")[2], module)


def install(gpu: device.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the pretended packages where the modules look for theirs."""
    packages = {"pycuda": ModuleType("pycuda"), "cuda": ModuleType("cuda"), "cuda.bindings": ModuleType("bindings")}
    primary = SimpleNamespace(context=device.PrimaryContext(gpu))
    parts = {"pycuda.autoprimaryctx": primary, "pycuda.driver": device.pycuda(gpu)}
    for name, module in {**packages, **parts, "cuda.bindings.driver": device.driver(gpu)}.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            monkeypatch.setattr(packages[parent], child, module, raising=False)
    library = Library(np, "TensorRT-RTX", "9.9")
    monkeypatch.setattr(which, "trt", device.tensorrt(gpu), raising=False)
    monkeypatch.setattr(cache, "require", lambda: library)
    monkeypatch.setattr(importlib.import_module(MODULE), "gpu", lambda: SimpleNamespace(name="NVIDIA Pretence"))
