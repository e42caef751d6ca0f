"""Lesson 00 without Jupyter: a photo classifier becomes verified TensorRT engines, in about a minute on two cores.

    python -m trtkit.course.tour

Prints tables and leaves pictures, engines and their manifests in ``out/``. Run it twice or interrupt it: every file
appears whole or not at all, and a second run replaces what the first left.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import trtkit
from trtkit.course import gpu, nets, paths, photos
from trtkit.course.pictures import lesson00 as pictures
from trtkit.errors import RecordError, TrtkitError
from trtkit.model import Model
from trtkit.plot import save

if TYPE_CHECKING:
    from trtkit.bench.compare import Comparison
    from trtkit.engine.engine import Engine

CALIBRATION, JUDGING = 32, 45  # views; the two sets share no view
GPU_SETTINGS = [(precision, batch) for precision in ("fp32", "fp16") for batch in (1, 32, 128)]
Shown = list[tuple[Path, str]]  # a file and what it is


class Steps:
    """The tour's progress display: one line with a bar for each step."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    @contextmanager
    def step(self, what: str, total: float = 1) -> Iterator[Callable[..., None]]:
        """Show a step while its block runs; it may call ``advance()``, or ``advance(phase, i, n)`` as builders do."""
        task = self.progress.add_task(what, total=total)
        yield lambda *state: self._advance(task, state)
        total = self.progress.tasks[task].total or 1
        self.progress.update(task, completed=total)

    def _advance(self, task: TaskID, state: tuple[Any, ...]) -> None:
        if state:
            self.progress.update(task, total=max(state[2], 1), completed=min(state[1], state[2]))
        else:
            self.progress.advance(task)


def run(out: Path, console: Console) -> Shown:
    """The whole tour; returns what it left in ``out``."""
    from trtkit import doctor, plot

    plot.style()
    out.mkdir(parents=True, exist_ok=True)
    console.rule("trtkit: from a model to a verified TensorRT engine")
    console.print(doctor.line(), highlight=False)
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        steps = Steps(progress)
        files, comparison = classifier(out, steps)
        more, engine = residual_network(out, steps)
    files += more + gpu_figures(out, console)
    console.print(variants(comparison))
    console.print(f"Fusion map of {engine.fusion_map()}\n", highlight=False)
    summary(files, console)
    return files


def classifier(out: Path, steps: Steps) -> tuple[Shown, Comparison]:
    """MobileNetV2: export, optimise, FP16, INT8, the answers on photographs, two engines."""
    import torch

    with steps.step("MobileNetV2: load the trained network, export it to a graph"):
        model = trtkit.load(nets.mobilenet_v2(), torch.rand(1, 3, 224, 224), name="mobilenet_v2")
    with steps.step("optimise the graph"):
        small = trtkit.optimize(model)
    with steps.step("write FP16 into it"):
        half = trtkit.autocast(small, "fp16")
    with steps.step(f"calibrate INT8 on {CALIBRATION} views of photographs", total=CALIBRATION // 8 + 1) as advance:
        int8 = trtkit.quantize(small, _watched(photos.views(CALIBRATION), 8, advance))
    files = answers(out, small, steps) + agreement(out, {"FP16": half, "INT8": int8}, small, steps)
    for variant in (half, int8):
        files += build(out, variant, steps)[0]
    with steps.step("measure all four on this CPU"):
        batches = list(photos.views(16, seed=2)[:, None])
        names = ["as exported", "optimised", "FP16", "INT8"]
        comparison = trtkit.compare(model, small, half, int8, data=batches, names=names)
        files.append((save(comparison.plot(), out / "mobilenet_v2_comparison.png"), "error, size and latency"))
    return files, comparison


def residual_network(out: Path, steps: Steps) -> tuple[Shown, Engine]:
    """ResNet-50 (random weights): from torch to an engine, and the map of what was fused."""
    import torch

    with steps.step("ResNet-50 (random weights): export it to a graph"):
        model = trtkit.load(nets.resnet50(), torch.rand(1, 3, 224, 224), name="resnet50")
    with steps.step("optimise the graph"):
        small = trtkit.optimize(model)
    files, engine = build(out, small, steps)
    with steps.step("draw what was fused with what"):
        picture = save(engine.fusion_map().plot(), out / "resnet50_fusion_map.png")
    return [*files, (picture, "ONNX nodes and the kernels they became")], engine


def answers(out: Path, model: Model, steps: Steps) -> Shown:
    """What the classifier says to the nine photographs."""
    with steps.step("classify nine photographs"):
        images = photos.photos()
        logits = [next(iter(model.run(photos.preprocess(image)).values())) for image in images.values()]
        guesses = [photos.top(row, k=3) for row in logits]
        right = [
            g[0].label in photos.TRUTH[name] if name in photos.TRUTH else None
            for name, g in zip(images, guesses, strict=True)
        ]
        picture = save(pictures.answers(list(images.values()), guesses, right), out / "mobilenet_v2_answers.png")
    return [(picture, "the network's answers on photographs")]


def agreement(out: Path, variants: dict[str, Model], reference: Model, steps: Steps) -> Shown:
    """How often FP16 and INT8 give the same label as FP32 on views that were not used to calibrate."""
    with steps.step(f"do the answers stay the same? {JUDGING} other views", total=1 + len(variants)) as advance:
        views = photos.views(JUDGING, seed=1)
        expected = _logits(reference, views)
        advance()
        same = {}
        for name, variant in variants.items():
            same[name] = _logits(variant, views).argmax(1) == expected.argmax(1)
            advance()
        chances = np.sort(photos.softmax(expected), axis=1)
        figure = pictures.margins(chances[:, -1] - chances[:, -2], same)
    return [(save(figure, out / "mobilenet_v2_agreement.png"), "which labels change in FP16 and INT8")]


def build(out: Path, model: Model, steps: Steps) -> tuple[Shown, Engine]:
    """Build, verify and save one engine."""
    views = photos.views(4, seed=3)
    with steps.step(f"build and verify a TensorRT engine of {model.name} in {model.precision.upper()}") as advance:
        engine = trtkit.build(model, data=[views], progress=advance)
        path = engine.save(out / f"{model.name}_{model.precision}.engine")
    checked = "verified" if engine.verification and engine.verification.engine_ran else "its graph verified"
    what = f"{engine.manifest['tensorrt']} {engine.manifest['version']} engine, {checked}"
    return [(path, what)], engine


def gpu_figures(out: Path, console: Console) -> Shown:
    """The GPU's figures from the records, labelled; says so where there are none."""
    found, missing = {}, []
    for precision, batch in GPU_SETTINGS:
        try:
            found[f"{precision}, batch {batch}"] = gpu.recalled(precision, batch)
        except RecordError as error:
            missing.append((f"{precision} b{batch}", error))
    if missing:
        settings = ", ".join(setting for setting, _ in missing)
        console.print(f"No GPU figures for ResNet-50 in {settings}: {missing[0][1]}", style="yellow")
    if not found:
        return []
    source = "; ".join(dict.fromkeys(figures.source for figures in found.values()))
    table = Table("ResNet-50", "ours ms", "best peer ms", "which", "over it", "over eager", title_justify="left",
                  title=f"On a GPU, ours against PyTorch, {source}")  # fmt: skip
    for setting, figures in found.items():
        best, factors = figures.best_peer(), figures.factors()
        times = (f"{figures[name]:.3f}" for name in ("trtkit", best))
        table.add_row(setting, *times, best, *(f"{factors[name]:.2f}x" for name in (best, "eager")))
    console.print(table)
    picture = pictures.speedups({setting: figures.factors() for setting, figures in found.items()}, source)
    return [(save(picture, out / "resnet50_gpu_speedups.png"), "speed-ups on a GPU")]


def variants(comparison: Comparison) -> Table:
    """The four variants of MobileNetV2 in as few columns as a narrow terminal has."""
    where = comparison.rows[0]["measured"]
    table = Table("MobileNetV2", "weights MB", "error", "same label", "ms", "over exported", title_justify="left",
                  title=f"Measured here, one photograph a call: {where}", caption_justify="left",
                  caption="'same label': agreement with the network as exported; not accuracy")  # fmt: skip
    for row in comparison.rows:
        table.add_row(row["name"], f"{row['size_bytes'] / 1e6:.1f}", f"{row['error']:.0e}",
                      f"{row['top1_agreement']:.0%}", f"{row['median_ms']:.1f}", f"{row['ratio']:.2f}x")  # fmt: skip
    return table


def summary(files: Shown, console: Console) -> None:
    """What was left where."""
    table = Table("file", "size", "what it is", title="Left behind (each engine with its manifest beside it)",
                  title_justify="left")  # fmt: skip
    for path, what in files:
        table.add_row(f"{path.parent.name}/{path.name}", f"{path.stat().st_size / 1e6:.2f} MB", what)
    console.print(table)


def _logits(model: Model, views: np.ndarray) -> np.ndarray:
    return np.concatenate([next(iter(model.run(batch).values())) for batch in np.array_split(views, 5)])


def _watched(views: np.ndarray, size: int, advance: Callable[[], None]) -> Iterator[np.ndarray]:
    """Batches of views, with a step of progress after each."""
    for start in range(0, len(views), size):
        yield views[start : start + size]
        advance()


def main(arguments: list[str] | None = None) -> int:
    """The command line: exit status 0, 1 after an error of the kit, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m trtkit.course.tour", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for pictures and engines (default: out/ of the repository)")
    options = parser.parse_args(arguments)
    console, start = Console(), time.perf_counter()
    import matplotlib

    matplotlib.use("Agg")
    try:
        run(options.out or paths.root() / "out", console)
    except TrtkitError as error:
        console.print(f"trtkit: {error}", style="red", highlight=False, markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nStopped. What is in out/ is whole; run the same command again to go on.")
        return 130
    console.print(f"The tour took {time.perf_counter() - start:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
