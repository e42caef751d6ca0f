"""ONNX's own test models before and after `optimize`, at every level, on the data that comes with them.

    python3 -m benchmarks.backend_models                 # all of them (some minutes)
    python3 -m benchmarks.backend_models --every 10      # a sample
    python3 -m benchmarks.backend_models --match scan    # by name

Both sides run in ONNX Runtime with its own optimisations off. A model that ONNX Runtime does not run is counted and
left out. Of one that gives other results when it is run twice (random numbers without a seed) only types and shapes
are compared.
"""

from __future__ import annotations

import argparse
import logging
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import trtkit
from trtkit.errors import TrtkitError
from trtkit.passes import LEVELS

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FOLDERS = ("simple", "pytorch-converted", "pytorch-operator", "light")
BROKEN = ("affine_grid",)  # its expansion feeds Range a tensor that is no scalar, which ONNX forbids
GOOD, SKIPPED, BAD = ("equal", "random"), ("not run", "refused"), ("mismatch", "crash", "invalid")


@dataclass(frozen=True)
class Case:
    """A test model with one set of inputs, by the names of the graph's inputs."""

    name: str
    model: onnx.ModelProto
    inputs: dict[str, Any]


def cases(match: str = "", every: int = 1) -> Iterator[Case]:
    """All test models of the installed onnx package, or every n-th of them."""
    for number, case in enumerate(_all(match)):
        if number % every == 0:
            yield case


def _all(match: str) -> Iterator[Case]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX computes overflows on purpose
        operators = collect_testcases(None)
    for case in operators:
        if match in case.name and case.data_sets and not any(word in case.name for word in BROKEN):
            names = [value.name for value in case.model.graph.input]
            for number, (inputs, _) in enumerate(case.data_sets):
                yield Case(f"node/{case.name}#{number}", case.model, dict(zip(names, inputs, strict=False)))
    for folder in FOLDERS:
        for path in sorted((DATA / folder).glob(f"*{match}*")):
            if (path / "model.onnx").exists():
                yield from _stored(path)


def _stored(path: Path) -> Iterator[Case]:
    proto = onnx.load(path / "model.onnx")
    for data in sorted(path.glob("test_data_set_*")):
        inputs = {}
        for number, value in enumerate(proto.graph.input):
            if (file := data / f"input_{number}.pb").exists():
                inputs[value.name] = _read(file, value)
        yield Case(f"{path.parent.name}/{path.name}#{data.name.rpartition('_')[2]}", proto, inputs)


def _read(file: Path, value: onnx.ValueInfoProto) -> Any:
    kind = value.type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(file.read_bytes()))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(file.read_bytes()))
    return numpy_helper.to_array(onnx.load_tensor(file))


def run(proto: onnx.ModelProto, inputs: dict[str, Any]) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    asked = {value.name for value in session.get_inputs()}
    given: list[Any] = session.run(None, {name: data for name, data in inputs.items() if name in asked})
    return given


def check(case: Case) -> dict[str, tuple[str, str]]:
    """For "load" and each level ("level 2"): the outcome, one word of GOOD, SKIPPED or BAD, and why."""
    try:
        wanted, again = run(case.model, case.inputs), run(case.model, case.inputs)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has a dozen kinds of "no"
        return {"load": ("not run", str(error))}
    try:
        model = trtkit.load(case.model)
    except TrtkitError as error:
        return {"load": ("refused", str(error))}
    except Exception:  # noqa: BLE001 - what must never happen is what is looked for
        return {"load": ("crash", traceback.format_exc(limit=-2))}
    random = difference(wanted, again) != ""
    return {f"level {level}": _check_level(model, level, case, wanted, random) for level in LEVELS}


def _check_level(model: trtkit.Model, level: int, case: Case, wanted: list[Any], random: bool) -> tuple[str, str]:
    try:
        proto = trtkit.optimize(model, level).to_proto()
    except Exception:  # noqa: BLE001
        return "crash", traceback.format_exc(limit=-2)
    try:
        onnx.checker.check_model(proto, full_check=_infers(case.model))
        given = run(proto, case.inputs)
    except Exception as error:  # noqa: BLE001
        return "invalid", str(error)
    why = difference(wanted, given, values=not random)
    return ("mismatch", why) if why else ("random" if random else "equal", "")


def _infers(proto: onnx.ModelProto) -> bool:
    """Whether shape inference, part of the full check, accepts the original; it fails on a few of ONNX's own models."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def difference(wanted: Any, given: Any, values: bool = True) -> str:
    """What differs between two results of ONNX Runtime (arrays, or lists of them), in a few words; "" if nothing."""
    if isinstance(wanted, list) and isinstance(given, list):
        if len(wanted) != len(given):
            return f"{len(given)} instead of {len(wanted)} results"
        return next(filter(None, (difference(a, b, values) for a, b in zip(wanted, given, strict=True))), "")
    if wanted is None or given is None:
        return "" if wanted is given else "one result is empty"
    a, b = np.asarray(wanted), np.asarray(given)
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{b.dtype} {b.shape} instead of {a.dtype} {a.shape}"
    if not values or a.size == 0:
        return ""
    if a.dtype.kind not in "fcV":
        return "" if (a == b).all() else f"{(a != b).sum()} of {a.size} values differ"
    return _far(a.astype(np.complex128 if a.dtype.kind == "c" else np.float64), b, a.dtype)


def _far(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> str:
    """Reals are compared within the rounding of a few operations of their type."""
    tolerance = 1e-2 if dtype.itemsize <= 2 else 1e-4 if dtype.itemsize == 4 else 1e-9
    close = np.isclose(b.astype(a.dtype), a, rtol=tolerance, atol=tolerance / 10, equal_nan=True)
    if close.all():
        return ""
    return f"{(~close).sum()} of {a.size} values differ, the largest by {np.abs(a - b).max():.3g}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.backend_models", description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--match", default="")
    options = parser.parse_args(argv)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it says of every untyped value that it has no type
    begin, counts, models = time.perf_counter(), Counter[tuple[str, str]](), 0
    for case in cases(options.match, options.every):
        models += 1
        for where, (outcome, why) in check(case).items():
            counts[where, outcome] += 1
            if outcome in BAD or outcome == "refused":
                print(f"{outcome.upper():9s} {case.name} {where}: {why.strip()[-300:]}", flush=True)
    print(f"{models} models with data in onnx {onnx.__version__}, {time.perf_counter() - begin:.0f} s")
    for (where, outcome), count in sorted(counts.items()):
        print(f"  {where:8s} {outcome:9s} {count}")
    bad = sum(count for (_, outcome), count in counts.items() if outcome in BAD)
    print(f"{bad} mismatches, crashes and invalid models in all")
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
