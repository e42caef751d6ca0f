"""TensorRTs that misbehave: the real library with a part replaced, for the child process and for this one to find."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trtkit.engine import trt
from trtkit.engine.trt import require

# Each replaces `Builder` in a copy of the real library's names.
ABORTS = """
class Builder:
    def __init__(self, log):
        print("terminate called after throwing an instance of 'nvinfer1'", file=sys.stderr, flush=True)
        os.abort()
"""
EXITS = """
class Builder:
    def __init__(self, log):
        os._exit(3)
"""
HANGS = """
class Builder:
    def __init__(self, log):
        open(os.environ["TRTKIT_TEST_PID_FILE"], "w").write(str(os.getpid()))
        print('["waiting", 0, 1]', flush=True)
        time.sleep(60)
"""


def misbehaving(folder: Path, monkeypatch: pytest.MonkeyPatch, builder: str) -> Path:
    """Make trtkit use such a library; returns the file into which `HANGS` writes its process id."""
    real = require().module.__name__
    (folder / "odd_rtx.py").write_text(
        f"import os, sys, time, {real} as real\n"
        "globals().update({k: v for k, v in vars(real).items() if k[0] != '_'})\n"
        f"__version__ = real.__version__\n{builder}"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "odd_rtx", raising=False)
    monkeypatch.setenv(trt.SETTING, "odd_rtx")
    monkeypatch.setenv("TRTKIT_TEST_PID_FILE", str(folder / "pid"))
    return folder / "pid"
