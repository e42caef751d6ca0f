"""Shared by all tests: the folder of the repository, and few threads so that tests do not fight for the machine."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from trtkit.importers import kept_exports

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch and ONNX Runtime are imported
os.environ.setdefault("MPLBACKEND", "Agg")  # no test opens a window
if kept_exports.SETTING not in os.environ:  # here and not in a fixture, so that the workers that are started share it
    os.environ[kept_exports.SETTING] = tempfile.mkdtemp(prefix="trtkit-exports-")
    atexit.register(shutil.rmtree, os.environ[kept_exports.SETTING], ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's folder."""
    return Path(__file__).resolve().parent.parent
