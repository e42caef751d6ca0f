"""Shared by all tests: the folder of the repository, and few threads so that tests do not fight for the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch and ONNX Runtime are imported
os.environ.setdefault("MPLBACKEND", "Agg")  # no test opens a window


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's folder."""
    return Path(__file__).resolve().parent.parent
