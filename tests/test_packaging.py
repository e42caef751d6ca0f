"""pip's and conda's lists agree, the pinned versions fit them, and `import trtkit` stays quick and light."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# what conda-forge calls by another name than PyPI
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
# what the course and a GPU need; benchmarks' peers, class tools and tests are not part of a course environment
COURSE_EXTRAS = ("torch", "course", "gpu", "tensorrt")
IMPORT_LIMIT_S = 0.3
HEAVY = ("torch", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "onnxruntime", "matplotlib", "onnx", "pycuda")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def from_pyproject(extras: tuple[str, ...]) -> dict[str, SpecifierSet]:
    """Package name -> bounds, of the plain install and these extras; the project's own extras are written out."""
    found: dict[str, SpecifierSet] = {}
    lines = [*PROJECT["dependencies"], *(line for e in extras for line in PROJECT["optional-dependencies"][e])]
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            found |= from_pyproject(tuple(requirement.extras))
        else:
            found[canonical(requirement.name)] = requirement.specifier
    return found


def from_conda() -> dict[str, SpecifierSet]:
    """Package name (as on PyPI) -> bounds, of environment.yml with its pip section."""
    yaml = pytest.importorskip("yaml")
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    assert "-e ." in pip
    lines = [entry for entry in listed if isinstance(entry, str)] + [line for line in pip if line != "-e ."]
    back = {conda: pypi for pypi, conda in CONDA_NAMES.items()}
    found = {}
    for line in lines:
        name, bounds = re.fullmatch(r"([\w-]+)(.*)", line).groups()  # type: ignore[union-attr]
        bounds = re.sub(r"^=(?=\d)", "==", bounds)  # conda's python=3.12 is any 3.12
        found[back.get(name, canonical(name))] = SpecifierSet(bounds + ".*" if bounds.startswith("==") else bounds)
    return found


def pinned() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def test_conda_and_pip_have_the_same_packages_and_bounds() -> None:
    conda, pip = from_conda(), from_pyproject(COURSE_EXTRAS)
    assert conda.pop("pip") == SpecifierSet()
    assert set(conda) - {"python"} == set(pip)
    for name, bounds in pip.items():
        assert conda[name] == bounds, name


def test_the_issue_s_packages_are_in_the_conda_environment() -> None:
    named = {"jupyterlab", "tensorrt", "onnx", "torch", "torchvision", "pycuda", "matplotlib", "nbval"}
    assert named <= set(from_conda())


def test_conda_s_python_is_one_of_ours() -> None:
    ours = SpecifierSet(PROJECT["requires-python"])
    (version,) = re.findall(r"==(\d+\.\d+)\.\*", str(from_conda()["python"]))
    assert version in ours
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_pinned_versions_fit_the_bounds() -> None:
    versions = pinned()
    every = from_pyproject(("torch", "course", "test"))
    for name, bounds in every.items():
        assert name in versions, f"{name} is not in constraints.txt"
        assert versions[name] in bounds, f"{name}=={versions[name]} is not {bounds}"


def test_the_default_installation_brings_tensorrt_rtx_and_not_torch() -> None:
    names = from_pyproject(())
    assert "tensorrt-rtx-cu13" in names
    assert not {"torch", "tensorrt", "pycuda", "jupyterlab"} & set(names)


def test_licence_is_apache() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()


def test_import_is_quick_and_light(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys, time; began = time.perf_counter(); import trtkit; took = time.perf_counter() - began\n"
        f"print(took, *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    seconds = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        took, *loaded = done.stdout.split()
        assert loaded == []
        seconds.append(float(took))
    with capsys.disabled():
        print(f"\nimport trtkit: {min(seconds) * 1000:.1f} ms (best of {len(seconds)})")
    assert min(seconds) < IMPORT_LIMIT_S
