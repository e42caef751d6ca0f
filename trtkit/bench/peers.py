"""`trtkit bench MODEL`: what each step does to one model, beside what others make of it, all in one run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import trtkit
from trtkit.bench import torch_peers
from trtkit.bench.compare import (
    Comparison,
    Inputs,
    Outputs,
    Timing,
    as_taken,
    batches_for,
    fixed_batch,
    row_of,
    time_on_cpu,
    time_session,
)
from trtkit.bench.machine import can_run, gpu
from trtkit.bench.measure import measure
from trtkit.errors import ModelError, TrtkitError
from trtkit.model import Model

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "fp16", "int8")
PLACES = ("cpu", "gpu")
_ORT = "ONNX Runtime"  # the peer on a CPU: its own full optimisation of the model as loaded
_TOLD = "'as loaded' and 'optimised' run with ONNX Runtime's own optimiser off, to show what our passes do."


Start = Callable[[list[Inputs]], tuple[list[Outputs], Timing]]


@dataclass
class Contender:
    """Something that computes the network: `start(feeds)` gives its outputs for them and the latency of one call."""

    name: str
    precision: str
    size_bytes: int | None
    start: Start


def bench_model(
    model: Model,
    example: Any = None,
    torch_module: torch.nn.Module | None = None,
    precisions: Sequence[str] = PRECISIONS,
    batches: Sequence[int] | None = None,
    data: Iterable[Mapping[str, Any] | np.ndarray] | None = None,
    places: Sequence[str] = PLACES,
) -> Comparison:
    """Measure a model as loaded, optimised, in FP16 and in INT8, with ONNX Runtime and PyTorch as peers.

    Graphs run on the CPU; where a GPU can run them, engines are measured as well, and PyTorch in the same precisions.
    The column of ratios is to ONNX Runtime, or on a GPU to torch.compile in the lowest precision that both have. On a
    GPU TF32 is switched on for PyTorch, as TensorRT has it.

    Args:
        example: inputs to measure on (one dict or array) instead of random ones; then `batches` does not count.
        torch_module: the module that the model was exported from; adds PyTorch eager and torch.compile.
        precisions: of "fp32", "fp16" and "int8"; INT8 needs `data`, and is left out with a note where there is none. On
            the CPU the model as loaded is measured besides, since the others are held against it.
        batches: sizes of the first dimension; by default the model's own where that is fixed, else 1.
        data: calibration batches for INT8.
        places: of "cpu" and "gpu"; ("gpu",) leaves out all that would run on the CPU.

    Raises:
        ModelError: an unknown precision or place, no batch, a batch or an example that does not fit the model, or
            nothing that can be measured.
        DataError: `data` is there but empty.
    """
    _check(precisions, places)
    sets = _inputs(model, example, batches)
    variants, notes = _variants(model, precisions, data)
    rows = []
    for batch, feeds in sets.items():
        expected = [model.run(feed) for feed in feeds]
        for one in _contenders(model, variants, torch_module, places):
            try:
                outputs, timing = one.start(feeds)
                rows.append(row_of(one.name, one.precision, one.size_bytes, outputs, expected, timing, batch))
            except TrtkitError as error:
                notes.append(f"{one.name} is left out: {error}")
    if not rows:
        raise ModelError("\n".join([f"Nothing of {model.name!r} could be measured on {' or '.join(places)}.", *notes]))
    names = [row["name"] for row in rows]
    compiled = [f"torch.compile {p}, GPU" for p in ("fp16", "fp32") if f"torch.compile {p}, GPU" in names]
    title = f"{model.name}: latency of one call"
    return Comparison(rows, [*compiled, _ORT][0], title, [*dict.fromkeys(notes), *_slower_in_half(rows)])


def _check(precisions: Sequence[str], places: Sequence[str]) -> None:
    for what, given, known in (("precisions", precisions, PRECISIONS), ("places", places, PLACES)):
        if not given or set(given) - set(known):
            raise ModelError(f"bench_model takes {what} of {', '.join(known)}; got {list(given)}.")


def _inputs(model: Model, example: Any, batches: Sequence[int] | None) -> dict[int | None, list[Inputs]]:
    """The input sets to measure on by their batch, which is None for an example of the caller's."""
    if example is not None:
        return {None: batches_for(model, [example])}
    if batches is None:
        batches = [fixed_batch(model) or 1]
    if not batches:
        raise ModelError("bench_model takes at least one batch size; leave `batches` out for the model's own.")
    return {batch: batches_for(model, None, batch) for batch in batches}


def _variants(model: Model, precisions: Sequence[str], data: Any) -> tuple[dict[str, Model], list[str]]:
    """Our rewritings of the model by precision, and what had to be left out."""
    notes = [_TOLD]
    small = trtkit.optimize(model)
    variants = {"fp32": small} if "fp32" in precisions else {}
    if "fp16" in precisions:
        variants["fp16"] = trtkit.autocast(small, "fp16")
    if "int8" in precisions and data is None:
        notes.append("INT8 is left out: it needs calibration data (data=...).")
    elif "int8" in precisions:
        variants["int8"] = trtkit.quantize(small, data)
    return variants, notes


def _contenders(
    model: Model, variants: Mapping[str, Model], module: torch.nn.Module | None, places: Sequence[str]
) -> Iterator[Contender]:
    if "cpu" in places:
        yield Contender(_ORT, model.precision, model.size_bytes, _graph(model, optimiser=True))
        yield Contender("as loaded", model.precision, model.size_bytes, _graph(model, optimiser=False))
        for precision, variant in variants.items():
            ours = precision == "fp32"
            name = "optimised" if ours else precision
            yield Contender(name, variant.precision, variant.size_bytes, _graph(variant, optimiser=not ours))
    if "gpu" in places and can_run("tensorrt-gpu"):
        for precision, variant in variants.items():
            yield Contender(f"engine {precision}, GPU", precision, None, _engine(variant))
    if module is not None:
        yield from _torch_contenders(module, model, [p for p in variants if p != "int8"], places)


def _graph(model: Model, optimiser: bool) -> Start:
    def start(feeds: list[Inputs]) -> tuple[list[Outputs], Timing]:
        run = _onnxruntime(model, optimiser)
        given = [as_taken(model, feed) for feed in feeds]
        return [run(feed) for feed in given], time_on_cpu(run, given)

    return start


def _onnxruntime(model: Model, optimiser: bool) -> Callable[[Inputs], Outputs]:
    import onnxruntime as ort

    level = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimiser else level.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        raise ModelError(f"ONNX Runtime cannot load {model.name!r} ({model.precision}): {error}") from error
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def _engine(model: Model) -> Start:
    def start(feeds: list[Inputs]) -> tuple[list[Outputs], Timing]:
        given = [as_taken(model, feed) for feed in feeds]
        shapes = {name: array.shape for name, array in given[0].items()}
        engine = trtkit.build(model, shapes=shapes)
        with engine.open() as session:
            return [session.run(feed) for feed in given], time_session(engine, session, given)

    return start


def _torch_contenders(
    module: torch.nn.Module, model: Model, precisions: Sequence[str], places: Sequence[str]
) -> Iterator[Contender]:
    """PyTorch on the CPU in FP32, and on a GPU in every precision of ours: eager, as a CUDA graph, compiled."""
    torch = sys.modules["torch"]  # whoever holds a module has imported it
    settings = [("cpu", "fp32")] if "cpu" in places and "fp32" in precisions else []
    if "gpu" in places and gpu() is not None and torch.cuda.is_available():
        torch_peers.best_footing()
        settings += [("cuda", precision) for precision in precisions]
    for device, precision in settings:
        where = ", GPU" if device == "cuda" else ""
        ways = {"PyTorch eager": "eager", "PyTorch CUDA graph": "graph", "torch.compile": "compile"}
        for name, way in ways.items():
            if (way == "graph" and device == "cpu") or (way == "compile" and not _can_compile(device)):
                continue
            start = _torch(module, model, device, precision, way)
            yield Contender(f"{name} {precision}{where}", precision, None, _guarded(start))


def _guarded(start: Start) -> Start:
    """The same with every error as one of ours: PyTorch, its compilers and CUDA raise errors of all kinds."""

    def guarded(feeds: list[Inputs]) -> tuple[list[Outputs], Timing]:
        try:
            return start(feeds)
        except TrtkitError:
            raise
        except Exception as error:
            said = str(error).strip().splitlines() or ["(it said nothing)"]
            raise TrtkitError(f"it failed with {type(error).__name__}: {said[0][:200]}") from error

    return guarded


def _can_compile(device: str) -> bool:
    """On the CPU torch.compile writes C++ and needs a compiler for it."""
    return device == "cuda" or any(shutil.which(name) for name in ("g++", "clang++"))


def _torch(module: torch.nn.Module, model: Model, device: str, precision: str, way: str) -> Start:
    def start(feeds: list[Inputs]) -> tuple[list[Outputs], Timing]:
        mine = torch_peers.in_precision(module, precision, device)
        given = [torch_peers.tensors(feed, precision, device) for feed in feeds]
        if way == "graph":
            call = torch_peers.graphed(mine, given[0])
        elif way == "compile":
            call = torch_peers.compiled(mine, "reduce-overhead" if device == "cuda" else None)
        else:
            call = torch_peers.eager(mine)
        names = [info.name for info in model.outputs]
        outputs = [torch_peers.arrays(call(*tensors), names) for tensors in given]
        if device == "cpu":
            return outputs, time_on_cpu(lambda tensors: call(*tensors), given, "PyTorch")
        card = gpu()
        timed = measure(lambda tensors: call(*tensors), inputs=given, device="cuda")
        return outputs, (timed, f"PyTorch, {card.name if card else 'GPU'}")

    return start


def _slower_in_half(rows: list[dict[str, Any]]) -> list[str]:
    """The honest word about FP16 on a CPU, when that is what came out."""
    times = {row["name"]: row["median_ms"] for row in rows if row["batch"] == rows[0]["batch"]}
    if "fp16" not in times or _ORT not in times or times["fp16"] <= times[_ORT]:
        return []
    return [f"FP16 is {times['fp16'] / times[_ORT]:.1f}x slower than FP32 on this CPU, which converts most of it to "
            "FP32 and back: FP16 pays on a GPU."]
