"""Which TensorRT: the one place that imports it.

Three packages offer the same Python API: `tensorrt` (the full library, 10.x and 11.x), `tensorrt_rtx` (TensorRT-RTX, on
PyPI, whose builder needs no GPU) and `tensorrt_rtx_bindings` (the same without its thin wrapper). Modules that call the
API write `from trtkit.engine.trt import trt` and are themselves imported only when an engine is built or run.
"""

from __future__ import annotations

import os
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from trtkit.engine.device import gpu
from trtkit.errors import MissingError, extra

if TYPE_CHECKING:
    import tensorrt as trt  # noqa: F401  (mypy holds every call against the full library's stubs)

SETTING = "TRTKIT_TENSORRT"
_FULL = ("tensorrt",)
_RTX = ("tensorrt_rtx", "tensorrt_rtx_bindings")
_HELP = f"Install one: pip install tensorrt-rtx-cu13 (builds without a GPU), or {extra('tensorrt')}."


class Library(NamedTuple):
    """A TensorRT that can be imported here."""

    module: ModuleType
    name: str  # "TensorRT" or "TensorRT-RTX"
    version: str

    @property
    def is_rtx(self) -> bool:
        return self.name == "TensorRT-RTX"

    @property
    def release(self) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", self.version))

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def runs_on(self, compute_capability: tuple[int, int]) -> bool:
        """Whether engines of this library run on such a GPU. RTX serves 7.5, 8.x and 12.x.

        Up to 1.6 it opens engines on Hopper (9.0) as well, unsupported: some come out wrong (benchmarks/README.md).
        """
        if not self.is_rtx:
            return compute_capability >= (7, 5)
        return (
            compute_capability[0] in (8, 12)
            or compute_capability == (7, 5)
            or (compute_capability == (9, 0) and self.release < (1, 7))
        )


def has_runtime_packages() -> bool:
    """Whether PyCUDA and cuda-bindings, with which `trtkit.engine.gpu` runs engines, are installed."""
    return bool(find_spec("pycuda") and find_spec("cuda"))


def find() -> Library | None:
    """The TensorRT to use: what TRTKIT_TENSORRT names, else the full library where a GPU is, else TensorRT-RTX."""
    return _find(os.environ.get(SETTING, ""))


def require() -> Library:
    """Like `find`, but raises MissingError where there is none."""
    library = find()
    if library is None:
        wanted = os.environ.get(SETTING)
        cause = (
            f"{SETTING}={wanted!r} names a package that cannot be imported" if wanted else "No TensorRT is installed"
        )
        raise MissingError(f"{cause}. {_HELP}")
    return library


@cache
def _find(wanted: str) -> Library | None:
    names = (wanted,) if wanted else (*_FULL, *_RTX) if gpu() else (*_RTX, *_FULL)
    for name in names:
        try:
            if not find_spec(name):
                continue
            module = import_module(name)
        except (ImportError, OSError, RuntimeError, ValueError):  # bindings without their libraries; no such parent
            continue
        if hasattr(module, "Builder"):  # type stubs alone make an empty package of that name
            kind = "TensorRT-RTX" if "rtx" in name else "TensorRT"
            return Library(module, kind, module.__version__)
    return None


def __getattr__(name: str) -> ModuleType:
    if name == "trt":
        return require().module
    raise AttributeError(name)
