"""What this machine can do: which TensorRT and GPU are there, what runs live and what is recalled from records."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trtkit
from trtkit.bench import machine
from trtkit.engine import cache, trt
from trtkit.engine.device import Gpu, gpu
from trtkit.errors import extra

if TYPE_CHECKING:
    from rich.console import Group

# distribution name -> the pip extra that brings it ("" is the plain install)
PACKAGES = {
    "numpy": "",
    "onnx": "",
    "onnx-ir": "",
    "onnxruntime": "",
    "matplotlib": "",
    "torch": "torch",
    "onnxscript": "torch",
    "torchvision": "course",
    "jupyterlab": "course",
    "nbval": "course",
    "pycuda": "gpu",
    "cuda-bindings": "gpu",
}


@dataclass(frozen=True)
class Ability:
    """One thing the kit can do: whether it happens on this machine, why (not), and how to get it."""

    what: str
    live: bool
    reason: str
    way_out: str = ""


@dataclass(frozen=True)
class Report:
    """All that `trtkit doctor` found. `packages` maps a distribution to its version, None where it is missing."""

    python: str
    platform: str
    cpu: str
    memory_bytes: int
    packages: dict[str, str | None]
    tensorrt: trt.Library | None
    gpu: Gpu | None
    abilities: tuple[Ability, ...]

    @property
    def on_gpu(self) -> bool:
        """Whether engines run on a GPU here."""
        return all(ability.live for ability in self.abilities if ability.what == "run engines on a GPU")

    def line(self) -> str:
        """All of it in one line, as the lessons print it."""
        library = self.tensorrt or "no TensorRT"
        card = self.gpu.name if self.gpu else "no GPU"
        run = "engines run on it" if self.on_gpu else "models run on the CPU, GPU figures are recalled"
        return f"trtkit {trtkit.__version__}, Python {self.python}, {library}, {card}: {run}"


def report() -> Report:
    """Look at this machine. Nothing is installed, changed or measured, and no GPU memory is taken.

    >>> found = report()
    >>> found.line().startswith("trtkit ")
    True
    """
    packages = {name: machine.version(name) for name in PACKAGES}
    library, card = trt.find(), gpu()
    return Report(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=machine.cpu(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        packages=packages,
        tensorrt=library,
        gpu=card,
        abilities=tuple(_abilities(packages, library, card)),
    )


def line() -> str:
    """`report().line()`: this machine in one line, for notebooks."""
    return report().line()


def _abilities(packages: dict[str, str | None], library: trt.Library | None, card: Gpu | None) -> list[Ability]:
    on_gpu = _run_on_gpu(packages, library, card)
    torch = packages["torch"] and packages["onnxscript"]
    lessons = all(packages[name] for name in ("torch", "torchvision", "jupyterlab"))
    figures = "measured here" if on_gpu.live else "recalled from benchmarks/records, each with where it was measured"
    return [
        Ability("optimise, cast and quantise ONNX models", True, "on the CPU"),
        Ability("run and verify models", True, f"ONNX Runtime {packages['onnxruntime']} on the CPU"),
        Ability(
            "load PyTorch modules",
            bool(torch),
            f"torch {packages['torch']}" if torch else "torch or onnxscript is missing",
            "" if torch else extra("torch"),
        ),
        Ability("open the lessons", lessons, "JupyterLab and PyTorch", "" if lessons else extra("course")),
        _build(library, card),
        on_gpu,
        Ability("GPU figures", on_gpu.live, figures),
    ]


def _build(library: trt.Library | None, card: Gpu | None) -> Ability:
    what = "build TensorRT engines"
    if library is None:
        return Ability(what, False, "no TensorRT is installed", "pip install tensorrt-rtx-cu13 (needs no GPU)")
    if card is None and not library.is_rtx:
        return Ability(what, False, f"{library} builds only with a GPU", "pip install tensorrt-rtx-cu13 (needs none)")
    return Ability(what, True, str(library))


def _run_on_gpu(packages: dict[str, str | None], library: trt.Library | None, card: Gpu | None) -> Ability:
    what = "run engines on a GPU"
    if card is None:
        return Ability(
            what, False, "no GPU, or no driver for it", "an NVIDIA GPU with its driver; all else runs without"
        )
    if library is None:
        return Ability(what, False, f"{card} is there, TensorRT is not", "pip install tensorrt-rtx-cu13")
    if not library.runs_on(card.compute_capability):
        cure = "pip install tensorrt"
        if card.compute_capability == (9, 0):
            cure += ", or 'tensorrt-rtx-cu13<1.7', which runs there though NVIDIA does not support it"
        return Ability(what, False, f"{card} is there, but {library} does not run on it", cure)
    if packages["pycuda"] is None:
        return Ability(what, False, f"{card} is there, PyCUDA is not", f"{extra('gpu')} (needs the CUDA toolkit)")
    if library.is_rtx and card.compute_capability == (9, 0):
        risk = f"{library} runs on the {card.name} without NVIDIA's support, and some engines came out wrong there"
        return Ability(what, True, risk, "never pass verify=False; or pip install tensorrt")
    return Ability(what, True, f"{card}, driver {card.driver or 'unknown'}, CUDA {card.cuda}")


def render(found: Report) -> Group:
    """The report as rich tables."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    here = Table(title="this machine", title_justify="left", show_header=False)
    card = found.gpu
    for row in (
        ("trtkit", trtkit.__version__),
        ("Python", found.python),
        ("system", found.platform),
        ("CPU", f"{found.cpu}, {found.memory_bytes / 2**30:.0f} GiB"),
        ("TensorRT", str(found.tensorrt or "none")),
        ("GPU", str(card) if card else "none"),
        ("driver", f"{card.driver or 'unknown'}, CUDA {card.cuda}" if card else "none"),
        ("caches", f"{cache.folder()}, {sum(entry.size_bytes for entry in cache.entries()) / 2**20:.1f} MiB"),
    ):
        here.add_row(*row)
    packages = Table("package", "version", title="packages", title_justify="left")
    for name, version in found.packages.items():
        way_out = extra(PACKAGES[name]) if PACKAGES[name] else f"pip install {name}"
        packages.add_row(name, version or escape(f"missing: {way_out}"), style=None if version else "dim")
    live = Table("what", "here", "why, and what would change it", title="live or recalled", title_justify="left")
    for ability in found.abilities:
        no = "recalled" if ability.what == "GPU figures" else "no"
        why = "\n".join(text for text in (ability.reason, ability.way_out) if text)
        live.add_row(ability.what, "live" if ability.live else no, escape(why))
    return Group(here, packages, live)
