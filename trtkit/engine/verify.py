"""Verified or refused: an engine is handed out only after its outputs were compared with a reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trtkit.engine.computable import Computable, Original
from trtkit.engine.shapes import check_within
from trtkit.errors import DataError, VerificationError
from trtkit.model import Model
from trtkit.quant.overflow import overflowing
from trtkit.quant.widen import in_float32

if TYPE_CHECKING:
    from trtkit.engine.engine import Engine

# Largest relative error of a model's outputs after rewriting, by precision. An FP16 product is off by up to 2^-11 =
# 5e-4, a BF16 one by 2^-8 = 4e-3, and tens of layers add up; INT8 keeps about 20 dB (an error of 0.1) on a network that
# takes to it.
GRAPH_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 8e-2, "int8": 0.4, "fp8": 0.4, "int4": 0.4}
# The same for the engine against its own graph. FP32 leaves room for TF32, whose products are off by up to 2^-11; in
# INT8 a value on the edge between two steps may round to either.
ENGINE_TOLERANCE = {"fp32": 5e-3, "fp16": 2e-2, "bf16": 8e-2, "int8": 0.1, "fp8": 0.1, "int4": 0.1}

# How often an engine computes each sample. The first run starts its kernels one by one, the others replay a CUDA graph;
# and once is not enough: on a GPU that TensorRT-RTX does not support, engines were seen to be right once and wrong
# the next time.
_RUNS = 10


class Check(NamedTuple):
    """One output of one computation held against one reference, over all samples."""

    output: str
    what: str  # e.g. "graph after fp16 against the model as loaded"
    error: float  # relative: ‖got - expected‖ / ‖expected‖
    sqnr_db: float
    tolerance: float
    samples: int

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN, which never passes

    def __str__(self) -> str:
        return (
            f"{self.output}: {self.what}: relative error {self.error:.2e} ({self.sqnr_db:.1f} dB), tolerance "
            f"{self.tolerance:.0e}, {self.samples} sample{'s' * (self.samples > 1)}"
        )


class Verification(NamedTuple):
    """What was compared before an engine was handed out, and what could not be."""

    checks: tuple[Check, ...]
    note: str = ""
    engine_ran: bool = False  # False where no GPU could run it: then only its graph was checked

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.checks), *([self.note] if self.note else [])])


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """‖got - expected‖ / ‖expected‖ over all elements, in float64; an infinity is right only where it is expected.

    >>> round(relative_error(np.array([1.0, 2.1]), np.array([1.0, 2.0])), 4)
    0.0447
    """
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = float(np.linalg.norm(np.where(got == expected, 0, got - expected)))
    norm = float(np.linalg.norm(expected[np.isfinite(expected)]))
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


def sqnr_db(got: np.ndarray, expected: np.ndarray) -> float:
    """Signal to quantization noise ratio in decibel: 20 log10(‖expected‖ / ‖got - expected‖).

    >>> round(sqnr_db(np.array([1.0, 2.1]), np.array([1.0, 2.0])), 1)
    27.0
    """
    error = relative_error(got, expected)
    return float("inf") if error == 0 else float(-20 * np.log10(error))


def samples_for(
    model: Computable, profiles: list[dict[str, list[list[int]]]], data: Iterable[Any] | None
) -> list[dict]:
    """The inputs to verify on: all of `data`, or random ones of the best shape of each profile, and of batch 1.

    Raises:
        DataError: `data` is there but holds nothing.
    """
    if data is not None:
        samples = [model.check_inputs(one) for one in data]
        if not samples:
            raise DataError("`data` to verify with is empty. Leave it out to verify on random inputs.")
        for sample in samples:
            check_within(profiles, {name: array.shape for name, array in sample.items()}, model.name)
        return samples
    return [
        _random(model, profile, which, seed)
        for seed, (profile, which) in enumerate((profile, which) for profile in profiles for which in (0, 1))
    ]


def _random(model: Computable, profile: Mapping[str, list[list[int]]], which: int, seed: int) -> dict[str, np.ndarray]:
    """Random inputs of a profile's least (which=0) or best (1) shape, the batch at most 2 so that checking is quick."""
    sizes: dict[str, int] = {}
    for info in model.inputs:
        for dim, size in zip(info.shape, profile.get(info.name, [info.shape] * 3)[which], strict=True):
            if isinstance(dim, str):
                sizes[dim] = int(size)
    for info in model.inputs:
        if info.shape and isinstance(info.shape[0], str):
            least = profile[info.name][0][0]
            sizes[info.shape[0]] = max(least, min(2, sizes[info.shape[0]]))
    return model.random_inputs(seed=seed, dims=sizes)


def compare_outputs(
    got: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]], what: str, tolerance: float
) -> list[Check]:
    """One Check for every output; floating-point ones by relative error, others by the share of differing elements."""
    checks = []
    for name in expected[0]:
        if any(name not in a or a[name].shape != b[name].shape for a, b in zip(got, expected, strict=True)):
            checks.append(
                Check(name, f"{what}, missing or of another shape", float("inf"), float("-inf"), tolerance, len(got))
            )
            continue
        mine = np.concatenate([np.asarray(one[name]).ravel() for one in got])
        theirs = np.concatenate([np.asarray(one[name]).ravel() for one in expected])
        if theirs.dtype.kind in "iub":
            error, decibel = float(np.mean(mine != theirs)), float("nan")
        else:
            error, decibel = relative_error(mine, theirs), sqnr_db(mine, theirs)
        checks.append(Check(name, what, error, decibel, tolerance, len(got)))
    return checks


def verify_engine(engine: Engine, data: Iterable[Any] | None = None, tolerance: float | None = None) -> Verification:
    """Compare the engine's graph with the model as it was loaded, and on a GPU the engine with its graph.

    Raises:
        VerificationError: an error is over its tolerance, or an output is not finite where the reference is.
    """
    model = engine.model
    if model is None:
        raise VerificationError(
            "This engine came without its model, so there is nothing to compare it with. Open it with "
            "trtkit.open_engine(path, model=...)."
        )
    samples = samples_for(model, engine.manifest["profiles"], data)
    graph_outputs = _run_exactly(model, samples)
    checks, notes = [], []
    if model.origin is not model:
        checks += against_origin(model, samples, graph_outputs, tolerance)
    if engine.runs_here:
        with engine.open("cuda") as session:
            runs = [[session.run(sample) for sample in samples] for _ in range(_RUNS)]
        limit = ENGINE_TOLERANCE[model.precision] if tolerance is None else tolerance
        what = f"engine on {session.device} against its graph, the worst of {_RUNS} runs"
        checks += _worst([compare_outputs(got, graph_outputs, what, limit) for got in runs])
    else:
        if not checks:
            _refuse_nan(model, graph_outputs)
        if isinstance(model, Model):  # a network that was written by hand is float32
            _refuse_overflow(model, samples)
        many = f"{len(samples)} sample{'s' * (len(samples) > 1)}"
        how = " in float32, looked through for overflow" if model.precision in ("fp16", "bf16") else ""
        where = "ONNX Runtime" if isinstance(model, Model) else "the evaluator of networks"
        ran = f"its graph ran in {where} on {many}{how}"
        notes.append(f"The engine itself was not run: {engine.why_not_here}; {ran}.")
    failed = [check for check in checks if not check.passed]
    if failed:
        raise VerificationError(
            f"The engine of {model.name!r} ({model.precision}) is refused, since it is not what was asked for:\n"
            + "\n".join(f"  {check}" for check in failed)
            + "\nKeep more of the network in higher precision, calibrate on more data, or give a `tolerance` if this "
            "is good enough; verify=False hands it out unseen."
        )
    return Verification(tuple(checks), " ".join(notes), engine.runs_here)


def _worst(runs: list[list[Check]]) -> list[Check]:
    """For each output the check of the run with the largest error; NaN is larger than any number."""
    return [
        max(checks, key=lambda c: float("inf") if np.isnan(c.error) else c.error) for checks in zip(*runs, strict=True)
    ]


def against_origin(
    model: Computable, samples: list[dict], outputs: list[dict[str, np.ndarray]], tolerance: float | None
) -> list[Check]:
    """The rewritten graph against the model as loaded, whose inputs may be of another type (float32, float16)."""
    origin = model.origin
    names = [info.name for info in origin.inputs]
    if sorted(names) != sorted(samples[0]):
        raise VerificationError(
            f"{model.name!r} takes {sorted(samples[0])} and the model it is to be verified against takes {names}. "
            "Give a reference with the same inputs."
        )
    dtypes = {info.name: info.dtype for info in origin.inputs}
    expected = _run_exactly(origin, [{k: v.astype(dtypes[k]) for k, v in sample.items()} for sample in samples])
    what = f"{model.precision} graph against the model as loaded"
    return compare_outputs(
        outputs, expected, what, GRAPH_TOLERANCE[model.precision] if tolerance is None else tolerance
    )


def _run_exactly(model: Original, samples: list[dict]) -> list[dict[str, np.ndarray]]:
    """The graph just as it is written, in a session that is dropped at once: two would hold the weights twice."""
    if model.precision == "bf16" and isinstance(model, Model):
        model = in_float32(model)
        samples = [{info.name: sample[info.name].astype(info.dtype) for info in model.inputs} for sample in samples]
    reference = model.open_reference(exact=True)
    return [reference.run(sample) for sample in samples]


def _refuse_overflow(model: Model, samples: list[dict]) -> None:
    """ONNX Runtime on the CPU computes FP16 in FP32, so overflow does not show in the outputs; look inside for it."""
    if model.precision == "bf16":
        return  # its range is float32's
    names = overflowing(model, samples)
    if names:
        what = f"tensor {names[0]!r}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
        raise VerificationError(
            f"{model.name!r} ({model.precision}) overflows: {what} leaves the range of its type on a GPU. "
            "Give trtkit.autocast `data`, so that it keeps such nodes in float32, or use bf16; verify=False skips this."
        )


def _refuse_nan(model: Computable, outputs: list[dict[str, np.ndarray]]) -> None:
    for name in outputs[0]:
        # bfloat16 is no kind of number to NumPy, hence the conversion
        if any(np.isnan(one[name].astype(np.float64)).any() for one in outputs if one[name].dtype.kind in "fV"):
            raise VerificationError(
                f"Output {name!r} of {model.name!r} is not a number (NaN) on the samples it was run on. Give `data` "
                "that is like the model's real inputs, or verify=False to get the engine all the same."
            )
