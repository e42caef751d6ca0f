"""Which TensorRT: how it is chosen, and what is said when there is none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trtkit.engine import trt as which
from trtkit.engine.build import build
from trtkit.engine.device import Gpu
from trtkit.errors import MissingError
from trtkit.model import Model

H200 = Gpu("NVIDIA H200", (9, 0), 150 * 2**30, "580.65.06", "13.0")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing chosen before, and nothing left chosen after."""
    monkeypatch.delenv(which.SETTING, raising=False)
    which._find.cache_clear()
    yield
    which._find.cache_clear()


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    """A package of that name, found before any other."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)


WHOLE = "__version__ = '10.13.0.35'\nclass Builder: pass\n"


def test_here_is_one() -> None:
    library = which.require()
    assert which.find() is library
    assert hasattr(library.module, "Builder")
    assert str(library) == f"{library.name} {library.version}"
    assert which.trt is library.module


@pytest.mark.parametrize("name", ["nonsense", "no.such.package", "json"])
def test_a_setting_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch, relu: Model, name: str) -> None:
    monkeypatch.setenv(which.SETTING, name)
    assert which.find() is None
    for needs_it in (which.require, lambda: which.trt, lambda: build(relu)):
        with pytest.raises(MissingError, match=f"TRTKIT_TENSORRT='{name}'.*pip install tensorrt-rtx-cu13"):
            needs_it()


def test_none_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(which, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"No TensorRT is installed\. Install one: pip install"):
        which.require()


def test_the_setting_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, "tensorrt", WHOLE)
    monkeypatch.setenv(which.SETTING, "tensorrt")
    library = which.require()
    assert (library.name, library.version, library.release) == ("TensorRT", "10.13.0.35", (10, 13, 0, 35))
    assert not library.is_rtx


def test_the_full_library_is_taken_where_a_gpu_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, "tensorrt", WHOLE)
    package(tmp_path, monkeypatch, "tensorrt_rtx", WHOLE.replace("10.13", "1.7"))
    for device, name in ((H200, "TensorRT"), (None, "TensorRT-RTX")):
        monkeypatch.setattr(which, "gpu", lambda device=device: device)
        which._find.cache_clear()
        assert which.require().name == name


@pytest.mark.parametrize("code", ["", "raise OSError('libnvinfer.so.11: cannot open')", "import no_such_module"])
def test_stubs_and_bindings_without_libraries_are_not_tensorrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    package(tmp_path, monkeypatch, "tensorrt", code)
    package(tmp_path, monkeypatch, "tensorrt_rtx", WHOLE.replace("10.13", "1.7"))
    monkeypatch.setattr(which, "gpu", lambda: H200)
    assert which.require().name == "TensorRT-RTX"
    monkeypatch.setenv(which.SETTING, "tensorrt")
    with pytest.raises(MissingError, match="TRTKIT_TENSORRT='tensorrt'"):
        which.require()


def test_the_bindings_alone_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, "tensorrt_rtx", "raise ImportError")
    package(tmp_path, monkeypatch, "tensorrt_rtx_bindings", WHOLE.replace("10.13", "1.7"))
    monkeypatch.setattr(which, "gpu", lambda: None)
    assert which.require().module.__name__ == "tensorrt_rtx_bindings"
    assert which.require().is_rtx


@pytest.mark.parametrize(
    ("name", "version", "served"),
    [
        ("TensorRT-RTX", "1.7.1.116", {(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)}),
        ("TensorRT-RTX", "1.6.1.120", {(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1)}),
        ("TensorRT", "11.4.0", {(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)}),
    ],
)
def test_which_gpus_a_library_serves(name: str, version: str, served: set[tuple[int, int]]) -> None:
    library = which.Library(which, name, version)
    known = [(6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)]
    assert {capability for capability in known if library.runs_on(capability)} == served


def test_importing_the_module_imports_no_tensorrt() -> None:
    code = "import sys, trtkit.engine.trt; print([m for m in sys.modules if 'tensorrt' in m or m == 'torch'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    with pytest.raises(AttributeError):
        _ = which.nonsense
