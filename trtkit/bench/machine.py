"""What this machine is and what runs on it: the provenance that every recorded number carries."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import trtkit
from trtkit.engine.device import gpu


@cache
def cpu() -> str:
    """The CPU's name and how many of its cores this process may use, e.g. "Intel Xeon Platinum 8481C, 16 cores"."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:  # not Linux: platform's shorter name stands
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} core{'' if cores == 1 else 's'}"


def version(distribution: str) -> str | None:
    """Installed version of a package, None when it is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@cache
def commit() -> str:
    """The source's state: `git describe` of the checkout ("+dirty" with changes), TRTKIT_COMMIT, or "unknown"."""
    if os.environ.get("TRTKIT_COMMIT"):
        return os.environ["TRTKIT_COMMIT"]
    command = ["git", "describe", "--always", "--tags", "--dirty=+dirty"]
    root = Path(trtkit.__file__).resolve().parents[1]
    try:
        answer = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip() or "unknown"


def can_run(needs: str) -> bool:
    """Whether this machine has what a measurement needs: "cpu", "gpu" or "tensorrt-gpu" (a GPU and a TensorRT).

    Raises ValueError for any other word.

    >>> can_run("cpu")
    True
    """
    if needs == "cpu":
        return True
    if needs == "gpu":
        return gpu() is not None
    if needs == "tensorrt-gpu":
        return _runs_engines()
    raise ValueError(f"needs={needs!r} is none of 'cpu', 'gpu', 'tensorrt-gpu'; or pass a function that says yes or no")


def _runs_engines() -> bool:
    from trtkit.engine import trt  # imports TensorRT, which takes a while: only when somebody asks

    card, library = gpu(), trt.find()
    return bool(card and library and library.runs_on(card.compute_capability) and trt.has_runtime_packages())


def provenance(command: str, device: str = "cuda") -> dict[str, Any]:
    """Where, when and with what a number was measured. `device` says which processor did the work, "cpu" or "cuda"."""
    from trtkit.engine import trt

    card = gpu() if device.startswith("cuda") else None
    library = trt.find()
    return {
        "device": card.name if card else cpu(),
        "cpu": cpu(),
        "driver": (card.driver or _driver_from_nvidia_smi()) if card else None,
        "cuda": card.cuda if card else None,
        "tensorrt": str(library) if library else None,
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
        "python": platform.python_version(),
        "trtkit": trtkit.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
    }


@cache
def _driver_from_nvidia_smi() -> str | None:
    """The driver's version where the kernel does not tell it, as inside some containers."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.partition("\n")[0].strip() or None
